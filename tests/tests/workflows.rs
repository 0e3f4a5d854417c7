//! The workflows of the repository, run as a user runs them, on the bundled model.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kosmograph_tests::{Finished, Run, repository};
use serde_json::Value;

fn run(workflow: &str, out: &Path) -> Run {
    let path = repository().join("workflows").join(workflow);
    Run::new("run").with_plugins().arg(path).arg("--out").arg(out)
}

fn pictures(out: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(out).expect("the output folder");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

fn pixels(path: &Path) -> image::RgbImage {
    image::open(path).expect("a picture").to_rgb8()
}

/// How much the pixels differ from their mean: nothing for a flat picture.
fn spread(picture: &image::RgbImage) -> f64 {
    let values = || picture.as_raw().iter().map(|&value| f64::from(value));
    let count = picture.as_raw().len() as f64;
    let mean = values().sum::<f64>() / count;
    (values().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt()
}

/// Runs the workflow and expects one picture of `size` that shows something.
fn expect_picture(workflow: &str, size: (u32, u32)) -> image::RgbImage {
    let out = tempfile::tempdir().expect("a folder");
    let finished = run(workflow, out.path()).expect_success();
    let made = pictures(out.path());
    assert_eq!(made.len(), 1, "{made:?}");
    assert!(finished.stdout().contains(&made[0].display().to_string()));
    let picture = pixels(&made[0]);
    assert_eq!(picture.dimensions(), size);
    assert!(spread(&picture) > 10.0, "{workflow} draws a flat picture");
    picture
}

#[test]
fn text() {
    expect_picture("text.json", (128, 128));
}

#[test]
fn subject() {
    expect_picture("subject.json", (128, 128));
}

#[test]
fn three_marks() {
    expect_picture("three_marks.json", (128, 128));
}

#[test]
fn two_subjects() {
    expect_picture("two_subjects.json", (128, 128));
}

#[test]
fn edit() {
    expect_picture("edit.json", (128, 128));
}

#[test]
fn dreambooth() {
    expect_picture("dreambooth.json", (128, 128));
}

#[test]
fn style() {
    let styled = expect_picture("style.json", (128, 128));
    assert_ne!(styled, expect_picture("text.json", (128, 128)), "the LoRA does nothing");
}

/// The checkpoint's U-Net, and three LoRAs on it: four pictures, no two alike.
#[test]
fn variants() {
    expect_different("variants.json", 4);
}

#[test]
fn control() {
    let controlled = expect_picture("control.json", (128, 128));
    let out = tempfile::tempdir().expect("a folder");
    let free = run("control.json", out.path()).arg("--set").arg("Control.strength=0");
    free.expect_success();
    assert_ne!(controlled, pixels(&pictures(out.path())[0]), "the control does nothing");
}

#[test]
fn swap() {
    expect_different("swap.json", 2);
}

/// The monster that DreamBooth learned, and again along its own outline: as much of the two pictures is the monster.
#[test]
fn dreambooth_along_an_outline() {
    let made = expect_different("dreambooth_control.json", 2);
    // Its teal is on no background: more green and blue than red by far.
    let share = |picture: &image::RgbImage| {
        let teal = |[r, g, b]: [u8; 3]| g > r.saturating_add(60) && b > r.saturating_add(50);
        picture.pixels().filter(|pixel| teal(pixel.0)).count() as f64 / (128.0 * 128.0)
    };
    let [first, second] = [share(&made[0]), share(&made[1])];
    assert!(first > 0.08 && second > 0.08, "{first:.3} and {second:.3} of the pictures are teal");
}

/// One graph in which CLIP is swapped for Kosmos-G and Kosmos-G for CLIP, and both are mixed.
#[test]
fn encoders() {
    expect_different("encoders.json", 3);
}

/// The pictures of a workflow, none of them flat and no two alike.
fn expect_different(workflow: &str, count: usize) -> Vec<image::RgbImage> {
    let out = tempfile::tempdir().expect("a folder");
    run(workflow, out.path()).expect_success();
    let made: Vec<_> = pictures(out.path()).iter().map(|path| pixels(path)).collect();
    assert_eq!(made.len(), count, "{workflow}");
    for (i, picture) in made.iter().enumerate() {
        assert!(spread(picture) > 10.0, "{workflow} draws a flat picture");
        assert!(!made[..i].contains(picture), "{workflow} draws the same twice");
    }
    made
}

/// Kosmos-G's condition with each technique of the U-Net: none of them is lost, nor is the subject.
#[test]
fn a_subject_with_every_technique() {
    let plain = &expect_different("subject_swap.json", 2)[0];
    let styled = &expect_different("subject_variants.json", 4)[1];
    assert_eq!(styled, &expect_different("subject_style.json", 1)[0], "one LoRA in two graphs");
    assert_ne!(plain, styled);
    expect_different("subject_dreambooth.json", 1);
    let controlled = expect_different("subject_control.json", 1);
    let everything = expect_different("subject_everything.json", 1);
    assert_ne!(controlled, everything, "the LoRAs do nothing");
    for changed in ["DreamBooth.strength_model=0", "Neon.strength_model=0"] {
        let out = tempfile::tempdir().expect("a folder");
        run("subject_everything.json", out.path()).arg("--set").arg(changed).expect_success();
        let other = pixels(&pictures(out.path())[0]);
        assert_ne!(other, everything[0], "{changed} does nothing");
    }
    for workflow in ["subject_control.json", "subject_everything.json"] {
        for changed in ["Control.strength=0", "Subject.image=monster-2.png"] {
            let out = tempfile::tempdir().expect("a folder");
            run(workflow, out.path()).arg("--set").arg(changed).expect_success();
            let other = pixels(&pictures(out.path())[0]);
            assert_ne!(
                other,
                expect_different(workflow, 1)[0],
                "{workflow}: {changed} does nothing"
            );
        }
    }
}

#[test]
fn every_workflow_passes_check() {
    for entry in fs::read_dir(repository().join("workflows")).expect("the workflows") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "json") {
            Run::new("check").with_plugins().arg(path).expect_success();
        }
    }
}

#[test]
fn a_saved_picture_draws_itself_again() {
    let (first, second) =
        (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    run("text.json", first.path())
        .args(["--set", "Sampler.steps=3", "--seed", "11"])
        .expect_success();
    let saved = &pictures(first.path())[0];
    Run::new("run").with_plugins().arg(saved).arg("--out").arg(second.path()).expect_success();
    let again = &pictures(second.path())[0];
    assert_eq!(fs::read(saved).expect("a file"), fs::read(again).expect("a file"), "bit for bit");
}

fn events(finished: &Finished) -> Vec<(String, Value)> {
    let name = |event: Value| (event["event"].as_str().expect("an event").to_owned(), event);
    finished.json_lines().into_iter().map(name).collect()
}

#[test]
fn a_sweep_computes_again_only_what_the_seed_reaches() {
    let out = tempfile::tempdir().expect("a folder");
    let arguments = ["--seed", "1..4", "--json", "--set", "Sampler.steps=2"];
    let finished = run("text.json", out.path()).args(arguments).expect_success();
    let mut started: BTreeMap<String, usize> = BTreeMap::new();
    for (name, event) in events(&finished) {
        if name == "node_started" {
            *started.entry(event["class"].as_str().expect("a class").to_owned()).or_default() += 1;
        }
    }
    let expected = [
        ("CLIPTextEncode", 2),
        ("CheckpointLoaderSimple", 1),
        ("EmptyLatentImage", 1),
        ("SaveImage", 3),
        ("UNetSample", 3),
        ("VaeDecode", 3),
    ];
    let expected: BTreeMap<String, usize> =
        expected.into_iter().map(|(class, count)| (class.to_owned(), count)).collect();
    assert_eq!(started, expected);
    assert_eq!(pictures(out.path()).len(), 3);
}

#[test]
fn progress_is_told_step_by_step() {
    let out = tempfile::tempdir().expect("a folder");
    let finished =
        run("text.json", out.path()).args(["--json", "--set", "Sampler.steps=4"]).expect_success();
    let events = events(&finished);
    let steps: Vec<u64> = events
        .iter()
        .filter(|(name, event)| name == "progress" && event["node"] == "21")
        .map(|(_, event)| event["step"].as_u64().expect("a step"))
        .collect();
    assert_eq!(steps, [0, 1, 2, 3, 4]);
    assert_eq!(events.first().expect("events").0, "plan");
    assert_eq!(events.last().expect("events").0, "done");
}

#[test]
fn marks_and_pictures_must_be_equally_many() {
    let out = tempfile::tempdir().expect("a folder");
    let more_marks = run("subject.json", out.path()).args(["--set", "Prompt.text=<i> and <i>"]);
    more_marks
        .expect_code(3)
        .stderr_contains("2 <i> marks")
        .stderr_contains("1 picture")
        .stderr_contains("Prompt");
    let more_pictures = run("subject.json", out.path()).args(["--set", "Prompt.text=a monster"]);
    more_pictures.expect_code(3).stderr_contains("0 <i> marks").stderr_contains("Prompt");
}

#[cfg(unix)]
#[test]
fn a_mark_in_a_negative_prompt_is_text() {
    let drawn = |negative: &str| {
        let out = tempfile::tempdir().expect("a folder");
        let run = run("subject.json", out.path()).args(["--set", "Sampler.steps=2"]);
        let finished = run.arg("--set").arg(format!("Negative prompt.text={negative}"));
        (finished.expect_success().stderr(), pixels(&pictures(out.path())[0]))
    };
    let (told, marked) = drawn("<i> and a hat");
    assert_eq!(told.matches("<i> is read as text").count(), 1, "{told}");
    let (told, plain) = drawn("and a hat");
    assert!(!told.contains("<i>"), "{told}");
    assert_ne!(marked, plain);
}

#[test]
fn an_interrupt_ends_at_the_next_step() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let out = tempfile::tempdir().expect("a folder");
    let run = run("text.json", out.path()).args(["--json", "--set", "Sampler.steps=1000"]);
    let mut child = run.command().stdout(Stdio::piped()).spawn().expect("kosmograph starts");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut interrupted = false;
    while let Some(Ok(line)) = lines.next() {
        let event: Value = serde_json::from_str(&line).expect("an event");
        if event["event"] == "progress" && event["step"] == 2 {
            let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
            assert!(signal.expect("kill").success());
        }
        interrupted |= event["event"] == "interrupted";
    }
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert!(interrupted);
    assert!(!out.path().read_dir().is_ok_and(|mut entries| entries.next().is_some()));
}
