//! Patches of the U-Net from end to end: what is set to do nothing does nothing, and what is not does something.

use std::fs;

use kosmograph_tests::Run;
use serde_json::{Map, Value, json};

/// How far two pictures are apart at most, in 255ths.
fn distance(a: &image::RgbImage, b: &image::RgbImage) -> u8 {
    assert_eq!(a.dimensions(), b.dimensions());
    let pairs = a.as_raw().iter().zip(b.as_raw());
    pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

#[test]
fn patches_reach_the_network() {
    // Each a class with its settings; whether it should change the picture; and by how much it may if not, for guidance
    // goes to x₀ and back.
    let cases = [
        ("FreeU", json!({"b1": 1.0, "b2": 1.0, "s1": 1.0, "s2": 1.0}), false, 1),
        // The bundled model has no level of two or four times its outermost channels, and no attention on the outermost: the
        // network is reached, and nothing changed.
        ("FreeU", json!({}), false, 0),
        ("TomePatchModel", json!({"ratio": 0.5}), false, 0),
        ("FreeU_V2", json!({"b1": 1.0, "b2": 1.0, "s1": 1.0, "s2": 1.0}), false, 1),
        ("HyperTile", json!({"tile_size": 64, "max_depth": 1}), false, 0),
        ("HyperTile", json!({"tile_size": 32, "max_depth": 1}), true, 0),
        ("TomePatchModel", json!({"ratio": 0.0}), false, 0),
        ("PerturbedAttentionGuidance", json!({"scale": 0.0}), false, 1),
        ("PerturbedAttentionGuidance", json!({"scale": 3.0}), true, 0),
        ("SelfAttentionGuidance", json!({"scale": 0.0}), false, 1),
        ("SelfAttentionGuidance", json!({"scale": 2.0}), true, 0),
        ("APG", json!({"eta": 0.0}), true, 0),
        ("Mahiro", json!({}), true, 0),
        ("TCFG", json!({}), true, 0),
        ("FreSca", json!({"scale_low": 1.0, "scale_high": 1.0}), false, 1),
        ("FreSca", json!({"scale_low": 1.0, "scale_high": 2.0, "freq_cutoff": 3}), true, 0),
        ("Epsilon Scaling", json!({"scaling_factor": 1.0}), false, 1),
        ("Epsilon Scaling", json!({"scaling_factor": 1.2}), true, 0),
        ("PatchModelAddDownscale", json!({"downscale_factor": 1.0, "end_percent": 1.0}), false, 0),
        ("PatchModelAddDownscale", json!({"end_percent": 1.0}), true, 0),
        (
            "PatchModelAddDownscale",
            json!({"end_percent": 1.0, "block_number": 1, "downscale_after_skip": false}),
            true,
            0,
        ),
    ];
    let node = |class: &str, inputs: Value| json!({"class_type": class, "inputs": inputs});
    let text = |text: &str| json!({"text": text, "clip": ["1", 1]});
    let mut workflow = Map::new();
    let mut add = |id: &str, node: Value| workflow.insert(id.to_owned(), node);
    add("1", node("CheckpointLoaderSimple", json!({"ckpt_name": "tiny/sd"})));
    add("2", node("CLIPTextEncode", text("a red fox in the snow")));
    add("3", node("CLIPTextEncode", text("")));
    add("4", node("EmptyLatentImage", json!({"width": 128, "height": 128, "batch_size": 1})));
    let mut draw = |name: &str, model: Value| {
        let sampler = format!("{name}s");
        add(
            &sampler,
            node(
                "KSampler",
                json!({
            "model": model, "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 5,
            "steps": 4, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}),
            ),
        );
        let decoder = format!("{name}d");
        add(&decoder, node("VAEDecode", json!({"samples": [sampler, 0], "vae": ["1", 2]})));
        let save = json!({"images": [decoder, 0], "filename_prefix": name});
        add(&format!("{name}i"), node("SaveImage", save));
    };
    draw("plain", json!(["1", 0]));
    for (number, _) in cases.iter().enumerate() {
        draw(&format!("case{number}"), json!([format!("{number}p"), 0]));
    }
    for (number, (class, settings, ..)) in cases.iter().enumerate() {
        let mut settings = settings.clone();
        settings["model"] = json!(["1", 0]);
        workflow.insert(format!("{number}p"), node(class, settings));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("w.json");
    fs::write(&file, Value::Object(workflow).to_string()).expect("a file");
    let out = folder.path().join("out");
    Run::new("run").with_plugins().arg(&file).arg("--out").arg(&out).expect_success();
    let picture = |name: &str| {
        image::open(out.join(format!("{name}_00001_.png"))).expect("a picture").to_rgb8()
    };
    let plain = picture("plain");
    let mut wrong = Vec::new();
    for (number, (class, settings, changes, allowed)) in cases.iter().enumerate() {
        let distance = distance(&plain, &picture(&format!("case{number}")));
        // A change that one would see, and none past what numbers at the edge of rounding make.
        let right = if *changes { distance > 2 } else { distance <= *allowed };
        if !right {
            wrong.push(format!("{class} {settings}: {distance}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
