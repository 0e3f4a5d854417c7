//! A LoRA of a U-Net in memory, as ComfyUI's TrainLoraNode makes one.
//!
//! Every weight of two dimensions and more has factors beside it, every bias and every weight of a norm a difference that is added to
//! it. The loss is of x₀ and not of the noise: noise of the level σ weighs σ² as much, and levels are drawn evenly over the
//! timesteps. Nothing is clipped.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};
use kosmograph_interrupt as interrupt;
use kosmograph_models::lora::{Factor, Layer, Layers};
use kosmograph_models::samplers::randn::Generator;
use kosmograph_models::samplers::{Prediction, Schedule};
use kosmograph_models::stable_diffusion::recompute::{Tape, record};
use kosmograph_models::stable_diffusion::steering::Steering;
use kosmograph_models::stable_diffusion::unet::{Condition, UNet, UNetConfig};
use kosmograph_models::{Weight, Weights};
use serde::{Deserialize, Serialize};

use crate::ask_for_all;
use crate::diffusion::random;
use crate::draws::Draws;
use crate::error::{Error, Result};
use crate::lora::{self, Kind, Target};
use crate::optimiser::{Method, Optimiser, OptimiserConfig};
use crate::parameters::{Gradients, Parameters};

/// How it is trained: node.h, "train_lora/1".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    pub kind: Kind,
    pub rank: usize,
    /// Updates.
    pub steps: usize,
    /// Examples of one pass.
    pub batch: usize,
    /// Passes of one update.
    pub accumulate: usize,
    pub optimiser: Rule,
    pub learning_rate: f64,
    pub loss: Loss,
    pub seed: u64,
    /// Whether blocks are computed again for their gradients, and not kept.
    pub recompute: bool,
}

/// Optimisers as torch's defaults set them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// With a decay of 0.01.
    Adamw,
    Adam,
    Sgd,
    Rmsprop,
}

/// What a prediction of x₀ is measured by; the mean over all its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loss {
    Mse,
    L1,
    /// Half of the square below 1, and a line beyond: torch's HuberLoss and SmoothL1Loss both.
    Huber,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            kind: Kind::Lora,
            rank: 8,
            steps: 16,
            batch: 1,
            accumulate: 1,
            optimiser: Rule::Adamw,
            learning_rate: 5e-4,
            loss: Loss::Mse,
            seed: 0,
            recompute: true,
        }
    }
}

impl Settings {
    fn check(&self) -> Result<()> {
        let counts = [
            ("rank", self.rank, 1 << 20),
            ("steps", self.steps, 1 << 30),
            ("batch", self.batch, 1 << 20),
            ("accumulate", self.accumulate, 1 << 20),
        ];
        for (name, value, most) in counts {
            if !(1..=most).contains(&value) {
                let sentence = format!("\"{name}\" is {value}; 1 to {most} would be right");
                return Err(Error::Config(sentence));
            }
        }
        self.optimiser().check()
    }

    fn optimiser(&self) -> OptimiserConfig {
        let (method, weight_decay) = match self.optimiser {
            Rule::Adamw => (Method::Adamw, 0.01),
            Rule::Adam => (Method::Adamw, 0.0),
            Rule::Sgd => (Method::Sgd, 0.0),
            Rule::Rmsprop => (Method::Rmsprop, 0.0),
        };
        let learning_rate = self.learning_rate;
        OptimiserConfig {
            method,
            learning_rate,
            weight_decay,
            clip_norm: 0.0,
            ..OptimiserConfig::default()
        }
    }
}

/// What a network learns from, one row of everything.
#[derive(Clone, Debug)]
pub struct LatentExample {
    /// [1, C, H, W], at the network's scale.
    pub latents: Tensor,
    /// [1, T, D].
    pub context: Tensor,
    /// [1, P].
    pub pooled: Option<Tensor>,
    /// [1, 6] or [1, 5].
    pub sizes: Option<Tensor>,
}

/// A network that is there already.
pub struct Network<'a> {
    pub config: &'a UNetConfig,
    pub schedule: &'a Schedule,
    /// By diffusers' names.
    pub tensors: HashMap<String, Weight>,
    /// What errors call it.
    pub origin: String,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// By the modules' paths.
    pub layers: Layers,
    /// Of each pass.
    pub losses: Vec<f64>,
}

/// Trains a LoRA of `network` that begins as `start`, and anew where that has nothing for a layer. `update` is told, after
/// each, how many are done and the loss of its last pass.
///
/// # Errors
/// A setting is outside of what it can be, `start` has a layer of a kind that is not trained, examples do not fit the
/// network or each other, there is no memory, the loss is no number any more, or `update` ends it.
pub fn train(
    network: Network<'_>,
    settings: &Settings,
    start: &Layers,
    examples: &[LatentExample],
    update: &mut dyn FnMut(usize, f64) -> Result<()>,
) -> Result<Adapter> {
    settings.check()?;
    if examples.is_empty() {
        return Err(Error::Data("there is nothing to learn from".to_owned()));
    }
    if network.schedule.prediction == Prediction::Edm {
        return Err(Error::Data(
            "a network of EDM's kind (Playground 2.5) is not trained here; one that predicts the noise, the velocity or the \
             picture would be right"
                .to_owned(),
        ));
    }
    let training = Training::begin(network, settings, start)?;
    // What a pass frees the next makes again.
    let _kept = kosmograph_caching_allocator::keep_all();
    let mut optimiser = Optimiser::new(&settings.optimiser());
    let mut losses = Vec::with_capacity(settings.steps.min(1 << 16));
    for step in 0..settings.steps {
        let mut gradients = Gradients::default();
        for pass in step * settings.accumulate..(step + 1) * settings.accumulate {
            interrupt::check().map_err(|_| Error::Cancelled)?;
            let (loss, found) = training.pass(settings, examples, pass)?;
            if !loss.is_finite() {
                return Err(Error::Diverged { step: step + 1, loss, kept: String::new() });
            }
            losses.push(loss);
            gradients.add(found);
        }
        gradients.scale(1.0 / settings.accumulate as f64);
        optimiser.update(&training.parameters, &mut gradients, settings.learning_rate)?;
        training.apply_differences()?;
        update(step + 1, losses.last().copied().unwrap_or_default())?;
    }
    Ok(Adapter { layers: training.layers()?, losses })
}

/// A layer with factors beside its weight.
struct Trained {
    target: Target,
    kind: Kind,
    alpha: f64,
}

/// A tensor that a difference is added to.
struct Shifted {
    /// Its own name.
    name: String,
    module: String,
    factor: Factor,
    base: Vec<f32>,
}

impl Shifted {
    fn parameter(&self) -> String {
        format!("{}.{}", self.module, self.factor.name())
    }
}

struct Training<'a> {
    schedule: &'a Schedule,
    unet: UNet,
    /// What the optimiser changes.
    parameters: Parameters,
    /// The tensors of the network that differences are added to, with them.
    live: Parameters,
    trained: Vec<Trained>,
    shifted: Vec<Shifted>,
}

impl<'a> Training<'a> {
    fn begin(network: Network<'a>, settings: &Settings, start: &Layers) -> Result<Training<'a>> {
        let Network { config, schedule, tensors, origin } = network;
        let mut names: Vec<&String> = tensors.keys().collect();
        names.sort();
        let products = if settings.kind == Kind::Loha { 2 } else { 1 };
        let numbers = names.iter().map(|name| match tensors[*name].dims() {
            [outputs, inputs @ ..] if !inputs.is_empty() => {
                vec![products * settings.rank, outputs + inputs.iter().product::<usize>()]
            }
            shape => shape.to_vec(),
        });
        ask_for_all("a LoRA of every layer", numbers)?;
        let mut parameters = Parameters::default();
        let (mut trained, mut shifted, mut beside) = (Vec::new(), Vec::new(), HashMap::new());
        let mut generator = Generator::new(settings.seed);
        let mut live = Parameters::default();
        for name in names {
            let shape = tensors[name].dims().to_vec();
            let (module, is_weight) =
                match (name.strip_suffix(".weight"), name.strip_suffix(".bias")) {
                    (Some(module), _) => (module.to_owned(), true),
                    (None, Some(module)) => (module.to_owned(), false),
                    (None, None) => continue,
                };
            if is_weight && shape.len() >= 2 {
                let target = Target { weight: name.clone(), module: module.clone(), shape };
                let (kind, alpha) = match start.get(&module).filter(|layer| has_weight(layer)) {
                    Some(layer) => begin_as(&mut parameters, &target, layer)?,
                    None => begin_anew(&mut parameters, &target, settings, &mut generator)?,
                };
                let of_it = std::slice::from_ref(&target);
                beside.extend(lora::beside(&parameters, of_it, (kind, alpha))?);
                trained.push(Trained { target, kind, alpha });
            } else {
                let base = tensors[name].tensor()?.to_dtype(candle_core::DType::F32)?;
                let factor = if is_weight { Factor::Diff } else { Factor::DiffB };
                let base = base.flatten_all()?.to_vec1::<f32>()?;
                let shift = Shifted { name: name.clone(), module, factor, base };
                let started =
                    start.get(&shift.module).and_then(|layer| layer.factors().get(&factor));
                let difference = match started {
                    Some(difference) => difference.reshape(shape)?,
                    None => Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu)?,
                };
                parameters.insert(shift.parameter(), &difference)?;
                live.insert(name.clone(), &tensors[name].tensor()?)?;
                shifted.push(shift);
            }
        }
        let tensors = live.replace_in(&tensors);
        let weights = Weights::from_trained(&origin, tensors, beside, &Device::Cpu);
        let unet = UNet::load(&weights, config)?;
        let training = Training { schedule, unet, parameters, live, trained, shifted };
        training.apply_differences()?;
        Ok(training)
    }

    /// Brings the network's own tensors to their bases plus the differences as they are.
    fn apply_differences(&self) -> Result<()> {
        for shift in &self.shifted {
            let name = shift.parameter();
            let difference = self.parameters.get(&name).ok_or(Error::NoParameter(name))?;
            let mut values = difference.flatten_all()?.to_vec1::<f32>()?;
            values.iter_mut().zip(&shift.base).for_each(|(value, base)| *value += base);
            self.live.set(&shift.name, values)?;
        }
        Ok(())
    }

    /// The loss of pass number `pass`, and its gradients.
    fn pass(
        &self,
        settings: &Settings,
        examples: &[LatentExample],
        pass: usize,
    ) -> Result<(f64, Gradients)> {
        let mut draws = Draws::new(settings.seed, pass as u64);
        let mut order: Vec<usize> = (0..examples.len()).collect();
        draws.shuffle(&mut order);
        let chosen: Vec<&LatentExample> =
            order.iter().take(settings.batch).map(|index| &examples[*index]).collect();
        let x0 = rows(chosen.iter().map(|example| &example.latents), "latents")?;
        let context = contexts(&chosen)?;
        let [pooled, sizes] = [vector(&chosen, |e| &e.pooled)?, vector(&chosen, |e| &e.sizes)?];
        // ComfyUI's seed of a pass.
        let mut generator = Generator::new(settings.seed.wrapping_add(pass as u64 * 1000));
        let noise = random(&mut generator, x0.dims())?;
        let sigmas: Vec<f64> = chosen.iter().map(|_| self.level(draws.share())).collect();
        let each = |of: &dyn Fn(f64) -> f64| -> Result<Tensor> {
            let values: Vec<f32> = sigmas.iter().map(|sigma| of(*sigma) as f32).collect();
            Ok(Tensor::from_vec(values, (sigmas.len(), 1, 1, 1), &Device::Cpu)?)
        };
        let sigma = each(&|sigma| sigma)?;
        let x = (&x0 + noise.broadcast_mul(&sigma)?)?;
        let scaled = x.broadcast_mul(&each(&|sigma| 1.0 / (sigma * sigma + 1.0).sqrt())?)?;
        let told = |sigma: f64| self.schedule.told(self.schedule.timestep(sigma), sigma);
        let told = each(&told)?.flatten_all()?;
        let condition =
            Condition { context: &context, pooled: pooled.as_ref(), sizes: sizes.as_ref() };
        let blocks = settings.recompute.then(Tape::default);
        let steering = Steering { tape: blocks.as_ref(), ..Steering::default() };
        let (output, recorded) = record(|| {
            self.unet.forward_steered(&scaled, &told, condition, steering, &mut |_, _| {})
        });
        let output = output?;
        let predicted = match self.schedule.prediction {
            Prediction::Epsilon => (x - output.broadcast_mul(&sigma)?)?,
            Prediction::VPrediction => {
                let kept = x.broadcast_mul(&each(&|sigma| 1.0 / (sigma * sigma + 1.0))?)?;
                let share = each(&|sigma| sigma / (sigma * sigma + 1.0).sqrt())?;
                (kept - output.broadcast_mul(&share)?)?
            }
            // Refused before.
            Prediction::Sample | Prediction::Edm => output,
        };
        let loss = settings.loss.of(&(predicted - &x0)?)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        let found = self.unet.backward(recorded, blocks.as_ref(), &loss)?;
        let mut gradients = Gradients::of(&self.parameters, &found)?;
        let of_live = Gradients::of(&self.live, &found)?;
        for shift in &self.shifted {
            if let Some(values) = of_live.get(&shift.name) {
                let values = BTreeMap::from([(shift.parameter(), values.to_vec())]);
                gradients.add(Gradients(values));
            }
        }
        Ok((value, gradients))
    }

    /// The noise level where the share `share` of the training's timesteps is over.
    fn level(&self, share: f64) -> f64 {
        let last = (self.schedule.train_steps() - 1) as f64;
        self.schedule.sigma((1.0 - share) * last)
    }

    fn layers(&self) -> Result<Layers> {
        let mut factors: BTreeMap<String, Parts> = BTreeMap::new();
        let get = |name: String| {
            let var = self.parameters.get(&name).ok_or(Error::NoParameter(name))?;
            // The variable itself goes on changing.
            Ok::<_, Error>(var.as_detached_tensor().copy()?)
        };
        for Trained { target, kind, alpha } in &self.trained {
            let (of_module, its_alpha) = factors.entry(target.module.clone()).or_default();
            *its_alpha = Some(*alpha);
            for end in kind.ends() {
                if let Some(factor) = factor_of(end) {
                    of_module.insert(factor, get(format!("{}.{end}", target.module))?);
                }
            }
        }
        for shift in &self.shifted {
            let (of_module, _) = factors.entry(shift.module.clone()).or_default();
            of_module.insert(shift.factor, get(shift.parameter())?);
        }
        let layer = |(module, (factors, alpha)): (String, Parts)| {
            let layer = Layer::new(&module, factors, alpha);
            let layer = layer.map_err(|error| Error::Models(error.into()))?;
            Ok((module, layer))
        };
        factors.into_iter().map(layer).collect()
    }
}

/// What a layer is made of, and its alpha.
type Parts = (BTreeMap<Factor, Tensor>, Option<f64>);

/// The factor that a file calls by this end of a name.
fn factor_of(end: &str) -> Option<Factor> {
    match end {
        "lora_down.weight" => Some(Factor::Down),
        "lora_up.weight" => Some(Factor::Up),
        end => Factor::of_name(end),
    }
}

fn begin_anew(
    parameters: &mut Parameters,
    target: &Target,
    settings: &Settings,
    generator: &mut Generator,
) -> Result<(Kind, f64)> {
    let kind_and_rank = (settings.kind, settings.rank);
    lora::begin_at_any_rank(parameters, std::slice::from_ref(target), kind_and_rank, generator)?;
    Ok((settings.kind, 1.0))
}

/// Whether a layer changes more than a bias.
fn has_weight(layer: &Layer) -> bool {
    layer.factors().keys().any(|factor| !matches!(factor, Factor::DiffB | Factor::BNorm))
}

/// Begins as the layer of a LoRA that is there.
fn begin_as(parameters: &mut Parameters, target: &Target, layer: &Layer) -> Result<(Kind, f64)> {
    let factors = layer.factors();
    let of_bias = [Factor::DiffB, Factor::BNorm];
    let all = [Kind::Lora, Kind::Loha, Kind::Lokr];
    let kind = all.into_iter().find(|kind| {
        let wanted: Vec<Factor> = kind.ends().iter().filter_map(|end| factor_of(end)).collect();
        wanted.iter().all(|factor| factors.contains_key(factor))
            && factors.keys().all(|factor| wanted.contains(factor) || of_bias.contains(factor))
    });
    let Some(kind) = kind else {
        let names: Vec<&str> = factors.keys().map(|factor| factor.name()).collect();
        return Err(Error::Config(format!(
            "the LoRA to go on with changes `{}` by {}; LoRA, LoHa without a core and LoKr of two factors are trained",
            target.module,
            names.join(", ")
        )));
    };
    for end in kind.ends() {
        let Some(tensor) = factor_of(end).and_then(|factor| factors.get(&factor)) else { continue };
        let misfit = |_| {
            Error::Config(format!(
                "the LoRA to go on with does not fit `{}` of this model: {:?} of it is {end}",
                target.module,
                tensor.dims()
            ))
        };
        let tensor = match (kind, *end) {
            (Kind::Lora, "lora_down.weight") => {
                tensor.reshape(lora::shapes(target, tensor.dim(0)?).0).map_err(misfit)?
            }
            (Kind::Lora, _) => {
                tensor.reshape(lora::shapes(target, tensor.dim(1)?).1).map_err(misfit)?
            }
            _ => tensor.clone(),
        };
        parameters.insert(format!("{}.{end}", target.module), &tensor)?;
    }
    let rank = match kind {
        Kind::Lora => factors[&Factor::Down].dim(0)?,
        Kind::Loha => factors[&Factor::HadaW1B].dim(0)?,
        Kind::Lokr => factors[&Factor::LokrW2B].dim(0)?,
    };
    Ok((kind, layer.alpha().unwrap_or(rank as f64)))
}

/// One below the other.
fn rows<'a>(tensors: impl Iterator<Item = &'a Tensor>, what: &str) -> Result<Tensor> {
    let tensors: Vec<&Tensor> = tensors.collect();
    if let Some(other) = tensors.iter().find(|tensor| tensor.dims() != tensors[0].dims()) {
        return Err(Error::Data(format!(
            "the {what} of a batch are of two shapes, {:?} and {:?}; a batch of 1 would be right",
            tensors[0].dims(),
            other.dims()
        )));
    }
    Ok(Tensor::cat(&tensors, 0)?)
}

/// The contexts of a batch, each repeated to the length that all have in common, as ComfyUI does.
fn contexts(chosen: &[&LatentExample]) -> Result<Tensor> {
    let lengths = chosen.iter().map(|example| example.context.dim(1));
    let lengths: Vec<usize> = lengths.collect::<candle_core::Result<_>>()?;
    let common = lengths.iter().fold(1, |common, length| {
        let (mut a, mut b) = (common, (*length).max(1));
        while b > 0 {
            (a, b) = (b, a % b);
        }
        common / a * (*length).max(1)
    });
    let repeated = chosen
        .iter()
        .zip(&lengths)
        .map(|(example, length)| example.context.repeat((1, common / (*length).max(1), 1)));
    let repeated: Vec<Tensor> = repeated.collect::<candle_core::Result<_>>()?;
    rows(repeated.iter(), "conditionings")
}

fn vector(
    chosen: &[&LatentExample],
    of: impl Fn(&LatentExample) -> &Option<Tensor>,
) -> Result<Option<Tensor>> {
    let all: Vec<&Tensor> = chosen.iter().filter_map(|example| of(example).as_ref()).collect();
    if all.len() < chosen.len() {
        return Ok(None);
    }
    rows(all.into_iter(), "pooled vectors").map(Some)
}

impl Loss {
    /// Of a difference; a scalar.
    fn of(self, difference: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Loss::Mse => difference.sqr()?.mean_all(),
            Loss::L1 => difference.abs()?.mean_all(),
            Loss::Huber => {
                let size = difference.abs()?;
                let is_small = size.detach().lt(1f32)?;
                let square = (difference.sqr()? * 0.5)?;
                is_small.where_cond(&square, &(size - 0.5)?)?.mean_all()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_torchs() {
        let difference = Tensor::new(&[0.5f32, -2.0, 0.0, 3.0], &Device::Cpu).unwrap();
        let of = |loss: Loss| loss.of(&difference).unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(of(Loss::Mse), (0.25 + 4.0 + 9.0) / 4.0);
        assert_eq!(of(Loss::L1), 5.5 / 4.0);
        assert_eq!(of(Loss::Huber), (0.125 + 1.5 + 2.5) / 4.0);
    }
}
