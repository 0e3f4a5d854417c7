use crate::cuda::{Arg, Plan, Type, long};

use super::Activation;

/// x [values] → y [values].
pub(super) fn plan(activation: Activation, number_type: Type, values: usize) -> Plan {
    let function = format!("{}_{}", activation.function(), number_type.name());
    let arguments = vec![Arg::Input(0), Arg::Output, long(values)];
    Plan::element_wise("activation", function, values, arguments)
}

/// x [values], dy [values] → dx [values].
pub(super) fn plan_backward(activation: Activation, number_type: Type, values: usize) -> Plan {
    let function = format!("{}_{}", activation.gradient_function(), number_type.name());
    let arguments = vec![Arg::Input(0), Arg::Input(1), Arg::Output, long(values)];
    Plan::element_wise("activation", function, values, arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::backward;
    use crate::cuda::on_cpu::{self, Input, TYPES};
    use crate::simd::Isa;

    #[test]
    fn agrees_with_the_cpu_s() {
        for number_type in TYPES {
            for values in [1, 255, 1000] {
                let mut x: Vec<f32> = on_cpu::random(values, 1).iter().map(|x| x * 4.0).collect();
                x[0] = f32::NAN;
                let x = on_cpu::rounded(number_type, &x);
                for activation in [Activation::Silu, Activation::GeluErf, Activation::QuickGelu] {
                    let want = activation.on_cpu(Isa::Portable, &x);
                    let plan = plan(activation, number_type, values);
                    for threads in [None, Some(64), Some(100)] {
                        let input = [Input::Of(number_type, &x)];
                        let found = on_cpu::run(&plan, &input, (number_type, values), 7, threads);
                        let found = found.expect("runs");
                        on_cpu::assert_close(number_type, &found, &want, 3e-7, "activation");
                    }
                }
            }
        }
    }

    #[test]
    fn the_backward_agrees_with_the_cpu_s() {
        for number_type in TYPES {
            for values in [1, 255, 1000] {
                let x: Vec<f32> = on_cpu::random(values, 1).iter().map(|x| x * 4.0).collect();
                let x = on_cpu::rounded(number_type, &x);
                let upstream = on_cpu::rounded(number_type, &on_cpu::random(values, 2));
                for activation in [Activation::Silu, Activation::GeluErf, Activation::QuickGelu] {
                    let want = backward::on_cpu(activation, Isa::Portable, &x, &upstream);
                    let plan = plan_backward(activation, number_type, values);
                    for threads in [None, Some(64), Some(100)] {
                        let inputs =
                            [Input::Of(number_type, &x), Input::Of(number_type, &upstream)];
                        let found = on_cpu::run(&plan, &inputs, (number_type, values), 7, threads);
                        let found = found.expect("runs");
                        on_cpu::assert_close(number_type, &found, &want, 5e-7, "activation");
                    }
                }
            }
        }
    }
}
