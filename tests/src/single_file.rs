//! The bundled pipeline as people have checkpoints: one file in the original code's names.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, View};
use serde_json::json;

use crate::repository;

/// A part of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    UNet,
    Clip,
    Vae,
}

/// How many words CLIP's own tokenizer knows, which goes with a single file.
const WORDS: usize = 49408;

/// A tensor as it stands in a file.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl View for &Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }

    fn data_len(&self) -> usize {
        self.data.len()
    }
}

/// Writes these parts of the bundled pipeline to `path`. Its CLIP gets words for the whole of CLIP's
/// tokenizer, the bundled ones over and over: it computes, and means nothing.
pub fn write(path: &Path, parts: &[Part]) {
    let mut tensors = BTreeMap::new();
    for part in parts {
        let (file, prefix) = match part {
            Part::UNet => ("unet/diffusion_pytorch_model.safetensors", "model.diffusion_model."),
            Part::Clip => ("text_encoder/model.safetensors", "cond_stage_model.transformer."),
            Part::Vae => ("vae/diffusion_pytorch_model.safetensors", "first_stage_model."),
        };
        for (name, tensor) in read(&repository().join("models/tiny/sd").join(file)) {
            let (name, tensor) = original(*part, name, tensor);
            tensors.insert(format!("{prefix}{name}"), tensor);
        }
    }
    // What leaves no trace in the shapes, and is not as in Stable Diffusion.
    let said = json!({"unet": {"norm_num_groups": 8, "attention_head_dim": 4},
        "vae": vae_config(),
        "text_encoder": {"num_attention_heads": 4}});
    let header = [("kosmograph.config".to_owned(), said.to_string())].into();
    safetensors::serialize_to_file(&tensors, Some(header), path).expect("a file");
}

/// What is not as in Stable Diffusion in the bundled U-Net, and leaves no trace in its shapes.
pub const UNET_CONFIG: &str = r#"{"unet": {"norm_num_groups": 8, "attention_head_dim": 4}}"#;

/// The bundled U-Net's tensors by the original code's names, f32: shapes and numbers.
pub fn unet_tensors() -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let file = repository().join("models/tiny/sd/unet/diffusion_pytorch_model.safetensors");
    let wide = |(name, tensor): (String, Stored)| {
        let numbers = match tensor.dtype {
            Dtype::F16 => tensor
                .data
                .chunks_exact(2)
                .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            Dtype::F32 => tensor
                .data
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            other => panic!("{name} is {other:?}"),
        };
        (unet(&name), (tensor.shape, numbers))
    };
    read(&file).into_iter().map(wide).collect()
}

/// What is not as in Stable Diffusion in the bundled autoencoder, and leaves no trace in its shapes.
fn vae_config() -> serde_json::Value {
    let path = repository().join("models/tiny/sd/vae/config.json");
    let text = std::fs::read_to_string(path).expect("the bundled autoencoder's configuration");
    let config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    json!({"norm_num_groups": 4, "scaling_factor": config["scaling_factor"]})
}

/// A VAE alone, by diffusers' names.
pub fn write_vae(path: &Path) {
    write_vae_saying(path, &vae_config());
}

/// A VAE alone, of whose options its file says `options` and no more.
pub fn write_vae_saying(path: &Path, options: &serde_json::Value) {
    let tensors =
        read(&repository().join("models/tiny/sd/vae/diffusion_pytorch_model.safetensors"));
    let said = json!({"vae": options});
    let header = [("kosmograph.config".to_owned(), said.to_string())].into();
    safetensors::serialize_to_file(&tensors, Some(header), path).expect("a file");
}

fn read(path: &Path) -> BTreeMap<String, Stored> {
    let bytes = std::fs::read(path).expect("a file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let stored = |(name, tensor): (String, safetensors::tensor::TensorView<'_>)| {
        let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
        (name, Stored { dtype, shape, data: tensor.data().to_vec() })
    };
    file.tensors().into_iter().map(stored).collect()
}

/// The original code's name for a tensor, and the tensor as it has it.
fn original(part: Part, name: String, mut tensor: Stored) -> (String, Stored) {
    match part {
        Part::UNet => (unet(&name), tensor),
        Part::Clip => {
            if name.ends_with("token_embedding.weight") {
                let row = tensor.data.len() / tensor.shape[0];
                tensor.data = tensor.data.iter().copied().cycle().take(row * WORDS).collect();
                tensor.shape[0] = WORDS;
            }
            (name, tensor)
        }
        Part::Vae => {
            let name = vae(&name);
            // The attention is made of convolutions there.
            if name.contains(".attn_1.") && tensor.shape.len() == 2 {
                tensor.shape.extend([1, 1]);
            }
            (name, tensor)
        }
    }
}

/// Each of `pairs` put in the place of the other in `name`, where it stands.
fn replaced(name: &str, pairs: &[(&str, &str)]) -> String {
    pairs.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// Of a U-Net with one layer a level, whose attention is on its lower level alone: blocks in one row.
fn unet(name: &str) -> String {
    let resnet = [
        ("norm1.", "in_layers.0."),
        ("conv1.", "in_layers.2."),
        ("time_emb_proj.", "emb_layers.1."),
        ("norm2.", "out_layers.0."),
        ("conv2.", "out_layers.3."),
        ("conv_shortcut.", "skip_connection."),
    ];
    let blocks = [
        ("conv_in.", "input_blocks.0.0."),
        ("down_blocks.0.resnets.0.", "input_blocks.1.0."),
        ("down_blocks.0.downsamplers.0.conv.", "input_blocks.2.0.op."),
        ("down_blocks.1.resnets.0.", "input_blocks.3.0."),
        ("down_blocks.1.attentions.0.", "input_blocks.3.1."),
        ("mid_block.resnets.0.", "middle_block.0."),
        ("mid_block.attentions.0.", "middle_block.1."),
        ("mid_block.resnets.1.", "middle_block.2."),
        ("up_blocks.0.resnets.0.", "output_blocks.0.0."),
        ("up_blocks.0.attentions.0.", "output_blocks.0.1."),
        ("up_blocks.0.resnets.1.", "output_blocks.1.0."),
        ("up_blocks.0.attentions.1.", "output_blocks.1.1."),
        ("up_blocks.0.upsamplers.0.", "output_blocks.1.2."),
        ("up_blocks.1.resnets.0.", "output_blocks.2.0."),
        ("up_blocks.1.resnets.1.", "output_blocks.3.0."),
        ("conv_norm_out.", "out.0."),
        ("conv_out.", "out.2."),
        ("time_embedding.linear_1.", "time_embed.0."),
        ("time_embedding.linear_2.", "time_embed.2."),
    ];
    let (from, to) = blocks.iter().find(|(from, _)| name.starts_with(from)).expect("a known name");
    let rest = &name[from.len()..];
    // Only a ResNet block's own tensors have other names.
    let rest = if from.contains("resnets") { replaced(rest, &resnet) } else { rest.to_owned() };
    format!("{to}{rest}")
}

/// Of an autoencoder with four levels; the decoder's are counted from the other end.
fn vae(name: &str) -> String {
    let mut name = replaced(
        name,
        &[
            ("conv_norm_out.", "norm_out."),
            ("mid_block.resnets.0.", "mid.block_1."),
            ("mid_block.resnets.1.", "mid.block_2."),
            ("mid_block.attentions.0.group_norm.", "mid.attn_1.norm."),
            ("mid_block.attentions.0.to_out.0.", "mid.attn_1.proj_out."),
            ("mid_block.attentions.0.to_", "mid.attn_1."),
            (".resnets.", ".block."),
            (".downsamplers.0.", ".downsample."),
            (".upsamplers.0.", ".upsample."),
            ("conv_shortcut.", "nin_shortcut."),
            ("down_blocks.", "down."),
        ],
    );
    for level in 0..4 {
        let (from, to) = (format!("up_blocks.{level}."), format!("up.{}.", 3 - level));
        name = name.replace(&from, &to);
    }
    name
}
