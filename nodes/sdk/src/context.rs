//! [`Context`]: what the host lends to a call, and [`guard`], through which every call goes.

use std::any::Any;
use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use kosmograph_abi as abi;
use kosmograph_interrupt as interrupt;

use crate::{Error, Result, Tensor, Value};

/// A picture of work that is not done: see [`Context::preview`].
pub enum Preview {
    /// x₀ [B, C, H, W] with the colour of each channel [C, 3] and what is added to their sum \[3\], in -1..1.
    Latents { latents: Tensor, rgb: Tensor, bias: Tensor },
    /// [B, H, W, 3] in 0..1.
    Image(Tensor),
}

/// What the host lends to a call: progress and cancelling, log lines, what it knows.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    raw: &'a abi::Context,
}

// SAFETY: node.h allows every function of the context from any thread while the call lasts, and the
// lifetime ends with the call.
unsafe impl Send for Context<'_> {}
// SAFETY: as for Send.
unsafe impl Sync for Context<'_> {}

impl<'a> Context<'a> {
    /// # Safety
    /// `raw` obeys node.h and the call that received it lasts for `'a`.
    pub unsafe fn from_raw(raw: &'a abi::Context) -> Self {
        Self { raw }
    }

    pub fn as_raw(&self) -> &'a abi::Context {
        self.raw
    }

    /// Tells the person at the screen that `step` of `steps` are done.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the work is to stop; pass it on with `?`.
    pub fn progress(&self, step: usize, steps: usize) -> Result<()> {
        // SAFETY: the context is alive for `'a`.
        match unsafe { (self.raw.progress)(self.raw, step as u64, steps as u64) } {
            0 => Ok(()),
            _ => Err(Error::Cancelled),
        }
    }

    /// Asks whether to go on, and tells the person nothing: for what takes longer than a second between its
    /// steps. Code that has no context asks [`crate::interrupt::check`].
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the work is to stop; pass it on with `?`.
    pub fn cancelled(&self) -> Result<()> {
        self.progress(0, 0)
    }

    /// Counts from 0 to `steps`, reporting progress and asking before every step whether to go on:
    ///
    /// ```ignore
    /// for step in cx.steps(20) {
    ///     let step = step?; // ends in Error::Cancelled
    /// }
    /// ```
    pub fn steps(&self, steps: usize) -> impl Iterator<Item = Result<usize>> + 'a {
        let context = *self;
        (0..=steps).filter_map(move |step| match context.progress(step, steps) {
            Err(cancelled) => Some(Err(cancelled)),
            Ok(()) if step < steps => Some(Ok(step)),
            // The last report says that all steps are done; it is no step.
            Ok(()) => None,
        })
    }

    pub fn warn(&self, message: impl std::fmt::Display) {
        self.log(abi::LOG_WARN, &message.to_string());
    }

    pub fn info(&self, message: impl std::fmt::Display) {
        self.log(abi::LOG_INFO, &message.to_string());
    }

    fn log(&self, level: abi::LogLevel, message: &str) {
        // SAFETY: the context is alive; the text is for the duration of the call.
        unsafe { (self.raw.log)(self.raw, level, abi::Str::new(message)) }
    }

    /// Tells the host of something an output node made, as node.h's `output` says.
    pub fn output(&self, json: &serde_json::Value) {
        let json = json.to_string();
        // SAFETY: as in `log`.
        unsafe { (self.raw.output)(self.raw, abi::Str::new(&json)) }
    }

    /// Whether somebody looks at previews: making one may cost something.
    pub fn wants_previews(&self) -> bool {
        !self.extension("preview/1").is_null()
    }

    /// "preview/1": shows what `step` of `steps` has made so far. Where nobody looks, or the host is too old to
    /// show it, nothing happens.
    ///
    /// # Errors
    /// What the host says of the values.
    pub fn preview(&self, step: usize, steps: usize, picture: Preview) -> Result<()> {
        let interface = self.extension("preview/1");
        if interface.is_null() {
            return Ok(());
        }
        let counts = [("step", Value::from(step as i64)), ("steps", Value::from(steps as i64))];
        let picture = match picture {
            Preview::Latents { latents, rgb, bias } => vec![
                ("latents", latents.into_value()),
                ("rgb", rgb.into_value()),
                ("bias", bias.into_value()),
            ],
            Preview::Image(image) => vec![("image", image.into_value())],
        };
        let input = Value::map(counts.into_iter().chain(picture));
        let mut output = std::ptr::null_mut();
        // SAFETY: node.h: an interface that the host offers, called with the context that gave it, while the
        // call lasts.
        let status = unsafe {
            let given = input.counted().as_raw_map();
            ((*interface).call)(std::ptr::null_mut(), self.raw, given, &raw mut output)
        };
        // SAFETY: node.h: the map that was written carries one reference, which is ours.
        drop(unsafe { kosmograph_values::Value::adopt_map(output) });
        match status {
            abi::OK => Ok(()),
            _ => Err(Error::new("the host could not show a preview")),
        }
    }

    fn extension(&self, name: &str) -> *const abi::Interface {
        // A host of an earlier header has no such function.
        let covered = std::mem::offset_of!(abi::Context, extension) + size_of::<usize>();
        if (self.raw.size as usize) < covered {
            return std::ptr::null();
        }
        // SAFETY: the context is alive; the text is for the duration of the call.
        unsafe { (self.raw.extension)(self.raw, abi::Str::new(name)) }
    }

    /// A thing the host knows, by the names of node.h; `None` when it does not.
    pub fn property(&self, name: &str) -> Option<String> {
        let mut value = abi::Str::EMPTY;
        // SAFETY: as in `log`; the answer lives until the call returns.
        let bytes = unsafe {
            (self.raw.property)(self.raw, abi::Str::new(name), &mut value);
            value.as_bytes()
        };
        match std::str::from_utf8(bytes) {
            Ok("") | Err(_) => None,
            Ok(text) => Some(text.to_owned()),
        }
    }

    /// How many bytes this step may take beside what models and results hold, where the host keeps a budget. For `wanted` bytes it
    /// first lets go of the models that the step does not use; call it once what the work reads is in memory.
    pub fn room(&self, wanted: u64) -> Option<u64> {
        self.property(&format!("room:{wanted}"))?.parse().ok()
    }

    /// The file of `folder` ("embeddings") that a text input of this node names `name`, where the input
    /// declares `mentions = "embeddings"` and the file is there. The host finds it before the node runs:
    /// only names that stand in the text of the workflow are known.
    pub fn file(&self, folder: &str, name: &str) -> Option<PathBuf> {
        self.property(&format!("file:{folder}/{name}")).map(PathBuf::from)
    }

    /// "cpu" or "cuda:0".
    pub fn device(&self) -> String {
        self.property("device").unwrap_or_else(|| "cpu".to_owned())
    }

    /// Whether whoever called looks where a tensor lies; else it takes all that it is given to lie on the CPU.
    pub(crate) fn takes_tensors_anywhere(&self) -> bool {
        self.property("tensors").as_deref() == Some("anywhere")
    }

    fn report(&self, error: &Error) -> abi::Status {
        let Error::Failed { input, sentence } = error else { return abi::CANCELLED };
        let input = abi::Str::new(input.as_deref().unwrap_or(""));
        let sentence = without_backtrace(sentence);
        // SAFETY: as in `log`.
        unsafe { (self.raw.fail)(self.raw, input, abi::Str::new(&sentence)) };
        abi::ERROR
    }
}

/// Runs the inside of an entry point: errors are reported to the host, a panic is an error. Compiled once and not for each
/// entry point.
///
/// # Safety
/// `context` is NULL or obeys node.h for the duration of the call.
pub(crate) unsafe fn guard(
    context: *const abi::Context,
    body: &dyn Fn(&Context<'_>) -> Result<()>,
) -> abi::Status {
    install_panic_hook();
    // SAFETY: the caller's promise.
    let Some(raw) = (unsafe { context.as_ref() }) else { return abi::ERROR };
    let context = Context { raw };
    let stopped = Cell::new(false);
    let stop = || {
        stopped.set(stopped.get() || context.cancelled().is_err());
        stopped.get()
    };
    let result = interrupt::during(&stop, || catch_unwind(AssertUnwindSafe(|| body(&context))));
    match result {
        // Whatever became of the wish to stop on its way here: what was made after it may be half of it.
        Ok(_) if stopped.get() => abi::CANCELLED,
        Ok(Ok(())) => abi::OK,
        Ok(Err(error)) => context.report(&error),
        Err(payload) => {
            let what = said(&*payload);
            context.report(&Error::new(format!(
                "the node panicked {what}; this is a mistake in its library"
            )))
        }
    }
}

/// The sentence without the lines of a backtrace that an error appended to itself: they are for the author of a library,
/// who finds them in a debugger.
fn without_backtrace(sentence: &str) -> String {
    // "  12: path::of::function" and "        at file.rs:1:2".
    let is_frame = |line: &str| {
        let inner = line.trim_start();
        let number = inner.split(": ").next().unwrap_or_default();
        let numbered = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        inner.len() < line.len()
            && (inner.starts_with("at ") || numbered && inner.len() > number.len())
    };
    let mut lines = sentence.lines();
    let mut kept = lines.next().unwrap_or_default().to_owned();
    for line in lines.filter(|line| !is_frame(line)) {
        kept.push('\n');
        kept.push_str(line);
    }
    kept.truncate(kept.trim_end().len());
    kept
}

/// What a panic said, and where.
struct Panic {
    message: String,
    place: String,
}

/// The last panics of this library, on whichever thread: what a thread of a pool said reaches the thread that waits for it
/// without its place.
static PANICS: Mutex<VecDeque<Panic>> = Mutex::new(VecDeque::new());

/// How many are remembered: every thread of a pool may panic before the call that they work for ends.
const REMEMBERED: usize = 64;

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "with no message".to_owned())
}

/// "at PLACE: MESSAGE", of a panic that was caught.
fn said(payload: &(dyn Any + Send)) -> String {
    let message = message(payload);
    let mut panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
    let place = panics.iter().rposition(|panic| panic.message == message);
    match place.and_then(|place| panics.remove(place)) {
        Some(panic) => format!("at {}: {message}", panic.place),
        None => format!("somewhere: {message}"),
    }
}

/// Whether panics are printed as well: in tests, which are linked with the library, so that the hook below is theirs too.
pub(crate) static IN_TESTS: AtomicBool = AtomicBool::new(false);

/// Keeps panics off the terminal, where they would tear the progress bars: the panic of a node, and of
/// a worker thread that the node waits for, reaches the person as the node's error. A library has its
/// own copy of the standard library, so the host's hook is not touched.
fn install_panic_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let message = message(info.payload());
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            if IN_TESTS.load(Ordering::Relaxed) {
                eprintln!("{info}");
            }
            let mut panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
            if panics.len() == REMEMBERED {
                panics.pop_front();
            }
            panics.push_back(Panic { message, place });
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backtrace_is_no_part_of_a_sentence() {
        let told = "shape mismatch in add, lhs: [1], rhs: [2]\n   0: candle_core::error::Error::bt\n             \
                    at /home/someone/error.rs:264:25\n   1: main\n";
        assert_eq!(without_backtrace(told), "shape mismatch in add, lhs: [1], rhs: [2]");
        for whole in
            ["one line", "", "a list:\n  - 1\n  two: 2\n12: of no frame", "at home\nat work"]
        {
            assert_eq!(without_backtrace(whole), whole);
        }
    }

    #[test]
    fn what_a_thread_said_is_kept() {
        install_panic_hook();
        let waited = std::thread::spawn(|| panic!("a kernel's own words")).join().unwrap_err();
        let what = said(&*waited);
        assert!(what.contains("context.rs:") && what.ends_with(": a kernel's own words"), "{what}");
        assert_eq!(said(&*waited), "somewhere: a kernel's own words");
        let odd = catch_unwind(|| std::panic::panic_any(7)).unwrap_err();
        assert!(said(&*odd).ends_with(": with no message"));
    }
}
