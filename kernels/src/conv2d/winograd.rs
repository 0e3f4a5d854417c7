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
use crate::gemm::tile::tile;
use crate::gemm::{K_BLOCK, ROW_STEP, Shared, Start};
use crate::memory;
use crate::simd::{Isa, Kernel, Vector};
use crate::storage::WeightValues;

/// Numbers of a transformed tile.
const POINTS: usize = 36;
/// Values of V at once: 32 MiB.
const GROUP_VALUES: usize = 8 << 20;
/// Tiles whose products a thread has before it transforms them back: with 48 channels, a second-level cache.
const TILES_AT_ONCE: usize = 64;
/// Output channels of a task, whole register tiles on every instruction set.
const CHANNELS: usize = 48;

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

    /// Calls `each` with (sample, row of tiles, first column, number of the first tile in `group`, how many)
    /// for each run of tiles of `group` in one row.
    #[inline(always)]
    fn runs(
        self,
        group: std::ops::Range<usize>,
        mut each: impl FnMut(usize, usize, usize, usize, usize),
    ) {
        let mut at = group.start;
        while at < group.end {
            let (row, column) = (at / self.columns, at % self.columns);
            let length = (self.columns - column).min(group.end - at);
            each(row / self.rows, row % self.rows, column, at - group.start, length);
            at += length;
        }
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
    let mut v = memory::reserve(POINTS * s.channels * per_group);
    for first in (0..tiles.count).step_by(per_group) {
        let group = first..tiles.count.min(first + per_group);
        let padded = group.len().next_multiple_of(width);
        let v_at = Shared(v.as_mut_ptr());
        (0..s.channels).into_par_iter().for_each_init(Vec::new, |scratch, channel| {
            let group = group.clone();
            isa.run(TransformInput { x, s, tiles, group, padded, channel, v: v_at, scratch });
        });
        // SAFETY: every channel has written its values of every point and tile of the group.
        unsafe { v.set_len(POINTS * s.channels * padded) };
        let channels = s.out_channels.div_ceil(2 * rayon::current_num_threads());
        let channels = channels.next_multiple_of(ROW_STEP).min(CHANNELS);
        let blocks = (0..s.out_channels).into_par_iter().step_by(channels);
        blocks.for_each_init(Scratch::default, |scratch, first| {
            let channels = first..s.out_channels.min(first + channels);
            let group = group.clone();
            isa.run(Multiply { v: &v, w, bias, s, tiles, group, padded, channels, y: to, scratch });
        });
    }
    // SAFETY: the groups are all tiles, the blocks all channels: every value was written.
    unsafe { y.set_len(values) };
    y
}

/// Bᵀ d B of one channel's tiles of a group.
struct TransformInput<'a> {
    x: &'a [f32],
    s: Sizes,
    tiles: Tiles,
    group: std::ops::Range<usize>,
    /// Tiles of the group in whole panels.
    padded: usize,
    channel: usize,
    /// [point, panel, channel, tile of the panel]
    v: Shared,
    scratch: &'a mut Vec<f32>,
}

impl Kernel for TransformInput<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let TransformInput { x, s, tiles, group, padded, channel, v, scratch } = self;
        let phase_length = tiles.columns + 1;
        let scratch = memory::aligned(scratch, POINTS * padded + 4 * phase_length);
        scratch.fill(0.0);
        let (d, phases) = scratch.split_at_mut(POINTS * padded);
        // d [row, column of the tile, tile]: a row of the input is first parted into its columns by four, so that what
        // the same place of neighbouring tiles holds lies side by side.
        tiles.runs(group, |sample, tile_row, column, at, length| {
            let plane =
                &x[(sample * s.channels + channel) * s.height * s.width..][..s.height * s.width];
            for r in 0..6 {
                let row = (4 * tile_row + r).wrapping_sub(1);
                if row >= s.height {
                    for point in 6 * r..6 * r + 6 {
                        d[point * padded + at..][..length].fill(0.0);
                    }
                    continue;
                }
                let row = &plane[row * s.width..][..s.width];
                // The columns of the padded row from the first tile's on: the first is the padding's where
                // column is 0.
                for (phase, values) in phases.chunks_exact_mut(phase_length).enumerate() {
                    for (i, value) in values[..length + 1].iter_mut().enumerate() {
                        let source = (4 * (column + i) + phase).wrapping_sub(1);
                        *value = row.get(source).copied().unwrap_or(0.0);
                    }
                }
                for c in 0..6 {
                    let values = &phases[c % 4 * phase_length + c / 4..][..length];
                    d[(6 * r + c) * padded + at..][..length].copy_from_slice(values);
                }
            }
        });
        let width = 2 * V::LANES;
        let panel_size = s.channels * width;
        for tile in (0..padded).step_by(V::LANES) {
            let (panel, lane) = (tile / width, tile % width);
            // SAFETY: d has `padded` values for each point, and `tile + LANES` is at most that; V has
            // padded / width panels for each point, and no other task writes this channel's values.
            unsafe {
                let mut columns = [[V::splat(0.0); 6]; 6];
                for (c, column) in columns.iter_mut().enumerate() {
                    *column = input_transform(from_fn(|r| {
                        V::load(d.as_ptr().add((6 * r + c) * padded + tile))
                    }));
                }
                for r in 0..6 {
                    let row = input_transform(from_fn(|c| columns[c][r]));
                    for (c, value) in row.into_iter().enumerate() {
                        let point = (6 * r + c) * (padded / width) + panel;
                        value.store(v.at(point * panel_size + channel * width + lane));
                    }
                }
            }
        }
    }
}

#[derive(Default)]
struct Scratch {
    /// The weights of one output channel, where they are kept in half precision; or of some input channels, turned.
    wide: Vec<f32>,
    /// [point, output channel, channel]
    u: Vec<f32>,
    /// [point, output channel, tile]
    m: Vec<f32>,
}

/// Some output channels of a group of tiles.
struct Multiply<'a> {
    v: &'a [f32],
    w: Kernels<'a>,
    bias: Option<&'a [f32]>,
    s: Sizes,
    tiles: Tiles,
    group: std::ops::Range<usize>,
    padded: usize,
    channels: std::ops::Range<usize>,
    y: Shared,
    scratch: &'a mut Scratch,
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Multiply { v, w, bias, s, tiles, group, padded, channels, y, scratch } = self;
        let Scratch { wide, u, m } = scratch;
        let width = 2 * V::LANES;
        let outputs = channels.len();
        u.resize(POINTS * CHANNELS * s.channels, 0.0);
        let m = memory::aligned(m, POINTS * CHANNELS * TILES_AT_ONCE);
        if w.are_turned {
            wide.resize(9 * outputs * V::LANES, 0.0);
            turned_weights::<V>(w.values, &channels, s, wide, u);
        } else {
            wide.resize(9 * s.channels, 0.0);
            for (row, channel) in channels.clone().enumerate() {
                let weights = match w.values {
                    WeightValues::F32(values) => {
                        &values[channel * 9 * s.channels..][..9 * s.channels]
                    }
                    half => {
                        half.widen::<V>(channel * 9 * s.channels, wide);
                        &wide[..]
                    }
                };
                let u = &mut u[row * s.channels..];
                transform_weights::<V>(weights, s.channels, u, outputs * s.channels);
            }
        }
        for first in (0..group.len()).step_by(TILES_AT_ONCE) {
            let end = group.len().min(first + TILES_AT_ONCE);
            // The last panel may be half a tile wide.
            let columns = (end - first).next_multiple_of(V::LANES);
            for point in 0..POINTS {
                let u = &u[point * outputs * s.channels..][..outputs * s.channels];
                let m = &mut m[point * outputs * columns..][..outputs * columns];
                for k in (0..s.channels).step_by(K_BLOCK) {
                    let depth = K_BLOCK.min(s.channels - k);
                    let start = if k == 0 { Start::Zero } else { Start::Itself };
                    for row in (0..outputs).step_by(V::TILE_ROWS) {
                        let rows = V::TILE_ROWS.min(outputs - row);
                        for panel in 0..columns.div_ceil(width) {
                            let wide = width.min(columns - panel * width);
                            let place = point * (padded / width) + first / width + panel;
                            let values = &v[(place * s.channels + k) * width..][..depth * width];
                            // SAFETY: the slices hold the rows and columns that are told; the
                            // processor has V, or this would not run.
                            unsafe {
                                tile::<V>(
                                    (rows, wide, depth),
                                    u[row * s.channels + k..].as_ptr(),
                                    s.channels,
                                    values.as_ptr(),
                                    m[row * columns + panel * width..].as_mut_ptr(),
                                    columns,
                                    start,
                                );
                            }
                        }
                    }
                }
            }
            for (row, channel) in channels.clone().enumerate() {
                let bias = bias.map_or(0.0, |bias| bias[channel]);
                let tile_group = group.start + first..group.start + end;
                let m = &m[row * columns..];
                transform_output::<V>(
                    m,
                    (outputs * columns, columns),
                    bias,
                    s,
                    tiles,
                    tile_group,
                    channel,
                    y,
                );
            }
        }
    }
}

/// G g Gᵀ for the weights [C, 3, 3] of one output channel: point ξ of channel c to `u[ξ · stride + c]`.
#[inline(always)]
fn transform_weights<V: Vector>(weights: &[f32], channels: usize, u: &mut [f32], stride: usize) {
    assert!(u.len() >= (POINTS - 1) * stride + channels && weights.len() == 9 * channels);
    let mut apart = [0f32; 9 * MAX_LANES];
    for first in (0..channels).step_by(V::LANES) {
        let count = V::LANES.min(channels - first);
        for (i, weights) in weights[9 * first..][..9 * count].chunks_exact(9).enumerate() {
            for (k, weight) in weights.iter().enumerate() {
                apart[k * V::LANES + i] = *weight;
            }
        }
        // SAFETY: `u` has room for `count` values at every point, by the assert.
        unsafe { transform_apart::<V>(&apart, count, u.as_mut_ptr().add(first), stride) };
    }
}

/// The same for all output channels of a task from turned weights [C, O, 3, 3], kernels read from their ends: point ξ of
/// output channel number o and channel c to `u[(ξ · outputs + o) · C + c]`.
#[inline(always)]
fn turned_weights<V: Vector>(
    weights: WeightValues,
    outputs: &std::ops::Range<usize>,
    s: Sizes,
    wide: &mut [f32],
    u: &mut [f32],
) {
    let (count_outputs, stride) = (outputs.len(), outputs.len() * s.channels);
    let row_size = 9 * count_outputs;
    assert!(u.len() >= POINTS * stride && wide.len() == row_size * V::LANES);
    let mut apart = [0f32; 9 * MAX_LANES];
    for first in (0..s.channels).step_by(V::LANES) {
        let count = V::LANES.min(s.channels - first);
        for (i, wide) in wide.chunks_exact_mut(row_size).take(count).enumerate() {
            weights.widen::<V>(((first + i) * s.out_channels + outputs.start) * 9, wide);
        }
        for output in 0..count_outputs {
            for (i, wide) in wide.chunks_exact(row_size).take(count).enumerate() {
                for (k, weight) in wide[9 * output..][..9].iter().enumerate() {
                    apart[(8 - k) * V::LANES + i] = *weight;
                }
            }
            // SAFETY: `u` has room for `count` values at every point, by the assert.
            unsafe {
                let to = u.as_mut_ptr().add(output * s.channels + first);
                transform_apart::<V>(&apart, count, to, stride);
            }
        }
    }
}

/// G g Gᵀ of `count` kernels, value k of kernel i at `apart[k · LANES + i]`: point ξ to `to[ξ · stride + i]`.
///
/// # Safety
/// `to` leads to room for `count` values at every point; the processor has V.
#[inline(always)]
unsafe fn transform_apart<V: Vector>(
    apart: &[f32; 9 * MAX_LANES],
    count: usize,
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: `apart` has nine vectors; for the rest the caller's.
    unsafe {
        let mut columns = [[V::splat(0.0); 6]; 3];
        for (c, column) in columns.iter_mut().enumerate() {
            *column =
                weight_transform(from_fn(|r| V::load(apart.as_ptr().add((3 * r + c) * V::LANES))));
        }
        for r in 0..6 {
            let row = weight_transform(from_fn(|c| columns[c][r]));
            for (c, value) in row.into_iter().enumerate() {
                let to = to.add((6 * r + c) * stride);
                if count == V::LANES {
                    value.store(to);
                } else {
                    let mut last = [0f32; MAX_LANES];
                    value.store(last.as_mut_ptr());
                    std::ptr::copy_nonoverlapping(last.as_ptr(), to, count);
                }
            }
        }
    }
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
    tiles.runs(group, |sample, tile_row, column, at, length| {
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
    });
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
