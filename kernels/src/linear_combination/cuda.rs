use crate::cuda::{Arg, Plan, Type, long};

use super::MOST;

/// x₀ … [values] and as many factors, at most [`MOST`] → y [values].
pub(super) fn plan(
    number_type: Type,
    factors: &[f32],
    values: usize,
    of_differences: bool,
) -> Plan {
    let given = |i| if i < factors.len() { Arg::Input(i) } else { Arg::Null };
    let mut arguments: Vec<Arg> = (0..MOST).map(given).collect();
    arguments.extend((0..MOST).map(|i| Arg::Float(factors.get(i).copied().unwrap_or(0.0))));
    arguments.extend([Arg::Int(i32::from(of_differences)), Arg::Output, long(values)]);
    let function = format!("linear_combination_{}", number_type.name());
    Plan::element_wise("linear_combination", function, values, arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::on_cpu::{self, Input, TYPES};
    use crate::linear_combination::cpu;

    #[test]
    fn agrees_with_the_cpu_s() {
        let factors = [1.0, -1.7, 0.25, 7.5, -0.5];
        for number_type in TYPES {
            for values in [1, 255, 1000] {
                let random = |seed| on_cpu::rounded(number_type, &on_cpu::random(values, seed));
                let x: Vec<Vec<f32>> = (1..=MOST as u64).map(random).collect();
                for (count, of_differences) in
                    (1..=MOST).flat_map(|count| [(count, false), (count, true)])
                {
                    let inputs: Vec<&[f32]> = x[..count].iter().map(|x| &x[..]).collect();
                    let factors = &factors[..count];
                    let want = cpu::linear_combination(factors, &inputs, of_differences);
                    let plan = plan(number_type, factors, values, of_differences);
                    let given: Vec<Input> =
                        inputs.iter().map(|x| Input::Of(number_type, x)).collect();
                    for threads in [None, Some(96)] {
                        let found = on_cpu::run(&plan, &given, (number_type, values), 5, threads);
                        let found = found.expect("runs");
                        on_cpu::assert_close(number_type, &found, &want, 5e-7, "combination");
                    }
                }
            }
        }
    }
}
