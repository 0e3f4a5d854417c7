//! Stable Diffusion's autoencoder: pictures [B, 3, H, W] in −1..1 ⇄ latents [B, 4, H/8, W/8].
//!
//! Rombach et al., arXiv 2112.10752, §3.1; computed as diffusers' `AutoencoderKL` does. Latents
//! here are the autoencoder's own; a U-Net sees them times [`VaeConfig::scaling_factor`].

use candle_core::{DType, Result as CandleResult, Tensor};
use kosmograph_kernels as kernels;
use kosmograph_kernels::bounds::between;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::files::diffusers_config::Options;
use crate::files::python_json::parse;
use crate::files::weights::{Weight, Weights};
use crate::stable_diffusion::resnet::{Conv2d, GroupNorm, ResnetBlock2D, ResnetConfig, Upsample2D};
use crate::stable_diffusion::tiles::{Tiling, tiled};

/// ε of every GroupNorm.
const EPS: f64 = 1e-6;

/// `config.json` of an `AutoencoderKL`.
#[derive(Clone, Debug)]
pub struct VaeConfig {
    in_channels: usize,
    out_channels: usize,
    block_out_channels: Vec<usize>,
    layers_per_block: usize,
    latent_channels: usize,
    norm_num_groups: usize,
    scaling_factor: f64,
    use_quant_conv: bool,
    use_post_quant_conv: bool,
    mid_block_add_attention: bool,
}

impl VaeConfig {
    /// As [`crate::stable_diffusion::unet::UNetConfig::unsaid`].
    pub fn unsaid(&self) -> Option<Value> {
        let is_usual = self.norm_num_groups == 32 && self.scaling_factor == 0.18215;
        (!is_usual).then(|| {
            json!({
                "norm_num_groups": self.norm_num_groups,
                "scaling_factor": self.scaling_factor,
            })
        })
    }

    /// Reads the JSON text; `file` is what errors call it.
    ///
    /// # Errors
    /// The text is not JSON, or an option is not supported or not known; the error names it.
    pub fn from_json(text: &str, file: &str) -> Result<Self> {
        VaeConfig::from_value(&parse(text, file)?, file)
    }

    /// As [`VaeConfig::from_json`], from JSON that is parsed already.
    ///
    /// # Errors
    /// As [`VaeConfig::from_json`].
    pub fn from_value(json: &Value, file: &str) -> Result<Self> {
        let mut options = Options::new(json, file)?;
        let block_out_channels: Vec<usize> = options.get_or("block_out_channels", vec![64])?;
        let norm_num_groups = options.get_or("norm_num_groups", 32usize)?;
        if block_out_channels.is_empty()
            || block_out_channels
                .iter()
                .any(|c| *c == 0 || c.checked_rem(norm_num_groups) != Some(0))
        {
            let supported = format!("multiples of norm_num_groups ({norm_num_groups})");
            return Err(options.unsupported("block_out_channels", &supported));
        }
        for (key, block) in
            [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")]
        {
            let types: Vec<String> =
                options.get_or(key, vec![block.to_owned(); block_out_channels.len()])?;
            if types.len() != block_out_channels.len() || types.iter().any(|t| t != block) {
                return Err(options
                    .unsupported(key, &format!("{block}, one for each of `block_out_channels`")));
            }
        }
        options.only(&[
            ("act_fn", json!("silu")),
            ("shift_factor", json!(null)),
            ("latents_mean", json!(null)),
            ("latents_std", json!(null)),
        ])?;
        let config = VaeConfig {
            in_channels: options.get_or("in_channels", 3)?,
            out_channels: options.get_or("out_channels", 3)?,
            block_out_channels,
            layers_per_block: options.get_or("layers_per_block", 1)?,
            latent_channels: options.get_or("latent_channels", 4)?,
            norm_num_groups,
            scaling_factor: options.get_or("scaling_factor", 0.18215)?,
            use_quant_conv: options.get_or("use_quant_conv", true)?,
            use_post_quant_conv: options.get_or("use_post_quant_conv", true)?,
            mid_block_add_attention: options.get_or("mid_block_add_attention", true)?,
        };
        options.finish()?;
        Ok(config)
    }

    /// What latents are multiplied by before a U-Net sees them: 0.18215 for SD 1.5.
    pub fn scaling_factor(&self) -> f64 {
        self.scaling_factor
    }

    pub fn latent_channels(&self) -> usize {
        self.latent_channels
    }

    /// How many pixels there are to a latent pixel, along each edge: 8 for SD 1.5.
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// What lies between the layers at most, in bytes, while `height` × `width` pixels of one picture are decoded or encoded
    /// at once on the CPU. That is where the outermost level begins, at full size: what comes up to it from the level below and its
    /// normalised copy, with two tensors of its own channels.
    pub fn work_bytes(&self, height: usize, width: usize) -> u64 {
        let own = self.block_out_channels[0];
        let below = self.block_out_channels.get(1).map_or(own, |&below| below.max(own));
        let channels = (2 * below).saturating_add(2 * own);
        let sides = [height, width, channels, size_of::<f32>()];
        sides.iter().fold(1, |bytes: u64, &side| bytes.saturating_mul(side as u64))
    }

    fn resnet(&self) -> ResnetConfig {
        ResnetConfig { groups: self.norm_num_groups, eps: EPS, time_embedding: 0 }
    }
}

/// What the encoder believes of the latents: a normal distribution for every value.
#[derive(Clone, Debug)]
pub struct Posterior {
    mean: Tensor,
    logvar: Tensor,
}

impl Posterior {
    fn from_moments(moments: &Tensor) -> CandleResult<Self> {
        let channels = moments.dim(1)? / 2;
        Ok(Posterior {
            mean: moments.narrow(1, 0, channels)?.contiguous()?,
            logvar: between(&moments.narrow(1, channels, channels)?, -30.0, 20.0)?,
        })
    }

    /// [B, latent_channels, h, w].
    pub fn mean(&self) -> &Tensor {
        &self.mean
    }

    /// The likeliest latents, which are the mean.
    pub fn mode(&self) -> &Tensor {
        &self.mean
    }

    /// Logarithm of the variance, within −30..20.
    pub fn logvar(&self) -> &Tensor {
        &self.logvar
    }

    /// Standard deviation.
    ///
    /// # Errors
    /// Only what the tensor library reports.
    pub fn std(&self) -> Result<Tensor> {
        Ok((&self.logvar * 0.5)?.exp()?)
    }

    /// mean + std · `noise`, the noise of the mean's shape and standard normal.
    ///
    /// # Errors
    /// The noise has another shape.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        Ok((&self.mean + (self.std()? * noise)?)?)
    }
}

/// Self-attention of all pixels, one head.
struct Attention {
    group_norm: GroupNorm,
    to_q: Projection,
    to_k: Projection,
    to_v: Projection,
    to_out: Projection,
}

impl Attention {
    fn load(weights: &Weights, channels: usize, groups: usize) -> Result<Self> {
        // Checkpoints before diffusers 0.14 have the second names.
        let projection = |name: &str, old_name: &str| {
            let is_old = !weights.has(name) && weights.has(old_name);
            Projection::load(&weights.sub(if is_old { old_name } else { name }), channels)
        };
        Ok(Attention {
            group_norm: GroupNorm::load(&weights.sub("group_norm"), channels, groups, EPS)?,
            to_q: projection("to_q", "query")?,
            to_k: projection("to_k", "key")?,
            to_v: projection("to_v", "value")?,
            to_out: projection("to_out.0", "proj_attn")?,
        })
    }

    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let (batch, channels, height, width) = x.dims4()?;
        let pixels = kernels::transpose(&self.group_norm.forward(x)?.flatten_from(2)?)?;
        let head = |projection: &Projection| projection.forward(&pixels)?.unsqueeze(1);
        let (q, k, v) = (head(&self.to_q)?, head(&self.to_k)?, head(&self.to_v)?);
        let attended = kernels::attention(&q, &k, &v, None, (channels as f64).powf(-0.5))?;
        let y = kernels::transpose(&self.to_out.forward(&attended.squeeze(1)?)?)?;
        kernels::add(x, &y.reshape((batch, channels, height, width))?)
    }
}

/// A linear layer over channels; some files keep it as a 1 × 1 convolution.
struct Projection {
    weight: Weight,
    bias: Tensor,
}

impl Projection {
    fn load(weights: &Weights, channels: usize) -> Result<Self> {
        let weight = match weights.shape("weight") {
            Some(shape) if shape.len() == 4 => weights
                .get_weight("weight", (channels, channels, 1, 1))?
                .reshape((channels, channels))?,
            _ => weights.get_weight("weight", (channels, channels))?,
        };
        Ok(Projection { weight, bias: weights.get("bias", channels)? })
    }

    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        kernels::linear(x, &self.weight.tensor()?, Some(&self.bias))
    }
}

struct MidBlock {
    resnet_0: ResnetBlock2D,
    attention: Option<Attention>,
    resnet_1: ResnetBlock2D,
}

impl MidBlock {
    fn load(weights: &Weights, channels: usize, config: &VaeConfig) -> Result<Self> {
        let resnet = |j: usize| {
            let weights = weights.sub(format!("resnets.{j}"));
            ResnetBlock2D::load(&weights, channels, channels, config.resnet())
        };
        let attention = if config.mid_block_add_attention {
            let weights = weights.sub("attentions.0");
            Some(Attention::load(&weights, channels, config.norm_num_groups)?)
        } else {
            None
        };
        Ok(MidBlock { resnet_0: resnet(0)?, attention, resnet_1: resnet(1)? })
    }

    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let mut x = self.resnet_0.forward(x, None)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.resnet_1.forward(&x, None)
    }
}

struct DownEncoderBlock {
    resnets: Vec<ResnetBlock2D>,
    downsampler: Option<Conv2d>,
}

struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownEncoderBlock>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn load(weights: &Weights, config: &VaeConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let mut input = channels[0];
        let conv_in = Conv2d::load_3x3(&weights.sub("conv_in"), config.in_channels, input)?;
        let mut down_blocks = Vec::new();
        for (i, &output) in channels.iter().enumerate() {
            let weights = weights.sub(format!("down_blocks.{i}"));
            let mut block = DownEncoderBlock { resnets: Vec::new(), downsampler: None };
            for j in 0..config.layers_per_block {
                let weights = weights.sub(format!("resnets.{j}"));
                block.resnets.push(ResnetBlock2D::load(&weights, input, output, config.resnet())?);
                input = output;
            }
            if i + 1 < channels.len() {
                let weights = weights.sub("downsamplers.0.conv");
                block.downsampler = Some(Conv2d::load(&weights, output, output, 3, 2, 0)?);
            }
            down_blocks.push(block);
        }
        let groups = config.norm_num_groups;
        let moments = 2 * config.latent_channels;
        Ok(Encoder {
            conv_in,
            down_blocks,
            mid_block: MidBlock::load(&weights.sub("mid_block"), input, config)?,
            conv_norm_out: GroupNorm::load(&weights.sub("conv_norm_out"), input, groups, EPS)?,
            conv_out: Conv2d::load_3x3(&weights.sub("conv_out"), input, moments)?,
        })
    }

    fn forward(&self, image: &Tensor) -> CandleResult<Tensor> {
        let mut x = self.conv_in.forward(image)?;
        for block in &self.down_blocks {
            for resnet in &block.resnets {
                x = resnet.forward(&x, None)?;
            }
            if let Some(downsampler) = &block.downsampler {
                // One row below and one column to the right, so not the convolution's own padding.
                x = x.pad_with_zeros(3, 0, 1)?.pad_with_zeros(2, 0, 1)?;
                x = downsampler.forward(&x)?;
            }
        }
        let x = self.mid_block.forward(&x)?;
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&x)?)
    }
}

struct UpDecoderBlock {
    resnets: Vec<ResnetBlock2D>,
    upsampler: Option<Upsample2D>,
}

struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<UpDecoderBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn load(weights: &Weights, config: &VaeConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let mut input = channels[channels.len() - 1];
        let conv_in = Conv2d::load_3x3(&weights.sub("conv_in"), config.latent_channels, input)?;
        let mid_block = MidBlock::load(&weights.sub("mid_block"), input, config)?;
        let mut up_blocks = Vec::new();
        for (i, &output) in channels.iter().rev().enumerate() {
            let weights = weights.sub(format!("up_blocks.{i}"));
            let mut block = UpDecoderBlock { resnets: Vec::new(), upsampler: None };
            for j in 0..config.layers_per_block + 1 {
                let weights = weights.sub(format!("resnets.{j}"));
                block.resnets.push(ResnetBlock2D::load(&weights, input, output, config.resnet())?);
                input = output;
            }
            if i + 1 < channels.len() {
                block.upsampler = Some(Upsample2D::load(&weights.sub("upsamplers.0"), output)?);
            }
            up_blocks.push(block);
        }
        let groups = config.norm_num_groups;
        Ok(Decoder {
            conv_in,
            mid_block,
            up_blocks,
            conv_norm_out: GroupNorm::load(&weights.sub("conv_norm_out"), input, groups, EPS)?,
            conv_out: Conv2d::load_3x3(&weights.sub("conv_out"), input, config.out_channels)?,
        })
    }

    fn forward(&self, z: &Tensor) -> CandleResult<Tensor> {
        let mut x = self.mid_block.forward(&self.conv_in.forward(z)?)?;
        for block in &self.up_blocks {
            for resnet in &block.resnets {
                x = resnet.forward(&x, None)?;
            }
            if let Some(upsampler) = &block.upsampler {
                let (_, _, height, width) = x.dims4()?;
                x = upsampler.forward(&x, 2 * height, 2 * width)?;
            }
        }
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&x)?)
    }
}

/// The autoencoder.
pub struct Vae {
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    config: VaeConfig,
}

impl Vae {
    /// Reads the tensors that `config` asks for, under diffusers' names, the old ones of the
    /// attention among them.
    ///
    /// # Errors
    /// A tensor is missing, of another shape, or damaged.
    pub fn load(weights: &Weights, config: &VaeConfig) -> Result<Self> {
        let latents = config.latent_channels;
        let conv = |is_used: bool, name: &str, channels: usize| match is_used {
            true => Conv2d::load_1x1(&weights.sub(name), channels, channels).map(Some),
            false => Ok(None),
        };
        Ok(Vae {
            encoder: Encoder::load(&weights.sub("encoder"), config)?,
            decoder: Decoder::load(&weights.sub("decoder"), config)?,
            quant_conv: conv(config.use_quant_conv, "quant_conv", 2 * latents)?,
            post_quant_conv: conv(config.use_post_quant_conv, "post_quant_conv", latents)?,
            config: config.clone(),
        })
    }

    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Whether there is memory for what lies between the layers, for as many pictures of `height` × `width` pixels as `on`
    /// has. At full size, where the most of it is, there are at least three tensors of the outermost channels at once.
    fn ask(&self, on: &Tensor, height: usize, width: usize) -> CandleResult<()> {
        if on.device().is_cpu() {
            let channels = 3 * self.config.block_out_channels[0];
            let what =
                format_args!("the autoencoder, at work on {width} x {height} pixels at once,");
            kosmograph_memory::ask(what, &[on.dim(0)?, channels, height, width], size_of::<f32>())
                .map_err(candle_core::Error::wrap)?;
        }
        Ok(())
    }

    /// `image` [B, in_channels, H, W] in −1..1 → the latents' distribution, ⌊H/8⌋ × ⌊W/8⌋.
    ///
    /// # Errors
    /// The picture has another number of channels, or is smaller than one latent pixel.
    pub fn encode(&self, image: &Tensor) -> Result<Posterior> {
        self.check_image(image)?;
        Ok(Posterior::from_moments(&self.moments(image)?)?)
    }

    /// [`Vae::encode`] in tiles that are blended where they overlap, for pictures whose activations
    /// would not fit into memory. The sizes are in latent pixels. The picture is cropped to whole
    /// latent pixels; one that fits into a tile gives exactly what [`Vae::encode`] gives.
    ///
    /// Statistics of the normalisations are those of each tile, so the result differs a little from
    /// the whole.
    ///
    /// # Errors
    /// As [`Vae::encode`]; the overlap is not smaller than the tile.
    pub fn encode_tiled(&self, image: &Tensor, tile: usize, overlap: usize) -> Result<Posterior> {
        self.check_image(image)?;
        let factor = self.config.factor();
        let (_, _, height, width) = image.dims4()?;
        let tiling = Tiling::new(height / factor, width / factor, tile, overlap)?;
        if tiling.is_single() {
            return self.encode(image);
        }
        let moments = tiled(&tiling, 1, |y, x| {
            let image = image.narrow(2, y.start * factor, y.len() * factor)?.narrow(
                3,
                x.start * factor,
                x.len() * factor,
            )?;
            self.moments(&image)
        })?;
        Ok(Posterior::from_moments(&moments)?)
    }

    /// `latents` [B, latent_channels, h, w] → the picture [B, out_channels, 8·h, 8·w], about −1..1
    /// and not clamped.
    ///
    /// # Errors
    /// The latents have another number of channels, or are empty.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.check_latents(latents)?;
        Ok(self.picture(latents)?)
    }

    /// [`Vae::decode`] in tiles that are blended where they overlap, as [`Vae::encode_tiled`]. The
    /// sizes are in latent pixels.
    ///
    /// # Errors
    /// As [`Vae::decode`]; the overlap is not smaller than the tile.
    pub fn decode_tiled(&self, latents: &Tensor, tile: usize, overlap: usize) -> Result<Tensor> {
        self.check_latents(latents)?;
        let (_, _, height, width) = latents.dims4()?;
        let tiling = Tiling::new(height, width, tile, overlap)?;
        if tiling.is_single() {
            return self.decode(latents);
        }
        let image = tiled(&tiling, self.config.factor(), |y, x| {
            self.picture(&latents.narrow(2, y.start, y.len())?.narrow(3, x.start, x.len())?)
        })?;
        Ok(image)
    }

    fn moments(&self, image: &Tensor) -> CandleResult<Tensor> {
        self.ask(image, image.dim(2)?, image.dim(3)?)?;
        let image = image.to_dtype(self.encoder.conv_in.activations())?;
        let moments = self.encoder.forward(&image)?;
        let moments = match &self.quant_conv {
            Some(quant_conv) => quant_conv.forward(&moments)?,
            None => moments,
        };
        moments.to_dtype(DType::F32)
    }

    fn picture(&self, latents: &Tensor) -> CandleResult<Tensor> {
        let pixels = |side: usize| side.saturating_mul(self.config.factor());
        self.ask(latents, pixels(latents.dim(2)?), pixels(latents.dim(3)?))?;
        let latents = latents.to_dtype(self.decoder.conv_in.activations())?;
        let picture = match &self.post_quant_conv {
            Some(post_quant_conv) => self.decoder.forward(&post_quant_conv.forward(&latents)?)?,
            None => self.decoder.forward(&latents)?,
        };
        picture.to_dtype(DType::F32)
    }

    fn check_image(&self, image: &Tensor) -> Result<()> {
        let (channels, factor) = (self.config.in_channels, self.config.factor());
        match image.dims() {
            [_, c, height, width] if *c == channels && *height >= factor && *width >= factor => {
                Ok(())
            }
            shape => Err(Error::Input(format!(
                "the picture is {shape:?}, the VAE takes [batch, {channels}, height, width] of at \
                 least {factor} × {factor} pixels"
            ))),
        }
    }

    fn check_latents(&self, latents: &Tensor) -> Result<()> {
        let channels = self.config.latent_channels;
        match latents.dims() {
            [_, c, height, width] if *c == channels && *height > 0 && *width > 0 => Ok(()),
            shape => Err(Error::Input(format!(
                "the latents are {shape:?}, the VAE takes [batch, {channels}, height, width]"
            ))),
        }
    }
}
