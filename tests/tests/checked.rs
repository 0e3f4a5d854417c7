//! `check` runs the loaders: a file that cannot be loaded is told by it, with the sentence and the exit code of `run`.

use std::fs;
use std::path::Path;

use kosmograph_tests::{Run, repository};
use serde_json::{Value, json};

/// A picture from the bundled checkpoint, and one that needs no model.
fn workflow() -> Value {
    json!({
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny/sd"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["1", 1]}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64}},
        "4": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0],
            "latent_image": ["3", 0], "steps": 1, "cfg": 1.0}},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "a"}},
        "7": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16}},
        "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "b"}},
    })
}

/// `subcommand` on `workflow` with the models in `folder` before the bundled ones.
fn command(subcommand: &str, folder: &Path, workflow: &Value) -> Run {
    let run = Run::new(subcommand).with_plugins().args(["-", "--json", "--models"]).arg(folder);
    let run = run.arg("--models").arg(repository().join("models"));
    let run = run.arg("--input").arg(folder).arg("--out").arg(folder.join("out"));
    run.stdin(workflow.to_string())
}

#[test]
fn a_file_that_cannot_be_loaded_is_told_as_when_it_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let bundled =
        |name: &str| fs::read(repository().join("models/tiny").join(name)).expect("a file");
    let lora = bundled("loras/neon.safetensors");
    let unet = bundled("sd/unet/diffusion_pytorch_model.safetensors");
    let picture = fs::read(repository().join("workflows/input/monster-1.png")).expect("a picture");
    let files: [(&str, &[u8]); 7] = [
        ("checkpoints/lora.safetensors", &lora),
        ("checkpoints/page.safetensors", b"<!DOCTYPE html><html></html>"),
        ("checkpoints/half.safetensors", &unet[..unet.len() / 2]),
        ("controlnet/lora.safetensors", &lora),
        ("vae/unet.safetensors", &unet),
        ("upscale_models/lora.safetensors", &lora),
        ("cut.png", &picture[..picture.len() / 2]),
    ];
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, bytes).expect("a file");
    }
    let loader = |class: &str, input: &str, name: &str| {
        let mut workflow = workflow();
        let (id, output) = match class {
            "CheckpointLoaderSimple" => ("1", None),
            _ => ("9", Some(class)),
        };
        workflow[id] = json!({"class_type": class, "inputs": {input: name}});
        // What comes of it is used where a picture is wanted, so that it is run.
        match output {
            Some("VAELoader") => workflow["5"]["inputs"]["vae"] = json!(["9", 0]),
            Some("LoadImage") => workflow["6"]["inputs"]["images"] = json!(["9", 0]),
            Some("ControlNetLoader") => {
                workflow["10"] = json!({"class_type": "ControlNetApply", "inputs": {"conditioning": ["2", 0],
                    "control_net": ["9", 0], "image": ["7", 0], "strength": 1.0}});
                workflow["4"]["inputs"]["positive"] = json!(["10", 0]);
            }
            Some("UpscaleModelLoader") => {
                workflow["10"] = json!({"class_type": "ImageUpscaleWithModel",
                    "inputs": {"upscale_model": ["9", 0], "image": ["5", 0]}});
                workflow["6"]["inputs"]["images"] = json!(["10", 0]);
            }
            _ => (),
        }
        (id, workflow)
    };
    for (class, input, name) in [
        ("CheckpointLoaderSimple", "ckpt_name", "lora.safetensors"),
        ("CheckpointLoaderSimple", "ckpt_name", "page.safetensors"),
        ("CheckpointLoaderSimple", "ckpt_name", "half.safetensors"),
        ("ControlNetLoader", "control_net_name", "lora.safetensors"),
        ("VAELoader", "vae_name", "unet.safetensors"),
        ("UpscaleModelLoader", "model_name", "lora.safetensors"),
        ("LoadImage", "image", "cut.png"),
    ] {
        let (id, workflow) = loader(class, input, name);
        let said = command("check", folder.path(), &workflow).expect_code(3).json();
        let problem = &said["problems"][0];
        assert_eq!((&problem["node"], &problem["input"]), (&json!(id), &json!(input)), "{said}");
        assert_eq!(said["left_out"][0]["node"], "6", "{said}");
        assert_eq!(said["left_out"].as_array().map(Vec::len), Some(1), "{said}");
        let events = command("run", folder.path(), &workflow).expect_code(3).json_lines();
        let error = events.iter().find(|event| event["event"] == "error").expect("an error");
        assert_eq!(error["message"], problem["message"], "{class}: {name}");
    }
}

#[test]
fn what_can_be_loaded_is_not_told_and_an_empty_file_stands_for_one_to_come() {
    let folder = tempfile::tempdir().expect("a folder");
    let said = command("check", folder.path(), &workflow()).expect_code(0).json();
    assert_eq!((&said["problems"], &said["warnings"]), (&json!([]), &json!([])), "{said}");

    fs::create_dir(folder.path().join("checkpoints")).expect("a folder");
    fs::write(folder.path().join("checkpoints/later.safetensors"), "").expect("a file");
    let mut later = workflow();
    later["1"]["inputs"]["ckpt_name"] = json!("later.safetensors");
    let said = command("check", folder.path(), &later).expect_code(0).json();
    assert_eq!(said["warnings"][0]["node"], "1", "{said}");
    command("run", folder.path(), &later).expect_code(3);
}
