//! The configurations beside weights: diffusers' and transformers' JSON, the original code's YAML.

use std::path::Path;

use saphyr_parser::{Event, Parser};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::CLIP_SIZES;
use crate::error::{Error, Result};
use crate::files::diffusers_config::check_sizes;
use crate::files::python_json;

/// What the original code's configuration says of `key`, where it is there and does. What else it says, the
/// networks' shapes, is read off the weights.
pub(super) fn stated(yaml: &Path, key: &str) -> Result<Option<String>> {
    if !yaml.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(yaml)
        .map_err(|source| Error::Io { path: yaml.to_owned(), source })?;
    let mut is_value = false;
    for event in Parser::new_from_str(&text) {
        let (event, _) = event.map_err(|error| Error::Config {
            file: yaml.display().to_string(),
            problem: format!("line {}: {}", error.marker().line(), error.info()),
        })?;
        match event {
            Event::Scalar(value, ..) if is_value => return Ok(Some(value.into_owned())),
            Event::Scalar(found, ..) => is_value = found == key,
            _ => is_value = false,
        }
    }
    Ok(None)
}

/// The part of a pipeline that diffusers' or transformers' class of this name is, for those that are not
/// one another.
pub(super) fn part_of_class(class: &str) -> Option<&'static str> {
    match class {
        "UNet2DConditionModel" => Some("unet"),
        "AutoencoderKL" => Some("vae"),
        "CLIPTextModel" | "CLIPTextModelWithProjection" => Some("text_encoder"),
        "CLIPVisionModel" | "CLIPVisionModelWithProjection" => Some("image_encoder"),
        "ControlNetModel" => Some("controlnet"),
        _ => None,
    }
}

/// A file of JSON, and its name for errors.
pub(super) fn json_of(path: &Path) -> Result<(Value, String)> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let file = path.display().to_string();
    Ok((python_json::parse(&text, &file)?, file))
}

pub(super) fn deserialized<C: DeserializeOwned>(config: Value, file: &str) -> Result<C> {
    check_sizes(&config, &CLIP_SIZES, file)?;
    C::deserialize(config)
        .map_err(|error| Error::Config { file: file.to_owned(), problem: error.to_string() })
}
