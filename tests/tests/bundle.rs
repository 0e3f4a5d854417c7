//! From nothing to the bundle by `models/tiny/train/stages.json`, and the tasks that only it needs: `clip`, `export`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, IndexOp, Tensor};
use kosmograph_models::Weights;
use kosmograph_models::kosmos::Kosmos;
use kosmograph_models::kosmos::vit::Vit;
use kosmograph_models::layers::l2_normalize;
use kosmograph_models::lora::Lora;
use kosmograph_models::stable_diffusion::checkpoint::Checkpoint;
use kosmograph_pixels::pillow::Picture;
use kosmograph_tests::{Run, repository};
use serde_json::{Value, json};

const CAPTIONS: [&str; 3] = [
    "a red star monster with two eyes on the beach",
    "a green cloud monster with one eye at night",
    "a blue ghost monster in the snow",
];

fn example(number: usize) -> PathBuf {
    repository().join(format!("models/tiny/examples/monster-{}.png", number + 1))
}

/// The three pictures with captions, captions of which the first is right, and outlines, as `folder.py` lays them.
fn scenes(folder: &Path, choices: bool) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    for (number, caption) in CAPTIONS.into_iter().enumerate() {
        let name = format!("{number:06}");
        std::fs::copy(example(number), folder.join(format!("{name}.png")))?;
        std::fs::write(folder.join(format!("{name}.txt")), caption)?;
        if choices {
            let wrong: Vec<&str> = CAPTIONS.into_iter().filter(|other| *other != caption).collect();
            let lines = format!("{caption}\n{}\na pink monster\na tree\n", wrong.join("\n"));
            std::fs::write(folder.join(format!("{name}.choices.txt")), lines)?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_file() {
        std::fs::create_dir_all(to.parent().context("a folder")?)?;
        std::fs::copy(from, to)?;
        return Ok(());
    }
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

fn write(path: &Path, config: &Value) -> Result<()> {
    Ok(std::fs::write(path, config.to_string())?)
}

fn losses(events: &[Value]) -> Vec<f64> {
    events.iter().filter_map(|event| event["output"]["training"]["loss"].as_f64()).collect()
}

#[test]
fn clip_finds_captions_and_the_language_model_begins_with_what_sees() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    scenes(&folder.join("scenes"), true)?;
    std::fs::copy(example(0), folder.join("scenes/nobody.png"))?;
    let tiny = repository().join("models/tiny");
    let path = folder.join("clip.json");
    let config = json!({
        "task": "clip", "model": tiny.join("sd"), "kosmos": tiny.join("kosmos"), "anew": true, "pictures": "scenes",
        "output": "made/text_encoder", "clip": {"choices": 3}, "steps": 60, "batch": 3,
        "optimiser": {"learning_rate": 1e-3},
    });
    write(&path, &config)?;
    let run = |path: &Path| Run::new("train").with_plugins().arg(path);
    let finished = run(&path).arg("--json").expect_success();
    let losses = losses(&finished.json_lines());
    ensure!(losses.len() == 60 && losses[59] < 0.5 * losses[0], "{losses:?}");

    // Read again, each picture finds its caption.
    let made = folder.join("made/text_encoder");
    let device = Device::Cpu;
    let (text_config, weights) = Checkpoint::open(&made, &device)?.clip_text()?;
    let text = kosmograph_models::clip::text::ClipText::load(&text_config, &weights)?;
    let vision = Weights::open(&made.join("vision"), &device)?;
    let Kosmos { transform, config, .. } = Kosmos::read(&tiny.join("kosmos"), &device)?;
    let vit = Vit::load(&config.vision.vit, &vision.sub("img_model.visual"))?;
    let layer = |name: &str, x: &Tensor| -> Result<Tensor> {
        let layer = vision.get(name, (128, 128))?.to_dtype(DType::F32)?;
        Ok(l2_normalize(&x.matmul(&layer.t()?)?)?)
    };
    let tokenizer =
        kosmograph_models::text::clip_tokens::ClipTokenizer::read(&tiny.join("sd/tokenizer"))?;
    let read = |caption: &str| -> Result<Tensor> {
        let row = tokenizer.encode_row(caption, 77)?;
        let ids = Tensor::new(row, &device)?.unsqueeze(0)?;
        layer("text_projection.weight", &text.pool(&ids, &text.forward(&ids)?)?)
    };
    let captions = Tensor::cat(&CAPTIONS.iter().map(|c| read(c)).collect::<Result<Vec<_>>>()?, 0)?;
    for number in 0..3 {
        let picture = image::open(example(number))?.into_rgb8();
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let view = Picture { pixels: picture.as_raw(), width, height, channels: 3 };
        let tokens = vit.forward(&transform.pixels(view)?.unsqueeze(0)?)?;
        let patches = tokens.dim(1)? - 1;
        let seen = (tokens.i((.., 0))? + tokens.narrow(1, 1, patches)?.mean(1)?)?;
        let seen = layer("visual_projection.weight", &seen)?;
        let near = seen.matmul(&captions.t()?)?.argmax(1)?.to_vec1::<u32>()?;
        ensure!(near == [number as u32], "picture {number} finds caption {near:?}");
    }

    // The first update with a warm-up has the rate 0: what the language model sees by is still CLIP's.
    let path = folder.join("mllm.json");
    let config = json!({
        "task": "mllm", "model": tiny.join("sd"), "kosmos": tiny.join("kosmos"), "anew": true, "vision": "made/text_encoder",
        "pictures": "scenes", "output": "made/mllm", "steps": 1, "batch": 2, "rate": {"warmup": 1},
    });
    write(&path, &config)?;
    run(&path).expect_success().stderr_contains("nobody.png is left out: it has no caption");
    let begun = Weights::open(&folder.join("made/mllm"), &device)?;
    let mut count = 0;
    for name in vision.names().iter().filter(|name| name.starts_with("img_model.")) {
        let shape = vision.shape(name).context("a shape")?;
        let apart = (vision.get(name, shape.clone())? - begun.get(name, shape)?)?;
        ensure!(apart.abs()?.max_all()?.to_scalar::<f32>()? == 0.0, "{name} is another");
        count += 1;
    }
    ensure!(count > 10, "{count} tensors of what sees");
    Ok(())
}

/// What `folder.py` draws, of three pictures.
fn world(world: &Path) -> Result<()> {
    let sd = repository().join("models/tiny/sd");
    for part in ["model_index.json", "scheduler", "tokenizer"] {
        copy(&sd.join(part), &world.join("sd").join(part))?;
    }
    scenes(&world.join("scenes"), true)?;
    for name in ["seen", "few", "looks/pencil", "looks/neon", "looks/pixel"] {
        scenes(&world.join(name), false)?;
    }
    scenes(&world.join("hints"), false)?;
    for (name, word) in [("given", "zwx"), ("moss", "moss")] {
        scenes(&world.join(name), false)?;
        for number in 0..3 {
            let text = world.join(name).join(format!("{number:06}.txt"));
            std::fs::write(text, format!("a {word} monster on the beach"))?;
        }
    }
    scenes(&world.join("instructions"), false)?;
    for number in 0..2 {
        let inside = world.join("instructions").join(format!("{number:06}"));
        copy(&example(number), &inside.join("1.png"))?;
        std::fs::write(inside.with_extension("txt"), "<i> on the beach")?;
        std::fs::write(inside.with_extension("caption.txt"), "a red monster on the beach")?;
    }
    Ok(())
}

#[test]
fn the_bundle_is_made_from_nothing_by_one_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let tiny = repository().join("models/tiny");
    let parts = ["sd", "kosmos", "train/stages.json"];
    for part in parts {
        copy(&tiny.join(part), &folder.join(part))?;
    }
    world(&folder.join("train/world"))?;
    let smoke = || {
        let file = folder.join("train/stages.json");
        Run::new("train").with_plugins().arg(file).args(["--budget", "smoke"])
    };
    smoke().expect_success().stderr_contains("stage bundle").stderr_contains("MB in all");

    let bundle = folder.join("train/world/bundle");
    let device = Device::Cpu;
    let sd = Checkpoint::open(&bundle.join("sd"), &device)?;
    sd.clip_text()?;
    sd.vae()?;
    let (unet, ..) = sd.unet()?;
    let (control, _) =
        Checkpoint::open(&bundle.join("controlnet/tiny-canny"), &device)?.control_net()?;
    ensure!(control.types().is_none() && unet.encoder.levels.len() == 2, "another kind of network");
    Kosmos::read(&bundle.join("kosmos"), &device)?;
    let kosmos = Weights::open(&bundle.join("kosmos"), &device)?;
    let names = kosmos.names();
    ensure!(
        names.iter().all(|name| !name.starts_with("aligner.decoder")),
        "the half for training alone"
    );
    let mut layers = Vec::new();
    for (name, of_file) in [
        ("pencil", "lora_unet_"),
        ("neon", "lora_A.weight"),
        ("pixel", "lora.down.weight"),
        ("zwx", "lora_unet_"),
    ] {
        let path = bundle.join(format!("loras/{name}.safetensors"));
        layers.push(Lora::open(&path)?.unet.len());
        let names = Weights::open(&path, &device)?.names();
        ensure!(names.iter().any(|name| name.contains(of_file)), "{name}: {names:?}");
    }
    ensure!(layers[0] > 40 && layers[..3].iter().all(|count| *count == layers[0]), "{layers:?}");
    let moss = Weights::open(&bundle.join("embeddings/moss.safetensors"), &device)?;
    ensure!(moss.shape("emb_params") == Some(vec![2, 128]), "{:?}", moss.names());
    // What previews are drawn with is that of the bundle's own latents.
    for unet in ["sd/unet", "unet/dreambooth"] {
        let config = std::fs::read_to_string(bundle.join(unet).join("config.json"))?;
        let config: Value = serde_json::from_str(&config)?;
        let of = |name: &str| config[name].as_array().map(Vec::len);
        ensure!((of("latent_rgb"), of("latent_rgb_bias")) == (Some(4), Some(3)), "{config}");
        let shipped = std::fs::read_to_string(tiny.join(unet).join("config.json"))?;
        let shipped: Value = serde_json::from_str(&shipped)?;
        let widths = if unet == "sd/unet" { json!([64, 96]) } else { json!([24, 40]) };
        ensure!(config["block_out_channels"] == widths, "{unet}: {config}");
        ensure!(config["latent_rgb"] != shipped["latent_rgb"], "colours of another VAE");
    }
    let file = std::fs::read(bundle.join("sd/unet/diffusion_pytorch_model.safetensors"))?;
    let kinds = safetensors::SafeTensors::deserialize(&file)?;
    ensure!(kinds.tensors().iter().all(|(_, t)| t.dtype() == safetensors::Dtype::F16), "not f16");

    // Each part draws.
    let workflow = repository().join("workflows/subject_control.json");
    let out = folder.join("out");
    copy(&bundle, &folder.join("models/tiny"))?;
    let models = folder.join("models").display().to_string();
    let run = Run::new("run").with_plugins().arg(workflow).args(["--models", &models]);
    run.args(["--out", &out.display().to_string()]).expect_success();

    let again = smoke().expect_success();
    again.stderr_contains("stage vae is done").stderr_contains("stage bundle is done");
    Ok(())
}

#[test]
fn a_bundle_that_is_too_large_or_leads_elsewhere_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("export.json");
    let moss = repository().join("models/tiny/embeddings");
    let part = |to: &str| json!([{"from": moss, "to": to}]);
    let cases = [
        (json!({"megabytes": 0.0001, "parts": part("embeddings")}), "may have 0.0001"),
        (json!({"parts": part("../embeddings")}), "is no place in the bundle"),
        (json!({"parts": [{"from": "nowhere", "to": "a"}]}), "nowhere"),
        (json!({"partz": []}), "the nearest is \"parts\""),
        (
            json!({"parts": part("embeddings"), "latent_rgb": {"vae": "nowhere", "pictures": "nowhere", "unets": []}}),
            "nowhere",
        ),
    ];
    for (export, sentence) in cases {
        write(&path, &json!({"task": "export", "output": "bundle", "export": export}))?;
        Run::new("train").with_plugins().arg(&path).expect_code(3).stderr_contains(sentence);
        ensure!(!folder.path().join("bundle").exists(), "{export}: something is left");
        ensure!(folder.path().read_dir()?.count() == 1, "{export}: something is left");
    }
    Ok(())
}
