//! The networks and sums that pictures are measured with in papers: DINO's features, CLIP's, and Fréchet's distance of
//! Inception's. Each has its own way to the pixels, down to how a half pixel of a crop is rounded.

pub mod clip;
pub mod dino;
pub mod frechet;
pub mod inception;
pub mod pixels;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use kosmograph_pixels::pillow::Picture;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::files::weights::Weights;

use clip::Clip;
use dino::Dino;
use inception::Inception;

/// A network that pictures are measured with, and its way to the pixels.
pub enum Network {
    Dino(Dino),
    Clip(Box<Clip>),
    Inception(Box<Inception>),
}

/// The largest config.json that is read.
const LARGEST_CONFIG: u64 = 1 << 20;

impl Network {
    /// The one in the file or folder at `path`; which it is shows in the names of its tensors. A config.json in a folder
    /// is asked for what leaves no trace in the shapes.
    ///
    /// # Errors
    /// It is none of them, or damaged.
    pub fn open(path: &Path, device: &Device) -> Result<Network> {
        let weights = Weights::open(path, device)?;
        let config = config(&path.join("config.json"))?;
        if weights.has("patch_embed.proj.weight") {
            let heads = config["num_attention_heads"].as_u64().map(|heads| heads as usize);
            let dino = Dino::load(&weights, heads)?;
            weights.finish(&["head.*"])?;
            return Ok(Network::Dino(dino));
        }
        if weights.has("Conv2d_1a_3x3.conv.weight") {
            let inception = Inception::load(&weights)?;
            weights.finish(&["*.num_batches_tracked"])?;
            return Ok(Network::Inception(Box::new(inception)));
        }
        if weights.has("visual_projection.weight") && weights.has("text_projection.weight") {
            let folder = path.is_dir().then_some(path);
            return Ok(Network::Clip(Box::new(Clip::load(&weights, &config, folder)?)));
        }
        Err(Error::NotThisKind {
            path: path.to_owned(),
            what: "it is none of DINO (dino_deitsmall16_pretrain.pth), the whole of CLIP (clip-vit-base-patch32) and the \
                   Inception of FID (pt_inception-2015-12-05)"
                .to_owned(),
        })
    }

    /// What measures by it are called: `dino`, `clip` or `fid`.
    pub fn kind(&self) -> &'static str {
        match self {
            Network::Dino(_) => "dino",
            Network::Clip(_) => "clip",
            Network::Inception(_) => "fid",
        }
    }

    /// The features of pictures in RGB, each of a size of its own: [B, F].
    ///
    /// # Errors
    /// A picture has no pixels or not three channels, or there are none.
    pub fn features(&self, pictures: &[Picture]) -> Result<Tensor> {
        let pixels = |to: &dyn Fn(Picture) -> Result<Tensor>| -> Result<Tensor> {
            let pixels: Vec<Tensor> =
                pictures.iter().map(|picture| to(*picture)).collect::<Result<_>>()?;
            Ok(Tensor::cat(&pixels, 0)?)
        };
        match self {
            Network::Dino(dino) => dino.features(&pixels(&|p| pixels::DINO.pixels(p))?),
            Network::Clip(clip) => clip.image_features(&pixels(&|p| pixels::CLIP.pixels(p))?),
            Network::Inception(inception) => {
                inception.features(&pixels(&|p| inception::pixels(&inception::planes(p)?))?)
            }
        }
    }

    /// The features of a text, [1, F], in the same space as those of pictures.
    ///
    /// # Errors
    /// Only CLIP knows texts.
    pub fn text_features(&self, text: &str) -> Result<Tensor> {
        match self {
            Network::Clip(clip) => clip.text_features(text),
            other => Err(Error::Input(format!(
                "the network of {} knows no texts; CLIP would be right",
                other.kind()
            ))),
        }
    }
}

/// The JSON of a file that may not be there.
fn config(path: &Path) -> Result<Value> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Ok(file) if file.is_file() && file.len() <= LARGEST_CONFIG => {
            let text = std::fs::read_to_string(path).map_err(failed)?;
            serde_json::from_str(&text)
                .map_err(|error| Error::Input(format!("{}: {error}", path.display())))
        }
        Ok(_) => Err(Error::Input(format!("{} is no configuration", path.display()))),
        Err(_) => Ok(Value::Null),
    }
}

/// 100 · cos of each pair of rows of features [B, F], not floored.
///
/// # Errors
/// The shapes differ.
pub fn similarities(a: &Tensor, b: &Tensor) -> Result<Vec<f64>> {
    let wide = |t: &Tensor| t.to_dtype(DType::F64)?.to_vec2::<f64>();
    let (a, b) = (wide(a)?, wide(b)?);
    if a.len() != b.len() {
        let sentence = format!("{} features cannot be compared with {}", a.len(), b.len());
        return Err(Error::Input(sentence));
    }
    Ok(a.iter().zip(&b).map(|(a, b)| similarity(a, b)).collect())
}

/// 100 · cos of two features.
pub fn similarity(a: &[f64], b: &[f64]) -> f64 {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    100.0 * dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-8)
}

/// The mean of similarities, floored at 0, as the authors of Kosmos-G report DINO, CLIP-I and CLIP-T; 0 for none.
pub fn score(similarities: &[f64]) -> f64 {
    let count = similarities.len().max(1) as f64;
    (similarities.iter().sum::<f64>() / count).max(0.0)
}
