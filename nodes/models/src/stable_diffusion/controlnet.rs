//! ControlNet: a trainable copy of the U-Net's contracting half that looks at a hint picture
//! (edges, depth, a pose) and adds what it found to the U-Net's skip connections.
//!
//! Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models", arXiv 2302.05543;
//! computed as diffusers' `ControlNetModel` does.

use candle_core::{DType, Result as CandleResult, Tensor};
use kosmograph_kernels as kernels;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::files::diffusers_config::Options;
use crate::files::python_json::parse;
use crate::files::weights::Weights;
use crate::stable_diffusion::controlnet_union::{Union, UnionConfig};
use crate::stable_diffusion::resnet::Conv2d;
use crate::stable_diffusion::steering::Steering;
use crate::stable_diffusion::unet::{Residuals, UNetConfig};
use crate::stable_diffusion::unet_blocks::{Encoded, Encoder, Hint};
use crate::stable_diffusion::unet_config::EncoderConfig;
use crate::stable_diffusion::unet_embeddings::{Condition, VectorConfig};

/// The order of the hint's channels in memory, as the network was trained on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChannelOrder {
    Rgb,
    Bgr,
}

/// `config.json` of a `ControlNetModel`.
#[derive(Clone, Debug)]
pub struct ControlNetConfig {
    encoder: EncoderConfig,
    conditioning_channels: usize,
    conditioning_embedding_out_channels: Vec<usize>,
    channel_order: ChannelOrder,
    /// Each residual is its mean over height and width: the network ("shuffle") says what colours and forms
    /// there are, not where.
    global_pool_conditions: bool,
    /// Of a network for several kinds of hint.
    union: Option<UnionConfig>,
}

impl ControlNetConfig {
    /// Reads the JSON text; `file` is what errors call it.
    ///
    /// # Errors
    /// The text is not JSON, or an option is not supported or not known; the error names it.
    pub fn from_json(text: &str, file: &str) -> Result<Self> {
        ControlNetConfig::from_value(&parse(text, file)?, file)
    }

    /// As [`ControlNetConfig::from_json`], from JSON that is parsed already.
    ///
    /// # Errors
    /// As [`ControlNetConfig::from_json`].
    pub fn from_value(json: &Value, file: &str) -> Result<Self> {
        let mut options = Options::new(json, file)?;
        let encoder = EncoderConfig::read(&mut options)?;
        let conditioning_channels = options.get_or("conditioning_channels", 3)?;
        let channels: Vec<usize> =
            options.get_or("conditioning_embedding_out_channels", vec![16, 32, 96, 256])?;
        if channels.is_empty() {
            return Err(options.unsupported("conditioning_embedding_out_channels", "at least one"));
        }
        let order: String =
            options.get_or("controlnet_conditioning_channel_order", "rgb".to_owned())?;
        let channel_order = match order.as_str() {
            "rgb" => ChannelOrder::Rgb,
            "bgr" => ChannelOrder::Bgr,
            _ => {
                let key = "controlnet_conditioning_channel_order";
                return Err(options.unsupported(key, "\"rgb\" and \"bgr\""));
            }
        };
        let global_pool_conditions = options.get_or("global_pool_conditions", false)?;
        let union = UnionConfig::read(&mut options, encoder.levels[0].channels)?;
        options.finish()?;
        Ok(ControlNetConfig {
            encoder,
            conditioning_channels,
            conditioning_embedding_out_channels: channels,
            channel_order,
            global_pool_conditions,
            union,
        })
    }

    /// That of a U-Net's contracting half, whose hint has so many channels and its convolutions these.
    pub fn of_unet(unet: &UNetConfig, hint_channels: usize, embedding: Vec<usize>) -> Self {
        ControlNetConfig {
            encoder: unet.encoder.clone(),
            conditioning_channels: hint_channels,
            conditioning_embedding_out_channels: embedding,
            channel_order: ChannelOrder::Rgb,
            global_pool_conditions: false,
            union: None,
        }
    }

    /// Channels of the hint.
    pub fn conditioning_channels(&self) -> usize {
        self.conditioning_channels
    }

    /// How many kinds of hint it knows, where it is a union.
    pub fn types(&self) -> Option<usize> {
        self.union.map(|union| union.types)
    }

    /// Whether its residuals are means over the whole picture.
    pub fn pools(&self) -> bool {
        self.global_pool_conditions
    }

    /// How many hint pixels there are to a latent pixel, along each edge: 8 for SD 1.5.
    pub fn hint_factor(&self) -> usize {
        1 << (self.conditioning_embedding_out_channels.len() - 1)
    }

    /// The family of models that it is for.
    pub fn family(&self) -> &'static str {
        self.encoder.family()
    }

    /// Its vector, where it takes one beside the context.
    pub fn vector(&self) -> Option<VectorConfig> {
        self.encoder.vector
    }

    /// Width of the context's tokens.
    pub fn cross_attention_dim(&self) -> usize {
        self.encoder.cross_attention_dim
    }
}

/// Convolutions that bring the hint to the latents' size.
struct ControlNetConditioningEmbedding {
    conv_in: Conv2d,
    blocks: Vec<Conv2d>,
    conv_out: Conv2d,
}

impl ControlNetConditioningEmbedding {
    fn load(weights: &Weights, config: &ControlNetConfig) -> Result<Self> {
        let channels = &config.conditioning_embedding_out_channels;
        let mut blocks = Vec::new();
        for (i, pair) in channels.windows(2).enumerate() {
            let (narrow, wide) = (pair[0], pair[1]);
            let same = weights.sub(format!("blocks.{}", 2 * i));
            let down = weights.sub(format!("blocks.{}", 2 * i + 1));
            blocks.push(Conv2d::load_3x3(&same, narrow, narrow)?);
            blocks.push(Conv2d::load(&down, narrow, wide, 3, 2, 1)?);
        }
        let first = channels[0];
        let last = channels[channels.len() - 1];
        let target = config.encoder.levels[0].channels;
        Ok(ControlNetConditioningEmbedding {
            conv_in: Conv2d::load_3x3(
                &weights.sub("conv_in"),
                config.conditioning_channels,
                first,
            )?,
            blocks,
            conv_out: Conv2d::load_3x3(&weights.sub("conv_out"), last, target)?,
        })
    }

    fn forward(&self, hint: &Tensor) -> CandleResult<Tensor> {
        let mut x = kernels::silu(&self.conv_in.forward(hint)?)?;
        for block in &self.blocks {
            x = kernels::silu(&block.forward(&x)?)?;
        }
        self.conv_out.forward(&x)
    }
}

/// The ControlNet.
pub struct ControlNet {
    encoder: Encoder,
    controlnet_cond_embedding: ControlNetConditioningEmbedding,
    controlnet_down_blocks: Vec<Conv2d>,
    controlnet_mid_block: Conv2d,
    union: Option<Union>,
    config: ControlNetConfig,
}

impl ControlNet {
    /// Reads the tensors that `config` asks for, under diffusers' names.
    ///
    /// # Errors
    /// A tensor is missing, of another shape, or damaged.
    pub fn load(weights: &Weights, config: &ControlNetConfig) -> Result<Self> {
        let levels = &config.encoder.levels;
        let last = levels[levels.len() - 1].channels;
        let controlnet_down_blocks = config
            .encoder
            .skip_channels()
            .into_iter()
            .enumerate()
            .map(|(i, channels)| {
                let weights = weights.sub(format!("controlnet_down_blocks.{i}"));
                Conv2d::load_1x1(&weights, channels, channels)
            })
            .collect::<Result<_>>()?;
        let embedding = weights.sub("controlnet_cond_embedding");
        let time_embedding = config.encoder.resnet().time_embedding;
        let union = config.union.map(|union| Union::load(weights, union, time_embedding));
        Ok(ControlNet {
            encoder: Encoder::load(weights, &config.encoder)?,
            controlnet_cond_embedding: ControlNetConditioningEmbedding::load(&embedding, config)?,
            controlnet_down_blocks,
            controlnet_mid_block: Conv2d::load_1x1(
                &weights.sub("controlnet_mid_block"),
                last,
                last,
            )?,
            union: union.transpose()?,
            config: config.clone(),
        })
    }

    pub fn config(&self) -> &ControlNetConfig {
        &self.config
    }

    /// [`ControlNet::embed_hint_of`] of no kind.
    ///
    /// # Errors
    /// As there.
    pub fn embed_hint(&self, hint: &Tensor) -> Result<Tensor> {
        self.embed_hint_of(hint, None)
    }

    /// `hint` [B, conditioning_channels, 8·H, 8·W] in 0..1 → its embedding [B, C₀, H, W], of a union as one of its
    /// kind `kind`. It does not depend on the timestep, so a sampler needs it only once.
    ///
    /// # Errors
    /// The hint has another number of channels, or the network knows no such kind.
    pub fn embed_hint_of(&self, hint: &Tensor, kind: Option<usize>) -> Result<Tensor> {
        match hint.dims() {
            [_, channels, _, _] if *channels == self.config.conditioning_channels => {}
            shape => {
                return Err(Error::Input(format!(
                    "the ControlNet's hint is {shape:?}, expected [batch, {}, height, width]",
                    self.config.conditioning_channels
                )));
            }
        }
        let hint = match self.config.channel_order {
            ChannelOrder::Rgb => hint.clone(),
            ChannelOrder::Bgr => {
                let planes: Vec<Tensor> = (0..self.config.conditioning_channels)
                    .rev()
                    .map(|c| hint.narrow(1, c, 1))
                    .collect::<CandleResult<_>>()?;
                Tensor::cat(&planes, 1)?
            }
        };
        let hint = hint.to_dtype(self.encoder.activations())?;
        let embedding = self.controlnet_cond_embedding.forward(&hint)?;
        match (&self.union, kind) {
            (_, None) => Ok(embedding),
            (Some(union), Some(kind)) => {
                union.check(kind)?;
                Ok(union.fused(&embedding, kind)?)
            }
            (None, Some(_)) => Err(Error::Input(
                "the ControlNet is for one kind of hint, which it is not told".to_owned(),
            )),
        }
    }

    /// The residuals at full strength for `x` [B, in_channels, H, W] at `timesteps` ([1] or [B])
    /// with `context` [B, T, cross_attention_dim] and the hint's embedding ([B, C₀, H, W], or one
    /// row for all). Weaken them with [`Residuals::scaled`]. Those of a network that pools are the same at
    /// every pixel.
    ///
    /// # Errors
    /// The shapes do not fit the network or each other.
    pub fn forward<'a>(
        &self,
        x: &Tensor,
        timesteps: &Tensor,
        condition: impl Into<Condition<'a>>,
        hint_embedding: &Tensor,
    ) -> Result<Residuals> {
        self.forward_of(x, timesteps, condition, hint_embedding, None)
    }

    /// As [`ControlNet::forward`], of a union with a hint of the kind `kind`, which its embedding was made as.
    ///
    /// # Errors
    /// As there, or the network knows no such kind.
    pub fn forward_of<'a>(
        &self,
        x: &Tensor,
        timesteps: &Tensor,
        condition: impl Into<Condition<'a>>,
        hint_embedding: &Tensor,
        kind: Option<usize>,
    ) -> Result<Residuals> {
        let condition = condition.into();
        self.config.encoder.check(x, timesteps, &condition)?;
        let (batch, _, height, width) = x.dims4()?;
        let channels = self.config.encoder.levels[0].channels;
        let hint = match hint_embedding.dims() {
            [rows, c, h, w]
                if (*rows == batch || *rows == 1) && (*c, *h, *w) == (channels, height, width) =>
            {
                hint_embedding.broadcast_as((batch, channels, height, width))?
            }
            shape => {
                return Err(Error::Input(format!(
                    "the embedding of the ControlNet's hint is {shape:?}, the latents need \
                     [{batch}, {channels}, {height}, {width}]: the hint must have {} times the \
                     latents' height and width",
                    self.config.hint_factor()
                )));
            }
        };
        let activations = self.encoder.activations();
        let (x, context) = (&x.to_dtype(activations)?, &condition.context.to_dtype(activations)?);
        let condition = Condition { context, ..condition };
        let hint = hint.to_dtype(activations)?;
        let none = Steering::default();
        let time = match &self.union {
            Some(union) => Some(union.added(kind)?.to_dtype(activations)?),
            None => None,
        };
        let hint = Hint { embedding: &hint, time: time.as_ref() };
        let Encoded { skips, mid, .. } =
            self.encoder.forward(x, timesteps, &condition, Some(hint), &none, &mut |_, _| {})?;
        let down = self
            .controlnet_down_blocks
            .iter()
            .zip(&skips)
            .map(|(block, skip)| self.residual(block, skip))
            .collect::<CandleResult<_>>()?;
        let mid = self.residual(&self.controlnet_mid_block, &mid)?;
        Ok(Residuals { down, mid })
    }

    /// The network's residuals at `strength`, in guess mode growing with depth; those that are pooled do not,
    /// as diffusers has it.
    ///
    /// # Errors
    /// Only what the tensor library reports.
    pub fn scaled(&self, residuals: &Residuals, strength: f64, guess: bool) -> Result<Residuals> {
        match guess && !self.config.global_pool_conditions {
            true => residuals.scaled_for_guess_mode(strength),
            false => residuals.scaled(strength),
        }
    }

    fn residual(&self, block: &Conv2d, x: &Tensor) -> CandleResult<Tensor> {
        let residual = block.forward(x)?.to_dtype(DType::F32)?;
        match self.config.global_pool_conditions {
            true => {
                let mean = residual.mean_keepdim(3)?.mean_keepdim(2)?;
                mean.broadcast_as(residual.shape())?.contiguous()
            }
            false => Ok(residual),
        }
    }
}
