//! LatentUpscale and LatentUpscaleBy: latents at another size, the first half of a second pass.

use node::*;

use crate::latent_resize::{Dims, Method, crop_center, resize};

/// Scales latents to the size of a picture in pixels; 0 for one side keeps the proportions.
#[derive(Inputs)]
#[node(category = "latent", memory = [0.0625, width, height])]
pub struct LatentUpscale {
    /// What is scaled.
    samples: Latent,
    /// nearest-exact repeats values, bilinear and bicubic mix neighbours, area takes means, bislerp turns from one to the other.
    #[widget(default = "nearest-exact", choices = Method::NAMES)]
    upscale_method: String,
    /// Width of the picture in pixels.
    #[widget(default = 512, min = 0, max = 16384, step = 8)]
    width: i64,
    /// Height of the picture in pixels.
    #[widget(default = 512, min = 0, max = 16384, step = 8)]
    height: i64,
    /// center cuts off what does not fit the new proportions, disabled stretches.
    #[widget(default = "disabled", choices = ["disabled", "center"])]
    crop: String,
}

impl Node for LatentUpscale {
    outputs![LATENT: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        let samples = self.samples.samples()?;
        let (_, _, height, width) = dims(&samples);
        // Pixels here, latent pixels at the end: eight of one are one of the other, and 64 the least.
        let of = |side: i64| (side as usize).max(64);
        let in_proportion = |given: usize, side: usize, other: usize| {
            ((side as f64 * given as f64 / other as f64).round_ties_even() as usize).max(64)
        };
        let (to_width, to_height) = match (self.width, self.height) {
            (0, 0) => return Ok(self.samples),
            (0, given) => (in_proportion(of(given), width, height), of(given)),
            (given, 0) => (of(given), in_proportion(of(given), height, width)),
            (width, height) => (of(width), of(height)),
        };
        let to = (to_height / 8, to_width / 8);
        let scaled = scaled(&samples, to, &self.upscale_method, self.crop == "center")?;
        Ok(self.samples.with_samples(scaled))
    }
}

/// Scales both sides of latents by a factor.
#[derive(Inputs)]
#[node(category = "latent")]
pub struct LatentUpscaleBy {
    /// What is scaled.
    samples: Latent,
    /// As in LatentUpscale.
    #[widget(default = "nearest-exact", choices = Method::NAMES)]
    upscale_method: String,
    /// The factor.
    #[widget(default = 1.5, min = 0.01, max = 8.0, step = 0.01)]
    scale_by: f64,
}

impl Node for LatentUpscaleBy {
    outputs![LATENT: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        let samples = self.samples.samples()?;
        let (_, _, height, width) = dims(&samples);
        let times = |side: usize| ((side as f64 * self.scale_by).round_ties_even() as usize).max(1);
        let to = (times(height), times(width));
        Ok(self.samples.with_samples(scaled(&samples, to, &self.upscale_method, false)?))
    }
}

fn dims(samples: &Tensor) -> (usize, usize, usize, usize) {
    let shape = samples.shape();
    (shape[0], shape[1], shape[2], shape[3])
}

fn scaled(
    samples: &Tensor,
    (height, width): (usize, usize),
    method: &str,
    crop: bool,
) -> Result<Tensor> {
    let (batch, channels, old_height, old_width) = dims(samples);
    let shape: Dims = [batch, channels, height, width];
    let method = Method::named(method).ok_or_else(|| {
        let choices = Method::NAMES.join(", ");
        Error::at("upscale_method", format!("\"{method}\" is not one of: {choices}"))
    })?;
    memory::ask("the latents", &shape, size_of::<f32>())?;
    if method == Method::Bislerp {
        // What lies between its passes, and its copies with rows for columns.
        memory::ask("scaling the latents by bislerp", &[3, batch, channels, height, width], 4)?;
    }
    let values = samples.to_f32()?;
    let old = [batch, channels, old_height, old_width];
    let values = if crop {
        let (cropped, values) = crop_center(&values, old, (height, width))?;
        resize(&values, cropped, (height, width), method)?
    } else {
        resize(&values, old, (height, width), method)?
    };
    Tensor::from_f32(&shape, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_and_keys() {
        let samples = Tensor::from_f32(&[2, 4, 3, 5], vec![0.5; 120]).unwrap();
        let to = scaled(&samples, (6, 7), "bislerp", true).unwrap();
        assert_eq!(to.shape(), [2, 4, 6, 7]);
        assert!(to.to_f32().unwrap().iter().all(|value| (value - 0.5).abs() < 1e-6));
        let large = scaled(&samples, (1 << 20, 1 << 20), "area", false).unwrap_err().to_string();
        assert!(large.starts_with("the latents would take 35.2 TB"), "{large}");
        assert!(scaled(&samples, (1, 1), "lanczos", false).is_err());
    }
}
