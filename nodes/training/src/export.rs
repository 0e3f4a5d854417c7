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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExportConfig {
    pub parts: Vec<Part>,
    /// The most that all may be together, in millions of bytes; 0 for any.
    pub megabytes: f64,
    /// How finely the numbers of matrices and kernels are written, see [`rounded`]; without it as finely as f16 can.
    pub steps_per_rms: Option<f64>,
    /// How the names of tensors begin that are needed for training alone, and left out.
    pub without: Vec<String>,
    /// Whose latents the U-Nets of the bundle work in: what previews are drawn with is fitted and written beside them.
    pub latent_rgb: Option<LatentRgbConfig>,
}

/// The steps of [`rounded`] that say something: a row of fewer is lost, and f16 itself has no more for a row's larger numbers.
const STEPS: std::ops::RangeInclusive<f64> = 1.0..=1024.0;

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
    /// As in [`ExportConfig`], for this part alone.
    #[serde(default)]
    pub steps_per_rms: Option<f64>,
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
/// A part is not there or leads out of the bundle, a number does not fit into f16, steps are none that can be, or all is larger
/// than it may be; nothing is left then.
pub(crate) fn write(config: &Config, watch: &mut dyn Watch) -> Result<PathBuf> {
    let export = config.export.as_ref().ok_or_else(|| {
        Error::Config("the task export has no \"export\" that says what goes where".to_owned())
    })?;
    check_steps(export.steps_per_rms, "\"export\"")?;
    for part in &export.parts {
        check_steps(part.steps_per_rms, &format!("\"export\", part {}", part.to.display()))?;
    }
    let mut bytes = 0;
    files::whole_folder(&config.output, |folder| {
        for Part { from, to, strength, steps_per_rms } in &export.parts {
            check_place(to)?;
            let before = bytes;
            let steps = steps_per_rms.or(export.steps_per_rms);
            bytes += match strength {
                1.0 => copy(from, &folder.join(to), &export.without, steps, DEEPEST)?,
                strength => copy_lora(from, &folder.join(to), *strength, steps)?,
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
/// The steps that `of` asks for are none of [`STEPS`].
fn check_steps(steps: Option<f64>, of: &str) -> Result<()> {
    match steps.filter(|steps| !STEPS.contains(steps)) {
        None => Ok(()),
        Some(steps) => Err(Error::Config(format!(
            "{of}: \"steps_per_rms\" is {steps}; {} to {} would be right",
            STEPS.start(),
            STEPS.end()
        ))),
    }
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

/// A matrix or kernel whose every row, what one output is made with, has numbers that are multiples of one step: the largest power
/// of two that goes `steps` times into the row's root mean square. What has one dimension (biases, norms) stays as it is.
///
/// This is uniform quantisation in f16's clothes. Every program reads the file as before, while its numbers are few different
/// ones, with zeros at the end, that an archive or a repository stores in less. The error, at most half a step, is the same for a
/// row's small numbers as for its large ones, where fewer significant bits would spend what they cost on the small.
fn rounded(tensor: &Tensor, steps: Option<f64>) -> Result<Tensor> {
    let (Some(steps), 2..) = (steps, tensor.rank()) else { return Ok(tensor.clone()) };
    let mut values = tensor.flatten_all()?.to_vec1::<f32>()?;
    let row = values.len() / tensor.dim(0)?.max(1);
    for row in values.chunks_mut(row.max(1)) {
        let squares: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
        let step = ((squares / row.len() as f64).sqrt() / steps).log2().floor().exp2() as f32;
        if step.is_normal() {
            row.iter_mut().for_each(|value| *value = (*value / step).round_ties_even() * step);
        }
    }
    Ok(Tensor::from_vec(values, tensor.shape(), tensor.device())?)
}

/// Copies a LoRA as f16, [`rounded`], its change `strength` times as large; how many bytes it has then.
fn copy_lora(from: &Path, to: &Path, strength: f64, steps: Option<f64>) -> Result<u64> {
    let weights = Weights::open(from, &Device::Cpu)?;
    let (mut tensors, mut changed): (BTreeMap<String, Tensor>, _) = (BTreeMap::new(), false);
    for name in weights.names() {
        let shape = weights.shape(&name).unwrap_or_default();
        let mut tensor = weights.get(&name, shape)?;
        if UP.iter().any(|end| name.ends_with(end)) {
            (tensor, changed) = ((tensor * strength)?, true);
        }
        tensors.insert(name, rounded(&tensor, steps)?);
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

/// Copies a file or a folder, weights as f16, [`rounded`], without what begins as `without` says; how many bytes it has then.
fn copy(
    from: &Path,
    to: &Path,
    without: &[String],
    steps: Option<f64>,
    deeper: usize,
) -> Result<u64> {
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
            bytes += copy(&from.join(&name), &to.join(&name), without, steps, deeper - 1)?;
        }
        return Ok(bytes);
    }
    let cannot = |source| Error::Write { path: to.to_owned(), source };
    if from.extension().is_some_and(|end| end == "safetensors") {
        let weights = Weights::open(from, &Device::Cpu)?;
        let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
        for name in weights.names() {
            if without.iter().any(|start| name.starts_with(start)) {
                continue;
            }
            let shape = weights.shape(&name).unwrap_or_default();
            let tensor = rounded(&weights.get(&name, shape)?, steps)?;
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
    fn a_rows_numbers_are_multiples_of_a_step_that_its_root_mean_square_says() -> Result<()> {
        // Root mean squares of 0.5 and 8: with 4 steps and with what is next to them, the steps are 1 / 8 and 2.
        let rows = [[0.5f32, -0.51, 0.48, 0.51], [8.0, -7.0, 9.1, -7.7]];
        let matrix = Tensor::new(&rows, &Device::Cpu)?;
        let found = rounded(&matrix, Some(3.9))?.to_vec2::<f32>()?;
        assert_eq!(found, [[0.5, -0.5, 0.5, 0.5], [8.0, -8.0, 10.0, -8.0]]);
        let kernel = matrix.reshape((2, 1, 2, 2))?;
        assert_eq!(rounded(&kernel, Some(3.9))?.flatten_all()?.to_vec1::<f32>()?, found.concat());
        assert_eq!(rounded(&matrix, None)?.to_vec2::<f32>()?, rows);
        let bias = Tensor::new(&rows[0], &Device::Cpu)?;
        assert_eq!(rounded(&bias, Some(1.0))?.to_vec1::<f32>()?, rows[0]);
        for nothing in [Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?, matrix.narrow(0, 0, 0)?] {
            let same = rounded(&nothing, Some(6.0))?;
            assert_eq!(same.to_vec2::<f32>()?, nothing.to_vec2::<f32>()?);
        }
        Ok(())
    }

    #[test]
    fn steps_that_say_nothing_are_refused() {
        for steps in [0.5, -1.0, 1025.0, f64::NAN, f64::INFINITY] {
            let told = check_steps(Some(steps), "\"export\", part sd/vae").unwrap_err().to_string();
            assert!(told.contains("part sd/vae") && told.contains("1 to 1024"), "{told}");
        }
        assert!(check_steps(None, "").is_ok() && check_steps(Some(6.0), "").is_ok());
    }

    proptest::proptest! {
        #[test]
        fn no_number_is_further_than_half_a_step_from_what_it_was(
            row in proptest::collection::vec(-1e4f32..1e4, 1..40),
            steps in STEPS,
        ) {
            let matrix = Tensor::new(row.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let found = rounded(&matrix, Some(steps)).unwrap().flatten_all().unwrap();
            let squares: f32 = row.iter().map(|value| value * value).sum();
            let step = (squares / row.len() as f32).sqrt() / steps as f32 * 1.001;
            for (was, is) in row.iter().zip(found.to_vec1::<f32>().unwrap()) {
                proptest::prop_assert!((was - is).abs() <= step / 2.0, "{was} became {is}, step {step}");
            }
        }
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
            copy_lora(&from, &to, 1.25, None)?;
            let found = Weights::open(&to, &Device::Cpu)?;
            assert_eq!(found.get(&up, (2, 3))?.to_vec2::<f32>()?, [[1.25; 3]; 2]);
            assert_eq!(found.get(&down, (2, 3))?.to_vec2::<f32>()?, [[1.0; 3]; 2]);
        }
        let unet = folder.path().join("unet.safetensors");
        let tensors = BTreeMap::from([("conv_in.weight".to_owned(), ones)]);
        files::write_as(DType::F32, &unet, &tensors, &BTreeMap::new())?;
        let told = copy_lora(&unet, &folder.path().join("c"), 2.0, None).unwrap_err().to_string();
        assert!(told.contains("no strength"), "{told}");
        Ok(())
    }
}
