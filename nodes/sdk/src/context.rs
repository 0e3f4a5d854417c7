//! [`Context`]: what the host lends to a call, and [`guard`], through which every call goes.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Once;

use kosmograph_abi as abi;

use crate::{Error, Result};

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

    fn report(&self, error: &Error) -> abi::Status {
        let Error::Failed { input, sentence } = error else { return abi::CANCELLED };
        let input = abi::Str::new(input.as_deref().unwrap_or(""));
        // SAFETY: as in `log`.
        unsafe { (self.raw.fail)(self.raw, input, abi::Str::new(sentence)) };
        abi::ERROR
    }
}

/// Runs the inside of an entry point: errors are reported to the host, a panic is an error.
///
/// # Safety
/// `context` is NULL or obeys node.h for the duration of the call.
pub(crate) unsafe fn guard(
    context: *const abi::Context,
    body: impl FnOnce(&Context<'_>) -> Result<()>,
) -> abi::Status {
    install_panic_hook();
    // SAFETY: the caller's promise.
    let Some(raw) = (unsafe { context.as_ref() }) else { return abi::ERROR };
    let context = Context { raw };
    let result = catch_unwind(AssertUnwindSafe(|| body(&context))).unwrap_or_else(|_| {
        let what = PANIC.with_borrow_mut(Option::take);
        let what = what.unwrap_or_else(|| "for an unknown reason".to_owned());
        Err(Error::new(format!("the node panicked {what}; this is a mistake in its library")))
    });
    match result {
        Ok(()) => abi::OK,
        Err(error) => context.report(&error),
    }
}

thread_local! {
    /// What the last panic on this thread said, kept for the error that is made of it.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps panics off the terminal, where they would tear the progress bars: the panic of a node, and of
/// a worker thread that the node waits for, reaches the person as the node's error. A library has its
/// own copy of the standard library, so the host's hook is not touched.
fn install_panic_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let payload = info.payload();
            let message = payload
                .downcast_ref::<&str>()
                .map(|s| (*s).to_owned())
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "with no message".to_owned());
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            PANIC.with_borrow_mut(|slot| *slot = Some(format!("at {place}: {message}")));
        }));
    });
}
