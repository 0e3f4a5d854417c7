//! [`Value`]: what travels along a link, with its reference counted by Rust's rules.

use kosmograph_abi as abi;

use crate::counted::Allocated;
use crate::{Object, Tensor};

/// A value of the boundary that this code holds a reference to: dropping it releases, cloning retains.
pub struct Value(abi::Value);

// SAFETY: the boundary demands that counts are atomic and that everything reachable through a value is
// immutable once handed over (node.h, "Counting").
unsafe impl Send for Value {}
// SAFETY: as for Send.
unsafe impl Sync for Value {}

impl Value {
    pub const NONE: Self = Self(abi::Value::NONE);

    /// Takes over the reference that `raw` carries.
    ///
    /// # Safety
    /// `raw` obeys node.h and its reference is the caller's to give.
    pub unsafe fn from_raw(raw: abi::Value) -> Self {
        Self(raw)
    }

    /// Holds a reference of its own to a borrowed value.
    ///
    /// # Safety
    /// `raw` obeys node.h and is alive now.
    pub unsafe fn borrow_raw(raw: &abi::Value) -> Self {
        // SAFETY: the caller's promise; the copy below has its own reference after `retain`.
        unsafe { retain(raw) };
        Self(*raw)
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

    pub fn string(text: impl Into<String>) -> Self {
        let text: Box<str> = text.into().into();
        // The text's address does not change when its box moves into the owner.
        let header =
            abi::KgString { base: Allocated::<abi::KgString>::base(), text: abi::Str::new(&text) };
        let string = Allocated::allocate(header, Box::new(text));
        Self(abi::Value { kind: abi::STRING, reserved: 0, payload: abi::Payload { string } })
    }

    pub fn list(items: Vec<Value>) -> Self {
        // `Value` is not repr(transparent) over its raw form on purpose; the list holds raw ones.
        let owner = RawValues(items.into_iter().map(Value::into_raw).collect());
        let header = abi::List {
            base: Allocated::<abi::List>::base(),
            items: owner.0.as_ptr(),
            count: owner.0.len(),
        };
        let list = Allocated::allocate(header, Box::new(owner));
        Self(abi::Value { kind: abi::LIST, reserved: 0, payload: abi::Payload { list } })
    }

    /// A map of unique keys in the order given.
    pub fn map(pairs: impl IntoIterator<Item = (impl Into<String>, Value)>) -> Self {
        let (texts, values): (Vec<Box<str>>, Vec<abi::Value>) =
            pairs.into_iter().map(|(k, v)| (Box::from(k.into()), v.into_raw())).unzip();
        let owner = MapOwner {
            keys: texts.iter().map(|text| abi::Str::new(text)).collect(),
            values: RawValues(values.into()),
            _texts: texts,
        };
        let header = abi::Map {
            base: Allocated::<abi::Map>::base(),
            keys: owner.keys.as_ptr(),
            values: owner.values.0.as_ptr(),
            count: owner.keys.len(),
        };
        let map = Allocated::allocate(header, Box::new(owner));
        Self(abi::Value { kind: abi::MAP, reserved: 0, payload: abi::Payload { map } })
    }

    pub fn as_bool(&self) -> Option<bool> {
        // SAFETY: every payload is 64 bits, and any bits are an integer; the kind says if it is meant.
        (self.0.kind == abi::BOOL).then_some(unsafe { self.0.payload.boolean != 0 })
    }

    pub fn as_i64(&self) -> Option<i64> {
        // SAFETY: as in `as_bool`.
        (self.0.kind == abi::INT).then_some(unsafe { self.0.payload.integer })
    }

    /// The same 64 bits as [`Self::as_i64`], for inputs of an unsigned range.
    pub fn as_u64(&self) -> Option<u64> {
        // SAFETY: as in `as_bool`.
        (self.0.kind == abi::INT).then_some(unsafe { self.0.payload.natural })
    }

    /// A float, or an integer as one.
    pub fn as_f64(&self) -> Option<f64> {
        match self.0.kind {
            // SAFETY: by kind.
            abi::FLOAT => Some(unsafe { self.0.payload.number }),
            abi::INT => self.as_i64().map(|value| value as f64),
            _ => None,
        }
    }

    /// The text of a string; `None` too when it is not UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        if self.0.kind != abi::STRING {
            return None;
        }
        // SAFETY: by kind; the string lives as long as the reference that `self` holds.
        let bytes = unsafe { (*self.0.payload.string).text.as_bytes() };
        std::str::from_utf8(bytes).ok()
    }

    /// The items of a list, each with a reference of its own.
    pub fn as_list(&self) -> Option<Vec<Value>> {
        if self.0.kind != abi::LIST {
            return None;
        }
        // SAFETY: by kind; items are alive while the list is.
        unsafe {
            let list = &*self.0.payload.list;
            Some(raw_slice(list.items, list.count).iter().map(|v| Value::borrow_raw(v)).collect())
        }
    }

    /// The pairs of a map in their order.
    pub fn as_map(&self) -> Option<Vec<(String, Value)>> {
        if self.0.kind != abi::MAP {
            return None;
        }
        // SAFETY: by kind; keys and values are alive while the map is.
        unsafe {
            let map = &*self.0.payload.map;
            let keys = raw_slice(map.keys, map.count).iter();
            let values = raw_slice(map.values, map.count).iter();
            let text = |key: &abi::Str| String::from_utf8_lossy(key.as_bytes()).into_owned();
            Some(keys.zip(values).map(|(k, v)| (text(k), Value::borrow_raw(v))).collect())
        }
    }

    /// The value of `key` in a map.
    pub fn get(&self, key: &str) -> Option<Value> {
        self.as_map()?.into_iter().find_map(|(name, value)| (name == key).then_some(value))
    }

    /// Whether both are references to one string, list, map, tensor or object.
    pub fn is_same(&self, other: &Value) -> bool {
        // SAFETY: every payload is 64 bits, and any bits are an integer; of a counted kind they are its
        // address.
        let bits = |value: &Value| unsafe { value.0.payload.natural };
        self.0.is_counted() && self.kind() == other.kind() && bits(self) == bits(other)
    }

    /// A map with `key` set to `value`, everything else as it is in `self`.
    pub fn with(&self, key: &str, value: Value) -> Value {
        let mut pairs = self.as_map().unwrap_or_default();
        match pairs.iter_mut().find(|(name, _)| name == key) {
            Some(pair) => pair.1 = value,
            None => pairs.push((key.to_owned(), value)),
        }
        Value::map(pairs)
    }

    pub fn as_tensor(&self) -> Option<Tensor> {
        (self.0.kind == abi::TENSOR).then(|| Tensor::from_value(self.clone()))
    }

    pub fn as_object(&self) -> Option<Object> {
        (self.0.kind == abi::OBJECT).then(|| Object::from_value(self.clone()))
    }
}

/// # Safety
/// `raw` obeys node.h and is alive now.
unsafe fn retain(raw: &abi::Value) {
    if raw.is_counted() {
        // SAFETY: every counted kind begins with a Counted, and it is alive.
        unsafe { ((*raw.payload.counted).retain)(raw.payload.counted) }
    }
}

/// # Safety
/// `raw` carries a reference that is given up here.
unsafe fn release(raw: &abi::Value) {
    if raw.is_counted() {
        // SAFETY: every counted kind begins with a Counted, and it is alive until this call.
        unsafe { ((*raw.payload.counted).release)(raw.payload.counted) }
    }
}

/// # Safety
/// `ptr` points at `count` values alive for `'a`, or `count` is 0.
unsafe fn raw_slice<'a, T>(ptr: *const T, count: usize) -> &'a [T] {
    if ptr.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(ptr, count) }
}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: the reference that `self` carries ends here.
        unsafe { release(&self.0) }
    }
}

impl Clone for Value {
    fn clone(&self) -> Self {
        // SAFETY: `self` keeps the value alive.
        unsafe { Self::borrow_raw(&self.0) }
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind() {
            abi::BOOL => write!(f, "{:?}", self.as_bool()),
            abi::INT => write!(f, "{:?}", self.as_i64()),
            abi::FLOAT => write!(f, "{:?}", self.as_f64()),
            abi::STRING => write!(f, "{:?}", self.as_str()),
            _ => f.write_str(self.kind_name()),
        }
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self(abi::Value::boolean(value))
    }
}
impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self(abi::Value::integer(value))
    }
}
impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self(abi::Value::natural(value))
    }
}
impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self(abi::Value::number(value))
    }
}
impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::string(value)
    }
}

/// The items of a list: owned references in their raw form.
struct RawValues(Box<[abi::Value]>);

// SAFETY: raw values are as shareable as `Value` is; see there.
unsafe impl Send for RawValues {}
// SAFETY: as above.
unsafe impl Sync for RawValues {}

impl Drop for RawValues {
    fn drop(&mut self) {
        for raw in &self.0 {
            // SAFETY: each item carries one reference, which ends with its list.
            unsafe { release(raw) }
        }
    }
}

struct MapOwner {
    keys: Box<[abi::Str]>,
    values: RawValues,
    _texts: Vec<Box<str>>,
}
