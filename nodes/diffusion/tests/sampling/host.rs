//! A host of the barest kind, and the library's nodes by their class and input names.

use std::cell::RefCell;
use std::collections::HashMap;

use kosmograph_diffusion as _;
use node::abi;
use node::{Tensor, Value};
use serde_json::Value as Json;

unsafe extern "C" {
    /// The library's one symbol, as a host finds it.
    safe fn kosmograph_library_v1() -> *const abi::Library;
}

#[repr(C)]
struct Host {
    context: abi::Context,
    failure: RefCell<Option<String>>,
    told: RefCell<Vec<String>>,
}

unsafe extern "C" fn log(context: *const abi::Context, _: abi::LogLevel, text: abi::Str) {
    // SAFETY: `context` is the first field of a Host; the text is for the call.
    let (host, text) = unsafe { (&*context.cast::<Host>(), text.as_bytes()) };
    host.told.borrow_mut().push(String::from_utf8_lossy(text).into_owned());
}

unsafe extern "C" fn progress(_: *const abi::Context, _: u64, _: u64) -> i32 {
    0
}

unsafe extern "C" fn fail(context: *const abi::Context, input: abi::Str, sentence: abi::Str) {
    // SAFETY: `context` is the first field of a Host; the texts are for the call.
    let (host, input, sentence) =
        unsafe { (&*context.cast::<Host>(), input.as_bytes(), sentence.as_bytes()) };
    let text = [input, sentence].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    *host.failure.borrow_mut() = Some(text.join(": "));
}

unsafe extern "C" fn property(_: *const abi::Context, _: abi::Str, value: *mut abi::Str) {
    // SAFETY: node.h: there is room for the answer.
    unsafe { *value = abi::Str::EMPTY };
}

unsafe extern "C" fn output(_: *const abi::Context, _: abi::Str) {}

unsafe extern "C" fn no_string(_: *const abi::Context, _: abi::Str) -> *mut abi::KgString {
    std::ptr::null_mut()
}

unsafe extern "C" fn no_list(
    _: *const abi::Context,
    _: *const abi::Value,
    _: usize,
) -> *mut abi::List {
    std::ptr::null_mut()
}

unsafe extern "C" fn no_map(
    _: *const abi::Context,
    _: *const abi::Str,
    _: *const abi::Value,
    _: usize,
) -> *mut abi::Map {
    std::ptr::null_mut()
}

unsafe extern "C" fn nothing_more(_: *const abi::Context, _: abi::Str) -> *const abi::Interface {
    std::ptr::null()
}

unsafe extern "C" fn no_tensor(
    _: *const abi::Context,
    _: abi::DLDataType,
    _: i32,
    _: *const i64,
) -> *mut abi::Tensor {
    std::ptr::null_mut()
}

/// Runs a node; inputs that are not given have their defaults. An error is "input: sentence".
pub fn run(class: &str, inputs: &[(&str, Value)]) -> Result<Vec<Value>, String> {
    run_told(class, inputs).0
}

/// As [`run`], and what the node told meanwhile.
pub fn run_told(
    class: &str,
    inputs: &[(&str, Value)],
) -> (Result<Vec<Value>, String>, Vec<String>) {
    // SAFETY: the library obeys node.h.
    let library = unsafe { &*kosmograph_library_v1() };
    // SAFETY: as above.
    let descriptor: Json =
        serde_json::from_slice(unsafe { library.descriptor.as_bytes() }).unwrap();
    let nodes = descriptor["nodes"].as_array().unwrap();
    let number = nodes.iter().position(|node| node["class"] == class).expect(class);
    let mut given: HashMap<&str, Value> = inputs.iter().cloned().collect();
    let mut values = Vec::new();
    for spec in nodes[number]["inputs"].as_array().unwrap() {
        let value = given.remove(spec["name"].as_str().unwrap());
        values.push(value.unwrap_or_else(|| default(spec)));
    }
    assert!(given.is_empty(), "{class} has no {:?}", given.keys());
    let raw: Vec<abi::Value> = values.iter().map(|value| *value.as_raw()).collect();
    let count = nodes[number]["outputs"].as_array().unwrap().len();
    let mut outputs = vec![abi::Value::NONE; count];
    let context = abi::Context {
        size: size_of::<abi::Context>() as u32,
        reserved: 0,
        log,
        progress,
        fail,
        property,
        output,
        new_string: no_string,
        new_list: no_list,
        new_map: no_map,
        new_tensor: no_tensor,
        extension: nothing_more,
    };
    let host = Host { context, failure: RefCell::default(), told: RefCell::default() };
    // SAFETY: borrowed inputs and room for the outputs, as node.h has it.
    let status = unsafe {
        let host = (&raw const host).cast();
        (library.run)(number as u32, host, raw.as_ptr(), raw.len(), outputs.as_mut_ptr(), count)
    };
    // SAFETY: what was written carries one reference, which passes to us.
    let outputs = outputs.into_iter().map(|raw| unsafe { Value::from_raw(raw) }).collect();
    let result = match status {
        abi::OK => Ok(outputs),
        _ => Err(host.failure.take().unwrap()),
    };
    (result, host.told.take())
}

fn default(spec: &Json) -> Value {
    match (&spec["default"], spec["type"].as_str()) {
        (Json::Bool(flag), _) => (*flag).into(),
        (Json::Number(number), Some("INT")) => number.as_i64().unwrap().into(),
        (Json::Number(number), _) => number.as_f64().unwrap().into(),
        (Json::String(text), _) => Value::string(text.as_str()),
        _ => Value::NONE,
    }
}

/// The one output of a node that succeeds.
pub fn one(class: &str, inputs: &[(&str, Value)]) -> Value {
    run(class, inputs).unwrap_or_else(|error| panic!("{class}: {error}")).remove(0)
}

pub fn tensor(shape: &[usize], values: Vec<f32>) -> Value {
    Tensor::from_f32(shape, values).unwrap().into_value()
}

pub fn values(value: &Value) -> Vec<f32> {
    value.as_tensor().unwrap().to_f32().unwrap().into_owned()
}

pub fn samples(latent: &Value) -> Vec<f32> {
    values(&latent.get("samples").unwrap())
}
