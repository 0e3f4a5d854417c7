//! The Rust mirror of `node.h`, the boundary between Kosmograph's host and its node libraries.
//!
//! `node.h` beside this crate is the specification: who owns what, which thread may call what, what
//! each interface takes. Nothing is explained twice; read it there. This crate adds the layout and
//! asserts, as the header does, that both sides agree about it. It depends on nothing, so that a
//! host, a library and a test can all link it without linking each other.
#![no_std]

mod dlpack;
pub mod table;

pub use dlpack::*;

use core::ffi::{c_char, c_void};

/// The major version, which is also in the exported symbol's name: another major is another boundary.
pub const ABI_MAJOR: u16 = 1;
/// The minor version: structs grew or names were added; older readers still understand.
pub const ABI_MINOR: u16 = 2;
/// The one symbol a node library exports, a [`LibraryFn`].
pub const LIBRARY_SYMBOL: &str = "kosmograph_library_v1";

/// `kg_status`.
pub type Status = i32;
pub const OK: Status = 0;
pub const ERROR: Status = 1;
pub const CANCELLED: Status = 2;

/// `kg_kind`.
pub type Kind = u32;
pub const NONE: Kind = 0;
pub const BOOL: Kind = 1;
pub const INT: Kind = 2;
pub const FLOAT: Kind = 3;
pub const STRING: Kind = 4;
pub const LIST: Kind = 5;
pub const MAP: Kind = 6;
pub const TENSOR: Kind = 7;
pub const OBJECT: Kind = 8;

/// What a person calls a kind, for error messages.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        NONE => "nothing",
        BOOL => "a boolean",
        INT => "an integer",
        FLOAT => "a number",
        STRING => "a string",
        LIST => "a list",
        MAP => "a map",
        TENSOR => "a tensor",
        OBJECT => "an object",
        _ => "a value of an unknown kind",
    }
}

/// `kg_log_level`.
pub type LogLevel = u32;
pub const LOG_ERROR: LogLevel = 1;
pub const LOG_WARN: LogLevel = 2;
pub const LOG_INFO: LogLevel = 3;
pub const LOG_DEBUG: LogLevel = 4;

/// Borrowed UTF-8 text, `kg_str`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Str {
    pub ptr: *const c_char,
    pub len: usize,
}

// SAFETY: a Str is a pointer and a length; whoever reads through it answers for the memory's
// lifetime (`as_bytes` is unsafe), and the text behind it is immutable once handed over.
unsafe impl Send for Str {}
// SAFETY: as for Send.
unsafe impl Sync for Str {}

impl Str {
    /// A view of `text`; the caller keeps `text` alive for as long as the view is used.
    pub const fn new(text: &str) -> Self {
        Self { ptr: text.as_ptr().cast(), len: text.len() }
    }

    pub const EMPTY: Self = Self { ptr: core::ptr::null(), len: 0 };

    /// The bytes behind the view. They should be UTF-8; a reader checks.
    ///
    /// # Safety
    /// `ptr` points at `len` readable bytes that stay unchanged for `'a`, or `len` is 0.
    pub const unsafe fn as_bytes<'a>(self) -> &'a [u8] {
        if self.ptr.is_null() || self.len == 0 {
            return &[];
        }
        // SAFETY: the caller's promise.
        unsafe { core::slice::from_raw_parts(self.ptr.cast(), self.len) }
    }
}

/// What every counted thing begins with, `kg_counted`.
#[repr(C)]
pub struct Counted {
    pub size: u32,
    pub reserved: u32,
    pub retain: unsafe extern "C" fn(*mut Counted),
    pub release: unsafe extern "C" fn(*mut Counted),
}

/// A tagged union of 16 bytes, `kg_value`. Copying it copies no reference: see [`Counted`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Value {
    pub kind: Kind,
    pub reserved: u32,
    pub payload: Payload,
}

/// The union inside [`Value`]; which field is meant is said by [`Value::kind`].
#[repr(C)]
#[derive(Clone, Copy)]
pub union Payload {
    pub boolean: i64,
    pub integer: i64,
    pub natural: u64,
    pub number: f64,
    pub string: *mut KgString,
    pub list: *mut List,
    pub map: *mut Map,
    pub tensor: *mut Tensor,
    pub object: *mut Object,
    pub counted: *mut Counted,
}

impl Value {
    pub const NONE: Self = Self { kind: NONE, reserved: 0, payload: Payload { integer: 0 } };

    pub const fn boolean(value: bool) -> Self {
        Self { kind: BOOL, reserved: 0, payload: Payload { boolean: value as i64 } }
    }

    pub const fn integer(value: i64) -> Self {
        Self { kind: INT, reserved: 0, payload: Payload { integer: value } }
    }

    /// An integer of an unsigned range: the same kind, the same 64 bits.
    pub const fn natural(value: u64) -> Self {
        Self { kind: INT, reserved: 0, payload: Payload { natural: value } }
    }

    pub const fn number(value: f64) -> Self {
        Self { kind: FLOAT, reserved: 0, payload: Payload { number: value } }
    }

    /// Whether the payload points at something counted.
    pub const fn is_counted(&self) -> bool {
        self.kind >= STRING && self.kind <= OBJECT
    }
}

/// `kg_string`.
#[repr(C)]
pub struct KgString {
    pub base: Counted,
    pub text: Str,
}

/// `kg_list`.
#[repr(C)]
pub struct List {
    pub base: Counted,
    pub items: *const Value,
    pub count: usize,
}

/// `kg_map`.
#[repr(C)]
pub struct Map {
    pub base: Counted,
    pub keys: *const Str,
    pub values: *const Value,
    pub count: usize,
}

/// `kg_tensor`.
#[repr(C)]
pub struct Tensor {
    pub base: Counted,
    pub dl: *const DLManagedTensorVersioned,
    pub to_dlpack: unsafe extern "C" fn(*mut Tensor) -> *mut DLManagedTensorVersioned,
    /// Since 1.2; `None` where the tensor is to be had where it lies alone.
    pub view: Option<ViewFn>,
}

/// The type of `kg_tensor.view`.
pub type ViewFn =
    unsafe extern "C" fn(*mut Tensor, device_type: i32, device_id: i32) -> *const DLTensor;

/// The bytes of a `kg_tensor` of a header before 1.2, which ends before `view`.
pub const TENSOR_SIZE_1_0: usize = core::mem::offset_of!(Tensor, view);

/// `KG_ANYWHERE`, of [`Interface::flags`]: it looks where the tensors lie that it is called with.
pub const ANYWHERE: u64 = 1;

/// `kg_interface`.
#[repr(C)]
pub struct Interface {
    pub size: u32,
    pub reserved: u32,
    pub call: unsafe extern "C" fn(
        object: *mut Object,
        context: *const Context,
        input: *const Map,
        output: *mut *mut Map,
    ) -> Status,
    /// [`ANYWHERE`], or 0.
    pub flags: u64,
}

/// `kg_object`.
#[repr(C)]
pub struct Object {
    pub base: Counted,
    pub type_name: Str,
    pub query: unsafe extern "C" fn(*mut Object, Str) -> *const Interface,
}

/// `kg_context`.
#[repr(C)]
pub struct Context {
    pub size: u32,
    pub reserved: u32,
    pub log: unsafe extern "C" fn(*const Context, LogLevel, Str),
    pub progress: unsafe extern "C" fn(*const Context, step: u64, steps: u64) -> i32,
    pub fail: unsafe extern "C" fn(*const Context, input: Str, sentence: Str),
    pub property: unsafe extern "C" fn(*const Context, name: Str, value: *mut Str),
    pub output: unsafe extern "C" fn(*const Context, json: Str),
    pub new_string: unsafe extern "C" fn(*const Context, Str) -> *mut KgString,
    pub new_list: unsafe extern "C" fn(*const Context, *const Value, usize) -> *mut List,
    pub new_map: unsafe extern "C" fn(*const Context, *const Str, *const Value, usize) -> *mut Map,
    pub new_tensor: unsafe extern "C" fn(
        *const Context,
        DLDataType,
        ndim: i32,
        shape: *const i64,
    ) -> *mut Tensor,
    pub extension: unsafe extern "C" fn(*const Context, name: Str) -> *const Interface,
}

/// `kg_library`.
#[repr(C)]
pub struct Library {
    pub size: u32,
    pub abi_major: u16,
    pub abi_minor: u16,
    pub descriptor: Str,
    pub run: unsafe extern "C" fn(
        node: u32,
        context: *const Context,
        inputs: *const Value,
        n_inputs: usize,
        outputs: *mut Value,
        n_outputs: usize,
    ) -> Status,
    pub extension: Option<unsafe extern "C" fn(Str) -> *const c_void>,
}

/// The type of the exported symbol [`LIBRARY_SYMBOL`].
pub type LibraryFn = unsafe extern "C" fn() -> *const Library;

macro_rules! assert_layout {
    ($type:ty, $size:expr $(, $field:ident at $offset:expr)*) => {
        const _: () = assert!(core::mem::size_of::<$type>() == $size);
        $(const _: () = assert!(core::mem::offset_of!($type, $field) == $offset);)*
    };
}
assert_layout!(*const c_void, 8);
assert_layout!(Str, 16, ptr at 0, len at 8);
assert_layout!(Counted, 24, retain at 8, release at 16);
assert_layout!(Value, 16, payload at 8);
assert_layout!(KgString, 40, text at 24);
assert_layout!(List, 40, items at 24, count at 32);
assert_layout!(Map, 48, keys at 24, values at 32, count at 40);
assert_layout!(Tensor, 48, dl at 24, to_dlpack at 32, view at 40);
assert_layout!(Interface, 24, call at 8, flags at 16);
assert_layout!(Object, 48, type_name at 24, query at 40);
assert_layout!(Context, 88, log at 8, progress at 16, fail at 24, property at 32, output at 40,
    new_string at 48, new_list at 56, new_map at 64, new_tensor at 72, extension at 80);
assert_layout!(Library, 40, abi_major at 4, descriptor at 8, run at 24, extension at 32);
