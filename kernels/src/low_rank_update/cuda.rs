use candle_core::Result;

use crate::cuda::{Arg, Launch, Plan, Type, int};

/// weight [output, input], up f32 [output, rank], down f32 [rank, input] → [output, input] in the weight's type.
///
/// # Errors
/// A size is larger than CUDA counts to.
pub(super) fn plan(
    number_type: Type,
    (output, input, rank): (usize, usize, usize),
) -> Result<Plan> {
    let launch = Launch {
        function: format!("low_rank_update_{}", number_type.name()),
        grid: [input.div_ceil(32), output.div_ceil(32), 1],
        threads: 256,
        arguments: vec![
            Arg::Input(0),
            Arg::Input(1),
            Arg::Input(2),
            Arg::Output,
            int(output)?,
            int(input)?,
            int(rank)?,
        ],
    };
    Plan::new("low_rank_update", 0, vec![launch])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::on_cpu::{self, Input, TYPES};
    use crate::low_rank_update::cpu;
    use crate::simd::Isa;
    use crate::storage::WeightValues;

    #[test]
    fn agrees_with_the_cpu_s() {
        for number_type in TYPES {
            for (output, input, rank) in [(1, 1, 1), (33, 40, 16), (70, 65, 40), (5, 100, 0)] {
                let weight = on_cpu::rounded(number_type, &on_cpu::random(output * input, 1));
                let up = on_cpu::random(output * rank, 2);
                let down = on_cpu::random(rank * input, 3);
                let sizes = (output, input, rank);
                let wide = WeightValues::F32(&weight);
                let want = cpu::low_rank_update(Isa::Portable, wide, &up, &down, sizes);
                let plan = plan(number_type, sizes).expect("small");
                for seed in 0..3 {
                    let inputs =
                        [Input::Of(number_type, &weight), Input::F32(&up), Input::F32(&down)];
                    let to = (number_type, output * input);
                    let found = on_cpu::run(&plan, &inputs, to, seed, None).expect("runs");
                    on_cpu::assert_close(number_type, &found, &want, 1e-6, "low_rank_update");
                }
            }
        }
    }

    /// A test of the test.
    #[test]
    fn a_missing_barrier_is_seen() {
        let sizes = (40, 40, 70);
        let (weight, up, down) =
            (on_cpu::random(1600, 1), on_cpu::random(2800, 2), on_cpu::random(2800, 3));
        let want =
            cpu::low_rank_update(Isa::Portable, WeightValues::F32(&weight), &up, &down, sizes);
        let plan = plan(Type::F32, sizes).expect("small");
        let texts = on_cpu::without_a_barrier("low_rank_update", Type::F32);
        // The first two are block_sum's, which this kernel does not call.
        assert_eq!(texts.len(), 4);
        for text in &texts[2..] {
            let wrong = (0..8).any(|seed| {
                let inputs = [Input::F32(&weight), Input::F32(&up), Input::F32(&down)];
                let to = (Type::F32, 1600);
                let found = on_cpu::run_source(text, &plan, &inputs, to, seed, None);
                on_cpu::is_wrong(&found, &want, 1e-3)
            });
            assert!(wrong, "a kernel without one of its barriers passed");
        }
    }
}
