//! SDXL: its U-Nets and the names of their files.

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use kosmograph_models::Weights;
use kosmograph_models::stable_diffusion::unet::{Condition, UNet, UNetConfig};

use crate::case::Case;
use crate::diffusion::load_unet;
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
    }
    Ok(())
}
