use crate::cuda::{Arg, Plan, Type, long};

/// x [rows, 2n] → y [rows, n].
pub(super) fn plan(number_type: Type, rows: usize, n: usize) -> Plan {
    let outputs = rows * n;
    let arguments = vec![Arg::Input(0), Arg::Output, long(n), long(outputs)];
    Plan::element_wise("geglu", format!("geglu_{}", number_type.name()), outputs, arguments)
}

/// x [rows, 2n], dy [rows, n] → dx [rows, 2n]; a thread for each pair.
pub(super) fn plan_backward(number_type: Type, rows: usize, n: usize) -> Plan {
    let pairs = rows * n;
    let arguments = vec![Arg::Input(0), Arg::Input(1), Arg::Output, long(n), long(pairs)];
    Plan::element_wise("geglu", format!("geglu_backward_{}", number_type.name()), pairs, arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::on_cpu::{self, Input, TYPES};
    use crate::geglu::backward::geglu_backward;
    use crate::geglu::cpu;
    use crate::simd::Isa;

    #[test]
    fn agrees_with_the_cpu_s() {
        for number_type in TYPES {
            for (rows, n) in [(1, 1), (5, 33), (7, 160)] {
                let x = on_cpu::rounded(number_type, &on_cpu::random(rows * 2 * n, 2));
                let want = cpu::geglu(Isa::Portable, &x, n);
                let plan = plan(number_type, rows, n);
                for threads in [None, Some(64), Some(100)] {
                    let input = [Input::Of(number_type, &x)];
                    let found = on_cpu::run(&plan, &input, (number_type, rows * n), 3, threads);
                    let found = found.expect("runs");
                    on_cpu::assert_close(number_type, &found, &want, 3e-7, "geglu");
                }
            }
        }
    }

    #[test]
    fn the_backward_agrees_with_the_cpu_s() {
        for number_type in TYPES {
            for (rows, n) in [(1, 1), (5, 33), (7, 160)] {
                let x = on_cpu::rounded(number_type, &on_cpu::random(rows * 2 * n, 2));
                let upstream = on_cpu::rounded(number_type, &on_cpu::random(rows * n, 3));
                let want = geglu_backward(Isa::Portable, &x, &upstream, n);
                let plan = plan_backward(number_type, rows, n);
                for threads in [None, Some(64), Some(100)] {
                    let inputs = [Input::Of(number_type, &x), Input::Of(number_type, &upstream)];
                    let output = (number_type, want.len());
                    let found = on_cpu::run(&plan, &inputs, output, 3, threads).expect("runs");
                    on_cpu::assert_close(number_type, &found, &want, 5e-7, "geglu_backward");
                }
            }
        }
    }
}
