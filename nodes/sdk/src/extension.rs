//! What a library offers beside its nodes: the extensions of node.h, each a trait, and their table.

use std::ffi::c_void;
use std::path::Path;

use kosmograph_abi as abi;
use kosmograph_abi::table;
use serde_json::{Value as Json, json};

use crate::context::guard;
use crate::object::{Arguments, answer};
use crate::{Context, Result, Value};

/// The type of `kg_library.extension`.
pub type ExtensionFn = unsafe extern "C" fn(abi::Str) -> *const c_void;

/// "convert/1": what a library makes of a file that its nodes cannot read as it is.
pub trait Convert {
    /// Makes `output`, where nothing is yet, of the file `input`; both paths are absolute. `options`
    /// is an object, "tokenizer" a folder in it. Returns what node.h says of "convert/1", or `None`
    /// when the file is of no kind that the library converts.
    ///
    /// # Errors
    /// One sentence; nothing is left at `output` then.
    fn convert(
        cx: &Context<'_>,
        input: &Path,
        output: &Path,
        options: &Json,
    ) -> Result<Option<Json>>;
}

/// "train/1": trains what the library's nodes compute with.
pub trait Train {
    /// Trains as the JSON text `config` says, whose relative paths begin at `folder`. Reports progress, and what each
    /// update came to, as node.h says.
    ///
    /// # Errors
    /// One sentence; or [`crate::Error::Cancelled`], with the state written down to go on from.
    fn train(cx: &Context<'_>, config: &str, folder: &Path) -> Result<Trained>;
}

/// What came of a training that a library was given.
#[derive(Clone, Debug, PartialEq)]
pub enum Trained {
    /// What node.h says of "train/1".
    Made(Json),
    /// Nothing: another library is to do what the configuration asks for. The sentence tells a person what, if none does.
    Declined(String),
}

/// "evaluate/1": measures pictures against others.
pub trait Evaluate {
    /// Measures as `request` says, an object whose paths are absolute. Returns what node.h says of "evaluate/1".
    ///
    /// # Errors
    /// One sentence.
    fn evaluate(cx: &Context<'_>, request: &Json) -> Result<Json>;
}

/// "check/1": what a library has to say of a plan before anything runs.
pub trait Check {
    /// Looks at `plan`, which node.h describes. Reads no more than the headers of files.
    ///
    /// # Errors
    /// One sentence: that nothing could be looked at.
    fn check(cx: &Context<'_>, plan: &Json) -> Result<Vec<Remark>>;
}

/// Something odd about one step of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Remark {
    /// Its number in the plan.
    pub step: usize,
    pub input: String,
    /// A sentence without its full stop.
    pub message: String,
    /// Whether the step cannot but fail.
    pub is_refused: bool,
}

/// An extension as a type without values, which calls `T`.
trait Extension<T> {
    const ID: &'static str;

    fn call(cx: &Context<'_>, input: &Arguments) -> Result<Value>;
}

struct Converting;
struct Training;
struct Evaluating;
struct Checking;

impl<T: Convert> Extension<T> for Converting {
    const ID: &'static str = "convert/1";

    fn call(cx: &Context<'_>, input: &Arguments) -> Result<Value> {
        let options = serde_json::from_str(&input.text("options")?)?;
        let (from, to) = (input.text("input")?, input.text("output")?);
        let made = T::convert(cx, Path::new(&from), Path::new(&to), &options)?;
        Ok(Value::map(made.map(|json| ("made", Value::string(json.to_string())))))
    }
}

impl<T: Train> Extension<T> for Training {
    const ID: &'static str = "train/1";

    fn call(cx: &Context<'_>, input: &Arguments) -> Result<Value> {
        let (config, folder) = (input.text("config")?, input.text("folder")?);
        Ok(Value::map([match T::train(cx, &config, Path::new(&folder))? {
            Trained::Made(made) => ("made", Value::string(made.to_string())),
            Trained::Declined(sentence) => ("declined", Value::string(sentence)),
        }]))
    }
}

impl<T: Evaluate> Extension<T> for Evaluating {
    const ID: &'static str = "evaluate/1";

    fn call(cx: &Context<'_>, input: &Arguments) -> Result<Value> {
        let made = T::evaluate(cx, &serde_json::from_str(&input.text("request")?)?)?;
        Ok(Value::map([("made", Value::string(made.to_string()))]))
    }
}

impl<T: Check> Extension<T> for Checking {
    const ID: &'static str = "check/1";

    fn call(cx: &Context<'_>, input: &Arguments) -> Result<Value> {
        let remarks = T::check(cx, &serde_json::from_str(&input.text("plan")?)?)?;
        let remarks = remarks.into_iter().map(|Remark { step, input, message, is_refused }| {
            json!({"step": step, "input": input, "message": message, "refused": is_refused})
        });
        let problems = Value::string(Json::from_iter(remarks).to_string());
        Ok(Value::map([("problems", problems)]))
    }
}

/// What an extension's table calls.
type InterfaceFn = unsafe extern "C" fn(
    *mut abi::Object,
    *const abi::Context,
    *const abi::Map,
    *mut *mut abi::Map,
) -> abi::Status;

/// One extension of a library, as its list holds it.
pub struct Entry {
    id: &'static str,
    table: abi::Interface,
}

impl Entry {
    pub const fn convert<T: Convert>() -> Self {
        Self::of::<Converting, T>()
    }

    pub const fn train<T: Train>() -> Self {
        Self::of::<Training, T>()
    }

    pub const fn evaluate<T: Evaluate>() -> Self {
        Self::of::<Evaluating, T>()
    }

    pub const fn check<T: Check>() -> Self {
        Self::of::<Checking, T>()
    }

    const fn of<E: Extension<T>, T>() -> Self {
        Self::calling(E::ID, call::<E, T>)
    }

    const fn calling(id: &'static str, call: InterfaceFn) -> Self {
        let size = size_of::<abi::Interface>() as u32;
        Self { id, table: abi::Interface { size, reserved: 0, call, flags: 0 } }
    }
}

/// Whether a library of these extensions has something to say of plans.
pub(crate) fn checks(entries: &[Entry]) -> bool {
    entries.iter().any(|entry| entry.id == <Checking as Extension<Nobody>>::ID)
}

/// Stands where an extension is only named.
enum Nobody {}

impl Check for Nobody {
    fn check(_: &Context<'_>, _: &Json) -> Result<Vec<Remark>> {
        Ok(Vec::new())
    }
}

/// `kg_library.extension` of a library that offers `entries`.
///
/// # Safety
/// `id` is borrowed text, as node.h says.
pub unsafe fn find(entries: &'static [Entry], id: abi::Str) -> *const c_void {
    static PANIC: Entry = Entry::calling("panic/1", panic_inside);
    // SAFETY: node.h: borrowed text.
    let id = unsafe { id.as_bytes() };
    let mut all = entries.iter().chain([&PANIC]);
    let found = all.find(|entry| entry.id.as_bytes() == id);
    found.map_or(std::ptr::null(), |entry| (&raw const entry.table).cast())
}

unsafe extern "C" fn call<E: Extension<T>, T>(
    _object: *mut abi::Object,
    context: *const abi::Context,
    input: *const abi::Map,
    output: *mut *mut abi::Map,
) -> abi::Status {
    let row = table::EXTENSIONS.iter().find(|row| row.id == E::ID);
    // SAFETY: node.h: context, input and output are valid for the call.
    unsafe { answer(row, context, input, output, &E::call) }
}

/// "panic/1", which every library offers: panics where a node would, so that the conformance test sees it
/// contained, whatever it is called with.
unsafe extern "C" fn panic_inside(
    _object: *mut abi::Object,
    context: *const abi::Context,
    _input: *const abi::Map,
    _output: *mut *mut abi::Map,
) -> abi::Status {
    // SAFETY: node.h: the context is valid for the call.
    unsafe { guard(context, &|_| panic!("as the conformance test asked")) }
}
