//! Stable Diffusion's U-Net: noisy latents, a timestep and a context → the predicted noise (or
//! velocity; the scheduler's configuration says which).
//!
//! Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv
//! 2112.10752; computed as diffusers' `UNet2DConditionModel` does, and configured by its
//! `config.json`: any number of levels, channels, heads and input channels.

use candle_core::{DType, Tensor};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::files::diffusers_config::Options;
use crate::files::python_json::parse;
use crate::files::weights::Weights;
use crate::stable_diffusion::recompute::{Place, Recorded, Tape, TapeGradients};
use crate::stable_diffusion::resnet::{Conv2d, GroupNorm};
use crate::stable_diffusion::steering::{Context, Steering};
use crate::stable_diffusion::transformer2d::cross_attention;
use crate::stable_diffusion::unet_blocks::{Encoded, Encoder, UpBlock2D};
use crate::stable_diffusion::unet_config::depths;
use kosmograph_kernels as kernels;

pub use crate::stable_diffusion::residuals::Residuals;
pub use crate::stable_diffusion::unet_blocks::Probe;
pub use crate::stable_diffusion::unet_config::{EncoderConfig, LevelConfig, MiddleConfig};
pub use crate::stable_diffusion::unet_embeddings::{Condition, VectorConfig};

/// `config.json` of a `UNet2DConditionModel`.
///
/// It can be built by hand as well: `UNetConfig { out_channels: 8, ..UNetConfig::default() }`.
#[derive(Clone, Debug, PartialEq)]
pub struct UNetConfig {
    /// What it shares with its ControlNets.
    pub encoder: EncoderConfig,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// For every level of the expanding half, from the lowest: has it cross-attention?
    pub up_cross_attention: Vec<bool>,
    /// For every level of the expanding half, from the lowest, and each of its ResNet blocks: how many blocks the
    /// transformer behind it has. Empty: as in the contracting half.
    pub up_transformer_layers: Vec<Vec<usize>>,
    /// The colour of each latent channel, and what is added to their sum, in -1..1: our own options
    /// "latent_rgb" and "latent_rgb_bias", which `examples/latent_rgb.rs` fits. Empty where nobody said it.
    pub latent_rgb: (Vec<[f32; 3]>, [f32; 3]),
}

impl Default for UNetConfig {
    /// Stable Diffusion 1.5's.
    fn default() -> Self {
        UNetConfig {
            encoder: EncoderConfig::default(),
            out_channels: 4,
            up_cross_attention: vec![false, true, true, true],
            up_transformer_layers: Vec::new(),
            latent_rgb: Default::default(),
        }
    }
}

/// What the latents of Stable Diffusion 1 are its autoencoder's times.
pub const SD1_SCALE: f64 = 0.18215;

/// What the latents of SDXL are its autoencoder's times.
pub const SDXL_SCALE: f64 = 0.13025;

impl UNetConfig {
    /// What its latents are the autoencoder's times, if it is of a published family: they are told by the width of the
    /// text that they read. A small model of somebody's own has an autoencoder of its own.
    pub fn scaling_factor(&self) -> Option<f64> {
        match (&self.encoder.vector, self.encoder.cross_attention_dim) {
            (Some(_), 2048 | 1280) => Some(SDXL_SCALE),
            (None, 768) => Some(SD1_SCALE),
            _ => None,
        }
    }

    /// Reads the JSON text; `file` is what errors call it.
    ///
    /// # Errors
    /// The text is not JSON, an option has a value that is not supported, or an option is not
    /// known; the error names the option.
    pub fn from_json(text: &str, file: &str) -> Result<Self> {
        UNetConfig::from_value(&parse(text, file)?, file)
    }

    /// As [`UNetConfig::from_json`], from JSON that is parsed already.
    ///
    /// # Errors
    /// As [`UNetConfig::from_json`].
    pub fn from_value(json: &Value, file: &str) -> Result<Self> {
        let mut options = Options::new(json, file)?;
        let encoder = EncoderConfig::read(&mut options)?;
        let up_block_types: Vec<String> = options.get_or(
            "up_block_types",
            ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]
                .map(str::to_owned)
                .to_vec(),
        )?;
        if up_block_types.len() != encoder.levels.len() {
            let supported = format!("as many as `down_block_types`, {}", encoder.levels.len());
            return Err(options.unsupported("up_block_types", &supported));
        }
        let up_cross_attention = up_block_types
            .iter()
            .map(|name| match name.as_str() {
                "CrossAttnUpBlock2D" => Ok(true),
                "UpBlock2D" => Ok(false),
                _ => Err(options.unsupported("up_block_types", "CrossAttnUpBlock2D and UpBlock2D")),
            })
            .collect::<Result<_>>()?;
        let layers: Vec<usize> =
            encoder.levels.iter().rev().map(|level| level.layers + 1).collect();
        let up_transformer_layers =
            depths(&mut options, "reverse_transformer_layers_per_block", &layers)?
                .unwrap_or_default();
        let out_channels = options.get_or("out_channels", 4)?;
        let latent_rgb =
            (options.get_or("latent_rgb", vec![])?, options.get_or("latent_rgb_bias", [0.0; 3])?);
        options.only(&[
            ("center_input_sample", json!(false)),
            ("class_embeddings_concat", json!(false)),
            ("conv_in_kernel", json!(3)),
            ("conv_out_kernel", json!(3)),
            ("cross_attention_norm", json!(null)),
            ("dual_cross_attention", json!(false)),
            ("mid_block_only_cross_attention", json!(null)),
            ("resnet_out_scale_factor", json!(1.0)),
            ("resnet_skip_time_act", json!(false)),
            ("time_cond_proj_dim", json!(null)),
            ("time_embedding_act_fn", json!(null)),
            ("time_embedding_dim", json!(null)),
            ("time_embedding_type", json!("positional")),
            ("timestep_post_act", json!(null)),
        ])?;
        options.finish()?;
        Ok(UNetConfig {
            encoder,
            out_channels,
            up_cross_attention,
            up_transformer_layers,
            latent_rgb,
        })
    }

    /// The blocks of each transformer of the expanding half, from the lowest level; None where that cannot be: a level
    /// has another number of them than ResNet blocks, or differs within itself in the contracting half alone.
    fn up_depths(&self) -> Option<Vec<Vec<usize>>> {
        let levels = self.encoder.levels.iter().rev();
        if self.up_transformer_layers.is_empty() {
            let alike = |level: &LevelConfig| {
                let depths = &level.transformer_layers;
                let first = *depths.first()?;
                depths.iter().all(|&depth| depth == first).then(|| vec![first; level.layers + 1])
            };
            return levels.map(alike).collect();
        }
        let depths = &self.up_transformer_layers;
        let fits = depths.len() == levels.len()
            && levels.zip(depths).all(|(level, depths)| depths.len() == level.layers + 1);
        fits.then(|| depths.clone())
    }

    /// What makes a picture of latents, in -1..1: the colour of each channel, and what is added to their sum.
    /// `None` where neither the configuration says it nor the family is one whose latents are known.
    pub fn latent_rgb(&self) -> Option<(Vec<[f32; 3]>, [f32; 3])> {
        // The VAE of Stable Diffusion 1 and 2, as ComfyUI has it.
        const KNOWN: [[f32; 3]; 4] = [
            [0.3512, 0.2297, 0.3227],
            [0.3250, 0.4974, 0.2350],
            [-0.2829, 0.1762, 0.2721],
            [-0.2120, -0.2616, -0.7177],
        ];
        // SDXL's, as ComfyUI has it.
        const XL: ([[f32; 3]; 4], [f32; 3]) = (
            [
                [0.3651, 0.4232, 0.4341],
                [-0.2533, -0.0042, 0.1068],
                [0.1076, 0.1111, -0.0362],
                [-0.3165, -0.2492, -0.2188],
            ],
            [0.1084, -0.0175, -0.0011],
        );
        let own = &self.latent_rgb;
        match own.0.len() {
            0 if self.out_channels == 4 && self.encoder.vector.is_some() => {
                Some((XL.0.to_vec(), XL.1))
            }
            0 if self.out_channels == 4
                && [768, 1024].contains(&self.encoder.cross_attention_dim) =>
            {
                Some((KNOWN.to_vec(), [0.0; 3]))
            }
            0 => None,
            _ => Some(own.clone()),
        }
    }

    /// Whether there is memory for what lies between the layers for latents `x` [B, C, H, W]. On the outermost level,
    /// where the most of it is, there are at least eight tensors of the level's channels at once.
    ///
    /// # Errors
    /// There is not. (What a GPU has, it says itself.)
    fn ask(&self, x: &Tensor) -> Result<()> {
        let (batch, _, height, width) = x.dims4()?;
        if x.device().is_cpu() {
            let channels = 8 * self.encoder.levels[0].channels;
            let what = format_args!("the U-Net, at work on latents of {width} x {height},");
            kosmograph_memory::ask(what, &[batch, channels, height, width], size_of::<f32>())?;
        }
        Ok(())
    }

    /// The paths of all cross-attentions by diffusers' names, in the order in which IP-Adapters number them: those of the contracting
    /// half, of the expanding half, of the middle.
    pub fn cross_attentions(&self) -> Vec<String> {
        let mut paths = Vec::new();
        let mut transformer = |path: String, layers: usize| {
            paths.extend((0..layers).map(|k| cross_attention(&path, k)));
        };
        for (i, level) in self.encoder.levels.iter().enumerate() {
            for (j, layers) in level.transformer_layers.iter().enumerate() {
                if level.cross_attention {
                    transformer(format!("down_blocks.{i}.attentions.{j}"), *layers);
                }
            }
        }
        // A network whose depths cannot be is not loaded.
        for (i, depths) in self.up_depths().unwrap_or_default().iter().enumerate() {
            for (j, layers) in depths.iter().enumerate() {
                if self.up_cross_attention.get(i) == Some(&true) {
                    transformer(format!("up_blocks.{i}.attentions.{j}"), *layers);
                }
            }
        }
        if let MiddleConfig::Transformer { layers } = self.encoder.middle {
            transformer("mid_block.attentions.0".to_owned(), layers);
        }
        paths
    }

    /// The places of its blocks by diffusers' names, as [`Hooks`](crate::stable_diffusion::steering::Hooks) are told them.
    pub fn blocks(&self) -> Vec<String> {
        let mut blocks = Vec::new();
        for (i, level) in self.encoder.levels.iter().enumerate() {
            blocks.extend((0..level.layers).map(|j| format!("down_blocks.{i}.resnets.{j}")));
            if i + 1 < self.encoder.levels.len() {
                blocks.push(format!("down_blocks.{i}.downsamplers.0"));
            }
        }
        if self.encoder.middle != MiddleConfig::Nothing {
            blocks.push("mid_block".to_owned());
        }
        for (i, level) in self.encoder.levels.iter().rev().enumerate() {
            blocks.extend((0..=level.layers).map(|j| format!("up_blocks.{i}.resnets.{j}")));
        }
        // Of each transformer block, whose cross-attention is told by its own name.
        let attentions = self.cross_attentions();
        blocks.extend(
            attentions.iter().filter_map(|path| path.strip_suffix(".attn2")).map(str::to_owned),
        );
        blocks
    }

    /// Options of diffusers' configuration that leave no trace in the shapes of the weights, where they are not the family's: what
    /// a single file has to say of itself.
    pub fn unsaid(&self) -> Option<Value> {
        let encoder = &self.encoder;
        let usual = |channels: usize| match encoder.use_linear_projection {
            true if channels.is_multiple_of(64) => channels / 64,
            true => 1,
            false => 8,
        };
        let is_usual = encoder.norm_num_groups == 32
            && encoder.levels.iter().all(|level| level.heads == usual(level.channels));
        let heads: Vec<usize> = encoder.levels.iter().map(|level| level.heads).collect();
        (!is_usual).then(|| {
            json!({
                "norm_num_groups": encoder.norm_num_groups,
                "attention_head_dim": heads,
            })
        })
    }

    /// Channels of every skip connection, which are the channels of [`Residuals::down`].
    pub fn skip_channels(&self) -> Vec<usize> {
        self.encoder.skip_channels()
    }
}

/// The U-Net.
pub struct UNet {
    encoder: Encoder,
    up_blocks: Vec<UpBlock2D>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    config: UNetConfig,
}

impl UNet {
    /// Reads the tensors that `config` asks for, under diffusers' names.
    ///
    /// # Errors
    /// A tensor is missing, of another shape, or damaged. Call [`Weights::finish`] afterwards to
    /// find those that are too many.
    pub fn load(weights: &Weights, config: &UNetConfig) -> Result<Self> {
        let encoder_config = &config.encoder;
        let encoder = Encoder::load(weights, encoder_config)?;
        let levels = &encoder_config.levels;
        if config.up_cross_attention.len() != levels.len() {
            return Err(Error::UnsupportedConfig {
                file: "the configuration".to_owned(),
                key: "up_cross_attention".to_owned(),
                found: format!("{:?}", config.up_cross_attention),
                supported: format!("one for each of the {} levels", levels.len()),
            });
        }
        let Some(depths) = config.up_depths() else {
            return Err(Error::UnsupportedConfig {
                file: "the configuration".to_owned(),
                key: "reverse_transformer_layers_per_block".to_owned(),
                found: format!("{:?}", config.up_transformer_layers),
                supported: "for each level, from the lowest, one number more than it has layers"
                    .to_owned(),
            });
        };
        let mut skips = encoder_config.skip_channels();
        let mut input = levels[levels.len() - 1].channels;
        let mut up_blocks = Vec::with_capacity(levels.len());
        for (i, level) in levels.iter().rev().enumerate() {
            // The last skip connection of a level below the first is that of the downsampling
            // before it, so each level takes one more than it has layers.
            let mut taken = skips.split_off(skips.len() - (level.layers + 1));
            taken.reverse();
            up_blocks.push(UpBlock2D::load(
                &weights.sub(format!("up_blocks.{i}")),
                input,
                (encoder_config, level),
                (
                    &format!("up_blocks.{i}"),
                    config.up_cross_attention[i].then_some(depths[i].as_slice()),
                ),
                &taken,
                i + 1 < levels.len(),
            )?);
            input = level.channels;
        }
        let (groups, eps) = (encoder_config.norm_num_groups, encoder_config.norm_eps);
        Ok(UNet {
            encoder,
            up_blocks,
            conv_norm_out: GroupNorm::load(&weights.sub("conv_norm_out"), input, groups, eps)?,
            conv_out: Conv2d::load_3x3(&weights.sub("conv_out"), input, config.out_channels)?,
            config: config.clone(),
        })
    }

    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The prediction [B, out_channels, H, W], in f32, for `x` [B, in_channels, H, W] at `timesteps`
    /// ([1] for all, or [B]; integers or f32, 0 ≤ t < the schedule's training steps) with a context
    /// [B, T, cross_attention_dim], or a [`Condition`] where the network takes more. H and W may be any size.
    ///
    /// # Errors
    /// The shapes do not fit the network or each other.
    pub fn forward<'a>(
        &self,
        x: &Tensor,
        timesteps: &Tensor,
        condition: impl Into<Condition<'a>>,
        residuals: Option<&Residuals>,
    ) -> Result<Tensor> {
        self.forward_with(x, timesteps, condition, residuals, &mut |_, _| {})
    }

    /// [`UNet::forward`], with `probe` told of the intermediate results `time_proj`,
    /// `time_embedding`, `add_time_proj`, `add_embedding`, `conv_in`, `down{i}_resnet{j}`, `down{i}_attn{j}`, `down{i}`, `mid` and
    /// `up{i}`.
    ///
    /// # Errors
    /// As [`UNet::forward`].
    pub fn forward_with<'a>(
        &self,
        x: &Tensor,
        timesteps: &Tensor,
        condition: impl Into<Condition<'a>>,
        residuals: Option<&Residuals>,
        probe: &mut Probe,
    ) -> Result<Tensor> {
        self.forward_steered(
            x,
            timesteps,
            condition,
            Steering { residuals, ..Steering::default() },
            probe,
        )
    }

    /// [`UNet::forward_with`] with all that may steer it.
    ///
    /// # Errors
    /// As [`UNet::forward`].
    pub fn forward_steered<'a>(
        &self,
        x: &Tensor,
        timesteps: &Tensor,
        condition: impl Into<Condition<'a>>,
        steering: Steering<'_>,
        probe: &mut Probe,
    ) -> Result<Tensor> {
        let condition = condition.into();
        let encoder = self.encoder.config();
        encoder.check(x, timesteps, &condition)?;
        steering.check(encoder.levels.len(), x.dim(0)?, encoder.cross_attention_dim)?;
        self.config.ask(x)?;
        let activations = self.encoder.activations();
        let (x, context) = (&x.to_dtype(activations)?, &condition.context.to_dtype(activations)?);
        let condition = Condition { context, ..condition };
        let Encoded { mut skips, mid, temb } =
            self.encoder.forward(x, timesteps, &condition, None, &steering, probe)?;
        let mut hidden_states = mid;
        if let Some(residuals) = steering.residuals {
            Residuals::check(residuals, &skips, &hidden_states)?;
            for (skip, residual) in skips.iter_mut().zip(&residuals.down) {
                *skip = kernels::add(skip, &residual.to_dtype(activations)?)?;
            }
            let residual = residuals.mid.to_dtype(activations)?;
            hidden_states = kernels::add(&hidden_states, &residual)?;
        }
        probe("mid", &hidden_states);
        let (extra_tokens, hooks) = (steering.extra_tokens, steering.hooks);
        let context = &Context { text: context, extra_tokens, hooks };
        for (i, block) in self.up_blocks.iter().enumerate() {
            let tape = steering.tape.map(|tape| (i, tape));
            hidden_states = block.forward(&hidden_states, &mut skips, &temb, context, tape)?;
            probe(&format!("up{i}"), &hidden_states);
        }
        let hidden_states = self.conv_norm_out.forward_silu(&hidden_states)?;
        Ok(self.conv_out.forward(&hidden_states)?.to_dtype(DType::F32)?)
    }

    /// The gradients of the scalar `loss`, which `recorded` led to; `blocks` of this U-Net that were not kept are computed
    /// again.
    ///
    /// # Errors
    /// The work was stopped; else only what the tensor library reports.
    pub fn backward(
        &self,
        recorded: Recorded,
        blocks: Option<&Tape>,
        loss: &Tensor,
    ) -> Result<TapeGradients> {
        let Some(blocks) = blocks else { return Ok(recorded.backward(loss)?) };
        let again = |number: usize, given: &[Tensor]| match blocks.place(number)? {
            Place::Up { level, block } => self.up_blocks[level].again(block, given),
            Place::Upsampler { level, size } => self.up_blocks[level].larger(size, given),
            place => self.encoder.again(place, given),
        };
        Ok(recorded.backward_with(loss, &again)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tiny() -> Value {
        json!({
            "block_out_channels": [4, 8], "norm_num_groups": 2, "attention_head_dim": [1, 2],
            "cross_attention_dim": 6, "layers_per_block": 1, "in_channels": 9,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        })
    }

    fn zeros(shape: &[usize]) -> Tensor {
        Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("zeros")
    }

    #[test]
    fn takes_any_number_of_channels_and_odd_sizes() -> Result<()> {
        let unet = UNet::load(&Weights::recording(), &UNetConfig::from_value(&tiny(), "tiny")?)?;
        let (x, context) = (zeros(&[2, 9, 5, 7]), zeros(&[2, 3, 6]));
        let out = unet.forward(&x, &zeros(&[1]), &context, None)?;
        assert_eq!(out.dims(), [2, 4, 5, 7]);
        assert_eq!(unet.config().skip_channels(), [4, 4, 4, 8]);
        Ok(())
    }

    #[test]
    fn a_configuration_is_built_by_hand() -> Result<()> {
        let by_hand = UNetConfig {
            encoder: EncoderConfig {
                in_channels: 9,
                levels: [(4, true, 1), (8, false, 2)]
                    .map(|(channels, cross_attention, heads)| LevelConfig {
                        channels,
                        layers: 1,
                        cross_attention,
                        heads,
                        transformer_layers: vec![1],
                    })
                    .to_vec(),
                cross_attention_dim: 6,
                norm_num_groups: 2,
                ..EncoderConfig::default()
            },
            up_cross_attention: vec![false, true],
            ..UNetConfig::default()
        };
        assert_eq!(by_hand, UNetConfig::from_value(&tiny(), "tiny")?);
        let published = json!({"cross_attention_dim": 768});
        assert_eq!(UNetConfig::default(), UNetConfig::from_value(&published, "SD 1.5's")?);
        // What JSON cannot say by hand is refused as well.
        let refused = |config: UNetConfig, word: &str| {
            let error = UNet::load(&Weights::recording(), &config).err().expect("refused");
            assert!(error.to_string().contains(word), "{error}");
        };
        refused(UNetConfig { up_cross_attention: vec![true], ..by_hand.clone() }, "up_cross");
        let no_levels = EncoderConfig { levels: Vec::new(), ..by_hand.encoder.clone() };
        refused(UNetConfig { encoder: no_levels, ..by_hand.clone() }, "levels");
        let groups = EncoderConfig { norm_num_groups: 3, ..by_hand.encoder.clone() };
        refused(UNetConfig { encoder: groups, ..by_hand }, "norm_num_groups (3)");
        Ok(())
    }

    #[test]
    fn options_that_are_not_supported_are_named() {
        for (key, value) in [
            ("class_embed_type", json!("timestep")),
            ("time_embedding_type", json!("fourier")),
            ("down_block_types", json!(["AttnDownBlock2D", "DownBlock2D"])),
            ("up_block_types", json!(["UpBlock2D"])),
            ("block_out_channels", json!([4, 7])),
            ("layers_per_block", json!(0)),
            ("addition_embed_type", json!("text_image")),
            ("transformer_layers_per_block", json!([1])),
            ("transformer_layers_per_block", json!([[1, 2], 1])),
            ("reverse_transformer_layers_per_block", json!([[1, 1, 1], 1])),
            ("mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn")),
            ("some_new_option", json!("on")),
        ] {
            let mut json = tiny();
            json[key] = value;
            let error = UNetConfig::from_value(&json, "config.json").unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("config.json"), "{error}");
        }
    }

    #[test]
    fn inputs_that_do_not_fit_are_named() -> Result<()> {
        let unet = UNet::load(&Weights::recording(), &UNetConfig::from_value(&tiny(), "tiny")?)?;
        let (x, t, context) = (zeros(&[2, 9, 4, 4]), zeros(&[1]), zeros(&[2, 3, 6]));
        let fails = |x: &Tensor, t: &Tensor, context: &Tensor, part: &str| {
            let error = unet.forward(x, t, context, None).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        fails(&zeros(&[2, 4, 4, 4]), &t, &context, "latents");
        fails(&zeros(&[2, 9, 0, 4]), &t, &context, "latents");
        fails(&x, &t, &zeros(&[2, 3, 5]), "conditioning");
        fails(&x, &t, &zeros(&[1, 3, 6]), "conditioning");
        fails(&x, &zeros(&[3]), &context, "timesteps");
        let residuals = Residuals { down: vec![], mid: zeros(&[2, 8, 2, 2]) };
        let error = unet.forward(&x, &t, &context, Some(&residuals)).unwrap_err().to_string();
        assert!(error.contains("ControlNet"), "{error}");
        Ok(())
    }
}
