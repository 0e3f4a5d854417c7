//! A released checkpoint of Kosmos-G → the folder that KosmosLoader reads.
//!
//! fairseq saves `{"model": {…}, "args": …}`. The sizes of the model follow from its shapes; how many
//! heads share a width does not, and is 64 numbers a head in every published one.

use std::path::{Path, PathBuf};

use candle_core::Device;
use serde_json::{Value, json};

use super::stable_diffusion;
use super::write::{Unfinished, pretty, write_safetensors, write_text};
use super::{ConvertError, Converted, Progress, Renamed, Result};
use crate::error::Error;
use crate::files::pickle::TorchFile;
use crate::kosmos::Kosmos;
use crate::kosmos::kosmos_g::is_needed;
use crate::text::kosmos_tokens::{DICTIONARY_FILE, SENTENCEPIECE_FILE};

/// What every stage of training saves.
const EMBEDDING: &str = "gpt_model.decoder.embed_tokens.weight";

/// Width of an attention head.
const HEAD_WIDTH: usize = 64;

/// CLIP's normalisation of pixels (Radford et al., arXiv 2103.00020).
const IMAGE_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const IMAGE_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Where in the file Kosmos-G's tensors are, if it is one.
pub(super) fn prefix(file: &TorchFile) -> Option<&str> {
    let prefix = |name: &'_ str| name.len().checked_sub(EMBEDDING.len());
    let mut names = file.names().filter(|name| name.ends_with(EMBEDDING));
    let name =
        names.find(|name| prefix(name).is_some_and(|n| n == 0 || name[..n].ends_with('.')))?;
    Some(&name[..prefix(name)?])
}

/// What of a checkpoint of Kosmos-G makes a condition.
pub struct KosmosCheckpoint {
    /// `config.json` of its folder.
    pub config: Value,
    /// The tensors: their names there, their names in the file.
    pub tensors: Vec<(String, String)>,
}

impl KosmosCheckpoint {
    /// What `file` holds, if it is one: a final checkpoint, or one of either stage of training.
    ///
    /// # Errors
    /// A tensor that the sizes follow from is missing, or has a shape that cannot be.
    pub fn of(file: &TorchFile) -> Result<Option<KosmosCheckpoint>> {
        let Some(prefix) = prefix(file) else { return Ok(None) };
        let tensors = under(file, prefix, |name| is_needed(name).then_some(name));
        Ok(Some(KosmosCheckpoint { config: config_of_shapes(file, prefix)?, tensors }))
    }
}

/// The tensors under `prefix` that `wanted` gives a name, from their name without it.
fn under<'n>(
    file: &'n TorchFile,
    prefix: &str,
    wanted: impl Fn(&'n str) -> Option<&'n str>,
) -> Vec<Renamed> {
    let names = file.names().filter_map(|name| Some((name.strip_prefix(prefix)?, name)));
    names.filter_map(|(short, name)| Some((wanted(short)?.to_owned(), name.to_owned()))).collect()
}

pub(super) fn convert(
    file: &TorchFile,
    prefix: &str,
    output: &Path,
    tokenizer: Option<&Path>,
    progress: Progress<'_>,
) -> Result<Converted> {
    let needed = under(file, prefix, |name| is_needed(name).then_some(name));
    let unet = under(file, prefix, |name| name.strip_prefix("diffusion_unet.unet."));
    let vae = under(file, prefix, |name| name.strip_prefix("vae.vae."));
    let tokenizer = Tokenizer::find(file.path(), tokenizer)?;
    let config = match tokenizer.config()? {
        Some(config) => config,
        None => pretty(&config_of_shapes(file, prefix)?),
    };

    let bytes = |tensors: &[Renamed]| -> u64 {
        tensors.iter().filter_map(|(_, name)| Some(file.info(name)?.byte_length() as u64)).sum()
    };
    let total = bytes(&needed) + bytes(&unet) + bytes(&vae);
    let mut done = 0;
    let mut written = |bytes: u64| {
        done += bytes;
        progress(done, total)
    };

    let folder = Unfinished::folder(output)?;
    let inside = folder.path().to_owned();
    write_text(&inside.join("config.json"), &config)?;
    tokenizer.copy_to(&inside)?;
    let weights = inside.join("model.safetensors");
    write_safetensors(file, &needed, Default::default(), &weights, &mut written)?;
    // The loader's own checks: names, shapes, configuration and dictionary belong together.
    Kosmos::read(&inside, &Device::Cpu)?;

    let mut tensors = needed.len();
    let mut notes = Vec::new();
    if !unet.is_empty() || !vae.is_empty() {
        let sd = folder.make_folder("sd")?;
        stable_diffusion::write(file, &sd, &unet, &vae, &mut written)?;
        tensors += unet.len() + vae.len();
        let parts = match (unet.is_empty(), vae.is_empty()) {
            (false, false) => "its U-Net and its VAE are",
            (false, true) => "its U-Net is",
            _ => "its VAE is",
        };
        notes.push(format!(
            "{parts} in {}, in the layout of diffusers",
            output.join("sd").display()
        ));
    }
    let left = file.tensors().len() - tensors;
    if left > 0 {
        notes.push(format!("{left} tensors that a condition does not need were left out"));
    }
    folder.finish()?;
    Ok(Converted { kind: "a folder for KosmosLoader", output: output.to_owned(), tensors, notes })
}

/// `config.json` of the model whose tensors these are.
fn config_of_shapes(file: &TorchFile, prefix: &str) -> Result<Value> {
    let input = || file.path().to_owned();
    let find = |name: &str| file.info(&format!("{prefix}{name}"));
    let shape = |name: &str, dimensions: usize| -> Result<Vec<usize>> {
        let missing = || Error::MissingTensor {
            file: file.path().display().to_string(),
            name: format!("{prefix}{name}"),
            nearest: None,
        };
        let shape = find(name).ok_or_else(missing)?.shape.clone();
        match shape.len() == dimensions && !shape.contains(&0) {
            true => Ok(shape),
            false => Err(ConvertError::OddShape { input: input(), name: name.to_owned(), shape }),
        }
    };
    let layers = |before: &str, after: &str| -> usize {
        (0..).take_while(|i| find(&format!("{before}.{i}.{after}")).is_some()).count()
    };
    let embed = shape(EMBEDDING, 2)?;
    let dim = embed[1];
    // Two numbers of a head for each of the (unused) xPos scale.
    let head_width = match find("gpt_model.decoder.self_attn_sope.scale") {
        Some(scale) if scale.shape.len() == 1 && scale.shape[0] > 0 => 2 * scale.shape[0],
        _ => HEAD_WIDTH,
    };
    let heads = (dim / head_width).max(1);

    let conv1 = shape("img_model.visual.conv1.weight", 4)?;
    let (width, patch) = (conv1[0], conv1[3]);
    const POSITIONS: &str = "img_model.visual.positional_embedding";
    let positions = shape(POSITIONS, 2)?;
    let side = (positions[0] - 1).isqrt();
    if side * side + 1 != positions[0] {
        let (name, shape) = (POSITIONS.to_owned(), positions);
        return Err(ConvertError::OddShape { input: input(), name, shape });
    }
    let mlp = shape("img_model.visual.transformer.resblocks.0.mlp.c_fc.weight", 2)?;
    let queries = shape("img_connector.latent_query", 2)?;
    let condition = shape("aligner.encoder_query", 2)?;
    Ok(json!({
        "model_type": "kosmos-g",
        "vision": {
            "image_size": side * patch,
            "patch_size": patch,
            "width": width,
            "layers": layers("img_model.visual.transformer.resblocks", "ln_1.weight"),
            "heads": (width / HEAD_WIDTH).max(1),
            "mlp_ratio": mlp[0] as f64 / width as f64,
            "image_mean": IMAGE_MEAN,
            "image_std": IMAGE_STD,
        },
        // The authors give the connector as many heads as the language model has.
        "connector": {"latent_query_num": queries[0], "heads": heads},
        "mllm": {
            "vocab_size": embed[0],
            "embed_dim": dim,
            "layers": layers("gpt_model.decoder.layers", "ffn.fc1.weight"),
            "heads": heads,
            "ffn_dim": shape("gpt_model.decoder.layers.0.ffn.fc1.weight", 2)?[0],
            "layer_norm_eps": 1e-5,
        },
        "aligner": {
            "dim": condition[1],
            "encoder_layers": layers("aligner.encoder_proj.layers", "ffn.fc1.weight"),
            "decoder_layers": layers("aligner.encoder.layers", "ffn.fc1.weight"),
            "heads": (condition[1] / HEAD_WIDTH).max(1),
            "ffn_dim": shape("aligner.encoder.layers.0.ffn.fc1.weight", 2)?[0],
            "max_positions": shape("aligner.encoder_proj.embed_positions.weight", 2)?[0],
            "queries": condition[0],
            "layer_norm_eps": 1e-5,
        },
    }))
}

/// Where the tokenizer's files are.
struct Tokenizer {
    sentencepiece: PathBuf,
    dictionary: PathBuf,
    /// For a model of other than the published head widths: a configuration of its own.
    config: PathBuf,
}

impl Tokenizer {
    /// In the folder that was given, or else beside the checkpoint or in `data` beside it.
    fn find(input: &Path, given: Option<&Path>) -> Result<Self> {
        let searched = match given {
            Some(folder) => vec![folder.to_owned()],
            None => {
                let beside = input.with_file_name("");
                vec![beside.clone(), beside.join("data")]
            }
        };
        let missing = |missing: &'static str| ConvertError::NoTokenizer {
            input: input.to_owned(),
            missing,
            searched: searched.clone(),
        };
        let has = |folder: &&PathBuf| folder.join(SENTENCEPIECE_FILE).is_file();
        let folder = searched.iter().find(has).ok_or_else(|| missing(SENTENCEPIECE_FILE))?;
        let (sentencepiece, dictionary) =
            (folder.join(SENTENCEPIECE_FILE), folder.join(DICTIONARY_FILE));
        if !dictionary.is_file() {
            return Err(missing(DICTIONARY_FILE));
        }
        // Beside a checkpoint a config.json may be anybody's.
        let config = given.map(|folder| folder.join("config.json")).unwrap_or_default();
        Ok(Self { sentencepiece, dictionary, config })
    }

    fn config(&self) -> Result<Option<String>> {
        if !self.config.is_file() {
            return Ok(None);
        }
        let io = |source| Error::Io { path: self.config.clone(), source };
        Ok(Some(std::fs::read_to_string(&self.config).map_err(io)?))
    }

    fn copy_to(&self, folder: &Path) -> Result<()> {
        let files =
            [(&self.sentencepiece, SENTENCEPIECE_FILE), (&self.dictionary, DICTIONARY_FILE)];
        for (path, name) in files {
            let copy = |source| ConvertError::Copy { path: path.clone(), source };
            // Their bytes, not their permissions.
            let bytes = std::fs::read(path).map_err(copy)?;
            std::fs::write(folder.join(name), bytes).map_err(copy)?;
        }
        Ok(())
    }
}
