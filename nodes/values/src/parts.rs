//! What `kg_context`'s `new_…` functions need: values from a library's parts, each checked. The errors are
//! sentences for the log.

use kosmograph_abi as abi;
use kosmograph_abi::DLDataType;

use crate::Value;
use crate::check::{Checker, bytes};
use crate::tensor::Tensor;

/// # Safety
/// `items` points at `count` borrowed values, or `count` is 0.
pub unsafe fn list(items: *const abi::Value, count: usize) -> Result<Value, String> {
    // SAFETY: the caller's promise.
    unsafe { Checker::default().borrow_all(items, count) }.map(Value::list)
}

/// # Safety
/// `keys` and `values` point at `count` borrowed texts and values, or `count` is 0.
pub unsafe fn map(
    keys: *const abi::Str,
    values: *const abi::Value,
    count: usize,
) -> Result<Value, String> {
    // SAFETY: the caller's promise.
    let values = unsafe { Checker::default().borrow_all(values, count) }?;
    if count > 0 && (keys.is_null() || !keys.is_aligned()) {
        return Err("a map was asked for without keys".to_owned());
    }
    let mut pairs: Vec<(&str, Value)> = Vec::new();
    for (i, value) in values.into_iter().enumerate() {
        // SAFETY: `count` keys stand there.
        pairs.push((unsafe { string(*keys.add(i)) }?, value));
    }
    let mut unique = std::collections::HashSet::new();
    match pairs.iter().find(|(key, _)| !unique.insert(*key)) {
        Some((key, _)) => Err(format!("a map was asked for with the key \"{key}\" twice")),
        None => Ok(Value::map(pairs)),
    }
}

/// # Safety
/// `text` is borrowed text for `'a`.
pub unsafe fn string<'a>(text: abi::Str) -> Result<&'a str, String> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { bytes(text) }.map_err(|why| format!("a text {why}"))?;
    std::str::from_utf8(bytes).map_err(|_| "a text is not UTF-8".to_owned())
}

/// A zeroed tensor on the CPU.
///
/// # Safety
/// `shape` points at `ndim` numbers, or `ndim` is 0.
pub unsafe fn tensor(dtype: DLDataType, ndim: i32, shape: *const i64) -> Result<Value, String> {
    let shape: &[i64] = match ndim {
        0 => &[],
        1..=64 if !shape.is_null() && shape.is_aligned() => {
            // SAFETY: the caller's promise.
            unsafe { std::slice::from_raw_parts(shape, ndim as usize) }
        }
        _ => return Err(format!("a tensor was asked for of {ndim} axes, or without a shape")),
    };
    if dtype.lanes != 1 || dtype.bits == 0 || !dtype.bits.is_multiple_of(8) {
        return Err(format!(
            "a tensor was asked for of DLPack code {} with {} bits and {} lanes",
            dtype.code, dtype.bits, dtype.lanes
        ));
    }
    let tensor = Tensor::zeroed(dtype, shape, None);
    tensor.map(|(tensor, _)| tensor.into_value()).ok_or_else(|| {
        format!("there is no memory for a tensor of shape {shape:?} with {} bits", dtype.bits)
    })
}
