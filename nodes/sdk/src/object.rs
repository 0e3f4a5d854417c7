//! [`Object`]: something with behaviour that travels along a link, and how to make one.

use std::any::Any;

use kosmograph_abi as abi;
use kosmograph_abi_check as check;

use crate::context::guard;
use crate::counted::Allocated;
use crate::{Context, Error, Result, Value};

/// A reference to an object, whichever library it lives in.
#[derive(Clone)]
pub struct Object(Value);

/// A Rust type that can be handed out as an object.
pub trait Export: Any + Send + Sync + Sized {
    /// The socket type it fits, "MODEL".
    const TYPE: &'static str;
    /// Its interfaces, made by [`interfaces!`](crate::interfaces).
    const INTERFACES: &'static [Entry];
}

/// One interface of an exported type.
pub struct Entry {
    id: &'static str,
    table: abi::Interface,
}

/// An interface as a type without values: its name, how many values go in and out, and the call on a
/// `T` that offers it. The interfaces of node.h are in [`crate::interface`].
pub trait Interface<T> {
    const ID: &'static str;
    const INPUTS: usize;
    const OUTPUTS: usize;

    /// `inputs` are [`Self::INPUTS`] values; [`Self::OUTPUTS`] values come back.
    fn call(object: &T, cx: &Context<'_>, inputs: &[Value]) -> Result<Vec<Value>>;
}

impl Entry {
    /// The entry of interface `I` in [`Export::INTERFACES`] of `T`.
    pub const fn of<T: Export, I: Interface<T>>() -> Self {
        let size = size_of::<abi::Interface>() as u32;
        Self { id: I::ID, table: abi::Interface { size, reserved: 0, call: call::<T, I> } }
    }
}

/// Lists the interfaces of an exported type: `interfaces![UNetModel: Denoiser, Describe, Memory]`.
#[macro_export]
macro_rules! interfaces {
    ($object:ty: $($interface:ty),+ $(,)?) => {
        &[$($crate::InterfaceEntry::of::<$object, $interface>()),+]
    };
}

unsafe extern "C" fn call<T: Export, I: Interface<T>>(
    object: *mut abi::Object,
    context: *const abi::Context,
    inputs: *const abi::Value,
    n_inputs: usize,
    outputs: *mut abi::Value,
    n_outputs: usize,
) -> abi::Status {
    let body = |cx: &Context<'_>| {
        let counts = [("inputs", n_inputs, I::INPUTS), ("outputs", n_outputs, I::OUTPUTS)];
        for (what, given, wanted) in counts {
            if given != wanted {
                let id = I::ID;
                return Err(Error::new(format!(
                    "{id} has {wanted} {what}, but {given} were given"
                )));
            }
        }
        // SAFETY: node.h: the object is alive, and this table is only reachable from objects of type T.
        let object = unsafe { Allocated::recognise(object.cast_const()) }
            .and_then(|allocated| allocated.owner.downcast_ref::<T>())
            .ok_or_else(|| Error::new(format!("{} was called with another's object", I::ID)))?;
        // SAFETY: node.h: `inputs` are `n_inputs` values, borrowed for the call.
        let inputs: Vec<Value> = unsafe { borrow_values(inputs, n_inputs) }?;
        let results = I::call(object, cx, &inputs)?;
        // SAFETY: node.h: `outputs` has room for `n_outputs` values.
        unsafe { write_values(results, outputs, n_outputs) }
    };
    // SAFETY: node.h: the context is valid for the call.
    unsafe { guard(context, body) }
}

/// What somebody else hands in, looked at before it is believed.
///
/// # Safety
/// `values` points at `count` values whose pointers lead to what node.h says, where they are not NULL and
/// aligned; or `count` is 0.
pub(crate) unsafe fn borrow_values(values: *const abi::Value, count: usize) -> Result<Vec<Value>> {
    let borrow = |i: usize| {
        // SAFETY: the caller's promise, here and below.
        let value = unsafe { &*values.add(i) };
        unsafe { check::check(value) }.map_err(|malformed| {
            Error::new(format!(
                "value number {i} of the call {malformed}; whoever calls breaks the boundary's rules"
            ))
        })?;
        // SAFETY: checked, and alive for the call.
        Ok(unsafe { Value::borrow_raw(value) })
    };
    (0..count).map(borrow).collect()
}

/// # Safety
/// `outputs` has room for `count` values.
pub(crate) unsafe fn write_values(
    results: Vec<Value>,
    outputs: *mut abi::Value,
    count: usize,
) -> Result<()> {
    if results.len() != count {
        return Err(Error::new(format!(
            "{} values were made where {count} are wanted; this is a mistake in the library",
            results.len()
        )));
    }
    for (i, value) in results.into_iter().enumerate() {
        // SAFETY: i < count.
        unsafe { outputs.add(i).write(value.into_raw()) };
    }
    Ok(())
}

unsafe extern "C" fn query<T: Export>(_: *mut abi::Object, id: abi::Str) -> *const abi::Interface {
    // SAFETY: node.h: borrowed text, alive for the call.
    let id = unsafe { id.as_bytes() };
    let entry = T::INTERFACES.iter().find(|entry| entry.id.as_bytes() == id);
    entry.map_or(std::ptr::null(), |entry| &raw const entry.table)
}

impl Object {
    /// Hands out `inner` as an object with the interfaces of its type.
    pub fn new<T: Export>(inner: T) -> Self {
        let header = abi::Object {
            base: Allocated::<abi::Object>::base(),
            type_name: abi::Str::new(T::TYPE),
            query: query::<T>,
        };
        let object = Allocated::allocate(header, Box::new(inner));
        let raw = abi::Value { kind: abi::OBJECT, reserved: 0, payload: abi::Payload { object } };
        // SAFETY: a fresh value that obeys node.h, with its one reference.
        Self(unsafe { Value::from_raw(raw) })
    }

    /// `value` is of kind OBJECT.
    pub(crate) fn from_value(value: Value) -> Self {
        debug_assert_eq!(value.kind(), abi::OBJECT);
        Self(value)
    }

    pub fn into_value(self) -> Value {
        self.0
    }

    fn raw(&self) -> *mut abi::Object {
        // SAFETY: the kind is OBJECT since `from_value`.
        unsafe { self.0.as_raw().payload.object }
    }

    /// The socket type it fits.
    pub fn type_name(&self) -> String {
        // SAFETY: alive while `self` is.
        let bytes = unsafe { (*self.raw()).type_name.as_bytes() };
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// The Rust value behind an object of this same library, so that a family of nodes pays nothing for
    /// the boundary inside itself.
    pub fn local<T: Export>(&self) -> Option<&T> {
        // SAFETY: alive while `self` is.
        unsafe { Allocated::recognise(self.raw().cast_const()) }?.owner.downcast_ref()
    }

    pub fn offers(&self, id: &str) -> bool {
        self.interface(id).is_some()
    }

    fn interface(&self, id: &str) -> Option<Result<check::InterfaceFn, String>> {
        // SAFETY: node.h: `query` may be called while the object is alive, and the answer lives as long as
        // the process.
        unsafe { check::interface(((*self.raw()).query)(self.raw(), abi::Str::new(id))) }
    }

    /// Calls an interface by its name; what goes in and out stands in node.h.
    ///
    /// # Errors
    /// When the object does not offer it, what the call itself reports, and what it wrote that no value can
    /// be: it may be another library's.
    pub fn call<const OUT: usize>(
        &self,
        cx: &Context<'_>,
        id: &str,
        inputs: &[Value],
    ) -> Result<[Value; OUT]> {
        let function = match self.interface(id) {
            None => {
                return Err(Error::new(format!(
                    "this {} does not offer \"{id}\"; its library cannot be used here",
                    self.type_name()
                )));
            }
            Some(Err(why)) => return Err(self.broken(id, &why)),
            Some(Ok(function)) => function,
        };
        let raw_inputs: Vec<abi::Value> = inputs.iter().map(|value| *value.as_raw()).collect();
        let mut raw_outputs = [abi::Value::NONE; OUT];
        let failure = std::sync::Mutex::new(None);
        let relay = Relay::new(cx, &failure);
        // SAFETY: node.h: the interface belongs to this live object; inputs are borrowed for the call.
        let status = unsafe {
            function(
                self.raw(),
                &relay.context,
                raw_inputs.as_ptr(),
                raw_inputs.len(),
                raw_outputs.as_mut_ptr(),
                OUT,
            )
        };
        // All of them, before anything is returned: each carries a reference that is ours now, whatever the
        // status.
        let mut malformed = None;
        let outputs = raw_outputs.map(|raw| {
            // SAFETY: node.h: pointers that were written lead to what it says, where they are not NULL and
            // aligned.
            match unsafe { check::check(&raw) } {
                // SAFETY: checked just now, here and below.
                Ok(()) => unsafe { Value::from_raw(raw) },
                Err(fault) => {
                    if fault.releasable {
                        drop(unsafe { Value::from_raw(raw) });
                    }
                    malformed.get_or_insert(fault);
                    Value::NONE
                }
            }
        });
        if let (abi::OK, Some(fault)) = (status, malformed) {
            return Err(self.broken(id, &format!("gave a value that {fault}")));
        }
        match status {
            abi::OK => Ok(outputs),
            abi::CANCELLED => Err(Error::Cancelled),
            _ => {
                let failure = failure.into_inner().unwrap_or_else(|e| e.into_inner());
                Err(failure.unwrap_or_else(|| {
                    Error::new(format!("\"{id}\" of this {} gave no reason", self.type_name()))
                }))
            }
        }
    }
}

impl Object {
    /// The error that an interface of this object broke a rule: `what` it did.
    fn broken(&self, id: &str, what: &str) -> Error {
        let kind = self.type_name();
        Error::new(format!(
            "\"{id}\" of this {kind} {what}; its library breaks the boundary's rules"
        ))
    }
}

/// A context for a call across libraries: the host's own, but `fail` comes to the caller first, who may
/// add what it knows before the host hears of it.
#[repr(C)]
struct Relay<'a> {
    context: abi::Context,
    host: &'a abi::Context,
    failure: &'a std::sync::Mutex<Option<Error>>,
}

impl<'a> Relay<'a> {
    fn new(cx: &Context<'a>, failure: &'a std::sync::Mutex<Option<Error>>) -> Self {
        let context = abi::Context {
            size: size_of::<abi::Context>() as u32,
            reserved: 0,
            log: relay_log,
            progress: relay_progress,
            fail: relay_fail,
            property: relay_property,
            output: relay_output,
            new_string: relay_new_string,
            new_list: relay_new_list,
            new_map: relay_new_map,
            new_tensor: relay_new_tensor,
        };
        Self { context, host: cx.as_raw(), failure }
    }
}

/// # Safety
/// `context` is the first field of a live [`Relay`].
unsafe fn relay<'a>(context: *const abi::Context) -> &'a Relay<'a> {
    // SAFETY: the caller's promise; Relay is repr(C).
    unsafe { &*context.cast::<Relay<'a>>() }
}

// SAFETY of the functions below: each is reachable through `Relay::context` alone, while the call that
// made the relay lasts, and hands its arguments on unchanged.
unsafe extern "C" fn relay_log(cx: *const abi::Context, level: abi::LogLevel, text: abi::Str) {
    // SAFETY: see above.
    unsafe { (relay(cx).host.log)(relay(cx).host, level, text) }
}
unsafe extern "C" fn relay_progress(cx: *const abi::Context, step: u64, steps: u64) -> i32 {
    // SAFETY: see above.
    unsafe { (relay(cx).host.progress)(relay(cx).host, step, steps) }
}
unsafe extern "C" fn relay_fail(cx: *const abi::Context, _input: abi::Str, sentence: abi::Str) {
    // The input's name is the callee's own and would mislead: the caller's inputs have other names.
    // SAFETY: see above; the text is borrowed for this call and copied.
    let (relay, bytes) = unsafe { (relay(cx), sentence.as_bytes()) };
    let error = Error::new(String::from_utf8_lossy(bytes));
    *relay.failure.lock().unwrap_or_else(|e| e.into_inner()) = Some(error);
}
unsafe extern "C" fn relay_property(cx: *const abi::Context, name: abi::Str, value: *mut abi::Str) {
    // SAFETY: see above.
    unsafe { (relay(cx).host.property)(relay(cx).host, name, value) }
}
unsafe extern "C" fn relay_output(cx: *const abi::Context, json: abi::Str) {
    // SAFETY: see above.
    unsafe { (relay(cx).host.output)(relay(cx).host, json) }
}
unsafe extern "C" fn relay_new_string(
    cx: *const abi::Context,
    text: abi::Str,
) -> *mut abi::KgString {
    // SAFETY: see above.
    unsafe { (relay(cx).host.new_string)(relay(cx).host, text) }
}
unsafe extern "C" fn relay_new_list(
    cx: *const abi::Context,
    items: *const abi::Value,
    count: usize,
) -> *mut abi::List {
    // SAFETY: see above.
    unsafe { (relay(cx).host.new_list)(relay(cx).host, items, count) }
}
unsafe extern "C" fn relay_new_map(
    cx: *const abi::Context,
    keys: *const abi::Str,
    values: *const abi::Value,
    count: usize,
) -> *mut abi::Map {
    // SAFETY: see above.
    unsafe { (relay(cx).host.new_map)(relay(cx).host, keys, values, count) }
}
unsafe extern "C" fn relay_new_tensor(
    cx: *const abi::Context,
    dtype: abi::DLDataType,
    ndim: i32,
    shape: *const i64,
) -> *mut abi::Tensor {
    // SAFETY: see above.
    unsafe { (relay(cx).host.new_tensor)(relay(cx).host, dtype, ndim, shape) }
}
