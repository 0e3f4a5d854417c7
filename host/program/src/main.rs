//! `kosmograph`: arguments → run → exit code.

use clap::{Parser, Subcommand};
use kosmograph::args;
use kosmograph::cli;
use std::process::ExitCode;

/// Runs image workflows, written as JSON graphs, with nodes from dynamically loaded libraries.
#[derive(Debug, Parser)]
#[command(name = "kosmograph", version, after_help = args::EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Host(args::Command),
    /// Serve ComfyUI's interface over HTTP: its editor, its clients, a page of our own (docs/serve.md)
    Serve(kosmograph_server::Serve),
}

fn main() -> ExitCode {
    // A wrong argument ends the program here, with the sentence of clap and exit code 2.
    match Arguments::parse().command {
        Command::Serve(serve) => kosmograph_server::main(serve),
        Command::Host(command) => {
            // Before anything else; but what a worker does with signals is its own business.
            if !command.is_child() {
                kosmograph::interrupt::catch();
            }
            ExitCode::from(cli::main(command).code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
