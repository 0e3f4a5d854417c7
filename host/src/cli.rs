//! Arguments → exit code.

mod convert;
mod list;
mod run;

use crate::args::{Arguments, Command};
use crate::events::{Event, Listener};
use crate::progress::{JsonLines, LogWriter, Show, Terminal};
use indicatif::MultiProgress;
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
pub fn main(arguments: Arguments) -> Exit {
    match arguments.command {
        Command::Run(run) => {
            let listener = listener(run.workflow.json, run.quiet);
            run::run(&run, &*listener)
        }
        Command::Check(check) => run::check(&check.workflow, &*listener(false, false)),
        Command::Nodes(nodes) => list::nodes(&nodes, &*listener(false, false)),
        Command::Plugins(plugins) => list::plugins(&plugins, &*listener(false, false)),
        Command::Convert(convert) => convert::convert(&convert, &*listener(false, convert.quiet)),
        Command::CheckPlugin(check) => list::check_plugin(&check, &*listener(false, false)),
    }
}

fn listener(json: bool, quiet: bool) -> Box<dyn Listener> {
    if json {
        log_to(MultiProgress::new());
        return Box::new(JsonLines::default());
    }
    let terminal = Terminal::new(if quiet { Show::Errors } else { Show::Everything });
    log_to(terminal.screen());
    Box::new(terminal)
}

/// The host's own diagnostics go to standard error, as much as KOSMOGRAPH_LOG or RUST_LOG says.
fn log_to(screen: MultiProgress) {
    let wanted = std::env::var("KOSMOGRAPH_LOG").or_else(|_| std::env::var("RUST_LOG"));
    let filter = EnvFilter::try_new(wanted.as_deref().unwrap_or("warn"));
    let writer = LogWriter(screen);
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| EnvFilter::new("warn")))
        .with_writer(move || writer.clone());
    // It fails where another one was set, which then does the work.
    let _ = subscriber.try_init();
}

/// Says why nothing is done.
fn refuse(listener: &dyn Listener, kind: &'static str, error: &dyn std::fmt::Display) -> Exit {
    listener.event(&Event::Refused { kind, message: &error.to_string() });
    Exit::Refused
}
