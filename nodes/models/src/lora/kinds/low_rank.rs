//! LoRA and LoCon: U D, of two matrices with few numbers.

use candle_core::{Result as CandleResult, Tensor};

use super::{Factors, Read};
use crate::lora::LoraError;
use crate::lora::factor::Factor;

/// `up` [out, rank] and `down` [rank, in], or of a convolution [out, rank, 1, 1] and
/// [rank, in, kH, kW], or [rank, in, 1, 1] with the core `mid` [rank, rank, kH, kW] between them.
#[derive(Clone, Debug)]
pub(in crate::lora) struct LowRank {
    up: Tensor,
    down: Tensor,
    mid: Option<Tensor>,
    pub(in crate::lora) scale: f64,
}

impl LowRank {
    pub(super) fn read(factors: &Factors) -> Read<Self> {
        let (down, up) = (factors.need(Factor::Down)?, factors.need(Factor::Up)?);
        let mid = factors.get(Factor::Mid);
        let layer = || factors.module.to_owned();
        let (up_shape, down_shape) = (up.dims(), down.dims());
        let has_axes = matches!(up_shape, [_, _] | [_, _, 1, 1])
            && matches!(down_shape, [_, _] | [_, _, _, _]);
        if !has_axes || up_shape[1] != down_shape[0] {
            let (up, down) = (up_shape.to_vec(), down_shape.to_vec());
            return Err(LoraError::Pair { layer: layer(), up, down });
        }
        let rank = down_shape[0];
        if let Some(mid) = &mid {
            let fits = matches!(mid.dims(), [a, b, _, _] if (*a, *b) == (rank, rank));
            if !fits || down_shape[2..].iter().any(|length| *length != 1) {
                return Err(LoraError::Mid { layer: layer(), mid: mid.dims().to_vec(), rank });
            }
        }
        let scale = factors.scale(rank)?;
        Ok(Self { up, down, mid, scale })
    }

    /// The shape of the weight that it changes, as far as it tells: a linear layer's may be stored as
    /// a 1 × 1 convolution's, or the other way round.
    pub(super) fn shape(&self) -> Vec<usize> {
        let down = self.down.dims();
        let kernel = self.mid.as_ref().map_or(&down[2..], |mid| &mid.dims()[2..]);
        [&[self.up.dims()[0], down[1]], kernel].concat()
    }

    pub(super) fn fits(&self, weight: &[usize]) -> bool {
        let without_ones = |shape: &[usize]| {
            let kernel: usize = shape.iter().skip(2).product();
            (shape.first().copied(), shape.get(1).copied(), kernel)
        };
        without_ones(&self.shape()) == without_ones(weight)
    }

    /// Up [out, rank] times the scale and the strength, and down [rank, in · kH · kW].
    pub(super) fn matrices(&self, strength: f64) -> CandleResult<(Tensor, Tensor)> {
        let rank = self.down.dim(0)?;
        let up = (self.up.reshape(((), rank))? * (strength * self.scale))?;
        let down = match &self.mid {
            None => self.down.reshape((rank, ()))?,
            Some(mid) => {
                // Σ_b mid[a, b, y, x] down[b, i] for all (a, i, y, x).
                let (_, _, height, width) = mid.dims4()?;
                let core = mid.permute((0, 2, 3, 1))?.reshape((rank * height * width, rank))?;
                let product = core.matmul(&self.down.reshape((rank, ()))?)?;
                let product = product.reshape((rank, height, width, ()))?;
                product.permute((0, 3, 1, 2))?.reshape((rank, ()))?
            }
        };
        Ok((up, down))
    }

    pub(super) fn change(&self) -> CandleResult<Tensor> {
        let (up, down) = self.matrices(1.0)?;
        up.matmul(&down)
    }
}
