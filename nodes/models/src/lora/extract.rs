//! The LoRA that comes nearest a change of a weight: its largest singular values and their vectors.
//!
//! The whole decomposition of a U-Net's layers would take hours for a few vectors. Here a block of vectors is multiplied by the matrix
//! and back until it spans what the largest singular values have (a block Krylov method: Musco & Musco, arXiv 1504.05477); the rest is
//! the decomposition of a small symmetric matrix by Jacobi's rotations.

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use kosmograph_kernels::bounds::between;

use crate::error::Result;
use crate::samplers::randn::Generator;

/// Products with the matrix between two looks at what is spanned.
const DEGREE: usize = 3;
/// Vectors beside those that are wanted, at the least.
const BESIDE: usize = 8;
/// How far a vector may be from a singular one, as a share of the largest singular value: far below what f16 tells.
const NEAR: f64 = 1e-5;
/// Where singular values lie as dense as noise, their vectors are any; then it is enough to have come so far.
const MOST_ROUNDS: usize = 40;
/// Of the numbers of both factors this share stays as it is, the largest are cut to what the others reach.
const KEPT: f64 = 0.99;

/// A change [out, in] or [out, in, kH, kW] as a LoRA of at most `rank`: `up` [out, r] or [out, r, 1, 1], times the singular values,
/// and `down` [r, in] or [r, in, kH, kW]. Numbers above the 0.99 quantile of both, and below its negative, are cut to it, as in ComfyUI's
/// LoraSave. Signs are free: the largest number of each of `up`'s columns is above 0. `None` of a change that is none.
///
/// # Errors
/// candle's, or that the work is to stop.
pub fn extract(change: &Tensor, rank: usize) -> Result<Option<(Tensor, Tensor)>> {
    let dims = change.dims().to_vec();
    let (out, inputs) = (dims[0], dims[1]);
    let rank = rank.min(out).min(inputs);
    let matrix = change.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_from(1)?;
    let largest = matrix.abs()?.max_all()?.to_scalar::<f32>()?;
    if largest == 0.0 || rank == 0 {
        return Ok(None);
    }
    let (left, values, right) = largest_vectors(&matrix, rank)?;
    let values = Tensor::from_vec(values, (1, rank), &Device::Cpu)?;
    let up = left.broadcast_mul(&values)?;
    let (up, right) = signed(&up, &right)?;
    let limit = f64::from(quantile(&[&up, &right])?);
    let (up, down) = (between(&up, -limit, limit)?, between(&right, -limit, limit)?);
    Ok(Some(match &dims[2..] {
        [] => (up, down),
        kernel => {
            let ones = vec![1; kernel.len()];
            let up = up.reshape([&[out, rank], &ones[..]].concat())?;
            (up, down.reshape([&[rank, inputs], kernel].concat())?)
        }
    }))
}

/// The `rank` largest singular values of a matrix [m, n], their left vectors [m, r] and their right ones [r, n].
fn largest_vectors(matrix: &Tensor, rank: usize) -> Result<(Tensor, Vec<f32>, Tensor)> {
    let (rows, columns) = matrix.dims2()?;
    let smaller = rows.min(columns);
    let block = smaller.min(rank + rank.max(BESIDE));
    let transposed = matrix.t()?.contiguous()?;
    // Any vectors will do, as long as they are the same each time.
    let start = Generator::new(0).randn(columns * block);
    let mut right = Tensor::from_vec(start, (columns, block), &Device::Cpu)?;
    let mut round = 0;
    loop {
        kosmograph_interrupt::check()?;
        // [Y, (A Aᵀ) Y, (A Aᵀ)² Y …], Y = A · right.
        let mut spanned = Span::new(rows);
        let mut last = matrix.matmul(&right)?;
        for degree in 0..=DEGREE {
            last = spanned.add(&last)?;
            if spanned.count() >= smaller || last.dim(1)? == 0 || degree == DEGREE {
                break;
            }
            last = matrix.matmul(&transposed.matmul(&last)?)?;
        }
        let basis = spanned.tensor()?;
        // The matrix as the basis sees it, and the small one whose eigenvectors are wanted.
        let seen = basis.t()?.contiguous()?.matmul(matrix)?;
        let products = seen.to_dtype(DType::F64)?;
        let products = products.matmul(&products.t()?)?.to_vec2::<f64>()?;
        let (squares, turns) = by_jacobi(products);
        let taken = block.min(squares.len());
        let mut turned = Vec::with_capacity(basis.dim(1)? * taken);
        for row in &turns {
            turned.extend(row[..taken].iter().map(|value| *value as f32));
        }
        let turned = Tensor::from_vec(turned, (basis.dim(1)?, taken), &Device::Cpu)?;
        let left = basis.matmul(&turned)?;
        let values: Vec<f64> =
            squares[..taken].iter().map(|square| square.max(0.0).sqrt()).collect();
        let least = values.first().copied().unwrap_or(0.0) * 1e-7;
        let shares =
            values.iter().map(|value| (1.0 / value.max(least).max(f64::MIN_POSITIVE)) as f32);
        let shares = Tensor::from_vec(shares.collect::<Vec<f32>>(), (taken, 1), &Device::Cpu)?;
        let vectors = turned.t()?.contiguous()?.matmul(&seen)?.broadcast_mul(&shares)?;
        round += 1;
        let is_near = basis.dim(1)? >= smaller || {
            let vectors = vectors.narrow(0, 0, rank)?;
            let found = matrix.matmul(&vectors.t()?.contiguous()?)?;
            let scale: Vec<f32> = values[..rank].iter().map(|value| *value as f32).collect();
            let scale = Tensor::from_vec(scale, (1, rank), &Device::Cpu)?;
            let off = (found - left.narrow(1, 0, rank)?.broadcast_mul(&scale)?)?;
            let farthest = off.sqr()?.sum(0)?.max_all()?.to_scalar::<f32>()?;
            f64::from(farthest).sqrt() <= NEAR * values[0]
        };
        if is_near || round == MOST_ROUNDS {
            let values = values[..rank].iter().map(|value| *value as f32).collect();
            let left = left.narrow(1, 0, rank)?.contiguous()?;
            return Ok((left, values, vectors.narrow(0, 0, rank)?.contiguous()?));
        }
        right = vectors.t()?.contiguous()?;
    }
}

/// Orthonormal vectors that span what was added.
struct Span {
    length: usize,
    vectors: Vec<Vec<f64>>,
}

impl Span {
    fn new(length: usize) -> Self {
        Self { length, vectors: Vec::new() }
    }

    fn count(&self) -> usize {
        self.vectors.len()
    }

    /// Adds columns [m, k], by Gram and Schmidt, twice; those that bring nothing new are left out. The new vectors, [m, k'].
    fn add(&mut self, columns: &Tensor) -> CandleResult<Tensor> {
        let columns = columns.t()?.contiguous()?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        let before = self.count();
        for mut column in columns {
            if self.count() == self.length {
                break;
            }
            let whole = norm(&column);
            for _ in 0..2 {
                for vector in &self.vectors {
                    let share = dot(vector, &column);
                    column.iter_mut().zip(vector).for_each(|(x, v)| *x -= share * v);
                }
            }
            let left = norm(&column);
            if left > 1e-9 * whole && left > 0.0 {
                column.iter_mut().for_each(|x| *x /= left);
                self.vectors.push(column);
            }
        }
        self.columns(before)
    }

    fn tensor(&self) -> CandleResult<Tensor> {
        self.columns(0)
    }

    fn columns(&self, from: usize) -> CandleResult<Tensor> {
        let numbers: Vec<f32> =
            self.vectors[from..].iter().flatten().map(|value| *value as f32).collect();
        let rows = Tensor::from_vec(numbers, (self.count() - from, self.length), &Device::Cpu)?;
        rows.t()?.contiguous()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// Eigenvalues of a symmetric matrix, the largest first, and their vectors as the columns of the second (Jacobi, 1846).
fn by_jacobi(mut a: Vec<Vec<f64>>) -> (Vec<f64>, Vec<Vec<f64>>) {
    const SWEEPS: usize = 30;
    let n = a.len();
    // Rows of `turned` are vectors while it is turned.
    let mut turned: Vec<Vec<f64>> =
        (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    let size: f64 = a.iter().flatten().map(|x| x * x).sum();
    for _ in 0..SWEEPS {
        let beside: f64 =
            (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i][j].powi(2)).sum();
        if beside <= size * 1e-30 {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                if a[p][q].abs() <= 1e-18 * (a[p][p].abs() + a[q][q].abs()) {
                    continue;
                }
                let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
                let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let t = if theta == 0.0 { 1.0 } else { t };
                let cosine = 1.0 / t.hypot(1.0);
                let sine = t * cosine;
                for row in &mut a {
                    let (x, y) = (row[p], row[q]);
                    (row[p], row[q]) = (cosine * x - sine * y, sine * x + cosine * y);
                }
                rotate(&mut a, (p, q), (cosine, sine));
                rotate(&mut turned, (p, q), (cosine, sine));
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[j][j].total_cmp(&a[i][i]));
    let values = order.iter().map(|&i| a[i][i]).collect();
    let vectors = (0..n).map(|row| order.iter().map(|&i| turned[i][row]).collect()).collect();
    (values, vectors)
}

/// Rows p and q turned into each other.
fn rotate(rows: &mut [Vec<f64>], (p, q): (usize, usize), (cosine, sine): (f64, f64)) {
    let (first, second) = rows.split_at_mut(q);
    for (x, y) in first[p].iter_mut().zip(&mut second[0]) {
        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
    }
}

/// `up` [m, r] and `down` [r, n] with the largest number of each of `up`'s columns above 0.
fn signed(up: &Tensor, down: &Tensor) -> CandleResult<(Tensor, Tensor)> {
    let columns = up.t()?.contiguous()?.to_vec2::<f32>()?;
    let sign = |column: &Vec<f32>| {
        let largest = column.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs()));
        if largest.unwrap_or(0.0) < 0.0 { -1f32 } else { 1f32 }
    };
    let signs: Vec<f32> = columns.iter().map(sign).collect();
    let signs = Tensor::from_vec(signs, (1, columns.len()), &Device::Cpu)?;
    Ok((up.broadcast_mul(&signs)?, down.broadcast_mul(&signs.t()?)?))
}

/// torch.quantile of the numbers of all of them.
fn quantile(tensors: &[&Tensor]) -> CandleResult<f32> {
    let mut all = Vec::new();
    for tensor in tensors {
        all.extend(tensor.flatten_all()?.to_vec1::<f32>()?);
    }
    all.sort_by(f32::total_cmp);
    let place = KEPT * (all.len() - 1) as f64;
    let (below, share) = (all[place.floor() as usize], (place - place.floor()) as f32);
    let above = all[place.ceil() as usize];
    // Never below 0: then everything would be cut to one number.
    Ok((below + share * (above - below)).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers by a formula, full of rank.
    fn matrix(rows: usize, columns: usize) -> Vec<f32> {
        let number =
            |i: usize, j: usize| ((i * i * 7 + i * j * 31 + j * j * 13 + 5 * j) % 97) as f32;
        (0..rows * columns).map(|at| number(at / columns, at % columns) / 48.5 - 1.0).collect()
    }

    fn close(found: &Tensor, expected: &[f32]) -> CandleResult<()> {
        let found = found.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 2e-4, "{found} for {expected}");
        }
        Ok(())
    }

    /// By numpy.linalg.svd of f64 and torch.quantile.
    #[test]
    fn the_largest_singular_values_make_it() -> Result<()> {
        let change = Tensor::from_vec(matrix(40, 60), (40, 60), &Device::Cpu)?;
        let (up, down) = extract(&change, 3)?.expect("it is no zero");
        assert_eq!((up.dims(), down.dims()), (&[40, 3][..], &[3, 60][..]));
        let first = [
            2.3399, 0.456853, 0.204529, -0.324146, 0.0575847, -1.24317, 2.28003, -0.258766,
            -1.3787, -1.79377, -0.38683, 0.149557,
        ];
        close(&up.narrow(0, 0, 4)?, &first)?;
        close(&up.narrow(0, 39, 1)?, &[-1.05891, -0.956939, 0.879003])?;
        let right = [
            -0.0493799,
            -0.0495314,
            0.014444,
            0.0346639,
            -0.0677529,
            -0.0702564,
            0.0247456,
            -0.156447,
            -0.281801,
            -0.0583757,
            0.187255,
            0.0452975,
            -0.0802738,
            -0.134974,
            -0.00954921,
        ];
        close(&down.narrow(1, 0, 5)?, &right)?;
        Ok(())
    }

    /// As above, of a convolution of 3 × 3, whose largest numbers are cut.
    #[test]
    fn a_convolution_keeps_its_kernel() -> Result<()> {
        let change = Tensor::from_vec(matrix(6, 45), (6, 5, 3, 3), &Device::Cpu)?;
        let (up, down) = extract(&change, 4)?.expect("it is no zero");
        assert_eq!((up.dims(), down.dims()), (&[6, 4, 1, 1][..], &[4, 5, 3, 3][..]));
        let expected = [
            2.80781, -0.753873, -0.990691, -0.683984, -0.635842, -1.93938, -0.966337, 2.06429,
            1.49786, -2.10725, 2.06148, 1.77906, -2.80781, -0.883835, 0.405929, 0.128604, 0.584514,
            2.80781, 1.61274, 1.94158, -0.0680632, -0.90325, 2.80781, -1.95485,
        ];
        close(&up, &expected)?;
        assert_eq!(extract(&change, 1000)?.expect("it is no zero").0.dims()[1], 5);
        Ok(())
    }

    #[test]
    fn a_change_of_low_rank_comes_back_whole() -> Result<()> {
        let (rows, columns, rank) = (300, 500, 4);
        let up = Tensor::from_vec(matrix(rows, rank), (rows, rank), &Device::Cpu)?;
        let down = Tensor::from_vec(matrix(rank, columns), (rank, columns), &Device::Cpu)?;
        let change = up.matmul(&down)?;
        let (left, values, right) = largest_vectors(&change, rank)?;
        let values = Tensor::from_vec(values, (1, rank), &Device::Cpu)?;
        let again = left.broadcast_mul(&values)?.matmul(&right)?;
        let error = (again - &change)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(error < 1e-4, "{error}");
        assert!(extract(&change.zeros_like()?, 8)?.is_none());
        Ok(())
    }
}
