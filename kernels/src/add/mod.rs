//! Sums on all threads: of two tensors, as a residual connection has them, and of a number for each channel. The gradient of
//! the first is the upstream's itself, twice.

mod cpu;

use candle_core::{CpuStorage, CustomOp2, D, Layout, Result, Shape, Tensor};

use crate::begin::begin;
use crate::profile::Span;
use crate::storage::{are_f32_on_cpu, f32_slice};
use crate::tape::{Reads, apply2};

pub(crate) use cpu::{VALUES, in_tasks};

/// x + y of one shape. What is not f32, or not on the CPU, the tensor library adds.
///
/// # Errors
/// The shapes or types differ.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if !are_f32_on_cpu(&[x, y]) || x.dims() != y.dims() {
        return x + y;
    }
    begin("add", x, x.dims())?;
    apply2([&x.contiguous()?, &y.contiguous()?], Add, Reads::NOTHING)
}

/// `x` [B, C, ...] + `y` [B, C], each number to all values of its channel. What is not f32, or not on the CPU, the tensor
/// library adds.
///
/// # Errors
/// The shapes do not fit, or the types differ.
pub fn add_to_channels(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if !are_f32_on_cpu(&[x, y]) || x.rank() < 2 || y.dims() != &x.dims()[..2] {
        let mut shape = y.dims().to_vec();
        shape.resize(x.rank().max(shape.len()), 1);
        return x.broadcast_add(&y.reshape(shape)?);
    }
    begin("add", x, x.dims())?;
    apply2([&x.contiguous()?, &y.contiguous()?], AddToChannels, Reads::NOTHING)
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, y) = (f32_slice(x, x_layout, self.name())?, f32_slice(y, y_layout, self.name())?);
        let _span = Span::new(self.name(), 0);
        Ok((CpuStorage::F32(cpu::add(x, y)), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        _: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let of = |input: &Tensor| input.track_op().then(|| upstream.clone());
        Ok((of(x), of(y)))
    }
}

struct AddToChannels;

impl CustomOp2 for AddToChannels {
    fn name(&self) -> &'static str {
        "add_to_channels"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, y) = (f32_slice(x, x_layout, self.name())?, f32_slice(y, y_layout, self.name())?);
        let _span = Span::new("add", 0);
        Ok((CpuStorage::F32(cpu::add_to_channels(x, y)), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        _: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = match (y.track_op(), upstream.rank()) {
            (false, _) => None,
            (true, 2) => Some(upstream.clone()),
            (true, _) => Some(upstream.flatten_from(2)?.sum(D::Minus1)?),
        };
        Ok((x.track_op().then(|| upstream.clone()), dy))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    fn values(x: &Tensor) -> Result<Vec<f32>> {
        x.flatten_all()?.to_vec1()
    }

    #[test]
    fn sums_and_gradients_are_the_tensor_library_s() -> Result<()> {
        let dev = Device::Cpu;
        for shape in [(1, 1, 1), (2, 3, 5), (3, 40, 1000), (1, 2, 40_000)] {
            let (b, c, _) = shape;
            let [x, y] = [Var::randn(0f32, 1., shape, &dev)?, Var::randn(0f32, 1., shape, &dev)?];
            let s = Var::randn(0f32, 1., (b, c), &dev)?;
            let g = Tensor::randn(0f32, 1., shape, &dev)?;
            let pairs = [
                (&y, add(&x, &y)?, (x.as_tensor() + y.as_tensor())?),
                (&s, add_to_channels(&x, &s)?, x.broadcast_add(&s.unsqueeze(2)?)?),
            ];
            for (other, ours, theirs) in pairs {
                assert_eq!(values(&ours)?, values(&theirs)?, "{shape:?}");
                let gradients = |y: &Tensor| (y * &g)?.sum_all()?.backward();
                let (ours, theirs) = (gradients(&ours)?, gradients(&theirs)?);
                for input in [&x, other] {
                    let [ours, theirs] =
                        [&ours, &theirs].map(|of| of.get(input).map(values).transpose());
                    let (ours, theirs) = (ours?.expect("ours"), theirs?.expect("theirs"));
                    for (ours, theirs) in ours.iter().zip(&theirs) {
                        assert!((ours - theirs).abs() <= 1e-4 * (1.0 + theirs.abs()), "{shape:?}");
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn takes_parts_and_halves_and_refuses_what_does_not_fit() -> Result<()> {
        let x = Tensor::randn(0f32, 1., (2, 6, 9), &Device::Cpu)?;
        let (a, b) = (x.narrow(2, 1, 4)?, x.narrow(2, 5, 4)?);
        assert_eq!(values(&add(&a, &b)?)?, values(&(&a + &b)?)?);
        let half = x.to_dtype(DType::F16)?;
        assert_eq!(add(&half, &half)?.dtype(), DType::F16);
        assert!(add(&a, &x).is_err() && add(&half, &x).is_err());
        assert!(add_to_channels(&x, &Tensor::zeros((2, 5), DType::F32, &Device::Cpu)?).is_err());
        // One number for all samples.
        let s = Tensor::new(&[[1f32, 2., 3., 4., 5., 6.]], &Device::Cpu)?;
        let want = x.broadcast_add(&s.unsqueeze(2)?)?;
        assert_eq!(values(&add_to_channels(&x, &s)?)?, values(&want)?);
        Ok(())
    }
}
