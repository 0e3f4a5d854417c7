//! The same numbers as OpenCV and Pillow, from what data/make.py computed with them.

use std::path::{Path, PathBuf};

use kosmograph_image::canny::{canny, grey};
use kosmograph_image::decode::decode;
use kosmograph_image::levels::to_levels;
use serde_json::Value;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(data(name)).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn sizes(value: &Value) -> Vec<usize> {
    numbers(value).iter().map(|number| *number as usize).collect()
}

/// make.py's picture without symmetry.
fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|i| ((i * i * 7 + i * 31) % 256) as u8).collect()
}

fn grey_file(path: &Path) -> (Vec<u8>, usize) {
    let picture = image::open(path).unwrap().into_luma8();
    let width = picture.width() as usize;
    (picture.into_raw(), width)
}

#[test]
fn grey_is_opencvs() {
    let levels: Vec<u8> = (0..=255).step_by(15).collect();
    let mut found = Vec::new();
    for red in &levels {
        for green in &levels {
            found.extend(levels.iter().map(|blue| grey(*red, *green, *blue)));
        }
    }
    assert_eq!(found, grey_file(&data("edges/grey_levels.png")).0);
}

#[test]
fn edges_are_opencvs() {
    let photographs =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/image_preprocess");
    let mut seen = 0;
    for entry in std::fs::read_dir(data("edges")).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let parts: Vec<&str> = stem.rsplitn(3, '_').collect();
        let [high, low, name] = parts[..] else { continue };
        let (Ok(high), Ok(low)) = (high.parse(), low.parse()) else { continue };
        let (greys, width) = if name == "pattern_37x53" {
            (pattern(37 * 53), 37)
        } else {
            let picture = decode(&photographs.join(format!("{name}.png"))).unwrap();
            let levels = to_levels(&picture.pixels);
            let greys = levels.chunks(3).map(|p| grey(p[0], p[1], p[2])).collect();
            (greys, picture.shape.width)
        };
        let (expected, expected_width) = grey_file(&path);
        assert_eq!(width, expected_width, "{stem}");
        let found = canny(&greys, width, low, high).unwrap();
        let different = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
        assert_eq!(different, 0, "{stem}: pixels of {}", expected.len());
        println!("{stem}: equal, {} pixels on edges", expected.iter().filter(|v| **v > 0).count());
        seen += 1;
    }
    assert_eq!(seen, 10);
}

#[test]
fn files_are_read_as_pillow_reads_them() {
    let cases = json("pictures.json");
    for (name, case) in cases.as_object().unwrap() {
        let found = decode(&data("pictures").join(name)).unwrap();
        assert_eq!(found.shape.dims().to_vec(), sizes(&case["shape"]), "{name}");
        // The WebP decoder blends the frames of an animation with fewer bits than libwebp; JPEG leaves the
        // last bits of the inverse transform, and how colour is enlarged, to the decoder.
        let bound = match name.as_str() {
            "animated.webp" => 1,
            name if name.ends_with(".jpg") => 2,
            _ => 0,
        };
        let expected = sizes(&case["rgb"]);
        let alpha = case["alpha"].as_array().map(|_| sizes(&case["alpha"]));
        let levels = to_levels(&found.pixels);
        let differences = levels.iter().zip(&expected).map(|(a, b)| usize::from(*a).abs_diff(*b));
        let worst = differences.max().unwrap();
        println!("{name}: {worst} / {bound}");
        assert!(worst <= bound, "{name}: a level differs by {worst}, more than {bound}");
        let mask = alpha.map(|alpha| {
            alpha.iter().map(|alpha| 1.0 - *alpha as f32 / 255.0).collect::<Vec<f32>>()
        });
        assert_eq!(found.mask, mask, "{name}");
    }
}
