//! The denoiser under guidance: what it says for every entry of both conditionings, put together.
//!
//! Each side is the mean over its entries, weighted for each latent pixel; guidance then goes from the
//! negative's mean past the positive's: uncond + cfg · (cond - uncond) (Ho & Salimans, arXiv 2207.12598).
//! Both are sums whose weights add up to one, so that it makes no difference whether they are taken of the
//! network's output, as here, or of x₀, as in ComfyUI.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Tensor as Candle;
use kosmograph_models::samplers::Schedule;
use kosmograph_models::samplers::guidance::{guide, perpendicular};
use node::interface::{self, DenoiseCall, GuidanceCall, Patch, SidesCall, marker};
use node::*;
use node_candle::{device, export, import};

use super::control::Controls;
use super::described::Described;
use super::entry::{Area, Entry, Frame, Given, Weight, all_sides, part};
use super::extra::Extra;
use super::grounding::Groundings;
use super::over_sigmas::Guide;
use super::range::Range;
use super::reuse::{Memory, Of};
use super::through::{into_sampler, out_of_sampler};

/// Entries in one call of the denoiser, as many as plain guidance has: more would save little time on a CPU
/// and cost memory.
const ENTRIES_AT_ONCE: usize = 2;

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

/// A denoiser with its conditions.
#[derive(Clone)]
struct Conditioned {
    model: Object,
    /// The same with the patches of each grounding that entries name.
    grounded: Vec<Object>,
    /// The optional keys of "denoiser/1" that the model makes use of.
    understands: Vec<String>,
    shared: Arc<Shared>,
    /// Whether calls may be left out; those of a patch's own are not.
    reuses: bool,
}

/// What the model and the same with patches have in common.
struct Shared {
    schedule: Schedule,
    /// The positive's entries, the negative's, and those of what a rule has beside them.
    sides: Vec<Vec<Entry>>,
    controls: Controls,
    /// What further entries are made ready for.
    frame: Frame,
    /// What calls said before, by the side and the entry's place in it, where a model lets them be left out.
    said: Option<Mutex<Memory<(usize, usize)>>>,
    tells_what_is_left_out: bool,
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

/// Places in [`Shared::sides`].
const POSITIVE: usize = 0;
const NEGATIVE: usize = 1;
const THIRD: usize = 2;

/// One entry that counts at this noise level.
struct Part<'a> {
    entry: &'a Entry,
    /// Its side's place.
    side: usize,
    /// Its place among its side's.
    place: usize,
    controls: Vec<usize>,
}

impl Part<'_> {
    /// Whether both can be asked for in one call. Contexts of different lengths are asked for apart: ComfyUI
    /// repeats them to a common length, which changes nothing, since every key of the attention is repeated
    /// equally often and the softmax divides by their number.
    fn goes_with(&self, other: &Part<'_>) -> bool {
        let size = |area: Option<Area>| area.map(|area| (area.height, area.width));
        let extra = |entry: &Entry| entry.extra.is_some();
        let of_controls = |entry: &Entry| {
            let context = entry.control_context.as_ref();
            context.map(|context| context.dims()[1..].to_vec())
        };
        self.entry.context.dims()[1..] == other.entry.context.dims()[1..]
            && size(self.entry.area) == size(other.entry.area)
            && self.controls == other.controls
            && extra(self.entry) == extra(other.entry)
            && of_controls(self.entry) == of_controls(other.entry)
            && self.entry.grounding == other.entry.grounding
            && self.entry.vector.is_some() == other.entry.vector.is_some()
    }
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

fn within(schedule: &Schedule, timestep: f64) -> f64 {
    timestep.clamp(0.0, (schedule.train_steps() - 1) as f64)
}

impl Export for Conditioned {
    const TYPE: &'static str = "SIDES";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Conditioned: marker::Sides];
}

impl interface::AskSides for Conditioned {
    fn ask(
        &self,
        cx: &Context<'_>,
        x: &Tensor,
        sigma: f64,
        (side, conditioning): (&str, Option<Conditioning>),
        patches: Vec<Patch>,
    ) -> Result<Tensor> {
        let side = match side {
            "positive" => POSITIVE,
            "negative" => NEGATIVE,
            other => {
                return Err(Error::at(
                    "side",
                    format!("there is no side \"{other}\"; positive and negative are there"),
                ));
            }
        };
        let x = import(x, &device(&cx.device())?)?;
        let mut asked = self.clone();
        asked.reuses = conditioning.is_none() && patches.is_empty();
        if let Some(conditioning) = &conditioning {
            let other = self.of(cx, conditioning, side);
            asked = other.map_err(|error| error.of_input("conditioning"))?;
        }
        if !patches.is_empty() {
            asked.model = self.model.with_patches(cx, patches.clone())?;
            let grounded =
                asked.grounded.iter().map(|model| model.with_patches(cx, patches.clone()));
            asked.grounded = grounded.collect::<Result<_>>()?;
            asked.understands = Described::of(cx, &asked.model, "model")?.understands;
        }
        let schedule = &self.shared.schedule;
        let mut network = |x: &Candle, timestep| {
            let at = At { cx, x, timestep: within(schedule, timestep), sigma };
            let [said] = asked.said(&at, [side]).map_err(into_sampler)?;
            Ok(said)
        };
        let x0 = schedule.denoised(&x, sigma, &mut network).map_err(out_of_sampler)?;
        export(&x0)
    }
}

impl Conditioned {
    /// The same with this conditioning as its `side`, the only one.
    fn of(&self, cx: &Context<'_>, conditioning: &Conditioning, side: usize) -> Result<Self> {
        let frame = self.shared.frame.clone();
        let mut controls = Controls::new(frame.dims.0);
        let mut groundings = Groundings::default();
        let entries = frame.beside(conditioning, &mut controls, &mut groundings)?;
        let mut sides = vec![Vec::new(); side];
        sides.push(entries);
        let schedule = self.shared.schedule.clone();
        Ok(Self {
            model: self.model.clone(),
            grounded: groundings.models(cx, &self.model)?,
            understands: self.understands.clone(),
            shared: Arc::new(Shared {
                schedule,
                sides,
                controls,
                frame,
                said: None,
                tells_what_is_left_out: false,
            }),
            reuses: false,
        })
    }

    /// What the network says for each of the sides.
    fn said<const N: usize>(&self, at: &At<'_>, sides: [usize; N]) -> Result<[Candle; N]> {
        let At { cx, x, timestep, sigma } = *at;
        let mut parts = Vec::new();
        for side in sides {
            let entries = self.shared.sides.get(side).map(Vec::as_slice).unwrap_or_default();
            parts.extend(self.parts(entries, side, sigma));
        }
        let mut outputs: [Vec<(&Entry, Candle)>; 3] = Default::default();
        if let Some(mut said) = self.remembered() {
            said.begin();
        }
        while !parts.is_empty() {
            let (mut together, mut apart) = (Vec::<Part<'_>>::new(), Vec::new());
            for part in parts {
                let fits = together.len() < ENTRIES_AT_ONCE
                    && together.first().is_none_or(|first| first.goes_with(&part));
                if fits { together.push(part) } else { apart.push(part) }
            }
            parts = apart;
            let told = self.shared.schedule.told(timestep, sigma);
            let output = self.output_or_the_last(cx, x, &together, (told, sigma))?;
            let batch = x.dim(0)?;
            for (i, part) in together.into_iter().enumerate() {
                let rows = output.narrow(0, i * batch, batch)?;
                outputs[part.side].push((part.entry, rows));
            }
        }
        let mut means = Vec::with_capacity(N);
        for side in sides {
            means.push(self.mean(x, &outputs[side], sigma)?);
        }
        means.try_into().map_err(|_| Error::new("guidance has other sides than were asked for"))
    }

    fn parts<'e>(
        &'e self,
        entries: &'e [Entry],
        side: usize,
        sigma: f64,
    ) -> impl Iterator<Item = Part<'e>> {
        let acting = entries.iter().enumerate().filter(move |(_, entry)| entry.range.holds(sigma));
        acting.map(move |(place, entry)| {
            let controls = self.shared.controls.acting(&entry.controls, sigma, side == POSITIVE);
            Part { entry, side, place, controls }
        })
    }

    fn remembered(&self) -> Option<MutexGuard<'_, Memory<(usize, usize)>>> {
        let said = self.shared.said.as_ref().filter(|_| self.reuses)?;
        Some(said.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// As [`Conditioned::output`] of σ; or the call is left out, where the model lets that be, and what the last one added to
    /// its input is added again.
    fn output_or_the_last(
        &self,
        cx: &Context<'_>,
        x: &Candle,
        parts: &[Part<'_>],
        (timestep, sigma): (f64, f64),
    ) -> Result<Candle> {
        let is_whole = parts.iter().all(|part| part.entry.area.is_none());
        let Some(mut said) = self.remembered().filter(|_| is_whole) else {
            return self.output(cx, x, parts, timestep);
        };
        let keys: Vec<_> = parts.iter().map(|part| (part.side, part.place)).collect();
        let rows = Candle::cat(&vec![x; parts.len()], 0)?;
        if let Some(output) = said.instead(&keys, &rows, sigma)? {
            if self.shared.tells_what_is_left_out {
                cx.info(format!("EasyCache: a call at the noise level {sigma:.3} is left out"));
            }
            return Ok(output);
        }
        let output = self.output(cx, x, parts, timestep)?;
        said.keep(&keys, &rows, &output, sigma)?;
        Ok(output)
    }

    /// The network's output for the rows of all `parts`, one after the other.
    fn output(
        &self,
        cx: &Context<'_>,
        x: &Candle,
        parts: &[Part<'_>],
        timestep: f64,
    ) -> Result<Candle> {
        let batch = x.dim(0)?;
        let (mut rows, mut extra, mut contexts) = (Vec::new(), Vec::new(), Vec::new());
        let mut read_by_controls = Vec::new();
        let (mut pooled, mut sizes) = (Vec::new(), Vec::new());
        for Part { entry, .. } in parts {
            let cut = |tensor: &Candle| match &entry.area {
                Some(area) => part(tensor, area),
                None => Ok(tensor.clone()),
            };
            rows.push(cut(x)?);
            contexts.push(repeat(&entry.context, batch)?);
            let control_context = entry.control_context.as_ref();
            let own = control_context.map(|context| repeat(context, batch));
            read_by_controls.extend(own.transpose()?);
            if let Some(vector) = &entry.vector {
                pooled.push(vector.pooled.repeat((batch, 1))?);
                sizes.push(vector.sizes.repeat((batch, 1))?);
            }
            extra.extend(entry.extra.as_ref().map(cut).transpose()?);
        }
        let (rows, contexts) = (Candle::cat(&rows, 0)?, export(&Candle::cat(&contexts, 0)?)?);
        let timesteps = Candle::full(timestep as f32, rows.dim(0)?, x.device())?;
        let timesteps = export(&timesteps)?;
        // Parts that go together have the same controls. These see the latents alone.
        let controls = parts.first().map_or(&[][..], |part| &part.controls);
        // And either all have a context of their controls' own, or none has.
        let read_by_controls = match read_by_controls.is_empty() {
            true => contexts.clone(),
            false => export(&Candle::cat(&read_by_controls, 0)?)?,
        };
        let seen = (&rows, &timesteps, &read_by_controls);
        let together = |parts: Vec<Candle>| match parts.is_empty() {
            true => Ok(None),
            false => export(&Candle::cat(&parts, 0)?).map(Some),
        };
        let (pooled, sizes) = (together(pooled)?, together(sizes)?);
        let vector = (&pooled, &sizes);
        let answer = self.shared.controls.residuals(cx, &self.model, controls, seen, vector)?;
        if !answer.features.is_empty() && !self.understands.iter().any(|key| key == "features") {
            return Err(Error::at(
                "model",
                "this model does not take what a T2I-Adapter gives; a ControlNet may be what it takes",
            ));
        }
        let input = match extra.is_empty() {
            true => rows.clone(),
            false => Candle::cat(&[rows.clone(), Candle::cat(&extra, 0)?], 1)?,
        };
        let side = |part: &Part<'_>| if part.side == POSITIVE { "positive" } else { "negative" };
        let sides = parts.iter().flat_map(|part| vec![side(part).to_owned(); batch]);
        let wants_rows = self.understands.iter().any(|key| key == "rows");
        let call = DenoiseCall {
            residuals: answer.residuals,
            pooled,
            sizes,
            features: answer.features,
            rows: if wants_rows { sides.collect() } else { Vec::new() },
            ..DenoiseCall::new(export(&input)?, timesteps, contexts)
        };
        // Parts that go together have the same boxes.
        let grounding = parts.first().and_then(|part| part.entry.grounding);
        let model = grounding.and_then(|place| self.grounded.get(place)).unwrap_or(&self.model);
        let output = model.denoise_call(cx, call)?;
        let shape = output.shape();
        if shape != rows.dims() {
            return Err(Error::at(
                "model",
                format!("the denoiser answered {shape:?} for latents of {:?}", rows.dims()),
            ));
        }
        import(&output, x.device())
    }

    /// The weighted mean over one side's entries. Where none counts, the network is taken to say that x₀ is
    /// 0, as ComfyUI has it.
    fn mean(&self, x: &Candle, outputs: &[(&Entry, Candle)], sigma: f64) -> Result<Candle> {
        if let [(Entry { area: None, weight: Weight::Even(weight), .. }, output)] = outputs
            && *weight > 0.0
        {
            return Ok(output.clone());
        }
        let (_, _, height, width) = x.dims4()?;
        let nothing = self.says_zero(x, sigma)?;
        let mut sum = x.zeros_like()?;
        let mut total = Candle::zeros((1, 1, height, width), x.dtype(), x.device())?;
        for (entry, output) in outputs {
            let (weight, output) = match &entry.weight {
                Weight::Even(weight) => {
                    let (_, _, height, width) = output.dims4()?;
                    let shape = (1, 1, height, width);
                    let even = Candle::full(*weight as f32, shape, x.device())?;
                    (even, (output * *weight)?)
                }
                Weight::Each(weight) => (weight.clone(), output.broadcast_mul(weight)?),
            };
            let in_place = |tensor: Candle| match &entry.area {
                None => Ok(tensor),
                Some(area) => tensor
                    .pad_with_zeros(2, area.y, height - area.y - area.height)?
                    .pad_with_zeros(3, area.x, width - area.x - area.width),
            };
            sum = (sum + in_place(output)?)?;
            total = total.broadcast_add(&in_place(weight)?)?;
        }
        let covered = total.ne(0f32)?.to_dtype(x.dtype())?;
        let uncovered = (1.0 - &covered)?;
        // Not to divide by the zeros, which `uncovered` takes the place of.
        let mean = sum.broadcast_div(&(total + &uncovered)?)?;
        Ok((mean.broadcast_mul(&covered)? + nothing.broadcast_mul(&uncovered)?)?)
    }

    /// What the network would say at x (VP) if x₀ were 0.
    fn says_zero(&self, x: &Candle, sigma: f64) -> Result<Candle> {
        Ok(output_for_x0(&self.shared.schedule, x, &x.zeros_like()?, sigma)?)
    }
}

/// Where the network is asked: x in VP, at a timestep whose noise level is σ.
#[derive(Clone, Copy)]
struct At<'a> {
    cx: &'a Context<'a>,
    x: &'a Candle,
    timestep: f64,
    sigma: f64,
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

/// The x₀ that a network believes in which says `output` at x (VP) of noise level σ (VE).
fn x0_of_output(
    schedule: &Schedule,
    x: &Candle,
    output: &Candle,
    sigma: f64,
) -> candle_core::Result<Candle> {
    let (alpha, share) = schedule.shares(sigma);
    let x0 = schedule.x0(x, output, alpha, share)?;
    match schedule.prediction.sigma_data() {
        1.0 => Ok(x0),
        data => x0 * data,
    }
}

/// What a network says at x (VP) of noise level σ (VE) that believes in x₀.
pub fn output_for_x0(
    schedule: &Schedule,
    x: &Candle,
    x0: &Candle,
    sigma: f64,
) -> candle_core::Result<Candle> {
    let (alpha, share) = schedule.shares(sigma);
    match schedule.prediction.sigma_data() {
        1.0 => schedule.output_for_x0(x, x0, alpha, share),
        data => schedule.output_for_x0(x, &(x0 / data)?, alpha, share),
    }
}

/// A context [1 or B, T, D] for `rows` rows.
fn repeat(context: &Candle, rows: usize) -> candle_core::Result<Candle> {
    match context.dim(0)? {
        1 => context.repeat((rows, 1, 1)),
        _ => Ok(context.clone()),
    }
}
