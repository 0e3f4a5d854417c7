//! One layer of a LoRA.

use candle_core::{Result as CandleResult, Tensor};

use super::LoraError;

/// One layer's change.
#[derive(Clone, Debug)]
pub struct Layer {
    up: Tensor,
    down: Tensor,
    mid: Option<Tensor>,
    scale: f64,
}

impl Layer {
    /// `up` [out, rank] and `down` [rank, in], or of a convolution [out, rank, 1, 1] and
    /// [rank, in, kH, kW], or [rank, in, 1, 1] with the core `mid` [rank, rank, kH, kW] between them;
    /// all f32. `scale` is alpha / rank, or 1. `module` is what errors call the layer.
    ///
    /// # Errors
    /// The shapes do not fit each other, the rank is 0, or the scale is not finite.
    pub fn new(
        module: &str,
        up: Tensor,
        down: Tensor,
        mid: Option<Tensor>,
        scale: f64,
    ) -> std::result::Result<Layer, LoraError> {
        let layer = || module.to_owned();
        let (up_shape, down_shape) = (up.dims(), down.dims());
        let has_axes = matches!(up_shape, [_, _] | [_, _, 1, 1])
            && matches!(down_shape, [_, _] | [_, _, _, _]);
        if !has_axes || up_shape[1] != down_shape[0] {
            let (up, down) = (up_shape.to_vec(), down_shape.to_vec());
            return Err(LoraError::Pair { layer: layer(), up, down });
        }
        let rank = down_shape[0];
        if up.elem_count() == 0 || down.elem_count() == 0 {
            return Err(LoraError::RankZero { layer: layer() });
        }
        if let Some(mid) = &mid {
            let fits = matches!(mid.dims(), [a, b, height, width]
                if (*a, *b) == (rank, rank) && *height > 0 && *width > 0);
            if !fits || down_shape[2..].iter().any(|length| *length != 1) {
                return Err(LoraError::Mid { layer: layer(), mid: mid.dims().to_vec(), rank });
            }
        }
        if !scale.is_finite() {
            return Err(LoraError::Factor { layer: layer(), factor: scale });
        }
        Ok(Layer { up, down, mid, scale })
    }

    pub fn up(&self) -> &Tensor {
        &self.up
    }

    pub fn down(&self) -> &Tensor {
        &self.down
    }

    pub fn mid(&self) -> Option<&Tensor> {
        self.mid.as_ref()
    }

    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The shape of the weight that it changes, as far as it tells: a linear layer's may be stored as
    /// a 1 × 1 convolution's, or the other way round.
    pub fn shape(&self) -> Vec<usize> {
        let down = self.down.dims();
        let kernel = self.mid.as_ref().map_or(&down[2..], |mid| &mid.dims()[2..]);
        [&[self.up.dims()[0], down[1]], kernel].concat()
    }

    /// Does it change a weight of this shape?
    pub(super) fn fits(&self, weight: &[usize]) -> bool {
        let without_ones = |shape: &[usize]| {
            let kernel: usize = shape.iter().skip(2).product();
            (shape.first().copied(), shape.get(1).copied(), kernel)
        };
        without_ones(&self.shape()) == without_ones(weight)
    }

    /// Up [out, rank] times the scale, and down [rank, in · kH · kW].
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;
    use candle_core::Device;

    #[test]
    fn a_decomposed_convolution_is_its_product() -> Result<()> {
        let random = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu);
        let (up, down, mid) =
            (random(&[5, 2, 1, 1])?, random(&[2, 3, 1, 1])?, random(&[2, 2, 3, 3])?);
        let layer = Layer::new("conv", up.clone(), down.clone(), Some(mid.clone()), 0.5)?;
        assert!(
            layer.shape() == [5, 3, 3, 3] && layer.fits(&[5, 3, 3, 3]) && !layer.fits(&[5, 27])
        );
        let (left, right) = layer.matrices(2.0)?;
        let found = left.matmul(&right)?.reshape((5, 3, 3, 3))?;
        // Position by position: up · mid[.., .., y, x] · down.
        for (y, x) in (0..3).flat_map(|y| (0..3).map(move |x| (y, x))) {
            let core = mid.narrow(2, y, 1)?.narrow(3, x, 1)?.reshape((2, 2))?;
            let want = up.reshape((5, 2))?.matmul(&core)?.matmul(&down.reshape((2, 3))?)?;
            let got = found.narrow(2, y, 1)?.narrow(3, x, 1)?.reshape((5, 3))?;
            let error = (got - want)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(error < 1e-5, "{error}");
        }
        Ok(())
    }
}
