//! LoHa: the product, number by number, of two low-rank products.
//! Nam et al., "FedPara", arXiv 2108.06098.

use candle_core::{Result as CandleResult, Tensor};

use super::{Factors, Read, Tucker, as_matrix, flat};
use crate::lora::factor::Factor as F;

/// (A₁ B₁) ∘ (A₂ B₂), or of a convolution the two after Tucker.
#[derive(Clone, Debug)]
pub(in crate::lora) struct Hadamard {
    sides: [Side; 2],
    scale: f64,
}

#[derive(Clone, Debug)]
enum Side {
    /// [out, rank] and [rank, in · kH · kW].
    Product(Tensor, Tensor),
    Tucker(Tucker),
}

impl Side {
    fn read(factors: &Factors, core: F, a: F, b: F) -> Read<Side> {
        if factors.has(&[core]) {
            return Ok(Side::Tucker(factors.tucker(core, a, b)?));
        }
        let (a, b) = factors.product(a, b)?;
        Ok(Side::Product(a, b))
    }

    fn shape(&self) -> Vec<usize> {
        match self {
            Side::Product(a, b) => [&a.dims()[..1], &b.dims()[1..]].concat(),
            Side::Tucker(tucker) => tucker.shape(),
        }
    }

    fn whole(&self) -> CandleResult<Tensor> {
        match self {
            Side::Product(a, b) => flat(a)?.matmul(&flat(b)?),
            Side::Tucker(tucker) => flat(&tucker.whole()?),
        }
    }
}

impl Hadamard {
    pub(super) fn read(factors: &Factors) -> Read<Self> {
        let rank = factors.need(F::HadaW1B)?.dims().first().copied().unwrap_or(1);
        let sides = [
            Side::read(factors, F::HadaT1, F::HadaW1A, F::HadaW1B)?,
            Side::read(factors, F::HadaT2, F::HadaW2A, F::HadaW2B)?,
        ];
        let [first, second] = [sides[0].shape(), sides[1].shape()];
        if as_matrix(&first) != as_matrix(&second) {
            let what = format!("its two products have the shapes {first:?} and {second:?}");
            return Err(factors.damaged(format!("{what}, and both of one weight are one shape")));
        }
        Ok(Self { sides, scale: factors.scale(rank)? })
    }

    pub(super) fn fits(&self, weight: &[usize]) -> bool {
        self.sides.iter().all(|side| match side {
            Side::Product(..) => as_matrix(&side.shape()) == as_matrix(weight),
            Side::Tucker(_) => side.shape() == weight,
        })
    }

    pub(super) fn wanted(&self) -> String {
        format!("{:?}", self.sides[0].shape())
    }

    pub(super) fn change(&self) -> CandleResult<Tensor> {
        (self.sides[0].whole()? * self.sides[1].whole()?)? * self.scale
    }
}
