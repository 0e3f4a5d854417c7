//! The UPSCALE_MODEL object.

use candle_core::{Device, Tensor as Candle};
use kosmograph_models::bounds::between;
use kosmograph_models::upscalers::{Tiling, Upscaler, UpscalerConfig};
use kosmograph_models::{Resident, Weights};
use node::interface::{self, marker};
use node::*;
use node_candle::{export, import};

use crate::observe::{observe, stopped};

/// An upscaler behind "upscale/1". Its numbers are read when it is first called.
pub struct Enlarger {
    upscaler: Resident<Upscaler>,
    config: UpscalerConfig,
    device: Device,
}

impl Enlarger {
    /// An upscaler of weights that `kosmograph_models::upscalers::open` gave, on their device. The file's header is checked against
    /// `config`.
    ///
    /// # Errors
    /// The weights are of another model than `config` says.
    pub fn new(config: UpscalerConfig, weights: Weights) -> kosmograph_models::Result<Self> {
        let device = weights.device().clone();
        let upscaler = {
            let config = config.clone();
            Resident::open(weights, &[], move |weights| Upscaler::load(weights, &config))?
        };
        Ok(Self { upscaler, config, device })
    }
}

impl Export for Enlarger {
    const TYPE: &'static str = "UPSCALE_MODEL";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![Enlarger: marker::Upscale, marker::Describe, marker::Memory];
}

impl interface::Upscale for Enlarger {
    fn upscale(
        &self,
        cx: &Context,
        image: &Tensor,
        tiles: Option<(usize, usize)>,
    ) -> Result<Tensor> {
        let image = import(image, &self.device)?;
        let (batch, height, width, _) = image.dims4()?;
        let scale = self.config.scale();
        let (rows, columns) = (height.saturating_mul(scale), width.saturating_mul(scale));
        // What the tiles add up to, and the pictures as they cross the boundary.
        memory::ask("the larger pictures", &[2, batch, rows, columns, 3], size_of::<f32>())?;
        let image = image.permute((0, 3, 1, 2))?.contiguous()?;
        let upscaler = self.upscaler.get()?;
        let larger = match tiles {
            Some((tile, overlap)) => {
                upscaler.upscale_tiled(&image, Tiling { tile, overlap }, &mut observe(cx))
            }
            None => upscaler.upscale(&image),
        };
        let larger = between(&larger.map_err(stopped)?, 0.0, 1.0)?;
        export(&Candle::permute(&larger, (0, 2, 3, 1))?.contiguous()?)
    }
}

impl interface::Describe for Enlarger {
    fn describe(&self) -> serde_json::Value {
        json!({
            "family": self.config.family(),
            "scale": self.config.scale(),
            "bytes": self.upscaler.bytes(),
        })
    }
}

impl interface::Memory for Enlarger {
    fn bytes(&self, purge: bool) -> usize {
        if purge {
            self.upscaler.release();
        }
        self.upscaler.held()
    }
}
