//! Hints and filters equal to OpenCV's and PyTorch's, from what data/make_hints.py computed with them.

use std::path::{Path, PathBuf};

use kosmograph_image::blur::{blur, comfy_kernel, sharpen};
use kosmograph_image::canny::{canny, grey};
use kosmograph_image::decode::decode;
use kosmograph_image::hint::{Levels, binary, scribble, tile, xdog};
use kosmograph_image::levels::{from_levels, to_levels};
use kosmograph_pixels::Shape;
use serde_json::Value;

fn cases(kind: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hints.json");
    let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    all[kind].as_array().unwrap().clone()
}

fn picture(case: &Value) -> Levels {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/image_preprocess");
    let path: PathBuf = folder.join(format!("{}.png", case["picture"].as_str().unwrap()));
    let picture = decode(&path).unwrap();
    Levels { pixels: to_levels(&picture.pixels), width: picture.shape.width }
}

fn number(case: &Value, key: &str) -> usize {
    case[key].as_u64().unwrap() as usize
}

/// FNV-1a with 64 bits.
fn hash(levels: &[u8]) -> String {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    format!("{:016x}", levels.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

#[test]
fn filters_are_torchs() {
    let shape = Shape { batch: 1, height: 9, width: 7, channels: 3 };
    let levels: Vec<u8> =
        (0..shape.picture()).map(|i| ((i * i * 7 + i * 31) % 256) as u8).collect();
    let values = from_levels(&levels);
    for case in cases("filters") {
        let kernel = comfy_kernel(number(&case, "radius"), case["sigma"].as_f64().unwrap());
        let alpha = case["alpha"].as_f64().unwrap();
        let found = [
            ("blurred", blur(&values, shape, &kernel).unwrap()),
            ("sharpened", sharpen(&values, shape, &kernel, alpha).unwrap()),
        ];
        for (name, found) in found {
            let expected = case[name].as_array().unwrap();
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                let error = (f64::from(*found) - expected.as_f64().unwrap()).abs();
                // Sharpening multiplies the rounding by up to 21.
                assert!(error < if name == "blurred" { 1e-6 } else { 1e-5 }, "{name}: {error:e}");
            }
        }
    }
}

#[test]
fn edges_are_opencvs_at_any_thresholds() {
    let cases = cases("edges");
    assert!(cases.len() >= 40);
    for case in cases {
        let picture = picture(&case);
        let greys: Vec<u8> =
            picture.pixels.chunks_exact(3).map(|p| grey(p[0], p[1], p[2])).collect();
        let (low, high) = (number(&case, "low") as i32, number(&case, "high") as i32);
        let edges = canny(&greys, picture.width, low, high).unwrap();
        let white = edges.iter().filter(|level| **level > 0).count();
        assert_eq!(white, number(&case, "white"), "{case}");
        assert_eq!(hash(&edges), case["hash"], "{case}");
    }
}

#[test]
fn hints_are_opencvs() {
    let mut sixty_fours = 0;
    for case in cases("hints") {
        let source = picture(&case);
        if let Some(halvings) = case["halvings"].as_u64() {
            let tiled = tile(&source, halvings as u32).unwrap();
            assert_eq!(tiled.width, number(&case, "width"), "{case}");
            assert_eq!(hash(&tiled.pixels), case["tile"], "{case}");
            continue;
        }
        if case["longer"].is_u64() {
            let resized = source.resized_to_64s(number(&case, "longer")).unwrap();
            assert_eq!(resized.width, number(&case, "width"), "{case}");
            assert_eq!((resized.width % 64, resized.height() % 64), (0, 0), "{case}");
            assert_eq!(hash(&resized.pixels), case["resized"], "{case}");
            sixty_fours += 1;
            continue;
        }
        let small = source.resized(number(&case, "resolution")).unwrap();
        assert_eq!(small.width, number(&case, "width"), "{case}");
        assert_eq!(hash(&small.pixels), case["resized"], "{case}");
        // A hint is grey: one of its three channels is compared.
        let grey = |hint: Levels| hash(&hint.pixels.iter().step_by(3).copied().collect::<Vec<_>>());
        for threshold in [0, 60, 100, 255] {
            let expected = &case[format!("binary_{threshold}")];
            assert_eq!(&grey(binary(&small, threshold)), expected, "{threshold}: {case}");
        }
        assert_eq!(grey(scribble(&small)), case["scribble"], "{case}");
        for threshold in [8, 32, 64] {
            let expected = &case[format!("xdog_{threshold}")];
            assert_eq!(&grey(xdog(&small, threshold).unwrap()), expected, "{threshold}: {case}");
        }
    }
    assert_eq!(sixty_fours, 16);
}
