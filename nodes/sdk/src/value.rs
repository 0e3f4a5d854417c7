//! [`Value`]: what travels along a link, with its reference counted by Rust's rules.

use kosmograph_abi as abi;
use kosmograph_values as counted;

use crate::{Error, Object, Result, Tensor};

/// A value of the boundary that this code holds a reference to: dropping it releases, cloning retains.
///
/// Everything reachable through it was checked and is immutable. Counting, checking and reading are the
/// crate `kosmograph-values`; this is its value as a node meets it.
// Transparent, so that a slice of those is a slice of these.
#[derive(Clone)]
#[repr(transparent)]
pub struct Value(counted::Value);

/// Crossing the boundary.
impl Value {
    /// Takes over the reference that `raw` carries. A malformed value is released, where its header is
    /// sound enough for that.
    ///
    /// # Safety
    /// Pointers in `raw` that are not NULL and aligned lead to what node.h says, and its reference is the
    /// caller's to give.
    ///
    /// # Errors
    /// How the value breaks node.h.
    pub unsafe fn adopt(raw: abi::Value) -> Result<Self> {
        // SAFETY: the caller's promise.
        unsafe { counted::Value::adopt(raw) }.map(Self).map_err(malformed)
    }

    /// Holds a reference of its own to a borrowed value.
    ///
    /// # Safety
    /// As for [`Self::adopt`], and `raw` is alive now.
    ///
    /// # Errors
    /// As for [`Self::adopt`].
    pub unsafe fn borrow(raw: &abi::Value) -> Result<Self> {
        // SAFETY: the caller's promise.
        unsafe { counted::Value::borrow(raw) }.map(Self).map_err(malformed)
    }

    /// Gives the reference away.
    pub fn into_raw(self) -> abi::Value {
        self.0.into_raw()
    }

    pub fn as_raw(&self) -> &abi::Value {
        self.0.as_raw()
    }

    pub(crate) fn counted(&self) -> &counted::Value {
        &self.0
    }
}

fn malformed(fault: counted::Malformed) -> Error {
    Error::new(format!("the value {fault}"))
}

impl From<counted::Value> for Value {
    fn from(value: counted::Value) -> Self {
        Self(value)
    }
}

impl From<Value> for counted::Value {
    fn from(value: Value) -> Self {
        value.0
    }
}

/// Making values. The plain ones are made by [`From`].
impl Value {
    pub const NONE: Self = Self(counted::Value::NONE);

    pub fn string(text: impl Into<String>) -> Self {
        Self(counted::Value::string(text.into()))
    }

    pub fn list(items: Vec<Value>) -> Self {
        Self(counted::Value::list(items.into_iter().map(|item| item.0).collect()))
    }

    /// In the order given; of two pairs with the same key the first stays.
    pub fn map(pairs: impl IntoIterator<Item = (impl Into<String>, Value)>) -> Self {
        Self(counted::Value::map(pairs.into_iter().map(|(key, value)| (key.into(), value.0))))
    }

    /// A map with `key` set to `value`, everything else as it is in `self`.
    pub fn with(&self, key: &str, value: Value) -> Value {
        Self(self.0.with(key, value.0))
    }
}

/// Reading values.
impl Value {
    pub fn kind(&self) -> abi::Kind {
        self.0.kind()
    }

    /// "a tensor", "nothing" …: for sentences.
    pub fn kind_name(&self) -> &'static str {
        self.0.kind_name()
    }

    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }

    pub fn as_bool(&self) -> Option<bool> {
        self.0.as_bool()
    }

    pub fn as_i64(&self) -> Option<i64> {
        self.0.as_i64()
    }

    /// The same 64 bits as [`Self::as_i64`], for inputs of an unsigned range.
    pub fn as_u64(&self) -> Option<u64> {
        self.0.as_u64()
    }

    /// A float, or an integer as one.
    pub fn as_f64(&self) -> Option<f64> {
        self.0.as_f64().or_else(|| self.0.as_i64().map(|value| value as f64))
    }

    pub fn as_str(&self) -> Option<&str> {
        self.0.as_str()
    }

    /// The items of a list; none for every other kind.
    pub fn items(&self) -> &[Value] {
        of_counted(self.0.items())
    }

    /// The items of a list, each with a reference of its own.
    pub fn as_list(&self) -> Option<Vec<Value>> {
        (self.kind() == abi::LIST).then(|| self.items().to_vec())
    }

    /// The pairs of a map in their order; none for every other kind.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.pairs().map(|(key, value)| (key, one_of_counted(value)))
    }

    /// The pairs of a map in their order, each with a reference of its own.
    pub fn as_map(&self) -> Option<Vec<(String, Value)>> {
        let own = |(key, value): (&str, &Value)| (key.to_owned(), value.clone());
        (self.kind() == abi::MAP).then(|| self.pairs().map(own).collect())
    }

    /// The value of `key` in a map, with a reference of its own.
    pub fn get(&self, key: &str) -> Option<Value> {
        self.0.get(key).cloned().map(Self)
    }

    /// Whether both are references to one string, list, map, tensor or object.
    pub fn is_same(&self, other: &Value) -> bool {
        self.0.is_same(&other.0)
    }

    pub fn as_tensor(&self) -> Option<Tensor> {
        Tensor::from_value(self.clone())
    }

    pub fn as_object(&self) -> Option<Object> {
        Object::from_value(self.clone())
    }
}

fn one_of_counted(value: &counted::Value) -> &Value {
    // SAFETY: `Value` is transparent, here and below.
    unsafe { &*std::ptr::from_ref(value).cast() }
}

fn of_counted(values: &[counted::Value]) -> &[Value] {
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind() {
            // They may be long, and stand in sentences.
            abi::LIST | abi::MAP | abi::TENSOR | abi::OBJECT | abi::NONE => {
                f.write_str(self.kind_name())
            }
            _ => self.0.fmt(f),
        }
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self(counted::Value::boolean(value))
    }
}
impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self(counted::Value::integer(value))
    }
}
impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self(counted::Value::natural(value))
    }
}
impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self(counted::Value::number(value))
    }
}
impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::string(value)
    }
}
