//! Whether the work on this thread is to stop, asked where no context of a call reaches: inside a model, between two
//! operators of it, between the bands of a picture.
//!
//! Who is called by the host says whom to ask ([`during`]; the SDK does so for every call), and whoever works for long
//! asks ([`check`]) and passes the error on. A thread for which nobody said so goes on; so do the threads of a pool, whose
//! work is handed to them in portions between which the thread that waits for them asks.
//!
//! ```
//! use kosmograph_interrupt::{check, during};
//!
//! assert!(check().is_ok());
//! during(&|| true, || assert!(check().is_err()));
//! assert!(check().is_ok());
//! ```

use std::cell::Cell;
use std::fmt;

/// The work was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cancelled")
    }
}

impl std::error::Error for Interrupted {}

type Asked = *const (dyn Fn() -> bool + 'static);

thread_local! {
    /// Who is asked on this thread.
    static ASKED: Cell<Option<Asked>> = const { Cell::new(None) };
}

/// Asks `stop` whether to stop, for as long as `work` runs on this thread.
pub fn during<T>(stop: &(dyn Fn() -> bool + '_), work: impl FnOnce() -> T) -> T {
    /// Puts back who was asked before, also when `work` panics.
    struct Before(Option<Asked>);
    impl Drop for Before {
        fn drop(&mut self) {
            ASKED.set(self.0);
        }
    }
    // SAFETY: only the lifetime is another. `Before` takes the pointer away again when this function ends, and until then
    // `stop` is borrowed; other threads do not see it.
    let asked = unsafe {
        std::mem::transmute::<*const (dyn Fn() -> bool + '_), Asked>(std::ptr::from_ref(stop))
    };
    let _before = Before(ASKED.replace(Some(asked)));
    work()
}

/// Whether to go on.
///
/// # Errors
/// [`Interrupted`], when the work is to stop: pass it on.
pub fn check() -> Result<(), Interrupted> {
    let Some(asked) = ASKED.get() else { return Ok(()) };
    // SAFETY: `during`, which put it there, has not ended yet.
    match unsafe { (*asked)() } {
        true => Err(Interrupted),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn the_innermost_is_asked_and_the_outer_again_behind_it() {
        during(&|| true, || {
            during(&|| false, || assert_eq!(check(), Ok(())));
            assert_eq!(check(), Err(Interrupted));
            let panicked =
                catch_unwind(AssertUnwindSafe(|| during(&|| false, || panic!("inside"))));
            assert!(panicked.is_err());
            assert_eq!(check(), Err(Interrupted));
            std::thread::scope(|scope| scope.spawn(|| assert_eq!(check(), Ok(()))).join()).unwrap();
        });
        assert_eq!(check(), Ok(()));
    }
}
