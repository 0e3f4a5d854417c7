//! Sweeps as a user runs them: what is computed, what is told, and the sheet.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use kosmograph_tests::{Run, repository};
use serde_json::{Value, json};

/// A patch laid on a plain picture.
fn workflow(folder: &Path) -> std::path::PathBuf {
    let plain = |title: &str, side: u64, color: u64| {
        json!({"class_type": "EmptyImage", "_meta": {"title": title},
            "inputs": {"width": side, "height": side, "batch_size": 1, "color": color}})
    };
    let workflow = json!({
        "1": plain("Base", 96, 255), "2": plain("Patch", 32, 0xff_00_00),
        "3": {"class_type": "ImageCompositeMasked",
            "inputs": {"destination": ["1", 0], "source": ["2", 0], "x": 0, "y": 0}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "s"}}});
    let file = folder.join("w.json");
    fs::write(&file, workflow.to_string()).unwrap();
    file
}

fn run(folder: &Path, sweeps: &[&str]) -> Run {
    let mut run = Run::new("run").with_plugins().arg(workflow(folder)).folder(folder);
    for sweep in sweeps {
        run = run.arg("--sweep").arg(sweep);
    }
    run.arg("--out").arg(folder.join("out"))
}

#[test]
fn every_combination_is_run_and_nothing_is_computed_twice() {
    let folder = tempfile::tempdir().unwrap();
    let sweeps = ["3.x=0:60:20", "Base.color=255,65280", "ImageCompositeMasked.y=0..2"];
    let sheet = folder.path().join("sheet.png");
    let finished =
        run(folder.path(), &sweeps).arg("--json").arg("--sheet").arg(&sheet).expect_success();
    let events: Vec<Value> =
        finished.stdout().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| events.iter().filter(|event| event["event"] == kind).collect::<Vec<_>>();
    let started =
        |node: &str| of("node_started").iter().filter(|event| event["node"] == node).count();
    assert_eq!(["1", "2", "3", "4"].map(started), [2, 1, 16, 16]);
    let plans = of("plan");
    assert_eq!(plans.len(), 16);
    // What most depends on changes least.
    let value =
        |node: &str, input: &str, value: u64| json!({"node": node, "input": input, "value": value});
    assert_eq!(
        plans[9]["values"],
        json!([value("1", "color", 65280), value("3", "x", 0), value("3", "y", 1)])
    );
    assert_eq!(of("sheet")[0]["file"], sheet.to_str().unwrap());
    // A picture is the workflow of its own run.
    let picture = image::open(folder.path().join("out/s_00010_.png")).unwrap().to_rgb8();
    assert_eq!((picture.get_pixel(0, 0).0, picture.get_pixel(0, 1).0), ([0, 255, 0], [255, 0, 0]));
    let again = folder.path().join("again");
    let drawn = folder.path().join("out/s_00010_.png");
    Run::new("run").with_plugins().arg(&drawn).arg("--out").arg(&again).expect_success();
    assert_eq!(image::open(again.join("s_00001_.png")).unwrap().to_rgb8(), picture);
    // Eight rows of two pictures, with what is written to them.
    let sheet = image::open(sheet).unwrap().to_rgb8();
    assert!(sheet.height() > 8 * 96 && sheet.width() > 2 * 96, "{:?}", sheet.dimensions());
}

/// How often each node of a sweep of two LoRAs, three strengths and two prompts began. The LoRAs are the
/// bundled ones, behind a loader that changes the U-Net alone, or CLIP as well.
fn begun(folder: &Path, class: &str, sheet: Option<&Path>) -> BTreeMap<String, usize> {
    let changes_clip = class == "LoraLoader";
    let clip = json!([if changes_clip { "lora" } else { "base" }, 1]);
    let text = |text: &str| json!({"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": clip}});
    let mut workflow = json!({
        "base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny/sd"}},
        "lora": {"class_type": class,
            "inputs": {"model": ["base", 0], "lora_name": "", "strength_model": 1.0}},
        "text": text(""),
        "negative": text("a photograph"),
        "size": {"class_type": "EmptyLatentImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "sampler": {"class_type": "KSampler", "inputs": {
            "model": ["lora", 0], "positive": ["text", 0], "negative": ["negative", 0],
            "latent_image": ["size", 0], "seed": 1, "steps": 2, "cfg": 4.0, "sampler_name": "euler",
            "scheduler": "normal", "denoise": 1.0}},
        "decode": {"class_type": "VAEDecode",
            "inputs": {"samples": ["sampler", 0], "vae": ["base", 2]}},
        "save": {"class_type": "SaveImage",
            "inputs": {"images": ["decode", 0], "filename_prefix": class}}});
    if changes_clip {
        workflow["lora"]["inputs"]["clip"] = json!(["base", 1]);
        workflow["lora"]["inputs"]["strength_clip"] = json!(1.0);
    }
    fs::write(
        folder.join("prompts.txt"),
        "a purple ghost monster\n\na round monster, in the snow\n",
    )
    .unwrap();
    let mut run = Run::new("run").with_plugins().arg("-").stdin(workflow.to_string());
    run = run.folder(folder).arg("--models").arg(repository().join("models"));
    // A strength of CLIP goes with that of the U-Net, so that there are six pairs and no product of both.
    let strength = if changes_clip { "lora.strength_clip" } else { "lora.strength_model" };
    for sweep in [
        "text.text=@prompts.txt",
        &format!("{strength}=0.5:1:0.25"),
        "lora.lora_name=tiny/loras/pencil.safetensors,tiny/loras/neon.safetensors",
    ] {
        run = run.arg("--sweep").arg(sweep);
    }
    if let Some(sheet) = sheet {
        run = run.arg("--sheet").arg(sheet);
    }
    let finished = run.arg("--json").arg("--out").arg(folder.join("out")).expect_success();
    let mut begun = BTreeMap::new();
    for line in finished.stdout().lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        if event["event"] == "node_started" {
            *begun.entry(event["node"].as_str().unwrap().to_owned()).or_default() += 1;
        }
    }
    begun
}

fn counts<const N: usize>(counts: [(&str, usize); N]) -> BTreeMap<String, usize> {
    counts.into_iter().map(|(node, times)| (node.to_owned(), times)).collect()
}

#[test]
fn a_lora_of_the_unet_alone_leaves_the_texts_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let sheet = folder.path().join("sheet.png");
    let begun = begun(folder.path(), "LoraLoaderModelOnly", Some(&sheet));
    let expected = [
        ("base", 1),
        ("size", 1),
        ("negative", 1),
        ("text", 2),
        ("lora", 6),
        ("sampler", 12),
        ("decode", 12),
        ("save", 12),
    ];
    assert_eq!(begun, counts(expected));
    // Twelve pictures, each another one.
    let out = folder.path().join("out");
    let drawn: BTreeSet<Vec<u8>> = fs::read_dir(&out)
        .unwrap()
        .map(|entry| image::open(entry.unwrap().path()).unwrap().to_rgb8().into_raw())
        .collect();
    assert_eq!(drawn.len(), 12);
    // The sheet shows every one of them, pixel for pixel.
    let sheet = image::open(&sheet).unwrap().to_rgb8();
    let holds = |picture: &[u8]| {
        let row = |y: usize| &picture[y * 64 * 3..][..64 * 3];
        let at = |x: u32, y: u32| {
            (0..64u32).all(|dy| {
                let start = ((y + dy) * sheet.width() + x) as usize * 3;
                sheet.as_raw()[start..][..64 * 3] == *row(dy as usize)
            })
        };
        (0..=sheet.height() - 64).any(|y| (0..=sheet.width() - 64).any(|x| at(x, y)))
    };
    assert!(drawn.iter().all(|picture| holds(picture)));
}

#[test]
fn a_lora_of_clip_makes_every_text_another_one() {
    let folder = tempfile::tempdir().unwrap();
    let begun = begun(folder.path(), "LoraLoader", None);
    assert_eq!(["text", "negative", "lora", "sampler"].map(|node| begun[node]), [12, 6, 6, 12]);
}

#[test]
fn what_cannot_be_swept_is_told_and_not_begun() {
    let folder = tempfile::tempdir().unwrap();
    for (sweeps, sentence) in [
        (&["3.x=0..10000000"][..], "10,000,000 combinations are too many"),
        (&["3.xx=1"][..], "has no input \"xx\"; did you mean \"x\"?"),
        (&["3.x="][..], "there is no value in an empty list"),
        (&["3.x=1,2", "3.x=3"][..], "is swept twice"),
        (&["3.x=@nothing.txt"][..], "nothing.txt cannot be read"),
        (&["3.x=@"][..], "there is no value in a file without a name"),
        (
            &["3.x=1,99999"][..],
            "99999 is more than 16384, the most it takes; this is in the run with 3.x = 99999",
        ),
    ] {
        run(folder.path(), sweeps).expect_code(2).stderr_contains(sentence);
    }
    // Hours of a sweep are not lost to where its sheet goes.
    for (sheet, sentence) in [
        ("sheet.jpg", "a sheet is a PNG; sheet.png would be right"),
        ("sheet", "a sheet is a PNG; sheet.png would be right"),
        ("nowhere/sheet.png", "the folder nowhere is not there"),
        ("folder.png", "--sheet folder.png: is a folder"),
    ] {
        fs::create_dir_all(folder.path().join("folder.png")).unwrap();
        let run = run(folder.path(), &["3.x=1,2"]).arg("--sheet").arg(sheet);
        run.expect_code(2).stderr_contains(sentence);
    }
    assert!(!folder.path().join("out").exists());
}

/// A picture that is drawn of a colour, and another that no value reaches: the first of the file is that one's.
fn two_outputs(folder: &Path) -> Run {
    let plain = |color: u64| {
        json!({"class_type": "EmptyImage",
            "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": color}})
    };
    let to =
        |class: &str, from: &str| json!({"class_type": class, "inputs": {"images": [from, 0]}});
    let mut workflow = json!({"1": plain(0xff_ff_ff), "2": to("PreviewImage", "1"),
        "3": to("SaveImage", "1"), "4": plain(255), "5": to("SaveImage", "4")});
    for (save, prefix) in [("3", "still"), ("5", "swept")] {
        workflow[save]["inputs"]["filename_prefix"] = json!(prefix);
    }
    fs::write(folder.join("two.json"), workflow.to_string()).unwrap();
    Run::new("run").with_plugins().folder(folder).arg("two.json").args(["--sheet", "sheet.png"])
}

/// The colours of a sheet that are none of its own, in the order in which they stand in it.
fn colours(folder: &Path) -> Vec<[u8; 3]> {
    let sheet = image::open(folder.join("sheet.png")).unwrap().to_rgb8();
    let mut seen = Vec::new();
    let coloured = |[r, g, b]: [u8; 3]| r.abs_diff(g) > 60 || g.abs_diff(b) > 60;
    for pixel in sheet.pixels().filter(|pixel| coloured(pixel.0)) {
        if !seen.contains(&pixel.0) {
            seen.push(pixel.0);
        }
    }
    seen
}

#[test]
fn a_sheet_has_the_pictures_of_one_output() {
    let folder = tempfile::tempdir().unwrap();
    let run = two_outputs(folder.path()).args(["--sweep", "4.color=255,65280,16711680"]);
    run.arg("--json").expect_success();
    assert_eq!(colours(folder.path()), [[0, 0, 255], [0, 255, 0], [255, 0, 0]]);
    // A value that comes again is not drawn again, and has the picture that it had.
    let finished = two_outputs(folder.path())
        .args(["--sweep", "4.color=255,255,65280,255", "--json"])
        .expect_success();
    let outputs = finished.json_lines();
    let outputs = outputs.iter().filter(|event| event["event"] == "output" && event["node"] == "5");
    assert_eq!(outputs.count(), 2);
    let sheet = image::open(folder.path().join("sheet.png")).unwrap().to_rgb8();
    let of = |colour: [u8; 3]| sheet.pixels().filter(|pixel| pixel.0 == colour).count();
    assert_eq!((of([0, 0, 255]), of([0, 255, 0])), (3 * 32 * 32, 32 * 32));
}

#[test]
fn an_input_is_given_one_value() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &["3.x=1,2"])
        .args(["--set", "3.x=7"])
        .expect_code(2)
        .stderr_contains("--set 3.x=7 and --sweep 3.x=1,2 give node 3's \"x\" a value, both");
    assert!(!folder.path().join("out").exists());
}

#[cfg(target_os = "linux")]
#[test]
fn what_was_made_before_an_interruption_is_in_the_sheet() {
    use std::io::{BufRead, BufReader};
    let folder = tempfile::tempdir().unwrap();
    let mut command =
        two_outputs(folder.path()).args(["--sweep", "4.color=0..3000", "--json"]).command();
    let mut child = command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let ten = lines.by_ref().filter(|line| line.contains("\"event\":\"plan\"")).take(10).count();
    assert_eq!(ten, 10);
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let rest: Vec<Value> = lines.map(|line| serde_json::from_str(&line).unwrap()).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(rest.iter().any(|event| event["event"] == "sheet"), "{rest:?}");
    let said = |event: &Value| {
        event["message"]
            .as_str()
            .is_some_and(|message| message.contains("of 3000; the sheet's other places are empty"))
    };
    assert!(rest.iter().any(said), "{rest:?}");
    assert!(image::open(folder.path().join("sheet.png")).is_ok());
}
