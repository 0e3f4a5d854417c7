//! [`Value`]: what travels along a link, with its reference counted by Rust's rules.
//!
//! A value may have been allocated by the host or by any library. What comes from a library passes
//! [`Value::adopt`] or [`Value::borrow`], which look at everything that can be reached through it
//! ([`kosmograph_abi_check`]); after that the accessors are safe to call. Unsafe code of the host is here and in
//! [`plugin`](crate::plugin), nowhere else.

mod allocated;
mod tensor;

use kosmograph_abi as abi;
use kosmograph_abi::{DLDataType, DLManagedTensorVersioned};

pub(crate) use allocated::alive;
use allocated::{Header, allocate, base};
use kosmograph_abi_check as check;
pub use kosmograph_abi_check::Malformed;
pub(crate) use kosmograph_abi_check::bytes as text_bytes;
pub use tensor::TensorView;

/// A value of the boundary that this code holds a reference to: dropping it releases, cloning retains.
///
/// Everything reachable through it was checked and is immutable.
// Transparent, so that a slice of values is an array of kg_value.
#[repr(transparent)]
pub struct Value(abi::Value);

// SAFETY: the boundary demands that retain and release may be called from any thread and that
// everything reachable through a value is immutable once handed over (node.h, "Counting").
unsafe impl Send for Value {}
// SAFETY: as for Send.
unsafe impl Sync for Value {}

// SAFETY: repr(C), and begins with `base: Counted`, here and below.
unsafe impl Header for abi::KgString {
    type Owner = Box<str>;
}
// SAFETY: as above.
unsafe impl Header for abi::List {
    type Owner = Box<[Value]>;
}
// SAFETY: as above.
unsafe impl Header for abi::Map {
    type Owner = MapOwner;
}
// SAFETY: as above.
unsafe impl Header for abi::Object {
    type Owner = Box<str>;
}

struct MapOwner {
    _texts: Box<[Box<str>]>,
    keys: Box<[abi::Str]>,
    values: Box<[Value]>,
}

/// Making values.
impl Value {
    pub const NONE: Self = Self(abi::Value::NONE);

    pub const fn none() -> Self {
        Self::NONE
    }

    pub const fn boolean(value: bool) -> Self {
        Self(abi::Value::boolean(value))
    }

    pub const fn integer(value: i64) -> Self {
        Self(abi::Value::integer(value))
    }

    /// An integer of an unsigned range: the same kind, the same 64 bits.
    pub const fn natural(value: u64) -> Self {
        Self(abi::Value::natural(value))
    }

    pub const fn number(value: f64) -> Self {
        Self(abi::Value::number(value))
    }

    pub fn string(text: &str) -> Self {
        let text: Box<str> = text.into();
        // The text's address does not change when its box moves into the owner.
        let header = abi::KgString { base: base::<abi::KgString>(), text: abi::Str::new(&text) };
        let string = allocate(header, text);
        Self(abi::Value { kind: abi::STRING, reserved: 0, payload: abi::Payload { string } })
    }

    pub fn list(items: Vec<Value>) -> Self {
        let items: Box<[Value]> = items.into();
        let header = abi::List {
            base: base::<abi::List>(),
            items: items.as_ptr().cast(),
            count: items.len(),
        };
        let list = allocate(header, items);
        Self(abi::Value { kind: abi::LIST, reserved: 0, payload: abi::Payload { list } })
    }

    /// In the order given; of two pairs with the same key the first stays.
    pub fn map(pairs: Vec<(String, Value)>) -> Self {
        let mut unique = std::collections::HashSet::new();
        let pairs: Vec<_> =
            pairs.into_iter().filter(|(key, _)| unique.insert(key.clone())).collect();
        let (texts, values): (Vec<Box<str>>, Vec<Value>) =
            pairs.into_iter().map(|(key, value)| (key.into_boxed_str(), value)).unzip();
        let owner = MapOwner {
            keys: texts.iter().map(|text| abi::Str::new(text)).collect(),
            _texts: texts.into(),
            values: values.into(),
        };
        let header = abi::Map {
            base: base::<abi::Map>(),
            keys: owner.keys.as_ptr(),
            values: owner.values.as_ptr().cast(),
            count: owner.keys.len(),
        };
        let map = allocate(header, owner);
        Self(abi::Value { kind: abi::MAP, reserved: 0, payload: abi::Payload { map } })
    }

    /// A compact f32 tensor on the CPU; `None` when `data` does not hold as many values as `shape`
    /// says, or there is no memory.
    pub fn tensor_f32(shape: &[i64], data: &[f32]) -> Option<Self> {
        let bytes: Vec<u8> = data.iter().flat_map(|value| value.to_ne_bytes()).collect();
        Self::tensor(DLDataType::F32, shape, &bytes)
    }

    /// A compact tensor on the CPU over a copy of `bytes`; `None` as for [`Self::tensor_f32`].
    pub fn tensor(dtype: DLDataType, shape: &[i64], bytes: &[u8]) -> Option<Self> {
        if tensor::bytes_of(shape, dtype)? != bytes.len() {
            return None;
        }
        let value = Self::of_tensor(tensor::new_tensor(dtype, shape, None)?);
        // SAFETY: fresh memory of exactly that many bytes that nobody else sees yet.
        unsafe {
            let data = (*(*value.0.payload.tensor).dl).dl_tensor.data.cast::<u8>();
            data.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        Some(value)
    }

    /// An f32 tensor on the CPU whose elements do not follow each other: `strides` in elements, not
    /// negative, and such that no two elements share a place. What lies between them is NaN.
    pub fn tensor_strided_f32(shape: &[i64], strides: &[i64], data: &[f32]) -> Option<Self> {
        if shape.len() != strides.len()
            || strides.iter().any(|&stride| stride < 0)
            || tensor::bytes_of(shape, DLDataType::F32)? != size_of_val(data)
        {
            return None;
        }
        let value = Self::of_tensor(tensor::new_tensor(DLDataType::F32, shape, Some(strides))?);
        // SAFETY: fresh memory that nobody else sees yet, as long as the last element is far.
        let base = unsafe { (*(*value.0.payload.tensor).dl).dl_tensor.data.cast::<f32>() };
        let offsets: Vec<usize> = offsets(shape, strides).collect();
        let last = offsets.iter().max().copied().unwrap_or(0);
        for place in 0..=last {
            // SAFETY: `new_tensor` allocated up to the last element.
            unsafe { base.add(place).write(f32::NAN) };
        }
        for (offset, &x) in offsets.into_iter().zip(data) {
            // SAFETY: as above.
            unsafe { base.add(offset).write(x) };
        }
        Some(value)
    }

    /// An object of socket type `type_name` that offers no interface at all: what a node must refuse
    /// with a sentence. The conformance test hands it out.
    pub fn object_without_interfaces(type_name: &str) -> Self {
        let type_name: Box<str> = type_name.into();
        let base = base::<abi::Object>();
        let header =
            abi::Object { base, type_name: abi::Str::new(&type_name), query: no_interface };
        let object = allocate(header, type_name);
        Self(abi::Value { kind: abi::OBJECT, reserved: 0, payload: abi::Payload { object } })
    }

    fn of_tensor(tensor: *mut abi::Tensor) -> Self {
        Self(abi::Value { kind: abi::TENSOR, reserved: 0, payload: abi::Payload { tensor } })
    }
}

unsafe extern "C" fn no_interface(_: *mut abi::Object, _: abi::Str) -> *const abi::Interface {
    std::ptr::null()
}

/// Where each element lies, in row-major order, in elements from the first.
fn offsets(shape: &[i64], strides: &[i64]) -> impl Iterator<Item = usize> {
    let count: i64 = shape.iter().product();
    (0..count).map(move |element| {
        let mut rest = element;
        let mut offset = 0;
        for (&n, &stride) in shape.iter().zip(strides).rev() {
            offset += rest % n * stride;
            rest /= n;
        }
        offset as usize
    })
}

/// Crossing the boundary.
impl Value {
    /// Takes over the reference that `raw` carries. A malformed value is released, where its header
    /// is sound enough for that.
    ///
    /// # Safety
    /// Pointers in `raw` that are not NULL and aligned lead to what node.h says, and its reference is
    /// the caller's to give.
    pub unsafe fn adopt(raw: abi::Value) -> Result<Self, Malformed> {
        // SAFETY: the caller's promise.
        match unsafe { check::check(&raw) } {
            Ok(()) => Ok(Self(raw)),
            Err(malformed) => {
                if malformed.releasable {
                    drop(Self(raw));
                }
                Err(malformed)
            }
        }
    }

    /// Holds a reference of its own to a borrowed value.
    ///
    /// # Safety
    /// As for [`Self::adopt`], and `raw` is alive now.
    pub unsafe fn borrow(raw: &abi::Value) -> Result<Self, Malformed> {
        // SAFETY: the caller's promise.
        unsafe { check::check(raw) }?;
        if raw.is_counted() {
            // SAFETY: checked, and alive now.
            unsafe { ((*raw.payload.counted).retain)(raw.payload.counted) };
        }
        Ok(Self(*raw))
    }

    /// Gives the reference away.
    pub fn into_raw(self) -> abi::Value {
        let raw = self.0;
        std::mem::forget(self);
        raw
    }

    pub fn as_raw(&self) -> &abi::Value {
        &self.0
    }

    /// A managed DLPack tensor over the same memory, which holds a reference of its own: its consumer
    /// calls its deleter once. `None` when this is no tensor or its library has no memory.
    pub fn to_dlpack(&self) -> Option<std::ptr::NonNull<DLManagedTensorVersioned>> {
        if self.0.kind != abi::TENSOR {
            return None;
        }
        // SAFETY: by kind; checked and alive.
        std::ptr::NonNull::new(unsafe {
            ((*self.0.payload.tensor).to_dlpack)(self.0.payload.tensor)
        })
    }
}

/// Reading values.
impl Value {
    pub fn kind(&self) -> abi::Kind {
        self.0.kind
    }

    /// "a tensor", "nothing" …: for sentences.
    pub fn kind_name(&self) -> &'static str {
        abi::kind_name(self.0.kind)
    }

    pub fn is_none(&self) -> bool {
        self.0.kind == abi::NONE
    }

    pub fn as_bool(&self) -> Option<bool> {
        // SAFETY: sixty-four bits of any kind are a number; the kind says which one is meant, here and
        // below.
        (self.0.kind == abi::BOOL).then_some(unsafe { self.0.payload.boolean != 0 })
    }

    pub fn as_i64(&self) -> Option<i64> {
        // SAFETY: any bits are a number.
        (self.0.kind == abi::INT).then_some(unsafe { self.0.payload.integer })
    }

    /// The same 64 bits as [`Self::as_i64`], for inputs of an unsigned range.
    pub fn as_u64(&self) -> Option<u64> {
        // SAFETY: any bits are a number.
        (self.0.kind == abi::INT).then_some(unsafe { self.0.payload.natural })
    }

    pub fn as_f64(&self) -> Option<f64> {
        // SAFETY: any bits are a number.
        (self.0.kind == abi::FLOAT).then_some(unsafe { self.0.payload.number })
    }

    pub fn as_str(&self) -> Option<&str> {
        if self.0.kind != abi::STRING {
            return None;
        }
        // SAFETY: by kind; the text lives as long as the reference that `self` holds.
        let bytes = unsafe { (*self.0.payload.string).text.as_bytes() };
        // It was checked once; looking again costs less than trusting that nobody wrote to it.
        std::str::from_utf8(bytes).ok()
    }

    /// The items of a list; none for every other kind.
    pub fn items(&self) -> &[Value] {
        if self.0.kind != abi::LIST {
            return &[];
        }
        // SAFETY: by kind; checked: `count` values, alive with `self`, and Value is transparent.
        unsafe { values((*self.0.payload.list).items, (*self.0.payload.list).count) }
    }

    /// The pairs of a map in its order; none for every other kind.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &Value)> {
        let (keys, values): (&[abi::Str], &[Value]) = match self.0.kind {
            // SAFETY: by kind; checked: `count` keys and values, alive with `self`.
            abi::MAP => unsafe {
                let map = &*self.0.payload.map;
                let keys = match map.count {
                    0 => &[][..],
                    count => std::slice::from_raw_parts(map.keys, count),
                };
                (keys, values(map.values, map.count))
            },
            _ => (&[], &[]),
        };
        keys.iter().zip(values).map(|(key, value)| {
            // SAFETY: checked; alive with `self`.
            (std::str::from_utf8(unsafe { key.as_bytes() }).unwrap_or_default(), value)
        })
    }

    /// The value of a map's key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.pairs().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    pub fn as_tensor(&self) -> Option<TensorView<'_>> {
        if self.0.kind != abi::TENSOR {
            return None;
        }
        // SAFETY: by kind; checked, alive with `self`.
        Some(TensorView::new(unsafe { &(*(*self.0.payload.tensor).dl).dl_tensor }))
    }

    pub fn tensor_shape(&self) -> Option<&[i64]> {
        self.as_tensor().map(|tensor| tensor.shape())
    }

    /// The socket type that an object fits, "MODEL".
    pub fn object_type(&self) -> Option<&str> {
        if self.0.kind != abi::OBJECT {
            return None;
        }
        // SAFETY: by kind; checked, alive with `self`.
        std::str::from_utf8(unsafe { (*self.0.payload.object).type_name.as_bytes() }).ok()
    }

    /// The address of a counted value: two values with the same one are the same thing.
    pub fn identity(&self) -> Option<usize> {
        // SAFETY: every counted kind has a pointer.
        self.0.is_counted().then(|| unsafe { self.0.payload.counted }.addr())
    }

    /// How many references there are to a counted value that the host allocated; `None` for all else.
    pub fn references(&self) -> Option<usize> {
        if !self.0.is_counted() {
            return None;
        }
        // SAFETY: checked, alive with `self`.
        unsafe { allocated::references(self.0.payload.counted) }
    }
}

/// # Safety
/// `values` points at `count` checked values that live for `'a`, or `count` is 0.
unsafe fn values<'a>(values: *const abi::Value, count: usize) -> &'a [Value] {
    match count {
        0 => &[],
        // SAFETY: the caller's promise; Value is transparent.
        _ => unsafe { std::slice::from_raw_parts(values.cast(), count) },
    }
}

impl Clone for Value {
    fn clone(&self) -> Self {
        if self.0.is_counted() {
            // SAFETY: checked, alive while `self` is.
            unsafe { ((*self.0.payload.counted).retain)(self.0.payload.counted) };
        }
        Self(self.0)
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        if self.0.is_counted() {
            // SAFETY: checked, and this reference is ours to give back.
            unsafe { ((*self.0.payload.counted).release)(self.0.payload.counted) };
        }
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.kind {
            abi::BOOL => write!(f, "{:?}", self.as_bool().unwrap_or_default()),
            abi::INT => write!(f, "{}", self.as_i64().unwrap_or_default()),
            abi::FLOAT => write!(f, "{:?}", self.as_f64().unwrap_or_default()),
            abi::STRING => write!(f, "{:?}", self.as_str().unwrap_or_default()),
            abi::LIST => f.debug_list().entries(self.items()).finish(),
            abi::MAP => f.debug_map().entries(self.pairs()).finish(),
            abi::TENSOR => write!(f, "Tensor{:?}", self.tensor_shape().unwrap_or_default()),
            abi::OBJECT => write!(f, "{}", self.object_type().unwrap_or_default()),
            _ => f.write_str("None"),
        }
    }
}

/// What `kg_context`'s `new_…` functions need: values from a library's parts, each checked.
pub(crate) mod parts {
    use super::*;

    /// # Safety
    /// `items` points at `count` borrowed values, or `count` is 0.
    pub(crate) unsafe fn list(items: *const abi::Value, count: usize) -> Result<Value, String> {
        // SAFETY: the caller's promise.
        unsafe { borrow_all(items, count) }.map(Value::list)
    }

    /// # Safety
    /// `keys` and `values` point at `count` borrowed texts and values, or `count` is 0.
    pub(crate) unsafe fn map(
        keys: *const abi::Str,
        values: *const abi::Value,
        count: usize,
    ) -> Result<Value, String> {
        // SAFETY: the caller's promise.
        let values = unsafe { borrow_all(values, count) }?;
        if count > 0 && (keys.is_null() || !keys.is_aligned()) {
            return Err("a map was asked for without keys".to_owned());
        }
        let mut pairs: Vec<(String, Value)> = Vec::new();
        for (i, value) in values.into_iter().enumerate() {
            // SAFETY: `count` keys stand there.
            let key = unsafe { string(*keys.add(i)) }?;
            pairs.push((key.to_owned(), value));
        }
        let mut unique = std::collections::HashSet::new();
        match pairs.iter().find(|(key, _)| !unique.insert(key.as_str())) {
            Some((key, _)) => Err(format!("a map was asked for with the key \"{key}\" twice")),
            None => Ok(Value::map(pairs)),
        }
    }

    /// # Safety
    /// `text` is borrowed text for `'a`.
    pub(crate) unsafe fn string<'a>(text: abi::Str) -> Result<&'a str, String> {
        // SAFETY: the caller's promise.
        let bytes = unsafe { text_bytes(text) }.map_err(|why| format!("a text {why}"))?;
        std::str::from_utf8(bytes).map_err(|_| "a text is not UTF-8".to_owned())
    }

    /// # Safety
    /// `shape` points at `ndim` numbers, or `ndim` is 0.
    pub(crate) unsafe fn tensor(
        dtype: DLDataType,
        ndim: i32,
        shape: *const i64,
    ) -> Result<Value, String> {
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
        let tensor = tensor::new_tensor(dtype, shape, None);
        tensor.map(Value::of_tensor).ok_or_else(|| {
            format!("there is no memory for a tensor of shape {shape:?} with {} bits", dtype.bits)
        })
    }

    /// # Safety
    /// `values` points at `count` borrowed values, or `count` is 0.
    unsafe fn borrow_all(values: *const abi::Value, count: usize) -> Result<Vec<Value>, String> {
        if count > 0 && (values.is_null() || !values.is_aligned()) {
            return Err(format!("{count} values were given, but not where they are"));
        }
        (0..count)
            // SAFETY: `count` values stand there.
            .map(|i| unsafe { Value::borrow(&*values.add(i)) })
            .enumerate()
            .map(|(i, value)| value.map_err(|malformed| format!("value {i} {malformed}")))
            .collect()
    }
}

#[cfg(test)]
mod tests;
