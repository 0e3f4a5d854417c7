//! DEIS (Zhang & Chen, arXiv 2204.13902), tAB of order 3, in VE: the slopes of the probability-flow ODE are
//! extrapolated by polynomials in the time of the continuous VP process (Song et al., arXiv 2011.13456).

use candle_core::Tensor;

use super::{Denoiser, Observe, Result, Step, combine};

const ORDER: usize = 3;
/// Points at which a coefficient's integral is summed: the sum of ComfyUI's source, whose value it is.
const POINTS: usize = 10_000;

/// `sigmas` fall and end where the sample should be.
///
/// # Errors
/// What `model` and `observe` report.
pub fn deis(
    sigmas: &[f64],
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    let process = Process::new();
    let times: Vec<f64> = sigmas.iter().map(|sigma| process.time(*sigma)).collect();
    // dx/dσ at the last levels, newest first.
    let mut slopes: Vec<Tensor> = Vec::with_capacity(ORDER);
    for (i, pair) in sigmas.windows(2).enumerate() {
        let (sigma, next) = (pair[0], pair[1]);
        let x0 = model(&x, sigma)?;
        slopes.truncate(ORDER - 1);
        slopes.insert(0, combine(&[(1.0 / sigma, &x), (-1.0 / sigma, &x0)])?);
        x = if next <= 0.0 {
            x0.clone()
        } else if slopes.len() == 1 {
            combine(&[(1.0, &x), (next - sigma, &slopes[0])])?
        } else {
            let nodes: Vec<f64> = times[..=i].iter().rev().take(slopes.len()).copied().collect();
            let coefficients = process.coefficients(&nodes, times[i], times[i + 1]);
            let mut terms = vec![(1.0, &x)];
            terms.extend(coefficients.into_iter().zip(&slopes));
            combine(&terms)?
        };
        observe(Step { done: i + 1, steps, x: &x, x0: &x0 })?;
    }
    Ok(x)
}

/// The VP process with linear β whose σ is 0.002 at time 0.001 and 80 at time 1, as EDM parametrises it
/// (Karras et al., arXiv 2206.00364, table 1).
struct Process {
    beta_d: f64,
    beta_min: f64,
}

impl Process {
    fn new() -> Process {
        const EPSILON: f64 = 1e-3;
        let (low, high) = ((0.002f64 * 0.002).ln_1p(), (80f64 * 80.0).ln_1p());
        let beta_d = 2.0 * (low / EPSILON - high) / (EPSILON - 1.0);
        Process { beta_d, beta_min: high - 0.5 * beta_d }
    }

    /// The time at which the process has σ.
    fn time(&self, sigma: f64) -> f64 {
        let root = self.beta_min * self.beta_min + 2.0 * self.beta_d * (sigma * sigma).ln_1p();
        (root.sqrt() - self.beta_min) / self.beta_d
    }

    /// dσ/dt.
    fn speed(&self, time: f64) -> f64 {
        let exponent = 0.5 * time * time * self.beta_d + time * self.beta_min;
        let alpha = (-exponent).exp();
        0.5 * (time * self.beta_d + self.beta_min) / (alpha * (1.0 - alpha)).sqrt()
    }

    /// ∫ dσ of each Lagrange polynomial over the nodes, from time `from` to `to`.
    fn coefficients(&self, nodes: &[f64], from: f64, to: f64) -> Vec<f64> {
        let mut sums = vec![0.0; nodes.len()];
        for point in 0..POINTS {
            let time = from + (to - from) * point as f64 / (POINTS - 1) as f64;
            let speed = self.speed(time);
            for (j, sum) in sums.iter_mut().enumerate() {
                let others = nodes.iter().enumerate().filter(|(k, _)| *k != j);
                let basis: f64 =
                    others.map(|(_, node)| (time - node) / (nodes[j] - node)).product();
                *sum += speed * basis;
            }
        }
        sums.into_iter().map(|sum| sum * (to - from) / POINTS as f64).collect()
    }
}
