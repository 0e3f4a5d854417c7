//! Models as files: what is in force, merges and LoRAs included, under the names of the original code, which every program reads.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use candle_core::{DType, Device};
use kosmograph_models::files::tensor_file::{self, Entry};
use kosmograph_models::stable_diffusion::checkpoint::original::{self, Named, Piece};
use node::interface::StoredAs;
use node::*;
use node_candle::import;

use crate::output::{self, Saved};

/// An object's tensors, and the pieces of a file that are made of them.
struct Part<'a> {
    object: &'a Object,
    /// What stands before the pieces' names at the boundary.
    boundary: &'static str,
    /// What the file of each tensor has it in.
    types: HashMap<String, StoredAs>,
    pieces: Vec<Piece>,
    /// "unsaid" of its description: options by diffusers' names of the parts.
    unsaid: serde_json::Map<String, serde_json::Value>,
}

impl<'a> Part<'a> {
    /// Of those of the object's tensors whose names begin with `boundary`, without it.
    fn of(
        cx: &Context<'_>,
        (object, input): (&'a Object, &str),
        boundary: &'static str,
        pieces: impl FnOnce(&[Named]) -> Vec<Piece>,
    ) -> Result<Self> {
        if !object.offers("weights/1") {
            return Err(Error::at(
                input,
                format!(
                    "this {} cannot be saved: its library does not offer \"weights/1\"",
                    object.type_name()
                ),
            ));
        }
        let tensors = object.weights(cx).map_err(|error| error.of_input(input))?;
        let own = tensors.into_iter().filter_map(|(name, info)| {
            let name = match boundary {
                "" if name.starts_with(SECOND) => return None,
                _ => name.strip_prefix(boundary)?.to_owned(),
            };
            Some((name, info))
        });
        let (named, types): (Vec<Named>, HashMap<_, _>) =
            own.map(|(name, info)| ((name.clone(), info.shape), (name, info.stored))).unzip();
        let unsaid = match object.offers("describe/1") {
            true => object.describe(cx).map_err(|error| error.of_input(input))?["unsaid"].take(),
            false => serde_json::Value::Null,
        };
        let unsaid = unsaid.as_object().cloned().unwrap_or_default();
        Ok(Self { object, boundary, types, pieces: pieces(&named), unsaid })
    }

    fn entry(&self, piece: &Piece) -> Entry {
        let dtype = match self.types.get(piece.first()) {
            Some(StoredAs::F16) => DType::F16,
            Some(StoredAs::BF16) => DType::BF16,
            _ => DType::F32,
        };
        Entry { name: piece.name.clone(), dtype, shape: piece.shape.clone() }
    }
}

/// What the names of SDXL's larger text encoder begin with at the boundary.
const SECOND: &str = "text_encoder_2.";

/// Marks beside a U-Net's tensors, empty tensors, by which programs know how it was trained.
fn marks(described: &serde_json::Value) -> Vec<Entry> {
    let empty = |name: &str| Entry { name: name.to_owned(), dtype: DType::F32, shape: vec![0] };
    let is_v = described["prediction"] == "v_prediction" && described["pooled_width"].is_u64();
    let alphas = described["alphas_cumprod"].as_array().and_then(|alphas| alphas.last());
    let ends_in_noise = alphas.and_then(serde_json::Value::as_f64).is_some_and(|last| last < 1e-6);
    let marks = [("v_pred", is_v), ("ztsnr", is_v && ends_in_noise)];
    marks.into_iter().filter(|(_, set)| *set).map(|(name, _)| empty(name)).collect()
}

/// Writes the parts as one file of the series, and tells of it.
fn save(
    cx: &Context<'_>,
    prefix: &str,
    parts: &[Part<'_>],
    marks: Vec<Entry>,
    more: &[(&str, String)],
) -> Result<()> {
    let mut metadata: HashMap<String, String> =
        output::texts(cx).into_iter().map(|(name, text)| (name.to_owned(), text)).collect();
    metadata.extend(more.iter().map(|(name, text)| ((*name).to_owned(), text.clone())));
    // What its loaders could not read off the shapes.
    let mut unsaid = serde_json::Map::new();
    for part in parts {
        unsaid.extend(part.unsaid.clone());
    }
    if !unsaid.is_empty() {
        let unsaid = serde_json::Value::Object(unsaid).to_string();
        metadata.insert("kosmograph.config".to_owned(), unsaid);
    }
    let places: HashMap<&str, (&Part<'_>, &Piece)> = parts
        .iter()
        .flat_map(|part| part.pieces.iter().map(move |piece| (piece.name.as_str(), (part, piece))))
        .collect();
    let mut entries: Vec<Entry> =
        parts.iter().flat_map(|part| part.pieces.iter().map(|piece| part.entry(piece))).collect();
    let unique = places.len();
    if unique != entries.len() {
        return Err(Error::new("two tensors have one name in the file that is to be saved"));
    }
    entries.extend(marks);
    let (all, mut done) = (entries.len(), 0);
    let root = output::root(cx)?;
    cx.progress(0, all)?;
    // What stopped the writing, as it was said.
    let mut failure = None;
    let saved = Saved {
        root: Path::new(&root),
        prefix,
        input: "filename_prefix",
        ending: "safetensors",
        key: "models",
    };
    let written = output::save(cx, &saved, |file| {
        let mut numbers = |entry: &Entry| {
            let Some((part, piece)) = places.get(entry.name.as_str()) else {
                let none =
                    candle_core::Tensor::zeros(entry.shape.as_slice(), DType::F32, &Device::Cpu);
                return Ok(none?);
            };
            let made = piece.numbers(&mut |name: &str| {
                let name = format!("{}{name}", part.boundary);
                let tensor =
                    part.object.weight(cx, &name).and_then(|tensor| import(&tensor, &Device::Cpu));
                tensor.map_err(|error| stop(&mut failure, error))
            });
            done += 1;
            let told = cx.progress(done, all).map_err(|error| stop(&mut failure, error));
            told.and(made)
        };
        let written = tensor_file::write(file, &entries, metadata, &mut numbers);
        written.map_err(io::Error::other)
    });
    match (written, failure) {
        (Ok(()), _) => Ok(()),
        (Err(_), Some(failure)) => Err(failure),
        (Err(error), None) => Err(error),
    }
}

/// Keeps an error as it is, while the writing ends by one of the models'.
fn stop(failure: &mut Option<Error>, error: Error) -> kosmograph_models::Error {
    let sentence = error.to_string();
    *failure = Some(error);
    kosmograph_models::Error::Input(sentence)
}

/// A U-Net's part, its marks, and what the header says of it.
type UNetPart<'a> = (Part<'a>, Vec<Entry>, Vec<(&'static str, String)>);

fn unet<'a>(cx: &Context<'_>, model: &'a Model) -> Result<UNetPart<'a>> {
    let part = Part::of(cx, (&model.0, "model"), "", |tensors| {
        original::unet(tensors, "model.diffusion_model.")
    })?;
    let described = model.0.describe(cx).map_err(|error| error.of_input("model"))?;
    let predicts = match described["prediction"].as_str() {
        Some("v_prediction") => "v",
        Some("sample") => "sample",
        _ => "epsilon",
    };
    let mut said = vec![
        ("modelspec.sai_model_spec", "1.0.0".to_owned()),
        ("modelspec.implementation", "sgm".to_owned()),
        ("modelspec.predict_key", predicts.to_owned()),
    ];
    // The names that the published specification has for these.
    let architecture =
        match (described["pooled_width"].as_u64(), described["context_width"].as_u64()) {
            (Some(_), Some(2048)) => Some("stable-diffusion-xl-v1-base"),
            (Some(_), Some(1280)) => Some("stable-diffusion-xl-v1-refiner"),
            (None, Some(768)) => Some("stable-diffusion-v1"),
            _ => None,
        };
    said.extend(architecture.map(|name| ("modelspec.architecture", name.to_owned())));
    Ok((part, marks(&described), said))
}

/// The names of a CLIP's encoders.
fn encoders(cx: &Context<'_>, clip: &Clip) -> Result<Vec<String>> {
    let described = clip.0.describe(cx).map_err(|error| error.of_input("clip"))?;
    let names = described["encoders"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names: Vec<String> =
        names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect();
    match names.iter().all(|name| name == "l" || name == "g") && !names.is_empty() {
        true => Ok(names),
        false => Err(Error::at(
            "clip",
            format!("the encoders {names:?} have no names in a file; \"l\" and \"g\" have"),
        )),
    }
}

/// Saves a U-Net as one file, with the workflow in its header.
#[derive(Inputs)]
#[node(category = "advanced/model_merging", output_node, writes = "output")]
pub struct ModelSave {
    /// The U-Net, as it is in force.
    model: Model,
    /// How the file begins; may name sub-folders.
    #[widget(default = "diffusion_models/ComfyUI", prefix)]
    filename_prefix: String,
}

impl Node for ModelSave {
    outputs![];

    fn run(self, cx: &Context) -> Result<()> {
        let (part, marks, said) = unet(cx, &self.model)?;
        save(cx, &self.filename_prefix, &[part], marks, &said)
    }
}

/// Saves a text encoder, SDXL's two as two files, with the workflow in each header.
#[derive(Inputs)]
#[node(category = "advanced/model_merging", output_node, writes = "output")]
pub struct CLIPSave {
    /// The text encoder, as it is in force.
    clip: Clip,
    /// How the files begin; may name sub-folders. "_clip_l" or "_clip_g" follows.
    #[widget(default = "clip/ComfyUI", prefix)]
    filename_prefix: String,
}

impl Node for CLIPSave {
    outputs![];

    fn run(self, cx: &Context) -> Result<()> {
        for name in encoders(cx, &self.clip)? {
            let boundary = if name == "g" { SECOND } else { "" };
            let part = Part::of(cx, (&self.clip.0, "clip"), boundary, |tensors| {
                original::clip(tensors, "")
            })?;
            let prefix = format!("{}_clip_{name}", self.filename_prefix);
            save(cx, &prefix, &[part], Vec::new(), &[])?;
        }
        Ok(())
    }
}

/// Saves an autoencoder as one file, with the workflow in its header.
#[derive(Inputs)]
#[node(category = "advanced/model_merging", output_node, writes = "output")]
pub struct VAESave {
    /// The autoencoder.
    vae: Vae,
    /// How the file begins; may name sub-folders.
    #[widget(default = "vae/ComfyUI_vae", prefix)]
    filename_prefix: String,
}

impl Node for VAESave {
    outputs![];

    fn run(self, cx: &Context) -> Result<()> {
        let part = Part::of(cx, (&self.vae.0, "vae"), "", |tensors| original::vae(tensors, ""))?;
        save(cx, &self.filename_prefix, &[part], Vec::new(), &[])
    }
}

/// Saves a U-Net, its text encoder and its autoencoder as one file, a checkpoint, with the workflow in its header.
#[derive(Inputs)]
#[node(category = "advanced/model_merging", output_node, writes = "output")]
pub struct CheckpointSave {
    /// The U-Net, as it is in force.
    model: Model,
    /// The text encoder, as it is in force.
    clip: Clip,
    /// The autoencoder.
    vae: Vae,
    /// How the file begins; may name sub-folders.
    #[widget(default = "checkpoints/ComfyUI", prefix)]
    filename_prefix: String,
}

impl Node for CheckpointSave {
    outputs![];

    fn run(self, cx: &Context) -> Result<()> {
        let (part, marks, said) = unet(cx, &self.model)?;
        let mut parts = vec![part];
        let names = encoders(cx, &self.clip)?;
        let has_both = names.len() > 1;
        let is_xl = names.iter().any(|name| name == "g");
        for name in &names {
            let (boundary, place) = match (name.as_str(), has_both) {
                ("g", true) => (SECOND, "conditioner.embedders.1.model."),
                ("g", false) => (SECOND, "conditioner.embedders.0.model."),
                (_, _) if is_xl => ("", "conditioner.embedders.0.transformer."),
                _ => ("", "cond_stage_model.transformer."),
            };
            let pieces = |tensors: &[Named]| match name.as_str() {
                "g" => original::open_clip(tensors, place),
                _ => original::clip(tensors, place),
            };
            parts.push(Part::of(cx, (&self.clip.0, "clip"), boundary, pieces)?);
        }
        parts.push(Part::of(cx, (&self.vae.0, "vae"), "", |tensors| {
            original::vae(tensors, "first_stage_model.")
        })?);
        save(cx, &self.filename_prefix, &parts, marks, &said)
    }
}
