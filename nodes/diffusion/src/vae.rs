//! The VAE object: pictures [B, H, W, 3] in 0..1 and latents as the U-Net wants them, scaled.

use candle_core::{DType, Device, Tensor as Candle};
use kosmograph_models::bounds::between;
use kosmograph_models::stable_diffusion::vae::{Vae as Autoencoder, VaeConfig};
use kosmograph_models::stable_diffusion::vae_feathered::Feathering;
use kosmograph_models::{Resident, Weights};
use node::interface::{self, TensorInfo, marker};
use node::*;
use node_candle::{export, import};

use crate::observe::{observe, stopped};
use crate::weights;

/// An autoencoder behind "vae_decode/1" and "vae_encode/1". Its numbers are read when it is first
/// called.
pub struct VaeModel {
    vae: Resident<Autoencoder>,
    weights: Weights,
    config: VaeConfig,
    device: Device,
}

/// A picture that covers no more than this many latent pixels is always worked on whole.
const SMALL: usize = 96 * 96;
/// Where a larger one does not fit into memory it is worked on in the largest of these tiles that does, in latent pixels.
const TILES: [usize; 2] = [96, 64];
const OVERLAP: usize = 16;

/// A tile for pictures of `height` × `width` latent pixels: the whole picture where there is memory for it, as in ComfyUI. The
/// person is told which, because tiles differ a little from the whole. Called with the autoencoder in memory.
fn tile(cx: &Context, config: &VaeConfig, device: &Device, height: usize, width: usize) -> usize {
    let whole = height.max(width).max(OVERLAP + 1);
    if height.saturating_mul(width) <= SMALL {
        return whole;
    }
    let factor = config.factor();
    let needs = |height: usize, width: usize| {
        config.work_bytes(height.saturating_mul(factor), width.saturating_mul(factor))
    };
    let needed = needs(height, width);
    let there = if device.is_cpu() { there(cx, needed) } else { None };
    let shown = |bytes: u64| memory::Amount(bytes.into());
    let of_them =
        there.map_or(String::new(), |there| format!(", of which there are {}", shown(there)));
    if there.is_some_and(|there| needed <= there) {
        cx.info(format!(
            "the picture of {width} × {height} latent pixels is worked on whole: that takes about {} of memory{of_them}",
            shown(needed)
        ));
        return whole;
    }
    let fits = |tile: &&usize| there.is_none_or(|there| needs(**tile, **tile) <= there);
    let tile = TILES.iter().find(fits).copied().unwrap_or(TILES[TILES.len() - 1]);
    cx.info(format!(
        "the picture of {width} × {height} latent pixels is worked on in tiles of {tile} and differs a little from the whole, \
         which would take about {} of memory{of_them}",
        shown(needed)
    ));
    tile
}

/// How many bytes there are to work in: what the host's budget leaves, and of what the machine has three quarters, since
/// others take from it meanwhile. `None` where nobody knows.
fn there(cx: &Context, wanted: u64) -> Option<u64> {
    let machine = memory::available().map(|there| there.bytes / 4 * 3);
    [cx.room(wanted), machine].into_iter().flatten().min()
}

impl Export for VaeModel {
    const TYPE: &'static str = "VAE";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![VaeModel:
        marker::VaeDecode, marker::VaeEncode, marker::VaeDecodeTiled, marker::VaeEncodeTiled,
        marker::Weights, marker::Describe, marker::Memory];
}

impl interface::Autoencode for VaeModel {
    fn decode(&self, cx: &Context, latents: &Tensor) -> Result<Tensor> {
        let latents = self.unscaled(latents)?;
        let (batch, _, height, width) = latents.dims4()?;
        ask(batch, height * self.config.factor(), width * self.config.factor())?;
        let vae = self.vae.get()?;
        let tile = tile(cx, &self.config, &self.device, height, width);
        // One by one, so that memory does not grow with their number.
        let picture = |i| picture(&vae.decode_tiled(&latents.narrow(0, i, 1)?, tile, OVERLAP)?);
        let pictures = (0..batch).map(picture).collect::<Result<Vec<_>>>()?;
        export(&Candle::cat(&pictures, 0)?)
    }

    fn encode(&self, cx: &Context, image: &Tensor) -> Result<Tensor> {
        let image = self.pixels(cx, image)?;
        let (batch, _, height, width) = image.dims4()?;
        let factor = self.config.factor();
        let vae = self.vae.get()?;
        let tile = tile(cx, &self.config, &self.device, height / factor, width / factor);
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
            let (config, weights) = (config.clone(), weights.clone());
            Resident::open(weights, &[], move |weights| Autoencoder::load(weights, &config))?
        };
        Ok(Self { vae, weights, config, device })
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

impl interface::TellWeights for VaeModel {
    fn tensors(&self, _cx: &Context) -> Result<Vec<(String, TensorInfo)>> {
        Ok(weights::told(self.weights.tensors()))
    }

    fn tensor(&self, _cx: &Context, name: &str) -> Result<Tensor> {
        export(&self.weights.tensor(name)?.to_dtype(DType::F32)?)
    }
}

/// Whether there is memory for the pictures, which are there twice when they are put together.
pub fn ask(batch: usize, height: usize, width: usize) -> Result<()> {
    Ok(memory::ask("decoding the pictures", &[2, batch, height, width, 3], size_of::<f32>())?)
}

/// An autoencoder's picture [B, 3, H, W] in -1..1 as the boundary has it, [B, H, W, 3] in 0..1.
pub fn picture(decoded: &Candle) -> Result<Candle> {
    let image = between(&decoded.affine(0.5, 0.5)?, 0.0, 1.0)?;
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
        let mut described = json!({
            "family": "autoencoder-kl",
            "latent_channels": config.latent_channels(),
            "downscale": config.factor(),
            "scaling_factor": config.scaling_factor(),
            "bytes": self.vae.bytes(),
        });
        if let Some(unsaid) = config.unsaid() {
            described["unsaid"] = json!({"vae": unsaid});
        }
        described
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;
    use node::interface::Autoencode;
    use node::testing::Host;
    use std::collections::HashMap;

    /// An autoencoder of random weights that makes pictures half as large.
    fn small() -> VaeModel {
        let config = json!({
            "block_out_channels": [4, 8], "layers_per_block": 1, "norm_num_groups": 2,
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
            "mid_block_add_attention": false,
        });
        let config = VaeConfig::from_value(&config, "a small one's").expect("a configuration");
        let recording = Weights::recording();
        Autoencoder::load(&recording, &config).expect("a recording");
        let tensors = recording.recorded().into_iter().enumerate().map(|(seed, (name, shape))| {
            let value = |i: usize| ((i * 7 + seed * 5) % 11) as f32 / 11. - 0.4;
            let numbers = (0..shape.iter().product()).map(value).collect();
            (name, Candle::from_vec(numbers, shape, &Device::Cpu).expect("a tensor"))
        });
        let tensors: HashMap<_, _> = tensors.collect();
        let weights = Weights::from_tensors("random weights", tensors, &Device::Cpu);
        VaeModel::new(config, weights).expect("a VAE")
    }

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        let tensor = import(tensor, &Device::Cpu).expect("a tensor");
        tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("numbers")
    }

    #[test]
    fn large_pictures_are_whole_where_there_is_memory_and_tiles_beyond_it() {
        let vae = small();
        let latents = Candle::rand(-1f32, 1., (1, 4, 100, 110), &Device::Cpu).expect("latents");
        let image = Candle::rand(0f32, 1., (1, 200, 220, 3), &Device::Cpu).expect("a picture");
        let (latents, image) =
            (export(&latents).expect("latents"), export(&image).expect("a picture"));
        let needed = vae.config.work_bytes(200, 220);
        assert_eq!(needed, 200 * 220 * 4 * (2 * 8 + 2 * 4));
        let run = |room: Option<u64>| {
            let host =
                room.map_or_else(Host::new, |room| Host::new().with("room", &room.to_string()));
            let decoded = vae.decode(&host.context(), &latents).expect("a picture");
            let encoded = vae.encode(&host.context(), &image).expect("latents");
            (numbers(&decoded), numbers(&encoded), host.logs())
        };
        let (whole, moments, logs) = run(Some(needed));
        assert!(
            logs.len() == 2 && logs.iter().all(|line| line.contains("worked on whole")),
            "{logs:?}"
        );
        // Without a budget the machine's memory decides.
        assert!(run(None).0 == whole && run(None).1 == moments);
        // The whole is what the autoencoder itself makes.
        let own = vae.vae.get().expect("the network");
        let own = own.decode(&vae.unscaled(&latents).expect("latents")).expect("a picture");
        assert!(numbers(&export(&picture(&own).expect("a picture")).expect("a picture")) == whole);
        // In tiles it differs, and little: by what the normalisations see.
        for (room, tile) in
            [(needed - 1, "tiles of 96"), (needed / 3, "tiles of 64"), (0, "tiles of 64")]
        {
            let (decoded, encoded, logs) = run(Some(room));
            assert!(logs.len() == 2 && logs.iter().all(|line| line.contains(tile)), "{logs:?}");
            assert!(decoded != whole && encoded != moments);
            let mean = decoded.iter().zip(&whole).map(|(a, b)| (a - b).abs()).sum::<f32>();
            assert!(mean / (whole.len() as f32) < 0.1, "{mean}");
        }
    }

    #[test]
    fn small_pictures_ask_for_nothing() {
        let host = Host::new().with("room", "0");
        let latents = Candle::zeros((1, 4, 96, 96), DType::F32, &Device::Cpu).expect("latents");
        small().decode(&host.context(), &export(&latents).expect("latents")).expect("a picture");
        assert!(host.logs().is_empty(), "{:?}", host.logs());
    }
}
