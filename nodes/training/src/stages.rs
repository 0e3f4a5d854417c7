//! Several trainings in one file, one after the other: from nothing to a bundle by one command.
//!
//! `{"stages": [{"name": "vae", …}, …], "common": {…}, "budgets": {"smoke": {"common": {…}, "vae": {"steps": 3}}}, "budget": "smoke"}`:
//! a stage is a configuration with a name. What it does not say is in `common`, and what the budget says of it, or of all,
//! counts more than either.

use std::path::Path;

use serde_json::{Map, Value};

use crate::config::Config;
use crate::error::{Error, Result};

/// A training with its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Empty for the only one of a file that is a configuration itself.
    pub name: String,
    pub config: Config,
}

/// Keys of a file of stages.
const KEYS: [&str; 4] = ["stages", "common", "budgets", "budget"];

/// The trainings of the JSON text `text`, of one configuration or of several; relative paths begin at `folder`.
///
/// # Errors
/// It is no JSON, a stage or a budget is named that there is none of, or a configuration is wrong.
pub fn read(text: &str, folder: &Path) -> Result<Vec<Stage>> {
    let json: Value = serde_json::from_str(text)
        .map_err(|error| Error::Config(format!("the configuration is no JSON: {error}")))?;
    if json.get("stages").is_none() {
        let config = Config::of_json(json, folder)?;
        return Ok(vec![Stage { name: String::new(), config }]);
    }
    let wrong = |sentence: String| Err(Error::Config(sentence));
    let whole = json.as_object().cloned().unwrap_or_default();
    if let Some(key) = whole.keys().find(|key| !KEYS.contains(&key.as_str())) {
        let keys = KEYS.join("\", \"");
        return wrong(format!("there is no \"{key}\" beside \"stages\"; there are \"{keys}\""));
    }
    let stages = json["stages"].as_array().cloned().unwrap_or_default();
    if stages.is_empty() {
        return wrong("\"stages\" is a list of one or more configurations".to_owned());
    }
    let name = |stage: &Value| stage["name"].as_str().unwrap_or_default().to_owned();
    let names: Vec<String> = stages.iter().map(name).collect();
    if let Some(place) = names.iter().position(String::is_empty) {
        return wrong(format!("stage number {} has no \"name\"", place + 1));
    }
    let budget = match json.get("budget").map(|budget| budget.as_str()) {
        None => Map::new(),
        Some(name) => {
            let name = name.unwrap_or_default();
            let budgets = json["budgets"].as_object().cloned().unwrap_or_default();
            let known = budgets.keys().cloned().collect::<Vec<_>>().join("\", \"");
            match budgets.get(name).and_then(Value::as_object) {
                Some(budget) => budget.clone(),
                None => {
                    return wrong(format!("there is no budget \"{name}\"; there are \"{known}\""));
                }
            }
        }
    };
    if let Some(key) = budget.keys().find(|key| *key != "common" && !names.contains(key)) {
        let names = names.join("\", \"");
        return wrong(format!(
            "the budget names \"{key}\", which is no stage; there are \"{names}\""
        ));
    }
    let mut found = Vec::new();
    for (stage, name) in stages.into_iter().zip(names) {
        let mut config = json["common"].clone();
        if !config.is_object() {
            config = Value::Object(Map::new());
        }
        for more in [Some(&stage), budget.get("common"), budget.get(&name)].into_iter().flatten() {
            merge(&mut config, more);
        }
        if let Some(config) = config.as_object_mut() {
            config.shift_remove("name");
        }
        let config = Config::of_json(config, folder)
            .map_err(|error| Error::Config(format!("stage \"{name}\": {error}")))?;
        found.push(Stage { name, config });
    }
    Ok(found)
}

/// Puts what `more` says over what `json` says, also within.
fn merge(json: &mut Value, more: &Value) {
    match (json, more) {
        (Value::Object(json), Value::Object(more)) => {
            for (key, value) in more {
                merge(json.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (json, more) => *json = more.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn file(budget: &str) -> String {
        json!({
            "common": {"model": "sd", "pictures": "world", "resolution": 128, "optimiser": {"learning_rate": 0.5}},
            "stages": [
                {"name": "vae", "task": "vae", "anew": true, "output": "made/vae", "steps": 100},
                {"name": "look", "task": "lora", "output": "a.safetensors", "optimiser": {"clip_norm": 2.0}},
            ],
            "budgets": {"smoke": {"common": {"batch": 3}, "vae": {"steps": 2}}, "odd": {"unet": {"steps": 1}}},
            "budget": budget,
        })
        .to_string()
    }

    #[test]
    fn a_budget_counts_more_than_a_stage_and_a_stage_more_than_what_is_common() {
        let stages = read(&file("smoke"), Path::new("/f")).unwrap();
        let [vae, look] = &stages[..] else { panic!("{stages:?}") };
        assert_eq!((vae.name.as_str(), vae.config.steps, vae.config.batch), ("vae", 2, 3));
        assert!(vae.config.anew && vae.config.output == Path::new("/f/made/vae"));
        assert_eq!((look.config.steps, look.config.resolution), (1000, 128));
        let optimiser = &look.config.optimiser;
        assert_eq!((optimiser.learning_rate, optimiser.clip_norm), (0.5, 2.0));
    }

    #[test]
    fn what_is_wrong_is_told() {
        let told = |text: &str| read(text, Path::new("")).unwrap_err().to_string();
        assert!(
            told(&file("odd")).contains("\"unet\", which is no stage; there are \"vae\", \"look\"")
        );
        assert!(told(&file("cpu")).contains("no budget \"cpu\"; there are \"smoke\", \"odd\""));
        assert!(
            told(r#"{"stages": [{"task": "vae"}]}"#).contains("stage number 1 has no \"name\"")
        );
        let unknown = told(
            r#"{"stages": [{"name": "a", "task": "vae", "model": "m", "pictures": "p", "output": "o", "stepz": 1}]}"#,
        );
        assert!(unknown.contains("stage \"a\": there is no \"stepz\""), "{unknown}");
    }
}
