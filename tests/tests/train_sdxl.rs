//! `kosmograph train` on a small SDXL of random weights: a U-Net with a pooled vector and sizes, and two text encoders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use kosmograph_models::Weights;
use kosmograph_models::clip::text::{ClipText, ClipTextConfig};
use kosmograph_models::lora::Lora;
use kosmograph_models::stable_diffusion::checkpoint::Checkpoint;
use kosmograph_tests::{Run, repository};
use serde_json::{Value, json};

/// Numbers that keep the size of what goes through them, of all tensors that `load` asks for; norms are 1, biases 0.
fn random(load: impl FnOnce(&Weights) -> Result<()>, path: &Path, mut seed: u32) -> Result<()> {
    let recording = Weights::recording();
    load(&recording)?;
    let mut tensors = BTreeMap::new();
    for (name, shape) in recording.recorded() {
        let inputs = shape.iter().skip(1).product::<usize>().max(1) as f32;
        let is_matrix = shape.len() > 1;
        let values: Vec<f32> = (0..shape.iter().product::<usize>())
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let even = (seed >> 8) as f32 / 8_388_608.0 - 1.0;
                match is_matrix {
                    true => even * (3.0 / inputs).sqrt(),
                    false => f32::from(u8::from(name.ends_with("weight"))),
                }
            })
            .collect();
        tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
    }
    kosmograph_training::files::write(path, &tensors, &BTreeMap::new())?;
    Ok(())
}

/// A folder in diffusers' layout, with the bundled model's autoencoder and tokenizer.
fn model(folder: &Path) -> Result<PathBuf> {
    let sdxl = folder.join("sdxl");
    let tiny = repository().join("models/tiny/sd");
    for part in
        ["unet", "vae", "scheduler", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"]
    {
        std::fs::create_dir_all(sdxl.join(part))?;
    }
    std::fs::write(sdxl.join("model_index.json"), "{}")?;
    for (from, to) in [
        ("vae", "vae"),
        ("scheduler", "scheduler"),
        ("tokenizer", "tokenizer"),
        ("tokenizer", "tokenizer_2"),
    ] {
        for entry in std::fs::read_dir(tiny.join(from))? {
            let entry = entry?;
            std::fs::copy(entry.path(), sdxl.join(to).join(entry.file_name()))?;
        }
    }
    // The U-Net of the golden case, and text encoders as wide as it takes.
    let golden = repository().join("tests/golden/sdxl_unet");
    let described: Value = serde_json::from_slice(&std::fs::read(golden.join("config.json"))?)?;
    std::fs::write(sdxl.join("unet/config.json"), described["config"].to_string())?;
    let weights = sdxl.join("unet/diffusion_pytorch_model.safetensors");
    std::fs::copy(golden.join("weights.safetensors"), weights)?;
    for (name, width, heads, act, projection) in
        [("text_encoder", 16, 2, "quick_gelu", None), ("text_encoder_2", 24, 3, "gelu", Some(24))]
    {
        let described = json!({
            "vocab_size": 714, "hidden_size": width, "intermediate_size": 4 * width,
            "num_hidden_layers": 3, "num_attention_heads": heads, "max_position_embeddings": 77,
            "hidden_act": act, "eos_token_id": 713,
        });
        let mut config: ClipTextConfig = serde_json::from_value(described.clone())?;
        config.text_projection = projection;
        let folder = sdxl.join(name);
        std::fs::write(folder.join("config.json"), described.to_string())?;
        let load = |weights: &Weights| Ok(ClipText::load(&config, weights).map(drop)?);
        random(load, &folder.join("model.safetensors"), width as u32)?;
    }
    Ok(sdxl)
}

fn config(folder: &Path, more: &Value) -> Result<PathBuf> {
    let pictures = folder.join("pictures");
    std::fs::create_dir_all(&pictures)?;
    let examples = repository().join("models/tiny/examples");
    std::fs::copy(examples.join("monster-1.png"), pictures.join("monster-1.png"))?;
    std::fs::write(pictures.join("monster-1.txt"), "a monster\n")?;
    let mut config = json!({
        "task": "lora", "model": model(folder)?, "pictures": "pictures", "resolution": 64,
        "output": "made/xl.safetensors", "steps": 3, "batch": 2, "flip": true,
        "optimiser": {"learning_rate": 0.01},
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    let path = folder.join("train.json");
    std::fs::write(&path, config.to_string())?;
    Ok(path)
}

#[test]
fn a_lora_of_sdxl_is_trained_and_read_again() -> Result<()> {
    let mut made = Vec::new();
    for recompute in [false, true] {
        let folder = tempfile::tempdir()?;
        let more = json!({
            "lora": {"rank": 2, "alpha": 1, "layers": ["to_q", "to_v", "conv1", "time_emb_proj"],
                     "text_encoder_layers": ["q_proj", "fc1"]},
            "recompute": recompute, "samples": {"every": 3, "prompts": ["a monster"], "steps": 2},
        });
        let config = config(folder.path(), &more)?;
        Run::new("train").with_plugins().arg(&config).expect_success();
        let sample = folder.path().join("made/xl.samples/000003-0.png");
        ensure!(image::image_dimensions(&sample)? == (64, 64));
        let output = folder.path().join("made/xl.safetensors");
        made.push(std::fs::read(&output)?);

        let lora = Lora::open(&output)?;
        ensure!(lora.unknown.is_empty(), "{:?}", lora.unknown);
        let weights = Weights::open(&output, &Device::Cpu)?;
        let ups: Vec<String> =
            weights.names().into_iter().filter(|name| name.ends_with(".lora_up.weight")).collect();
        // kohya's names for SDXL: the original code's blocks, and text encoders by number.
        for module in [
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
            "lora_unet_middle_block_1_transformer_blocks_2_attn2_to_v",
            "lora_unet_output_blocks_5_1_transformer_blocks_1_attn2_to_q",
            "lora_unet_input_blocks_1_0_in_layers_2",
            "lora_unet_output_blocks_0_0_emb_layers_1",
            "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
            "lora_te2_text_model_encoder_layers_2_mlp_fc1",
        ] {
            ensure!(ups.contains(&format!("{module}.lora_up.weight")), "no {module} in {ups:?}");
        }
        let read = lora.unet.len() + lora.text_encoder.len() + lora.text_encoder_2.len();
        ensure!(read == ups.len(), "{read} of {} layers are read again", ups.len());
        // All but the last layer of L, and what is behind its second last, has moved.
        let mut still = Vec::new();
        for name in &ups {
            let up = weights.get(name, weights.shape(name).context("a shape")?)?;
            if up.abs()?.max_all()?.to_scalar::<f32>()? == 0.0 {
                still.push(name.as_str());
            }
        }
        let is_last_of_l = |name: &&str| name.starts_with("lora_te1_text_model_encoder_layers_2");
        ensure!(still.iter().all(is_last_of_l) && still.len() == 2, "{still:?}");

        // Each layer of the file has its place in the model, of that shape.
        let checkpoint = Checkpoint::open(&folder.path().join("sdxl"), &Device::Cpu)?;
        let (_, _, unet) = checkpoint.unet()?;
        for layer in lora.unet.keys() {
            ensure!(unet.shape(&format!("{layer}.weight")).is_some(), "{layer} is no layer");
        }
    }
    ensure!(made[0] == made[1], "blocks that are computed again give something else");
    Ok(())
}

#[test]
fn what_is_not_trained_of_sdxl_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = config(folder.path(), &json!({"task": "dreambooth", "output": "made/unet"}))?;
    Run::new("train")
        .with_plugins()
        .arg(&config)
        .expect_code(3)
        .stderr_contains("this is SDXL, of which a LoRA alone is trained");
    // A U-Net of SDXL with the text encoder of Stable Diffusion 1.
    std::fs::remove_dir_all(folder.path().join("sdxl/text_encoder_2"))?;
    let text = std::fs::read_to_string(&config)?.replace("dreambooth", "lora");
    std::fs::write(&config, text.replace("made/unet", "made/xl.safetensors"))?;
    Run::new("train")
        .with_plugins()
        .arg(&config)
        .expect_code(3)
        .stderr_contains("two text encoders and six sizes (SDXL's) is trained, and 1 were found");
    ensure!(!folder.path().join("made").exists());
    Ok(())
}
