//! Sweeps as a user runs them: what is computed, what is told, and the sheet.

use std::fs;
use std::path::Path;

use kosmograph_tests::Run;
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

#[test]
fn what_cannot_be_swept_is_told_and_not_begun() {
    let folder = tempfile::tempdir().unwrap();
    for (sweeps, sentence) in [
        (&["3.x=0..10000000"][..], "10,000,000 combinations are too many"),
        (&["3.xx=1"][..], "has no input \"xx\"; did you mean \"x\"?"),
        (&["3.x="][..], "there is no value in an empty list"),
        (&["3.x=1,2", "3.x=3"][..], "is swept twice"),
        (&["3.x=@nothing.txt"][..], "nothing.txt cannot be read"),
        (
            &["3.x=1,99999"][..],
            "99999 is more than 16384, the most it takes; this is in the run with 3.x = 99999",
        ),
    ] {
        run(folder.path(), sweeps).expect_code(2).stderr_contains(sentence);
    }
    assert!(!folder.path().join("out").exists());
}
