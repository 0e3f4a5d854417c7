//! The denoiser under guidance: what it says for every entry of both conditionings, put together.
//!
//! Each side is the mean over its entries, weighted for each latent pixel; guidance then goes from the
//! negative's mean past the positive's: uncond + cfg · (cond - uncond) (Ho & Salimans, arXiv 2207.12598).
//! Both are sums whose weights add up to one, so that it makes no difference whether they are taken of the
//! network's output, as here, or of x₀, as in ComfyUI.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor as Candle;
use kosmograph_models::samplers::Schedule;
use kosmograph_models::samplers::guidance::{guide, perpendicular};
use node::interface::{GuidanceCall, Patch, SidesCall};
use node::*;
use node_candle::{export, import};

use super::conditioned::{
    At, Conditioned, NEGATIVE, POSITIVE, Shared, THIRD, output_for_x0, within, x0_of_output,
};
use super::control::Controls;
use super::described::Described;
use super::entry::{Frame, Given, all_sides};
use super::extra::Extra;
use super::grounding::Groundings;
use super::over_sigmas::Guide;
use super::range::Range;
use super::reuse::{Memory, Of};
use super::through::{into_sampler, out_of_sampler};

/// How the sides of guidance are put together; the first is the positive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// The positive is all there is.
    Positive,
    /// uncond + cfg · (cond - uncond), of a positive and a negative.
    Cfg(f64),
    /// Of a positive, a negative and a condition between them (Brooks et al., arXiv 2211.09800, section 3.2): from the
    /// negative to the middle by `second`, from the middle to the positive by `first`; `nested`, by `second` to where
    /// `first` led from the middle.
    Dual { first: f64, second: f64, nested: bool },
    /// Of a positive, a negative and an empty condition: away from what in the negative is not in the positive (Armandpour
    /// et al., arXiv 2304.04968).
    Perpendicular { cfg: f64, negative: f64 },
}

/// A denoiser with all that steers it.
pub struct Guided {
    conditioned: Conditioned,
    pub schedule: Schedule,
    rule: Rule,
    /// What guidance made before, and without it, where a model lets that be reused.
    made: Option<Mutex<Made>>,
    /// What else is made of the sides, and where in the schedule.
    patches: Vec<(Patch, Range)>,
}

/// What is remembered of whole steps.
struct Made {
    memory: Memory<()>,
    /// x₀ without guidance, as it was last asked for.
    uncond: Option<Candle>,
}

/// What a rule makes of the sides, as the network says it.
struct Sides {
    output: Candle,
    /// What the positive alone gives.
    cond: Candle,
    /// What there is without guidance, where it was asked for.
    uncond: Option<Candle>,
}

impl Guided {
    /// A model steered by `sides`, as many as the rule puts together: the positive, the negative, and a third. `control`
    /// acts wherever anything does. `latents` are what the sampling begins with, with the mask within which it may change
    /// them [1 or B, 1, H, W], and the seed of their noise.
    ///
    /// # Errors
    /// A condition that the model does not take, or that does not fit the latents.
    pub fn new(
        cx: &Context<'_>,
        model: &Object,
        described: &Described,
        given: &[Given<'_>],
        rule: Rule,
        control: Option<Control>,
        (latents, mask, seed): (&Candle, Option<&Candle>, u64),
    ) -> Result<Self> {
        let dims = latents.dims4()?;
        let in_channels = described.in_channels.unwrap_or(dims.1);
        let extra = Extra::of_channels(in_channels, latents, mask)?;
        let schedule = &described.schedule;
        let frame = Frame {
            device: latents.device().clone(),
            schedule: schedule.clone(),
            dims,
            context_width: described.context_width,
            vector: described.vector,
            concat_scale: extra.scale(schedule, described.scaling_factor),
            extra,
            seed,
        };
        let mut controls = Controls::new(dims.0);
        let mut groundings = Groundings::default();
        let mut sides = all_sides(&frame, given, &mut controls, &mut groundings)?;
        let everywhere = controls.add(control, schedule);
        let everywhere = everywhere.map_err(|error| error.of_input("control"))?;
        for entry in sides.iter_mut().flatten() {
            entry.controls.extend(&everywhere);
        }
        let patches = model.guidances(cx).map_err(|error| error.of_input("model"))?;
        let ranged = |patch: Patch| {
            let range = Range::new(schedule, patch.start, patch.end);
            (patch, range)
        };
        let reuse = described.reuse;
        let said = reuse.filter(|reuse| reuse.of == Of::Calls);
        let made = reuse.filter(|reuse| reuse.of == Of::Guidance).map(|reuse| {
            let memory = Memory::new(&reuse, schedule).watching(());
            Mutex::new(Made { memory, uncond: None })
        });
        let shared = Arc::new(Shared {
            schedule: schedule.clone(),
            sides,
            controls,
            frame,
            said: said.map(|reuse| Mutex::new(Memory::new(&reuse, schedule))),
            tells_what_is_left_out: reuse.is_some_and(|reuse| reuse.told),
        });
        let understands = described.understands.clone();
        Ok(Self {
            conditioned: Conditioned {
                model: model.clone(),
                grounded: groundings.models(cx, model)?,
                understands,
                shared,
                reuses: true,
            },
            schedule: schedule.clone(),
            rule,
            made,
            patches: patches.into_iter().map(ranged).collect(),
        })
    }

    /// The network's guided output for x [B, C, H, W] in VP at `timestep`, whose noise level is σ.
    pub fn predict(
        &self,
        cx: &Context<'_>,
        x: &Candle,
        timestep: f64,
        sigma: f64,
    ) -> Result<Candle> {
        let at = At { cx, x, timestep: self.within(timestep), sigma };
        self.guided(&at, false).map(|(output, _)| output)
    }

    /// As [`Guided::predict`], and what the negative alone gives: asked for whatever the guidance is.
    fn predict_both(&self, at: &At<'_>) -> Result<[Candle; 2]> {
        let (output, uncond) = self.guided(at, true)?;
        Ok([output, uncond.ok_or_else(|| Error::new("guidance has one side alone"))?])
    }

    /// What the rule makes of the sides, and of `both` what it has without guidance; and what patches make of that.
    fn guided(&self, at: &At<'_>, both: bool) -> Result<(Candle, Option<Candle>)> {
        let acting = self.patches.iter().filter(|(_, range)| range.holds(at.sigma));
        let acting = acting.map(|(patch, _)| patch);
        let (before, acting): (Vec<&Patch>, Vec<&Patch>) =
            acting.partition(|patch| patch.kind == "sides");
        // Of those in the place of plain guidance the last acts, and before the others.
        let (guides, behind): (Vec<&Patch>, Vec<&Patch>) =
            acting.into_iter().partition(|patch| patch.kind == "guide");
        let acting: Vec<&Patch> =
            guides.into_iter().next_back().into_iter().chain(behind).collect();
        if acting.is_empty() {
            let Sides { output, uncond, .. } = self.by_rule(at, both, &before)?;
            return Ok((output, uncond));
        }
        let wants = both || acting.iter().any(|patch| patch.wants_unconditional);
        let Sides { output, cond, uncond } = self.by_rule(at, wants, &before)?;
        // Patches are told of x₀ and of x in VE.
        let x0 = |output: &Candle| x0_of_output(&self.schedule, at.x, output, at.sigma);
        let x = export(&self.schedule.in_ve(at.x, at.sigma)?)?;
        let conditional = export(&x0(&cond)?)?;
        let unconditional = match &uncond {
            Some(uncond) => Some(export(&x0(uncond)?)?),
            None => None,
        };
        let cfg = match self.rule {
            Rule::Positive => 1.0,
            Rule::Cfg(cfg) | Rule::Perpendicular { cfg, .. } => cfg,
            Rule::Dual { first, .. } => first,
        };
        let sides = Object::new(self.conditioned.clone());
        let mut denoised = export(&x0(&output)?)?;
        for patch in acting {
            let call = GuidanceCall {
                x: x.clone(),
                sigma: at.sigma,
                conditional: conditional.clone(),
                unconditional: unconditional.clone(),
                denoised,
                cfg,
                sides: sides.clone(),
            };
            denoised = patch.patch.patch_guidance(at.cx, call)?;
        }
        let denoised = import(&denoised, at.x.device())?;
        Ok((output_for_x0(&self.schedule, at.x, &denoised, at.sigma)?, uncond))
    }

    /// The sides as `patches` change them, where guidance has one or two.
    fn changed(
        &self,
        at: &At<'_>,
        (cond, uncond): (Candle, Option<Candle>),
        patches: &[&Patch],
    ) -> Result<(Candle, Option<Candle>)> {
        if patches.is_empty() {
            return Ok((cond, uncond));
        }
        let x = export(&self.schedule.in_ve(at.x, at.sigma)?)?;
        let x0 = |said: &Candle| export(&x0_of_output(&self.schedule, at.x, said, at.sigma)?);
        let (mut cond, mut uncond) = (x0(&cond)?, uncond.as_ref().map(x0).transpose()?);
        for patch in patches {
            let call = SidesCall {
                x: x.clone(),
                sigma: at.sigma,
                conditional: cond,
                unconditional: uncond.clone(),
            };
            let changed = patch.patch.patch_sides(at.cx, call)?;
            cond = changed.0;
            // What the patch does not speak of stays; a side that there is none of is not made up.
            uncond = uncond.map(|before| changed.1.unwrap_or(before));
        }
        let back = |x0: &Tensor| {
            let x0 = import(x0, at.x.device())?;
            Ok::<_, Error>(output_for_x0(&self.schedule, at.x, &x0, at.sigma)?)
        };
        Ok((back(&cond)?, uncond.as_ref().map(back).transpose()?))
    }

    /// What the rule makes of the sides, as `patches` change them before. What counts with nothing is not asked for.
    fn by_rule(&self, at: &At<'_>, both: bool, patches: &[&Patch]) -> Result<Sides> {
        let conditioned = &self.conditioned;
        let is_one = |scale: f64| (scale - 1.0).abs() <= 1e-9;
        let alone = || {
            let [cond] = conditioned.said(at, [POSITIVE])?;
            let (cond, _) = self.changed(at, (cond, None), patches)?;
            Ok(Sides { output: cond.clone(), cond, uncond: None })
        };
        match self.rule {
            Rule::Positive => {
                let sides = alone()?;
                let uncond = both.then(|| conditioned.says_zero(at.x, at.sigma));
                Ok(Sides { uncond: uncond.transpose()?, ..sides })
            }
            Rule::Cfg(cfg) if !both && is_one(cfg) => alone(),
            Rule::Cfg(cfg) => {
                // The negative's rows come first, as in diffusers.
                let [uncond, cond] = conditioned.said(at, [NEGATIVE, POSITIVE])?;
                let (cond, uncond) = match self.changed(at, (cond, Some(uncond)), patches)? {
                    (cond, Some(uncond)) => (cond, uncond),
                    (_, None) => return Err(Error::new("guidance has one side alone")),
                };
                let output = guide(&uncond, &cond, cfg)?;
                Ok(Sides { output, cond, uncond: Some(uncond) })
            }
            Rule::Dual { first, second, nested: false } if !both && is_one(second) => {
                if is_one(first) {
                    return alone();
                }
                let [middle, cond] = conditioned.said(at, [THIRD, POSITIVE])?;
                let output = guide(&middle, &cond, first)?;
                Ok(Sides { output, cond, uncond: None })
            }
            Rule::Dual { first, second, nested } => {
                let [uncond, middle, cond] = conditioned.said(at, [NEGATIVE, THIRD, POSITIVE])?;
                if nested {
                    let toward = guide(&middle, &cond, first)?;
                    let output = guide(&uncond, &toward, second)?;
                    return Ok(Sides { output, cond, uncond: Some(middle) });
                }
                let further = ((&cond - &middle)? * first)?;
                let output = (guide(&uncond, &middle, second)? + further)?;
                Ok(Sides { output, cond, uncond: Some(uncond) })
            }
            Rule::Perpendicular { cfg, negative } => {
                let [empty, uncond, cond] = conditioned.said(at, [THIRD, NEGATIVE, POSITIVE])?;
                let output = perpendicular(&cond, &uncond, &empty, cfg, negative)?;
                Ok(Sides { output, cond, uncond: Some(uncond) })
            }
        }
    }

    fn within(&self, timestep: f64) -> f64 {
        within(&self.schedule, timestep)
    }
}

impl Guide for Guided {
    fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    fn x0(
        &self,
        cx: &Context<'_>,
        x: &Candle,
        sigma: f64,
        both: bool,
    ) -> Result<(Candle, Option<Candle>)> {
        let Some(made) = &self.made else { return self.asked(cx, x, sigma, both) };
        let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
        let Made { memory, uncond } = &mut *made;
        memory.begin();
        if (!both || uncond.is_some())
            && let Some(x0) = memory.instead(&[()], x, sigma)?
        {
            if self.conditioned.shared.tells_what_is_left_out {
                cx.info(format!("LazyCache: the step at the noise level {sigma:.3} is left out"));
            }
            // As in ComfyUI, where a sampler keeps what it was last told.
            return Ok((x0, uncond.clone().filter(|_| both)));
        }
        let (x0, other) = self.asked(cx, x, sigma, both)?;
        memory.keep(&[()], x, &x0, sigma)?;
        uncond.clone_from(&other);
        Ok((x0, other))
    }
}

impl Guided {
    /// x₀ at x, and without guidance where `both` are asked for, of the network.
    fn asked(
        &self,
        cx: &Context<'_>,
        x: &Candle,
        sigma: f64,
        both: bool,
    ) -> Result<(Candle, Option<Candle>)> {
        if both {
            let mut network = |x: &Candle, timestep| {
                let at = At { cx, x, timestep: self.within(timestep), sigma };
                self.predict_both(&at).map_err(into_sampler)
            };
            let each = self.schedule.denoised_each(x, sigma, &mut network);
            let [x0, uncond] = each.map_err(out_of_sampler)?;
            return Ok((x0, Some(uncond)));
        }
        let mut network =
            |x: &Candle, timestep| self.predict(cx, x, timestep, sigma).map_err(into_sampler);
        let x0 = self.schedule.denoised(x, sigma, &mut network).map_err(out_of_sampler)?;
        Ok((x0, None))
    }
}
