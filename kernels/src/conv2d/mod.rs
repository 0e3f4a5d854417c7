//! Two-dimensional convolution (cross-correlation, as every framework has it):
//! y\[o\] = Σ_c w\[o, c\] ⋆ x\[c\] + b\[o\], zero padding, no groups, no dilation.

use candle_core::{Result, Tensor};

/// `x` [B, C, H, W], `weight` [O, C, kH, kW], `bias` [O];
/// returns [B, O, (H + 2·padding − kH)/stride + 1, (W + 2·padding − kW)/stride + 1].
///
/// # Errors
/// The channels differ, or the padded input is smaller than the kernel.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    let (out_channels, _, kernel_h, kernel_w) = weight.dims4()?;
    if h + 2 * padding < kernel_h || w + 2 * padding < kernel_w {
        candle_core::bail!(
            "conv2d: an input of {h}×{w} with a padding of {padding} is smaller than the kernel \
             {kernel_h}×{kernel_w}"
        )
    }
    let y = if (kernel_h, kernel_w, stride, padding) == (1, 1, 1, 0) {
        conv2d_1x1(x, weight)?
    } else {
        x.conv2d(weight, padding, stride, 1, 1)?
    };
    match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, out_channels, 1, 1))?),
        None => Ok(y),
    }
}

/// One matrix product for each sample, [O, C] · [C, H·W], without any copy.
fn conv2d_1x1(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (batch, channels, h, w) = x.dims4()?;
    let (out_channels, in_channels, _, _) = weight.dims4()?;
    if channels != in_channels {
        candle_core::bail!(
            "conv2d: the input has {channels} channels, the weight takes {in_channels}"
        )
    }
    let weight = weight.reshape((out_channels, in_channels))?;
    let x = x.reshape((batch, channels, h * w))?;
    let samples = (0..batch).map(|i| weight.matmul(&x.get(i)?)).collect::<Result<Vec<_>>>()?;
    Tensor::stack(&samples, 0)?.reshape((batch, out_channels, h, w))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    /// The definition, in f64.
    fn direct(x: &Tensor, w: &Tensor, stride: usize, padding: usize) -> Result<Vec<f64>> {
        let (b, c, h, wd) = x.dims4()?;
        let (o, _, kh, kw) = w.dims4()?;
        let (oh, ow) = ((h + 2 * padding - kh) / stride + 1, (wd + 2 * padding - kw) / stride + 1);
        let xs = x.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let ws = w.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let mut y = vec![];
        for bi in 0..b {
            for oi in 0..o {
                for yi in 0..oh {
                    for xi in 0..ow {
                        let mut sum = 0.;
                        for ci in 0..c {
                            for ky in 0..kh {
                                for kx in 0..kw {
                                    let (sy, sx) = (yi * stride + ky, xi * stride + kx);
                                    if sy < padding || sx < padding {
                                        continue;
                                    }
                                    let (sy, sx) = (sy - padding, sx - padding);
                                    if sy < h && sx < wd {
                                        sum += xs[((bi * c + ci) * h + sy) * wd + sx]
                                            * ws[((oi * c + ci) * kh + ky) * kw + kx];
                                    }
                                }
                            }
                        }
                        y.push(sum);
                    }
                }
            }
        }
        Ok(y)
    }

    #[test]
    fn agrees_with_the_definition() -> Result<()> {
        let dev = Device::Cpu;
        for (k, stride, padding) in [(3, 1, 1), (3, 2, 1), (3, 2, 0), (1, 1, 0), (4, 4, 0)] {
            let x = Tensor::randn(0f32, 1., (2, 5, 9, 7), &dev)?;
            let w = Tensor::randn(0f32, 1., (6, 5, k, k), &dev)?;
            let b = Tensor::randn(0f32, 1., 6, &dev)?;
            let y = conv2d(&x, &w, Some(&b), stride, padding)?;
            let pixels = y.dim(2)? * y.dim(3)?;
            let b = b.to_vec1::<f32>()?;
            let want = direct(&x, &w, stride, padding)?;
            let got = y.flatten_all()?.to_vec1::<f32>()?;
            assert_eq!(got.len(), want.len());
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                let want = want + f64::from(b[i / pixels % 6]);
                assert!((f64::from(*got) - want).abs() < 2e-5, "{got} is not {want}");
            }
        }
        Ok(())
    }

    #[test]
    fn refuses_an_input_smaller_than_the_kernel() -> Result<()> {
        let x = Tensor::zeros((1, 1, 2, 2), DType::F32, &Device::Cpu)?;
        let w = Tensor::zeros((1, 1, 3, 3), DType::F32, &Device::Cpu)?;
        assert!(conv2d(&x, &w, None, 1, 0).is_err());
        Ok(())
    }
}
