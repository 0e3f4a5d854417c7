//! Workflows as people have them: parts of which are bad, requests of API clients, linked folders.

use std::fs;
use std::path::{Path, PathBuf};

use kosmograph_tests::Run;
use serde_json::{Value, json};

/// A folder with a picture `in/a.png`.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::create_dir(folder.path().join("in")).expect("a folder");
    image::RgbImage::new(8, 8).save(folder.path().join("in/a.png")).expect("a picture");
    folder
}

/// A picture that is saved.
fn good() -> Value {
    json!({
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png", "upload": "image"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a"}},
    })
}

/// The same, and an output that lacks its input, one of an unknown class, and one that needs that.
fn partly_bad() -> Value {
    let mut workflow = good();
    workflow["3"] = json!({"class_type": "PreviewImage", "inputs": {}});
    workflow["4"] = json!({"class_type": "SaveElsewhere", "inputs": {"images": ["1", 0]}});
    workflow["5"] = json!({"class_type": "Nobodys", "inputs": {"images": ["1", 0]}});
    workflow["6"] = json!({"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}});
    workflow
}

fn command(subcommand: &str, folder: &Path, workflow: &Value) -> Run {
    let run = Run::new(subcommand).with_plugins().arg("-").stdin(workflow.to_string());
    run.arg("--input").arg(folder.join("in")).arg("--out").arg(folder.join("out"))
}

fn saved(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join("out")).into_iter().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

#[test]
fn a_bad_output_costs_itself() {
    let folder = folder();
    let finished = command("run", folder.path(), &partly_bad()).arg("--json").expect_code(3);
    assert_eq!(saved(folder.path()), [folder.path().join("out/a_00001_.png")]);
    let events = finished.json_lines();
    let of = |kind: &str| {
        let of = events.iter().filter(|event| event["event"] == kind);
        of.cloned().collect::<Vec<_>>()
    };
    let left_out: Vec<(String, String)> = of("left_out")
        .iter()
        .map(|event| (event["node"].to_string(), event["because_of"].to_string()))
        .collect();
    let pair = |node: &str, cause: &str| (format!("{node:?}"), format!("{cause:?}"));
    assert_eq!(left_out, [pair("3", "3"), pair("4", "4"), pair("6", "5")]);
    assert_eq!(of("error").len(), 3);
    assert_eq!(of("plan")[0]["nodes"].as_array().map(Vec::len), Some(2));
    let last = events.last().expect("an event");
    assert_eq!(
        (&last["event"], &last["left_out"], &last["failed"]),
        (&json!("done"), &json!(3), &json!(0))
    );
}

#[test]
fn check_says_what_would_be_left_out() {
    let folder = folder();
    let finished = command("check", folder.path(), &partly_bad()).arg("--json").expect_code(3);
    let found = finished.json();
    assert_eq!(found["valid"], false);
    assert_eq!(found["left_out"].as_array().map(Vec::len), Some(3));
    command("check", folder.path(), &partly_bad())
        .expect_code(3)
        .stderr_contains("so it is an output that is missing")
        .stderr_contains("node 6 (PreviewImage) is left out, it needs node 5");
    command("check", folder.path(), &good()).expect_code(0).stderr_lacks("upload");
}

#[test]
fn strict_refuses_the_whole() {
    let folder = folder();
    for subcommand in ["check", "run"] {
        command(subcommand, folder.path(), &partly_bad()).arg("--strict").expect_code(2);
        command(subcommand, folder.path(), &good()).arg("--strict").expect_code(0);
    }
    assert_eq!(saved(folder.path()).len(), 1);
    let nothing = json!({"3": {"class_type": "PreviewImage", "inputs": {}}});
    command("run", folder.path(), &nothing).expect_code(2);
}

#[test]
fn a_request_is_run_and_its_graph_saved() {
    let folder = folder();
    let editor = json!({"nodes": [], "links": [], "version": 0.4});
    let body = json!({"client_id": "me", "prompt": good(),
        "extra_data": {"extra_pnginfo": {"workflow": editor}}});
    command("run", folder.path(), &body).expect_code(0);
    let worker = json!({"input": {"workflow": good()}});
    command("run", folder.path(), &worker).expect_code(0);
    let files = saved(folder.path());
    assert_eq!(files.len(), 2);
    // The picture carries the workflow, not the request, and can be run again.
    let bytes = fs::read(&files[0]).expect("the picture");
    let holds = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(holds("LoadImage") && holds("\"version\":0.4") && !holds("client_id"));
    let run =
        Run::new("run").with_plugins().arg(&files[0]).arg("--input").arg(folder.path().join("in"));
    run.arg("--out").arg(folder.path().join("out")).expect_code(0);
    assert_eq!(saved(folder.path()).len(), 3);
}

#[cfg(unix)]
#[test]
fn linked_folders_are_followed() {
    use std::os::unix::fs::symlink;
    let disk = folder();
    fs::create_dir(disk.path().join("results")).expect("a folder");
    let mine = tempfile::tempdir().expect("a temporary folder");
    symlink(disk.path().join("in"), mine.path().join("in")).expect("a link");
    symlink(disk.path().join("results"), mine.path().join("out")).expect("a link");
    command("run", mine.path(), &good()).expect_code(0);
    assert!(disk.path().join("results/a_00001_.png").is_file());
    let mut out = good();
    out["1"]["inputs"]["image"] = json!("../in/a.png");
    command("check", mine.path(), &out).expect_code(2).stderr_contains("leads out");
}

#[test]
fn where_files_go_is_told_before_anything_runs() {
    let folder = folder();
    let mut workflow = good();
    for (prefix, sentence) in [
        ("../x".to_owned(), "leads out of"),
        ("a/../../x".to_owned(), "leads out of"),
        ("x".repeat(300), "too long"),
        ("a\0b".to_owned(), "no file's name may have"),
    ] {
        workflow["2"]["inputs"]["filename_prefix"] = prefix.into();
        for subcommand in ["check", "run"] {
            command(subcommand, folder.path(), &workflow)
                .expect_code(2)
                .stderr_contains("node 2 (SaveImage), input \"filename_prefix\"")
                .stderr_contains(sentence);
        }
    }
    fs::write(folder.path().join("out"), "in the way").expect("a file");
    for subcommand in ["check", "run"] {
        command(subcommand, folder.path(), &good())
            .expect_code(2)
            .stderr_contains("cannot be written to")
            .stderr_lacks("LoadImage …");
    }
}

/// A textual inversion of one vector of `width` numbers.
fn embedding(path: &Path, width: usize) {
    let data = vec![0u8; 4 * width];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1, width], &data);
    let file = safetensors::serialize([("emb_params", view.expect("a tensor"))], None);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(path, file.expect("safetensors")).expect("a file");
}

#[test]
fn an_embedding_of_another_width_is_told_by_check_and_left_out() {
    let models = tempfile::tempdir().expect("a temporary folder");
    embedding(&models.path().join("embeddings/sub/wide.safetensors"), 1024);
    let config = kosmograph_tests::repository().join("models/tiny/sd/text_encoder/config.json");
    let config: Value = serde_json::from_slice(&fs::read(config).expect("a file")).expect("JSON");
    let width = config["hidden_size"].as_u64().expect("a width") as usize;
    embedding(&models.path().join("embeddings/fits.safetensors"), width);
    let workflow = json!({
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny/sd"}},
        "8": {"class_type": "CLIPSetLastLayer",
            "inputs": {"clip": ["1", 1], "stop_at_clip_layer": -2}},
        "2": {"class_type": "CLIPTextEncode",
            "inputs": {"clip": ["8", 0], "text": "a hat,\tembedding:wide embedding:fits"}},
        "4": {"class_type": "EmptyLatentImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "5": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "positive": ["2", 0],
            "negative": ["2", 0], "latent_image": ["4", 0], "seed": 1, "steps": 1, "cfg": 1.0,
            "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "a"}},
    });
    let command = |subcommand: &str| {
        let run = Run::new(subcommand).with_plugins().arg("-").stdin(workflow.to_string());
        let bundled = kosmograph_tests::repository().join("models");
        let run = run.arg("--models").arg(models.path()).arg("--models").arg(bundled);
        run.arg("--out").arg(models.path().join("out"))
    };
    let sentence = format!("its vectors have 1024 numbers, those of the encoder {width}");
    command("check")
        .expect_code(0)
        .stderr_contains("node 2 (CLIPTextEncode), input \"text\": ")
        .stderr_contains("wide.safetensors is no embedding for this CLIP")
        .stderr_contains(&sentence)
        .stderr_lacks("fits.safetensors");
    let found = command("check").arg("--json").expect_code(0).json();
    assert_eq!(found["warnings"].as_array().map(Vec::len), Some(1), "{found}");
    assert_eq!(found["warnings"][0]["kind"], "unfit");
    command("run").expect_code(0).stderr_contains(&sentence).stderr_contains("it is left out");
}
