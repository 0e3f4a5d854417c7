//! Eight-bit floats, as "FP8 Formats for Deep Learning" (Micikevicius et al., arXiv 2209.05433) has them: E4M3
//! without infinities (NaN is all ones), E5M2 with what IEEE's halves have.

/// All numbers of E4M3, by their bits.
pub(super) static E4M3: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut bits = 0;
    while bits < 256 {
        table[bits] = e4m3(bits as u8);
        bits += 1;
    }
    table
};

/// All numbers of E5M2.
pub(super) static E5M2: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut bits = 0;
    while bits < 256 {
        table[bits] = e5m2(bits as u8);
        bits += 1;
    }
    table
};

/// A float of the f32's value with `mantissa` bits of fraction and this bias, which is finite.
const fn value(bits: u8, mantissa: u32, bias: i32) -> f32 {
    let exponent = ((bits & 0x7f) >> mantissa) as i32;
    let fraction = (bits & ((1 << mantissa) - 1)) as f32;
    let unit = (1u32 << mantissa) as f32;
    // Without a leading one at the smallest exponent.
    let (significand, exponent) = match exponent {
        0 => (fraction / unit, 1 - bias),
        _ => (1.0 + fraction / unit, exponent - bias),
    };
    let magnitude = significand * f32::from_bits(((exponent + 127) as u32) << 23);
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

pub(super) const fn e4m3(bits: u8) -> f32 {
    if bits & 0x7f == 0x7f { f32::NAN } else { value(bits, 3, 7) }
}

pub(super) const fn e5m2(bits: u8) -> f32 {
    match bits & 0x7f {
        0x7c if bits & 0x80 == 0 => f32::INFINITY,
        0x7c => f32::NEG_INFINITY,
        0x7d..=0x7f => f32::NAN,
        _ => value(bits, 2, 15),
    }
}

/// The nearest E4M3, of two as near the even one; NaN beyond its range.
pub(super) fn to_e4m3(number: f32) -> u8 {
    // 480 would be the next one, and 464 is half way, which goes to the even 480.
    rounded(number, 3, 7, 464.0, 0x7f)
}

/// The nearest E5M2; an infinity beyond its range.
pub(super) fn to_e5m2(number: f32) -> u8 {
    if number.is_nan() { 0x7f } else { rounded(number, 2, 15, 61440.0, 0x7c) }
}

fn rounded(number: f32, mantissa: u32, bias: i32, end: f32, beyond: u8) -> u8 {
    let sign = ((number.to_bits() >> 24) & 0x80) as u8;
    let magnitude = number.abs();
    if magnitude >= end || magnitude.is_nan() {
        return sign | beyond;
    }
    // The distance of neighbours around this number; the bits count them from 0.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(1 - bias);
    let step = f32::from_bits(((exponent - mantissa as i32 + 127) as u32) << 23);
    let steps = (magnitude / step).round_ties_even() as u32;
    let below = ((exponent + bias - 1) as u32) << mantissa;
    sign | (below + steps) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_numbers() {
        for (bits, number) in [
            (0x00, 0.0),
            (0x01, 0.001953125),
            (0x08, 0.015625),
            (0x38, 1.0),
            (0x7e, 448.0),
            (0xc0, -2.0),
        ] {
            assert_eq!(e4m3(bits), number, "{bits:x}");
        }
        for (bits, number) in [
            (0x01, 1.525_878_9e-5),
            (0x04, 6.103_515_6e-5),
            (0x3c, 1.0),
            (0x7b, 57344.0),
            (0xc4, -4.0),
        ] {
            assert_eq!(e5m2(bits), number, "{bits:x}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan() && e5m2(0x7e).is_nan());
        assert_eq!((e5m2(0x7c), e5m2(0xfc)), (f32::INFINITY, f32::NEG_INFINITY));
    }

    #[test]
    fn every_number_is_its_own_nearest_and_halves_go_to_the_even() {
        for bits in 0..=255u8 {
            for (widen, round) in
                [(e4m3 as fn(u8) -> f32, to_e4m3 as fn(f32) -> u8), (e5m2, to_e5m2)]
            {
                let number = widen(bits);
                if number.is_nan() {
                    assert!(widen(round(number)).is_nan(), "{bits:x}");
                    continue;
                }
                assert_eq!(round(number), bits);
                let next = if bits & 0x7f < 0x7f { widen(bits + 1) } else { f32::NAN };
                if next.is_finite() && number.is_finite() {
                    let middle = round((number + next) / 2.0);
                    assert_eq!(middle, if bits % 2 == 0 { bits } else { bits + 1 });
                }
            }
        }
        assert!(e4m3(to_e4m3(464.0)).is_nan() && e4m3(to_e4m3(463.9)) == 448.0);
        assert!(e5m2(to_e5m2(61440.0)) == f32::INFINITY && e5m2(to_e5m2(61439.0)) == 57344.0);
        assert_eq!((to_e4m3(1e-9), to_e5m2(-1e-9)), (0, 0x80));
    }
}
