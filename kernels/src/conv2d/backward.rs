//! The input's gradient is a convolution again, with the weight turned by half a turn and its channels exchanged, over
//! dy whose pixels lie `stride` apart (Dumoulin and Visin, "A guide to convolution arithmetic", arXiv 1603.07285, §4):
//! so it has the forward's twins. The weight's gradient has a file of its own.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::{Added, Sizes};
use super::of_weight::OfWeight;
use super::{Conv2d, winograd};
use crate::begin::begin;
use crate::channel_sums::channel_sums;
use crate::memory;
use crate::profile::Span;
use crate::simd::Isa;
use crate::storage::{f32_slice, weight_values};

/// The gradients of `x` [B, C, H, W], `weight` [O, C, kH, kW] and bias [O], each where it is wanted.
pub(super) fn gradients(
    op: &Conv2d,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    upstream: &Tensor,
) -> Result<[Option<Tensor>; 3]> {
    let sizes = op.sizes(x.layout(), weight.layout(), None)?;
    let upstream = upstream.contiguous()?;
    let dx = if x.track_op() { Some(of_input(&weight.detach(), &upstream, sizes)?) } else { None };
    let dweight = if weight.track_op() {
        begin("conv2d_backward", weight, weight.dims())?;
        let x = x.detach().contiguous()?;
        Some(if x.device().is_cpu() {
            x.apply_op2_no_bwd(&upstream, &OfWeight(sizes))?
        } else {
            of_weight_by_algebra(&x, &upstream, sizes)?
        })
    } else {
        None
    };
    let dbias = match bias {
        Some(bias) if bias.track_op() => Some(channel_sums(&upstream)?),
        _ => None,
    };
    Ok([dx, dweight, dbias])
}

fn of_input(weight: &Tensor, upstream: &Tensor, s: Sizes) -> Result<Tensor> {
    let of_gradient = Sizes {
        channels: s.out_channels,
        out_channels: s.channels,
        height: s.out_height,
        width: s.out_width,
        out_height: s.height,
        out_width: s.width,
        ..s
    };
    if weight.device().is_cpu()
        && let Some(side) = winograd::Side::that_pays(of_gradient)
    {
        begin("conv2d_backward", weight, &[s.batch, s.channels, s.height, s.width])?;
        return upstream.apply_op2_no_bwd(&weight.contiguous()?, &Winograd(of_gradient, side));
    }
    let turned = if weight.device().is_cpu() {
        weight.contiguous()?.apply_op1_no_bwd(&Turned)?
    } else {
        turned_by_algebra(weight)?
    };
    let upstream = spread(upstream, s)?;
    // Around dy: what is missing to a full correlation, less what the forward padded.
    if s.kernel_h == s.kernel_w && s.padding < s.kernel_h {
        return super::conv2d(&upstream, &turned, None, 1, s.kernel_h - 1 - s.padding);
    }
    let around = s.kernel_h.max(s.kernel_w) - 1;
    let dx = super::conv2d(&upstream, &turned, None, 1, around)?;
    let first = |kernel: usize| around + 1 - kernel + s.padding;
    dx.narrow(2, first(s.kernel_h), s.height)?.narrow(3, first(s.kernel_w), s.width)
}

/// dy, w → dx of a 3 × 3 convolution of stride 1, w as it lies.
struct Winograd(Sizes, winograd::Side);

impl CustomOp2 for Winograd {
    fn name(&self) -> &'static str {
        "conv2d_backward"
    }

    fn cpu_fwd(
        &self,
        upstream: &CpuStorage,
        upstream_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Winograd(s, side) = *self;
        let upstream = f32_slice(upstream, upstream_layout, self.name())?;
        let values = weight_values(weight, weight_layout, self.name())?;
        let _span = Span::new("conv2d 3x3, its input's gradient", s.operations());
        let kernels = winograd::Kernels { values, are_turned: true };
        let dx = winograd::conv2d(Isa::get()?, upstream.into(), kernels, Added::default(), s, side);
        Ok((CpuStorage::F32(dx), Shape::from((s.batch, s.out_channels, s.out_height, s.out_width))))
    }
}

/// dy with its pixels `stride` apart, zeros between them and where the stride left pixels of x over.
fn spread(upstream: &Tensor, s: Sizes) -> Result<Tensor> {
    if s.stride == 1 {
        return Ok(upstream.clone());
    }
    let (batch, channels, height, width) = upstream.dims4()?;
    let whole = |side: usize, kernel: usize| side + 2 * s.padding - kernel + 1;
    let (all_h, all_w) = (whole(s.height, s.kernel_h), whole(s.width, s.kernel_w));
    let apart = upstream
        .reshape((batch * channels, height, 1, width, 1))?
        .pad_with_zeros(2, 0, s.stride - 1)?
        .pad_with_zeros(4, 0, s.stride - 1)?
        .reshape((batch, channels, height * s.stride, width * s.stride))?;
    apart.narrow(2, 0, all_h)?.narrow(3, 0, all_w)?.contiguous()
}

/// w [O, C, kH, kW] → [C, O, kH, kW], rows and columns backwards, in f32.
struct Turned;

/// Input channels whose kernels are turned at once, as they lie beside each other in w.
const TURNED_AT_ONCE: usize = 16;

impl CustomOp1 for Turned {
    fn name(&self) -> &'static str {
        "conv2d_backward"
    }

    fn cpu_fwd(&self, weight: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (o, c, kh, kw) = layout.shape().dims4()?;
        let weight = weight_values(weight, layout, self.name())?;
        let kernel = kh * kw;
        let isa = Isa::get()?;
        let write = |turned: &mut [f32]| {
            let tasks = turned.par_chunks_mut((TURNED_AT_ONCE * o * kernel).max(1)).enumerate();
            tasks.for_each_init(Vec::new, |wide, (task, turned)| {
                wide.resize(turned.len() / o, 0.0);
                for out in 0..o {
                    weight.widen_into(isa, (out * c + task * TURNED_AT_ONCE) * kernel, wide);
                    for (channel, kernels) in wide.chunks_exact(kernel).enumerate() {
                        let turned = &mut turned[(channel * o + out) * kernel..][..kernel];
                        let backwards = kernels.iter().rev();
                        turned.iter_mut().zip(backwards).for_each(|(to, from)| *to = *from);
                    }
                }
            });
        };
        // SAFETY: the chunks are all of it, and each is written before it is turned.
        let turned = unsafe { memory::written_by(o * c * kernel, write) };
        Ok((CpuStorage::F32(turned), Shape::from((c, o, kh, kw))))
    }
}

/// [`Turned`] of the tensor library's operations, for a GPU; in the weight's type.
fn turned_by_algebra(weight: &Tensor) -> Result<Tensor> {
    let (o, c, kh, kw) = weight.dims4()?;
    let backwards: Vec<u32> = (0..(kh * kw) as u32).rev().collect();
    let backwards = Tensor::new(backwards, weight.device())?;
    let turned = weight.transpose(0, 1)?.contiguous()?.reshape((c * o, kh * kw))?;
    turned.index_select(&backwards, 1)?.reshape((c, o, kh, kw))
}

/// [`of_weight`] as a convolution of the tensor library's, for a GPU: samples and channels change places, and the stride
/// becomes a dilation.
fn of_weight_by_algebra(x: &Tensor, upstream: &Tensor, s: Sizes) -> Result<Tensor> {
    let turn = |t: &Tensor| t.transpose(0, 1)?.contiguous();
    let dw = turn(x)?.conv2d(&turn(upstream)?, s.padding, 1, s.stride, 1)?;
    dw.transpose(0, 1)?.narrow(2, 0, s.kernel_h)?.narrow(3, 0, s.kernel_w)?.contiguous()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    /// Σ y · g for the convolution of the definition, in f64, and its slopes by each value of x and w: exact, since the
    /// sum is linear in both.
    fn exact(x: &Tensor, w: &Tensor, g: &Tensor, s: Sizes) -> Result<(Vec<f64>, Vec<f64>)> {
        let values = |t: &Tensor| t.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>();
        let (x, w, g) = (values(x)?, values(w)?, values(g)?);
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
        let mut at = 0;
        for b in 0..s.batch {
            for o in 0..s.out_channels {
                for y in 0..s.out_height {
                    for column in 0..s.out_width {
                        let g = g[at];
                        at += 1;
                        for c in 0..s.channels {
                            for ky in 0..s.kernel_h {
                                for kx in 0..s.kernel_w {
                                    let sy = (y * s.stride + ky).wrapping_sub(s.padding);
                                    let sx = (column * s.stride + kx).wrapping_sub(s.padding);
                                    if sy >= s.height || sx >= s.width {
                                        continue;
                                    }
                                    let i = ((b * s.channels + c) * s.height + sy) * s.width + sx;
                                    let j =
                                        ((o * s.channels + c) * s.kernel_h + ky) * s.kernel_w + kx;
                                    dx[i] += g * w[j];
                                    dw[j] += g * x[i];
                                }
                            }
                        }
                    }
                }
            }
        }
        Ok((dx, dw))
    }

    fn assert_close(found: &Tensor, want: &[f64], what: &str) -> Result<()> {
        let found = found.flatten_all()?.to_vec1::<f32>()?;
        let largest = want.iter().fold(0f64, |a, b| a.max(b.abs()));
        assert_eq!(found.len(), want.len());
        for (found, want) in found.iter().zip(want) {
            let error = (f64::from(*found) - want).abs();
            assert!(error <= 1e-5 * largest, "{what}: {found} is not {want}");
        }
        Ok(())
    }

    #[test]
    fn gradients_are_those_of_the_definition_in_f64() -> Result<()> {
        let dev = Device::Cpu;
        let cases = [
            (3, 3, 1, 1, 5, 6),
            (3, 3, 2, 1, 5, 6),
            (3, 3, 2, 0, 5, 6),
            (1, 1, 1, 0, 7, 3),
            (1, 1, 2, 0, 5, 4),
            (4, 4, 4, 0, 3, 5),
            (2, 2, 3, 5, 4, 3),
            (1, 3, 1, 1, 3, 4),
            (3, 3, 1, 1, 40, 36),
            (3, 3, 1, 1, 47, 53),
        ];
        for (kh, kw, stride, padding, channels, out) in cases {
            let x = Var::randn(0f32, 1., (2, channels, 17, 14), &dev)?;
            let w = Var::randn(0f32, 1., (out, channels, kh, kw), &dev)?;
            let b = Var::randn(0f32, 1., out, &dev)?;
            let y = super::super::conv2d(&x, &w, Some(&b), stride, padding)?;
            let g = Tensor::randn(0f32, 1., y.shape(), &dev)?;
            let grads = (y * &g)?.sum_all()?.backward()?;
            let op = Conv2d { stride, padding };
            let s = op.sizes(x.layout(), w.layout(), None)?;
            let (dx, dw) = exact(&x, &w, &g, s)?;
            let what = format!("{kh}×{kw}, stride {stride}, padding {padding}");
            assert_close(grads.get(&x).expect("dx"), &dx, &what)?;
            assert_close(grads.get(&w).expect("dw"), &dw, &what)?;
            let db = g.to_dtype(DType::F64)?.sum((0, 2, 3))?.to_vec1::<f64>()?;
            assert_close(grads.get(&b).expect("db"), &db, &what)?;
            // What a GPU computes with, here on the CPU.
            assert_close(&of_weight_by_algebra(&x, &g, s)?, &dw, &what)?;
            let turned = w.apply_op1_no_bwd(&Turned)?.flatten_all()?.to_vec1::<f32>()?;
            assert_eq!(turned_by_algebra(&w)?.flatten_all()?.to_vec1::<f32>()?, turned);
        }
        Ok(())
    }

    #[test]
    fn a_frozen_weight_has_no_gradient_and_half_precision_is_widened() -> Result<()> {
        let dev = Device::Cpu;
        let x = Var::randn(0f32, 1., (1, 4, 6, 6), &dev)?;
        let w = Tensor::randn(0f32, 1., (5, 4, 3, 3), &dev)?.to_dtype(DType::F16)?;
        let wide = w.to_dtype(DType::F32)?;
        let gradient = |w: &Tensor| -> Result<Vec<f32>> {
            let grads = super::super::conv2d(&x, w, None, 1, 1)?.sum_all()?.backward()?;
            assert!(grads.get(w).is_none());
            grads.get(&x).expect("dx").flatten_all()?.to_vec1::<f32>()
        };
        assert_eq!(gradient(&w)?, gradient(&wide)?);
        // Without a variable nothing is kept for a gradient.
        assert!(!super::super::conv2d(&x.as_detached_tensor(), &w, None, 1, 1)?.track_op());
        Ok(())
    }
}
