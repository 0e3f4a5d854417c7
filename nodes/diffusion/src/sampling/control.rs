//! The ControlNets of a sampling: each with its hint, strength and range, called through "control/1".

use std::sync::{Mutex, PoisonError};

use candle_core::Tensor as Candle;
use kosmograph_models::samplers::Schedule;
use node::interface::{ControlAnswer, ControlCall};
use node::*;
use node_candle::{export, import};

use super::range::Range;
use crate::hint::hint_for;

/// All of a sampling, each once, however many entries of the conditionings name it.
pub struct Controls {
    controls: Vec<Active>,
    /// Latents at once: hints are given for one picture, or for each.
    batch: usize,
}

struct Active {
    /// The CONTROL that it was made of.
    value: Value,
    control_net: node::ControlNet,
    /// What it is of the model that is sampled, where it is said as changes of a model.
    of_model: Mutex<Option<Object>>,
    hint: Image,
    strength: f64,
    range: Range,
    guess: bool,
    /// The hint at the sizes that were asked for: [b, 3, 8H, 8W] in 0..1. The same tensor at every step, so
    /// that the network may keep what it makes of it.
    scaled: Mutex<Vec<Tensor>>,
}

impl Controls {
    pub fn new(batch: usize) -> Self {
        Self { controls: Vec::new(), batch }
    }

    /// The places of what an entry's "control" names.
    pub fn of_entry(&mut self, entry: &Value, schedule: &Schedule) -> Result<Vec<usize>> {
        let Some(list) = entry.get("control") else { return Ok(Vec::new()) };
        let Some(items) = list.as_list() else {
            return Err(Error::new(format!(
                "\"control\" of a conditioning is a list of CONTROL, but it is {list:?}"
            )));
        };
        let mut places = Vec::new();
        for item in items {
            places.extend(self.add(Some(<Control as Socket>::from_value(item)?), schedule)?);
        }
        Ok(places)
    }

    /// The places of a CONTROL and those before it. One of strength 0 has none.
    pub fn add(&mut self, control: Option<Control>, schedule: &Schedule) -> Result<Vec<usize>> {
        let mut places = Vec::new();
        let mut next = control;
        while let Some(control) = next {
            next = control.previous()?;
            if control.strength() == 0.0 {
                continue;
            }
            let known = self.controls.iter().position(|active| active.value.is_same(&control.0));
            let place = match known {
                Some(place) => place,
                None => {
                    self.controls.push(Active {
                        control_net: control.control_net()?,
                        of_model: Mutex::default(),
                        hint: control.hint()?,
                        strength: control.strength(),
                        range: Range::new(schedule, control.start(), control.end()),
                        guess: control.guess(),
                        scaled: Mutex::default(),
                        value: control.0,
                    });
                    self.controls.len() - 1
                }
            };
            places.push(place);
        }
        Ok(places)
    }

    /// Those of `places` that act at σ on the conditional half, or on the other: in guess mode a ControlNet
    /// sees the conditional half alone.
    pub fn acting(&self, places: &[usize], sigma: f64, conditional: bool) -> Vec<usize> {
        let acts = |place: &&usize| {
            let active = &self.controls[**place];
            active.range.holds(sigma) && (conditional || !active.guess)
        };
        places.iter().filter(acts).copied().collect()
    }

    /// The sum of what the ControlNets at `places` return, the middle's residual last, and of the T2I-Adapters among them.
    pub fn residuals(
        &self,
        cx: &Context<'_>,
        model: &Object,
        places: &[usize],
        (x, timestep, context): (&Candle, &Tensor, &Tensor),
        (pooled, sizes): (&Option<Tensor>, &Option<Tensor>),
    ) -> Result<ControlAnswer> {
        let (_, _, height, width) = x.dims4()?;
        let exported = export(x)?;
        let mut sum: Vec<Candle> = Vec::new();
        let mut features: Vec<(String, Candle)> = Vec::new();
        for active in places.iter().map(|&place| &self.controls[place]) {
            let call = ControlCall {
                x: exported.clone(),
                timestep: timestep.clone(),
                context: context.clone(),
                hint: active.hint_at(self.batch, height * 8, width * 8)?,
                strength: active.strength,
                guess: active.guess,
                pooled: pooled.clone(),
                sizes: sizes.clone(),
            };
            let answer = active.network(cx, model)?.control(cx, call)?;
            for (place, feature) in &answer.features {
                add_feature(&mut features, place, import(feature, x.device())?)?;
            }
            if answer.residuals.is_empty() {
                continue;
            }
            let added = answer.residuals.iter().map(|tensor| import(tensor, x.device()));
            let added: Vec<Candle> = added.collect::<Result<_>>()?;
            let shapes = |tensors: &[Candle]| {
                tensors.iter().map(|tensor| tensor.dims().to_vec()).collect::<Vec<_>>()
            };
            sum = if sum.is_empty() {
                added
            } else if shapes(&sum) == shapes(&added) {
                sum.iter().zip(&added).map(|(a, b)| a + b).collect::<Result<_, _>>()?
            } else {
                return Err(Error::at(
                    "control",
                    "the ControlNets are of different families and cannot act together",
                ));
            };
        }
        let feature = |(place, feature): (String, Candle)| Ok((place, export(&feature)?));
        Ok(ControlAnswer {
            residuals: sum.iter().map(export).collect::<Result<_>>()?,
            features: features.into_iter().map(feature).collect::<Result<_>>()?,
        })
    }
}

/// Adds a feature to the others at its place.
fn add_feature(features: &mut Vec<(String, Candle)>, place: &str, added: Candle) -> Result<()> {
    let Some((_, sum)) = features.iter_mut().find(|(known, _)| known == place) else {
        features.push((place.to_owned(), added));
        return Ok(());
    };
    if sum.dims()[1..] != added.dims()[1..] {
        return Err(Error::at(
            "control",
            "the T2I-Adapters are of different families and cannot act together",
        ));
    }
    *sum = sum.broadcast_add(&added)?;
    Ok(())
}

impl Active {
    /// What is asked for residuals.
    fn network(&self, cx: &Context<'_>, model: &Object) -> Result<Object> {
        if !self.control_net.0.offers("base_model/1") {
            return Ok(self.control_net.0.clone());
        }
        let mut of_model = self.of_model.lock().unwrap_or_else(PoisonError::into_inner);
        match &*of_model {
            Some(known) => Ok(known.clone()),
            None => {
                let made = self.control_net.0.of_model(cx, model);
                let made = made.map_err(|error| error.of_input("control"))?;
                Ok(of_model.insert(made).clone())
            }
        }
    }

    fn hint_at(&self, batch: usize, height: usize, width: usize) -> Result<Tensor> {
        let mut scaled = self.scaled.lock().unwrap_or_else(PoisonError::into_inner);
        let known = scaled.iter().find(|hint| hint.shape()[2..] == [height, width]);
        if let Some(hint) = known {
            return Ok(hint.clone());
        }
        let hint = hint_for(&self.hint, batch, height, width)?;
        scaled.push(hint.clone());
        Ok(hint)
    }
}
