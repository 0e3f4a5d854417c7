//! The same numbers as Pillow and torch, from what data/make.py computed with them.

use kosmograph_pixels::Shape;
use kosmograph_pixels::pillow::{Filter, Picture, resize, resize_rgba};
use kosmograph_pixels::torch::{Mode, interpolate};
use serde_json::Value;

fn cases(text: &str) -> Vec<Value> {
    let cases: Vec<Value> = serde_json::from_str(text).unwrap();
    assert!(cases.len() > 100);
    cases
}

fn numbers<T: TryFrom<u64, Error: std::fmt::Debug>>(value: &Value) -> Vec<T> {
    let numbers = value.as_array().unwrap().iter();
    numbers.map(|number| number.as_u64().unwrap().try_into().unwrap()).collect()
}

fn sizes<const N: usize>(value: &Value) -> [usize; N] {
    numbers(value).try_into().unwrap()
}

/// make.py's numbers without symmetry.
fn pattern(count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(|i| i * i * 7 + i * 31)
}

fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[test]
fn levels_are_pillows() {
    for case in cases(include_str!("data/pillow.json")) {
        let ([height, width, channels], [to_height, to_width]) =
            (sizes(&case["from"]), sizes(&case["to"]));
        let filter = match case["filter"].as_str().unwrap() {
            "nearest" => Filter::Nearest,
            "box" => Filter::Box,
            "bilinear" => Filter::Bilinear,
            "bicubic" => Filter::Bicubic,
            "lanczos" => Filter::Lanczos,
            other => panic!("{other}"),
        };
        let pixels: Vec<u8> = pattern(height * width * channels).map(|i| (i % 256) as u8).collect();
        let found = if channels == 4 && filter != Filter::Nearest {
            resize_rgba(&pixels, (width, height), (to_width, to_height), filter)
        } else {
            let picture = Picture { pixels: &pixels, width, height, channels };
            resize(picture, to_width, to_height, filter)
        };
        let (found, what) =
            (found.unwrap(), format!("{filter:?} {} to {}", case["from"], case["to"]));
        if case["levels"].is_array() {
            assert_eq!(found, numbers::<u8>(&case["levels"]), "{what}");
        }
        assert_eq!(
            format!("{:016x}", fnv(found.into_iter())),
            case["fnv"].as_str().unwrap(),
            "{what}"
        );
    }
}

#[test]
fn bits_are_torchs() {
    let mut other = Vec::new();
    for case in cases(include_str!("data/torch.json")) {
        let ([height, width, channels], [to_height, to_width]) =
            (sizes(&case["from"]), sizes(&case["to"]));
        let values: Vec<f32> = pattern(height * width * channels)
            .map(|i| ((i % 65521) as f64 / 65521.0) as f32)
            .collect();
        let shape = if case["interleaved"] == true {
            Shape { batch: 1, height, width, channels }
        } else {
            Shape { batch: channels, height, width, channels: 1 }
        };
        let mode = Mode::named(case["mode"].as_str().unwrap()).unwrap();
        let found = interpolate(&values, shape, (to_height, to_width), mode).unwrap();
        let what = format!("{mode:?} {shape} to {to_height} x {to_width}");
        if let Some(expected) = case["values"].as_array() {
            let expected: Vec<f32> =
                expected.iter().map(|value| value.as_f64().unwrap() as f32).collect();
            assert_eq!(found, expected, "{what}");
        }
        let sum = fnv(found.iter().flat_map(|value| value.to_le_bytes()));
        if format!("{sum:016x}") != case["fnv"].as_str().unwrap() {
            other.push(what);
        }
    }
    assert!(other.is_empty(), "{} are not torch's: {other:#?}", other.len());
}
