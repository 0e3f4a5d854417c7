use candle_core::Result;

use crate::cuda::{Arg, Launch, Plan, Type, int, long};

use super::cpu::Sizes;

/// Output channels and pixels that a block makes: as many as fit while there are blocks for every
/// multiprocessor of a large GPU.
const TILES: [usize; 2] = [128, 64];
const MULTIPROCESSORS: usize = 132;
/// Blocks on a multiprocessor: while one waits for memory another multiplies.
const BLOCKS_AT_ONCE: usize = 2;
/// Elements of K that a block multiplies at once, or a multiple of that.
const STEP: usize = 32;
/// Steps of a part of K: with fewer its sums would cost more, to write and to read, than their products.
const LEAST_STEPS: usize = 8;

/// How the work is shared among blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    tile: usize,
    /// Parts of K.
    parts: usize,
}

impl Share {
    /// Where there are blocks for every multiprocessor, K stays whole. Else it has as many parts as make at most
    /// [`BLOCKS_AT_ONCE`] for each, so that none waits for another's end, of [`LEAST_STEPS`] at least.
    fn of(number_type: Type, s: Sizes) -> Share {
        let count = |tile| blocks(s, tile).iter().product::<usize>();
        let enough = |tile: &usize| count(*tile) >= MULTIPROCESSORS;
        let large = TILES.into_iter().filter(|&tile| number_type != Type::F32 || tile == 64);
        if let Some(tile) = large.into_iter().find(enough) {
            return Share { tile, parts: 1 };
        }
        let tile = TILES[1];
        let room = BLOCKS_AT_ONCE * MULTIPROCESSORS / count(tile).max(1);
        Share { tile, parts: room.min(depth(s).div_ceil(STEP) / LEAST_STEPS).max(1) }
    }
}

/// Elements of K.
fn depth(s: Sizes) -> usize {
    s.channels * s.kernel_h * s.kernel_w
}

fn blocks(s: Sizes, tile: usize) -> [usize; 2] {
    let pixels = s.batch * s.out_height * s.out_width;
    [pixels.div_ceil(tile), s.out_channels.div_ceil(tile)]
}

/// What there is besides the input, and how the weight lies.
#[derive(Clone, Copy)]
pub(super) struct Given {
    pub(super) bias: bool,
    pub(super) of_samples: bool,
    /// The weight begins at a multiple of 16 bytes.
    pub(super) aligned: bool,
}

/// x [B, C, H, W], weight [O, C, kH, kW] of x's type, bias f32 [O] and what is added to each sample's channels [B, O] of x's
/// type, where they are given → [B, O, oH, oW].
///
/// # Errors
/// A size is larger than CUDA counts to.
pub(super) fn plan(number_type: Type, s: Sizes, given: Given) -> Result<Plan> {
    plan_of(Share::of(number_type, s), number_type, s, given)
}

fn plan_of(share: Share, number_type: Type, s: Sizes, given: Given) -> Result<Plan> {
    let kernel = match (s.kernel_h, s.kernel_w) {
        (3, 3) => "3x3",
        (1, 1) => "1x1",
        _ => "any",
    };
    let (depth, tile) = (depth(s), share.tile);
    let steps = depth.div_ceil(STEP);
    let length = steps.div_ceil(share.parts) * STEP;
    // Whole steps may fill fewer parts; each block has something to sum, or there is no split.
    let parts = depth.div_ceil(length.max(1)).max(1);
    let values = s.batch * s.out_channels * s.out_height * s.out_width;
    let whole_rows = given.aligned && depth.is_multiple_of(8);
    let bias = if given.bias { Arg::Input(2) } else { Arg::Null };
    let of_samples = match given.of_samples {
        true => Arg::Input(2 + usize::from(given.bias)),
        false => Arg::Null,
    };
    let mut arguments = vec![
        Arg::Input(0),
        Arg::Input(1),
        bias,
        of_samples,
        Arg::Output,
        if parts > 1 { Arg::Scratch } else { Arg::Null },
        int(length)?,
        Arg::Int(i32::from(whole_rows)),
    ];
    for size in [
        s.batch,
        s.channels,
        s.height,
        s.width,
        s.out_channels,
        s.kernel_h,
        s.kernel_w,
        s.stride,
        s.padding,
        s.out_height,
        s.out_width,
    ] {
        arguments.push(int(size)?);
    }
    // A patch's element and a plane's pixel are counted in 32 bits, a part's end too.
    int(depth + length + 64)?;
    let plane = s.out_height * s.out_width;
    int(plane)?;
    let [x, y] = blocks(s, tile);
    let mut launches = vec![Launch {
        function: format!("conv2d_{kernel}_tile{tile}_{}", number_type.name()),
        grid: [x, y, parts],
        threads: 256,
        arguments,
    }];
    if parts == 1 {
        return Plan::new("conv2d", 0, launches);
    }
    let arguments = vec![
        Arg::Scratch,
        bias,
        of_samples,
        Arg::Output,
        int(parts)?,
        long(values),
        long(plane),
        int(s.out_channels)?,
    ];
    let function = format!("conv2d_join_{}", number_type.name());
    launches.push(Launch::element_wise(function, values, arguments));
    Plan::new("conv2d", parts * values, launches)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::conv2d::cpu;
    use crate::cuda::on_cpu::{self, Found, Input, TYPES};
    use crate::simd::Isa;
    use crate::storage::WeightValues;

    pub(in crate::conv2d) fn sizes(
        batch: usize,
        (channels, out_channels): (usize, usize),
        (height, width): (usize, usize),
        (kernel, stride, padding): (usize, usize, usize),
    ) -> Sizes {
        let out = |size: usize| (size + 2 * padding - kernel) / stride + 1;
        Sizes {
            batch,
            channels,
            height,
            width,
            out_channels,
            kernel_h: kernel,
            kernel_w: kernel,
            stride,
            padding,
            out_height: out(height),
            out_width: out(width),
        }
    }

    struct Case {
        s: Sizes,
        x: Vec<f32>,
        weight: Vec<f32>,
        bias: Vec<f32>,
        of_samples: Vec<f32>,
    }

    impl Case {
        fn new(number_type: Type, s: Sizes) -> Case {
            let depth = s.channels * s.kernel_h * s.kernel_w;
            let x = on_cpu::random(s.batch * s.channels * s.height * s.width, 1);
            Case {
                s,
                x: on_cpu::rounded(number_type, &x),
                weight: on_cpu::rounded(number_type, &on_cpu::random(s.out_channels * depth, 2)),
                bias: on_cpu::random(s.out_channels, 3),
                of_samples: on_cpu::rounded(
                    number_type,
                    &on_cpu::random(s.batch * s.out_channels, 4),
                ),
            }
        }

        fn want(&self, given: Given) -> Vec<f32> {
            let weight = WeightValues::F32(&self.weight);
            let added = cpu::Added {
                bias: given.bias.then_some(&self.bias[..]),
                of_samples: given.of_samples.then_some(&self.of_samples[..]),
            };
            cpu::conv2d(Isa::Portable, &self.x, weight, added, self.s)
        }

        fn run(
            &self,
            text: &str,
            plan: &Plan,
            given: Given,
            (number_type, seed): (Type, u32),
        ) -> Found {
            let Sizes { batch, out_channels, out_height, out_width, .. } = self.s;
            let output = (number_type, batch * out_channels * out_height * out_width);
            let x = Input::Of(number_type, &self.x);
            let mut inputs = vec![x, Input::Of(number_type, &self.weight)];
            inputs.extend(given.bias.then_some(Input::F32(&self.bias)));
            inputs.extend(given.of_samples.then_some(Input::Of(number_type, &self.of_samples)));
            on_cpu::run_source(text, plan, &inputs, output, seed, None)
        }
    }

    const ALL: Given = Given { bias: true, of_samples: true, aligned: true };
    /// Each by itself, and neither.
    const OTHERS: [Given; 3] = [
        Given { of_samples: false, aligned: false, ..ALL },
        Given { bias: false, ..ALL },
        Given { bias: false, of_samples: false, ..ALL },
    ];

    #[test]
    fn agrees_with_the_cpu_s() {
        let text = on_cpu::source("conv2d");
        for number_type in TYPES {
            for s in [
                sizes(1, (1, 1), (1, 1), (1, 1, 0)),
                sizes(2, (8, 70), (9, 7), (3, 1, 1)),
                sizes(1, (40, 130), (6, 12), (3, 2, 1)),
                sizes(2, (3, 5), (11, 13), (3, 1, 1)),
                sizes(3, (72, 66), (5, 9), (1, 1, 0)),
                sizes(1, (3, 10), (16, 16), (8, 8, 0)),
                sizes(1, (2, 3), (5, 5), (2, 3, 5)),
            ] {
                let case = Case::new(number_type, s);
                for share in shares(number_type, &[1]) {
                    for (seed, given) in [(1, ALL), (2, OTHERS[0]), (3, OTHERS[1])] {
                        let plan = plan_of(share, number_type, s, given).expect("small");
                        let found = case.run(&text, &plan, given, (number_type, seed));
                        let (found, want) = (found.expect("runs"), case.want(given));
                        let what = format!("conv2d {s:?} {share:?}");
                        on_cpu::assert_close(number_type, &found, &want, 2e-6, &what);
                    }
                }
            }
        }
    }

    /// Every tile that the type has, with each number of parts.
    fn shares(number_type: Type, parts: &[usize]) -> Vec<Share> {
        let tiles = TILES.into_iter().filter(|&tile| number_type != Type::F32 || tile == 64);
        tiles.flat_map(|tile| parts.iter().map(move |&parts| Share { tile, parts })).collect()
    }

    /// K in parts, the last of them shorter, or as many as there are steps; blocks and threads in several orders, which
    /// must not show.
    #[test]
    fn a_split_over_k_agrees_with_the_cpu_s() {
        let text = on_cpu::source("conv2d");
        for number_type in TYPES {
            for s in [
                sizes(2, (24, 70), (5, 7), (3, 1, 1)),
                sizes(1, (17, 66), (6, 9), (3, 2, 1)),
                sizes(3, (131, 10), (4, 3), (1, 1, 0)),
                sizes(1, (3, 10), (16, 16), (8, 8, 0)),
            ] {
                let case = Case::new(number_type, s);
                for (i, share) in shares(number_type, &[2, 3, 100]).into_iter().enumerate() {
                    let given = [ALL, OTHERS[0], OTHERS[1], OTHERS[2]][i % 4];
                    let plan = plan_of(share, number_type, s, given).expect("small");
                    let parts = plan.launches[0].grid[2];
                    assert!(plan.launches.len() == 2 && parts > 1 && parts <= share.parts);
                    let run =
                        |seed| case.run(&text, &plan, given, (number_type, seed)).expect("runs");
                    let (found, what) = (run(1), format!("conv2d {s:?} {share:?}"));
                    on_cpu::assert_close(number_type, &found, &case.want(given), 2e-6, &what);
                    let is_same = share.parts != 3 || found == run(2);
                    assert!(is_same, "{what}: the order of blocks shows");
                }
            }
        }
    }

    /// A test of the test, on the tensor cores' path and the other.
    #[test]
    fn a_missing_barrier_is_seen() {
        for number_type in [Type::F16, Type::F32] {
            let case = Case::new(number_type, sizes(1, (24, 20), (6, 6), (3, 1, 1)));
            let want = case.want(ALL);
            let texts = on_cpu::without_a_barrier("conv2d", number_type);
            // Two of block_sum, two of each path.
            assert_eq!(texts.len(), 6);
            let of_path = if number_type == Type::F16 { &texts[2..4] } else { &texts[4..] };
            for (text, parts) in of_path.iter().flat_map(|text| [(text, 1), (text, 3)]) {
                let share = Share { tile: 64, parts };
                let plan = plan_of(share, number_type, case.s, ALL).expect("small");
                let wrong = (0..8).any(|seed| {
                    on_cpu::is_wrong(&case.run(text, &plan, ALL, (number_type, seed)), &want, 0.1)
                });
                assert!(wrong, "a kernel without one of its barriers passed, K in {parts}");
            }
        }
    }

    /// Of Stable Diffusion 1.5, two samples where not said otherwise.
    #[test]
    fn small_pictures_get_small_tiles_and_parts_of_k() {
        for (batch, channels, side, kernel, tile, parts) in [
            (2, (320, 320), 64, 3, 128, 1),
            (2, (640, 640), 32, 3, 64, 1),
            (2, (1280, 1280), 16, 3, 64, 1),
            // 80 blocks become 240.
            (1, (1280, 1280), 16, 3, 64, 3),
            // 40 blocks.
            (2, (1280, 1280), 8, 3, 64, 6),
            (2, (2560, 1280), 8, 3, 64, 6),
            (2, (2560, 1280), 8, 1, 64, 6),
            // 20 steps, so no more than two parts.
            (2, (640, 1280), 8, 1, 64, 2),
            (1, (1280, 1280), 8, 3, 64, 13),
            (2, (1280, 1280), 4, 3, 64, 13),
            // The last layer has 128 blocks, the first too few steps.
            (2, (320, 4), 64, 3, 64, 2),
            (1, (4, 320), 32, 3, 64, 1),
        ] {
            let s = sizes(batch, channels, (side, side), (kernel, 1, kernel / 2));
            assert_eq!(Share::of(Type::F16, s), Share { tile, parts }, "{s:?}");
            let plan = plan(Type::F16, s, ALL).expect("small");
            let function = format!("conv2d_{kernel}x{kernel}_tile{tile}_f16");
            assert_eq!((&plan.launches[0].function, plan.launches[0].grid[2]), (&function, parts));
            let values = batch * channels.1 * side * side;
            assert_eq!(plan.scratch, if parts > 1 { parts * values } else { 0 });
        }
        let of_f32 =
            |side| Share::of(Type::F32, sizes(2, (1280, 1280), (side, side), (3, 1, 1))).parts;
        assert_eq!([8, 16, 32].map(of_f32), [6, 1, 1]);
    }
}
