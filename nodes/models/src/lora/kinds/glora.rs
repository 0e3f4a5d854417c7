//! GLoRA: W A + B, of two low-rank products.
//! Chavan et al., "One-for-All: Generalized LoRA", arXiv 2306.07967.

use candle_core::{Result as CandleResult, Tensor};

use super::{Factors, Read, as_matrix, flat};
use crate::lora::factor::Factor as F;

/// Two writings are known. LyCORIS': W a1 a2 + b1 b2. An older one has each pair the other way round:
/// W a2 a1 + b2 b1, and its matrices in the other orientation.
#[derive(Clone, Debug)]
pub(in crate::lora) struct GLora {
    a1: Tensor,
    a2: Tensor,
    b1: Tensor,
    b2: Tensor,
    alpha: Option<f64>,
}

impl GLora {
    pub(super) fn read(factors: &Factors) -> Read<Self> {
        let need =
            |factor| -> Read<Tensor> {
                let tensor = factors.need(factor)?;
                match tensor.dims() {
                    [_, _] | [_, _, 1, 1] => Ok(tensor),
                    _ => Err(factors
                        .damaged(format!("{} is no matrix", Factors::called(factor, &tensor)))),
                }
            };
        let layer = Self {
            a1: need(F::A1)?,
            a2: need(F::A2)?,
            b1: need(F::B1)?,
            b2: need(F::B2)?,
            alpha: factors.alpha,
        };
        if !layer.is_old() && !layer.is_new() {
            let shapes = [&layer.a1, &layer.a2, &layer.b1, &layer.b2].map(Tensor::dims);
            return Err(factors.damaged(format!(
                "its a1, a2, b1 and b2 have the shapes {shapes:?}, which have no rank in common"
            )));
        }
        factors.scale(1)?;
        Ok(layer)
    }

    fn is_old(&self) -> bool {
        let rank = self.a1.dims()[0];
        [self.a2.dims()[1], self.b1.dims()[0], self.b2.dims()[1]] == [rank; 3]
    }

    fn is_new(&self) -> bool {
        let rank = self.a1.dims()[1];
        [self.a2.dims()[0], self.b1.dims()[1], self.b2.dims()[0]] == [rank; 3]
    }

    /// The matrices of a weight of this shape: what W is multiplied with, what is added, and the rank.
    /// Where both writings fit, the weight's shape decides.
    fn orders(&self, weight: &[usize]) -> (bool, usize) {
        let square = matches!(weight, [rows, columns, ..] if rows == columns);
        let old = self.is_old() && (!self.is_new() || (square && self.a2.dims()[0] == weight[0]));
        (old, if old { self.a1.dims()[0] } else { self.a2.dims()[0] })
    }

    pub(super) fn fits(&self, weight: &[usize]) -> bool {
        let Some((rows, columns)) = as_matrix(weight) else { return false };
        let (old, _) = self.orders(weight);
        let input = weight.get(1).copied().unwrap_or(0);
        let [a1, a2, b1, b2] = [&self.a1, &self.a2, &self.b1, &self.b2].map(|t| t.dims());
        match old {
            true => a2[0] == columns && a1[1] == columns && b2[0] == rows && b1[1] == columns,
            false => a1[0] == input && a2[1] == input && b1[0] == rows && b2[1] == columns,
        }
    }

    pub(super) fn wanted(&self) -> String {
        match self.is_new() {
            true => format!("[{}, {}]", self.b1.dims()[0], self.a1.dims()[0]),
            false => format!("[{}, {}]", self.b2.dims()[0], self.a2.dims()[0]),
        }
    }

    pub(super) fn change(&self, weight: &Tensor) -> CandleResult<Tensor> {
        let (old, rank) = self.orders(weight.dims());
        let scale = self.alpha.map_or(1.0, |alpha| alpha / rank as f64);
        let (a1, a2) = (flat(&self.a1)?, flat(&self.a2)?);
        let (b1, b2) = (flat(&self.b1)?, flat(&self.b2)?);
        let change = if old {
            (b2.matmul(&b1)? + flat(weight)?.matmul(&a2)?.matmul(&a1)?)?
        } else {
            // The product is over the weight's second axis.
            let (rows, columns) = (weight.dim(0)?, weight.dim(1)?);
            let turned = weight.reshape((rows, columns, ()))?.transpose(1, 2)?.contiguous()?;
            let turned = turned.reshape(((), columns))?.matmul(&a1)?.matmul(&a2)?;
            let product = turned.reshape((rows, (), columns))?.transpose(1, 2)?.contiguous()?;
            (product.reshape((rows, ()))? + b1.matmul(&b2)?)?
        };
        change * scale
    }
}
