//! Textual inversions from their files.

use std::path::Path;

use candle_core::{Device, Tensor as Candle};
use kosmograph_models::{Result, Weights};

/// What a textual inversion's file holds for an encoder of some width.
pub enum Embedding {
    /// Vectors [n, width].
    Fits(Candle),
    /// Something else, in words.
    Unfit(String),
}

/// Reads the textual inversion in the file `path`, a file of torch or safetensors, for an encoder whose
/// vectors have `width` numbers.
///
/// The paper's code and A1111 keep them under "string_to_param", trainers for SDXL under "clip_l" and "clip_g" for
/// its two encoders, the rest in one tensor of any name. A file that cannot be read, or is damaged, does not fit.
pub fn read_embedding(path: &Path, width: usize) -> Embedding {
    read(path, width).unwrap_or_else(|error| Embedding::Unfit(error.to_string()))
}

fn read(path: &Path, width: usize) -> Result<Embedding> {
    let weights = Weights::open(path, &Device::Cpu)?;
    let unfit = |what: String| {
        let sentence = format!("{} is no embedding for this CLIP: {what}", path.display());
        Ok(Embedding::Unfit(sentence))
    };
    let names = weights.names();
    let fits = |name: &&String| {
        weights.shape(name).is_some_and(|shape| shape.len() <= 2 && shape.last() == Some(&width))
    };
    let name = names
        .iter()
        .find(|name| name.starts_with("string_to_param."))
        .or_else(|| names.iter().find(|name| *name == "clip_g" && fits(name)))
        .or_else(|| names.iter().find(|name| *name == "clip_l"))
        .or_else(|| names.iter().find(fits))
        .or(names.first());
    let Some(name) = name else { return unfit("it holds no tensor".to_owned()) };
    let shape = weights.shape(name).unwrap_or_default();
    let (count, found) = match shape[..] {
        [found] => (1, found),
        [count, found] => (count, found),
        _ => {
            return unfit(format!("`{name}` has the shape {shape:?} where [n, {width}] is wanted"));
        }
    };
    if found != width {
        return unfit(format!(
            "its vectors have {found} numbers, those of the encoder {width}; Stable Diffusion 1 has \
             768, Stable Diffusion 2 has 1024, SDXL 768 and 1280"
        ));
    }
    Ok(Embedding::Fits(weights.get(name, shape)?.reshape((count, width))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_torch_is_read() -> Result<()> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/embedding.pt");
        let Embedding::Fits(vectors) = read_embedding(&file, 4) else { panic!("it fits") };
        assert_eq!(vectors.to_vec2::<f32>()?, [[0.0, 0.25, 0.5, 0.75], [1.0, 1.25, 1.5, 1.75]]);
        let Embedding::Unfit(other) = read_embedding(&file, 768) else { panic!("it is narrow") };
        assert!(other.contains("4 numbers, those of the encoder 768"), "{other}");
        Ok(())
    }

    /// As ComfyUI has it: a prompt is drawn without an embedding that nobody can read.
    #[test]
    fn what_cannot_be_read_does_not_fit() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let whole =
            std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/embedding.pt"))?;
        for (name, bytes) in [
            ("empty.pt", &[][..]),
            ("half.pt", &whole[..whole.len() / 2]),
            ("text.safetensors", b"no"),
        ] {
            let file = folder.path().join(name);
            std::fs::write(&file, bytes)?;
            let Embedding::Unfit(said) = read_embedding(&file, 4) else {
                panic!("{name} was read")
            };
            assert!(said.contains(name), "{said}");
        }
        Ok(())
    }
}
