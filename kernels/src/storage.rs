//! Plain slices out of candle's CPU storage, for the CPU twins.

use candle_core::{CpuStorage, DType, Layout, Result, Tensor, bail};
use half::{bf16, f16};

use crate::simd::{Isa, Kernel, Vector};

/// `run` on activations as the CPU twins take them: f16 and bf16 are widened, and the result is rounded to their
/// type, which is what a CUDA twin does in its registers.
pub(crate) fn in_f32(x: &Tensor, run: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    match x.dtype() {
        dtype @ (DType::F16 | DType::BF16) if x.device().is_cpu() => {
            run(&x.to_dtype(DType::F32)?)?.to_dtype(dtype)
        }
        _ => run(x),
    }
}

/// Whether the CPU twin of an operator that only moves or adds takes them; the tensor library does it for others.
pub(crate) fn are_f32_on_cpu(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|x| x.device().is_cpu() && x.dtype() == DType::F32)
}

/// The f32 values of a contiguous tensor.
///
/// # Errors
/// The tensor is not contiguous, or is not f32.
pub(crate) fn f32_slice<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
    op: &str,
) -> Result<&'a [f32]> {
    let values = match storage {
        CpuStorage::F32(values) => values,
        other => {
            use candle_core::backend::BackendStorage;
            bail!("{op} computes in f32, the input is {:?}", other.dtype())
        }
    };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("{op} needs a contiguous input, the layout is {layout:?}"),
    }
}

/// The values of a weight, which may be kept in half precision. Every f16 and every bf16 is an f32, so
/// widening changes no value.
#[derive(Clone, Copy)]
pub(crate) enum WeightValues<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
}

impl<'a> WeightValues<'a> {
    pub(crate) fn len(self) -> usize {
        match self {
            WeightValues::F32(values) => values.len(),
            WeightValues::F16(values) => values.len(),
            WeightValues::BF16(values) => values.len(),
        }
    }

    /// Where the values begin, and the bytes of each.
    pub(crate) fn bytes(self) -> (*const u8, usize) {
        match self {
            WeightValues::F32(values) => (values.as_ptr().cast(), size_of::<f32>()),
            WeightValues::F16(values) => (values.as_ptr().cast(), size_of::<f16>()),
            WeightValues::BF16(values) => (values.as_ptr().cast(), size_of::<bf16>()),
        }
    }

    /// Fills `wide` with the values from number `start` on, with the caller's instructions: within a kernel, where a
    /// call for each few values would cost more than they do.
    #[inline(always)]
    pub(crate) fn widen<V: Vector>(self, start: usize, wide: &mut [f32]) {
        let end = start + wide.len();
        match self {
            WeightValues::F32(values) => wide.copy_from_slice(&values[start..end]),
            // SAFETY, of both: the function is called with as many values as a vector has.
            WeightValues::F16(values) => by_vectors::<V, _>(
                &values[start..end],
                wide,
                |from| unsafe { V::load_f16(from) },
                f16::to_f32,
            ),
            WeightValues::BF16(values) => by_vectors::<V, _>(
                &values[start..end],
                wide,
                |from| unsafe { V::load_bf16(from) },
                bf16::to_f32,
            ),
        }
    }

    /// Fills `wide` with the values from number `start` on.
    pub(crate) fn widen_into(self, isa: Isa, start: usize, wide: &mut [f32]) {
        isa.run(Widen { values: self, start, wide });
    }
}

struct Widen<'a> {
    values: WeightValues<'a>,
    start: usize,
    wide: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        self.values.widen::<V>(self.start, self.wide);
    }
}

#[inline(always)]
fn by_vectors<V: Vector, H: Copy>(
    from: &[H],
    to: &mut [f32],
    load: impl Fn(*const H) -> V,
    one: impl Fn(H) -> f32,
) {
    let (mut from, mut to) = (from.chunks_exact(V::LANES), to.chunks_exact_mut(V::LANES));
    for (from, to) in from.by_ref().zip(to.by_ref()) {
        // SAFETY: the chunk has as many values as a vector.
        unsafe { load(from.as_ptr()).store(to.as_mut_ptr()) };
    }
    for (from, to) in from.remainder().iter().zip(to.into_remainder()) {
        *to = one(*from);
    }
}

/// The values of a contiguous weight.
///
/// # Errors
/// The tensor is not contiguous, or is not f32, f16 or bf16.
pub(crate) fn weight_values<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
    op: &str,
) -> Result<WeightValues<'a>> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F16(values), Some((start, end))) => Ok(WeightValues::F16(&values[start..end])),
        (CpuStorage::BF16(values), Some((start, end))) => {
            Ok(WeightValues::BF16(&values[start..end]))
        }
        _ => Ok(WeightValues::F32(f32_slice(storage, layout, op)?)),
    }
}
