//! Reading diffusers' `config.json`: an option is either understood, or known not to matter, or
//! named in an error. Nothing that would change the picture is passed over in silence.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Options of any diffusers model that no computation reads. The second group is what diffusers'
/// EMA training wrapper writes among them.
const IRRELEVANT: [&str; 11] = [
    "sample_size",
    "dropout",
    "force_upcast",
    "interpolation_type",
    "addition_embed_type_num_heads",
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
];

/// The options of one `config.json`.
pub(crate) struct Options<'a> {
    file: &'a str,
    options: &'a Map<String, Value>,
    known: Vec<&'static str>,
}

impl<'a> Options<'a> {
    /// `file` is what errors call the configuration.
    pub(crate) fn new(json: &'a Value, file: &'a str) -> Result<Self> {
        match json {
            Value::Object(options) => Ok(Options { file, options, known: Vec::new() }),
            _ => Err(Error::Config {
                file: file.to_owned(),
                problem: "it is not a JSON object".to_owned(),
            }),
        }
    }

    /// The option's value, `default` where it is left out or null.
    pub(crate) fn get_or<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        default: T,
    ) -> Result<T> {
        self.known.push(key);
        match self.options.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => T::deserialize(value).map_err(|error| Error::Config {
                file: self.file.to_owned(),
                problem: format!("`{key}` is {value}: {error}"),
            }),
        }
    }

    /// One number for all `blocks`, or a list with one for each.
    pub(crate) fn per_block(
        &mut self,
        key: &'static str,
        default: usize,
        blocks: usize,
    ) -> Result<Vec<usize>> {
        let listed = match self.get_or(key, Value::from(default))? {
            Value::Array(list) => list,
            one => vec![one; blocks],
        };
        let numbers: Vec<usize> = listed
            .iter()
            .filter_map(|value| value.as_u64().and_then(|value| usize::try_from(value).ok()))
            .filter(|&value| value > 0)
            .collect();
        if numbers.len() == blocks && listed.len() == blocks {
            return Ok(numbers);
        }
        Err(self.unsupported(key, &format!("a positive number, or a list of {blocks} of them")))
    }

    /// Options for which only one value is supported. Left out or null means that value.
    pub(crate) fn only(&mut self, supported: &[(&'static str, Value)]) -> Result<()> {
        for (key, supported) in supported {
            let found = self.get_or(key, supported.clone())?;
            // 1 and 1.0 are the same option.
            let is_supported = match (found.as_f64(), supported.as_f64()) {
                (Some(found), Some(supported)) => found == supported,
                // An option that is off (null) may also be written as false.
                _ => found == *supported || supported.is_null() && found == Value::Bool(false),
            };
            if !is_supported {
                return Err(self.unsupported(key, &format!("{supported}")));
            }
        }
        Ok(())
    }

    /// Every option must have been asked for, or be off, or known not to matter.
    pub(crate) fn finish(self) -> Result<()> {
        for (key, value) in self.options {
            let is_off = matches!(value, Value::Null | Value::Bool(false));
            let is_known = self.known.contains(&key.as_str()) || IRRELEVANT.contains(&key.as_str());
            if !is_off && !is_known && !key.starts_with('_') {
                return Err(self.unsupported(key, "this option left out: its meaning is not known"));
            }
        }
        Ok(())
    }

    /// The error that names `key`, its value, and what would be right.
    pub(crate) fn unsupported(&self, key: &str, supported: &str) -> Error {
        Error::UnsupportedConfig {
            file: self.file.to_owned(),
            key: key.to_owned(),
            found: self.options.get(key).unwrap_or(&Value::Null).to_string(),
            supported: supported.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_the_key() {
        let json = json!({"a": 1, "b": "x", "list": [1, 2], "extra": 3, "off": null, "_class": 1});
        let mut options = Options::new(&json, "config.json").expect("an object");
        assert_eq!(options.get_or::<usize>("a", 0).expect("a number"), 1);
        assert_eq!(options.get_or("left_out", 7).expect("the default"), 7);
        assert!(options.get_or::<usize>("b", 0).unwrap_err().to_string().contains("`b`"));
        assert_eq!(options.per_block("a", 1, 3).expect("one for all"), [1, 1, 1]);
        assert_eq!(options.per_block("list", 1, 2).expect("one each"), [1, 2]);
        assert!(options.per_block("list", 1, 3).is_err());
        options.only(&[("a", json!(1.0)), ("left_out", json!(true))]).expect("supported");
        let error = options.only(&[("b", json!("y"))]).unwrap_err().to_string();
        assert!(error.contains("`b` is \"x\"") && error.contains("\"y\""), "{error}");
        let error = options.finish().unwrap_err().to_string();
        assert!(error.contains("`extra`"), "{error}");
    }
}
