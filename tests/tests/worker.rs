//! `kosmograph worker` as a program that keeps it between jobs uses it, and `run` beside `run --in-process`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use clap::Parser;
use kosmograph::args::Command;
use kosmograph::events::{Event, Listener};
use kosmograph::execute::Keep;
use kosmograph::job::Job;
use kosmograph::supervisor::{Setup, Supervisor, Task};
use kosmograph_tests::{Run, kosmograph, plugins_dir, repository};
use serde_json::Value as Json;

#[derive(Default)]
struct Heard(Mutex<Vec<Json>>);

impl Listener for Heard {
    fn event(&self, event: &Event) {
        self.0.lock().unwrap().push(serde_json::to_value(event).unwrap());
    }
}

#[derive(clap::Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn job(workflow: &str, out: &Path) -> Job {
    let repository = repository();
    let path = |below: &str| repository.join(below).display().to_string();
    let arguments = [
        "kosmograph",
        "run",
        &path(workflow),
        "--models",
        &path("models"),
        "--plugins",
        &plugins_dir().display().to_string(),
        "--out",
        &out.display().to_string(),
        "--set",
        "Sampler.steps=2",
    ];
    match Arguments::parse_from(arguments).command {
        Command::Run(run) => Job::read(&run.workflow).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn models_stay_loaded_from_one_job_to_the_next() {
    let out = tempfile::tempdir().unwrap();
    let mut supervisor = Supervisor::new(Setup {
        program: kosmograph(),
        memory_limit: None,
        stderr: Arc::new(|_| ()),
        computing: kosmograph::args::Computing::default(),
        sandbox: None,
    });
    let cancel = AtomicBool::new(false);
    let mut done = Vec::new();
    for _ in 0..2 {
        let job = job("workflows/text.json", out.path());
        let (plan, graph) = job.first_plan(&mut kosmograph::ask::nobody).unwrap();
        let task = Task {
            plan: &plan,
            catalogue: &job.libraries.catalogue,
            properties: &job.properties(&graph),
            keep: Keep::Everything,
            forget: &[],
            budget: None,
        };
        let heard = Heard::default();
        let outcome = supervisor.run(&task, &heard, &cancel);
        assert!(outcome.failures.is_empty() && !outcome.interrupted, "{outcome:?}");
        assert_eq!(outcome.executed + outcome.cached, plan.steps().len());
        let events = heard.0.into_inner().unwrap();
        let of = |kind: &str| events.iter().filter(|event| event["event"] == kind).count();
        assert_eq!(of("node_started"), outcome.executed);
        assert_eq!(of("cached"), outcome.cached);
        done.push((outcome.executed, outcome.cached));
    }
    let [(_, nothing), (again, kept)] = done[..] else { panic!("{done:?}") };
    assert_eq!(nothing, 0);
    assert_eq!(again, 0, "the second job is the first one's, which is still there");
    assert!(kept > 5);
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);
}

/// Every file of a folder, by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let file = |entry: std::fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
    };
    entries.map(file).collect()
}

#[test]
fn a_worker_draws_what_the_process_itself_draws() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for (folder, here) in folders.iter().zip([false, true]) {
        let run = Run::new("run").with_plugins().arg("workflows/text.json").arg("--out");
        let run = run.arg(folder.path()).args(["--seed", "1..3", "--set", "Sampler.steps=2"]);
        let run = if here { run.arg("--in-process") } else { run };
        run.expect_success();
    }
    let [worker, here] = folders.map(|folder| files(folder.path()));
    assert_eq!(worker.len(), 2);
    assert!(worker == here);
}

#[test]
fn a_line_that_is_no_command_is_told_and_nothing_worse() {
    Run::new("worker").stdin("what?\n{\"run\": 5}\n").expect_code(0).stderr_contains("no command");
}

#[test]
fn what_only_a_queue_s_worker_heeds_is_refused_without_one() {
    for (argument, value) in [("--models", Some("models")), ("--previews", None)] {
        let run = Run::new("worker").arg(argument);
        let run = value.into_iter().fold(run, |run, value| run.arg(value));
        run.expect_code(2)
            .stderr_contains(argument)
            .stderr_contains("--queue URL")
            .stderr_lacks("panicked");
    }
}
