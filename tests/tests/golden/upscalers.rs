//! ESRGAN in its namings, Real-ESRGAN's networks.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use kosmograph_models::upscalers::{Upscaler, UpscalerConfig, open};

use crate::case::{Case, read_tensors};

/// A file, and what is expected of it: its beginning in `expected.safetensors`, and its scale.
const FILES: [(&str, &str, usize); 6] = [
    ("x4_old", "x4", 4),
    ("x4_new", "x4", 4),
    ("x4_bsrgan", "x4", 4),
    ("x2_old", "x2_old", 2),
    ("x2plus_new", "x2plus", 2),
    ("compact_x4", "compact_x4", 4),
];

pub fn esrgan(case: &mut Case) -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (name, expected, scale) in FILES {
        let file = format!("weights.{name}.safetensors");
        // The same numbers in other names are made here where they are no file of their own.
        let path = match case.folder.join(&file).is_file() {
            true => case.file(&file),
            false => {
                let made = folder.path().join(&file);
                let tensors = read_tensors(&case.file("weights.x4_old.safetensors"))?;
                let rename = if name == "x4_new" { new_name } else { trunk_name };
                let renamed: Result<BTreeMap<String, Tensor>> = tensors
                    .into_iter()
                    .map(|(name, tensor)| Ok((rename(&name)?, tensor)))
                    .collect();
                save(&renamed?, &made)?;
                made
            }
        };
        check(case, &path, expected, scale)?;
    }
    Ok(())
}

fn save(tensors: &BTreeMap<String, Tensor>, path: &Path) -> Result<()> {
    let tensors: Vec<(&String, &Tensor)> = tensors.iter().collect();
    Ok(safetensors::serialize_to_file(tensors, None, path)?)
}

fn check(case: &mut Case, path: &Path, expected: &str, scale: usize) -> Result<()> {
    let (config, weights) = open(path, &Device::Cpu)?;
    ensure!(config.scale() == scale, "{} is said to be x{}", path.display(), config.scale());
    let is_compact = matches!(config, UpscalerConfig::Compact(_));
    ensure!(is_compact == (expected == "compact_x4"), "{config:?}");
    let upscaler = Upscaler::load(&weights, &config)?;
    weights.finish(&[])?;
    for input in ["image", "image_odd"] {
        let found = upscaler.upscale(&case.input(input)?)?;
        case.check(&format!("{expected}.{input}"), &found)?;
    }
    Ok(())
}

/// Real-ESRGAN's name for a tensor of ESRGAN's first code, of a network of one block that enlarges four times.
fn new_name(old: &str) -> Result<String> {
    let pairs = [
        ("model.0.", "conv_first."),
        ("model.1.sub.1.", "conv_body."),
        ("model.1.sub.", "body."),
        ("model.3.", "conv_up1."),
        ("model.6.", "conv_up2."),
        ("model.8.", "conv_hr."),
        ("model.10.", "conv_last."),
    ];
    let (from, to) = pairs.iter().find(|(from, _)| old.starts_with(from)).context("a name")?;
    let rest = old[from.len()..].replace(".0.weight", ".weight").replace(".0.bias", ".bias");
    Ok(format!("{to}{}", rest.replace("RDB", "rdb")))
}

/// The name that ESRGAN's later code and BSRGAN have for it.
fn trunk_name(old: &str) -> Result<String> {
    let pairs = [
        ("body.", "RRDB_trunk."),
        ("rdb", "RDB"),
        ("conv_body.", "trunk_conv."),
        ("conv_up", "upconv"),
        ("conv_hr.", "HRconv."),
    ];
    let name = new_name(old)?;
    Ok(match name.as_str() {
        name if name.starts_with("conv_body.") => name.replace("conv_body.", "trunk_conv."),
        name => pairs.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to)),
    })
}
