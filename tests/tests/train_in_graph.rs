//! ComfyUI's training nodes, as a user runs them: a folder of pictures becomes a LoRA within a workflow, and its file draws what
//! the model in the graph draws.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use kosmograph::plugin::{Call, Library, LogLevel, NodeFailure};
use kosmograph::value::Value;
use kosmograph_models::Weights;
use kosmograph_models::lora::{Factor, Lora};
use kosmograph_tests::{Run, build_c, node_library, repository};
use serde_json::json;

/// A folder of models' and inputs' with the three monsters as a set: one with a text, two in a folder that counts them twice.
fn set(folder: &Path) -> Result<()> {
    let set = folder.join("input/monsters");
    fs::create_dir_all(set.join("2_more"))?;
    fs::create_dir_all(folder.join("out/loras"))?;
    let examples = repository().join("models/tiny/examples");
    fs::copy(examples.join("monster-1.png"), set.join("a.png"))?;
    fs::write(set.join("a.txt"), "a monster\n")?;
    fs::copy(examples.join("monster-2.png"), set.join("2_more/b.png"))?;
    fs::write(set.join("2_more/b.txt"), "a monster on the beach")?;
    fs::write(set.join("broken.png"), b"\x89PNG\r\n\x1a\nand no more")?;
    Ok(())
}

/// Trains, and draws with the model that comes out.
fn workflow(more: &serde_json::Value) -> serde_json::Value {
    let mut workflow = json!({
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny/sd"}},
        "2": {"class_type": "LoadImageTextSetFromFolderNode", "inputs": {
            "folder": "monsters", "clip": ["1", 1], "resize_method": "Stretch", "width": 64, "height": 64}},
        "3": {"class_type": "VAEEncode", "inputs": {"pixels": ["2", 0], "vae": ["1", 2]}},
        "4": {"class_type": "TrainLoraNode", "_meta": {"title": "Train"}, "inputs": {
            "model": ["1", 0], "latents": ["3", 0], "positive": ["2", 1], "batch_size": 2,
            "grad_accumulation_steps": 2, "steps": 2, "learning_rate": 0.01, "rank": 2,
            "optimizer": "AdamW", "loss_function": "MSE", "seed": 5, "training_dtype": "fp32",
            "lora_dtype": "fp32", "algorithm": "LoRA", "gradient_checkpointing": true,
            "existing_lora": "[None]"}},
        "5": {"class_type": "SaveLoRANode", "inputs": {"lora": ["4", 1], "prefix": "loras/monster", "steps": ["4", 3]}},
        "6": {"class_type": "LossGraphNode", "inputs": {"loss": ["4", 2], "filename_prefix": "loss"}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "a monster", "clip": ["1", 1]}},
        "8": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        workflow["4"]["inputs"][key] = value.clone();
    }
    workflow
}

/// Adds what draws with the model of `from`, as PREFIX_00001_.png.
fn draw(workflow: &mut serde_json::Value, from: &serde_json::Value, prefix: &str) {
    workflow[format!("sample {prefix}")] = json!({"class_type": "KSampler", "inputs": {
        "model": from, "positive": ["7", 0], "negative": ["7", 0], "latent_image": ["8", 0], "seed": 1, "steps": 2,
        "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}});
    workflow[format!("decode {prefix}")] = json!({"class_type": "VAEDecode", "inputs": {
        "samples": [format!("sample {prefix}"), 0], "vae": ["1", 2]}});
    workflow[format!("save {prefix}")] = json!({"class_type": "SaveImage", "inputs": {
        "images": [format!("decode {prefix}"), 0], "filename_prefix": prefix}});
}

fn run(folder: &Path, workflow: &serde_json::Value) -> Run {
    let run = Run::new("run").with_plugins().args(["-", "--models"]).arg(folder.join("out"));
    let run = run.arg("--models").arg(repository().join("models"));
    let run = run.arg("--input").arg(folder.join("input")).arg("--out").arg(folder.join("out"));
    run.stdin(workflow.to_string())
}

fn pixels(folder: &Path, prefix: &str) -> Result<Vec<u8>> {
    let path = folder.join(format!("out/{prefix}_00001_.png"));
    Ok(image::open(path)?.into_rgb8().into_raw())
}

fn saved(folder: &Path) -> Result<PathBuf> {
    let mut files = fs::read_dir(folder.join("out/loras"))?.map(|entry| Ok(entry?.path()));
    let mut files: Vec<PathBuf> = files.by_ref().collect::<std::io::Result<_>>()?;
    files.sort();
    files.pop().context("no LoRA was saved")
}

#[test]
fn a_lora_is_trained_in_a_graph_and_its_file_draws_the_same() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    set(folder)?;
    let mut first = workflow(&json!({}));
    draw(&mut first, &json!(["1", 0]), "base");
    draw(&mut first, &json!(["4", 0]), "trained");
    first["9"] = json!({"class_type": "LoraModelLoader", "inputs": {
        "model": ["1", 0], "lora": ["4", 1], "strength_model": 1.0}});
    draw(&mut first, &json!(["9", 0]), "again");
    let told = run(folder, &first).expect_success();
    told.stderr_contains("broken.png is left out");
    let [base, trained, again] = ["base", "trained", "again"].map(|prefix| pixels(folder, prefix));
    let (base, trained) = (base?, trained?);
    ensure!(trained == again?, "the LORA_MODEL draws something else");
    ensure!(base != trained, "nothing was learnt");

    let file = saved(folder)?;
    ensure!(file.ends_with("monster_2_steps_00001_.safetensors"), "{}", file.display());
    let lora = Lora::open(&file)?;
    ensure!(lora.unknown.is_empty(), "{:?}", lora.unknown);
    // Every layer of the U-Net, its norms and its biases.
    let unet = Weights::open(&repository().join("models/tiny/sd/unet"), &Device::Cpu)?;
    let modules = unet.names().into_iter().filter(|name| name.ends_with(".weight")).count();
    ensure!(lora.unet.len() == modules, "{} of {modules}", lora.unet.len());
    let conv = &lora.unet["conv_in"];
    ensure!(
        conv.factors().contains_key(&Factor::Up) && conv.factors().contains_key(&Factor::DiffB)
    );
    ensure!(lora.unet["conv_norm_out"].factors().contains_key(&Factor::Diff));

    let mut second = first.clone();
    for id in ["2", "3", "4", "5", "6", "9", "sample again", "sample trained", "sample base"] {
        second.as_object_mut().context("a graph")?.remove(id);
    }
    for id in
        ["decode again", "save again", "decode trained", "save trained", "decode base", "save base"]
    {
        second.as_object_mut().context("a graph")?.remove(id);
    }
    let name = file.file_name().context("a name")?.to_string_lossy().into_owned();
    second["l"] = json!({"class_type": "LoraLoaderModelOnly", "inputs": {
        "model": ["1", 0], "lora_name": name, "strength_model": 1.0}});
    draw(&mut second, &json!(["l", 0]), "file");
    run(folder, &second).expect_success();
    ensure!(pixels(folder, "file")? == trained, "the file draws something else");

    // Gone on with, in another way: the steps are added up.
    let more = json!({"existing_lora": name, "lora_dtype": "bf16", "optimizer": "RMSprop", "loss_function": "SmoothL1",
        "gradient_checkpointing": false, "learning_rate": 0.001});
    run(folder, &workflow(&more)).expect_success();
    let file = saved(folder)?;
    ensure!(file.ends_with("monster_4_steps_00001_.safetensors"), "{}", file.display());
    let weights = Weights::open(&file, &Device::Cpu)?;
    let name = "lora_unet_conv_in.lora_up.weight";
    let shape = weights.shape(name).context(name)?;
    let values = weights.get(name, shape)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    ensure!(values.iter().all(|value| value.to_bits() & 0xffff == 0), "no bf16: {values:?}");
    ensure!(
        fs::metadata(&file)?.len() * 3
            < fs::metadata(folder.join("out/loras/monster_2_steps_00001_.safetensors"))?.len() * 2
    );
    Ok(())
}

#[test]
fn other_algorithms_and_what_is_wrong() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    set(folder)?;
    for (algorithm, factor) in [("LoHa", Factor::HadaW2B), ("LoKr", Factor::LokrW1)] {
        let more =
            json!({"algorithm": algorithm, "optimizer": "SGD", "loss_function": "L1", "steps": 1});
        run(folder, &workflow(&more)).expect_success();
        let lora = Lora::open(&saved(folder)?)?;
        ensure!(lora.unet["conv_out"].factors().contains_key(&factor), "{algorithm}");
        fs::remove_file(saved(folder)?)?;
    }
    let wrong = [
        (json!({"algorithm": "OFT"}), "is not one of \"LoRA\", \"LoHa\", \"LoKr\""),
        (json!({"existing_lora": "nowhere.safetensors"}), "nowhere.safetensors"),
        (json!({"rank": 0}), "input \"rank\""),
        (
            json!({"learning_rate": 1.0, "optimizer": "SGD", "steps": 40, "grad_accumulation_steps": 1}),
            "has diverged",
        ),
    ];
    for (more, sentence) in wrong {
        let finished = run(folder, &workflow(&more)).run();
        ensure!(finished.code != Some(0), "{more}: nothing is wrong");
        finished.stderr_contains(sentence);
    }
    let mut other = workflow(&json!({}));
    other["2"]["inputs"]["resize_method"] = json!("None");
    let finished = run(folder, &other).run();
    ensure!(finished.code != Some(0));
    finished.stderr_contains("is 256 x 256 pixels and the set 64 x 64");
    let mut other = workflow(&json!({}));
    other["4"]["inputs"]["positive"] = json!(["10", 0]);
    other["10"] = json!({"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["7", 0], "conditioning_2": ["7", 0]}});
    let finished = run(folder, &other).run();
    ensure!(finished.code != Some(0));
    finished.stderr_contains("there are 2 conditionings for 3 latents");
    fs::create_dir_all(folder.join("input/nothing"))?;
    let mut other = workflow(&json!({}));
    other["2"] =
        json!({"class_type": "LoadImageSetFromFolderNode", "inputs": {"folder": "nothing"}});
    other["4"]["inputs"]["positive"] = json!(["7", 0]);
    let finished = run(folder, &other).run();
    ensure!(finished.code != Some(0));
    finished.stderr_contains("the folder holds no pictures");
    Ok(())
}

/// A host that stops at the first step that is done.
struct Stops;

impl Call for Stops {
    fn log(&self, _: LogLevel, _: &str) {}
    fn progress(&self, step: u64, _: u64) -> bool {
        step > 0
    }
    fn property(&self, _: &str) -> Option<String> {
        None
    }
    fn output(&self, _: serde_json::Value) {}
}

#[test]
fn a_strangers_model_is_refused_and_a_training_is_stopped() -> Result<()> {
    let strangers = Library::load(&build_c(&repository().join("tests/examples/denoiser.c")))?;
    let strange = strangers.run(1, &Stops, &[Value::number(0.3), Value::number(0.7)]);
    let strange = strange.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let ours = Library::load(&node_library("kosmograph-diffusion"))?;
    let nodes = ours.descriptor["nodes"].as_array().context("nodes")?.clone();
    let place =
        |class: &str| nodes.iter().position(|node| node["class"] == class).context("a class");
    let unet = repository().join("models/tiny/sd/unet").display().to_string();
    let loaded = ours.run(place("UNETLoader")?, &Stops, &[Value::string(unet), Value::NONE]);
    let loaded = loaded.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let size = [64, 64, 1].map(Value::integer);
    let latents = ours.run(place("EmptyLatentImage")?, &Stops, &size);
    let latents = latents.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let context = Value::tensor_f32(&[1, 3, 128], &[0.5; 3 * 128]).context("a tensor")?;
    let positive = Value::list(vec![Value::map([("context", context)])]);
    let train = |model: &Value, steps: i64| {
        let mut inputs = vec![model.clone(), latents[0].clone(), positive.clone()];
        inputs.extend([1, 1, steps].map(Value::integer));
        inputs.extend([Value::number(1e-3), Value::integer(2)]);
        inputs.extend(["AdamW", "MSE"].map(Value::string));
        inputs.push(Value::integer(0));
        inputs.extend(["fp32", "fp32", "LoRA"].map(Value::string));
        inputs.extend([Value::boolean(true), Value::NONE]);
        ours.run(place("TrainLoraNode").unwrap_or_default(), &Stops, &inputs)
    };
    match train(&strange[0], 1) {
        Err(NodeFailure::Failed { input, sentence }) => {
            ensure!(input.as_deref() == Some("model"), "{input:?}");
            ensure!(sentence.contains("this MODEL cannot be trained"), "{sentence}");
        }
        other => anyhow::bail!("{other:?}"),
    }
    // A hundred thousand steps would take hours.
    let stopped = train(&loaded[0], 100_000);
    ensure!(matches!(stopped, Err(NodeFailure::Cancelled)), "{stopped:?}");
    Ok(())
}
