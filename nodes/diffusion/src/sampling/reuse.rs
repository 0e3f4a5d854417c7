//! What was said before in the place of what would be said, where little changes: EasyCache (Zhou et al., "Less is Enough:
//! Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching", arXiv 2507.02860) for the calls of a network,
//! and ComfyUI's LazyCache for all that guidance makes of them.
//!
//! What a network adds to its input changes slowly from step to step. How much the output will change is told by how much
//! the input did, times what the one was to the other when both were last known; while the sum of that stays below a
//! threshold, what was added last is added again. All that is remembered belongs to one sampling.

use std::collections::HashMap;
use std::hash::Hash;

use candle_core::{Result, Tensor};
use kosmograph_models::samplers::Schedule;

/// Every so manieth row and column is looked at.
const EVERY: usize = 8;

/// What is reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The network's answers, of each entry of a conditioning by itself.
    Calls,
    /// What guidance makes of them.
    Guidance,
}

/// When something is reused, as a MODEL says it.
#[derive(Clone, Copy, Debug)]
pub struct Reuse {
    pub of: Of,
    threshold: f64,
    /// From where in the schedule, and up to where, in 0..1.
    start: f64,
    end: f64,
    /// Whether it is told what is left out.
    pub told: bool,
}

impl Reuse {
    /// "reuse" of "describe/1"; `None` of a model that does not say it, or says nonsense.
    pub fn read(json: &serde_json::Value) -> Option<Self> {
        let of = match json["of"].as_str()? {
            "calls" => Of::Calls,
            "guidance" => Of::Guidance,
            _ => return None,
        };
        let number = |key: &str| json[key].as_f64().filter(|number| number.is_finite());
        let told = json["told"] == true;
        Some(Self {
            of,
            threshold: number("threshold")?,
            start: number("start")?,
            end: number("end")?,
            told,
        })
    }
}

/// What one sampling remembers; `K` names what is answered apart.
#[derive(Debug)]
pub struct Memory<K> {
    threshold: f64,
    /// Noise levels: nothing is left out above the first, nor at or below the second.
    from: f32,
    to: f32,
    /// Whose changes are watched for all.
    watched: Option<K>,
    /// What was added last.
    added: HashMap<K, Tensor>,
    before: Option<Before>,
    /// How much the output changes where the input does by 1.
    rate: Option<f64>,
    /// How far off what is reused may be by now, as a share of the output.
    off: f64,
    /// Whether the rest of this step is left out, too.
    leaves_out: bool,
}

/// The last call that was made of the watched one.
#[derive(Debug)]
struct Before {
    x: Tensor,
    output: Tensor,
    /// The mean size of the output's numbers.
    size: f64,
}

impl<K: Clone + Eq + Hash> Memory<K> {
    pub fn new(reuse: &Reuse, schedule: &Schedule) -> Self {
        Self {
            threshold: reuse.threshold,
            from: schedule.sigma_of_percent(reuse.start),
            to: schedule.sigma_of_percent(reuse.end),
            watched: None,
            added: HashMap::new(),
            before: None,
            rate: None,
            off: 0.0,
            leaves_out: false,
        }
    }

    /// Another step begins.
    pub fn begin(&mut self) {
        self.leaves_out = false;
    }

    fn is_at_work(&self, sigma: f64) -> bool {
        sigma as f32 > self.to
    }

    fn may_leave_out(&self, sigma: f64) -> bool {
        self.is_at_work(sigma) && sigma as f32 <= self.from
    }

    /// Of x [n · B, C, H, W], the rows of `keys` one after the other, what stands for the answer at σ; `None` where it has
    /// to be asked for.
    ///
    /// # Errors
    /// candle's.
    pub fn instead(&mut self, keys: &[K], x: &Tensor, sigma: f64) -> Result<Option<Tensor>> {
        if !self.may_leave_out(sigma) {
            return Ok(None);
        }
        let rows = x.dim(0)? / keys.len().max(1);
        let fits = |added: &Tensor| {
            added.dims().first() == Some(&rows) && added.dims()[1..] == x.dims()[1..]
        };
        let are_known = keys.iter().all(|key| self.added.get(key).is_some_and(fits));
        if self.leaves_out && are_known {
            return self.again(keys, x).map(Some);
        }
        if self.watched.is_none() {
            self.watched = keys.first().cloned();
        }
        if let (Some(change), Some(before), Some(rate)) =
            (self.input_change(keys, x)?, &self.before, self.rate)
        {
            self.off += rate * change / before.size;
            if self.off < self.threshold && are_known {
                self.leaves_out = true;
                return self.again(keys, x).map(Some);
            }
            self.off = 0.0;
        }
        Ok(None)
    }

    /// Keeps what was answered to x.
    ///
    /// # Errors
    /// candle's.
    pub fn keep(&mut self, keys: &[K], x: &Tensor, output: &Tensor, sigma: f64) -> Result<()> {
        if !self.is_at_work(sigma) {
            return Ok(());
        }
        let watched = self.watched_rows(keys);
        // Before the first step that may be left out the input's change is not looked at.
        let input_change = match self.may_leave_out(sigma) {
            true => self.input_change(keys, x)?,
            false => None,
        };
        if let (Some(place), Some(before), Some(input_change)) =
            (watched, &self.before, input_change)
        {
            let output = sample(output, place, keys.len())?;
            if output.dims() == before.output.dims() {
                self.rate = Some(change(&output, &before.output)? / input_change);
            }
        }
        let rows = x.dim(0)? / keys.len().max(1);
        let added = (output - x)?;
        for (i, key) in keys.iter().enumerate() {
            self.added.insert(key.clone(), added.narrow(0, i * rows, rows)?);
        }
        if let Some(place) = watched {
            let size = f64::from(output.abs()?.mean_all()?.to_scalar::<f32>()?);
            let (x, output) = (sample(x, place, keys.len())?, sample(output, place, keys.len())?);
            self.before = Some(Before { x, output, size });
        }
        Ok(())
    }

    fn again(&self, keys: &[K], x: &Tensor) -> Result<Tensor> {
        let added: Vec<&Tensor> = keys.iter().filter_map(|key| self.added.get(key)).collect();
        x + Tensor::cat(&added, 0)?
    }

    fn watched_rows(&self, keys: &[K]) -> Option<usize> {
        let watched = self.watched.as_ref()?;
        keys.iter().position(|key| key == watched)
    }

    /// How much the watched rows of x changed since the last call that was made, where there was one.
    fn input_change(&self, keys: &[K], x: &Tensor) -> Result<Option<f64>> {
        let (Some(place), Some(before)) = (self.watched_rows(keys), &self.before) else {
            return Ok(None);
        };
        let x = sample(x, place, keys.len())?;
        // Of another size there is nothing to compare.
        (x.dims() == before.x.dims()).then(|| change(&x, &before.x)).transpose()
    }

    /// Watches this one from the first step on.
    pub fn watching(self, key: K) -> Self {
        Self { watched: Some(key), ..self }
    }
}

/// A sample of the rows of the `place`th of `count`.
fn sample(x: &Tensor, place: usize, count: usize) -> Result<Tensor> {
    let rows = x.dim(0)? / count.max(1);
    let (_, _, height, width) = x.dims4()?;
    let every = |size: usize| {
        let places: Vec<u32> = (0..size as u32).step_by(EVERY).collect();
        let count = places.len();
        Tensor::from_vec(places, count, x.device())
    };
    let x = x.narrow(0, place * rows, rows)?.contiguous()?;
    x.index_select(&every(height)?, 2)?.index_select(&every(width)?, 3)
}

/// The mean distance of the numbers.
fn change(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok(f64::from((a - b)?.abs()?.mean_all()?.to_scalar::<f32>()?))
}
