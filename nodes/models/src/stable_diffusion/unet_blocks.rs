//! The contracting half of Stable Diffusion's U-Net, which ControlNet copies, and the expanding
//! blocks that follow it. Field names are diffusers' checkpoint names.

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use kosmograph_kernels as kernels;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::files::diffusers_config::Options;
use crate::files::weights::Weights;
use crate::layers::Linear;
use crate::stable_diffusion::resnet::{Conv2d, ResnetBlock2D, ResnetConfig, Upsample2D};
use crate::stable_diffusion::steering::{Context, Edge, Steering};
use crate::stable_diffusion::transformer2d::{Transformer2D, Transformer2DConfig};

/// Told of intermediate results by name, to compare an implementation stage by stage.
pub type Probe<'a> = dyn FnMut(&str, &Tensor) + 'a;

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

/// The vector that SDXL's U-Nets take beside the context: the text's pooled vector, and features of the
/// picture's sizes. Podell et al., "SDXL", arXiv 2307.01952, §2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorConfig {
    /// Its numbers: 2816 for SDXL, 2560 for the refiner.
    pub width: usize,
    /// Features of each size; even.
    pub size_features: usize,
    /// How many sizes there are: 6, or the refiner's 5.
    pub sizes: usize,
}

impl VectorConfig {
    /// The width of the text's pooled vector.
    pub fn pooled(&self) -> usize {
        self.width - self.sizes * self.size_features
    }
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

impl VectorConfig {
    /// The features of `sizes` [B, S], in rows: [B · S, size_features].
    fn features(&self, sizes: &Tensor, flip: bool, freq_shift: f64) -> CandleResult<Tensor> {
        time_proj(&sizes.flatten_all()?, self.size_features, flip, freq_shift)
    }

    /// The vector [B, width] of `pooled` [B or 1, P] and `sizes` [B or 1, S]; the features are [cos ‖ sin] or, without
    /// `flip`, [sin ‖ cos].
    ///
    /// # Errors
    /// The rows do not fit each other.
    pub fn vector(
        &self,
        pooled: &Tensor,
        sizes: &Tensor,
        flip: bool,
        freq_shift: f64,
    ) -> CandleResult<Tensor> {
        let features = self.features(sizes, flip, freq_shift)?.reshape((sizes.dim(0)?, ()))?;
        let rows = pooled.dim(0)?.max(sizes.dim(0)?);
        let spread = |tensor: &Tensor| tensor.broadcast_as((rows, tensor.dim(1)?));
        Tensor::cat(&[spread(&pooled.to_dtype(DType::F32)?)?, spread(&features)?], 1)
    }

    /// Does `condition` have what the vector is made of, for `batch` rows?
    fn check(&self, condition: &Condition<'_>, batch: usize) -> Result<()> {
        let part = |tensor: Option<&Tensor>, width: usize, what: &str| {
            let found = match tensor.map(Tensor::dims) {
                Some([rows, found]) if *found == width && (*rows == batch || *rows == 1) => {
                    return Ok(());
                }
                Some(found) => format!("is {found:?}"),
                None => "is missing".to_owned(),
            };
            Err(Error::Input(format!(
                "the conditioning's {what} {found}, the network takes [{batch}, {width}]: it was encoded \
                 for another model"
            )))
        };
        part(condition.pooled, self.pooled(), "pooled vector")?;
        part(condition.sizes, self.sizes, "list of sizes")
    }
}

/// What a U-Net draws after.
#[derive(Clone, Copy, Debug)]
pub struct Condition<'a> {
    /// [B, T, D].
    pub context: &'a Tensor,
    /// The text's pooled vector [B, P] or [1, P], where the network takes one (SDXL).
    pub pooled: Option<&'a Tensor>,
    /// As they are in pixels, [B, S] or [1, S]: height and width of the original, top and left of the crop, height
    /// and width of the target; of SDXL's refiner the aesthetic score instead of the target.
    pub sizes: Option<&'a Tensor>,
}

impl<'a> From<&'a Tensor> for Condition<'a> {
    /// A context alone, as Stable Diffusion 1 and 2 take it.
    fn from(context: &'a Tensor) -> Self {
        Condition { context, pooled: None, sizes: None }
    }
}

/// What a ControlNet looks at besides.
pub(crate) struct Hint<'a> {
    /// [B, C₀, H, W], added to what `conv_in` makes of the latents.
    pub(crate) embedding: &'a Tensor,
    /// [1 or B, 4·C₀], added to the time embedding.
    pub(crate) time: Option<&'a Tensor>,
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

/// Two linear layers with a SiLU between them: of the sinusoidal features of the timestep, or of the vector.
pub(crate) struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    pub(crate) fn load(weights: &Weights, input: usize, output: usize) -> Result<Self> {
        Ok(TimestepEmbedding {
            linear_1: Linear::load(&weights.sub("linear_1"), input, output)?,
            linear_2: Linear::load(&weights.sub("linear_2"), output, output)?,
        })
    }

    /// [B, input] → [B, output].
    pub(crate) fn forward(&self, features: &Tensor) -> CandleResult<Tensor> {
        self.linear_2.forward(&kernels::silu(&self.linear_1.forward(features)?)?)
    }
}

/// [B] → [B, dim]: cos and sin of t · 10000^(−i / (dim/2 − freq_shift)).
pub(crate) fn time_proj(
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

/// The middle block: a ResNet block, and behind it, in most, a transformer and another one.
struct MidBlock {
    resnet: ResnetBlock2D,
    attention: Option<(Transformer2D, ResnetBlock2D)>,
}

impl MidBlock {
    fn load(weights: &Weights, config: &EncoderConfig) -> Result<Option<Self>> {
        let last = &config.levels[config.levels.len() - 1];
        let resnet = |j: usize| {
            let weights = weights.sub(format!("resnets.{j}"));
            ResnetBlock2D::load(&weights, last.channels, last.channels, config.resnet())
        };
        let attention = match config.middle {
            MiddleConfig::Nothing => return Ok(None),
            MiddleConfig::ResNet => None,
            MiddleConfig::Transformer { layers } => {
                let config = config.transformer(last, layers);
                let transformer = Transformer2D::load(&weights.sub("attentions.0"), config)?;
                Some((transformer.at("mid_block.attentions.0"), resnet(1)?))
            }
        };
        Ok(Some(MidBlock { resnet: resnet(0)?, attention }))
    }

    fn forward(&self, x: &Tensor, temb: &Tensor, context: &Context<'_>) -> CandleResult<Tensor> {
        let x = self.resnet.forward(x, Some(temb))?;
        match &self.attention {
            Some((transformer, resnet)) => {
                resnet.forward(&transformer.forward(&x, context)?, Some(temb))
            }
            None => Ok(x),
        }
    }
}

/// Everything of a U-Net down to and including its middle block.
pub(crate) struct Encoder {
    conv_in: Conv2d,
    time_embedding: TimestepEmbedding,
    add_embedding: Option<TimestepEmbedding>,
    down_blocks: Vec<DownBlock2D>,
    mid_block: Option<MidBlock>,
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
        let embedding = |name: &str, input: usize| {
            TimestepEmbedding::load(&weights.sub(name), input, resnet.time_embedding)
        };
        let time_embedding = embedding("time_embedding", first)?;
        let add_embedding = match config.vector {
            Some(vector) => Some(embedding("add_embedding", vector.width)?),
            None => None,
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
                    let config = config.transformer(level, level.transformer_layers[j]);
                    let transformer = Transformer2D::load(&weights, config)?;
                    block
                        .attentions
                        .push(transformer.at(&format!("down_blocks.{i}.attentions.{j}")));
                }
            }
            if i + 1 < config.levels.len() {
                let weights = weights.sub("downsamplers.0.conv");
                block.downsampler =
                    Some(Conv2d::load(&weights, level.channels, level.channels, 3, 2, 1)?);
            }
            down_blocks.push(block);
        }
        Ok(Encoder {
            conv_in: Conv2d::load_3x3(&weights.sub("conv_in"), config.in_channels, first)?,
            time_embedding,
            add_embedding,
            down_blocks,
            mid_block: MidBlock::load(&weights.sub("mid_block"), config)?,
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

    /// `x` [B, in_channels, H, W], `timesteps` [1] or [B], the condition's context [B, T, D]. x, context and hint
    /// in the type of the activations.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        timesteps: &Tensor,
        condition: &Condition<'_>,
        hint: Option<Hint<'_>>,
        steering: &Steering<'_>,
        probe: &mut Probe,
    ) -> CandleResult<Encoded> {
        let EncoderConfig { flip_sin_to_cos, freq_shift, .. } = self.config;
        let timesteps = timesteps.to_device(x.device())?.broadcast_as(x.dim(0)?)?;
        let time_features =
            time_proj(&timesteps, self.config.levels[0].channels, flip_sin_to_cos, freq_shift)?;
        probe("time_proj", &time_features);
        let mut temb = self.time_embedding.forward(&time_features.to_dtype(self.activations())?)?;
        probe("time_embedding", &temb);
        if let Some(added) = self.added(condition, x.device(), probe)? {
            temb = temb.broadcast_add(&added)?;
        }
        if let Some(Hint { time: Some(added), .. }) = &hint {
            temb = temb.broadcast_add(added)?;
        }
        let (extra_tokens, hooks) = (steering.extra_tokens, steering.hooks);
        let context = &Context { text: condition.context, extra_tokens, hooks };
        let temb = kernels::silu(&temb)?;

        let mut hidden_states = self.conv_in.forward(x)?;
        probe("conv_in", &hidden_states);
        if let Some(Hint { embedding, .. }) = hint {
            hidden_states = (hidden_states + embedding)?;
        }
        let mut skips = vec![hidden_states.clone()];
        for (i, block) in self.down_blocks.iter().enumerate() {
            let name = format!("down_blocks.{i}");
            for (j, resnet) in block.resnets.iter().enumerate() {
                let path = format!("{name}.resnets.{j}");
                hidden_states = steering.at_block(Edge::Input, &path, hidden_states)?;
                hidden_states = resnet.forward(&hidden_states, Some(&temb))?;
                probe(&format!("down{i}_resnet{j}"), &hidden_states);
                if let Some(attention) = block.attentions.get(j) {
                    hidden_states = attention.forward(&hidden_states, context)?;
                    probe(&format!("down{i}_attn{j}"), &hidden_states);
                    if j + 1 == block.attentions.len() {
                        hidden_states = steering.with_feature(&name, hidden_states)?;
                    }
                }
                hidden_states = steering.at_block(Edge::Output, &path, hidden_states)?;
                skips.push(hidden_states.clone());
            }
            if let Some(downsampler) = &block.downsampler {
                hidden_states = downsampler.forward(&hidden_states)?;
                skips.push(hidden_states.clone());
            }
            if block.attentions.is_empty() {
                hidden_states = steering.with_feature(&name, hidden_states)?;
                if let Some(last) = skips.last_mut() {
                    last.clone_from(&hidden_states);
                }
            }
            probe(&format!("down{i}"), &hidden_states);
        }
        let mid = match &self.mid_block {
            Some(block) => {
                let x = steering.at_block(Edge::Input, "mid_block", hidden_states)?;
                let mid = block.forward(&x, &temb, context)?;
                steering.at_block(Edge::Output, "mid_block", mid)?
            }
            None => hidden_states,
        };
        let mid = steering.with_feature("mid_block", mid)?;
        Ok(Encoded { skips, mid, temb })
    }

    /// What the vector adds to the time embedding, [B or 1, 4·C₀].
    fn added(
        &self,
        condition: &Condition<'_>,
        device: &Device,
        probe: &mut Probe,
    ) -> CandleResult<Option<Tensor>> {
        let (
            Some(embedding),
            Some(vector),
            Condition { pooled: Some(pooled), sizes: Some(sizes), .. },
        ) = (&self.add_embedding, &self.config.vector, condition)
        else {
            return Ok(None);
        };
        let EncoderConfig { flip_sin_to_cos, freq_shift, .. } = self.config;
        let (pooled, sizes) = (pooled.to_device(device)?, sizes.to_device(device)?);
        probe("add_time_proj", &vector.features(&sizes, flip_sin_to_cos, freq_shift)?);
        let vector = vector.vector(&pooled, &sizes, flip_sin_to_cos, freq_shift)?;
        let added = embedding.forward(&vector.to_dtype(self.activations())?)?;
        probe("add_embedding", &added);
        Ok(Some(added))
    }
}

/// A level of the expanding half; every ResNet block takes one skip connection.
pub(crate) struct UpBlock2D {
    path: String,
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
        // The level's path, and for each ResNet block, how many blocks the transformer behind it has; None where
        // there is none.
        (path, transformers): (&str, Option<&[usize]>),
        skips: &[usize],
        upsamples: bool,
    ) -> Result<Self> {
        let mut block = UpBlock2D {
            path: path.to_owned(),
            resnets: Vec::new(),
            attentions: Vec::new(),
            upsampler: None,
        };
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
            if let Some(layers) = transformers {
                let weights = weights.sub(format!("attentions.{j}"));
                let config = config.transformer(level, layers[j]);
                let transformer = Transformer2D::load(&weights, config)?;
                block.attentions.push(transformer.at(&format!("{path}.attentions.{j}")));
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
        context: &Context<'_>,
    ) -> CandleResult<Tensor> {
        let mut hidden_states = x.clone();
        for (j, resnet) in self.resnets.iter().enumerate() {
            let Some(mut skip) = skips.pop() else {
                candle_core::bail!("the U-Net's halves differ in their number of skip connections")
            };
            let path = format!("{}.resnets.{j}", self.path);
            if let Some(hooks) = context.hooks {
                hidden_states = hooks.block(Edge::Input, &path, hidden_states)?;
                (hidden_states, skip) = hooks.skip(&path, hidden_states, skip)?;
            }
            hidden_states = Tensor::cat(&[hidden_states, skip], 1)?;
            hidden_states = resnet.forward(&hidden_states, Some(temb))?;
            if let Some(attention) = self.attentions.get(j) {
                hidden_states = attention.forward(&hidden_states, context)?;
            }
            if let Some(hooks) = context.hooks {
                hidden_states = hooks.block(Edge::Output, &path, hidden_states)?;
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
