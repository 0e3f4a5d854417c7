//! Σ over samples and pixels for each channel: the gradient of what was added to every pixel, as a bias is. For the backward
//! passes of other operators; it has no gradient itself.

mod cpu;

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};

use crate::begin::begin;
use crate::profile::Span;
use crate::simd::Isa;
use crate::storage::{are_f32_on_cpu, f32_slice};

pub(crate) use cpu::sums_of_rows;

/// `x` [B, C, ...] → [C]. What is not f32, or not on the CPU, the tensor library adds.
///
/// # Errors
/// `x` has less than two dimensions.
pub(crate) fn channel_sums(x: &Tensor) -> Result<Tensor> {
    if !are_f32_on_cpu(&[x]) {
        return match x.rank() {
            2 => x.sum(0),
            _ => x.flatten_from(2)?.sum(D::Minus1)?.sum(0),
        };
    }
    let channels = x.dim(1)?;
    begin("channel_sums", x, &[channels])?;
    x.contiguous()?.apply_op1_no_bwd(&ChannelSums { channels })
}

struct ChannelSums {
    channels: usize,
}

impl CustomOp1 for ChannelSums {
    fn name(&self) -> &'static str {
        "channel_sums"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let pixels = layout.dims()[2..].iter().product();
        let x = f32_slice(x, layout, self.name())?;
        let _span = Span::new(self.name(), 0);
        let sums = cpu::channel_sums(Isa::get()?, x, self.channels, pixels);
        Ok((CpuStorage::F32(sums), Shape::from(self.channels)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn sums_are_those_of_f64() -> Result<()> {
        let dev = Device::Cpu;
        // Rows that are a part of a task, and of several; pixels that fill vectors or do not.
        let shapes: [&[usize]; 8] = [
            &[1, 1],
            &[3, 7],
            &[5000, 24],
            &[2, 20_000],
            &[2, 3, 1],
            &[3, 5, 7, 9],
            &[2, 40, 33, 32],
            &[4, 0, 2],
        ];
        for shape in shapes {
            let x = Tensor::randn(1f32, 1., shape, &dev)?;
            let pixels: usize = shape[2..].iter().product();
            let sums = channel_sums(&x)?.to_vec1::<f32>()?;
            let wide = x.to_dtype(DType::F64)?.reshape((shape[0], shape[1], pixels))?;
            let want = wide.sum(2)?.sum(0)?.to_vec1::<f64>()?;
            assert_eq!(sums.len(), want.len());
            for (sum, want) in sums.iter().zip(want) {
                assert!((f64::from(*sum) - want).abs() <= 1e-6 * want.abs().max(1.), "{shape:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn takes_a_part_and_refuses_a_vector() -> Result<()> {
        let x = Tensor::randn(0f32, 1., (3, 6, 8), &Device::Cpu)?;
        let part = x.narrow(1, 2, 3)?;
        let want = channel_sums(&part.contiguous()?)?.to_vec1::<f32>()?;
        assert_eq!(channel_sums(&part)?.to_vec1::<f32>()?, want);
        assert!(channel_sums(&x.flatten_all()?).is_err());
        Ok(())
    }
}
