use candle_core::Result;

use crate::cuda::{Arg, Launch, Plan, Type, int};

/// x [rows, n], weight and bias f32 [n] → y [rows, n].
///
/// # Errors
/// A size is larger than CUDA counts to.
pub(super) fn plan(number_type: Type, rows: usize, n: usize, eps: f64) -> Result<Plan> {
    let launch = Launch {
        function: format!("layer_norm_{}", number_type.name()),
        grid: [rows, 1, 1],
        threads: if n <= 512 { 128 } else { 256 },
        arguments: vec![
            Arg::Input(0),
            Arg::Input(1),
            Arg::Input(2),
            Arg::Output,
            int(n)?,
            Arg::Float(eps as f32),
        ],
    };
    Plan::new("layer_norm", 0, vec![launch])
}

/// x [rows, n], weight f32 [n], dy [rows, n] → dx [rows, n].
///
/// # Errors
/// A size is larger than CUDA counts to.
pub(super) fn plan_backward(number_type: Type, rows: usize, n: usize, eps: f64) -> Result<Plan> {
    let mut plan = plan(number_type, rows, n, eps)?;
    for launch in &mut plan.launches {
        launch.function = format!("layer_norm_backward_{}", number_type.name());
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::on_cpu::{self, Input, TYPES};
    use crate::layer_norm::backward::layer_norm_backward;
    use crate::layer_norm::cpu;
    use crate::simd::Isa;

    fn case(number_type: Type, rows: usize, n: usize) -> [Vec<f32>; 3] {
        let x: Vec<f32> = on_cpu::random(rows * n, 1).iter().map(|x| 3.0 + 2.0 * x).collect();
        [on_cpu::rounded(number_type, &x), on_cpu::random(n, 2), on_cpu::random(n, 3)]
    }

    #[test]
    fn agrees_with_the_cpu_s() {
        for number_type in TYPES {
            for (rows, n) in [(3, 1), (2, 77), (4, 320), (1, 768)] {
                let [x, weight, bias] = case(number_type, rows, n);
                let want = cpu::layer_norm(Isa::Portable, &x, &weight, &bias, 1e-5);
                let plan = plan(number_type, rows, n, 1e-5).expect("small");
                for (seed, threads) in [(1, None), (2, Some(64)), (3, Some(32))] {
                    let inputs =
                        [Input::Of(number_type, &x), Input::F32(&weight), Input::F32(&bias)];
                    let output = (number_type, rows * n);
                    let found = on_cpu::run(&plan, &inputs, output, seed, threads).expect("runs");
                    on_cpu::assert_close(number_type, &found, &want, 2e-6, "layer_norm");
                }
            }
        }
    }

    #[test]
    fn the_backward_agrees_with_the_cpu_s() {
        for number_type in TYPES {
            for (rows, n) in [(3, 1), (2, 77), (4, 320), (1, 768)] {
                let [x, weight, _] = case(number_type, rows, n);
                let upstream = on_cpu::rounded(number_type, &on_cpu::random(rows * n, 4));
                let want = layer_norm_backward(Isa::Portable, &x, &weight, &upstream, 1e-5);
                let plan = plan_backward(number_type, rows, n, 1e-5).expect("small");
                for (seed, threads) in [(1, None), (2, Some(64)), (3, Some(32))] {
                    let inputs = [
                        Input::Of(number_type, &x),
                        Input::F32(&weight),
                        Input::Of(number_type, &upstream),
                    ];
                    let output = (number_type, rows * n);
                    let found = on_cpu::run(&plan, &inputs, output, seed, threads).expect("runs");
                    on_cpu::assert_close(number_type, &found, &want, 3e-6, "layer_norm_backward");
                }
            }
        }
    }
}
