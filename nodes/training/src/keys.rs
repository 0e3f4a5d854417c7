//! The keys of a configuration: which there are, and those that are not said.

use serde_json::Value;

use crate::error::{Error, Result};

/// Puts what `json` does not say from `defaults`, also within.
pub(crate) fn fill(json: &mut Value, defaults: &Value) {
    let (Some(json), Some(defaults)) = (json.as_object_mut(), defaults.as_object()) else { return };
    for (key, value) in defaults {
        match json.get_mut(key) {
            Some(there) => fill(there, value),
            None => {
                json.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Takes out of `json` what is as in `defaults`, also within.
pub(crate) fn without_defaults(json: &mut Value, defaults: &Value) {
    let (Some(json), Some(defaults)) = (json.as_object_mut(), defaults.as_object()) else { return };
    for (key, default) in defaults {
        if let Some(value) = json.get_mut(key) {
            without_defaults(value, default);
            let is_empty =
                default.is_object() && value.as_object().is_some_and(|map| map.is_empty());
            if value == default || is_empty {
                json.shift_remove(key);
            }
        }
    }
}

/// Whether every key of `json` is one of `example`, also within.
pub(crate) fn known_keys(json: &Value, example: &Value, path: &str) -> Result<()> {
    let (Some(json), Some(example)) = (json.as_object(), example.as_object()) else {
        return match (path.is_empty(), example.is_object(), json.is_null()) {
            (true, ..) => refuse("the configuration is no JSON object".to_owned()),
            (_, true, false) => refuse(format!("\"{path}\" is {json}; an object would be right")),
            _ => Ok(()),
        };
    };
    for (key, value) in json {
        let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let Some(example) = example.get(key) else {
            let nearest = example.keys().max_by(|a, b| {
                strsim::jaro_winkler(key, a).total_cmp(&strsim::jaro_winkler(key, b))
            });
            let nearest = nearest.map(String::as_str).unwrap_or_default();
            return refuse(format!(
                "there is no \"{full}\" in a configuration; the nearest is \"{nearest}\""
            ));
        };
        known_keys(value, example, &full)?;
    }
    Ok(())
}

fn refuse(sentence: String) -> Result<()> {
    Err(Error::Config(sentence))
}
