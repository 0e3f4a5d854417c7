use candle_core::Result;

use crate::cuda::{Arg, Plan, Type, int, long};

/// x [rows, n], bias f32 [n] → x + bias.
///
/// # Errors
/// n is larger than CUDA's `int`.
pub(super) fn plan(number_type: Type, rows: usize, n: usize) -> Result<Plan> {
    let arguments = vec![Arg::Input(0), Arg::Input(1), Arg::Output, int(n)?, long(rows * n)];
    let function = format!("add_bias_{}", number_type.name());
    Ok(Plan::element_wise("linear", function, rows * n, arguments))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::on_cpu::{self, Input, TYPES};

    #[test]
    fn adds_to_every_row() {
        for number_type in TYPES {
            for (rows, n) in [(1, 1), (5, 33), (3, 700)] {
                let x = on_cpu::rounded(number_type, &on_cpu::random(rows * n, 2));
                let bias = on_cpu::random(n, 3);
                let want: Vec<f32> =
                    x.iter().zip(bias.iter().cycle()).map(|(x, b)| x + b).collect();
                let plan = plan(number_type, rows, n).expect("small");
                for threads in [None, Some(64), Some(100)] {
                    let inputs = [Input::Of(number_type, &x), Input::F32(&bias)];
                    let output = (number_type, rows * n);
                    let found = on_cpu::run(&plan, &inputs, output, 3, threads).expect("runs");
                    on_cpu::assert_close(number_type, &found, &want, 1e-7, "add_bias");
                }
            }
        }
    }
}
