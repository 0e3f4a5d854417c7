//! Objects of another library that break node.h: what they give is looked at before it is believed.

use node::*;

/// A foreign MODEL; `describe/1` does what `fault` says.
#[repr(C)]
struct Foreign {
    object: abi::Object,
    fault: Fault,
}

#[derive(Clone, Copy)]
enum Fault {
    NullString,
    NullTensor,
    UnknownKind,
    NoFunction,
    TextThatIsNone,
}

unsafe extern "C" fn count(_: *mut abi::Counted) {}

/// [`abi::Interface`] without its function.
#[repr(C)]
struct Empty {
    size: u32,
    reserved: u32,
    call: usize,
}

static EMPTY: Empty = Empty { size: size_of::<Empty>() as u32, reserved: 0, call: 0 };
static DESCRIBE: abi::Interface =
    abi::Interface { size: size_of::<abi::Interface>() as u32, reserved: 0, call: describe };

unsafe extern "C" fn query(object: *mut abi::Object, id: abi::Str) -> *const abi::Interface {
    // SAFETY: only foreign objects have this function; borrowed text.
    let (fault, id) = unsafe { ((*object.cast::<Foreign>()).fault, id.as_bytes()) };
    match (id, fault) {
        (b"describe/1", Fault::NoFunction) => (&raw const EMPTY).cast(),
        (b"describe/1", _) => &raw const DESCRIBE,
        _ => std::ptr::null(),
    }
}

unsafe extern "C" fn describe(
    object: *mut abi::Object,
    _: *const abi::Context,
    _: *const abi::Map,
    output: *mut *mut abi::Map,
) -> abi::Status {
    let null = std::ptr::null_mut();
    // SAFETY: only foreign objects have this interface.
    let value = match unsafe { (*object.cast::<Foreign>()).fault } {
        Fault::NullString => (abi::STRING, abi::Payload { string: null }),
        Fault::NullTensor => (abi::TENSOR, abi::Payload { tensor: null.cast() }),
        Fault::TextThatIsNone => (abi::STRING, abi::Payload { string: text() }),
        _ => (77, abi::Payload { integer: 5 }),
    };
    let value = abi::Value { kind: value.0, reserved: 0, payload: value.1 };
    let keys = Box::leak(Box::new(abi::Str::new("description")));
    let values = Box::leak(Box::new(value));
    let map = abi::Map { base: base::<abi::Map>(), keys, values, count: 1 };
    // SAFETY: node.h: where the map is written.
    unsafe { output.write(Box::into_raw(Box::new(map))) };
    abi::OK
}

/// A string of one byte that no UTF-8 text has.
fn text() -> *mut abi::KgString {
    static BYTE: [u8; 1] = [0xff];
    let text = abi::Str { ptr: BYTE.as_ptr().cast(), len: 1 };
    Box::into_raw(Box::new(abi::KgString { base: base::<abi::KgString>(), text }))
}

fn base<T>() -> abi::Counted {
    abi::Counted { size: size_of::<T>() as u32, reserved: 0, retain: count, release: count }
}

fn foreign(fault: Fault) -> Object {
    let object =
        abi::Object { base: base::<abi::Object>(), type_name: abi::Str::new("MODEL"), query };
    let object = Box::into_raw(Box::new(Foreign { object, fault })).cast();
    let raw = abi::Value { kind: abi::OBJECT, reserved: 0, payload: abi::Payload { object } };
    // SAFETY: an object as node.h wants it, alive for ever.
    unsafe { Value::from_raw(raw) }.as_object().unwrap()
}

unsafe extern "C" fn log(_: *const abi::Context, _: abi::LogLevel, _: abi::Str) {}
unsafe extern "C" fn progress(_: *const abi::Context, _: u64, _: u64) -> i32 {
    0
}
unsafe extern "C" fn fail(_: *const abi::Context, _: abi::Str, _: abi::Str) {}
unsafe extern "C" fn property(_: *const abi::Context, _: abi::Str, _: *mut abi::Str) {}
unsafe extern "C" fn output(_: *const abi::Context, _: abi::Str) {}
unsafe extern "C" fn new_string(_: *const abi::Context, _: abi::Str) -> *mut abi::KgString {
    std::ptr::null_mut()
}
unsafe extern "C" fn new_list(
    _: *const abi::Context,
    _: *const abi::Value,
    _: usize,
) -> *mut abi::List {
    std::ptr::null_mut()
}
unsafe extern "C" fn new_map(
    _: *const abi::Context,
    _: *const abi::Str,
    _: *const abi::Value,
    _: usize,
) -> *mut abi::Map {
    std::ptr::null_mut()
}
unsafe extern "C" fn extension(_: *const abi::Context, _: abi::Str) -> *const abi::Interface {
    std::ptr::null()
}
unsafe extern "C" fn new_tensor(
    _: *const abi::Context,
    _: abi::DLDataType,
    _: i32,
    _: *const i64,
) -> *mut abi::Tensor {
    std::ptr::null_mut()
}

#[test]
fn what_another_library_gives_is_that_librarys_error() {
    let size = size_of::<abi::Context>() as u32;
    let raw = abi::Context {
        size,
        reserved: 0,
        log,
        progress,
        fail,
        property,
        output,
        new_string,
        new_list,
        new_map,
        new_tensor,
        extension,
    };
    // SAFETY: obeys node.h, and lives as long as the test.
    let cx = unsafe { Context::from_raw(&raw) };
    for (fault, told) in [
        (Fault::NullString, "\"describe/1\" of this MODEL gave a map that"),
        (Fault::NullTensor, "is a tensor at NULL; its library breaks"),
        (Fault::UnknownKind, "is of kind 77"),
        (
            Fault::NoFunction,
            "\"describe/1\" of this MODEL has no function call; its library breaks",
        ),
        (Fault::TextThatIsNone, "is not UTF-8"),
    ] {
        let error = foreign(fault).describe(&cx).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}
