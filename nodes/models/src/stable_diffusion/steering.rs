//! What steers a U-Net beside its condition: ControlNets' residuals, T2I-Adapters' features, tokens that the cross-attention
//! reads by themselves (IP-Adapters), and hooks that take the place of its parts.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use candle_core::{Result as CandleResult, Tensor};
use kosmograph_pixels::shape::Shape;
use kosmograph_pixels::torch::{Mode, interpolate};

use crate::error::{Error, Result};
use crate::stable_diffusion::recompute::Tape;
use crate::stable_diffusion::unet::Residuals;

/// All of it; what there is none of is empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steering<'a> {
    pub residuals: Option<&'a Residuals>,
    /// T2I-Adapters' features by diffusers' name of a block, `down_blocks.0` or `mid_block`: [B or 1, C, H, W], added to what the
    /// block's last attention gives, or to what the block gives where it has none, and in the skip connection of that place.
    pub features: &'a [(String, Tensor)],
    pub extra_tokens: &'a [ExtraTokens],
    pub hooks: Option<&'a dyn Hooks>,
    /// Keeps less for the gradients; then there are no features, no extra tokens and no hooks.
    pub tape: Option<&'a Tape>,
}

pub use crate::stable_diffusion::transformer2d::Attention;

/// What an attention attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attends {
    Itself,
    Context,
}

/// A side of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    Input,
    Output,
    /// What a block of the contracting half hands on below it, when its skip connection has been taken.
    Below,
}

/// What takes the place of parts of the U-Net while it runs. Places have diffusers' names.
pub trait Hooks: Debug {
    /// In the place of the attention of the block at `path`, "down_blocks.0.attentions.0.transformer_blocks.0": from x
    /// [B, N, C], whose tokens lie in a picture as `size`, to the context [B, T, D]. `None` where it stays as it is.
    ///
    /// # Errors
    /// What the hook reports.
    fn attention(
        &self,
        attends: Attends,
        path: &str,
        size: (usize, usize),
        tensors: (&Tensor, &Tensor),
        layer: &Arc<Attention>,
    ) -> CandleResult<Option<Tensor>>;

    /// Between the two attentions of the transformer block at `path`: its tokens [B, N, C], which lie in a picture as `size`.
    ///
    /// # Errors
    /// What the hook reports.
    fn between(&self, path: &str, size: (usize, usize), x: Tensor) -> CandleResult<Tensor>;

    /// What the block at `path`, "down_blocks.0.resnets.0" (with the attention behind it), "down_blocks.0.downsamplers.0" or
    /// "mid_block", is given, gives or hands on, [B, C, H, W].
    ///
    /// # Errors
    /// What the hook reports.
    fn block(&self, edge: Edge, path: &str, x: Tensor) -> CandleResult<Tensor>;

    /// What the block at `path`, "up_blocks.0.resnets.0", is given from below [B, C, H, W] and by its skip connection
    /// [B, S, H, W].
    ///
    /// # Errors
    /// What the hook reports.
    fn skip(&self, path: &str, x: Tensor, skip: Tensor) -> CandleResult<(Tensor, Tensor)>;
}

/// Tokens that every cross-attention reads beside the context, with a softmax of their own: y = attention(context) + weight · mask ·
/// attention(tokens). Ye et al., "IP-Adapter", arXiv 2308.06721, §3.2.2.
#[derive(Clone, Debug)]
pub struct ExtraTokens {
    pub keys_values: KeysValues,
    pub weight: f64,
    /// Where in the picture they count, [B or 1, H, W] of any size.
    pub mask: Option<Tensor>,
}

/// What a cross-attention attends to.
#[derive(Clone, Debug)]
pub enum KeysValues {
    /// [B or 1, S, D], projected as the context is.
    Tokens(Tensor),
    /// By the layer's path ([`crate::stable_diffusion::unet::UNetConfig::cross_attentions`]), projected already, [B or 1, S, C] both. A
    /// layer that is not there reads none.
    Projected(HashMap<String, (Tensor, Tensor)>),
}

impl ExtraTokens {
    /// `y` [B, H · W, C], multiplied by the weight and, for tokens that lie in a picture as `size`, by the mask.
    pub(crate) fn weighted(&self, y: Tensor, size: (usize, usize)) -> CandleResult<Tensor> {
        let y = if self.weight == 1.0 { y } else { (y * self.weight)? };
        let Some(mask) = &self.mask else { return Ok(y) };
        y.broadcast_mul(&mask_of(mask, size)?.to_device(y.device())?.to_dtype(y.dtype())?)
    }
}

/// A mask [b, H, W] scaled bilinearly, as ComfyUI's nodes do: [b, h · w, 1].
fn mask_of(mask: &Tensor, (height, width): (usize, usize)) -> CandleResult<Tensor> {
    let (batch, rows, columns) = mask.dims3()?;
    let values = mask.flatten_all()?.to_vec1::<f32>()?;
    let shape = Shape { batch, height: rows, width: columns, channels: 1 };
    let scaled = interpolate(&values, shape, (height, width), Mode::Bilinear);
    let scaled = scaled.map_err(candle_core::Error::wrap)?;
    Tensor::from_vec(scaled, (batch, height * width, 1), mask.device())
}

/// What cross-attentions read.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    /// [B, T, D].
    pub(crate) text: &'a Tensor,
    pub(crate) extra_tokens: &'a [ExtraTokens],
    pub(crate) hooks: Option<&'a dyn Hooks>,
}

impl<'a> From<&'a Tensor> for Context<'a> {
    /// The text alone.
    fn from(text: &'a Tensor) -> Self {
        Context { text, extra_tokens: &[], hooks: None }
    }
}

impl Steering<'_> {
    /// Do the features and tokens fit a U-Net of `levels` that reads `rows` rows of contexts `width` wide?
    ///
    /// # Errors
    /// They do not.
    pub(crate) fn check(&self, levels: usize, rows: usize, width: usize) -> Result<()> {
        let known = |name: &str| {
            name == "mid_block" || (0..levels).any(|i| name == format!("down_blocks.{i}"))
        };
        if let Some((name, _)) = self.features.iter().find(|(name, _)| !known(name)) {
            return Err(Error::Input(format!(
                "the T2I-Adapter has a feature for {name}, which this U-Net of {levels} levels does not have: it is \
                 made for another family of models"
            )));
        }
        let steered = self.hooks.is_some() || !self.features.is_empty();
        if self.tape.is_some() && (steered || !self.extra_tokens.is_empty()) {
            return Err(Error::Input(
                "blocks are computed again for their gradients only where no adapter and no patch acts in the U-Net"
                    .to_owned(),
            ));
        }
        let batch = |tensor: &Tensor| tensor.dims().first().is_some_and(|n| *n == 1 || *n == rows);
        for extra in self.extra_tokens {
            let fits = match &extra.keys_values {
                KeysValues::Tokens(tokens) => {
                    tokens.dims().len() == 3 && tokens.dims()[2] == width && batch(tokens)
                }
                KeysValues::Projected(layers) => layers.values().all(|(keys, values)| {
                    keys.dims().len() == 3 && keys.dims() == values.dims() && batch(keys)
                }),
            };
            let mask = extra
                .mask
                .as_ref()
                .is_none_or(|mask| mask.dims().len() == 3 && batch(mask) && mask.elem_count() > 0);
            if !fits || !mask {
                return Err(Error::Input(format!(
                    "the extra tokens of the cross-attention do not fit: [1 or {rows}, tokens, {width}] are wanted, or \
                     keys and values of one shape, and a mask [1 or {rows}, height, width]"
                )));
            }
        }
        Ok(())
    }

    /// What the hooks make of one side of a block.
    pub(crate) fn at_block(&self, edge: Edge, path: &str, x: Tensor) -> CandleResult<Tensor> {
        match self.hooks {
            Some(hooks) => hooks.block(edge, path, x),
            None => Ok(x),
        }
    }

    /// Whether a feature is added at the block `name`.
    pub(crate) fn has_feature(&self, name: &str) -> bool {
        self.features.iter().any(|(of, _)| of == name)
    }

    /// `x` with the feature of the block `name`, where there is one.
    pub(crate) fn with_feature(&self, name: &str, x: Tensor) -> CandleResult<Tensor> {
        let mut x = x;
        for (_, feature) in self.features.iter().filter(|(of, _)| of == name) {
            let fits = match (feature.dims(), x.dims()) {
                ([b, feature @ ..], [rows, x @ ..]) => (b == rows || *b == 1) && feature == x,
                _ => false,
            };
            if !fits {
                candle_core::bail!(
                    "the T2I-Adapter's feature for {name} is {:?}, the U-Net has {:?} there: it is made for another \
                     family of models, or for another size",
                    feature.dims(),
                    x.dims()
                )
            }
            let feature = feature.to_device(x.device())?.to_dtype(x.dtype())?;
            x = x.broadcast_add(&feature)?;
        }
        Ok(x)
    }
}
