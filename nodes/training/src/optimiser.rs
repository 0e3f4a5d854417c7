//! Optimisers: AdamW, SGD and RMSprop as torch computes them, Adam as fairseq does, Adafactor, Muon.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::muon;
use crate::packed::{BLOCK, Packed, pack, unpack};
use crate::parameters::{Gradients, Parameters};

/// How parameters follow their gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101), ε added to √v̂ behind the bias
    /// correction: torch's.
    Adamw,
    /// The same with both moments in eight bits ([`crate::packed`]).
    #[serde(rename = "adamw_8bit")]
    Adamw8bit,
    /// AdamW with ε added to √v before the correction: fairseq's, which trained Kosmos-G.
    FairseqAdam,
    /// Adafactor (Shazeer and Stern, arXiv 1804.04235) with a given learning rate and without first moments: of a
    /// matrix's second moments it keeps the sums of rows and of columns.
    Adafactor,
    /// [Muon](crate::muon) for the matrices and convolutions of hidden layers, AdamW for everything else.
    Muon,
    /// Down the gradient, and no memory.
    Sgd,
    /// Down the gradient over the root of its mean square, which forgets by torch's 0.99.
    Rmsprop,
}

/// What an optimiser is set to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimiserConfig {
    pub method: Method,
    pub learning_rate: f64,
    /// How slowly the two moments forget (Adam).
    pub betas: [f64; 2],
    pub eps: f64,
    /// How slowly Muon's mean of the gradients forgets.
    pub momentum: f64,
    pub weight_decay: f64,
    /// The longest that all gradients together may be; 0 for any length.
    pub clip_norm: f64,
}

impl Default for OptimiserConfig {
    fn default() -> Self {
        OptimiserConfig {
            method: Method::Adamw,
            learning_rate: 1e-4,
            betas: [0.9, 0.999],
            eps: 1e-8,
            momentum: 0.95,
            weight_decay: 0.01,
            clip_norm: 1.0,
        }
    }
}

impl OptimiserConfig {
    /// # Errors
    /// A number is outside of what it can be.
    pub fn check(&self) -> Result<()> {
        let at_least_0 = [
            ("learning_rate", self.learning_rate),
            ("eps", self.eps),
            ("weight_decay", self.weight_decay),
            ("clip_norm", self.clip_norm),
        ];
        for (name, value) in at_least_0 {
            if !(value >= 0.0 && value.is_finite()) {
                let sentence = format!("optimiser.{name} is {value}; 0 or more would be right");
                return Err(Error::Config(sentence));
            }
        }
        if !(0.0..1.0).contains(&self.momentum) {
            let sentence =
                format!("optimiser.momentum is {}; 0 to less than 1 would be right", self.momentum);
            return Err(Error::Config(sentence));
        }
        if self.betas.iter().any(|beta| !(0.0..1.0).contains(beta)) {
            let sentence =
                format!("optimiser.betas are {:?}; 0 to less than 1 would be right", self.betas);
            return Err(Error::Config(sentence));
        }
        Ok(())
    }
}

/// What an optimiser remembers of one parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Moments {
    Adam {
        first: Vec<f32>,
        second: Vec<f32>,
    },
    Packed {
        first: Packed,
        second: Packed,
    },
    /// Of a matrix [rows, columns].
    Factored {
        rows: Vec<f32>,
        columns: Vec<f32>,
    },
    /// Of what Muon updates.
    Momentum {
        first: Vec<f32>,
    },
    /// Of what has one dimension, and of RMSprop.
    Whole {
        second: Vec<f32>,
    },
    /// Of SGD.
    Nothing,
}

/// An optimiser and its memory.
#[derive(Clone, Debug)]
pub struct Optimiser {
    config: OptimiserConfig,
    moments: BTreeMap<String, Moments>,
    /// Updates that are done.
    updates: usize,
}

impl Optimiser {
    pub fn new(config: &OptimiserConfig) -> Optimiser {
        Optimiser { config: config.clone(), moments: BTreeMap::new(), updates: 0 }
    }

    /// Updates that are done.
    pub fn updates(&self) -> usize {
        self.updates
    }

    /// What it remembers, by the parameters' names.
    pub fn moments(&self) -> &BTreeMap<String, Moments> {
        &self.moments
    }

    /// Goes on where another one was, after `updates` updates.
    pub fn resume(&mut self, updates: usize, moments: BTreeMap<String, Moments>) {
        (self.updates, self.moments) = (updates, moments);
    }

    /// One update, with the learning rate `rate`. Clips first, and returns the norm of the gradients before.
    ///
    /// # Errors
    /// A gradient belongs to no parameter.
    pub fn update(
        &mut self,
        parameters: &Parameters,
        gradients: &mut Gradients,
        rate: f64,
    ) -> Result<f64> {
        let norm = match self.config.clip_norm {
            0.0 => gradients.norm(),
            most => gradients.clip(most),
        };
        self.updates += 1;
        let step = Step { config: &self.config, updates: self.updates, rate };
        for (name, gradient) in gradients.iter() {
            let var = parameters.get(name).ok_or_else(|| Error::NoParameter(name.clone()))?;
            let mut values = var.flatten_all()?.to_vec1::<f32>()?;
            let moments = self
                .moments
                .entry(name.clone())
                .or_insert_with(|| Moments::new(self.config.method, name, var.dims()));
            match moments {
                Moments::Adam { first, second } => step.adam(&mut values, gradient, first, second),
                Moments::Packed { first, second } => {
                    step.adam_packed(&mut values, gradient, first, second);
                }
                Moments::Factored { rows, columns } => {
                    step.adafactor(&mut values, gradient, Some((rows, columns)), None);
                }
                Moments::Whole { second } if self.config.method == Method::Rmsprop => {
                    step.rmsprop(&mut values, gradient, second);
                }
                Moments::Whole { second } => {
                    step.adafactor(&mut values, gradient, None, Some(second));
                }
                Moments::Momentum { first } => {
                    let matrix = muon::matrix(name, var.dims())
                        .ok_or_else(|| Error::NoParameter(name.clone()))?;
                    let pace = (rate, step.kept(), self.config.momentum);
                    muon::update(&mut values, gradient, first, matrix, pace)?;
                }
                Moments::Nothing => step.sgd(&mut values, gradient),
            }
            parameters.set(name, values)?;
        }
        Ok(norm)
    }
}

impl Moments {
    fn new(method: Method, name: &str, shape: &[usize]) -> Moments {
        let count = shape.iter().product();
        match (method, shape) {
            (Method::Adafactor, [rows, _, ..]) => Moments::Factored {
                rows: vec![0.0; *rows],
                columns: vec![0.0; count / (*rows).max(1)],
            },
            (Method::Adafactor | Method::Rmsprop, _) => Moments::Whole { second: vec![0.0; count] },
            (Method::Sgd, _) => Moments::Nothing,
            (Method::Muon, shape) if muon::matrix(name, shape).is_some() => {
                Moments::Momentum { first: vec![0.0; count] }
            }
            (Method::Adamw8bit, _) => {
                Moments::Packed { first: Packed::zeros(count), second: Packed::zeros(count) }
            }
            _ => Moments::Adam { first: vec![0.0; count], second: vec![0.0; count] },
        }
    }
}

/// Values that one task takes.
const CHUNK: usize = 1 << 16;

struct Step<'a> {
    config: &'a OptimiserConfig,
    /// This update's number, from 1.
    updates: usize,
    rate: f64,
}

impl Step<'_> {
    fn adam(&self, values: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
        let adam = self.adam_chunk();
        let moments = first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK));
        let chunks = values.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
        chunks.zip(moments).for_each(|((values, gradient), (first, second))| {
            adam(values, gradient, first, second);
        });
    }

    /// The same, the moments of a chunk being unpacked for as long as it takes.
    fn adam_packed(
        &self,
        values: &mut [f32],
        gradient: &[f32],
        first: &mut Packed,
        second: &mut Packed,
    ) {
        const BLOCKS: usize = CHUNK / BLOCK;
        let adam = self.adam_chunk();
        let of_first = first.codes.par_chunks_mut(CHUNK).zip(first.scales.par_chunks_mut(BLOCKS));
        let of_second =
            second.codes.par_chunks_mut(CHUNK).zip(second.scales.par_chunks_mut(BLOCKS));
        let moments = of_first.zip(of_second);
        let chunks = values.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
        chunks.zip(moments).for_each(|((values, gradient), (first, second))| {
            let (mut m, mut v) = (Vec::new(), Vec::new());
            unpack(first.0, first.1, &mut m);
            unpack(second.0, second.1, &mut v);
            adam(values, gradient, &mut m, &mut v);
            pack(&m, first.0, first.1);
            pack(&v, second.0, second.1);
        });
    }

    /// What an update does to some values: they, their gradient and their two moments.
    fn adam_chunk(&self) -> impl Fn(&mut [f32], &[f32], &mut [f32], &mut [f32]) + Sync {
        let OptimiserConfig { betas: [beta1, beta2], eps, weight_decay, .. } = *self.config;
        let correction = |beta: f64| 1.0 - beta.powi(self.updates as i32);
        let root = correction(beta2).sqrt();
        let kept = (1.0 - self.rate * weight_decay) as f32;
        // fairseq's ε is of the uncorrected root: its size against √v̂ grows by 1 / √(1 − β₂ᵗ).
        let (rate, root, eps) = match self.config.method {
            Method::FairseqAdam => (self.rate * root / correction(beta1), 1.0, eps as f32),
            _ => (self.rate / correction(beta1), root as f32, eps as f32),
        };
        let (rate, [a, b]) = (rate as f32, [1.0 - beta1, 1.0 - beta2].map(|share| share as f32));
        let (beta1, beta2) = (beta1 as f32, beta2 as f32);
        move |values, gradient, first, second| {
            let moments = first.iter_mut().zip(second);
            for ((value, g), (m, v)) in values.iter_mut().zip(gradient).zip(moments) {
                *m = beta1 * *m + a * g;
                *v = beta2 * *v + b * g * g;
                *value = *value * kept - rate * *m / (v.sqrt() / root + eps);
            }
        }
    }

    /// What the decoupled decay leaves of a value.
    fn kept(&self) -> f32 {
        (1.0 - self.rate * self.config.weight_decay) as f32
    }

    fn sgd(&self, values: &mut [f32], gradient: &[f32]) {
        let (rate, kept) = (self.rate as f32, self.kept());
        for (value, g) in values.iter_mut().zip(gradient) {
            *value = *value * kept - rate * g;
        }
    }

    fn rmsprop(&self, values: &mut [f32], gradient: &[f32], second: &mut [f32]) {
        const ALPHA: f32 = 0.99;
        let (rate, kept, eps) = (self.rate as f32, self.kept(), self.config.eps as f32);
        for ((value, g), v) in values.iter_mut().zip(gradient).zip(second) {
            *v = ALPHA * *v + (1.0 - ALPHA) * g * g;
            *value = *value * kept - rate * g / (v.sqrt() + eps);
        }
    }

    /// The paper's algorithms 4 and 5: β₂ rises as 1 − t^−0.8, updates longer than 1 in the root mean square are cut.
    fn adafactor(
        &self,
        values: &mut [f32],
        gradient: &[f32],
        factored: Option<(&mut Vec<f32>, &mut Vec<f32>)>,
        whole: Option<&mut Vec<f32>>,
    ) {
        const TINY: f32 = 1e-30;
        let beta = (1.0 - (self.updates as f64).powf(-0.8)) as f32;
        let mix = |old: &mut f32, new: f32| *old = beta * *old + (1.0 - beta) * new;
        let mut update: Vec<f32> = Vec::with_capacity(gradient.len());
        if let Some((rows, columns)) = factored {
            let width = columns.len().max(1);
            let mut sums = vec![0f64; columns.len()];
            for (row, gradient) in rows.iter_mut().zip(gradient.chunks(width)) {
                let mut sum = 0f64;
                for (column, g) in sums.iter_mut().zip(gradient) {
                    let square = f64::from(g * g + TINY);
                    sum += square;
                    *column += square;
                }
                mix(row, (sum / width as f64) as f32);
            }
            let height = rows.len().max(1) as f64;
            columns.iter_mut().zip(sums).for_each(|(old, sum)| mix(old, (sum / height) as f32));
            let mean = rows.iter().map(|row| f64::from(*row)).sum::<f64>() / height;
            for (row, gradient) in rows.iter().zip(gradient.chunks(width)) {
                let row = (f64::from(*row) / mean.max(f64::from(TINY))) as f32;
                update.extend(
                    gradient.iter().zip(&*columns).map(|(g, column)| g / (row * column).sqrt()),
                );
            }
        } else if let Some(second) = whole {
            for (v, g) in second.iter_mut().zip(gradient) {
                mix(v, g * g + TINY);
                update.push(g / v.sqrt());
            }
        }
        let squares: f64 = update.iter().map(|u| f64::from(*u) * f64::from(*u)).sum();
        let length = (squares / update.len().max(1) as f64).sqrt();
        let rate = (self.rate / length.max(1.0)) as f32;
        let kept = self.kept();
        for (value, update) in values.iter_mut().zip(update) {
            *value = *value * kept - rate * update;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};
    use std::collections::HashMap;

    fn descend(method: Method) -> (f32, f32) {
        let start = Tensor::new(&[[3f32, -2.], [1., 4.]], &Device::Cpu).unwrap();
        let tensors = HashMap::from([("w".to_owned(), start.into())]);
        let parameters = Parameters::of(&tensors, |_| true).unwrap();
        let config = OptimiserConfig { method, weight_decay: 0.0, ..OptimiserConfig::default() };
        let mut optimiser = Optimiser::new(&config);
        let loss = || parameters.get("w").unwrap().sqr().unwrap().sum_all().unwrap();
        let before = loss().to_scalar::<f32>().unwrap();
        for _ in 0..200 {
            let (_, mut gradients) = Gradients::of_loss(&parameters, || Ok(loss())).unwrap();
            // All of Muon's updates are of one length.
            let rate = if method == Method::Muon { 0.2 } else { 0.05 };
            optimiser.update(&parameters, &mut gradients, rate).unwrap();
        }
        (before, loss().to_scalar::<f32>().unwrap())
    }

    #[test]
    fn every_method_goes_down() {
        let adam = [Method::Adamw, Method::Adamw8bit, Method::FairseqAdam];
        let others = [Method::Adafactor, Method::Muon, Method::Sgd, Method::Rmsprop];
        for method in adam.into_iter().chain(others) {
            let (before, after) = descend(method);
            assert!(after < before / 100.0, "{method:?}: {before} to {after}");
        }
    }

    #[test]
    fn decay_is_decoupled_and_what_has_no_gradient_stays() {
        let start = Tensor::new(&[2f32], &Device::Cpu).unwrap();
        let tensors =
            HashMap::from([("a".to_owned(), start.clone().into()), ("b".to_owned(), start.into())]);
        let parameters = Parameters::of(&tensors, |_| true).unwrap();
        let config = OptimiserConfig { weight_decay: 0.5, ..OptimiserConfig::default() };
        // A gradient of zero: the moments do nothing, the decay alone acts.
        let a = parameters.get("a").unwrap().as_tensor();
        let loss = || Ok((a * 0.0)?.sum_all()?);
        let (_, mut gradients) = Gradients::of_loss(&parameters, loss).unwrap();
        if gradients.get("a").is_none() {
            gradients.add(Gradients(BTreeMap::from([("a".to_owned(), vec![0.0])])));
        }
        Optimiser::new(&config).update(&parameters, &mut gradients, 0.1).unwrap();
        let values = parameters.values().unwrap();
        assert_eq!((values["a"][0], values["b"][0]), (2.0 * 0.95, 2.0));
    }
}
