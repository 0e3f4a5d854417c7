//! The golden networks' weights as one file in the original code's names: what a loader reads out of it is,
//! number by number, what stands in diffusers' files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use kosmograph_models::Weights;
use kosmograph_models::stable_diffusion::checkpoint::Checkpoint;
use serde_json::Value;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

/// The golden tensors of a part, by diffusers' names.
fn tensors(case: &str) -> Result<HashMap<String, Tensor>> {
    Ok(candle_core::safetensors::load(
        golden().join(case).join("weights.safetensors"),
        &Device::Cpu,
    )?)
}

/// Diffusers' names of a part, and the original code's.
fn mapping(part: &str) -> Result<HashMap<String, String>> {
    let text = std::fs::read(golden().join("key_lists/mapping_diffusers_to_ldm.json"))?;
    let all: Value = serde_json::from_slice(&text)?;
    let mut names: HashMap<String, String> = serde_json::from_value(all[part].clone())?;
    // The golden networks change their channels where Stable Diffusion's stay: more shortcuts.
    let shortcuts: Vec<(String, String)> = names
        .iter()
        .filter_map(|(diffusers, ldm)| {
            let (resnet, end) = diffusers.split_once(".conv1.")?;
            let (block, shortcut) = match ldm.strip_suffix(&format!(".in_layers.2.{end}")) {
                Some(block) => (block, "skip_connection"),
                None => (ldm.strip_suffix(&format!(".conv1.{end}"))?, "nin_shortcut"),
            };
            Some((format!("{resnet}.conv_shortcut.{end}"), format!("{block}.{shortcut}.{end}")))
        })
        .collect();
    names.extend(shortcuts);
    Ok(names)
}

/// The tensors of a part as the original code's files hold them, in the type `dtype`.
fn original(case: &str, part: &str, dtype: DType) -> Result<HashMap<String, Tensor>> {
    let names = mapping(part)?;
    let own = |(name, tensor): (String, Tensor)| -> Result<(String, Tensor)> {
        let ldm = names.get(&name).with_context(|| format!("{part}: no name for {name}"))?;
        let mut tensor = tensor.to_dtype(dtype)?;
        // The VAE's attention is made of convolutions there.
        if ldm.contains(".attn_1.") && tensor.rank() == 2 {
            tensor = tensor.unsqueeze(2)?.unsqueeze(3)?;
        }
        Ok((ldm.clone(), tensor))
    };
    tensors(case)?
        .into_iter()
        .filter(|(name, _)| !name.ends_with("position_ids"))
        .map(own)
        .collect()
}

/// The file of these tensors. The golden networks have other heads and norm groups than the family, which a
/// header can say.
fn save(tensors: &HashMap<String, Tensor>, folder: &Path) -> Result<Checkpoint> {
    let groups = |case: &str, key: &str| -> Result<Value> {
        let text = std::fs::read(golden().join(case).join("config.json"))?;
        Ok(serde_json::from_slice::<Value>(&text)?["config"][key].clone())
    };
    let mut said = serde_json::json!({});
    for (case, part, keys) in [
        ("unet", "unet", &["norm_num_groups", "attention_head_dim"][..]),
        ("vae", "vae", &["norm_num_groups"]),
        ("clip_text", "text_encoder", &["num_attention_heads"]),
        ("controlnet", "controlnet", &["norm_num_groups", "attention_head_dim"]),
    ] {
        for key in keys {
            said[part][key] = groups(case, key)?;
        }
    }
    let metadata = HashMap::from([("kosmograph.config".to_owned(), said.to_string())]);
    let path = folder.join("one.safetensors");
    safetensors::serialize_to_file(tensors, Some(metadata), &path)?;
    Ok(Checkpoint::open(&path, &Device::Cpu)?)
}

fn assert_equal(case: &str, read: &Weights, dtype: DType) -> Result<()> {
    let expected = tensors(case)?;
    let expected: HashMap<&String, &Tensor> =
        expected.iter().filter(|(name, _)| !name.ends_with("position_ids")).collect();
    assert_eq!(read.names().len(), expected.len(), "{case}");
    for (name, tensor) in expected {
        // In the file's shape: the VAE itself takes its attention in either.
        let shape = read.shape(name).with_context(|| format!("{case}: no {name}"))?;
        let read = read.get(name, shape)?.flatten_all()?.to_vec1::<f32>()?;
        let stored = tensor.to_dtype(dtype)?.to_dtype(DType::F32)?;
        assert_eq!(read, stored.flatten_all()?.to_vec1::<f32>()?, "{case}: {name}, {dtype:?}");
    }
    Ok(())
}

#[test]
fn a_checkpoint_in_the_original_names_has_the_same_numbers() -> Result<()> {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let folder = tempfile::tempdir()?;
        let mut all = original("unet", "unet", dtype)?;
        all.extend(original("vae", "vae", dtype)?);
        all.extend(original("clip_text", "clip_text", dtype)?);
        let checkpoint = save(&all, folder.path())?;
        assert_equal("unet", &checkpoint.unet()?.2, dtype)?;
        assert_equal("vae", &checkpoint.vae()?.1, dtype)?;
        assert_equal("clip_text", &checkpoint.clip_text()?.1, dtype)?;
    }
    Ok(())
}

#[test]
fn a_control_net_in_the_original_names_has_the_same_numbers() -> Result<()> {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let folder = tempfile::tempdir()?;
        let checkpoint = save(&original("controlnet", "controlnet", dtype)?, folder.path())?;
        assert_equal("controlnet", &checkpoint.control_net()?.1, dtype)?;
    }
    Ok(())
}
