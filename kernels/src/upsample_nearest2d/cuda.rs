use candle_core::Result;

use crate::cuda::{Arg, Plan, Type, int, long};

/// x [planes, h, w] → y [planes, height, width].
///
/// # Errors
/// A side is longer than CUDA's `int` counts to.
pub(super) fn plan(
    number_type: Type,
    planes: usize,
    (h, w): (usize, usize),
    (height, width): (usize, usize),
) -> Result<Plan> {
    let outputs = planes * height * width;
    let arguments = vec![
        Arg::Input(0),
        Arg::Output,
        int(h)?,
        int(w)?,
        int(height)?,
        int(width)?,
        long(outputs),
    ];
    let function = format!("upsample_nearest2d_{}", number_type.name());
    Ok(Plan::element_wise("upsample_nearest2d", function, outputs, arguments))
}

/// dy [planes, height, width] → dx [planes, h, w].
///
/// # Errors
/// A side is longer than CUDA's `int` counts to.
pub(super) fn plan_backward(
    number_type: Type,
    planes: usize,
    (h, w): (usize, usize),
    (height, width): (usize, usize),
) -> Result<Plan> {
    let values = planes * h * w;
    let sides = [int(h)?, int(w)?, int(height)?, int(width)?];
    let mut arguments = vec![Arg::Input(0), Arg::Output];
    arguments.extend(sides);
    arguments.push(long(values));
    let function = format!("upsample_nearest2d_backward_{}", number_type.name());
    Ok(Plan::element_wise("upsample_nearest2d", function, values, arguments))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::on_cpu::{self, Input, TYPES};
    use crate::upsample_nearest2d::backward::upsample_backward;
    use crate::upsample_nearest2d::cpu;

    #[test]
    fn agrees_with_the_cpu_s() {
        for number_type in TYPES {
            for (from, to) in [((4, 6), (8, 12)), ((5, 3), (7, 10)), ((9, 8), (4, 1))] {
                let x = on_cpu::random(3 * from.0 * from.1, 4);
                let x = on_cpu::rounded(number_type, &x);
                let want = cpu::upsample_nearest2d(&x, from, to);
                let plan = plan(number_type, 3, from, to).expect("small");
                for threads in [None, Some(64), Some(100)] {
                    let input = [Input::Of(number_type, &x)];
                    let output = (number_type, want.len());
                    let found = on_cpu::run(&plan, &input, output, 5, threads).expect("runs");
                    assert_eq!(found, want);
                }
            }
        }
    }

    #[test]
    fn the_backward_agrees_with_the_cpu_s() {
        for number_type in TYPES {
            for (from, to) in [((4, 6), (8, 12)), ((5, 3), (7, 10)), ((9, 8), (4, 1))] {
                let upstream = on_cpu::random(3 * to.0 * to.1, 4);
                let upstream = on_cpu::rounded(number_type, &upstream);
                let want = upsample_backward(&upstream, from, to);
                let plan = plan_backward(number_type, 3, from, to).expect("small");
                for threads in [None, Some(64), Some(100)] {
                    let input = [Input::Of(number_type, &upstream)];
                    let output = (number_type, want.len());
                    let found = on_cpu::run(&plan, &input, output, 5, threads).expect("runs");
                    on_cpu::assert_close(number_type, &found, &want, 2e-7, "upsample_backward");
                }
            }
        }
    }
}
