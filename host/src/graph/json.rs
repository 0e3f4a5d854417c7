//! JSON as people's programs write it: strict where a reader could take one thing for another, and
//! lenient where it is plain what was meant.
//!
//! An object with a key given twice is refused, since other readers silently take the last. Python
//! writes NaN and Infinity bare, in "is_changed" of saved pictures and elsewhere, and templates have
//! their placeholders bare, `"seed": {{seed}}`: neither is JSON, and both are read as what they are,
//! so that the input they stand at can be named.

use super::GraphError;
use super::placeholder;
use kosmograph_python_json as python_json;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt;

/// The key of an object that stands for a number that JSON does not have:
/// `{"__number__": "NaN"}`.
const NUMBER: &str = "__number__";
/// What placeholders that stand bare begin with.
const PLACEHOLDERS: [char; 5] = ['{', '%', '_', '$', '<'];

/// The JSON value that `text` is.
///
/// # Errors
/// [`GraphError`], of the text as it stands.
pub fn parse(text: &str) -> Result<Value, GraphError> {
    parse_strict(text).or_else(|error| match as_json(text).map(|text| parse_strict(&text)) {
        Some(Ok(json)) => Ok(json),
        _ => Err(error),
    })
}

/// Python's word for the number that `value` stands for, where it is one that is not finite.
pub fn not_finite(value: &Value) -> Option<&str> {
    let object = value.as_object().filter(|object| object.len() == 1)?;
    object.get(NUMBER)?.as_str().filter(|word| python_json::NOT_FINITE.contains(word))
}

fn parse_strict(text: &str) -> Result<Value, GraphError> {
    serde_json::from_str::<Strict>(text).map(|strict| strict.0).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        if error.is_eof() {
            return GraphError::Truncated { line, column };
        }
        // serde_json has no other way to ask which of its limits was met.
        let message = error.to_string();
        if message.starts_with("recursion limit exceeded") {
            return GraphError::TooDeep { line, column };
        }
        let place = format!(" at line {line} column {column}");
        let reason = message.strip_suffix(&place).unwrap_or(&message).to_owned();
        GraphError::Syntax { reason, line, column }
    })
}

/// A JSON value in which no object has a key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = pairs.next_key::<String>()? {
            match object.entry(key) {
                Entry::Vacant(place) => {
                    let Strict(value) = pairs.next_value()?;
                    place.insert(value);
                }
                Entry::Occupied(place) => {
                    let key = place.key();
                    return Err(de::Error::custom(format!("the key {key:?} stands twice")));
                }
            }
        }
        Ok(Value::Object(object))
    }
}

/// `text` with every bare NaN, Infinity and -Infinity as the object that [`not_finite`] knows, and
/// every bare placeholder as a string; `None` where there is none.
fn as_json(text: &str) -> Option<String> {
    let instead = |rest: &str| {
        if let Some(word) = python_json::not_finite(rest) {
            return Some((word.len(), format!("{{\"{NUMBER}\": \"{word}\"}}").into()));
        }
        let length = rest.starts_with(PLACEHOLDERS).then(|| placeholder::bare_length(rest))??;
        // Its signs need no escapes.
        Some((length, format!("\"{}\"", &rest[..length]).into()))
    };
    match python_json::outside_strings(text, instead) {
        Cow::Owned(plain) => Some(plain),
        Cow::Borrowed(_) => None,
    }
}
