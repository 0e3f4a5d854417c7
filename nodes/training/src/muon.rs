//! Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024), its rate matched to Adam's as
//! Liu et al. do (arXiv 2502.16982): what `torch.optim.Muon` computes with `adjust_lr_fn="match_rms_adamw"`, in f32.

use candle_core::{Device, Tensor};
use kosmograph_kernels::{linear, transpose};

use crate::error::Result;

/// The quintic's coefficients: steep at 0, so that five iterations bring every singular value near 1.
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];
const ITERATIONS: usize = 5;
/// Names' parts whose matrices are no hidden layers, and learn with AdamW: embeddings, learned queries and positions,
/// first and last convolutions.
const OUTER: [&str; 5] = ["embed", "query", "position", "conv_in", "conv_out"];

/// Rows and columns of what a parameter is to Muon, a convolution's being [out, in · height · width]; none for what
/// AdamW takes.
pub(crate) fn matrix(name: &str, shape: &[usize]) -> Option<(usize, usize)> {
    let (rows, columns) = match shape {
        [rows, rest @ ..] if !rest.is_empty() => (*rows, rest.iter().product()),
        _ => return None,
    };
    let is_hidden = rows > 0 && columns > 0 && !OUTER.iter().any(|part| name.contains(part));
    is_hidden.then_some((rows, columns))
}

/// One update of `values`, a matrix [`rows`, `columns`]; `first` is the mean of its gradients, which forgets by `momentum`.
///
/// # Errors
/// Only what the tensor library reports.
pub(crate) fn update(
    values: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    (rows, columns): (usize, usize),
    (rate, kept, momentum): (f64, f32, f64),
) -> Result<()> {
    let momentum = momentum as f32;
    let mut ahead = Vec::with_capacity(gradient.len());
    for (mean, g) in first.iter_mut().zip(gradient) {
        *mean += (1.0 - momentum) * (g - *mean);
        // Nesterov's: the mean as the next gradient of this kind would leave it.
        ahead.push(g + momentum * (*mean - g));
    }
    let direction = orthogonal(&Tensor::from_vec(ahead, (rows, columns), &Device::Cpu)?)?;
    // Its root mean square is that of Adam's updates at any shape.
    let rate = (rate * 0.2 * (rows.max(columns) as f64).sqrt()) as f32;
    for (value, d) in values.iter_mut().zip(direction.flatten_all()?.to_vec1::<f32>()?) {
        *value = *value * kept - rate * d;
    }
    Ok(())
}

/// The (semi-)orthogonal matrix nearest to `g` [rows, columns], about: its singular values become 0.7 to 1.2.
fn orthogonal(g: &Tensor) -> Result<Tensor> {
    let turned = |x: &Tensor| -> Result<Tensor> { Ok(transpose(&x.unsqueeze(0)?)?.squeeze(0)?) };
    let norm = f64::from(g.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt();
    let (rows, columns) = g.dims2()?;
    let is_tall = rows > columns;
    let mut x = (if is_tall { turned(g)? } else { g.clone() } / (norm + 1e-7))?;
    let [linearly, cubed, fifth] = COEFFICIENTS;
    for _ in 0..ITERATIONS {
        // x xᵀ is symmetric, and so is everything made of it.
        let a = linear(&x, &x, None)?;
        let b = ((&a * cubed)? + (linear(&a, &a, None)? * fifth)?)?;
        x = ((&x * linearly)? + linear(&b, &turned(&x)?, None)?)?;
    }
    if is_tall { turned(&x) } else { Ok(x) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_become_equally_long() {
        for shape in [(3, 7), (7, 3), (5, 5), (1, 4), (40, 360)] {
            let (rows, columns) = shape;
            let value = |i: usize| ((i * 7919 + 31) % 1009) as f32 / 504.0 - 1.0;
            let g: Vec<f32> = (0..rows * columns).map(value).collect();
            let g = Tensor::from_vec(g, shape, &Device::Cpu).unwrap();
            let x = orthogonal(&g).unwrap();
            assert_eq!(x.dims2().unwrap(), shape);
            let x = if shape.0 > shape.1 { x.t().unwrap() } else { x };
            // Singular values of 0.7 to 1.2: so are the roots of the Gram matrix's diagonal.
            let gram = x.matmul(&x.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
            for (i, row) in gram.iter().enumerate() {
                assert!((0.4..1.6).contains(&row[i]), "{shape:?}: {}", row[i]);
            }
            // It goes the gradient's way.
            let along = (&x * if shape.0 > shape.1 { g.t().unwrap() } else { g }).unwrap();
            assert!(along.sum_all().unwrap().to_scalar::<f32>().unwrap() > 0.0);
        }
    }

    const START: [f32; 6] = [1.54, -0.29, -2.18, 0.57, -1.08, -1.40];
    const GRADIENTS: [[f32; 6]; 2] =
        [[0.40, 0.84, -0.72, -0.40, -0.60, 0.18], [-0.86, 1.10, -1.07, 0.12, -0.57, 0.37]];
    const TORCHS: [[f32; 6]; 2] = [
        [1.523559, -0.298825, -2.134863, 0.582001, -1.052188, -1.372501],
        [1.525174, -0.305197, -2.094994, 0.600222, -1.016944, -1.354965],
    ];

    /// Two updates of `torch.optim.Muon([w], lr=0.1, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")`,
    /// its iterations in f32 instead of bf16.
    #[test]
    fn an_update_is_torchs() {
        let mut values = START;
        let mut first = [0.0; 6];
        for (gradient, want) in GRADIENTS.iter().zip(TORCHS) {
            update(&mut values, gradient, &mut first, (2, 3), (0.1, 0.99, 0.95)).unwrap();
            for (value, want) in values.iter().zip(want) {
                assert!((value - want).abs() < 2e-6, "{value}, torch: {want}");
            }
        }
    }
}
