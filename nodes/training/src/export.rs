//! What was trained as the folders of a bundle: numbers in f16, without what training alone needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use kosmograph_models::Weights;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::files;
use crate::latent_rgb::{self, LatentRgb};
use crate::run::Watch;

/// `export`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExportConfig {
    pub parts: Vec<Part>,
    /// The most that all may be together, in millions of bytes; 0 for any.
    pub megabytes: f64,
    /// To how many significant bits numbers are rounded, of the [`SIGNIFICANT`] that f16 has: the others are zeros, which an archive
    /// or a repository does not store.
    pub significant_bits: u32,
    /// How the names of tensors begin that are needed for training alone, and left out.
    pub without: Vec<String>,
    /// Whose latents the U-Nets of the bundle work in: what previews are drawn with is fitted and written beside them.
    pub latent_rgb: Option<LatentRgbConfig>,
}

impl Default for ExportConfig {
    fn default() -> ExportConfig {
        ExportConfig {
            parts: Vec::new(),
            megabytes: 0.0,
            significant_bits: SIGNIFICANT,
            without: Vec::new(),
            latent_rgb: None,
        }
    }
}

/// The significant bits of f16, the first of which is not stored.
const SIGNIFICANT: u32 = 11;

/// `export.latent_rgb`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentRgbConfig {
    /// The folder of the VAE.
    pub vae: PathBuf,
    /// A folder of pictures; [`FITTED`] of them are looked at.
    pub pictures: PathBuf,
    /// The folders of U-Nets in the bundle, each with a config.json.
    pub unets: Vec<PathBuf>,
}

/// How many pictures latents are fitted to.
const FITTED: usize = 64;

impl ExportConfig {
    /// What begins at the configuration's folder.
    pub(crate) fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let rgb = self.latent_rgb.iter_mut().flat_map(|rgb| [&mut rgb.vae, &mut rgb.pictures]);
        self.parts.iter_mut().map(|part| &mut part.from).chain(rgb)
    }
}

/// A file or folder that is trained, and where it is in the bundle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub from: PathBuf,
    pub to: PathBuf,
    /// What a LoRA's change is multiplied with, so that a strength of 1 is this one of what was learned.
    #[serde(default = "whole")]
    pub strength: f64,
}

fn whole() -> f64 {
    1.0
}

/// How the names of the matrices end whose values a LoRA's change is proportional to.
const UP: [&str; 3] = ["lora_up.weight", "lora_B.weight", "lora.up.weight"];

/// How far a folder is followed.
const DEEPEST: usize = 8;

/// Writes the folder that `config.export` says, which appears when it is whole.
///
/// # Errors
/// A part is not there or leads out of the bundle, a number does not fit into f16, there are no such significant bits, or all
/// is larger than it may be; nothing is left then.
pub(crate) fn write(config: &Config, watch: &mut dyn Watch) -> Result<PathBuf> {
    let export = config.export.as_ref().ok_or_else(|| {
        Error::Config("the task export has no \"export\" that says what goes where".to_owned())
    })?;
    let bits = export.significant_bits;
    if !(2..=SIGNIFICANT).contains(&bits) {
        return Err(Error::Config(format!(
            "\"export.significant_bits\" is {bits}; f16 has {SIGNIFICANT}, and 2 to {SIGNIFICANT} would be right"
        )));
    }
    let mut bytes = 0;
    files::whole_folder(&config.output, |folder| {
        for Part { from, to, strength } in &export.parts {
            check_place(to)?;
            let before = bytes;
            bytes += match strength {
                1.0 => copy(from, &folder.join(to), export, DEEPEST)?,
                strength => copy_lora(from, &folder.join(to), *strength, bits)?,
            };
            let megabytes = (bytes - before) as f64 / 1e6;
            watch.note(&format!("{}: {megabytes:.2} MB", to.display()), false);
        }
        if let Some(rgb) = &export.latent_rgb {
            colour(rgb, folder, watch)?;
        }
        let megabytes = bytes as f64 / 1e6;
        if export.megabytes > 0.0 && megabytes > export.megabytes {
            return Err(Error::Config(format!(
                "the bundle would have {megabytes:.2} MB, and may have {} (\"export.megabytes\")",
                export.megabytes
            )));
        }
        Ok(())
    })?;
    watch.note(&format!("{:.2} MB in all", bytes as f64 / 1e6), false);
    Ok(config.output.clone())
}

/// # Errors
/// `to` leads out of the bundle.
fn check_place(to: &Path) -> Result<()> {
    let inside = to.components().all(|c| matches!(c, std::path::Component::Normal(_)));
    match inside && !to.as_os_str().is_empty() {
        true => Ok(()),
        false => Err(Error::Config(format!(
            "\"export\": {} is no place in the bundle; a path as \"sd/vae\" would be right",
            to.display()
        ))),
    }
}

/// Writes the colours of latents into the configurations of the bundle's U-Nets.
fn colour(asked: &LatentRgbConfig, folder: &Path, watch: &mut dyn Watch) -> Result<()> {
    let LatentRgb { factors, bias, error } = latent_rgb::fit(&asked.vae, &asked.pictures, FITTED)?;
    for unet in &asked.unets {
        check_place(unet)?;
        let path = folder.join(unet).join("config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|source| Error::Read { path: path.clone(), source })?;
        let config: Result<serde_json::Map<_, _>, _> = serde_json::from_str(&text);
        let mut config =
            config.map_err(|error| Error::Data(format!("{}: {error}", path.display())))?;
        config.insert("latent_rgb".to_owned(), serde_json::json!(factors));
        config.insert("latent_rgb_bias".to_owned(), serde_json::json!(bias));
        std::fs::write(&path, format!("{:#}\n", serde_json::Value::Object(config)))
            .map_err(|source| Error::Write { path: path.clone(), source })?;
    }
    watch.note(&format!("previews are drawn with an error of {error:.3} (of -1 to 1)"), false);
    Ok(())
}

/// f32 numbers with no more than so many significant bits, the nearest, and of two the even one.
fn rounded(tensor: &Tensor, bits: u32) -> Result<Tensor> {
    let lost = f32::MANTISSA_DIGITS - bits;
    let round = |value: &f32| {
        let value = value.to_bits();
        let half = (1 << (lost - 1)) - 1 + (value >> lost & 1);
        f32::from_bits(value.saturating_add(half) >> lost << lost)
    };
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    let values: Vec<f32> = values.iter().map(round).collect();
    Ok(Tensor::from_vec(values, tensor.shape(), tensor.device())?)
}

/// Copies a LoRA as f16 of so many significant bits, its change `strength` times as large; how many bytes it has then.
fn copy_lora(from: &Path, to: &Path, strength: f64, bits: u32) -> Result<u64> {
    let weights = Weights::open(from, &Device::Cpu)?;
    let (mut tensors, mut changed): (BTreeMap<String, Tensor>, _) = (BTreeMap::new(), false);
    for name in weights.names() {
        let shape = weights.shape(&name).unwrap_or_default();
        let mut tensor = weights.get(&name, shape)?;
        if UP.iter().any(|end| name.ends_with(end)) {
            (tensor, changed) = ((tensor * strength)?, true);
        }
        tensors.insert(name, rounded(&tensor, bits)?);
    }
    if !changed {
        return Err(Error::Config(format!(
            "\"export\": {} has no matrices as a LoRA's {}, and so no strength",
            from.display(),
            UP.join(", ")
        )));
    }
    files::write_as(DType::F16, to, &tensors, &BTreeMap::new())?;
    let cannot = |source| Error::Write { path: to.to_owned(), source };
    Ok(std::fs::metadata(to).map_err(cannot)?.len())
}

/// Copies a file or a folder, weights as f16; how many bytes it has then.
fn copy(from: &Path, to: &Path, export: &ExportConfig, deeper: usize) -> Result<u64> {
    let failed = |source| Error::Read { path: from.to_owned(), source };
    if from.is_dir() {
        if deeper == 0 {
            let sentence = format!("{} lies too deep for a part of a bundle", from.display());
            return Err(Error::Data(sentence));
        }
        let mut names = Vec::new();
        for entry in std::fs::read_dir(from).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name());
        }
        names.sort();
        let mut bytes = 0;
        for name in names {
            bytes += copy(&from.join(&name), &to.join(&name), export, deeper - 1)?;
        }
        return Ok(bytes);
    }
    let cannot = |source| Error::Write { path: to.to_owned(), source };
    if from.extension().is_some_and(|end| end == "safetensors") {
        let weights = Weights::open(from, &Device::Cpu)?;
        let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
        for name in weights.names() {
            if export.without.iter().any(|start| name.starts_with(start)) {
                continue;
            }
            let shape = weights.shape(&name).unwrap_or_default();
            let tensor = rounded(&weights.get(&name, shape)?, export.significant_bits)?;
            tensors.insert(name, tensor);
        }
        files::write_as(DType::F16, to, &tensors, &BTreeMap::new())?;
    } else {
        let folder = files::folder_of(to);
        std::fs::create_dir_all(&folder).map_err(cannot)?;
        std::fs::copy(from, to).map_err(failed)?;
    }
    Ok(std::fs::metadata(to).map_err(cannot)?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_no_more_significant_bits_than_asked_for() -> Result<()> {
        let step = 1.0 / 128.0;
        let values =
            [1.0, -1.0, 0.0, 1.0 + step, 1.0 + step / 2.0, 1.0 + step * 1.5, -1.999, 3e-6f32];
        let found = rounded(&Tensor::new(&values, &Device::Cpu)?, 8)?.to_vec1::<f32>()?;
        assert_eq!(found[..7], [1.0, -1.0, 0.0, 1.0 + step, 1.0, 1.0 + step * 2.0, -2.0]);
        assert!((found[7] / 3e-6 - 1.0).abs() <= step / 2.0, "{}", found[7]);
        assert_eq!(
            rounded(&Tensor::new(&values, &Device::Cpu)?, SIGNIFICANT)?.to_vec1::<f32>()?[3],
            1.0 + step
        );
        Ok(())
    }

    #[test]
    fn a_strength_is_in_the_matrices() -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        let ones = Tensor::ones((2, 3), DType::F32, &Device::Cpu)?;
        for end in UP {
            let (from, to) =
                (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
            let down = "unet.a.to_q.down.weight".to_owned();
            let up = format!("unet.a.to_q.{end}");
            let tensors =
                BTreeMap::from([(down.clone(), ones.clone()), (up.clone(), ones.clone())]);
            files::write_as(DType::F32, &from, &tensors, &BTreeMap::new())?;
            copy_lora(&from, &to, 1.25, SIGNIFICANT)?;
            let found = Weights::open(&to, &Device::Cpu)?;
            assert_eq!(found.get(&up, (2, 3))?.to_vec2::<f32>()?, [[1.25; 3]; 2]);
            assert_eq!(found.get(&down, (2, 3))?.to_vec2::<f32>()?, [[1.0; 3]; 2]);
        }
        let unet = folder.path().join("unet.safetensors");
        let tensors = BTreeMap::from([("conv_in.weight".to_owned(), ones)]);
        files::write_as(DType::F32, &unet, &tensors, &BTreeMap::new())?;
        let told =
            copy_lora(&unet, &folder.path().join("c"), 2.0, SIGNIFICANT).unwrap_err().to_string();
        assert!(told.contains("no strength"), "{told}");
        Ok(())
    }
}
