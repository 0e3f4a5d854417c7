//! GLIGEN from end to end: a tiny random file on the bundled model.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use kosmograph_models::Weights;
use kosmograph_models::stable_diffusion::checkpoint::Checkpoint;
use kosmograph_models::stable_diffusion::gligen::{Gligen, GligenConfig, LayerConfig};
use kosmograph_tests::{Run, repository};
use serde_json::{Map, Value, json};

/// GLIGEN of the bundled U-Net's layers, of random numbers that are the same each time, with gates of `gate`.
fn gligen(path: &Path, gate: f32, channels: Option<usize>) {
    let folder = repository().join("models/tiny/sd");
    let checkpoint = Checkpoint::open(&folder, &Device::Cpu).expect("the bundled model");
    let (unet, _, weights) = checkpoint.unet().expect("the U-Net");
    let encoders = checkpoint.text_encoders().expect("the text encoder");
    let layer = |path: &String| {
        let shape = weights.shape(&format!("{path}.to_k.weight")).expect("a layer");
        let path = path.strip_suffix(".attn2").expect("a transformer block").to_owned();
        LayerConfig { path, channels: channels.unwrap_or(shape[0]), heads: 1 }
    };
    let config = GligenConfig {
        text: encoders[0].config.hidden_size,
        hidden: 16,
        token: 24,
        layers: unet.cross_attentions().iter().map(layer).collect(),
    };
    let recording = Weights::recording();
    Gligen::load(&recording, &config).expect("names");
    let mut tensors = BTreeMap::new();
    for (name, shape) in recording.recorded() {
        let count: usize = shape.iter().product();
        let numbers = (0..count).map(|i| ((i * 7919 + 13) % 101) as f32 / 202.0 - 0.25);
        let numbers: Vec<f32> = match name.contains("alpha_") {
            true => vec![gate; count],
            false => numbers.collect(),
        };
        let tensor = Tensor::from_vec(numbers, shape, &Device::Cpu).expect("a tensor");
        tensors.insert(name, tensor);
    }
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    let tensors: Vec<(&String, &Tensor)> = tensors.iter().collect();
    safetensors::serialize_to_file(tensors, None, path).expect("a file");
}

type Box = (&'static str, [i64; 4]);

/// A workflow that draws, of each name, a picture with these boxes of this file.
fn workflow(cases: &[(&str, &str, &[Box])]) -> Value {
    let node = |class: &str, inputs: Value| json!({"class_type": class, "inputs": inputs});
    let text = |text: &str| json!({"text": text, "clip": ["1", 1]});
    let mut workflow = Map::new();
    let mut add = |id: String, node: Value| workflow.insert(id, node);
    add("1".into(), node("CheckpointLoaderSimple", json!({"ckpt_name": "tiny/sd"})));
    add("2".into(), node("CLIPTextEncode", text("a red fox in the snow")));
    add("3".into(), node("CLIPTextEncode", text("")));
    add("4".into(), node("EmptyLatentImage", json!({"width": 64, "height": 64, "batch_size": 1})));
    for (name, file, boxes) in cases {
        let mut positive = json!(["2", 0]);
        if !boxes.is_empty() {
            add(format!("{name}g"), node("GLIGENLoader", json!({"gligen_name": file})));
        }
        for (i, (text, [x, y, width, height])) in boxes.iter().enumerate() {
            let inputs = json!({"conditioning_to": positive, "clip": ["1", 1],
                "gligen_textbox_model": [format!("{name}g"), 0], "text": text, "x": x, "y": y, "width": width,
                "height": height});
            add(format!("{name}b{i}"), node("GLIGENTextBoxApply", inputs));
            positive = json!([format!("{name}b{i}"), 0]);
        }
        let inputs = json!({"model": ["1", 0], "positive": positive, "negative": ["3", 0],
            "latent_image": ["4", 0], "seed": 5, "steps": 3, "cfg": 4.0, "sampler_name": "euler",
            "scheduler": "normal", "denoise": 1.0});
        add(format!("{name}s"), node("KSampler", inputs));
        add(
            format!("{name}d"),
            node("VAEDecode", json!({"samples": [format!("{name}s"), 0], "vae": ["1", 2]})),
        );
        let inputs = json!({"images": [format!("{name}d"), 0], "filename_prefix": name});
        add(format!("{name}i"), node("SaveImage", inputs));
    }
    Value::Object(workflow)
}

fn run(folder: &Path, workflow: &Value) -> Run {
    let file = folder.join("w.json");
    fs::write(&file, workflow.to_string()).expect("a file");
    let run = Run::new("run").with_plugins().arg(&file).arg("--out").arg(folder.join("out"));
    run.arg("--models").arg(folder.join("models")).arg("--models").arg(repository().join("models"))
}

#[test]
fn boxes_reach_the_network() {
    let folder = tempfile::tempdir().expect("a folder");
    let models = folder.path().join("models");
    gligen(&models.join("gligen/shut.safetensors"), 0.0, None);
    gligen(&models.join("gligen/open.safetensors"), 0.6, None);
    let (fox, tree) = (("a fox", [0, 0, 32, 32]), ("a tree", [32, 16, 32, 48]));
    let (moved, other) = (("a fox", [32, 32, 32, 32]), ("a dog", [0, 0, 32, 32]));
    run(
        folder.path(),
        &workflow(&[
            ("plain", "", &[]),
            ("shut", "shut.safetensors", &[fox, tree]),
            ("one", "open.safetensors", &[fox]),
            ("two", "open.safetensors", &[fox, tree]),
            ("moved", "open.safetensors", &[moved]),
            ("other", "open.safetensors", &[other]),
        ]),
    )
    .expect_success();
    let picture = |name: &str| {
        let path = folder.path().join(format!("out/{name}_00001_.png"));
        image::open(path).expect("a picture").to_rgb8()
    };
    // Gates that are shut let nothing through, to the last bit.
    assert!(picture("plain") == picture("shut"));
    let open = ["plain", "one", "two", "moved", "other"].map(picture);
    for (i, one) in open.iter().enumerate() {
        assert!(open[..i].iter().all(|other| one != other), "picture {i} is like another");
    }
}

#[test]
fn what_is_no_gligen_or_does_not_fit_is_a_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let models = folder.path().join("models");
    gligen(&models.join("gligen/wide.safetensors"), 0.6, Some(32));
    gligen(&models.join("gligen/open.safetensors"), 0.6, None);
    let vae = repository().join("models/tiny/sd/vae/diffusion_pytorch_model.safetensors");
    fs::copy(vae, models.join("gligen/vae.safetensors")).expect("a file");
    let fox = ("a fox", [0, 0, 32, 32]);
    run(folder.path(), &workflow(&[("a", "vae.safetensors", &[fox])]))
        .expect_code(3)
        .stderr_contains("it has no `position_net`");
    run(folder.path(), &workflow(&[("a", "wide.safetensors", &[fox])]))
        .expect_code(3)
        .stderr_contains("made for another family of models");
    run(folder.path(), &workflow(&[("a", "open.safetensors", &[fox; 31])]))
        .expect_code(3)
        .stderr_contains("30 boxes in a picture, 31 were given");
}
