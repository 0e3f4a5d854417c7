//! OFT: the outputs are turned, in blocks. Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal
//! Finetuning", arXiv 2306.07280.

use candle_core::{D, DType, Device, Result as CandleResult, Tensor};

use super::{Factors, Read, flat};
use crate::lora::LoraError;
use crate::lora::factor::Factor;

/// Rᵀ W in blocks of rows. The strength counts twice, as ComfyUI has it.
#[derive(Clone, Debug)]
pub(in crate::lora) struct Orthogonal {
    /// [blocks, size, size].
    blocks: Tensor,
    constraint: f64,
}

impl Orthogonal {
    pub(super) fn read(factors: &Factors) -> Read<Self> {
        let blocks = factors.need(Factor::OftBlocks)?;
        if !matches!(blocks.dims(), [_, rows, columns] if rows == columns) {
            let blocks = Factors::called(Factor::OftBlocks, &blocks);
            return Err(factors.damaged(format!("{blocks} is not [blocks, size, size]")));
        }
        Ok(Self { blocks, constraint: constraint(factors)? })
    }

    pub(super) fn fits(&self, weight: &[usize]) -> bool {
        let blocks = self.blocks.dims();
        weight.first().copied() == blocks[0].checked_mul(blocks[1])
    }

    pub(super) fn wanted(&self) -> String {
        let blocks = self.blocks.dims();
        format!("one with {} outputs", blocks[0].saturating_mul(blocks[1]))
    }

    pub(super) fn change(&self, weight: &Tensor, strength: f64) -> CandleResult<Tensor> {
        let (count, size, _) = self.blocks.dims3()?;
        let turn = rotations(&self.blocks, self.constraint)?;
        let still = identity(size, weight.device())?;
        let turn = (turn.to_device(weight.device())?.broadcast_sub(&still)? * strength)?;
        let rows = flat(weight)?.reshape((count, size, ()))?;
        turn.transpose(1, 2)?.contiguous()?.matmul(&rows)
    }
}

/// alpha, which is no scale here: how far the blocks may turn. 0: as far as they like.
pub(super) fn constraint(factors: &Factors) -> Read<f64> {
    let factor = factors.alpha.unwrap_or(0.0);
    if factor.is_finite() {
        return Ok(factor);
    }
    Err(LoraError::Factor { layer: factors.module.to_owned(), factor })
}

pub(super) fn identity(size: usize, device: &Device) -> CandleResult<Tensor> {
    Tensor::eye(size, DType::F32, device)
}

/// The rotations (I + Q)(I − Q)⁻¹ with Q = B − Bᵀ, after Cayley, of blocks B [..., size, size].
pub(super) fn rotations(blocks: &Tensor, constraint: f64) -> CandleResult<Tensor> {
    let blocks = blocks.to_device(&Device::Cpu)?;
    let skew = (&blocks - blocks.transpose(D::Minus1, D::Minus2)?)?;
    let length = f64::from(skew.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>()?) + 1e-8;
    let skew = if constraint > 0.0 && length > constraint {
        (skew * (constraint / length))?
    } else {
        skew
    };
    let size = skew.dim(D::Minus1)?;
    let values = skew.flatten_all()?.to_vec1::<f32>()?;
    let mut rotations = Vec::with_capacity(values.len());
    for block in values.chunks_exact((size * size).max(1)) {
        rotations.extend(cayley(block, size));
    }
    Tensor::from_vec(rotations, skew.shape(), &Device::Cpu)
}

/// (I + Q)(I − Q)⁻¹ of a skew-symmetric Q, row by row. I − Q has an inverse for every such Q. As the two
/// commute, it is X with (I − Q) X = I + Q: elimination with the largest pivot, in f64.
fn cayley(skew: &[f32], size: usize) -> Vec<f32> {
    let entry = |row: usize, column: usize, sign: f64| {
        f64::from(u8::from(row == column)) + sign * f64::from(skew[row * size + column])
    };
    // Each row: of I − Q, then of I + Q.
    let mut rows: Vec<Vec<f64>> = (0..size)
        .map(|row| {
            let left = (0..size).map(|column| entry(row, column, -1.0));
            left.chain((0..size).map(|column| entry(row, column, 1.0))).collect()
        })
        .collect();
    for column in 0..size {
        let largest = (column..size)
            .max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs()))
            .unwrap_or(column);
        rows.swap(column, largest);
        let pivot = rows[column][column];
        rows[column].iter_mut().for_each(|value| *value /= pivot);
        let pivot_row = rows[column].clone();
        for (index, row) in rows.iter_mut().enumerate() {
            let factor = row[column];
            if index != column && factor != 0.0 {
                row.iter_mut().zip(&pivot_row).for_each(|(value, pivot)| *value -= factor * pivot);
            }
        }
    }
    rows.iter().flat_map(|row| row[size..].iter().map(|value| *value as f32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotations_keep_lengths_and_solve_their_equation() -> CandleResult<()> {
        for size in [1, 2, 5, 8] {
            let blocks = Tensor::randn(0f32, 1.0, (3, size, size), &Device::Cpu)?;
            let turn = rotations(&blocks, 0.0)?;
            let unit = identity(size, &Device::Cpu)?.broadcast_as((3, size, size))?.contiguous()?;
            let far = |a: &Tensor, b: &Tensor| (a - b)?.abs()?.max_all()?.to_scalar::<f32>();
            let square = turn.matmul(&turn.transpose(1, 2)?.contiguous()?)?;
            assert!(far(&square, &unit)? < 1e-5);
            let skew = (&blocks - blocks.transpose(1, 2)?)?;
            let right = (&unit + &skew)?;
            assert!(far(&turn.matmul(&(&unit - &skew)?)?, &right)? < 1e-4);
        }
        Ok(())
    }

    #[test]
    fn a_constraint_shortens_the_turn() -> CandleResult<()> {
        let blocks = Tensor::new(&[[[0f32, 3.0], [-3.0, 0.0]]], &Device::Cpu)?;
        // Q = ((0, 6), (−6, 0)) has length 6√2; at constraint √2 / 2 it is ((0, 1/2), (−1/2, 0)).
        let turn = rotations(&blocks, 0.5f64.sqrt())?.flatten_all()?.to_vec1::<f32>()?;
        // A turn with the tangent of half its angle 1/2: cos 3/5, sin 4/5.
        let want = [0.6, 0.8, -0.8, 0.6];
        assert!(turn.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5), "{turn:?}");
        Ok(())
    }
}
