//! TAESD as a VAE object, and as the eye of a sampler that shows previews.

use std::path::Path;

use candle_core::Device;
use kosmograph_models::Resident;
use kosmograph_models::stable_diffusion::checkpoint::Checkpoint;
use kosmograph_models::stable_diffusion::taesd::{FACTOR, Taesd, TaesdConfig, TaesdWeights};
use kosmograph_models::stable_diffusion::vae_feathered::Feathering;
use node::interface::{self, marker};
use node::*;
use node_candle::{export, import};

use crate::observe::{observe, stopped};
use crate::vae::{ask, picture, pixels};

/// A tiny autoencoder behind "vae_decode/1" and "vae_encode/1". Its numbers are read when it is first called.
pub struct TinyVae {
    taesd: Resident<Taesd>,
    config: TaesdConfig,
    device: Device,
    /// What its latents, a U-Net's own, are that family's autoencoder's times, where that is known.
    scaling_factor: Option<f64>,
}

impl TinyVae {
    /// A TAESD of these weights, on their device. The files' headers are checked against `config`.
    ///
    /// # Errors
    /// The weights are of another model than `config` says.
    pub fn new(config: TaesdConfig, halves: TaesdWeights) -> kosmograph_models::Result<Self> {
        let either = halves.decoder.as_ref().or(halves.encoder.as_ref());
        let device = either.map_or(Device::Cpu, |weights| weights.device().clone());
        let bytes = halves.check(&config)?;
        let taesd = {
            let config = config.clone();
            Resident::new(bytes, move || {
                if let Some(weights) = halves.decoder.as_ref().or(halves.encoder.as_ref()) {
                    weights.ask(bytes)?;
                }
                Taesd::load(&halves, &config)
            })
        };
        Ok(Self { taesd, config, device, scaling_factor: None })
    }

    /// The same, whose latents are those of its family's autoencoder times `scaling_factor`.
    pub fn of_latents(self, scaling_factor: Option<f64>) -> Self {
        Self { scaling_factor, ..self }
    }
}

impl Export for TinyVae {
    const TYPE: &'static str = "VAE";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![TinyVae:
        marker::VaeDecode, marker::VaeEncode, marker::VaeDecodeTiled, marker::VaeEncodeTiled,
        marker::Describe, marker::Memory];
}

impl interface::Autoencode for TinyVae {
    fn decode(&self, _cx: &Context, latents: &Tensor) -> Result<Tensor> {
        let latents = import(latents, &self.device)?;
        let (batch, _, height, width) = latents.dims4()?;
        ask(batch, height * FACTOR, width * FACTOR)?;
        let taesd = self.taesd.get()?;
        // One by one, so that memory does not grow with their number.
        let decode = |i| picture(&taesd.decode(&latents.narrow(0, i, 1)?)?);
        let pictures = (0..batch).map(decode).collect::<Result<Vec<_>>>()?;
        export(&candle_core::Tensor::cat(&pictures, 0)?)
    }

    fn encode(&self, cx: &Context, image: &Tensor) -> Result<Tensor> {
        let image = pixels(cx, image, FACTOR, &self.device)?;
        let taesd = self.taesd.get()?;
        let encode = |i| Ok(taesd.encode(&image.narrow(0, i, 1)?)?);
        let latents = (0..image.dim(0)?).map(encode).collect::<Result<Vec<_>>>()?;
        export(&candle_core::Tensor::cat(&latents, 0)?)
    }
}

impl interface::AutoencodeTiled for TinyVae {
    fn decode_tiled(
        &self,
        cx: &Context,
        latents: &Tensor,
        tile: usize,
        overlap: usize,
    ) -> Result<Tensor> {
        let latents = import(latents, &self.device)?;
        let (batch, _, height, width) = latents.dims4()?;
        ask(batch, height * FACTOR, width * FACTOR)?;
        let feathering = Feathering { tile, overlap };
        let decoded = self.taesd.get()?.decode_feathered(&latents, feathering, &mut observe(cx));
        export(&picture(&decoded.map_err(stopped)?)?)
    }

    fn encode_tiled(
        &self,
        cx: &Context,
        image: &Tensor,
        tile: usize,
        overlap: usize,
    ) -> Result<Tensor> {
        let image = pixels(cx, image, FACTOR, &self.device)?;
        let feathering = Feathering { tile, overlap };
        let encoded = self.taesd.get()?.encode_feathered(&image, feathering, &mut observe(cx));
        export(&encoded.map_err(stopped)?)
    }
}

impl interface::Describe for TinyVae {
    fn describe(&self) -> serde_json::Value {
        let mut described = json!({
            "family": "taesd",
            "latent_channels": self.config.latent_channels,
            "downscale": FACTOR,
            "bytes": self.taesd.bytes(),
        });
        if let Some(scale) = self.scaling_factor {
            described["scaling_factor"] = scale.into();
        }
        described
    }
}

impl interface::Memory for TinyVae {
    fn bytes(&self, purge: bool) -> usize {
        if purge {
            self.taesd.release();
        }
        self.taesd.held()
    }
}

/// A TAESD's decoder that shows a sampler's latents.
pub struct PreviewDecoder {
    taesd: Taesd,
    device: Device,
}

impl PreviewDecoder {
    /// The decoder in the file at `path`, for latents of `channels`.
    ///
    /// # Errors
    /// It is none, or one for other latents.
    pub fn open(path: &Path, channels: usize, device: &Device) -> Result<Self> {
        let (config, halves) = Checkpoint::open(path, device)?.taesd()?;
        let config = TaesdConfig { encoder: None, ..config };
        let halves = TaesdWeights { encoder: None, ..halves };
        if config.decoder.is_none() || config.latent_channels != channels {
            return Err(Error::new(format!(
                "{} is no decoder for latents of {channels} channels",
                path.display()
            )));
        }
        halves.check(&config)?;
        Ok(Self { taesd: Taesd::load(&halves, &config)?, device: device.clone() })
    }

    /// The picture [1, H, W, 3] in 0..1 of `latents` [1, C, h, w].
    ///
    /// # Errors
    /// What decoding reports.
    pub fn picture(&self, latents: &candle_core::Tensor) -> Result<Tensor> {
        export(&picture(&self.taesd.decode(&latents.to_device(&self.device)?)?)?)
    }
}
