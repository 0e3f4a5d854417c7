//! Latents in files, from end to end: what is in the file, and that it draws the same picture again.

use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use kosmograph_tests::{Finished, Run, repository};
use serde_json::{Value, json};

fn node(class: &str, inputs: Value) -> Value {
    json!({"class_type": class, "inputs": inputs})
}

fn run(folder: &Path, workflow: &Value, code: i32) -> Finished {
    let run = Run::new("run").with_plugins().arg("-").stdin(workflow.to_string());
    let run = run.arg("--models").arg(repository().join("models"));
    let run = run.arg("--input").arg(folder.join("input"));
    run.arg("--out").arg(folder.join("out")).expect_code(code).stderr_lacks("panicked")
}

fn decoded(workflow: &mut Value, name: &str, samples: Value) {
    workflow[format!("{name}d")] = node("VAEDecode", json!({"samples": samples, "vae": ["c", 2]}));
    let inputs = json!({"images": [format!("{name}d"), 0], "filename_prefix": name});
    workflow[format!("{name}i")] = node("SaveImage", inputs);
}

#[test]
fn latents_are_saved_and_loaded() {
    let folder = tempfile::tempdir().expect("a folder");
    let input = folder.path().join("input");
    fs::create_dir_all(&input).expect("a folder");
    let mut workflow = json!({
        "c": node("CheckpointLoaderSimple", json!({"ckpt_name": "tiny/sd"})),
        "p": node("CLIPTextEncode", json!({"clip": ["c", 1], "text": "a red fox"})),
        "n": node("CLIPTextEncode", json!({"clip": ["c", 1], "text": ""})),
        "l": node("EmptyLatentImage", json!({"width": 64, "height": 64, "batch_size": 2})),
        "k": node("KSampler", json!({"model": ["c", 0], "seed": 1, "steps": 2, "cfg": 3.0,
            "sampler_name": "euler", "scheduler": "normal", "positive": ["p", 0], "negative": ["n", 0],
            "latent_image": ["l", 0], "denoise": 1.0})),
        "s": node("SaveLatent", json!({"samples": ["k", 0], "filename_prefix": "latents/x"})),
    });
    decoded(&mut workflow, "first", json!(["k", 0]));
    run(folder.path(), &workflow, 0);
    let saved = folder.path().join("out/latents/x_00001_.latent");
    let bytes = fs::read(&saved).expect("a file");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    assert!(header.metadata().as_ref().expect("metadata")["prompt"].contains("SaveLatent"));
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).expect("tensors");
    let mut names: Vec<&String> = tensors.keys().collect();
    names.sort();
    assert_eq!(names, ["latent_format_version_0", "latent_tensor"]);
    assert_eq!(tensors["latent_format_version_0"].dims(), [0]);
    let own = &tensors["latent_tensor"];
    assert_eq!(own.dims(), [2, 4, 8, 8]);
    // As ComfyUI wrote them before its format had a version: times Stable Diffusion 1's factor.
    let old = (own * 0.18215).expect("numbers");
    let save = |name: &str, tensors: Vec<(&str, &Tensor)>| {
        safetensors::serialize_to_file(tensors, None, &input.join(name)).expect("a file");
    };
    save("old.latent", vec![("latent_tensor", &old)]);
    fs::copy(&saved, input.join("new.latent")).expect("a copy");
    let mut again = json!({"c": workflow["c"]});
    for name in ["new", "old"] {
        again[name] = node("LoadLatent", json!({"latent": format!("{name}.latent")}));
        decoded(&mut again, name, json!([name, 0]));
    }
    run(folder.path(), &again, 0);
    let picture = |name: &str, number: usize| {
        let path = folder.path().join(format!("out/{name}_0000{number}_.png"));
        image::open(path).expect("a picture").to_rgb8()
    };
    for (name, number) in [("new", 1), ("new", 2), ("old", 1), ("old", 2)] {
        let (found, first) = (picture(name, number), picture("first", number));
        let pairs = found.as_raw().iter().zip(first.as_raw());
        let distance = pairs.map(|(a, b)| a.abs_diff(*b)).max();
        assert!(distance <= Some(1), "{name} {number}: {distance:?}");
    }

    // What is no file of latents is told.
    fs::write(input.join("text.latent"), "no tensors").expect("a file");
    save("other.latent", vec![("something", own)]);
    let flat = own.flatten_all().expect("numbers");
    save("flat.latent", vec![("latent_tensor", &flat)]);
    for (name, sentence) in [
        ("text", "is no file of latents"),
        ("other", "it has no tensor `latent_tensor`"),
        ("flat", "four axes"),
    ] {
        let mut wrong = json!({"c": workflow["c"]});
        wrong["l"] = node("LoadLatent", json!({"latent": format!("{name}.latent")}));
        decoded(&mut wrong, "wrong", json!(["l", 0]));
        run(folder.path(), &wrong, 3).stderr_contains(sentence);
    }
}
