//! Small networks beside Stable Diffusion's: TAESD, T2I-Adapters, IP-Adapters, GLIGEN.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Result as CandleResult, Tensor};
use kosmograph_models::Weights;
use kosmograph_models::stable_diffusion::checkpoint::{Checkpoint, open_gligen};
use kosmograph_models::stable_diffusion::gligen::{Gligen, Grounded};
use kosmograph_models::stable_diffusion::ip_adapter::{IpAdapter, IpAdapterConfig, by_path};
use kosmograph_models::stable_diffusion::steering::{
    Attends, Attention, Edge, ExtraTokens, Hooks, KeysValues, Steering,
};
use kosmograph_models::stable_diffusion::t2i_adapter::T2iAdapter;
use kosmograph_models::stable_diffusion::taesd::Taesd;
use kosmograph_models::stable_diffusion::unet::{Condition, UNet};

use crate::case::{Case, read_tensors};
use crate::diffusion::{folder as folder_of, load_unet, timestep};

/// Saves tensors to be read as a file.
fn save(tensors: &BTreeMap<String, Tensor>, path: &Path) -> Result<()> {
    let tensors: Vec<(&String, &Tensor)> = tensors.iter().collect();
    Ok(safetensors::serialize_to_file(tensors, None, path)?)
}

fn load_taesd(path: &Path) -> Result<Taesd> {
    let (config, halves) = Checkpoint::open(path, &Device::Cpu)?.taesd()?;
    ensure!(halves.check(&config)? > 0, "no bytes");
    Ok(Taesd::load(&halves, &config)?)
}

/// In one file by diffusers' names, in the two published files, whichever is opened, and in one file with the names that ComfyUI gives
/// the two.
pub fn taesd(case: &mut Case) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let both = case.file("weights.safetensors");
    let tensors = read_tensors(&both)?;
    let mut halves = [BTreeMap::new(), BTreeMap::new()];
    for (name, tensor) in &tensors {
        let (half, rest) = name.split_once(".layers.").context("a layer")?;
        let (number, rest) = rest.split_once('.').context("a number")?;
        let number: usize = number.parse()?;
        let (half, number) = if half == "encoder" { (0, number) } else { (1, number + 1) };
        halves[half].insert(format!("{number}.{rest}"), tensor.clone());
    }
    let paths = ["taesd_encoder", "taesd_decoder"].map(|name| {
        // The files of a set with their own, where they are there.
        let file = format!("weights.{name}.safetensors");
        (case.folder.join(&file).is_file(), file, folder.path().join(format!("{name}.safetensors")))
    });
    for ((is_there, file, path), half) in paths.iter().zip(&halves) {
        match is_there {
            true => drop(std::fs::copy(case.file(file), path)?),
            false => save(half, path)?,
        }
    }
    let joined = folder.path().join("joined.safetensors");
    let names = ["taesd_encoder", "taesd_decoder"].into_iter().zip(&halves);
    let all = names.flat_map(|(start, half)| {
        half.iter().map(move |(name, tensor)| (format!("{start}.{name}"), tensor.clone()))
    });
    save(&all.collect(), &joined)?;
    for path in [&both, &joined, &paths[0].2, &paths[1].2] {
        let taesd = load_taesd(path)?;
        case.check("encode", &taesd.encode(&case.input("image")?)?)?;
        case.check("decode", &taesd.decode(&case.input("latents")?)?)?;
    }
    // A half alone does its own half.
    std::fs::remove_file(&paths[0].2)?;
    let decoder = load_taesd(&paths[1].2)?;
    case.check("decode", &decoder.decode(&case.input("latents")?)?)?;
    let refused = decoder.encode(&case.input("image")?).err().context("a refusal")?;
    ensure!(refused.to_string().contains("a decoder alone"), "{refused}");
    Ok(())
}

/// A U-Net of another case, with its own configuration.
fn unet(case: &Case, key: &str) -> Result<UNet> {
    let weights = case.config[key].as_str().with_context(|| format!("no {key}"))?;
    let folder = case.file(weights);
    let (config, weights) = folder_of(folder.parent().context("a folder")?)?;
    load_unet(&config, &weights)
}

/// In diffusers' names, and in TencentARC's: their own file where it is there, which is rounded to f16, else made here.
pub fn t2i_adapter(case: &mut Case) -> Result<()> {
    let unet = unet(case, "unet_weights")?;
    let (sample, context) = (case.input("sample")?, case.input("context")?);
    let at = timestep(case.size("timestep")?)?;
    let open = |path: &Path| -> Result<(T2iAdapter, Vec<String>)> {
        let (config, weights) = Checkpoint::open(path, &Device::Cpu)?.t2i_adapter()?;
        let adapter = T2iAdapter::load(&weights, &config)?;
        weights.finish(&[])?;
        Ok((adapter, config.places()))
    };
    for kind in ["full", "light"] {
        let path = case.file(format!("weights.{kind}.safetensors"));
        let (adapter, places) = open(&path)?;
        let features = adapter.forward(&case.input("cond")?)?;
        for (i, feature) in features.iter().enumerate() {
            case.check(&format!("{kind}.feature{i}"), feature)?;
        }
        // The original names: two ResNet blocks a level in one row, a light level's in a row of its own.
        let folder = tempfile::tempdir()?;
        let renamed = folder.path().join("original.safetensors");
        let original = |name: &str| -> Option<String> {
            let rest = name.strip_prefix("adapter.")?;
            let Some(rest) = rest.strip_prefix("body.") else { return Some(rest.to_owned()) };
            let (level, rest) = rest.split_once('.')?;
            let level: usize = level.parse().ok()?;
            match (rest.strip_prefix("resnets."), kind) {
                (Some(rest), "full") => {
                    let (block, rest) = rest.split_once('.')?;
                    Some(format!("body.{}.{rest}", 2 * level + block.parse::<usize>().ok()?))
                }
                (Some(rest), _) => Some(format!("body.{level}.body.{rest}")),
                (None, "full") => Some(format!("body.{}.{rest}", 2 * level)),
                (None, _) => Some(format!("body.{level}.{rest}")),
            }
        };
        let tensors = read_tensors(&path)?;
        let tensors: Option<BTreeMap<String, Tensor>> =
            tensors.into_iter().map(|(name, tensor)| Some((original(&name)?, tensor))).collect();
        save(&tensors.context("a name")?, &renamed)?;
        let (same, same_places) = open(&renamed)?;
        ensure!(places == same_places && adapter.config() == same.config(), "{places:?}");
        for (i, feature) in same.forward(&case.input("cond")?)?.iter().enumerate() {
            case.check(&format!("{kind}.feature{i}"), feature)?;
        }
        for name in case.expected_names() {
            let Some(scale) = name.strip_prefix(&format!("{kind}.unet_out_s")) else { continue };
            let scale: f64 = scale.parse()?;
            let features: Vec<(String, Tensor)> = (places.iter().cloned())
                .zip(&features)
                .map(|(place, feature)| Ok((place, (feature * scale)?)))
                .collect::<Result<_>>()?;
            let steering = Steering { features: &features, ..Steering::default() };
            let out = unet.forward_steered(&sample, &at, &context, steering, &mut |_, _| {})?;
            case.check(&name, &out)?;
        }
    }
    // The set's own file in the original names, with the difference that its rounding makes.
    let own = "weights.full_original.safetensors";
    if case.folder.join(own).is_file() {
        let (adapter, _) = open(&case.file(own))?;
        let expected = case.expected("full.feature3")?;
        let found = adapter.forward(&case.input("cond")?)?.pop().context("a feature")?;
        case.compare("full_original.feature3", &found, &expected, 2e-2)?;
    }
    Ok(())
}

/// Every file that is there, of safetensors and of torch, with the U-Net it is for.
pub fn ip_adapter(case: &mut Case) -> Result<()> {
    let at = timestep(case.size("timestep")?)?;
    for model in ["sd15", "sdxl"] {
        let unet = unet(case, &format!("{model}_weights"))?;
        let paths = unet.config().cross_attentions();
        let order: Vec<String> = serde_json::from_value(case.config["order"][model].clone())?;
        case.check_equal(&format!("the order of {model}'s layers"), &paths, &order);
        let (sample, context) =
            (case.input(&format!("{model}.sample"))?, case.input(&format!("{model}.context"))?);
        let (pooled, sizes) = match model {
            "sdxl" => (Some(case.input("sdxl.pooled")?), Some(case.input("sdxl.time_ids")?)),
            _ => (None, None),
        };
        let condition =
            Condition { context: &context, pooled: pooled.as_ref(), sizes: sizes.as_ref() };
        let run = |extra_tokens: &[ExtraTokens]| -> Result<Tensor> {
            let steering = Steering { extra_tokens, ..Steering::default() };
            Ok(unet.forward_steered(&sample, &at, condition, steering, &mut |_, _| {})?)
        };
        let mut first_images = Vec::new();
        for kind in ["base", "plus", "full"] {
            let files =
                ["safetensors", "bin"].map(|end| format!("{model}.{kind}.ip_adapter.{end}"));
            for file in files.iter() {
                if !case.folder.join(file).is_file() {
                    continue;
                }
                let weights = Weights::open(&case.file(file), &Device::Cpu)?;
                let config = IpAdapterConfig::from_weights(&weights)?;
                let adapter = IpAdapter::load(&weights, &config)?;
                weights.finish(&[])?;
                let images = match kind {
                    "base" => case.input("embeds")?,
                    "plus" => case.input("tokens")?,
                    _ => case.input("full_tokens")?,
                };
                // Of each picture, [row, token, width].
                let tokens = (0..images.dim(1)?)
                    .map(|i| Ok(adapter.tokens(&images.get_on_dim(1, i)?.contiguous()?)?))
                    .collect::<Result<Vec<_>>>()?;
                case.check(&format!("{model}.{kind}.image_tokens"), &tokens[0])?;
                let extra = |tokens: &Tensor, weight: f64| -> Result<ExtraTokens> {
                    let layers = by_path(adapter.keys_values(tokens)?, &paths, |_| 1.0)?;
                    Ok(ExtraTokens {
                        keys_values: KeysValues::Projected(layers),
                        weight,
                        mask: None,
                    })
                };
                for scale in ["1.0", "0.6"] {
                    let name = format!("{model}.{kind}.scale{scale}");
                    case.check(&name, &run(&[extra(&tokens[0], scale.parse()?)?])?)?;
                }
                // As the values' own weight, which a node gives each layer.
                let layers = by_path(adapter.keys_values(&tokens[0])?, &paths, |_| 0.6)?;
                let keys_values = KeysValues::Projected(layers);
                let weighed = ExtraTokens { keys_values, weight: 1.0, mask: None };
                case.check(&format!("{model}.{kind}.scale0.6"), &run(&[weighed])?)?;
                let two = format!("{model}.{kind}.two_images.scale1.0");
                if case.expects(&two) {
                    let joined = Tensor::cat(&tokens, 1)?;
                    case.check(&two, &run(&[extra(&joined, 1.0)?])?)?;
                }
                if file.ends_with(".safetensors") && kind != "full" {
                    let weight = if kind == "base" { 1.0 } else { 0.6 };
                    first_images.push(extra(&tokens[0], weight)?);
                }
                // A mask of ones changes nothing, one of zeros leaves the picture out.
                if kind == "base" {
                    let mask = |value: f32| Tensor::full(value, (1, 5, 7), &Device::Cpu);
                    let masked = |value| -> Result<Tensor> {
                        run(&[ExtraTokens { mask: Some(mask(value)?), ..extra(&tokens[0], 1.0)? }])
                    };
                    case.check(&format!("{model}.{kind}.scale1.0"), &masked(1.0)?)?;
                    let bound = 1e-6;
                    case.compare(&format!("{model} without"), &masked(0.0)?, &run(&[])?, bound)?;
                }
            }
        }
        case.check(&format!("{model}.base1.0_and_plus0.6"), &run(&first_images)?)?;
    }
    Ok(())
}

/// GLIGEN's attentions in their places of the U-Net, and nothing else.
struct InPlace<'a> {
    gligen: &'a Gligen,
    tokens: &'a Tensor,
}

impl std::fmt::Debug for InPlace<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GLIGEN")
    }
}

impl Hooks for InPlace<'_> {
    fn attention(
        &self,
        _attends: Attends,
        _path: &str,
        _size: (usize, usize),
        _tensors: (&Tensor, &Tensor),
        _layer: &Arc<Attention>,
    ) -> CandleResult<Option<Tensor>> {
        Ok(None)
    }

    fn between(&self, path: &str, _size: (usize, usize), x: Tensor) -> CandleResult<Tensor> {
        self.gligen.forward(path, &x, self.tokens).map_err(candle_core::Error::wrap)
    }

    fn block(&self, _edge: Edge, _path: &str, x: Tensor) -> CandleResult<Tensor> {
        Ok(x)
    }

    fn skip(&self, _path: &str, x: Tensor, skip: Tensor) -> CandleResult<(Tensor, Tensor)> {
        Ok((x, skip))
    }
}

/// The tokens of two boxes, and what the U-Net says that has three attentions on them.
pub fn gligen(case: &mut Case) -> Result<()> {
    let weights = case.config["unet"].as_str().context("no unet")?;
    let (config, weights) = folder_of(&case.file(weights))?;
    let unet = load_unet(&config, &weights)?;
    let (mut config, weights) = open_gligen(&case.file("weights.safetensors"), &Device::Cpu)?;
    // The U-Net is smaller than any of a family, which the number of heads is known by.
    for layer in &mut config.layers {
        layer.heads = case.size_of(&["heads", &layer.path])?;
    }
    ensure!(config.layers.len() == 3, "{config:?}");
    let gligen = Gligen::load(&weights, &config)?;
    weights.finish(&[])?;
    let (boxes, texts) = (case.input("boxes")?.to_vec2::<f32>()?, case.input("texts")?);
    let grounded = boxes.iter().enumerate().map(|(i, edges)| {
        let edges: [f32; 4] = edges.as_slice().try_into()?;
        Ok(Grounded { edges, text: texts.narrow(0, i, 1)? })
    });
    let tokens = gligen.tokens(&grounded.collect::<Result<Vec<_>>>()?, &Device::Cpu)?;
    case.check("tokens", &tokens)?;
    let hooks = InPlace { gligen: &gligen, tokens: &tokens };
    let steering = Steering { hooks: Some(&hooks), ..Steering::default() };
    let context = case.input("context")?;
    let condition = Condition { context: &context, pooled: None, sizes: None };
    let at = timestep(case.size("timestep")?)?;
    let sample = case.input("sample")?;
    let noise = unet.forward_steered(&sample, &at, condition, steering, &mut |_, _| {})?;
    case.check("noise", &noise)
}
