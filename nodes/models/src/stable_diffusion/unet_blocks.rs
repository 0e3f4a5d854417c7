//! The contracting half of Stable Diffusion's U-Net, which ControlNet copies, and the expanding
//! blocks that follow it. Field names are diffusers' checkpoint names.

use candle_core::{DType, Result as CandleResult, Tensor};
use kosmograph_kernels as kernels;
use serde_json::json;

use crate::error::{Error, Result};
use crate::files::diffusers_config::Options;
use crate::files::weights::Weights;
use crate::layers::Linear;
use crate::stable_diffusion::resnet::{Conv2d, ResnetBlock2D, ResnetConfig, Upsample2D};
use crate::stable_diffusion::transformer2d::{Transformer2D, Transformer2DConfig};

/// Told of intermediate results by name, to compare an implementation stage by stage.
pub type Probe<'a> = dyn FnMut(&str, &Tensor) + 'a;

/// One level of the U-Net, as the contracting half has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelConfig {
    /// A multiple of the norms' groups and of the heads; of the first level even, and at least 4.
    pub channels: usize,
    /// ResNet blocks in the contracting half; the expanding half has one more.
    pub layers: usize,
    /// Whether a transformer follows each of them.
    pub cross_attention: bool,
    /// Of its attention; their width follows from the channels.
    pub heads: usize,
    /// Blocks in a row within a transformer.
    pub transformer_layers: usize,
}

/// The contracting half: all that a U-Net and its ControlNets have in common. [`Default`] is Stable Diffusion
/// 1.5's.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// Channels of x: 4 for latents, 9 for inpainting models.
    pub in_channels: usize,
    /// From the outermost, of full size, down; at least one.
    pub levels: Vec<LevelConfig>,
    /// Width of the context's tokens.
    pub cross_attention_dim: usize,
    /// Groups of every GroupNorm.
    pub norm_num_groups: usize,
    /// ε of the ResNet blocks' norms.
    pub norm_eps: f64,
    /// Time features are [cos ‖ sin] rather than [sin ‖ cos].
    pub flip_sin_to_cos: bool,
    /// Subtracted from the number of frequencies in their exponent.
    pub freq_shift: f64,
    /// A transformer's outer projections are linear (SD 2) rather than 1 × 1 convolutions (SD 1). The same
    /// computation; only the shape in the file differs.
    pub use_linear_projection: bool,
}

impl Default for EncoderConfig {
    fn default() -> Self {
        let level = |channels, cross_attention| LevelConfig {
            channels,
            layers: 2,
            cross_attention,
            heads: 8,
            transformer_layers: 1,
        };
        EncoderConfig {
            in_channels: 4,
            levels: vec![level(320, true), level(640, true), level(1280, true), level(1280, false)],
            cross_attention_dim: 768,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            use_linear_projection: false,
        }
    }
}

impl EncoderConfig {
    /// Reads the options that U-Net and ControlNet share.
    pub(crate) fn read(options: &mut Options) -> Result<Self> {
        let channels: Vec<usize> =
            options.get_or("block_out_channels", vec![320, 640, 1280, 1280])?;
        let blocks = channels.len();
        let block_types: Vec<String> = options.get_or(
            "down_block_types",
            ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]
                .map(str::to_owned)
                .to_vec(),
        )?;
        if blocks == 0 || block_types.len() != blocks {
            return Err(options.unsupported(
                "down_block_types",
                &format!("one for each of the {blocks} of `block_out_channels`, at least one"),
            ));
        }
        let cross_attention: Vec<bool> =
            block_types
                .iter()
                .map(|name| match name.as_str() {
                    "CrossAttnDownBlock2D" => Ok(true),
                    "DownBlock2D" => Ok(false),
                    _ => Err(options
                        .unsupported("down_block_types", "CrossAttnDownBlock2D and DownBlock2D")),
                })
                .collect::<Result<_>>()?;
        let layers = options.per_block("layers_per_block", 2, blocks)?;
        // diffusers' name for the number of heads; their width follows from the channels.
        let heads = options.per_block("attention_head_dim", 8, blocks)?;
        let transformer_layers = options.per_block("transformer_layers_per_block", 1, blocks)?;
        let cross_attention_dim = options.get_or("cross_attention_dim", 1280usize)?;
        let groups = options.get_or("norm_num_groups", 32usize)?;
        let use_linear_projection = options.get_or("use_linear_projection", false)?;
        options.only(&[
            ("act_fn", json!("silu")),
            ("addition_embed_type", json!(null)),
            ("addition_time_embed_dim", json!(null)),
            ("attention_type", json!("default")),
            ("class_embed_type", json!(null)),
            ("downsample_padding", json!(1)),
            ("encoder_hid_dim", json!(null)),
            ("encoder_hid_dim_type", json!(null)),
            ("mid_block_scale_factor", json!(1)),
            ("mid_block_type", json!("UNetMidBlock2DCrossAttn")),
            ("num_attention_heads", json!(null)),
            ("num_class_embeds", json!(null)),
            ("only_cross_attention", json!(false)),
            ("projection_class_embeddings_input_dim", json!(null)),
            ("resnet_time_scale_shift", json!("default")),
        ])?;
        // A question of half precision only: here attention computes in f32 anyway.
        let _: bool = options.get_or("upcast_attention", false)?;
        let levels = (0..blocks)
            .map(|i| LevelConfig {
                channels: channels[i],
                layers: layers[i],
                cross_attention: cross_attention[i],
                heads: heads[i],
                transformer_layers: transformer_layers[i],
            })
            .collect();
        let config = EncoderConfig {
            in_channels: options.get_or("in_channels", 4)?,
            levels,
            cross_attention_dim,
            norm_num_groups: groups,
            norm_eps: options.get_or("norm_eps", 1e-5)?,
            flip_sin_to_cos: options.get_or("flip_sin_to_cos", true)?,
            freq_shift: options.get_or("freq_shift", 0.0)?,
            use_linear_projection,
        };
        match config.problem() {
            Some(wanted) => Err(options.unsupported("block_out_channels", &wanted)),
            None => Ok(config),
        }
    }

    /// What would be right where the levels' channels cannot be.
    fn problem(&self) -> Option<String> {
        let groups = self.norm_num_groups;
        let divides =
            |parts: usize, whole: usize| parts > 0 && whole > 0 && whole.is_multiple_of(parts);
        let odd = |level: &&LevelConfig| {
            !divides(groups, level.channels) || !divides(level.heads, level.channels)
        };
        if let Some(LevelConfig { heads, .. }) = self.levels.iter().find(odd) {
            return Some(format!(
                "multiples of norm_num_groups ({groups}) and of attention_head_dim ({heads}, the number of heads)"
            ));
        }
        if self.levels.iter().any(|level| level.layers == 0) {
            return Some("levels of at least one layer".to_owned());
        }
        match self.levels.first() {
            None => Some("at least one".to_owned()),
            Some(first) if first.channels % 2 != 0 || first.channels < 4 => {
                Some("an even first one, at least 4".to_owned())
            }
            Some(_) => None,
        }
    }

    /// The transformers of a level.
    pub(crate) fn transformer(&self, level: &LevelConfig) -> Transformer2DConfig {
        Transformer2DConfig {
            channels: level.channels,
            heads: level.heads,
            layers: level.transformer_layers,
            cross_attention_dim: self.cross_attention_dim,
            groups: self.norm_num_groups,
            use_linear_projection: self.use_linear_projection,
        }
    }

    pub(crate) fn resnet(&self) -> ResnetConfig {
        ResnetConfig {
            groups: self.norm_num_groups,
            eps: self.norm_eps,
            time_embedding: 4 * self.levels[0].channels,
        }
    }

    /// The channels of every skip connection, in the order they are made.
    pub(crate) fn skip_channels(&self) -> Vec<usize> {
        let mut skips = vec![self.levels[0].channels];
        for (i, level) in self.levels.iter().enumerate() {
            skips.extend(vec![level.channels; level.layers]);
            if i + 1 < self.levels.len() {
                skips.push(level.channels);
            }
        }
        skips
    }

    /// Do `x` [B, in_channels, H, W], `timesteps` [1] or [B] and `context`
    /// [B, T, cross_attention_dim] fit this network and each other?
    pub(crate) fn check(&self, x: &Tensor, timesteps: &Tensor, context: &Tensor) -> Result<()> {
        let complain = |sentence: String| Err(Error::Input(sentence));
        let batch = match x.dims() {
            [batch, channels, height, width] if *channels == self.in_channels => {
                if *height == 0 || *width == 0 {
                    return complain(format!("the latents are empty: {:?}", x.shape()));
                }
                *batch
            }
            shape => {
                return complain(format!(
                    "the latents are {shape:?}, the network takes [batch, {}, height, width]",
                    self.in_channels
                ));
            }
        };
        match context.dims() {
            [rows, _, width] if *rows == batch && *width == self.cross_attention_dim => {}
            shape => {
                return complain(format!(
                    "the conditioning is {shape:?}, the network takes [{batch}, tokens, {}]: it was \
                     encoded for another model, or for another number of pictures",
                    self.cross_attention_dim
                ));
            }
        }
        match timesteps.dims() {
            [1] => Ok(()),
            [count] if *count == batch => Ok(()),
            shape => complain(format!(
                "the timesteps are {shape:?} for a batch of {batch}, expected [1] or [{batch}]"
            )),
        }
    }
}

/// Sinusoidal features of the timestep, then two linear layers.
struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

/// [B] → [B, dim]: cos and sin of t · 10000^(−i / (dim/2 − freq_shift)).
fn time_proj(
    timesteps: &Tensor,
    dim: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
) -> CandleResult<Tensor> {
    let half = dim / 2;
    // Rounded to f32 after every operation, as torch does: at t = 999 a frequency that is off in
    // its last bit already moves the angle by 6e-5.
    let frequencies: Vec<f32> = (0..half)
        .map(|i| {
            let exponent = -(10000f64.ln() as f32) * i as f32 / (half as f64 - freq_shift) as f32;
            f64::from(exponent).exp() as f32
        })
        .collect();
    let frequencies = Tensor::from_vec(frequencies, (1, half), timesteps.device())?;
    let angles = timesteps.to_dtype(DType::F32)?.unsqueeze(1)?.broadcast_mul(&frequencies)?;
    let (first, second) = if flip_sin_to_cos {
        (angles.cos()?, angles.sin()?)
    } else {
        (angles.sin()?, angles.cos()?)
    };
    Tensor::cat(&[first, second], 1)
}

struct DownBlock2D {
    resnets: Vec<ResnetBlock2D>,
    /// As many as ResNet blocks, or none.
    attentions: Vec<Transformer2D>,
    downsampler: Option<Conv2d>,
}

struct UNetMidBlock2DCrossAttn {
    resnet_0: ResnetBlock2D,
    attention: Transformer2D,
    resnet_1: ResnetBlock2D,
}

/// Everything of a U-Net down to and including its middle block.
pub(crate) struct Encoder {
    conv_in: Conv2d,
    time_embedding: TimestepEmbedding,
    down_blocks: Vec<DownBlock2D>,
    mid_block: UNetMidBlock2DCrossAttn,
    config: EncoderConfig,
}

/// What the contracting half hands on.
pub(crate) struct Encoded {
    /// The skip connections in the order they were made, `conv_in`'s result first.
    pub(crate) skips: Vec<Tensor>,
    /// The middle block's result.
    pub(crate) mid: Tensor,
    /// SiLU of the time embedding [B, 4·C₀], as every ResNet block takes it.
    pub(crate) temb: Tensor,
}

impl Encoder {
    pub(crate) fn load(weights: &Weights, config: &EncoderConfig) -> Result<Self> {
        if let Some(wanted) = config.problem() {
            return Err(Error::UnsupportedConfig {
                file: "the configuration".to_owned(),
                key: "levels".to_owned(),
                found: format!("{:?}", config.levels),
                supported: wanted,
            });
        }
        let resnet = config.resnet();
        let first = config.levels[0].channels;
        let time = weights.sub("time_embedding");
        let time_embedding = TimestepEmbedding {
            linear_1: Linear::load(&time.sub("linear_1"), first, resnet.time_embedding)?,
            linear_2: Linear::load(
                &time.sub("linear_2"),
                resnet.time_embedding,
                resnet.time_embedding,
            )?,
        };
        let mut down_blocks = Vec::with_capacity(config.levels.len());
        let mut input = first;
        for (i, level) in config.levels.iter().enumerate() {
            let weights = weights.sub(format!("down_blocks.{i}"));
            let mut block =
                DownBlock2D { resnets: Vec::new(), attentions: Vec::new(), downsampler: None };
            for j in 0..level.layers {
                let resnet_weights = weights.sub(format!("resnets.{j}"));
                block.resnets.push(ResnetBlock2D::load(
                    &resnet_weights,
                    input,
                    level.channels,
                    resnet,
                )?);
                input = level.channels;
                if level.cross_attention {
                    let weights = weights.sub(format!("attentions.{j}"));
                    block
                        .attentions
                        .push(Transformer2D::load(&weights, config.transformer(level))?);
                }
            }
            if i + 1 < config.levels.len() {
                let weights = weights.sub("downsamplers.0.conv");
                block.downsampler =
                    Some(Conv2d::load(&weights, level.channels, level.channels, 3, 2, 1)?);
            }
            down_blocks.push(block);
        }
        let mid = weights.sub("mid_block");
        let last = &config.levels[config.levels.len() - 1];
        let mid_resnet = |j: usize| {
            let weights = mid.sub(format!("resnets.{j}"));
            ResnetBlock2D::load(&weights, last.channels, last.channels, resnet)
        };
        let mid_block = UNetMidBlock2DCrossAttn {
            resnet_0: mid_resnet(0)?,
            attention: Transformer2D::load(&mid.sub("attentions.0"), config.transformer(last))?,
            resnet_1: mid_resnet(1)?,
        };
        Ok(Encoder {
            conv_in: Conv2d::load_3x3(&weights.sub("conv_in"), config.in_channels, first)?,
            time_embedding,
            down_blocks,
            mid_block,
            config: config.clone(),
        })
    }

    pub(crate) fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// The number type of the activations.
    pub(crate) fn activations(&self) -> DType {
        self.conv_in.activations()
    }

    /// `x` [B, in_channels, H, W], `timesteps` [1] or [B], `context` [B, T, D]; `hint`
    /// [B, C₀, H, W] is added to what `conv_in` makes of x (ControlNet). x, context and hint in the
    /// type of the activations.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        timesteps: &Tensor,
        context: &Tensor,
        hint: Option<&Tensor>,
        probe: &mut Probe,
    ) -> CandleResult<Encoded> {
        let EncoderConfig { flip_sin_to_cos, freq_shift, .. } = self.config;
        let timesteps = timesteps.to_device(x.device())?.broadcast_as(x.dim(0)?)?;
        let time_features =
            time_proj(&timesteps, self.config.levels[0].channels, flip_sin_to_cos, freq_shift)?;
        probe("time_proj", &time_features);
        let TimestepEmbedding { linear_1, linear_2 } = &self.time_embedding;
        let time_features = time_features.to_dtype(self.activations())?;
        let temb = linear_2.forward(&kernels::silu(&linear_1.forward(&time_features)?)?)?;
        probe("time_embedding", &temb);
        let temb = kernels::silu(&temb)?;

        let mut hidden_states = self.conv_in.forward(x)?;
        probe("conv_in", &hidden_states);
        if let Some(hint) = hint {
            hidden_states = (hidden_states + hint)?;
        }
        let mut skips = vec![hidden_states.clone()];
        for (i, block) in self.down_blocks.iter().enumerate() {
            for (j, resnet) in block.resnets.iter().enumerate() {
                hidden_states = resnet.forward(&hidden_states, Some(&temb))?;
                probe(&format!("down{i}_resnet{j}"), &hidden_states);
                if let Some(attention) = block.attentions.get(j) {
                    hidden_states = attention.forward(&hidden_states, context)?;
                    probe(&format!("down{i}_attn{j}"), &hidden_states);
                }
                skips.push(hidden_states.clone());
            }
            if let Some(downsampler) = &block.downsampler {
                hidden_states = downsampler.forward(&hidden_states)?;
                skips.push(hidden_states.clone());
            }
            probe(&format!("down{i}"), &hidden_states);
        }
        let UNetMidBlock2DCrossAttn { resnet_0, attention, resnet_1 } = &self.mid_block;
        let mid = resnet_0.forward(&hidden_states, Some(&temb))?;
        let mid = attention.forward(&mid, context)?;
        let mid = resnet_1.forward(&mid, Some(&temb))?;
        Ok(Encoded { skips, mid, temb })
    }
}

/// A level of the expanding half; every ResNet block takes one skip connection.
pub(crate) struct UpBlock2D {
    resnets: Vec<ResnetBlock2D>,
    /// As many as ResNet blocks, or none.
    attentions: Vec<Transformer2D>,
    upsampler: Option<Upsample2D>,
}

impl UpBlock2D {
    /// `input` channels come from below; `skips` are the channels of the skip connections, in the
    /// order they are taken.
    pub(crate) fn load(
        weights: &Weights,
        input: usize,
        (config, level): (&EncoderConfig, &LevelConfig),
        cross_attention: bool,
        skips: &[usize],
        upsamples: bool,
    ) -> Result<Self> {
        let mut block = UpBlock2D { resnets: Vec::new(), attentions: Vec::new(), upsampler: None };
        let mut input = input;
        for (j, skip) in skips.iter().enumerate() {
            let resnet_weights = weights.sub(format!("resnets.{j}"));
            block.resnets.push(ResnetBlock2D::load(
                &resnet_weights,
                input + skip,
                level.channels,
                config.resnet(),
            )?);
            input = level.channels;
            if cross_attention {
                let weights = weights.sub(format!("attentions.{j}"));
                block.attentions.push(Transformer2D::load(&weights, config.transformer(level))?);
            }
        }
        if upsamples {
            let weights = weights.sub("upsamplers.0");
            block.upsampler = Some(Upsample2D::load(&weights, level.channels)?);
        }
        Ok(block)
    }

    /// Takes its skip connections off the end of `skips`.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        skips: &mut Vec<Tensor>,
        temb: &Tensor,
        context: &Tensor,
    ) -> CandleResult<Tensor> {
        let mut hidden_states = x.clone();
        for (j, resnet) in self.resnets.iter().enumerate() {
            let Some(skip) = skips.pop() else {
                candle_core::bail!("the U-Net's halves differ in their number of skip connections")
            };
            hidden_states = Tensor::cat(&[hidden_states, skip], 1)?;
            hidden_states = resnet.forward(&hidden_states, Some(temb))?;
            if let Some(attention) = self.attentions.get(j) {
                hidden_states = attention.forward(&hidden_states, context)?;
            }
        }
        match (&self.upsampler, skips.last()) {
            // To the size that the level above had, which was odd where doubling would miss it.
            (Some(upsampler), Some(next)) => {
                let (_, _, height, width) = next.dims4()?;
                upsampler.forward(&hidden_states, height, width)
            }
            _ => Ok(hidden_states),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn time_features_are_cosines_and_sines() -> CandleResult<()> {
        let t = Tensor::new(&[0i64, 1], &Device::Cpu)?;
        let features = time_proj(&t, 4, true, 0.0)?.to_vec2::<f32>()?;
        let slow = 0.01f32;
        assert_eq!(features[0], [1., 1., 0., 0.]);
        for (got, want) in features[1].iter().zip([1f32.cos(), slow.cos(), 1f32.sin(), slow.sin()])
        {
            assert!((got - want).abs() < 1e-6);
        }
        let flipped = time_proj(&t, 4, false, 0.0)?.to_vec2::<f32>()?;
        assert_eq!(flipped[0], [0., 0., 1., 1.]);
        Ok(())
    }
}
