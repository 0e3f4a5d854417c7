//! iPNDM (Zhang & Chen, arXiv 2204.13902, section 5, after Liu et al.): Adams-Bashforth's coefficients for
//! even steps on the slopes of the probability-flow ODE, from a lower order at the start; order 4, in VE.

use candle_core::{Result, Tensor};

use super::{Denoiser, Observe, Step, combine};

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
