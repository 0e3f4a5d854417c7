//! T2I-Adapter's style adapter (Mou et al., arXiv 2302.08453): a small transformer reads what CLIP's picture half says of a picture and
//! gives tokens that a U-Net reads behind those of the text.

use std::path::Path;

use candle_core::{Device, Tensor};

use crate::clip::text::{Activation, EncoderLayer};
use crate::error::{Error, Result};
use crate::files::weights::{Part, Weights};
use crate::layers::LayerNorm;

/// Leaves no trace in the file; the published one's.
const HEADS: usize = 8;
const EPS: f64 = 1e-5;

/// The sizes of a style adapter.
#[derive(Clone, Copy, Debug)]
pub struct StyleConfig {
    /// Of what CLIP says.
    pub width: usize,
    /// Tokens that it gives.
    pub tokens: usize,
    /// How wide these are.
    pub context: usize,
    layers: usize,
}

/// A style adapter.
#[derive(Clone, Debug)]
pub struct StyleModel {
    /// [1, S, W].
    embedding: Tensor,
    before: LayerNorm,
    layers: Vec<EncoderLayer>,
    after: LayerNorm,
    /// [W, E].
    projection: Tensor,
}

/// The file or folder at `path`: its sizes, and its weights under transformers' names.
///
/// # Errors
/// It cannot be read, or is none.
pub fn open_style_model(path: &Path, device: &Device) -> Result<(StyleConfig, Weights)> {
    let weights = Weights::open(path, device)?;
    let refused = |what: &str| Error::NotThisKind { path: path.to_owned(), what: what.to_owned() };
    if weights.has("redux_down.weight") || weights.has("redux_up.weight") {
        return Err(refused("it is Redux, a style model of Flux, a family that is not here"));
    }
    let shape = |name: &str| weights.shape(name).unwrap_or_default();
    let (embedding, projection) = (shape("style_embedding"), shape("proj"));
    let ([1, tokens, width], [rows, context]) = (&embedding[..], &projection[..]) else {
        return Err(refused(
            "it is no style model: T2I-Adapter's has a \"style_embedding\" and a \"proj\"",
        ));
    };
    if rows != width || *width == 0 || *tokens == 0 || width % HEADS != 0 {
        return Err(refused("its \"style_embedding\" and its \"proj\" do not fit each other"));
    }
    let is_there = |i: &usize| weights.has(&format!("transformer_layes.{i}.ln_1.weight"));
    let layers = (0..).take_while(is_there).count();
    let config = StyleConfig { width: *width, tokens: *tokens, context: *context, layers };
    Ok((config, weights.renamed_parts(names(layers))))
}

/// From transformers' names of a CLIP's layers to those of the file.
fn names(layers: usize) -> Vec<(String, (String, Part))> {
    let whole = |name: &str| (name.to_owned(), (name.to_owned(), Part::Whole));
    let mut names: Vec<_> = ["style_embedding", "proj"].map(whole).into();
    for end in ["weight", "bias"] {
        names.extend(["ln_pre", "ln_post"].map(|norm| whole(&format!("{norm}.{end}"))));
        for i in 0..layers {
            let (ours, theirs) = (format!("layers.{i}"), format!("transformer_layes.{i}"));
            let plain = [
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("self_attn.out_proj", "attn.out_proj"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ];
            names.extend(plain.map(|(our, their)| {
                let their = format!("{theirs}.{their}.{end}");
                (format!("{ours}.{our}.{end}"), (their, Part::Whole))
            }));
            names.extend(["q_proj", "k_proj", "v_proj"].into_iter().enumerate().map(
                |(third, our)| {
                    let their = format!("{theirs}.attn.in_proj_{end}");
                    (format!("{ours}.self_attn.{our}.{end}"), (their, Part::Third(third)))
                },
            ));
        }
    }
    names
}

impl StyleModel {
    /// Of weights as [`open_style_model`] names them.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(weights: &Weights, config: &StyleConfig) -> Result<Self> {
        let StyleConfig { width, tokens, context, layers } = *config;
        let layer = |i: usize| {
            let weights = weights.sub("layers").sub(i.to_string());
            EncoderLayer::load(&weights, width, 4 * width, HEADS, Activation::QuickGelu, EPS)
        };
        Ok(Self {
            embedding: weights.get("style_embedding", (1, tokens, width))?,
            before: LayerNorm::load(&weights.sub("ln_pre"), width, EPS)?,
            layers: (0..layers).map(layer).collect::<Result<_>>()?,
            after: LayerNorm::load(&weights.sub("ln_post"), width, EPS)?,
            projection: weights.get("proj", (width, context))?,
        })
    }

    /// [B, T, W], CLIP's last hidden state → [B, S, E].
    ///
    /// # Errors
    /// The state is of another width.
    pub fn forward(&self, state: &Tensor) -> Result<Tensor> {
        let (batch, length, width) = state.dims3()?;
        let (_, tokens, wanted) = self.embedding.dims3()?;
        if width != wanted {
            return Err(Error::Input(format!(
                "the picture was seen by a CLIP vision model {width} numbers wide, and this style model reads {wanted}: \
                 OpenAI's ViT-L/14 would be right"
            )));
        }
        let own = self.embedding.repeat((batch, 1, 1))?;
        let x = self.before.forward(&Tensor::cat(&[state, &own], 1)?)?;
        let x = self.layers.iter().try_fold(x, |x, layer| layer.forward(&x, None))?;
        let x = self.after.forward(&x.narrow(1, length, tokens)?.contiguous()?)?;
        Ok(x.broadcast_matmul(&self.projection)?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn numbers(k: usize, count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 31 + k * 17) % 101) as f32 / 101.0 - 0.5).collect()
    }

    /// By torch's MultiheadAttention, layer_norm and linear, of weights by the same formula.
    #[test]
    fn a_style_becomes_tokens() -> Result<()> {
        let (width, context, layers, tokens) = (16, 6, 2, 3);
        let mut names: Vec<(String, Vec<usize>)> = vec![
            ("style_embedding".to_owned(), vec![1, tokens, width]),
            ("proj".to_owned(), vec![width, context]),
        ];
        for norm in ["ln_pre.weight", "ln_pre.bias", "ln_post.weight", "ln_post.bias"] {
            names.push((norm.to_owned(), vec![width]));
        }
        for i in 0..layers {
            let parts = [
                ("attn.in_proj_weight", vec![3 * width, width]),
                ("attn.in_proj_bias", vec![3 * width]),
                ("attn.out_proj.weight", vec![width, width]),
                ("attn.out_proj.bias", vec![width]),
                ("ln_1.weight", vec![width]),
                ("ln_1.bias", vec![width]),
                ("mlp.c_fc.weight", vec![4 * width, width]),
                ("mlp.c_fc.bias", vec![4 * width]),
                ("mlp.c_proj.weight", vec![width, 4 * width]),
                ("mlp.c_proj.bias", vec![width]),
                ("ln_2.weight", vec![width]),
                ("ln_2.bias", vec![width]),
            ];
            names.extend(
                parts.map(|(name, shape)| (format!("transformer_layes.{i}.{name}"), shape)),
            );
        }
        let mut all = HashMap::new();
        for (k, (name, shape)) in names.into_iter().enumerate() {
            let values = numbers(k, shape.iter().product());
            all.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
        }
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("style.safetensors");
        candle_core::safetensors::save(&all, &file)?;
        let (config, weights) = open_style_model(&file, &Device::Cpu)?;
        assert_eq!((config.width, config.tokens, config.context), (width, tokens, context));
        let model = StyleModel::load(&weights, &config)?;
        let seen = numbers(77, 2 * 5 * width).into_iter().map(|x| x * 3.0).collect();
        let found = model.forward(&Tensor::from_vec(seen, (2, 5, width), &Device::Cpu)?)?;
        let expected = [
            -0.46752, -0.155971, 0.361137, -0.0235904, 0.0898192, -0.0580265, -0.44519, -0.174256,
            0.36487, -0.0184469, 0.0766417, -0.0588039, -0.436781, -0.177251, 0.364979, -0.0239971,
            0.0723285, -0.0577175, -0.517094, -0.135819, 0.362931, -0.0246117, 0.102092,
            -0.0781145, -0.49712, -0.15284, 0.365592, -0.018284, 0.0893117, -0.0790734, -0.48955,
            -0.155486, 0.365476, -0.0232111, 0.0851619, -0.0780469,
        ];
        let found = found.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 2e-5_f32, "{found} for {expected}");
        }
        // Another CLIP's, and a file that is something else.
        let narrow = Tensor::zeros((1, 5, 12), candle_core::DType::F32, &Device::Cpu)?;
        assert!(model.forward(&narrow).is_err_and(|error| error.to_string().contains("ViT-L/14")));
        all.remove("proj");
        candle_core::safetensors::save(&all, &file)?;
        let refused = open_style_model(&file, &Device::Cpu);
        assert!(refused.is_err_and(|error| error.to_string().contains("no style model")));
        Ok(())
    }
}
