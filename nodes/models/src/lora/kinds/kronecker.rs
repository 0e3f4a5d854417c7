//! LoKr: the Kronecker product of two small weights, each of them whole or a low-rank product.
//! Edalati et al., "KronA", arXiv 2212.10650.

use candle_core::{Result as CandleResult, Tensor};

use super::{Factors, Read, Tucker, as_matrix, flat};
use crate::lora::factor::Factor as F;

/// W₁ ⊗ W₂.
#[derive(Clone, Debug)]
pub(in crate::lora) struct Kronecker {
    w1: Small,
    w2: Small,
    scale: f64,
}

/// One of the two weights.
#[derive(Clone, Debug)]
enum Small {
    Whole(Tensor),
    Product(Tensor, Tensor),
    Tucker(Tucker),
}

impl Small {
    fn shape(&self) -> Vec<usize> {
        match self {
            Small::Whole(whole) => whole.dims().to_vec(),
            Small::Product(a, b) => [&a.dims()[..1], &b.dims()[1..]].concat(),
            Small::Tucker(tucker) => tucker.shape(),
        }
    }

    /// As a matrix.
    fn whole(&self) -> CandleResult<Tensor> {
        match self {
            Small::Whole(whole) => flat(whole),
            Small::Product(a, b) => flat(a)?.matmul(&flat(b)?),
            Small::Tucker(tucker) => flat(&tucker.whole()?),
        }
    }
}

impl Kronecker {
    pub(super) fn read(factors: &Factors) -> Read<Self> {
        let mut rank = None;
        let w1 = match factors.get(F::LokrW1) {
            Some(whole) => Small::Whole(whole),
            None => {
                let (a, b) = factors.product(F::LokrW1A, F::LokrW1B)?;
                rank = Some(b.dims()[0]);
                Small::Product(a, b)
            }
        };
        let w2 = match factors.get(F::LokrW2) {
            Some(whole) => Small::Whole(whole),
            None => {
                rank = factors.need(F::LokrW2B)?.dims().first().copied();
                if factors.has(&[F::LokrT2]) {
                    Small::Tucker(factors.tucker(F::LokrT2, F::LokrW2A, F::LokrW2B)?)
                } else {
                    let (a, b) = factors.product(F::LokrW2A, F::LokrW2B)?;
                    Small::Product(a, b)
                }
            }
        };
        let (first, second) = (w1.shape(), w2.shape());
        let is_matrix = first.len() >= 2 && first[2..].iter().all(|one| *one == 1);
        if !is_matrix || second.len() < 2 {
            return Err(factors.damaged(format!(
                "its two factors have the shapes {first:?} and {second:?}: a matrix and a weight are wanted"
            )));
        }
        // Two whole weights have no rank, and their alpha does not count.
        let scale = rank.map_or(Ok(1.0), |rank| factors.scale(rank))?;
        Ok(Self { w1, w2, scale })
    }

    pub(super) fn fits(&self, weight: &[usize]) -> bool {
        let shape = self.shape();
        match self.w2.shape().len() {
            2 => as_matrix(&shape) == as_matrix(weight),
            // A 1 × 1 convolution and a linear layer are the same.
            _ => {
                shape[..2] == weight[..2.min(weight.len())]
                    && shape[2..].iter().product::<usize>()
                        == weight.iter().skip(2).product::<usize>()
            }
        }
    }

    pub(super) fn wanted(&self) -> String {
        format!("{:?}", self.shape())
    }

    /// Numbers that no memory could hold fit no weight.
    fn shape(&self) -> Vec<usize> {
        let (w1, mut shape) = (self.w1.shape(), self.w2.shape());
        shape[0] = shape[0].saturating_mul(w1[0]);
        shape[1] = shape[1].saturating_mul(w1[1]);
        shape
    }

    /// [o₁ · o₂, i₁ · (i₂ · kH · kW)], whose rows are those of the weight.
    pub(super) fn change(&self) -> CandleResult<Tensor> {
        let (w1, w2) = (self.w1.whole()?, self.w2.whole()?);
        let ((o1, i1), (o2, i2)) = (w1.dims2()?, w2.dims2()?);
        let product = w1.reshape((o1, 1, i1, 1))?.broadcast_mul(&w2.reshape((1, o2, 1, i2))?)?;
        product.reshape((o1 * o2, i1 * i2))? * self.scale
    }
}
