//! Low-rank adaptation (Hu et al., arXiv 2106.09685): which layers, from what start, and the file.

use std::collections::{BTreeMap, HashMap};

use candle_core::Tensor;
use kosmograph_models::Weights;
use kosmograph_models::files::weights::LowRank;
use kosmograph_models::samplers::randn::Generator;
use kosmograph_models::stable_diffusion::checkpoint::original::UNetNames;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::parameters::Parameters;

/// The prefix of a network's layers in kohya's naming.
pub const UNET: &str = "lora_unet_";
/// The same of the text encoder.
pub const TEXT_ENCODER: &str = "lora_te_";

/// Those of SDXL's two, L and G.
pub const TEXT_ENCODERS_OF_SDXL: [&str; 2] = ["lora_te1_", "lora_te2_"];

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

/// Calls the layers of a U-Net, whose tensors have these `names`, as kohya's scripts for SDXL do: by the original code's names.
pub fn name_as_sdxl(targets: &mut [Target], names: &[String]) {
    let original = UNetNames::of(names.iter().map(String::as_str));
    for target in targets {
        if let Some(name) = original.original(&target.weight)
            && let Some(module) = name.strip_suffix(".weight")
        {
            target.module = format!("{UNET}{}", module.replace('.', "_"));
        }
    }
}

/// What stands for the change of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The product of two matrices.
    #[default]
    Lora,
    /// Two such products, multiplied value by value (Hyeon-Woo et al., arXiv 2108.06098).
    Loha,
    /// The Kronecker product of a small matrix and such a product (Edalati et al., arXiv 2212.10650).
    Lokr,
}

impl Kind {
    /// How the file calls what belongs to a layer, without its alpha.
    pub fn ends(self) -> &'static [&'static str] {
        match self {
            Kind::Lora => &["lora_down.weight", "lora_up.weight"],
            Kind::Loha => &["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"],
            Kind::Lokr => &["lokr_w1", "lokr_w2_a", "lokr_w2_b"],
        }
    }

    /// The module of kohya's scripts that trains it, and its arguments, as a file's metadata have them.
    pub fn module(self) -> (&'static str, Option<&'static str>) {
        match self {
            Kind::Lora => ("networks.lora", None),
            Kind::Loha => ("lycoris.kohya", Some(r#"{"algo": "loha"}"#)),
            Kind::Lokr => ("lycoris.kohya", Some(r#"{"algo": "lokr"}"#)),
        }
    }
}

/// What a file calls the matrices of a LoRA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Naming {
    /// kohya's scripts: `lora_unet_…_to_q.lora_down.weight`, with an alpha.
    #[default]
    Kohya,
    /// PEFT: `unet.….to_q.lora_A.weight`.
    Peft,
    /// diffusers before it had PEFT: `unet.….to_q.lora.down.weight`.
    Diffusers,
}

impl Naming {
    /// What [`file_tensors`] gives of a LoRA, under these names. Where a file has no alpha, the matrices have it in them.
    ///
    /// # Errors
    /// A matrix of a target is not among the tensors.
    pub fn named(
        self,
        mut tensors: BTreeMap<String, Tensor>,
        targets: &[Target],
        alpha: f64,
    ) -> Result<BTreeMap<String, Tensor>> {
        let [down_end, up_end] = match self {
            Naming::Kohya => return Ok(tensors),
            Naming::Peft => ["lora_A.weight", "lora_B.weight"],
            Naming::Diffusers => ["lora.down.weight", "lora.up.weight"],
        };
        let mut named = BTreeMap::new();
        for Target { weight, module, .. } in targets {
            let mut take = |end: &str| {
                let name = format!("{module}.{end}");
                tensors.remove(&name).ok_or(Error::NoParameter(name))
            };
            let (down, up) = (take("lora_down.weight")?, take("lora_up.weight")?);
            let up = (up * (alpha / down.dim(0)? as f64))?;
            let [of_l, of_g] = TEXT_ENCODERS_OF_SDXL;
            let network = match module {
                module if module.starts_with(TEXT_ENCODER) || module.starts_with(of_l) => {
                    "text_encoder"
                }
                module if module.starts_with(of_g) => "text_encoder_2",
                _ => "unet",
            };
            let path = weight.strip_suffix(".weight").unwrap_or(weight);
            named.insert(format!("{network}.{path}.{down_end}"), down);
            named.insert(format!("{network}.{path}.{up_end}"), up);
        }
        Ok(named)
    }
}

/// `count` as a product of two that are as near each other as can be, the smaller first.
fn split(count: usize) -> (usize, usize) {
    let smaller = (1..=count.isqrt()).rev().find(|small| count.is_multiple_of(*small)).unwrap_or(1);
    (smaller, count / smaller)
}

/// Adds what stands for each target's change to `parameters`, under the names that the file has, one factor zeros so that
/// the start changes nothing: `down` of a LoRA drawn evenly from ±1/√inputs as torch's linear layers begin, the others as
/// LyCORIS begins them.
///
/// # Errors
/// The rank is 0, or larger than a layer.
pub fn begin(
    parameters: &mut Parameters,
    targets: &[Target],
    kind_and_rank: (Kind, usize),
    generator: &mut Generator,
) -> Result<()> {
    targets.iter().try_for_each(|target| fits(target, kind_and_rank))?;
    begin_at_any_rank(parameters, targets, kind_and_rank, generator)
}

/// [`begin`] also where the rank, 1 or more, is above what a layer can make use of.
///
/// # Errors
/// Only what the tensor library reports.
pub fn begin_at_any_rank(
    parameters: &mut Parameters,
    targets: &[Target],
    (kind, rank): (Kind, usize),
    generator: &mut Generator,
) -> Result<()> {
    match kind {
        Kind::Lora => begin_products(parameters, targets, rank, generator),
        Kind::Loha => begin_hadamard(parameters, targets, rank, generator),
        Kind::Lokr => begin_kronecker(parameters, targets, rank, generator),
    }
}

/// Normal values of this deviation.
fn normal(generator: &mut Generator, shape: [usize; 2], deviation: f64) -> Result<Tensor> {
    let values = generator.randn(shape.iter().product());
    Ok((Tensor::from_vec(values, &shape, &candle_core::Device::Cpu)? * deviation)?)
}

fn begin_hadamard(
    parameters: &mut Parameters,
    targets: &[Target],
    rank: usize,
    generator: &mut Generator,
) -> Result<()> {
    for target in targets {
        let (output, inputs) = sides(target);
        let Target { module, .. } = target;
        let mut insert =
            |end: &str, tensor: Tensor| parameters.insert(format!("{module}.{end}"), &tensor);
        insert("hada_w1_a", normal(generator, [output, rank], 0.1)?)?;
        insert("hada_w1_b", normal(generator, [rank, inputs], 1.0)?)?;
        insert("hada_w2_a", normal(generator, [output, rank], 0.0)?)?;
        insert("hada_w2_b", normal(generator, [rank, inputs], 1.0)?)?;
    }
    Ok(())
}

fn begin_kronecker(
    parameters: &mut Parameters,
    targets: &[Target],
    rank: usize,
    generator: &mut Generator,
) -> Result<()> {
    for target in targets {
        let kernel: usize = target.shape[2..].iter().product();
        let ((a, c), (b, d)) = (split(target.shape[0]), split(target.shape[1]));
        let Target { module, .. } = target;
        let mut insert =
            |end: &str, tensor: Tensor| parameters.insert(format!("{module}.{end}"), &tensor);
        insert("lokr_w1", evenly(generator, &[a, b], b)?)?;
        insert("lokr_w2_a", normal(generator, [c, rank], 0.0)?)?;
        insert("lokr_w2_b", evenly(generator, &[rank, d * kernel], d * kernel)?)?;
    }
    Ok(())
}

/// Outputs, and inputs with the kernel's places.
fn sides(target: &Target) -> (usize, usize) {
    (target.shape[0], target.shape[1..].iter().product())
}

fn fits(target: &Target, (kind, rank): (Kind, usize)) -> Result<()> {
    let (output, inputs) = match kind {
        Kind::Lora | Kind::Loha => sides(target),
        Kind::Lokr => {
            let kernel: usize = target.shape[2..].iter().product();
            (split(target.shape[0]).1, split(target.shape[1]).1 * kernel)
        }
    };
    let most = output.min(inputs);
    if rank == 0 || rank > most {
        return Err(Error::Config(format!(
            "the rank {rank} does not fit `{}`, of which {output} outputs and {inputs} inputs are changed: 1 to {most} would \
             be right",
            target.weight
        )));
    }
    Ok(())
}

fn begin_products(
    parameters: &mut Parameters,
    targets: &[Target],
    rank: usize,
    generator: &mut Generator,
) -> Result<()> {
    let device = candle_core::Device::Cpu;
    for target in targets {
        let (down, up) = shapes(target, rank);
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

/// Of `down` and `up`.
pub(crate) fn shapes(target: &Target, rank: usize) -> (Vec<usize>, Vec<usize>) {
    let (mut down, mut up) = (vec![rank], vec![target.shape[0], rank]);
    down.extend(&target.shape[1..]);
    if target.shape.len() == 4 {
        up.extend([1, 1]);
    }
    (down, up)
}

/// What stands beside each target's weight, of the variables in `parameters`; the file's alpha over its rank is the
/// scale.
///
/// # Errors
/// A matrix of a target is not among the parameters.
pub fn beside(
    parameters: &Parameters,
    targets: &[Target],
    (kind, alpha): (Kind, f64),
) -> Result<HashMap<String, LowRank>> {
    let beside = |Target { weight, module, shape }: &Target| {
        let get = |end: &str| {
            let name = format!("{module}.{end}");
            let var = parameters.get(&name).ok_or(Error::NoParameter(name))?;
            Ok::<_, Error>(var.as_tensor().clone())
        };
        let (shape, scale) = (shape.clone(), |rank: usize| alpha / rank as f64);
        let low_rank = match kind {
            Kind::Lora => {
                let (down, up) = (get("lora_down.weight")?, get("lora_up.weight")?);
                let scale = scale(down.dim(0)?);
                LowRank::Product { down, up, scale }
            }
            Kind::Loha => {
                let sides = [
                    [get("hada_w1_a")?, get("hada_w1_b")?],
                    [get("hada_w2_a")?, get("hada_w2_b")?],
                ];
                let scale = scale(sides[0][1].dim(0)?);
                LowRank::Hadamard { sides, shape, scale }
            }
            Kind::Lokr => {
                let (w1, w2) = (get("lokr_w1")?, [get("lokr_w2_a")?, get("lokr_w2_b")?]);
                let scale = scale(w2[1].dim(0)?);
                LowRank::Kronecker { w1, w2, shape, scale }
            }
        };
        Ok((weight.clone(), low_rank))
    };
    targets.iter().map(beside).collect()
}

/// The tensors of the file in kohya's naming: the factors and alpha of each target, in f32.
///
/// # Errors
/// A matrix of a target is not among the parameters.
pub fn file_tensors(
    parameters: &Parameters,
    targets: &[Target],
    (kind, alpha): (Kind, f64),
) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for Target { module, .. } in targets {
        for end in kind.ends() {
            let name = format!("{module}.{end}");
            let var = parameters.get(&name).ok_or_else(|| Error::NoParameter(name.clone()))?;
            tensors.insert(name, var.as_detached_tensor());
        }
        let alpha = Tensor::new(alpha as f32, &candle_core::Device::Cpu)?;
        tensors.insert(format!("{module}.alpha"), alpha);
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_an_alpha_have_it_in_the_matrices() {
        let target = |weight: &str, module: &str| Target {
            weight: weight.to_owned(),
            module: module.to_owned(),
            shape: vec![3, 2],
        };
        let targets = [
            target("a.to_q.weight", "lora_unet_a_to_q"),
            target("text_model.b.q_proj.weight", "lora_te_text_model_b_q_proj"),
        ];
        let mut parameters = Parameters::default();
        for Target { module, .. } in &targets {
            let ones = |shape: (usize, usize)| {
                Tensor::ones(shape, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap()
            };
            parameters.insert(format!("{module}.lora_down.weight"), &ones((2, 2))).unwrap();
            parameters.insert(format!("{module}.lora_up.weight"), &ones((3, 2))).unwrap();
        }
        let tensors = file_tensors(&parameters, &targets, (Kind::Lora, 6.0)).unwrap();
        let named = |naming: Naming| naming.named(tensors.clone(), &targets, 6.0).unwrap();
        assert_eq!(named(Naming::Kohya).len(), 6);
        let peft = named(Naming::Peft);
        let names: Vec<&str> = peft.keys().map(String::as_str).collect();
        let wanted = [
            "text_encoder.text_model.b.q_proj.lora_A.weight",
            "text_encoder.text_model.b.q_proj.lora_B.weight",
            "unet.a.to_q.lora_A.weight",
            "unet.a.to_q.lora_B.weight",
        ];
        assert_eq!(names, wanted);
        let diffusers = named(Naming::Diffusers);
        let up = diffusers["unet.a.to_q.lora.up.weight"].to_vec2::<f32>().unwrap();
        assert_eq!(up, [[3.0; 2]; 3]);
        let down = diffusers["unet.a.to_q.lora.down.weight"].to_vec2::<f32>().unwrap();
        assert_eq!(down, [[1.0; 2]; 2]);
    }

    #[test]
    fn a_count_is_split_near_its_root() {
        assert_eq!([split(64), split(320), split(7), split(1)], [(8, 8), (16, 20), (1, 7), (1, 1)]);
    }
}
