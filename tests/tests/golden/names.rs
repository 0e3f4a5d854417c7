//! The original code's names for the same tensors, in files that are a header over a hole: the sizes are real, the
//! numbers take no room.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Device;
use kosmograph_models::Weights;
use kosmograph_models::stable_diffusion::checkpoint::Checkpoint;
use kosmograph_models::stable_diffusion::vae::Vae;
use serde_json::{Map, Value, json};

use crate::case::Case;

pub type Shapes = BTreeMap<String, Vec<usize>>;

pub fn shapes(list: &Value) -> Result<Shapes> {
    let list = list.as_object().context("a key list is not an object")?;
    let shape = |(name, entry): (&String, &Value)| {
        Ok((name.clone(), serde_json::from_value(entry["shape"].clone())?))
    };
    list.iter().map(shape).collect()
}

/// A safetensors file of these shapes in f16.
pub fn open(shapes: &Shapes, folder: &Path) -> Result<Checkpoint> {
    let mut header = Map::new();
    let mut at = 0;
    for (name, shape) in shapes {
        let end = at + 2 * shape.iter().product::<usize>();
        let entry = json!({"dtype": "F16", "shape": shape, "data_offsets": [at, end]});
        header.insert(name.clone(), entry);
        at = end;
    }
    let header = Value::Object(header).to_string();
    let path = folder.join("original.safetensors");
    let mut file = File::create(&path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    file.set_len(8 + header.len() as u64 + at as u64)?;
    Ok(Checkpoint::open(&path, &Device::Cpu)?)
}

/// Compares diffusers' names and the shapes behind them with what the mapping and the list say.
pub fn check(
    case: &mut Case,
    part: &str,
    read: &Weights,
    mapping: &Value,
    list: &Shapes,
) -> Result<()> {
    let mapping = mapping[part].as_object().with_context(|| format!("no mapping of {part}"))?;
    for (name, original) in mapping {
        let original = original.as_str().context("a name is no text")?;
        let what = format!("{part}: the shape of `{name}`, originally `{original}`");
        case.check_equal(&what, &read.shape(name), &list.get(original).cloned());
    }
    case.check_equal(&format!("{part}: how many"), &read.names().len(), &mapping.len());
    Ok(())
}

/// A checkpoint and a ControlNet as the original code saves them, and a VAE as diffusers once did.
pub fn key_lists(case: &mut Case) -> Result<()> {
    let mapping = case.json("mapping_diffusers_to_ldm.json")?;
    let folder = tempfile::tempdir()?;
    let list = shapes(&case.json("sd15_ldm_single_file.json")?)?;
    let checkpoint = open(&list, folder.path())?;
    check(case, "unet", &checkpoint.unet()?.2, &mapping, &list)?;
    check(case, "vae", &checkpoint.vae()?.1, &mapping, &list)?;
    check(case, "clip_text", &checkpoint.clip_text()?.1, &mapping, &list)?;
    let list = shapes(&case.json("controlnet_ldm.json")?)?;
    let control_net = open(&list, folder.path())?;
    check(case, "controlnet", &control_net.control_net()?.1, &mapping, &list)?;

    let old = case.json("sd15_vae_old_diffusers_attention_names.json")?;
    let rename = |(name, shape): (String, Vec<usize>)| match old[&name].as_str() {
        Some(old) => (old.to_owned(), shape),
        None => (name, shape),
    };
    let now = shapes(&case.json("sd15_vae_diffusers.json")?)?;
    let then: Shapes = now.clone().into_iter().map(rename).collect();
    let renamed = then.keys().filter(|name| !now.contains_key(*name)).count();
    let other = old.as_object().context("the old names are no object")?;
    let other = other.iter().filter(|(new, old)| Some(new.as_str()) != old.as_str()).count();
    case.check_equal("the names that diffusers changed", &renamed, &other);
    let (config, vae) = open(&then, folder.path())?.vae()?;
    // Asks for every tensor by its name and shape, and for no other.
    vae.check(|weights| Vae::load(weights, &config), &[])?;
    Ok(())
}
