//! U-Nets in fp8 and in GGUF, as a user runs them: the bundled one in other files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use kosmograph_tests::gguf::{self, Kept, Numbers};
use kosmograph_tests::{Finished, Run, repository, single_file};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// The bits of all numbers of E4M3, and what they are.
fn e4m3(bits: u8) -> f32 {
    let (exponent, fraction) = (i32::from((bits & 0x7f) >> 3), f32::from(bits & 7) / 8.0);
    let magnitude = match exponent {
        0 => fraction * 2f32.powi(-6),
        _ => (1.0 + fraction) * 2f32.powi(exponent - 7),
    };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The nearest of them, searched for.
fn nearest(number: f32) -> u8 {
    let near = |a: &u8, b: &u8| {
        let far = |bits: u8| (f64::from(e4m3(bits)) - f64::from(number.abs())).abs();
        // Of two as near, the even one.
        far(*a).total_cmp(&far(*b)).then((a & 1).cmp(&(b & 1)))
    };
    let bits = (0..0x7f).min_by(near).expect("some");
    if number.is_sign_negative() { bits | 0x80 } else { bits }
}

/// A folder of models: the bundled one is used beside it.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for kind in ["diffusion_models", "checkpoints", "loras"] {
        fs::create_dir(folder.path().join(kind)).expect("a folder");
    }
    folder
}

type Stored = (Dtype, Vec<usize>, Vec<u8>);

fn write_safetensors(path: &Path, tensors: &BTreeMap<String, Stored>, more: &[(&str, &str)]) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).expect("a view"))
    });
    let texts = [("kosmograph.config", single_file::UNET_CONFIG)];
    let texts = texts.iter().chain(more).map(|(k, v)| (k.to_string(), v.to_string()));
    let file = safetensors::serialize(views, Some(texts.collect())).expect("safetensors");
    fs::write(path, file).expect("written");
}

fn f32s(tensors: &BTreeMap<String, Numbers>) -> BTreeMap<String, Stored> {
    let bytes = |numbers: &[f32]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    let stored = |(name, (shape, numbers)): (&String, &Numbers)| {
        (name.clone(), (Dtype::F32, shape.clone(), bytes(numbers)))
    };
    tensors.iter().map(stored).collect()
}

/// A picture of two steps by the U-Net that `loader` gives.
fn run(models: &Path, loader: Value, lora: bool) -> Run {
    let mut workflow = json!({
        "0": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny/sd"}},
        "1": loader,
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a ghost", "clip": ["0", 1]}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "positive": ["2", 0],
            "negative": ["2", 0], "latent_image": ["3", 0], "seed": 1, "steps": 2, "cfg": 1.0,
            "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["0", 2]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "a"}},
    });
    if lora {
        workflow["7"] = json!({"class_type": "LoraLoaderModelOnly", "inputs": {
            "model": ["1", 0], "lora_name": "a.safetensors", "strength_model": 1.0}});
        workflow["4"]["inputs"]["model"] = json!(["7", 0]);
    }
    let run = Run::new("run").with_plugins().args(["-", "--models"]).arg(models);
    let run = run.arg("--models").arg(repository().join("models"));
    run.arg("--out").arg(models.join("out")).stdin(workflow.to_string())
}

fn pixels(models: &Path, run: Run) -> Vec<u8> {
    let out = models.join("out");
    let _ = fs::remove_dir_all(&out);
    run.expect_success();
    let entries: Vec<_> = fs::read_dir(&out).expect("the output folder").collect();
    assert_eq!(entries.len(), 1);
    let path = entries[0].as_ref().expect("an entry").path();
    image::open(path).expect("a picture").to_rgb8().into_raw()
}

fn unet(name: &str, weight_dtype: &str) -> Value {
    json!({"class_type": "UNETLoader", "_meta": {"title": "The U-Net"},
        "inputs": {"unet_name": name, "weight_dtype": weight_dtype}})
}

fn draw(models: &Path, loader: Value) -> Vec<u8> {
    pixels(models, run(models, loader, false))
}

/// The largest difference, and the mean.
fn far(a: &[u8], b: &[u8]) -> (u8, f64) {
    assert_eq!(a.len(), b.len());
    let each = || a.iter().zip(b).map(|(a, b)| a.abs_diff(*b));
    let sum: f64 = each().map(f64::from).sum();
    (each().max().unwrap_or(0), sum / a.len() as f64)
}

#[test]
fn fp8_is_what_its_numbers_are() {
    let (models, unet_tensors) = (folder(), single_file::unet_tensors());
    let file = |name: &str| models.path().join("diffusion_models").join(name);
    // All numbers rounded; once by us, once here.
    let rounded: BTreeMap<String, (Vec<usize>, Vec<u8>)> = unet_tensors
        .iter()
        .map(|(name, (shape, numbers))| {
            (name.clone(), (shape.clone(), numbers.iter().map(|n| nearest(*n)).collect()))
        })
        .collect();
    let packed: BTreeMap<String, Stored> = rounded
        .iter()
        .map(|(name, (shape, bits))| (name.clone(), (Dtype::F8_E4M3, shape.clone(), bits.clone())))
        .collect();
    let wide: BTreeMap<String, Numbers> = rounded
        .iter()
        .map(|(name, (shape, bits))| {
            (name.clone(), (shape.clone(), bits.iter().map(|b| e4m3(*b)).collect()))
        })
        .collect();
    write_safetensors(&file("whole.safetensors"), &f32s(&unet_tensors), &[]);
    write_safetensors(&file("fp8.safetensors"), &packed, &[]);
    write_safetensors(&file("wide.safetensors"), &f32s(&wide), &[]);
    let whole = draw(models.path(), unet("whole.safetensors", "default"));
    let wide = draw(models.path(), unet("wide.safetensors", "default"));
    assert_eq!(draw(models.path(), unet("fp8.safetensors", "default")), wide);
    assert_eq!(draw(models.path(), unet("whole.safetensors", "fp8_e4m3fn")), wide);
    assert_eq!(draw(models.path(), unet("whole.safetensors", "fp8_e4m3fn_fast")), wide);
    assert_ne!(whole, wide);
    let coarser = draw(models.path(), unet("whole.safetensors", "fp8_e5m2"));
    assert!(coarser != wide && far(&coarser, &whole).1 > far(&wide, &whole).1);
}

#[test]
fn scaled_fp8_is_multiplied_by_its_scale() {
    let (models, unet_tensors) = (folder(), single_file::unet_tensors());
    let file = |name: &str| models.path().join("diffusion_models").join(name);
    let scale = |numbers: &[f32]| numbers.iter().fold(1e-9f32, |l, n| l.max(n.abs())) / 448.0;
    let (mut wide, mut older, mut newer) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut layers = serde_json::Map::new();
    for (name, (shape, numbers)) in &unet_tensors {
        let module = name.strip_suffix(".weight").filter(|_| shape.len() == 2);
        let Some(module) = module else {
            wide.insert(name.clone(), (shape.clone(), numbers.clone()));
            continue;
        };
        let scale = scale(numbers);
        let bits: Vec<u8> = numbers.iter().map(|number| nearest(number / scale)).collect();
        let numbers = bits.iter().map(|bits| e4m3(*bits) * scale).collect();
        wide.insert(name.clone(), (shape.clone(), numbers));
        let factor = || (Dtype::F32, vec![], scale.to_le_bytes().to_vec());
        for (file, ends) in [
            (&mut older, ["scale_weight", "scale_input"]),
            (&mut newer, ["weight_scale", "input_scale"]),
        ] {
            file.insert(name.clone(), (Dtype::F8_E4M3, shape.clone(), bits.clone()));
            ends.iter().for_each(|end| drop(file.insert(format!("{module}.{end}"), factor())));
        }
        layers.insert(module.to_owned(), json!({"format": "float8_e4m3fn"}));
    }
    older.insert("scaled_fp8".to_owned(), (Dtype::F8_E4M3, vec![2], vec![0, 0]));
    for file in [&mut older, &mut newer] {
        for (name, stored) in f32s(&wide) {
            file.entry(name).or_insert(stored);
        }
    }
    write_safetensors(&file("wide.safetensors"), &f32s(&wide), &[]);
    write_safetensors(&file("older.safetensors"), &older, &[]);
    let said = json!({"format_version": "1.0", "layers": layers}).to_string();
    write_safetensors(&file("newer.safetensors"), &newer, &[("_quantization_metadata", &said)]);
    let want = draw(models.path(), unet("wide.safetensors", "default"));
    assert_eq!(draw(models.path(), unet("older.safetensors", "default")), want);
    assert_eq!(draw(models.path(), unet("newer.safetensors", "default")), want);

    let fails = |tensors: &BTreeMap<String, Stored>, said: &str, sentences: &[&str]| {
        write_safetensors(&file("bad.safetensors"), tensors, &[("_quantization_metadata", said)]);
        let finished = run(models.path(), unet("bad.safetensors", "default"), false);
        check(finished.expect_code(3), &[&["bad.safetensors"], sentences].concat());
    };
    let module = "input_blocks.3.1.transformer_blocks.0.attn1.to_q";
    let mut bad = newer.clone();
    bad.insert(
        format!("{module}.weight_scale"),
        (Dtype::F32, vec![], f32::NAN.to_le_bytes().to_vec()),
    );
    fails(&bad, "{}", &[&format!("{module}.weight_scale"), "NaN"]);
    bad.insert(format!("{module}.weight_scale"), (Dtype::F32, vec![5], vec![0; 20]));
    fails(&bad, "{}", &[&format!("{module}.weight_scale"), "[5]", "96 rows"]);
    let mut nan = newer.clone();
    nan.get_mut(&format!("{module}.weight")).expect("it").2[7] = 0x7f;
    fails(&nan, "{}", &[module, "number 7", "NaN"]);
    let other = json!({"layers": {module: {"format": "nvfp4"}}}).to_string();
    fails(&newer, &other, &["The U-Net", module, "nvfp4"]);
    fails(&newer, "[3", &["The U-Net", "_quantization_metadata"]);
}

fn check(finished: Finished, sentences: &[&str]) {
    sentences.iter().fold(finished, |finished, sentence| finished.stderr_contains(sentence));
}

/// Matrices in blocks, and convolutions in blocks of other rows.
fn kept(name: &str, shape: &[usize]) -> Kept {
    match shape {
        [_, row] if row % 32 == 0 => Kept::Q8_0,
        [_, _, 3, 3] if shape.iter().product::<usize>() % 32 == 0 && !name.contains(".op.") => {
            Kept::Q8_0Reshaped
        }
        _ => Kept::F32,
    }
}

#[test]
fn a_gguf_is_a_unet_or_a_checkpoint() {
    let (models, unet_tensors) = (folder(), single_file::unet_tensors());
    let file = |name: &str| models.path().join("diffusion_models").join(name);
    let texts = [("general.architecture", "sd1"), ("kosmograph.config", single_file::UNET_CONFIG)];
    write_safetensors(&file("whole.safetensors"), &f32s(&unet_tensors), &[]);
    gguf::write(&file("same.gguf"), &texts, &unet_tensors, |_, _| Kept::F32);
    gguf::write(&file("small.gguf"), &texts, &unet_tensors, kept);
    let whole = draw(models.path(), unet("whole.safetensors", "default"));
    assert_eq!(draw(models.path(), unet("same.gguf", "default")), whole);
    let loader = |name: &str| {
        json!({"class_type": "UnetLoaderGGUF", "_meta": {"title": "The GGUF"},
        "inputs": {"unet_name": name}})
    };
    let small = draw(models.path(), loader("small.gguf"));
    assert_eq!(draw(models.path(), unet("small.gguf", "default")), small);
    // The picture of what the blocks stand for, to the bit.
    let mut wide = unet_tensors.clone();
    for (name, (shape, numbers)) in &mut wide {
        if kept(name, shape) != Kept::F32 {
            *numbers = gguf::through_q8_0(numbers);
        }
    }
    write_safetensors(&file("wide.safetensors"), &f32s(&wide), &[]);
    assert_eq!(draw(models.path(), unet("wide.safetensors", "default")), small);
    assert_ne!(small, whole);
    // The bundled numbers are f16 already.
    gguf::write(&file("half.gguf"), &texts, &unet_tensors, |_, _| Kept::F16);
    let half = draw(models.path(), unet("half.gguf", "default"));
    assert!(far(&half, &whole).0 <= 1);

    // As stable-diffusion.cpp writes it: under a checkpoint's names, no word about what it is, and the
    // projections that are convolutions as matrices.
    let named: BTreeMap<String, Numbers> = unet_tensors
        .iter()
        .map(|(name, (shape, numbers))| {
            let shape = match &shape[..] {
                [output, input, 1, 1] if name.contains(".proj_") => vec![*output, *input],
                _ => shape.clone(),
            };
            (format!("model.diffusion_model.{name}"), (shape, numbers.clone()))
        })
        .collect();
    gguf::write(&models.path().join("checkpoints/whole.gguf"), &texts[1..], &named, |_, _| {
        Kept::F32
    });
    let checkpoint =
        json!({"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "whole.gguf"}});
    assert_eq!(draw(models.path(), checkpoint), whole);

    // Truncated, lying, of another family.
    let bytes = fs::read(file("small.gguf")).expect("the file");
    fs::write(file("cut.gguf"), &bytes[..bytes.len() / 2]).expect("half of it");
    let finished = run(models.path(), loader("cut.gguf"), false).expect_code(3);
    check(finished, &["The GGUF", "unet_name", "cut.gguf", "truncated"]);
    let mut lying = bytes.clone();
    lying[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(file("lying.gguf"), lying).expect("a file");
    let finished = run(models.path(), loader("lying.gguf"), false).expect_code(3);
    check(finished, &["The GGUF", "unet_name", "lying.gguf"]);
    let language =
        BTreeMap::from([("blk.0.attn_q.weight".to_owned(), (vec![1, 32], vec![0.0; 32]))]);
    gguf::write(&file("language.gguf"), &[("general.architecture", "llama")], &language, kept);
    let finished = run(models.path(), loader("language.gguf"), false).expect_code(3);
    check(finished, &["The GGUF", "unet_name", "language.gguf", "blk.0.attn_q.weight"]);
}

#[test]
fn a_lora_is_added_to_what_the_blocks_stand_for() {
    let (models, mut tensors) = (folder(), single_file::unet_tensors());
    let file = |name: &str| models.path().join("diffusion_models").join(name);
    let texts = [("kosmograph.config", single_file::UNET_CONFIG)];
    // Numbers that blocks hold exactly, so that the wide file has the same.
    for (name, (shape, numbers)) in &mut tensors {
        if kept(name, shape) == Kept::Q8_0 {
            for block in numbers.chunks_exact_mut(32) {
                let whole = |n: f32| (n * 256.0).round().clamp(-127.0, 127.0) / 256.0;
                block.iter_mut().for_each(|number| *number = whole(*number));
                // The largest decides the factor.
                block[0] = 127.0 / 256.0;
            }
        }
    }
    let plain = |name: &str, shape: &[usize]| match kept(name, shape) {
        Kept::Q8_0 => Kept::Q8_0,
        _ => Kept::F32,
    };
    write_safetensors(&file("wide.safetensors"), &f32s(&tensors), &[]);
    gguf::write(&file("blocks.gguf"), &texts, &tensors, plain);
    let mut lora = BTreeMap::new();
    let module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_v";
    let bytes = |count: usize, value: f32| value.to_le_bytes().repeat(count);
    lora.insert(format!("{module}.lora_up.weight"), (Dtype::F32, vec![96, 2], bytes(192, 0.3)));
    lora.insert(format!("{module}.lora_down.weight"), (Dtype::F32, vec![2, 96], bytes(192, -0.2)));
    let norm = "lora_unet_mid_block_resnets_0_norm1";
    lora.insert(format!("{norm}.w_norm"), (Dtype::F32, vec![96], bytes(96, 0.3)));
    write_safetensors(&models.path().join("loras/a.safetensors"), &lora, &[]);
    let draw =
        |name: &str, lora| pixels(models.path(), run(models.path(), unet(name, "default"), lora));
    let without = draw("wide.safetensors", false);
    assert_eq!(draw("blocks.gguf", false), without);
    let with = draw("wide.safetensors", true);
    assert_ne!(with, without);
    assert_eq!(draw("blocks.gguf", true), with);
}
