//! A part of a picture made anew, or the whole of it edited: masks for the sampler, pictures for U-Nets
//! that take one.

use candle_core::{Device, Tensor as Candle};
use node::*;
use node_candle::{export, import};

use crate::latent::{encoded, scale_of};
use crate::sampling::bilinear;

/// The picture's pixels for one latent pixel, as everywhere in Stable Diffusion.
const FACTOR: usize = 8;

/// Says where a sampler may change latents; the rest of them stays.
#[derive(Inputs)]
#[node(category = "latent/inpaint")]
pub struct SetLatentNoiseMask {
    /// What is sampled.
    samples: Latent,
    /// 1 where it may change; any size, it is scaled to the latents.
    mask: Mask,
}

impl Node for SetLatentNoiseMask {
    outputs![LATENT: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        Ok(self.samples.with_noise_mask(self.mask))
    }
}

/// Encodes a picture whose masked part is to be made anew: grey there, and open to the sampler there and a
/// little around it.
#[derive(Inputs)]
#[node(category = "latent/inpaint")]
pub struct VAEEncodeForInpaint {
    /// The picture.
    pixels: Image,
    /// The autoencoder that encodes.
    vae: Vae,
    /// 1 where it is made anew; any size, it is scaled to the picture.
    mask: Mask,
    /// By how many pixels the mask grows, so that no seam shows.
    #[widget(default = 6, min = 0, max = 64)]
    grow_mask_by: i64,
}

impl Node for VAEEncodeForInpaint {
    outputs![LATENT: Latent];

    fn run(self, cx: &Context) -> Result<Latent> {
        let masked = Masked::new(&self.pixels, &self.mask)?;
        let samples = self.vae.0.encode(cx, masked.greyed()?)?;
        let grown = masked.grown(self.grow_mask_by as usize)?;
        Ok(encoded(cx, &self.vae, samples)?.with_noise_mask(grown))
    }
}

/// Prepares both conditionings for a U-Net that was trained to inpaint: it sees the mask and the picture
/// around it.
#[derive(Inputs)]
#[node(category = "conditioning/inpaint")]
pub struct InpaintModelConditioning {
    /// What the picture should show.
    pub positive: Conditioning,
    /// What it should not.
    pub negative: Conditioning,
    /// The autoencoder that encodes.
    pub vae: Vae,
    /// The picture.
    pub pixels: Image,
    /// 1 where it is made anew; any size, it is scaled to the picture.
    pub mask: Mask,
    /// Whether the sampler too keeps what lies outside the mask.
    #[widget(default = true)]
    pub noise_mask: bool,
}

impl Node for InpaintModelConditioning {
    outputs![positive: Conditioning, negative: Conditioning, latent: Latent];

    fn run(self, cx: &Context) -> Result<(Conditioning, Conditioning, Latent)> {
        let masked = Masked::new(&self.pixels, &self.mask)?;
        let concat = self.vae.0.encode(cx, masked.greyed()?)?;
        let mask = masked.mask()?;
        let scale = scale_of(cx, &self.vae)?;
        let seen = |entry: Value| {
            let entry = entry.with("concat_latent", concat.clone().into_value());
            let entry = match scale {
                Some(scale) => entry.with("concat_scale", scale.into()),
                None => entry,
            };
            entry.with("concat_mask", mask.0.clone().into_value())
        };
        let (positive, negative) =
            (self.positive.map_entries(seen), self.negative.map_entries(seen));
        let latent = encoded(cx, &self.vae, self.vae.0.encode(cx, masked.pixels()?)?)?;
        let latent = if self.noise_mask { latent.with_noise_mask(mask) } else { latent };
        Ok((positive, negative, latent))
    }
}

/// Prepares both conditionings for a U-Net that was trained to edit a picture by an instruction
/// (InstructPix2Pix).
#[derive(Inputs)]
#[node(category = "conditioning/instructpix2pix")]
pub struct InstructPixToPixConditioning {
    /// The instruction.
    positive: Conditioning,
    /// What the picture should not show.
    negative: Conditioning,
    /// The autoencoder that encodes.
    vae: Vae,
    /// The picture to edit.
    pixels: Image,
}

impl Node for InstructPixToPixConditioning {
    outputs![positive: Conditioning, negative: Conditioning, latent: Latent];

    fn run(self, cx: &Context) -> Result<(Conditioning, Conditioning, Latent)> {
        let description = self.vae.0.describe(cx).map_err(|error| error.of_input("vae"))?;
        if let Some(missing) = description["missing"].as_str() {
            return Err(Error::at("vae", missing));
        }
        let Some(scale) = scale_of(cx, &self.vae)? else {
            return Err(Error::at("vae", "this VAE does not say its \"scaling_factor\""));
        };
        let whole = Masked::cropped(&self.pixels)?;
        let encoded = import(&self.vae.0.encode(cx, export(&whole)?)?, &Device::Cpu)?;
        // Most such U-Nets were trained on the picture's latent as the autoencoder gives it, not scaled; a sampler
        // scales it for the others.
        let concat = export(&(&encoded / scale)?)?;
        let seen = |entry: Value| {
            let entry = entry.with("concat_latent", concat.clone().into_value());
            entry.with("concat_scale", 1.0.into())
        };
        let latent = Latent::new(export(&encoded.zeros_like()?)?);
        Ok((self.positive.map_entries(seen), self.negative.map_entries(seen), latent))
    }
}

/// A picture and its mask, both cut to whole latent pixels around the middle.
struct Masked {
    /// [B, H, W, 3].
    pixels: Candle,
    /// [b, 1, H, W], at the picture's size.
    mask: Candle,
}

impl Masked {
    fn new(pixels: &Image, mask: &Mask) -> Result<Self> {
        let (batch, height, width, _) = pixels.dims();
        // The picture cut, greyed, and what lies between; the mask scaled and grown.
        memory::ask("masking the pictures", &[4, batch, height, width, 3], size_of::<f32>())?;
        let masks = mask.dims().0;
        if masks != 1 && masks != batch {
            return Err(Error::at(
                "mask",
                format!(
                    "{masks} masks are given for {batch} pictures; one, or one for each, would be right"
                ),
            ));
        }
        let mask = import(&mask.0, &Device::Cpu)?.unsqueeze(1)?;
        let mask = cut(&bilinear(&mask, height, width)?, 2, 3)?;
        Ok(Self { pixels: Self::cropped(pixels)?, mask })
    }

    fn cropped(pixels: &Image) -> Result<Candle> {
        let (_, height, width, channels) = pixels.dims();
        if height < FACTOR || width < FACTOR || channels < 3 {
            return Err(Error::at(
                "pixels",
                format!(
                    "a colour picture of at least {FACTOR} × {FACTOR} pixels is wanted, but this is \
                     {width} × {height} with {channels} channels"
                ),
            ));
        }
        let pixels = import(&pixels.0, &Device::Cpu)?.narrow(3, 0, 3)?;
        Ok(cut(&pixels, 1, 2)?.contiguous()?)
    }

    fn pixels(&self) -> Result<Tensor> {
        export(&self.pixels)
    }

    fn mask(&self) -> Result<Mask> {
        Ok(Mask(export(&self.mask.squeeze(1)?)?))
    }

    /// 1 where the mask is more than half.
    fn covered(&self) -> Result<Candle> {
        Ok(self.mask.gt(0.5f32)?.to_dtype(self.mask.dtype())?)
    }

    /// The picture, grey where the mask covers it.
    fn greyed(&self) -> Result<Tensor> {
        let kept = (1.0 - self.covered()?.squeeze(1)?.unsqueeze(3)?)?;
        let greyed = (&self.pixels - 0.5)?.broadcast_mul(&kept)?;
        export(&(greyed + 0.5)?)
    }

    /// The covered part, grown: a pixel is covered where one of the `by` × `by` around it is.
    fn grown(&self, by: usize) -> Result<Mask> {
        // ComfyUI rounds without growing as well.
        let covered = self.covered()?.squeeze(1)?;
        if by <= 1 {
            return Ok(Mask(export(&covered)?));
        }
        let (batch, height, width) = covered.dims3()?;
        let values: Vec<f32> = covered.flatten_all()?.to_vec1()?;
        // A window of an even size reaches one pixel further to the upper left.
        let before = (by - 1).div_ceil(2);
        let after = by - 1 - before;
        let window = |i: usize, size: usize| i.saturating_sub(before)..(i + after + 1).min(size);
        let mut grown = vec![0f32; values.len()];
        let mut rows = vec![0f32; height * width];
        for b in 0..batch {
            let plane = &values[b * height * width..][..height * width];
            let out = &mut grown[b * height * width..][..height * width];
            // One axis after the other: the window is a square.
            for (i, value) in rows.iter_mut().enumerate() {
                if i % width == 0 {
                    interrupt::check()?;
                }
                let (y, x) = (i / width, i % width);
                let any = plane[y * width..][window(x, width)].contains(&1.0);
                *value = f32::from(any);
            }
            for (i, value) in out.iter_mut().enumerate() {
                if i % width == 0 {
                    interrupt::check()?;
                }
                let (y, x) = (i / width, i % width);
                *value = f32::from(window(y, height).any(|y| rows[y * width + x] == 1.0));
            }
        }
        Ok(Mask(Tensor::from_f32(&[batch, height, width], grown)?))
    }
}

/// Rows and columns cut to multiples of [`FACTOR`], around the middle.
fn cut(tensor: &Candle, rows: usize, columns: usize) -> candle_core::Result<Candle> {
    [rows, columns].into_iter().try_fold(tensor.clone(), |tensor, axis| {
        let size = tensor.dim(axis)?;
        tensor.narrow(axis, size % FACTOR / 2, size / FACTOR * FACTOR)
    })
}
