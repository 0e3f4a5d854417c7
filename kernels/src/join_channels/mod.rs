//! The channels of two pictures as one's, as a skip connection joins them: on all threads. Of a single sample the gradients
//! are the upstream's two parts where they lie.

mod cpu;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::begin::begin;
use crate::profile::Span;
use crate::storage::{are_f32_on_cpu, f32_slice};
use crate::tape::{Reads, apply2};

/// `x` [B, C, ...] and `y` [B, D, ...] → [B, C + D, ...]. What is not f32, or not on the CPU, the tensor library joins.
///
/// # Errors
/// The shapes differ in more than the channels.
pub fn join_channels(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if !are_f32_on_cpu(&[x, y]) {
        return Tensor::cat(&[x, y], 1);
    }
    let shape = joined(x.shape(), y.shape())?;
    begin("join_channels", x, shape.dims())?;
    apply2([&x.contiguous()?, &y.contiguous()?], JoinChannels, Reads::NOTHING)
}

fn joined(x: &Shape, y: &Shape) -> Result<Shape> {
    match (x.dims(), y.dims()) {
        ([b, c, rest @ ..], [of_y, d, of_rest @ ..]) if (b, rest) == (of_y, of_rest) => {
            Ok(Shape::from([&[*b, c + d], rest].concat()))
        }
        _ => bail!("join_channels: {x:?} and {y:?} differ in more than their channels"),
    }
}

struct JoinChannels;

impl CustomOp2 for JoinChannels {
    fn name(&self) -> &'static str {
        "join_channels"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = joined(x_layout.shape(), y_layout.shape())?;
        let samples = shape.dims()[0];
        let (x, y) = (f32_slice(x, x_layout, self.name())?, f32_slice(y, y_layout, self.name())?);
        let _span = Span::new(self.name(), 0);
        Ok((CpuStorage::F32(cpu::join(x, y, samples)), shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        _: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (c, d) = (x.dim(1)?, y.dim(1)?);
        let part = |input: &Tensor, first: usize, count: usize| match input.track_op() {
            false => Ok(None),
            true => part(upstream, first, count).map(Some),
        };
        Ok((part(x, 0, c)?, part(y, c, d)?))
    }
}

/// `count` channels of `x` [B, C, ...] from number `first` on, their values one after the other.
fn part(x: &Tensor, first: usize, count: usize) -> Result<Tensor> {
    let narrow = x.narrow(1, first, count)?;
    if narrow.is_contiguous() || !are_f32_on_cpu(&[x]) {
        return narrow.contiguous();
    }
    x.contiguous()?.apply_op1_no_bwd(&Part { first, count })
}

struct Part {
    first: usize,
    count: usize,
}

impl CustomOp1 for Part {
    fn name(&self) -> &'static str {
        "join_channels_backward"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut shape = layout.dims().to_vec();
        let of_channel = shape.iter().skip(2).product::<usize>();
        let of_sample = shape[1] * of_channel;
        shape[1] = self.count;
        let x = f32_slice(x, layout, self.name())?;
        let _span = Span::new(self.name(), 0);
        let first = self.first * of_channel;
        let values = first..first + self.count * of_channel;
        Ok((CpuStorage::F32(cpu::part(x, of_sample, values)), Shape::from(shape)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    #[test]
    fn agrees_with_the_tensor_library() -> Result<()> {
        let dev = Device::Cpu;
        for (batch, c, d, side) in [(1, 2, 3, 4), (3, 1, 5, 7), (2, 40, 24, 33), (1, 3, 1, 200)] {
            let x = Var::randn(0f32, 1., (batch, c, side, side), &dev)?;
            let y = Var::randn(0f32, 1., (batch, d, side, side), &dev)?;
            let (ours, theirs) = (join_channels(&x, &y)?, Tensor::cat(&[x.as_tensor(), &y], 1)?);
            assert_eq!(ours.dims(), theirs.dims());
            let values = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
            assert_eq!(values(&ours)?, values(&theirs)?);
            let g = Tensor::randn(0f32, 1., ours.shape(), &dev)?;
            let gradients = |y: &Tensor| (y * &g)?.sum_all()?.backward();
            let (ours, theirs) = (gradients(&ours)?, gradients(&theirs)?);
            for input in [&x, &y] {
                let [ours, theirs] = [&ours, &theirs].map(|of| values(of.get(input).expect("one")));
                assert_eq!(ours?, theirs?);
            }
        }
        let [x, y] = [(2, 3, 4, 4), (2, 3, 4, 5)].map(|s| Tensor::zeros(s, DType::F32, &dev));
        let told = join_channels(&x?, &y?).unwrap_err().to_string();
        assert!(told.contains("differ in more than their channels"), "{told}");
        Ok(())
    }
}
