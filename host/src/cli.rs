//! Arguments → exit code.

mod convert;
mod evaluate;
mod jobs;
mod list;
mod lock;
mod run;
mod sheet;
mod sweep;
mod train;
mod work;

use crate::args::{Command, Computing};
use crate::events::{Event, Listener};
use crate::problem::Kind;
use crate::progress::{JsonLines, LogWriter, Show, Terminal};
use crate::supervisor::Setup;
use crate::{libraries, process};
use indicatif::MultiProgress;
use nix::sys::signal::Signal;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use tracing_subscriber::EnvFilter;

/// How the program ends; the numbers are documented in `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done,
    /// The workflow or the arguments are wrong.
    Refused,
    /// A node failed, or a library does not conform.
    Failed,
    Interrupted,
}

impl Exit {
    /// This one, unless all is well so far.
    fn or(self, other: Self) -> Self {
        if self == Self::Done { other } else { self }
    }

    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Refused => 2,
            Self::Failed => 3,
            Self::Interrupted => 130,
        }
    }
}

/// Does what the arguments say.
pub fn main(command: Command) -> Exit {
    // A file that grows past `ulimit -f` is an error of that file, and no reason to end.
    process::ignore_signals(&[Signal::SIGXFSZ]);
    let (json, quiet) = match &command {
        Command::Run(run) => (run.workflow.json, run.quiet),
        Command::Lock(lock) => (lock.workflow.json, false),
        Command::Convert(convert) => (false, convert.quiet),
        Command::Train(train) | Command::Data(train) => (train.json, train.quiet),
        Command::Evaluate(evaluate) => (evaluate.json, evaluate.quiet),
        _ => (false, false),
    };
    let screen = MultiProgress::new();
    log_to(screen.clone());
    // As long as the program: the handler of signals says the last word to it.
    let listener: &'static dyn Listener = match json {
        true => Box::leak(Box::new(JsonLines::default())),
        false => {
            let show = if quiet { Show::Errors } else { Show::Everything };
            Box::leak(Box::new(Terminal::new(show, screen.clone())))
        }
    };
    let exit = match command {
        Command::Run(args) => run::run(&args, listener, &screen),
        Command::Jobs(args) => jobs::jobs(&args, listener, &screen),
        Command::Check(check) => run::check(&check.workflow, listener, &screen),
        Command::Lock(args) => lock::lock(&args, listener),
        Command::Nodes(nodes) => list::nodes(&nodes, listener),
        Command::Plugins(plugins) => list::plugins(&plugins, listener),
        Command::Convert(args) => convert::convert(&args, listener, &screen),
        Command::Train(args) => train::train(&args, None, listener, &screen),
        Command::Data(args) => train::train(&args, Some("data"), listener, &screen),
        Command::Evaluate(args) => evaluate::evaluate(&args, listener, &screen),
        Command::CheckPlugin(check) => list::check_plugin(&check, listener),
        Command::Worker(worker) => crate::worker::main(&worker),
        Command::Describe(describe) => match &describe.python {
            Some(pack) => libraries::answer_of_pack(pack, describe.confined),
            None => libraries::answer(&describe.library, describe.confined),
        },
    };
    match listener.trouble() {
        Some(trouble) if exit != Exit::Interrupted => {
            eprintln_or_nothing(&format!("error: {trouble}; the files that were made are whole"));
            Exit::Failed
        }
        _ => exit,
    }
}

/// The last way to say something; where that is closed, the exit code has to do.
fn eprintln_or_nothing(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// How workers of this command are started; what they print goes between the bars.
fn setup(
    screen: &MultiProgress,
    memory_limit: Option<u64>,
    computing: Computing,
) -> std::io::Result<Setup> {
    let screen = screen.clone();
    let stderr = Arc::new(move |bytes: &[u8]| {
        let _ = LogWriter(screen.clone()).write_all(bytes);
    });
    let program = std::env::current_exe()?;
    Ok(Setup { program, memory_limit, stderr, computing, sandbox: None })
}

/// The host's own diagnostics go to standard error, as much as KOSMOGRAPH_LOG or RUST_LOG says.
fn log_to(screen: MultiProgress) {
    let wanted = std::env::var("KOSMOGRAPH_LOG").or_else(|_| std::env::var("RUST_LOG"));
    let filter = EnvFilter::try_new(wanted.as_deref().unwrap_or("warn"));
    let writer = LogWriter(screen);
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| EnvFilter::new("warn")))
        // Colours are for a terminal, and for whoever has not asked for none (no-color.org).
        .with_ansi(
            std::io::stderr().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        )
        .with_writer(move || writer.clone());
    // It fails where another one was set, which then does the work.
    let _ = subscriber.try_init();
}

/// Says why nothing is done.
fn refuse(listener: &dyn Listener, kind: Kind, error: &dyn std::fmt::Display) -> Exit {
    listener.event(&Event::refused(kind, error.to_string()));
    Exit::Refused
}
