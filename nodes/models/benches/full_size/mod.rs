//! Stable Diffusion 1.5, SDXL's U-Net and Kosmos-G in their real shapes, on random weights in memory.
//!
//! Each benchmark takes what it needs, so some of it is unused in each.
#![allow(dead_code)]

use candle_core::{DType, Device, Tensor};
use kosmograph_models::clip::text::ClipTextConfig;
use kosmograph_models::kosmos::mllm::MllmConfig;
use kosmograph_models::stable_diffusion::unet::UNetConfig;
use kosmograph_models::stable_diffusion::vae::VaeConfig;
use kosmograph_models::{Result, Weights};
use rayon::prelude::*;
use serde_json::json;

pub fn unet() -> UNetConfig {
    let config = UNetConfig::from_value(&json!({"cross_attention_dim": 768}), "SD 1.5's");
    config.expect("a configuration")
}

/// SDXL's base, as its unet/config.json says it.
pub fn sdxl_unet() -> UNetConfig {
    let config = json!({
        "cross_attention_dim": 2048, "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [5, 10, 20], "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": true, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    });
    UNetConfig::from_value(&config, "SDXL's").expect("a configuration")
}

pub fn vae() -> VaeConfig {
    let (down, up) = (["DownEncoderBlock2D"; 4], ["UpDecoderBlock2D"; 4]);
    let config = json!({
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
        "down_block_types": down, "up_block_types": up,
    });
    VaeConfig::from_value(&config, "SD 1.5's").expect("a configuration")
}

pub fn clip_text() -> ClipTextConfig {
    serde_json::from_value(json!({
        "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "max_position_embeddings": 77,
    }))
    .expect("a configuration")
}

pub fn mllm() -> MllmConfig {
    serde_json::from_value(json!({
        "vocab_size": 65037, "embed_dim": 2048, "layers": 24, "heads": 32, "ffn_dim": 8192,
        "layer_norm_eps": 1e-5,
    }))
    .expect("a configuration")
}

/// Values within ±`size`, cheap to make and without zeros or denormals.
pub fn random(shape: &[usize], size: f32) -> Tensor {
    let mut values = vec![0f32; shape.iter().product()];
    values.par_chunks_mut(1 << 16).enumerate().for_each(|(chunk, values)| {
        let mut state = chunk as u32 ^ 0x9e37_79b9;
        for value in values {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *value = ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * size;
        }
    });
    Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor")
}

/// Random weights of what `load` loads, in memory, in the type `dtype`; a network of them is on `device`.
pub fn weights<N>(load: impl Fn(&Weights) -> Result<N>, dtype: DType, device: &Device) -> Weights {
    let recording = Weights::recording();
    load(&recording).expect("the shapes");
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let fan_in: usize = shape.iter().skip(1).product();
        let tensor = random(&shape, (fan_in as f32).powf(-0.5));
        let tensor = tensor.to_dtype(dtype).expect("another type");
        (name, tensor)
    };
    let tensors = recording.recorded().into_iter().map(tensor).collect();
    Weights::from_tensors("random weights", tensors, device)
}

/// Processor time of this process so far, user and system, in seconds: what other work on the machine
/// does not change. Nothing where the system does not tell.
pub fn processor() -> [f64; 2] {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> = stat.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // Without the name and the state, which are no numbers: fields 14 and 15, in hundredths.
    [11, 12].map(|field| fields.get(field).map_or(0.0, |ticks| ticks / 100.0))
}
