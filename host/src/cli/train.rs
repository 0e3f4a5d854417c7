//! `kosmograph train`: the first library that trains does, in a worker.

use super::convert::absolute;
use super::{Exit, refuse, setup};
use crate::args;
use crate::events::{Event, Level, Listener};
use crate::interrupt;
use crate::libraries::Libraries;
use crate::problem::Kind;
use crate::supervisor::Supervisor;
use crate::wire::{Provider, Train};
use indicatif::MultiProgress;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

/// The largest configuration that is read.
const LARGEST: u64 = 1 << 20;

pub fn train(args: &args::Train, listener: &'static dyn Listener, screen: &MultiProgress) -> Exit {
    let cancel = interrupt::gracefully(listener);
    let refuse = |sentence: &dyn std::fmt::Display| refuse(listener, Kind::Arguments, sentence);
    let shown = args.config.display();
    let config = match std::fs::metadata(&args.config) {
        Ok(file) if file.len() > LARGEST => {
            return refuse(&format!("{shown} is larger than a configuration can be"));
        }
        Ok(_) => std::fs::read_to_string(&args.config),
        Err(error) => Err(error),
    };
    let config = match config {
        Ok(config) => config,
        Err(error) => return refuse(&format!("{shown}: {error}")),
    };
    let folder = match args.config.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let folder = match absolute(folder) {
        Ok(folder) => folder,
        Err(sentence) => return refuse(&sentence),
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
    let train = Train { libraries: providers, config, folder };
    let told = Told { listener, exit: AtomicU8::new(Exit::Done.code()) };
    if Supervisor::new(setup).train(train, &told, cancel) {
        interrupt::say();
        return Exit::Interrupted;
    }
    match told.exit.into_inner() {
        code if code == Exit::Refused.code() => Exit::Refused,
        code if code == Exit::Failed.code() => Exit::Failed,
        _ => Exit::Done,
    }
}

/// Passes events on, and keeps how it ends.
struct Told {
    listener: &'static dyn Listener,
    exit: AtomicU8,
}

impl Listener for Told {
    fn event(&self, event: &Event) {
        if let Event::Error(problem) = event {
            let refused = problem.kind == Kind::Arguments;
            let exit = if refused { Exit::Refused } else { Exit::Failed };
            self.exit.store(exit.code(), Ordering::Relaxed);
        }
        self.listener.event(event);
    }
}
