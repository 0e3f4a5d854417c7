//! Plain slices out of candle's CPU storage, for the CPU twins.

use candle_core::{CpuStorage, Layout, Result, bail};

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
