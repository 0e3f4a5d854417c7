//! Low-rank adaptation (Hu et al., arXiv 2106.09685): which layers, from what start, and the file.

use std::collections::{BTreeMap, HashMap};

use candle_core::Tensor;
use kosmograph_models::Weights;
use kosmograph_models::files::weights::LowRank;
use kosmograph_models::samplers::randn::Generator;

use crate::error::{Error, Result};
use crate::parameters::Parameters;

/// The prefix of a network's layers in kohya's naming.
pub const UNET: &str = "lora_unet_";
/// The same of the text encoder.
pub const TEXT_ENCODER: &str = "lora_te_";

/// The linear layers of the U-Net's attention, which diffusers' and kohya's scripts train.
pub const ATTENTION: [&str; 4] = ["to_q", "to_k", "to_v", "to_out.0"];
/// Those of CLIP's attention.
pub const TEXT_ATTENTION: [&str; 4] = ["q_proj", "k_proj", "v_proj", "out_proj"];

/// A layer that is trained: the name of its weight, and what the file calls the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    pub weight: String,
    pub module: String,
    /// [output, input] or [output, input, kH, kW].
    pub shape: Vec<usize>,
}

/// The layers of `weights` whose modules end in one of `names`, as `to_q` or `conv1`: linear layers and convolutions.
///
/// # Errors
/// A name fits no layer.
pub fn targets(weights: &Weights, names: &[impl AsRef<str>], prefix: &str) -> Result<Vec<Target>> {
    let all = weights.names();
    let modules: Vec<&str> = all.iter().filter_map(|name| name.strip_suffix(".weight")).collect();
    let mut found = BTreeMap::new();
    for name in names {
        let name = name.as_ref();
        let fits = |module: &&&str| {
            module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let before = found.len();
        for module in modules.iter().filter(fits) {
            let weight = format!("{module}.weight");
            let shape = weights.shape(&weight).unwrap_or_default();
            if shape.len() == 2 || shape.len() == 4 {
                let module = format!("{prefix}{}", module.replace('.', "_"));
                found.insert(weight.clone(), Target { weight, module, shape });
            }
        }
        if found.len() == before {
            let ends = modules.iter().filter_map(|module| module.rsplit('.').next());
            let nearest = ends.max_by(|a, b| {
                strsim::jaro_winkler(name, a).total_cmp(&strsim::jaro_winkler(name, b))
            });
            return Err(Error::Config(format!(
                "no layer of {} ends in \"{name}\"; the nearest is \"{}\"",
                weights.origin(),
                nearest.unwrap_or_default()
            )));
        }
    }
    Ok(found.into_values().collect())
}

/// Adds the two matrices of each target to `parameters`, under the names that the file has: `down` drawn evenly from
/// ±1/√inputs as torch's linear layers begin, `up` zeros, so that the start changes nothing.
///
/// # Errors
/// The rank is 0, or larger than a layer.
pub fn begin(
    parameters: &mut Parameters,
    targets: &[Target],
    rank: usize,
    generator: &mut Generator,
) -> Result<()> {
    let device = candle_core::Device::Cpu;
    for target in targets {
        let (down, up) = shapes(target, rank)?;
        let inputs: usize = down[1..].iter().product();
        let Target { module, .. } = target;
        let down = evenly(generator, &down, inputs)?;
        parameters.insert(format!("{module}.lora_down.weight"), &down)?;
        let up = Tensor::zeros(up, candle_core::DType::F32, &device)?;
        parameters.insert(format!("{module}.lora_up.weight"), &up)?;
    }
    Ok(())
}

/// Values drawn evenly from ±1/√`inputs`, as torch's linear layers and convolutions begin.
///
/// # Errors
/// Only what the tensor library reports.
pub(crate) fn evenly(generator: &mut Generator, shape: &[usize], inputs: usize) -> Result<Tensor> {
    let bound = 1.0 / (inputs.max(1) as f64).sqrt();
    let values: Vec<f32> = generator
        .randn(shape.iter().product())
        .into_iter()
        .map(|normal| ((2.0 * cumulative(f64::from(normal)) - 1.0) * bound) as f32)
        .collect();
    Ok(Tensor::from_vec(values, shape, &candle_core::Device::Cpu)?)
}

/// Φ(x): makes of a normal number an even one in 0..1.
fn cumulative(x: f64) -> f64 {
    0.5 * (1.0 + candle_core::cpu::erf::erf_f64(x * std::f64::consts::FRAC_1_SQRT_2))
}

fn shapes(target: &Target, rank: usize) -> Result<(Vec<usize>, Vec<usize>)> {
    let (output, inputs) = (target.shape[0], target.shape[1..].iter().product::<usize>());
    let most = output.min(inputs);
    if rank == 0 || rank > most {
        return Err(Error::Config(format!(
            "the rank {rank} does not fit `{}`, which has {output} outputs and {inputs} inputs: 1 to {most} would be right",
            target.weight
        )));
    }
    let (mut down, mut up) = (vec![rank], vec![output, rank]);
    down.extend(&target.shape[1..]);
    if target.shape.len() == 4 {
        up.extend([1, 1]);
    }
    Ok((down, up))
}

/// What stands beside each target's weight, of the variables in `parameters`; the file's alpha over its rank is the
/// scale.
///
/// # Errors
/// A matrix of a target is not among the parameters.
pub fn beside(
    parameters: &Parameters,
    targets: &[Target],
    alpha: f64,
) -> Result<HashMap<String, LowRank>> {
    let beside = |Target { weight, module, .. }: &Target| {
        let get = |end: &str| {
            let name = format!("{module}.{end}.weight");
            let var = parameters.get(&name).ok_or(Error::NoParameter(name))?;
            Ok::<_, Error>(var.as_tensor().clone())
        };
        let (down, up) = (get("lora_down")?, get("lora_up")?);
        let scale = alpha / down.dim(0)? as f64;
        Ok((weight.clone(), LowRank { down, up, scale }))
    };
    targets.iter().map(beside).collect()
}

/// The tensors of the file in kohya's naming: both matrices and alpha of each target, in f32.
///
/// # Errors
/// A matrix of a target is not among the parameters.
pub fn file_tensors(
    parameters: &Parameters,
    targets: &[Target],
    alpha: f64,
) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for Target { module, .. } in targets {
        for end in ["lora_down.weight", "lora_up.weight"] {
            let name = format!("{module}.{end}");
            let var = parameters.get(&name).ok_or_else(|| Error::NoParameter(name.clone()))?;
            tensors.insert(name, var.as_detached_tensor());
        }
        let alpha = Tensor::new(alpha as f32, &candle_core::Device::Cpu)?;
        tensors.insert(format!("{module}.alpha"), alpha);
    }
    Ok(tensors)
}
