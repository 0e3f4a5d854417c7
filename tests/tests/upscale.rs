//! Upscalers from end to end: files of several kinds through the program, and what strangers' files do.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use kosmograph_models::Weights;
use kosmograph_models::upscalers::compact::CompactConfig;
use kosmograph_models::upscalers::rrdb::RrdbConfig;
use kosmograph_models::upscalers::{Upscaler, UpscalerConfig};
use kosmograph_tests::Run;
use kosmograph_tests::torch::{Saved, save_state_dict};
use serde_json::json;

fn rrdb(doublings: usize, unshuffle: usize) -> UpscalerConfig {
    UpscalerConfig::Rrdb(RrdbConfig { filters: 4, growth: 2, blocks: 1, doublings, unshuffle })
}

fn compact() -> UpscalerConfig {
    UpscalerConfig::Compact(CompactConfig { features: 4, convolutions: 1, scale: 4 })
}

/// A tiny network of small random numbers.
fn tensors(config: &UpscalerConfig) -> BTreeMap<String, Tensor> {
    let weights = Weights::recording();
    Upscaler::load(&weights, config).expect("names");
    let random = |(name, shape): (String, Vec<usize>)| {
        (name, Tensor::randn(0f32, 0.05, shape, &Device::Cpu).expect("numbers"))
    };
    weights.recorded().into_iter().map(random).collect()
}

fn save_safetensors(path: &Path, tensors: &BTreeMap<String, Tensor>) {
    let tensors: Vec<(&String, &Tensor)> = tensors.iter().collect();
    safetensors::serialize_to_file(tensors, None, path).expect("a file");
}

/// As Real-ESRGAN's code saves it: the averaged weights under `params_ema`.
fn save_torch(path: &Path, tensors: &BTreeMap<String, Tensor>) {
    let saved = tensors.iter().map(|(name, tensor)| {
        let values = tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("numbers");
        Saved::f32(&format!("params_ema.{name}"), tensor.dims(), &values)
    });
    save_state_dict(path, &saved.collect::<Vec<_>>());
}

/// A folder with models/upscale_models and a picture of `width` × `height`.
fn folder(width: u32, height: u32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(folder.path().join("models/upscale_models")).expect("a folder");
    fs::create_dir_all(folder.path().join("input")).expect("a folder");
    let pixel = |x: u32, y: u32| image::Rgb([(x * 7) as u8, (y * 5) as u8, (x * y) as u8]);
    let picture = image::RgbImage::from_fn(width, height, pixel);
    picture.save(folder.path().join("input/small.png")).expect("a picture");
    folder
}

fn run(subcommand: &str, folder: &Path, model: &str) -> Run {
    let workflow = json!({
        "1": {"class_type": "UpscaleModelLoader", "_meta": {"title": "The upscaler"}, "inputs": {"model_name": model}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "small.png"}},
        "3": {"class_type": "ImageUpscaleWithModel", "inputs": {"upscale_model": ["1", 0], "image": ["2", 0]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "large"}},
    });
    let mut run = Run::new(subcommand).with_plugins().arg("-").stdin(workflow.to_string());
    run = run.arg("--models").arg(folder.join("models")).arg("--input").arg(folder.join("input"));
    if subcommand == "run" {
        run = run.arg("--out").arg(folder.join("out"));
    }
    run.limit(Duration::from_secs(120))
}

#[test]
fn files_of_every_kind_make_pictures_larger() {
    let folder = folder(20, 12);
    let models = folder.path().join("models/upscale_models");
    save_safetensors(&models.join("x4.safetensors"), &tensors(&rrdb(2, 1)));
    save_torch(&models.join("RealESRGAN_x2plus.pth"), &tensors(&rrdb(2, 2)));
    save_torch(&models.join("compact.pth"), &tensors(&compact()));
    for (model, scale) in [("x4.safetensors", 4), ("RealESRGAN_x2plus.pth", 2), ("compact.pth", 4)]
    {
        run("check", folder.path(), model).expect_success();
        run("run", folder.path(), model).expect_success();
        let out = folder.path().join("out");
        let entry = fs::read_dir(&out).expect("a folder").next().expect("a picture");
        let picture = image::open(entry.expect("an entry").path()).expect("a picture");
        assert_eq!((picture.width(), picture.height()), (20 * scale, 12 * scale), "{model}");
        fs::remove_dir_all(&out).expect("an empty folder again");
    }
}

#[test]
fn a_large_picture_goes_in_tiles_and_tells_of_each() {
    let folder = folder(530, 20);
    let model = folder.path().join("models/upscale_models/x2.safetensors");
    save_safetensors(&model, &tensors(&rrdb(1, 1)));
    let finished = run("run", folder.path(), "x2.safetensors").arg("--json").expect_success();
    let events = finished.json_lines();
    let of_node = |event: &&serde_json::Value| event["event"] == "progress" && event["node"] == "3";
    let steps: Vec<_> = events
        .iter()
        .filter(of_node)
        .map(|event| (event["step"].as_u64(), event["steps"].as_u64()))
        .collect();
    // 530 columns are two tiles of 512 that share 32.
    assert_eq!(steps, [0, 1, 2].map(|step| (Some(step), Some(2))), "{finished}");
}

#[test]
fn what_is_no_upscaler_is_refused_by_name() {
    let folder = folder(8, 8);
    let models = folder.path().join("models/upscale_models");
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("zeros");
    let refused = |tensors: &BTreeMap<String, Tensor>, sentence: &str| {
        save_safetensors(&models.join("odd.safetensors"), tensors);
        let finished = run("run", folder.path(), "odd.safetensors").expect_code(3);
        for told in ["The upscaler", "model_name", "odd.safetensors", sentence] {
            assert!(finished.stderr().contains(told), "{told:?} is not told by\n{finished}");
        }
        finished.stderr_lacks("panicked");
    };
    let swin = "layers.0.residual_group.blocks.0.norm1.weight";
    refused(&[(swin.to_owned(), zeros(&[1]))].into(), "are of no upscaler that is read");
    let vae = "encoder.down.0.block.0.conv1.weight";
    refused(&[(vae.to_owned(), zeros(&[1]))].into(), "an autoencoder (VAE), no upscaler");
    let mut more = tensors(&rrdb(1, 1));
    more.insert("surprise".to_owned(), zeros(&[1]));
    refused(&more, "surprise");
    let mut fewer = tensors(&rrdb(1, 1));
    fewer.remove("conv_hr.weight");
    refused(&fewer, "conv_hr.weight");
    // Half a file.
    let path = models.join("odd.safetensors");
    save_safetensors(&path, &tensors(&rrdb(1, 1)));
    let bytes = fs::read(&path).expect("a file");
    fs::write(&path, &bytes[..bytes.len() / 2]).expect("half of it");
    let half = run("run", folder.path(), "odd.safetensors").expect_code(3);
    half.stderr_contains("odd.safetensors").stderr_contains("model_name").stderr_lacks("panicked");
}
