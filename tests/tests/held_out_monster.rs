//! What a person trains a LoRA for: three pictures of a monster that the bundled model has never seen, and it draws that
//! monster in other places. The judge of models/tiny says whether it does.

use std::path::Path;

use anyhow::{Result, ensure};
use kosmograph_tests::judge::Judge;
use kosmograph_tests::{Run, repository};
use serde_json::json;

/// A purple spotted star with two eyes: shape, colour, pattern, eyes. The combination is held out of every stage of the
/// bundled model.
const MONSTER: [usize; 4] = [3, 5, 2, 1];
/// Where its three pictures show it.
const SEEN: [&str; 3] = ["on a pink background", "on a green background", "on a gray background"];
/// Where it is to be drawn.
const NEW: [&str; 8] = [
    "on a blue background",
    "on a yellow background",
    "on an orange background",
    "on a red background",
    "on the beach",
    "in the snow",
    "at night",
    "in the meadow",
];
/// Pictures of each place.
const EACH: usize = 2;

/// The share of new scenes in which the judge sees the monster, drawn with the LoRA or without.
fn share(folder: &Path, lora: Option<&str>) -> Result<f64> {
    let mut graph = json!({
        "base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny/sd"}},
        "empty": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["base", 1]}},
        "size": {"class_type": "EmptyLatentImage",
                 "inputs": {"width": 128, "height": 128, "batch_size": 1}},
    });
    let mut model = "base";
    if let Some(name) = lora {
        graph["lora"] = json!({
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["base", 0], "lora_name": name, "strength_model": 1.0},
        });
        model = "lora";
    }
    let out = folder.join(lora.unwrap_or("base"));
    let mut names = Vec::new();
    for (number, place) in NEW.iter().cycle().take(NEW.len() * EACH).enumerate() {
        let id = |what: &str| format!("{what}-{number}");
        graph[id("text")] = json!({
            "class_type": "CLIPTextEncode",
            "inputs": {"text": format!("a zwx monster {place}"), "clip": ["base", 1]},
        });
        graph[id("drawn")] = json!({
            "class_type": "UNetSample",
            "inputs": {"model": [model, 0], "positive": [id("text"), 0], "negative": ["empty", 0],
                       "latent": ["size", 0], "seed": number, "steps": 20, "cfg": 4.0, "sampler": "dpms",
                       "scheduler": "normal", "denoise": 1.0},
        });
        graph[id("picture")] = json!({
            "class_type": "VAEDecode", "inputs": {"samples": [id("drawn"), 0], "vae": ["base", 2]},
        });
        graph[id("saved")] = json!({
            "class_type": "SaveImage",
            "inputs": {"images": [id("picture"), 0], "filename_prefix": format!("{number:02}")},
        });
        names.push(format!("{number:02}_00001_.png"));
    }
    let run =
        Run::new("run").with_plugins().arg("-").arg("--models").arg(repository().join("models"));
    let run = run.arg("--models").arg(folder).arg("--out").arg(&out);
    run.stdin(graph.to_string()).expect_success();
    let judge = Judge::open(&repository())?;
    let mut seen = 0;
    for name in &names {
        let what = judge.look(&out.join(name))?;
        seen += usize::from(!what.is_pair && what.monster[..4] == MONSTER);
    }
    Ok(seen as f64 / names.len() as f64)
}

#[test]
fn a_lora_of_three_pictures_draws_their_monster_in_new_scenes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let pictures = folder.path().join("pictures");
    std::fs::create_dir_all(&pictures)?;
    let judge = Judge::open(&repository())?;
    for (number, place) in SEEN.iter().enumerate() {
        let name = format!("{}.png", number + 1);
        let from = repository().join("tests/held_out_monster").join(&name);
        let seen = judge.look(&from)?;
        ensure!(seen.monster[..4] == MONSTER, "the judge sees {seen:?} on {name}");
        std::fs::copy(&from, pictures.join(&name))?;
        let caption = pictures.join(name).with_extension("txt");
        std::fs::write(caption, format!("a zwx monster {place}"))?;
    }
    let config = json!({
        "task": "lora",
        "model": repository().join("models/tiny/sd"),
        "pictures": "pictures",
        "output": "loras/monster.safetensors",
        "resolution": 128,
        "steps": 300,
        "batch": 3,
        "flip": false,
        "lora": {"rank": 8, "alpha": 8},
        "optimiser": {"learning_rate": 2e-3},
        "rate": {"course": "cosine"},
    });
    let path = folder.path().join("train.json");
    std::fs::write(&path, config.to_string())?;
    Run::new("train").with_plugins().arg(&path).expect_success();
    let base = share(folder.path(), None)?;
    let trained = share(folder.path(), Some("monster.safetensors"))?;
    println!(
        "the judge sees the monster in {base:.2} of the base's scenes, in {trained:.2} with the LoRA"
    );
    ensure!(base <= 0.3, "the base already draws it in {base:.2} of the scenes");
    ensure!(trained >= 0.8, "with the LoRA it is in {trained:.2} of the scenes only");
    Ok(())
}
