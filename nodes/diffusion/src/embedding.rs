//! Textual inversions from their files.

use std::path::Path;

use candle_core::{Device, Tensor as Candle};
use kosmograph_models::{Error, Result, Weights};

/// The vectors [n, `width`] of the textual inversion in the file `path`.
///
/// Files of trainers for one encoder hold one tensor, under any name; those for SDXL hold one for each
/// of its encoders, of which "clip_l" is Stable Diffusion 1.5's.
///
/// # Errors
/// The file cannot be read, or holds no tensor of vectors of that width.
pub fn read_embedding(path: &Path, width: usize) -> Result<Candle> {
    let weights = Weights::open(path, &Device::Cpu)?;
    let wrong = |what: String| {
        Err(Error::Input(format!("{} is no embedding for this CLIP: {what}", path.display())))
    };
    let names = weights.names();
    let name = names.iter().find(|name| *name == "clip_l").or(names.first());
    let Some(name) = name else { return wrong("it holds no tensor".to_owned()) };
    let shape = weights.shape(name).unwrap_or_default();
    let (count, found) = match shape[..] {
        [found] => (1, found),
        [count, found] => (count, found),
        _ => {
            return wrong(format!("`{name}` has the shape {shape:?} where [n, {width}] is wanted"));
        }
    };
    if found != width {
        return wrong(format!(
            "its vectors have {found} numbers, those of the encoder {width}; Stable Diffusion 1 has \
             768, Stable Diffusion 2 has 1024"
        ));
    }
    Ok(weights.get(name, shape)?.reshape((count, width))?)
}
