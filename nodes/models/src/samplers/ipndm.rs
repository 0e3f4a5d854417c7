//! iPNDM (Zhang & Chen, arXiv 2204.13902, section 5, after Liu et al.): Adams-Bashforth's coefficients for
//! even steps on the slopes of the probability-flow ODE, from a lower order at the start; order 4, in VE. With
//! the variant for uneven steps.

use candle_core::Tensor;

use super::{Denoiser, Observe, Result, Step, combine};

/// Adams-Bashforth, newest slope first, for 1, 2, 3 and 4 slopes.
const COEFFICIENTS: [&[f64]; 4] = [
    &[1.0],
    &[3.0 / 2.0, -1.0 / 2.0],
    &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
    &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];

/// `sigmas` fall and end where the sample should be.
///
/// # Errors
/// What `model` and `observe` report.
pub fn ipndm(
    sigmas: &[f64],
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    // dx/dσ at the last levels, newest first.
    let mut slopes: Vec<Tensor> = Vec::with_capacity(COEFFICIENTS.len());
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let x0 = model(&x, sigma)?;
        slopes.truncate(COEFFICIENTS.len() - 1);
        slopes.insert(0, combine(&[(1.0 / sigma, &x), (-1.0 / sigma, &x0)])?);
        x = if next > 0.0 {
            let mut terms = vec![(1.0, &x)];
            let coefficients = COEFFICIENTS[slopes.len() - 1];
            terms.extend(coefficients.iter().map(|c| c * (next - sigma)).zip(&slopes));
            combine(&terms)?
        } else {
            x0.clone()
        };
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}

/// As [`ipndm`], with coefficients for uneven steps.
///
/// They are ComfyUI's, which are not quite Adams-Bashforth's from the third slope on: on uneven levels two
/// orders are sure, on even ones three. Pictures that were made with them depend on it.
///
/// # Errors
/// What `model` and `observe` report.
pub fn ipndm_v(
    sigmas: &[f64],
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    let mut slopes: Vec<Tensor> = Vec::with_capacity(COEFFICIENTS.len());
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let x0 = model(&x, sigma)?;
        slopes.truncate(COEFFICIENTS.len() - 1);
        slopes.insert(0, combine(&[(1.0 / sigma, &x), (-1.0 / sigma, &x0)])?);
        x = if next > 0.0 {
            // The step, and those before it, newest first.
            let lengths: Vec<f64> =
                (0..slopes.len()).map(|k| sigmas[i + 1 - k] - sigmas[i - k]).collect();
            let mut terms = vec![(1.0, &x)];
            let coefficients = uneven(&lengths);
            terms.extend(coefficients.into_iter().map(|c| c * (next - sigma)).zip(&slopes));
            combine(&terms)?
        } else {
            x0.clone()
        };
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}

/// The weights of as many slopes as there are `steps`, both newest first.
fn uneven(steps: &[f64]) -> Vec<f64> {
    let mut weights = vec![0.0; steps.len()];
    let mut add = |factor: f64, difference: &[f64]| {
        weights.iter_mut().zip(difference).for_each(|(weight, d)| *weight += factor * d);
    };
    add(1.0, &[1.0]);
    let [h, h_1, ..] = *steps else { return weights };
    // Each further slope adds its difference to those before it.
    add(0.5 * h / h_1, &[1.0, -1.0]);
    let [_, _, h_2, ..] = *steps else { return weights };
    let (ratio, share) = (h_1 / h_2, h / (3.0 * (h + h_1)));
    let second = 0.5 * (1.0 - share * (h * (h + h_1)) / (h_1 * (h_1 + h_2)));
    add(second, &[1.0, -1.0 - ratio, ratio]);
    let [_, _, _, h_3] = *steps else { return weights };
    let third = (0.5 * (1.0 - share) + (1.0 - h / (2.0 * (h + h_1))) * h / (6.0 * (h + h_1 + h_2)))
        * (h * (h + h_1) * (h + h_1 + h_2))
        / (h_1 * (h_1 + h_2) * (h_1 + h_2 + h_3));
    let wide = h_1 * (h_1 + h_2) / (h_2 * (h_2 + h_3));
    add(third, &[1.0, -1.0 - ratio - wide, ratio + wide * (1.0 + h_2 / h_3), -wide * ratio]);
    weights
}
