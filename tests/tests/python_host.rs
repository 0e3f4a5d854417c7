//! Python on both sides of the boundary: tests/examples/host.py calls libraries by node.h alone, the examples in C and
//! in Rust; tests/examples/invert_library.py is a library.
//!
//! Whether there is a Python with numpy, and with cffi, is known when the test runs. So this has a harness that can ignore a test
//! then, and says why.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, ExitCode, Output};

use kosmograph_tests::{Run, build_c, node_library, repository, scratch};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

fn main() -> ExitCode {
    let trials = vec![
        Trial::ignorable_test("a_host_in_python_runs_the_example_in_c", || {
            run(&build_c(&repository().join("tests/examples/denoiser.c")))
        }),
        Trial::ignorable_test("a_host_in_python_runs_the_example_in_rust", || {
            run(&node_library("kosmograph-example-invert"))
        }),
        Trial::ignorable_test("a_library_in_python_keeps_every_rule", library_in_python),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn python(arguments: &[&OsStr]) -> std::io::Result<Output> {
    Command::new("python3").args(arguments).output()
}

/// Why the library in Python cannot be built here; `None` where it can.
fn missing_for_a_library() -> Option<String> {
    let wanted = "import cffi, numpy, os, sysconfig, sys; \
                  header = os.path.join(sysconfig.get_path('include'), 'Python.h'); \
                  shared = sysconfig.get_config_var('Py_ENABLE_SHARED'); \
                  sys.exit('it has no libpython' if not shared else \
                           None if os.path.exists(header) else 'it has no Python.h')";
    match python(&["-c".as_ref(), wanted.as_ref()]) {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Some(error.to_string()),
    }
}

fn library_in_python() -> Result<Completion, Failed> {
    if let Some(why) = missing_for_a_library() {
        let why = why.lines().last().unwrap_or_default();
        let wanted = format!("it needs a shared python3 with numpy and cffi: {why}");
        return Ok(Completion::ignored_with(wanted));
    }
    let source = repository().join("tests/examples/invert_library.py");
    let (header, folder) = (repository().join("nodes/abi"), scratch().join("python_library"));
    let output = python(&[source.as_ref(), header.as_ref(), folder.as_ref()])?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{} does not build:\n{errors}", source.display()).into());
    }
    let suffix = std::env::consts::DLL_SUFFIX;
    let library = folder.join(format!("libpyinvert{suffix}"));
    let checked = Run::new("check-plugin").arg(library).expect_success();
    checked.stdout_contains("passed   PyImageInvert: the place of a tensor does not matter");
    Ok(Completion::Completed)
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
