//! What node.h promises of a socket's value.

use crate::value::Value;

/// Whether a value is what node.h promises of its socket type. Its kind was looked at before.
pub(super) fn keeps_promise(value: &Value, type_name: &str) -> Result<(), String> {
    let tensor = |value: Option<&Value>, what: &str, axes: usize| -> Result<Vec<f32>, String> {
        let tensor = value.and_then(Value::as_tensor);
        let tensor = tensor.ok_or_else(|| format!("has no tensor{what}"))?;
        if tensor.shape().len() != axes || tensor.shape().contains(&0) {
            return Err(format!("has a tensor{what} of shape {:?}", tensor.shape()));
        }
        let numbers = tensor.to_f32();
        let numbers = numbers.ok_or_else(|| format!("has a tensor{what} not of f32 on the CPU"))?;
        match numbers.iter().all(|x| x.is_finite()) {
            true => Ok(numbers),
            false => Err(format!("has a tensor{what} of numbers that are not finite")),
        }
    };
    let in_range = |numbers: Vec<f32>| match numbers.iter().find(|x| !(-1e-3..=1.001).contains(*x))
    {
        None => Ok(()),
        Some(x) => Err(format!("has the value {x}, which is not in 0..1")),
    };
    match type_name {
        "IMAGE" => {
            in_range(tensor(Some(value), "", 4)?)?;
            match value.tensor_shape().and_then(|shape| shape.last()) {
                Some(1 | 3 | 4) => Ok(()),
                channels => Err(format!("has {channels:?} channels, not 1, 3 or 4")),
            }
        }
        "MASK" => in_range(tensor(Some(value), "", 3)?),
        "IMAGE_TOKENS" => tensor(Some(value), "", 3).map(drop),
        "LATENT" => tensor(value.get("samples"), " \"samples\"", 4).map(drop),
        "HIDDEN_STATES" => {
            tensor(value.get("hidden_states"), " \"hidden_states\"", 3)?;
            tensor(value.get("mask"), " \"mask\"", 2).map(drop)
        }
        "CONDITIONING" => {
            if value.items().is_empty() {
                return Err("is an empty list".to_owned());
            }
            let context = |entry: &Value| tensor(entry.get("context"), " \"context\"", 3);
            value.items().iter().try_for_each(|entry| context(entry).map(drop))
        }
        _ => match value.object_type() {
            Some(found) if found != type_name && type_name != "*" => {
                Err(format!("is an object of type {found}"))
            }
            _ => Ok(()),
        },
    }
}
