//! Outputs that are lists, with the real program: what stands behind one runs for each of its values.

use std::fs;
use std::path::Path;

use kosmograph_tests::{Finished, Run};
use serde_json::{Value, json};

fn node(class: &str, inputs: Value) -> Value {
    json!({"class_type": class, "inputs": inputs})
}

fn run(folder: &Path, workflow: &Value) -> Finished {
    let run = Run::new("run").with_plugins().arg("-").stdin(workflow.to_string()).folder(folder);
    run.arg("--json").arg("--out").arg(folder.join("out")).run()
}

/// Five pictures, cut into batches of two, turned round and saved; and one more of all of them.
fn five(height: u32) -> Value {
    let mut workflow = json!({
        "1": node("EmptyImage", json!({"width": 8, "height": 8, "batch_size": 3, "color": 0xff0000})),
        "2": node("EmptyImage", json!({"width": 8, "height": height, "batch_size": 2, "color": 0x00ff00})),
        "4": node("RebatchImages", json!({"images": ["1", 0], "batch_size": 2})),
        "5": node("ImageInvert", json!({"image": ["4", 0]})),
        "6": node("SaveImage", json!({"images": ["5", 0], "filename_prefix": "each"})),
        // Of two lists, the second is shorter: its last picture comes again.
        "7": node("ImageBatch", json!({"image1": ["4", 0], "image2": ["8", 0]})),
        "8": node("RebatchImages", json!({"images": ["2", 0], "batch_size": 4})),
        "9": node("RebatchImages", json!({"images": ["7", 0], "batch_size": 100})),
        "10": node("SaveImage", json!({"images": ["9", 0], "filename_prefix": "all"}))});
    workflow["1"]["inputs"]["batch_size"] = json!(5);
    workflow
}

#[test]
fn each_batch_is_a_run_of_what_comes_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let finished = run(folder.path(), &five(8));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr());
    let lines = finished.json_lines();
    let of = |event: &str| lines.iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
    let started: Vec<&str> =
        of("node_started").iter().map(|line| line["node"].as_str().unwrap()).collect();
    assert_eq!(started.iter().filter(|id| **id == "5").count(), 1, "one step, however many runs");
    let named = |prefix: &str| {
        let names = fs::read_dir(folder.path().join("out")).unwrap().flatten();
        let mut names: Vec<String> =
            names.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.retain(|name| name.starts_with(prefix));
        names.sort();
        names
    };
    let each: Vec<String> = (1..=5).map(|i| format!("each_{i:05}_.png")).collect();
    assert_eq!(named("each"), each);
    for name in each {
        let picture = image::open(folder.path().join("out").join(name)).unwrap().to_rgb8();
        assert!(picture.pixels().all(|pixel| pixel.0 == [0, 255, 255]));
    }
    // 2 + 2, 2 + 2 and 1 + 2 pictures, in that order.
    let colours = named("all").into_iter().map(|name| {
        image::open(folder.path().join("out").join(name)).unwrap().to_rgb8().get_pixel(0, 0).0
    });
    let (red, green) = ([255, 0, 0], [0, 255, 0]);
    let expected = [red, red, green, green, red, red, green, green, red, green, green];
    assert_eq!(colours.collect::<Vec<_>>(), expected);
    // The progress of a node that runs for each is one of all of them, and never falls.
    let steps = of("progress").into_iter().filter(|line| line["node"] == "6");
    let shares: Vec<f64> = steps
        .map(|line| line["step"].as_f64().unwrap() / line["steps"].as_f64().unwrap())
        .collect();
    assert!(shares.is_sorted() && shares.len() == 5 && shares[4] < 1.0, "{shares:?}");
}

#[test]
fn what_does_not_fit_one_batch_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let workflow = json!({
        "1": node("EmptyImage", json!({"width": 8, "height": 8, "batch_size": 1, "color": 1})),
        "2": node("ImageScaleBy", json!({"image": ["3", 0], "upscale_method": "area", "scale_by": 1.0})),
        "3": node("RebatchImages", json!({"images": ["1", 0], "batch_size": 1})),
        "4": node("SaveImage", json!({"images": ["2", 0], "filename_prefix": "good"})),
        // A list where a file's name is wanted, a batch_size of a list, and one that no list has.
        "5": node("RebatchImages", json!({"images": ["1", 0], "batch_size": 0})),
        "6": node("SaveImage", json!({"images": ["5", 0], "filename_prefix": "bad"})),
        "7": node("RebatchImages", json!({"batch_size": 2})),
        "8": node("SaveImage", json!({"images": ["7", 0], "filename_prefix": "bad"})),
        "9": node("RebatchLatents", json!({"latents": ["1", 0], "batch_size": 2})),
        "10": node("SaveImage", json!({"images": ["9", 0], "filename_prefix": "bad"}))});
    let finished = run(folder.path(), &workflow);
    assert_eq!(finished.code, Some(3), "{}", finished.stderr());
    let text = finished.stdout();
    for part in ["batch_size", "is missing", "takes LATENT, but output 0"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(folder.path().join("out/good_00001_.png").exists());
}

#[test]
fn a_thousand_batches_are_a_thousand_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let workflow = json!({
        "1": node("EmptyImage", json!({"width": 1, "height": 1, "batch_size": 1000, "color": 255})),
        "2": node("RebatchImages", json!({"images": ["1", 0], "batch_size": 1})),
        "3": node("ImageInvert", json!({"image": ["2", 0]})),
        "4": node("RebatchImages", json!({"images": ["3", 0], "batch_size": 4096})),
        "5": node("ImageFromBatch", json!({"image": ["4", 0], "batch_index": 999, "length": 1})),
        "6": node("SaveImage", json!({"images": ["5", 0], "filename_prefix": "last"}))});
    let finished = run(folder.path(), &workflow);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr());
    let picture = image::open(folder.path().join("out/last_00001_.png")).unwrap().to_rgb8();
    assert_eq!(picture.get_pixel(0, 0).0, [255, 255, 0]);
}

#[test]
fn a_class_says_which_of_its_outputs_are_lists() {
    let told = Run::new("nodes").with_plugins().arg("RebatchImages").expect_success();
    let told = told.stdout_contains("IMAGE: IMAGE, a list").stdout_contains("Inputs, of lists all");
    drop(told);
    let json =
        Run::new("nodes").with_plugins().args(["RebatchLatents", "--json"]).expect_success().json();
    assert_eq!(json["RebatchLatents"]["output_is_list"], json!([true]));
    assert_eq!(json["RebatchLatents"]["is_input_list"], true);
}

#[test]
fn without_a_socket_the_pictures_are_told_as_temporary_files() {
    let folder = tempfile::tempdir().unwrap();
    let workflow = json!({
        "1": node("EmptyImage", json!({"width": 8, "height": 8, "batch_size": 2, "color": 255})),
        "2": node("SaveImageWebsocket", json!({"images": ["1", 0]}))});
    let finished = run(folder.path(), &workflow);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr());
    let lines = finished.json_lines();
    let told: Vec<&Value> = lines.iter().filter(|line| line["event"] == "output").collect();
    assert_eq!(told.len(), 2);
    for line in told {
        let file = line["files"][0].as_str().unwrap();
        assert_eq!(image::open(file).unwrap().to_rgb8().get_pixel(7, 7).0, [0, 0, 255]);
        fs::remove_file(file).unwrap();
    }
    let mut kept = fs::read_dir(folder.path().join("out")).into_iter().flatten().flatten();
    assert!(kept.all(|entry| entry.path().extension().is_none_or(|ending| ending != "png")));
}
