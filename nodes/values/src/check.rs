//! What a library hands out is looked at once, as a whole, before whoever receives it believes it: the host what its
//! libraries give, a library what the interfaces of another one's objects give.
//!
//! A receiver cannot defend itself against a pointer into nowhere. It can against everything that can be
//! seen: kinds out of range, NULL where something must be, structs that are too small, text that is not
//! UTF-8, a list that contains itself, a tensor whose shape cannot be.

use std::collections::HashMap;

use kosmograph_abi as abi;
use kosmograph_abi::DLDataType;

use crate::tensor::bytes_of;
use crate::{Value, counted};

/// Values nest a few levels, and CONTROLs chain, each a level deeper; past this somebody builds them to break the stack of
/// whoever walks them.
pub const DEEPEST: usize = 512;
/// The axes of a tensor; nobody has more than five.
const MOST_AXES: i32 = 64;
/// What is said to be longer than this, in bytes, is no length: it is the address of a function, where a
/// tensor or an object is taken for a string, a list or a map.
const LONGEST: usize = 1 << 40;
/// No function lies below this: it is a length, where a string, a list or a map is taken for a tensor or an
/// object.
const LOWEST: usize = 1 << 12;

/// How a value breaks node.h, as the end of a sentence that begins with "the value".
#[derive(Debug)]
pub struct Malformed {
    what: String,
    /// Whether the reference can still be given back: the header itself is sound.
    pub releasable: bool,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Malformed {}

impl Malformed {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), releasable: true }
    }

    fn unreleasable(what: impl Into<String>) -> Self {
        Self { what: what.into(), releasable: false }
    }

    /// The same, found inside of something larger, whose own header is sound.
    fn inside(self, place: &str) -> Self {
        Self { what: format!("{place} {}", self.what), releasable: true }
    }
}

/// A function pointer as memory from outside may have it: NULL, or no function's address.
#[repr(transparent)]
struct RawFunction(usize);

impl RawFunction {
    fn is_missing(&self) -> bool {
        self.0 < LOWEST
    }
}

/// [`abi::Counted`] with function pointers that are not believed.
#[repr(C)]
struct RawCounted {
    size: u32,
    reserved: u32,
    retain: RawFunction,
    release: RawFunction,
}

/// [`abi::Tensor`], as above.
#[repr(C)]
struct RawTensor {
    base: RawCounted,
    dl: *const abi::DLManagedTensorVersioned,
    to_dlpack: RawFunction,
}

/// [`abi::Object`], as above.
#[repr(C)]
struct RawObject {
    base: RawCounted,
    type_name: abi::Str,
    query: RawFunction,
}

/// Borrowed text as bytes, without believing more of it than must be.
///
/// # Safety
/// `text.ptr` is NULL or points at `text.len` readable bytes, unchanged for `'a`.
pub unsafe fn bytes<'a>(text: abi::Str) -> Result<&'a [u8], &'static str> {
    if text.len > LONGEST {
        return Err("is longer than memory");
    }
    if text.ptr.is_null() && text.len > 0 {
        return Err("is NULL but has a length");
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { text.as_bytes() })
}

/// # Safety
/// As for [`bytes`].
unsafe fn text<'a>(text: abi::Str, what: &str) -> Result<&'a str, Malformed> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { bytes(text) }.map_err(|why| Malformed::new(format!("{what} {why}")))?;
    std::str::from_utf8(bytes).map_err(|error| {
        Malformed::new(format!("{what} is not UTF-8 (byte {} is wrong)", error.valid_up_to()))
    })
}

/// How far the look at a counted thing has come.
#[derive(Clone, Copy)]
enum State {
    /// It goes on: whoever meets it again is inside of it.
    Open,
    /// It is sound, and this many levels deep.
    Sound(usize),
    /// It was found to be malformed.
    Broken,
}

/// Looks at values and everything that can be reached through them. One looks at all the values of a call:
/// what was one thing in the first is the same thing in the last.
#[derive(Default)]
pub struct Checker {
    /// Which counted things were looked at, and as what. Shared parts are looked at once, or a list that
    /// holds its child twice, sixty times over, would take forever.
    seen: HashMap<*const abi::Counted, (abi::Kind, State)>,
}

/// Checks `raw` and everything that can be reached through it.
///
/// # Safety
/// Pointers that are not NULL and aligned lead to readable memory that stays unchanged meanwhile.
pub unsafe fn check(raw: &abi::Value) -> Result<(), Malformed> {
    // SAFETY: the caller's promise.
    unsafe { Checker::default().check(raw) }
}

/// What comes from somebody else becomes a value that can be used.
impl Checker {
    /// Takes over the reference that `raw` carries. A malformed value is released, where its header
    /// is sound enough for that.
    ///
    /// # Safety
    /// Pointers in `raw` that are not NULL and aligned lead to what node.h says, and its reference is
    /// the caller's to give. What this checker saw before is still alive.
    pub unsafe fn adopt(&mut self, raw: abi::Value) -> Result<Value, Malformed> {
        // SAFETY: the caller's promise.
        match unsafe { self.check(&raw) } {
            // SAFETY: checked, and the reference is ours now.
            Ok(()) => Ok(unsafe { Value::trusted(raw) }),
            Err(malformed) => {
                if malformed.releasable {
                    // SAFETY: its own header is sound, and the reference is ours to give back.
                    drop(unsafe { Value::trusted(raw) });
                }
                Err(malformed)
            }
        }
    }

    /// Holds a reference of its own to a borrowed value.
    ///
    /// # Safety
    /// As for [`Self::adopt`], and `raw` is alive now.
    pub unsafe fn borrow(&mut self, raw: &abi::Value) -> Result<Value, Malformed> {
        // SAFETY: the caller's promise.
        unsafe { self.check(raw) }?;
        if raw.is_counted() {
            // SAFETY: checked, and alive now.
            unsafe { ((*raw.payload.counted).retain)(raw.payload.counted) };
        }
        // SAFETY: checked, and the reference is the one taken above.
        Ok(unsafe { Value::trusted(*raw) })
    }

    /// [`Self::borrow`]s `count` values; the error is a sentence.
    ///
    /// # Safety
    /// `values` is NULL, or points at `count` values for which [`Self::borrow`] may be called.
    pub unsafe fn borrow_all(
        &mut self,
        values: *const abi::Value,
        count: usize,
    ) -> Result<Vec<Value>, String> {
        if count == 0 {
            return Ok(Vec::new());
        }
        if values.is_null() || !values.is_aligned() || count > LONGEST / size_of::<abi::Value>() {
            return Err(format!("{count} values were given, but not where they are"));
        }
        // SAFETY: `count` values stand there.
        let values = unsafe { std::slice::from_raw_parts(values, count) };
        let borrow = |(i, raw)| {
            // SAFETY: the caller's promise.
            unsafe { self.borrow(raw) }.map_err(|malformed| format!("value {i} {malformed}"))
        };
        values.iter().enumerate().map(borrow).collect()
    }

    /// Checks `raw` and everything that can be reached through it.
    ///
    /// # Safety
    /// Pointers that are not NULL and aligned lead to readable memory that stays unchanged meanwhile. What
    /// this checker saw before is still alive.
    pub unsafe fn check(&mut self, raw: &abi::Value) -> Result<(), Malformed> {
        // SAFETY: the caller's promise.
        unsafe { check_within(raw, self, 0) }.map(drop)
    }
}

/// Returns how many levels of counted things there are in `raw`, which itself is `depth` levels down.
///
/// # Safety
/// As for [`Checker::check`].
unsafe fn check_within(
    raw: &abi::Value,
    checker: &mut Checker,
    depth: usize,
) -> Result<usize, Malformed> {
    let too_deep = || Malformed::new(format!("is nested more than {DEEPEST} levels deep"));
    match raw.kind {
        abi::NONE | abi::INT | abi::FLOAT => return Ok(0),
        abi::BOOL => {
            // SAFETY: every bit pattern is an integer.
            return match unsafe { raw.payload.boolean } {
                0 | 1 => Ok(0),
                other => Err(Malformed::new(format!("is a boolean of {other}, not 0 or 1"))),
            };
        }
        abi::STRING..=abi::OBJECT => (),
        other => {
            return Err(Malformed::unreleasable(format!(
                "is of kind {other}, but the kinds of the boundary end at {}",
                abi::OBJECT
            )));
        }
    }
    // SAFETY: a pointer in every counted kind.
    let counted: *const abi::Counted = unsafe { raw.payload.counted };
    let what = abi::kind_name(raw.kind);
    if counted.is_null() {
        return Err(Malformed::unreleasable(format!("is {what} at NULL")));
    }
    if !counted.cast::<u64>().is_aligned() {
        return Err(Malformed::unreleasable(format!("is {what} at an address not aligned to 8")));
    }
    match checker.seen.get(&counted) {
        Some(&(kind, _)) if kind != raw.kind => return Err(alias(what, kind)),
        Some(&(_, State::Sound(levels))) if depth + levels <= DEEPEST => return Ok(levels),
        Some((_, State::Sound(_))) => return Err(too_deep()),
        Some((_, State::Open)) => {
            return Err(Malformed::new(format!("is {what} that contains itself")));
        }
        _ if depth == DEEPEST => return Err(too_deep()),
        // The fault is told again.
        Some((_, State::Broken)) | None => (),
    }
    checker.seen.insert(counted, (raw.kind, State::Open));
    // SAFETY: not NULL and aligned; the caller promises that such memory is readable.
    let levels = unsafe { check_counted(raw, what, counted, checker, depth) };
    let state = levels.as_ref().map_or(State::Broken, |levels| State::Sound(1 + levels));
    checker.seen.insert(counted, (raw.kind, state));
    levels.map(|levels| 1 + levels)
}

/// One address is one thing.
fn alias(what: &str, kind: abi::Kind) -> Malformed {
    let first = abi::kind_name(kind);
    Malformed::unreleasable(format!("is {what} at the address of {first}"))
}

/// Returns how many levels there are below.
///
/// # Safety
/// As for [`check`]; `counted` is the payload, neither NULL nor misaligned.
unsafe fn check_counted(
    raw: &abi::Value,
    what: &str,
    counted: *const abi::Counted,
    checker: &mut Checker,
    depth: usize,
) -> Result<usize, Malformed> {
    let wanted = match raw.kind {
        abi::STRING => size_of::<abi::KgString>(),
        abi::LIST => size_of::<abi::List>(),
        abi::MAP => size_of::<abi::Map>(),
        // One of before there were views ends there.
        abi::TENSOR => abi::TENSOR_SIZE_1_0,
        _ => size_of::<abi::Object>(),
    };
    // SAFETY: the size stands first and says how much more may be read.
    let size = unsafe { *counted.cast::<u32>() } as usize;
    if size < wanted {
        let message = format!("is {what} of {size} bytes, where there must be {wanted}");
        return Err(Malformed::unreleasable(message));
    }
    // SAFETY: `size` covers it.
    let base = unsafe { &*counted.cast::<RawCounted>() };
    if base.retain.is_missing() || base.release.is_missing() {
        return Err(Malformed::unreleasable(format!("is {what} without retain and release")));
    }
    // SAFETY: as above; the functions are there.
    if let Some(kind) = unsafe { counted::kind(counted) }
        && kind != raw.kind
    {
        return Err(alias(what, kind));
    }
    // SAFETY: by kind, and `size` covers the whole struct, here and below.
    match raw.kind {
        abi::STRING => {
            unsafe { text((*raw.payload.string).text, "is a string whose text") }.map(|_| 0)
        }
        abi::LIST => unsafe {
            let list = &*raw.payload.list;
            let place = |i| format!("is a list whose item {i}");
            check_items(list.items, list.count, what, place, checker, depth)
        },
        abi::MAP => unsafe {
            let map = &*raw.payload.map;
            check_keys(map.keys, map.count)?;
            let key = |i| text(*map.keys.add(i), "is a map whose key").unwrap_or_default();
            let place = |i| format!("is a map whose \"{}\"", key(i));
            check_items(map.values, map.count, what, place, checker, depth)
        },
        abi::TENSOR => unsafe { check_tensor(&*counted.cast()) }.map(|()| 0),
        _ => {
            let object = unsafe { &*counted.cast::<RawObject>() };
            if object.query.is_missing() {
                return Err(Malformed::new("is an object without query"));
            }
            match unsafe { text(object.type_name, "is an object whose type") }? {
                "" => Err(Malformed::new("is an object without a type")),
                _ => Ok(0),
            }
        }
    }
}

/// `place` is what a sentence calls an item.
///
/// # Safety
/// As for [`check`].
unsafe fn check_items(
    items: *const abi::Value,
    count: usize,
    what: &str,
    place: impl Fn(usize) -> String,
    checker: &mut Checker,
    depth: usize,
) -> Result<usize, Malformed> {
    if count == 0 {
        return Ok(0);
    }
    if items.is_null() || !items.is_aligned() {
        return Err(Malformed::new(format!("is {what} of {count} values without them")));
    }
    if count > LONGEST / size_of::<abi::Value>() {
        return Err(Malformed::new(format!("is {what} of {count} values, more than memory holds")));
    }
    let mut levels = 0;
    for i in 0..count {
        // SAFETY: `count` values stand there (the caller's promise).
        let inner = unsafe { check_within(&*items.add(i), checker, depth + 1) };
        let inner = inner.map_err(|fault| fault.inside(&place(i)))?;
        levels = levels.max(inner);
    }
    Ok(levels)
}

/// # Safety
/// As for [`check`].
unsafe fn check_keys(keys: *const abi::Str, count: usize) -> Result<(), Malformed> {
    if count == 0 {
        return Ok(());
    }
    if keys.is_null() || !keys.is_aligned() {
        return Err(Malformed::new(format!("is a map of {count} values without keys")));
    }
    if count > LONGEST / size_of::<abi::Str>() {
        return Err(Malformed::new(format!("is a map of {count} keys, more than memory holds")));
    }
    let mut unique = std::collections::HashSet::new();
    for i in 0..count {
        // SAFETY: as many keys as values (the caller's promise).
        let key = unsafe { text(*keys.add(i), &format!("is a map whose key {i}")) }?;
        if !unique.insert(key) {
            return Err(Malformed::new(format!("is a map with the key \"{key}\" twice")));
        }
    }
    Ok(())
}

/// # Safety
/// As for [`check`].
unsafe fn check_tensor(tensor: &RawTensor) -> Result<(), Malformed> {
    let fault = |what: String| Err(Malformed::new(format!("is a tensor {what}")));
    if tensor.to_dlpack.is_missing() {
        return fault("without to_dlpack".into());
    }
    if tensor.dl.is_null() || !tensor.dl.is_aligned() {
        return fault("without its DLPack view".into());
    }
    // SAFETY: the layout up to the version is the same in every DLPack; the rest is read only if it
    // is version 1.
    let version = unsafe { (*tensor.dl).version };
    if version.major != abi::DLPACK_MAJOR_VERSION {
        return fault(format!(
            "of DLPack version {}.{}, but version {} is wanted",
            version.major,
            version.minor,
            abi::DLPACK_MAJOR_VERSION
        ));
    }
    // SAFETY: version 1.
    match unsafe { check_dl(&(*tensor.dl).dl_tensor) } {
        Ok(()) => Ok(()),
        Err(what) => fault(what),
    }
}

/// A view that a tensor gave of itself, looked at; the error is the end of a sentence.
///
/// # Safety
/// `dl`, where it is aligned, leads to what DLPack says, unchanged for `'a`.
pub(crate) unsafe fn checked_view<'a>(
    dl: *const abi::DLTensor,
) -> Result<&'a abi::DLTensor, String> {
    if !dl.is_aligned() {
        return Err("is at an address not aligned to 8".into());
    }
    // SAFETY: the caller's promise.
    let dl = unsafe { &*dl };
    // SAFETY: as above.
    unsafe { check_dl(dl) }.map_err(|what| format!("is one {what}"))?;
    Ok(dl)
}

/// Whether a DLPack tensor can be; the error follows "a tensor".
///
/// # Safety
/// Shape and strides, where they are not NULL and aligned, are `ndim` numbers.
unsafe fn check_dl(dl: &abi::DLTensor) -> Result<(), String> {
    let fault = |what: String| Err(what);
    if !(0..=MOST_AXES).contains(&dl.ndim) {
        return fault(format!("of {} axes", dl.ndim));
    }
    if dl.ndim > 0 && (dl.shape.is_null() || !dl.shape.is_aligned()) {
        return fault(format!("of {} axes without a shape", dl.ndim));
    }
    if !dl.strides.is_null() && !dl.strides.is_aligned() {
        return fault("whose strides are at an address not aligned to 8".into());
    }
    let shape: &[i64] = match dl.ndim {
        0 => &[],
        // SAFETY: DLPack: `ndim` numbers.
        ndim => unsafe { std::slice::from_raw_parts(dl.shape, ndim as usize) },
    };
    let DLDataType { code, bits, lanes } = dl.dtype;
    if lanes != 1 || bits == 0 || !bits.is_multiple_of(8) {
        return fault(format!("of DLPack code {code} with {bits} bits and {lanes} lanes"));
    }
    let Some(size) = bytes_of(shape, dl.dtype) else {
        return fault(format!("whose shape {shape:?} cannot be"));
    };
    if size > 0 && dl.data.is_null() {
        return fault(format!("of shape {shape:?} without data"));
    }
    if dl.byte_offset > isize::MAX as u64 {
        return fault(format!("that begins {} bytes behind its data", dl.byte_offset));
    }
    if size > 0 && !dl.strides.is_null() {
        // SAFETY: DLPack: `ndim` numbers.
        let strides = unsafe { std::slice::from_raw_parts(dl.strides, shape.len()) };
        let span = shape.iter().zip(strides).try_fold(0i64, |span, (&n, &stride)| {
            span.checked_add((n - 1).checked_mul(stride.checked_abs()?)?)
        });
        let bytes_each = i64::from(bits / 8);
        if span.and_then(|span| span.checked_mul(bytes_each)).is_none() {
            return fault(format!("whose strides {strides:?} reach further than memory"));
        }
    }
    Ok(())
}

/// The type of `kg_interface.call`.
pub type InterfaceFn = unsafe extern "C" fn(
    *mut abi::Object,
    *const abi::Context,
    *const abi::Map,
    *mut *mut abi::Map,
) -> abi::Status;

/// What of an interface is called.
#[derive(Clone, Copy)]
pub struct Callable {
    pub call: InterfaceFn,
    /// Whether it looks where the tensors lie that it is called with, or takes them to be on the CPU.
    pub anywhere: bool,
}

/// [`abi::Interface`] with a function pointer that may be NULL, as memory from outside may have it.
#[repr(C)]
struct RawInterface {
    size: u32,
    reserved: u32,
    call: Option<InterfaceFn>,
    flags: u64,
}

/// What is called of an interface; `None` for NULL, the end of a sentence for what breaks node.h.
///
/// # Safety
/// `interface` is NULL or what node.h says an interface is.
pub unsafe fn interface(interface: *const abi::Interface) -> Option<Result<Callable, String>> {
    if interface.is_null() {
        return None;
    }
    if !interface.is_aligned() {
        return Some(Err("is at an address not aligned to 8".to_owned()));
    }
    // SAFETY: the size stands first, and says whether the rest is there.
    let size = unsafe { (*interface).size } as usize;
    if size < size_of::<RawInterface>() {
        return Some(Err(format!(
            "has {size} bytes, not {}: its library was built with another node.h, and has to be built again",
            size_of::<RawInterface>()
        )));
    }
    // SAFETY: `size` covers it.
    let RawInterface { call, flags, .. } = unsafe { &*interface.cast::<RawInterface>() };
    let anywhere = flags & abi::ANYWHERE != 0;
    let callable = call.map(|call| Callable { call, anywhere });
    Some(callable.ok_or_else(|| "has no function call".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn count(_: *mut abi::Counted) {}

    fn base<T>() -> abi::Counted {
        abi::Counted { size: size_of::<T>() as u32, reserved: 0, retain: count, release: count }
    }

    fn value(kind: abi::Kind, counted: *mut abi::Counted) -> abi::Value {
        abi::Value { kind, reserved: 0, payload: abi::Payload { counted } }
    }

    fn list(items: &[abi::Value]) -> abi::List {
        abi::List { base: base::<abi::List>(), items: items.as_ptr(), count: items.len() }
    }

    #[test]
    fn one_address_is_one_thing() {
        let mut string =
            abi::KgString { base: base::<abi::KgString>(), text: abi::Str::new("a text") };
        let string = (&raw mut string).cast();
        let items = [value(abi::STRING, string), value(abi::TENSOR, string)];
        let mut twice = list(&items);
        // SAFETY: all of it is there.
        let told = unsafe { check(&value(abi::LIST, (&raw mut twice).cast())) }.unwrap_err();
        assert_eq!(
            told.to_string(),
            "is a list whose item 1 is a tensor at the address of a string"
        );
        let items = [items[0], items[0]];
        let mut same = list(&items);
        // SAFETY: as above.
        assert!(unsafe { check(&value(abi::LIST, (&raw mut same).cast())) }.is_ok());
    }

    #[test]
    fn a_long_chain_is_a_value_and_an_endless_one_is_none() {
        let nested = |levels: usize| {
            let mut inner = abi::Value::NONE;
            for _ in 0..levels {
                let items = Box::leak(Box::new([inner]));
                inner =
                    value(abi::LIST, std::ptr::from_mut(Box::leak(Box::new(list(items)))).cast());
            }
            // SAFETY: all of it is there for ever.
            unsafe { check(&inner) }.map_err(|told| told.to_string())
        };
        assert_eq!(nested(DEEPEST), Ok(()));
        assert!(nested(DEEPEST + 1).unwrap_err().ends_with("nested more than 512 levels deep"));
    }
}
