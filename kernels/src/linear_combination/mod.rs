//! Σ aᵢ xᵢ of tensors of one shape, in one pass: what a sampler's step is, and, of differences from one of them, guidance. The
//! tensor library has an operation, and a launch on a GPU, for each product and each sum.

mod cpu;
#[cfg(any(feature = "cuda", test))]
mod cuda;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Storage, Tensor, bail};

use crate::begin::begin;
use crate::profile::Span;
use crate::storage::{are_f32_on_cpu, f32_slice};

/// Tensors of a launch on a GPU, and the first of the next one's is the sum of those before: a multistep of the fourth order has
/// as many.
const MOST: usize = 5;

/// Σ aᵢ xᵢ over tensors of one shape, at least one, added in their order; as the tensor library computes it, on the CPU to the
/// bit. Where something learns, and of types that the operator does not have, it is the tensor library's.
///
/// # Errors
/// There is no tensor, or their shapes, types or devices differ.
pub fn linear_combination(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    if let Some((head, rest)) = terms.split_at_checked(MOST)
        && !rest.is_empty()
        && !head[0].1.device().is_cpu()
    {
        let sum = linear_combination(head)?;
        return linear_combination(&[&[(1.0, &sum)], rest].concat());
    }
    apply(terms, false)
}

/// `first` + Σ aᵢ (xᵢ − `first`), as [`linear_combination`]: what leads from one prediction toward others.
///
/// # Errors
/// The shapes, types or devices differ.
pub fn linear_combination_from(first: &Tensor, others: &[(f64, &Tensor)]) -> Result<Tensor> {
    apply(&[&[(1.0, first)], others].concat(), true)
}

fn apply(terms: &[(f64, &Tensor)], of_differences: bool) -> Result<Tensor> {
    let Some(((_, first), others)) = terms.split_first() else {
        bail!("a sum of no tensors has no shape")
    };
    if !is_one(terms) {
        let sum = if of_differences { (*first).clone() } else { (*first * terms[0].0)? };
        return others.iter().try_fold(sum, |sum, (factor, x)| match of_differences {
            true => sum + ((*x - *first)? * *factor)?,
            false => sum + (*x * *factor)?,
        });
    }
    begin("linear_combination", first, first.dims())?;
    let others = others.iter().map(|(_, x)| x.contiguous()).collect::<Result<Vec<_>>>()?;
    let factors = terms.iter().map(|(factor, _)| *factor as f32).collect();
    first.contiguous()?.apply_op1_no_bwd(&LinearCombination { factors, others, of_differences })
}

/// Whether the operator is for these.
fn is_one(terms: &[(f64, &Tensor)]) -> bool {
    let tensors: Vec<&Tensor> = terms.iter().map(|(_, x)| *x).collect();
    let first = tensors[0];
    let are_alike = tensors
        .iter()
        .all(|x| x.dims() == first.dims() && x.dtype() == first.dtype() && !x.track_op());
    let on_gpu = first.device().is_cuda()
        && terms.len() <= MOST
        && matches!(first.dtype(), DType::F32 | DType::F16 | DType::BF16)
        && tensors.iter().all(|x| x.device().same_device(first.device()));
    are_alike && (are_f32_on_cpu(&tensors) || on_gpu)
}

/// Of the first tensor. The tensor library's operators have three inputs at most, so the others are kept here.
struct LinearCombination {
    /// The first one's, then those of `others`.
    factors: Vec<f32>,
    others: Vec<Tensor>,
    /// Of the others from the first; its own factor is 1 then.
    of_differences: bool,
}

impl CustomOp1 for LinearCombination {
    fn name(&self) -> &'static str {
        "linear_combination"
    }

    fn cpu_fwd(&self, first: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let guards: Vec<_> = self.others.iter().map(Tensor::storage_and_layout).collect();
        let mut inputs = vec![f32_slice(first, layout, self.name())?];
        for (storage, layout) in &guards {
            match &**storage {
                Storage::Cpu(storage) => inputs.push(f32_slice(storage, layout, self.name())?),
                _ => bail!("{}: an input is not on the CPU", self.name()),
            }
        }
        let _span = Span::new(self.name(), 0);
        let sums = cpu::linear_combination(&self.factors, &inputs, self.of_differences);
        Ok((CpuStorage::F32(sums), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, first: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        use crate::cuda::device;
        let (name, shape) = (self.name(), layout.shape());
        let number_type = device::number_type(first, name)?;
        let guards: Vec<_> = self.others.iter().map(Tensor::storage_and_layout).collect();
        let mut inputs = vec![device::Input::new(first, layout, name)?];
        for (storage, layout) in &guards {
            match &**storage {
                Storage::Cuda(storage) => inputs.push(device::Input::new(storage, layout, name)?),
                _ => bail!("{name}: an input is not on the GPU"),
            }
        }
        let values = shape.elem_count();
        let plan = cuda::plan(number_type, &self.factors, values, self.of_differences);
        Ok((device::run(&plan, &inputs, (number_type, values))?, shape.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    fn bits(x: &Tensor) -> Result<Vec<u32>> {
        let values = x.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        Ok(values.into_iter().map(f32::to_bits).collect())
    }

    /// What the operator stands for, by the tensor library.
    fn by_algebra(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
        let first = (terms[0].1 * terms[0].0)?;
        terms[1..].iter().try_fold(first, |sum, (a, x)| sum + (*x * *a)?)
    }

    #[test]
    fn is_the_tensor_library_s_to_the_bit() -> Result<()> {
        for shape in [(1, 1, 1, 1), (2, 4, 9, 7), (1, 4, 65, 80)] {
            let x = (0..7).map(|_| Tensor::randn(0f32, 1., shape, &Device::Cpu));
            let x = x.collect::<Result<Vec<_>>>()?;
            let factors = [0.3, -1.7, 1.0, 1e-3, 0.0, -0.5, 12.0];
            for count in 1..=7 {
                let terms: Vec<_> = factors.into_iter().zip(&x).take(count).collect();
                assert_eq!(bits(&linear_combination(&terms)?)?, bits(&by_algebra(&terms)?)?);
            }
            let toward = linear_combination_from(&x[0], &[(7.5, &x[1])])?;
            let want = (&x[0] + ((&x[1] - &x[0])? * 7.5)?)?;
            assert_eq!(bits(&toward)?, bits(&want)?);
        }
        // Zeros of both signs, and rows that lie apart.
        let zeros = Tensor::new(&[[0f32, -0.0], [-0.0, 0.0]], &Device::Cpu)?;
        for terms in [&[(-1.0, &zeros)][..], &[(1.0, &zeros), (-2.0, &zeros.t()?)]] {
            assert_eq!(bits(&linear_combination(terms)?)?, bits(&by_algebra(terms)?)?);
        }
        Ok(())
    }

    #[test]
    fn takes_other_types_and_learns_and_refuses_other_shapes() -> Result<()> {
        let x = Tensor::randn(0f32, 1., (2, 3), &Device::Cpu)?;
        let half = x.to_dtype(DType::F16)?;
        let found = linear_combination(&[(0.5, &half), (2.0, &half)])?;
        assert_eq!(bits(&found)?, bits(&by_algebra(&[(0.5, &half), (2.0, &half)])?)?);
        let variable = Var::from_tensor(&x)?;
        let sum = linear_combination_from(&x, &[(3.0, variable.as_tensor())])?.sum_all()?;
        let gradients = sum.backward()?;
        let slope =
            gradients.get(&variable).expect("a gradient").flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(slope, [3.0; 6]);
        assert!(linear_combination(&[]).is_err());
        assert!(linear_combination(&[(1.0, &x), (1.0, &x.t()?)]).is_err());
        assert!(linear_combination_from(&x, &[(1.0, &half)]).is_err());
        Ok(())
    }
}
