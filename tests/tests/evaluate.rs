//! `kosmograph evaluate` with the narrow networks of the golden cases: the figures are the libraries', folders are read as
//! they come, and what is wrong is told.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{Device, safetensors::load};
use kosmograph_models::measures::{Network, similarities};
use kosmograph_tests::{Run, repository};
use serde_json::{Value, json};

fn golden(path: &str) -> PathBuf {
    repository().join("tests/golden").join(path)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to.parent().context("a folder")?)?;
    std::fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(())
}

/// The networks as folders, with what their shapes do not say.
fn networks(folder: &Path) -> Result<()> {
    for (case, config) in [
        ("dino", json!({"num_attention_heads": 6})),
        (
            "clip",
            json!({
                "vision_config": {"num_attention_heads": 4},
                "text_config": {"num_attention_heads": 3, "eos_token_id": 119},
            }),
        ),
        ("fid", json!({})),
    ] {
        let weights = golden(&format!("metric_{case}/weights.safetensors"));
        copy(&weights, &folder.join(case).join("model.safetensors"))?;
        std::fs::write(folder.join(case).join("config.json"), config.to_string())?;
    }
    // CLIP's vocabulary of 120 tokens: letters, within a word and at its end.
    let mut vocabulary = json!({"<|startoftext|>": 118, "<|endoftext|>": 119});
    for (number, letter) in ('a'..='z').enumerate() {
        vocabulary[letter.to_string()] = json!(number);
        vocabulary[format!("{letter}</w>")] = json!(number + 26);
    }
    std::fs::write(folder.join("clip/vocab.json"), vocabulary.to_string())?;
    std::fs::write(folder.join("clip/merges.txt"), "#version: 0.2\n")?;
    Ok(())
}

/// A run with some of the networks of `folder`.
fn run(folder: &Path, drawn: &str, real: &str, measures: &[&str]) -> Run {
    let mut run =
        Run::new("evaluate").with_plugins().arg(folder.join(drawn)).arg(folder.join(real));
    for name in measures {
        run = run.arg("--measure").arg(format!("{name}={}", folder.join(name).display()));
    }
    run
}

/// What the library made of it all.
fn made(run: Run) -> Result<Value> {
    let events = run.arg("--json").expect_success().json_lines();
    let output = events.iter().rev().find(|event| event["event"] == "output");
    Ok(output.context("no output")?["output"].clone())
}

fn number(json: &Value) -> Result<f64> {
    json.as_f64().with_context(|| format!("{json} is no number"))
}

/// The number `name` of a golden case.
fn expected(case: &str, name: &str) -> Result<f64> {
    let tensors = load(golden(&format!("{case}/expected.safetensors")), &Device::Cpu)?;
    let tensor = tensors.get(name).with_context(|| name.to_owned())?;
    Ok(f64::from(tensor.flatten_all()?.to_vec1::<f32>()?[0]))
}

fn near(found: &Value, expected: f64) -> Result<()> {
    let found = number(found)?;
    ensure!((found - expected).abs() <= 2e-3, "{found} is not {expected}");
    Ok(())
}

#[test]
fn figures_are_those_of_the_papers_own_scripts() -> Result<()> {
    let folder = tempfile::tempdir()?;
    networks(folder.path())?;
    for (case, names, figure, score) in [
        ("dino", ["picture0_190x131.png", "picture1_311x402.png"], "dino", "score"),
        ("clip", ["picture0_302x229.png", "picture1_200x333.png"], "clip_i", "clip_i"),
    ] {
        let [real, drawn] = [format!("real-{case}"), format!("drawn-{case}")];
        for (name, side) in names.iter().zip([&real, &drawn]) {
            let to = folder.path().join(side).join(name);
            copy(&golden(&format!("metric_{case}/{name}")), &to)?;
        }
        let made = made(run(folder.path(), &drawn, &real, &[case]))?;
        let expected = expected(&format!("metric_{case}"), score)?;
        near(&made["all"][figure], expected)?;
        // Of one real picture the pairwise figure is the same.
        near(&made["all"][format!("{figure}_pairwise")], expected)?;
        ensure!(made["pictures"].as_array().is_some_and(|each| each.len() == 1), "{made}");
    }
    Ok(())
}

/// DreamBench in small: two subjects, of which one has two real pictures, and one drawn picture is broken.
fn dreambench(folder: &Path) -> Result<()> {
    networks(folder)?;
    let examples = repository().join("models/tiny/examples");
    for (from, to) in [
        ("monster-1.png", "real/cup/00.png"),
        ("monster-2.png", "real/cup/01.png"),
        ("monster-3.png", "real/pot/00.png"),
        ("monster-2.png", "drawn/cup/00/0.png"),
        ("monster-1.png", "drawn/cup/01-0.png"),
        ("monster-3.png", "drawn/pot/00/0.png"),
    ] {
        copy(&examples.join(from), &folder.join(to))?;
    }
    std::fs::write(folder.join("drawn/pot/00/1.png"), b"\x89PNG\r\n\x1a\nand no more")?;
    std::fs::write(
        folder.join("real/prompts_and_classes.txt"),
        "subject_name,class\ncup,mug\npot,pot\n\nObject Prompts\n'a {0} {1} in the jungle'.format(\n'a red {0} {1}'.format(\n",
    )?;
    Ok(())
}

#[test]
fn dreambench_is_measured_subject_by_subject() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    dreambench(folder)?;
    let sheet = folder.join("sheet.png");
    let made =
        made(run(folder, "drawn", "real", &["dino", "clip", "fid"]).arg("--sheet").arg(&sheet))?;
    let left_out = made["left_out"].to_string();
    ensure!(left_out.contains("1.png is left out"), "{left_out}");
    let [cup, pot] = made["subjects"].as_array().context("subjects")?.as_slice() else {
        anyhow::bail!("{made}")
    };
    ensure!((cup["pictures"].as_u64(), pot["pictures"].as_u64()) == (Some(2), Some(1)), "{made}");
    // A picture against itself, and the mean over both real ones.
    near(&pot["dino"], 100.0)?;
    near(&pot["clip_i_pairwise"], 100.0)?;
    let among = number(&cup["real_among_themselves"]["dino"])?;
    near(&cup["dino_pairwise"], (100.0 + among) / 2.0)?;
    near(&cup["dino"], (100.0 + among) / 2.0)?;
    // The text is of the prompt and the class.
    let first = &made["pictures"][0];
    ensure!(first["text"] == "a mug in the jungle", "{first}");
    let network = Network::open(&folder.join("clip"), &Device::Cpu)?;
    let picture = image::open(folder.join("drawn/cup/00/0.png"))?.into_rgb8();
    let features = network.features(&[kosmograph_pixels::pillow::Picture {
        pixels: picture.as_raw(),
        width: picture.width() as usize,
        height: picture.height() as usize,
        channels: 3,
    }])?;
    let text = network.text_features("a mug in the jungle")?;
    near(&first["clip_t"], similarities(&features, &text)?[0])?;
    // The mean over the pictures, of whichever subject.
    let each = made["pictures"].as_array().context("pictures")?;
    let sum = each.iter().map(|each| number(&each["clip_t"])).sum::<Result<f64>>()?;
    near(&made["all"]["clip_t"], (sum / 3.0).max(0.0))?;
    // The same three pictures on both sides.
    ensure!(number(&made["all"]["fid"])?.abs() < 1e-2, "{}", made["all"]);
    let (width, height) = image::image_dimensions(&sheet)?;
    ensure!(width > 3 * 128 && height > 4 * 128, "{width} x {height}");

    // Which real picture was drawn from can be said.
    let inputs = folder.join("inputs.json");
    std::fs::write(&inputs, r#"{"cup": "01.png"}"#)?;
    let of_other = self::made(run(folder, "drawn/cup", "real/cup", &["dino"]))?;
    near(&of_other["all"]["dino"], (100.0 + among) / 2.0)?;
    let said = run(folder, "drawn", "real", &["dino"]).arg("--inputs").arg(&inputs);
    said.expect_success().stdout_contains("DINO pairwise").stdout_contains("real pictures");
    Ok(())
}

#[test]
fn what_is_wrong_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    dreambench(folder)?;
    std::fs::create_dir(folder.join("empty"))?;
    run(folder, "empty", "real", &["dino"]).expect_code(3).stderr_contains("hold no pictures");
    run(folder, "nowhere", "real", &["dino"]).expect_code(2).stderr_contains("there is no");
    run(folder, "drawn", "real", &[]).expect_code(2).stderr_contains("--measure");
    let measure = |name: &str, network: &str| {
        let path = folder.join(network);
        run(folder, "drawn", "real", &[]).arg("--measure").arg(format!("{name}={}", path.display()))
    };
    measure("dinno", "dino").expect_code(3).stderr_contains("the nearest is \"dino\"");
    measure("clip", "dino").expect_code(3).stderr_contains("is the network of \"dino\"");
    measure("fid", "real").expect_code(3).stderr_contains("holds no weights");
    measure("fid", "fid")
        .arg("--sheet")
        .arg(folder.join("sheet.png"))
        .expect_code(3)
        .stderr_contains("by dino or clip");
    let judge = repository().join("models/tiny/evaluate/classifier.safetensors");
    run(folder, "drawn", "real", &[])
        .arg("--measure")
        .arg(format!("dino={}", judge.display()))
        .expect_code(3)
        .stderr_contains("it is none of DINO");
    run(folder, "drawn/pot", "real/pot", &["fid"])
        .expect_code(3)
        .stderr_contains("2 or more of each would be right");
    let inputs = folder.join("inputs.json");
    std::fs::write(&inputs, r#"{"cup": "07.png"}"#)?;
    run(folder, "drawn", "real", &["dino"])
        .arg("--inputs")
        .arg(&inputs)
        .expect_code(3)
        .stderr_contains("there is no real picture 07.png of cup");
    Ok(())
}

#[test]
fn hostile_files_of_networks_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    networks(folder)?;
    for name in ["dino", "clip", "fid"] {
        let path = folder.join(name).join("model.safetensors");
        let whole = std::fs::read(&path)?;
        let length = u64::from_le_bytes(whole[..8].try_into()?) as usize;
        let header = std::str::from_utf8(&whole[8..8 + length])?;
        let with = |header: &str| {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.as_bytes());
            bytes.extend(&whole[8 + length..]);
            bytes
        };
        let json: Value = serde_json::from_str(header)?;
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut json = json.clone();
            let tensors = json.as_object_mut().map(|map| map.iter_mut());
            let first = tensors.into_iter().flatten().find(|(name, _)| *name != "__metadata__");
            if let Some((_, tensor)) = first {
                change(tensor);
            }
            with(&json.to_string())
        };
        let mut endless = whole.clone();
        endless[..8].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
        let hostile = [
            ("nothing", Vec::new()),
            ("an end after the header", whole[..8 + length].to_vec()),
            ("an end within", whole[..whole.len() - 5].to_vec()),
            ("a header without end", endless),
            ("no JSON", with("{")),
            ("a tensor of terabytes", changed(&|t| t["shape"] = json!([1u64 << 40, 1u64 << 20]))),
            (
                "a tensor outside of the file",
                changed(&|t| t["data_offsets"] = json!([0, 1u64 << 50])),
            ),
            ("a tensor of no numbers", changed(&|t| t["shape"] = json!([0]))),
            ("an unknown type", changed(&|t| t["dtype"] = json!("X7"))),
        ];
        for (what, bytes) in hostile {
            std::fs::write(&path, bytes)?;
            let opened = Network::open(&folder.join(name), &Device::Cpu);
            ensure!(opened.is_err(), "{name}: {what} was taken");
        }
        std::fs::write(&path, &whole)?;
        Network::open(&folder.join(name), &Device::Cpu)?;
    }
    Ok(())
}

#[test]
fn a_graph_measures_too() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    dreambench(folder)?;
    for name in ["dino", "clip", "fid"] {
        let from = folder.join(name);
        std::fs::create_dir_all(folder.join("models/measures"))?;
        std::fs::rename(from, folder.join("models/measures").join(name))?;
    }
    let load =
        |name: &str| json!({"class_type": "FeaturesLoader", "inputs": {"features_name": name}});
    let picture = |name: &str| json!({"class_type": "LoadImage", "inputs": {"image": name}});
    let show = |node: &str| json!({"class_type": "PreviewAny", "inputs": {"source": [node, 0]}});
    let graph = json!({
        "dino": load("dino"), "clip": load("clip"),
        "a": picture("cup/00.png"), "b": picture("cup/01.png"),
        "same": {"class_type": "ImageSimilarity",
                 "inputs": {"features": ["dino", 0], "images": ["a", 0], "reference": ["a", 0]}},
        "text": {"class_type": "TextSimilarity",
                 "inputs": {"features": ["clip", 0], "images": ["b", 0], "text": "a mug"}},
        "wrong": {"class_type": "TextSimilarity",
                  "inputs": {"features": ["dino", 0], "images": ["b", 0], "text": "a mug"}},
        "show-same": show("same"), "show-text": show("text"), "show-wrong": show("wrong"),
    });
    let path = folder.join("graph.json");
    std::fs::write(&path, graph.to_string())?;
    let finished = Run::new("run")
        .with_plugins()
        .arg(&path)
        .arg("--models")
        .arg(folder.join("models"))
        .arg("--input")
        .arg(folder.join("real"))
        .arg("--out")
        .arg(folder.join("out"))
        .arg("--json")
        .expect_code(3);
    let events = finished.json_lines();
    let shown = |node: &str| {
        let of_node = |event: &&Value| event["event"] == "output" && event["node"] == node;
        let output = events.iter().find(of_node).with_context(|| format!("no output of {node}"))?;
        let text = output["output"]["text"][0].as_str().context("a text")?;
        Ok::<f64, anyhow::Error>(text.parse()?)
    };
    ensure!((shown("show-same")? - 100.0).abs() < 1e-3);
    ensure!(shown("show-text")?.abs() <= 100.0);
    let told = events.iter().find(|event| event["event"] == "error").context("an error")?;
    ensure!(told.to_string().contains("knows no texts"), "{told}");
    Ok(())
}
