//! Weights and pixels by a formula, as data/make.py has it too: so that the tests keep names, shapes and results alone.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// The names and shapes of a file.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// Numbers in -1..1 by a name.
pub fn values(name: &str, count: usize) -> Vec<f32> {
    let seed = name
        .bytes()
        .fold(2_166_136_261u32, |seed, byte| (seed ^ u32::from(byte)).wrapping_mul(16_777_619));
    let number = |i: u32| {
        let mut x = i.wrapping_mul(0x9E37_79B1).wrapping_add(seed);
        x ^= x >> 16;
        x = x.wrapping_mul(0x85EB_CA6B);
        x ^= x >> 13;
        x = x.wrapping_mul(0xC2B2_AE35);
        x ^= x >> 16;
        (x >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count as u32).map(number).collect()
}

/// A tensor of a network.
pub fn weights(name: &str, shape: &[usize]) -> Vec<f32> {
    const FACTORS: [&str; 8] = [
        "norm.weight",
        "norm1.weight",
        "norm2.weight",
        "norm3.weight",
        "norm4.weight",
        "Norm.weight",
        "attn.weight",
        "lambda1",
    ];
    let values = values(name, shape.iter().product());
    if shape.len() >= 2 {
        let scale = (3.0 / shape[1..].iter().product::<usize>() as f64).sqrt() as f32;
        values.iter().map(|value| value * scale).collect()
    } else if FACTORS.iter().any(|end| name.ends_with(end)) {
        values.iter().map(|value| 1.0 + 0.2 * value).collect()
    } else {
        values.iter().map(|value| 0.2 * value).collect()
    }
}

pub fn pixels(shape: (usize, usize, usize, usize)) -> Tensor {
    let count = shape.0 * shape.1 * shape.2 * shape.3;
    let values = values("pixels", count).into_iter().map(|value| value * 1.5).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A picture in 8 bits, [height, width, 3]: waves with noise.
pub fn picture(height: usize, width: usize) -> Vec<u8> {
    let noise = values(&format!("picture {height} {width}"), height * width * 3);
    let level = |(i, noise): (usize, f32)| {
        let (y, x, channel) = (i / (3 * width), i / 3 % width, i % 3);
        let step = ((x / 16 + y / 8 + channel * 5) % 11) as f32 * 20.0;
        (step + noise * 24.0 + 20.0).clamp(0.0, 255.0) as u8
    };
    noise.into_iter().enumerate().map(level).collect()
}

/// Which names and shapes the file of a network has.
pub fn shapes(case: &str) -> Shapes {
    let cases: serde_json::Value =
        serde_json::from_str(include_str!("../data/networks.json")).unwrap();
    serde_json::from_value(cases[case].clone()).unwrap()
}

/// Which of transformers' tensors each of the authors' is, one below another.
pub fn authors() -> BTreeMap<String, Vec<String>> {
    let cases: serde_json::Value =
        serde_json::from_str(include_str!("../data/networks.json")).unwrap();
    serde_json::from_value(cases["depth_authors"].clone()).unwrap()
}

/// Writes a file of these shapes, its numbers by the formula.
pub fn write(file: &Path, shapes: &Shapes) {
    write_with(file, shapes, weights);
}

/// The same with other numbers.
pub fn write_with(file: &Path, shapes: &Shapes, number: impl Fn(&str, &[usize]) -> Vec<f32>) {
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = shapes
        .iter()
        .map(|(name, shape)| {
            let values = number(name, shape);
            (name, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    std::fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// What transformers computed, in f32.
pub fn expected(name: &str) -> Vec<f32> {
    let file = include_bytes!("../data/networks.safetensors");
    let tensors = SafeTensors::deserialize(file).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    match tensor.dtype() {
        Dtype::U8 => tensor.data().iter().map(|level| f32::from(*level)).collect(),
        _ => tensor.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
    }
}

/// Within 2e-5 of the largest.
#[track_caller]
pub fn assert_close(name: &str, found: &[f32]) {
    let expected = expected(name);
    assert_eq!(found.len(), expected.len(), "{name}");
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let apart = found.iter().zip(&expected).fold(0f32, |apart, (a, b)| apart.max((a - b).abs()));
    println!("{name}: {:.1e} of {largest}", apart / largest);
    assert!(apart <= 2e-5 * largest, "{name}: {apart} apart, the largest is {largest}");
}
