//! `kosmograph`: arguments → run → exit code.

mod documents;
mod version;

use clap::{CommandFactory, Parser, Subcommand};
use kosmograph::args;
use kosmograph::cli;
use std::process::ExitCode;

/// Runs image workflows, written as JSON graphs, with nodes from dynamically loaded libraries.
#[derive(Debug, Parser)]
#[command(name = "kosmograph", version, long_version = version::long().leak() as &str, after_help = args::EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Host(args::Command),
    /// Serve ComfyUI's interface over HTTP: its editor, its clients, a page of our own (docs/serve.md)
    Serve(Box<kosmograph_server::Serve>),
    /// Run jobs, one after the other: from standard input, with reports on standard output (docs/worker.md), or
    /// from a queue of many machines with --queue (docs/fleet.md)
    Worker(kosmograph_server::Worker),
    #[command(hide = true)]
    Documents(documents::Documents),
}

fn main() -> ExitCode {
    compute_in_one_pool();
    // A wrong argument ends the program here, with the sentence of clap and exit code 2.
    match Arguments::parse().command {
        Command::Serve(serve) => kosmograph_server::main(*serve),
        Command::Worker(worker) => match kosmograph_server::work(&worker) {
            Some(code) => code,
            // What a worker does with signals is its own business.
            None => ExitCode::from(cli::main(args::Command::Worker(worker.here)).code()),
        },
        Command::Documents(documents) => match documents.write(&Arguments::command()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(sentence) => {
                eprintln!("error: {sentence}");
                ExitCode::from(2)
            }
        },
        Command::Host(command) => {
            // Before anything else; but what a worker does with signals is its own business.
            if !command.is_child() {
                kosmograph::interrupt::catch();
            }
            ExitCode::from(cli::main(command).code())
        }
    }
}

/// Tells candle, which the libraries compute with, to start no threads of its own beside theirs.
///
/// Its pool waits in a loop that never sleeps: on a machine that is busy otherwise each elementwise operator of a
/// training lasted as long as the system let the other program run, hundreds of seconds for an update of one.
fn compute_in_one_pool() {
    const THREADS: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(THREADS).is_none() {
        // SAFETY: this is the process's only thread so far, so no other reads the environment.
        unsafe { std::env::set_var(THREADS, "1") };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
