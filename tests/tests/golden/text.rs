//! CLIP: the text encoder, its tokenizer, the vision transformer with projection.

use anyhow::{Context, Result};
use kosmograph_models::Weights;
use kosmograph_models::clip::text::{ClipText, ClipTextConfig};
use kosmograph_models::clip::vision::{ClipVision, ClipVisionConfig};
use kosmograph_models::text::clip_tokens::ClipTokenizer;
use serde_json::{Value, json};

use crate::case::{Case, read_json, read_tensors, scaled_weights};
use crate::kosmos::check_names;

fn load_text(config: &Value, weights: &Weights) -> Result<ClipText> {
    let config: ClipTextConfig = serde_json::from_value(config["config"].clone())?;
    Ok(ClipText::load(&config, weights)?)
}

fn load_vision(config: &Value, weights: &Weights) -> Result<ClipVision> {
    let config: ClipVisionConfig = serde_json::from_value(config["config"].clone())?;
    Ok(ClipVision::load(&config, weights)?)
}

pub fn clip_text(case: &mut Case) -> Result<()> {
    let weights = case.weights()?;
    let model = load_text(&case.config, &weights)?;
    weights.finish(&[])?;
    for rows in ["full", "short"] {
        let ids = case.input(&format!("{rows}_ids"))?;
        let last = model.forward(&ids)?;
        case.check(&format!("{rows}.last_hidden_state"), &last)?;
        case.check(&format!("{rows}.pooler_output"), &model.pool(&ids, &last)?)?;
        case.check(&format!("{rows}.penultimate_raw"), &model.hidden_state(&ids, 2)?)?;
        case.check(&format!("{rows}.clip_skip2_final_ln"), &model.forward_skip(&ids, 2)?)?;
    }
    Ok(())
}

pub fn clip_vision_projection(case: &mut Case) -> Result<()> {
    let weights = case.weights()?;
    let model = load_vision(&case.config, &weights)?;
    weights.finish(&[])?;
    let pixels = case.input("pixels")?;
    case.check("last_hidden_state", &model.last_hidden_state(&pixels)?)?;
    case.check("image_embeds", &model.image_embeds(&pixels)?)
}

pub fn clip_tokens(case: &mut Case) -> Result<()> {
    let tokenizer = ClipTokenizer::clip()?;
    let tokens = case.json("tokens.json")?;
    let cases = tokens["cases"].as_array().context("tokens.json has no cases")?;
    for expected in cases {
        let text = expected["text"].as_str().context("a case of tokens.json has no text")?;
        let ids: Vec<u32> = serde_json::from_value(expected["ids"].clone())?;
        let padded: Vec<u32> = serde_json::from_value(expected["ids_padded_77"].clone())?;
        case.check_equal(&format!("{text:?}"), &tokenizer.encode(text)?, &ids);
        let row = tokenizer.encode_row(text, padded.len())?;
        case.check_equal(&format!("{text:?}, padded"), &row, &padded);
    }
    Ok(())
}

pub fn eps_probe(case: &mut Case) -> Result<()> {
    for name in ["clip_text", "clip_vision_projection"] {
        let folder = case.folder.join("..").join(name);
        let probe = &case.config["cases"][name];
        let file = probe["weights_from"].as_str().context("weights_from is missing")?;
        let weights = scaled_weights(&case.file(file), &probe["scaled_keys"])?;
        let config = read_json(&folder.join("config.json"))?;
        let inputs = read_tensors(&folder.join("inputs.safetensors"))?;
        let input = |name: &str| inputs.get(name).context("an input of the named case is missing");
        if name == "clip_text" {
            let hidden = load_text(&config, &weights)?.forward(input("full_ids")?)?;
            case.check("clip_text.last_hidden_state", &hidden)?;
        } else {
            let model = load_vision(&config, &weights)?;
            let (pixels, key) = (input("pixels")?, "clip_vision_projection.last_hidden_state");
            case.check(key, &model.last_hidden_state(pixels)?)?;
            let embeds = model.image_embeds(pixels)?;
            case.check("clip_vision_projection.image_embeds", &embeds)?;
        }
    }
    Ok(())
}

/// The names and shapes of Stable Diffusion 1.5's text encoder are those that its sizes ask for.
pub fn key_lists(case: &mut Case) -> Result<()> {
    let list = case.json("sd15_clip_text_diffusers.json")?;
    let config: ClipTextConfig = serde_json::from_value(json!({
        "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
    }))?;
    let weights = Weights::recording();
    ClipText::load(&config, &weights)?;
    check_names(case, "sd15_clip_text_diffusers", &weights.recorded(), &list, |_| false)
}
