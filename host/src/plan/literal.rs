//! Literals of a workflow → values of the declared type.
//!
//! As in ComfyUI a value is first coerced as Python would, `int("20")`, `str(3)`, then checked.
//! One thing is deliberately not Python's: the string "false" is false, and a string that says
//! neither true nor false is an error, where `bool("false")` would be true.

use super::Mention;
use crate::catalogue::{InputDescriptor, InputKind};
use crate::graph::{json_kind, not_finite};
use crate::problem::{Kind, Problem};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What stands in a workflow and was checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Literal {
    Boolean(bool),
    Integer(i64),
    /// An integer of an unsigned range.
    Natural(u64),
    Number(f64),
    Text(String),
    /// An absolute path, and what tells one state of the file from another.
    Path {
        path: String,
        identity: [u8; 16],
    },
    /// A text, and the files it names that were found.
    TextWithFiles {
        text: String,
        files: Vec<Mention>,
    },
}

impl Literal {
    /// The number, where it is one.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Integer(integer) => Some(*integer as f64),
            Self::Natural(natural) => Some(*natural as f64),
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }
}

/// Coerces `value` to what `input`, which is not a path, takes; the second is a warning.
pub(super) fn coerce(
    input: &InputDescriptor,
    value: &Value,
) -> Result<(Literal, Option<Problem>), Problem> {
    let wrong = || {
        let message = format!("{} is not {}", shown(value), wanted(input));
        Problem::new(Kind::InvalidInputType, message)
    };
    let plain = |literal| Ok((literal, None));
    match &input.kind {
        InputKind::Socket => match value {
            _ if input.type_name != "*" => {
                let message = format!(
                    "takes {} from another node, a link [\"node id\", output number], not {}",
                    input.type_name,
                    json_kind(value)
                );
                Err(Problem::new(Kind::BadLinkedInput, message))
            }
            Value::Bool(value) => plain(Literal::Boolean(*value)),
            Value::String(text) => plain(Literal::Text(text.clone())),
            Value::Number(number) => plain(if let Some(value) = number.as_i64() {
                Literal::Integer(value)
            } else if let Some(value) = number.as_u64() {
                Literal::Natural(value)
            } else {
                Literal::Number(number.as_f64().ok_or_else(wrong)?)
            }),
            _ => Err(wrong()),
        },
        InputKind::Int { min, max, step, .. } => {
            let number = whole(value).ok_or_else(wrong)?;
            // A number of many digits is told as it was written.
            let said = || match value {
                Value::Number(number) => number.to_string(),
                _ => number.to_string(),
            };
            if number < *min && !input.unchecked {
                return Err(too_small(&said(), &min.to_string()));
            }
            if number > *max && !input.unchecked {
                return Err(too_big(&said(), &max.to_string()));
            }
            let off = |step: &i128| number % step != 0 && (number - min) % step != 0;
            let odd = step.filter(off).map(|step| {
                let message = format!("{number} is not in steps of {step}, in which editors count");
                Problem::new(Kind::ValueOffStep, message)
            });
            let is_cut = value.as_f64().is_some_and(|exact| exact.fract() != 0.0);
            let cut = is_cut.then(|| {
                let message =
                    format!("{value} is not a whole number; {number} is taken, as in ComfyUI");
                Problem::new(Kind::ValueOffStep, message)
            });
            // The catalogue lets no range be wider than one of the two, and of numbers beyond it these are all there are.
            let literal = if InputKind::is_unsigned(*max) {
                u64::try_from(number).map(Literal::Natural)
            } else {
                i64::try_from(number).map(Literal::Integer)
            };
            Ok((literal.map_err(|_| wrong())?, cut.or(odd)))
        }
        InputKind::Float { min, max, .. } => {
            let number = number(value).ok_or_else(wrong)?;
            if let Some(min) = min.filter(|min| number < *min && !input.unchecked) {
                return Err(too_small(&number.to_string(), &min.to_string()));
            }
            if let Some(max) = max.filter(|max| number > *max && !input.unchecked) {
                return Err(too_big(&number.to_string(), &max.to_string()));
            }
            plain(Literal::Number(number))
        }
        InputKind::Boolean { .. } => match value {
            Value::Bool(value) => plain(Literal::Boolean(*value)),
            Value::Number(number) => plain(Literal::Boolean(number.as_f64() != Some(0.0))),
            Value::String(text) if text.trim().eq_ignore_ascii_case("true") => {
                plain(Literal::Boolean(true))
            }
            Value::String(text) if text.trim().eq_ignore_ascii_case("false") => {
                plain(Literal::Boolean(false))
            }
            _ => Err(wrong()),
        },
        InputKind::Text { .. } => plain(Literal::Text(text(value).ok_or_else(wrong)?)),
        InputKind::Combo { choices, .. } => {
            let text = text(value).ok_or_else(wrong)?;
            if choices.contains(&text) || input.unchecked {
                return plain(Literal::Text(text));
            }
            let message = format!("{} is not one of {}", shown(value), listed(choices));
            Err(Problem::new(Kind::ValueNotInList, message)
                .nearest(&text, choices.iter().map(String::as_str)))
        }
        InputKind::Path { .. } => Err(wrong()),
    }
}

/// The declared default of a widget that is not a path.
pub(super) fn default(kind: &InputKind) -> Option<Literal> {
    match kind {
        InputKind::Socket | InputKind::Path { .. } => None,
        InputKind::Int { default, max, .. } if InputKind::is_unsigned(*max) => {
            default.and_then(|value| u64::try_from(value).ok()).map(Literal::Natural)
        }
        InputKind::Int { default, .. } => {
            default.and_then(|value| i64::try_from(value).ok()).map(Literal::Integer)
        }
        InputKind::Float { default, .. } => default.map(Literal::Number),
        InputKind::Boolean { default } => default.map(Literal::Boolean),
        InputKind::Text { default, .. } | InputKind::Combo { default, .. } => {
            default.clone().map(Literal::Text)
        }
    }
}

/// What an input takes, for a sentence.
pub(super) fn wanted(input: &InputDescriptor) -> String {
    match &input.kind {
        InputKind::Socket if input.type_name == "*" => "a value or a link".into(),
        InputKind::Socket => format!("{} from another node", input.type_name),
        InputKind::Int { .. } => "a whole number".into(),
        InputKind::Float { .. } => "a number".into(),
        InputKind::Text { .. } => "a text".into(),
        InputKind::Boolean { .. } => "true or false".into(),
        InputKind::Combo { choices, .. } => format!("one of {}", listed(choices)),
        InputKind::Path { folder, .. } => format!("the name of a file in {folder}"),
    }
}

/// `"a", "b", "c"`, the first of them where there are many.
pub(super) fn listed(names: &[String]) -> String {
    const MOST: usize = 20;
    let mut list: Vec<String> = names.iter().take(MOST).map(|name| format!("{name:?}")).collect();
    if names.len() > MOST {
        list.push(format!("and {} more", names.len() - MOST));
    }
    list.join(", ")
}

/// A value as it was written, shortened where it is long.
pub(super) fn shown(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = not_finite(value).map_or_else(|| value.to_string(), str::to_owned);
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Python's `int(value)`.
fn whole(value: &Value) -> Option<i128> {
    match value {
        Value::Bool(value) => Some(i128::from(*value)),
        Value::Number(number) => {
            let exact = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
            exact.or_else(|| number.as_f64().map(|number| number.trunc() as i128))
        }
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// Python's `float(value)`, without infinities and NaN, which no input wants.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(value) => Some(f64::from(*value)),
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok().filter(|number: &f64| number.is_finite()),
        _ => None,
    }
}

/// Python's `str(value)` of what is no list and no object.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::Bool(true) => Some("True".into()),
        Value::Bool(false) => Some("False".into()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        _ => None,
    }
}

fn too_small(value: &str, min: &str) -> Problem {
    let message = format!("{value} is less than {min}, the least it takes");
    Problem::new(Kind::ValueSmallerThanMin, message)
}

fn too_big(value: &str, max: &str) -> Problem {
    let message = format!("{value} is more than {max}, the most it takes");
    Problem::new(Kind::ValueBiggerThanMax, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;
    use serde_json::json;
    use std::path::Path;

    #[test]
    fn a_number_that_is_cut_is_told_and_one_of_many_digits_is_told_as_written() {
        let library = json!({"name": "l", "version": "1", "nodes": [{"class": "K", "inputs": [
            {"name": "steps", "type": "INT", "min": 1, "max": 10_000},
            {"name": "seed", "type": "INT", "max": u64::MAX, "role": "seed"}]}]});
        let mut catalogue = Catalogue::default();
        catalogue.add(Path::new("l"), &library).unwrap();
        let descriptor = &catalogue.get("K").unwrap().descriptor;
        let coerced = |name: &str, value: Value| coerce(descriptor.input(name).unwrap(), &value);
        let (literal, odd) = coerced("steps", json!(3.7)).unwrap();
        assert_eq!(literal, Literal::Integer(3));
        let said = odd.unwrap().to_string();
        assert_eq!(said, "3.7 is not a whole number; 3 is taken, as in ComfyUI");
        for whole in [json!(3.0), json!(3), json!("3"), json!(true)] {
            assert!(coerced("steps", whole.clone()).unwrap().1.is_none(), "{whole}");
        }
        assert!(coerced("seed", json!(u64::MAX)).unwrap().1.is_none());
        let said = |name: &str, value: Value| coerced(name, value).unwrap_err().to_string();
        assert_eq!(
            said("seed", json!(1e300)),
            "1e+300 is more than 18446744073709551615, the most it takes"
        );
        assert_eq!(said("seed", json!(-1e300)), "-1e+300 is less than 0, the least it takes");
        assert_eq!(said("steps", json!("0")), "0 is less than 1, the least it takes");
    }
}
