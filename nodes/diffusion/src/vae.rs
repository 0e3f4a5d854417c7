//! The VAE object: pictures [B, H, W, 3] in 0..1 and latents as the U-Net wants them, scaled.

use candle_core::{Device, Tensor as Candle};
use kosmograph_models::stable_diffusion::vae::{Vae as Autoencoder, VaeConfig};
use kosmograph_models::stable_diffusion::vae_feathered::Feathering;
use kosmograph_models::{Resident, Weights};
use node::interface::{self, marker};
use node::*;
use node_candle::{export, import};

use crate::observe::{observe, stopped};

/// An autoencoder behind "vae_decode/1" and "vae_encode/1". Its numbers are read when it is first
/// called.
pub struct VaeModel {
    vae: Resident<Autoencoder>,
    config: VaeConfig,
    device: Device,
}

/// The tile and its overlap, in latent pixels. A picture that covers more than a tile is worked on in tiles,
/// so that memory does not grow with it; the person is told, because tiles differ a little from the whole.
const TILE: usize = 96;
const OVERLAP: usize = 16;

/// The tile for a picture of `height` × `width` latent pixels, the whole picture where that is small enough.
fn tile(cx: &Context, height: usize, width: usize) -> usize {
    if height * width <= TILE * TILE {
        return height.max(width).max(OVERLAP + 1);
    }
    cx.info(format!(
        "the picture has {width} × {height} latent pixels and is worked on in tiles of {TILE}: it differs a \
         little from the whole, which VAEDecodeTiled and VAEEncodeTiled give for a tile_size of twice the \
         longer side"
    ));
    TILE
}

impl Export for VaeModel {
    const TYPE: &'static str = "VAE";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![VaeModel:
        marker::VaeDecode, marker::VaeEncode, marker::VaeDecodeTiled, marker::VaeEncodeTiled,
        marker::Describe, marker::Memory];
}

impl interface::Autoencode for VaeModel {
    fn decode(&self, cx: &Context, latents: &Tensor) -> Result<Tensor> {
        let latents = self.unscaled(latents)?;
        let (batch, _, height, width) = latents.dims4()?;
        ask(batch, height * self.config.factor(), width * self.config.factor())?;
        let (tile, vae) = (tile(cx, height, width), self.vae.get()?);
        // One by one, so that memory does not grow with their number.
        let picture = |i| picture(&vae.decode_tiled(&latents.narrow(0, i, 1)?, tile, OVERLAP)?);
        let pictures = (0..batch).map(picture).collect::<Result<Vec<_>>>()?;
        export(&Candle::cat(&pictures, 0)?)
    }

    fn encode(&self, cx: &Context, image: &Tensor) -> Result<Tensor> {
        let image = self.pixels(cx, image)?;
        let (batch, _, height, width) = image.dims4()?;
        let factor = self.config.factor();
        let (tile, vae) = (tile(cx, height / factor, width / factor), self.vae.get()?);
        let latent = |i| {
            let posterior = vae.encode_tiled(&image.narrow(0, i, 1)?, tile, OVERLAP)?;
            Ok((posterior.mode() * self.config.scaling_factor())?)
        };
        let latents = (0..batch).map(latent).collect::<Result<Vec<_>>>()?;
        export(&Candle::cat(&latents, 0)?)
    }
}

impl interface::AutoencodeTiled for VaeModel {
    fn decode_tiled(
        &self,
        cx: &Context,
        latents: &Tensor,
        tile: usize,
        overlap: usize,
    ) -> Result<Tensor> {
        let latents = self.unscaled(latents)?;
        let (batch, _, height, width) = latents.dims4()?;
        ask(batch, height * self.config.factor(), width * self.config.factor())?;
        let feathering = Feathering { tile, overlap };
        let decoded = self.vae.get()?.decode_feathered(&latents, feathering, &mut observe(cx));
        export(&picture(&decoded.map_err(stopped)?)?)
    }

    fn encode_tiled(
        &self,
        cx: &Context,
        image: &Tensor,
        tile: usize,
        overlap: usize,
    ) -> Result<Tensor> {
        let image = self.pixels(cx, image)?;
        let feathering = Feathering { tile, overlap };
        let encoded = self.vae.get()?.encode_feathered(&image, feathering, &mut observe(cx));
        export(&(encoded.map_err(stopped)? * self.config.scaling_factor())?)
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

    /// Latents as the autoencoder has them, from those of the U-Net.
    fn unscaled(&self, latents: &Tensor) -> Result<Candle> {
        Ok((import(latents, &self.device)? / self.config.scaling_factor())?)
    }

    /// A picture of the boundary as the autoencoder has it.
    fn pixels(&self, cx: &Context, image: &Tensor) -> Result<Candle> {
        pixels(cx, image, self.config.factor(), &self.device)
    }
}

/// Whether there is memory for the pictures, which are there twice when they are put together.
pub fn ask(batch: usize, height: usize, width: usize) -> Result<()> {
    Ok(memory::ask("decoding the pictures", &[2, batch, height, width, 3], size_of::<f32>())?)
}

/// An autoencoder's picture [B, 3, H, W] in -1..1 as the boundary has it, [B, H, W, 3] in 0..1.
pub fn picture(decoded: &Candle) -> Result<Candle> {
    let image = decoded.affine(0.5, 0.5)?.clamp(0f32, 1f32)?;
    Ok(image.permute((0, 2, 3, 1))?.contiguous()?)
}

/// A picture of the boundary as an autoencoder has it that makes it `factor` times as small.
pub fn pixels(cx: &Context, image: &Tensor, factor: usize, device: &Device) -> Result<Candle> {
    // Cut, turned and brought to its range, it is there twice at once.
    let shape = [&[2], &image.shape()[..]].concat();
    memory::ask("the pictures as the autoencoder takes them", &shape, size_of::<f32>())?;
    let image = crop(cx, &import(image, device)?, factor)?;
    Ok(image.permute((0, 3, 1, 2))?.contiguous()?.affine(2.0, -1.0)?)
}

/// The picture's middle, cut to whole latent pixels, its first three channels.
fn crop(cx: &Context, image: &Candle, factor: usize) -> Result<Candle> {
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
