//! [`Object`]: something with behaviour that travels along a link, and how to make one.

use std::any::Any;

use kosmograph_abi as abi;
use kosmograph_abi::table;
use kosmograph_abi_check as check;
use kosmograph_abi_check::conform::{self, Axes, Misfit};

use crate::context::guard;
use crate::counted::Allocated;
use crate::{Context, Error, Result, Tensor, Value};

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

/// An interface as a type without values: its name, and the call on a `T` that offers it. The interfaces
/// of node.h are in [`crate::interface`].
pub trait Interface<T> {
    const ID: &'static str;

    /// What goes in is what the boundary's table says of an interface of this name, where it has one; what
    /// comes back is a map.
    fn call(object: &T, cx: &Context<'_>, input: &Arguments) -> Result<Value>;
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
    input: *const abi::Map,
    output: *mut *mut abi::Map,
) -> abi::Status {
    let body = |cx: &Context<'_>, input: &Arguments| {
        // SAFETY: node.h: the object is alive, and this table is only reachable from objects of type T.
        let object = unsafe { Allocated::recognise(object.cast_const()) }
            .and_then(|allocated| allocated.owner.downcast_ref::<T>())
            .ok_or_else(|| Error::new(format!("{} was called with another's object", I::ID)))?;
        I::call(object, cx, input)
    };
    // SAFETY: node.h: context, input and output are valid for the call.
    unsafe { answer(table::interface(I::ID), context, input, output, body) }
}

/// One call of a kg_interface of this library: what goes in is looked at and held against the `row` of the
/// table before `body` sees it; the map that `body` gives goes out.
///
/// # Safety
/// Context, input and output are what node.h says of a kg_interface's call.
pub(crate) unsafe fn answer(
    row: Option<&'static table::Interface>,
    context: *const abi::Context,
    input: *const abi::Map,
    output: *mut *mut abi::Map,
    body: impl FnOnce(&Context<'_>, &Arguments) -> Result<Value>,
) -> abi::Status {
    let body = |cx: &Context<'_>| {
        let id = row.map_or("this interface", |row| row.id);
        if input.is_null() || output.is_null() {
            return Err(Error::new(format!("{id} was called without a map to read or to give")));
        }
        let payload = abi::Payload { map: input.cast_mut() };
        let raw = abi::Value { kind: abi::MAP, reserved: 0, payload };
        // SAFETY: node.h: a map, borrowed for the call; looked at before it is believed.
        let values = unsafe { borrow_values(&raw const raw, 1) }?;
        let [input] = &values[..] else { return Err(Error::new("there is no map")) };
        if let Some(row) = row {
            // SAFETY: checked just now, and alive.
            let fits = unsafe { conform::map(&*payload.map, row.input, &mut Axes::default()) };
            fits.map_err(|Misfit { place, what }| Error::at(&place, what))?;
        }
        let made = body(cx, &Arguments(input))?;
        if made.kind() != abi::MAP {
            return Err(Error::new(format!("{id} made no map; this is a mistake in the library")));
        }
        // SAFETY: node.h: `output` is where a map is written; the reference passes with it.
        unsafe { output.write(made.into_raw().payload.map) };
        Ok(())
    };
    // SAFETY: node.h: the context is valid for the call.
    unsafe { guard(context, body) }
}

/// What goes into an interface: values by name.
pub struct Arguments<'a>(&'a Value);

impl Arguments<'_> {
    /// The value of a key; [`Value::NONE`] where there is none.
    pub fn get(&self, name: &str) -> Value {
        self.0.get(name).unwrap_or(Value::NONE)
    }

    fn wrong(&self, name: &str, wanted: &str) -> Error {
        let given = self.get(name);
        Error::at(name, format!("{wanted} is wanted, but {} was given", given.kind_name()))
    }

    /// # Errors
    /// Where it is no tensor, and so of the other kinds below.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        self.get(name).as_tensor().ok_or_else(|| self.wrong(name, "a tensor"))
    }

    /// One that may be absent.
    pub fn optional_tensor(&self, name: &str) -> Option<Tensor> {
        self.get(name).as_tensor()
    }

    /// A list of tensors; an empty one where it is absent.
    pub fn tensors(&self, name: &str) -> Result<Vec<Tensor>> {
        let wrong = || self.wrong(name, "a list of tensors");
        let value = self.get(name);
        if value.is_none() {
            return Ok(Vec::new());
        }
        let items = value.as_list().ok_or_else(wrong)?;
        items.iter().map(|item| item.as_tensor().ok_or_else(wrong)).collect()
    }

    pub fn text(&self, name: &str) -> Result<String> {
        let value = self.get(name);
        value.as_str().map(str::to_owned).ok_or_else(|| self.wrong(name, "text in UTF-8"))
    }

    pub fn number(&self, name: &str) -> Result<f64> {
        let value = self.get(name);
        // Whoever writes a map by hand says 1 for 1.0.
        let number = value.as_f64().or_else(|| value.as_i64().map(|integer| integer as f64));
        number.ok_or_else(|| self.wrong(name, "a number"))
    }

    /// `false` where it is absent.
    pub fn boolean(&self, name: &str) -> Result<bool> {
        let value = self.get(name);
        match value.is_none() {
            true => Ok(false),
            false => value.as_bool().ok_or_else(|| self.wrong(name, "a boolean")),
        }
    }

    pub fn integer(&self, name: &str) -> Result<i64> {
        self.get(name).as_i64().ok_or_else(|| self.wrong(name, "an integer"))
    }

    /// An integer of 0 or more.
    pub fn size(&self, name: &str) -> Result<usize> {
        let size = usize::try_from(self.integer(name)?);
        size.map_err(|_| Error::at(name, "an integer of 0 or more is wanted"))
    }
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

    /// Calls an interface by its name, with values by name; what goes in and comes out stands in node.h. What
    /// comes out is a map that the boundary's table allows, where the interface is in it.
    ///
    /// # Errors
    /// When the object does not offer it, what the call itself reports, and what it wrote that cannot be
    /// or is not what node.h says: it may be another library's.
    pub fn call<const IN: usize>(
        &self,
        cx: &Context<'_>,
        id: &str,
        input: [(&str, Value); IN],
    ) -> Result<Value> {
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
        let input = Value::map(input.into_iter().filter(|(_, value)| !value.is_none()));
        let mut output = std::ptr::null_mut();
        let failure = std::sync::Mutex::new(None);
        let relay = Relay::new(cx, &failure);
        // SAFETY: a map by its kind, alive until the end of this function, here and below.
        let given = unsafe { input.as_raw().payload.map };
        // SAFETY: node.h: the interface belongs to this live object; the input is borrowed for the call.
        let status = unsafe { function(self.raw(), &relay.context, given, &raw mut output) };
        // Whatever the status, what was written carries a reference that is ours now.
        let output = (!output.is_null()).then(|| {
            let payload = abi::Payload { map: output };
            let raw = abi::Value { kind: abi::MAP, reserved: 0, payload };
            // SAFETY: node.h: a pointer that was written leads to what it says, where it is aligned.
            match unsafe { check::check(&raw) } {
                // SAFETY: checked just now, here and below.
                Ok(()) => Ok(unsafe { Value::from_raw(raw) }),
                Err(fault) => {
                    if fault.releasable {
                        drop(unsafe { Value::from_raw(raw) });
                    }
                    Err(fault)
                }
            }
        });
        match status {
            abi::OK => (),
            abi::CANCELLED => return Err(Error::Cancelled),
            _ => {
                let failure = failure.into_inner().unwrap_or_else(|e| e.into_inner());
                return Err(failure.unwrap_or_else(|| {
                    Error::new(format!("\"{id}\" of this {} gave no reason", self.type_name()))
                }));
            }
        }
        let output = match output {
            None => return Err(self.broken(id, "says it is done, but gives no map")),
            Some(Err(fault)) => {
                return Err(self.broken(id, &format!("gave a map that {fault}")));
            }
            Some(Ok(output)) => output,
        };
        if let Some(row) = table::interface(id) {
            let mut axes = Axes::default();
            // Whether what went in fits is the callee's to say; here it only names the axes.
            // SAFETY: both maps are checked and alive.
            let fits = unsafe {
                let _ = conform::map(&*given, row.input, &mut axes);
                conform::map(&*output.as_raw().payload.map, row.output, &mut axes)
            };
            fits.map_err(|misfit| self.broken(id, &format!("gave a wrong {misfit}")))?;
        }
        Ok(output)
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
            extension: relay_extension,
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
/// What the host offers is called with the host's context, so each goes through a function of its own here.
unsafe extern "C" fn relay_extension(
    cx: *const abi::Context,
    name: abi::Str,
) -> *const abi::Interface {
    static PREVIEW: abi::Interface = abi::Interface {
        size: size_of::<abi::Interface>() as u32,
        reserved: 0,
        call: relay_preview,
    };
    // SAFETY: see above.
    let (offered, name) = unsafe { (relay_offered(cx, name), name.as_bytes()) };
    match name {
        b"preview/1" if !offered.is_null() => &raw const PREVIEW,
        _ => std::ptr::null(),
    }
}

/// # Safety
/// As for the functions above.
unsafe fn relay_offered(cx: *const abi::Context, name: abi::Str) -> *const abi::Interface {
    // SAFETY: the caller's promise.
    let host = unsafe { relay(cx) }.host;
    let covered = std::mem::offset_of!(abi::Context, extension) + size_of::<usize>();
    if (host.size as usize) < covered {
        return std::ptr::null();
    }
    // SAFETY: as above; its size covers the function.
    unsafe { (host.extension)(host, name) }
}

unsafe extern "C" fn relay_preview(
    object: *mut abi::Object,
    cx: *const abi::Context,
    input: *const abi::Map,
    output: *mut *mut abi::Map,
) -> abi::Status {
    // SAFETY: see above.
    unsafe {
        let offered = relay_offered(cx, abi::Str::new("preview/1"));
        match offered.is_null() {
            true => abi::ERROR,
            false => ((*offered).call)(object, relay(cx).host, input, output),
        }
    }
}
