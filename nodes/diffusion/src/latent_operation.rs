//! What is done to latents, as a value: sharpened, or of less contrast; now, or at each step of a sampling.

use candle_core::{Result as CandleResult, Tensor as Candle};
use node::interface::{self, marker};
use node::*;
use node_candle::{device, export, import};

/// The length of each latent pixel's vector of channels, [B, 1, H, W].
fn lengths(latents: &Candle) -> CandleResult<Candle> {
    latents.sqr()?.sum_keepdim(1)?.sqrt()
}

/// Brings long vectors nearer to the others (Reinhard et al., "Photographic Tone Reproduction for Digital Images", 2002).
struct Tonemapped {
    multiplier: f64,
}

impl Export for Tonemapped {
    const TYPE: &'static str = "LATENT_OPERATION";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Tonemapped: marker::LatentOperation];
}

impl interface::OperateOnLatents for Tonemapped {
    fn operate(&self, cx: &Context<'_>, latents: &Tensor) -> Result<Tensor> {
        export(&tonemapped(&import(latents, &device(&cx.device())?)?, self.multiplier)?)
    }
}

fn tonemapped(latents: &Candle, multiplier: f64) -> CandleResult<Candle> {
    let lengths = (lengths(latents)? + 1e-10)?;
    let directions = latents.broadcast_div(&lengths)?;
    let each = lengths.flatten_from(1)?;
    let (_, count) = each.dims2()?;
    let mean = each.mean_keepdim(1)?;
    let squares = each.broadcast_sub(&mean)?.sqr()?.sum_keepdim(1)?;
    // One pixel alone has no spread.
    let spread = (squares / count.saturating_sub(1).max(1) as f64)?.sqrt()?;
    let top = (((spread * 5.0)? + mean)? * multiplier)?.reshape(((), 1, 1, 1))?;
    // A top of 0 leaves nothing, and must not be divided by.
    let whole = (&top + top.eq(0f32)?.to_dtype(top.dtype())?)?;
    let share = lengths.broadcast_div(&whole)?;
    let shortened = (&share / (&share + 1.0)?)?.broadcast_mul(&top)?;
    directions.broadcast_mul(&shortened)
}

/// Makes the contrast of latents less where it is strong.
#[derive(Inputs)]
#[node(category = "latent/advanced/operations")]
pub struct LatentOperationTonemapReinhard {
    /// What the longest vectors come near to: times their mean and five deviations.
    #[widget(default = 1.0, min = 0.0, max = 100.0, step = 0.01)]
    multiplier: f64,
}

impl Node for LatentOperationTonemapReinhard {
    outputs![LATENT_OPERATION: LatentOperation];

    fn run(self, _cx: &Context) -> Result<LatentOperation> {
        Ok(LatentOperation(Object::new(Tonemapped { multiplier: self.multiplier })))
    }
}

/// Adds what a blur takes away, to the directions of the vectors alone.
struct Sharpened {
    radius: usize,
    sigma: f64,
    alpha: f64,
}

impl Export for Sharpened {
    const TYPE: &'static str = "LATENT_OPERATION";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Sharpened: marker::LatentOperation];
}

impl interface::OperateOnLatents for Sharpened {
    fn operate(&self, cx: &Context<'_>, latents: &Tensor) -> Result<Tensor> {
        let latents = import(latents, &device(&cx.device())?)?;
        let (_, _, height, width) = latents.dims4()?;
        if height.min(width) <= self.radius {
            return Err(Error::at(
                "latents",
                format!(
                    "are {height} × {width} latent pixels, over which a sharpening of radius {} does not fit; a radius \
                     below {} would be right",
                    self.radius,
                    height.min(width)
                ),
            ));
        }
        export(&self.sharpened(&latents)?)
    }
}

impl Sharpened {
    fn sharpened(&self, latents: &Candle) -> CandleResult<Candle> {
        let lengths = (lengths(latents)? + 1e-6)?;
        let directions = latents.broadcast_div(&lengths)?;
        // The kernel's sides are 1 from its middle, whatever its radius.
        let weight = |i: usize| {
            let place = i as f64 / self.radius as f64 - 1.0;
            (-place * place / (2.0 * self.sigma * self.sigma)).exp()
        };
        let weights: Vec<f64> = (0..=2 * self.radius).map(weight).collect();
        let blurred = blurred(&directions, &weights)?;
        let by = -10.0 * self.alpha;
        let sharpened = ((blurred * by)? + (directions * (1.0 - by))?)?;
        sharpened.broadcast_mul(&lengths)
    }
}

/// x [B, C, H, W] through a kernel that is these weights along both axes, made to add up to 1; its edges are mirrored, and its
/// sides longer than half of the weights.
pub fn blurred(x: &Candle, weights: &[f64]) -> CandleResult<Candle> {
    let sum: f64 = weights.iter().sum();
    let half = weights.len() / 2;
    let along = |x: &Candle, axis: usize| -> CandleResult<Candle> {
        let size = x.dim(axis)?;
        let mut blurred = x.zeros_like()?;
        for (k, weight) in weights.iter().enumerate() {
            let mirrored = (0..size).map(|i| {
                let place = (i + k) as i64 - half as i64;
                let last = size as i64 - 1;
                (last - (last - place.abs()).abs()) as u32
            });
            let places = Candle::new(mirrored.collect::<Vec<_>>(), x.device())?;
            blurred = (blurred + (x.index_select(&places, axis)? * (weight / sum))?)?;
        }
        Ok(blurred)
    };
    along(&along(x, 2)?, 3)
}

/// Sharpens latents.
#[derive(Inputs)]
#[node(category = "latent/advanced/operations")]
pub struct LatentOperationSharpen {
    /// How far the blur reaches whose opposite it is, in latent pixels.
    #[widget(default = 9, min = 1, max = 31, step = 1)]
    sharpen_radius: i64,
    /// The blur's deviation, in radii.
    #[widget(default = 1.0, min = 0.1, max = 10.0, step = 0.1)]
    sigma: f64,
    /// How much.
    #[widget(default = 0.1, min = 0.0, max = 5.0, step = 0.01)]
    alpha: f64,
}

impl Node for LatentOperationSharpen {
    outputs![LATENT_OPERATION: LatentOperation];

    fn run(self, _cx: &Context) -> Result<LatentOperation> {
        let radius = usize::try_from(self.sharpen_radius).unwrap_or(1).max(1);
        let (sigma, alpha) = (self.sigma, self.alpha);
        Ok(LatentOperation(Object::new(Sharpened { radius, sigma, alpha })))
    }
}

/// Does an operation to latents.
#[derive(Inputs)]
#[node(category = "latent/advanced/operations")]
pub struct LatentApplyOperation {
    /// The latents.
    samples: Latent,
    /// The operation.
    operation: LatentOperation,
}

impl Node for LatentApplyOperation {
    outputs![LATENT: Latent];

    fn run(self, cx: &Context) -> Result<Latent> {
        let samples = self.samples.samples().map_err(|error| error.of_input("samples"))?;
        let operated = self.operation.0.operate(cx, samples);
        Ok(self.samples.with_samples(operated.map_err(|error| error.of_input("operation"))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn latents() -> CandleResult<Candle> {
        let values: Vec<f32> = (0..24).map(|i| ((i * 5 + 2) % 9) as f32 / 3.0 - 1.2).collect();
        Candle::from_vec(values, (1, 2, 3, 4), &Device::Cpu)
    }

    fn near(found: &Candle, expected: [f32; 24]) -> CandleResult<()> {
        for (found, expected) in found.flatten_all()?.to_vec1::<f32>()?.iter().zip(expected) {
            assert!((found - expected).abs() < 2e-5 * 4.4, "{found} for {expected}");
        }
        Ok(())
    }

    /// By torch, after ComfyUI's formula.
    #[test]
    fn tones_are_mapped() -> CandleResult<()> {
        let expected = [
            -0.2925627, 0.7075521, -0.1218376, 0.8095841, 0.09117436, -0.6816123, 0.3397129,
            -0.4945705, 0.5575493, -0.2925627, 0.7075521, -0.1218376, 0.8045474, 0.08324143,
            -0.7310256, 0.257595, -0.5926333, 0.4544082, -0.3882433, 0.646746, -0.1393873,
            0.8045474, 0.08324143, -0.7310256,
        ];
        near(&tonemapped(&latents()?, 0.7)?, expected)?;
        near(&tonemapped(&latents()?, 0.0)?, [0.0; 24])
    }

    /// By torch's conv2d over the same kernel.
    #[test]
    fn latents_are_sharpened() -> CandleResult<()> {
        let expected = [
            -2.126905, 3.221263, -1.125457, 3.957707, 0.2306533, -3.599282, 1.187502, -2.8288,
            2.145219, -1.914247, 2.949397, -1.009522, 4.369862, 0.2246994, -3.324629, 1.401233,
            -2.468807, 2.255633, -1.406192, 3.418545, -0.5312361, 4.192706, 0.694331, -3.474316,
        ];
        let sharpened = Sharpened { radius: 2, sigma: 1.3, alpha: 0.2 }.sharpened(&latents()?)?;
        near(&sharpened, expected)?;
        // A blur of nothing sharpens nothing.
        let as_is: Vec<f32> = latents()?.flatten_all()?.to_vec1()?;
        let none = Sharpened { radius: 2, sigma: 1.3, alpha: 0.0 }.sharpened(&latents()?)?;
        near(&none, as_is.try_into().expect("24 numbers"))
    }
}
