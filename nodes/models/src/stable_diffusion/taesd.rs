//! TAESD, a tiny autoencoder for the latents of Stable Diffusion's: a preview of what its decoder would draw, in a hundredth of the
//! time. Ollin Boer Bohan, <https://github.com/madebyollin/taesd>; computed as diffusers' `AutoencoderTiny` does.
//!
//! Latents here are those of the U-Net, already scaled, so one network's files differ from another's (SDXL's) in their numbers alone.

use candle_core::{DType, Result as CandleResult, Tensor};
use kosmograph_kernels as kernels;

use crate::error::{Error, Result};
use crate::files::weights::Weights;
use crate::stable_diffusion::resnet::Conv2d;

/// Pixels to a latent pixel, along each edge.
pub const FACTOR: usize = 8;

/// Blocks of each level, from the pictures to the latents; the decoder has them the other way round.
const BLOCKS: [usize; 4] = [1, 3, 3, 3];

/// Where the latents are bent before they are decoded: to 3·tanh(z / 3).
const MAGNITUDE: f64 = 3.0;

/// What a file's shapes say. A half that is not there is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaesdConfig {
    pub latent_channels: usize,
    /// The channels between the layers.
    pub encoder: Option<usize>,
    pub decoder: Option<usize>,
}

/// The halves that there are, each under diffusers' names within it: `layers.0.weight`.
#[derive(Clone)]
pub struct TaesdWeights {
    pub encoder: Option<Weights>,
    pub decoder: Option<Weights>,
}

impl TaesdWeights {
    /// Of one file with both halves, or one of them: `encoder.layers.0.weight`.
    ///
    /// # Errors
    /// The file holds something beside them.
    pub fn of_one_file(weights: &Weights) -> Result<Self> {
        let half = |name: &str| weights.has(name).then(|| weights.sub(name));
        let is_other =
            |name: &&String| !name.starts_with("encoder.") && !name.starts_with("decoder.");
        let names = weights.names();
        let others: Vec<&String> = names.iter().filter(is_other).collect();
        match others.first() {
            None => Ok(Self { encoder: half("encoder"), decoder: half("decoder") }),
            Some(name) => Err(Error::UnusedTensors {
                file: weights.origin().to_owned(),
                count: others.len(),
                sample: format!("`{name}`"),
            }),
        }
    }

    /// Whether they are what `config` asks for; the bytes that they take in memory. No numbers are read.
    ///
    /// # Errors
    /// A tensor is missing, too many, or of another shape or type.
    pub fn check(&self, config: &TaesdConfig) -> Result<usize> {
        let mut bytes = 0;
        if let (Some(weights), Some(channels)) = (&self.encoder, config.encoder) {
            let load = |weights: &Weights| Encoder::load(weights, channels, config.latent_channels);
            bytes += weights.check(load, &[])?;
        }
        if let (Some(weights), Some(channels)) = (&self.decoder, config.decoder) {
            let load = |weights: &Weights| Decoder::load(weights, channels, config.latent_channels);
            bytes += weights.check(load, &[])?;
        }
        Ok(bytes)
    }

    /// The file of either, for errors.
    fn origin(&self) -> String {
        let either = self.decoder.as_ref().or(self.encoder.as_ref());
        either.map(|weights| weights.origin().to_owned()).unwrap_or_default()
    }
}

impl TaesdConfig {
    /// What the shapes say.
    ///
    /// # Errors
    /// Neither half is there, a first layer is no convolution, or the halves are of different latents.
    pub fn from_weights(halves: &TaesdWeights) -> Result<Self> {
        let sides = |weights: &Option<Weights>, name: &str| {
            let Some(weights) = weights else { return Ok(None) };
            match weights.shape(name) {
                Some(shape) if shape.len() == 4 => Ok(Some((shape[0], shape[1]))),
                Some(found) => Err(Error::Axes {
                    file: weights.origin().to_owned(),
                    name: name.to_owned(),
                    axes: 4,
                    found,
                }),
                None => Err(Error::MissingTensor {
                    file: weights.origin().to_owned(),
                    name: name.to_owned(),
                    nearest: None,
                }),
            }
        };
        let first = sides(&halves.encoder, "layers.0.weight")?;
        let last = sides(&halves.encoder, "layers.14.weight")?;
        let decoder = sides(&halves.decoder, "layers.0.weight")?;
        let (of_encoder, of_decoder) = (last.map(|sides| sides.0), decoder.map(|sides| sides.1));
        let differ = of_encoder.zip(of_decoder).filter(|(a, b)| a != b);
        let latent_channels = match (of_decoder.or(of_encoder), differ) {
            (Some(channels), None) => channels,
            (_, Some((encoder, decoder))) => {
                return Err(Error::Input(format!(
                    "{}: the encoder makes latents of {encoder} channels, the decoder takes {decoder}",
                    halves.origin()
                )));
            }
            (None, _) => return Err(Error::Input("a TAESD without both of its halves".to_owned())),
        };
        let channels = |sides: Option<(usize, usize)>| sides.map(|(output, _)| output);
        Ok(Self { latent_channels, encoder: channels(first), decoder: channels(decoder) })
    }
}

/// The names of the published files, `taesd_encoder` and `taesd_decoder`, led to those of [`TaesdWeights`]. The decoder's are counted
/// from 1: its layer 0 bends the latents and has no weights. `None` where `name` is none of theirs.
pub fn diffusers_name(half: Half, name: &str) -> Option<String> {
    let (number, rest) = name.split_once('.')?;
    let number: usize = number.parse().ok()?;
    Some(match half {
        Half::Encoder => format!("layers.{number}.{rest}"),
        Half::Decoder => format!("layers.{}.{rest}", number.checked_sub(1)?),
    })
}

/// A half of the autoencoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    Encoder,
    Decoder,
}

/// Three convolutions with the input added, all of the same channels.
struct Block {
    convolutions: [Conv2d; 3],
}

impl Block {
    fn load(weights: &Weights, channels: usize) -> Result<Self> {
        let conv = |i: usize| {
            Conv2d::load_3x3(&weights.sub(format!("conv.{}", 2 * i)), channels, channels)
        };
        Ok(Self { convolutions: [conv(0)?, conv(1)?, conv(2)?] })
    }

    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let [first, second, third] = &self.convolutions;
        let y = second.forward(&first.forward(x)?.relu()?)?.relu()?;
        (third.forward(&y)? + x)?.relu()
    }
}

/// A convolution without a bias, of stride 1 or 2.
struct Plain {
    weight: Tensor,
    stride: usize,
}

impl Plain {
    fn load(weights: &Weights, channels: usize, stride: usize) -> Result<Self> {
        Ok(Self { weight: weights.get_kept("weight", (channels, channels, 3, 3))?, stride })
    }

    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        kernels::conv2d(x, &self.weight, None, self.stride, 1)
    }
}

struct Encoder {
    conv_in: Conv2d,
    /// The first level is not halved.
    levels: Vec<(Option<Plain>, Vec<Block>)>,
    conv_out: Conv2d,
}

impl Encoder {
    fn load(weights: &Weights, channels: usize, latents: usize) -> Result<Self> {
        let layer = |i: usize| weights.sub(format!("layers.{i}"));
        let (mut next, mut levels) = (1, Vec::new());
        for (level, count) in BLOCKS.into_iter().enumerate() {
            let halving = match level {
                0 => None,
                _ => {
                    next += 1;
                    Some(Plain::load(&layer(next - 1), channels, 2)?)
                }
            };
            let blocks = (next..next + count)
                .map(|i| Block::load(&layer(i), channels))
                .collect::<Result<_>>()?;
            next += count;
            levels.push((halving, blocks));
        }
        Ok(Self {
            conv_in: Conv2d::load_3x3(&layer(0), 3, channels)?,
            levels,
            conv_out: Conv2d::load_3x3(&layer(next), channels, latents)?,
        })
    }

    fn forward(&self, image: &Tensor) -> CandleResult<Tensor> {
        let image = image.affine(0.5, 0.5)?.to_dtype(self.conv_in.activations())?;
        let mut x = self.conv_in.forward(&image)?;
        for (halving, blocks) in &self.levels {
            if let Some(halving) = halving {
                x = halving.forward(&x)?;
            }
            for block in blocks {
                x = block.forward(&x)?;
            }
        }
        self.conv_out.forward(&x)?.to_dtype(DType::F32)
    }
}

struct Decoder {
    conv_in: Conv2d,
    /// The last level is not doubled, and its convolution is the last of all.
    levels: Vec<(Vec<Block>, Option<Plain>)>,
    conv_out: Conv2d,
}

impl Decoder {
    fn load(weights: &Weights, channels: usize, latents: usize) -> Result<Self> {
        let layer = |i: usize| weights.sub(format!("layers.{i}"));
        // Layer 1 is an activation, and each doubling is a layer before its convolution.
        let (mut next, mut levels) = (2, Vec::new());
        for (level, count) in BLOCKS.into_iter().rev().enumerate() {
            let blocks = (next..next + count)
                .map(|i| Block::load(&layer(i), channels))
                .collect::<Result<_>>()?;
            next += count;
            let doubling = match level + 1 < BLOCKS.len() {
                true => {
                    next += 2;
                    Some(Plain::load(&layer(next - 1), channels, 1)?)
                }
                false => None,
            };
            levels.push((blocks, doubling));
        }
        Ok(Self {
            conv_in: Conv2d::load_3x3(&layer(0), latents, channels)?,
            levels,
            conv_out: Conv2d::load_3x3(&layer(next), channels, 3)?,
        })
    }

    fn forward(&self, latents: &Tensor) -> CandleResult<Tensor> {
        let bent = ((latents / MAGNITUDE)?.tanh()? * MAGNITUDE)?;
        let mut x = self.conv_in.forward(&bent.to_dtype(self.conv_in.activations())?)?.relu()?;
        for (blocks, doubling) in &self.levels {
            for block in blocks {
                x = block.forward(&x)?;
            }
            if let Some(convolution) = doubling {
                x = kernels::conv2d_of_doubled(&x, &convolution.weight, None)?;
            }
        }
        self.conv_out.forward(&x)?.to_dtype(DType::F32)?.affine(2.0, -1.0)
    }
}

/// The autoencoder, or a half of it.
pub struct Taesd {
    encoder: Option<Encoder>,
    decoder: Option<Decoder>,
    config: TaesdConfig,
}

impl Taesd {
    /// Reads the tensors that `config` asks for.
    ///
    /// # Errors
    /// A tensor is missing, of another shape, or damaged.
    pub fn load(halves: &TaesdWeights, config: &TaesdConfig) -> Result<Self> {
        let latents = config.latent_channels;
        let encoder = match (&halves.encoder, config.encoder) {
            (Some(weights), Some(channels)) => Some(Encoder::load(weights, channels, latents)?),
            _ => None,
        };
        let decoder = match (&halves.decoder, config.decoder) {
            (Some(weights), Some(channels)) => Some(Decoder::load(weights, channels, latents)?),
            _ => None,
        };
        Ok(Self { encoder, decoder, config: config.clone() })
    }

    pub fn config(&self) -> &TaesdConfig {
        &self.config
    }

    /// `image` [B, 3, H, W] in −1..1 → latents [B, latent_channels, ⌈H/8⌉, ⌈W/8⌉], scaled as the U-Net wants them.
    ///
    /// # Errors
    /// There is no encoder; the picture has another number of channels or no pixels; there is not the memory.
    pub fn encode(&self, image: &Tensor) -> Result<Tensor> {
        let Some((encoder, channels)) = self.encoder.as_ref().zip(self.config.encoder) else {
            return Err(Error::Input(
                "this TAESD is a decoder alone; taesd_encoder, which encodes, is another file"
                    .to_owned(),
            ));
        };
        match image.dims() {
            [_, 3, height, width] if *height > 0 && *width > 0 => {
                self.ask(image, channels, *height, *width)?;
            }
            shape => {
                return Err(Error::Input(format!(
                    "the picture is {shape:?}, TAESD takes [batch, 3, height, width]"
                )));
            }
        }
        Ok(encoder.forward(image)?)
    }

    /// `latents` [B, latent_channels, h, w] as the U-Net has them → the picture [B, 3, 8·h, 8·w], about −1..1 and not clamped.
    ///
    /// # Errors
    /// There is no decoder; the latents have another number of channels or are empty; there is not the memory.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let Some((decoder, channels)) = self.decoder.as_ref().zip(self.config.decoder) else {
            return Err(Error::Input(
                "this TAESD is an encoder alone; taesd_decoder, which decodes, is another file"
                    .to_owned(),
            ));
        };
        match latents.dims() {
            [_, c, height, width]
                if *c == self.config.latent_channels && *height > 0 && *width > 0 =>
            {
                let pixels = |side: &usize| side.saturating_mul(FACTOR);
                self.ask(latents, channels, pixels(height), pixels(width))?;
            }
            shape => {
                return Err(Error::Input(format!(
                    "the latents are {shape:?}, this TAESD takes [batch, {}, height, width]",
                    self.config.latent_channels
                )));
            }
        }
        Ok(decoder.forward(latents)?)
    }

    /// Whether there is memory for what lies between the layers: at full size there are at least three tensors of all channels.
    fn ask(&self, on: &Tensor, channels: usize, height: usize, width: usize) -> Result<()> {
        if on.device().is_cpu() {
            let what = format_args!("TAESD, at work on {width} x {height} pixels at once,");
            let shape = [on.dim(0)?, 3, channels, height, width];
            kosmograph_memory::ask(what, &shape, size_of::<f32>())?;
        }
        Ok(())
    }
}
