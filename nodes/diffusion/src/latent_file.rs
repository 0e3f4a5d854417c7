//! Latents as files of ComfyUI's: safetensors with "latent_tensor", the autoencoder's own latents, and an empty tensor whose name
//! is the format's version.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor as Candle};
use kosmograph_models::files::tensor_file::{self, Entry};
use node::*;
use node_candle::{export, import};

use crate::output::{self, Saved};

const TENSOR: &str = "latent_tensor";
const VERSION: &str = "latent_format_version_0";

/// What latents are multiplied by in files without a version, and what those are taken to be that do not say their scale:
/// Stable Diffusion 1's.
const SD1_SCALE: f64 = 0.18215;

/// Saves latents as a file, with the workflow in its header.
#[derive(Inputs)]
#[node(category = "_for_testing", output_node, writes = "output")]
pub struct SaveLatent {
    /// The latents; a mask is not saved.
    samples: Latent,
    /// How the file begins; may name sub-folders.
    #[widget(default = "latents/ComfyUI", prefix)]
    filename_prefix: String,
}

impl Node for SaveLatent {
    outputs![];

    fn run(self, cx: &Context) -> Result<()> {
        let at_samples = |error: Error| error.of_input("samples");
        let samples = self.samples.samples().map_err(at_samples)?;
        let scale = self.samples.scale().map_err(at_samples)?;
        if scale.is_none() {
            cx.warn("the latents do not say what they are the autoencoder's times; they are taken to be Stable Diffusion 1's");
        }
        let own = (import(&samples, &Device::Cpu)? / scale.unwrap_or(SD1_SCALE))?;
        let entry = |name: &str, shape: &[usize]| Entry {
            name: name.to_owned(),
            dtype: DType::F32,
            shape: shape.to_vec(),
        };
        let entries = [entry(TENSOR, own.dims()), entry(VERSION, &[0])];
        let metadata: HashMap<String, String> =
            output::texts(cx).into_iter().map(|(name, text)| (name.to_owned(), text)).collect();
        let none = Candle::zeros(0, DType::F32, &Device::Cpu)?;
        let root = output::root(cx)?;
        let prefix = self.filename_prefix.as_str();
        let saved = Saved {
            root: Path::new(&root),
            prefix,
            input: "filename_prefix",
            ending: "latent",
            key: "latents",
        };
        output::save(cx, &saved, |file| {
            let mut numbers = |entry: &Entry| match entry.name.as_str() {
                TENSOR => Ok(own.clone()),
                _ => Ok(none.clone()),
            };
            tensor_file::write(file, &entries, metadata, &mut numbers).map_err(io::Error::other)
        })
    }
}

/// Loads latents that were saved as a file.
#[derive(Inputs)]
#[node(category = "_for_testing", checked)]
pub struct LoadLatent {
    /// The file, in the folder for input.
    #[file(folder = "input", entry = "file", extensions = ["latent"])]
    latent: PathBuf,
}

impl Node for LoadLatent {
    outputs![LATENT: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        load(&self.latent).map_err(|error| error.of_input("latent"))
    }
}

fn load(path: &Path) -> Result<Latent> {
    let none = |what: String| {
        Error::new(format!(
            "{} is no file of latents: {what}; SaveLatent makes one",
            path.display()
        ))
    };
    let tensors = candle_core::safetensors::load(path, &Device::Cpu)
        .map_err(|error| none(error.to_string()))?;
    let Some(tensor) = tensors.get(TENSOR) else {
        return Err(none(format!("it has no tensor `{TENSOR}`")));
    };
    if tensor.rank() != 4 || tensor.elem_count() == 0 || !tensor.dtype().is_float() {
        return Err(none(format!(
            "`{TENSOR}` is {:?} of {:?}, where four axes of floating point are wanted",
            tensor.dims(),
            tensor.dtype()
        )));
    }
    let own = tensor.to_dtype(DType::F32)?;
    let own = if tensors.contains_key(VERSION) { own } else { (own / SD1_SCALE)? };
    // They are the autoencoder's own, whichever network's they were.
    Ok(Latent::new(export(&own)?).with_scale(Some(1.0)))
}
