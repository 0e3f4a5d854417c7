//! "check/1": embeddings that do not fit the encoder they are for, found in the files' headers.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::Device;
use kosmograph_models::stable_diffusion::checkpoint::Checkpoint;
use node::{Check, Context, Inputs, Remark, Result};
use serde_json::Value as Json;

use crate::check_families;
use crate::embedding::{Embedding, read_embedding};
use crate::loaders::{CLIPLoader, CheckpointLoaderSimple, DiffusersLoader};
use crate::lora::LoraLoader;
use crate::text::{CLIPSetLastLayer, CLIPTextEncode};

/// Holds the width of every embedding that a prompt mentions against that of the prompt's encoder, and what a model is
/// sampled with against the model.
pub struct Fits;

impl Check for Fits {
    fn check(_cx: &Context<'_>, plan: &Json) -> Result<Vec<Remark>> {
        let mut remarks = check_families::remarks(plan);
        for (number, step) in plan["steps"].as_array().into_iter().flatten().enumerate() {
            let text = &step["inputs"]["text"];
            let files = text["files"].as_object().into_iter().flat_map(|files| files.values());
            let files: BTreeSet<&str> = files.filter_map(Json::as_str).collect();
            if step["class"] != CLIPTextEncode::CLASS.name || files.is_empty() {
                continue;
            }
            let Some(width) = encoder(plan, &step["inputs"]["clip"]).and_then(width) else {
                continue;
            };
            for file in files {
                let message = match read_embedding(Path::new(file), width) {
                    Embedding::Fits(_) => continue,
                    Embedding::Unfit(sentence) => format!("{sentence}; it is left out"),
                };
                let input = "text".to_owned();
                remarks.push(Remark { step: number, input, message, is_refused: false });
            }
        }
        Ok(remarks)
    }
}

/// The file of the text encoder that comes from `input`, through what leaves its width as it is. None
/// where another library's node gives it.
fn encoder<'a>(plan: &'a Json, input: &'a Json) -> Option<&'a Path> {
    let mut input = input;
    loop {
        let from = usize::try_from(input["from"][0].as_u64()?).ok()?;
        let step = &plan["steps"][from];
        let inputs = &step["inputs"];
        let class = step["class"].as_str()?;
        let named = |name: &str| inputs[name]["file"].as_str().map(Path::new);
        if class == LoraLoader::CLASS.name || class == CLIPSetLastLayer::CLASS.name {
            // Links lead to earlier steps, so this ends.
            input = &inputs["clip"];
        } else if class == CheckpointLoaderSimple::CLASS.name {
            return named("ckpt_name");
        } else if class == DiffusersLoader::CLASS.name {
            return named("model_path");
        } else if class == CLIPLoader::CLASS.name {
            return named("clip_name");
        } else {
            return None;
        }
    }
}

/// The width of a checkpoint's text encoder. What is wrong with the file its loader tells.
fn width(path: &Path) -> Option<usize> {
    let checkpoint = Checkpoint::open(path, &Device::Cpu).ok()?;
    let (config, _) = checkpoint.clip_text().ok()?;
    Some(config.hidden_size)
}
