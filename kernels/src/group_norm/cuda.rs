use candle_core::Result;

use crate::cuda::{Arg, Launch, Plan, Type, int, long};

/// x [batch, channels, pixels] in `groups`, with SiLU or without.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) channels: usize,
    pub(super) pixels: usize,
    pub(super) groups: usize,
}

/// Values of a piece, which one block reads: few enough that a VAE's group gets many blocks, many enough
/// that joining the pieces costs nothing.
const PIECE: usize = 8192;

/// x, weight and bias f32 [channels] → y like x.
///
/// # Errors
/// A size is larger than CUDA counts to.
pub(super) fn plan(number_type: Type, s: Sizes, eps: f64, silu: bool) -> Result<Plan> {
    pieces_of(PIECE, number_type, s, eps, silu)
}

fn pieces_of(piece: usize, number_type: Type, s: Sizes, eps: f64, silu: bool) -> Result<Plan> {
    let n = s.channels / s.groups * s.pixels;
    let (pieces, rows) = (n.div_ceil(piece), s.batch * s.groups);
    let launch = |function: &str, arguments| Launch {
        function: format!("{function}_{}", number_type.name()),
        grid: [pieces, rows, 1],
        threads: 256,
        arguments,
    };
    let moments = vec![Arg::Input(0), Arg::Scratch, long(n), int(piece)?];
    let result = vec![
        Arg::Input(0),
        Arg::Input(1),
        Arg::Input(2),
        Arg::Scratch,
        Arg::Output,
        long(n),
        int(piece)?,
        long(s.pixels),
        int(s.groups)?,
        Arg::Float(eps as f32),
    ];
    let function = if silu { "group_norm_silu" } else { "group_norm" };
    let launches = vec![launch("group_norm_moments", moments), launch(function, result)];
    Plan::new("group_norm", 2 * pieces * rows, launches)
}

/// x, weight and bias f32 [2 · channels] one after the other, dy → dx like x: a block for each (sample, group).
///
/// # Errors
/// A size is larger than CUDA counts to.
pub(super) fn plan_backward(number_type: Type, s: Sizes, eps: f64, silu: bool) -> Result<Plan> {
    let n = s.channels / s.groups * s.pixels;
    let function = if silu { "group_norm_silu_backward" } else { "group_norm_backward" };
    let launch = Launch {
        function: format!("{function}_{}", number_type.name()),
        grid: [s.batch * s.groups, 1, 1],
        threads: 256,
        arguments: vec![
            Arg::Input(0),
            Arg::Input(1),
            Arg::Input(2),
            Arg::Output,
            long(n),
            long(s.pixels),
            int(s.groups)?,
            Arg::Float(eps as f32),
        ],
    };
    Plan::new("group_norm", 0, vec![launch])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::on_cpu::{self, Input, TYPES};
    use crate::group_norm::backward::group_norm_backward;
    use crate::group_norm::cpu;
    use crate::simd::Isa;

    struct Case {
        sizes: Sizes,
        x: Vec<f32>,
        weight: Vec<f32>,
        bias: Vec<f32>,
    }

    impl Case {
        fn new(number_type: Type, sizes: Sizes) -> Case {
            let x = on_cpu::random(sizes.batch * sizes.channels * sizes.pixels, 1);
            let x: Vec<f32> = x.iter().map(|x| 5.0 + 2.0 * x).collect();
            let x = on_cpu::rounded(number_type, &x);
            let of_channels = |seed| on_cpu::random(sizes.channels, seed);
            Case { sizes, x, weight: of_channels(2), bias: of_channels(3) }
        }

        fn want(&self, silu: bool) -> Vec<f32> {
            let Case { sizes, x, weight, bias } = self;
            let parameters =
                cpu::Parameters { weight, bias, groups: sizes.groups, eps: 1e-5, silu };
            cpu::group_norm(Isa::Portable, x, sizes.pixels, parameters)
        }

        fn inputs(&self, number_type: Type) -> [Input<'_>; 3] {
            [Input::Of(number_type, &self.x), Input::F32(&self.weight), Input::F32(&self.bias)]
        }
    }

    #[test]
    fn agrees_with_the_cpu_s() {
        let sizes = |batch, channels, pixels, groups| Sizes { batch, channels, pixels, groups };
        for number_type in TYPES {
            for sizes in [sizes(1, 1, 1, 1), sizes(2, 6, 35, 3), sizes(1, 8, 90, 2)] {
                let case = Case::new(number_type, sizes);
                for silu in [false, true] {
                    let whole = plan(number_type, sizes, 1e-5, silu).expect("small");
                    let pieces = pieces_of(33, number_type, sizes, 1e-5, silu).expect("small");
                    for (plan, seed, threads) in [(whole, 1, None), (pieces, 3, Some(96))] {
                        let output = (number_type, case.x.len());
                        let inputs = case.inputs(number_type);
                        let found = on_cpu::run(&plan, &inputs, output, seed, threads);
                        let found = found.expect("runs");
                        let want = case.want(silu);
                        on_cpu::assert_close(number_type, &found, &want, 2e-6, "group_norm");
                    }
                }
            }
        }
    }

    /// A test of the test: with a barrier left out, the result is wrong.
    #[test]
    fn a_missing_barrier_is_seen() {
        let sizes = Sizes { batch: 2, channels: 4, pixels: 100, groups: 2 };
        let case = Case::new(Type::F32, sizes);
        let plan = pieces_of(64, Type::F32, sizes, 1e-5, false).expect("small");
        let want = case.want(false);
        let texts = on_cpu::without_a_barrier("group_norm", Type::F32);
        assert_eq!(texts.len(), 2, "block_sum has two barriers");
        for text in texts {
            let wrong = (0..8).any(|seed| {
                let (inputs, output) = (case.inputs(Type::F32), (Type::F32, case.x.len()));
                let found = on_cpu::run_source(&text, &plan, &inputs, output, seed, Some(128));
                on_cpu::is_wrong(&found, &want, 1e-3)
            });
            assert!(wrong, "a kernel without one of its barriers passed");
        }
    }

    #[test]
    fn the_backward_agrees_with_the_cpu_s() {
        let sizes = |batch, channels, pixels, groups| Sizes { batch, channels, pixels, groups };
        for number_type in TYPES {
            for sizes in [sizes(1, 1, 1, 1), sizes(2, 6, 35, 3), sizes(1, 8, 90, 2)] {
                let case = Case::new(number_type, sizes);
                let upstream = on_cpu::rounded(number_type, &on_cpu::random(case.x.len(), 4));
                let both = [&case.weight[..], &case.bias[..]].concat();
                for silu in [false, true] {
                    let (weight, bias) = (&case.weight[..], &case.bias[..]);
                    let parameters =
                        cpu::Parameters { weight, bias, groups: sizes.groups, eps: 1e-5, silu };
                    let want = group_norm_backward(
                        Isa::Portable,
                        &case.x,
                        &upstream,
                        sizes.pixels,
                        parameters,
                    );
                    let plan = plan_backward(number_type, sizes, 1e-5, silu).expect("small");
                    for (seed, threads) in [(1, None), (3, Some(96))] {
                        let inputs = [
                            Input::Of(number_type, &case.x),
                            Input::F32(&both),
                            Input::Of(number_type, &upstream),
                        ];
                        let output = (number_type, want.len());
                        let found = on_cpu::run(&plan, &inputs, output, seed, threads);
                        let found = found.expect("runs");
                        on_cpu::assert_close(number_type, &found, &want, 3e-6, "group_norm");
                    }
                }
            }
        }
    }
}
