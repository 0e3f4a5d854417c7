//! `kosmograph jobs`: workflows from standard input, one job a line, for programs that stand above this one.
//!
//! The catalogue is read once and models stay loaded between jobs. Nodes run in a worker, as they do for `run`, so that
//! a crash costs a job. The lines are described in docs/python.md; who speaks them is the Python package.

use super::run::{tell, tell_left_out};
use super::{Exit, refuse, setup};
use crate::args;
use crate::ask::Ask;
use crate::changes::set;
use crate::events::{Event, Level, Listener};
use crate::execute::{Budget, Keep};
use crate::folders::{Folders, Given};
use crate::handed::{self, Given as GivenPicture, Handed, Memory};
use crate::job::{Job, Surroundings};
use crate::problem::{Kind, Problem};
use crate::supervisor::{Supervisor, Task};
use crate::workflow_file::WorkflowFile;
use indicatif::MultiProgress;
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// A line of standard input.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Cancel { cancel: String },
    // Boxed, as a cancel is short.
    Job(Box<Asked>),
}

/// One job.
#[derive(Debug, Deserialize)]
struct Asked {
    id: String,
    /// The workflow itself, of either format.
    workflow: Json,
    /// The folder that the workflow is from, beside which models and pictures are looked for, too.
    folder: Option<PathBuf>,
    /// As `--set`.
    #[serde(default)]
    set: Vec<String>,
    seed: Option<u64>,
    /// Where results are written, if not where the command line says.
    out: Option<PathBuf>,
    /// Pictures in memory, by the node or NODE.INPUT that they are given to.
    #[serde(default)]
    inputs: Map<String, Json>,
    /// The file in memory that pictures are handed over in, as they were computed.
    memory: Option<PathBuf>,
}

/// By job, whether it is to stop.
type Flags = Arc<Mutex<HashMap<String, Arc<AtomicBool>>>>;

pub fn jobs(args: &args::Jobs, listener: &'static dyn Listener, screen: &MultiProgress) -> Exit {
    let folders = match folders(args, None) {
        Ok(folders) => folders,
        Err(error) => return refuse(listener, Kind::Arguments, &error),
    };
    let mut surroundings = match Surroundings::find(folders, &args.places) {
        Ok(surroundings) => surroundings,
        Err(problem) => return refuse(listener, Kind::Arguments, &problem.message),
    };
    if let Some(libraries) = Arc::get_mut(&mut surroundings.libraries)
        && let Err(error) = handed::add_to(&mut libraries.catalogue)
    {
        return refuse(listener, Kind::Arguments, &error.to_string());
    }
    let setup = match setup(screen, args.memory_limit.map(Budget::bytes), args.places.computing) {
        Ok(setup) => setup,
        Err(error) => {
            let sentence = format!("the program's own file cannot be found: {error}");
            return refuse(listener, Kind::Arguments, &sentence);
        }
    };
    let mut supervisor = Supervisor::new(setup);
    let told = Lines(None);
    for failed in &surroundings.libraries.failed {
        told.event(&Event::log(Level::Warning, failed.reason.as_str()));
    }
    print(&json!({"event": "ready"}));
    let (sender, lines) = channel();
    let flags = Flags::default();
    let reader = flags.clone();
    let started =
        std::thread::Builder::new().name("jobs".into()).spawn(move || read(&sender, &reader));
    if let Err(error) = started {
        return refuse(listener, Kind::Arguments, &format!("no thread can be started: {error}"));
    }
    for (asked, cancel) in lines {
        let told = Lines(Some(asked.id.clone()));
        let exit = run(&asked, &surroundings, &mut supervisor, args, &told, &cancel);
        flags.lock().unwrap_or_else(PoisonError::into_inner).remove(&asked.id);
        print(&json!({"event": "job_done", "job": asked.id, "code": exit.code()}));
    }
    Exit::Done
}

/// Where models and pictures are, for workflows of a folder.
fn folders(args: &args::Jobs, workflow: Option<&Path>) -> Result<Folders, String> {
    Folders::find(Given {
        models: &args.places.models,
        extra_model_paths: &args.places.extra_model_paths,
        input: args.places.input.as_deref(),
        output: args.places.out.as_deref(),
        workflow,
    })
    .map_err(|error| error.to_string())
}

/// Sends jobs on; a job that is cancelled while it waits is cancelled when its turn comes. The end of standard input
/// cancels all there is.
fn read(jobs: &Sender<(Box<Asked>, Arc<AtomicBool>)>, flags: &Flags) {
    for line in std::io::stdin().lock().split(b'\n').map_while(Result::ok) {
        match serde_json::from_slice(&line) {
            Ok(Line::Cancel { cancel }) => {
                let flags = flags.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(flag) = flags.get(&cancel) {
                    flag.store(true, Ordering::Relaxed);
                }
            }
            Ok(Line::Job(asked)) => {
                let flag = Arc::new(AtomicBool::new(false));
                flags
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(asked.id.clone(), flag.clone());
                if jobs.send((asked, flag)).is_err() {
                    return;
                }
            }
            Err(error) => {
                let message = format!("this line is neither a job nor a cancel: {error}");
                Lines(None).event(&Event::refused(Kind::Arguments, message));
            }
        }
    }
    for flag in flags.lock().unwrap_or_else(PoisonError::into_inner).values() {
        flag.store(true, Ordering::Relaxed);
    }
}

fn run(
    asked: &Asked,
    surroundings: &Surroundings,
    supervisor: &mut Supervisor,
    args: &args::Jobs,
    told: &Lines,
    cancel: &AtomicBool,
) -> Exit {
    let start = Instant::now();
    let planned = planned(asked, surroundings, args, &mut |plan, catalogue| {
        supervisor.ask(plan, catalogue, true, None, cancel)
    });
    let (job, plan, graph, given) = match planned {
        Ok(planned) => planned,
        Err(problems) => {
            tell(told, &problems);
            return Exit::Refused;
        }
    };
    let mut told_before = Vec::new();
    tell_left_out(told, &plan, &mut told_before);
    let left_out = plan.left_out().len();
    let nodes = plan.steps().iter().map(|step| Cow::Borrowed(&step.name)).collect();
    told.event(&Event::Plan { nodes, seed: asked.seed, values: Vec::new() });
    for warning in plan.warnings() {
        told.event(&Event::Warning(Cow::Borrowed(warning)));
    }
    // Two jobs that are the same are two pictures: an output that was made is made again.
    let forget: Vec<_> = plan.outputs().map(|at| plan.steps()[at].key).collect();
    let task = Task {
        plan: &plan,
        catalogue: &job.libraries.catalogue,
        properties: &job.properties(&graph),
        keep: Keep::Everything,
        forget: &forget,
        budget: Some(args.memory_budget.bytes()),
    };
    supervisor.lend(Memory { given, out: asked.memory.clone() });
    let outcome = supervisor.run(&task, told, cancel);
    let seconds = start.elapsed().as_secs_f64();
    if outcome.interrupted {
        told.event(&Event::Interrupted { seconds });
        return Exit::Interrupted;
    }
    let (executed, cached, failed) = (outcome.executed, outcome.cached, outcome.failures.len());
    told.event(&Event::Done { seconds, executed, cached, failed, left_out });
    if failed > 0 || left_out > 0 { Exit::Failed } else { Exit::Done }
}

type Planned = (Job, crate::plan::Plan, crate::graph::Graph, Vec<GivenPicture>);

fn planned(
    asked: &Asked,
    surroundings: &Surroundings,
    args: &args::Jobs,
    ask: &mut Ask,
) -> Result<Planned, crate::plan::Refusal> {
    let refusal =
        |problem: Problem| crate::plan::Refusal { problems: vec![problem], warnings: Vec::new() };
    let name = "the job's workflow";
    let file = WorkflowFile::from_bytes(asked.workflow.to_string().as_bytes(), name)
        .map_err(|error| refusal(Problem::new(Kind::Workflow, error.to_string())))?;
    let mut with = surroundings.clone();
    if asked.folder.is_some() {
        with.folders = folders(args, asked.folder.as_deref())
            .map_err(|error| refusal(Problem::new(Kind::Arguments, error)))?;
    }
    if let Some(out) = &asked.out {
        with.folders.output = std::path::absolute(out).unwrap_or_else(|_| out.clone());
    }
    let mut job = Job::of(file, name, with).map_err(refusal)?;
    for change in &asked.set {
        set(&mut job.graph, &job.libraries.catalogue, change)
            .map_err(|error| refusal(Problem::new(Kind::Arguments, error.to_string())))?;
    }
    if let Some(seed) = asked.seed {
        crate::changes::set_seed(&mut job.graph, &job.libraries.catalogue, seed)
            .map_err(|error| refusal(Problem::new(Kind::Arguments, error.to_string())))?;
    }
    let given =
        handed::give(&mut job.graph, &job.libraries.catalogue, &asked.inputs).map_err(refusal)?;
    let (plan, graph) = job.plan_asking(asked.seed, ask)?;
    Ok((job, plan, graph, given))
}

/// Events, each with its job.
struct Lines(Option<String>);

impl Listener for Lines {
    fn event(&self, event: &Event) {
        let Ok(mut line) = serde_json::to_value(event) else { return };
        line["job"] = json!(self.0);
        print(&line);
    }

    fn handed(&self, node: &str, handed: &Handed) {
        let Handed { input, offset, shape } = handed;
        print(&json!({"event": "tensor", "node": node, "input": input, "offset": offset,
            "shape": shape, "job": self.0}));
    }
}

/// Where nobody reads, nobody asks either: standard input is about to end too.
fn print(line: &Json) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
