//! A denoiser with its conditions: what it says for each side of guidance, the mean over that side's entries.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Tensor as Candle;
use kosmograph_models::samplers::Schedule;
use node::interface::{self, DenoiseCall, Patch, marker};
use node::*;
use node_candle::{device, export, import};

use super::control::Controls;
use super::described::Described;
use super::entry::{Area, Entry, Frame, Weight, part};
use super::grounding::Groundings;
use super::reuse::Memory;
use super::through::{into_sampler, out_of_sampler};

/// Entries in one call of the denoiser, as many as plain guidance has: more would save little time on a CPU
/// and cost memory.
const ENTRIES_AT_ONCE: usize = 2;

/// A denoiser with its conditions.
#[derive(Clone)]
pub(super) struct Conditioned {
    pub(super) model: Object,
    /// The same with the patches of each grounding that entries name.
    pub(super) grounded: Vec<Object>,
    /// The optional keys of "denoiser/1" that the model makes use of.
    pub(super) understands: Vec<String>,
    pub(super) shared: Arc<Shared>,
    /// Whether calls may be left out; those of a patch's own are not.
    pub(super) reuses: bool,
}

/// What the model and the same with patches have in common.
pub(super) struct Shared {
    pub(super) schedule: Schedule,
    /// The positive's entries, the negative's, and those of what a rule has beside them.
    pub(super) sides: Vec<Vec<Entry>>,
    pub(super) controls: Controls,
    /// What further entries are made ready for.
    pub(super) frame: Frame,
    /// What calls said before, by the side and the entry's place in it, where a model lets them be left out.
    pub(super) said: Option<Mutex<Memory<(usize, usize)>>>,
    pub(super) tells_what_is_left_out: bool,
}

/// Places in [`Shared::sides`].
pub(super) const POSITIVE: usize = 0;
pub(super) const NEGATIVE: usize = 1;
pub(super) const THIRD: usize = 2;

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

pub(super) fn within(schedule: &Schedule, timestep: f64) -> f64 {
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
    pub(super) fn said<const N: usize>(
        &self,
        at: &At<'_>,
        sides: [usize; N],
    ) -> Result<[Candle; N]> {
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
    pub(super) fn says_zero(&self, x: &Candle, sigma: f64) -> Result<Candle> {
        Ok(output_for_x0(&self.shared.schedule, x, &x.zeros_like()?, sigma)?)
    }
}

/// Where the network is asked: x in VP, at a timestep whose noise level is σ.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) cx: &'a Context<'a>,
    pub(super) x: &'a Candle,
    pub(super) timestep: f64,
    pub(super) sigma: f64,
}

/// The x₀ that a network believes in which says `output` at x (VP) of noise level σ (VE).
pub(super) fn x0_of_output(
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
