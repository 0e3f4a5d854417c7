use candle_core::Result;

use crate::cuda::{Arg, Launch, Plan, Type, int};

use super::cpu::Sizes;

/// Output channels and pixels that a block makes: as many as fit while there are blocks for every
/// multiprocessor of a large GPU.
const TILES: [usize; 2] = [128, 64];
const MULTIPROCESSORS: usize = 132;

/// x [B, C, H, W], weight [O, C, kH, kW] of x's type, bias f32 [O] → [B, O, oH, oW].
///
/// `aligned`: the weight begins at a multiple of 16 bytes.
///
/// # Errors
/// A size is larger than CUDA counts to.
pub(super) fn plan(number_type: Type, s: Sizes, bias: bool, aligned: bool) -> Result<Plan> {
    let enough = |tile| blocks(s, tile).iter().product::<usize>() >= MULTIPROCESSORS;
    let tile = match number_type {
        Type::F32 => 64,
        _ => TILES.into_iter().find(|&tile| enough(tile)).unwrap_or(TILES[1]),
    };
    plan_of(tile, number_type, s, bias, aligned)
}

fn blocks(s: Sizes, tile: usize) -> [usize; 3] {
    let pixels = s.batch * s.out_height * s.out_width;
    [pixels.div_ceil(tile), s.out_channels.div_ceil(tile), 1]
}

fn plan_of(tile: usize, number_type: Type, s: Sizes, bias: bool, aligned: bool) -> Result<Plan> {
    let kernel = match (s.kernel_h, s.kernel_w) {
        (3, 3) => "3x3",
        (1, 1) => "1x1",
        _ => "any",
    };
    let whole_rows = aligned && (s.channels * s.kernel_h * s.kernel_w).is_multiple_of(8);
    let mut arguments = vec![
        Arg::Input(0),
        Arg::Input(1),
        if bias { Arg::Input(2) } else { Arg::Null },
        Arg::Output,
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
    // A patch's element and a plane's pixel are counted in 32 bits.
    int(s.channels * s.kernel_h * s.kernel_w + 64)?;
    int(s.out_height * s.out_width)?;
    let launch = Launch {
        function: format!("conv2d_{kernel}_tile{tile}_{}", number_type.name()),
        grid: blocks(s, tile),
        threads: 256,
        arguments,
    };
    Plan::new("conv2d", 0, vec![launch])
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
            }
        }

        fn want(&self, bias: bool) -> Vec<f32> {
            let weight = WeightValues::F32(&self.weight);
            let bias = bias.then_some(&self.bias[..]);
            cpu::conv2d(Isa::Portable, &self.x, weight, bias, self.s)
        }

        fn run(&self, text: &str, number_type: Type, plan: &Plan, seed: u32) -> Found {
            let Sizes { batch, out_channels, out_height, out_width, .. } = self.s;
            let output = (number_type, batch * out_channels * out_height * out_width);
            let x = Input::Of(number_type, &self.x);
            let inputs = [x, Input::Of(number_type, &self.weight), Input::F32(&self.bias)];
            on_cpu::run_source(text, plan, &inputs, output, seed, None)
        }
    }

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
                for tile in TILES.into_iter().filter(|&t| number_type != Type::F32 || t == 64) {
                    for (seed, bias, aligned) in [(1, true, true), (2, false, false)] {
                        let plan = plan_of(tile, number_type, s, bias, aligned).expect("small");
                        let found = case.run(&text, number_type, &plan, seed).expect("runs");
                        let what = format!("conv2d {s:?} tile {tile}");
                        on_cpu::assert_close(number_type, &found, &case.want(bias), 2e-6, &what);
                    }
                }
            }
        }
    }

    /// A test of the test, on the tensor cores' path and the other.
    #[test]
    fn a_missing_barrier_is_seen() {
        for number_type in [Type::F16, Type::F32] {
            let case = Case::new(number_type, sizes(1, (24, 20), (6, 6), (3, 1, 1)));
            let plan = plan_of(64, number_type, case.s, true, true).expect("small");
            let want = case.want(true);
            let texts = on_cpu::without_a_barrier("conv2d", number_type);
            // Two of block_sum, two of each path.
            assert_eq!(texts.len(), 6);
            let of_path = if number_type == Type::F16 { &texts[2..4] } else { &texts[4..] };
            for text in of_path {
                let wrong = (0..8).any(|seed| {
                    on_cpu::is_wrong(&case.run(text, number_type, &plan, seed), &want, 0.1)
                });
                assert!(wrong, "a kernel without one of its barriers passed");
            }
        }
    }

    #[test]
    fn small_pictures_get_small_tiles() {
        let function =
            |s| plan(Type::F16, s, true, true).expect("small").launches[0].function.clone();
        let large = sizes(2, (320, 320), (64, 64), (3, 1, 1));
        assert_eq!(function(large), "conv2d_3x3_tile128_f16");
        let small = sizes(2, (1280, 1280), (8, 8), (3, 1, 1));
        assert_eq!(function(small), "conv2d_3x3_tile64_f16");
    }
}
