//! GGUF files, as ComfyUI-GGUF and stable-diffusion.cpp write them.

use std::collections::BTreeMap;
use std::path::Path;

use half::f16;

/// A tensor to be written: its shape, the outermost axis first, and its numbers.
pub type Numbers = (Vec<usize>, Vec<f32>);

/// How a tensor is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    F32,
    F16,
    Q8_0,
    /// As Q8_0, in other rows, with the shape in a value of the header.
    Q8_0Reshaped,
}

/// Writes `tensors` with these texts in the header.
pub fn write(
    path: &Path,
    texts: &[(&str, &str)],
    tensors: &BTreeMap<String, Numbers>,
    kept: impl Fn(&str, &[usize]) -> Kept,
) {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let (mut values, mut infos, mut data) = (Vec::new(), Vec::new(), Vec::<u8>::new());
    let mut count = texts.len() as u64;
    for (name, value) in texts {
        values.extend([text(name), 8u32.to_le_bytes().to_vec(), text(value)].concat());
    }
    for (name, (shape, numbers)) in tensors {
        let kept = kept(name, shape);
        let mut stored = shape.clone();
        if kept == Kept::Q8_0Reshaped {
            stored = vec![numbers.len() / 32, 32];
            values.extend(text(&format!("comfy.gguf.orig_shape.{name}")));
            let head = [9u32.to_le_bytes(), 5u32.to_le_bytes()].concat();
            values.extend([head, (shape.len() as u64).to_le_bytes().to_vec()].concat());
            shape.iter().for_each(|axis| values.extend((*axis as i32).to_le_bytes()));
            count += 1;
        }
        let (number, bytes): (u32, Vec<u8>) = match kept {
            Kept::F32 => (0, numbers.iter().flat_map(|n| n.to_le_bytes()).collect()),
            Kept::F16 => {
                (1, numbers.iter().flat_map(|n| f16::from_f32(*n).to_le_bytes()).collect())
            }
            Kept::Q8_0 | Kept::Q8_0Reshaped => (8, q8_0(numbers)),
        };
        infos.extend(text(name));
        infos.extend((stored.len() as u32).to_le_bytes());
        stored.iter().rev().for_each(|axis| infos.extend((*axis as u64).to_le_bytes()));
        infos.extend(number.to_le_bytes());
        infos.extend((data.len() as u64).to_le_bytes());
        data.extend(bytes);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend(count.to_le_bytes());
    file.extend([values, infos].concat());
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(data);
    std::fs::write(path, file).expect("a file");
}

/// What Q8_0 makes of numbers.
pub fn through_q8_0(numbers: &[f32]) -> Vec<f32> {
    let block = |block: &[u8]| {
        let factor = f16::from_le_bytes([block[0], block[1]]).to_f32();
        block[2..].iter().map(|byte| f32::from(*byte as i8) * factor).collect::<Vec<_>>()
    };
    q8_0(numbers).chunks_exact(34).flat_map(block).collect()
}

fn q8_0(numbers: &[f32]) -> Vec<u8> {
    let block = |numbers: &[f32]| {
        let largest = numbers.iter().fold(0f32, |largest, n| largest.max(n.abs()));
        let factor = f16::from_f32(largest / 127.0);
        let whole = |n: &f32| if largest == 0.0 { 0 } else { (n / factor.to_f32()).round() as i8 };
        let bytes = numbers.iter().map(|n| whole(n) as u8).collect::<Vec<_>>();
        [factor.to_le_bytes().to_vec(), bytes].concat()
    };
    numbers.chunks_exact(32).flat_map(block).collect()
}
