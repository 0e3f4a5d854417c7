//! The Python package and the pack of nodes for ComfyUI, with the program that was built: what a notebook does, and what a
//! stand-in of ComfyUI's loader does.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use kosmograph_tests::{kosmograph, node_library, plugins_dir, repository};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

fn main() -> ExitCode {
    let trials = vec![
        Trial::test("a_script_as_in_a_notebook_draws_cancels_and_catches_errors", notebook),
        Trial::test("however_a_script_ends_nothing_stays_behind", ends),
        Trial::ignorable_test("pictures_cross_in_memory", pictures),
        Trial::ignorable_test("the_pack_for_comfyui_runs_in_a_stand_in_of_its_loader", comfyui),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn python(program: &str) -> Command {
    for library in ["image", "diffusion", "kosmos"] {
        node_library(&format!("kosmograph-{library}"));
    }
    let mut command = Command::new(program);
    command.env("PYTHONPATH", repository().join("nodes/python/package/src"));
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command.env("KOSMOGRAPH", kosmograph()).env("KOSMOGRAPH_PLUGINS", plugins_dir());
    command.env("KOSMOGRAPH_MODELS", repository().join("models"));
    command.env("KOSMOGRAPH_WORKFLOWS", workflows()).current_dir(repository());
    command
}

fn workflows() -> PathBuf {
    repository().join("workflows")
}

fn passes(command: &mut Command, last: &str) -> Result<(), Failed> {
    let output = command.output()?;
    let (said, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    match output.status.success() && said.contains(last) {
        true => Ok(()),
        false => Err(format!("{command:?} ended with {}:\n{said}{errors}", output.status).into()),
    }
}

fn notebook() -> Result<(), Failed> {
    let script = repository().join("tests/examples/notebook.py");
    let pack = repository().join("tests/examples/python_nodes");
    passes(python("python3").arg(script).arg(workflows()).arg(pack), "it draws, keeps its model")
}

fn ends() -> Result<(), Failed> {
    let script = repository().join("tests/examples/notebook_ends.py");
    passes(python("python3").arg(script).arg(workflows()), "nothing stays behind")
}

/// A Python with numpy and Pillow.
fn with_pictures() -> Result<String, Completion> {
    let named = std::env::var("PYTHON_WITH_TORCH").ok();
    let has_pictures = |program: &String| {
        let asked = Command::new(program).args(["-c", "import numpy, PIL"]).output();
        asked.is_ok_and(|output| output.status.success())
    };
    let found = ["python3".to_owned()].into_iter().chain(named).find(has_pictures);
    let wanted = "it needs a Python with numpy and Pillow, as python3 or by PYTHON_WITH_TORCH";
    found.ok_or_else(|| Completion::ignored_with(wanted))
}

fn pictures() -> Result<Completion, Failed> {
    let program = match with_pictures() {
        Ok(program) => program,
        Err(ignored) => return Ok(ignored),
    };
    let script = repository().join("tests/examples/notebook_pictures.py");
    passes(python(&program).arg(script).arg(workflows()), "pictures cross in memory")?;
    Ok(Completion::Completed)
}

fn comfyui() -> Result<Completion, Failed> {
    let program = match with_pictures() {
        Ok(program) => program,
        Err(ignored) => return Ok(ignored),
    };
    let script = repository().join("tests/examples/comfyui_loader.py");
    let mut command = python(&program);
    command.arg(script).arg(repository().join("nodes/python/comfyui"));
    command.arg(workflows().join("input/monster-1.png"));
    passes(&mut command, "called every node")?;
    Ok(Completion::Completed)
}
