//! Adaptive projected guidance (Sadat et al., arXiv 2410.02416): what guidance adds along the positive itself, which is what
//! oversaturates, counts less than what it adds beside it.

use std::sync::{Mutex, PoisonError};

use candle_core::{Result as CandleResult, Tensor as Candle};
use kosmograph_models::bounds::{at_least, at_most};
use node::interface::{self, GuidanceCall, Patch, marker};
use node::*;
use node_candle::{device, export, import};

use super::patched;

struct Projected {
    /// How much of guidance along the positive counts.
    eta: f64,
    /// The most that guidance may be long; 0 is as long as it is.
    longest: f64,
    momentum: f64,
    /// σ of the last call, and the guidance that went on to it.
    last: Mutex<Option<(f64, Candle)>>,
}

impl Export for Projected {
    const TYPE: &'static str = "PATCH";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Projected: marker::GuidancePatch];
}

impl interface::PatchGuidance for Projected {
    fn patch_guidance(&self, cx: &Context<'_>, call: &GuidanceCall) -> Result<Tensor> {
        let Some(uncond) = &call.unconditional else { return Ok(call.denoised.clone()) };
        let device = device(&cx.device())?;
        let (cond, uncond) = (import(&call.conditional, &device)?, import(uncond, &device)?);
        let toward = (&cond - &uncond)?;
        let mut guidance = toward.clone();
        if self.momentum != 0.0 {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            // A level above the last is another sampling's.
            let before = last
                .take()
                .filter(|(sigma, before)| call.sigma <= *sigma && before.dims() == guidance.dims());
            if let Some((_, before)) = before {
                guidance = ((before * self.momentum)? + guidance)?;
            }
            *last = Some((call.sigma, guidance.clone()));
        }
        let guidance = projected(&guidance, &cond, self.eta, self.longest)?;
        export(&((uncond + toward)? + (guidance * call.cfg)?)?)
    }
}

/// `guidance` no longer than `longest`, and of its part along `cond` the share `eta`; of each picture [C, H, W].
fn projected(guidance: &Candle, cond: &Candle, eta: f64, longest: f64) -> CandleResult<Candle> {
    let shape = (guidance.dim(0)?, 1, 1, 1);
    let length = |x: &Candle| x.sqr()?.flatten_from(1)?.sum_keepdim(1)?.sqrt()?.reshape(shape);
    let mut guidance = guidance.clone();
    if longest > 0.0 {
        let scale = at_most(&(at_least(&length(&guidance)?, 1e-12)?.recip()? * longest)?, 1.0)?;
        guidance = guidance.broadcast_mul(&scale)?;
    }
    let direction = cond.broadcast_div(&at_least(&length(cond)?, 1e-12)?)?;
    let along = (&guidance * &direction)?.flatten_from(1)?.sum_keepdim(1)?.reshape(shape)?;
    let parallel = direction.broadcast_mul(&along)?;
    guidance + (parallel * (eta - 1.0))?
}

/// Strong guidance without its oversaturation.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling")]
#[allow(clippy::upper_case_acronyms, reason = "ComfyUI's name")]
pub struct APG {
    /// The U-Net.
    model: Model,
    /// How much of guidance along the positive counts; 1 is all of it.
    #[widget(default = 1.0, min = -10.0, max = 10.0, step = 0.01)]
    eta: f64,
    /// The most that guidance may be long; 0 is as long as it is.
    #[widget(default = 5.0, min = 0.0, max = 50.0, step = 0.1)]
    norm_threshold: f64,
    /// How much of the last step's guidance goes on.
    #[widget(default = 0.0, min = -5.0, max = 1.0, step = 0.01)]
    momentum: f64,
}

impl Node for APG {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let patch = Projected {
            eta: self.eta,
            longest: self.norm_threshold,
            momentum: self.momentum,
            last: Mutex::default(),
        };
        patched(cx, &self.model, vec![Patch::new("guidance", Object::new(patch))])
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn guidance_is_shortened_and_turned_beside_the_positive() -> CandleResult<()> {
        let tensor = |values: [f32; 2]| Candle::new(&values, &Device::Cpu)?.reshape((1, 2, 1, 1));
        let (guidance, cond) = (tensor([6.0, 8.0])?, tensor([0.0, 2.0])?);
        // Of length 10: halved to 3, 4, of which 4 lies along the positive.
        let found = |eta, longest| -> CandleResult<Vec<f32>> {
            projected(&guidance, &cond, eta, longest)?.flatten_all()?.to_vec1()
        };
        for (eta, longest, expected) in [
            (1.0, 5.0, [3.0f32, 4.0]),
            (0.25, 5.0, [3.0, 1.0]),
            (0.0, 0.0, [6.0, 0.0]),
            (2.0, 20.0, [6.0, 16.0]),
        ] {
            for (found, expected) in found(eta, longest)?.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-5, "{found} for {expected}");
            }
        }
        Ok(())
    }
}
