//! The noise of a sampling, from its seed.

use candle_core::{Device, Tensor as Candle};
use kosmograph_models::samplers::randn::Generator;
use kosmograph_models::samplers::{self, NoiseSampler, StepNoise, TorchNoise};
use node::*;

/// How noise is drawn for several pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// One torch `randn` over the whole batch: ComfyUI's, and diffusers' with one generator.
    Batch,
    /// Picture i has the noise that seed + i gives a single one.
    PerItem,
}

impl Draw {
    pub const NAMES: [&'static str; 2] = ["batch", "per item"];

    pub fn named(name: &str) -> Self {
        if name == "per item" { Self::PerItem } else { Self::Batch }
    }
}

/// The last place in a batch that noise is drawn for: all before it are drawn too.
const LAST_PLACE: i64 = 1 << 20;

/// Unit noise for latents [B, C, H, W].
#[derive(Clone)]
pub struct Seeded {
    seed: u64,
    draw: Draw,
    /// The place that each latent had in its batch, where it was taken out of one.
    places: Option<Vec<usize>>,
    dims: [usize; 4],
    device: Device,
}

impl Seeded {
    /// # Errors
    /// The latents' "batch_index" is not one place for each of them.
    pub fn new(seed: u64, draw: Draw, latent: &Latent, device: &Device) -> Result<Self> {
        let (shape, places) = (latent.samples()?.shape(), latent.batch_index()?);
        Self::of_shape(seed, draw, &shape, places.as_deref(), device)
    }

    /// For latents of that shape, which had these places in their batch.
    ///
    /// # Errors
    /// They are not one place for each, or the shape has other than four axes.
    pub fn of_shape(
        seed: u64,
        draw: Draw,
        shape: &[usize],
        places: Option<&[i64]>,
        device: &Device,
    ) -> Result<Self> {
        let dims: [usize; 4] = shape.try_into().map_err(|_| {
            Error::new(format!("latents have the axes [B, C, H, W], not the shape {shape:?}"))
        })?;
        let places = places.map(|places| {
            let inside = places.iter().all(|place| (0..=LAST_PLACE).contains(place));
            if places.len() != dims[0] || !inside {
                return Err(Error::new(format!(
                    "LATENT: \"batch_index\" gives {} places for {} latents; one for each, from 0 to \
                     {LAST_PLACE}, would be right",
                    places.len(),
                    dims[0]
                )));
            }
            Ok(places.iter().map(|place| *place as usize).collect())
        });
        Ok(Self { seed, draw, places: places.transpose()?, dims, device: device.clone() })
    }

    /// The noise that sampling would begin with, one seed further on.
    pub fn one_further(&self) -> Result<Candle> {
        Self { seed: self.seed.wrapping_add(1), ..self.clone() }.first()
    }

    /// The noise that sampling begins with.
    pub fn first(&self) -> Result<Candle> {
        let item: usize = self.dims[1..].iter().product();
        let values = match (self.draw, &self.places) {
            (Draw::Batch, None) => Generator::new(self.seed).randn(self.dims[0] * item),
            (Draw::Batch, Some(places)) => {
                // As ComfyUI: drawn one by one, in the order of the whole batch.
                let mut generator = Generator::new(self.seed);
                let last = places.iter().copied().max().unwrap_or(0);
                let mut values = vec![0f32; self.dims[0] * item];
                for place in 0..=last {
                    let noise = generator.randn(item);
                    for (i, _) in places.iter().enumerate().filter(|(_, at)| **at == place) {
                        values[i * item..][..item].copy_from_slice(&noise);
                    }
                }
                values
            }
            (Draw::PerItem, _) => {
                let seeds = self.item_seeds();
                seeds.into_iter().flat_map(|seed| Generator::new(seed).randn(item)).collect()
            }
        };
        Ok(Candle::from_vec(values, &self.dims[..], &self.device)?)
    }

    fn item_seeds(&self) -> Vec<u64> {
        let place = |i: usize| self.places.as_ref().map_or(i, |places| places[i]) as u64;
        (0..self.dims[0]).map(|i| self.seed.wrapping_add(place(i))).collect()
    }

    /// The `noise` of the steps, for latents like `x` sampled over `sigmas`.
    pub fn of_steps(&self, noise: StepNoise, x: &Candle, sigmas: &[f64]) -> Result<EachItem> {
        if self.draw == Draw::Batch {
            return Ok(EachItem(vec![TorchNoise::new(noise, self.seed, x, sigmas)]));
        }
        let item = |(i, seed)| Ok(TorchNoise::new(noise, seed, &x.narrow(0, i, 1)?, sigmas));
        let items = self.item_seeds().into_iter().enumerate().map(item);
        items.collect::<Result<_>>().map(EachItem)
    }
}

/// The noise of each step: one torch generator's for the whole batch, or one's for each picture.
pub struct EachItem(Vec<TorchNoise>);

impl NoiseSampler for EachItem {
    fn sample(&mut self, sigma: f64, next: f64) -> samplers::Result<Candle> {
        let items = self.0.iter_mut().map(|item| item.sample(sigma, next));
        Ok(Candle::cat(&items.collect::<Result<Vec<_>, _>>()?, 0)?)
    }
}
