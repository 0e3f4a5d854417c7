//! Objects that a node gave: each interface of node.h that they offer is called as it should be and as
//! it should not.

use kosmograph_abi as abi;
use serde_json::Value as Json;

use super::call::TestHost;
use super::synthesis::tensor;
use crate::plugin::{NodeFailure, call_interface, offers};
use crate::value::Value;

/// The interfaces of node.h, with how many values go in and out.
const INTERFACES: [(&str, usize, usize); 10] = [
    ("denoiser/1", 4, 1),
    ("control/1", 6, 1),
    ("text_encoder/1", 1, 2),
    ("vae_decode/1", 1, 1),
    ("vae_encode/1", 1, 1),
    ("image_encoder/1", 1, 1),
    ("interleave/1", 2, 2),
    ("align/1", 2, 1),
    ("describe/1", 0, 1),
    ("memory/1", 1, 1),
];

/// What an object of a type must offer, as node.h's interfaces name them.
fn required(type_name: &str) -> &'static [&'static str] {
    match type_name {
        "MODEL" => &["denoiser/1", "describe/1"],
        "CLIP" => &["text_encoder/1"],
        "VAE" => &["vae_decode/1"],
        "CONTROL_NET" => &["control/1"],
        "IMAGE_ENCODER" => &["image_encoder/1"],
        "KOSMOS" => &["image_encoder/1", "interleave/1", "align/1"],
        _ => &[],
    }
}

/// Calls everything that `object` offers; the error is the first rule that it breaks.
pub(super) fn check(
    object: &Value,
    host: &TestHost,
    doing: &mut dyn FnMut(&str),
) -> Result<(), String> {
    let type_name = object.object_type().unwrap_or_default();
    if let Some(missing) = required(type_name).iter().find(|id| !offers(object, id)) {
        return Err(format!("the {type_name} does not offer \"{missing}\""));
    }
    if offers(object, "kosmograph-test/1") {
        return Err(format!("the {type_name} offers \"kosmograph-test/1\", which does not exist"));
    }
    for (id, n_inputs, n_outputs) in INTERFACES {
        if !offers(object, id) {
            continue;
        }
        let mut refused = |what: &str, inputs: &[Value], n_outputs: usize| {
            doing(&format!("calling \"{id}\" of the {type_name} with {what}"));
            match call_interface(object, id, host, inputs, n_outputs) {
                Err(failure) if failure.is_broken_rule() || failure == NodeFailure::Cancelled => {
                    Err(format!("\"{id}\" with {what}: {failure}"))
                }
                Err(_) => Ok(()),
                Ok(_) => Err(format!("\"{id}\" with {what} is no error")),
            }
        };
        refused("an input too many", &vec![Value::NONE; n_inputs + 1], n_outputs)?;
        refused("an output too many", &vec![Value::NONE; n_inputs], n_outputs + 1)?;
        refused("no outputs", &vec![Value::NONE; n_inputs], 0)?;
        if n_inputs > 0 {
            refused("nothing in every input", &vec![Value::NONE; n_inputs], n_outputs)?;
            let objects = vec![Value::object_without_interfaces("KOSMOGRAPH_TEST"); n_inputs];
            refused("inputs of a wrong kind", &objects, n_outputs)?;
        }
    }
    describe_and_denoise(object, type_name, host, doing)?;
    memory(object, host, doing)
}

fn describe_and_denoise(
    object: &Value,
    type_name: &str,
    host: &TestHost,
    doing: &mut dyn FnMut(&str),
) -> Result<(), String> {
    if !offers(object, "describe/1") {
        return Ok(());
    }
    doing(&format!("calling \"describe/1\" of the {type_name}"));
    let values = call_interface(object, "describe/1", host, &[], 1)
        .map_err(|failure| format!("\"describe/1\": {failure}"))?;
    let text = values.first().and_then(Value::as_str);
    let text = text.ok_or("\"describe/1\" gives no string")?;
    let json: Json = serde_json::from_str(text)
        .map_err(|error| format!("\"describe/1\" gives what is not JSON: {error}"))?;
    if !json.is_object() {
        return Err("\"describe/1\" gives JSON that is no object".to_owned());
    }
    if type_name != "MODEL" {
        return Ok(());
    }
    let number = |key: &str| {
        let number = json[key].as_i64().filter(|&number| number > 0);
        number.ok_or_else(|| format!("\"describe/1\" of a MODEL gives no \"{key}\" above 0"))
    };
    let (channels, predicted) = (number("in_channels")?, number("out_channels")?);
    let (width, steps) = (number("context_width")?, number("train_steps")?);
    let prediction = json["prediction"].as_str().unwrap_or_default();
    if !["epsilon", "v_prediction", "sample"].contains(&prediction) {
        return Err(format!("\"describe/1\" gives the prediction \"{prediction}\""));
    }
    let alphas = json["alphas_cumprod"].as_array().map(Vec::as_slice).unwrap_or_default();
    if alphas.len() as i64 != steps {
        let given = alphas.len();
        return Err(format!("\"describe/1\" gives {given} alphas_cumprod for {steps} steps"));
    }
    let falls = alphas.windows(2).all(|pair| pair[1].as_f64() <= pair[0].as_f64());
    let inside = |alpha: &Json| alpha.as_f64().is_some_and(|alpha| (0.0..=1.0).contains(&alpha));
    if !falls || !alphas.iter().all(inside) {
        return Err("\"describe/1\" gives alphas_cumprod that do not fall within 1..0".to_owned());
    }

    doing("calling \"denoiser/1\" of the MODEL with small tensors");
    let batch = 2;
    let timestep = Value::tensor_f32(&[batch], &[0.5, (steps - 1) as f32]).unwrap_or(Value::NONE);
    let inputs =
        [tensor(&[batch, channels, 8, 8]), timestep, tensor(&[batch, 77, width]), Value::NONE];
    let values = call_interface(object, "denoiser/1", host, &inputs, 1)
        .map_err(|failure| format!("\"denoiser/1\" with small tensors: {failure}"))?;
    let values = values.first().and_then(Value::as_tensor);
    let prediction = values.ok_or("\"denoiser/1\" gives no tensor")?;
    let wanted = [batch, predicted, 8, 8];
    if prediction.shape() != wanted {
        let shape = prediction.shape();
        return Err(format!("\"denoiser/1\" gives the shape {shape:?}, not {wanted:?}"));
    }
    let numbers = prediction.to_f32().ok_or("\"denoiser/1\" gives no f32 on the CPU")?;
    match numbers.iter().all(|x| x.is_finite()) {
        true => Ok(()),
        false => Err("\"denoiser/1\" gives numbers that are not finite".to_owned()),
    }
}

fn memory(object: &Value, host: &TestHost, doing: &mut dyn FnMut(&str)) -> Result<(), String> {
    if !offers(object, "memory/1") {
        return Ok(());
    }
    for purge in [false, true] {
        doing(&format!("calling \"memory/1\" with purge = {purge}"));
        let values = call_interface(object, "memory/1", host, &[Value::boolean(purge)], 1)
            .map_err(|failure| format!("\"memory/1\": {failure}"))?;
        match values.first().map(|value| (value.kind(), value.as_i64())) {
            Some((abi::INT, Some(0..))) => (),
            other => return Err(format!("\"memory/1\" gives {other:?}, not a number of bytes")),
        }
    }
    Ok(())
}
