//! `kosmograph convert`: the first library that knows the file converts it, in a worker.

use super::{Exit, refuse, setup};
use crate::args;
use crate::events::{Event, Level, Listener};
use crate::interrupt;
use crate::libraries::Libraries;
use crate::problem::Kind;
use crate::supervisor::Supervisor;
use crate::wire::{Convert, Provider};
use indicatif::MultiProgress;
use serde_json::{Value as Json, json};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

pub fn convert(
    args: &args::Convert,
    listener: &'static dyn Listener,
    screen: &MultiProgress,
) -> Exit {
    let cancel = interrupt::gracefully(listener);
    let refuse = |sentence: &dyn std::fmt::Display| refuse(listener, Kind::Arguments, sentence);
    if !args.input.is_file() {
        return refuse(&format!("there is no file {}", args.input.display()));
    }
    if args.output.symlink_metadata().is_ok() {
        let output = args.output.display();
        return refuse(&format!("{output} is there already; nothing is written over"));
    }
    let mut options = json!({});
    if let Some(folder) = &args.tokenizer {
        if !folder.is_dir() {
            return refuse(&format!("--tokenizer {}: there is no such folder", folder.display()));
        }
        match absolute(folder) {
            Ok(folder) => options["tokenizer"] = folder.into(),
            Err(sentence) => return refuse(&sentence),
        }
    }
    let (input, output) = match (absolute(&args.input), absolute(&args.output)) {
        (Ok(input), Ok(output)) => (input, output),
        (Err(sentence), _) | (_, Err(sentence)) => return refuse(&sentence),
    };
    let libraries = match Libraries::find(&args.plugins) {
        Ok(libraries) => libraries,
        Err(error) => return refuse(&error),
    };
    for failed in &libraries.failed {
        listener.event(&Event::log(Level::Warning, failed.reason.as_str()));
    }
    let setup = match setup(screen, None) {
        Ok(setup) => setup,
        Err(error) => return refuse(&format!("the program's own file cannot be found: {error}")),
    };
    let providers = libraries.catalogue.libraries().iter().map(Provider::from).collect();
    let convert = Convert { libraries: providers, inputs: [input, output, options.to_string()] };
    let told = Told { listener, exit: AtomicU8::new(Exit::Done.code()) };
    if Supervisor::new(setup).convert(convert, &told, cancel) {
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
struct Told {
    listener: &'static dyn Listener,
    exit: AtomicU8,
}

impl Listener for Told {
    fn event(&self, event: &Event) {
        match event {
            Event::Error(problem) => {
                let refused = problem.kind == Kind::Arguments;
                let exit = if refused { Exit::Refused } else { Exit::Failed };
                self.exit.store(exit.code(), Ordering::Relaxed);
            }
            Event::Output { output: made, .. } => {
                let tensors = made["tensors"].as_u64().unwrap_or_default();
                let kind = made["kind"].as_str().unwrap_or("converted");
                let say = |message: &str| self.listener.event(&Event::log(Level::Info, message));
                let notes = made["notes"].as_array().into_iter().flatten();
                notes.filter_map(Json::as_str).for_each(say);
                say(&format!("{kind}, {tensors} tensors"));
            }
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
