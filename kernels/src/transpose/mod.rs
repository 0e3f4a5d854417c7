//! The transpose of matrices: channels of pixels to pixels of channels and back, between convolutions and linear
//! layers.

mod cpu;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

use crate::begin::begin;
use crate::profile::Span;
use crate::simd::Isa;
use crate::storage::f32_slice;
use crate::tape::{Reads, apply1};

/// `x` [B, M, N] → [B, N, M], its values one after the other. What is not f32, or not on the CPU, the tensor library
/// copies.
///
/// # Errors
/// `x` has not three dimensions.
pub fn transpose(x: &Tensor) -> Result<Tensor> {
    let (b, m, n) = x.dims3()?;
    turned(x, [b, m, n], Shape::from((b, n, m)))
}

/// `x` [B, C, H, W] → [B, H · W, C], as [`transpose`].
///
/// # Errors
/// `x` has not four dimensions.
pub fn pixels_to_tokens(x: &Tensor) -> Result<Tensor> {
    let (b, c, height, width) = x.dims4()?;
    turned(x, [b, c, height * width], Shape::from((b, height * width, c)))
}

/// `x` [B, `height` · `width`, C] → [B, C, `height`, `width`], as [`transpose`].
///
/// # Errors
/// `x` has not three dimensions, or another number of tokens.
pub fn tokens_to_pixels(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (b, tokens, c) = x.dims3()?;
    if tokens != height * width {
        bail!("transpose: {tokens} tokens are no picture of {height} by {width}")
    }
    turned(x, [b, tokens, c], Shape::from((b, c, height, width)))
}

/// `x` as matrices [B, M, N], each turned, in `shape`.
fn turned(x: &Tensor, [b, m, n]: [usize; 3], shape: Shape) -> Result<Tensor> {
    if !x.device().is_cpu() || x.dtype() != DType::F32 {
        return x.reshape((b, m, n))?.transpose(1, 2)?.contiguous()?.reshape(shape);
    }
    begin("transpose", x, shape.dims())?;
    apply1(&x.contiguous()?, Transpose { matrix: (m, n), shape }, Reads::NOTHING)
}

struct Transpose {
    /// Rows and columns of each matrix of the input.
    matrix: (usize, usize),
    /// Of what comes out.
    shape: Shape,
}

impl CustomOp1 for Transpose {
    fn name(&self) -> &'static str {
        "transpose"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(storage, layout, self.name())?;
        let _span = Span::new(self.name(), 0);
        let y = cpu::transpose(Isa::get()?, x, self.matrix);
        Ok((CpuStorage::F32(y), self.shape.clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        let ((m, n), batch) = (self.matrix, x.dim(0)?);
        turned(upstream, [batch, n, m], x.shape().clone()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn agrees_with_the_tensor_library_on_every_instruction_set() -> Result<()> {
        for shape in [(1, 1, 1), (2, 3, 5), (1, 16, 64), (3, 40, 33), (2, 100, 16), (1, 0, 4)] {
            let x = Tensor::randn(0f32, 1., shape, &Device::Cpu)?;
            let values = x.flatten_all()?.to_vec1::<f32>()?;
            let want = x.transpose(1, 2)?.flatten_all()?.to_vec1::<f32>()?;
            for isa in Isa::available() {
                assert_eq!(cpu::transpose(isa, &values, (shape.1, shape.2)), want, "{shape:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn pixels_are_tokens_and_back() -> Result<()> {
        let x = Var::randn(0f32, 1., (2, 5, 3, 4), &Device::Cpu)?;
        let tokens = pixels_to_tokens(&x)?;
        assert_eq!(tokens.dims(), [2, 12, 5]);
        let values = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
        let want = x.flatten_from(2)?.transpose(1, 2)?;
        assert_eq!(values(&tokens)?, values(&want)?);
        let back = tokens_to_pixels(&tokens, 3, 4)?;
        assert_eq!((back.dims(), values(&back)?), (x.dims(), values(&x)?));
        let weights = Tensor::randn(0f32, 1., (2, 5, 3, 4), &Device::Cpu)?;
        let gradients = (back * &weights)?.sum_all()?.backward()?;
        assert_eq!(values(gradients.get(&x).expect("x is a variable"))?, values(&weights)?);
        assert!(tokens_to_pixels(&tokens, 3, 5).is_err());
        Ok(())
    }

    #[test]
    fn takes_parts_and_halves_and_has_its_gradient() -> Result<()> {
        let x = Var::randn(0f32, 1., (2, 6, 9), &Device::Cpu)?;
        let part = x.narrow(2, 1, 7)?;
        let want = part.transpose(1, 2)?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(transpose(&part)?.flatten_all()?.to_vec1::<f32>()?, want);
        let half = transpose(&part.to_dtype(DType::F16)?)?;
        assert_eq!((half.dims(), half.dtype()), (&[2, 7, 6][..], DType::F16));
        let weights = Tensor::randn(0f32, 1., (2, 7, 6), &Device::Cpu)?;
        let [ours, theirs] = [transpose(&part)?, part.transpose(1, 2)?.contiguous()?].map(|y| {
            let gradients = (y * &weights)?.sum_all()?.backward()?;
            gradients.get(&x).expect("x is a variable").flatten_all()?.to_vec1::<f32>()
        });
        assert_eq!(ours?, theirs?);
        Ok(())
    }
}
