//! `kosmograph train` on the bundled model: what it makes is read again, an end at any time changes nothing, and what is
//! wrong is told.

mod states;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use kosmograph_models::Weights;
use kosmograph_models::kosmos::Kosmos;
use kosmograph_models::lora::Lora;
use kosmograph_models::stable_diffusion::checkpoint::Checkpoint;
use kosmograph_models::stable_diffusion::controlnet::ControlNet;
use kosmograph_models::stable_diffusion::unet::UNet;
use kosmograph_tests::{Run, repository};
use kosmograph_training::{Config, Report, Watch, lora, state, train};
use serde_json::{Value, json};

/// A folder with three pictures and their captions, and a broken one.
fn pictures(folder: &Path) -> Result<PathBuf> {
    let pictures = folder.join("pictures");
    std::fs::create_dir_all(&pictures)?;
    for number in 1..=3 {
        let name = format!("monster-{number}.png");
        std::fs::copy(repository().join("models/tiny/examples").join(&name), pictures.join(&name))?;
        let caption = pictures.join(format!("monster-{number}.txt"));
        std::fs::write(caption, format!("a monster, number {number}\n"))?;
    }
    std::fs::write(pictures.join("broken.png"), b"\x89PNG\r\n\x1a\nand no more")?;
    Ok(pictures)
}

/// A small training, with `more` of its keys.
fn config(folder: &Path, more: &Value) -> Result<PathBuf> {
    pictures(folder)?;
    let mut config = json!({
        "task": "lora",
        "model": repository().join("models/tiny/sd"),
        "pictures": "pictures",
        "output": "made/monster.safetensors",
        "resolution": 64,
        "steps": 4,
        "batch": 2,
        "lora": {"rank": 2, "alpha": 2},
        "optimiser": {"learning_rate": 0.01},
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    let path = folder.join("train.json");
    std::fs::write(&path, config.to_string())?;
    Ok(path)
}

fn run(config: &Path) -> Run {
    Run::new("train").with_plugins().arg(config)
}

#[test]
fn a_lora_is_trained_and_read_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let more = json!({
        "lora": {"rank": 2, "alpha": 2, "layers": ["to_q", "to_k", "to_v", "to_out.0", "conv1"],
                 "text_encoder_layers": ["q_proj", "v_proj"]},
        "flip": true, "min_snr": 5.0, "noise_offset": 0.1, "caption_dropout": 0.2, "ema": 0.99,
        "samples": {"every": 2, "prompts": ["a monster"], "steps": 2},
        "rate": {"course": "cosine", "warmup": 1},
    });
    let config = config(folder.path(), &more)?;
    let events = run(&config).arg("--json").expect_success().json_lines();
    let outputs: Vec<&Value> = events
        .iter()
        .filter(|event| event["event"] == "output")
        .map(|event| &event["output"])
        .collect();
    let updates: Vec<&Value> = outputs
        .iter()
        .map(|output| &output["training"])
        .filter(|update| !update.is_null())
        .collect();
    ensure!(updates.len() == 4, "{events:?}");
    ensure!(updates.iter().all(|update| update["loss"].as_f64().is_some_and(|loss| loss > 0.0)));
    ensure!(updates[3]["update"] == 4 && updates[3]["seconds_left"] == 0.0, "{:?}", updates[3]);
    let output = folder.path().join("made/monster.safetensors");
    ensure!(!state::path(&output).exists(), "the state is not needed any more");
    for sample in ["000002-0.png", "000004-0.png"] {
        let path = folder.path().join("made/monster.samples").join(sample);
        let size = image::image_dimensions(&path)?;
        ensure!(size == (64, 64), "{size:?}");
    }
    let lora = Lora::open(&output)?;
    let weights = Weights::open(&output, &Device::Cpu)?;
    let ups: Vec<String> =
        weights.names().into_iter().filter(|name| name.ends_with(".lora_up.weight")).collect();
    ensure!(
        ups.iter()
            .any(|name| name.starts_with("lora_te_text_model_encoder_layers_0_self_attn_q_proj"))
    );
    ensure!(
        ups.iter().any(|name| name.starts_with("lora_unet_") && name.contains("_resnets_0_conv1"))
    );
    ensure!(lora.unet.len() + lora.text_encoder.len() == ups.len(), "a layer is not read again");
    let moved = ups.iter().filter(|name| {
        let shape = weights.shape(name).unwrap_or_default();
        let up =
            weights.get(name, shape).and_then(|up| Ok(up.abs()?.max_all()?.to_scalar::<f32>()?));
        up.is_ok_and(|largest| largest > 0.0)
    });
    ensure!(moved.count() == ups.len(), "a layer has learnt nothing");

    // Nothing is written over.
    run(&config).expect_code(3).stderr_contains("is there already; nothing is written over");
    Ok(())
}

#[test]
fn the_other_kinds_of_loras_are_trained_and_change_the_picture() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut drawn = Vec::new();
    for kind in ["none", "loha", "lokr"] {
        let style = std::fs::read(repository().join("workflows/style.json"))?;
        let mut graph: Value = serde_json::from_slice(&style)?;
        let inputs = &mut graph["3"]["inputs"];
        if kind == "none" {
            inputs["strength_model"] = json!(0.0);
            inputs["strength_clip"] = json!(0.0);
        } else {
            let more = json!({
                "output": format!("loras/{kind}.safetensors"), "steps": 3,
                "lora": {"kind": kind, "rank": 2, "alpha": 2, "layers": ["to_q", "to_v", "ff.net.2", "conv1"]},
                "optimiser": {"learning_rate": 0.05},
            });
            train(&read(&config(folder.path(), &more)?)?, &mut Stop::after(usize::MAX))?;
            let path = folder.path().join(format!("loras/{kind}.safetensors"));
            let kind = if kind == "loha" { lora::Kind::Loha } else { lora::Kind::Lokr };
            let weights = Weights::open(&path, &Device::Cpu)?;
            let names = weights.names();
            let of = |end: &str| names.iter().filter(|name| name.ends_with(end)).count();
            let layers = of(".alpha");
            ensure!(layers > 10 && kind.ends().iter().all(|end| of(end) == layers), "{names:?}");
            ensure!(Lora::open(&path)?.unet.len() == layers, "a layer is not read again");
            lora_of(inputs, &path)?;
        }
        let out = folder.path().join(format!("out-{kind}"));
        let run = Run::new("run").with_plugins().arg("-").arg("--models");
        let run = run.arg(repository().join("models")).arg("--models").arg(folder.path());
        run.arg("--out").arg(&out).stdin(graph.to_string()).expect_success();
        let made = std::fs::read_dir(&out)?.next().context("no picture")??.path();
        drawn.push(image::open(made)?.into_rgb8());
    }
    ensure!(
        drawn[0] != drawn[1] && drawn[0] != drawn[2] && drawn[1] != drawn[2],
        "they change nothing"
    );
    Ok(())
}

fn lora_of(inputs: &mut Value, path: &Path) -> Result<()> {
    let name = path.file_name().context("a name")?.to_string_lossy();
    inputs["lora_name"] = json!(name);
    inputs["strength_model"] = json!(1.0);
    inputs["strength_clip"] = json!(0.0);
    Ok(())
}

/// Stops after some updates.
struct Stop {
    after: usize,
    losses: Vec<f64>,
    notes: Vec<String>,
}

impl Stop {
    fn after(after: usize) -> Stop {
        Stop { after, losses: vec![], notes: vec![] }
    }
}

impl Watch for Stop {
    fn update(&mut self, report: &Report) -> kosmograph_training::Result<()> {
        self.losses.push(report.loss);
        match report.update == self.after {
            true => Err(kosmograph_training::Error::Cancelled),
            false => Ok(()),
        }
    }

    fn note(&mut self, sentence: &str, _: bool) {
        self.notes.push(sentence.to_owned());
    }

    fn made(&mut self, _: &Path) {}

    fn seen(&mut self, _: usize, _: usize) {}

    fn stopped(&self) -> bool {
        false
    }
}

fn read(config: &Path) -> Result<Config> {
    let folder = config.parent().context("a folder")?;
    Ok(Config::read(&std::fs::read_to_string(config)?, folder)?)
}

#[test]
fn a_training_that_was_stopped_gives_the_same_bytes() -> Result<()> {
    for more in [
        json!({"flip": true, "ema": 0.9, "accumulate": 2}),
        json!({"optimiser": {"method": "adafactor", "learning_rate": 0.01}, "buckets": true}),
        json!({"optimiser": {"method": "adamw_8bit", "learning_rate": 0.01}}),
        json!({"optimiser": {"method": "muon", "learning_rate": 0.01}, "rate": {"course": "linear", "hold": 0.5}}),
        json!({"task": "inversion", "inversion": {"token": "monster", "vectors": 2, "start": "a"}}),
    ] {
        let (whole, parts) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let output = |folder: &Path| folder.join("made/monster.safetensors");
        let mut watch = Stop::after(usize::MAX);
        train(&read(&config(whole.path(), &more)?)?, &mut watch)?;
        ensure!(
            watch.notes.iter().any(|note| note.contains("broken.png is left out")),
            "{:?}",
            watch.notes
        );
        let config = read(&config(parts.path(), &more)?)?;
        for after in [1, 3] {
            let ended = train(&config, &mut Stop::after(after));
            ensure!(matches!(ended, Err(kosmograph_training::Error::Cancelled)), "{ended:?}");
            ensure!(!output(parts.path()).exists());
        }
        let mut watch = Stop::after(usize::MAX);
        train(&config, &mut watch)?;
        ensure!(watch.losses.len() == 1, "it began anew");
        let [a, b] = [whole.path(), parts.path()].map(|folder| std::fs::read(output(folder)));
        ensure!(a? == b?, "{more}: other bytes");
    }
    Ok(())
}

#[test]
fn a_training_that_was_killed_goes_on_with_the_same_bytes() -> Result<()> {
    let (whole, parts) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let more = json!({"steps": 8, "checkpoint_every": 1});
    run(&config(whole.path(), &more)?).expect_success();
    let config = config(parts.path(), &more)?;
    let output = parts.path().join("made/monster.safetensors");
    let mut child = run(&config).command().stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let start = Instant::now();
    // At some update: as soon as there is a state of the disk.
    while !state::path(&output).exists() && start.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill()?;
    child.wait()?;
    let there_before = output.exists();
    if !there_before {
        run(&config).expect_success().stderr_contains("going on after");
    }
    let [a, b] = [whole.path(), parts.path()]
        .map(|folder| std::fs::read(folder.join("made/monster.safetensors")));
    ensure!(a? == b?, "other bytes");
    Ok(())
}

#[test]
fn blocks_that_are_computed_again_give_the_same_bytes() -> Result<()> {
    let layers = json!({"rank": 2, "alpha": 2, "layers": ["to_q", "to_v", "conv1", "conv_in", "time_emb_proj", "conv"]});
    let of_text = json!({"rank": 2, "alpha": 2, "text_encoder_layers": ["q_proj", "v_proj"]});
    let cases = [
        ("a LoRA", json!({"lora": layers, "min_snr": 5.0}), "monster.safetensors"),
        ("a LoRA of the text encoder too", json!({"lora": of_text}), "monster.safetensors"),
        (
            "the whole U-Net",
            json!({"task": "dreambooth", "output": "made/unet", "steps": 2}),
            "unet/diffusion_pytorch_model.safetensors",
        ),
        ("a word", json!({"task": "inversion"}), "monster.safetensors"),
    ];
    for (what, more, file) in cases {
        let mut made = Vec::new();
        for recompute in [false, true] {
            let folder = tempfile::tempdir()?;
            let mut more = more.clone();
            more["recompute"] = json!(recompute);
            let config = read(&config(folder.path(), &more)?)?;
            train(&config, &mut Stop::after(usize::MAX))?;
            made.push(std::fs::read(folder.path().join("made").join(file))?);
        }
        ensure!(made[0] == made[1], "{what} has learnt something else");
    }
    Ok(())
}

#[test]
fn a_whole_unet_is_trained_with_its_class() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let more = json!({
        "task": "dreambooth", "output": "made/unet", "steps": 2, "batch": 1,
        "prior": {"pictures": "pictures", "caption": "a monster", "weight": 0.5},
        "optimiser": {"learning_rate": 1e-4},
    });
    let config = read(&config(folder.path(), &more)?)?;
    let output = train(&config, &mut Stop::after(usize::MAX))?;
    let (unet, _, weights) = Checkpoint::open(&output, &Device::Cpu)?.unet()?;
    UNet::load(&weights, &unet)?;
    weights.finish(&[])?;
    Ok(())
}

#[test]
fn a_controlnet_begins_as_the_unet_and_is_loaded() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let more = json!({
        "task": "controlnet", "output": "made/control", "steps": 2, "batch": 2, "flip": true,
        "control": {"hints": "hints"}, "samples": {"every": 2, "prompts": ["a monster"], "steps": 2},
    });
    let config = config(folder.path(), &more)?;
    let hints = folder.path().join("hints");
    std::fs::create_dir(&hints)?;
    // Two of the three pictures have a hint; one of another size and format.
    let hint =
        image::RgbImage::from_fn(96, 80, |x, y| image::Rgb([(x * 2) as u8, (y * 3) as u8, 9]));
    hint.save(hints.join("monster-1.png"))?;
    hint.save(hints.join("monster-2.bmp"))?;
    run(&config)
        .expect_success()
        .stderr_contains("monster-3.png is left out")
        .stderr_contains("holds no hint of its name");
    let made = folder.path().join("made/control");
    let (found, weights) = Checkpoint::open(&made, &Device::Cpu)?.control_net()?;
    ControlNet::load(&weights, &found)?;
    weights.finish(&[])?;
    // What was zero at first has learnt; what was the U-Net's is near it.
    let out = weights.get("controlnet_mid_block.weight", (96, 96, 1, 1))?;
    ensure!(out.abs()?.max_all()?.to_scalar::<f32>()? > 0.0, "the outputs are zeros still");
    let (_, _, unet) =
        Checkpoint::open(&repository().join("models/tiny/sd"), &Device::Cpu)?.unet()?;
    let of = |weights: &Weights| weights.get("conv_in.weight", (64, 4, 3, 3));
    let apart = (of(&weights)?.to_dtype(DType::F32)? - of(&unet)?.to_dtype(DType::F32)?)?;
    ensure!(apart.abs()?.max_all()?.to_scalar::<f32>()? < 0.1);
    ensure!(folder.path().join("made/control.samples/000002-0.png").is_file());
    // And it can go on from one that is there.
    let more = json!({
        "task": "controlnet", "output": "made/other", "steps": 1, "batch": 1,
        "control": {"hints": "hints", "start": "made/control"},
    });
    let path = self::config(folder.path(), &more)?;
    train(&read(&path)?, &mut Stop::after(usize::MAX))?;
    ensure!(folder.path().join("made/other/config.json").is_file());
    Ok(())
}

/// A folder of prompts with pictures, for Kosmos-G.
fn prompts(folder: &Path) -> Result<()> {
    let pictures = folder.join("prompts");
    let examples = repository().join("models/tiny/examples");
    for (name, prompt, sources) in [
        ("one", "<i> on the beach", 1),
        ("two", "<i> and <i> at night", 2),
        ("none", "a red monster in the snow", 0),
        ("wrong", "<i> and <i>", 1),
    ] {
        std::fs::create_dir_all(pictures.join(name))?;
        std::fs::copy(examples.join("monster-1.png"), pictures.join(format!("{name}.png")))?;
        std::fs::write(pictures.join(format!("{name}.txt")), prompt)?;
        for number in 0..sources {
            let source = examples.join(format!("monster-{}.png", number + 2));
            std::fs::copy(source, pictures.join(name).join(format!("{number}.png")))?;
        }
    }
    std::fs::write(pictures.join("two.caption.txt"), "a monster and another at night")?;
    Ok(())
}

#[test]
fn kosmos_g_is_aligned_and_instructed_and_loaded_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    prompts(folder.path())?;
    let kosmos = repository().join("models/tiny/kosmos");
    for (task, part, still) in [
        ("align", "aligner.encoder_query", "gpt_model.decoder.layer_norm.weight"),
        ("instruct", "gpt_model.decoder.layer_norm.weight", "img_model.visual.conv1.weight"),
    ] {
        let output = format!("made/{task}");
        let mut more = json!({
            "task": task, "kosmos": kosmos, "pictures": "prompts", "output": output, "steps": 3, "batch": 2,
            "resolution": 128, "rate": {"warmup": 1},
        });
        if task == "instruct" {
            more["anchor"] = json!(0.5);
        }
        let path = config(folder.path(), &more)?;
        let finished = run(&path).expect_success();
        if task == "instruct" {
            finished.stderr_contains("wrong.png is left out").stderr_contains("1 of 3 documents");
        } else {
            finished.stderr_contains("no reconstruction half");
        }
        let made = folder.path().join(&output);
        Kosmos::read(&made, &Device::Cpu)?;
        let both = [&made, &kosmos].map(|folder| Weights::open(folder, &Device::Cpu));
        let [made, before] = both;
        let (made, before) = (made?, before?);
        let changed = |name: &str| -> Result<f32> {
            let shape = before.shape(name).with_context(|| name.to_owned())?;
            let of = |weights: &Weights| -> Result<Tensor> {
                Ok(weights.get(name, shape.clone())?.to_dtype(DType::F32)?)
            };
            let apart = (of(&made)? - of(&before)?)?;
            Ok(apart.abs()?.max_all()?.to_scalar::<f32>()?)
        };
        ensure!(changed(part)? > 0.0, "{task}: {part} has learnt nothing");
        ensure!(changed(still)? == 0.0, "{task}: {still} has changed");
    }
    Ok(())
}

#[test]
fn stages_go_from_nothing_to_a_bundle_and_are_not_done_twice() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    pictures(folder)?;
    prompts(folder)?;
    let tiny = repository().join("models/tiny");
    let file = json!({
        "common": {"model": tiny.join("sd"), "pictures": "pictures", "resolution": 64, "batch": 2, "steps": 50},
        "stages": [
            {"name": "vae", "task": "vae", "anew": true, "output": "sd/vae", "flip": true,
             "samples": {"every": 2, "prompts": [""]}},
            {"name": "unet", "task": "text-to-picture", "anew": true, "output": "sd/unet", "min_snr": 5.0},
            {"name": "mllm", "task": "mllm", "anew": true, "kosmos": tiny.join("kosmos"), "output": "made/mllm"},
            {"name": "align", "task": "align", "kosmos": "made/mllm", "output": "made/align",
             "samples": {"every": 2, "prompts": ["a monster"], "steps": 2}},
            {"name": "instruct", "task": "instruct", "kosmos": "made/align", "pictures": "prompts", "output": "made/kosmos",
             "samples": {"every": 2, "prompts": ["<i> on the beach"], "steps": 2,
                         "pictures": [["pictures/monster-1.png"]]}},
        ],
        "budgets": {"smoke": {"common": {"steps": 2}}},
    });
    let path = folder.join("stages.json");
    std::fs::write(&path, file.to_string())?;
    let smoke = || run(&path).args(["--budget", "smoke"]);
    smoke().expect_success().stderr_contains("stage instruct");
    for name in ["sd/vae", "sd/unet", "made/mllm", "made/align", "made/kosmos"] {
        ensure!(folder.join(name).join("config.json").is_file(), "{name} is not there");
    }
    for sample in ["sd/vae.samples", "made/align.samples", "made/kosmos.samples"] {
        let size = image::image_dimensions(folder.join(sample).join("000002-0.png"))?;
        ensure!(size == (64, 64), "{sample}: {size:?}");
    }
    Kosmos::read(&folder.join("made/kosmos"), &Device::Cpu)?;
    let vae: Value = serde_json::from_slice(&std::fs::read(folder.join("sd/vae/config.json"))?)?;
    let bundled: Value = serde_json::from_slice(&std::fs::read(tiny.join("sd/vae/config.json"))?)?;
    ensure!(vae["scaling_factor"] != bundled["scaling_factor"], "the spread was not measured");
    let (_, weights) = Checkpoint::open(&folder.join("sd/vae"), &Device::Cpu)?.vae()?;
    ensure!(weights.has("decoder.conv_out.weight"), "no autoencoder");

    // What is there is not made again; a stage alone is, where it is gone.
    std::fs::remove_dir_all(folder.join("sd/unet"))?;
    let again = smoke().expect_success();
    again
        .stderr_contains("stage vae is done")
        .stderr_contains("stage unet")
        .stderr_contains("stage instruct is done");
    ensure!(folder.join("sd/unet/config.json").is_file(), "the U-Net was not made again");
    run(&path)
        .args(["--budget", "huge"])
        .expect_code(3)
        .stderr_contains("there is no budget \"huge\"; there are \"smoke\"");
    let plain = config(folder, &json!({}))?;
    run(&plain).args(["--budget", "smoke"]).expect_code(2).stderr_contains("has no \"stages\"");
    Ok(())
}

#[test]
fn what_is_wrong_is_told_before_anything_is_made() -> Result<()> {
    let empty = tempfile::tempdir()?;
    let cases = [
        (json!({"stepz": 3}), "there is no \"stepz\" in a configuration; the nearest is \"steps\""),
        (json!({"lora": {"rank": 1000}}), "the rank 1000 does not fit"),
        (json!({"lora": {"layers": ["to_qq"]}}), "no layer of"),
        (json!({"pictures": empty.path()}), "holds no pictures"),
        (json!({"pictures": "nowhere"}), "nowhere"),
        (json!({"model": "nowhere"}), "nowhere"),
        (json!({"task": "loro"}), "unknown variant `loro`"),
        (json!({"task": "controlnet"}), "\"control\" and the task controlnet go together"),
        (
            json!({"task": "controlnet", "control": {"hints": "nowhere"}}),
            "holds no picture that can be read",
        ),
        (
            json!({"task": "align"}),
            "\"kosmos\" and the tasks align, instruct, mllm and clip go together",
        ),
        (json!({"anew": true}), "\"anew\" goes with the tasks"),
        (json!({"task": "align", "kosmos": "nowhere"}), "nowhere"),
        (
            json!({"task": "align", "kosmos": repository().join("models/tiny/kosmos"),
                   "shards": [{"kind": "laion", "files": ["no.tsv"]}]}),
            "no.tsv",
        ),
    ];
    for (more, sentence) in cases {
        let folder = tempfile::tempdir()?;
        run(&config(folder.path(), &more)?).expect_code(3).stderr_contains(sentence);
        ensure!(!folder.path().join("made").exists(), "{more}: something was made");
    }
    Run::new("train")
        .with_plugins()
        .arg("nowhere.json")
        .expect_code(2)
        .stderr_contains("nowhere.json");
    Ok(())
}
