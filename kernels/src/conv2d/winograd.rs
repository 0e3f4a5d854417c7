//! 3 × 3 convolution of stride 1 by Winograd's F(4 × 4, 3 × 3) (Lavin and Gray, arXiv 1509.09308): a tile of
//! 4 × 4 outputs takes 36 multiplications for each pair of channels instead of 144.
//!
//! Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A for each tile d [6, 6] of the input; summed over channels, the ⊙ is 36
//! matrix products U_ξ [O, C] · V_ξ [C, tiles]. The interpolation points are 0, ±1/√2, ±√2 and
//! ∞: with the usual 0, ±1, ±2 and ∞ the matrices hold larger numbers, and the error is larger (kernels/README.md).
//!
//! V of a group of tiles is made once and shared; U, nine numbers made to 36, would be four times the weights and
//! is made anew for each group, a few output channels at a time, by the thread that uses it.

#![expect(clippy::needless_range_loop, reason = "the index is the second of two")]

use std::array::from_fn;
use std::f32::consts::{FRAC_1_SQRT_2, SQRT_2};

use rayon::prelude::*;

use super::cpu::Sizes;
use super::runs::{Run, Runs};
use crate::gemm::tile::tile;
use crate::gemm::{K_BLOCK, ROW_STEP, Shared, Start};
use crate::memory;
use crate::simd::{Isa, Kernel, Vector};
use crate::storage::WeightValues;

/// What a profile calls it: of the operations of the definition it multiplies a quarter.
pub(super) const NAME: &str = "conv2d 3x3, Winograd";
/// Numbers of a transformed tile.
const POINTS: usize = 36;
/// Values of V at once: 32 MiB.
const GROUP_VALUES: usize = 8 << 20;
/// V's room is a multiple of it, 36 MiB, but where it is small.
const ROOM: usize = 9 << 20;
/// Tiles whose products a thread has before it transforms them back: with 48 channels, a second-level cache. Whole panels on every
/// instruction set.
const TILES_AT_ONCE: usize = 144;
/// Output channels of a task, whole register tiles on every instruction set.
const CHANNELS: usize = 48;
/// Input channels whose weights are transformed at once where they are used at once: with 48 output channels 1.1 MB.
const CHANNEL_BLOCK: usize = 160;

/// The most output channels of a task. Where the tiles are few, twice as many take the same room, and V is read half as often.
fn most_outputs(tiles: usize) -> usize {
    if tiles <= CHANNELS { 2 * CHANNELS } else { CHANNELS }
}

/// Whether the transforms pay: they cost what some channels and tiles of products do. With fewer tiles
/// than this the weights' transform costs more than the products save.
pub(super) fn pays(s: Sizes) -> bool {
    let is_3x3 = (s.kernel_h, s.kernel_w, s.stride, s.padding) == (3, 3, 1, 1);
    is_3x3 && s.channels >= 32 && s.out_channels >= 32 && Tiles::of(s).count >= 16
}

/// The tiles of all samples, row by row.
#[derive(Clone, Copy)]
struct Tiles {
    rows: usize,
    columns: usize,
    count: usize,
}

impl Tiles {
    fn of(s: Sizes) -> Tiles {
        let (rows, columns) = (s.out_height.div_ceil(4), s.out_width.div_ceil(4));
        Tiles { rows, columns, count: s.batch * rows * columns }
    }

    /// The runs of tiles of `group` that lie in one row. No closure is called for each: by itself it would be compiled without the
    /// vectors' instructions.
    #[inline(always)]
    fn runs(self, group: std::ops::Range<usize>) -> Runs {
        Runs::new(group, self.rows, self.columns)
    }
}

/// How a weight of 3 × 3 kernels lies in memory.
#[derive(Clone, Copy)]
pub(super) struct Kernels<'a> {
    pub(super) values: WeightValues<'a>,
    /// Whether they are those of the convolution whose input's gradient this one is: input and output channels have each
    /// other's place, [C, O, 3, 3], and each kernel is read from its end.
    pub(super) are_turned: bool,
}

/// y [B, O, H, W] = w ⋆ x + bias for x [B, C, H, W], w [O, C, 3, 3], padding 1.
pub(super) fn conv2d(isa: Isa, x: &[f32], w: Kernels, bias: Option<&[f32]>, s: Sizes) -> Vec<f32> {
    assert!(x.len() == s.batch * s.channels * s.height * s.width);
    assert!(w.values.len() == s.out_channels * s.channels * 9);
    assert!(bias.is_none_or(|bias| bias.len() == s.out_channels));
    let tiles = Tiles::of(s);
    let values = s.batch * s.out_channels * s.out_height * s.out_width;
    let mut y = memory::reserve(values);
    let to = Shared(y.as_mut_ptr());
    let width = isa.tile_width();
    let most = (GROUP_VALUES / (POINTS * s.channels) / width).max(2) * width;
    let groups = tiles.count.div_ceil(most);
    let per_group = tiles.count.div_ceil(groups).next_multiple_of(width);
    let panel_size = s.channels * width + LINE;
    // One size for many shapes: a block that is freed goes to the next of its size, and what is not touched costs nothing.
    let v_size = POINTS * per_group / width * panel_size;
    let mut v: Vec<f32> =
        memory::reserve(if v_size < ROOM / 16 { v_size } else { v_size.next_multiple_of(ROOM) });
    let v = Shared(v.as_mut_ptr());
    for first in (0..tiles.count).step_by(per_group) {
        let group = first..tiles.count.min(first + per_group);
        let v = Panels { values: v, count: group.len().div_ceil(width), size: panel_size };
        (0..s.channels).into_par_iter().for_each_init(Vec::new, |scratch, channel| {
            let group = group.clone();
            isa.run(TransformInput { x, s, tiles, group, channel, v, scratch });
        });
        let channels = s.out_channels.div_ceil(2 * rayon::current_num_threads());
        let channels = channels.next_multiple_of(ROW_STEP).min(most_outputs(group.len()));
        let blocks = (0..s.out_channels).into_par_iter().step_by(channels);
        blocks.for_each_init(Scratch::default, |scratch, first| {
            let channels = first..s.out_channels.min(first + channels);
            let group = group.clone();
            isa.run(Multiply { v, w, bias, s, tiles, group, channels, y: to, scratch });
        });
    }
    // SAFETY: the groups are all tiles, the blocks all channels: every value was written.
    unsafe { y.set_len(values) };
    y
}

/// V of a group of tiles, [point, panel, channel, tile of the panel]. Of a last panel that is not full only the vectors with
/// tiles are written, and read.
#[derive(Clone, Copy)]
struct Panels {
    values: Shared,
    /// Of each point.
    count: usize,
    /// Values from one to the next: a cache line more than it has, or a channel's values of all points would share one
    /// set of the first-level cache.
    size: usize,
}

impl Panels {
    /// From this channel's values on.
    #[inline(always)]
    fn at<V: Vector>(self, point: usize, panel: usize, channel: usize) -> *mut f32 {
        self.values.at((point * self.count + panel) * self.size + channel * V::WIDTH)
    }
}

/// Values of a cache line.
const LINE: usize = 16;

/// Bᵀ d B of one channel's tiles of a group.
struct TransformInput<'a> {
    x: &'a [f32],
    s: Sizes,
    tiles: Tiles,
    group: std::ops::Range<usize>,
    channel: usize,
    v: Panels,
    scratch: &'a mut Vec<f32>,
}

impl Kernel for TransformInput<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let TransformInput { x, s, tiles, group, channel, v, scratch } = self;
        // What is read and written a vector at a time may go a vector too far.
        let line_size = 4 * (tiles.columns + 1 + V::LANES);
        let d_size = V::WIDTH + V::LANES;
        let scratch = memory::aligned(scratch, POINTS * d_size + 6 * line_size);
        let (d, lines) = scratch.split_at_mut(POINTS * d_size);
        d.fill(0.0);
        for panel in 0..v.count {
            let first = group.start + panel * V::WIDTH;
            let part = first..group.end.min(first + V::WIDTH);
            let vectors = part.len().div_ceil(V::LANES);
            // d [row, column of the tile, tile]: what the same place of neighbouring tiles holds lies side by side.
            for Run { sample, row: tile_row, column, at, length } in tiles.runs(part) {
                let plane = &x[(sample * s.channels + channel) * s.height * s.width..]
                    [..s.height * s.width];
                for (r, line) in lines.chunks_exact_mut(line_size).enumerate() {
                    let row = (4 * tile_row + r).wrapping_sub(1);
                    let row = if row < s.height { &plane[row * s.width..][..s.width] } else { &[] };
                    padded(row, 4 * column, &mut line[..4 * (length + 1)]);
                }
                let whole = length.next_multiple_of(V::LANES);
                assert!(line_size >= 4 * (whole + 1) && d_size >= at + whole);
                for (r, line) in lines.chunks_exact(line_size).enumerate() {
                    for i in (0..whole).step_by(V::LANES) {
                        // SAFETY: by the assert. What is written too far is of tiles that come later, or of none.
                        unsafe {
                            let [a, b, c, d_] = V::by_fours(line.as_ptr().add(4 * i));
                            let [e, f, ..] = V::by_fours(line.as_ptr().add(4 * (i + 1)));
                            for (column, values) in [a, b, c, d_, e, f].into_iter().enumerate() {
                                values.store(d[(6 * r + column) * d_size + at + i..].as_mut_ptr());
                            }
                        }
                    }
                }
            }
            for lane in (0..vectors * V::LANES).step_by(V::LANES) {
                // SAFETY: d has a panel's width for each point; V has room for every panel, and no other task
                // writes this channel's values.
                unsafe {
                    let mut columns = [[V::splat(0.0); 6]; 6];
                    for (c, column) in columns.iter_mut().enumerate() {
                        *column = input_transform(from_fn(|r| {
                            V::load(d.as_ptr().add((6 * r + c) * d_size + lane))
                        }));
                    }
                    for r in 0..6 {
                        let row = input_transform(from_fn(|c| columns[c][r]));
                        for (c, value) in row.into_iter().enumerate() {
                            value.store(v.at::<V>(6 * r + c, panel, channel).add(lane));
                        }
                    }
                }
            }
        }
    }
}

/// The row with a zero before it and zeros after it, from column `first` on.
#[inline(always)]
fn padded(row: &[f32], first: usize, line: &mut [f32]) {
    let (before, line) = line.split_at_mut(usize::from(first == 0));
    before.fill(0.0);
    let row = &row[(first + before.len()).saturating_sub(1).min(row.len())..];
    let (inside, after) = line.split_at_mut(row.len().min(line.len()));
    inside.copy_from_slice(&row[..inside.len()]);
    after.fill(0.0);
}

#[derive(Default)]
struct Scratch {
    /// The weights of one output channel, where they are kept in half precision; or of some input channels, turned.
    wide: Vec<f32>,
    /// [point, output channel, channel of the block], a cache line between the points.
    u: Vec<f32>,
    /// [point, output channel, tile]
    m: Vec<f32>,
}

/// Some output channels of a group of tiles.
struct Multiply<'a> {
    v: Panels,
    w: Kernels<'a>,
    bias: Option<&'a [f32]>,
    s: Sizes,
    tiles: Tiles,
    group: std::ops::Range<usize>,
    channels: std::ops::Range<usize>,
    y: Shared,
    scratch: &'a mut Scratch,
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Multiply { v, w, bias, s, tiles, group, channels, y, scratch } = self;
        let Scratch { wide, u, m } = scratch;
        let outputs = channels.len();
        // Where all tiles are multiplied at once, the weights are transformed as far as a second-level cache holds them; else
        // they are kept for the other tiles.
        let block = match group.len() <= TILES_AT_ONCE {
            true => CHANNEL_BLOCK * CHANNELS / most_outputs(group.len()),
            false => s.channels,
        };
        let block = s.channels.div_ceil(s.channels.div_ceil(block));
        let u = memory::aligned(u, POINTS * (outputs * block + LINE));
        let m = memory::aligned(m, POINTS * (outputs * TILES_AT_ONCE + LINE));
        for first in (0..group.len()).step_by(TILES_AT_ONCE) {
            let end = group.len().min(first + TILES_AT_ONCE);
            // The last panel may be a vector or two wide.
            let columns = (end - first).next_multiple_of(V::LANES);
            let m_size = outputs * columns + LINE;
            for start in (0..s.channels).step_by(block) {
                let inputs = start..s.channels.min(start + block);
                let u_size = outputs * inputs.len() + LINE;
                if first == 0 {
                    let to = &mut u[..POINTS * u_size];
                    transform_weights::<V>(w, s, &channels, &inputs, wide, to);
                }
                for point in 0..POINTS {
                    let u = &u[point * u_size..][..outputs * inputs.len()];
                    let m = &mut m[point * m_size..][..outputs * columns];
                    for k in (0..inputs.len()).step_by(K_BLOCK) {
                        let depth = K_BLOCK.min(inputs.len() - k);
                        let begin = if start + k == 0 { Start::Zero } else { Start::Itself };
                        for row in (0..outputs).step_by(V::TILE_ROWS) {
                            let rows = V::TILE_ROWS.min(outputs - row);
                            for column in (0..columns).step_by(V::WIDTH) {
                                let panel = (first + column) / V::WIDTH;
                                // SAFETY: the slices hold the rows and columns that are told, and the panel's vectors
                                // were written; the processor has V, or this would not run.
                                unsafe {
                                    tile::<V>(
                                        (rows, V::WIDTH.min(columns - column), depth),
                                        u[row * inputs.len() + k..].as_ptr(),
                                        inputs.len(),
                                        v.at::<V>(point, panel, start + k),
                                        m[row * columns + column..].as_mut_ptr(),
                                        columns,
                                        begin,
                                    );
                                }
                            }
                        }
                    }
                }
            }
            for (row, channel) in channels.clone().enumerate() {
                let bias = bias.map_or(0.0, |bias| bias[channel]);
                let tile_group = group.start + first..group.start + end;
                let m = &m[row * columns..];
                transform_output::<V>(m, (m_size, columns), bias, s, tiles, tile_group, channel, y);
            }
        }
    }
}

/// G g Gᵀ of the kernels of some output and input channels: point ξ of output channel number o and input channel number c to
/// `u[ξ · u.len() / POINTS + o · inputs.len() + c]`.
#[inline(always)]
fn transform_weights<V: Vector>(
    w: Kernels,
    s: Sizes,
    outputs: &std::ops::Range<usize>,
    inputs: &std::ops::Range<usize>,
    wide: &mut Vec<f32>,
    u: &mut [f32],
) {
    let point_size = u.len() / POINTS;
    assert!(point_size >= outputs.len() * inputs.len());
    let u = u.as_mut_ptr();
    // A vector's kernels are read as rows of whole vectors, which go some values beyond the last one.
    let beyond = V::LANES;
    // Of the kernels of an input channel that one output channel after the other has, or the other way round.
    let (size, count) = match w.are_turned {
        false => (9 * inputs.len(), 1),
        true => (9 * outputs.len(), V::LANES),
    };
    wide.resize(wide.len().max(size * count + beyond), 0.0);
    if !w.are_turned {
        for (row, output) in outputs.clone().enumerate() {
            let first = (output * s.channels + inputs.start) * 9;
            let weights = match w.values {
                WeightValues::F32(values) if values.len() >= first + size + beyond => {
                    &values[first..][..size + beyond]
                }
                values => {
                    values.widen::<V>(first, &mut wide[..size]);
                    &wide[..size + beyond]
                }
            };
            for first in (0..inputs.len()).step_by(V::LANES) {
                let count = V::LANES.min(inputs.len() - first);
                // SAFETY: the kernels of `count` channels and a vector more are there, and in `u` room for them at every point, by
                // the assert.
                unsafe {
                    let kernels = weights[9 * first..].as_ptr();
                    let to = u.add(row * inputs.len() + first);
                    transform_kernels::<V, false>(kernels, 9, count, to, point_size);
                }
            }
        }
        return;
    }
    for first in (0..inputs.len()).step_by(V::LANES) {
        let count = V::LANES.min(inputs.len() - first);
        for (i, wide) in wide.chunks_exact_mut(size).take(count).enumerate() {
            let at = ((inputs.start + first + i) * s.out_channels + outputs.start) * 9;
            w.values.widen::<V>(at, wide);
        }
        for row in 0..outputs.len() {
            // SAFETY: as above.
            unsafe {
                let kernels = wide[9 * row..].as_ptr();
                let to = u.add(row * inputs.len() + first);
                transform_kernels::<V, true>(kernels, size, count, to, point_size);
            }
        }
    }
}

/// G g Gᵀ of `count` kernels of nine values, `stride` apart, read from their ends where they are `TURNED`: point ξ of kernel i to
/// `to[ξ · point_size + i]`.
///
/// # Safety
/// From `kernels` on there are so many and a vector more; `to` leads to room for `count` values at every point; the processor has V.
#[inline(always)]
unsafe fn transform_kernels<V: Vector, const TURNED: bool>(
    kernels: *const f32,
    stride: usize,
    count: usize,
    to: *mut f32,
    point_size: usize,
) {
    // SAFETY: a row of a kernel's values in whole vectors ends within the next one, or the vector more; for the rest the caller's.
    unsafe {
        let values = match count == V::LANES {
            true => nine::<V>(kernels, stride),
            false => nine_of_some::<V>(kernels, stride, count),
        };
        let value = |k: usize| values[if TURNED { 8 - k } else { k }];
        let mut columns = [[V::splat(0.0); 6]; 3];
        for (c, column) in columns.iter_mut().enumerate() {
            *column = weight_transform(from_fn(|r| value(3 * r + c)));
        }
        for r in 0..6 {
            let row = weight_transform(from_fn(|c| columns[c][r]));
            for (c, value) in row.into_iter().enumerate() {
                let to = to.add((6 * r + c) * point_size);
                if count == V::LANES { value.store(to) } else { value.store_part(to, count) }
            }
        }
    }
}

/// The nine values of a vector's kernels.
///
/// # Safety
/// As [`transform_kernels`].
#[inline(always)]
unsafe fn nine<V: Vector>(kernels: *const f32, stride: usize) -> [V; 9] {
    // Nine in whole vectors; of all this only registers are left.
    let mut apart = [0f32; MAX_LANES * MAX_LANES];
    for k in (0..9).step_by(V::LANES) {
        // SAFETY: a kernel's values in whole vectors end within the next kernel, or the vector more.
        unsafe {
            V::transpose(kernels.add(k), stride, apart.as_mut_ptr().add(k * V::LANES), V::LANES)
        };
    }
    // SAFETY: there are at least nine vectors.
    from_fn(|k| unsafe { V::load(apart.as_ptr().add(k * V::LANES)) })
}

/// The same of fewer kernels.
///
/// # Safety
/// As [`transform_kernels`].
#[inline(always)]
unsafe fn nine_of_some<V: Vector>(kernels: *const f32, stride: usize, count: usize) -> [V; 9] {
    let mut apart = [[0f32; MAX_LANES]; 9];
    for (k, values) in apart.iter_mut().enumerate() {
        for (i, value) in values.iter_mut().enumerate().take(count) {
            // SAFETY: the caller's.
            *value = unsafe { *kernels.add(i * stride + k) };
        }
    }
    // SAFETY: no vector has more values.
    apart.map(|values| unsafe { V::load(values.as_ptr()) })
}

const MAX_LANES: usize = 16;

/// Aᵀ m A + bias of the tiles `group` of one output channel: point ξ of tile t at `m[ξ · stride + t]`, of which
/// `columns` are there.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "one step of one function, apart to be read alone")]
fn transform_output<V: Vector>(
    m: &[f32],
    (stride, columns): (usize, usize),
    bias: f32,
    s: Sizes,
    tiles: Tiles,
    group: std::ops::Range<usize>,
    channel: usize,
    y: Shared,
) {
    assert!(m.len() >= (POINTS - 1) * stride + columns && columns.is_multiple_of(V::LANES));
    assert!(columns <= TILES_AT_ONCE && group.len() <= columns);
    let mut out = [0f32; 16 * TILES_AT_ONCE];
    for tile in (0..columns).step_by(V::LANES) {
        // SAFETY: tile + LANES ≤ columns, so the asserts make room for each point's vector, in `m` and in
        // `out`.
        unsafe {
            let mut columns = [[V::splat(0.0); 4]; 6];
            for (c, column) in columns.iter_mut().enumerate() {
                *column = output_transform(from_fn(|r| {
                    V::load(m.as_ptr().add((6 * r + c) * stride + tile))
                }));
            }
            for r in 0..4 {
                let row = output_transform(from_fn(|c| columns[c][r]));
                for (c, value) in row.into_iter().enumerate() {
                    let value = value.add(V::splat(bias));
                    value.store(out.as_mut_ptr().add((4 * r + c) * TILES_AT_ONCE + tile));
                }
            }
        }
    }
    for Run { sample, row: tile_row, column, at, length } in tiles.runs(group) {
        let plane = (sample * s.out_channels + channel) * s.out_height * s.out_width;
        for r in 0..4.min(s.out_height - 4 * tile_row) {
            let row = plane + (4 * tile_row + r) * s.out_width + 4 * column;
            let whole = (4 * length).min(s.out_width - 4 * column);
            // SAFETY: the rest of this row from the first tile's column on, or what of it the tiles cover, which
            // no other task writes; the output was reserved whole.
            let row = unsafe {
                std::slice::from_raw_parts_mut(
                    y.at(row).cast::<std::mem::MaybeUninit<f32>>(),
                    whole,
                )
            };
            let from = |c: usize| &out[(4 * r + c) * TILES_AT_ONCE + at..][..length];
            let (fours, rest) = row.as_chunks_mut::<4>();
            let columns = from(0).iter().zip(from(1)).zip(from(2)).zip(from(3));
            for (four, (((a, b), c), d)) in fours.iter_mut().zip(columns) {
                *four = [*a, *b, *c, *d].map(std::mem::MaybeUninit::new);
            }
            for (c, value) in rest.iter_mut().enumerate() {
                value.write(from(c)[length - 1]);
            }
        }
    }
}

/// Bᵀ d.
///
/// # Safety
/// [`Vector`]'s, as for the next two.
#[inline(always)]
unsafe fn input_transform<V: Vector>(d: [V; 6]) -> [V; 6] {
    // SAFETY: the caller's.
    unsafe {
        let [d0, d1, d2, d3, d4, d5] = d;
        // The even and the odd part of each pair of opposite points.
        let even_1 = d2.mul_add(V::splat(-2.0), d4);
        let odd_1 = d3.mul_add(V::splat(FRAC_1_SQRT_2), d1.mul(V::splat(-SQRT_2)));
        let even_2 = d2.mul_add(V::splat(-0.5), d4);
        let odd_2 = d3.mul_add(V::splat(SQRT_2), d1.mul(V::splat(-FRAC_1_SQRT_2)));
        let middle = V::splat(-2.5);
        [
            d2.mul_add(middle, d0.add(d4)),
            even_1.add(odd_1),
            even_1.sub(odd_1),
            even_2.add(odd_2),
            even_2.sub(odd_2),
            d3.mul_add(middle, d1.add(d5)),
        ]
    }
}

/// G g.
#[inline(always)]
unsafe fn weight_transform<V: Vector>(g: [V; 3]) -> [V; 6] {
    // SAFETY: the caller's.
    unsafe {
        let [g0, g1, g2] = g;
        let even_1 = g0.mul_add(V::splat(-2.0 / 3.0), g2.mul(V::splat(-1.0 / 3.0)));
        let odd_1 = g1.mul(V::splat(-SQRT_2 / 3.0));
        let even_2 = g0.mul_add(V::splat(1.0 / 6.0), g2.mul(V::splat(1.0 / 3.0)));
        let odd_2 = g1.mul(V::splat(SQRT_2 / 6.0));
        [g0, even_1.add(odd_1), even_1.sub(odd_1), even_2.add(odd_2), even_2.sub(odd_2), g2]
    }
}

/// Aᵀ m.
#[inline(always)]
unsafe fn output_transform<V: Vector>(m: [V; 6]) -> [V; 4] {
    // SAFETY: the caller's.
    unsafe {
        let [m0, m1, m2, m3, m4, m5] = m;
        let (even_1, odd_1) = (m1.add(m2), m1.sub(m2));
        let (even_2, odd_2) = (m3.add(m4), m3.sub(m4));
        [
            m0.add(even_1).add(even_2),
            odd_1.mul_add(V::splat(FRAC_1_SQRT_2), odd_2.mul(V::splat(SQRT_2))),
            even_1.mul_add(V::splat(0.5), even_2.mul(V::splat(2.0))),
            odd_1.mul_add(V::splat(SQRT_2 / 4.0), odd_2.mul_add(V::splat(2.0 * SQRT_2), m5)),
        ]
    }
}
