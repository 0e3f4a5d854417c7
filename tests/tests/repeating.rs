//! Locks, and pictures of AUTOMATIC1111, as a user meets them.

use std::fs;
use std::path::Path;

use kosmograph_tests::Run;
use serde_json::{Value, json};

fn picture(file: &Path, level: u8) {
    image::RgbImage::from_pixel(8, 8, image::Rgb([level; 3])).save(file).unwrap();
}

fn run(command: &str, folder: &Path) -> Run {
    Run::new(command).with_plugins().folder(folder).arg("w.json")
}

#[test]
fn a_locked_run_refuses_what_is_otherwise_and_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    picture(&folder.join("in.png"), 9);
    let workflow = json!({
        "1": {"class_type": "LoadImage", "inputs": {"image": "in.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a"}}});
    fs::write(folder.join("w.json"), workflow.to_string()).unwrap();

    run("run", folder)
        .arg("--locked")
        .expect_code(2)
        .stderr_contains("the lock w.json.lock cannot be read");
    run("lock", folder).expect_success();
    let lock: Value =
        serde_json::from_slice(&fs::read(folder.join("w.json.lock")).unwrap()).unwrap();
    assert_eq!((&lock["files"][0]["name"], &lock["prompt"]), (&json!("in.png"), &workflow));
    run("run", folder).arg("--locked").expect_success();
    assert!(folder.join("output/a_00001_.png").is_file());

    run("run", folder)
        .args(["--locked", "--set", "2.filename_prefix=b"])
        .expect_code(2)
        .stderr_contains("input filename_prefix of node 2 is \"b\"; it was \"a\"");
    run("run", folder)
        .args(["--locked", "--sweep", "2.filename_prefix=a,b"])
        .expect_code(2)
        .stderr_contains("a lock is of one picture");
    picture(&folder.join("in.png"), 10);
    run("run", folder)
        .arg("--locked")
        .expect_code(2)
        .stderr_contains("in.png, which node 1 reads as image, has changed");
    assert_eq!(fs::read_dir(folder.join("output")).unwrap().count(), 1, "nothing was made");
    fs::write(folder.join("other"), "{").unwrap();
    run("run", folder).args(["--lock", "other"]).expect_code(2).stderr_contains("is no lock");
}

/// A picture with the text of parameters.
fn parameters(file: &Path, text: &str) {
    let file = fs::File::create(file).unwrap();
    let mut encoder = png::Encoder::new(file, 1, 1);
    encoder.add_text_chunk("parameters".into(), text.into()).unwrap();
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[0]).unwrap();
}

#[test]
fn a_picture_of_automatic1111_is_a_workflow_or_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        parameters(&folder.path().join("a.png"), text);
        Run::new("check").with_plugins().folder(folder.path()).arg("a.png")
    };
    let text = "a cat <lora:fur:0.5>\nNegative prompt: a dog\n\
        Steps: 2, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x64, Model: none";
    // All that is wrong with it are the files, which are named.
    let told = check(text).arg("--json").expect_code(2);
    let told: Value = serde_json::from_str(told.stdout().trim()).unwrap();
    let problems = told["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 2, "{told}");
    for (problem, name) in problems.iter().zip(["none.safetensors", "fur.safetensors"]) {
        assert!(problem["message"].as_str().unwrap().contains(name), "{problem}");
    }
    check("hello")
        .expect_code(2)
        .stderr_contains("has no line of settings that begins with \"Steps:\"");
    check(&text.replace("Seed: 5", "Seed: x")).expect_code(2).stderr_contains("has the Seed \"x\"");
}

#[test]
fn a_lock_does_not_need_a_folder_for_pictures_and_is_written_whole() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let workflow = json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a"}}});
    fs::write(folder.join("w.json"), workflow.to_string()).unwrap();
    fs::write(folder.join("output"), "in the way").unwrap();
    run("lock", folder).expect_success();
    let lock = fs::read(folder.join("w.json.lock")).unwrap();
    run("run", folder).arg("--locked").expect_code(2).stderr_contains("output is not a folder");
    // A disk that is full, which a limit on the length of files plays, leaves the old one.
    let command = run("lock", folder).command();
    let mut limited = std::process::Command::new("bash");
    limited.args(["-c", "ulimit -f 0; exec \"$0\" \"$@\""]).arg(command.get_program());
    let output = limited.args(command.get_args()).current_dir(folder).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot be written"), "{output:?}");
    assert_eq!(fs::read(folder.join("w.json.lock")).unwrap(), lock);
}

#[test]
fn an_empty_workflow_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for empty in ["{}", "{\"nodes\": [], \"links\": []}"] {
        fs::write(folder.path().join("w.json"), empty).unwrap();
        for command in ["run", "check"] {
            run(command, folder.path())
                .env("KOSMOGRAPH_PRECISION", "")
                .expect_code(2)
                .stderr_contains("w.json: the workflow has no nodes");
        }
    }
}
