//! Segment Anything's mask decoder: tokens of masks and of the prompt look at the picture and the picture at them; each mask is then what its
//! token has in common with every pixel.
//!
//! The transformer is candle-transformers'. What is around it is written here: candle-transformers enlarges the picture by the
//! approximation of GELU, where the published network has GELU itself, which moves masks by 3e-4.

use candle_core::Tensor;
use candle_transformers::models::segment_anything::transformer::TwoWayTransformer;
use kosmograph_kernels::gelu_erf;
use kosmograph_models::layers::Linear;
use kosmograph_models::{Result, Weights};

use crate::weights::{build, count, sizes};

const HEADS: usize = 8;
const LAYER_NORM_EPS: f64 = 1e-6;

/// Linear layers with ReLU between them.
struct Mlp(Vec<Linear>);

impl Mlp {
    fn load(weights: &Weights) -> Result<Mlp> {
        let layers = weights.sub("layers");
        let layer = |i: usize| {
            let [output, input] = sizes(&layers, &format!("{i}.weight"))?;
            Linear::load(&layers.sub(i.to_string()), input, output)
        };
        let depth = count(&layers, |i| format!("{i}.weight"));
        Ok(Mlp((0..depth).map(layer).collect::<Result<_>>()?))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.contiguous()?;
        for (i, layer) in self.0.iter().enumerate() {
            x = layer.forward(&x)?;
            if i + 1 < self.0.len() {
                x = x.relu()?;
            }
        }
        Ok(x)
    }
}

/// A convolution that makes a map twice as large, its kernel as its stride.
struct Doubling {
    weight: Tensor,
    bias: Tensor,
}

impl Doubling {
    fn load(weights: &Weights, input: usize, output: usize) -> Result<Doubling> {
        Ok(Doubling {
            weight: weights.get("weight", (input, output, 2, 2))?,
            bias: weights.get("bias", (output,))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let larger = x.conv_transpose2d(&self.weight, 0, 0, 2, 1)?;
        Ok(larger.broadcast_add(&self.bias.reshape((1, (), 1, 1))?)?)
    }
}

/// A layer norm over the channels of each pixel.
struct ChannelNorm {
    weight: Tensor,
    bias: Tensor,
}

impl ChannelNorm {
    fn load(weights: &Weights, channels: usize) -> Result<ChannelNorm> {
        Ok(ChannelNorm {
            weight: weights.get("weight", channels)?,
            bias: weights.get("bias", channels)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let last = x.permute((0, 2, 3, 1))?.contiguous()?;
        let normed =
            kosmograph_kernels::layer_norm(&last, &self.weight, &self.bias, LAYER_NORM_EPS)?;
        Ok(normed.permute((0, 3, 1, 2))?.contiguous()?)
    }
}

/// The decoder.
pub struct MaskDecoder {
    /// [1 + masks, C]: how good the masks are is asked by the first.
    tokens: Tensor,
    transformer: TwoWayTransformer,
    first: Doubling,
    norm: ChannelNorm,
    second: Doubling,
    /// Of each mask what its token says of a pixel.
    mlps: Vec<Mlp>,
    quality: Mlp,
}

impl MaskDecoder {
    /// Weights under the authors' names, for tokens of `channels` numbers.
    ///
    /// # Errors
    /// A tensor is missing, of another shape, or damaged.
    pub fn load(weights: &Weights, channels: usize) -> Result<MaskDecoder> {
        let [masks, _] = sizes(weights, "mask_tokens.weight")?;
        let quality = weights.get("iou_token.weight", (1, channels))?;
        let masks_tokens = weights.get("mask_tokens.weight", (masks, channels))?;
        let [mlp, _] = sizes(weights, "transformer.layers.0.mlp.lin1.weight")?;
        let transformer = weights.sub("transformer");
        let depth = count(&transformer, |i| format!("layers.{i}.norm1.weight"));
        let upscaling = weights.sub("output_upscaling");
        let mlps = weights.sub("output_hypernetworks_mlps");
        Ok(MaskDecoder {
            tokens: Tensor::cat(&[&quality, &masks_tokens], 0)?,
            transformer: build(&transformer, |names| {
                TwoWayTransformer::new(depth, channels, HEADS, mlp, names)
            })?,
            first: Doubling::load(&upscaling.sub("0"), channels, channels / 4)?,
            norm: ChannelNorm::load(&upscaling.sub("1"), channels / 4)?,
            second: Doubling::load(&upscaling.sub("3"), channels / 4, channels / 8)?,
            mlps: (0..masks).map(|i| Mlp::load(&mlps.sub(i.to_string()))).collect::<Result<_>>()?,
            quality: Mlp::load(&weights.sub("iou_prediction_head"))?,
        })
    }

    /// An encoded picture [1, C, h, w], where its patches are [1, C, h, w], the prompt's tokens [1, T, C] and what it says of every patch
    /// [1, C, h, w], to all masks [N, 4 h, 4 w] and how good each is.
    ///
    /// # Errors
    /// The shapes do not fit together.
    pub fn forward(
        &self,
        encoded: &Tensor,
        positions: &Tensor,
        sparse: &Tensor,
        dense: &Tensor,
    ) -> Result<(Tensor, Vec<f32>)> {
        let tokens = Tensor::cat(&[&self.tokens.unsqueeze(0)?, sparse], 1)?;
        let picture = encoded.broadcast_add(dense)?;
        let (_, channels, height, width) = picture.dims4()?;
        let (tokens, picture) = self.transformer.forward(&picture, positions, &tokens)?;
        let picture = picture.transpose(1, 2)?.reshape((1, channels, height, width))?;
        let larger = gelu_erf(&self.norm.forward(&self.first.forward(&picture)?)?)?;
        let larger = gelu_erf(&self.second.forward(&larger)?)?;
        let (_, features, height, width) = larger.dims4()?;
        let said = self
            .mlps
            .iter()
            .enumerate()
            .map(|(i, mlp)| mlp.forward(&tokens.narrow(1, 1 + i, 1)?));
        let said = Tensor::cat(&said.collect::<Result<Vec<_>>>()?, 1)?.squeeze(0)?;
        let masks = said.matmul(&larger.reshape((features, height * width))?)?;
        let quality = self.quality.forward(&tokens.narrow(1, 0, 1)?)?;
        Ok((masks.reshape(((), height, width))?, quality.flatten_all()?.to_vec1()?))
    }
}
