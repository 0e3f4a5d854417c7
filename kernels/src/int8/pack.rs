//! Values as whole numbers of 8 bits: rows of x one after the other, features of w in panels.

use rayon::prelude::*;

use super::set::{Set, Sums, WithSums, width};
use super::{CHUNK, GROUP_BYTES};
use crate::simd::Vector;
use crate::storage::WeightValues;

/// x as numbers −127 … 127, the set's offset added to each.
pub(super) struct Rows {
    /// Rows of `stride` bytes, as many as whole tiles need.
    pub numbers: Vec<u8>,
    pub stride: usize,
    /// What each row is multiplied by; no number where the row is none.
    pub scales: Vec<f32>,
}

/// w as numbers −127 … 127.
pub(super) struct Features {
    /// A panel for as many features as a tile has: of each group of values those of the first feature, the second …
    pub panels: Vec<u8>,
    /// Bytes of a panel.
    pub panel: usize,
    /// What each feature is multiplied by.
    pub scales: Vec<f32>,
    /// The rows' offset times the sum of each feature's numbers.
    pub offsets: Vec<i32>,
}

/// Values of a row with its end filled up to whole chunks.
fn whole(input: usize) -> usize {
    input.next_multiple_of(CHUNK)
}

impl Rows {
    pub(super) fn of(set: Set, x: &[f32], (rows, input): (usize, usize)) -> Rows {
        let sizes = set.sizes();
        // A cache line more: rows a power of 2 apart would share the sets of a cache.
        let stride = whole(input) * sizes.bytes + 64;
        let all = rows.next_multiple_of(sizes.rows);
        let (mut numbers, mut scales) = (vec![0u8; all * stride], vec![0f32; all]);
        let strips =
            numbers.par_chunks_mut(sizes.rows * stride).zip(scales.par_chunks_mut(sizes.rows));
        x.par_chunks(sizes.rows * input).zip(strips).for_each(|(x, (numbers, scales))| {
            set.run(Strip { x, input, numbers, stride, scales });
        });
        Rows { numbers, stride, scales }
    }
}

/// Some rows.
struct Strip<'a> {
    x: &'a [f32],
    input: usize,
    numbers: &'a mut [u8],
    stride: usize,
    scales: &'a mut [f32],
}

impl WithSums for Strip<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Sums>(self) {
        let Strip { x, input, numbers, stride, scales } = self;
        for ((x, to), scale) in x.chunks(input).zip(numbers.chunks_mut(stride)).zip(scales) {
            let to = &mut to[..whole(input) * S::BYTES];
            // SAFETY: the processor has the instructions, or this would not run.
            (*scale, _) = unsafe { round::<S>(x, S::OFFSET, to) };
        }
    }
}

impl Features {
    pub(super) fn of(set: Set, w: WeightValues, (output, input): (usize, usize)) -> Features {
        let sizes = set.sizes();
        let panel = sizes.width * whole(input) * sizes.bytes;
        let count = output.div_ceil(sizes.width);
        let mut panels = vec![0u8; count * panel];
        let (mut scales, mut offsets) =
            (vec![0f32; count * sizes.width], vec![0i32; count * sizes.width]);
        let each = panels.par_chunks_mut(panel).zip(scales.par_chunks_mut(sizes.width));
        let each = each.zip(offsets.par_chunks_mut(sizes.width)).enumerate();
        each.for_each_init(
            || (vec![0f32; input], vec![0u8; panel]),
            |(wide, flat), (number, ((panel, scales), offsets))| {
                for (i, flat) in flat.chunks_exact_mut(whole(input) * sizes.bytes).enumerate() {
                    let feature = number * sizes.width + i;
                    if feature >= output {
                        flat.fill(0);
                        continue;
                    }
                    let at = feature * input;
                    let from = match w {
                        WeightValues::F32(values) => &values[at..at + input],
                        half => {
                            half.widen_into(set.isa(), at, wide);
                            &wide[..]
                        }
                    };
                    (scales[i], offsets[i]) = set.run(Feature { from, flat });
                }
                set.run(Panel { features: flat, to: panel });
            },
        );
        Features { panels, panel, scales, offsets }
    }
}

/// A feature, whose numbers go to `flat`. Returns its scale and its offset.
struct Feature<'a> {
    from: &'a [f32],
    flat: &'a mut [u8],
}

impl WithSums for Feature<'_> {
    type Output = (f32, i32);

    #[inline(always)]
    fn run<S: Sums>(self) -> (f32, i32) {
        // SAFETY: the processor has the instructions, or this would not run.
        let (scale, sum) = unsafe { round::<S>(self.from, 0, self.flat) };
        (scale, S::OFFSET * sum)
    }
}

/// The largest of the whole numbers: as many below 0 as above it.
const MOST: f32 = 127.0;

/// An f32 to which numbers up to 2²² are added as whole ones, half to even, and whose bits then have them at their lower end.
const ROUNDER: f32 = 1.5 * (1 << 23) as f32;

/// The values of `from` as whole numbers, `offset` added to each; the rest of `to`, whose values fill whole chunks, is `offset`.
/// Returns what they are multiplied by and the sum of the numbers without the offset, 0 where a value is none or infinite.
///
/// # Safety
/// Within [`Set::run`].
#[inline(always)]
unsafe fn round<S: Sums>(from: &[f32], offset: i32, to: &mut [u8]) -> (f32, i32) {
    assert!(to.len() == whole(from.len()) * S::BYTES);
    let lanes = S::Floats::LANES;
    let (chunks, rest) = from.as_chunks::<CHUNK>();
    let mut last = [0f32; CHUNK];
    last[..rest.len()].copy_from_slice(rest);
    let chunks = || chunks.iter().chain((!rest.is_empty()).then_some(&last));
    // SAFETY, of all below: the caller's; a chunk is a whole number of vectors, and `to` has a part for each.
    unsafe {
        let zero = S::Floats::splat(0.0);
        let mut largest = zero;
        for chunk in chunks() {
            let mut of_chunk = [zero; 2];
            for at in (0..CHUNK).step_by(lanes) {
                let value = S::Floats::load(chunk.as_ptr().add(at));
                of_chunk = [value.max(of_chunk[0]), zero.sub(value).max(of_chunk[1])];
            }
            largest = of_chunk[0].max(of_chunk[1]).max(largest);
        }
        let largest = largest.largest();
        let (scale, inverse) = match largest {
            // So small that its inverse would be infinite: nothing comes of it.
            _ if largest < f32::MIN_POSITIVE * 256.0 => (0.0, 0.0),
            _ if largest.is_finite() => (largest / MOST, MOST / largest),
            // By 0 it is no number.
            _ => (f32::NAN, 0.0),
        };
        let inverse = S::Floats::splat(inverse);
        let rounder = S::Floats::splat(ROUNDER + offset as f32);
        // Exact: of 2¹⁶ numbers at most.
        let mut sum = zero;
        for (chunk, to) in chunks().zip(to.chunks_exact_mut(CHUNK * S::BYTES)) {
            let mut of_chunk = zero;
            for at in (0..CHUNK).step_by(lanes) {
                let value = S::Floats::load(chunk.as_ptr().add(at));
                let bits = value.mul(inverse).add(rounder);
                S::write_numbers(bits, to.as_mut_ptr().add(at * S::BYTES));
                of_chunk = of_chunk.add(bits.sub(rounder));
            }
            sum = sum.add(of_chunk);
        }
        let mut sums = [0f32; CHUNK];
        sum.store(sums.as_mut_ptr());
        let sum: f32 = sums[..lanes].iter().sum();
        // The maxima pass over what is no number; it is here.
        (if sum.is_nan() { f32::NAN } else { scale }, sum as i32)
    }
}

/// Features, one after the other, to a panel: groups are what is turned.
struct Panel<'a> {
    features: &'a [u8],
    to: &'a mut [u8],
}

impl WithSums for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Sums>(self) {
        let Panel { features, to } = self;
        let (width, lanes) = (width::<S>(), S::Floats::LANES);
        let groups = features.len() / width / GROUP_BYTES;
        assert!(features.len() == to.len() && groups.is_multiple_of(lanes));
        assert!(features.len() == groups * width * GROUP_BYTES);
        let (from, to) = (features.as_ptr().cast::<f32>(), to.as_mut_ptr().cast::<f32>());
        for first in (0..width).step_by(lanes) {
            for group in (0..groups).step_by(lanes) {
                // SAFETY: as many features as groups of each, which are only moved; the processor has the instructions, or this
                // would not run.
                unsafe {
                    let from = from.add(first * groups + group);
                    S::Floats::transpose(from, groups, to.add(group * width + first), width);
                }
            }
        }
    }
}
