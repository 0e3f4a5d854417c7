//! Linear multistep (Adams-Bashforth on uneven levels) for the probability-flow ODE in σ: k-diffusion's
//! `lms`; the multistep methods of Liu et al., arXiv 2202.09778, section 3, in VE.

use candle_core::Tensor;

use super::{Denoiser, Observe, Result, Step, combine};

/// `sigmas` fall and end where the sample should be; each step is made of the slopes at the last `order` levels.
///
/// # Errors
/// What `model` and `observe` report.
pub fn lms(
    sigmas: &[f64],
    order: usize,
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    // dx/dσ at the last levels, newest first.
    let mut slopes: Vec<Tensor> = Vec::new();
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let x0 = model(&x, sigma)?;
        slopes.truncate(order.saturating_sub(1));
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

/// ∫ from `a` to `b` of the Lagrange polynomial that is 1 at `nodes[j]` and 0 at the other nodes: exact, by Gauss
/// and Legendre's points, of which n are exact up to the power 2n - 1.
fn basis_integral(nodes: &[f64], j: usize, a: f64, b: f64) -> f64 {
    let basis = |at: f64| -> f64 {
        let others = nodes.iter().enumerate().filter(|(k, _)| *k != j);
        others.map(|(_, node)| (at - node) / (nodes[j] - node)).product()
    };
    let (centre, half) = (0.5 * (a + b), 0.5 * (b - a));
    // Up to four nodes three points are enough.
    if nodes.len() <= 4 {
        let offset = half * 0.6f64.sqrt();
        return half / 9.0
            * (5.0 * basis(centre - offset) + 8.0 * basis(centre) + 5.0 * basis(centre + offset));
    }
    let points = gauss_legendre(nodes.len().div_ceil(2));
    half * points.into_iter().map(|(at, weight)| weight * basis(centre + half * at)).sum::<f64>()
}

/// Gauss and Legendre's `count` points in -1..1 with their weights: the roots of the Legendre polynomial, by Newton's
/// method.
fn gauss_legendre(count: usize) -> Vec<(f64, f64)> {
    let n = count as f64;
    let point = |i: usize| {
        let mut x = (std::f64::consts::PI * (i as f64 + 0.75) / (n + 0.5)).cos();
        let mut slope = 1.0;
        for _ in 0..100 {
            // The polynomial of this degree and of the one below, by their recurrence.
            let (mut value, mut before) = (1.0, 0.0);
            for k in 0..count {
                let k = k as f64;
                (value, before) = (((2.0 * k + 1.0) * x * value - k * before) / (k + 1.0), value);
            }
            slope = n * (x * value - before) / (x * x - 1.0);
            let step = value / slope;
            x -= step;
            if step.abs() < 1e-15 {
                break;
            }
        }
        (x, 2.0 / ((1.0 - x * x) * slope * slope))
    };
    (0..count).map(point).collect()
}
