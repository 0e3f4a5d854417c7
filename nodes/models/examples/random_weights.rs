//! Writes models of random weights in the real shapes, to measure memory and time without a download.
//!
//! ```sh
//! cargo run --release -p kosmograph-models --example random_weights -- sd15 OUT.safetensors --dtype f16
//! ```
//!
//! Every matrix is drawn so that what goes through it keeps its size (uniform, variance 1/fan-in),
//! norms are 1, biases 0: what the network draws is noise, and finite.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::quantized::gguf_file::{self, Value as Metadata};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use clap::{Parser, ValueEnum};
use flate2::read::GzDecoder;
use half::f16;
use kosmograph_models::Weights;
use kosmograph_models::clip::text::{ClipText, ClipTextConfig};
use kosmograph_models::clip::vision::{ClipVision, ClipVisionConfig};
use kosmograph_models::kosmos::aligner::Reconstruction;
use kosmograph_models::kosmos::{KosmosConfig, KosmosG};
use kosmograph_models::stable_diffusion::unet::{UNet, UNetConfig};
use kosmograph_models::stable_diffusion::vae::{Vae, VaeConfig};
use rayon::prelude::*;
use serde_json::{Value, json};

/// Writes a model of random weights in its real shape.
#[derive(Parser)]
struct Arguments {
    kind: Kind,
    /// The folder or file that is made
    out: PathBuf,
    #[arg(long, default_value = "f32")]
    dtype: Dtype,
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// Stable Diffusion 1.5 as one file
    Sd15,
    /// Its inpainting variant, whose U-Net has nine input channels, as one file
    Sd15Inpaint,
    /// Stable Diffusion 1.5 as a diffusers folder
    Sd15Diffusers,
    /// SDXL's base model as one file
    Sdxl,
    /// SDXL's refiner as one file
    SdxlRefiner,
    /// Stable Diffusion's autoencoder, as one file
    Vae,
    /// A ControlNet for it, as one file
    Controlnet,
    /// A LoRA for its U-Net's and text encoder's attention in kohya's naming, rank 16, as one file
    Lora,
    /// A LoRA of the same kind for SDXL's U-Net and both of its text encoders
    LoraSdxl,
    /// The picture half of OpenCLIP's ViT-H, which IP-Adapters see by
    ClipVisionH,
    /// The picture half of its ViT-bigG, for SDXL's Revision
    ClipVisionG,
    /// An IP-Adapter of the plain kind ("base") for Stable Diffusion 1.5, behind ViT-H
    IpAdapter,
    /// The same for SDXL
    IpAdapterSdxl,
    /// ESRGAN's upscaler for four times the size, in Real-ESRGAN's naming
    Esrgan,
    /// Kosmos-G's full size, as a folder for KosmosLoader; its tokenizer is the bundled model's
    KosmosG,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    F16,
    /// Numbers of eight bits, in fp8 files without scales
    F8,
    /// A GGUF file: matrices in Q8_0, what is no matrix in f16
    Q8,
}

fn main() -> Result<()> {
    let Arguments { kind, out, dtype, seed } = Arguments::parse();
    ensure!(!out.exists(), "{} is there already", out.display());
    let write = |path: &Path, shapes: &Shapes| match dtype {
        Dtype::Q8 => gguf(path, shapes, seed),
        _ => safetensors(path, shapes, dtype, seed),
    };
    let write_folder = |folder: &str, file: &str, config: &Value, shapes| -> Result<()> {
        let folder = out.join(folder);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("config.json"), serde_json::to_string_pretty(config)?)?;
        write(&folder.join(file), &shapes)
    };
    const DIFFUSERS: &str = "diffusion_pytorch_model.safetensors";
    if let Some(folder) = out.parent() {
        fs::create_dir_all(folder)?;
    }
    match kind {
        Kind::Sd15 => write(&out, &listed("sd15_ldm_single_file.json")?)?,
        Kind::Sd15Inpaint => {
            let mut shapes = listed("sd15_ldm_single_file.json")?;
            let conv_in = "model.diffusion_model.input_blocks.0.0.weight".to_owned();
            shapes.insert(conv_in, vec![320, 9, 3, 3]);
            write(&out, &shapes)?;
        }
        Kind::Sd15Diffusers => {
            write_folder("unet", DIFFUSERS, &unet(), shapes_of_unet(&unet())?)?;
            write_folder("vae", DIFFUSERS, &vae(), shapes_of_vae()?)?;
            write_folder(
                "text_encoder",
                "model.safetensors",
                &clip_text(),
                shapes_of_clip_text(&clip_text())?,
            )?;
            fs::write(out.join("model_index.json"), "{}")?;
        }
        Kind::Sdxl => write(&out, &listed("sdxl_base_single_file.json.gz")?)?,
        Kind::SdxlRefiner => write(&out, &listed("sdxl_refiner_single_file.json.gz")?)?,
        Kind::Vae => {
            let shapes = listed("sd15_ldm_single_file.json")?.into_iter();
            let own = |(name, shape): (String, Vec<usize>)| {
                Some((name.strip_prefix("first_stage_model.")?.to_owned(), shape))
            };
            write(&out, &shapes.filter_map(own).collect())?;
        }
        Kind::Controlnet => write(&out, &listed("controlnet_ldm.json")?)?,
        Kind::Lora => {
            let networks = [
                ("lora_unet_", shapes_of_unet(&unet())?),
                ("lora_te_", shapes_of_clip_text(&clip_text())?),
            ];
            write(&out, &lora(networks))?;
        }
        Kind::LoraSdxl => {
            let networks = [
                ("lora_unet_", shapes_of_unet(&unet_of_sdxl())?),
                ("lora_te1_", shapes_of_clip_text(&clip_text())?),
                ("lora_te2_", shapes_of_clip_text(&clip_text_g())?),
            ];
            write(&out, &lora(networks))?;
        }
        Kind::ClipVisionH => write(&out, &clip_vision(1280, 5120, 32, 1024)?)?,
        Kind::ClipVisionG => write(&out, &clip_vision(1664, 8192, 48, 1280)?)?,
        Kind::IpAdapter => write(&out, &ip_adapter(&unet(), 1024)?)?,
        Kind::IpAdapterSdxl => write(&out, &ip_adapter(&unet_of_sdxl(), 1024)?)?,
        Kind::Esrgan => write(&out, &esrgan())?,
        Kind::KosmosG => {
            write_folder("", "model.safetensors", &kosmos(), shapes_of_kosmos()?)?;
            let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny/kosmos");
            for file in ["sentencepiece.bpe.model", "dict.txt"] {
                fs::copy(bundled.join(file), out.join(file))?;
            }
        }
    }
    Ok(())
}

type Shapes = BTreeMap<String, Vec<usize>>;

fn shapes_of_unet(config: &Value) -> Result<Shapes> {
    let weights = Weights::recording();
    UNet::load(&weights, &UNetConfig::from_value(config, "unet")?)?;
    Ok(weights.recorded())
}

fn shapes_of_vae() -> Result<Shapes> {
    let weights = Weights::recording();
    Vae::load(&weights, &VaeConfig::from_value(&vae(), "vae")?)?;
    Ok(weights.recorded())
}

fn shapes_of_clip_text(config: &Value) -> Result<Shapes> {
    let weights = Weights::recording();
    let config: ClipTextConfig = serde_json::from_value(config.clone())?;
    ClipText::load(&config, &weights)?;
    Ok(weights.recorded())
}

/// The names and shapes of a real file, from the lists that the tests compare with.
fn listed(name: &str) -> Result<Shapes> {
    let lists = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/key_lists");
    let file = File::open(lists.join(name)).with_context(|| name.to_owned())?;
    let mut list: BTreeMap<String, Value> = match name.ends_with(".gz") {
        true => serde_json::from_reader(GzDecoder::new(file))?,
        false => serde_json::from_reader(file)?,
    };
    // Whole numbers that every file of these has, and that say nothing.
    list.retain(|name, _| !name.ends_with("position_ids"));
    let shape = |(name, entry): (String, Value)| {
        Ok((name, serde_json::from_value(entry["shape"].clone())?))
    };
    list.into_iter().map(shape).collect()
}

/// Down and up matrices for every linear layer of the attention and feed-forward blocks.
fn lora<const N: usize>(networks: [(&str, Shapes); N]) -> Shapes {
    const RANK: usize = 16;
    let mut shapes = Shapes::new();
    for (prefix, network) in networks {
        for (name, shape) in network {
            let Some(module) = name.strip_suffix(".weight") else { continue };
            let is_adapted =
                module.contains("attn") || module.contains(".ff.") || module.contains(".mlp.");
            if let ([output, input], true) = (&shape[..], is_adapted) {
                let module = format!("{prefix}{}", module.replace('.', "_"));
                shapes.insert(format!("{module}.lora_down.weight"), vec![RANK, *input]);
                shapes.insert(format!("{module}.lora_up.weight"), vec![*output, RANK]);
                shapes.insert(format!("{module}.alpha"), vec![]);
            }
        }
    }
    shapes
}

/// A vision transformer for pictures of 224 pixels a side in patches of 14.
fn clip_vision(width: usize, mlp: usize, layers: usize, projection: usize) -> Result<Shapes> {
    let weights = Weights::recording();
    let config: ClipVisionConfig = serde_json::from_value(json!({
        "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers,
        "num_attention_heads": 16, "image_size": 224, "patch_size": 14, "projection_dim": projection,
        "hidden_act": "gelu",
    }))?;
    ClipVision::load(&config, &weights)?;
    Ok(weights.recorded())
}

/// Four tokens of a picture's embedding, and keys and values of them for every cross-attention of the U-Net.
fn ip_adapter(unet: &Value, embedding: usize) -> Result<Shapes> {
    const TOKENS: usize = 4;
    let config = UNetConfig::from_value(unet, "unet")?;
    let of_unet = shapes_of_unet(unet)?;
    let context = config.encoder.cross_attention_dim;
    let mut shapes = Shapes::from([
        ("image_proj.proj.weight".to_owned(), vec![TOKENS * context, embedding]),
        ("image_proj.proj.bias".to_owned(), vec![TOKENS * context]),
        ("image_proj.norm.weight".to_owned(), vec![context]),
        ("image_proj.norm.bias".to_owned(), vec![context]),
    ]);
    for (i, path) in config.cross_attentions().iter().enumerate() {
        let shape = of_unet.get(&format!("{path}.to_k.weight")).with_context(|| path.clone())?;
        for name in ["to_k_ip", "to_v_ip"] {
            shapes.insert(format!("ip_adapter.{}.{name}.weight", 2 * i + 1), shape.clone());
        }
    }
    Ok(shapes)
}

/// RRDBNet with 23 blocks of 64 channels that grow by 32.
fn esrgan() -> Shapes {
    let (filters, growth) = (64, 32);
    let mut layers =
        vec![("conv_first".to_owned(), filters, 3), ("conv_last".to_owned(), 3, filters)];
    let plain = ["conv_body", "conv_up1", "conv_up2", "conv_hr"];
    layers.extend(plain.map(|name| (name.to_owned(), filters, filters)));
    for (block, dense, conv) in
        (0..23).flat_map(|b| (1..=3).flat_map(move |d| (1..=5).map(move |c| (b, d, c))))
    {
        let output = if conv == 5 { filters } else { growth };
        let name = format!("body.{block}.rdb{dense}.conv{conv}");
        layers.push((name, output, filters + (conv - 1) * growth));
    }
    let parts = |(name, output, input): (String, usize, usize)| {
        [
            (format!("{name}.weight"), vec![output, input, 3, 3]),
            (format!("{name}.bias"), vec![output]),
        ]
    };
    layers.into_iter().flat_map(parts).collect()
}

fn shapes_of_kosmos() -> Result<Shapes> {
    let weights = Weights::recording();
    let config: KosmosConfig = serde_json::from_value(kosmos())?;
    KosmosG::load(&config, &weights)?;
    // A recording grants whatever is asked for: the half that only training needs is in it too.
    let training = Weights::recording();
    Reconstruction::load(&config.aligner, config.mllm.embed_dim, &training.sub("aligner"))?;
    let training = training.recorded();
    let mut shapes = weights.recorded();
    shapes.retain(|name, _| !training.contains_key(name));
    Ok(shapes)
}

fn unet() -> Value {
    json!({
        "_class_name": "UNet2DConditionModel",
        "in_channels": 4, "out_channels": 4, "attention_head_dim": 8, "cross_attention_dim": 768,
        "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2,
        "down_block_types":
            ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types":
            ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    })
}

fn unet_of_sdxl() -> Value {
    json!({
        "_class_name": "UNet2DConditionModel",
        "in_channels": 4, "out_channels": 4, "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048, "block_out_channels": [320, 640, 1280], "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": true,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    })
}

fn vae() -> Value {
    json!({
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
        "down_block_types": vec!["DownEncoderBlock2D"; 4],
        "up_block_types": vec!["UpDecoderBlock2D"; 4],
        "norm_num_groups": 32, "scaling_factor": 0.18215,
    })
}

fn clip_text() -> Value {
    json!({
        "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77,
        "eos_token_id": 49407,
    })
}

fn clip_text_g() -> Value {
    json!({
        "vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120,
        "num_hidden_layers": 32, "num_attention_heads": 20, "max_position_embeddings": 77,
        "eos_token_id": 49407, "hidden_act": "gelu", "projection_dim": 1280,
    })
}

fn kosmos() -> Value {
    json!({
        "model_type": "kosmos-g",
        "vision": {
            "image_size": 224, "patch_size": 14, "width": 1024, "layers": 24, "heads": 16,
            "mlp_ratio": 4.0,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        "connector": {"latent_query_num": 64, "heads": 32},
        "mllm": {
            "vocab_size": 64007, "embed_dim": 2048, "layers": 24, "heads": 32, "ffn_dim": 8192,
            "layer_norm_eps": 1e-5,
        },
        "aligner": {
            "dim": 768, "encoder_layers": 12, "decoder_layers": 12, "heads": 12, "ffn_dim": 3072,
            "max_positions": 32768, "queries": 77, "layer_norm_eps": 1e-5,
        },
    })
}

/// Writes tensors of `shapes` one after the other: one is in memory at a time.
fn safetensors(path: &Path, shapes: &Shapes, dtype: Dtype, seed: u64) -> Result<()> {
    let (name_of_type, width) = match dtype {
        Dtype::F32 => ("F32", 4),
        Dtype::F16 => ("F16", 2),
        Dtype::F8 => ("F8_E4M3", 1),
        Dtype::Q8 => bail!("GGUF files are written otherwise"),
    };
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for (name, shape) in shapes {
        let end = at + shape.iter().product::<usize>() * width;
        let entry = json!({"dtype": name_of_type, "shape": shape, "data_offsets": [at, end]});
        header.insert(name.clone(), entry);
        at = end;
    }
    let mut header = serde_json::to_string(&header)?;
    // The data begins at a multiple of 8.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let mut file = BufWriter::new(file);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for (number, (name, shape)) in shapes.iter().enumerate() {
        let values = values(name, shape, seed.wrapping_add(number as u64 + 1));
        let bytes: Vec<u8> = match dtype {
            Dtype::F32 => values.par_iter().flat_map_iter(|value| value.to_le_bytes()).collect(),
            Dtype::F16 => values
                .par_iter()
                .flat_map_iter(|value| f16::from_f32(*value).to_le_bytes())
                .collect(),
            Dtype::F8 | Dtype::Q8 => {
                let mut bytes = Vec::with_capacity(values.len());
                let values =
                    Tensor::from_vec(values, shape.iter().product::<usize>(), &Device::Cpu)?;
                values.to_dtype(DType::F8E4M3)?.write_bytes(&mut bytes)?;
                bytes
            }
        };
        if bytes.len() != shape.iter().product::<usize>() * width {
            bail!("{name} was written in another length than its header says");
        }
        file.write_all(&bytes)?;
    }
    file.flush()?;
    Ok(())
}

/// Writes a GGUF file as stable-diffusion.cpp does: matrices whose rows are whole blocks in Q8_0, all else in f16.
fn gguf(path: &Path, shapes: &Shapes, seed: u64) -> Result<()> {
    let mut tensors = Vec::with_capacity(shapes.len());
    for (number, (name, shape)) in shapes.iter().enumerate() {
        // A file of these has no single numbers.
        if shape.is_empty() {
            continue;
        }
        let values = values(name, shape, seed.wrapping_add(number as u64 + 1));
        let kind = match shape[..] {
            [_, row] if row.is_multiple_of(32) => GgmlDType::Q8_0,
            _ => GgmlDType::F16,
        };
        let tensor = Tensor::from_vec(values, &shape[..], &Device::Cpu)?;
        tensors.push((name.as_str(), QTensor::quantize(&tensor, kind)?));
    }
    let tensors: Vec<(&str, &QTensor)> =
        tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let architecture = Metadata::String("sdxl".into());
    let mut file = BufWriter::new(File::create(path)?);
    gguf_file::write(&mut file, &[("general.architecture", &architecture)], &tensors)?;
    file.flush()?;
    Ok(())
}

fn values(name: &str, shape: &[usize], seed: u64) -> Vec<f32> {
    let count: usize = shape.iter().product();
    match shape.len() {
        // A LoRA's alpha: a sixteenth of its rank keeps it a small change.
        0 => vec![1.0],
        // Norms let through what comes, biases add nothing.
        1 => vec![if name.ends_with("weight") { 1.0 } else { 0.0 }; count],
        _ => {
            let fan_in: usize = shape[1..].iter().product();
            let reach = (3.0 / fan_in as f32).sqrt();
            let value = |i: usize| {
                let bits = mix(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(i as u64));
                ((bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * reach
            };
            (0..count).into_par_iter().map(value).collect()
        }
    }
}

/// The finaliser of SplitMix64 (Steele et al., OOPSLA 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
