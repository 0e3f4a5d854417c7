//! Models that are merged and saved, from end to end: what is in the files, by hand, and that they draw what was merged.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use kosmograph_tests::single_file::{self, Part, UNET_CONFIG};
use kosmograph_tests::{Finished, Run, repository};
use serde_json::{Value, json};

type Tensors = BTreeMap<String, Tensor>;

fn read(path: &Path) -> Tensors {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).expect("a safetensors file");
    let wide = |tensor: Tensor| tensor.to_dtype(DType::F32).expect("numbers");
    tensors.into_iter().map(|(name, tensor)| (name, wide(tensor))).collect()
}

fn metadata(path: &Path) -> std::collections::HashMap<String, String> {
    let bytes = fs::read(path).expect("a file");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    header.metadata().clone().expect("metadata")
}

fn bundled_unet() -> Tensors {
    read(&repository().join("models/tiny/sd/unet/diffusion_pytorch_model.safetensors"))
}

/// The bundled U-Net with other numbers, in its own names.
fn other_unet() -> Tensors {
    let changed = |(name, tensor): (String, Tensor)| {
        let count = tensor.elem_count();
        let noise: Vec<f32> =
            (0..count).map(|i| ((i * 31 + 7) % 17) as f32 / 400.0 - 0.02).collect();
        let noise = Tensor::from_vec(noise, tensor.shape(), &Device::Cpu).expect("noise");
        let changed = ((tensor * 0.9).and_then(|tensor| tensor + noise)).expect("numbers");
        (name, changed.to_dtype(DType::F16).expect("halves"))
    };
    bundled_unet().into_iter().map(changed).collect()
}

fn node(class: &str, inputs: Value) -> Value {
    json!({"class_type": class, "inputs": inputs})
}

fn run(folder: &Path, workflow: &Value, code: i32) -> Finished {
    let run = Run::new("run").with_plugins().arg("-").stdin(workflow.to_string());
    let run = run.arg("--models").arg(folder.join("models"));
    let run = run.arg("--models").arg(repository().join("models"));
    run.arg("--out").arg(folder.join("out")).expect_code(code).stderr_lacks("panicked")
}

/// Writes tensors with what a file of the bundled model must say of it: it is smaller than any of a family.
fn write(tensors: &Tensors, config: &str, path: &Path) {
    let header = [("kosmograph.config".to_owned(), config.to_owned())].into();
    let tensors: Vec<(&String, &Tensor)> = tensors.iter().collect();
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    safetensors::serialize_to_file(tensors, Some(header), path).expect("a file");
}

/// A folder with the bundled model as one file, and the other U-Net, in its models.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let models = folder.path().join("models");
    fs::create_dir_all(models.join("checkpoints")).expect("a folder");
    single_file::write(
        &models.join("checkpoints/base.safetensors"),
        &[Part::UNet, Part::Clip, Part::Vae],
    );
    write(&other_unet(), UNET_CONFIG, &models.join("diffusion_models/other.safetensors"));
    folder
}

fn loaders() -> Value {
    json!({
        "c": node("CheckpointLoaderSimple", json!({"ckpt_name": "base.safetensors"})),
        "o": node("UNETLoader", json!({"unet_name": "other.safetensors", "weight_dtype": "default"})),
    })
}

/// From text to a picture of a name, by these parts.
fn draw(workflow: &mut Value, name: &str, [model, clip, vae]: [Value; 3]) {
    let text = |text: &str| node("CLIPTextEncode", json!({"clip": clip, "text": text}));
    workflow[format!("{name}p")] = text("a red fox in the snow");
    workflow[format!("{name}n")] = text("");
    workflow["latent"] =
        node("EmptyLatentImage", json!({"width": 64, "height": 64, "batch_size": 1}));
    workflow[format!("{name}k")] = node(
        "KSampler",
        json!({"model": model, "positive": [format!("{name}p"), 0], "negative": [format!("{name}n"), 0],
            "latent_image": ["latent", 0], "seed": 3, "steps": 2, "cfg": 4.0, "sampler_name": "euler",
            "scheduler": "normal", "denoise": 1.0}),
    );
    workflow[format!("{name}d")] =
        node("VAEDecode", json!({"samples": [format!("{name}k"), 0], "vae": vae}));
    workflow[format!("{name}i")] =
        node("SaveImage", json!({"images": [format!("{name}d"), 0], "filename_prefix": name}));
}

fn picture(folder: &Path, name: &str) -> image::RgbImage {
    let path = folder.join(format!("out/{name}_00001_.png"));
    image::open(path).expect("a picture").to_rgb8()
}

/// own · W + other · V of a tensor of the two U-Nets, against a tensor of a file.
fn check(saved: &Tensors, name: &str, ours: &str, own: f64, other: f64) {
    let (first, second) = (&bundled_unet()[ours], &other_unet()[ours]);
    let second = second.to_dtype(DType::F32).expect("numbers");
    let expected =
        ((first * own).expect("numbers") + (second * other).expect("numbers")).expect("numbers");
    let name = format!("model.diffusion_model.{name}");
    let found = saved.get(&name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(found.dims(), expected.dims(), "{name}");
    let largest = |tensor: &Tensor| -> f32 {
        let values = tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("numbers");
        values.iter().fold(0f32, |most, value| most.max(value.abs()))
    };
    let difference = largest(&(found - &expected).expect("one shape"));
    // A half has 11 bits.
    let bound = largest(&expected) / 1024.0;
    assert!(difference <= bound, "{name}: {difference} above {bound}");
}

#[test]
fn merges_are_in_the_files() {
    let folder = folder();
    let mut workflow = loaders();
    let both = json!({"model1": ["c", 0], "model2": ["o", 0]});
    let with = |more: Value| {
        let mut inputs = both.clone();
        for (name, value) in more.as_object().expect("inputs") {
            inputs[name] = value.clone();
        }
        inputs
    };
    let mut blocks = json!({});
    for (start, count) in [("input_blocks", 12), ("middle_block", 3), ("output_blocks", 12)] {
        for i in 0..count {
            blocks[format!("{start}.{i}.")] = json!(1.0);
        }
    }
    for name in ["time_embed.", "label_emb.", "out."] {
        blocks[name] = json!(1.0);
    }
    blocks["input_blocks.1."] = json!(0.25);
    blocks["time_embed."] = json!(0.0);
    let merges = [
        ("simple", "ModelMergeSimple", with(json!({"ratio": 0.25}))),
        ("blocks", "ModelMergeBlocks", with(json!({"input": 0.5, "middle": 0.25, "out": 0.75}))),
        ("sd1", "ModelMergeSD1", with(blocks)),
        ("subtract", "ModelMergeSubtract", with(json!({"multiplier": 2.0}))),
        ("add", "ModelMergeAdd", json!({"model1": ["subtract", 0], "model2": ["o", 0]})),
        (
            "multiply",
            "UNetSelfAttentionMultiply",
            json!({"model": ["c", 0], "q": 2.0, "k": 1.0, "v": 0.5, "out": 1.0}),
        ),
    ];
    for (id, class, inputs) in &merges {
        workflow[*id] = node(class, inputs.clone());
        workflow[format!("{id}-save")] =
            node("ModelSave", json!({"model": [id, 0], "filename_prefix": format!("m/{id}")}));
    }
    run(folder.path(), &workflow, 0);
    let path = |id: &str| folder.path().join(format!("out/m/{id}_00001_.safetensors"));
    let saved = |id: &str| read(&path(id));
    let prompt: Value = serde_json::from_str(&metadata(&path("simple"))["prompt"]).expect("JSON");
    assert_eq!(prompt["simple"]["class_type"], "ModelMergeSimple");
    assert_eq!(metadata(&path("simple"))["modelspec.predict_key"], "epsilon");

    let names = [
        ("input_blocks.0.0.weight", "conv_in.weight"),
        ("time_embed.0.weight", "time_embedding.linear_1.weight"),
        ("middle_block.0.in_layers.2.weight", "mid_block.resnets.0.conv1.weight"),
        ("output_blocks.0.0.in_layers.0.bias", "up_blocks.0.resnets.0.norm1.bias"),
        ("out.2.bias", "conv_out.bias"),
        ("input_blocks.1.0.in_layers.2.weight", "down_blocks.0.resnets.0.conv1.weight"),
    ];
    let all = saved("simple");
    assert_eq!(all.len(), bundled_unet().len());
    for (name, ours) in names {
        check(&all, name, ours, 0.25, 0.75);
        let ratio = match name.split('.').next() {
            Some("middle_block") => 0.25,
            Some("out" | "output_blocks") => 0.75,
            _ => 0.5,
        };
        check(&saved("blocks"), name, ours, ratio, 1.0 - ratio);
        let ratio = match name.split('.').next() {
            Some("time_embed") => 0.0,
            _ if name.starts_with("input_blocks.1.") => 0.25,
            _ => 1.0,
        };
        check(&saved("sd1"), name, ours, ratio, 1.0 - ratio);
        check(&saved("subtract"), name, ours, 2.0, -2.0);
        check(&saved("add"), name, ours, 2.0, -1.0);
        check(&saved("multiply"), name, ours, 1.0, 0.0);
    }
    let attention = |name: &str| {
        let ours = bundled_unet()
            .into_keys()
            .find(|ours| ours.starts_with("mid_block") && ours.contains(name));
        let ours = ours.expect("an attention in the middle");
        (ours.replace("mid_block.attentions.0", "middle_block.1"), ours)
    };
    for (projection, factor) in [("attn1.to_q", 2.0), ("attn1.to_v", 0.5), ("attn2.to_q", 1.0)] {
        let (name, ours) = attention(projection);
        check(&saved("multiply"), &name, &ours, factor, 0.0);
    }
}

#[test]
fn what_is_saved_draws_what_was_merged() {
    let folder = folder();
    let mut workflow = loaders();
    workflow["m"] =
        node("ModelMergeSimple", json!({"model1": ["c", 0], "model2": ["o", 0], "ratio": 0.5}));
    workflow["t"] =
        node("CLIPMergeSimple", json!({"clip1": ["c", 1], "clip2": ["c", 1], "ratio": 0.25}));
    draw(&mut workflow, "plain", [json!(["c", 0]), json!(["c", 1]), json!(["c", 2])]);
    draw(&mut workflow, "merged", [json!(["m", 0]), json!(["t", 0]), json!(["c", 2])]);
    let parts = json!({"model": ["m", 0], "clip": ["t", 0], "vae": ["c", 2], "filename_prefix": "checkpoints/all"});
    workflow["all"] = node("CheckpointSave", parts);
    workflow["clip"] =
        node("CLIPSave", json!({"clip": ["t", 0], "filename_prefix": "text_encoders/text"}));
    workflow["vae"] = node("VAESave", json!({"vae": ["c", 2], "filename_prefix": "vae/vae"}));
    workflow["unet"] =
        node("ModelSave", json!({"model": ["m", 0], "filename_prefix": "diffusion_models/unet"}));
    run(folder.path(), &workflow, 0);
    let (plain, merged) = (picture(folder.path(), "plain"), picture(folder.path(), "merged"));
    assert!(plain != merged, "a merge draws what the first of the two draws");
    // What was saved is found where models are.
    for part in ["checkpoints", "text_encoders", "vae", "diffusion_models"] {
        let (from, to) =
            (folder.path().join("out").join(part), folder.path().join("models").join(part));
        fs::create_dir_all(&to).expect("a folder");
        for file in fs::read_dir(from).expect("a folder") {
            let file = file.expect("a file");
            fs::copy(file.path(), to.join(file.file_name())).expect("a copy");
        }
    }
    let mut again = json!({
        "c": node("CheckpointLoaderSimple", json!({"ckpt_name": "all_00001_.safetensors"})),
        "u": node("UNETLoader", json!({"unet_name": "unet_00001_.safetensors", "weight_dtype": "default"})),
        "t": node("CLIPLoader", json!({"clip_name": "text_clip_l_00001_.safetensors", "type": "stable_diffusion"})),
        "v": node("VAELoader", json!({"vae_name": "vae_00001_.safetensors"})),
    });
    draw(&mut again, "whole", [json!(["c", 0]), json!(["c", 1]), json!(["c", 2])]);
    draw(&mut again, "parts", [json!(["u", 0]), json!(["t", 0]), json!(["v", 0])]);
    run(folder.path(), &again, 0);
    for name in ["whole", "parts"] {
        let found = picture(folder.path(), name);
        let pairs = found.as_raw().iter().zip(merged.as_raw());
        let distance = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
        assert!(distance <= 1, "{name}: {distance}");
    }
}

/// The bundled U-Net whose weights are each changed by a product of signs: one singular value each, and no number of it larger
/// than others, so that LoraSave, which cuts the largest hundredth, has nothing to cut.
fn unet_of_signs() -> Tensors {
    let sign =
        |i: usize, step: usize| if (i * step + i / 3).is_multiple_of(2) { 1f32 } else { -1.0 };
    let changed = |(name, tensor): (String, Tensor)| {
        let tensor = match tensor.dims() {
            [rows, columns @ ..] if !columns.is_empty() => {
                let columns: usize = columns.iter().product();
                let most = 0.02 / (columns as f32).sqrt();
                let change = (0..rows * columns)
                    .map(|i| most * sign(i / columns, 3) * sign(i % columns, 1))
                    .collect();
                let change = Tensor::from_vec(change, tensor.shape(), &Device::Cpu);
                tensor.add(&change.expect("a change")).expect("numbers")
            }
            _ => tensor,
        };
        (name, tensor)
    };
    bundled_unet().into_iter().map(changed).collect()
}

#[test]
fn a_difference_becomes_a_lora_that_makes_it_again() {
    let folder = folder();
    let models = folder.path().join("models");
    write(&unet_of_signs(), UNET_CONFIG, &models.join("diffusion_models/signs.safetensors"));
    let mut workflow = loaders();
    workflow["s"] =
        node("UNETLoader", json!({"unet_name": "signs.safetensors", "weight_dtype": "default"}));
    let difference = json!({"model1": ["s", 0], "model2": ["c", 0], "multiplier": 1.0});
    workflow["d"] = node("ModelMergeSubtract", difference);
    let save = json!({"model_diff": ["d", 0], "rank": 4, "filename_prefix": "loras/signs"});
    workflow["save"] = node("LoraSave", save);
    draw(&mut workflow, "plain", [json!(["c", 0]), json!(["c", 1]), json!(["c", 2])]);
    draw(&mut workflow, "signs", [json!(["s", 0]), json!(["c", 1]), json!(["c", 2])]);
    run(folder.path(), &workflow, 0);
    let file = folder.path().join("out/loras/signs_00001_.safetensors");
    // Each weight's singular value is the change's norm; that of the others, but for a half's rounding, is 0.
    let saved = read(&file);
    let weights = unet_of_signs().into_iter().filter(|(_, tensor)| tensor.rank() > 1);
    assert_eq!(saved.len(), 2 * weights.count());
    let layer = |end: &str| {
        let name = format!("diffusion_model.middle_block.0.in_layers.2.{end}.weight");
        saved.get(&name).unwrap_or_else(|| panic!("no {name}")).flatten_from(1).expect("a matrix")
    };
    let product = layer("lora_up").matmul(&layer("lora_down")).expect("a product");
    let ours = "mid_block.resnets.0.conv1.weight";
    let change =
        (&unet_of_signs()[ours] - &bundled_unet()[ours]).and_then(|change| change.flatten_from(1));
    let apart = (product - change.expect("a change"))
        .and_then(|apart| apart.abs()?.max_all()?.to_scalar::<f32>());
    let columns = bundled_unet()[ours].elem_count() / bundled_unet()[ours].dims()[0];
    assert!(apart.expect("a number") < 0.02 / (columns as f32).sqrt() / 100.0);

    fs::create_dir_all(models.join("loras")).expect("a folder");
    fs::copy(file, models.join("loras/signs.safetensors")).expect("a copy");
    let mut again = loaders();
    let lora = json!({"model": ["c", 0], "lora_name": "signs.safetensors", "strength_model": 1.0});
    again["l"] = node("LoraLoaderModelOnly", lora);
    draw(&mut again, "lora", [json!(["l", 0]), json!(["c", 1]), json!(["c", 2])]);
    run(folder.path(), &again, 0).stderr_lacks("has no layer");
    let [plain, signs, lora] = ["plain", "signs", "lora"].map(|name| picture(folder.path(), name));
    let distance = |other: &image::RgbImage| {
        let pairs = signs.as_raw().iter().zip(other.as_raw());
        pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
    };
    assert!(distance(&plain) > 40, "the change is small: {}", distance(&plain));
    assert!(distance(&lora) <= 2, "{}", distance(&lora));
}

#[test]
fn a_vocabulary_of_a_folders_own_goes_with_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(folder.path().join("models")).expect("a folder");
    let mut workflow =
        json!({"c": node("CheckpointLoaderSimple", json!({"ckpt_name": "tiny/sd"}))});
    let parts = || [json!(["c", 0]), json!(["c", 1]), json!(["c", 2])];
    draw(&mut workflow, "before", parts());
    workflow["all"] = node(
        "CheckpointSave",
        json!({"model": ["c", 0], "clip": ["c", 1], "vae": ["c", 2], "filename_prefix": "all"}),
    );
    workflow["text"] = node("CLIPSave", json!({"clip": ["c", 1], "filename_prefix": "text"}));
    run(folder.path(), &workflow, 0);
    let to = folder.path().join("models/checkpoints");
    fs::create_dir_all(&to).expect("a folder");
    fs::copy(folder.path().join("out/all_00001_.safetensors"), to.join("all.safetensors")).unwrap();
    let to = folder.path().join("models/text_encoders");
    fs::create_dir_all(&to).expect("a folder");
    let text = fs::read_dir(folder.path().join("out")).unwrap().flatten().map(|file| file.path());
    let text = text.into_iter().find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("text"))
    });
    fs::copy(text.expect("a text encoder"), to.join("text.safetensors")).unwrap();
    let mut again = json!({
        "c": node("CheckpointLoaderSimple", json!({"ckpt_name": "all.safetensors"})),
        "t": node("CLIPLoader", json!({"clip_name": "text.safetensors", "type": "stable_diffusion"}))});
    draw(&mut again, "after", parts());
    draw(&mut again, "text", [json!(["c", 0]), json!(["t", 0]), json!(["c", 2])]);
    run(folder.path(), &again, 0);
    for name in ["after", "text"] {
        assert!(picture(folder.path(), name) == picture(folder.path(), "before"), "{name}");
    }
    // A header that says nonsense of it is a sentence.
    let path = folder.path().join("models/checkpoints/all.safetensors");
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    for said in [r#"{"tokenizer": {"tokenizer.json": {}}}"#, r#"{"tokenizer": 3}"#] {
        let mut header = metadata(&path);
        let mut config: Value = serde_json::from_str(&header["kosmograph.config"]).unwrap();
        let nonsense: Value = serde_json::from_str(said).unwrap();
        config["tokenizer"] = nonsense["tokenizer"].clone();
        header.insert("kosmograph.config".to_owned(), config.to_string());
        let broken = folder.path().join("models/checkpoints/broken.safetensors");
        safetensors::serialize_to_file(&tensors, Some(header), &broken).unwrap();
        let mut workflow = again.clone();
        workflow["c"]["inputs"]["ckpt_name"] = json!("broken.safetensors");
        let told = run(folder.path(), &workflow, 3);
        assert!(told.stderr().contains("kosmograph.config in the header"), "{}", told.stderr());
    }
}

#[test]
fn what_cannot_be_merged_or_saved_is_a_sentence() {
    let folder = folder();
    let save = |model: Value| json!({"model": model, "filename_prefix": "../../escaped"});
    let mut workflow = loaders();
    workflow["s"] = node("ModelSave", save(json!(["c", 0])));
    run(folder.path(), &workflow, 2).stderr_contains("leads out of");
    let mut workflow = loaders();
    workflow["m"] = node(
        "ModelMergeSubtract",
        json!({"model1": ["c", 0], "model2": ["o", 0], "multiplier": 1e30}),
    );
    workflow["s"] = node("ModelSave", json!({"model": ["m", 0], "filename_prefix": "x"}));
    run(folder.path(), &workflow, 2).stderr_contains("multiplier");
    assert!(!folder.path().join("out/x_00001_.safetensors").exists());
}
