//! TAESD from end to end: as a VAE by ComfyUI's names, and as what shows a sampler's steps.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use kosmograph_tests::{Run, build_c_text, repository};
use serde_json::{Value, json};

/// The golden TAESD as its two published files, and the U-Net that its latents are for.
fn models() -> tempfile::TempDir {
    let models = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(models.path().join("vae_approx")).expect("a folder");
    fs::create_dir_all(models.path().join("vae")).expect("a folder");
    let golden = repository().join("tests/golden/taesd/weights.safetensors");
    let tensors = candle_core::safetensors::load(golden, &Device::Cpu).expect("golden weights");
    for (half, first) in [("encoder", 0), ("decoder", 1)] {
        let mut of_half = BTreeMap::new();
        for (name, tensor) in &tensors {
            let Some(rest) = name.strip_prefix(&format!("{half}.layers.")) else { continue };
            let (number, rest) = rest.split_once('.').expect("a number");
            let number: usize = number.parse().expect("a number");
            of_half.insert(format!("{}.{rest}", number + first), tensor.clone());
        }
        save(&models.path().join(format!("vae_approx/taesd_{half}.safetensors")), &of_half);
    }
    models
}

fn save(path: &Path, tensors: &BTreeMap<String, Tensor>) {
    let tensors: Vec<(&String, &Tensor)> = tensors.iter().collect();
    safetensors::serialize_to_file(tensors, None, path).expect("a file");
}

/// An empty latent, decoded and encoded and decoded.
fn there_and_back(vae: &str) -> Value {
    json!({
        "1": {"class_type": "VAELoader", "_meta": {"title": "The tiny VAE"}, "inputs": {"vae_name": vae}},
        "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 48, "batch_size": 1}},
        "3": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["1", 0]}},
        "4": {"class_type": "VAEEncode", "inputs": {"pixels": ["3", 0], "vae": ["1", 0]}},
        "5": {"class_type": "VAEDecodeTiled", "inputs": {"samples": ["4", 0], "vae": ["1", 0], "tile_size": 64, "overlap": 16}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "a"}},
    })
}

fn run(subcommand: &str, models: &Path, workflow: &Value) -> Run {
    let run = Run::new(subcommand).with_plugins().arg("-").stdin(workflow.to_string());
    let run = run.arg("--models").arg(models);
    if subcommand == "run" { run.arg("--out").arg(models.join("out")) } else { run }
}

fn pictures(folder: &Path) -> Vec<image::RgbImage> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let open = |path| image::open(path).expect("a picture").to_rgb8();
    entries.map(|entry| open(entry.expect("an entry").path())).collect()
}

#[test]
fn taesd_is_a_vae_when_both_files_are_there() {
    let models = models();
    let workflow = there_and_back("taesd");
    run("run", models.path(), &workflow).expect_success();
    let made = pictures(&models.path().join("out"));
    assert_eq!(made.iter().map(image::RgbImage::dimensions).collect::<Vec<_>>(), [(64, 48)]);
    let offered = Run::new("nodes").with_plugins().args(["--json", "--models"]).arg(models.path());
    let offered = offered.expect_success().json();
    let names = &offered["VAELoader"]["input"]["required"]["vae_name"][0];
    let names: Vec<&str> =
        names.as_array().expect("names").iter().filter_map(Value::as_str).collect();
    assert!(names.contains(&"taesd") && !names.contains(&"taesdxl"), "{names:?}");

    // Another decoder is another VAE, and so is one with both halves in one file.
    let both = repository().join("tests/golden/taesd/weights.safetensors");
    fs::copy(&both, models.path().join("vae/tiny.safetensors")).expect("a copy");
    fs::remove_dir_all(models.path().join("out")).expect("an empty folder again");
    run("run", models.path(), &there_and_back("tiny.safetensors")).expect_success();
    assert_eq!(pictures(&models.path().join("out")), made);

    fs::remove_file(models.path().join("vae_approx/taesd_decoder.safetensors")).expect("a file");
    let refused = run("check", models.path(), &workflow).expect_code(2);
    refused.stderr_contains("taesd").stderr_contains("vae_name");
}

#[test]
fn a_half_alone_and_a_damaged_one_are_told() {
    let models = models();
    let (encoder, decoder) = (
        models.path().join("vae_approx/taesd_encoder.safetensors"),
        models.path().join("vae_approx/taesd_decoder.safetensors"),
    );
    fs::copy(&decoder, models.path().join("vae/half.safetensors")).expect("a copy");
    let alone = run("run", models.path(), &there_and_back("half.safetensors")).expect_code(3);
    alone.stderr_contains("VAEEncode").stderr_contains("a decoder alone").stderr_lacks("panicked");

    let refused = |told: &[&str]| {
        let finished = run("run", models.path(), &there_and_back("taesd")).expect_code(3);
        for told in told {
            assert!(finished.stderr().contains(told), "{told:?} is not told by\n{finished}");
        }
        finished.stderr_lacks("panicked");
    };
    let whole = fs::read(&decoder).expect("a file");
    fs::write(&decoder, &whole[..whole.len() / 2]).expect("half of it");
    refused(&["The tiny VAE", "vae_name", "taesd_decoder.safetensors"]);
    // The encoder under the decoder's name.
    fs::copy(&encoder, &decoder).expect("a copy");
    refused(&["taesd_decoder.safetensors", "TAESD's encoder, where TAESD's decoder is wanted"]);
    // A decoder for other latents.
    let mut tensors: BTreeMap<_, _> = candle_core::safetensors::load_buffer(&whole, &Device::Cpu)
        .expect("weights")
        .into_iter()
        .collect();
    let wide = Tensor::zeros((8, 16, 3, 3), DType::F32, &Device::Cpu).expect("zeros");
    tensors.insert("1.weight".to_owned(), wide);
    save(&decoder, &tensors);
    refused(&["latents of 4 channels, the decoder takes 16"]);
}

/// The denoiser of the examples, which says whose latents it makes.
fn denoiser() -> std::path::PathBuf {
    let source = repository().join("tests/examples/denoiser.c");
    let source = fs::read_to_string(source).expect("the example");
    let (from, to) = (
        "\\\"context_width\\\": 768,",
        "\\\"context_width\\\": 128, \\\"preview_decoder\\\": \\\"taesd_decoder\\\",",
    );
    assert!(source.contains(from), "the example has no {from:?}");
    build_c_text("preview_denoiser", &source.replacen(from, to, 1), &[])
}

#[test]
fn steps_are_shown_by_taesd_where_it_is_there() {
    let models = models();
    let library = denoiser();
    let workflow = json!({
        "c": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny/sd"}},
        "m": {"class_type": "CAnalyticDenoiser", "inputs": {"mean": 0.5, "deviation": 0.5}},
        "p": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["c", 1], "text": "a hat"}},
        "l": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 48, "batch_size": 1}},
        "k": {"class_type": "KSampler", "inputs": {"model": ["m", 0], "seed": 1, "steps": 3, "cfg": 1.0,
            "sampler_name": "euler", "scheduler": "normal", "positive": ["p", 0], "negative": ["p", 0],
            "latent_image": ["l", 0], "denoise": 1.0}},
        "d": {"class_type": "VAEDecode", "inputs": {"samples": ["k", 0], "vae": ["c", 2]}},
        "s": {"class_type": "SaveImage", "inputs": {"images": ["d", 0], "filename_prefix": "a"}},
    });
    let previews = models.path().join("previews");
    let sampled = || {
        let _ = fs::remove_dir_all(models.path().join("out"));
        let _ = fs::remove_dir_all(&previews);
        let run = run("run", models.path(), &workflow).arg("--plugins").arg(&library);
        let run = run.arg("--models").arg(repository().join("models"));
        let finished = run.arg("--previews").arg(&previews).expect_success();
        (pictures(&models.path().join("out")), pictures(&previews), finished)
    };
    let (made, shown, _) = sampled();
    assert_eq!(shown.iter().map(image::RgbImage::dimensions).collect::<Vec<_>>(), [(64, 48); 3]);

    // One that cannot be used is told, and costs no more than the better picture: this model has no colours.
    let decoder = models.path().join("vae_approx/taesd_decoder.safetensors");
    let whole = fs::read(&decoder).expect("a file");
    fs::write(&decoder, &whole[..whole.len() / 2]).expect("half of it");
    let (same, shown, finished) = sampled();
    assert_eq!((same, shown.len()), (made.clone(), 0));
    finished
        .stderr_contains("taesd_decoder.safetensors")
        .stderr_contains("previews are made of colours");
    fs::remove_file(&decoder).expect("a file");
    let (same, shown, _) = sampled();
    assert_eq!((same, shown.len()), (made, 0));
}
