//! 3 × 3 convolution of stride 1 by Winograd's F(4 × 4, 3 × 3) (Lavin and Gray, arXiv 1509.09308): a tile of
//! 4 × 4 outputs takes 36 multiplications for each pair of channels instead of 144. Where such tiles are too few to pay for the
//! weights' transform, by F(2 × 2, 3 × 3): 16 instead of 36.
//!
//! Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A for each tile d [6, 6] (or [4, 4]) of the input; summed over channels, the ⊙ is 36 (or 16)
//! matrix products U_ξ [O, C] · V_ξ [C, tiles].
//!
//! V of a group of tiles is made once and shared; U, nine numbers made to 36, would be four times the weights and
//! is made anew for each group, a few output channels at a time, by the thread that uses it.

#![expect(clippy::needless_range_loop, reason = "the index is the second of two")]

mod input;
mod scheme;
mod weights;

use std::array::from_fn;
use std::marker::PhantomData;

use rayon::prelude::*;

pub(super) use self::input::Picture;
use self::input::TransformInput;
use self::scheme::{MOST_INPUTS, MOST_OUTPUTS, Of2, Of4, Scheme};
use self::weights::transform_weights;
use super::cpu::{Added, Sizes};
use super::runs::{Run, Runs};
use crate::gemm::tile::tile;
use crate::gemm::{K_BLOCK, Shared, Start};
use crate::simd::{Isa, Kernel, Vector};
use crate::storage::WeightValues;
use crate::{cache, memory};

/// Values of V at once where there are tiles enough: 8 MiB, which a third-level cache holds.
const GROUP_VALUES: usize = 2 << 20;
/// Tiles of a group for which the weights' transform is little beside what they are multiplied with; so many if they are at most
/// 32 MiB.
const GROUP_TILES: usize = 512;
const MOST_VALUES: usize = 8 << 20;
/// V's room is a multiple of it, 36 MiB, but where it is small.
const ROOM: usize = 9 << 20;
/// Tiles whose products a thread has before it transforms them back: with 48 channels, a second-level cache. Whole panels on every
/// instruction set.
const TILES_AT_ONCE: usize = 144;
/// Output channels of a task, whole register tiles on every instruction set.
const CHANNELS: usize = 48;
/// Input channels whose weights are transformed at once where they are used at once: with 48 output channels and 36 points 1.1 MB.
const CHANNEL_BLOCK: usize = 160;

/// Sides of the tiles of outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Two,
    Four,
}

impl Side {
    /// The tiles with which the transforms pay, if any do: they cost what some channels and tiles of products do. With fewer tiles
    /// than this the weights' transform costs more than the products save.
    pub(super) fn that_pays(s: Sizes) -> Option<Side> {
        let is_3x3 = (s.kernel_h, s.kernel_w, s.stride, s.padding) == (3, 3, 1, 1);
        if !is_3x3 || s.channels < 32 || s.out_channels < 32 {
            return None;
        }
        match (Tiles::of::<Of4>(s).count, Tiles::of::<Of2>(s).count) {
            (16.., _) => Some(Side::Four),
            (_, 16..) => Some(Side::Two),
            _ => None,
        }
    }

    /// What a profile calls it: of the definition's operations it multiplies four ninths, or a quarter.
    pub(super) fn name(self) -> &'static str {
        match self {
            Side::Two => "conv2d 3x3, Winograd of 2x2",
            Side::Four => "conv2d 3x3, Winograd",
        }
    }
}

/// The most output channels of a task. Where the tiles are few and the second-level cache has room, twice as many, and V is read half
/// as often.
fn most_outputs(tiles: usize) -> usize {
    if tiles <= CHANNELS && cache::second_level() >= ROOMY { 2 * CHANNELS } else { CHANNELS }
}

/// The output channels of each task, at most `most` where these are whole tiles of `height` rows: as many tasks as each thread has the same
/// number of, two or more, and each as many tiles as the next. All wait for the last at the end of a group: of 128 channels in
/// tasks of 48, 48 and 32 two threads would have 80 and 48.
fn tasks(channels: usize, height: usize, most: usize) -> Vec<std::ops::Range<usize>> {
    let threads = rayon::current_num_threads();
    let tiles = channels.div_ceil(height);
    let least = if threads == 1 { 1 } else { 2 * threads };
    let count = channels.div_ceil(most).max(least).next_multiple_of(threads).min(tiles);
    let first = |task: usize| (task * tiles / count * height).min(channels);
    (0..count).map(|task| first(task)..first(task + 1)).collect()
}

/// Bytes of a second-level cache that holds twice as many products beside the weights: with 1 MB that takes 1.3 times as long.
const ROOMY: usize = 2 << 20;

/// The tiles of all samples, row by row.
#[derive(Clone, Copy)]
struct Tiles {
    rows: usize,
    columns: usize,
    count: usize,
}

impl Tiles {
    fn of<S: Scheme>(s: Sizes) -> Tiles {
        let (rows, columns) = (s.out_height.div_ceil(S::OUTPUTS), s.out_width.div_ceil(S::OUTPUTS));
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

/// y [B, O, H, W] = w ⋆ x and what is added for x [B, C, H, W], w [O, C, 3, 3], padding 1.
pub(super) fn conv2d(
    isa: Isa,
    x: Picture,
    w: Kernels,
    added: Added,
    s: Sizes,
    side: Side,
) -> Vec<f32> {
    match side {
        Side::Two => by::<Of2>(isa, x, w, added, s),
        Side::Four => by::<Of4>(isa, x, w, added, s),
    }
}

fn by<S: Scheme>(isa: Isa, x: Picture, w: Kernels, added: Added, s: Sizes) -> Vec<f32> {
    let pixels = if x.is_doubled { 4 * x.values.len() } else { x.values.len() };
    assert!(pixels == s.batch * s.channels * s.height * s.width);
    assert!(!x.is_doubled || s.height.is_multiple_of(2) && s.width.is_multiple_of(2));
    assert!(w.values.len() == s.out_channels * s.channels * 9);
    assert!(added.fits(s));
    let tiles = Tiles::of::<S>(s);
    let values = s.batch * s.out_channels * s.out_height * s.out_width;
    let mut y = memory::reserve(values);
    let to = Shared(y.as_mut_ptr());
    let (height, width) = isa.tile();
    let of_tile = S::POINTS * s.channels;
    let most = (GROUP_VALUES / of_tile).max(GROUP_TILES.min(MOST_VALUES / of_tile));
    let most = (most / width).max(2) * width;
    let groups = tiles.count.div_ceil(most);
    let per_group = tiles.count.div_ceil(groups).next_multiple_of(width);
    let panel_size = s.channels * width + LINE;
    // One size for many shapes: a block that is freed goes to the next of its size, and what is not touched costs nothing.
    let v_size = S::POINTS * per_group / width * panel_size;
    let mut v: Vec<f32> =
        memory::reserve(if v_size < ROOM / 16 { v_size } else { v_size.next_multiple_of(ROOM) });
    let v = Shared(v.as_mut_ptr());
    for first in (0..tiles.count).step_by(per_group) {
        let group = first..tiles.count.min(first + per_group);
        let v = Panels { values: v, count: group.len().div_ceil(width), size: panel_size };
        (0..s.channels).into_par_iter().for_each_init(Vec::new, |scratch, channel| {
            let group = group.clone();
            isa.run(TransformInput::<S> {
                x,
                s,
                tiles,
                group,
                channel,
                v,
                scratch,
                scheme: PhantomData,
            });
        });
        let tasks = tasks(s.out_channels, height, most_outputs(group.len()));
        (0..tasks.len()).into_par_iter().for_each_init(Scratch::default, |scratch, task| {
            let channels = tasks[task].clone();
            let group = group.clone();
            isa.run(Multiply::<S> {
                v,
                w,
                added,
                s,
                tiles,
                group,
                channels,
                y: to,
                scratch,
                scheme: PhantomData,
            });
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

#[derive(Default)]
struct Scratch {
    /// The weights of one output channel, where they are kept in half precision; or of some input channels, turned.
    wide: Vec<f32>,
    /// [point, output channel, channel of the block], a cache line between the points.
    u: Vec<f32>,
    /// [point, output channel, tile]
    m: Vec<f32>,
    /// [row, column of the tile, tile], of one output channel.
    out: Vec<f32>,
}

/// Some output channels of a group of tiles.
struct Multiply<'a, S> {
    v: Panels,
    w: Kernels<'a>,
    added: Added<'a>,
    s: Sizes,
    tiles: Tiles,
    group: std::ops::Range<usize>,
    channels: std::ops::Range<usize>,
    y: Shared,
    scratch: &'a mut Scratch,
    scheme: PhantomData<S>,
}

impl<S: Scheme> Kernel for Multiply<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Multiply { v, w, added, s, tiles, group, channels, y, scratch, .. } = self;
        let Scratch { wide, u, m, out } = scratch;
        let outputs = channels.len();
        // Where all tiles are multiplied at once, the weights are transformed as far as a second-level cache holds them; else
        // they are kept for the other tiles.
        let block = match group.len() <= TILES_AT_ONCE {
            true => CHANNEL_BLOCK * CHANNELS / most_outputs(group.len()),
            false => s.channels,
        };
        let block = s.channels.div_ceil(s.channels.div_ceil(block));
        let u = memory::aligned(u, S::POINTS * (outputs * block + LINE));
        let m = memory::aligned(m, S::POINTS * (outputs * TILES_AT_ONCE + LINE));
        let out = memory::aligned(out, S::OUTPUTS * S::OUTPUTS * TILES_AT_ONCE);
        for first in (0..group.len()).step_by(TILES_AT_ONCE) {
            let end = group.len().min(first + TILES_AT_ONCE);
            // The last panel may be a vector or two wide.
            let columns = (end - first).next_multiple_of(V::LANES);
            let m_size = outputs * columns + LINE;
            for start in (0..s.channels).step_by(block) {
                let inputs = start..s.channels.min(start + block);
                let u_size = outputs * inputs.len() + LINE;
                if first == 0 {
                    let to = &mut u[..S::POINTS * u_size];
                    transform_weights::<S, V>(w, s, &channels, &inputs, wide, to);
                }
                for point in 0..S::POINTS {
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
                let tile_group = group.start + first..group.start + end;
                let m = &m[row * columns..];
                transform_output::<S, V>(
                    m,
                    (m_size, columns),
                    out,
                    added,
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

/// Aᵀ m A and what is added, of the tiles `group` of one output channel: point ξ of tile t at `m[ξ · stride + t]`, of which
/// `columns` are there.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "one step of one function, apart to be read alone")]
fn transform_output<S: Scheme, V: Vector>(
    m: &[f32],
    (stride, columns): (usize, usize),
    out: &mut [f32],
    added: Added,
    s: Sizes,
    tiles: Tiles,
    group: std::ops::Range<usize>,
    channel: usize,
    y: Shared,
) {
    assert!(m.len() >= (S::POINTS - 1) * stride + columns && columns.is_multiple_of(V::LANES));
    assert!(columns <= TILES_AT_ONCE && group.len() <= columns);
    let bias = added.bias.map_or(0.0, |bias| bias[channel]);
    assert!(out.len() >= S::OUTPUTS * S::OUTPUTS * TILES_AT_ONCE);
    for tile in (0..columns).step_by(V::LANES) {
        // SAFETY: tile + LANES ≤ columns, so the asserts make room for each point's vector, in `m` and in
        // `out`.
        unsafe {
            let nothing = V::splat(0.0);
            let mut columns = [[nothing; MOST_OUTPUTS]; MOST_INPUTS];
            for (c, column) in columns.iter_mut().enumerate().take(S::INPUTS) {
                *column = S::output(from_fn(|r| match r < S::INPUTS {
                    true => V::load(m.as_ptr().add((S::INPUTS * r + c) * stride + tile)),
                    false => nothing,
                }));
            }
            for r in 0..S::OUTPUTS {
                let row = S::output(from_fn(|c| columns[c][r]));
                for (c, value) in row.into_iter().enumerate().take(S::OUTPUTS) {
                    let value = value.add(V::splat(bias));
                    value.store(out.as_mut_ptr().add((S::OUTPUTS * r + c) * TILES_AT_ONCE + tile));
                }
            }
        }
    }
    for Run { sample, row: tile_row, column, at, length } in tiles.runs(group) {
        let plane = (sample * s.out_channels + channel) * s.out_height * s.out_width;
        let more = added.of_sample(s, sample, channel);
        for r in 0..S::OUTPUTS.min(s.out_height - S::OUTPUTS * tile_row) {
            let row = plane + (S::OUTPUTS * tile_row + r) * s.out_width + S::OUTPUTS * column;
            let whole = (S::OUTPUTS * length).min(s.out_width - S::OUTPUTS * column);
            // SAFETY: the rest of this row from the first tile's column on, or what of it the tiles cover, which
            // no other task writes; the output was reserved whole.
            let row = unsafe {
                std::slice::from_raw_parts_mut(
                    y.at(row).cast::<std::mem::MaybeUninit<f32>>(),
                    whole,
                )
            };
            let from = |c: usize| &out[(S::OUTPUTS * r + c) * TILES_AT_ONCE + at..][..length];
            if S::OUTPUTS != 4 {
                for c in 0..S::OUTPUTS {
                    for (value, from) in
                        row[c.min(whole)..].iter_mut().step_by(S::OUTPUTS).zip(from(c))
                    {
                        value.write(*from + more);
                    }
                }
                continue;
            }
            let (fours, rest) = row.as_chunks_mut::<4>();
            let columns = from(0).iter().zip(from(1)).zip(from(2)).zip(from(3));
            for (four, (((a, b), c), d)) in fours.iter_mut().zip(columns) {
                *four =
                    [*a + more, *b + more, *c + more, *d + more].map(std::mem::MaybeUninit::new);
            }
            for (c, value) in rest.iter_mut().enumerate() {
                value.write(from(c)[length - 1] + more);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_has_as_many_channels() {
        let pool = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("threads")
        };
        for threads in [1, 2, 3, 8] {
            let pool = pool(threads);
            for (height, most) in [(6, 48), (8, 48), (8, 96)] {
                for channels in (1..200).chain([320, 512, 640, 960, 1280, 2560]) {
                    let tasks = pool.install(|| tasks(channels, height, most));
                    let what = format!("{channels} by {height}, {threads} threads: {tasks:?}");
                    // All of them, each once.
                    assert!(
                        tasks[0].start == 0 && tasks[tasks.len() - 1].end == channels,
                        "{what}"
                    );
                    assert!(tasks.windows(2).all(|two| two[0].end == two[1].start), "{what}");
                    let tiles = || tasks.iter().map(|task| task.len().div_ceil(height));
                    let (least, largest) = (tiles().min().unwrap_or(0), tiles().max().unwrap_or(0));
                    assert!(
                        least > 0 && largest <= least + 1 && largest * height <= most,
                        "{what}"
                    );
                    let whole = &tasks[..tasks.len() - 1];
                    assert!(whole.iter().all(|task| task.len().is_multiple_of(height)), "{what}");
                    let is_each_as_many = tasks.len().is_multiple_of(threads);
                    assert!(is_each_as_many || tasks.len() == channels.div_ceil(height), "{what}");
                }
            }
        }
        let of_two = pool(2).install(|| tasks(128, 8, 48));
        let lengths: Vec<usize> = of_two.iter().map(|task| task.len()).collect();
        assert_eq!(lengths, [32; 4]);
    }
}
