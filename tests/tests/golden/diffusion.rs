//! Stable Diffusion's networks: U-Net, ControlNet, VAE.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use kosmograph_models::Weights;
use kosmograph_models::stable_diffusion::controlnet::{ControlNet, ControlNetConfig};
use kosmograph_models::stable_diffusion::unet::{Condition, Residuals, UNet, UNetConfig};
use kosmograph_models::stable_diffusion::vae::{Vae, VaeConfig};
use serde_json::{Value, json};

use crate::case::{Case, read_json, read_tensors, scaled_weights};
use crate::kosmos::check_names;

pub fn load_unet(config: &Value, weights: &Weights) -> Result<UNet> {
    let config = UNetConfig::from_value(&config["config"], "config.json")?;
    let unet = UNet::load(weights, &config)?;
    weights.finish(&[])?;
    Ok(unet)
}

pub fn load_controlnet(config: &Value, weights: &Weights) -> Result<ControlNet> {
    let config = ControlNetConfig::from_value(&config["config"], "config.json")?;
    let controlnet = ControlNet::load(weights, &config)?;
    weights.finish(&[])?;
    Ok(controlnet)
}

pub fn load_vae(config: &Value, weights: &Weights) -> Result<Vae> {
    let config = VaeConfig::from_value(&config["config"], "config.json")?;
    let vae = Vae::load(weights, &config)?;
    weights.finish(&[])?;
    Ok(vae)
}

/// The configuration and the weights of another case's folder.
pub fn folder(path: &Path) -> Result<(Value, Weights)> {
    let weights = Weights::open(&path.join("weights.safetensors"), &Device::Cpu)?;
    Ok((read_json(&path.join("config.json"))?, weights))
}

pub fn timestep(t: usize) -> Result<Tensor> {
    Ok(Tensor::new(&[t as i64], &Device::Cpu)?)
}

pub fn unet(case: &mut Case) -> Result<()> {
    let model = load_unet(&case.config, &case.weights()?)?;
    let sample = case.input("sample")?;
    let context = case.input("context")?;
    let timesteps = case.input("timesteps")?.to_vec1::<i64>()?;
    for &t in &timesteps {
        let at = Tensor::new(&[t], &Device::Cpu)?;
        let probed = format!("inter_t{t}.");
        let mut intermediate = Vec::new();
        let out = model.forward_with(&sample, &at, &context, None, &mut |name, tensor| {
            intermediate.push((format!("{probed}{name}"), tensor.clone()));
        })?;
        for (name, tensor) in intermediate {
            if case.expects(&name) {
                case.check(&name, &tensor)?;
            }
        }
        case.check(&format!("out_t{t}"), &out)?;
    }
    // A timestep for each sample: the first and the last of them.
    let batch = sample.dim(0)?;
    let per_sample: Vec<i64> =
        (0..batch).map(|i| timesteps[i * (timesteps.len() - 1) / (batch - 1).max(1)]).collect();
    let per_sample = Tensor::new(per_sample, &Device::Cpu)?;
    case.check("out_per_sample_t", &model.forward(&sample, &per_sample, &context, None)?)?;

    let odd = case.input("sample_odd")?;
    let context = context.narrow(0, 0, odd.dim(0)?)?;
    let at = Tensor::new(&[timesteps[timesteps.len() / 2]], &Device::Cpu)?;
    case.check("out_odd", &model.forward(&odd, &at, &context, None)?)
}

pub fn controlnet(case: &mut Case) -> Result<()> {
    let model = load_controlnet(&case.config, &case.weights()?)?;
    let unet_weights = case.config["unet_weights"].as_str().context("no unet_weights")?;
    let unet_folder = case.file(unet_weights);
    let unet_folder = unet_folder.parent().context("unet_weights has no folder")?;
    let (unet_config, unet_weights) = folder(unet_folder)?;
    let unet = load_unet(&unet_config, &unet_weights)?;

    let (sample, context) = (case.input("sample")?, case.input("context")?);
    let at = timestep(case.size("timestep")?)?;
    let hint = model.embed_hint(&case.input("cond")?)?;
    if case.expects("cond_embedding") {
        case.check("cond_embedding", &hint)?;
    }
    // SDXL's take a vector beside the context.
    let [pooled, sizes] = ["pooled", "time_ids"].map(|name| case.input(name).ok());
    let condition = Condition { context: &context, pooled: pooled.as_ref(), sizes: sizes.as_ref() };
    let residuals = model.forward(&sample, &at, condition, &hint)?;
    let pools = model.config().pools();
    let found = |scaled: &Residuals, name: &str| -> Result<Tensor> {
        if name == "unet_out" {
            return Ok(unet.forward(&sample, &at, condition, Some(scaled))?);
        }
        let residual = match name.strip_prefix("down") {
            Some(i) => scaled.down.get(i.parse::<usize>()?),
            None => (name == "mid").then_some(&scaled.mid),
        };
        let residual = residual.with_context(|| name.to_owned())?;
        // The mean, which stands at every pixel.
        if pools { one_pixel(residual) } else { Ok(residual.clone()) }
    };
    for name in case.expected_names() {
        // `down3_s0.6`, `mid_s0.6`, `unet_out_s0.6`: at a conditioning scale of 0.6.
        if let Some((name_of_part, scale)) = name.rsplit_once("_s") {
            let scale = scale.parse().context("a scale is no number")?;
            let scaled = model.scaled(&residuals, scale, false)?;
            case.check(&name, &found(&scaled, name_of_part)?)?;
        } else if let Some(name_of_part) = name.strip_prefix("guess_mode.") {
            let scaled = model.scaled(&residuals, 1.0, true)?;
            case.check(&name, &found(&scaled, name_of_part)?)?;
        }
    }
    Ok(())
}

/// The first pixel of a tensor whose pixels are all the same.
fn one_pixel(tensor: &Tensor) -> Result<Tensor> {
    let pixel = tensor.narrow(2, 0, 1)?.narrow(3, 0, 1)?.contiguous()?;
    let farthest = tensor.broadcast_sub(&pixel)?.abs()?.max_all()?.to_scalar::<f32>()?;
    ensure!(farthest == 0.0, "pixels differ by {farthest}");
    Ok(pixel)
}

pub fn vae(case: &mut Case) -> Result<()> {
    let model = load_vae(&case.config, &case.weights()?)?;
    let posterior = model.encode(&case.input("image")?)?;
    case.check("mean", posterior.mean())?;
    case.check("mode", posterior.mode())?;
    case.check("logvar", posterior.logvar())?;
    case.check("std", &posterior.std()?)?;
    case.check("sample", &posterior.sample(&case.input("posterior_noise")?)?)?;
    case.check("decode", &model.decode(&case.input("latents")?)?)?;
    let samples = case.expected("decode_of_mode")?.dim(0)?;
    let mode = posterior.mode().narrow(0, 0, samples)?;
    case.check("decode_of_mode", &model.decode(&mode)?)?;

    // The same weights under the names of diffusers before 0.14.
    let old_names =
        [("to_q.", "query."), ("to_k.", "key."), ("to_v.", "value."), ("to_out.0.", "proj_attn.")];
    let renamed = read_tensors(&case.file("weights.safetensors"))?
        .into_iter()
        .map(|(name, tensor)| {
            (old_names.iter().fold(name, |name, (new, old)| name.replace(new, old)), tensor)
        })
        .collect();
    let renamed = Weights::from_tensors("the renamed weights", renamed, &Device::Cpu);
    let renamed = load_vae(&case.config, &renamed)?;
    case.check("decode", &renamed.decode(&case.input("latents")?)?)
}

pub fn eps_probe(case: &mut Case) -> Result<()> {
    for name in ["unet", "vae"] {
        let folder = case.folder.join("..").join(name);
        let probe = &case.config["cases"][name];
        let file = probe["weights_from"].as_str().context("weights_from is missing")?;
        let weights = scaled_weights(&case.file(file), &probe["scaled_keys"])?;
        let config = read_json(&folder.join("config.json"))?;
        if name == "unet" {
            let unet = load_unet(&config, &weights)?;
            let sample = case.input("unet.sample")?;
            let timestep = case.input("unet.timestep")?;
            let context = case.input("unet.context")?;
            case.check("unet.out", &unet.forward(&sample, &timestep, &context, None)?)?;
        } else {
            let vae = load_vae(&config, &weights)?;
            let inputs = read_tensors(&folder.join("inputs.safetensors"))?;
            let input = |name: &str| inputs.get(name).context("an input of `vae` is missing");
            case.check("vae.mean", vae.encode(input("image")?)?.mean())?;
            case.check("vae.decode", &vae.decode(input("latents")?)?)?;
        }
    }
    Ok(())
}

/// The names and shapes of Stable Diffusion 1.5 are those that its sizes ask for.
pub fn key_lists(case: &mut Case) -> Result<()> {
    let unet = json!({"cross_attention_dim": 768});
    let weights = Weights::recording();
    UNet::load(&weights, &UNetConfig::from_value(&unet, "SD 1.5's")?)?;
    let list = case.json("sd15_unet_diffusers.json")?;
    check_names(case, "sd15_unet_diffusers", &weights.recorded(), &list, |_| false)?;

    let weights = Weights::recording();
    ControlNet::load(&weights, &ControlNetConfig::from_value(&unet, "SD 1.5's")?)?;
    let list = case.json("sd15_controlnet_diffusers.json")?;
    check_names(case, "sd15_controlnet_diffusers", &weights.recorded(), &list, |_| false)?;

    let vae = json!({
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
        "down_block_types": vec!["DownEncoderBlock2D"; 4],
        "up_block_types": vec!["UpDecoderBlock2D"; 4],
    });
    let weights = Weights::recording();
    Vae::load(&weights, &VaeConfig::from_value(&vae, "SD 1.5's")?)?;
    let list = case.json("sd15_vae_diffusers.json")?;
    check_names(case, "sd15_vae_diffusers", &weights.recorded(), &list, |_| false)
}
