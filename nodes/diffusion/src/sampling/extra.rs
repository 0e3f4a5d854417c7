//! What U-Nets with more input channels than latents take besides the latents: an inpainting U-Net a mask
//! and the picture without what the mask covers (9 channels for Stable Diffusion 1.5), an edit U-Net the
//! picture to edit (8; InstructPix2Pix, arXiv 2211.09800).

use candle_core::{Device, Tensor as Candle};
use kosmograph_models::samplers::{Schedule, Timesteps};
use node::*;
use node_candle::import;

use super::resize::{bilinear_middle, spread_rows};

/// The latent of an even grey picture, which a masked one is where nothing is known, as the U-Net wants it.
const GREY: [f32; 4] = [0.8223, -0.6876, 0.6364, 0.1380];

/// Where the further channels come from when a conditioning does not bring them.
#[derive(Clone)]
pub enum Extra {
    /// The network takes the latents alone.
    None,
    /// A mask, then a latent.
    Inpaint {
        /// [B, C, H, W], the latents before noise.
        latents: Candle,
        /// [1 or B, 1, H, W].
        noise_mask: Option<Candle>,
    },
    /// A latent.
    Edit,
}

impl Extra {
    /// What a network of `in_channels` takes besides `latents` [B, C, H, W].
    ///
    /// # Errors
    /// No network that is known takes that many.
    pub fn of_channels(
        in_channels: usize,
        latents: &Candle,
        noise_mask: Option<&Candle>,
    ) -> Result<Self> {
        let channels = latents.dim(1)?;
        match in_channels.checked_sub(channels) {
            Some(0) => Ok(Self::None),
            Some(more) if more == channels => Ok(Self::Edit),
            Some(more) if more == channels + 1 => {
                Ok(Self::Inpaint { latents: latents.clone(), noise_mask: noise_mask.cloned() })
            }
            _ => Err(Error::at(
                "model",
                format!(
                    "the model takes {in_channels} channels and the latents have {channels}; {channels}, {} \
                     (edit) or {} (inpainting) would be right",
                    2 * channels,
                    2 * channels + 1
                ),
            )),
        }
    }

    /// At what scale a network takes the further latent whose own latents are at `own`: one that edits was trained on
    /// what the autoencoder gives, not scaled, unless it was trained over all noise levels (CosXL).
    pub fn scale(&self, schedule: &Schedule, own: Option<f64>) -> Option<f64> {
        match self {
            Self::Edit if schedule.timesteps != Timesteps::QuarterLogSigma => Some(1.0),
            Self::None | Self::Inpaint { .. } | Self::Edit => own,
        }
    }

    /// The further channels [B, E, H, W] for one entry of a conditioning, a latent at `scale`.
    pub fn channels(
        &self,
        entry: &Value,
        dims: (usize, usize, usize, usize),
        scale: Option<f64>,
        device: &Device,
    ) -> Result<Option<Candle>> {
        let (batch, channels, height, width) = dims;
        let fitted = |tensor: &Candle| -> Result<Candle> {
            let same = tensor.dims()[2..] == [height, width];
            let scaled =
                if same { tensor.clone() } else { bilinear_middle(tensor, height, width)? };
            Ok(spread_rows(&scaled, batch)?)
        };
        let given = match entry.get("concat_latent") {
            Some(latent) if !matches!(self, Self::None) => {
                let own = entry.get("concat_scale").map(|own| ("scale", own));
                let pairs = [("samples", latent)].into_iter().chain(own);
                let latent = <Latent as Socket>::from_value(Value::map(pairs))?;
                let latent = import(&latent.at_scale(scale)?.samples()?, device)?;
                if latent.dim(1)? != channels {
                    return Err(Error::new(format!(
                        "the picture to start from has {} latent channels, the latents have {channels}",
                        latent.dim(1)?
                    )));
                }
                Some(fitted(&latent)?)
            }
            _ => None,
        };
        match self {
            Self::None => Ok(None),
            // An edit of nothing, as in training where the picture is dropped.
            Self::Edit => match given {
                Some(latent) => Ok(Some(latent)),
                None => Ok(Some(Candle::zeros(dims, candle_core::DType::F32, device)?)),
            },
            Self::Inpaint { latents, noise_mask } => {
                let mask = match (entry.get("concat_mask"), noise_mask) {
                    (Some(mask), _) => {
                        Some(import(&<Mask as Socket>::from_value(mask)?.0, device)?.unsqueeze(1)?)
                    }
                    (None, mask) => mask.clone(),
                };
                let Some(mask) = mask else { return everything(dims, device).map(Some) };
                let mask = {
                    let same = mask.dims()[2..] == [height, width];
                    let mask = if same { mask } else { bilinear_middle(&mask, height, width)? };
                    spread_rows(&round_ties_even(&mask)?, batch)?
                };
                let latent = match given {
                    Some(latent) => latent,
                    None => latents.clone(),
                };
                Ok(Some(Candle::cat(&[mask, latent], 1)?))
            }
        }
    }
}

/// A mask that covers everything, and a picture of which nothing is known.
fn everything(dims: (usize, usize, usize, usize), device: &Device) -> Result<Candle> {
    let (batch, channels, height, width) = dims;
    if channels != GREY.len() {
        return Err(Error::at(
            "model",
            "this inpainting model needs a mask: InpaintModelConditioning gives it one",
        ));
    }
    let planes: Vec<f32> = std::iter::once(1.0).chain(GREY).collect();
    let planes = Candle::from_vec(planes, (1, 1 + channels, 1, 1), device)?;
    Ok(planes.broadcast_as((batch, 1 + channels, height, width))?.contiguous()?)
}

/// torch's `round`.
fn round_ties_even(tensor: &Candle) -> Result<Candle> {
    let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
    let rounded = values.into_iter().map(f32::round_ties_even).collect();
    Ok(Candle::from_vec(rounded, tensor.shape(), tensor.device())?)
}
