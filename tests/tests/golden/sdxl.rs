//! SDXL: its U-Nets, its text encoders, and the names of their files.

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use kosmograph_models::Weights;
use kosmograph_models::clip::text::{ClipText, ClipTextConfig, ContextLayer};
use kosmograph_models::lora::{Adapted, Lora};
use kosmograph_models::samplers::guidance::guide;
use kosmograph_models::samplers::{
    self, NoiseSampler, Prediction, Schedule, SchedulerConfig, Step,
};
use kosmograph_models::stable_diffusion::checkpoint::Checkpoint;
use kosmograph_models::stable_diffusion::controlnet_of_unet::Changes;
use kosmograph_models::stable_diffusion::unet::{Condition, UNet, UNetConfig, VectorConfig};
use serde_json::json;

use crate::case::{Case, read_tensors};
use crate::diffusion::{folder, load_unet, timestep};
use crate::kosmos::check_names;
use crate::names;

/// diffusers' name of a module whose result a probe is told of.
fn module(probe: &str) -> String {
    let numbered = |beginning: &str| {
        let (level, rest) = probe.strip_prefix(beginning)?.split_at_checked(1)?;
        let rest = rest
            .strip_prefix("_attn")
            .map_or_else(|| rest.to_owned(), |attention| format!(".attentions.{attention}"));
        Some(format!("{beginning}_blocks.{level}{rest}"))
    };
    match probe {
        "mid" => "mid_block".to_owned(),
        _ => numbered("down").or_else(|| numbered("up")).unwrap_or_else(|| probe.to_owned()),
    }
}

pub fn unet(case: &mut Case) -> Result<()> {
    let model = load_unet(&case.config, &case.weights()?)?;
    let (sample, context) = (case.input("sample")?, case.input("context")?);
    let (pooled, sizes) = (case.input("pooled")?, case.input("time_ids")?);
    let condition = Condition { context: &context, pooled: Some(&pooled), sizes: Some(&sizes) };
    let timesteps = case.input("timesteps")?.to_vec1::<i64>()?;
    let at = |timesteps: &[i64]| Tensor::new(timesteps, &Device::Cpu);
    for &t in &timesteps {
        let mut intermediate = Vec::new();
        let out =
            model.forward_with(&sample, &at(&[t])?, condition, None, &mut |name, tensor| {
                intermediate.push((format!("inter_t{t}.{}", module(name)), tensor.clone()));
            })?;
        for (name, tensor) in intermediate {
            if case.expects(&name) {
                case.check(&name, &tensor)?;
            }
        }
        case.check(&format!("out_t{t}"), &out)?;
    }
    let each = at(&[timesteps[2], timesteps[1]])?;
    case.check("out_per_sample_t", &model.forward(&sample, &each, condition, None)?)?;
    let odd = case.input("sample_odd")?;
    case.check("out_odd", &model.forward(&odd, &at(&timesteps[1..2])?, condition, None)?)
}

/// One of the two text encoders, "l" or "g", from transformers' names.
fn encoder(case: &Case, name: &str, weights: &Weights) -> Result<ClipText> {
    let encoder = ClipText::load(&encoder_config(case, name)?, weights)?;
    weights.finish(&[])?;
    Ok(encoder)
}

fn encoder_config(case: &Case, name: &str) -> Result<ClipTextConfig> {
    let hidden = case.size(&format!("config.{name}.hidden"))?;
    let mut config: ClipTextConfig = serde_json::from_value(json!({
        "vocab_size": case.size("config.vocab")?,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": case.size(&format!("config.{name}.layers"))?,
        "num_attention_heads": case.size(&format!("config.{name}.heads"))?,
        "max_position_embeddings": case.size("config.tokens")?,
        "hidden_act": if name == "g" { "gelu" } else { "quick_gelu" },
        "eos_token_id": case.size("eos")?,
    }))?;
    config.text_projection = (name == "g").then_some(case.size("projection_dim")?);
    Ok(config)
}

/// LoRAs of every kind in SDXL's namings, on its U-Net and on both of its text encoders.
pub fn lora(case: &mut Case) -> Result<()> {
    let open = |case: &Case, name: &str| Weights::open(&case.file(name), &Device::Cpu);
    let unet_config = case.json("../sdxl_unet/config.json")?;
    let unet_config = UNetConfig::from_value(&unet_config["config"], "config.json")?;
    let unet_weights = case.config["sdxl_weights"].as_str().context("no sdxl_weights")?.to_owned();
    let load = move |weights: &Weights| UNet::load(weights, &unet_config);
    let base = Adapted::open(open(case, &unet_weights)?, &[], load)?;
    let text_case = case.file("../sdxl_text/config.json");
    let text_case = Case::open(text_case.parent().context("no folder")?)?;
    let mut texts = Vec::new();
    for (i, name) in ["l", "g"].into_iter().enumerate() {
        let file = case.config["text_weights"][i].as_str().context("no text_weights")?.to_owned();
        let config = encoder_config(&text_case, name)?;
        let load = move |weights: &Weights| ClipText::load(&config, weights);
        texts.push(Adapted::open(open(case, &file)?, &[], load)?);
    }
    let (sample, context) = (case.input("sdxl.sample")?, case.input("sdxl.context")?);
    let (pooled, sizes) = (case.input("sdxl.pooled")?, case.input("sdxl.time_ids")?);
    let at = timestep(case.size("timestep")?)?;
    let run = |unet: &Adapted<UNet>| {
        let condition = Condition { context: &context, pooled: Some(&pooled), sizes: Some(&sizes) };
        unet.get()?.forward(&sample, &at, condition, None)
    };
    case.check("sdxl.base", &run(&base)?)?;
    let names = case.expected_names();
    let of_unet = |name: &&String| {
        let scale = name.strip_prefix("sdxl.").and_then(|name| name.rsplit_once(".scale"));
        scale.is_some_and(|(_, scale)| scale.parse::<f64>().is_ok())
    };
    for name in names.iter().filter(of_unet) {
        let (kind, scale) = name.rsplit_once(".scale").context("a name without a scale")?;
        let scale: f64 = scale.parse()?;
        let file = kind.trim_end_matches(".comfyui");
        let mut tensors = read_tensors(&case.file(format!("{file}.lora.safetensors")))?;
        // As for Stable Diffusion 1.5: by PEFT's name the length is that of the changed weight's rows.
        if kind == "sdxl.dora_out" {
            let renamed = |(name, tensor): (String, Tensor)| {
                (name.replace(".dora_scale", ".lora_magnitude_vector"), tensor)
            };
            tensors = tensors.into_iter().map(renamed).collect();
        }
        let lora = Weights::from_tensors(file, tensors.into_iter().collect(), &Device::Cpu);
        let lora = Lora::read(&lora)?;
        ensure!(lora.unknown.is_empty(), "{kind}: unknown layers, {:?}", lora.unknown);
        let (adapted, without_place) = base.with(&lora.unet, scale)?;
        ensure!(without_place.is_empty(), "{kind}: without a place, {without_place:?}");
        case.check(name, &run(&adapted)?)?;
        let of_texts = [&lora.text_encoder, &lora.text_encoder_2];
        for ((part, layers), base) in ["l", "g"].into_iter().zip(of_texts).zip(&texts) {
            let hidden = format!("{name}.{part}.penultimate");
            ensure!(
                case.expects(&hidden) != layers.is_empty(),
                "{kind}: {} layers of the text encoder {part}",
                layers.len()
            );
            if layers.is_empty() {
                continue;
            }
            let (adapted, without_place) = base.with(layers, scale)?;
            ensure!(without_place.is_empty(), "{kind}, {part}: without a place, {without_place:?}");
            let encoder = adapted.get()?;
            let ids = case.input(&format!("ids_{part}"))?.to_dtype(candle_core::DType::U32)?;
            let penultimate = ContextLayer { skip: 2, normed: false };
            let states = encoder.forward_embeddings(&encoder.embed(&ids)?, penultimate)?;
            case.check(&hidden, &states.hidden)?;
            if part == "g" {
                let pooled = encoder.project(&encoder.pool(&ids, &states.last)?)?;
                case.check(&format!("{name}.g.pooled"), &pooled)?;
            }
        }
    }
    Ok(())
}

/// The ControlNet said as changes of the U-Net's contracting half: by products of low rank, and by differences.
pub fn control_of_unet(case: &mut Case) -> Result<()> {
    let path = case.config["unet_weights"].as_str().context("no unet_weights")?.to_owned();
    let (unet, control) = (read_tensors(&case.file(&path))?, case.weights()?);
    let unet_config = case.json("../sdxl_unet/config.json")?;
    let unet_config = UNetConfig::from_value(&unet_config["config"], "config.json")?;
    let config = unet_config.clone();
    let weights = Weights::open(&case.file(&path), &Device::Cpu)?;
    let base = Adapted::open(weights, &[], move |weights| UNet::load(weights, &config))?;
    let (sample, context) = (case.input("sample")?, case.input("context")?);
    let (pooled, sizes) = (case.input("pooled")?, case.input("time_ids")?);
    let condition = Condition { context: &context, pooled: Some(&pooled), sizes: Some(&sizes) };
    let (at, cond) = (timestep(case.size("timestep")?)?, case.input("cond")?);
    for is_low_rank in [true, false] {
        let mut changes = Changes::default();
        for name in control.names() {
            let own = control.get(&name, control.shape(&name).context("no shape")?)?;
            let difference = unet.get(&name).map(|unet| &own - unet).transpose()?;
            match difference {
                Some(difference) if is_low_rank && own.rank() >= 2 => {
                    let flat = difference.flatten_from(1)?;
                    let one = Tensor::eye(flat.dim(1)?, flat.dtype(), &Device::Cpu)?;
                    changes.low_rank.insert(name, (flat, one));
                }
                Some(difference) if !is_low_rank => {
                    changes.differences.insert(name, difference);
                }
                None if !is_low_rank => {
                    changes.differences.insert(name, own);
                }
                _ => {
                    changes.own.insert(name, own);
                }
            }
        }
        let config = changes.config(&unet_config)?;
        changes.check(&config, |name| base.shape(name))?;
        let model = changes.load(&config, &base.shared_tensors()?, &Device::Cpu)?;
        let residuals = model.forward(&sample, &at, condition, &model.embed_hint(&cond)?)?;
        for (i, residual) in residuals.down.iter().enumerate() {
            case.check(&format!("down{i}_s1.0"), residual)?;
        }
        case.check("mid_s1.0", &residuals.mid)?;
        // What is of another U-Net is told before anything is read.
        let name = "conv_in.weight".to_owned();
        let wrong = Tensor::zeros((9, 4, 3, 3), candle_core::DType::F32, &Device::Cpu)?;
        let taken = changes.own.insert(name.clone(), wrong);
        let error = changes.check(&config, |name| base.shape(name)).err();
        let told = error.map(|error| error.to_string()).unwrap_or_default();
        ensure!(told.contains("conv_in.weight") && told.contains("[9, 4, 3, 3]"), "{told}");
        changes.own.remove(&name);
        changes.own.extend(taken.map(|taken| (name, taken)));
        changes.own.remove("controlnet_mid_block.weight");
        changes.differences.remove("controlnet_mid_block.weight");
        let error = changes.check(&config, |name| base.shape(name)).err();
        let told = error.map(|error| error.to_string()).unwrap_or_default();
        ensure!(told.contains("no tensor `controlnet_mid_block.weight`"), "{told}");
    }
    Ok(())
}

/// Both encoders from diffusers' files and from a single file, in OpenCLIP's names.
pub fn text(case: &mut Case) -> Result<()> {
    let open = |case: &Case, name: &str| Weights::open(&case.file(name), &Device::Cpu);
    let single = Checkpoint::open(&case.file("weights.single_file.safetensors"), &Device::Cpu)?;
    let single = single.text_encoders()?;
    case.check_equal("text encoders in the single file", &single.len(), &2);
    let folders = ["weights.text_encoder.safetensors", "weights.text_encoder_2.safetensors"];
    let penultimate = ContextLayer { skip: 2, normed: false };
    for from_folder in [true, false] {
        let mut contexts = Vec::new();
        for (i, name) in ["l", "g"].into_iter().enumerate() {
            let weights = match from_folder {
                true => open(case, folders[i])?,
                false => single[i].weights.clone(),
            };
            let encoder = encoder(case, name, &weights)?;
            let ids = case.input(&format!("ids_{name}"))?.to_dtype(candle_core::DType::U32)?;
            let states = encoder.forward_embeddings(&encoder.embed(&ids)?, penultimate)?;
            case.check(&format!("{name}.penultimate"), &states.hidden)?;
            case.check(&format!("{name}.last_hidden_state"), &states.last)?;
            if name == "g" {
                let pooled = encoder.project(&encoder.pool(&ids, &states.last)?)?;
                case.check("g.pooled", &pooled)?;
                vectors(case, &pooled)?;
            }
            contexts.push(states.hidden);
        }
        case.check("conditioning", &Tensor::cat(&contexts, 2)?)?;
    }
    Ok(())
}

/// The vector that the U-Net takes, of the pooled text and the sizes.
fn vectors(case: &mut Case, pooled: &Tensor) -> Result<()> {
    for (name, input, dim) in [
        ("vector.base", "base_sizes", case.size("config.time_dim")?),
        ("vector.refiner", "refiner_sizes", case.size("config.time_dim")?),
        ("vector.base_256", "base_sizes", 256),
        ("vector.refiner_256", "refiner_sizes", 256),
    ] {
        let sizes = case.input(input)?;
        let (rows, count) = sizes.dims2()?;
        let width = pooled.dim(1)? + count * dim;
        let config = VectorConfig { width, size_features: dim, sizes: count };
        let vector = config.vector(&pooled.narrow(0, 0, rows)?, &sizes, true, 0.0)?;
        case.check(name, &vector)?;
    }
    Ok(())
}

/// Euler's steps add none.
struct NoNoise;

impl NoiseSampler for NoNoise {
    fn sample(&mut self, _: f64, _: f64) -> samplers::Result<Tensor> {
        Err(samplers::Error::caller(std::io::Error::other("Euler asked for noise")))
    }
}

fn numbers(case: &mut Case, name: &str) -> Result<Vec<f64>> {
    Ok(case.expected(name)?.to_dtype(candle_core::DType::F64)?.to_vec1()?)
}

/// Text, U-Net and Euler's sampler together, over the case's noise levels.
pub fn e2e(case: &mut Case) -> Result<()> {
    let unet_path = case.config["unet_weights"].as_str().context("no unet_weights")?.to_owned();
    let unet_path = case.file(unet_path);
    let (config, weights) = folder(unet_path.parent().context("unet_weights has no folder")?)?;
    let unet = load_unet(&config, &weights)?;
    let text_folder = case.file("../sdxl_text/config.json");
    let text_case = Case::open(text_folder.parent().context("no folder")?)?;
    let mut contexts = Vec::new();
    let mut pooled = None;
    let files = case.config["text_weights"].clone();
    for (i, name) in ["l", "g"].into_iter().enumerate() {
        let file = files[i].as_str().context("no text_weights")?;
        let encoder = encoder(&text_case, name, &Weights::open(&case.file(file), &Device::Cpu)?)?;
        let ids = case.input(&format!("ids_{name}"))?.to_dtype(candle_core::DType::U32)?;
        let penultimate = ContextLayer { skip: 2, normed: false };
        let states = encoder.forward_embeddings(&encoder.embed(&ids)?, penultimate)?;
        contexts.push(states.hidden);
        pooled = Some(encoder.project(&encoder.pool(&ids, &states.last)?)?);
    }
    let context = Tensor::cat(&contexts, 2)?;
    let pooled = pooled.context("no encoder")?;
    case.check("conditioning", &context)?;
    case.check("pooled", &pooled)?;
    let (sizes, noise) = (case.input("time_ids")?, case.input("noise")?);
    let condition = Condition { context: &context, pooled: Some(&pooled), sizes: Some(&sizes) };
    let cfg = case.config["cfg"].as_f64().context("no cfg")?;
    for (name, rescaled) in [("eps", false), ("v_zsnr", true), ("v_zsnr_comfyui", true)] {
        let schedule = Schedule::new(&SchedulerConfig {
            prediction_type: if rescaled { Prediction::VPrediction } else { Prediction::Epsilon },
            rescale_betas_zero_snr: rescaled,
            ..SchedulerConfig::default()
        })?;
        let sigmas = numbers(case, &format!("{name}.sigmas"))?;
        let timesteps = numbers(case, &format!("{name}.timesteps"))?;
        // Its own noise levels: diffusers sets another last ᾱ than ComfyUI.
        let own: Vec<f32> = sigmas
            .iter()
            .zip(&timesteps)
            .enumerate()
            .map(|(i, (sigma, t))| match i {
                0 if name == "v_zsnr" => *sigma as f32,
                _ => schedule.sigma(*t) as f32,
            })
            .chain([0.0])
            .collect();
        case.check(&format!("{name}.sigmas"), &Tensor::new(own, &Device::Cpu)?)?;
        case.check_equal(&format!("{name}: steps"), &timesteps.len(), &case.size("steps")?);
        let shown: Vec<f32> = timesteps.iter().map(|t| *t as f32).collect();
        case.check(&format!("{name}.timesteps"), &Tensor::new(shown, &Device::Cpu)?)?;
        let top = match name {
            "eps" => (sigmas[0] * sigmas[0] + 1.0).sqrt(),
            _ => sigmas[0],
        };
        let x = (&noise * top)?;
        let mut first = None;
        let mut steps = vec![x.clone()];
        let mut model = |x: &Tensor, sigma: f64| -> samplers::Result<Tensor> {
            let at = sigmas.iter().position(|level| *level == sigma).unwrap_or(0);
            let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
            let seen = (x * alpha)?;
            let both = Tensor::cat(&[&seen, &seen], 0)?;
            let t = Tensor::new(&[timesteps[at] as f32], &Device::Cpu)?;
            let output =
                unet.forward(&both, &t, condition, None).map_err(samplers::Error::caller)?;
            let guided = guide(&output.narrow(0, 0, 1)?, &output.narrow(0, 1, 1)?, cfg)?;
            first.get_or_insert_with(|| guided.clone());
            Ok(schedule.x0(&seen, &guided, alpha, sigma * alpha)?)
        };
        let mut observe = |step: Step<'_>| {
            steps.push(step.x.clone());
            Ok(())
        };
        samplers::sample("euler", &schedule, &sigmas, x, &mut model, &mut NoNoise, &mut observe)?;
        case.check(&format!("{name}.cfg_first"), &first.context("the model was not asked")?)?;
        let expected = case.expected(&format!("{name}.x"))?;
        case.check_equal(&format!("{name}: results"), &steps.len(), &expected.dim(0)?);
        for (i, found) in steps.iter().enumerate() {
            // After the first step from σ 4096 float32 has lost digits: the README of the cases says 2e-4.
            let relative = if i > 0 && rescaled { 2e-4 } else { 2e-5 };
            let expected = expected.get(i)?;
            let largest = expected.abs()?.max_all()?.to_scalar::<f32>()?;
            case.compare(&format!("{name}.x"), found, &expected, relative * f64::from(largest))?;
        }
    }
    Ok(())
}

/// The names and shapes of the published U-Nets are those that their configurations ask for, and what a single
/// file calls them is found.
pub fn key_lists(case: &mut Case) -> Result<()> {
    for model in ["base", "refiner"] {
        let config = case.config["sdxl"][format!("{model}_unet_config")].clone();
        let config = UNetConfig::from_value(&config, model)?;
        let recording = Weights::recording();
        UNet::load(&recording, &config)?;
        let list = case.json(&format!("sdxl_{model}_unet_diffusers.json"))?;
        check_names(case, model, &recording.recorded(), &list, |_| false)?;

        let folder = tempfile::tempdir()?;
        let mapping = format!("mapping_sdxl_{model}_diffusers_to_single_file.json");
        let mapping = case.json(&mapping)?;
        let list = names::shapes(&case.json(&format!("sdxl_{model}_single_file.json"))?)?;
        let checkpoint = names::open(&list, folder.path())?;
        let (read, _, weights) = checkpoint.unet()?;
        names::check(case, "unet", &weights, &mapping, &list)?;
        // What stands of transformers where there are none means nothing.
        let meant = |config: &UNetConfig| {
            let mut config = config.clone();
            for level in config.encoder.levels.iter_mut().filter(|level| !level.cross_attention) {
                level.transformer_layers = vec![0; level.layers];
            }
            config.up_transformer_layers.clear();
            config
        };
        let (inferred, published) = (meant(&read), meant(&config));
        case.check_equal(&format!("{model}: the configuration"), &inferred, &published);
        weights.check(|weights| UNet::load(weights, &read), &[]).context(model)?;

        let encoders = checkpoint.text_encoders()?;
        let expected = if model == "base" { 2 } else { 1 };
        case.check_equal(&format!("{model}: text encoders"), &encoders.len(), &expected);
        for encoder in &encoders {
            let (config, weights) = (&encoder.config, &encoder.weights);
            weights.check(|weights| ClipText::load(config, weights), &[]).context(model)?;
        }
        let g = encoders.last().context("no text encoder")?;
        case.check_equal(&format!("{model}: the last is G"), &g.config.is_g(), &true);
        let recording = Weights::recording();
        ClipText::load(&g.config, &recording)?;
        let list = case.json("sdxl_text_encoder_2_diffusers.json")?;
        check_names(case, model, &recording.recorded(), &list, |_| false)?;
    }
    Ok(())
}
