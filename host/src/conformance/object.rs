//! Objects that a node gave: each interface of the boundary's table that they offer is called as it should be
//! and as it should not.

use kosmograph_abi::table::{INTERFACES, Interface, Of, Part};
use serde_json::Value as Json;

use super::call::TestHost;
use super::library::{LOOK, contents};
use super::synthesis::{elsewhere, tensor};
use crate::plugin::{NodeFailure, call_interface, input, offers};
use crate::value::Value;

/// Calls everything that `object` offers; the error is the first rule that it breaks.
pub(super) fn check(
    object: &Value,
    host: &TestHost,
    doing: &mut dyn FnMut(&str),
) -> Result<(), String> {
    let type_name = object.object_type().unwrap_or_default();
    let missing =
        INTERFACES.iter().find(|row| row.required.contains(&type_name) && !offers(object, row.id));
    if let Some(Interface { id, .. }) = missing {
        return Err(format!("the {type_name} does not offer \"{id}\""));
    }
    if offers(object, "kosmograph-test/1") {
        return Err(format!("the {type_name} offers \"kosmograph-test/1\", which does not exist"));
    }
    let description = match offers(object, "describe/1") {
        true => describe(object, type_name, host, doing)?,
        false => Json::Null,
    };
    let sizes = Sizes::of(&description);
    for row in INTERFACES.iter().filter(|row| offers(object, row.id)) {
        if !row.types.is_empty() && !row.types.contains(&type_name) {
            let id = row.id;
            return Err(format!(
                "the {type_name} offers \"{id}\", which is no interface of its type"
            ));
        }
        refuses(object, row, &sizes, host, doing)?;
        answers(object, row, &sizes, host, doing)?;
    }
    Ok(())
}

/// How long the axes of made-up tensors are, by the names of the table.
struct Sizes {
    /// Of latents.
    channels: i64,
    /// What a prediction has.
    predicted: Option<i64>,
    width: i64,
    steps: Option<i64>,
    /// Of the pooled vector and of the sizes, of a model that wants them beside the context.
    vector: Option<[i64; 2]>,
}

impl Sizes {
    fn of(description: &Json) -> Self {
        let number = |key: &str| description[key].as_i64().filter(|&number| number > 0);
        Self {
            channels: number("in_channels").or(number("latent_channels")).unwrap_or(4),
            predicted: number("out_channels"),
            width: number("context_width").unwrap_or(16),
            steps: number("train_steps"),
            vector: number("pooled_width")
                .zip(number("sizes"))
                .map(|(pooled, sizes)| [pooled, sizes]),
        }
    }

    fn axis(&self, name: &str) -> i64 {
        let digits = name.bytes().take_while(u8::is_ascii_digit).count();
        let factor: i64 = name[..digits].parse().unwrap_or(1);
        factor
            * match &name[digits..] {
                "" => 1,
                "B" => 2,
                "C" => self.channels,
                "D" => self.width,
                "T" => 77,
                _ => 8,
            }
    }

    fn tensor(&self, shape: &str) -> Value {
        let shape: Vec<i64> = shape.split(',').map(|name| self.axis(name)).collect();
        tensor(&shape)
    }

    /// A value that fits; `None` where it takes an object.
    fn value(&self, name: &str, of: Of) -> Option<Value> {
        Some(match of {
            Of::Any | Of::Text => Value::string("{}"),
            Of::Bool => Value::boolean(false),
            Of::Int => Value::integer(if name == "tile" { 32 } else { 8 }),
            Of::Float => Value::number(0.5),
            // Within what the model was trained for.
            Of::Tensor(_) if name == "timestep" => {
                let last = self.steps.map_or(1.0, |steps| (steps - 1) as f32);
                Value::tensor_f32(&[2], &[0.5, last])?
            }
            Of::Tensor(shapes) => {
                // A picture of one channel is taken by fewer than one of three.
                let shape = shapes.iter().find(|shape| shape.ends_with(",3")).or(shapes.first());
                self.tensor(shape.copied().unwrap_or("1"))
            }
            Of::List(_) => Value::list(Vec::new()),
            Of::Map(parts) => self.map(parts, |_| true)?,
            Of::Named(_) => Value::empty_map(),
            Of::Object(_) => return None,
        })
    }

    /// What goes into an interface, of the keys that must be there those that are `wanted`.
    fn map(&self, parts: &[Part], wanted: impl Fn(&Part) -> bool) -> Option<Value> {
        let parts = parts.iter().filter(|part| !part.optional && wanted(part));
        let pair = |part: &Part| Some((part.name, self.value(part.name, part.of)?));
        Some(Value::map(parts.map(pair).collect::<Option<Vec<_>>>()?))
    }
}

/// Calls an interface with what it must refuse, one thing at a time.
fn refuses(
    object: &Value,
    row: &Interface,
    sizes: &Sizes,
    host: &TestHost,
    doing: &mut dyn FnMut(&str),
) -> Result<(), String> {
    let Interface { id, input: parts, .. } = row;
    let mut refused = |what: &str, input: &Value| {
        doing(&format!("calling \"{id}\" {what}"));
        match call_interface(object, id, host, input) {
            Err(failure) if failure.is_broken_rule() || failure == NodeFailure::Cancelled => {
                Err(format!("\"{id}\" {what}: {failure}"))
            }
            Err(_) => Ok(()),
            Ok(_) => Err(format!("\"{id}\" {what} is no error")),
        }
    };
    for part in parts.iter().filter(|part| !part.optional) {
        let Part { name, of, .. } = part;
        let others = |part: &Part| part.name != *name;
        // Where another key wants an object of somebody's, that is missing, too.
        let rest = sizes.map(parts, others).unwrap_or_else(Value::empty_map);
        let with = |value: Value| rest.with(name, value);
        refused(&format!("without \"{name}\""), &rest)?;
        refused(&format!("with nothing as \"{name}\""), &with(Value::NONE))?;
        let object = Value::object_without_interfaces("KOSMOGRAPH_TEST");
        refused(&format!("with an object of nobody's as \"{name}\""), &with(object))?;
        if let Of::Tensor([_, ..]) = of {
            let axes = tensor(&[1, 1, 1, 1, 1, 1, 1]);
            refused(&format!("with a tensor of seven axes as \"{name}\""), &with(axes))?;
        }
    }
    Ok(())
}

/// Calls an interface as it should be called, where nothing of somebody else's is needed for that: it may
/// refuse, with a sentence, and what it gives is what the table says.
fn answers(
    object: &Value,
    row: &Interface,
    sizes: &Sizes,
    host: &TestHost,
    doing: &mut dyn FnMut(&str),
) -> Result<(), String> {
    let Interface { id, input: parts, .. } = row;
    let Some(mut small) = sizes.map(parts, |_| true) else { return Ok(()) };
    // What a network of SDXL's family cannot do without.
    if let ("denoiser/1", Some([pooled, count])) = (*id, sizes.vector) {
        small = small.with("pooled", tensor(&[2, pooled])).with("sizes", tensor(&[2, count]));
    }
    doing(&format!("calling \"{id}\" with small values"));
    let answer = call_interface(object, id, host, &small);
    // These have no reason to refuse.
    let must = ["denoiser/1", "memory/1", "describe/1"].contains(id);
    let answer = match answer {
        Err(failure) if must || failure.is_broken_rule() => {
            return Err(format!("\"{id}\" with small values: {failure}"));
        }
        Err(NodeFailure::Cancelled) => {
            return Err(format!("\"{id}\" ends as cancelled, which it was not"));
        }
        Err(_) => return Ok(()),
        Ok(answer) => answer,
    };
    // A key that it does not know is somebody's of tomorrow.
    let mut pairs: Vec<(String, Value)> =
        small.pairs().map(|(key, value)| (key.to_owned(), value.clone())).collect();
    pairs.push(("kosmograph-test".to_owned(), Value::integer(1)));
    doing(&format!("calling \"{id}\" with a key that it does not know"));
    call_interface(object, id, host, &Value::map(pairs)).map_err(|failure| {
        format!("\"{id}\" with a key that it does not know: {failure}; such keys are passed over")
    })?;
    let anywhere = matches!(object.interface(id), Some(Ok(callable)) if callable.anywhere);
    if let (true, Some(there)) = (anywhere, elsewhere(&small)) {
        let what = format!("\"{id}\" with tensors that lie on a device it does not know");
        doing(&format!("calling {what}"));
        let found = call_interface(object, id, host, &there)
            .map_err(|failure| format!("{what}: {failure}; {LOOK}"))?;
        if contents(&[found]) != contents(std::slice::from_ref(&answer)) {
            return Err(format!("{what} gives something else; {LOOK}"));
        }
    }
    match *id {
        "memory/1" => memory(object, host, doing),
        "denoiser/1" => prediction(&answer, sizes),
        _ => Ok(()),
    }
}

/// Numbers of the shape that a U-Net of that description gives.
fn prediction(answer: &Value, sizes: &Sizes) -> Result<(), String> {
    let tensor = answer.get("prediction").and_then(Value::as_tensor);
    let tensor = tensor.ok_or("\"denoiser/1\" gives no tensor")?;
    let predicted = sizes.predicted.unwrap_or(sizes.channels);
    let wanted = [2, predicted, 8, 8];
    if tensor.shape() != wanted {
        let shape = tensor.shape();
        return Err(format!("\"denoiser/1\" gives the shape {shape:?}, not {wanted:?}"));
    }
    let numbers = tensor.to_f32().ok_or("\"denoiser/1\" gives no f32 on the CPU")?;
    match numbers.iter().all(|x| x.is_finite()) {
        true => Ok(()),
        false => Err("\"denoiser/1\" gives numbers that are not finite".to_owned()),
    }
}

fn describe(
    object: &Value,
    type_name: &str,
    host: &TestHost,
    doing: &mut dyn FnMut(&str),
) -> Result<Json, String> {
    doing(&format!("calling \"describe/1\" of the {type_name}"));
    let answer = call_interface(object, "describe/1", host, &input([]))
        .map_err(|failure| format!("\"describe/1\": {failure}"))?;
    let text = answer.get("description").and_then(Value::as_str).unwrap_or_default();
    let json: Json = serde_json::from_str(text)
        .map_err(|error| format!("\"describe/1\" gives what is not JSON: {error}"))?;
    if !json.is_object() {
        return Err("\"describe/1\" gives JSON that is no object".to_owned());
    }
    if type_name != "MODEL" {
        return Ok(json);
    }
    let number = |key: &str| {
        let number = json[key].as_i64().filter(|&number| number > 0);
        number.ok_or_else(|| format!("\"describe/1\" of a MODEL gives no \"{key}\" above 0"))
    };
    for key in ["in_channels", "out_channels", "context_width"] {
        number(key)?;
    }
    let steps = number("train_steps")?;
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
    Ok(json)
}

fn memory(object: &Value, host: &TestHost, doing: &mut dyn FnMut(&str)) -> Result<(), String> {
    for purge in [false, true] {
        doing(&format!("calling \"memory/1\" with purge = {purge}"));
        let answer =
            call_interface(object, "memory/1", host, &input([("purge", Value::boolean(purge))]))
                .map_err(|failure| format!("\"memory/1\": {failure}"))?;
        match answer.get("bytes").and_then(Value::as_i64) {
            Some(0..) => (),
            other => return Err(format!("\"memory/1\" gives {other:?}, not a number of bytes")),
        }
    }
    Ok(())
}
