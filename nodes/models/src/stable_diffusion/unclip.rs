//! Pictures in the place of a text's pooled vector, as unCLIP gives them to a U-Net: Ramesh et al., "Hierarchical Text-Conditional Image
//! Generation with CLIP Latents", arXiv 2204.06125. SDXL takes them so without any training for it ("Revision").
//!
//! The embedding of CLIP's picture half is made noisy like a latent, at a level that says how freely the U-Net may read it.

use candle_core::{Device, Result as CandleResult, Tensor};

use crate::error::{Error, Result};
use crate::samplers::randn::Generator;

/// Noise levels; the last one is nearly all noise.
const LEVELS: usize = 1000;

/// A picture that is drawn after.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Of CLIP's picture half, [B, P]: each row counts by itself.
    pub embeds: Tensor,
    pub strength: f64,
    /// 0, the embedding as it is, to 1.
    pub noise_augmentation: f64,
}

/// The pooled vector [1, `width`] that stands for `pictures`, with noise of `seed`, as ComfyUI computes it: each embedding made noisy
/// and times its strength; the sum of several made noisy once more, at the lowest level.
///
/// # Errors
/// There is no picture, or an embedding is of another width.
pub fn pooled(pictures: &[Picture], width: usize, seed: u64, device: &Device) -> Result<Tensor> {
    let levels = alphas_cumprod();
    // Every embedding gets the same noise; ComfyUI tells it from the latents' by this much.
    let noise = Generator::new(seed.wrapping_sub(10)).randn(width);
    let noise = Tensor::from_vec(noise, (1, width), device)?;
    let noisy = |x: &Tensor, augmentation: f64| -> CandleResult<Tensor> {
        let level = ((LEVELS - 1) as f64 * augmentation).round_ties_even() as usize;
        let kept = levels[level.min(LEVELS - 1)];
        (x * f64::from(kept.sqrt()))? + (&noise * f64::from((1.0 - kept).sqrt()))?
    };
    let mut all = Vec::new();
    for Picture { embeds, strength, noise_augmentation } in pictures {
        let (rows, found) = embeds.dims2()?;
        if found != width {
            return Err(Error::Input(format!(
                "a picture's embedding is {found} numbers wide, but the model takes {width}: it was made by a CLIP vision model \
                 that does not share its space with the model's text encoder (for SDXL that is ViT-bigG)"
            )));
        }
        let embeds = embeds.to_device(device)?;
        for row in 0..rows {
            all.push((noisy(&embeds.narrow(0, row, 1)?, *noise_augmentation)? * *strength)?);
        }
    }
    let Some((first, others)) = all.split_first() else {
        return Err(Error::Input("there is no picture to draw after".to_owned()));
    };
    if others.is_empty() {
        return Ok(first.clone());
    }
    let sum = others.iter().try_fold(first.clone(), |sum, one| sum + one)?;
    Ok(noisy(&sum, 0.0)?)
}

/// How much of the embedding is left at each level: the cosine schedule of Nichol & Dhariwal, arXiv 2102.09672, in f32.
fn alphas_cumprod() -> Vec<f32> {
    let bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
    let at = |i: usize| i as f64 / LEVELS as f64;
    let alpha = |i: usize| 1.0 - (1.0 - bar(at(i + 1)) / bar(at(i))).min(0.999) as f32;
    let mut product = 1f32;
    (0..LEVELS)
        .map(|i| {
            product *= alpha(i);
            product
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embeds(rows: usize) -> Tensor {
        let value = |i: usize| (i as f32 * 0.37).sin() * 2.0;
        let numbers = (0..rows * 32).map(value).collect();
        Tensor::from_vec(numbers, (rows, 32), &Device::Cpu).expect("a tensor")
    }

    fn close(pictures: &[Picture], seed: u64, wanted: [f32; 4]) {
        let pooled = pooled(pictures, 32, seed, &Device::Cpu).expect("a vector");
        assert_eq!(pooled.dims(), [1, 32]);
        let numbers: Vec<f32> =
            pooled.flatten_all().and_then(|flat| flat.to_vec1()).expect("numbers");
        for (place, wanted) in [0, 1, 16, 31].into_iter().zip(wanted) {
            let got = numbers[place];
            assert!((got - wanted).abs() <= 2e-5 * 2.0, "{place}: {got}, {wanted}");
        }
    }

    /// Against torch: `torch.randn((1, 32), generator=torch.Generator().manual_seed(seed - 10))` and the formulas above.
    #[test]
    fn pictures_are_made_noisy_as_torch_does() {
        let one = |strength, noise_augmentation| Picture {
            embeds: embeds(1),
            strength,
            noise_augmentation,
        };
        close(&[one(1.0, 0.0)], 7, ONE_CLEAN);
        close(&[one(0.75, 0.4)], 7, ONE_NOISY);
        // A seed below 10 goes around.
        let two = Picture { embeds: embeds(2), strength: -0.5, noise_augmentation: 1.0 };
        close(&[one(0.75, 0.1), two], 123, THREE);
    }

    const ONE_CLEAN: [f32; 4] = [-0.002006645, 0.7200245, -0.7164911, -1.802785];
    const ONE_NOISY: [f32; 4] = [-0.1393267, 0.2143694, -0.8448114, -2.718831];
    const THREE: [f32; 4] = [0.1637066, 0.9776545, -0.04413169, -0.5510355];

    #[test]
    fn what_does_not_fit_is_told() {
        let picture = Picture { embeds: embeds(1), strength: 1.0, noise_augmentation: 0.0 };
        let told = |pictures: &[Picture], width| {
            pooled(pictures, width, 1, &Device::Cpu).expect_err("an error").to_string()
        };
        assert!(told(&[picture], 40).contains("32 numbers wide, but the model takes 40"));
        assert!(told(&[], 32).contains("no picture"));
    }
}
