//! LoRAs in every naming, on the U-Net of the golden case `unet`.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use kosmograph_models::Weights;
use kosmograph_models::lora::{Adapted, Lora};
use kosmograph_models::stable_diffusion::unet::{UNet, UNetConfig};
use serde_json::Value;

use crate::case::{Case, read_tensors};
use crate::diffusion::timestep;

/// Where the expected tensors of a file begin: `kohya.` of `kohya.lora.safetensors`.
const FILE: &str = ".lora.safetensors";

pub fn lora(case: &mut Case) -> Result<()> {
    let unet_weights = case.config["unet_weights"].as_str().context("no unet_weights")?;
    let weights = Weights::open(&case.file(unet_weights), &Device::Cpu)?;
    let config = UNetConfig::from_value(&case.config["unet_config"], "config.json")?;
    let base = Adapted::open(weights, &[], move |weights| UNet::load(weights, &config))?;
    let (sample, context) = (case.input("sample")?, case.input("context")?);
    let at = timestep(case.size("timestep")?)?;
    let run = |unet: &Adapted<UNet>| unet.get()?.forward(&sample, &at, &context, None);
    let before = run(&base)?;
    case.check("base", &before)?;

    let names = case.expected_names();
    for name in names.iter().filter(|name| *name != "base") {
        let (kind, scale) = name.rsplit_once(".scale").context("a name without a scale")?;
        let scale: f64 = scale.parse().context("a scale is no number")?;
        let lora = Lora::open(&case.file(format!("{kind}{FILE}")))?;
        ensure!(lora.unknown.is_empty(), "{kind}: unknown layers, {:?}", lora.unknown);
        ensure!(!lora.unet.is_empty() && lora.text_encoder.is_empty(), "{kind}: no U-Net's");
        let (adapted, without_place) = base.with(&lora.unet, scale)?;
        ensure!(without_place.is_empty(), "{kind}: without a place, {without_place:?}");
        case.check(name, &run(&adapted)?)?;

        // The parts of a strength, one LoRA over the other, are the strength.
        let (part, _) = base.with(&lora.unet, 2.0 * scale)?;
        let (parts, _) = part.with(&lora.unet, -scale)?;
        case.check(name, &run(&parts)?)?;
    }
    for name in names.iter().filter(|name| name.starts_with("kohya") && name.ends_with("1.0")) {
        original_names(case, name, &base, &run)?;
    }
    let after = run(&base)?;
    let bits = |tensor: &Tensor| -> Result<Vec<f32>> { Ok(tensor.flatten_all()?.to_vec1()?) };
    case.check_equal("the base afterwards", &bits(&after)?, &bits(&before)?);
    Ok(())
}

/// A file in kohya's naming again, under the original code's names for the same modules, which
/// the key lists map.
fn original_names(
    case: &mut Case,
    name: &str,
    base: &Adapted<UNet>,
    run: &dyn Fn(&Adapted<UNet>) -> kosmograph_models::Result<Tensor>,
) -> Result<()> {
    let mapping = case.json("../key_lists/mapping_diffusers_to_ldm.json")?;
    let mut flat = HashMap::new();
    for (diffusers, ldm) in pairs(&mapping) {
        let module = |name: &str| name.strip_suffix(".weight").map(|name| name.replace('.', "_"));
        if let (Some(diffusers), Some(ldm)) = (module(diffusers), ldm.strip_suffix(".weight")) {
            let ldm = ldm.strip_prefix("model.diffusion_model.").unwrap_or(ldm);
            // This U-Net's channels change where SD 1.5's stay, so it has shortcuts that the mapping lacks.
            if let (Some(of), Some(block)) =
                (diffusers.strip_suffix("_conv1"), ldm.strip_suffix(".in_layers.2"))
            {
                flat.insert(format!("{of}_conv_shortcut"), format!("{block}.skip_connection"));
            }
            flat.insert(diffusers, ldm.to_owned());
        }
    }
    let kind = name.trim_end_matches(".scale1.0");
    let tensors = read_tensors(&case.file(format!("{kind}{FILE}")))?;
    for prefix in ["lora_unet_", "diffusion_model."] {
        let rename = |name: &str| -> Option<String> {
            let (module, end) = name.strip_prefix("lora_unet_")?.split_once('.')?;
            let ldm = flat.get(module)?;
            let ldm = if prefix == "lora_unet_" { ldm.replace('.', "_") } else { ldm.to_string() };
            Some(format!("{prefix}{ldm}.{end}"))
        };
        let renamed: HashMap<String, Tensor> = tensors
            .iter()
            .map(|(name, tensor)| Some((rename(name)?, tensor.clone())))
            .collect::<Option<_>>()
            .context("a module that the mapping does not know")?;
        let weights = Weights::from_tensors("the renamed LoRA", renamed, &Device::Cpu);
        let lora = Lora::read(&weights)?;
        ensure!(lora.unknown.is_empty(), "{prefix}: unknown layers, {:?}", lora.unknown);
        let (adapted, without_place) = base.with(&lora.unet, 1.0)?;
        ensure!(without_place.is_empty(), "{prefix}: without a place, {without_place:?}");
        case.check(name, &run(&adapted)?)?;
    }
    Ok(())
}

/// All pairs of strings in the U-Net's part of the mapping.
fn pairs(mapping: &Value) -> Vec<(&str, &str)> {
    let unet = mapping["unet"].as_object().or_else(|| mapping.as_object());
    unet.into_iter().flatten().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))).collect()
}

/// Every kind of layer, on the U-Net of the golden case `unet`.
pub fn kinds(case: &mut Case) -> Result<()> {
    let weights = case.config["sd15_weights"].as_str().context("no sd15_weights")?;
    let weights = Weights::open(&case.file(weights), &Device::Cpu)?;
    let config = case.json("../unet/config.json")?;
    let config = UNetConfig::from_value(&config["config"], "config.json")?;
    let base = Adapted::open(weights, &[], move |weights| UNet::load(weights, &config))?;
    let (sample, context) = (case.input("sd15.sample")?, case.input("sd15.context")?);
    let at = timestep(case.size("timestep")?)?;
    let run = |unet: &Adapted<UNet>| unet.get()?.forward(&sample, &at, &context, None);
    let before = run(&base)?;
    case.check("sd15.base", &before)?;

    for name in case.expected_names().iter().filter(|name| name.starts_with("sd15.")) {
        let Some((kind, scale)) = name.rsplit_once(".scale") else { continue };
        let scale: f64 = scale.parse().context("a scale is no number")?;
        // A length for each row: ComfyUI takes it for the weight's rows. PEFT, which has a name of its own for
        // it, and LyCORIS take it for those of the changed weight.
        let file = kind.trim_end_matches(".comfyui");
        let mut tensors = read_tensors(&case.file(format!("{file}{FILE}")))?;
        if kind == "sd15.dora_out" {
            let renamed = |(name, tensor): (String, Tensor)| {
                (name.replace(".dora_scale", ".lora_magnitude_vector"), tensor)
            };
            tensors = tensors.into_iter().map(renamed).collect();
        }
        let lora = Weights::from_tensors(file, tensors.into_iter().collect(), &Device::Cpu);
        let lora = Lora::read(&lora)?;
        ensure!(lora.unknown.is_empty(), "{kind}: unknown layers, {:?}", lora.unknown);
        ensure!(!lora.unet.is_empty() && lora.text_encoder.is_empty(), "{kind}: no U-Net's");
        let (adapted, without_place) = base.with(&lora.unet, scale)?;
        ensure!(without_place.is_empty(), "{kind}: without a place, {without_place:?}");
        case.check(name, &run(&adapted)?)?;
        // What was on the model before is taken for its weights.
        let (nothing, _) = base.with(&lora.unet, 0.0)?;
        case.check("sd15.base", &run(&nothing)?)?;
    }
    let after = run(&base)?;
    let bits = |tensor: &Tensor| -> Result<Vec<f32>> { Ok(tensor.flatten_all()?.to_vec1()?) };
    case.check_equal("the base afterwards", &bits(&after)?, &bits(&before)?);
    Ok(())
}
