//! Configurations read off the weights: what diffusers writes to `config.json` and a single file lacks.
//!
//! Shapes say everything but the number of attention heads and of norm groups, which leave no trace in
//! them. There the family's own numbers hold (8 heads, 32 groups; CLIP's heads are 64 wide), unless the
//! file says otherwise: the header of a safetensors file may have an entry `kosmograph.config`, a JSON
//! object of objects named as the folders of a diffusers checkpoint, whose options go before.

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::files::weights::Weights;

/// The options of the part `part` ("unet", "vae", "text_encoder", "controlnet", "scheduler"), those in
/// the file's header before `inferred`.
pub(super) fn with_header(mut inferred: Value, weights: &Weights, part: &str) -> Result<Value> {
    let Some(text) = weights.metadata("kosmograph.config") else { return Ok(inferred) };
    let wrong = |problem: String| Error::Config {
        file: format!("kosmograph.config in the header of {}", weights.origin()),
        problem,
    };
    let config: Value = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    match (config.get(part), inferred.as_object_mut()) {
        (None, _) => (),
        (Some(Value::Object(given)), Some(inferred)) => {
            inferred.extend(given.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        _ => return Err(wrong(format!("`{part}` is not a JSON object"))),
    }
    Ok(inferred)
}

/// What U-Net and ControlNet have in common; `weights` under diffusers' names.
fn encoder(weights: &Weights) -> Result<Value> {
    let mut channels = Vec::new();
    let (mut types, mut layers, mut transformers) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(output) =
        output_channels(weights, &format!("down_blocks.{}.resnets.0.conv1.weight", channels.len()))?
    {
        let level = weights.sub(format!("down_blocks.{}", channels.len()));
        let attends = level.has("attentions.0");
        channels.push(output);
        layers.push(count(&level, "resnets"));
        transformers.push(depths(&level, layers[layers.len() - 1]));
        types.push(if attends { "CrossAttnDownBlock2D" } else { "DownBlock2D" });
    }
    let conv_in = shape(weights, "conv_in.weight", 4)?;
    let middle = weights.sub("mid_block");
    let middle_layers = depths(&middle, 1)[0];
    let middle = match (middle.has("attentions.0"), middle.has("resnets.0")) {
        (true, _) => json!("UNetMidBlock2DCrossAttn"),
        (false, true) => json!("UNetMidBlock2D"),
        (false, false) => Value::Null,
    };
    let is_linear =
        tensor_of(weights, ".proj_in.weight").is_some_and(|projection| projection.len() == 2);
    // SDXL's heads are 64 wide, as Stable Diffusion 2's; before that there were 8 of them.
    let heads: Vec<usize> = channels
        .iter()
        .map(|&channels| match is_linear {
            true if channels % 64 == 0 => channels / 64,
            true => 1,
            false => 8,
        })
        .collect();
    let vector = match weights.shape("add_embedding.linear_1.weight") {
        Some(_) => Some(shape(weights, "add_embedding.linear_1.weight", 2)?[1]),
        None => None,
    };
    let text = match (tensor_of(weights, ".attn2.to_k.weight"), vector) {
        (Some(shape), _) if shape.len() == 2 && shape[1] > 0 => shape[1],
        // A ControlNet without any attention does not read the context: it is as wide as its family's.
        (None, Some(2560)) => 1280,
        (None, Some(_)) => 2048,
        (None, None) => 768,
        (Some(_), _) => {
            let name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight";
            shape(weights, name, 2)?[1]
        }
    };
    let mut config = json!({
        "in_channels": conv_in[1],
        "block_out_channels": channels,
        "down_block_types": types,
        "mid_block_type": middle,
        "mid_block_transformer_layers": middle_layers,
        "layers_per_block": layers,
        "transformer_layers_per_block": transformers,
        "cross_attention_dim": text,
        "use_linear_projection": is_linear,
        "attention_head_dim": heads,
    });
    if let Some(width) = vector {
        config["addition_embed_type"] = "text_time".into();
        config["addition_time_embed_dim"] = 256.into();
        config["projection_class_embeddings_input_dim"] = width.into();
    }
    Ok(config)
}

/// How many blocks the transformer behind each of `layers` ResNet blocks has; 1 where there is no transformer.
fn depths(weights: &Weights, layers: usize) -> Vec<usize> {
    let depth = |j: usize| match weights.sub(format!("attentions.{j}")) {
        transformer if transformer.has("proj_in") => count(&transformer, "transformer_blocks"),
        _ => 1,
    };
    (0..layers).map(depth).collect()
}

/// The shape of the first tensor whose name ends so.
fn tensor_of(weights: &Weights, end: &str) -> Option<Vec<usize>> {
    weights.names().iter().find(|name| name.ends_with(end)).and_then(|name| weights.shape(name))
}

pub(super) fn unet(weights: &Weights) -> Result<Value> {
    let mut config = encoder(weights)?;
    let levels = config["block_out_channels"].as_array().map_or(0, Vec::len);
    let up = |level: usize| match weights.has(&format!("up_blocks.{level}.attentions.0")) {
        true => "CrossAttnUpBlock2D",
        false => "UpBlock2D",
    };
    config["up_block_types"] = (0..levels).map(up).collect();
    let layers = |level: usize| count(weights, &format!("up_blocks.{level}.resnets"));
    let up = |level: usize| depths(&weights.sub(format!("up_blocks.{level}")), layers(level));
    config["reverse_transformer_layers_per_block"] = (0..levels).map(up).collect();
    config["out_channels"] = shape(weights, "conv_out.weight", 4)?[0].into();
    with_header(config, weights, "unet")
}

/// Whether the residuals are pooled leaves no trace in the shapes: `pools` is what the file says elsewhere.
pub(super) fn control_net(weights: &Weights, pools: bool) -> Result<Value> {
    let mut config = encoder(weights)?;
    let hint = weights.sub("controlnet_cond_embedding");
    let first = shape(&hint, "conv_in.weight", 4)?;
    let mut channels = vec![first[0]];
    while let Some(output) =
        output_channels(&hint, &format!("blocks.{}.weight", 2 * channels.len() - 1))?
    {
        channels.push(output);
    }
    config["conditioning_channels"] = first[1].into();
    config["conditioning_embedding_out_channels"] = channels.into();
    config["global_pool_conditions"] = pools.into();
    if weights.has("control_add_embedding") {
        let types = shape(weights, "task_embedding", 2)?[0];
        let features = shape(weights, "control_add_embedding.linear_1.weight", 2)?[1];
        config["num_control_type"] = types.into();
        config["num_trans_layer"] = count(weights, "transformer_layes").into();
        config["addition_time_embed_dim"] = (features / types).into();
    }
    with_header(config, weights, "controlnet")
}

/// Latents times `scale` are what the family's U-Net denoises: no shape tells it.
pub(super) fn vae(weights: &Weights, scale: f64) -> Result<Value> {
    let mut channels = Vec::new();
    while let Some(output) = output_channels(
        weights,
        &format!("encoder.down_blocks.{}.resnets.0.conv1.weight", channels.len()),
    )? {
        channels.push(output);
    }
    let levels = channels.len();
    let config = json!({
        "block_out_channels": channels,
        "layers_per_block": count(&weights.sub("encoder.down_blocks.0"), "resnets"),
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
        "in_channels": shape(weights, "encoder.conv_in.weight", 4)?[1],
        "out_channels": shape(weights, "decoder.conv_out.weight", 4)?[0],
        "latent_channels": shape(weights, "decoder.conv_in.weight", 4)?[1],
        "norm_num_groups": 32,
        "scaling_factor": scale,
        "use_quant_conv": weights.has("quant_conv"),
        "use_post_quant_conv": weights.has("post_quant_conv"),
        "mid_block_add_attention": weights.has("encoder.mid_block.attentions.0"),
    });
    with_header(config, weights, "vae")
}

/// `weights` with `text_model.`, of the part "text_encoder" or, of SDXL's larger one, "text_encoder_2".
pub(super) fn clip_text(weights: &Weights, part: &str) -> Result<Value> {
    let model = weights.sub("text_model");
    let tokens = shape(&model, "embeddings.token_embedding.weight", 2)?;
    let mlp = shape(&model, "encoder.layers.0.mlp.fc1.weight", 2)?;
    let config = json!({
        "vocab_size": tokens[0],
        "hidden_size": tokens[1],
        "intermediate_size": mlp[0],
        "num_hidden_layers": count(&model, "encoder.layers"),
        "num_attention_heads": (tokens[1] / 64).max(1),
        "max_position_embeddings": shape(&model, "embeddings.position_embedding.weight", 2)?[0],
        "eos_token_id": 49407,
        "hidden_act": if part == "text_encoder_2" { "gelu" } else { "quick_gelu" },
    });
    with_header(config, weights, part)
}

/// How many numbered modules there are below `name`.
fn count(weights: &Weights, name: &str) -> usize {
    (0..).take_while(|i| weights.has(&format!("{name}.{i}"))).count()
}

/// The output channels of a convolution, if there is one of this name.
fn output_channels(weights: &Weights, name: &str) -> Result<Option<usize>> {
    match weights.shape(name) {
        Some(_) => Ok(Some(shape(weights, name, 4)?[0])),
        None => Ok(None),
    }
}

/// The shape of a tensor that has `axes` axes, none of them empty.
fn shape(weights: &Weights, name: &str, axes: usize) -> Result<Vec<usize>> {
    match weights.shape(name) {
        Some(shape) if shape.len() == axes && !shape.contains(&0) => Ok(shape),
        Some(found) => Err(Error::Axes {
            file: weights.origin().to_owned(),
            name: name.to_owned(),
            axes,
            found,
        }),
        None => Err(Error::MissingTensor {
            file: weights.origin().to_owned(),
            name: name.to_owned(),
            nearest: None,
        }),
    }
}
