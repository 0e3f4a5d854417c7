//! What a node says it will take: "memory" of its descriptor, compared with what there is before it is taken.
//!
//! The plan asks where the numbers stand in the workflow, the executor once they are known. That is for sums which the
//! numbers alone tell; what hangs on a picture or a model, the library asks for itself.

use kosmograph_memory::{Shortage, ask_bytes};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::catalogue::{InputDescriptor, InputKind, NodeDescriptor};
use crate::value::Value;

/// The product of these is how many bytes the results of a node take at least.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Need {
    factors: Vec<Factor>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Factor {
    Number(f64),
    /// The place of an INT or FLOAT among the inputs.
    Input(usize),
}

impl Need {
    /// "memory" of a descriptor whose inputs are `inputs`; `None` where there is none.
    ///
    /// # Errors
    /// It is not a list of numbers and names of numeric inputs; the end of a sentence about the class.
    pub fn parse(json: &Json, inputs: &[InputDescriptor]) -> Result<Option<Self>, String> {
        let factors = match json {
            Json::Null => return Ok(None),
            Json::Array(factors) => factors,
            other => return Err(format!("its memory {other} is not a list of factors")),
        };
        let factor = |factor: &Json| match factor {
            Json::Number(number) => {
                let number = number.as_f64().filter(|number| *number >= 0.0);
                let number = number.ok_or("its memory has a factor below 0")?;
                Ok(Factor::Number(number))
            }
            Json::String(name) => {
                let is_it = |input: &InputDescriptor| {
                    let numeric =
                        matches!(input.kind, InputKind::Int { .. } | InputKind::Float { .. });
                    numeric && input.name == *name
                };
                let place = inputs.iter().position(is_it).map(Factor::Input);
                place.ok_or(format!(
                    "its memory has the factor \"{name}\", which is no INT or FLOAT input"
                ))
            }
            other => Err(format!("its memory has the factor {other}, which is no number or name")),
        };
        Ok(Some(Self { factors: factors.iter().map(factor).collect::<Result<_, String>>()? }))
    }

    /// Whether there is enough, with the `numbers` of the inputs by their places. Where one is not known, or below 0,
    /// nothing is said.
    ///
    /// # Errors
    /// There is not; the sentence names the inputs.
    pub fn ask(
        &self,
        descriptor: &NodeDescriptor,
        numbers: impl Fn(usize) -> Option<f64>,
    ) -> Result<(), Shortage> {
        let mut bytes = 1.0;
        let mut sum = Vec::with_capacity(self.factors.len());
        for factor in &self.factors {
            let number = match factor {
                Factor::Number(number) => {
                    sum.push(number.to_string());
                    *number
                }
                Factor::Input(place) => {
                    let known = numbers(*place).filter(|number| *number >= 0.0);
                    let (Some(number), Some(input)) = (known, descriptor.inputs.get(*place)) else {
                        return Ok(());
                    };
                    sum.push(format!("{} {number}", input.name));
                    number
                }
            };
            bytes *= number;
        }
        // `as` cuts at the largest number.
        ask_bytes("its results", bytes as u128, &format!("{} bytes", sum.join(" x ")))
    }
}

/// Whether there is what the node says that it takes for these `inputs`, which are in its descriptor's order.
///
/// # Errors
/// There is not.
pub fn ask(descriptor: &NodeDescriptor, inputs: &[Value]) -> Result<(), Shortage> {
    let Some(need) = &descriptor.memory else { return Ok(()) };
    need.ask(descriptor, |place| {
        let (value, input) = (inputs.get(place)?, descriptor.inputs.get(place)?);
        match input.kind {
            InputKind::Int { max, .. } if InputKind::is_unsigned(max) => {
                value.as_u64().map(|natural| natural as f64)
            }
            InputKind::Int { .. } => value.as_i64().map(|integer| integer as f64),
            _ => value.as_f64(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;
    use serde_json::json;
    use std::path::Path;

    fn described(memory: Json) -> Result<NodeDescriptor, String> {
        let descriptor = json!({"name": "a", "version": "1", "nodes": [{"class": "Empty", "memory": memory, "inputs": [
            {"name": "text", "type": "STRING"},
            {"name": "width", "type": "INT"},
            {"name": "count", "type": "INT", "max": u64::MAX},
            {"name": "scale", "type": "FLOAT"}]}]});
        let mut catalogue = Catalogue::default();
        catalogue.add(Path::new("a.so"), &descriptor).map_err(|error| error.to_string())?;
        Ok((*catalogue.get("Empty").unwrap().descriptor).clone())
    }

    #[test]
    fn what_is_no_sum_is_the_descriptors_fault() {
        assert_eq!(described(Json::Null).unwrap().memory, None);
        for (memory, told) in [
            (json!("width"), "Empty: its memory \"width\" is not a list"),
            (json!([-1]), "below 0"),
            (json!(["text"]), "the factor \"text\", which is no INT or FLOAT input"),
            (json!([4, "height"]), "\"height\""),
            (json!([[4]]), "the factor [4]"),
        ] {
            let error = described(memory).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn what_is_too_much_names_the_inputs() {
        let descriptor = described(json!([0.25, "width", "count", "scale"])).unwrap();
        let inputs = |width, count, scale| {
            [Value::string(""), Value::integer(width), Value::natural(count), Value::number(scale)]
        };
        assert_eq!(ask(&descriptor, &inputs(512, 512, 1.0)), Ok(()));
        let error = ask(&descriptor, &inputs(1 << 40, 1 << 50, 2.0)).unwrap_err().to_string();
        let sum = "its results would take 619 YB (0.25 x width 1099511627776 x count 1125899906842624 x scale 2 bytes), there ";
        assert!(error.starts_with(sum), "{error}");
        assert_eq!(
            ask(&descriptor, &inputs(-1, u64::MAX, 1e300)),
            Ok(()),
            "a range is not its matter"
        );
        assert_eq!(ask(&descriptor, &inputs(1, 1, f64::NAN)), Ok(()));
    }
}
