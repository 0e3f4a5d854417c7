//! PhotoMaker's encoder (Li et al., arXiv 2312.04461): pictures of a person, through CLIP's picture half and two projections, take
//! the place of a word among what SDXL's text encoders said. As its first version has it.

use std::path::Path;

use candle_core::{D, Device, Tensor};
use kosmograph_kernels::gelu_erf;

use crate::clip::vision::{ClipVision, ClipVisionConfig};
use crate::error::{Error, Result};
use crate::files::weights::Weights;
use crate::layers::{LayerNorm, Linear};

/// torch's of a LayerNorm that nobody says otherwise.
const EPS: f64 = 1e-5;

/// The sizes of an encoder.
#[derive(Clone, Debug)]
pub struct PhotoMakerConfig {
    pub vision: ClipVisionConfig,
    /// Of the second projection; with that of [`Self::vision`] as wide as a text's tokens.
    second: usize,
}

impl PhotoMakerConfig {
    /// How wide the tokens are that it is put among.
    pub fn context(&self) -> usize {
        self.vision.projection_dim.saturating_add(self.second)
    }
}

/// The file at `path`: its sizes, and the encoder's weights.
///
/// # Errors
/// It cannot be read, or has no encoder of PhotoMaker's first version.
pub fn open_photo_maker(path: &Path, device: &Device) -> Result<(PhotoMakerConfig, Weights)> {
    let weights = Weights::open(path, device)?;
    // The published file has the encoder beside a LoRA.
    let within = weights.names().iter().any(|name| name.starts_with("id_encoder."));
    let weights = if within { weights.sub("id_encoder") } else { weights };
    let refused = |what: &str| Error::NotThisKind { path: path.to_owned(), what: what.to_owned() };
    if weights.names().iter().any(|name| name.starts_with("qformer_perceiver.")) {
        return Err(refused(
            "it is PhotoMaker's second version, which asks a face recogniser; the first, photomaker-v1, would be right",
        ));
    }
    let second = weights.shape("visual_projection_2.weight");
    let Some([second, _]) = second.as_deref() else {
        return Err(refused("it is no PhotoMaker: it has no \"visual_projection_2.weight\""));
    };
    let config =
        PhotoMakerConfig { vision: ClipVisionConfig::from_weights(&weights)?, second: *second };
    Ok((config, weights))
}

/// A norm, two layers with a GELU between them, and what came in added where that is as wide.
#[derive(Clone, Debug)]
struct Mlp {
    norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    fn load(weights: &Weights, inputs: usize, width: usize) -> Result<Self> {
        Ok(Self {
            norm: LayerNorm::load(&weights.sub("layernorm"), inputs, EPS)?,
            fc1: Linear::load(&weights.sub("fc1"), inputs, width)?,
            fc2: Linear::load(&weights.sub("fc2"), width, width)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = gelu_erf(&self.fc1.forward(&self.norm.forward(x)?)?)?;
        Ok(self.fc2.forward(&inner)?)
    }
}

/// PhotoMaker's encoder.
#[derive(Clone, Debug)]
pub struct PhotoMaker {
    vision: ClipVision,
    second: Linear,
    joining: Mlp,
    refining: Mlp,
    norm: LayerNorm,
}

impl PhotoMaker {
    /// Loads `vision_model.…`, both projections and `fuse_module.…`.
    pub fn load(config: &PhotoMakerConfig, weights: &Weights) -> Result<Self> {
        let (fuse, width) = (weights.sub("fuse_module"), config.context());
        let second = weights.sub("visual_projection_2");
        Ok(Self {
            vision: ClipVision::load(&config.vision, weights)?,
            second: Linear::load_without_bias(&second, config.vision.hidden_size, config.second)?,
            joining: Mlp::load(&fuse.sub("mlp1"), width.saturating_mul(2), width)?,
            refining: Mlp::load(&fuse.sub("mlp2"), width, width)?,
            norm: LayerNorm::load(&fuse.sub("layer_norm"), width, EPS)?,
        })
    }

    /// Normalised pixels [N, 3, S, S] of one person and the states of a text [1, T, E] → the states with the person in the place of
    /// N tokens from number `at` on.
    ///
    /// # Errors
    /// The text is of other encoders, or has no N tokens there.
    pub fn forward(&self, pixels: &Tensor, text: &Tensor, at: usize) -> Result<Tensor> {
        let (count, (rows, tokens, width)) = (pixels.dim(0)?, text.dims3()?);
        let states = self.vision.forward(pixels)?;
        let second = self.second.forward(&states.class)?;
        let person = Tensor::cat(&[&states.image_embeds, &second], D::Minus1)?;
        if person.dim(1)? != width || rows != 1 {
            return Err(Error::Input(format!(
                "this PhotoMaker is for one text of tokens of {} numbers, this is {rows} of {width}: SDXL's would be right",
                person.dim(1)?
            )));
        }
        if at.checked_add(count).is_none_or(|end| end > tokens) {
            return Err(Error::Input(format!(
                "{count} pictures from token {at} on do not fit into the {tokens} tokens of the text"
            )));
        }
        let word = text.narrow(1, at, count)?.squeeze(0)?;
        let joined = (self.joining.forward(&Tensor::cat(&[&word, &person], D::Minus1)?)? + &word)?;
        let refined = (self.refining.forward(&joined)? + &joined)?;
        let put = self.norm.forward(&refined)?.unsqueeze(0)?;
        let before = text.narrow(1, 0, at)?;
        let after = text.narrow(1, at + count, tokens - at - count)?;
        Ok(Tensor::cat(&[&before, &put, &after], 1)?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn numbers(k: usize, count: usize, scale: f64) -> Vec<f32> {
        let number = |i: usize| ((i * 31 + k * 17) % 101) as f64 / 101.0 - 0.5;
        (0..count).map(|i| (number(i) * scale) as f32).collect()
    }

    /// An encoder of one layer 768 wide, projections to 6 and 4, under the published file's names.
    fn tensors() -> HashMap<String, Tensor> {
        let (wide, inner, first, second) = (768, 16, 6, 4);
        let context = first + second;
        let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
        let mut add = |name: &str, shape: &[usize]| shapes.push((name.to_owned(), shape.to_vec()));
        add("vision_model.embeddings.class_embedding", &[wide]);
        add("vision_model.embeddings.patch_embedding.weight", &[wide, 3, 14, 14]);
        add("vision_model.embeddings.position_embedding.weight", &[5, wide]);
        for norm in ["pre_layrnorm", "post_layernorm"] {
            add(&format!("vision_model.{norm}.weight"), &[wide]);
            add(&format!("vision_model.{norm}.bias"), &[wide]);
        }
        let layer = "vision_model.encoder.layers.0";
        for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            add(&format!("{layer}.self_attn.{projection}.weight"), &[wide, wide]);
            add(&format!("{layer}.self_attn.{projection}.bias"), &[wide]);
        }
        for norm in ["layer_norm1", "layer_norm2"] {
            add(&format!("{layer}.{norm}.weight"), &[wide]);
            add(&format!("{layer}.{norm}.bias"), &[wide]);
        }
        add(&format!("{layer}.mlp.fc1.weight"), &[inner, wide]);
        add(&format!("{layer}.mlp.fc1.bias"), &[inner]);
        add(&format!("{layer}.mlp.fc2.weight"), &[wide, inner]);
        add(&format!("{layer}.mlp.fc2.bias"), &[wide]);
        add("visual_projection.weight", &[first, wide]);
        add("visual_projection_2.weight", &[second, wide]);
        for (mlp, inputs) in [("mlp1", 2 * context), ("mlp2", context)] {
            let mlp = format!("fuse_module.{mlp}");
            add(&format!("{mlp}.layernorm.weight"), &[inputs]);
            add(&format!("{mlp}.layernorm.bias"), &[inputs]);
            add(&format!("{mlp}.fc1.weight"), &[context, inputs]);
            add(&format!("{mlp}.fc1.bias"), &[context]);
            add(&format!("{mlp}.fc2.weight"), &[context, context]);
            add(&format!("{mlp}.fc2.bias"), &[context]);
        }
        add("fuse_module.layer_norm.weight", &[context]);
        add("fuse_module.layer_norm.bias", &[context]);
        let tensor = |(k, (name, shape)): (usize, (String, Vec<usize>))| {
            let inputs: usize = shape[1..].iter().product();
            let scale = if inputs > 4 { 2.0 / (inputs as f64).sqrt() } else { 1.0 };
            let values = numbers(k, shape.iter().product(), scale);
            (name, Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor"))
        };
        shapes.into_iter().enumerate().map(tensor).collect()
    }

    /// By transformers' CLIPVisionModelWithProjection, and torch's linear, gelu and layer_norm, of weights by the same formula.
    #[test]
    fn a_person_takes_the_place_of_words() -> Result<()> {
        let mut tensors = tensors();
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("photomaker.safetensors");
        // As published, beside a LoRA.
        let within: HashMap<String, Tensor> = tensors
            .iter()
            .map(|(name, tensor)| (format!("id_encoder.{name}"), tensor.clone()))
            .collect();
        let lora = Tensor::zeros((2, 2), candle_core::DType::F32, &Device::Cpu)?;
        let mut both = within.clone();
        both.insert("lora_weights.unet.x.lora.up.weight".to_owned(), lora);
        candle_core::safetensors::save(&both, &file)?;
        let (config, weights) = open_photo_maker(&file, &Device::Cpu)?;
        assert_eq!((config.context(), config.vision.image_size), (10, 28));
        let encoder = PhotoMaker::load(&config, &weights)?;
        let pixels =
            Tensor::from_vec(numbers(200, 2 * 3 * 28 * 28, 4.0), (2, 3, 28, 28), &Device::Cpu)?;
        let said = numbers(300, 50, 2.0);
        let text = Tensor::from_vec(said.clone(), (1, 5, 10), &Device::Cpu)?;
        let found = encoder.forward(&pixels, &text, 1)?;
        let mut expected = said;
        expected[10..30].copy_from_slice(&[
            0.159202, 0.241645, -0.695999, -0.749534, 0.12772, 0.0803249, -0.656317, 0.078797,
            0.130325, 0.0679018, 0.159046, 0.24161, -0.695586, -0.749364, 0.127722, 0.080343,
            -0.65559, 0.0789581, 0.130127, 0.0697484,
        ]);
        assert_eq!(found.dims(), [1, 5, 10]);
        for (found, expected) in found.flatten_all()?.to_vec1::<f32>()?.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5_f32, "{found} for {expected}");
        }
        // Pictures that do not fit, another family's text, and files that are something else.
        let told =
            |text: &Tensor, at| encoder.forward(&pixels, text, at).err().map(|e| e.to_string());
        assert!(told(&text, 4).is_some_and(|told| told.contains("2 pictures from token 4")));
        assert!(told(&text, usize::MAX).is_some_and(|told| told.contains("do not fit")));
        let narrow = Tensor::zeros((1, 5, 8), candle_core::DType::F32, &Device::Cpu)?;
        assert!(told(&narrow, 0).is_some_and(|told| told.contains("SDXL")));
        let refused = |tensors: &HashMap<String, Tensor>| {
            candle_core::safetensors::save(tensors, &file).expect("a file");
            open_photo_maker(&file, &Device::Cpu).err().expect("refused").to_string()
        };
        tensors.insert("qformer_perceiver.token_proj.0.weight".to_owned(), narrow);
        assert!(refused(&tensors).contains("second version"));
        tensors.retain(|name, _| name.starts_with("vision_model"));
        assert!(refused(&tensors).contains("no PhotoMaker"));
        Ok(())
    }
}
