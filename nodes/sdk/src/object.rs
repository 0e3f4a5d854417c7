//! [`Object`]: something with behaviour that travels along a link, and how to make one.

use std::any::Any;

use kosmograph_abi as abi;
use kosmograph_abi::table;
use kosmograph_values as counted;
use kosmograph_values::check;
use kosmograph_values::conform::{self, Axes, Misfit};
use kosmograph_values::place::on_cpu;

use crate::context::guard;
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
        Self {
            id: I::ID,
            // Tensors are read through their views.
            table: abi::Interface { size, reserved: 0, call: call::<T, I>, flags: abi::ANYWHERE },
        }
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
        let object = unsafe { counted::Value::owner_of::<T>(object) }
            .ok_or_else(|| Error::new(format!("{} was called with another's object", I::ID)))?;
        I::call(object, cx, input)
    };
    // SAFETY: node.h: context, input and output are valid for the call.
    unsafe { answer(table::interface(I::ID), context, input, output, &body) }
}

/// One call of a kg_interface of this library: what goes in is looked at and held against the `row` of the
/// table before `body` sees it; the map that `body` gives goes out. Compiled once and not for each interface.
///
/// # Safety
/// Context, input and output are what node.h says of a kg_interface's call.
pub(crate) unsafe fn answer(
    row: Option<&'static table::Interface>,
    context: *const abi::Context,
    input: *const abi::Map,
    output: *mut *mut abi::Map,
    body: &dyn Fn(&Context<'_>, &Arguments) -> Result<Value>,
) -> abi::Status {
    let body = |cx: &Context<'_>| {
        let id = row.map_or("this interface", |row| row.id);
        if input.is_null() || output.is_null() {
            return Err(Error::new(format!("{id} was called without a map to read or to give")));
        }
        // SAFETY: node.h: a map, borrowed for the call; looked at before it is believed.
        let input = unsafe { counted::Value::borrow_map(input) }.map_err(|fault| {
            Error::new(format!(
                "{id} was called with a value that {fault}; whoever calls breaks the boundary's rules"
            ))
        })?;
        if let Some(row) = row {
            let fits = conform::map(&input, row.input, &mut Axes::default());
            fits.map_err(|Misfit { place, what }| Error::at(&place, what))?;
        }
        let made = body(cx, &Arguments(&input.into()))?;
        if made.kind() != abi::MAP {
            return Err(Error::new(format!("{id} made no map; this is a mistake in the library")));
        }
        let made = if cx.takes_tensors_anywhere() { made } else { on_cpu(made.counted())?.into() };
        // SAFETY: node.h: `output` is where a map is written; the reference passes with it.
        unsafe { output.write(made.into_raw().payload.map) };
        Ok(())
    };
    // SAFETY: node.h: the context is valid for the call.
    unsafe { guard(context, &body) }
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
    // SAFETY: the caller's promise.
    let values = unsafe { check::Checker::default().borrow_all(values, count) };
    let broken = |why| Error::new(format!("{why}; whoever calls breaks the boundary's rules"));
    Ok(values.map_err(broken)?.into_iter().map(Value::from).collect())
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
    let id = unsafe { check::bytes(id) }.unwrap_or_default();
    let entry = T::INTERFACES.iter().find(|entry| entry.id.as_bytes() == id);
    entry.map_or(std::ptr::null(), |entry| &raw const entry.table)
}

impl Object {
    /// Hands out `inner` as an object with the interfaces of its type.
    pub fn new<T: Export>(inner: T) -> Self {
        // SAFETY: `query` finds interfaces that are called with objects of this type.
        Self(unsafe { counted::Value::object(T::TYPE, query::<T>, inner) }.into())
    }

    /// `None` for a value of any other kind.
    pub(crate) fn from_value(value: Value) -> Option<Self> {
        (value.kind() == abi::OBJECT).then_some(Self(value))
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
        self.0.counted().object_type().unwrap_or_default().to_owned()
    }

    /// The Rust value behind an object of this same library, so that a family of nodes pays nothing for
    /// the boundary inside itself.
    pub fn local<T: Export>(&self) -> Option<&T> {
        self.0.counted().object_owner()
    }

    pub fn offers(&self, id: &str) -> bool {
        self.interface(id).is_some()
    }

    fn interface(&self, id: &str) -> Option<Result<check::Callable, String>> {
        self.0.counted().interface(id)
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
        let input = if function.anywhere { input } else { on_cpu(input.counted())?.into() };
        let mut output = std::ptr::null_mut();
        let failure = std::sync::Mutex::new(None);
        let relay = Relay::new(cx, &failure, function.anywhere);
        // SAFETY: node.h: the interface belongs to this live object; the input is borrowed for the call.
        let status = unsafe {
            (function.call)(
                self.raw(),
                &relay.context,
                input.counted().as_raw_map(),
                &raw mut output,
            )
        };
        // SAFETY: node.h: whatever the status, what was written leads to what it says, where it is aligned,
        // and carries a reference that is ours now.
        let output = unsafe { counted::Value::adopt_map(output) };
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
                return Err(self.broken(id, &format!("gave a value that {fault}")));
            }
            Some(Ok(output)) => output,
        };
        if let Some(row) = table::interface(id) {
            let fits = conform::answer(row, input.counted(), &output);
            fits.map_err(|misfit| self.broken(id, &format!("gave a wrong {misfit}")))?;
        }
        Ok(output.into())
    }
}

impl Object {
    /// The error that an interface of this object broke a rule: `what` it did.
    fn broken(&self, id: &str, what: &str) -> Error {
        let kind = self.type_name();
        let library = self.library().map_or(String::new(), |name| format!(" {name}"));
        Error::new(format!(
            "\"{id}\" of this {kind} {what}; its library{library} breaks the boundary's rules"
        ))
    }

    /// The name of the file that its functions are in, "libdenoiser.so"; `None` where the system does not say.
    fn library(&self) -> Option<String> {
        // SAFETY: alive while `self` is.
        let function = unsafe { (*self.raw()).query } as *const std::ffi::c_void;
        file_of(function)
    }
}

#[cfg(unix)]
fn file_of(function: *const std::ffi::c_void) -> Option<String> {
    // SAFETY: NULL pointers are what dladdr may leave.
    let mut found: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: room for the answer; any address may be asked for.
    if unsafe { libc::dladdr(function, &mut found) } == 0 || found.dli_fname.is_null() {
        return None;
    }
    // SAFETY: a path that lives as long as its library, which is never unloaded (node.h).
    let path = unsafe { std::ffi::CStr::from_ptr(found.dli_fname) }.to_string_lossy();
    let name = std::path::Path::new(&*path).file_name()?;
    Some(name.to_string_lossy().into_owned())
}

#[cfg(not(unix))]
fn file_of(_: *const std::ffi::c_void) -> Option<String> {
    None
}

/// A context for a call across libraries: the host's own, but `fail` comes to the caller first, who may
/// add what it knows before the host hears of it.
#[repr(C)]
struct Relay<'a> {
    context: abi::Context,
    host: &'a abi::Context,
    failure: &'a std::sync::Mutex<Option<Error>>,
    /// Whether the callee looks where tensors lie.
    anywhere: bool,
}

impl<'a> Relay<'a> {
    fn new(cx: &Context<'a>, failure: &'a std::sync::Mutex<Option<Error>>, anywhere: bool) -> Self {
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
        Self { context, host: cx.as_raw(), failure, anywhere }
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
    let (relay, text) = unsafe { (relay(cx), check::bytes(sentence)) };
    let error = match text {
        Ok(bytes) => Error::new(String::from_utf8_lossy(bytes)),
        Err(why) => Error::new(format!("(a text that {why})")),
    };
    *relay.failure.lock().unwrap_or_else(|e| e.into_inner()) = Some(error);
}
unsafe extern "C" fn relay_property(cx: *const abi::Context, name: abi::Str, value: *mut abi::Str) {
    // SAFETY: see above.
    unsafe {
        let relay = relay(cx);
        // What the callee takes, not what the node does that calls it.
        match check::bytes(name) {
            Ok(b"tensors") if !relay.anywhere && !value.is_null() => {
                value.write(abi::Str::new("cpu"))
            }
            _ => (relay.host.property)(relay.host, name, value),
        }
    }
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
        flags: 0,
    };
    // SAFETY: see above.
    let (offered, name) = unsafe { (relay_offered(cx, name), check::bytes(name)) };
    match name {
        Ok(b"preview/1") if !offered.is_null() => &raw const PREVIEW,
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
