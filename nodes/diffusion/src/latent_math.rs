//! Arithmetic of latents: LatentAdd, LatentSubtract, LatentMultiply, LatentInterpolate and LatentBlend.
//!
//! Of two latents the second is brought to the first's size and number, as ComfyUI does: scaled, the middle kept where the
//! proportions differ, and repeated or cut. Where they are of different families of models their numbers are at different scales, and
//! the second's are brought to the first's.

use kosmograph_pixels::torch::Mode;
use node::*;

use crate::latent_resize::{Dims, Method, crop_center, resize};

/// The sum of two latents.
#[derive(Inputs)]
#[node(category = "latent/advanced")]
pub struct LatentAdd {
    /// The first; its size is the result's.
    samples1: Latent,
    /// The second.
    samples2: Latent,
}

impl Node for LatentAdd {
    outputs![LATENT: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        each(self.samples1, &self.samples2, |a, b| a + b)
    }
}

/// The difference of two latents.
#[derive(Inputs)]
#[node(category = "latent/advanced")]
pub struct LatentSubtract {
    /// From which is taken; its size is the result's.
    samples1: Latent,
    /// What is taken away.
    samples2: Latent,
}

impl Node for LatentSubtract {
    outputs![LATENT: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        each(self.samples1, &self.samples2, |a, b| a - b)
    }
}

/// A multiple of a latent.
#[derive(Inputs)]
#[node(category = "latent/advanced")]
pub struct LatentMultiply {
    /// What is multiplied.
    samples: Latent,
    /// By what.
    #[widget(default = 1.0, min = -10.0, max = 10.0, step = 0.01)]
    multiplier: f64,
}

impl Node for LatentMultiply {
    outputs![LATENT: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        let samples = self.samples.samples()?;
        let by = self.multiplier as f32;
        let mut values = samples.to_vec()?;
        values.iter_mut().for_each(|value| *value *= by);
        Ok(self.samples.with_samples(Tensor::from_f32(&samples.shape(), values)?))
    }
}

/// Between two latents: at each place the direction is mixed, and the length by itself, so that the mean of two pictures is not paler
/// than they are.
#[derive(Inputs)]
#[node(category = "latent/advanced")]
pub struct LatentInterpolate {
    /// The first; its size is the result's.
    samples1: Latent,
    /// The second.
    samples2: Latent,
    /// The share of the first.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    ratio: f64,
}

impl Node for LatentInterpolate {
    outputs![LATENT: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        let (first, dims, a, b) = pair(&self.samples1, &self.samples2, Mode::Bilinear)?;
        let [batch, channels, height, width] = dims;
        let (plane, ratio) = (height * width, self.ratio as f32);
        let mut values = memory::filled("the latents", &dims, 0.0)?;
        for picture in 0..batch {
            interrupt::check()?;
            let first = picture * channels * plane;
            for place in first..first + plane {
                let at = |channel: usize| place + channel * plane;
                let length = |values: &[f32]| {
                    (0..channels).map(|c| values[at(c)] * values[at(c)]).sum::<f32>().sqrt()
                };
                let unit = |x: f32, length: f32| if length == 0.0 { 0.0 } else { x / length };
                let (length_a, length_b) = (length(&a), length(&b));
                for c in 0..channels {
                    let (a, b) = (unit(a[at(c)], length_a), unit(b[at(c)], length_b));
                    values[at(c)] = a * ratio + b * (1.0 - ratio);
                }
                let mixed = length(&values);
                let wanted = length_a * ratio + length_b * (1.0 - ratio);
                (0..channels).for_each(|c| values[at(c)] = unit(values[at(c)], mixed) * wanted);
            }
        }
        Ok(first.with_samples(Tensor::from_f32(&dims, values)?))
    }
}

/// The weighted mean of two latents.
#[derive(Inputs)]
#[node(category = "latent")]
pub struct LatentBlend {
    /// The first; its size is the result's.
    samples1: Latent,
    /// The second.
    samples2: Latent,
    /// The share of the first.
    #[widget(default = 0.5, min = 0.0, max = 1.0, step = 0.01)]
    blend_factor: f64,
}

impl Node for LatentBlend {
    outputs![LATENT: Latent];

    fn run(self, _cx: &Context) -> Result<Latent> {
        let share = self.blend_factor as f32;
        let (first, dims, mut a, b) = pair(&self.samples1, &self.samples2, Mode::Bicubic)?;
        a.iter_mut().zip(b).for_each(|(a, b)| *a = *a * share + b * (1.0 - share));
        Ok(first.with_samples(Tensor::from_f32(&dims, a)?))
    }
}

/// `of` each number of the first and the second's at its place.
fn each(first: Latent, second: &Latent, of: impl Fn(f32, f32) -> f32) -> Result<Latent> {
    let (first, dims, mut a, b) = pair(&first, second, Mode::Bilinear)?;
    a.iter_mut().zip(b).for_each(|(a, b)| *a = of(*a, b));
    Ok(first.with_samples(Tensor::from_f32(&dims, a)?))
}

/// The first, its numbers, and the second's at its scale, at its size and in its number.
fn pair(first: &Latent, second: &Latent, mode: Mode) -> Result<(Latent, Dims, Vec<f32>, Vec<f32>)> {
    let (first, second) = first.at_one_scale(second).map_err(|error| error.of_input("samples2"))?;
    let tensor = first.samples()?;
    let dims = dims(&tensor);
    let other = at_size(&second, &dims, mode).map_err(|error| error.of_input("samples2"))?;
    let row: usize = dims[1..].iter().product();
    let mut repeated = memory::room("the latents", &dims)?;
    let rows = other.len() / row;
    (0..dims[0]).for_each(|i| repeated.extend_from_slice(&other[i % rows * row..][..row]));
    Ok((first, dims, tensor.to_vec()?, repeated))
}

/// The numbers of a latent at the height and width of `to`.
///
/// # Errors
/// It has other channels, or there is no memory for it.
pub fn at_size(latent: &Latent, to: &Dims, mode: Mode) -> Result<Vec<f32>> {
    let tensor = latent.samples()?;
    let own = dims(&tensor);
    if own[1] != to[1] {
        return Err(Error::new(format!(
            "the latents have {} channels and the others {}: they were made for different families of models",
            own[1], to[1]
        )));
    }
    let size = (to[2], to[3]);
    if (own[2], own[3]) == size {
        return tensor.to_vec();
    }
    memory::ask("the latents at another size", &[own[0], own[1], to[2], to[3]], size_of::<f32>())?;
    let (cropped, values) = crop_center(&tensor.to_f32()?, own, size)?;
    Ok(resize(&values, cropped, size, Method::Interpolate(mode))?)
}

/// [B, C, h, w].
pub fn dims(tensor: &Tensor) -> Dims {
    let shape = tensor.shape();
    [shape[0], shape[1], shape[2], shape[3]]
}
