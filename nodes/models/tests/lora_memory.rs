//! Alternating between LoRAs: memory stays flat, and the base stays what it is.
#![cfg(target_os = "linux")]

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use kosmograph_models::lora::{Adapted, Lora};
use kosmograph_models::stable_diffusion::unet::{UNet, UNetConfig};
use kosmograph_models::{Result, Weights};
use serde_json::json;

/// How often a LoRA is put on.
const TIMES: usize = 1000;
/// After this many, whatever is made once has been made.
const WARM: usize = 100;
/// What memory may grow by from then on. A single network with a LoRA that stayed has 0.8 MB.
const SLACK: usize = 16 << 20;

/// Resident bytes of this process.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("the process's status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
    let number = line.split_whitespace().nth(1).expect("a number");
    number.parse::<usize>().expect("a number") * 1024
}

fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 0.1, shape, &Device::Cpu).expect("a tensor")
}

/// A LoRA of rank `rank` for every matrix of the U-Net.
fn write(file: &Path, weights: &Weights, rank: usize) {
    let mut tensors = HashMap::new();
    for name in weights.names() {
        let shape = weights.shape(&name).expect("a shape");
        let Some(module) = name.strip_suffix(".weight").filter(|_| shape.len() > 1) else {
            continue;
        };
        let up = [&[shape[0], rank], &vec![1; shape.len() - 2][..]].concat();
        let down = [&[rank], &shape[1..]].concat();
        tensors.insert(format!("unet.{module}.lora_B.weight"), random(&up));
        tensors.insert(format!("unet.{module}.lora_A.weight"), random(&down));
    }
    candle_core::safetensors::save(&tensors, file).expect("written");
}

#[test]
fn a_thousand_changes_leave_nothing_behind() -> Result<()> {
    let config = json!({
        "block_out_channels": [32, 64], "norm_num_groups": 8, "attention_head_dim": 2,
        "cross_attention_dim": 24, "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    });
    let config = UNetConfig::from_value(&config, "a small U-Net's")?;
    let recording = Weights::recording();
    UNet::load(&recording, &config)?;
    let tensors = recording.recorded().into_iter().map(|(name, shape)| (name, random(&shape)));
    let weights = Weights::from_tensors("random weights", tensors.collect(), &Device::Cpu);

    let folder = tempfile::tempdir().expect("a folder");
    let files: Vec<_> = (1..=5).map(|i| folder.path().join(format!("{i}.safetensors"))).collect();
    for (i, file) in files.iter().enumerate() {
        write(file, &weights, i + 1);
    }
    let base = Adapted::open(weights, &[], move |weights| UNet::load(weights, &config))?;
    let (x, context) = (random(&[1, 4, 8, 8]), random(&[1, 3, 24]));
    let timestep = Tensor::new(&[500f32], &Device::Cpu)?;
    let run = |network: &Adapted<UNet>| -> Result<Vec<f32>> {
        let out = network.get()?.forward(&x, &timestep, &context, None)?;
        Ok(out.flatten_all()?.to_vec1()?)
    };
    let before = run(&base)?;

    let mut first = Vec::new();
    let mut warm = 0;
    for i in 0..TIMES {
        let lora = Lora::open(&files[i % files.len()])?;
        // Another strength each time, but for the first round and the last.
        let settled = i < files.len() || i + files.len() >= TIMES;
        let strength = if settled { 0.5 } else { (i % 7) as f64 / 3.0 - 1.0 };
        let (network, absent) = base.with(&lora.unet, strength)?;
        assert!(absent.is_empty());
        let picture = run(&network)?;
        if i < files.len() {
            assert_ne!(picture, before);
            first.push(picture);
        } else if settled {
            assert_eq!(picture, first[i % files.len()], "LoRA {i} draws otherwise than at first");
        }
        if i == WARM {
            warm = resident();
        }
    }
    let grown = resident().saturating_sub(warm);
    assert!(grown < SLACK, "{TIMES} changes of the LoRA left {grown} bytes");
    assert_eq!(run(&base)?, before, "the base is not what it was");
    Ok(())
}
