//! Networks that know nothing yet.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use kosmograph_models::Weight;
use kosmograph_models::samplers::randn::Generator;

use crate::error::Result;
use crate::lora;

/// Tensors of these names and shapes as torch's layers begin: norms of one, biases of zero, tables drawn normally, and the
/// rest evenly from ±1/√inputs.
///
/// # Errors
/// Only what the tensor library reports.
pub(crate) fn tensors(
    shapes: &BTreeMap<String, Vec<usize>>,
    generator: &mut Generator,
) -> Result<HashMap<String, Weight>> {
    let mut tensors = HashMap::new();
    for (name, shape) in shapes {
        let is_weight = name.ends_with(".weight");
        let tensor = match (name.ends_with(".bias"), shape.len()) {
            (true, _) => Tensor::zeros(shape.as_slice(), DType::F32, &Device::Cpu)?,
            (_, 1) if is_weight => Tensor::ones(shape.as_slice(), DType::F32, &Device::Cpu)?,
            _ if name.contains("embed_tokens") || name.contains("embedding.weight") => {
                normal(generator, shape, 0.02)?
            }
            // Parameters that are no layer's weight: a class embedding, positions, queries.
            _ if !is_weight => normal(generator, shape, 0.02)?,
            _ => lora::evenly(generator, shape, shape[1..].iter().product())?,
        };
        tensors.insert(name.clone(), tensor.into());
    }
    Ok(tensors)
}

fn normal(generator: &mut Generator, shape: &[usize], deviation: f64) -> Result<Tensor> {
    let values = generator.randn(shape.iter().product());
    Ok((Tensor::from_vec(values, shape, &Device::Cpu)? * deviation)?)
}
