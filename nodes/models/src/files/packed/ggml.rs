//! The blocks of ggml: whole numbers of few bits, and one or two factors for the block, in 16 bits. The
//! larger ones ("K") have factors for parts of the block as well, in whole numbers of few bits.
//!
//! Every function takes the bytes of one block, and as many numbers as it stands for.

use half::f16 as Half;

/// The 16-bit float that `bytes` begin with.
pub(super) fn f16(bytes: &[u8]) -> f32 {
    Half::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// The halves of 16 bytes: the low ones are the first 16 numbers, the high ones the others.
fn halves(bytes: &[u8], numbers: &mut [f32], number: impl Fn(usize, u8) -> f32) {
    let (first, second) = numbers.split_at_mut(16);
    for (at, ((first, second), byte)) in first.iter_mut().zip(second).zip(bytes).enumerate() {
        *first = number(at, byte & 0xf);
        *second = number(at + 16, byte >> 4);
    }
}

pub(super) fn q4_0(block: &[u8], numbers: &mut [f32]) {
    let factor = f16(block);
    halves(&block[2..18], numbers, |_, four| f32::from(four as i8 - 8) * factor);
}

pub(super) fn q4_1(block: &[u8], numbers: &mut [f32]) {
    let (factor, least) = (f16(block), f16(&block[2..]));
    halves(&block[4..20], numbers, |_, four| f32::from(four) * factor + least);
}

/// The fifth bits of 32 numbers.
fn fifth(bytes: &[u8]) -> impl Fn(usize) -> u8 {
    let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    move |at| ((bits >> at) as u8 & 1) << 4
}

pub(super) fn q5_0(block: &[u8], numbers: &mut [f32]) {
    let (factor, fifth) = (f16(block), fifth(&block[2..6]));
    halves(&block[6..22], numbers, |at, four| f32::from((four | fifth(at)) as i8 - 16) * factor);
}

pub(super) fn q5_1(block: &[u8], numbers: &mut [f32]) {
    let (factor, least, fifth) = (f16(block), f16(&block[2..]), fifth(&block[4..8]));
    halves(&block[8..24], numbers, |at, four| f32::from(four | fifth(at)) * factor + least);
}

pub(super) fn q8_0(block: &[u8], numbers: &mut [f32]) {
    let factor = f16(block);
    for (number, byte) in numbers.iter_mut().zip(&block[2..34]) {
        *number = f32::from(*byte as i8) * factor;
    }
}

/// Sixteen runs of 16 numbers; a byte has two bits of each of four runs.
pub(super) fn q2_k(block: &[u8], numbers: &mut [f32]) {
    let (scales, bits) = (&block[..16], &block[16..80]);
    let (factor, least) = (f16(&block[80..]), f16(&block[82..]));
    for (run, (numbers, scale)) in numbers.chunks_exact_mut(16).zip(scales).enumerate() {
        let (factor, least) = (factor * f32::from(scale & 0xf), least * f32::from(scale >> 4));
        let (bytes, shift) = two_bits(bits, run);
        for (number, byte) in numbers.iter_mut().zip(bytes) {
            *number = factor * f32::from((byte >> shift) & 3) - least;
        }
    }
}

/// The bytes that have the two bits of a run of 16, and where in them.
fn two_bits(bits: &[u8], run: usize) -> (&[u8], usize) {
    // 128 numbers in 32 bytes: the runs 0 and 1 in the lowest bits, 2 and 3 in the next.
    let (half, pair, side) = (run / 8, run % 8 / 2, run % 2);
    (&bits[half * 32 + side * 16..][..16], 2 * pair)
}

pub(super) fn q3_k(block: &[u8], numbers: &mut [f32]) {
    let (thirds, bits, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let factor = f16(&block[108..]);
    for (run, numbers) in numbers.chunks_exact_mut(16).enumerate() {
        // Four bits of a factor in the first eight bytes, two in the last four.
        let low = (scales[run % 8] >> (run / 8 * 4)) & 0xf;
        let high = (scales[8 + run % 4] >> (run / 4 * 2)) & 3;
        let factor = factor * f32::from((low | high << 4) as i8 - 32);
        let (bytes, shift) = two_bits(bits, run);
        let third = run / 2;
        let thirds = &thirds[run % 2 * 16..][..16];
        for ((number, byte), thirds) in numbers.iter_mut().zip(bytes).zip(thirds) {
            let whole =
                ((byte >> shift) & 3) as i8 - if (thirds >> third) & 1 == 1 { 0 } else { 4 };
            *number = factor * f32::from(whole);
        }
    }
}

/// The factor and the least of run `run` of eight, six bits each, in twelve bytes.
fn six_bits(scales: &[u8], run: usize) -> (f32, f32) {
    let (factor, least) = match run {
        0..4 => (scales[run] & 63, scales[run + 4] & 63),
        _ => (
            (scales[run + 4] & 0xf) | (scales[run - 4] >> 6) << 4,
            (scales[run + 4] >> 4) | (scales[run] >> 6) << 4,
        ),
    };
    (f32::from(factor), f32::from(least))
}

/// Eight runs of 32 numbers; a byte has a number of each of two runs.
pub(super) fn q4_k(block: &[u8], numbers: &mut [f32]) {
    let (factor, least) = (f16(block), f16(&block[2..]));
    let (scales, bits) = (&block[4..16], &block[16..144]);
    for (run, numbers) in numbers.chunks_exact_mut(32).enumerate() {
        let (of_run, least_of_run) = six_bits(scales, run);
        let (factor, least) = (factor * of_run, least * least_of_run);
        let (bytes, shift) = (&bits[run / 2 * 32..][..32], run % 2 * 4);
        for (number, byte) in numbers.iter_mut().zip(bytes) {
            *number = factor * f32::from((byte >> shift) & 0xf) - least;
        }
    }
}

pub(super) fn q5_k(block: &[u8], numbers: &mut [f32]) {
    let (factor, least) = (f16(block), f16(&block[2..]));
    let (scales, fifths, bits) = (&block[4..16], &block[16..48], &block[48..176]);
    for (run, numbers) in numbers.chunks_exact_mut(32).enumerate() {
        let (of_run, least_of_run) = six_bits(scales, run);
        let (factor, least) = (factor * of_run, least * least_of_run);
        let (bytes, shift) = (&bits[run / 2 * 32..][..32], run % 2 * 4);
        for ((number, byte), fifth) in numbers.iter_mut().zip(bytes).zip(fifths) {
            let five = (byte >> shift) & 0xf | ((fifth >> run) & 1) << 4;
            *number = factor * f32::from(five) - least;
        }
    }
}

/// Sixteen runs of 16 numbers, in two halves of 128: a byte of the fours has a number of each of two
/// quarters of a half, a byte of the twos one of each of four.
pub(super) fn q6_k(block: &[u8], numbers: &mut [f32]) {
    let (fours, twos, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let factor = f16(&block[208..]);
    for (run, (numbers, scale)) in numbers.chunks_exact_mut(16).zip(scales).enumerate() {
        let factor = factor * f32::from(*scale as i8);
        let (half, quarter, side) = (run / 8, run % 8 / 2, run % 2 * 16);
        let fours = &fours[half * 64 + quarter % 2 * 32 + side..][..16];
        let twos = &twos[half * 32 + side..][..16];
        for ((number, four), two) in numbers.iter_mut().zip(fours).zip(twos) {
            let low = (four >> (quarter / 2 * 4)) & 0xf;
            let high = (two >> (quarter * 2)) & 3;
            *number = factor * f32::from((low | high << 4) as i8 - 32);
        }
    }
}

/// What the sixteen numbers of four bits stand for: closer to each other near zero.
const UNEVEN: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

pub(super) fn iq4_nl(block: &[u8], numbers: &mut [f32]) {
    let factor = f16(block);
    halves(&block[2..18], numbers, |_, four| f32::from(UNEVEN[usize::from(four)]) * factor);
}

pub(super) fn iq4_xs(block: &[u8], numbers: &mut [f32]) {
    let factor = f16(block);
    let high = u16::from_le_bytes([block[2], block[3]]);
    let (low, bits) = (&block[4..8], &block[8..136]);
    for (run, numbers) in numbers.chunks_exact_mut(32).enumerate() {
        let scale = (low[run / 2] >> (run % 2 * 4)) & 0xf | ((high >> (2 * run)) as u8 & 3) << 4;
        let factor = factor * f32::from(scale as i8 - 32);
        let number = |_, four: u8| f32::from(UNEVEN[usize::from(four)]) * factor;
        halves(&bits[run * 16..][..16], numbers, number);
    }
}
