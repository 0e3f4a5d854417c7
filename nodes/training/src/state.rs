//! A training's state on the disk, from which it goes on as if it had never stopped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use kosmograph_models::Weights;
use serde_json::Value;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::files;
use crate::optimiser::{Moments, Optimiser};
use crate::packed::{BLOCK, Packed};
use crate::parameters::Parameters;

/// Where the state of a training that makes `output` is kept.
pub fn path(output: &Path) -> PathBuf {
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(".safetensors").unwrap_or(&name);
    output.with_file_name(format!("{name}.training.safetensors"))
}

/// Averages of the parameters, by name.
pub(crate) type Averages = BTreeMap<String, Vec<f32>>;

pub(crate) fn write(
    path: &Path,
    config: &Config,
    parameters: &Parameters,
    optimiser: &Optimiser,
    averages: Option<&Averages>,
) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for (name, var) in parameters.iter() {
        tensors.insert(format!("parameter.{name}"), var.as_detached_tensor());
    }
    let mut put = |kind: &str, name: &str, values: &[f32]| -> Result<()> {
        tensors.insert(format!("{kind}.{name}"), Tensor::new(values, &Device::Cpu)?);
        Ok(())
    };
    for (name, moments) in optimiser.moments() {
        match moments {
            Moments::Adam { first, second } => {
                put("first", name, first)?;
                put("second", name, second)?;
            }
            // Codes are whole numbers, which an f32 has as they are.
            Moments::Packed { first, second } => {
                for (kind, packed) in [("first", first), ("second", second)] {
                    let codes: Vec<f32> =
                        packed.codes.iter().map(|code| f32::from(*code)).collect();
                    put(&format!("{kind}_codes"), name, &codes)?;
                    put(&format!("{kind}_scales"), name, &packed.scales)?;
                }
            }
            Moments::Factored { rows, columns } => {
                put("rows", name, rows)?;
                put("columns", name, columns)?;
            }
            Moments::Momentum { first } => put("momentum", name, first)?,
            Moments::Whole { second } => put("whole", name, second)?,
            Moments::Nothing => {}
        }
    }
    for (name, values) in averages.into_iter().flatten() {
        put("average", name, values)?;
    }
    let metadata = BTreeMap::from([
        ("updates".to_owned(), optimiser.updates().to_string()),
        ("configuration".to_owned(), config.identity().to_string()),
    ]);
    files::write(path, &tensors, &metadata)
}

/// Reads the state at `path` into `parameters` and `optimiser`; returns the averages.
pub(crate) fn read(
    path: &Path,
    config: &Config,
    parameters: &Parameters,
    optimiser: &mut Optimiser,
) -> Result<Averages> {
    let other = |what: String| Error::Checkpoint { path: path.to_owned(), what };
    let weights = Weights::open(path, &Device::Cpu)?;
    let told = |key: &str| {
        let sentence = || other("it is no state of a training".to_owned());
        weights.metadata(key).map(str::to_owned).ok_or_else(sentence)
    };
    let updates = told("updates")?.parse().map_err(|_| other("its count of updates".to_owned()))?;
    let before: Value = serde_json::from_str(&told("configuration")?)
        .map_err(|error| other(format!("its configuration: {error}")))?;
    let (before, now) = (Config::identity_of(before), config.identity());
    if before != now {
        let sides = [&before, &now].into_iter().filter_map(Value::as_object);
        let mut differing: Vec<&str> = sides
            .flat_map(|side| side.keys())
            .filter(|key| before[&***key] != now[&***key])
            .map(String::as_str)
            .collect();
        differing.sort_unstable();
        differing.dedup();
        let keys = differing.join("\", \"");
        return Err(other(format!(
            "\"{keys}\" of its configuration differ; another output, or removing it, would be right"
        )));
    }
    let values = |name: &str, kind: &str| -> Result<Option<Vec<f32>>> {
        let name = format!("{kind}.{name}");
        let Some(shape) = weights.shape(&name) else { return Ok(None) };
        Ok(Some(weights.get(&name, shape)?.flatten_all()?.to_vec1::<f32>()?))
    };
    let (mut moments, mut averages) = (BTreeMap::new(), Averages::new());
    for (name, var) in parameters.iter() {
        let parameter = weights.get(&format!("parameter.{name}"), var.shape())?;
        parameters.set(name, parameter.flatten_all()?.to_vec1::<f32>()?)?;
        let count = var.elem_count();
        let whole = |values: Option<Vec<f32>>| values.filter(|values| values.len() == count);
        let known = [
            "first",
            "second",
            "first_codes",
            "first_scales",
            "second_codes",
            "second_scales",
            "rows",
            "columns",
            "momentum",
            "whole",
        ];
        let has_some = known.iter().any(|kind| weights.has(&format!("{kind}.{name}")));
        let packed = |kind: &str| -> Result<Option<Packed>> {
            let codes = values(name, &format!("{kind}_codes"))?;
            let scales = values(name, &format!("{kind}_scales"))?;
            let packed = codes.zip(scales).map(|(codes, scales)| Packed {
                // What is no code, or no number, becomes one that does not fit.
                codes: match codes.iter().all(|code| code.abs() <= 127.0 && code.fract() == 0.0) {
                    true => codes.into_iter().map(|code| code as i8).collect(),
                    false => Vec::new(),
                },
                scales,
            });
            let fits = |packed: &Packed| {
                packed.codes.len() == count
                    && packed.scales.len() == count.div_ceil(BLOCK)
                    && packed.scales.iter().all(|scale| scale.is_finite() && *scale >= 0.0)
            };
            Ok(packed.filter(fits))
        };
        let [first, second] = [values(name, "first")?, values(name, "second")?].map(whole);
        if let (Some(first), Some(second)) = (first, second) {
            moments.insert(name.clone(), Moments::Adam { first, second });
        } else if let (Some(first), Some(second)) = (packed("first")?, packed("second")?) {
            moments.insert(name.clone(), Moments::Packed { first, second });
        } else if let (Some(rows), Some(columns)) =
            (values(name, "rows")?, values(name, "columns")?)
            && rows.len() * columns.len() == count
        {
            moments.insert(name.clone(), Moments::Factored { rows, columns });
        } else if let Some(first) = whole(values(name, "momentum")?) {
            moments.insert(name.clone(), Moments::Momentum { first });
        } else if let Some(second) = whole(values(name, "whole")?) {
            moments.insert(name.clone(), Moments::Whole { second });
        } else if has_some {
            return Err(Error::Damaged {
                path: path.to_owned(),
                what: format!(
                    "the optimiser's memory of `{name}` does not fit its {count} numbers"
                ),
            });
        }
        if let Some(average) = whole(values(name, "average")?) {
            averages.insert(name.clone(), average);
        }
    }
    optimiser.resume(updates, moments);
    Ok(averages)
}
