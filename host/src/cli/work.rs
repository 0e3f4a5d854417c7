//! What a library does beside nodes, in a worker: what `convert`, `train` and `evaluate` share.

use super::{Exit, refuse, setup};
use crate::args::{Computing, Precision};
use crate::events::{Event, Level, Listener};
use crate::interrupt;
use crate::libraries::Libraries;
use crate::problem::Kind;
use crate::supervisor::Supervisor;
use crate::wire::{Provider, Work, WorkKind};
use indicatif::MultiProgress;
use serde_json::Value as Json;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Has the first library do it; `said` tells a person what the library's own account of it says.
pub(super) fn work<const N: usize>(
    kind: WorkKind,
    input: [(&str, String); N],
    plugins: &[PathBuf],
    (listener, screen): (&'static dyn Listener, &MultiProgress),
    cancel: &AtomicBool,
    said: impl Fn(&Json) + Sync,
) -> Exit {
    let refuse = |sentence: &dyn std::fmt::Display| refuse(listener, Kind::Arguments, sentence);
    let libraries = match Libraries::find(plugins) {
        Ok(libraries) => libraries,
        Err(error) => return refuse(&error),
    };
    for failed in &libraries.failed {
        listener.event(&Event::log(Level::Warning, failed.reason.as_str()));
    }
    // Gradients and figures are f32's, whatever pictures are drawn in.
    let computing = Computing { precision: Some(Precision::F32), ..Computing::default() };
    let setup = match setup(screen, None, computing) {
        Ok(setup) => setup,
        Err(error) => return refuse(&format!("the program's own file cannot be found: {error}")),
    };
    let libraries = libraries.catalogue.libraries().iter().map(Provider::from).collect();
    let input = input.map(|(name, text)| (name.to_owned(), text)).to_vec();
    let told = Told { listener, exit: AtomicU8::new(Exit::Done.code()), said };
    if Supervisor::new(setup).work(Work { kind, libraries, input }, &told, cancel) {
        interrupt::say();
        return Exit::Interrupted;
    }
    match told.exit.into_inner() {
        code if code == Exit::Refused.code() => Exit::Refused,
        code if code == Exit::Failed.code() => Exit::Failed,
        _ => Exit::Done,
    }
}

/// Passes events on, says what was made by the library's own account, and keeps how it ends.
struct Told<S> {
    listener: &'static dyn Listener,
    exit: AtomicU8,
    said: S,
}

impl<S: Fn(&Json) + Sync> Listener for Told<S> {
    fn event(&self, event: &Event) {
        match event {
            Event::Error(problem) => {
                let refused = problem.kind == Kind::Arguments;
                let exit = if refused { Exit::Refused } else { Exit::Failed };
                self.exit.store(exit.code(), Ordering::Relaxed);
            }
            Event::Output { output: made, .. } => (self.said)(made),
            _ => (),
        }
        self.listener.event(event);
    }
}

/// An absolute path as text, which is how it crosses the boundary.
pub(super) fn absolute(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let absolute = std::path::absolute(path).map_err(|error| format!("{shown}: {error}"))?;
    let text = absolute.into_os_string().into_string();
    text.map_err(|_| format!("the path {shown} is not UTF-8"))
}
