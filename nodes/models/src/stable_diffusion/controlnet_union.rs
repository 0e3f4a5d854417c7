//! ControlNet Union: one ControlNet for several kinds of hint, which is told the kind of each.
//!
//! Qi Li (xinsir), "ControlNet++: All-in-one ControlNet for image generations and editing", 2024, github.com/xinsir6/ControlNetPlus;
//! computed as ComfyUI does, for one hint at a time: the fusing transformer sees that hint alone, where the original also shows it the
//! latents. Without a kind ("auto") the hint goes in as into any ControlNet.

use candle_core::{Result as CandleResult, Tensor};
use kosmograph_kernels as kernels;

use crate::error::{Error, Result};
use crate::files::diffusers_config::Options;
use crate::files::weights::Weights;
use crate::layers::{LayerNorm, Linear};
use crate::stable_diffusion::unet_embeddings::{TimestepEmbedding, time_proj};

/// What a union has beside a ControlNet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnionConfig {
    /// Kinds of hint.
    pub types: usize,
    /// Channels of the hint's embedding, and of the transformer.
    pub channels: usize,
    /// The transformer's heads.
    pub heads: usize,
    /// The transformer's layers.
    pub layers: usize,
    /// Sinusoidal features of each kind.
    pub features: usize,
}

/// The kinds that the published networks know, by ComfyUI's names and in their order.
pub const TYPES: [&str; 8] = [
    "openpose",
    "depth",
    "hed/pidi/scribble/ted",
    "canny/lineart/anime_lineart/mlsd",
    "normal",
    "segment",
    "tile",
    "repaint",
];

/// More kinds, channels or layers than any network has: sizes from a file are held against it.
const MOST: usize = 4096;

impl UnionConfig {
    /// Reads a union's options, where there are any: "num_control_type" and the transformer's.
    ///
    /// # Errors
    /// They cannot be, which the error names.
    pub(super) fn read(options: &mut Options<'_>, channels: usize) -> Result<Option<Self>> {
        let types: usize = options.get_or("num_control_type", 0)?;
        let config = UnionConfig {
            types,
            channels: options.get_or("num_trans_channel", channels)?,
            heads: options.get_or("num_trans_head", 8)?,
            layers: options.get_or("num_trans_layer", 1)?,
            features: options.get_or("addition_time_embed_dim", 256)?,
        };
        if types == 0 {
            return Ok(None);
        }
        let UnionConfig { heads, layers, features, .. } = config;
        if types > MOST {
            return Err(options.unsupported("num_control_type", &format!("at most {MOST}")));
        }
        if config.channels != channels {
            return Err(options.unsupported("num_trans_channel", &channels.to_string()));
        }
        if heads == 0 || !channels.is_multiple_of(heads) {
            let supported = format!("a divisor of {channels}");
            return Err(options.unsupported("num_trans_head", &supported));
        }
        if layers == 0 || layers > MOST {
            return Err(options.unsupported("num_trans_layer", &format!("1 to {MOST}")));
        }
        if features == 0 || !features.is_multiple_of(2) || features > MOST {
            let supported = format!("an even number up to {MOST}");
            return Err(options.unsupported("addition_time_embed_dim", &supported));
        }
        Ok(Some(config))
    }
}

/// A layer of the fusing transformer: attention and two linear layers, each after a norm and beside a way past it.
struct ResidualAttentionBlock {
    in_proj: Linear,
    out_proj: Linear,
    ln_1: LayerNorm,
    c_fc: Linear,
    c_proj: Linear,
    ln_2: LayerNorm,
    heads: usize,
}

impl ResidualAttentionBlock {
    fn load(weights: &Weights, channels: usize, heads: usize) -> Result<Self> {
        let attn = weights.sub("attn");
        Ok(Self {
            in_proj: Linear::load_in_proj(&attn, channels)?,
            out_proj: Linear::load(&attn.sub("out_proj"), channels, channels)?,
            ln_1: LayerNorm::load(&weights.sub("ln_1"), channels, 1e-5)?,
            c_fc: Linear::load(&weights.sub("mlp.c_fc"), channels, 4 * channels)?,
            c_proj: Linear::load(&weights.sub("mlp.c_proj"), 4 * channels, channels)?,
            ln_2: LayerNorm::load(&weights.sub("ln_2"), channels, 1e-5)?,
            heads,
        })
    }

    /// [B, T, C] → [B, T, C].
    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let (batch, tokens, channels) = x.dims3()?;
        let stacked = self.in_proj.forward(&self.ln_1.forward(x)?)?;
        let part = |i: usize| {
            let part = stacked.narrow(2, i * channels, channels)?;
            part.reshape((batch, tokens, self.heads, channels / self.heads))?
                .transpose(1, 2)?
                .contiguous()
        };
        let scale = (channels as f64 / self.heads as f64).powf(-0.5);
        let attended = kernels::attention(&part(0)?, &part(1)?, &part(2)?, None, scale)?;
        let attended = attended.transpose(1, 2)?.reshape((batch, tokens, channels))?;
        let x = (x + self.out_proj.forward(&attended)?)?;
        let inner = self.c_fc.forward(&self.ln_2.forward(&x)?)?;
        x + self.c_proj.forward(&kernels::quick_gelu(&inner)?)?
    }
}

/// What a union has beside a ControlNet.
pub(super) struct Union {
    control_add_embedding: TimestepEmbedding,
    /// [types, C].
    task_embedding: Tensor,
    transformer_layes: Vec<ResidualAttentionBlock>,
    spatial_ch_projs: Linear,
    config: UnionConfig,
}

impl Union {
    /// `embedding` is the width of the time embedding.
    pub(super) fn load(weights: &Weights, config: UnionConfig, embedding: usize) -> Result<Self> {
        let UnionConfig { types, channels, heads, layers, features } = config;
        let layer = |i| {
            // Misspelt in the published files.
            let weights = weights.sub(format!("transformer_layes.{i}"));
            ResidualAttentionBlock::load(&weights, channels, heads)
        };
        Ok(Self {
            control_add_embedding: TimestepEmbedding::load(
                &weights.sub("control_add_embedding"),
                types * features,
                embedding,
            )?,
            task_embedding: weights.get("task_embedding", (types, channels))?,
            transformer_layes: (0..layers).map(layer).collect::<Result<_>>()?,
            spatial_ch_projs: Linear::load(&weights.sub("spatial_ch_projs"), channels, channels)?,
            config,
        })
    }

    /// # Errors
    /// The network knows fewer kinds.
    pub(super) fn check(&self, kind: usize) -> Result<()> {
        let types = self.config.types;
        if kind < types {
            return Ok(());
        }
        let name = TYPES.get(kind).map_or(String::new(), |name| format!(", \"{name}\","));
        Err(Error::Input(format!(
            "the ControlNet knows {types} kinds of hint, and kind {}{name} is not among them",
            kind + 1
        )))
    }

    /// What is added to the time embedding, [1, 4·C₀]: features of 1 for the hint's kind, and of 0 for the others.
    ///
    /// # Errors
    /// The network knows fewer kinds.
    pub(super) fn added(&self, kind: Option<usize>) -> Result<Tensor> {
        let UnionConfig { types, features, .. } = self.config;
        if let Some(kind) = kind {
            self.check(kind)?;
        }
        let is_kind = (0..types).map(|i| if Some(i) == kind { 1f32 } else { 0.0 });
        let told = Tensor::from_iter(is_kind, self.task_embedding.device())?;
        let vector = time_proj(&told, features, true, 0.0)?.reshape((1, types * features))?;
        Ok(self.control_add_embedding.forward(&vector)?)
    }

    /// The hint's embedding [B, C, H, W] as one of this kind.
    pub(super) fn fused(&self, embedding: &Tensor, kind: usize) -> CandleResult<Tensor> {
        let mean = embedding.flatten_from(2)?.mean(2)?;
        let task = self.task_embedding.narrow(0, kind, 1)?.to_dtype(mean.dtype())?;
        let mut x = mean.broadcast_add(&task)?.unsqueeze(1)?;
        for layer in &self.transformer_layes {
            x = layer.forward(&x)?;
        }
        let added = self.spatial_ch_projs.forward(&x.squeeze(1)?)?;
        embedding.broadcast_add(&added.unsqueeze(2)?.unsqueeze(3)?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::Device;
    use serde_json::json;

    use super::*;

    const CONFIG: UnionConfig =
        UnionConfig { types: 3, channels: 4, heads: 2, layers: 1, features: 4 };
    const WIDTH: usize = 6;

    /// Numbers that are like no others, by the tensor's name.
    fn numbers(name: &str, count: usize) -> Vec<f32> {
        let seed = name.bytes().map(f32::from).sum::<f32>();
        (0..count).map(|i| (seed * 0.37 + i as f32 * 1.7).sin() * 0.5).collect()
    }

    /// As the published files name them.
    const NAMES: [(&str, &[usize]); 18] = [
        ("control_add_embedding.linear_1.weight", &[6, 12]),
        ("control_add_embedding.linear_1.bias", &[6]),
        ("control_add_embedding.linear_2.weight", &[6, 6]),
        ("control_add_embedding.linear_2.bias", &[6]),
        ("task_embedding", &[3, 4]),
        ("transformer_layes.0.attn.in_proj_weight", &[12, 4]),
        ("transformer_layes.0.attn.in_proj_bias", &[12]),
        ("transformer_layes.0.attn.out_proj.weight", &[4, 4]),
        ("transformer_layes.0.attn.out_proj.bias", &[4]),
        ("transformer_layes.0.ln_1.weight", &[4]),
        ("transformer_layes.0.ln_1.bias", &[4]),
        ("transformer_layes.0.mlp.c_fc.weight", &[16, 4]),
        ("transformer_layes.0.mlp.c_fc.bias", &[16]),
        ("transformer_layes.0.mlp.c_proj.weight", &[4, 16]),
        ("transformer_layes.0.mlp.c_proj.bias", &[4]),
        ("transformer_layes.0.ln_2.weight", &[4]),
        ("transformer_layes.0.ln_2.bias", &[4]),
        ("spatial_ch_projs.weight", &[4, 4]),
    ];

    fn union() -> Result<Union> {
        let mut tensors = HashMap::new();
        for (name, shape) in NAMES.into_iter().chain([("spatial_ch_projs.bias", &[4usize][..])]) {
            let values = numbers(name, shape.iter().product());
            tensors.insert(name.to_owned(), Tensor::from_vec(values, shape, &Device::Cpu)?);
        }
        let weights = Weights::from_tensors("a small union", tensors, &Device::Cpu);
        Union::load(&weights, CONFIG, WIDTH)
    }

    /// y = x Wᵀ + b, number by number.
    fn linear(name: &str, x: &[f64], output: usize) -> Vec<f64> {
        let weight = numbers(&format!("{name}weight"), output * x.len());
        let bias = numbers(&format!("{name}bias"), output);
        let row = |o: usize| {
            let row = &weight[o * x.len()..][..x.len()];
            let products = x.iter().zip(row).map(|(x, weight)| x * f64::from(*weight));
            products.sum::<f64>() + f64::from(bias[o])
        };
        (0..output).map(row).collect()
    }

    fn layer_norm(name: &str, x: &[f64]) -> Vec<f64> {
        let (weight, bias) = (
            numbers(&format!("{name}.weight"), x.len()),
            numbers(&format!("{name}.bias"), x.len()),
        );
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let normed = x.iter().map(|x| (x - mean) / (variance + 1e-5).sqrt());
        normed.enumerate().map(|(i, x)| x * f64::from(weight[i]) + f64::from(bias[i])).collect()
    }

    fn close(found: &Tensor, expected: &[f64]) -> Result<()> {
        let found: Vec<f32> = found.flatten_all()?.to_vec1()?;
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (f64::from(*found) - expected).abs() <= 1e-6 * largest,
                "{found}, not {expected}"
            );
        }
        Ok(())
    }

    /// A hint that stands alone in the transformer attends to itself: its attention is its value.
    #[test]
    fn a_hint_is_told_its_kind() -> Result<()> {
        let union = union()?;
        let hint = numbers("hint", 4 * 6);
        let embedding = Tensor::from_vec(hint.clone(), (1, 4, 2, 3), &Device::Cpu)?;
        let (kind, layer) = (2, "transformer_layes.0");
        let task = numbers("task_embedding", 12);
        let mut x: Vec<f64> = (0..4)
            .map(|c| {
                let mean = hint[c * 6..][..6].iter().map(|x| f64::from(*x)).sum::<f64>() / 6.0;
                mean + f64::from(task[kind * 4 + c])
            })
            .collect();
        let stacked = linear(
            &format!("{layer}.attn.in_proj_"),
            &layer_norm(&format!("{layer}.ln_1"), &x),
            12,
        );
        let attended = linear(&format!("{layer}.attn.out_proj."), &stacked[8..], 4);
        x.iter_mut().zip(attended).for_each(|(x, added)| *x += added);
        let inner =
            linear(&format!("{layer}.mlp.c_fc."), &layer_norm(&format!("{layer}.ln_2"), &x), 16);
        let inner: Vec<f64> = inner.iter().map(|x| x / (1.0 + (-1.702 * x).exp())).collect();
        let added = linear(&format!("{layer}.mlp.c_proj."), &inner, 4);
        x.iter_mut().zip(added).for_each(|(x, added)| *x += added);
        let alpha = linear("spatial_ch_projs.", &x, 4);
        let expected: Vec<f64> =
            hint.iter().enumerate().map(|(i, x)| f64::from(*x) + alpha[i / 6]).collect();
        close(&union.fused(&embedding, kind)?, &expected)
    }

    #[test]
    fn the_time_embedding_is_told_the_kind() -> Result<()> {
        let union = union()?;
        for kind in [None, Some(0), Some(1)] {
            // cos and sin of 1 and of 1/100 where it is the kind, of 0 elsewhere.
            let features = |i: usize| match Some(i) == kind {
                true => [1f64.cos(), 0.01f64.cos(), 1f64.sin(), 0.01f64.sin()],
                false => [1.0, 1.0, 0.0, 0.0],
            };
            let told: Vec<f64> = (0..3).flat_map(features).collect();
            let inner = linear("control_add_embedding.linear_1.", &told, WIDTH);
            let inner: Vec<f64> = inner.iter().map(|x| x / (1.0 + (-x).exp())).collect();
            close(&union.added(kind)?, &linear("control_add_embedding.linear_2.", &inner, WIDTH))?;
        }
        let error = union.added(Some(4)).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("knows 3 kinds") && error.contains("kind 5, \"normal\""), "{error}");
        Ok(())
    }

    #[test]
    fn options_that_cannot_be_are_refused() {
        let read = |json: serde_json::Value| {
            let mut options = Options::new(&json, "config.json").unwrap();
            UnionConfig::read(&mut options, 8)
        };
        assert_eq!(read(json!({})).unwrap(), None);
        let union = read(json!({"num_control_type": 6})).unwrap().unwrap();
        assert_eq!((union.types, union.heads, union.layers, union.features), (6, 8, 1, 256));
        for (key, value) in [
            ("num_control_type", json!(5000)),
            ("num_trans_channel", json!(16)),
            ("num_trans_head", json!(3)),
            ("num_trans_head", json!(0)),
            ("num_trans_layer", json!(0)),
            ("addition_time_embed_dim", json!(7)),
        ] {
            let mut json = json!({"num_control_type": 6});
            json[key] = value;
            let error = read(json).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(key), "{key}: {error}");
        }
    }
}
