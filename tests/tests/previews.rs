//! `--previews DIR`: what a sampler has made so far, as pictures, on the bundled model.

use std::fs;
use std::path::Path;

use image::imageops::{FilterType, resize};
use kosmograph_tests::{Run, repository};

fn run(out: &Path) -> Run {
    let path = repository().join("workflows/text.json");
    Run::new("run").with_plugins().arg(path).arg("--out").arg(out)
}

fn only_picture(out: &Path) -> Vec<u8> {
    let mut entries = fs::read_dir(out).expect("the output folder");
    let entry = entries.next().expect("a picture").expect("an entry");
    assert!(entries.next().is_none(), "one picture");
    fs::read(entry.path()).expect("a picture")
}

/// How far the values are apart, of 255.
fn apart(a: &image::RgbImage, b: &image::RgbImage) -> f64 {
    let pairs = a.as_raw().iter().zip(b.as_raw());
    pairs.map(|(&a, &b)| f64::from(a.abs_diff(b))).sum::<f64>() / a.as_raw().len() as f64
}

#[test]
fn each_step_is_shown_and_the_last_looks_like_the_picture() {
    let folder = tempfile::tempdir().expect("a folder");
    let (out, previews) = (folder.path().join("out"), folder.path().join("previews"));
    let finished = run(&out).arg("--previews").arg(&previews).arg("--json").expect_success();
    let events = finished.json_lines();
    let shown: Vec<_> = events.iter().filter(|event| event["event"] == "preview").collect();
    assert_eq!(shown.len(), 20, "one for each step");
    for (at, event) in shown.iter().enumerate() {
        assert_eq!(
            (event["step"].as_u64(), event["steps"].as_u64()),
            (Some(at as u64 + 1), Some(20))
        );
    }
    let open = |event: &serde_json::Value| {
        let file = event["file"].as_str().expect("a path");
        assert!(Path::new(file).starts_with(&previews), "{file}");
        image::open(file).expect("a picture").to_rgb8()
    };
    let (first, last) = (open(shown[0]), open(shown[19]));
    assert_eq!(first.dimensions(), (16, 16), "a pixel for each of the latent's");
    let made = only_picture(&out);
    let small = image::load_from_memory(&made).expect("a picture").to_rgb8();
    let small = resize(&small, 16, 16, FilterType::Triangle);
    let (of_first, of_last) = (apart(&first, &small), apart(&last, &small));
    assert!(of_last < 25.0 && of_last < of_first / 1.5, "{of_first} at first, {of_last} at last");

    // To look changes nothing.
    let alone = folder.path().join("alone");
    run(&alone).expect_success();
    let pixels = |bytes: &[u8]| image::load_from_memory(bytes).expect("a picture").to_rgb8();
    assert_eq!(pixels(&only_picture(&alone)), pixels(&made));
}

#[test]
fn a_folder_that_cannot_be_written_is_told_before_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("file"), "in the way").expect("a file");
    let (out, previews) = (folder.path().join("out"), folder.path().join("file/previews"));
    run(&out)
        .arg("--previews")
        .arg(&previews)
        .expect_code(2)
        .stderr_contains("the folder cannot be written to: ")
        .stderr_contains("file is not a folder");
    assert!(!out.exists());
}
