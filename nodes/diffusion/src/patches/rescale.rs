//! Guidance brought back to the spread that the positive alone has: strong guidance burns out the pictures of networks that were
//! trained to the end of the noise (Lin et al., arXiv 2305.08891, section 3.4).

use candle_core::{Result as CandleResult, Tensor as Candle};
use node::interface::{self, GuidanceCall, Patch, marker};
use node::*;
use node_candle::{device, export, import};

use super::patched;

/// How much of what guidance makes is brought back, 0..1.
struct Rescaled(f64);

impl Export for Rescaled {
    const TYPE: &'static str = "PATCH";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Rescaled: marker::GuidancePatch];
}

impl interface::PatchGuidance for Rescaled {
    fn patch_guidance(&self, cx: &Context<'_>, call: &GuidanceCall) -> Result<Tensor> {
        let device = device(&cx.device())?;
        let (x, positive) = (import(&call.x, &device)?, import(&call.conditional, &device)?);
        let guided = import(&call.denoised, &device)?;
        export(&rescaled(&x, [&positive, &guided], call.sigma, self.0)?)
    }
}

/// `share` of x₀ as guidance has it, at x in VE of noise level σ, with the spread of the positive's; the rest as it is. It is
/// velocities that are compared, as in ComfyUI, whatever the network predicts: they are, but for a factor, x/(σ² + 1) - x₀.
fn rescaled(
    x: &Candle,
    [positive, guided]: [&Candle; 2],
    sigma: f64,
    share: f64,
) -> CandleResult<Candle> {
    let middle = (x / (sigma * sigma + 1.0))?;
    let (positive, guided) = ((&middle - positive)?, (&middle - guided)?);
    let factor = spread(&positive)?.broadcast_div(&spread(&guided)?)?;
    middle - guided.broadcast_mul(&((factor * share)? + (1.0 - share))?)?
}

/// The standard deviation of each row of [B, C, H, W], [B, 1, 1, 1]; 1 of a row without any, which no factor changes.
fn spread(rows: &Candle) -> CandleResult<Candle> {
    let flat = rows.flatten_from(1)?;
    let count = flat.dim(1)?.max(2);
    let centred = flat.broadcast_sub(&flat.mean_keepdim(1)?)?;
    let spread = (centred.sqr()?.sum_keepdim(1)? / (count - 1) as f64)?.sqrt()?;
    let even = spread.eq(0f32)?.to_dtype(spread.dtype())?;
    (spread + even)?.unsqueeze(2)?.unsqueeze(3)
}

/// Brings what guidance makes back to the spread that the positive alone has: what v-prediction models are used with,
/// whose pictures strong guidance burns out (Lin et al., arXiv 2305.08891, section 3.4). Takes the place of an earlier PerpNeg.
#[derive(Inputs)]
#[node(category = "advanced/model")]
pub struct RescaleCFG {
    /// The model.
    model: Model,
    /// How much of it: 0 leaves guidance as it is.
    #[widget(default = 0.7, min = 0.0, max = 1.0, step = 0.01)]
    multiplier: f64,
}

impl Node for RescaleCFG {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let patch = Object::new(Rescaled(self.multiplier));
        patched(cx, &self.model, vec![Patch::new("guide", patch)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// The formula as ComfyUI has it, of noise, against ours.
    #[test]
    fn a_row_has_the_positives_spread() -> CandleResult<()> {
        const X: [f64; 4] = [0.5, -1.5, 2.0, 0.25];
        const COND: [f64; 4] = [1.0, -0.5, 0.75, 0.1];
        const UNCOND: [f64; 4] = [0.25, 0.5, -0.5, 0.3];
        let (sigma, cfg, share) = (2.5f64, 4.0, 0.7);
        let square = sigma * sigma + 1.0;
        // Velocities of x₀ = x - σ ε.
        let v = |eps: &[f64; 4], i: usize| {
            (X[i] / square - (X[i] - sigma * eps[i])) * square.sqrt() / sigma
        };
        let cond: Vec<f64> = (0..4).map(|i| v(&COND, i)).collect();
        let guided: Vec<f64> =
            (0..4).map(|i| v(&UNCOND, i) + cfg * (cond[i] - v(&UNCOND, i))).collect();
        let spread = |values: &[f64]| {
            let mean = values.iter().sum::<f64>() / 4.0;
            (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 3.0).sqrt()
        };
        let factor = share * spread(&cond) / spread(&guided) + 1.0 - share;
        let expected = |i: usize| X[i] / square - guided[i] * factor * sigma / square.sqrt();
        let row = |value: &dyn Fn(usize) -> f64| {
            let values: Vec<f32> = (0..4).map(|i| value(i) as f32).collect();
            Candle::from_vec(values, (1, 1, 2, 2), &Device::Cpu)
        };
        let x0 = |eps: [f64; 4]| row(&|i| X[i] - sigma * eps[i]);
        let (cond, uncond) = (x0(COND)?, x0(UNCOND)?);
        let guided = (&uncond + ((&cond - &uncond)? * cfg)?)?;
        let found = rescaled(&row(&|i| X[i])?, [&cond, &guided], sigma, share)?;
        for (i, found) in found.flatten_all()?.to_vec1::<f32>()?.into_iter().enumerate() {
            assert!((f64::from(found) - expected(i)).abs() < 1e-5, "{i}: {found}");
        }
        Ok(())
    }

    #[test]
    fn an_even_row_stays() -> CandleResult<()> {
        let x = Candle::zeros((1, 1, 2, 2), candle_core::DType::F32, &Device::Cpu)?;
        let even = (x.ones_like()? * 0.5)?;
        let found = rescaled(&x, [&even, &(&even * 3.0)?], 1.0, 1.0)?;
        let found: Vec<f32> = found.flatten_all()?.to_vec1()?;
        assert!(found.iter().all(|value| (value - 1.5).abs() < 1e-5), "{found:?}");
        Ok(())
    }
}
