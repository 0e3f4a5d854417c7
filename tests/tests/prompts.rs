//! Prompts as people write them, from the workflow to the picture, on the bundled model; and the nodes around latents.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use kosmograph_models::Weights;
use kosmograph_models::text::clip_tokens::ClipTokenizer;
use kosmograph_tests::{Finished, Run, repository};
use serde_json::{Value, json};

/// The bundled model's folder.
fn model() -> PathBuf {
    repository().join("models/tiny/sd")
}

/// Runs `workflow` with `models` as one more folder of models; the pictures that it saved.
fn run(workflow: &Value, models: &Path) -> (Finished, Vec<image::RgbImage>) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("workflow.json");
    fs::write(&file, workflow.to_string()).expect("a file");
    let out = folder.path().join("out");
    let run = Run::new("run").with_plugins().arg(file).arg("--out").arg(&out);
    let finished = run.arg("--models").arg(models).expect_success();
    let mut paths: Vec<_> =
        fs::read_dir(out).expect("pictures").map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    let pictures = paths.iter().map(|path| image::open(path).expect("a picture").to_rgb8());
    (finished, pictures.collect())
}

/// The workflow of the repository with that prompt, in two steps.
fn text_workflow(prompt: &str) -> Value {
    let text = fs::read_to_string(repository().join("workflows/text.json")).expect("a workflow");
    let mut workflow: Value = serde_json::from_str(&text).expect("JSON");
    workflow["11"]["inputs"]["text"] = prompt.into();
    workflow["21"]["inputs"]["steps"] = 2.into();
    workflow
}

fn draw(prompt: &str, models: &Path) -> (Finished, image::RgbImage) {
    let (finished, mut pictures) = run(&text_workflow(prompt), models);
    (finished, pictures.remove(0))
}

#[test]
fn weights_steer_and_a_weight_of_one_changes_nothing() {
    let models = tempfile::tempdir().expect("a folder");
    let (_, plain) = draw("a purple ghost in the meadow", models.path());
    let (_, one) = draw("a (purple ghost:1.0) in the meadow", models.path());
    assert_eq!(plain, one);
    let (_, more) = draw("a (purple ghost:1.5) in the meadow", models.path());
    assert_ne!(plain, more);
    let (_, brackets) = draw("a ((purple ghost)) in the meadow", models.path());
    let (_, number) = draw("a (purple ghost:1.2100000000000002) in the meadow", models.path());
    assert_eq!(brackets, number);
    let (_, long) = draw(&"a purple ghost in the meadow ".repeat(30), models.path());
    assert_ne!(plain, long);
}

#[test]
fn an_embedding_stands_for_words() {
    let folder = model();
    // The vectors of a word's own tokens: the embedding must draw what the word draws.
    let tokenizer = ClipTokenizer::read(&folder.join("tokenizer")).expect("the tokenizer");
    let tokens = tokenizer.tokens("purple ghost").expect("tokens");
    let weights = Weights::open(&folder.join("text_encoder"), &Device::Cpu).expect("weights");
    let names = weights.names();
    let name = names.iter().find(|name| name.ends_with("token_embedding.weight")).expect("a table");
    let table = weights.get(name, weights.shape(name).expect("a shape")).expect("a table");
    let count = tokens.len();
    let ids = Tensor::from_vec(tokens, count, &Device::Cpu).expect("ids");
    let vectors = table.index_select(&ids, 0).expect("vectors");
    let wide = Tensor::zeros((1, 1280), candle_core::DType::F32, &Device::Cpu).expect("zeros");

    let models = tempfile::tempdir().expect("a folder");
    let embeddings = models.path().join("embeddings/sub");
    fs::create_dir_all(&embeddings).expect("a folder");
    let save = |name: &str, tensor: &Tensor| {
        let tensors = HashMap::from([("emb_params".to_owned(), tensor.clone())]);
        candle_core::safetensors::save(&tensors, embeddings.join(name)).expect("a file");
    };
    save("ghost.safetensors", &vectors);
    save("wide.safetensors", &wide);

    let (_, words) = draw("a purple ghost, in the (meadow:1.3)", models.path());
    for prompt in [
        "a embedding:sub/ghost, in the (meadow:1.3)",
        "a (embedding:sub/ghost.safetensors:1.0), in the (meadow:1.3)",
        "a embedding: sub/ghost, in the (meadow:1.3)",
    ] {
        let (finished, drawn) = draw(prompt, models.path());
        assert!(!finished.stderr().contains("left out"), "{}", finished.stderr());
        assert_eq!(drawn, words, "{prompt}");
    }

    // A bracket that nothing opened is told by nobody, and a mention of nothing before the run and in it.
    let (finished, _) = draw("a embedding:sub/ghost) cat", models.path());
    assert!(!finished.stderr().contains("left out"), "{}", finished.stderr());
    let (finished, _) = draw("a cat embedding:", models.path());
    for told in [
        "names no file; the text is taken without this embedding",
        "\"embedding:\" has no name behind it",
    ] {
        assert!(finished.stderr().contains(told), "{}", finished.stderr());
    }

    let (finished, missing) = draw("a embedding:nobody purple ghost", models.path());
    assert!(finished.stderr().contains("nobody"), "{}", finished.stderr());
    assert_eq!(missing, draw("a purple ghost", models.path()).1);

    // One for another encoder is left out as a missing one, and told once.
    for prompt in ["a embedding:sub/wide, purple ghost", "a embedding:sub/wide, embedding:sub/wide"]
    {
        let (finished, left_out) = draw(prompt, models.path());
        let told = finished.stderr();
        let width = "its vectors have 1280 numbers, those of the encoder 128";
        assert_eq!(told.matches(width).count(), 1, "{told}");
        assert!(!told.contains("no embedding \"sub"), "{told}");
        assert_eq!(left_out, draw(&prompt.replace("embedding:sub/wide", ""), models.path()).1);
    }
    // A tab before it will do.
    assert_eq!(draw("a\tembedding:sub/ghost, in the (meadow:1.3)", models.path()).1, words);
}

#[test]
fn latents_are_turned_scaled_and_decoded_in_tiles() {
    let node = |class: &str, inputs: Value| json!({"class_type": class, "inputs": inputs});
    let mut workflow = text_workflow("a purple ghost in the meadow");
    let nodes = [
        ("40", node("CLIPSetLastLayer", json!({"clip": ["1", 1], "stop_at_clip_layer": -2}))),
        ("41", node("RepeatLatentBatch", json!({"samples": ["21", 0], "amount": 3}))),
        (
            "42",
            node("LatentFromBatch", json!({"samples": ["41", 0], "batch_index": 1, "length": 2})),
        ),
        (
            "43",
            node(
                "LatentUpscaleBy",
                json!({"samples": ["42", 0], "upscale_method": "bislerp", "scale_by": 1.5}),
            ),
        ),
        (
            "44",
            node(
                "LatentUpscale",
                json!({"samples": ["43", 0], "upscale_method": "bicubic", "width": 256, "height": 192, "crop": "center"}),
            ),
        ),
        (
            "45",
            node(
                "LatentFlip",
                json!({"samples": ["44", 0], "flip_method": "y-axis: horizontally"}),
            ),
        ),
        ("46", node("LatentRotate", json!({"samples": ["45", 0], "rotation": "90 degrees"}))),
        (
            "47",
            node(
                "LatentComposite",
                json!({"samples_to": ["46", 0], "samples_from": ["21", 0], "x": 32, "y": 64, "feather": 16}),
            ),
        ),
        (
            "48",
            node(
                "VAEDecodeTiled",
                json!({"samples": ["47", 0], "vae": ["1", 2], "tile_size": 128, "overlap": 32}),
            ),
        ),
        (
            "49",
            node(
                "VAEEncodeTiled",
                json!({"pixels": ["48", 0], "vae": ["1", 2], "tile_size": 128, "overlap": 32}),
            ),
        ),
        ("50", node("VAEDecode", json!({"samples": ["49", 0], "vae": ["1", 2]}))),
        ("51", node("TilePreprocessor", json!({"image": ["50", 0]}))),
        ("52", node("ImageBatch", json!({"image1": ["50", 0], "image2": ["51", 0]}))),
    ];
    for (id, node) in nodes {
        workflow[id] = node;
    }
    workflow["11"]["inputs"]["clip"] = json!(["40", 0]);
    workflow["23"]["inputs"]["images"] = json!(["52", 0]);
    let (_, pictures) = run(&workflow, &repository().join("models"));
    assert_eq!(pictures.len(), 4);
    assert!(pictures.iter().all(|picture| picture.dimensions() == (192, 256)));
}
