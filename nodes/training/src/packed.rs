//! Moments in eight bits each: logarithms in blocks that share a scale (after Dettmers et al., arXiv 2110.02861, whose codes
//! are others).
//!
//! A value is its block's largest magnitude times a power of 2^(−1/8), with its sign in one bit: right to 4.4 % over sixteen
//! octaves. What is smaller still keeps the smallest code and not zero, so that a second moment never lets an update explode.

/// Values that share a scale.
pub const BLOCK: usize = 256;
/// Steps of an octave.
const STEPS: f32 = 8.0;
/// Codes of a sign, without zero's.
const CODES: i32 = 127;

/// Values in eight bits each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Packed {
    pub codes: Vec<i8>,
    /// The largest magnitude of each block.
    pub scales: Vec<f32>,
}

impl Packed {
    /// `count` zeros.
    pub fn zeros(count: usize) -> Packed {
        Packed { codes: vec![0; count], scales: vec![0.0; count.div_ceil(BLOCK)] }
    }
}

/// The values of some blocks.
pub fn unpack(codes: &[i8], scales: &[f32], into: &mut Vec<f32>) {
    into.clear();
    for (codes, scale) in codes.chunks(BLOCK).zip(scales) {
        into.extend(codes.iter().map(|code| match *code {
            0 => 0.0,
            code => {
                let below = (CODES - i32::from(code).abs()) as f32 / STEPS;
                (scale * (-below).exp2()).copysign(f32::from(code))
            }
        }));
    }
}

/// Writes `values` into the codes and scales of their blocks.
pub fn pack(values: &[f32], codes: &mut [i8], scales: &mut [f32]) {
    let blocks = values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(scales);
    for ((values, codes), scale) in blocks {
        *scale = values.iter().fold(0f32, |most, value| most.max(value.abs()));
        for (value, code) in values.iter().zip(codes) {
            *code = match *value == 0.0 || *scale == 0.0 {
                true => 0,
                false => {
                    let below = ((value.abs() / *scale).log2() * STEPS).round() as i32;
                    let magnitude = (CODES + below).clamp(1, CODES);
                    (magnitude * if *value < 0.0 { -1 } else { 1 }) as i8
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_near_and_never_as_zero() {
        let values: Vec<f32> =
            (0..600).map(|i| ((i * 37 % 101) as f32 - 50.0) * 1.3f32.powi(i % 30 - 20)).collect();
        let mut packed = Packed::zeros(values.len());
        pack(&values, &mut packed.codes, &mut packed.scales);
        let mut again = Vec::new();
        unpack(&packed.codes, &packed.scales, &mut again);
        assert_eq!(again.len(), values.len());
        for (i, (value, again)) in values.iter().zip(&again).enumerate() {
            let scale = packed.scales[i / BLOCK];
            if value.abs() > scale * 2f32.powi(-15) {
                assert!((value - again).abs() <= 0.045 * value.abs(), "{value} became {again}");
            }
            assert_eq!((*value == 0.0, *value > 0.0), (*again == 0.0, *again > 0.0), "{value}");
        }
        // What was packed once stays as it is.
        let mut twice = Packed::zeros(values.len());
        pack(&again, &mut twice.codes, &mut twice.scales);
        assert_eq!(packed, twice);
    }
}
