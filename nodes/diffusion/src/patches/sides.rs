//! Patches of the sides of guidance, before it puts them together.

use candle_core::{Device, Result as CandleResult, Tensor as Candle};
use node::interface::{self, GuidanceCall, Patch, SidesCall, marker};
use node::*;
use node_candle::{device, export, import};

use super::patched;

/// Both sides of a call where there are two: the positive's x₀ and the negative's.
fn both(cx: &Context<'_>, call: &SidesCall) -> Result<Option<(Candle, Candle)>> {
    let Some(unconditional) = &call.unconditional else { return Ok(None) };
    let device = device(&cx.device())?;
    Ok(Some((import(&call.conditional, &device)?, import(unconditional, &device)?)))
}

/// What the negative says across the direction that both sides share most is left out of it (Kwon et al., "TCFG: Tangential
/// Damping Classifier-Free Guidance", arXiv 2503.18137).
struct Damped;

impl Export for Damped {
    const TYPE: &'static str = "PATCH";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Damped: marker::SidesPatch];
}

impl interface::PatchSides for Damped {
    fn patch_sides(&self, cx: &Context<'_>, call: &SidesCall) -> Result<(Tensor, Option<Tensor>)> {
        let Some((cond, uncond)) = both(cx, call)? else {
            return Ok((call.conditional.clone(), None));
        };
        let x = import(&call.x, cond.device())?;
        let damped = damped(&(&x - cond)?, &(&x - uncond)?)?;
        Ok((call.conditional.clone(), Some(export(&(x - damped)?)?)))
    }
}

/// `uncond` [B, C, H, W] along the first right singular vector of the matrix of both, of each picture. For two rows u and c it
/// is w₀ (w₀ u + w₁ c), w the first eigenvector of their products with each other.
fn damped(cond: &Candle, uncond: &Candle) -> CandleResult<Candle> {
    let rows = |x: &Candle| x.flatten_from(1)?.to_device(&Device::Cpu)?.to_vec2::<f32>();
    let (c, u) = (rows(cond)?, rows(uncond)?);
    let product = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let mut all = Vec::with_capacity(uncond.elem_count());
    for (u, c) in u.iter().zip(&c) {
        let (uu, uc, cc) = (product(u, u), product(u, c), product(c, c));
        let angle = 0.5 * (2.0 * uc).atan2(uu - cc);
        let (w1, w0) = angle.sin_cos();
        all.extend(
            u.iter().zip(c).map(|(u, c)| (w0 * (w0 * f64::from(*u) + w1 * f64::from(*c))) as f32),
        );
    }
    Candle::from_vec(all, uncond.shape(), uncond.device())
}

/// Leaves out of the negative what points away from the direction that both sides of guidance share.
#[derive(Inputs)]
#[node(category = "advanced/guidance")]
#[allow(clippy::upper_case_acronyms, reason = "ComfyUI's name")]
pub struct TCFG {
    /// The model.
    model: Model,
}

impl Node for TCFG {
    outputs![patched_model: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        patched(cx, &self.model, vec![Patch::new("sides", Object::new(Damped))])
    }
}

/// What guidance adds, its low and its high frequencies by factors of their own (Huang et al., "FreSca: Scaling in Frequency
/// Space Enhances Diffusion Models", arXiv 2504.02154).
struct ByFrequency {
    low: f64,
    high: f64,
    cutoff: usize,
}

impl Export for ByFrequency {
    const TYPE: &'static str = "PATCH";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![ByFrequency: marker::SidesPatch];
}

impl interface::PatchSides for ByFrequency {
    fn patch_sides(&self, cx: &Context<'_>, call: &SidesCall) -> Result<(Tensor, Option<Tensor>)> {
        let Some((cond, uncond)) = both(cx, call)? else {
            return Ok((call.conditional.clone(), None));
        };
        let guidance = (cond - &uncond)?;
        let low = low_frequencies(&guidance, self.cutoff)?;
        let filtered = ((guidance * self.high)? + (low * (self.low - self.high))?)?;
        Ok((export(&(filtered + uncond)?)?, call.unconditional.clone()))
    }
}

/// The part of x [B, C, H, W] in the square of frequencies from -cutoff to cutoff - 1, of which the real part is taken.
fn low_frequencies(x: &Candle, cutoff: usize) -> CandleResult<Candle> {
    let (_, _, height, width) = x.dims4()?;
    // The real and the imaginary part of what lets those of one axis through.
    let through = |size: usize| -> CandleResult<(Candle, Candle)> {
        let reach = cutoff.min(size / 2) as i64;
        let wave = |shift: i64| {
            let turns = |u: i64| {
                let turn = (u * shift).rem_euclid(size as i64) as f64 / size as f64;
                2.0 * std::f64::consts::PI * turn
            };
            let sum = (-reach..reach).map(turns);
            let (real, imaginary) =
                sum.fold((0.0, 0.0), |(re, im), angle| (re + angle.cos(), im + angle.sin()));
            (real / size as f64, imaginary / size as f64)
        };
        let waves: Vec<(f64, f64)> = (0..size as i64).map(wave).collect();
        let part = |of: fn(&(f64, f64)) -> f64| {
            let at = |y: usize, other: usize| of(&waves[(y + size - other) % size]) as f32;
            let all = (0..size).flat_map(|y| (0..size).map(move |other| (y, other)));
            let all: Vec<f32> = all.map(|(y, other)| at(y, other)).collect();
            Candle::from_vec(all, (size, size), x.device())
        };
        Ok((part(|wave| wave.0)?, part(|wave| wave.1)?))
    };
    let (rows, columns) = (through(height)?, through(width)?);
    let along = |rows: &Candle, columns: &Candle| {
        rows.broadcast_matmul(&x.contiguous()?)?.broadcast_matmul(&columns.t()?.contiguous()?)
    };
    along(&rows.0, &columns.0)? - along(&rows.1, &columns.1)?
}

/// Scales what guidance adds by frequency: the coarse and the fine of a picture count otherwise.
#[derive(Inputs)]
#[node(category = "_for_testing")]
pub struct FreSca {
    /// The model.
    model: Model,
    /// By what the low frequencies count.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    scale_low: f64,
    /// By what the high ones do.
    #[widget(default = 1.25, min = 0.0, max = 10.0, step = 0.01)]
    scale_high: f64,
    /// How many frequencies, from the middle on, are low.
    #[widget(default = 20, min = 1, max = 10000, step = 1)]
    freq_cutoff: i64,
}

impl Node for FreSca {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let cutoff = usize::try_from(self.freq_cutoff).unwrap_or(1);
        let filter = ByFrequency { low: self.scale_low, high: self.scale_high, cutoff };
        patched(cx, &self.model, vec![Patch::new("sides", Object::new(filter))])
    }
}

/// What guidance adds, by an operation on latents.
struct Operated(LatentOperation);

impl Export for Operated {
    const TYPE: &'static str = "PATCH";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Operated: marker::SidesPatch];
}

impl interface::PatchSides for Operated {
    fn patch_sides(&self, cx: &Context<'_>, call: &SidesCall) -> Result<(Tensor, Option<Tensor>)> {
        let Some((cond, uncond)) = both(cx, call)? else {
            return Ok((self.0.0.operate(cx, call.conditional.clone())?, None));
        };
        let operated = self.0.0.operate(cx, export(&(cond - &uncond)?)?)?;
        let cond = (import(&operated, uncond.device())? + &uncond)?;
        Ok((export(&cond)?, call.unconditional.clone()))
    }
}

/// Does an operation to what guidance adds at each step.
#[derive(Inputs)]
#[node(category = "latent/advanced/operations")]
pub struct LatentApplyOperationCFG {
    /// The model.
    model: Model,
    /// The operation.
    operation: LatentOperation,
}

impl Node for LatentApplyOperationCFG {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        if !self.operation.0.offers("latent_operation/1") {
            return Err(Error::at(
                "operation",
                "this operation does not offer \"latent_operation/1\"; its library cannot be used here",
            ));
        }
        let patch = Object::new(Operated(self.operation));
        patched(cx, &self.model, vec![Patch::new("sides", patch)])
    }
}

/// What is predicted as noise, divided by a factor (Ning et al., "Elucidating the Exposure Bias in Diffusion Models", arXiv
/// 2308.15321).
struct NoiseScaled(f64);

impl Export for NoiseScaled {
    const TYPE: &'static str = "PATCH";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![NoiseScaled: marker::GuidancePatch];
}

impl interface::PatchGuidance for NoiseScaled {
    fn patch_guidance(&self, cx: &Context<'_>, call: &GuidanceCall) -> Result<Tensor> {
        let device = device(&cx.device())?;
        let (x, denoised) = (import(&call.x, &device)?, import(&call.denoised, &device)?);
        let noise = ((&x - denoised)? / self.0)?;
        export(&(x - noise)?)
    }
}

/// Makes the noise that is predicted a little smaller, against what adds up over the steps.
#[derive(Inputs)]
#[node(class = "Epsilon Scaling", category = "model_patches/unet")]
pub struct EpsilonScaling {
    /// The model.
    model: Model,
    /// What the noise is divided by.
    #[widget(default = 1.005, min = 0.5, max = 1.5, step = 0.001)]
    scaling_factor: f64,
}

impl Node for EpsilonScaling {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let patch = Object::new(NoiseScaled(self.scaling_factor));
        patched(cx, &self.model, vec![Patch::new("guidance", patch)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: &Candle, expected: &[f32]) -> CandleResult<()> {
        let found = found.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 2e-5, "{found} for {expected}");
        }
        Ok(())
    }

    /// By torch.linalg.svd in f64.
    #[test]
    fn the_negative_is_damped() -> CandleResult<()> {
        let device = &Device::Cpu;
        let u = Candle::new(&[1f32, -2.0, 0.5, 3.0, 0.25, 0.5, -1.0, 2.0], device)?;
        let c = Candle::new(&[2f32, -1.0, 1.0, 2.5, -0.5, 1.0, 0.75, 1.0], device)?;
        let (u, c) = (u.reshape((2, 1, 2, 2))?, c.reshape((2, 1, 2, 2))?);
        let expected =
            [1.538068, -1.581318, 0.7690342, 2.87025, 0.003057848, 0.7987397, -0.5076214, 2.006023];
        near(&damped(&c, &u)?, &expected)?;
        // Of nothing there is nothing.
        near(&damped(&c.zeros_like()?, &c.zeros_like()?)?, &[0.0; 8])
    }

    /// By torch.fft, with a mask over the shifted frequencies.
    #[test]
    fn frequencies_are_told_apart() -> CandleResult<()> {
        let values: Vec<f32> = (0..20).map(|i| ((i * 7 + 3) % 11) as f32 / 4.0 - 1.0).collect();
        let x = Candle::from_vec(values, (1, 1, 4, 5), &Device::Cpu)?;
        let lowest = [
            0.2929194, 0.2808179, 0.3125, 0.3441821, 0.3320807, 0.04002033, 0.2094973, 0.3313002,
            0.2371015, 0.05708064, 0.234601, 0.4398381, 0.4, 0.1701416, 0.06791936, 0.4875,
            0.5111586, 0.3811998, 0.2772222, 0.3429193,
        ];
        near(&low_frequencies(&x, 1)?, &lowest)?;
        // An odd side has one more frequency above than below, which is high however many are low.
        let most = [
            0.2449594, 1.194098, 0.5, -0.1940983, 0.7550407, -0.1449594, -0.3359424, 0.725,
            0.03090176, -0.775, 0.3550407, 0.1640576, 1.225, 0.5309017, -0.275, 1.025, 0.2190983,
            -0.475, 0.5859424, 0.3949593,
        ];
        near(&low_frequencies(&x, 2)?, &most)?;
        near(&low_frequencies(&x, 10_000)?, &most)
    }
}
