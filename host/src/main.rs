//! `kosmograph`: arguments → run → exit code.

use clap::Parser;
use kosmograph::args::Arguments;
use std::process::ExitCode;

fn main() -> ExitCode {
    // A wrong argument ends the program here, with the sentence of clap and exit code 2.
    let arguments = Arguments::parse();
    // Before anything else; but what a worker does with signals is its own business.
    if !arguments.is_child() {
        kosmograph::interrupt::catch();
    }
    ExitCode::from(kosmograph::cli::main(arguments).code())
}
