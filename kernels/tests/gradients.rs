//! Gradients as whoever calls the operators sees them.

use candle_core::{DType, Device, Result, Tensor, Var};
use kosmograph_kernels as kernels;

fn assert_close(found: &Tensor, want: &Tensor, what: &str) -> Result<()> {
    let want = want.to_dtype(DType::F64)?;
    let largest = want.abs()?.max_all()?.to_scalar::<f64>()?;
    let error = (found.to_dtype(DType::F64)? - want)?.abs()?.max_all()?.to_scalar::<f64>()?;
    assert!(error <= 1e-5 * largest, "{what}: off by {error:.1e} of {largest:.1e}");
    Ok(())
}

#[test]
fn a_low_rank_update_s_are_those_of_its_formula_in_f64() -> Result<()> {
    let dev = Device::Cpu;
    let random = |shape| Var::randn(0f32, 1., shape, &dev);
    let (weight, up, down) = (random((70, 130))?, random((70, 5))?, random((5, 130))?);
    let y = kernels::low_rank_update(&weight, &up, &down)?;
    let upstream = Tensor::randn(0f32, 1., y.shape(), &dev)?;
    let grads = (y * &upstream)?.sum_all()?.backward()?;
    let wide = |t: &Tensor| t.detach().to_dtype(DType::F64);
    let (g, up64, down64) = (wide(&upstream)?, wide(&up)?, wide(&down)?);
    let gradient = |var: &Var| grads.get(var).cloned().expect("a gradient");
    assert_close(&gradient(&weight), &upstream, "the weight's")?;
    assert_close(&gradient(&up), &g.matmul(&down64.t()?)?, "up's")?;
    assert_close(&gradient(&down), &up64.t()?.matmul(&g)?, "down's")
}

#[test]
fn a_linear_layer_s_weight_may_be_in_half_precision() -> Result<()> {
    let dev = Device::Cpu;
    let x = Var::randn(0f32, 1., (3, 33, 40), &dev)?;
    let weight = Tensor::randn(0f32, 1., (50, 40), &dev)?;
    for dtype in [DType::F16, DType::BF16] {
        let half = weight.to_dtype(dtype)?;
        let grads = kernels::linear(&x, &half, None)?.sum_all()?.backward()?;
        let ones = Tensor::ones((3, 33, 50), DType::F64, &dev)?;
        let want = ones.broadcast_matmul(&half.to_dtype(DType::F64)?)?;
        assert_close(grads.get(&x).expect("a gradient"), &want, "the input's")?;
        assert!(grads.get(&half).is_none());
    }
    Ok(())
}

/// Inference holds no inputs: without a variable nothing is kept for a gradient.
#[test]
fn without_a_variable_nothing_is_kept() -> Result<()> {
    let dev = Device::Cpu;
    let x = Tensor::randn(0f32, 1., (1, 4, 6, 6), &dev)?;
    let w = Tensor::randn(0f32, 1., (4, 4, 3, 3), &dev)?;
    let ones = Tensor::ones(4, DType::F32, &dev)?;
    let rows = Tensor::randn(0f32, 1., (1, 1, 3, 4), &dev)?;
    let square = Tensor::randn(0f32, 1., (4, 4), &dev)?;
    let results = [
        kernels::conv2d(&x, &w, Some(&ones), 1, 1)?,
        kernels::group_norm(&x, &ones, &ones, 2, 1e-5)?,
        kernels::group_norm_silu(&x, &ones, &ones, 2, 1e-5)?,
        kernels::upsample_nearest2d(&x, 12, 12)?,
        kernels::silu(&x)?,
        kernels::gelu_erf(&x)?,
        kernels::quick_gelu(&x)?,
        kernels::geglu(&x)?,
        kernels::layer_norm(&rows, &ones, &ones, 1e-5)?,
        kernels::linear(&rows, &square, Some(&ones))?,
        kernels::attention(&rows, &rows, &rows, None, 0.5)?,
        kernels::low_rank_update(&square, &square, &square)?,
    ];
    assert!(results.iter().all(|result| !result.track_op()));
    Ok(())
}
