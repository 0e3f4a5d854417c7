//! [`Value`]: what travels along a link, with its reference counted by Rust's rules.

use std::any::Any;
use std::collections::HashSet;

use kosmograph_abi as abi;
use kosmograph_abi::{DLDataType, DLManagedTensorVersioned};

use crate::check::{self, Callable, Checker, Malformed};
use crate::counted::{self, Header, allocate, base};
use crate::tensor::{self, Tensor, TensorView};

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

// SAFETY: repr(C), begins with `base: Counted`, and each kind has one type, here and below.
unsafe impl Header for abi::KgString {
    const KIND: abi::Kind = abi::STRING;
    type Owner = Box<str>;
}
// SAFETY: as above.
unsafe impl Header for abi::List {
    const KIND: abi::Kind = abi::LIST;
    type Owner = Box<[Value]>;
}
// SAFETY: as above.
unsafe impl Header for abi::Map {
    const KIND: abi::Kind = abi::MAP;
    type Owner = MapOwner;
}
// SAFETY: as above.
unsafe impl Header for abi::Object {
    const KIND: abi::Kind = abi::OBJECT;
    type Owner = Box<ObjectOwner>;
}

pub(crate) struct ObjectOwner {
    type_name: Box<str>,
    inner: Box<dyn Any + Send + Sync>,
}

/// The type of `kg_object.query`.
pub type QueryFn = unsafe extern "C" fn(*mut abi::Object, abi::Str) -> *const abi::Interface;

pub(crate) struct MapOwner {
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

    pub fn string(text: impl AsRef<str>) -> Self {
        let text: Box<str> = text.as_ref().into();
        // The text's address does not change when its box moves into the owner.
        let header = abi::KgString { base: base::<abi::KgString>(), text: abi::Str::new(&text) };
        let string = allocate(header, text);
        Self::new(abi::STRING, abi::Payload { string })
    }

    pub fn list(items: Vec<Value>) -> Self {
        let items: Box<[Value]> = items.into();
        let header = abi::List {
            base: base::<abi::List>(),
            items: items.as_ptr().cast(),
            count: items.len(),
        };
        let list = allocate(header, items);
        Self::new(abi::LIST, abi::Payload { list })
    }

    pub fn empty_map() -> Self {
        Self::map([("", Self::NONE); 0])
    }

    /// In the order given; of two pairs with the same key the first stays.
    pub fn map<K: Into<Box<str>>>(pairs: impl IntoIterator<Item = (K, Value)>) -> Self {
        let (mut texts, mut values): (Vec<Box<str>>, Vec<Value>) =
            pairs.into_iter().map(|(key, value)| (key.into(), value)).unzip();
        let mut unique = HashSet::new();
        let firsts: Vec<bool> = texts.iter().map(|text| unique.insert(&**text)).collect();
        if firsts.contains(&false) {
            let mut is_first = firsts.iter().copied();
            texts.retain(|_| is_first.next() == Some(true));
            let mut is_first = firsts.iter().copied();
            values.retain(|_| is_first.next() == Some(true));
        }
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
        Self::new(abi::MAP, abi::Payload { map })
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
        let (tensor, data) = Tensor::zeroed(dtype, shape, None)?;
        // SAFETY: fresh memory of exactly that many bytes that nobody else sees yet.
        unsafe { data.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Some(tensor.into_value())
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
        let (tensor, memory) = Tensor::zeroed(DLDataType::F32, shape, Some(strides))?;
        let first = memory.cast::<f32>();
        let offsets: Vec<usize> =
            tensor::offsets(shape, strides).map(|offset| offset as usize).collect();
        let last = offsets.iter().max().copied().unwrap_or(0);
        for place in 0..=last {
            // SAFETY: fresh memory up to the last element, that nobody else sees yet.
            unsafe { first.add(place).write(f32::NAN) };
        }
        for (offset, &x) in offsets.into_iter().zip(data) {
            // SAFETY: as above.
            unsafe { first.add(offset).write(x) };
        }
        Some(tensor.into_value())
    }

    /// An object of socket type `type_name` whose interfaces `query` finds; `inner` is what
    /// [`Self::object_owner`] gives back.
    ///
    /// # Safety
    /// `query` does what node.h says when it is called with an object of this `T`.
    pub unsafe fn object<T: Any + Send + Sync>(type_name: &str, query: QueryFn, inner: T) -> Self {
        let owner = Box::new(ObjectOwner { type_name: type_name.into(), inner: Box::new(inner) });
        let type_name = abi::Str::new(&owner.type_name);
        let object = allocate(abi::Object { base: base::<abi::Object>(), type_name, query }, owner);
        Self::new(abi::OBJECT, abi::Payload { object })
    }

    /// An object of socket type `type_name` that offers no interface at all: what a node must refuse
    /// with a sentence. The conformance test hands it out.
    pub fn object_without_interfaces(type_name: &str) -> Self {
        // SAFETY: the answer is always that there is none.
        unsafe { Self::object(type_name, no_interface, ()) }
    }

    /// What was made here: `payload` is what `kind` says, with one reference, where it is counted.
    pub(crate) fn new(kind: abi::Kind, payload: abi::Payload) -> Self {
        Self(abi::Value { kind, reserved: 0, payload })
    }

    /// # Safety
    /// `raw` is sound, and its reference is the caller's to give.
    pub(crate) unsafe fn trusted(raw: abi::Value) -> Self {
        Self(raw)
    }
}

unsafe extern "C" fn no_interface(_: *mut abi::Object, _: abi::Str) -> *const abi::Interface {
    std::ptr::null()
}

/// Crossing the boundary.
impl Value {
    /// [`Checker::adopt`], with a checker of its own.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn adopt(raw: abi::Value) -> Result<Self, Malformed> {
        // SAFETY: the caller's promise.
        unsafe { Checker::default().adopt(raw) }
    }

    /// [`Checker::borrow`], with a checker of its own.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn borrow(raw: &abi::Value) -> Result<Self, Malformed> {
        // SAFETY: the caller's promise.
        unsafe { Checker::default().borrow(raw) }
    }

    /// [`Self::adopt`]s the map that a kg_interface gave; `None` where it gave none.
    ///
    /// # Safety
    /// As there, of the map.
    pub unsafe fn adopt_map(map: *mut abi::Map) -> Option<Result<Self, Malformed>> {
        let raw = abi::Value { kind: abi::MAP, reserved: 0, payload: abi::Payload { map } };
        // SAFETY: the caller's promise.
        (!map.is_null()).then(|| unsafe { Self::adopt(raw) })
    }

    /// [`Self::borrow`]s the map that a kg_interface is called with.
    ///
    /// # Safety
    /// As there, of the map.
    pub unsafe fn borrow_map(map: *const abi::Map) -> Result<Self, Malformed> {
        let payload = abi::Payload { map: map.cast_mut() };
        // SAFETY: the caller's promise.
        unsafe { Self::borrow(&abi::Value { kind: abi::MAP, reserved: 0, payload }) }
    }

    /// The map that a kg_interface is called with, or gives; NULL for every other kind. It is borrowed from
    /// `self`.
    pub fn as_raw_map(&self) -> *mut abi::Map {
        match self.0.kind {
            // SAFETY: by kind.
            abi::MAP => unsafe { self.0.payload.map },
            _ => std::ptr::null_mut(),
        }
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

    /// The same with `key` set to `value`; the other pairs stay as they are, and what is no map becomes one.
    pub fn with(&self, key: &str, value: Value) -> Value {
        let mut pairs: Vec<(&str, Value)> =
            self.pairs().map(|(name, value)| (name, value.clone())).collect();
        match pairs.iter_mut().find(|(name, _)| *name == key) {
            Some(pair) => pair.1 = value,
            None => pairs.push((key, value)),
        }
        Value::map(pairs)
    }

    pub fn as_tensor(&self) -> Option<TensorView<'_>> {
        // SAFETY: by kind; checked, alive with `self`.
        (self.0.kind == abi::TENSOR).then(|| unsafe { TensorView::of(self.0.payload.tensor) })
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

    /// What is called of the interface `id` of an object, or the end of a sentence for how that breaks node.h;
    /// `None` where it is not offered, or this is no object.
    pub fn interface(&self, id: &str) -> Option<Result<Callable, String>> {
        if self.0.kind != abi::OBJECT {
            return None;
        }
        // SAFETY: an object by kind, checked and alive; the text is borrowed for the call, and the answer
        // lives as long as the process.
        unsafe {
            let object = self.0.payload.object;
            check::interface(((*object).query)(object, abi::Str::new(id)))
        }
    }

    /// What stands behind an object that this copy of the crate made, where that is a `T`.
    pub fn object_owner<T: Any>(&self) -> Option<&T> {
        if self.0.kind != abi::OBJECT {
            return None;
        }
        // SAFETY: by kind; alive with `self`.
        unsafe { Self::owner_of(self.0.payload.object) }
    }

    /// As [`Self::object_owner`], for an object that is borrowed as a pointer.
    ///
    /// # Safety
    /// `object` is NULL, or an object as node.h has it, alive for `'a`.
    pub unsafe fn owner_of<'a, T: Any>(object: *const abi::Object) -> Option<&'a T> {
        if object.is_null() {
            return None;
        }
        // SAFETY: the caller's promise.
        unsafe { counted::owner(object) }?.inner.downcast_ref()
    }

    /// Whether both are the same string, list, map, tensor or object.
    pub fn is_same(&self, other: &Value) -> bool {
        self.identity().is_some() && self.identity() == other.identity()
    }

    /// The address of a counted value: two values with the same one are the same thing.
    pub fn identity(&self) -> Option<usize> {
        // SAFETY: every counted kind has a pointer.
        self.0.is_counted().then(|| unsafe { self.0.payload.counted }.addr())
    }

    /// How many references there are to a counted value that this copy of the crate made; `None` for all else.
    pub fn references(&self) -> Option<usize> {
        if !self.0.is_counted() {
            return None;
        }
        // SAFETY: checked, alive with `self`.
        unsafe { counted::references(self.0.payload.counted) }
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
