//! ImageAddNoise: noise of torch's on pictures. It stands here, where torch's generator is.

use kosmograph_models::samplers::randn::Generator;
use node::*;

/// Adds noise to pictures, the same of a seed as ComfyUI.
#[derive(Inputs)]
#[node(category = "image")]
pub struct ImageAddNoise {
    /// The pictures.
    image: Image,
    /// What the noise is drawn from.
    #[widget(seed, default = 0)]
    seed: u64,
    /// How strong it is: its deviation, where 1 is from black to white.
    #[widget(default = 0.5, min = 0.0, max = 1.0, step = 0.01)]
    strength: f64,
}

impl Node for ImageAddNoise {
    outputs![IMAGE: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let shape = self.image.0.shape();
        memory::ask("the noise of the pictures", &[&[2], &shape[..]].concat(), size_of::<f32>())?;
        let values = self.image.0.to_vec()?;
        let noise = Generator::new(self.seed).randn(values.len());
        let strength = self.strength as f32;
        let noisy = values
            .iter()
            .zip(noise)
            .map(|(value, noise)| (value + strength * noise).clamp(0.0, 1.0));
        Ok(Image(Tensor::from_f32(&shape, noisy.collect())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::testing::Host;

    /// By torch 2.15: torch.clip(image + 0.5 * torch.randn(…, generator=torch.manual_seed(42)), 0, 1).
    #[test]
    fn noise_is_torchs() -> Result<()> {
        let values = (0..72).map(|i| ((i * 7) % 10) as f32 / 10.0).collect();
        let image = Image(Tensor::from_f32(&[2, 3, 4, 3], values)?);
        let host = Host::new();
        let noisy = ImageAddNoise { image, seed: 42, strength: 0.5 }.run(&host.context())?;
        let noisy = noisy.0.to_vec()?;
        let first = [
            0.963458, 1.0, 0.850359, 0.0, 1.0, 0.0, 0.178466, 0.097667, 0.223932, 1.0, 0.0, 0.0,
            0.036059, 0.0, 0.415581, 0.881223, 1.0, 0.820201, 0.351301, 0.519795, 0.0, 1.0, 0.8004,
            0.94031,
        ];
        let last = [0.155096, 1.0, 0.31778, 0.82815, 0.0, 1.0];
        let pairs = noisy.iter().zip(&first).chain(noisy[66..].iter().zip(&last));
        for (found, expected) in pairs {
            assert!((found - expected).abs() < 2e-6, "{found} for {expected}");
        }
        Ok(())
    }
}
