//! Fréchet's distance of two normal distributions (Dowson and Landau, 1982), which FID is of Inception's features:
//! |μ₁ − μ₂|² + Tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½), in f64.

use rayon::prelude::*;

use crate::error::{Error, Result};

/// Mean and covariance of features, gathered picture by picture.
#[derive(Clone, Debug)]
pub struct Moments {
    count: usize,
    width: usize,
    sum: Vec<f64>,
    /// Σ x xᵀ, the whole matrix.
    products: Vec<f64>,
    /// What is taken from every value before it is summed: the first features. Sums of squares keep their digits so.
    origin: Vec<f64>,
}

impl Moments {
    /// Of features with `width` values.
    pub fn new(width: usize) -> Moments {
        let zeros = vec![0.0; width];
        let products = vec![0.0; width * width];
        Moments { count: 0, width, sum: zeros.clone(), products, origin: zeros }
    }

    /// Adds the features of one picture.
    ///
    /// # Errors
    /// They have another width.
    pub fn add(&mut self, features: &[f64]) -> Result<()> {
        if features.len() != self.width {
            let sentence =
                format!("features of {} values among such of {}", features.len(), self.width);
            return Err(Error::Input(sentence));
        }
        if self.count == 0 {
            self.origin = features.to_vec();
        }
        let x: Vec<f64> = features.iter().zip(&self.origin).map(|(x, origin)| x - origin).collect();
        self.count += 1;
        self.sum.iter_mut().zip(&x).for_each(|(sum, x)| *sum += x);
        let rows = self.products.par_chunks_mut(self.width).zip(&x);
        rows.for_each(|(row, a)| row.iter_mut().zip(&x).for_each(|(sum, b)| *sum += a * b));
        Ok(())
    }

    /// How many pictures there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The trace of the covariance: how far the features spread.
    pub fn trace(&self) -> f64 {
        let covariance = self.covariance();
        (0..self.width).map(|i| covariance[i * self.width + i]).sum()
    }

    fn mean(&self) -> Vec<f64> {
        let mean = |(sum, origin): (&f64, &f64)| sum / self.count as f64 + origin;
        self.sum.iter().zip(&self.origin).map(mean).collect()
    }

    /// By n − 1.
    fn covariance(&self) -> Vec<f64> {
        let (n, width) = (self.count as f64, self.width);
        let value = |(i, product): (usize, &f64)| {
            (product - self.sum[i / width] * self.sum[i % width] / n) / (n - 1.0)
        };
        self.products.iter().enumerate().map(value).collect()
    }
}

/// The distance of two sets of features, at least two of each.
///
/// # Errors
/// There are fewer, or the widths differ.
pub fn distance(a: &Moments, b: &Moments) -> Result<f64> {
    if a.count < 2 || b.count < 2 {
        let sentence = format!(
            "a Fréchet distance of {} and {} pictures; 2 or more of each would be right",
            a.count, b.count
        );
        return Err(Error::Input(sentence));
    }
    if a.width != b.width {
        let sentence =
            format!("features of {} and of {} values have no distance", a.width, b.width);
        return Err(Error::Input(sentence));
    }
    let n = a.width;
    let apart: f64 = a.mean().iter().zip(b.mean()).map(|(a, b)| (a - b) * (a - b)).sum();
    let (first, second) = (a.covariance(), b.covariance());
    let trace = |m: &[f64]| (0..n).map(|i| m[i * n + i]).sum::<f64>();
    // With Σ₁ = Fᵀ F, Σ₁ Σ₂ has the eigenvalues of F Σ₂ Fᵀ, and zeros; that is symmetric and not negative.
    let factor = factor(first.clone(), n)?;
    let half = product_transposed(&factor, &second, n);
    let middle = product_transposed(&half, &factor, n);
    let shared: f64 = eigenvalues(middle, factor.len() / n.max(1))?
        .iter()
        .map(|value| value.max(0.0).sqrt())
        .sum();
    Ok(apart + trace(&first) + trace(&second) - 2.0 * shared)
}

/// The sum of products, in an order that is the same everywhere and that a processor does eight at a time.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// A Bᵀ of two matrices with `n` columns, row by row.
fn product_transposed(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    let columns = b.len() / n.max(1);
    let mut c = vec![0.0; a.len() / n.max(1) * columns];
    c.par_chunks_mut(columns.max(1)).zip(a.par_chunks(n.max(1))).for_each(|(c, a)| {
        c.iter_mut().zip(b.chunks_exact(n.max(1))).for_each(|(c, b)| *c = dot(a, b));
    });
    c
}

/// F of Fᵀ F = `a`, which is symmetric and not negative, with as many rows as its rank: Cholesky's, taking the largest
/// that is left each time, until no more than rounding is.
fn factor(mut a: Vec<f64>, n: usize) -> Result<Vec<f64>> {
    if a.iter().any(|x| !x.is_finite()) {
        return Err(no_number());
    }
    let largest = (0..n).map(|i| a[i * n + i]).fold(0.0, f64::max);
    let least = n as f64 * f64::EPSILON * largest;
    let mut left: Vec<bool> = vec![true; n];
    let mut rows = Vec::new();
    loop {
        let on_diagonal = |i: &usize| a[i * n + i];
        let next =
            (0..n).filter(|i| left[*i]).max_by(|i, j| on_diagonal(i).total_cmp(&on_diagonal(j)));
        let Some(next) = next.filter(|i| on_diagonal(i) > least) else { return Ok(rows) };
        let root = on_diagonal(&next).sqrt();
        // What was taken before is zero there, but for rounding.
        let row: Vec<f64> =
            (0..n).map(|i| if left[i] { a[next * n + i] / root } else { 0.0 }).collect();
        left[next] = false;
        a.par_chunks_mut(n).enumerate().filter(|(i, _)| left[*i]).for_each(|(i, values)| {
            values.iter_mut().zip(&row).for_each(|(value, x)| *value -= row[i] * x);
        });
        rows.extend(row);
    }
}

/// Eigenvalues of a symmetric n × n matrix: Householder's reflections to three diagonals, then QL with implicit shifts
/// (Martin, Reinsch and Wilkinson, 1968; Dubrulle, 1970).
fn eigenvalues(mut a: Vec<f64>, n: usize) -> Result<Vec<f64>> {
    if a.iter().any(|x| !x.is_finite()) {
        return Err(no_number());
    }
    let (mut diagonal, mut beside) = (vec![0.0; n], vec![0.0; n]);
    for k in 0..n {
        diagonal[k] = a[k * n + k];
        let mut v = a[k * n + k + 1..][..n - k - 1].to_vec();
        let Some(first) = v.first().copied() else { break };
        beside[k] = first;
        if v[1..].iter().all(|x| *x == 0.0) {
            continue;
        }
        // A reflection of the rest of the column onto its first place: A ← A − v wᵀ − w vᵀ.
        let length = -dot(&v, &v).sqrt().copysign(first);
        beside[k] = length;
        v[0] -= length;
        let half = 0.5 * dot(&v, &v);
        let rest = |row: &[f64]| dot(&row[k + 1..], &v) / half;
        let mut w: Vec<f64> = a[(k + 1) * n..].par_chunks(n).map(rest).collect();
        let share = dot(&v, &w) / (2.0 * half);
        w.iter_mut().zip(&v).for_each(|(w, v)| *w -= share * v);
        a[(k + 1) * n..].par_chunks_mut(n).enumerate().for_each(|(i, row)| {
            let pairs = v.iter().zip(&w);
            row[k + 1..]
                .iter_mut()
                .zip(pairs)
                .for_each(|(x, (vj, wj))| *x -= v[i] * wj + w[i] * vj);
        });
    }
    of_three_diagonals(&mut diagonal, &mut beside)?;
    Ok(diagonal)
}

/// Makes eigenvalues of the diagonal `d` and of what stands beside it, `e`, whose last is nothing.
fn of_three_diagonals(d: &mut [f64], e: &mut [f64]) -> Result<()> {
    const TRIES: usize = 60;
    let n = d.len();
    for l in 0..n {
        let mut tries = 0;
        loop {
            let is_small = |m: &usize| e[*m].abs() <= f64::EPSILON * (d[*m].abs() + d[m + 1].abs());
            let m = (l..n - 1).find(is_small).unwrap_or(n - 1);
            if m == l {
                break;
            }
            tries += 1;
            if tries > TRIES {
                return Err(no_number());
            }
            let towards = (d[l + 1] - d[l]) / (2.0 * e[l]);
            let mut g = d[m] - d[l] + e[l] / (towards + towards.hypot(1.0).copysign(towards));
            let (mut sine, mut cosine, mut p) = (1.0, 1.0, 0.0);
            let mut is_split = false;
            for i in (l..m).rev() {
                let (f, b) = (sine * e[i], cosine * e[i]);
                let r = f.hypot(g);
                e[i + 1] = r;
                if r == 0.0 {
                    d[i + 1] -= p;
                    is_split = true;
                    break;
                }
                (sine, cosine) = (f / r, g / r);
                g = d[i + 1] - p;
                let r = (d[i] - g) * sine + 2.0 * cosine * b;
                p = sine * r;
                d[i + 1] = g + p;
                g = cosine * r - b;
            }
            if !is_split {
                d[l] -= p;
                e[l] = g;
            }
            e[m] = 0.0;
        }
    }
    Ok(())
}

fn no_number() -> Error {
    Error::Input(
        "the covariance of the features has no eigenvalues: a feature is no number".to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A symmetric matrix of small numbers.
    fn symmetric(n: usize) -> Vec<f64> {
        let value = |i: usize, j: usize| ((i.max(j) * 31 + i.min(j) * 17) % 23) as f64 / 7.0 - 1.0;
        (0..n * n).map(|at| value(at / n, at % n)).collect()
    }

    #[test]
    fn eigenvalues_have_the_sums_of_the_matrix() {
        for n in [1, 2, 3, 8, 17, 40] {
            let a = symmetric(n);
            let values = eigenvalues(a.clone(), n).unwrap();
            let trace: f64 = (0..n).map(|i| a[i * n + i]).sum();
            let squares: f64 = a.iter().map(|x| x * x).sum();
            // The sums of the eigenvalues, of their squares and of their cubes are those of the matrix's powers.
            let twice = product_transposed(&a, &a, n);
            let cubes = dot(&twice, &a);
            let power = |k: i32| values.iter().map(|value| value.powi(k)).sum::<f64>();
            let size = squares.sqrt().max(1.0);
            assert!((power(1) - trace).abs() < 1e-12 * size * n as f64, "{n}");
            assert!((power(2) - squares).abs() < 1e-12 * size * size, "{n}");
            assert!((power(3) - cubes).abs() < 1e-12 * size.powi(3), "{n}");
        }
        // A matrix of nothing but zeros, and one that is diagonal already.
        assert_eq!(eigenvalues(vec![0.0; 9], 3).unwrap(), [0.0; 3]);
        let mut values = eigenvalues(vec![3.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 2.0], 3).unwrap();
        values.sort_by(f64::total_cmp);
        assert_eq!(values, [1.0, 2.0, 3.0]);
    }

    #[test]
    fn a_factor_has_the_rank_and_makes_the_matrix_again() {
        let n = 9;
        for rank in [0, 1, 4, 9] {
            let some = &symmetric(n)[..rank * n];
            let mut whole = vec![0.0; n * n];
            for row in some.chunks_exact(n) {
                for i in 0..n {
                    (0..n).for_each(|j| whole[i * n + j] += row[i] * row[j]);
                }
            }
            let factor = factor(whole.clone(), n).unwrap();
            assert_eq!(factor.len(), rank * n);
            for (at, value) in whole.iter().enumerate() {
                let again: f64 = factor.chunks_exact(n).map(|row| row[at / n] * row[at % n]).sum();
                assert!((again - value).abs() < 1e-12, "{rank}: {again} is not {value}");
            }
        }
    }

    #[test]
    fn what_is_too_little_or_no_number_is_told() {
        let mut one = Moments::new(2);
        one.add(&[1.0, 2.0]).unwrap();
        assert!(distance(&one, &one).unwrap_err().to_string().contains("2 or more"));
        assert!(one.add(&[1.0]).is_err());
        let mut nan = Moments::new(2);
        nan.add(&[f64::NAN, 0.0]).unwrap();
        nan.add(&[1.0, 2.0]).unwrap();
        assert!(distance(&nan, &nan).unwrap_err().to_string().contains("no number"));
    }
}
