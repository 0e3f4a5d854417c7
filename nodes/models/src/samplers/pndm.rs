//! PNDM without its Runge-Kutta start, that is PLMS (Liu et al., arXiv 2202.09778, equations 9 and 12),
//! in VP; as diffusers runs it for Stable Diffusion (`skip_prk_steps`).

use candle_core::Tensor;

use super::{Denoiser, Observe, Result, Schedule, Step, combine};

/// Makes the timesteps of steps to those of evaluations: PLMS evaluates the second one twice.
pub fn repeat_second(timesteps: &mut Vec<usize>) {
    if let Some(&second) = timesteps.get(1) {
        timesteps.insert(1, second);
    }
}

/// `model(x, timestep)` gives the network's output for x [B, C, H, W]; `timesteps` as
/// [`repeat_second`] makes them, `stride` = train steps / steps.
///
/// # Errors
/// What `model` and `observe` report.
pub fn pndm(
    schedule: &Schedule,
    timesteps: &[usize],
    stride: usize,
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    // The outputs of earlier evaluations, newest last; four at most are used.
    let mut history: Vec<Tensor> = Vec::with_capacity(4);
    let mut first_x = None;
    for (i, &evaluated) in timesteps.iter().enumerate() {
        let output = model(&x, evaluated as f64)?;
        // The second evaluation corrects the first step: from the same sample, over the same interval.
        let (from, to) = match i {
            1 => (evaluated + stride, Some(evaluated)),
            _ => (evaluated, evaluated.checked_sub(stride)),
        };
        let slope = if i == 1 {
            combine(&[(0.5, &output), (0.5, &history[0])])?
        } else {
            if history.len() == 4 {
                history.remove(0);
            }
            history.push(output);
            match &history[..] {
                [e1] => e1.clone(),
                [e2, e1] => combine(&[(1.5, e1), (-0.5, e2)])?,
                [e3, e2, e1] => combine(&[(23. / 12., e1), (-16. / 12., e2), (5. / 12., e3)])?,
                [e4, e3, e2, e1, ..] => {
                    combine(&[(55. / 24., e1), (-59. / 24., e2), (37. / 24., e3), (-9. / 24., e4)])?
                }
                [] => unreachable!("an output was pushed just now"),
            }
        };
        let start = match i {
            0 => first_x.insert(x.clone()).clone(),
            1 => first_x.take().unwrap_or_else(|| x.clone()),
            _ => x.clone(),
        };
        let (next, x0) = transfer(schedule, &start, &slope, from, to)?;
        x = next;
        observe(Step { done: i + 1, steps: timesteps.len(), x: &x, x0: &x0 })?;
    }
    Ok(x)
}

/// φ(x, ε, t, t-δ), equation 9, and the x₀ it implies. `to` is None below the first timestep, where ᾱ₀
/// stands.
fn transfer(
    schedule: &Schedule,
    x: &Tensor,
    output: &Tensor,
    from: usize,
    to: Option<usize>,
) -> Result<(Tensor, Tensor)> {
    let alphas = &schedule.alphas_cumprod;
    let a = alphas[from.min(alphas.len() - 1)];
    let b = alphas[to.unwrap_or(0)];
    let eps = schedule.epsilon(x, output, a.sqrt(), (1.0 - a).sqrt())?;
    let x0 = combine(&[(1.0 / a.sqrt(), x), (-((1.0 - a) / a).sqrt(), &eps)])?;
    let denominator = a * (1.0 - b).sqrt() + (a * (1.0 - a) * b).sqrt();
    let next = combine(&[((b / a).sqrt(), x), (-(b - a) / denominator, &eps)])?;
    Ok((next, x0))
}
