use super::*;
use candle_core::quantized::{GgmlDType, ggml_file::qtensor_from_ggml};

/// Bytes that are any, but for the 16-bit factors of the blocks, which are small numbers.
fn blocks(format: Format, count: usize) -> Vec<u8> {
    let (_, size) = format.block();
    let mut seed = 1u64;
    let mut byte = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    };
    let mut bytes: Vec<u8> = (0..count * size).map(|_| byte()).collect();
    for block in bytes.chunks_exact_mut(size) {
        for at in format.factors() {
            let factor = half::f16::from_f32(f32::from(block[*at] as i8) / 512.0);
            block[*at..at + 2].copy_from_slice(&factor.to_le_bytes());
        }
    }
    bytes
}

fn widened(format: Format, bytes: &[u8]) -> Vec<f32> {
    let (length, size) = format.block();
    let shape = vec![bytes.len() / size * length];
    let packed = Packed::new(format, shape, bytes.to_vec(), Scale::One);
    assert_eq!(packed.not_finite(), None);
    packed.widen().expect("numbers").to_vec1::<f32>().expect("a row")
}

#[test]
fn ggml_s_blocks_are_candle_s() -> CandleResult<()> {
    for (format, candle) in [
        (Format::Q4_0, GgmlDType::Q4_0),
        (Format::Q4_1, GgmlDType::Q4_1),
        (Format::Q5_0, GgmlDType::Q5_0),
        (Format::Q5_1, GgmlDType::Q5_1),
        (Format::Q8_0, GgmlDType::Q8_0),
        (Format::Q2K, GgmlDType::Q2K),
        (Format::Q3K, GgmlDType::Q3K),
        (Format::Q4K, GgmlDType::Q4K),
        (Format::Q5K, GgmlDType::Q5K),
        (Format::Q6K, GgmlDType::Q6K),
    ] {
        // More than are widened at once.
        let (count, (length, _)) = (700, format.block());
        let bytes = blocks(format, count);
        let theirs = qtensor_from_ggml(candle, &bytes, vec![count * length], &Device::Cpu)?;
        let theirs = theirs.dequantize(&Device::Cpu)?.to_vec1::<f32>()?;
        for (at, (ours, theirs)) in widened(format, &bytes).iter().zip(&theirs).enumerate() {
            let near = 1e-6 * theirs.abs().max(0.01);
            assert!((ours - theirs).abs() <= near, "{format:?} at {at}: {ours}, {theirs}");
        }
    }
    Ok(())
}

/// Blocks and their numbers by the Python package gguf, for those that candle does not have too.
#[test]
fn ggml_s_blocks_are_gguf_s() {
    let file = include_str!("blocks.json");
    let cases: serde_json::Value = serde_json::from_str(file).expect("JSON");
    let formats = [
        ("Q4_0", Format::Q4_0),
        ("Q4_1", Format::Q4_1),
        ("Q5_0", Format::Q5_0),
        ("Q5_1", Format::Q5_1),
        ("Q8_0", Format::Q8_0),
        ("Q2_K", Format::Q2K),
        ("Q3_K", Format::Q3K),
        ("Q4_K", Format::Q4K),
        ("Q5_K", Format::Q5K),
        ("Q6_K", Format::Q6K),
        ("IQ4_NL", Format::Iq4Nl),
        ("IQ4_XS", Format::Iq4Xs),
    ];
    for (name, format) in formats {
        let case = &cases[name];
        let bytes: Vec<u8> = serde_json::from_value(case["bytes"].clone()).expect(name);
        let numbers: Vec<f32> = serde_json::from_value(case["numbers"].clone()).expect(name);
        let ours = widened(format, &bytes);
        assert_eq!(ours.len(), numbers.len(), "{name}");
        for (at, (ours, theirs)) in ours.iter().zip(&numbers).enumerate() {
            assert!(
                (ours - theirs).abs() <= 1e-6 * theirs.abs(),
                "{name} at {at}: {ours}, {theirs}"
            );
        }
    }
}

#[test]
fn what_is_not_finite_is_found() {
    for (format, damage, number) in [
        (Format::F8E4M3, &[0x7fu8][..], 5),
        (Format::F8E5M2, &[0xfc], 5),
        (Format::Q4_1, &[0, 0, 0, 0x7c], 5 * 32),
        (Format::Q8_0, &[1, 0x7e], 5 * 32),
    ] {
        let (length, size) = format.block();
        let mut bytes = vec![0; 9 * size];
        bytes[5 * size..][..damage.len()].copy_from_slice(damage);
        let packed = Packed::new(format, vec![9, length], bytes, Scale::One);
        let (at, value) = packed.not_finite().expect("not finite");
        assert!(at == number && !value.is_finite(), "{format:?}: {at}, {value}");
    }
}

#[test]
fn scales_are_of_all_or_of_rows() -> CandleResult<()> {
    let packed = |scale| Packed::new(Format::F8E4M3, vec![2, 2], vec![0x38, 0x40, 0xb8, 0], scale);
    for (scale, numbers) in [
        (Scale::One, [1.0f32, 2.0, -1.0, 0.0]),
        (Scale::All(0.5), [0.5, 1.0, -0.5, 0.0]),
        (Scale::Rows(vec![2.0, 4.0]), [2.0, 4.0, -4.0, 0.0]),
    ] {
        assert_eq!(packed(scale).widen()?.flatten_all()?.to_vec1::<f32>()?, numbers);
    }
    Ok(())
}

#[test]
fn rounding_is_torch_s() -> CandleResult<()> {
    let numbers = Tensor::new(&[0.3f32, -1.07, 449.0, 1e-4], &Device::Cpu)?;
    for (format, rounded) in [
        (Format::F8E4M3, [0.3125f32, -1.125, 448.0, 0.0]),
        (Format::F8E5M2, [0.3125, -1.0, 448.0, 1.068_115_2e-4]),
    ] {
        let packed = Packed::rounded(&numbers, format)?;
        assert_eq!(packed.widen()?.to_vec1::<f32>()?, rounded);
    }
    Ok(())
}
