//! The contracting half of Stable Diffusion's U-Net, which ControlNet copies, and the expanding
//! blocks that follow it. Field names are diffusers' checkpoint names.

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use kosmograph_kernels as kernels;

use crate::error::{Error, Result};
use crate::files::weights::Weights;
use crate::stable_diffusion::recompute::{Place, Tape};
use crate::stable_diffusion::resnet::{Conv2d, ResnetBlock2D, Upsample2D};
use crate::stable_diffusion::shared_rows::{period, repeated};
use crate::stable_diffusion::steering::{Context, Edge, Steering};
use crate::stable_diffusion::transformer2d::Transformer2D;
use crate::stable_diffusion::unet_config::{EncoderConfig, LevelConfig, MiddleConfig};
use crate::stable_diffusion::unet_embeddings::{Condition, TimestepEmbedding, time_proj};

/// Told of intermediate results by name, to compare an implementation stage by stage.
pub type Probe<'a> = dyn FnMut(&str, &Tensor) + 'a;

/// What a ControlNet looks at besides.
pub(crate) struct Hint<'a> {
    /// [B, C₀, H, W], added to what `conv_in` makes of the latents.
    pub(crate) embedding: &'a Tensor,
    /// [1 or B, 4·C₀], added to the time embedding.
    pub(crate) time: Option<&'a Tensor>,
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

        // Rows that are the same are computed once, up to the first transformer, where they read their texts.
        let rows = x.dim(0)?;
        let shared = match steering.hooks.is_none()
            && steering.features.is_empty()
            && steering.tape.is_none()
        {
            true => match &hint {
                Some(Hint { embedding, .. }) => period(&[x, &temb, embedding])?,
                None => period(&[x, &temb])?,
            },
            false => rows,
        };
        let shared_temb = temb.narrow(0, 0, shared)?;
        let mut hidden_states = self.conv_in.forward(&x.narrow(0, 0, shared)?)?;
        probe("conv_in", &hidden_states);
        if let Some(Hint { embedding, .. }) = hint {
            hidden_states = (hidden_states + embedding.narrow(0, 0, shared)?)?;
        }
        let mut skips = vec![hidden_states.clone()];
        for (i, block) in self.down_blocks.iter().enumerate() {
            let name = format!("down_blocks.{i}");
            for (j, resnet) in block.resnets.iter().enumerate() {
                if let Some(tape) = steering.tape {
                    let place = Place::Down { level: i, block: j };
                    let given = [&hidden_states, &temb, condition.context];
                    hidden_states = tape.block(place, &given, |given| self.again(place, given))?;
                    skips.push(hidden_states.clone());
                    continue;
                }
                let path = format!("{name}.resnets.{j}");
                hidden_states = steering.at_block(Edge::Input, &path, hidden_states)?;
                let temb = if hidden_states.dim(0)? == rows { &temb } else { &shared_temb };
                hidden_states = resnet.forward(&hidden_states, Some(temb))?;
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
                hidden_states = steering.at_block(Edge::Below, &path, hidden_states)?;
            }
            let path = format!("{name}.downsamplers.0");
            if let Some(downsampler) = &block.downsampler {
                hidden_states = match steering.tape {
                    Some(tape) => {
                        tape.block(Place::Downsampler { level: i }, &[&hidden_states], |given| {
                            self.again(Place::Downsampler { level: i }, given)
                        })?
                    }
                    None => downsampler.forward(&hidden_states)?,
                };
                hidden_states = steering.at_block(Edge::Output, &path, hidden_states)?;
                skips.push(hidden_states.clone());
            }
            if block.attentions.is_empty() && steering.has_feature(&name) {
                hidden_states = steering.with_feature(&name, hidden_states)?;
                if let Some(last) = skips.last_mut() {
                    last.clone_from(&hidden_states);
                }
            }
            if block.downsampler.is_some() {
                hidden_states = steering.at_block(Edge::Below, &path, hidden_states)?;
            }
            probe(&format!("down{i}"), &hidden_states);
        }
        let hidden_states = repeated(&hidden_states, rows)?;
        for skip in &mut skips {
            *skip = repeated(skip, rows)?;
        }
        let mid = match (&self.mid_block, steering.tape) {
            (Some(_), Some(tape)) => {
                let given = [&hidden_states, &temb, condition.context];
                tape.block(Place::Middle, &given, |given| self.again(Place::Middle, given))?
            }
            (Some(block), None) => {
                let x = steering.at_block(Edge::Input, "mid_block", hidden_states)?;
                let mid = block.forward(&x, &temb, context)?;
                steering.at_block(Edge::Output, "mid_block", mid)?
            }
            (None, _) => hidden_states,
        };
        let mid = steering.with_feature("mid_block", mid)?;
        Ok(Encoded { skips, mid, temb })
    }

    /// What the block at `place` of this half makes of its input, the time embedding after its SiLU and the context.
    pub(crate) fn again(&self, place: Place, given: &[Tensor]) -> CandleResult<Tensor> {
        if let (Place::Downsampler { level }, [x]) = (place, given)
            && let Some(downsampler) = &self.down_blocks[level].downsampler
        {
            return downsampler.forward(x);
        }
        let [x, temb, text] = given else {
            candle_core::bail!("a block is given {} tensors instead of 3", given.len())
        };
        let context = &Context::from(text);
        match (place, &self.mid_block) {
            (Place::Down { level, block }, _) => {
                let DownBlock2D { resnets, attentions, .. } = &self.down_blocks[level];
                let x = resnets[block].forward(x, Some(temb))?;
                match attentions.get(block) {
                    Some(attention) => attention.forward(&x, context),
                    None => Ok(x),
                }
            }
            (Place::Middle, Some(middle)) => middle.forward(x, temb, context),
            _ => candle_core::bail!("{place:?} is no block of the contracting half"),
        }
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

    /// What ResNet block `block` and the transformer behind it make of what comes from below, the skip connection, the
    /// time embedding after its SiLU and the context.
    pub(crate) fn again(&self, block: usize, given: &[Tensor]) -> CandleResult<Tensor> {
        let [x, skip, temb, text] = given else {
            candle_core::bail!("a block is given {} tensors instead of 4", given.len())
        };
        let x = self.resnets[block].forward(&kernels::join_channels(x, skip)?, Some(temb))?;
        match self.attentions.get(block) {
            Some(attention) => attention.forward(&x, &Context::from(text)),
            None => Ok(x),
        }
    }

    /// What its upsampler makes of its result.
    pub(crate) fn larger(
        &self,
        (height, width): (usize, usize),
        given: &[Tensor],
    ) -> CandleResult<Tensor> {
        match (&self.upsampler, given) {
            (Some(upsampler), [x]) => upsampler.forward(x, height, width),
            _ => candle_core::bail!("this level of the U-Net has no upsampler"),
        }
    }

    /// Takes its skip connections off the end of `skips`. `tape` has the number of this level.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        skips: &mut Vec<Tensor>,
        temb: &Tensor,
        context: &Context<'_>,
        tape: Option<(usize, &Tape)>,
    ) -> CandleResult<Tensor> {
        let mut hidden_states = x.clone();
        for (j, resnet) in self.resnets.iter().enumerate() {
            let Some(mut skip) = skips.pop() else {
                candle_core::bail!("the U-Net's halves differ in their number of skip connections")
            };
            if let Some((level, tape)) = tape {
                let place = Place::Up { level, block: j };
                let given = [&hidden_states, &skip, temb, context.text];
                hidden_states = tape.block(place, &given, |given| self.again(j, given))?;
                continue;
            }
            let path = format!("{}.resnets.{j}", self.path);
            if let Some(hooks) = context.hooks {
                hidden_states = hooks.block(Edge::Input, &path, hidden_states)?;
                (hidden_states, skip) = hooks.skip(&path, hidden_states, skip)?;
            }
            hidden_states = kernels::join_channels(&hidden_states, &skip)?;
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
                match tape {
                    Some((level, tape)) => {
                        let place = Place::Upsampler { level, size: (height, width) };
                        tape.block(place, &[&hidden_states], |given| {
                            self.larger((height, width), given)
                        })
                    }
                    None => upsampler.forward(&hidden_states, height, width),
                }
            }
            _ => Ok(hidden_states),
        }
    }
}
