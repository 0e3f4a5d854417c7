//! The configuration of a U-Net's contracting half, which its ControlNets share.

use candle_core::Tensor;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::files::diffusers_config::Options;
use crate::stable_diffusion::resnet::ResnetConfig;
use crate::stable_diffusion::transformer2d::Transformer2DConfig;
use crate::stable_diffusion::unet_embeddings::{Condition, VectorConfig};

/// One level of the U-Net, as the contracting half has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LevelConfig {
    /// A multiple of the norms' groups and of the heads; of the first level even, and at least 4.
    pub channels: usize,
    /// ResNet blocks in the contracting half; the expanding half has one more.
    pub layers: usize,
    /// Whether a transformer follows each of them.
    pub cross_attention: bool,
    /// Of its attention; their width follows from the channels.
    pub heads: usize,
    /// Blocks in a row within the transformer behind each ResNet block; as many numbers as `layers`.
    pub transformer_layers: Vec<usize>,
}

/// What stands between the two halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MiddleConfig {
    /// Nothing (KOALA's smaller model).
    Nothing,
    /// One ResNet block (SSD-1B, Vega).
    ResNet,
    /// A transformer of so many blocks between two ResNet blocks.
    Transformer { layers: usize },
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
    pub middle: MiddleConfig,
    /// What it takes beside the context; Stable Diffusion 1 and 2 take nothing.
    pub vector: Option<VectorConfig>,
}

impl Default for EncoderConfig {
    fn default() -> Self {
        let level = |channels, cross_attention| LevelConfig {
            channels,
            layers: 2,
            cross_attention,
            heads: 8,
            transformer_layers: vec![1; 2],
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
            middle: MiddleConfig::Transformer { layers: 1 },
            vector: None,
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
        let transformer_layers = depths(options, "transformer_layers_per_block", &layers)?
            .unwrap_or_else(|| layers.iter().map(|&layers| vec![1; layers]).collect());
        let middle = middle(options, &transformer_layers[blocks - 1])?;
        let cross_attention_dim = options.get_or("cross_attention_dim", 1280usize)?;
        let groups = options.get_or("norm_num_groups", 32usize)?;
        let use_linear_projection = options.get_or("use_linear_projection", false)?;
        options.only(&[
            ("act_fn", json!("silu")),
            ("attention_type", json!("default")),
            ("class_embed_type", json!(null)),
            ("downsample_padding", json!(1)),
            ("encoder_hid_dim", json!(null)),
            ("encoder_hid_dim_type", json!(null)),
            ("mid_block_scale_factor", json!(1)),
            ("num_attention_heads", json!(null)),
            ("num_class_embeds", json!(null)),
            ("only_cross_attention", json!(false)),
            ("resnet_time_scale_shift", json!("default")),
        ])?;
        // A question of half precision only: here attention computes in f32 anyway.
        let _: bool = options.get_or("upcast_attention", false)?;
        let vector = vector(options, cross_attention_dim)?;
        let levels = transformer_layers
            .into_iter()
            .enumerate()
            .map(|(i, transformer_layers)| LevelConfig {
                channels: channels[i],
                layers: layers[i],
                cross_attention: cross_attention[i],
                heads: heads[i],
                transformer_layers,
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
            middle,
            vector,
        };
        match config.problem() {
            Some(wanted) => Err(options.unsupported("block_out_channels", &wanted)),
            None => Ok(config),
        }
    }

    /// The family of models that it is of, as "describe/1" calls it.
    pub fn family(&self) -> &'static str {
        match self.vector {
            Some(VectorConfig { sizes: 5, .. }) => "sdxl-refiner",
            Some(_) => "sdxl",
            None => "stable-diffusion-1",
        }
    }

    /// What would be right where the levels' channels cannot be.
    pub(crate) fn problem(&self) -> Option<String> {
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
        if self.levels.iter().any(|level| level.transformer_layers.len() != level.layers) {
            return Some("levels with a number of transformer blocks for each layer".to_owned());
        }
        match self.levels.first() {
            None => Some("at least one".to_owned()),
            Some(first) if first.channels % 2 != 0 || first.channels < 4 => {
                Some("an even first one, at least 4".to_owned())
            }
            Some(_) => None,
        }
    }

    /// A transformer of a level, of so many blocks.
    pub(crate) fn transformer(&self, level: &LevelConfig, layers: usize) -> Transformer2DConfig {
        Transformer2DConfig {
            channels: level.channels,
            heads: level.heads,
            layers,
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

    /// Do `x` [B, in_channels, H, W], `timesteps` [1] or [B] and `condition`
    /// (its context [B, T, cross_attention_dim]) fit this network and each other?
    pub(crate) fn check(
        &self,
        x: &Tensor,
        timesteps: &Tensor,
        condition: &Condition<'_>,
    ) -> Result<()> {
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
        match condition.context.dims() {
            [rows, _, width] if *rows == batch && *width == self.cross_attention_dim => {}
            shape => {
                return complain(format!(
                    "the conditioning is {shape:?}, the network takes [{batch}, tokens, {}]: it was \
                     encoded for another model, or for another number of pictures",
                    self.cross_attention_dim
                ));
            }
        }
        if let Some(vector) = &self.vector {
            vector.check(condition, batch)?;
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

/// An option that says for each level how many blocks its transformers have: one number for all, or a list of a
/// number, or of a list of one for each layer, for each level. None where it is left out.
pub(crate) fn depths(
    options: &mut Options,
    key: &'static str,
    layers: &[usize],
) -> Result<Option<Vec<Vec<usize>>>> {
    /// Of a transformer; there are 10 in the deepest that people have.
    const MOST: u64 = 256;
    let given = match options.get_or(key, Value::Null)? {
        Value::Null => return Ok(None),
        Value::Array(list) => list,
        one => vec![one; layers.len()],
    };
    let number = |value: &Value| value.as_u64().filter(|&n| n <= MOST).map(|n| n as usize);
    let level = |(value, &layers): (&Value, &usize)| match value {
        Value::Array(list) if list.len() == layers => list.iter().map(number).collect(),
        one => number(one).map(|one| vec![one; layers]),
    };
    let depths: Option<Vec<Vec<usize>>> = given.iter().zip(layers).map(level).collect();
    match depths.filter(|_| given.len() == layers.len()) {
        Some(depths) => Ok(Some(depths)),
        None => {
            let wanted = format!(
                "a number of at most {MOST}, or a list with one, or one for each layer, for each of the {} \
                 levels",
                layers.len()
            );
            Err(options.unsupported(key, &wanted))
        }
    }
}

/// The middle block; where it has a transformer, that has as many blocks as those of the lowest level, unless our
/// own option "mid_block_transformer_layers" says otherwise (diffusers cannot say it).
fn middle(options: &mut Options, lowest: &[usize]) -> Result<MiddleConfig> {
    // diffusers tells a middle that is null from one that is left out.
    let kinds = ["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"];
    let layers = options.get_or("mid_block_transformer_layers", lowest[0])?;
    match options.given("mid_block_type") {
        None => Ok(MiddleConfig::Transformer { layers }),
        Some(Value::Null) => Ok(MiddleConfig::Nothing),
        Some(kind) if kind == kinds[0] => Ok(MiddleConfig::Transformer { layers }),
        Some(kind) if kind == kinds[1] => Ok(MiddleConfig::ResNet),
        Some(_) => {
            Err(options.unsupported("mid_block_type", &format!("{} and {}", kinds[0], kinds[1])))
        }
    }
}

/// The vector's shape. How many sizes there are stands nowhere in diffusers' configuration: the refiner, whose
/// pooled vector is as wide as its context, has 5.
fn vector(options: &mut Options, context: usize) -> Result<Option<VectorConfig>> {
    let kind: Option<String> = options.get_or("addition_embed_type", None)?;
    let size_features = options.get_or("addition_time_embed_dim", 256usize)?;
    let width = options.get_or("projection_class_embeddings_input_dim", 2816usize)?;
    match kind.as_deref() {
        None => return Ok(None),
        Some("text_time") => {}
        Some(_) => return Err(options.unsupported("addition_embed_type", "text_time")),
    }
    if size_features % 2 != 0 || size_features < 4 {
        return Err(options.unsupported("addition_time_embed_dim", "an even number, at least 4"));
    }
    let sizes = if width == context + 5 * size_features { 5 } else { 6 };
    if width <= sizes * size_features {
        let wanted = format!("more than {sizes} times addition_time_embed_dim ({size_features})");
        return Err(options.unsupported("projection_class_embeddings_input_dim", &wanted));
    }
    Ok(Some(VectorConfig { width, size_features, sizes }))
}
