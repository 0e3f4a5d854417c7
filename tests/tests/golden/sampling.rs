//! Samplers, torch's `randn`, and whole samplings from latents to a picture.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor, Var};
use kosmograph_models::samplers::guidance::guide;
use kosmograph_models::samplers::randn::Generator;
use kosmograph_models::samplers::{self, Ending, NoiseSampler, Schedule, SchedulerConfig, Step};
use kosmograph_models::stable_diffusion::controlnet::ControlNet;
use kosmograph_models::stable_diffusion::unet::UNet;
use kosmograph_models::stable_diffusion::vae::Vae;
use serde_json::Value;

use crate::case::{Case, bound_of_rounded, read_json};
use crate::diffusers;
use crate::diffusion::{folder, load_controlnet, load_unet, load_vae};
use crate::training_kosmos::check_through_unet;

pub fn torch_randn(case: &mut Case) -> Result<()> {
    for name in case.expected_names() {
        if name.ends_with(".second") {
            continue;
        }
        let parsed = name.strip_prefix("seed").and_then(|name| name.split_once('.'));
        let (seed, shape) = parsed.with_context(|| format!("`{name}` is not seedS.SHAPE"))?;
        let shape: Vec<usize> =
            shape.split('x').map(str::parse).collect::<Result<_, _>>().context(name.clone())?;
        let mut generator = Generator::new(seed.parse()?);
        for name in [name.clone(), format!("{name}.second")] {
            let values = generator.randn(shape.iter().product());
            case.check(&name, &Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?)?;
        }
    }
    Ok(())
}

/// One entry of `cases` in the schedulers' config.json: a scheduler's class, its options, and how
/// many steps.
struct Scheduler<'a> {
    name: &'a str,
    class: &'a str,
    options: serde_json::Map<String, Value>,
    step_options: &'a Value,
    steps: usize,
    /// diffusers 0.21.4 rather than today's.
    is_old: bool,
}

impl Scheduler<'_> {
    fn is(&self, option: &str) -> bool {
        self.options.get(option) == Some(&Value::Bool(true))
    }

    fn text(&self, option: &str) -> Option<&str> {
        self.options.get(option).and_then(Value::as_str)
    }

    fn spacing(&self, default: diffusers::Spacing) -> Result<diffusers::Spacing> {
        match self.options.get("timestep_spacing") {
            Some(spacing) => Ok(serde_json::from_value(spacing.clone())?),
            None => Ok(default),
        }
    }
}

/// What a sampler made of x_T: for comparison with `timesteps`, `sigmas`, `x`, `init_noise_sigma`.
struct Sampled {
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
    init_noise_sigma: f64,
    x: Vec<Tensor>,
}

pub fn schedulers(case: &mut Case) -> Result<()> {
    let config = case.config.clone();
    let is_old = config["diffusers"].as_str() == Some("0.21.4");
    let cases = config["cases"].as_object().context("config.json has no `cases`")?;
    for (name, entry) in cases {
        let Some((_, steps)) = name.rsplit_once('.') else { bail!("`{name}` has no steps") };
        if steps == "config" {
            continue;
        }
        let mut options = config["base_config"].as_object().context("no base_config")?.clone();
        options.extend(entry["overrides"].as_object().cloned().unwrap_or_default());
        let scheduler = Scheduler {
            name,
            class: entry["cls"].as_str().context("no cls")?,
            options,
            step_options: &entry["step_kwargs"],
            steps: steps.parse()?,
            is_old,
        };
        let Some(sampled) = sample_with(case, &scheduler)? else {
            case.problem(format!("no sampler is the scheduler {name}"));
            continue;
        };
        let row = |values: &[f64]| {
            let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
            Tensor::new(values, &Device::Cpu)
        };
        case.check(&format!("{name}.timesteps"), &row(&sampled.timesteps)?)?;
        case.check(&format!("{name}.init_noise_sigma"), &row(&[sampled.init_noise_sigma])?)?;
        if case.expects(&format!("{name}.sigmas")) {
            case.check(&format!("{name}.sigmas"), &row(&sampled.sigmas)?)?;
        }
        case.check(&format!("{name}.x"), &Tensor::stack(&sampled.x, 0)?)?;
    }
    for name in case.expected_names() {
        if let Some(scale) = name.strip_prefix("cfg.out_") {
            let (uncond, cond) = (case.input("cfg.uncond")?, case.input("cfg.text")?);
            case.check(&name, &guide(&uncond, &cond, scale.parse()?)?)?;
        }
    }
    Ok(())
}

/// The network of these cases: sin(x)·0.3 + 0.1·t/1000.
fn closed_form(x: &Tensor, t: f64) -> samplers::Result<Tensor> {
    Ok(((x.sin()? * 0.3)? + 0.1 * t / 1000.0)?)
}

/// The noises of the case, one after the other.
struct Recorded<'a> {
    case: &'a Case,
    drawn: usize,
}

impl NoiseSampler for Recorded<'_> {
    fn sample(&mut self, _sigma: f64, _next: f64) -> samplers::Result<Tensor> {
        let message = |error: anyhow::Error| candle_core::Error::Msg(error.to_string());
        self.drawn += 1;
        Ok(self.case.input("noises").map_err(message)?.get(self.drawn - 1)?)
    }
}

/// Runs the sampler that `scheduler` names; None where there is none for it.
fn sample_with(case: &Case, scheduler: &Scheduler) -> Result<Option<Sampled>> {
    let config: SchedulerConfig = serde_json::from_value(Value::Object(scheduler.options.clone()))?;
    let schedule = Schedule::new(&config)?;
    let steps = scheduler.steps;
    let offset = scheduler.options.get("steps_offset").and_then(Value::as_u64).unwrap_or(0);
    let offset = offset as usize;
    let stride = schedule.train_steps() / steps;
    let x_t = case.input("x_T")?;

    let states = std::cell::RefCell::new(Vec::new());
    let mut observe = |step: Step<'_>| {
        states.borrow_mut().push(step.x.clone());
        Ok(())
    };
    let mut model = |x: &Tensor, t: f64| closed_form(x, t);
    let mut noise = Recorded { case, drawn: 0 };
    let integers = |timesteps: &[usize]| timesteps.iter().map(|&t| t as f64).collect::<Vec<_>>();

    let (timesteps, sigmas, init_noise_sigma) = match scheduler.class {
        "DDIMScheduler" => {
            let spacing = scheduler.spacing(diffusers::Spacing::Leading)?;
            let t = diffusers::timesteps(&schedule, spacing, steps, offset);
            let t: Vec<usize> = t.into_iter().map(|t| t.round_ties_even() as usize).collect();
            match scheduler.step_options["eta"].as_f64() {
                None | Some(0.0) => {
                    let x = x_t.clone();
                    samplers::ddim(&schedule, &t, stride, x, &mut model, &mut observe)?;
                }
                Some(eta) => {
                    let x = x_t.clone();
                    diffusers::ddim_stochastic(
                        &schedule,
                        &t,
                        stride,
                        eta,
                        x,
                        &mut model,
                        &mut noise,
                        &mut observe,
                    )?;
                }
            }
            (integers(&t), Vec::new(), 1.0)
        }
        "PNDMScheduler" if scheduler.is("skip_prk_steps") => {
            let spacing = scheduler.spacing(diffusers::Spacing::Leading)?;
            let t = diffusers::timesteps(&schedule, spacing, steps, offset);
            let mut t: Vec<usize> = t.into_iter().map(|t| t.round_ties_even() as usize).collect();
            samplers::repeat_second(&mut t);
            samplers::pndm(&schedule, &t, stride, x_t.clone(), &mut model, &mut observe)?;
            (integers(&t), Vec::new(), 1.0)
        }
        "DPMSolverMultistepScheduler" => {
            let algorithm = scheduler.text("algorithm_type").unwrap_or("dpmsolver++");
            let is_sde = match algorithm {
                "dpmsolver++" => false,
                "sde-dpmsolver++" => true,
                _ => return Ok(None),
            };
            let ending = match scheduler.text("final_sigmas_type") {
                _ if scheduler.is_old => Ending::SigmaMin,
                Some("sigma_min") => Ending::SigmaMin,
                _ => Ending::Zero,
            };
            let karras = scheduler.is("use_karras_sigmas");
            let (levels, sigmas) = dpm_levels(&schedule, scheduler, ending, karras, offset)?;
            let x = x_t.clone();
            let (model, observe) = (&mut model, &mut observe);
            match is_sde {
                true => {
                    let noise = &mut noise;
                    diffusers::dpm_solver_sde(&schedule, &levels, ending, x, model, noise, observe)?
                }
                false => {
                    let count = levels.len();
                    samplers::dpm_solver(&schedule, &levels, count, ending, x, model, observe)?
                }
            };
            (levels.iter().map(|level| level.0 as f64).collect(), sigmas, 1.0)
        }
        class @ ("EulerDiscreteScheduler" | "EulerAncestralDiscreteScheduler") => {
            let spacing = scheduler.spacing(diffusers::Spacing::Linspace)?;
            let levels = match scheduler.is("use_karras_sigmas") {
                true => diffusers::euler_levels_karras(&schedule, spacing, steps, offset),
                false => diffusers::euler_levels(&schedule, spacing, steps, offset),
            };
            let mut sigmas: Vec<f64> = levels.iter().map(|level| level.1).collect();
            sigmas.push(0.0);
            let top = sigmas[0];
            let init = match spacing {
                diffusers::Spacing::Leading => (top * top + 1.0).sqrt(),
                _ => top,
            };
            let mut step = 0;
            let mut denoiser = |x: &Tensor, sigma: f64| {
                let t = levels[step].0;
                step += 1;
                let scaled = (x / (sigma * sigma + 1.0).sqrt())?;
                Ok((x - (closed_form(&scaled, t)? * sigma)?)?)
            };
            let x = (&x_t * init)?;
            match class {
                "EulerDiscreteScheduler" => {
                    samplers::euler(&sigmas, x, &mut denoiser, &mut observe)?
                }
                _ => {
                    let (model, observe) = (&mut denoiser, &mut observe);
                    samplers::euler_ancestral(&sigmas, 1.0, x, model, &mut noise, observe)?
                }
            };
            (levels.iter().map(|level| level.0).collect(), sigmas, init)
        }
        "UniPCMultistepScheduler" => {
            let ending = match scheduler.text("final_sigmas_type") {
                Some("sigma_min") => Ending::SigmaMin,
                _ => Ending::Zero,
            };
            let variant = match scheduler.text("solver_type") {
                Some("bh1") => samplers::Variant::Bh1,
                _ => samplers::Variant::Bh2,
            };
            let order = scheduler.options.get("solver_order").and_then(Value::as_u64).unwrap_or(2);
            let karras = scheduler.is("use_karras_sigmas");
            let (levels, sigmas) = dpm_levels(&schedule, scheduler, ending, karras, offset)?;
            diffusers::uni_pc_by_timesteps(
                &schedule,
                &levels,
                ending,
                variant,
                order as usize,
                x_t.clone(),
                &mut model,
                &mut observe,
            )?;
            (levels.iter().map(|level| level.0 as f64).collect(), sigmas, 1.0)
        }
        "LCMScheduler" => {
            let original = scheduler.options.get("original_inference_steps");
            let original = original.and_then(Value::as_u64).unwrap_or(50) as usize;
            let t = diffusers::lcm_timesteps(&schedule, original, steps)?;
            let (model, observe) = (&mut model, &mut observe);
            diffusers::lcm_by_timesteps(&schedule, &t, x_t.clone(), model, &mut noise, observe)?;
            (integers(&t), Vec::new(), 1.0)
        }
        _ => return Ok(None),
    };
    let mut x = vec![(&x_t * init_noise_sigma)?];
    x.extend(states.into_inner());
    ensure!(x.len() == timesteps.len() + 1, "{}: {} states", scheduler.name, x.len());
    Ok(Some(Sampled { timesteps, sigmas, init_noise_sigma, x }))
}

/// DPM-Solver++'s timesteps with their σ, and what diffusers keeps as `sigmas`.
type DpmLevels = (Vec<(usize, f64)>, Vec<f64>);

fn dpm_levels(
    schedule: &Schedule,
    scheduler: &Scheduler,
    ending: Ending,
    karras: bool,
    offset: usize,
) -> Result<DpmLevels> {
    let steps = scheduler.steps;
    let at = |t: Vec<usize>| -> Vec<(usize, f64)> {
        t.into_iter().map(|t| (t, schedule.sigma_at(t))).collect()
    };
    if scheduler.is_old {
        // σ of every training timestep, or Karras' from the lowest.
        let all = (0..schedule.train_steps()).map(|t| schedule.sigma_at(t)).collect();
        if !karras {
            return Ok((at(samplers::dpm_timesteps(schedule, steps)), all));
        }
        let levels = samplers::dpm_timesteps_karras(schedule, steps);
        let sigmas = levels.iter().rev().map(|level| level.1).collect();
        let mut timesteps: Vec<usize> = levels.iter().map(|level| level.0).collect();
        timesteps.dedup();
        return Ok((at(timesteps), sigmas));
    }
    let levels = match karras {
        true => samplers::dpm_timesteps_karras(schedule, steps),
        false => {
            let spacing = scheduler.spacing(diffusers::Spacing::Linspace)?;
            at(diffusers::dpm_timesteps(schedule, spacing, steps, offset))
        }
    };
    let mut sigmas: Vec<f64> = levels.iter().map(|level| level.1).collect();
    sigmas.push(match ending {
        Ending::SigmaMin => schedule.sigma_min(),
        Ending::Zero => 0.0,
    });
    Ok((levels, sigmas))
}

/// A U-Net under guidance, with or without a ControlNet.
struct Guided<'a> {
    unet: &'a UNet,
    /// The ControlNet and its hint's embedding.
    control: Option<(&'a ControlNet, Tensor)>,
    /// [uncond, cond].
    context: Tensor,
    guidance_scale: f64,
}

impl Guided<'_> {
    fn predict(&self, x: &Tensor, t: f64) -> samplers::Result<Tensor> {
        let (batch, rows) = (x.dim(0)?, Tensor::cat(&[x, x], 0)?);
        let both = self.both(&rows, t).map_err(samplers::Error::caller)?;
        let (uncond, cond) = (both.narrow(0, 0, batch)?, both.narrow(0, batch, batch)?);
        Ok(guide(&uncond, &cond, self.guidance_scale)?)
    }

    /// For `rows` [2B, C, H, W], of which the first half has no condition.
    fn both(&self, rows: &Tensor, t: f64) -> kosmograph_models::Result<Tensor> {
        let timesteps = Tensor::new(&[t as f32], &Device::Cpu)?;
        let residuals = match &self.control {
            Some((net, hint)) => Some(net.forward(rows, &timesteps, &self.context, hint)?),
            None => None,
        };
        self.unet.forward(rows, &timesteps, &self.context, residuals.as_ref())
    }
}

/// The networks that a case names by their folders.
struct Networks {
    unet: UNet,
    controlnet: ControlNet,
    vae: Vae,
}

impl Networks {
    fn load(case: &Case) -> Result<Networks> {
        let open = |key: &str| -> Result<_> {
            let name = case.config[key].as_str().with_context(|| format!("no `{key}`"))?;
            folder(&case.file(name))
        };
        let (unet, unet_weights) = open("unet")?;
        let (controlnet, controlnet_weights) = open("controlnet")?;
        let (vae, vae_weights) = open("vae")?;
        Ok(Networks {
            unet: load_unet(&unet, &unet_weights)?,
            controlnet: load_controlnet(&controlnet, &controlnet_weights)?,
            vae: load_vae(&vae, &vae_weights)?,
        })
    }

    /// The guided U-Net for a variant's name: `controlnet…` and `sample_controlnet…` are steered.
    fn guided(&self, case: &Case, variant: &str, guidance_scale: f64) -> Result<Guided<'_>> {
        let control = match variant.contains("controlnet") {
            true => {
                let hint = self.controlnet.embed_hint(&case.input("control_image")?)?;
                Some((&self.controlnet, hint))
            }
            false => None,
        };
        let context = Tensor::cat(&[case.input("uncond")?, case.input("cond")?], 0)?;
        Ok(Guided { unet: &self.unet, control, context, guidance_scale })
    }

    /// Latents as the U-Net has them → the decoder's result.
    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        Ok(self.vae.decode(&(latents / self.vae.config().scaling_factor())?)?)
    }
}

/// −1..1 → 0..1.
fn to_rgb(decoded: &Tensor) -> Result<Tensor> {
    Ok(decoded.affine(0.5, 0.5)?.clamp(0f32, 1f32)?)
}

/// A picture may be off by this much, of 1.
const RGB_BOUND: f64 = 1e-4;
pub fn e2e(case: &mut Case) -> Result<()> {
    let networks = Networks::load(case)?;
    let schedule = Schedule::new(&serde_json::from_value(case.config["scheduler"].clone())?)?;
    let guidance = case.config["guidance"].as_f64().context("no guidance")?;
    let timesteps = samplers::dpm_timesteps(&schedule, case.size("steps")?);
    let levels: Vec<(usize, f64)> = timesteps.iter().map(|&t| (t, schedule.sigma_at(t))).collect();
    for kind in ["plain", "controlnet"] {
        let model = networks.guided(case, kind, guidance)?;
        for (name, ending) in [("final_sigma_min", Ending::SigmaMin), ("final_zero", Ending::Zero)]
        {
            let variant = format!("{kind}.{name}");
            let latents = case.input("latents")?;
            let mut first_eps = None;
            let mut x = vec![latents.clone()];
            let sampled = samplers::dpm_solver(
                &schedule,
                &levels,
                levels.len(),
                ending,
                latents,
                &mut |x, t| {
                    let eps = model.predict(x, t)?;
                    first_eps.get_or_insert_with(|| eps.clone());
                    Ok(eps)
                },
                &mut |step| {
                    x.push(step.x.clone());
                    Ok(())
                },
            )?;
            let shown: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
            case.check(&format!("{variant}.timesteps"), &Tensor::new(shown, &Device::Cpu)?)?;
            let eps = first_eps.context("the model was not asked")?;
            case.check(&format!("{variant}.eps_cfg_first"), &eps)?;
            case.check(&format!("{variant}.x"), &Tensor::stack(&x, 0)?)?;
            let decoded = networks.decode(&sampled)?;
            if case.expects(&format!("{variant}.decoded")) {
                case.check(&format!("{variant}.decoded"), &decoded)?;
            }
            let rgb = to_rgb(&decoded)?;
            if case.expects(&format!("{variant}.rgb")) {
                case.check_within(&format!("{variant}.rgb"), &rgb, RGB_BOUND)?;
            }
            let bytes = (rgb.squeeze(0)?.permute((1, 2, 0))? * 255.0)?;
            let stored = case.expected(&format!("{variant}.rgb_u8_HWC"))?;
            check_bytes(case, &format!("{variant}.rgb_u8_HWC"), &bytes, &stored)?;
            check_png(case, &format!("{variant}.png"), &bytes)?;
        }
    }
    Ok(())
}

/// Compares with a picture of the case; `bytes` [H, W, 3] in 0..255, not rounded.
fn check_png(case: &mut Case, name: &str, bytes: &Tensor) -> Result<()> {
    let path = case.file(name);
    let picture = image::open(&path).with_context(|| path.display().to_string())?.to_rgb8();
    let shape = (picture.height() as usize, picture.width() as usize, 3);
    let expected = Tensor::from_vec(picture.into_raw(), shape, &Device::Cpu)?;
    check_bytes(case, name, bytes, &expected)
}

/// Compares values in 0..255 with what they were rounded to: beyond the half that rounding may
/// take, no more than [`RGB_BOUND`] of 255.
fn check_bytes(case: &mut Case, name: &str, found: &Tensor, expected: &Tensor) -> Result<()> {
    let distance = (found.to_dtype(DType::F64)? - expected.to_dtype(DType::F64)?)?.abs()?;
    let beyond = (distance - 0.5)?.relu()?;
    let bound = bound_of_rounded().unwrap_or(RGB_BOUND);
    case.compare(name, &beyond, &beyond.zeros_like()?, 255.0 * bound)
}

/// The authors' own sampling code, unchanged: `sample.dpms`, `sample_controlnet.dpms`,
/// `sample.dpms_20steps_g1.0`, and the training loss.
pub fn e2e_official(case: &mut Case) -> Result<()> {
    let networks = Networks::load(case)?;
    let schedule = Schedule::new(&official_scheduler(case)?)?;
    for name in case.expected_names() {
        let Some(variant) = name.strip_suffix(".latents") else { continue };
        let (kind, settings) = variant.split_once('.').context(name.clone())?;
        let (sampler, rest) = settings.split_once('_').unwrap_or((settings, ""));
        let (steps, guidance) = match rest.split_once("steps_g") {
            Some((steps, guidance)) => (steps.parse()?, guidance.parse()?),
            None => {
                let guidance = case.config["guidance"].as_f64().context("no guidance")?;
                (case.size("steps")?, guidance)
            }
        };
        let model = networks.guided(case, kind, guidance)?;
        let latents = sample_officially(case, &schedule, sampler, steps, &model)?;
        case.check(&name, &latents)?;
        let rgb_name = format!("{variant}.rgb_HWC");
        if case.expects(&rgb_name) {
            let rgb = to_rgb(&networks.decode(&latents)?)?.squeeze(0)?.permute((1, 2, 0))?;
            case.check_within(&rgb_name, &rgb, RGB_BOUND)?;
            check_png(case, &format!("{variant}.png"), &(rgb * 255.0)?)?;
        }
    }
    let condition = Var::from_tensor(&case.input("train_condition")?)?;
    let loss = training_loss(case, &networks.unet, &schedule, &condition)?;
    case.check("train.diff_loss", &loss)?;
    check_through_unet(case, "train.grad_condition", &loss.backward()?, &condition)
}

/// The scheduler's options of the case that the inputs are from.
fn official_scheduler(case: &Case) -> Result<SchedulerConfig> {
    let Some(from) = case.inputs_from() else { return Ok(SchedulerConfig::default()) };
    let config = read_json(&from.parent().unwrap_or(Path::new("")).join("config.json"))?;
    Ok(serde_json::from_value(config["scheduler"].clone())?)
}

fn sample_officially(
    case: &Case,
    schedule: &Schedule,
    sampler: &str,
    steps: usize,
    model: &Guided,
) -> Result<Tensor> {
    let x = case.input("latents")?;
    let stride = schedule.train_steps() / steps;
    let model = &mut |x: &Tensor, t: f64| model.predict(x, t);
    let observe = &mut |_: Step<'_>| Ok(());
    Ok(match sampler {
        "ddim" => {
            let timesteps = samplers::ddim_timesteps(schedule, steps);
            samplers::ddim(schedule, &timesteps, stride, x, model, observe)?
        }
        "pndm" => {
            let mut timesteps = samplers::ddim_timesteps(schedule, steps);
            samplers::repeat_second(&mut timesteps);
            samplers::pndm(schedule, &timesteps, stride, x, model, observe)?
        }
        "dpms" => {
            let timesteps = samplers::dpm_timesteps(schedule, steps).into_iter();
            let levels: Vec<_> = timesteps.map(|t| (t, schedule.sigma_at(t))).collect();
            let count = levels.len();
            samplers::dpm_solver(schedule, &levels, count, Ending::SigmaMin, x, model, observe)?
        }
        other => bail!("there is no sampler `{other}`"),
    })
}

/// The authors' loss: mean squared error over C, H, W, summed over the batch; the condition is
/// dropped for the null condition where p < 0.1.
fn training_loss(
    case: &Case,
    unet: &UNet,
    schedule: &Schedule,
    condition: &Tensor,
) -> Result<Tensor> {
    let (x0, noise) = (case.input("train_latents")?, case.input("train_noise")?);
    let null = case.input("train_null")?;
    let timesteps = case.input("train_timesteps")?;
    let dropped = case.input("train_random_p")?.to_vec1::<f32>()?;
    let (mut noisy, mut context) = (Vec::new(), Vec::new());
    for (i, t) in timesteps.to_vec1::<i64>()?.into_iter().enumerate() {
        noisy.push(schedule.add_noise(&x0.get(i)?, &noise.get(i)?, usize::try_from(t)?)?);
        context.push(if dropped[i] < 0.1 { null.get(0)? } else { condition.get(i)? });
    }
    let (noisy, context) = (Tensor::stack(&noisy, 0)?, Tensor::stack(&context, 0)?);
    let prediction = unet.forward(&noisy, &timesteps, &context, None)?;
    let squared = (prediction - noise)?.sqr()?.to_dtype(DType::F64)?;
    let loss = squared.flatten_from(1)?.mean(1)?.sum_all()?;
    Ok(loss.reshape(1)?)
}
