use crate::add::{VALUES, in_tasks};
use crate::memory;

/// `inputs` are of one length, at least one, and `factors` theirs.
pub(super) fn linear_combination(
    factors: &[f32],
    inputs: &[&[f32]],
    of_differences: bool,
) -> Vec<f32> {
    let (first, others) = (inputs[0], &inputs[1..]);
    assert!(factors.len() == inputs.len() && others.iter().all(|x| x.len() == first.len()));
    let write = |sums: &mut [f32]| {
        in_tasks(sums, VALUES, |start, sums| {
            let first = &first[start..][..sums.len()];
            for (sum, x) in sums.iter_mut().zip(first) {
                // The tensor library adds a zero to a product, which takes a zero's sign away.
                *sum = x * factors[0] + 0.0;
            }
            for (x, factor) in others.iter().zip(&factors[1..]) {
                let x = &x[start..][..sums.len()];
                if of_differences {
                    for ((sum, x), first) in sums.iter_mut().zip(x).zip(first) {
                        *sum += (x - first) * factor;
                    }
                } else {
                    for (sum, x) in sums.iter_mut().zip(x) {
                        *sum += x * factor;
                    }
                }
            }
        });
    };
    // SAFETY: the tasks are all values, and each is written before it is added to.
    unsafe { memory::written_by(first.len(), write) }
}
