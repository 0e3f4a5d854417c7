//! Ctrl-C, and a request to terminate: the run stops at its next step, and the program ends within two
//! seconds whatever it is doing.
//!
//! The first signal sets a flag that everything long looks at. What does not look in time is left as it
//! is: the program says its last word and ends, and its worker with it. A second signal does so at once, whatever is still being written.

use crate::events::{Event, Listener};
use std::io::Write;
use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// When the program ends by itself, after the first signal.
const AT_THE_LATEST: Duration = Duration::from_millis(1800);

/// The exit code of an interrupted program: 128 and the number of SIGINT, as shells have it.
pub const CODE: i32 = 130;

static CANCEL: AtomicBool = AtomicBool::new(false);
static GRACEFUL: AtomicBool = AtomicBool::new(false);
static FINISHING: AtomicBool = AtomicBool::new(false);
static SAID: AtomicBool = AtomicBool::new(false);
static TELLS: OnceLock<Told> = OnceLock::new();

/// Who hears the last word.
struct Told {
    listener: &'static dyn Listener,
    start: Instant,
}

/// Catches signals from now on: the program ends at the first one, until [`gracefully`].
pub fn catch() {
    // Where it fails a signal ends the program as it ends any other.
    if let Err(error) = ctrlc::set_handler(on_signal) {
        tracing::warn!("Ctrl-C cannot be caught: {error}");
    }
}

/// From now on the first signal sets the flag that is returned, and the last event is
/// [`Event::Interrupted`].
pub fn gracefully(listener: &'static dyn Listener) -> &'static AtomicBool {
    let _ = TELLS.set(Told { listener, start: Instant::now() });
    GRACEFUL.store(true, Ordering::SeqCst);
    &CANCEL
}

/// Says the last word, once.
pub fn say() {
    if let Some(Told { listener, start }) = TELLS.get()
        && !SAID.swap(true, Ordering::SeqCst)
    {
        listener.event(&Event::Interrupted { seconds: start.elapsed().as_secs_f64() });
    }
}

/// Does the last thing that is worth doing after the first signal; the program waits for it, unless there is a second one.
pub fn finish<T>(last: impl FnOnce() -> T) -> T {
    FINISHING.store(true, Ordering::SeqCst);
    let result = last();
    FINISHING.store(false, Ordering::SeqCst);
    result
}

fn on_signal() {
    if !GRACEFUL.load(Ordering::SeqCst) {
        exit(CODE);
    }
    if CANCEL.swap(true, Ordering::SeqCst) {
        end_now();
    }
    let message = b"\nstopping at the next step; press Ctrl-C again to stop at once\n";
    let _ = std::io::stderr().write_all(message);
    let wait = || {
        std::thread::sleep(AT_THE_LATEST);
        while FINISHING.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        end_now()
    };
    // Without a thread there is the second Ctrl-C.
    let _ = std::thread::Builder::new().name("interrupt".to_owned()).spawn(wait);
}

fn end_now() -> ! {
    // Two may come here at once; and whoever reads standard output may not read any more.
    static ENDING: Mutex<()> = Mutex::new(());
    let _one = ENDING.lock().unwrap_or_else(PoisonError::into_inner);
    let (done, wait) = std::sync::mpsc::channel();
    let spawned = std::thread::Builder::new().spawn(move || {
        say();
        let _ = done.send(());
    });
    if spawned.is_ok() {
        let _ = wait.recv_timeout(Duration::from_millis(150));
    }
    exit(CODE)
}
