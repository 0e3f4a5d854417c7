//! A training's state on the disk that is damaged, or another's, and a loss that ends nowhere.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use kosmograph_models::Weights;
use kosmograph_training::{state, train};
use serde_json::json;

use crate::{Stop, config, read};

/// A tensor of a state: its name, its numbers and its shape.
type Named = (String, Vec<f32>, Vec<usize>);
type Tensors = Vec<Named>;

/// Writes the state at `path` again with what `damage` makes of its tensors.
fn damaged(path: &Path, damage: &dyn Fn(&mut Tensors)) -> Result<()> {
    let weights = Weights::open(path, &Device::Cpu)?;
    let mut tensors = Vec::new();
    for name in weights.names() {
        let shape = weights.shape(&name).context("a shape")?;
        let values = weights.get(&name, shape.clone())?.flatten_all()?.to_vec1::<f32>()?;
        tensors.push((name, values, shape));
    }
    let metadata = ["updates", "configuration"]
        .map(|key| (key.to_owned(), weights.metadata(key).unwrap_or_default().to_owned()));
    damage(&mut tensors);
    let tensors = tensors
        .into_iter()
        .map(|(name, values, shape)| Ok((name, Tensor::from_vec(values, shape, &Device::Cpu)?)));
    let tensors = tensors.collect::<Result<_>>()?;
    kosmograph_training::files::write(path, &tensors, &metadata.into())?;
    Ok(())
}

#[test]
fn a_damaged_state_of_eight_bits_is_refused() -> Result<()> {
    let of = |tensors: &mut Tensors, end: &str, change: &dyn Fn(&mut Named)| {
        let found = tensors.iter_mut().find(|(name, ..)| name.starts_with(end));
        change(found.expect("such a tensor"));
    };
    type Damage<'a> = (&'a str, &'a dyn Fn(&mut Tensors));
    let damages: [Damage; 5] = [
        ("codes too many", &|t| {
            of(t, "first_codes.", &|t| {
                t.1.push(0.0);
                t.2 = vec![t.1.len()];
            })
        }),
        ("a code that is none", &|t| of(t, "second_codes.", &|t| t.1[0] = 200.5)),
        ("a code that is no number", &|t| of(t, "second_codes.", &|t| t.1[0] = f32::NAN)),
        ("an endless scale", &|t| of(t, "second_scales.", &|t| t.1[0] = f32::INFINITY)),
        ("no scales", &|t| t.retain(|(name, ..)| !name.starts_with("first_scales."))),
    ];
    let folder = tempfile::tempdir()?;
    let more = json!({"optimiser": {"method": "adamw_8bit"}});
    let config = read(&config(folder.path(), &more)?)?;
    let ended = train(&config, &mut Stop::after(2));
    ensure!(matches!(ended, Err(kosmograph_training::Error::Cancelled)), "{ended:?}");
    let path = state::path(&config.output);
    let whole = std::fs::read(&path)?;
    for (what, damage) in damages {
        damaged(&path, damage)?;
        let told = train(&config, &mut Stop::after(9)).expect_err(what).to_string();
        ensure!(told.contains("is damaged"), "{what}: {told}");
        std::fs::write(&path, &whole)?;
    }
    // A file that ends early, and headers that lie about their length and their tensors.
    let mut long = whole.clone();
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let text =
        String::from_utf8_lossy(&whole[8..]).replacen("\"dtype\":\"F32\"", "\"dtype\":\"F64\"", 1);
    let mut other = whole[..8].to_vec();
    other.extend(text.as_bytes());
    for (what, bytes) in
        [("truncated", &whole[..whole.len() / 2]), ("long", &long), ("other", &other)]
    {
        std::fs::write(&path, bytes)?;
        let told = train(&config, &mut Stop::after(9));
        ensure!(told.is_err(), "{what}: was gone on with");
        ensure!(!config.output.exists(), "{what}: something was made");
    }
    // The state itself is good, and is gone on with.
    std::fs::write(&path, &whole)?;
    train(&config, &mut Stop::after(9))?;
    Ok(())
}

#[test]
fn a_state_of_another_training_is_refused_and_a_loss_without_end_stops() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let first = read(&config(folder.path(), &json!({}))?)?;
    let ended = train(&first, &mut Stop::after(2));
    ensure!(matches!(ended, Err(kosmograph_training::Error::Cancelled)), "{ended:?}");
    let other = read(&config(folder.path(), &json!({"seed": 7}))?)?;
    let told = train(&other, &mut Stop::after(9)).expect_err("another seed").to_string();
    ensure!(told.contains("is of another training: \"seed\""), "{told}");

    let folder = tempfile::tempdir()?;
    let more = json!({"optimiser": {"learning_rate": 1e30, "clip_norm": 0}, "checkpoint_every": 1});
    let config = read(&config(folder.path(), &more)?)?;
    let told = train(&config, &mut Stop::after(9)).expect_err("no number").to_string();
    ensure!(told.contains("the training has diverged"), "{told}");
    Ok(())
}
