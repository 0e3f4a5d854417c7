//! Training: the gradients of the operators and of the networks, and some steps of each kind.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{D, DType, Device, Tensor, Var};
use kosmograph_kernels as kernels;
use kosmograph_models::kosmos::aligner::{
    Aligner, Reconstruction, alignment_loss, reconstruction_loss,
};
use kosmograph_models::layers::{causal_mask, embedding, l2_normalize, padding_mask};
use kosmograph_models::samplers::{Schedule, SchedulerConfig};
use kosmograph_models::stable_diffusion::controlnet::{ControlNet, ControlNetConfig};
use kosmograph_models::stable_diffusion::recompute::record;
use kosmograph_models::stable_diffusion::unet::{UNet, UNetConfig};
use kosmograph_models::{Weight, Weights};
use kosmograph_training::lora::{self, Target};
use kosmograph_training::noise::{
    add_noise, cross_entropy, min_snr_weights, mse_of_rows, signal_to_noise, weighted_mse,
};
use kosmograph_training::{Gradients, Method, Optimiser, OptimiserConfig, Parameters, timesteps};
use serde_json::Value;

use crate::case::{BOUND, Case, largest_magnitude, read_tensors};
use crate::kosmos::aligner_config;

/// Of gradients through the U-Net, whose f32 is at 1e-5 itself.
pub(crate) const UNET_GRADIENT: f64 = 1e-4;
/// Gradients that are zero in exact arithmetic are rounding noise below this.
const NOISE: f64 = 1e-6;

/// The gradients of every operator, and of what the models put together of tensor algebra.
pub fn operators(case: &mut Case) -> Result<()> {
    let ops = case.config["ops"].as_object().context("no `ops`")?.clone();
    for (op, options) in &ops {
        let prefix = format!("{op}.");
        let mut vars: BTreeMap<String, Var> = BTreeMap::new();
        for name in case.inputs() {
            let Some(input) = name.strip_prefix(&prefix) else { continue };
            let tensor = case.input(&name)?;
            if tensor.dtype() == DType::F32 && input != "upstream" && input != "target" {
                vars.insert(input.to_owned(), Var::from_tensor(&tensor)?);
            }
        }
        let out = operator(case, op, options, &vars)?;
        let scalar = out.rank() == 0;
        let shown = if scalar { out.reshape(1)? } else { out };
        // f32 itself is at 8e-6 there: the case's own bound.
        let bound = if op == "group_norm_offset" { 5e-5 } else { BOUND };
        let name = format!("{op}.out");
        let largest = largest_magnitude(&case.expected(&name)?)?;
        case.check_within(&name, &shown, bound * largest)?;
        let upstream = case.input(&format!("{op}.upstream"))?;
        let store = (shown * upstream)?.sum_all()?.backward()?;
        for (input, var) in &vars {
            let name = format!("{op}.d{input}");
            let mut gradient = store.get(var).with_context(|| format!("no {name}"))?.clone();
            if let Some(row) = options["padding_idx"].as_u64() {
                gradient = without_row(&gradient, row as usize)?;
            }
            let largest = largest_magnitude(&case.expected(&name)?)?;
            case.check_within(&name, &gradient, (bound * largest).max(NOISE))?;
        }
    }
    Ok(())
}

fn without_row(gradient: &Tensor, row: usize) -> Result<Tensor> {
    let parameters =
        Parameters::of(&HashMap::from([("w".to_owned(), gradient.clone().into())]), |_| true)?;
    let var = parameters.get("w").context("it was put there")?;
    let loss = || Ok((var.as_tensor() * gradient)?.sum_all()?);
    let (_, mut gradients) = Gradients::of_loss(&parameters, loss)?;
    gradients.freeze_row("w", row, gradient.dim(1)?);
    let values = gradients.get("w").context("a gradient")?.to_vec();
    Ok(Tensor::from_vec(values, gradient.shape(), &Device::Cpu)?)
}

fn operator(
    case: &Case,
    op: &str,
    options: &Value,
    vars: &BTreeMap<String, Var>,
) -> Result<Tensor> {
    let var =
        |name: &str| vars.get(name).map(Var::as_tensor).with_context(|| format!("{op}: no {name}"));
    let number = |name: &str| options[name].as_f64().with_context(|| format!("{op}: no {name}"));
    if op.starts_with("conv") {
        let (stride, padding) = (number("stride")? as usize, options["padding"].as_u64());
        let x = match padding {
            Some(_) => var("x")?.clone(),
            // As the VAE's encoder pads.
            None => var("x")?.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?,
        };
        let padding = padding.unwrap_or(0) as usize;
        return Ok(kernels::conv2d(&x, var("weight")?, Some(var("bias")?), stride, padding)?);
    }
    if op.starts_with("group_norm") {
        let (groups, eps) = (number("groups")? as usize, number("eps")?);
        let norm = match options["silu"].as_bool() {
            Some(true) => kernels::group_norm_silu,
            _ => kernels::group_norm,
        };
        return Ok(norm(var("x")?, var("weight")?, var("bias")?, groups, eps)?);
    }
    if op.starts_with("layer_norm") {
        let eps = number("eps")?;
        return Ok(kernels::layer_norm(var("x")?, var("weight")?, var("bias")?, eps)?);
    }
    if op.starts_with("attention") {
        let (q, k, v) = (var("q")?, var("k")?, var("v")?);
        let mut mask = None;
        let padding = format!("{op}.key_padding_mask");
        if case.has_input(&padding) {
            mask = Some(padding_mask(&case.input(&padding)?)?);
        }
        if options["causal"].as_bool() == Some(true) {
            let causal = causal_mask(q.dim(2)?, &Device::Cpu)?;
            mask = Some(match mask {
                Some(mask) => mask.broadcast_add(&causal)?,
                None => causal,
            });
        }
        let scale = (q.dim(D::Minus1)? as f64).powf(-0.5);
        return Ok(kernels::attention(q, k, v, mask.as_ref(), scale)?);
    }
    let targets = || -> Result<Vec<i64>> { Ok(case.input(&format!("{op}.target"))?.to_vec1()?) };
    Ok(match op {
        "gelu_erf" => kernels::gelu_erf(var("x")?)?,
        "quick_gelu" => kernels::quick_gelu(var("x")?)?,
        "silu" => kernels::silu(var("x")?)?,
        "geglu" => {
            let x = kernels::linear(var("x")?, var("weight")?, Some(var("bias")?))?;
            kernels::geglu(&x)?
        }
        "linear" => kernels::linear(var("x")?, var("weight")?, Some(var("bias")?))?,
        "linear_no_bias" => kernels::linear(var("x")?, var("weight")?, None)?,
        "l2_normalize" => l2_normalize(var("x")?)?,
        "upsample_nearest_x2" | "upsample_nearest_to_size" => {
            let upstream = case.input(&format!("{op}.upstream"))?;
            kernels::upsample_nearest2d(var("x")?, upstream.dim(2)?, upstream.dim(3)?)?
        }
        "embedding_pad1" => embedding(var("weight")?, &case.input(&format!("{op}.ids"))?)?,
        "mse_mean" => (var("x")? - case.input(&format!("{op}.target"))?)?.sqr()?.mean_all()?,
        "cross_entropy_mean" => {
            let (sum, count) = cross_entropy(var("logits")?, &targets()?, 0.0)?;
            (sum / count as f64)?
        }
        "cross_entropy_sum_smoothed" => {
            let smoothing = number("label_smoothing")?;
            cross_entropy(var("logits")?, &targets()?, smoothing)?.0
        }
        _ => bail!("no test knows the operator {op}"),
    })
}

/// Compares gradients with a file's tensors, each within `relative` of its own largest value, or of the noise that
/// exact zeros have.
pub(crate) fn check_gradients(
    case: &mut Case,
    expected: &BTreeMap<String, Tensor>,
    relative: f64,
    found: impl Fn(&str) -> Option<Tensor>,
) -> Result<()> {
    for (name, expected) in expected {
        let found = found(name).with_context(|| format!("{name} has no gradient"))?;
        let found = found.reshape(expected.shape())?;
        let bound = (relative * largest_magnitude(expected)?).max(NOISE);
        case.compare(name, &found, expected, bound)?;
    }
    Ok(())
}

pub fn aligner(case: &mut Case) -> Result<()> {
    let (config, width) = aligner_config(&case.config)?;
    let (_, tensors) = case.weights()?.load_kept(|weights| {
        Aligner::load(&config, width, weights)?;
        Reconstruction::load(&config, width, weights)
    })?;
    let parameters = Parameters::of(&tensors, |_| true)?;
    let weights = Weights::from_kept("variables", parameters.replace_in(&tensors), &Device::Cpu);
    let model = Aligner::load(&config, width, &weights)?;
    let back = Reconstruction::load(&config, width, &weights)?;
    let condition = Var::from_tensor(&case.input("condition")?)?;
    let embedding = model.forward(&condition, Some(&case.input("padding_mask")?))?;
    let again = back.project(&back.decode(&embedding, condition.dim(1)?)?)?;
    let loss = (alignment_loss(&embedding, &case.input("clip_target")?)?
        + reconstruction_loss(&again, &condition, config.queries)?)?;
    let store = loss.backward()?;
    let expected = read_tensors(&case.file("grads.safetensors"))?;
    check_gradients(case, &expected, BOUND, |name| {
        let var = if name == "condition" { Some(&condition) } else { parameters.get(name) };
        store.get(var?).cloned()
    })
}

pub(crate) fn unet_of(case: &Case) -> Result<(UNetConfig, Weights)> {
    let file = case.config["unet_weights"].as_str().context("no unet_weights")?;
    let config = UNetConfig::from_value(&case.config["unet_config"], "config.json")?;
    Ok((config, Weights::open(&case.file(file), &Device::Cpu)?))
}

pub(crate) fn schedule(case: &Case) -> Result<Schedule> {
    let config: SchedulerConfig = serde_json::from_value(case.config["scheduler"].clone())?;
    Ok(Schedule::new(&config)?)
}

pub(crate) fn optimiser(case: &Case, method: Method) -> Result<OptimiserConfig> {
    let options = &case.config["optimiser"];
    let number = |name: &str| options[name].as_f64().with_context(|| format!("no {name}"));
    Ok(OptimiserConfig {
        method,
        learning_rate: number("lr")?,
        betas: serde_json::from_value(options["betas"].clone())?,
        eps: number("eps")?,
        weight_decay: number("weight_decay")?,
        clip_norm: number("clip_norm")?,
        ..OptimiserConfig::default()
    })
}

/// Row `step` of the inputs' noise, and its timesteps.
pub(crate) fn draw(case: &Case, step: usize) -> Result<(Tensor, Vec<usize>)> {
    let timesteps = case.input("timesteps")?.get(step)?.to_vec1::<i64>()?;
    let timesteps = timesteps.into_iter().map(usize::try_from).collect::<Result<_, _>>()?;
    Ok((case.input("noise")?.get(step)?, timesteps))
}

/// A parameter's expected value after some updates: what has changed is compared, within `relative` of the largest
/// change.
pub(crate) fn check_change(
    case: &mut Case,
    name: &str,
    found: &Var,
    start: &Tensor,
    relative: f64,
) -> Result<()> {
    let change = (case.expected(name)? - start)?;
    let bound = relative * largest_magnitude(&change)?;
    case.compare(name, &(found.as_detached_tensor() - start)?, &change, bound)
}

pub fn train_lora(case: &mut Case) -> Result<()> {
    let (config, weights) = unet_of(case)?;
    let schedule = schedule(case)?;
    let snr: Vec<f32> = case
        .input("timesteps")?
        .flatten_all()?
        .to_vec1::<i64>()?
        .iter()
        .map(|t| signal_to_noise(&schedule, *t as usize) as f32)
        .collect();
    let shape = case.expected("snr")?.shape().clone();
    case.check("snr", &Tensor::from_vec(snr, shape, &Device::Cpu)?)?;
    let targets = lora::targets(&weights, &lora::ATTENTION, lora::UNET)?;
    let (_, tensors) = weights.load_kept(|weights| UNet::load(weights, &config))?;
    for prefix in ["", "min_snr5."] {
        lora_steps(case, &config, &tensors, &schedule, &targets, prefix)?;
    }
    Ok(())
}

fn lora_steps(
    case: &mut Case,
    config: &UNetConfig,
    tensors: &HashMap<String, Weight>,
    schedule: &Schedule,
    targets: &[Target],
    prefix: &str,
) -> Result<()> {
    let alpha = case.config["alpha"].as_f64().context("no alpha")?;
    let initial = read_tensors(&case.file("initial.lora.safetensors"))?;
    let mut parameters = Parameters::default();
    for (name, tensor) in initial.iter().filter(|(name, _)| !name.ends_with(".alpha")) {
        parameters.insert(name.clone(), tensor)?;
    }
    ensure!(parameters.iter().count() == 2 * targets.len(), "other layers than the file's");
    let beside = lora::beside(&parameters, targets, (lora::Kind::Lora, alpha))?;
    let weights = Weights::from_trained("variables", tensors.clone(), beside, &Device::Cpu);
    let unet = UNet::load(&weights, config)?;
    let settings = optimiser(case, Method::Adamw)?;
    let mut optimiser = Optimiser::new(&settings);
    let (latents, context) = (case.input("latents")?, case.input("context")?);
    let grads = read_tensors(&case.file("grads.safetensors"))?;
    let (mut losses, mut norms) = (vec![], vec![]);
    for step in 0..5 {
        let (noise, t) = draw(case, step)?;
        let noisy = add_noise(schedule, &latents, &noise, &t)?;
        let weights = (!prefix.is_empty()).then(|| min_snr_weights(schedule, &t, 5.0));
        let (loss, mut gradients) = Gradients::of_loss(&parameters, || {
            let prediction = unet.forward(&noisy, &timesteps(&t)?, &context, None)?;
            Ok(weighted_mse(&prediction, &noise, weights.as_deref())?)
        })?;
        losses.push(loss as f32);
        if step == 0 {
            let expected = grads.iter().filter_map(|(name, tensor)| {
                let name = match prefix {
                    "" => Some(&**name).filter(|name| !name.starts_with("min_snr5.")),
                    _ => name.strip_prefix(prefix),
                };
                Some((name?.to_owned(), tensor.clone()))
            });
            let expected: BTreeMap<String, Tensor> = expected.collect();
            check_gradients(case, &expected, UNET_GRADIENT, |name| {
                let values = gradients.get(name)?;
                Tensor::new(values, &Device::Cpu).ok()
            })?;
        }
        norms.push(optimiser.update(&parameters, &mut gradients, settings.learning_rate)? as f32);
        let after = format!("{prefix}after{}.", step + 1);
        for expected in case.expected_names() {
            let Some(name) = expected.strip_prefix(&after) else { continue };
            let var = parameters.get(name).with_context(|| name.to_owned())?;
            check_change(case, &expected, var, &initial[name], 1e-3)?;
        }
    }
    case.check(&format!("{prefix}steps.loss"), &Tensor::new(losses, &Device::Cpu)?)?;
    case.check(&format!("{prefix}steps.grad_norm"), &Tensor::new(norms, &Device::Cpu)?)?;
    let probe = |name: &str| case.input(&format!("probe.{name}"));
    let out = unet.forward(&probe("sample")?, &probe("timestep")?, &probe("context")?, None)?;
    case.check(&format!("{prefix}final.unet_out"), &out)?;
    if prefix.is_empty() {
        let made = lora::file_tensors(&parameters, targets, (lora::Kind::Lora, alpha))?;
        ensure!(made.keys().eq(initial.keys()), "the file has other names");
        for (name, expected) in initial.iter().filter(|(name, _)| name.ends_with(".alpha")) {
            case.compare(name, &made[name].reshape(expected.shape())?, expected, 0.0)?;
        }
    }
    Ok(())
}

/// `grad_norms`, whose names the configuration lists, and whole gradients as `grad.NAME`.
fn check_norms(case: &mut Case, parameters: &Parameters, gradients: &Gradients) -> Result<()> {
    let names: Vec<String> = serde_json::from_value(case.config["grad_norm_names"].clone())?;
    ensure!(names.iter().eq(parameters.iter().map(|(name, _)| name)), "other parameters");
    let norms = names.iter().map(|name| {
        let values = gradients.get(name).with_context(|| format!("{name} has no gradient"))?;
        let squares: f64 = values.iter().map(|g| f64::from(*g) * f64::from(*g)).sum();
        Ok(squares.sqrt() as f32)
    });
    let norms = norms.collect::<Result<Vec<f32>>>()?;
    case.check("grad_norms", &Tensor::new(norms, &Device::Cpu)?)?;
    for expected in case.expected_names() {
        let Some(name) = expected.strip_prefix("grad.") else { continue };
        let tensor = case.expected(&expected)?;
        let values = gradients.get(name).with_context(|| format!("{name} has no gradient"))?;
        let found = Tensor::new(values, &Device::Cpu)?.reshape(tensor.shape())?;
        let bound = UNET_GRADIENT * largest_magnitude(&tensor)?;
        case.check_within(&expected, &found, bound)?;
    }
    Ok(())
}

pub fn train_dreambooth(case: &mut Case) -> Result<()> {
    let (config, weights) = unet_of(case)?;
    let schedule = schedule(case)?;
    let (_, tensors) = weights.load_kept(|weights| UNet::load(weights, &config))?;
    let parameters = Parameters::of(&tensors, |_| true)?;
    let weights = Weights::from_kept("variables", parameters.replace_in(&tensors), &Device::Cpu);
    let unet = UNet::load(&weights, &config)?;
    let probe = |case: &Case, unet: &UNet| -> Result<Tensor> {
        let input = |name: &str| case.input(&format!("probe.{name}"));
        Ok(unet.forward(&input("sample")?, &input("timestep")?, &input("context")?, None)?)
    };
    let before = probe(case, &unet)?;
    case.check("before.unet_out", &before)?;
    let (noise, t) = draw(case, 0)?;
    let noisy = add_noise(&schedule, &case.input("latents")?, &noise, &t)?;
    let context = case.input("context")?;
    let weight = case.config["prior_loss_weight"].as_f64().context("no prior_loss_weight")?;
    let mut parts = Vec::new();
    let (_, mut gradients) = Gradients::of_loss(&parameters, || {
        let prediction = unet.forward(&noisy, &timesteps(&t)?, &context, None)?;
        let rows = mse_of_rows(&prediction, &noise)?;
        let half = rows.dim(0)? / 2;
        let instance = rows.narrow(0, 0, half)?.mean_all()?;
        let prior = rows.narrow(0, half, half)?.mean_all()?;
        let loss = (&instance + (&prior * weight)?)?;
        for (name, part) in
            [("instance_loss", instance), ("prior_loss", prior), ("loss", loss.clone())]
        {
            parts.push((name, part.reshape(1)?));
        }
        Ok(loss)
    })?;
    for (name, part) in &parts {
        case.check(name, part)?;
    }
    check_norms(case, &parameters, &gradients)?;
    let settings = optimiser(case, Method::Adamw)?;
    let mut optimiser = Optimiser::new(&settings);
    let norm = optimiser.update(&parameters, &mut gradients, settings.learning_rate)?;
    case.check("grad_norm", &Tensor::new(&[norm as f32], &Device::Cpu)?)?;
    let largest = largest_magnitude(&case.expected("after1.unet_out")?)?;
    case.check_within("after1.unet_out", &probe(case, &unet)?, UNET_GRADIENT * largest)?;
    for expected in case.expected_names() {
        let Some(name) = expected.strip_prefix("after1.") else { continue };
        if let Some(var) = parameters.get(name) {
            check_change(case, &expected, var, &tensors[name].tensor()?, 5e-3)?;
        }
    }
    Ok(())
}

pub fn train_controlnet(case: &mut Case) -> Result<()> {
    let (config, weights) = unet_of(case)?;
    let unet = UNet::load(&weights, &config)?;
    let schedule = schedule(case)?;
    let file = case.config["controlnet_weights"].as_str().context("no controlnet_weights")?;
    let weights = Weights::open(&case.file(file), &Device::Cpu)?;
    let config = ControlNetConfig::from_value(&case.config["controlnet_config"], "config.json")?;
    let (_, tensors) = weights.load_kept(|weights| ControlNet::load(weights, &config))?;
    let parameters = Parameters::of(&tensors, |_| true)?;
    let weights = Weights::from_kept("variables", parameters.replace_in(&tensors), &Device::Cpu);
    let controlnet = ControlNet::load(&weights, &config)?;
    let context = Var::from_tensor(&case.input("context")?)?;
    let (noise, t) = draw(case, 0)?;
    let noisy = add_noise(&schedule, &case.input("latents")?, &noise, &t)?;
    let t = timesteps(&t)?;
    let picture = case.input("cond")?;
    let (loss, recorded) = record(|| -> Result<Tensor> {
        let hint = controlnet.embed_hint(&picture)?;
        let residuals = controlnet.forward(&noisy, &t, context.as_tensor(), &hint)?;
        let residuals = controlnet.scaled(&residuals, 1.0, false)?;
        let prediction = unet.forward(&noisy, &t, context.as_tensor(), Some(&residuals))?;
        Ok(weighted_mse(&prediction, &noise, None)?)
    });
    let loss = loss?;
    case.check("loss", &loss.reshape(1)?)?;
    let found = recorded.backward(&loss)?;
    let gradients = Gradients::of(&parameters, &found)?;
    check_norms(case, &parameters, &gradients)?;
    let found = found.get(&context).context("the context has no gradient")?;
    let largest = largest_magnitude(&case.expected("grad_context")?)?;
    case.check_within("grad_context", found, UNET_GRADIENT * largest)
}
