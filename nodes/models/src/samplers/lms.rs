//! Linear multistep (Adams-Bashforth on uneven levels) for the probability-flow ODE in σ: k-diffusion's
//! `lms`, order 4; the multistep methods of Liu et al., arXiv 2202.09778, section 3, in VE.

use candle_core::Tensor;

use super::{Denoiser, Observe, Result, Step, combine};

const ORDER: usize = 4;

/// `sigmas` fall and end where the sample should be.
///
/// # Errors
/// What `model` and `observe` report.
pub fn lms(
    sigmas: &[f64],
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    // dx/dσ at the last levels, newest first.
    let mut slopes: Vec<Tensor> = Vec::with_capacity(ORDER);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let x0 = model(&x, sigma)?;
        slopes.truncate(ORDER - 1);
        slopes.insert(0, combine(&[(1.0 / sigma, &x), (-1.0 / sigma, &x0)])?);
        x = if next > 0.0 {
            let levels: Vec<f64> = sigmas[..=i].iter().rev().take(slopes.len()).copied().collect();
            let mut terms = vec![(1.0, &x)];
            for (j, slope) in slopes.iter().enumerate() {
                terms.push((basis_integral(&levels, j, sigma, next), slope));
            }
            combine(&terms)?
        } else {
            x0.clone()
        };
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}

/// ∫ from `a` to `b` of the Lagrange polynomial that is 1 at `nodes[j]` and 0 at the other nodes: exact
/// for the four nodes at most, by Gauss and Legendre's three points.
fn basis_integral(nodes: &[f64], j: usize, a: f64, b: f64) -> f64 {
    let basis = |at: f64| -> f64 {
        let others = nodes.iter().enumerate().filter(|(k, _)| *k != j);
        others.map(|(_, node)| (at - node) / (nodes[j] - node)).product()
    };
    let (centre, half) = (0.5 * (a + b), 0.5 * (b - a));
    let offset = half * 0.6f64.sqrt();
    half / 9.0 * (5.0 * basis(centre - offset) + 8.0 * basis(centre) + 5.0 * basis(centre + offset))
}
