//! What strangers' files do to `kosmograph`: a sentence that names file, node and input; never a panic,
//! a hang, or half a file.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kosmograph_tests::{Finished, Run, repository};
use serde_json::{Value, json};

/// A folder for one test.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Runs the workflow and expects `code` and every one of `sentences`, and no trace of a panic.
fn expect(run: Run, code: i32, sentences: &[&str]) -> Finished {
    let mut finished = run.limit(Duration::from_secs(60)).expect_code(code);
    for sentence in sentences {
        finished = finished.stderr_contains(sentence);
    }
    finished.stderr_lacks("panicked")
}

fn check_file(name: &str, bytes: &[u8], sentences: &[&str]) {
    let folder = folder();
    let path = folder.path().join(name);
    fs::write(&path, bytes).expect("the workflow is written");
    for command in ["check", "run"] {
        let run = Run::new(command).with_plugins().arg(&path);
        expect(run, 2, sentences).stderr_contains(name);
    }
}

#[test]
fn workflows_that_are_none() {
    check_file("empty.json", b"", &["empty"]);
    check_file("blank.json", b" \n ", &["empty"]);
    check_file("list.json", b"[1, 2]", &["object"]);
    check_file(
        "truncated.json",
        br#"{"1": {"class_type": "LoadImage", "inputs": {"ima"#,
        &["line 1"],
    );
    check_file("deep.json", "[".repeat(100_000).as_bytes(), &["deep"]);
    check_file("not_json.json", b"\xff\xfe\x00binary", &["UTF-8"]);
}

#[test]
fn a_workflow_without_nodes() {
    expect(Run::new("check").with_plugins().arg("-").stdin("{}"), 2, &["no nodes"]);
}

#[test]
fn a_workflow_of_100_megabytes() {
    let folder = folder();
    let path = folder.path().join("huge.json");
    let file = fs::File::create(&path).expect("a file");
    // Sparse: a file of that size without writing it.
    file.set_len(100 << 20).expect("its length");
    expect(Run::new("check").with_plugins().arg(&path), 2, &["huge.json", "64 MB"]);
}

#[test]
fn a_workflow_in_a_circle() {
    let node = |from: &str| json!({"class_type": "ImageInvert", "inputs": {"image": [from, 0]}, "_meta": {"title": "Turn"}});
    let workflow = json!({
        "1": node("2"),
        "2": node("1"),
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    });
    let run = Run::new("check").with_plugins().arg("-").stdin(workflow.to_string());
    expect(run, 2, &["circle", "Turn"]);
}

#[test]
fn all_problems_of_a_workflow_at_once() {
    let workflow = json!({
        "1": {"class_type": "LoadImge", "inputs": {"image": "x.png"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "no-such-picture.png"}},
        "3": {"class_type": "ImageScale", "_meta": {"title": "Scale"}, "inputs": {
            "image": ["2", 1], "upscale_method": "bicubik", "width": -5, "height": 64, "crop": "center"}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}},
        "5": {"class_type": "SaveImage", "inputs": {"filename_prefix": "b"}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "c"}},
    });
    let run = Run::new("check").with_plugins().arg("-").stdin(workflow.to_string());
    let sentences = [
        "LoadImge",
        "LoadImage",
        "no-such-picture.png",
        "Scale",
        "bicubic",
        "width",
        "MASK",
        "images",
    ];
    expect(run, 2, &sentences);
}

#[test]
fn a_png_without_a_workflow() {
    let folder = folder();
    let path = folder.path().join("plain.png");
    image::RgbImage::new(4, 4).save(&path).expect("a picture");
    expect(Run::new("run").with_plugins().arg(&path), 2, &["plain.png", "workflow"]);
    let bytes = fs::read(&path).expect("the picture");
    fs::write(&path, &bytes[..bytes.len() / 2]).expect("half a picture");
    expect(Run::new("run").with_plugins().arg(&path), 2, &["plain.png"]);
}

/// Loads `picture` and saves it to `out`.
fn load_and_save(picture: &Path, out: &Path) -> Run {
    let workflow = json!({
        "1": {"class_type": "LoadImage", "_meta": {"title": "Mine"}, "inputs": {"image": "x.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a"}},
    });
    let set = format!("Mine.image={}", picture.display());
    Run::new("run")
        .with_plugins()
        .args(["-", "--set", &set, "--out"])
        .arg(out)
        .stdin(workflow.to_string())
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

#[test]
fn pictures_of_all_sizes() {
    let folder = folder();
    let (picture, out) = (folder.path().join("picture.png"), folder.path().join("out"));

    image::RgbImage::new(1, 1).save(&picture).expect("a picture");
    expect(load_and_save(&picture, &out), 0, &[]);
    assert_eq!(files_in(&out).len(), 1);
    fs::remove_dir_all(&out).expect("an empty folder again");

    // 30,000 × 30,000 in a file of a few bytes: refused by its header, not when memory is gone.
    let mut bytes = fs::read(&picture).expect("the picture");
    let side = 30_000u32.to_be_bytes();
    bytes[16..20].copy_from_slice(&side);
    bytes[20..24].copy_from_slice(&side);
    let checksum = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
    fs::write(&picture, bytes).expect("a bomb");
    expect(load_and_save(&picture, &out), 3, &["picture.png", "30000", "Mine", "image"]);

    image::RgbImage::new(64, 64).save(&picture).expect("a picture");
    let whole = fs::read(&picture).expect("the picture");
    fs::write(&picture, &whole[..whole.len() - 30]).expect("a truncated picture");
    expect(load_and_save(&picture, &out), 3, &["picture.png", "Mine", "image"]);

    fs::write(&picture, "I am no picture, whatever my name says").expect("a text");
    expect(load_and_save(&picture, &out), 3, &["picture.png", "Mine", "image"]);
    assert!(files_in(&out).is_empty(), "a failed run leaves no files");
}

/// The CRC of a PNG chunk.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

#[test]
fn an_output_folder_that_cannot_be() {
    let folder = folder();
    let picture = folder.path().join("picture.png");
    image::RgbImage::new(8, 8).save(&picture).expect("a picture");
    // A file where the folder should be: unwritable for everybody, root too.
    let out = folder.path().join("out");
    fs::write(&out, "in the way").expect("a file");
    expect(load_and_save(&picture, &out), 2, &["out", "SaveImage", "is not a folder"]);
    assert_eq!(fs::read(&out).expect("still there"), b"in the way");
}

#[test]
fn a_workflow_cannot_leave_its_folders() {
    for path in ["../../../etc/passwd", "/etc/passwd"] {
        let workflow = json!({
            "1": {"class_type": "LoadImage", "inputs": {"image": path}},
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        });
        let run = Run::new("check").with_plugins().arg("-").stdin(workflow.to_string());
        expect(run, 2, &["image", path]);
    }
    let folder = folder();
    let picture = folder.path().join("picture.png");
    image::RgbImage::new(8, 8).save(&picture).expect("a picture");
    let out = folder.path().join("out");
    let run = load_and_save(&picture, &out).args(["--set", "2.filename_prefix=../escaped"]);
    expect(run, 2, &["filename_prefix", "leads out"]);
    assert!(!folder.path().join("escaped_00001_.png").exists());
}

// ---- Weights ----------------------------------------------------------------------------------

/// A models folder with the golden VAE under `vae/subject`, its weights changed by `change`.
fn vae(change: impl FnOnce(&mut Vec<(String, Vec<usize>, Vec<u8>)>)) -> tempfile::TempDir {
    let golden = repository().join("tests/golden/vae");
    let bytes = fs::read(golden.join("weights.safetensors")).expect("golden weights");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("golden weights");
    let owned = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        (name, view.shape().to_vec(), view.data().to_vec())
    };
    let mut tensors: Vec<_> = tensors.tensors().into_iter().map(owned).collect();
    tensors.sort();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, shape, data)| {
        let dtype = safetensors::Dtype::F32;
        let view = safetensors::tensor::TensorView::new(dtype, shape.clone(), data);
        (name.as_str(), view.expect("a tensor"))
    });
    let file = safetensors::serialize(views, None).expect("safetensors");
    let models = folder();
    let folder = models.path().join("vae/subject");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("diffusion_pytorch_model.safetensors"), file).expect("weights");
    let config: Value =
        serde_json::from_slice(&fs::read(golden.join("config.json")).expect("a file"))
            .expect("the golden configuration");
    fs::write(folder.join("config.json"), config["config"].to_string()).expect("a configuration");
    models
}

/// Decodes an empty latent with the VAE of `models`.
fn decode(models: &Path, out: &Path) -> Run {
    let workflow = json!({
        "1": {"class_type": "VAELoader", "_meta": {"title": "The VAE"}, "inputs": {"vae_name": "subject"}},
        "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "3": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["1", 0]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "a"}},
    });
    let run = Run::new("run").with_plugins().args(["-", "--models"]).arg(models);
    run.arg("--out").arg(out).stdin(workflow.to_string())
}

#[test]
fn whole_weights_are_read() {
    let models = vae(|_| {});
    let out = models.path().join("out");
    expect(decode(models.path(), &out), 0, &[]);
    assert_eq!(files_in(&out).len(), 1);
}

#[test]
fn damaged_weights_are_named() {
    let name = "decoder.conv_in.weight";
    let find = |tensors: &mut Vec<(String, Vec<usize>, Vec<u8>)>| {
        tensors.iter().position(|tensor| tensor.0 == name).expect("the tensor")
    };
    let expect_failure = |models: tempfile::TempDir, sentences: &[&str]| {
        let out = models.path().join("out");
        expect(decode(models.path(), &out), 3, sentences);
        assert!(files_in(&out).is_empty());
    };
    // The header is read by the loader, the numbers by whoever first needs them.
    let loader = ["The VAE", "vae_name"];
    let missing = vae(|tensors| tensors.retain(|tensor| tensor.0 != name));
    expect_failure(missing, &[loader[0], loader[1], name, "no tensor", "nearest"]);

    let extra = vae(|tensors| tensors.push(("decoder.surprise".into(), vec![1], vec![0; 4])));
    expect_failure(extra, &[loader[0], loader[1], "decoder.surprise"]);

    let misshapen = vae(|tensors| {
        let i = find(tensors);
        let count = tensors[i].1.iter().product();
        tensors[i].1 = vec![count];
    });
    expect_failure(misshapen, &[loader[0], loader[1], name, "shape"]);

    let nan = vae(|tensors| {
        let i = find(tensors);
        tensors[i].2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    expect_failure(nan, &["VAEDecode", "diffusion_pytorch_model.safetensors", name, "NaN"]);

    let truncated = vae(|_| {});
    let path = truncated.path().join("vae/subject/diffusion_pytorch_model.safetensors");
    let bytes = fs::read(&path).expect("weights");
    fs::write(&path, &bytes[..bytes.len() - 100]).expect("fewer weights");
    expect_failure(truncated, &[loader[0], loader[1], "diffusion_pytorch_model.safetensors"]);
}

#[test]
fn a_missing_model_names_the_nearest() {
    let models = vae(|_| {});
    let run =
        decode(models.path(), &models.path().join("out")).args(["--set", "1.vae_name=subjekt"]);
    expect(run, 2, &["subjekt", "subject", "vae_name"]);
}

#[test]
fn a_device_that_is_not_there() {
    let models = vae(|_| {});
    let run = decode(models.path(), &models.path().join("out")).args(["--device", "cuda"]);
    expect(run, 3, &["cuda", "--device cpu"]);
}
