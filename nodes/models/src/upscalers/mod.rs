//! Networks that make pictures larger: pictures [B, 3, H, W] in 0..1 → [B, 3, s·H, s·W], about 0..1.
//!
//! - [`rrdb`]: ESRGAN and Real-ESRGAN. Its three ways to name tensors are `rrdb_names`'.
//! - [`compact`]: Real-ESRGAN's small network (SRVGGNetCompact).
//! - [`swinir`]: a transformer within windows.
//!
//! [`Upscaler::open`] tells by the tensors' names which of them a file is, and reads its sizes off the shapes.

pub mod compact;
mod open;
mod pixels;
pub mod rrdb;
mod rrdb_names;
pub mod swinir;
#[cfg(test)]
mod tests;

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::feathered::{Observe, one_by_one, tiled_once};
use crate::files::weights::Weights;
use compact::{Compact, CompactConfig};
pub use open::open;
use rrdb::{RrdbConfig, RrdbNet};
use swinir::{SwinIr, SwinIrConfig};

/// What a file's shapes say of the network in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpscalerConfig {
    Rrdb(RrdbConfig),
    Compact(CompactConfig),
    SwinIr(SwinIrConfig),
}

impl UpscalerConfig {
    /// How many times as large the picture becomes, along each edge.
    pub fn scale(&self) -> usize {
        match self {
            UpscalerConfig::Rrdb(config) => config.scale(),
            UpscalerConfig::Compact(config) => config.scale,
            UpscalerConfig::SwinIr(config) => config.scale(),
        }
    }

    /// The family, as people know it.
    pub fn family(&self) -> &'static str {
        match self {
            UpscalerConfig::Rrdb(_) => "esrgan",
            UpscalerConfig::Compact(_) => "real-esrgan-compact",
            UpscalerConfig::SwinIr(_) => "swinir",
        }
    }

    /// The least that lies between the layers at once for a picture of `height` × `width`, in numbers of f32.
    fn between_layers(&self, height: usize, width: usize) -> u128 {
        let numbers = match self {
            UpscalerConfig::Rrdb(config) => config.between_layers(),
            UpscalerConfig::Compact(config) => config.between_layers(),
            UpscalerConfig::SwinIr(config) => config.between_layers(),
        };
        (height as u128 * width as u128).saturating_mul(numbers as u128)
    }
}

/// How tiles lie; sizes are in pixels of the small picture.
#[derive(Clone, Copy, Debug)]
pub struct Tiling {
    pub tile: usize,
    pub overlap: usize,
}

/// The smallest tile that is tried where memory is short (ComfyUI).
pub const SMALLEST_TILE: usize = 128;

/// An upscaler.
pub struct Upscaler {
    network: Network,
    config: UpscalerConfig,
}

enum Network {
    Rrdb(Box<RrdbNet>),
    Compact(Compact),
    SwinIr(Box<SwinIr>),
}

impl Upscaler {
    /// Reads the tensors that `config` asks for, from weights that [`open`] gave.
    ///
    /// # Errors
    /// A tensor is missing, of another shape, or damaged.
    pub fn load(weights: &Weights, config: &UpscalerConfig) -> Result<Self> {
        let network = match config {
            UpscalerConfig::Rrdb(config) => {
                Network::Rrdb(Box::new(RrdbNet::load(weights, config)?))
            }
            UpscalerConfig::Compact(config) => Network::Compact(Compact::load(weights, config)?),
            UpscalerConfig::SwinIr(config) => {
                Network::SwinIr(Box::new(SwinIr::load(weights, config)?))
            }
        };
        Ok(Self { network, config: config.clone() })
    }

    pub fn config(&self) -> &UpscalerConfig {
        &self.config
    }

    /// `image` [B, 3, H, W] in 0..1 → [B, 3, s·H, s·W], not clamped.
    ///
    /// # Errors
    /// The picture has another number of channels or no pixels; there is not the memory for what lies between the layers.
    pub fn upscale(&self, image: &Tensor) -> Result<Tensor> {
        match image.dims() {
            [_, 3, height, width] if *height > 0 && *width > 0 => self.ask(image)?,
            shape => {
                return Err(Error::Input(format!(
                    "the picture is {shape:?}, an upscaler takes [batch, 3, height, width]"
                )));
            }
        }
        Ok(match &self.network {
            Network::Rrdb(network) => network.forward(image)?,
            Network::Compact(network) => network.forward(image)?,
            Network::SwinIr(network) => network.forward(image)?,
        })
    }

    /// [`Upscaler::upscale`], the pictures one after the other and each in square tiles that fade into each other, as ComfyUI does
    /// (`tile` 512, `overlap` 32). A picture that fits into a tile is computed whole. The tile is halved, down to
    /// [`SMALLEST_TILE`], as long as there is not the memory for one.
    ///
    /// # Errors
    /// As [`Upscaler::upscale`]; the tile is not larger than the overlap; or what `observe` says.
    pub fn upscale_tiled(
        &self,
        image: &Tensor,
        tiling: Tiling,
        observe: Observe<'_>,
    ) -> Result<Tensor> {
        let (batch, _, height, width) = image.dims4()?;
        let tile = self.tile_that_fits(image, tiling);
        one_by_one(batch, observe, |i, observe| {
            let image = image.narrow(0, i, 1)?;
            let compute = |y: std::ops::Range<usize>, x: std::ops::Range<usize>| {
                self.upscale(&image.narrow(2, y.start, y.len())?.narrow(3, x.start, x.len())?)
            };
            let tiling = (tile, tiling.overlap);
            tiled_once((height, width), self.config.scale(), tiling, compute, observe)
        })
    }

    /// The tile, halved until there is memory for one.
    fn tile_that_fits(&self, image: &Tensor, tiling: Tiling) -> usize {
        let side = |axis: usize, tile: usize| image.dims().get(axis).map_or(0, |n| tile.min(*n));
        let mut tile = tiling.tile;
        while tile / 2 >= SMALLEST_TILE.max(tiling.overlap + 1)
            && self.ask_for(image, side(2, tile), side(3, tile)).is_err()
        {
            tile /= 2;
        }
        tile
    }

    fn ask(&self, image: &Tensor) -> Result<()> {
        let (batch, _, height, width) = image.dims4()?;
        self.ask_for(image, batch.saturating_mul(height), width)
    }

    /// Whether there is memory for what lies between the layers. (What a GPU has, it says itself.)
    fn ask_for(&self, image: &Tensor, height: usize, width: usize) -> Result<()> {
        if image.device().is_cpu() {
            let bytes =
                self.config.between_layers(height, width).saturating_mul(size_of::<f32>() as u128);
            let what = format_args!("the upscaler, at work on {width} x {height} pixels at once,");
            kosmograph_memory::ask_bytes(what, bytes, "")?;
        }
        Ok(())
    }
}
