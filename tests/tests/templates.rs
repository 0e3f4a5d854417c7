//! Workflows as ComfyUI's editor saves them, from `check` to a picture.
//!
//! ComfyUI's own templates are GPL and not in this repository: `scripts/templates.py FOLDER` fetches
//! them, and `KOSMOGRAPH_TEMPLATES=FOLDER cargo test … --test templates -- --ignored` reads them.

use std::fs;
use std::path::{Path, PathBuf};

use kosmograph_tests::Run;
use serde_json::{Value, json};

#[test]
#[ignore = "wants the folder that scripts/templates.py makes, in KOSMOGRAPH_TEMPLATES"]
fn comfyuis_templates_lack_files_and_nothing_else() {
    let folder = std::env::var_os("KOSMOGRAPH_TEMPLATES").map(PathBuf::from);
    let folder = folder.expect("KOSMOGRAPH_TEMPLATES names the folder of templates");
    let mut checked = 0;
    for entry in fs::read_dir(&folder).expect("the folder of templates") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let report = Run::new("check").with_plugins().arg("--json").arg(&path).run().json();
        let problems = report["problems"].as_array().expect("a list");
        let is_missing = |problem: &&Value| {
            problem["message"].as_str().is_some_and(|message| message.starts_with("there is no "))
        };
        assert!(
            problems.iter().all(|problem| is_missing(&problem)),
            "{}: {report:#}",
            path.display()
        );
        assert_eq!(report["warnings"], json!([]), "{}", path.display());
        assert!(!problems.is_empty(), "{}: whose models are here?", path.display());
        checked += 1;
    }
    assert_eq!(checked, 14, "templates in {}", folder.display());
}

/// The bundled model's text.json, as the editor would save it: with a reroute, a primitive, a note, a
/// bypassed node, a choice in the prompt and a prefix that says the seed.
fn editors_text() -> Value {
    let node = |id: u64, class: &str, inputs: Value, values: Value| {
        json!({"id": id, "type": class, "mode": 0, "pos": [0, 0], "inputs": inputs,
            "outputs": [{"name": "x", "type": "*"}], "properties": {"Node name for S&R": class},
            "widgets_values": values})
    };
    let input =
        |name: &str, kind: &str, link: u64| json!({"name": name, "type": kind, "link": link});
    let mut steps = input("steps", "INT", 10);
    steps["widget"] = json!({"name": "steps"});
    let mut bypassed = node(12, "ImageInvert", json!([input("image", "IMAGE", 9)]), json!([]));
    bypassed["mode"] = json!(4);
    let mut prompt = node(
        2,
        "CLIPTextEncode",
        json!([input("clip", "CLIP", 2)]),
        json!(["a {red|green} monster // a comment\n"]),
    );
    prompt["title"] = json!("Prompt");
    let sampler_inputs = json!([
        input("model", "MODEL", 4),
        input("positive", "CONDITIONING", 5),
        input("negative", "CONDITIONING", 6),
        input("latent_image", "LATENT", 7),
        steps
    ]);
    let nodes = json!([
        node(1, "CheckpointLoaderSimple", json!([]), json!(["tiny/sd"])),
        node(20, "Reroute", json!([input("", "*", 1)]), json!(null)),
        prompt,
        node(3, "CLIPTextEncode", json!([input("clip", "CLIP", 3)]), json!([""])),
        node(4, "EmptyLatentImage", json!([]), json!([128, 128, 1])),
        node(5, "KSampler", sampler_inputs, json!([7, "randomize", 20, 7.5, "euler", "normal", 1])),
        node(
            6,
            "VAEDecode",
            json!([input("samples", "LATENT", 8), input("vae", "VAE", 12)]),
            json!([])
        ),
        bypassed,
        node(
            7,
            "SaveImage",
            json!([input("images", "IMAGE", 11)]),
            json!(["seed_%KSampler.seed%"])
        ),
        node(30, "PrimitiveNode", json!([]), json!([2, "fixed"])),
        node(31, "MarkdownNote", json!([]), json!(["# Notes are not run"])),
    ]);
    let links = json!([
        [1, 1, 1, 20, 0, "CLIP"],
        [2, 20, 0, 2, 0, "CLIP"],
        [3, 20, 0, 3, 0, "CLIP"],
        [4, 1, 0, 5, 0, "MODEL"],
        [5, 2, 0, 5, 1, "CONDITIONING"],
        [6, 3, 0, 5, 2, "CONDITIONING"],
        [7, 4, 0, 5, 3, "LATENT"],
        [8, 5, 0, 6, 0, "LATENT"],
        [9, 6, 0, 12, 0, "IMAGE"],
        [10, 30, 0, 5, 4, "INT"],
        [11, 12, 0, 7, 0, "IMAGE"],
        [12, 1, 2, 6, 1, "VAE"]
    ]);
    json!({"last_node_id": 31, "last_link_id": 12, "nodes": nodes, "links": links,
        "groups": [{"title": "All", "bounding": [0, 0, 1, 1]}], "config": {}, "extra": {}, "version": 0.4})
}

fn text_chunk(path: &Path, keyword: &str) -> Value {
    let file = std::io::BufReader::new(fs::File::open(path).expect("the picture"));
    let reader = png::Decoder::new(file).read_info().expect("a PNG");
    let info = reader.info();
    let plain = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == keyword);
    let text = plain.map(|chunk| chunk.text.clone()).or_else(|| {
        let utf8 = info.utf8_text.iter().find(|chunk| chunk.keyword == keyword)?;
        utf8.get_text().ok()
    });
    serde_json::from_str(&text.unwrap_or_else(|| panic!("no chunk {keyword:?}"))).expect("JSON")
}

#[test]
fn what_the_editor_saved_is_checked_run_and_carried_by_its_picture() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, out) = (folder.path().join("saved.json"), folder.path().join("out"));
    let saved = editors_text();
    fs::write(&path, saved.to_string()).expect("the workflow");
    Run::new("check").with_plugins().arg(&path).expect_success().stdout_contains("7 nodes");
    let run = |workflow: &Path, out: &Path| {
        Run::new("run").with_plugins().arg(workflow).arg("--out").arg(out)
    };
    run(&path, &out).args(["--seed", "3..5", "--set", "Prompt.text=a cat"]).expect_success();
    let first = out.join("seed_3_00001_.png");
    assert!(out.join("seed_4_00001_.png").exists() && first.exists());
    let prompt = text_chunk(&first, "prompt");
    assert_eq!(prompt["5"]["inputs"]["steps"], 2);
    assert_eq!(prompt["5"]["inputs"]["seed"], 3);
    assert_eq!(prompt["2"]["inputs"], json!({"text": "a cat", "clip": ["1", 1]}));
    assert_eq!(prompt["7"]["inputs"]["images"], json!(["6", 0]));
    assert_eq!(text_chunk(&first, "workflow"), saved);

    // Standard input, and a choice.
    let piped = folder.path().join("piped");
    run(Path::new("-"), &piped).stdin(saved.to_string()).expect_success();
    let prompt = text_chunk(&piped.join("seed_7_00001_.png"), "prompt");
    let text = prompt["2"]["inputs"]["text"].as_str().expect("a text");
    assert!(["a red monster \n", "a green monster \n"].contains(&text), "{text:?}");

    // A picture that carries the editor's graph alone.
    let picture = folder.path().join("only.png");
    let file = fs::File::create(&picture).expect("a file");
    let mut encoder = png::Encoder::new(file, 1, 1);
    encoder.add_text_chunk("workflow".into(), saved.to_string()).expect("a chunk");
    let mut writer = encoder.write_header().expect("a header");
    writer.write_image_data(&[0]).expect("a pixel");
    writer.finish().expect("an end");
    Run::new("check").with_plugins().arg(&picture).expect_success();
}

/// Those of this repository, which name published files.
#[test]
fn our_templates_lack_files_and_nothing_else() {
    let folder = kosmograph_tests::repository().join("workflows/templates");
    let mut checked = 0;
    for entry in fs::read_dir(&folder).expect("the templates") {
        let path = entry.expect("an entry").path();
        let report = Run::new("check").with_plugins().arg("--json").arg(&path).run().json();
        let problems = report["problems"].as_array().expect("a list");
        let is_missing = |problem: &Value| {
            problem["message"].as_str().is_some_and(|message| message.starts_with("there is no "))
        };
        assert!(problems.iter().all(is_missing), "{}: {report:#}", path.display());
        assert_eq!(report["warnings"], json!([]), "{}", path.display());
        assert!(!problems.is_empty(), "{}: whose models are here?", path.display());
        checked += 1;
    }
    assert_eq!(checked, 5, "templates in {}", folder.display());
}
