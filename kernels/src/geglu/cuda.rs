use crate::cuda::{Arg, Plan, Type, long};

/// x [rows, 2n] → y [rows, n].
pub(super) fn plan(number_type: Type, rows: usize, n: usize) -> Plan {
    let outputs = rows * n;
    let arguments = vec![Arg::Input(0), Arg::Output, long(n), long(outputs)];
    Plan::element_wise("geglu", format!("geglu_{}", number_type.name()), outputs, arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::on_cpu::{self, Input, TYPES};
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
}
