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
        match self.options.get(key) {
            Some(value) if !is_size(value) => Err(self.unsupported(key, &sizes())),
            _ => self.get_any_or(key, default),
        }
    }

    /// The option as it is written, null included; None where it is left out.
    pub(crate) fn given(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        self.options.get(key)
    }

    /// As [`Options::get_or`], of any size: for what is only compared.
    fn get_any_or<T: DeserializeOwned>(&mut self, key: &'static str, default: T) -> Result<T> {
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
            let found = self.get_any_or(key, supported.clone())?;
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
        let found = self.options.get(key).unwrap_or(&Value::Null);
        unsupported(self.file, key, found, supported.to_owned())
    }
}

fn unsupported(file: &str, key: &str, found: &Value, supported: String) -> Error {
    /// A value is shown as far as a person may want to read it.
    const SHOWN: usize = 100;
    let mut found = found.to_string();
    if let Some((end, _)) = found.char_indices().nth(SHOWN) {
        found.truncate(end);
        found.push('…');
    }
    Error::UnsupportedConfig { file: file.to_owned(), key: key.to_owned(), found, supported }
}

/// The largest whole number that a configuration may hold: vocabularies have some hundred thousand entries, everything
/// else less. Sizes and loops are made of these numbers, and a file of some hundred bytes can hold any.
pub(crate) const LARGEST: u64 = 1 << 20;
/// The most items of a list, which are the levels of a network: each halves the picture.
const LONGEST: usize = 16;

/// Whether every whole number in `value` may be a size, and every list one of levels.
pub(crate) fn is_size(value: &Value) -> bool {
    match value {
        Value::Number(number) => match number.as_i64() {
            Some(whole) => whole.unsigned_abs() <= LARGEST,
            None => !number.is_u64(),
        },
        Value::Array(items) => items.len() <= LONGEST && items.iter().all(is_size),
        _ => true,
    }
}

/// What [`is_size`] accepts, for a sentence.
pub(crate) fn sizes() -> String {
    format!("numbers of at most {LARGEST}, and at most {LONGEST} of them")
}

/// Checks the numbers under `keys`, wherever in `config` such a key stands; `file` is what errors call it.
///
/// # Errors
/// One is larger than any model has it; the error names file and key.
pub(crate) fn check_sizes(config: &Value, keys: &[&str], file: &str) -> Result<()> {
    let Value::Object(entries) = config else { return Ok(()) };
    for (key, value) in entries {
        if keys.contains(&key.as_str()) && !is_size(value) {
            return Err(unsupported(file, key, value, sizes()));
        }
        check_sizes(value, keys, file)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_number_beyond_every_model_names_file_and_key() {
        let json = json!({"a": 1_000_000_000_000u64, "b": [1, u64::MAX], "c": vec![1; 40], "d": -1e300, "e": 768});
        let mut options = Options::new(&json, "config.json").expect("an object");
        for key in ["a", "b", "c"] {
            let error = options.get_or(key, Value::Null).unwrap_err().to_string();
            let told = format!("`{key}` is ");
            assert!(error.starts_with(&told) && error.contains("in config.json"), "{error}");
        }
        assert!(options.get_or("d", 0.0).is_ok() && options.get_or("e", 0usize).is_ok());
        assert!(options.per_block("a", 1, 4).is_err());
        let nested = json!({"model": {"layers": 1u64 << 40}, "seed": u64::MAX});
        let error = check_sizes(&nested, &["layers"], "x.json").unwrap_err().to_string();
        assert!(error.contains("`layers` is 1099511627776 in x.json"), "{error}");
        assert!(check_sizes(&nested, &["width"], "x.json").is_ok());
    }

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
