//! Nodes written in Python: what they may do without harm to anything but their own job, and what crosses.
//!
//! What needs numpy or torch is ignored, with the reason, where no Python with it is found; the rest needs python3 alone.

#[path = "python_nodes/comfyui.rs"]
mod comfyui;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use kosmograph_tests::{Finished, Run, repository, scratch};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::{Value, json};

fn main() -> ExitCode {
    let trials = vec![
        Trial::test("texts_and_numbers_cross_both_ways", texts_and_numbers),
        Trial::test("a_bad_pack_is_told_and_costs_itself_alone", bad_packs),
        Trial::test("what_a_node_does_wrong_is_its_own_failure", wrongs),
        Trial::test("a_value_of_the_packs_own_type_stays_and_is_lost_with_its_process", own_values),
        Trial::test("a_hang_is_cancelled", hang),
        Trial::test("hidden_inputs_lists_of_files_and_prefixes_are_as_in_comfyui", shim),
        Trial::test("lists_are_as_in_comfyui", comfyui::lists),
        Trial::test("a_class_says_whether_it_is_run_again", comfyui::changes),
        Trial::test("a_class_refuses_its_inputs_before_anything_runs", comfyui::refused_inputs),
        Trial::test("a_server_refuses_what_a_class_refuses", comfyui::refused_by_server),
        Trial::test("what_a_lazy_input_leads_to_is_computed_when_it_is_wanted", comfyui::lazy),
        Trial::test("what_python_cannot_use_goes_through_it", comfyui::lent),
        Trial::test("schemas_are_read_as_older_classes_are", comfyui::schemas),
        Trial::ignorable_test("a_node_of_ones_own_runs_with_numpy", || pictures("numpy")),
        Trial::ignorable_test("a_node_of_ones_own_runs_with_torch", || pictures("torch")),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// The pack of the tests, written where it is read.
fn pack() -> PathBuf {
    repository().join("tests/examples/python_nodes")
}

fn workflow(name: &str, graph: &Value) -> PathBuf {
    let file = scratch().join(format!("python_nodes_{name}.json"));
    std::fs::write(&file, graph.to_string()).unwrap();
    file
}

fn run(name: &str, graph: &Value) -> Run {
    let out = scratch().join("python_nodes_out");
    Run::new("run")
        .arg(workflow(name, graph))
        .arg("--python-nodes")
        .arg(pack())
        .arg("--out")
        .arg(out)
        .with_plugins()
}

/// A node of the pack, and one that shows what it gives.
fn shown(class: &str) -> Value {
    json!({"1": {"class_type": class, "inputs": {"text": "hey"}}, "2": {"class_type": "PyShow", "inputs": {"value": ["1", 0]}}})
}

/// What the node PyShow was given.
fn told(finished: &Finished) -> Value {
    let events = finished.json_lines();
    let output = events.iter().find(|event| event["event"] == "output");
    output.unwrap_or_else(|| panic!("no output in\n{finished}"))["output"]["shown"][0].clone()
}

fn texts_and_numbers() -> Result<(), Failed> {
    let inputs = json!({"text": "naïve \u{1f600}", "count": -3, "seed": u64::MAX, "ratio": 0.1, "flag": true, "choice": "2"});
    let graph = json!({"1": {"class_type": "PyPlain", "inputs": inputs},
        "2": {"class_type": "PyPlain", "inputs": {"text": ["1", 0], "count": ["1", 1], "seed": ["1", 2],
            "ratio": ["1", 3], "flag": ["1", 4], "choice": "1"}},
        "3": {"class_type": "PyShow", "inputs": {"value": ["2", 5]}}});
    let finished = run("plain", &graph).arg("--json").expect_success();
    // repr of everything, as Python had it after it went out and came back; a choice is a number there.
    let wanted = "('naïve \u{1f600}', -3, 18446744073709551615, 0.1, True, 1)";
    assert_eq!(told(&finished), wanted);
    let again = run("plain", &graph).arg("--json").arg("--seed").arg("5").expect_success();
    assert_eq!(told(&again), wanted.replace("18446744073709551615", "5"));
    let info = Run::new("nodes")
        .arg("PyPlain")
        .arg("--json")
        .arg("--python-nodes")
        .arg(pack())
        .expect_success()
        .json();
    let info = &info["PyPlain"];
    assert_eq!(info["display_name"], "Plain values");
    assert_eq!(info["input"]["required"]["seed"][1]["max"], u64::MAX);
    // A default outside of its own range is its bound, as the editor shows it.
    assert_eq!(info["input"]["required"]["count"][1]["default"], 10);
    let refused = run(
        "choice",
        &json!({"1": {"class_type": "PyPlain", "inputs": {"choice": "7"}},
        "2": {"class_type": "PyShow", "inputs": {"value": ["1", 0]}}}),
    );
    refused.expect_code(2).stderr_contains("choice").stderr_contains("7");
    Ok(())
}

fn bad_packs() -> Result<(), Failed> {
    let folder = scratch().join("python_packs");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    for (name, text) in [
        ("syntax.py", "def x(:"),
        ("missing.py", "import nothing_that_is_there"),
        ("empty.py", "a = 1"),
        ("ends.py", "import os; os._exit(7)"),
        ("prints.py", "print('x' * 5000000); NODE_CLASS_MAPPINGS = {}"),
        (
            "good.py",
            "class G:\n  RETURN_TYPES, FUNCTION = (), 'go'\n  INPUT_TYPES = classmethod(lambda cls: {})\n  def go(self): pass\n\
          class Bad(G):\n  FUNCTION = 'not_there'\n\
          class Wants(G):\n  INPUT_TYPES = classmethod(lambda cls: {'required': {'m': ('MODEL',)}})\n\
          import comfy.sd\nclass Comfy(G):\n  INPUT_TYPES = classmethod(lambda cls: {'required': {'a': (comfy.sd.names(),)}})\n\
          NODE_CLASS_MAPPINGS = {'Good': G, 'Bad': Bad, 'Wants': Wants, 'Comfy': Comfy}",
        ),
    ] {
        std::fs::write(folder.join(name), text)?;
    }
    let said = Run::new("plugins").arg("--python-nodes").arg(&folder).expect_success();
    said.stdout_contains("syntax.py: its import failed: SyntaxError")
        .stdout_contains("(syntax.py, line 1)")
        .stdout_contains("does not have nothing_that_is_there")
        .stdout_contains("empty.py: it has neither NODE_CLASS_MAPPINGS nor comfy_entrypoint")
        .stdout_contains("ends.py: asked what it offers, it ended its process with exit code 7")
        .stdout_contains("good ")
        .stdout_contains("without Bad: its FUNCTION 'not_there' is no method of it")
        .stdout_contains("without Wants: its input m is a MODEL, which only")
        .stdout_contains(
            "without Comfy: Unavailable: it wants comfy.sd.names, which only ComfyUI has",
        );
    let graph = json!({"1": {"class_type": "Wants", "inputs": {}}});
    let check = Run::new("check")
        .arg(workflow("wants", &graph))
        .arg("--python-nodes")
        .arg(&folder)
        .with_plugins();
    check.expect_code(2).stderr_contains("its input m is a MODEL");
    let none = Run::new("nodes").arg("--python-nodes").arg(repository().join("docs"));
    none.expect_code(2).stderr_contains("there is no pack of nodes in it");
    let python =
        Run::new("nodes").arg("--python-nodes").arg(pack()).arg("--python").arg("/no/python");
    python.expect_code(2).stderr_contains("--python /no/python: it cannot be started");
    Ok(())
}

fn wrongs() -> Result<(), Failed> {
    for (class, sentence) in [
        ("PyRaise", "ValueError: too much (python_nodes/__init__.py, line "),
        ("PyCrash", "ended with SIGSEGV (segmentation fault), in \""),
        ("PySysExit", "SystemExit: 3"),
        ("PyExit", "ended with exit code 3"),
        ("PyNoTuple", "it returned a text where a tuple of 1 is due"),
        ("PyNothing", "it returned None where a tuple of 1 is due"),
        ("PyComfy", "it wants comfy.sd.load_checkpoint_guess_config, which only ComfyUI has"),
        ("PyInterrupts", "it ended as interrupted, though nobody asked it to stop"),
    ] {
        let finished = run(class, &shown(class)).expect_code(3);
        let finished = finished.stderr_contains(sentence).stderr_contains("its pack python_nodes");
        finished.stderr_contains(&format!("({class})"));
    }
    // None goes on to Python, and so does what is no text; both are refused by a node of ours.
    assert_eq!(told(&run("none", &shown("PyNone")).arg("--json").expect_success()), "None");
    assert_eq!(told(&run("wrong_type", &shown("PyWrongType")).arg("--json").expect_success()), "5");
    let few = run("few", &shown("PyTooFew")).arg("--json").expect_success();
    assert_eq!(told(&few), "None");
    let warning = "it returned 0 values where RETURN_TYPES has 1; the others are None";
    assert!(few.stdout().contains(warning), "{few}");
    for class in ["PyNone", "PyWrongType"] {
        let graph = json!({"1": {"class_type": class, "inputs": {"text": "hey"}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": ["1", 0]}},
            "3": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8}}});
        run("none_elsewhere", &graph).expect_code(3).stderr_contains("filename_prefix");
    }
    // A child that comes back from the node as well says nothing.
    let finished = run("fork", &shown("PyFork")).arg("--json").expect_success();
    assert_eq!(told(&finished), "'parent'");
    let finished = run("print", &shown("PyPrint")).arg("--json").expect_success();
    let lines = finished.json_lines();
    let lines = lines.iter().filter(|event| event["event"] == "log").count();
    assert!((1..20_000).contains(&lines), "{lines} lines of a hundred thousand");
    Ok(())
}

fn own_values() -> Result<(), Failed> {
    let graph = json!({"1": {"class_type": "PyMake", "inputs": {"text": "hey"}},
        "2": {"class_type": "PyTake", "inputs": {"own": ["1", 0]}}, "3": {"class_type": "PyShow", "inputs": {"value": ["2", 0]}}});
    assert_eq!(told(&run("own", &graph).arg("--json").expect_success()), "'hey of {}'");
    // The crash is of the same pack, between them.
    let graph = json!({"1": {"class_type": "PyMake", "inputs": {"text": "hey"}},
        "2": {"class_type": "PyCrash", "inputs": {"text": "hey"}},
        "3": {"class_type": "PyTake", "inputs": {"own": ["1", 0], "after": ["2", 0]}},
        "4": {"class_type": "PyShow", "inputs": {"value": ["3", 0]}},
        "5": {"class_type": "PyTake", "inputs": {"own": ["1", 0]}}, "6": {"class_type": "PyShow", "inputs": {"value": ["5", 0]}}});
    let finished = run("lost", &graph).expect_code(3);
    assert!(finished.stderr().contains("SIGSEGV"), "{finished}");
    Ok(())
}

fn hang() -> Result<(), Failed> {
    for class in ["PySleep", "PyBusy"] {
        let mut child = run(class, &shown(class))
            .arg("--json")
            .command()
            .stdout(std::process::Stdio::piped())
            .spawn()?;
        let mut lines =
            std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        lines
            .find(|line| line.as_ref().is_ok_and(|line| line.contains("at work")))
            .ok_or("it never began")??;
        let asked = Instant::now();
        Command::new("kill").args(["-INT", &child.id().to_string()]).status()?;
        let last = lines.map_while(Result::ok).last().unwrap_or_default();
        assert_eq!(child.wait()?.code(), Some(130), "{class}: {last}");
        assert!(
            last.contains("interrupted") && asked.elapsed() < Duration::from_secs(30),
            "{class}: {last}"
        );
    }
    // In a worker that stays, the next node of the pack has a new process.
    let mut child = Run::new("jobs").arg("--python-nodes").arg(pack()).with_plugins().command();
    let mut child =
        child.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut until = |line: &Value, part: &str| -> Result<String, Failed> {
        std::io::Write::write_all(&mut input, format!("{line}\n").as_bytes())?;
        let found = lines.find(|line| line.as_ref().map_or(true, |line| line.contains(part)));
        Ok(found.ok_or("it ended")??)
    };
    until(&json!({"id": "a", "workflow": shown("PyBusy")}), "at work")?;
    until(&json!({"cancel": "a"}), "job_done")?;
    let done = until(&json!({"id": "b", "workflow": shown("PyList")}), "job_done")?;
    assert!(done.contains("\"code\":0"), "{done}");
    drop(input);
    child.wait()?;
    Ok(())
}

fn shim() -> Result<(), Failed> {
    let models = scratch().join("python_models");
    std::fs::create_dir_all(models.join("checkpoints"))?;
    std::fs::write(models.join("checkpoints/one.safetensors"), "x")?;
    let _ = std::fs::remove_file(models.join("checkpoints/two.safetensors"));
    let graph = json!({"7": {"class_type": "PyShim", "inputs": {"file": "one.safetensors"}},
        "8": {"class_type": "PyShow", "inputs": {"value": ["7", 0]}}});
    let finished = run("shim", &graph).arg("--models").arg(&models).arg("--json").expect_success();
    let told = told(&finished);
    let told = told.as_str().unwrap();
    for part in [
        "'id': '7'",
        "'classes': ['PyShim', 'PyShow']",
        "'name': 'a_00001_.txt'",
        "checkpoints/one.safetensors'",
    ] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    let progress = finished.json_lines();
    assert!(
        progress
            .iter()
            .any(|event| event["event"] == "progress" && event["step"] == 2 && event["steps"] == 4)
    );
    // A file that comes is a choice at once.
    std::fs::write(models.join("checkpoints/two.safetensors"), "x")?;
    let nodes = Run::new("nodes")
        .arg("PyShim")
        .arg("--models")
        .arg(&models)
        .arg("--python-nodes")
        .arg(pack());
    nodes.expect_success().stdout_contains("one.safetensors | two.safetensors");
    Ok(())
}

/// A Python that has the module, by the name or path that starts it.
fn python_with(module: &str) -> Option<PathBuf> {
    let named = std::env::var_os("PYTHON_WITH_TORCH").map(PathBuf::from);
    let candidates =
        [Some("python3".into()), named, Some(repository().join("target/python/bin/python"))];
    candidates.into_iter().flatten().find(|python: &PathBuf| {
        let asked = Command::new(python).arg("-c").arg(format!("import {module}")).output();
        asked.is_ok_and(|output| output.status.success())
    })
}

/// The example of the documentation between two nodes of ours, and what pictures must not be.
fn pictures(module: &str) -> Result<Completion, Failed> {
    let Some(python) = python_with(module) else {
        return Ok(Completion::ignored_with(format!(
            "it needs a Python with {module}, as python3 or by PYTHON_WITH_TORCH"
        )));
    };
    let out = scratch().join(format!("python_nodes_{module}"));
    let _ = std::fs::remove_dir_all(&out);
    let example = repository().join("workflows/python-nodes-example");
    let start = |graph: &Path| {
        let run = Run::new("run")
            .arg(graph)
            .arg("--python")
            .arg(&python)
            .arg("--out")
            .arg(&out)
            .with_plugins();
        run.arg("--python-nodes").arg(&example).arg("--python-nodes").arg(pack())
    };
    start(&example.join("workflow.json")).expect_success();
    let drawn = image_of(&out.join("sepia_00001_.png"))?;
    // Grey 0.5 in brown: 0.5 · 0.9 + 0.05, blue 0.7 of it; half of it each, inverted.
    let brown = 0.5f32 * 0.9 + 0.05;
    for (channel, wanted) in [brown, brown, brown * 0.7].into_iter().enumerate() {
        let wanted = (1.0 - (0.5 * 0.5 + 0.5 * wanted)) * 255.0;
        assert!(
            (f32::from(drawn[channel]) - wanted).abs() < 2.0,
            "{drawn:?}, channel {channel}: {wanted}"
        );
    }
    let graph = |class: &str| {
        let graph = json!({"1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 8, "batch_size": 2, "color": 8421504}},
            "2": {"class_type": class, "inputs": {"image": ["1", 0]}},
            "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": class}},
            "4": {"class_type": "PyAll", "inputs": {"image": ["1", 0]}},
            "5": {"class_type": "PyShow", "inputs": {"value": ["4", 0]}}});
        workflow(&format!("{class}_{module}"), &graph)
    };
    for (class, sentence) in [
        ("PyNaN", "its output image (IMAGE) has 1 of 768 numbers that are not finite"),
        ("PyFlat", "its output image (IMAGE) has the shape [16, 3], where [B, H, W, C] is due"),
        (
            "PyChannels",
            "has the shape [2, 3, 8, 16]: a picture has 1, 3 or 4 channels, and they come last",
        ),
    ] {
        let finished = start(&graph(class)).arg("--json").expect_code(3);
        assert!(finished.stdout().contains(sentence), "{sentence:?} is not in\n{finished}");
        // What does not depend on it is made: pictures, masks and latents as the node saw them; its own are its to change.
        assert_eq!(told(&finished), "([2, 8, 16, 3], 0.50196)");
    }
    start(&graph("PyMaskAndLatent")).expect_success();
    Ok(Completion::Completed)
}

/// The first pixel.
fn image_of(file: &Path) -> Result<Vec<u8>, Failed> {
    let decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(file)?));
    let mut reader = decoder.read_info()?;
    let mut buffer = vec![0; reader.output_buffer_size().ok_or("no size")?];
    reader.next_frame(&mut buffer)?;
    Ok(buffer[..3].to_vec())
}
