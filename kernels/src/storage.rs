//! Plain slices out of candle's CPU storage, for the CPU twins.

use std::borrow::Cow;

use candle_core::{CpuStorage, Layout, Result, bail};
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

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

/// Values that one task widens.
const WIDENED_AT_ONCE: usize = 1 << 15;

/// The values of a contiguous weight, which may be kept in half precision: such a weight is widened
/// into a temporary, which changes no value, since every f16 and every bf16 is an f32.
///
/// # Errors
/// The tensor is not contiguous, or is not f32, f16 or bf16.
pub(crate) fn weight_slice<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
    op: &str,
) -> Result<Cow<'a, [f32]>> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F16(values), Some((start, end))) => Ok(widen(&values[start..end]).into()),
        (CpuStorage::BF16(values), Some((start, end))) => Ok(widen(&values[start..end]).into()),
        _ => Ok(f32_slice(storage, layout, op)?.into()),
    }
}

fn widen<T: Sync>(halves: &[T]) -> Vec<f32>
where
    [T]: HalfFloatSliceExt,
{
    let mut wide = vec![0f32; halves.len()];
    let blocks = wide.par_chunks_mut(WIDENED_AT_ONCE).zip(halves.par_chunks(WIDENED_AT_ONCE));
    blocks.for_each(|(wide, halves)| halves.convert_to_f32_slice(wide));
    wide
}
