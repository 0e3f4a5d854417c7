//! UniPC (Zhao et al., arXiv 2302.04867), multistep, order 3, predicting data, with B₁(h) = h or
//! B₂(h) = e^h - 1, as ComfyUI runs it over any noise levels, in VE.

use candle_core::Tensor;

use super::{Denoiser, Observe, Result, Step, combine};

/// The paper's two choices of B(h), section 4.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Bh1,
    Bh2,
}

/// Where a schedule that ends at σ = 0 ends here: λ = -log σ has to be finite.
const LAST_SIGMA: f64 = 0.001;

/// `sigmas` fall; a last one of 0 is read as 0.001. One evaluation a step.
///
/// # Errors
/// What `model` and `observe` report.
pub fn uni_pc(
    sigmas: &[f64],
    variant: Variant,
    mut x: Tensor,
    model: &mut Denoiser<'_>,
    observe: &mut Observe<'_>,
) -> Result<Tensor> {
    let steps = sigmas.len().saturating_sub(1);
    if steps == 0 {
        return Ok(x);
    }
    let mut sigmas = sigmas.to_vec();
    if sigmas[steps] <= 0.0 {
        sigmas[steps] = LAST_SIGMA;
    }
    let highest = steps.saturating_sub(1).clamp(1, 3);
    // x₀ at the last levels with λ of each, newest first.
    let mut history = vec![(model(&x, sigmas[0])?, -sigmas[0].ln())];
    for step in 1..=steps {
        let (sigma, next) = (sigmas[step - 1], sigmas[step]);
        let order = highest.min(step).min(steps + 1 - step);
        let update = Update::new(&history, -next.ln(), order, variant);
        let start = combine(&[(next / sigma, &x), (1.0 - next / sigma, &history[0].0)])?;
        let predicted = update.apply(&start, &update.predictor(), &history, None)?;
        // The last level is not evaluated, so that nothing corrects the step there.
        if step < steps {
            let x0 = model(&predicted, next)?;
            x = update.apply(&start, &update.corrector(), &history, Some(&x0))?;
            history.truncate(2);
            history.insert(0, (x0, -next.ln()));
        } else {
            x = predicted;
        }
        observe(Step { done: step, steps, x: &x, x0: &history[0].0 })?;
    }
    Ok(x)
}

/// One step's equations: algorithm 5 for B(h).
pub struct Update {
    /// (λ_i - λ_0) / h of the earlier levels, then 1 for the level that is stepped to.
    ratios: Vec<f64>,
    /// The right-hand side, g(h)/B(h), one for each order.
    b: Vec<f64>,
    /// B(-h).
    scale: f64,
}

impl Update {
    /// From `history`, x₀ at the last levels with λ of each, newest first, to the level λ = `lambda`, by `order` of these.
    pub fn new(history: &[(Tensor, f64)], lambda: f64, order: usize, variant: Variant) -> Update {
        let now = history[0].1;
        let h = lambda - now;
        let mut ratios: Vec<f64> =
            history[1..order].iter().map(|(_, earlier)| (earlier - now) / h).collect();
        ratios.push(1.0);
        let scale = match variant {
            Variant::Bh1 => -h,
            Variant::Bh2 => (-h).exp_m1(),
        };
        // φ₂, φ₃ … at -h by their recurrence, each with its factorial.
        let mut phi = (-h).exp_m1() / -h - 1.0;
        let mut factorial = 1.0;
        let mut b = Vec::with_capacity(order);
        for k in 1..=order {
            b.push(phi * factorial / scale);
            factorial *= (k + 1) as f64;
            phi = phi / -h - 1.0 / factorial;
        }
        Update { ratios, b, scale }
    }

    /// Weights of the earlier levels' differences; order 2 has the paper's ½.
    pub fn predictor(&self) -> Vec<f64> {
        match self.ratios.len() - 1 {
            0 => Vec::new(),
            1 => vec![0.5],
            count => vandermonde(&self.ratios[..count], &self.b[..count]),
        }
    }

    /// Weights of the earlier levels' differences and of the new level's; order 1 has the paper's ½.
    pub fn corrector(&self) -> Vec<f64> {
        match self.ratios.len() {
            1 => vec![0.5],
            _ => vandermonde(&self.ratios, &self.b),
        }
    }

    /// `start` - B(-h) Σ weight · (x₀ of a level - x₀ now) / ratio.
    ///
    /// # Errors
    /// A tensor operation failed.
    pub fn apply(
        &self,
        start: &Tensor,
        weights: &[f64],
        history: &[(Tensor, f64)],
        there: Option<&Tensor>,
    ) -> Result<Tensor> {
        let levels = history[1..self.ratios.len()].iter().map(|(x0, _)| x0).chain(there);
        let mut terms = vec![(1.0, start)];
        let mut of_now = 0.0;
        for ((weight, ratio), x0) in weights.iter().zip(&self.ratios).zip(levels) {
            let factor = -self.scale * weight / ratio;
            terms.push((factor, x0));
            of_now -= factor;
        }
        terms.push((of_now, &history[0].0));
        combine(&terms)
    }
}

/// w with Σⱼ ratioⱼ^k wⱼ = b_k for k = 0, 1 …, by elimination with pivoting.
fn vandermonde(ratios: &[f64], b: &[f64]) -> Vec<f64> {
    let n = ratios.len();
    let mut rows: Vec<Vec<f64>> =
        (0..n).map(|k| ratios.iter().map(|r| r.powi(k as i32)).chain([b[k]]).collect()).collect();
    for column in 0..n {
        let largest = (column..n)
            .max_by(|i, j| rows[*i][column].abs().total_cmp(&rows[*j][column].abs()))
            .unwrap_or(column);
        rows.swap(column, largest);
        let pivot = rows[column].clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != column) {
            let factor = row[column] / pivot[column];
            row.iter_mut().zip(&pivot).for_each(|(value, above)| *value -= factor * above);
        }
    }
    (0..n).map(|i| rows[i][n] / rows[i][i]).collect()
}
