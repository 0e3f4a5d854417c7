//! Perpendicular negatives as a patch (Armandpour et al., arXiv 2304.04968): away from what in the negative is not in the
//! positive. PerpNegGuider is the same as a GUIDER.

use kosmograph_models::samplers::guidance::{guide, perpendicular};
use node::interface::{self, GuidanceCall, Patch, marker};
use node::*;
use node_candle::{device, export, import};

use super::patched;

struct Beside {
    empty: Conditioning,
    /// How much the negative counts.
    negative: f64,
}

impl Export for Beside {
    const TYPE: &'static str = "PATCH";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Beside: marker::GuidancePatch];
}

impl interface::PatchGuidance for Beside {
    fn patch_guidance(&self, cx: &Context<'_>, call: &GuidanceCall) -> Result<Tensor> {
        let Some(uncond) = &call.unconditional else { return Ok(call.denoised.clone()) };
        let device = device(&cx.device())?;
        let empty = call.sides.ask_instead(cx, call.x.clone(), call.sigma, &self.empty)?;
        let (cond, uncond) = (import(&call.conditional, &device)?, import(uncond, &device)?);
        let wanted =
            perpendicular(&cond, &uncond, &import(&empty, &device)?, call.cfg, self.negative)?;
        // What a rule of guidance beyond the plain one added to that stays.
        let plain = guide(&uncond, &cond, call.cfg)?;
        export(&(import(&call.denoised, &device)? + (wanted - plain)?)?)
    }
}

/// Guides away from what in the negative is not in the positive; PerpNegGuider does the same where a GUIDER is taken.
#[derive(Inputs)]
#[node(category = "_for_testing")]
pub struct PerpNeg {
    /// The U-Net.
    model: Model,
    /// An empty prompt.
    empty_conditioning: Conditioning,
    /// How much the negative counts.
    #[widget(default = 1.0, min = 0.0, max = 100.0, step = 0.01)]
    neg_scale: f64,
}

impl Node for PerpNeg {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let patch = Beside { empty: self.empty_conditioning, negative: self.neg_scale };
        let patch = Patch::new("guide", Object::new(patch));
        patched(cx, &self.model, vec![Patch { wants_unconditional: true, ..patch }])
    }
}
