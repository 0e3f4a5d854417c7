//! tests/examples/host.py, which calls libraries from Python by node.h alone, on the examples in C and in Rust.
//!
//! Whether there is a Python with numpy is known when the test runs. So this has a harness that can ignore a test
//! then, and says why.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, ExitCode, Output};

use kosmograph_tests::{build_c, node_library, repository};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

fn main() -> ExitCode {
    let trials = vec![
        Trial::ignorable_test("a_host_in_python_runs_the_example_in_c", || {
            run(&build_c(&repository().join("tests/examples/denoiser.c")))
        }),
        Trial::ignorable_test("a_host_in_python_runs_the_example_in_rust", || {
            run(&node_library("kosmograph-example-invert"))
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn python(arguments: &[&OsStr]) -> std::io::Result<Output> {
    Command::new("python3").args(arguments).output()
}

fn run(library: &Path) -> Result<Completion, Failed> {
    let version = "import numpy, sys; print(numpy.__version__); \
                   sys.exit(tuple(map(int, numpy.__version__.split('.')[:2])) < (2, 1))";
    let missing = match python(&["-c".as_ref(), version.as_ref()]) {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(why) = missing {
        let why = why.lines().last().unwrap_or("numpy is older");
        let wanted = format!("it needs python3 with numpy 2.1 or later: {why}");
        return Ok(Completion::ignored_with(wanted));
    }
    let host = repository().join("tests/examples/host.py");
    let output = python(&[host.as_ref(), library.as_ref()])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() && said.ends_with("every reference was given back\n") {
        return Ok(Completion::Completed);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}:\n{said}{errors}", library.display()).into())
}
