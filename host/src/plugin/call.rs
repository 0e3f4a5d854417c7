//! One call into a library: the context it is lent, why it failed, and what it wrote.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use kosmograph_abi as abi;
use kosmograph_abi::table;
use kosmograph_values::check::Callable;
use kosmograph_values::conform::{self, Axes};
use kosmograph_values::place::on_cpu;
use serde_json::Value as Json;

use crate::preview::Preview;
use crate::value::{Checker, Value, parts, text_bytes};

mod extension;

use extension::extension;

/// How much a line of log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

/// What the host does for a call. A library may use all of it from any thread while the call lasts.
pub trait Call: Sync {
    /// One line for the person who runs the workflow.
    fn log(&self, level: LogLevel, message: &str);

    /// `step` of `steps` are done, never more than all of them. Returns true when the work is to stop.
    fn progress(&self, step: u64, steps: u64) -> bool;

    /// A thing the host knows, by the names of node.h.
    fn property(&self, name: &str) -> Option<String>;

    /// Something that an output node made; an object.
    fn output(&self, json: Json);

    /// Whether somebody looks at previews.
    fn wants_previews(&self) -> bool {
        false
    }

    /// What a step has made so far.
    fn preview(&self, _preview: Preview) {}
}

/// Why a call gave no values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeFailure {
    /// One sentence, the library's own or about how it broke the boundary's rules, and the input at
    /// fault where it is known.
    #[error("{sentence}")]
    Failed { input: Option<String>, sentence: String },
    /// [`Call::progress`] asked for it.
    #[error("cancelled")]
    Cancelled,
}

/// How every sentence ends that is the host's own, about a library that broke a rule.
/// What another library says of a third one ends otherwise: "its library breaks …".
const BROKEN: &str = "; the node's library breaks the boundary's rules";

impl NodeFailure {
    pub(crate) fn failed(sentence: impl Into<String>) -> Self {
        Self::Failed { input: None, sentence: sentence.into() }
    }

    /// What the library did that it must not.
    pub(crate) fn broken(what: impl std::fmt::Display) -> Self {
        Self::failed(format!("{what}{BROKEN}"))
    }

    /// Names the library in a sentence about a broken rule.
    pub(crate) fn by(self, library: &str) -> Self {
        match self {
            Self::Failed { input, mut sentence } if sentence.ends_with(BROKEN) => {
                sentence.truncate(sentence.len() - BROKEN.len());
                let sentence =
                    format!("{sentence}; its library {library} breaks the boundary's rules");
                Self::Failed { input, sentence }
            }
            other => other,
        }
    }

    /// Whether the sentence is the host's, about a broken rule, and not the library's own.
    pub(crate) fn is_broken_rule(&self) -> bool {
        matches!(self, Self::Failed { sentence, .. } if sentence.ends_with(BROKEN))
    }
}

/// An output as the descriptor declares it.
pub(super) struct Expected {
    name: String,
    /// What a value of its type is; `None` for the types that node.h does not know.
    kind: Option<abi::Kind>,
    type_name: String,
    /// It is a list of such values.
    is_list: bool,
}

impl Expected {
    pub(super) fn new(name: String, type_name: String, is_list: bool) -> Self {
        Self { name, kind: kind_of_type(&type_name), type_name, is_list }
    }

    /// What `value` is, where it is not what was declared.
    fn misfit(&self, value: &Value) -> Option<String> {
        let is_other = |value: &Value| {
            value.is_none() || self.kind.is_some_and(|wanted| wanted != value.kind())
        };
        if !self.is_list {
            return is_other(value).then(|| value.kind_name().to_owned());
        }
        if value.kind() != abi::LIST {
            return Some(format!("{}, not a list", value.kind_name()));
        }
        let at = value.items().iter().position(is_other)?;
        Some(format!("a list whose element {} is {}", at + 1, value.items()[at].kind_name()))
    }
}

/// The kind that values of a socket type have, as the boundary's table has it.
pub(crate) fn kind_of_type(type_name: &str) -> Option<abi::Kind> {
    table::socket(type_name)?.of.kind()
}

/// What stands behind a `kg_context`. The context comes first, so that its address is the frame's.
///
/// A frame outlives its call: a library that uses a context it was lent before meets memory of ours that
/// lends nothing, and is found out. Frames rest for [`REST`] calls before they are lent again.
#[repr(C)]
struct Frame {
    context: abi::Context,
    /// Held for reading while the library uses what it was lent; to end the call waits for that.
    lent: RwLock<Option<Lent>>,
    notes: Mutex<Notes>,
    cancelled: AtomicBool,
    /// Whether the library looks where a tensor lies: the property "tensors".
    anywhere: AtomicBool,
}

/// The host of the call that lasts.
#[derive(Clone, Copy)]
struct Lent(*const (dyn Call + 'static));

// SAFETY: `Call` is Sync, and the pointer is followed only while the call lasts: [`Frame::lent`].
unsafe impl Send for Lent {}
// SAFETY: as above.
unsafe impl Sync for Lent {}

/// Frames that are lent to nobody, the one that has rested longest first.
static RESTING: Mutex<VecDeque<&'static Frame>> = Mutex::new(VecDeque::new());

const REST: usize = 64;

/// A library used a context after the call that it was lent for: said once, by whoever asks first.
static USED_LATE: AtomicBool = AtomicBool::new(false);

/// Whether a library has used a context after its call since this was last asked.
pub(crate) fn used_late() -> bool {
    USED_LATE.swap(false, Ordering::Relaxed)
}

/// What a call leaves behind.
#[derive(Default)]
struct Notes {
    /// Of `fail`: input and sentence, the last one said.
    failure: Option<(String, String)>,
    /// The first rule of the boundary that the library broke through its context.
    violation: Option<String>,
    /// A function of the host that panicked: the host's mistake, reported as such.
    host_panic: Option<&'static str>,
    /// Properties that were asked for; they live until the call returns.
    properties: HashMap<String, Box<str>>,
}

impl Frame {
    /// A frame that lends `call`, until [`Self::take_back`], to a library that looks where tensors lie or not.
    fn lend(call: &dyn Call, anywhere: bool) -> &'static Self {
        let frame = {
            let mut resting = RESTING.lock().unwrap_or_else(PoisonError::into_inner);
            let rested = resting.len() >= REST;
            rested.then(|| resting.pop_front()).flatten()
        };
        let frame = frame.unwrap_or_else(|| Box::leak(Box::new(Self::new())));
        // SAFETY: the lifetime alone is changed, and `take_back` ends the loan before it does.
        let call: *const (dyn Call + 'static) = unsafe { std::mem::transmute(call) };
        frame.anywhere.store(anywhere, Ordering::Relaxed);
        *frame.lent.write().unwrap_or_else(PoisonError::into_inner) = Some(Lent(call));
        frame
    }

    fn new() -> Self {
        Self {
            context: abi::Context {
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
            },
            lent: RwLock::new(None),
            notes: Mutex::default(),
            cancelled: AtomicBool::new(false),
            anywhere: AtomicBool::new(false),
        }
    }

    /// Ends the loan, when no thread of the library is at it any more, and says what the call left and
    /// whether it was asked to stop.
    fn take_back(&'static self) -> (Notes, bool) {
        *self.lent.write().unwrap_or_else(PoisonError::into_inner) = None;
        let left =
            (std::mem::take(&mut *self.notes()), self.cancelled.swap(false, Ordering::Relaxed));
        RESTING.lock().unwrap_or_else(PoisonError::into_inner).push_back(self);
        left
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        // A thread that panicked while it held the notes left them as true as they were.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn violation(&self, what: String) {
        self.notes().violation.get_or_insert(what);
    }

    /// Runs a function of the host on what is lent, and never unwinds. `otherwise` where nothing is.
    fn with<T>(&self, what: &'static str, otherwise: T, body: impl FnOnce(&dyn Call) -> T) -> T {
        let lent = self.lent.read().unwrap_or_else(PoisonError::into_inner);
        let Some(Lent(call)) = *lent else {
            USED_LATE.store(true, Ordering::Relaxed);
            return otherwise;
        };
        // SAFETY: the loan lasts, and cannot end while the lock is held.
        let call = unsafe { &*call };
        match catch_unwind(AssertUnwindSafe(|| body(call))) {
            Ok(result) => result,
            Err(_) => {
                self.notes().host_panic.get_or_insert(what);
                otherwise
            }
        }
    }
}

/// How many values past the last output are watched: who writes there writes past its outputs.
const WATCHED: usize = 256;

/// What stands there, and what no library writes: a kind that is none.
const UNTOUCHED: abi::Value = {
    let mut value = abi::Value::NONE;
    value.kind = 0x7e57_ed01;
    value
};

/// Lends a context to `function`, which is one entry point of a library, and takes what it wrote.
/// `who` is what a sentence calls it, and whether it looks where tensors lie. `expected` are the declared outputs, or empty where nothing is
/// declared.
pub(super) fn invoke(
    (who, anywhere): (&str, bool),
    call: &dyn Call,
    n_outputs: usize,
    expected: &[Expected],
    function: impl FnOnce(*const abi::Context, *mut abi::Value) -> abi::Status,
) -> Result<Vec<Value>, NodeFailure> {
    let frame = Frame::lend(call, anywhere);
    let mut raw = vec![abi::Value::NONE; n_outputs];
    raw.resize(n_outputs + WATCHED, UNTOUCHED);
    let status = function((&raw const *frame).cast(), raw.as_mut_ptr());
    let left = frame.take_back();
    let past = raw.split_off(n_outputs);
    // All of them, before anything is returned: each carries a reference that is the host's now.
    let mut checker = Checker::default();
    // SAFETY: node.h: what was written to `outputs` is a value with a reference that passes to the caller.
    let values: Vec<_> = raw.into_iter().map(|raw| unsafe { checker.adopt(raw) }).collect();
    if past.iter().any(|value| value.kind != UNTOUCHED.kind) {
        return Err(NodeFailure::broken(format!("{who} wrote past its {n_outputs} outputs")));
    }
    judge(who, status, left)?;
    let mut outputs = Vec::with_capacity(n_outputs);
    for (i, value) in values.into_iter().enumerate() {
        let declared = expected.get(i);
        let output = match declared {
            Some(Expected { name, type_name, .. }) => {
                format!("output {i} \"{name}\" ({type_name})")
            }
            None => format!("output {i}"),
        };
        let value = value.map_err(|malformed| {
            NodeFailure::broken(format!("{who} wrote a value to its {output} that {malformed}"))
        })?;
        if let Some(found) = declared.and_then(|declared| declared.misfit(&value)) {
            return Err(NodeFailure::broken(format!(
                "{who} says it is done, but its {output} is {found}"
            )));
        }
        outputs.push(value);
    }
    Ok(outputs)
}

/// What a call's status and what it left say of it.
fn judge(who: &str, status: abi::Status, left: (Notes, bool)) -> Result<(), NodeFailure> {
    let (Notes { failure, violation, host_panic, .. }, cancelled) = left;
    if let Some(what) = host_panic {
        return Err(NodeFailure::failed(format!(
            "kosmograph itself failed in {what} while {who} ran; this is a mistake in kosmograph"
        )));
    }
    match status {
        abi::OK => (),
        abi::CANCELLED if cancelled => return Err(NodeFailure::Cancelled),
        abi::CANCELLED => {
            let what = format!("{who} ended as cancelled, though nobody asked it to stop");
            return Err(NodeFailure::broken(what));
        }
        abi::ERROR => {
            return Err(match failure {
                Some((input, sentence)) if !sentence.trim().is_empty() => {
                    let input = (!input.is_empty()).then_some(input);
                    NodeFailure::Failed { input, sentence }
                }
                _ => NodeFailure::broken(format!("{who} failed and gave no reason")),
            });
        }
        other => return Err(NodeFailure::broken(format!("{who} returned the status {other}"))),
    }
    match violation {
        Some(what) => Err(NodeFailure::broken(format!("{who} {what}"))),
        None => Ok(()),
    }
}

/// Calls `function`, which is a kg_interface's, with a map; takes the map that it gives, and holds it against
/// the `row` of the table where there is one. `who` is what a sentence calls it.
///
/// # Safety
/// `function` obeys node.h with `this` as its object.
pub(super) unsafe fn call_function(
    who: &str,
    call: &dyn Call,
    (function, this): (Callable, *mut abi::Object),
    input: &Value,
    row: Option<&table::Interface>,
) -> Result<Value, NodeFailure> {
    debug_assert_eq!(input.kind(), abi::MAP);
    let here;
    let input = match function.anywhere {
        true => input,
        false => {
            let moved = on_cpu(input);
            here = moved.map_err(|why| NodeFailure::failed(format!("{who}: {why}")))?;
            &here
        }
    };
    let frame = Frame::lend(call, function.anywhere);
    let mut output = std::ptr::null_mut();
    let (context, given) = ((&raw const *frame).cast(), input.as_raw_map());
    // SAFETY: the caller's promise; the map is a value's, and alive.
    let status = unsafe { (function.call)(this, context, given, &raw mut output) };
    let left = frame.take_back();
    // SAFETY: node.h: a map that was written carries a reference that is the host's now.
    let output = unsafe { Value::adopt_map(output) };
    judge(who, status, left)?;
    let broken = |what: String| NodeFailure::broken(format!("{who} {what}"));
    let output = match output {
        None => return Err(broken("says it is done, but gives no map".into())),
        Some(Err(malformed)) => return Err(broken(format!("gives a value that {malformed}"))),
        Some(Ok(output)) => output,
    };
    if let Some(row) = row {
        let fits = conform::answer(row, input, &output);
        fits.map_err(|misfit| broken(format!("gives a wrong {misfit}")))?;
    }
    Ok(output)
}

/// Whether `object` is an object that offers the interface `id`.
pub fn offers(object: &Value, id: &str) -> bool {
    object.interface(id).is_some()
}

/// The map that goes into an interface.
pub fn input<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::map(pairs)
}

/// Calls an interface of an object with a map, by [`input`]; what goes in and out stands in node.h. What
/// comes out is the map that the table says.
///
/// # Errors
/// As for [`Library::run`](super::Library::run), and when the object does not offer the interface.
pub fn call_interface(
    object: &Value,
    id: &str,
    call: &dyn Call,
    input: &Value,
) -> Result<Value, NodeFailure> {
    let who = match object.object_type() {
        Some(type_name) => format!("\"{id}\" of a {type_name}"),
        None => {
            return Err(NodeFailure::failed(format!("{} offers no \"{id}\"", object.kind_name())));
        }
    };
    let function = match object.interface(id) {
        None => return Err(NodeFailure::failed(format!("{who} is not offered"))),
        Some(Err(why)) => return Err(NodeFailure::failed(format!("{who} {why}"))),
        Some(Ok(function)) => function,
    };
    // SAFETY: the interface belongs to this live object.
    unsafe {
        let this = object.as_raw().payload.object;
        call_function(&who, call, (function, this), input, table::interface(id))
    }
}

/// The frame behind a context.
///
/// # Safety
/// `context` is NULL, or was lent by [`invoke`]: the call may have returned.
unsafe fn frame(context: *const abi::Context) -> Option<&'static Frame> {
    // SAFETY: the context is the first field of a frame, which is repr(C) and lives for ever.
    unsafe { context.cast::<Frame>().as_ref() }
}

/// The longest text that is shown whole, in bytes: nobody reads more in one line.
const LONGEST_SAID: usize = 64 << 10;

/// Text that a library says, as it can be shown.
///
/// # Safety
/// `text` is borrowed text.
unsafe fn shown(text: abi::Str) -> String {
    // SAFETY: the caller's promise.
    match unsafe { text_bytes(text) } {
        Ok(bytes) if bytes.len() > LONGEST_SAID => {
            let begin = String::from_utf8_lossy(&bytes[..LONGEST_SAID]);
            format!("{begin}… ({} bytes in all)", bytes.len())
        }
        Ok(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Err(why) => format!("(a text that {why})"),
    }
}

// SAFETY of the functions below: a library calls them with the context that it was lent, while the call
// lasts, and with arguments that node.h allows (borrowed text, values and arrays).

unsafe extern "C" fn log(context: *const abi::Context, level: abi::LogLevel, message: abi::Str) {
    // SAFETY: see above.
    let (Some(frame), message) = (unsafe { (frame(context), shown(message)) }) else { return };
    let level = match level {
        abi::LOG_ERROR => LogLevel::Error,
        abi::LOG_WARN => LogLevel::Warn,
        abi::LOG_DEBUG => LogLevel::Debug,
        _ => LogLevel::Info,
    };
    frame.with("log", (), |call| call.log(level, &message));
}

unsafe extern "C" fn progress(context: *const abi::Context, step: u64, steps: u64) -> i32 {
    // SAFETY: see above.
    let Some(frame) = (unsafe { frame(context) }) else { return 0 };
    let stop = frame.with("progress", true, |call| call.progress(step.min(steps), steps));
    if stop {
        frame.cancelled.store(true, Ordering::Relaxed);
    }
    stop.into()
}

unsafe extern "C" fn fail(context: *const abi::Context, input: abi::Str, sentence: abi::Str) {
    // SAFETY: see above.
    let Some(frame) = (unsafe { frame(context) }) else { return };
    // SAFETY: see above.
    let said = unsafe { (shown(input), shown(sentence)) };
    frame.with("fail", (), |_| frame.notes().failure = Some(said));
}

unsafe extern "C" fn property(context: *const abi::Context, name: abi::Str, value: *mut abi::Str) {
    if value.is_null() {
        return;
    }
    // SAFETY: see above.
    let frame = unsafe { frame(context) };
    // SAFETY: see above.
    let known = frame.map_or(abi::Str::EMPTY, |frame| known(frame, unsafe { shown(name) }));
    // SAFETY: see above.
    unsafe { *value = known };
}

/// A view of the property `name` that holds until the call returns.
fn known(frame: &Frame, name: String) -> abi::Str {
    // The boundary's own, whatever the call is for.
    if name == "tensors" {
        let anywhere = frame.anywhere.load(Ordering::Relaxed);
        return abi::Str::new(if anywhere { "anywhere" } else { "cpu" });
    }
    if let Some(known) = frame.notes().properties.get(&name) {
        return abi::Str::new(known);
    }
    let Some(text) = frame.with("property", None, |call| call.property(&name)) else {
        return abi::Str::EMPTY;
    };
    // Kept as it was first given: a view of it may be in use. Its address does not change with the map's.
    let mut notes = frame.notes();
    abi::Str::new(notes.properties.entry(name).or_insert_with(|| text.into_boxed_str()))
}

unsafe extern "C" fn output(context: *const abi::Context, json: abi::Str) {
    // SAFETY: see above.
    let Some(frame) = (unsafe { frame(context) }) else { return };
    // SAFETY: see above.
    let parsed = match unsafe { parts::string(json) } {
        Ok(text) => serde_json::from_str::<Json>(text).map_err(|error| error.to_string()),
        Err(why) => Err(why),
    };
    match parsed {
        Ok(json @ Json::Object(_)) => frame.with("output", (), |call| call.output(json)),
        Ok(_) => frame.violation("gave an output that is JSON, but no object".to_owned()),
        Err(why) => frame.violation(format!("gave an output that is not JSON: {why}")),
    }
}

/// Hands a new value out, or NULL with a line that says why.
fn hand_out(frame: &Frame, value: Result<Value, String>) -> *mut abi::Counted {
    match value {
        // SAFETY: a counted value of the host, whose reference passes to the library.
        Ok(value) => unsafe { value.into_raw().payload.counted },
        Err(why) => {
            frame.with("log", (), |call| call.log(LogLevel::Error, &why));
            std::ptr::null_mut()
        }
    }
}

unsafe extern "C" fn new_string(
    context: *const abi::Context,
    text: abi::Str,
) -> *mut abi::KgString {
    // SAFETY: see above.
    let Some(frame) = (unsafe { frame(context) }) else { return std::ptr::null_mut() };
    // SAFETY: see above.
    hand_out(frame, unsafe { parts::string(text) }.map(Value::string)).cast()
}

unsafe extern "C" fn new_list(
    context: *const abi::Context,
    items: *const abi::Value,
    count: usize,
) -> *mut abi::List {
    // SAFETY: see above.
    let Some(frame) = (unsafe { frame(context) }) else { return std::ptr::null_mut() };
    // SAFETY: see above.
    hand_out(frame, unsafe { parts::list(items, count) }).cast()
}

unsafe extern "C" fn new_map(
    context: *const abi::Context,
    keys: *const abi::Str,
    values: *const abi::Value,
    count: usize,
) -> *mut abi::Map {
    // SAFETY: see above.
    let Some(frame) = (unsafe { frame(context) }) else { return std::ptr::null_mut() };
    // SAFETY: see above.
    hand_out(frame, unsafe { parts::map(keys, values, count) }).cast()
}

unsafe extern "C" fn new_tensor(
    context: *const abi::Context,
    dtype: abi::DLDataType,
    ndim: i32,
    shape: *const i64,
) -> *mut abi::Tensor {
    // SAFETY: see above.
    let Some(frame) = (unsafe { frame(context) }) else { return std::ptr::null_mut() };
    // SAFETY: see above.
    hand_out(frame, unsafe { parts::tensor(dtype, ndim, shape) }).cast()
}

#[cfg(test)]
mod tests;
