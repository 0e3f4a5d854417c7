//! A small host for the tests of node libraries: runs a node by its class, with inputs by their names, and
//! keeps what it is told.
//!
//! ```
//! use node::testing::{Host, this_library};
//! use node::*;
//!
//! /// Halves a number of pictures.
//! #[derive(Inputs)]
//! struct Darken {
//!     image: Image,
//!     #[widget(default = 2, min = 1, max = 4)]
//!     times: i64,
//! }
//!
//! impl Node for Darken {
//!     outputs![image: Image];
//!
//!     fn run(self, cx: &Context) -> Result<Image> {
//!         let mut pixels = self.image.0.to_vec()?;
//!         for step in cx.steps(self.times as usize) {
//!             step?;
//!             pixels.iter_mut().for_each(|x| *x *= 0.5);
//!         }
//!         Ok(Image(Tensor::from_f32(&self.image.0.shape(), pixels)?))
//!     }
//! }
//!
//! node::library![Darken];
//!
//! fn main() -> std::result::Result<(), Error> {
//!     let picture = Tensor::from_f32(&[1, 1, 1, 3], vec![1.0, 0.5, 0.0])?.into_value();
//!     let (host, library) = (Host::new(), this_library!());
//!     // What is not given has its default.
//!     let made = host.run(&library, "Darken", &[("image", picture.clone())])?;
//!     assert_eq!(made[0].as_tensor().unwrap().to_vec()?, [0.25, 0.125, 0.0]);
//!     assert_eq!(host.progress(), [(0, 2), (1, 2), (2, 2)]);
//!
//!     let stopped = Host::new().stop_at(1).run(&library, "Darken", &[("image", picture)]);
//!     assert!(matches!(stopped, Err(Error::Cancelled)));
//!     Ok(())
//! }
//! ```
//!
//! A test beside the nodes says `this_library!()` as above. One in a folder of its own links the crate first:
//! `use my_nodes as _;`, and the crate is of the types `["cdylib", "rlib"]` then. What a library must keep
//! beyond its own purpose, `kosmograph check-plugin` tests.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kosmograph_abi as abi;
use kosmograph_abi::table::HOST_FUNCTIONS;
use kosmograph_values::check::{Checker, bytes};
use kosmograph_values::conform::{self, Axes};
use kosmograph_values::parts;
use serde_json::Value as Json;

pub use crate::__this_library as this_library;
use crate::{Context, Error, Result, Value};

/// The library that is linked into the test, as a [`Library`](crate::testing::Library).
#[doc(hidden)]
#[macro_export]
macro_rules! __this_library {
    () => {{
        unsafe extern "C" {
            safe fn kosmograph_library_v1() -> *const $crate::abi::Library;
        }
        // SAFETY: the one symbol of a node library, which obeys node.h.
        unsafe { $crate::testing::Library::new(kosmograph_library_v1()) }
    }};
}

/// A node library, as a host finds it.
pub struct Library {
    table: &'static abi::Library,
    descriptor: Json,
}

impl Library {
    /// # Safety
    /// `table` is what `kosmograph_library_v1` returns (node.h).
    ///
    /// # Panics
    /// The library does not describe itself in JSON.
    #[track_caller]
    pub unsafe fn new(table: *const abi::Library) -> Self {
        // SAFETY: the caller's promise: it lives as long as the process.
        let table = unsafe { table.as_ref() }.expect("the library cannot describe itself");
        // SAFETY: as above.
        let descriptor = unsafe { parts::string(table.descriptor) };
        let descriptor = descriptor.expect("the descriptor is text");
        let descriptor = serde_json::from_str(descriptor).expect("the descriptor is JSON");
        Self { table, descriptor }
    }

    /// What the library says of itself; node.h, "Descriptor".
    pub fn descriptor(&self) -> &Json {
        &self.descriptor
    }

    /// What the library says of the node `class`.
    ///
    /// # Panics
    /// There is no such node.
    #[track_caller]
    pub fn node(&self, class: &str) -> &Json {
        &self.nodes()[self.number(class)]
    }

    fn nodes(&self) -> &[Json] {
        self.descriptor["nodes"].as_array().map_or(&[], Vec::as_slice)
    }

    #[track_caller]
    fn number(&self, class: &str) -> usize {
        let number = self.nodes().iter().position(|node| node["class"] == class);
        number.unwrap_or_else(|| panic!("the library has no node {class}"))
    }
}

/// A host that keeps what it is told. One is good for any number of calls, from any thread.
// The context comes first, so that its address is the host's.
#[repr(C)]
pub struct Host {
    context: abi::Context,
    properties: HashMap<String, String>,
    stop_at: u64,
    wants_previews: bool,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    logs: Vec<String>,
    progress: Vec<(u64, u64)>,
    outputs: Vec<Json>,
    previews: Vec<Value>,
    failure: Option<(String, String)>,
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// A host with the device "cpu" that never asks to stop.
    pub fn new() -> Self {
        crate::context::IN_TESTS.store(true, Ordering::Relaxed);
        let context = abi::Context {
            size: size_of::<abi::Context>() as u32,
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
        let (properties, told) = (HashMap::new(), Mutex::default());
        Self { context, properties, stop_at: u64::MAX, wants_previews: false, told }
            .with("device", "cpu")
    }

    /// The same host, which knows the property `name` of node.h: "output_directory", "prompt", … or "room", the answer to every
    /// "room:BYTES".
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.properties.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The same host, which asks to stop when `step` or a later one is reported; at 0, whenever it is asked.
    pub fn stop_at(mut self, step: u64) -> Self {
        self.stop_at = step;
        self
    }

    /// The same host, which looks at previews.
    pub fn wants_previews(mut self) -> Self {
        self.wants_previews = true;
        self
    }

    /// The context that a call of this host is lent: for calling objects.
    pub fn context(&self) -> Context<'_> {
        // SAFETY: obeys node.h for as long as the host is borrowed.
        unsafe { Context::from_raw(&self.context) }
    }

    /// The lines that were logged.
    pub fn logs(&self) -> Vec<String> {
        self.told().logs.clone()
    }

    /// The reports of progress, step and steps; (0, 0) where a node only asked whether to go on.
    pub fn progress(&self) -> Vec<(u64, u64)> {
        self.told().progress.clone()
    }

    /// What output nodes told, among it what files they were about to name ("making").
    pub fn outputs(&self) -> Vec<Json> {
        self.told().outputs.clone()
    }

    /// The maps that were shown with "preview/1", where the host looks at previews.
    pub fn previews(&self) -> Vec<Value> {
        self.told().previews.clone()
    }

    /// The input and the sentence of the last failure that was told, where one was since the last call.
    pub fn failure(&self) -> Option<(String, String)> {
        self.told().failure.clone()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the node `class`. An input that is not given has its default, or is absent.
    ///
    /// # Errors
    /// What the node reports, or how it breaks node.h.
    ///
    /// # Panics
    /// There is no such node, or it has no such input.
    #[track_caller]
    pub fn run(
        &self,
        library: &Library,
        class: &str,
        inputs: &[(&str, Value)],
    ) -> Result<Vec<Value>> {
        let node = library.node(class);
        let takes_lists = node["input_is_list"] == true;
        let list = |key: &str| node[key].as_array().map_or(&[][..], Vec::as_slice);
        let mut given: HashMap<&str, &Value> =
            inputs.iter().map(|(name, value)| (*name, value)).collect();
        let mut value = |spec: &Json| {
            let value = spec["name"].as_str().and_then(|name| given.remove(name));
            value.cloned().unwrap_or_else(|| match default(spec) {
                value if takes_lists && !value.is_none() => Value::list(vec![value]),
                value => value,
            })
        };
        let values: Vec<Value> = list("inputs").iter().map(&mut value).collect();
        assert!(given.is_empty(), "{class} has no inputs {:?}", given.keys());
        self.call(library, library.number(class) as u32, &values, list("outputs").len())
    }

    /// Calls node number `node` with inputs in their order, however many: also as no host would.
    ///
    /// # Errors
    /// What the node reports, or how it breaks node.h.
    pub fn call(
        &self,
        library: &Library,
        node: u32,
        inputs: &[Value],
        n_outputs: usize,
    ) -> Result<Vec<Value>> {
        self.told().failure = None;
        let inputs: Vec<abi::Value> = inputs.iter().map(|value| *value.as_raw()).collect();
        let mut outputs = vec![abi::Value::NONE; n_outputs];
        let context = std::ptr::from_ref(self).cast();
        // SAFETY: node.h: a context, borrowed inputs and room for the outputs, for the call.
        let status = unsafe {
            let (inputs, n_inputs) = (inputs.as_ptr(), inputs.len());
            (library.table.run)(node, context, inputs, n_inputs, outputs.as_mut_ptr(), n_outputs)
        };
        let mut checker = Checker::default();
        // SAFETY: node.h: what was written is a value, whose reference passes to the caller.
        let outputs: Vec<_> =
            outputs.into_iter().map(|raw| unsafe { checker.adopt(raw) }).collect();
        match status {
            abi::OK => (),
            abi::CANCELLED => return Err(Error::Cancelled),
            abi::ERROR => {
                return Err(match self.failure() {
                    Some((input, sentence)) if input.is_empty() => Error::new(sentence),
                    Some((input, sentence)) => Error::at(input, sentence),
                    None => Error::new("the node failed and gave no reason"),
                });
            }
            other => return Err(Error::new(format!("the node returned the status {other}"))),
        }
        let look = |(i, value)| match value {
            Ok(value) => Ok(Value::from(value)),
            Err(fault) => {
                Err(Error::new(format!("the node wrote a value to output {i} that {fault}")))
            }
        };
        outputs.into_iter().enumerate().map(look).collect()
    }
}

/// What the host passes where nothing is given.
fn default(spec: &Json) -> Value {
    match (&spec["default"], spec["type"].as_str()) {
        (Json::Bool(flag), _) => (*flag).into(),
        (Json::Number(number), Some("INT")) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.into(),
            (None, number) => number.map_or(Value::NONE, Value::from),
        },
        (Json::Number(number), _) => number.as_f64().map_or(Value::NONE, Value::from),
        (Json::String(text), _) => Value::string(text.as_str()),
        _ => Value::NONE,
    }
}

/// # Safety
/// `context` is that of a live [`Host`].
unsafe fn host<'a>(context: *const abi::Context) -> &'a Host {
    // SAFETY: the caller's promise; the context is the first field of a host, which is repr(C).
    unsafe { &*context.cast::<Host>() }
}

/// # Safety
/// `text` is borrowed text.
unsafe fn said(text: abi::Str) -> String {
    // SAFETY: the caller's promise.
    match unsafe { bytes(text) } {
        Ok(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Err(why) => format!("(a text that {why})"),
    }
}

// SAFETY of the functions below: a library calls them with the context of a host that it was lent, while
// the call lasts, and with arguments that node.h allows.

unsafe extern "C" fn log(context: *const abi::Context, _: abi::LogLevel, message: abi::Str) {
    // SAFETY: see above.
    let (host, message) = unsafe { (host(context), said(message)) };
    host.told().logs.push(message);
}

unsafe extern "C" fn progress(context: *const abi::Context, step: u64, steps: u64) -> i32 {
    // SAFETY: see above.
    let host = unsafe { host(context) };
    host.told().progress.push((step, steps));
    (step >= host.stop_at).into()
}

unsafe extern "C" fn fail(context: *const abi::Context, input: abi::Str, sentence: abi::Str) {
    // SAFETY: see above.
    let (host, failure) = unsafe { (host(context), (said(input), said(sentence))) };
    host.told().failure = Some(failure);
}

unsafe extern "C" fn property(context: *const abi::Context, name: abi::Str, value: *mut abi::Str) {
    // SAFETY: see above.
    let (host, name) = unsafe { (host(context), said(name)) };
    // Of the one with an amount, the answer is the same for each.
    let name = if name.starts_with("room:") { "room" } else { name.as_str() };
    let known = host.properties.get(name).map_or(abi::Str::EMPTY, |text| abi::Str::new(text));
    // SAFETY: see above; there is room for the answer.
    unsafe { *value = known };
}

unsafe extern "C" fn output(context: *const abi::Context, json: abi::Str) {
    // SAFETY: see above.
    let (host, json) = unsafe { (host(context), said(json)) };
    // What is no JSON is kept as the text it is, for the test to see.
    let json = serde_json::from_str(&json).unwrap_or(Json::String(json));
    host.told().outputs.push(json);
}

/// Hands a new value out, or NULL with a line that says why.
///
/// # Safety
/// `context` is that of a live [`Host`].
unsafe fn hand_out(
    context: *const abi::Context,
    value: Result<kosmograph_values::Value, String>,
) -> *mut abi::Counted {
    match value {
        // SAFETY: a counted value, whose reference passes to the library.
        Ok(value) => unsafe { value.into_raw().payload.counted },
        Err(why) => {
            // SAFETY: the caller's promise.
            unsafe { host(context) }.told().logs.push(why);
            std::ptr::null_mut()
        }
    }
}

unsafe extern "C" fn new_string(cx: *const abi::Context, text: abi::Str) -> *mut abi::KgString {
    // SAFETY: see above.
    unsafe { hand_out(cx, parts::string(text).map(kosmograph_values::Value::string)) }.cast()
}

unsafe extern "C" fn new_list(
    cx: *const abi::Context,
    items: *const abi::Value,
    count: usize,
) -> *mut abi::List {
    // SAFETY: see above.
    unsafe { hand_out(cx, parts::list(items, count)) }.cast()
}

unsafe extern "C" fn new_map(
    cx: *const abi::Context,
    keys: *const abi::Str,
    values: *const abi::Value,
    count: usize,
) -> *mut abi::Map {
    // SAFETY: see above.
    unsafe { hand_out(cx, parts::map(keys, values, count)) }.cast()
}

unsafe extern "C" fn new_tensor(
    cx: *const abi::Context,
    dtype: abi::DLDataType,
    ndim: i32,
    shape: *const i64,
) -> *mut abi::Tensor {
    // SAFETY: see above.
    unsafe { hand_out(cx, parts::tensor(dtype, ndim, shape)) }.cast()
}

unsafe extern "C" fn extension(cx: *const abi::Context, name: abi::Str) -> *const abi::Interface {
    static PREVIEW: abi::Interface = abi::Interface {
        size: size_of::<abi::Interface>() as u32,
        reserved: 0,
        call: preview,
        flags: 0,
    };
    // SAFETY: see above.
    let (host, name) = unsafe { (host(cx), said(name)) };
    match name == "preview/1" && host.wants_previews {
        true => &raw const PREVIEW,
        false => std::ptr::null(),
    }
}

/// "preview/1".
unsafe extern "C" fn preview(
    _: *mut abi::Object,
    cx: *const abi::Context,
    input: *const abi::Map,
    output: *mut *mut abi::Map,
) -> abi::Status {
    // SAFETY: see above; the map is looked at before it is believed.
    let (host, map) = unsafe { (host(cx), kosmograph_values::Value::borrow_map(input)) };
    let row = HOST_FUNCTIONS.iter().find(|row| row.id == "preview/1");
    let fits = map.map_err(|fault| format!("the value {fault}")).and_then(|map| {
        let parts = row.map_or(&[][..], |row| row.input);
        conform::map(&map, parts, &mut Axes::default()).map_err(|misfit| misfit.to_string())?;
        Ok(map)
    });
    match fits {
        Ok(map) => {
            host.told().previews.push(map.into());
            // SAFETY: see above; node.h: where a map is written.
            unsafe { output.write(kosmograph_values::Value::empty_map().into_raw().payload.map) };
            abi::OK
        }
        Err(why) => {
            host.told().failure = Some((String::new(), format!("\"preview/1\": {why}")));
            abi::ERROR
        }
    }
}
