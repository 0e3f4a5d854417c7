//! The VAE object: pictures [B, H, W, 3] in 0..1 and latents as the U-Net wants them, scaled.

use candle_core::Tensor as Candle;
use kosmograph_models::vae::{Vae as Autoencoder, VaeConfig};
use kosmograph_models::{Resident, Weights};
use node::interface::{self, marker};
use node::*;
use node_candle::{export, import};

/// An autoencoder behind "vae_decode/1" and "vae_encode/1". Its numbers are read when it is first
/// called.
pub struct VaeModel {
    vae: Resident<Autoencoder>,
    config: VaeConfig,
    device: candle_core::Device,
}

/// The largest tile and its overlap, in latent pixels. What is larger is worked on in tiles, so that memory
/// does not grow with the picture; the person is told, because tiles differ a little from the whole.
const TILE: usize = 96;
const OVERLAP: usize = 16;

/// Says that a picture of `height` × `width` latent pixels is worked on in tiles, when it is.
fn tell_of_tiles(cx: &Context, height: usize, width: usize) {
    if height.max(width) > TILE {
        cx.info(format!(
            "the picture has {width} × {height} latent pixels and is worked on in tiles of {TILE}: it \
             differs a little from the whole"
        ));
    }
}

impl Export for VaeModel {
    const TYPE: &'static str = "VAE";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![VaeModel:
        marker::VaeDecode, marker::VaeEncode, marker::Describe, marker::Memory];
}

impl interface::Autoencode for VaeModel {
    fn decode(&self, cx: &Context, latents: &Tensor) -> Result<Tensor> {
        let latents = import(latents, &self.device)?;
        let latents = (latents / self.config.scaling_factor())?;
        let (_, _, height, width) = latents.dims4()?;
        tell_of_tiles(cx, height, width);
        let decoded = self.vae.get()?.decode_tiled(&latents, TILE, OVERLAP)?;
        let image = decoded.affine(0.5, 0.5)?.clamp(0f32, 1f32)?;
        export(&image.permute((0, 2, 3, 1))?)
    }

    fn encode(&self, cx: &Context, image: &Tensor) -> Result<Tensor> {
        let image = import(image, &self.device)?;
        let image = self.crop(cx, &image)?.permute((0, 3, 1, 2))?.contiguous()?;
        let (_, _, height, width) = image.dims4()?;
        let factor = self.config.factor();
        tell_of_tiles(cx, height / factor, width / factor);
        let image = image.affine(2.0, -1.0)?;
        let posterior = self.vae.get()?.encode_tiled(&image, TILE, OVERLAP)?;
        export(&(posterior.mode() * self.config.scaling_factor())?)
    }
}

impl VaeModel {
    /// An autoencoder of `weights` under diffusers' names, on their device. The file's header is
    /// checked against `config`.
    ///
    /// # Errors
    /// The weights are of another model than `config` says.
    pub fn new(config: VaeConfig, weights: Weights) -> kosmograph_models::Result<Self> {
        let device = weights.device().clone();
        let vae = {
            let config = config.clone();
            Resident::open(weights, &[], move |weights| Autoencoder::load(weights, &config))?
        };
        Ok(Self { vae, config, device })
    }

    /// The picture's middle, cut to whole latent pixels, its first three channels.
    fn crop(&self, cx: &Context, image: &Candle) -> Result<Candle> {
        let factor = self.config.factor();
        let (_, height, width, channels) = image.dims4()?;
        if channels < 3 || height < factor || width < factor {
            return Err(Error::new(format!(
                "a picture [B, H, W, 3] of at least {factor} × {factor} pixels is wanted, but it is {:?}",
                image.dims()
            )));
        }
        let (rows, columns) = (height / factor * factor, width / factor * factor);
        if (rows, columns) != (height, width) {
            cx.info(format!("the picture of {width} × {height} is cut to {columns} × {rows}"));
        }
        let image = image.narrow(1, (height - rows) / 2, rows)?;
        Ok(image.narrow(2, (width - columns) / 2, columns)?.narrow(3, 0, 3)?)
    }
}

impl interface::Describe for VaeModel {
    fn describe(&self) -> serde_json::Value {
        let config = &self.config;
        json!({
            "family": "autoencoder-kl",
            "latent_channels": config.latent_channels(),
            "downscale": config.factor(),
            "scaling_factor": config.scaling_factor(),
            "bytes": self.vae.bytes(),
        })
    }
}

impl interface::Memory for VaeModel {
    fn bytes(&self, purge: bool) -> usize {
        if purge {
            self.vae.release();
        }
        self.vae.held()
    }
}
