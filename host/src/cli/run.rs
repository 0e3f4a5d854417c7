//! `kosmograph run` and `kosmograph check`.

use super::{Exit, refuse};
use crate::args;
use crate::changes::{Seeds, set, set_seed};
use crate::editor::{Converted, Now, Texts, convert};
use crate::events::{Event, Listener};
use crate::execute::{Budget, Executor, Keep, Properties, Setting};
use crate::folders::{Folders, Given, Identify};
use crate::graph::{Graph, is_editor_format, parse_object};
use crate::libraries::Libraries;
use crate::plan::{Plan, Refusal};
use crate::problem::Problem;
use crate::workflow_file::WorkflowFile;
use serde_json::json;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

/// Everything that is read before a plan is made.
struct Prepared {
    graph: Graph,
    /// What the seed and the day complete, where the editor's format was converted.
    texts: Texts,
    /// What could not be converted; there need not be anything.
    wrong: Refusal,
    now: Now,
    /// The editor's own graph, where the file carried one.
    editor: Option<String>,
    folders: Folders,
    libraries: Libraries,
    device: String,
    seeds: Option<Seeds>,
}

/// A kind for the JSON events, and a sentence.
type Wrong = (&'static str, String);

fn prepare(workflow: &args::Workflow) -> Result<Prepared, Wrong> {
    fn as_kind<E: ToString>(kind: &'static str) -> impl Fn(E) -> Wrong {
        move |error| (kind, error.to_string())
    }
    let file = WorkflowFile::read(&workflow.path).map_err(as_kind("workflow"))?;
    let name = name(workflow);
    let in_file = |error| ("workflow", format!("{name}: {error}"));
    let object = parse_object(&file.prompt).map_err(in_file)?;
    let given = Given {
        models: &workflow.models,
        extra_model_paths: &workflow.extra_model_paths,
        input: workflow.input.as_deref(),
        output: workflow.out.as_deref(),
        workflow: file.folder.as_deref(),
    };
    let folders = Folders::find(given).map_err(as_kind("arguments"))?;
    let libraries = Libraries::find(&workflow.plugins).map_err(as_kind("arguments"))?;
    let catalogue = &libraries.catalogue;
    if catalogue.classes().is_empty() {
        let searched: Vec<String> =
            libraries.searched.iter().map(|path| path.display().to_string()).collect();
        let failed: String =
            libraries.failed.iter().map(|failed| format!("\n{}", failed.reason)).collect();
        let sentence = format!(
            "no node library was found in {}; say where they are with --plugins DIR{failed}",
            searched.join(", ")
        );
        return Err(("arguments", sentence));
    }
    let mut editor = file.editor;
    let converted = match is_editor_format(&object) {
        true => {
            editor = Some(file.prompt);
            convert(&object, catalogue)
        }
        false => Graph::from_object(object).map_err(in_file)?.into(),
    };
    let Converted { mut graph, texts, problems, warnings } = converted;
    for change in &workflow.set {
        set(&mut graph, catalogue, change).map_err(as_kind("arguments"))?;
    }
    if let Some(seeds) = workflow.seed {
        set_seed(&mut graph, catalogue, seeds.first()).map_err(as_kind("arguments"))?;
    }
    let device = workflow.device.0.clone();
    let (seeds, now) = (workflow.seed, Now::from(SystemTime::now()));
    let wrong = Refusal { problems, warnings };
    Ok(Prepared { graph, texts, wrong, now, editor, folders, libraries, device, seeds })
}

impl Prepared {
    /// The plan for one seed, and the graph it is of.
    fn plan(&self, seed: Option<u64>) -> Result<(Plan, Graph), Refusal> {
        let mut graph = self.graph.clone();
        let catalogue = &self.libraries.catalogue;
        if let Some(seed) = seed {
            // It found a seed to set when the first one was.
            let _ = set_seed(&mut graph, catalogue, seed);
        }
        let mut warnings = self.wrong.warnings.clone();
        warnings.extend(self.texts.apply(&mut graph, catalogue, seed, &self.now));
        let planned = Plan::new(&graph, catalogue, &self.folders, &self.device);
        let mut problems = self.wrong.problems.clone();
        match planned {
            Ok(plan) if problems.is_empty() => return Ok((plan.warned(warnings), graph)),
            Ok(plan) => warnings.extend_from_slice(plan.warnings()),
            Err(mut refusal) => {
                problems.append(&mut refusal.problems);
                warnings.append(&mut refusal.warnings);
            }
        }
        Err(Refusal { problems, warnings })
    }

    /// The plan of the first seed, if the last one is valid, too.
    fn first_plan(&self) -> Result<(Plan, Graph), Refusal> {
        let first = self.plan(self.seeds.map(Seeds::first))?;
        if let Some(seeds) = self.seeds.filter(|seeds| seeds.last() != seeds.first()) {
            self.plan(Some(seeds.last()))?;
        }
        Ok(first)
    }

    /// What is odd about the libraries: told, for it may explain a class that is not there.
    fn tell_libraries(&self, listener: &dyn Listener) {
        let failed = self.libraries.failed.iter().map(|failed| failed.reason.as_str());
        let warnings = self.libraries.catalogue.warnings().iter().map(String::as_str);
        for message in failed.chain(warnings) {
            listener.event(&Event::Log { level: "warning", node: None, message });
        }
    }
}

fn tell(listener: &dyn Listener, refusal: &Refusal) {
    for warning in &refusal.warnings {
        listener.event(&Event::Warning(warning));
    }
    for problem in &refusal.problems {
        listener.event(&Event::Problem(problem));
    }
}

pub fn run(args: &args::Run, listener: &dyn Listener) -> Exit {
    let mut prepared = match prepare(&args.workflow) {
        Ok(prepared) => prepared,
        Err((kind, sentence)) => return refuse(listener, kind, &sentence),
    };
    if args.verify_files {
        prepared.folders.identify = Identify::Contents;
    }
    prepared.tell_libraries(listener);
    let mut planned = match prepared.first_plan() {
        Ok(planned) => Some(planned),
        Err(refusal) => {
            tell(listener, &refusal);
            return Exit::Refused;
        }
    };
    let cancel = cancelled_by_ctrl_c();
    let start = Instant::now();
    let mut properties = Properties {
        device: prepared.device.clone(),
        output_directory: prepared.folders.output.clone(),
        temp_directory: prepared.folders.temp.clone(),
        prompt: String::new(),
        workflow: prepared.editor.clone(),
    };
    let budget = args.memory_budget.map(Budget::bytes);
    let mut executor = Executor::new(&prepared.libraries.loaded).with_budget(budget);
    let mut seeds = prepared.seeds.into_iter().flat_map(Seeds::iter);
    let mut seed = seeds.next();
    let (mut executed, mut cached, mut failed) = (0, 0, 0);
    let mut warned: Vec<Problem> = Vec::new();
    while let Some((plan, graph)) = planned.take() {
        let nodes = plan.steps().iter().map(|step| &step.name).collect();
        listener.event(&Event::Plan { nodes, seed: prepared.seeds.and(seed) });
        for warning in plan.warnings().iter().filter(|warning| !warned.contains(warning)) {
            listener.event(&Event::Warning(warning));
        }
        warned = plan.warnings().to_vec();
        let next_seed = seeds.next();
        // A file may be gone by now, although it was there when the first plan was made.
        let next = next_seed.map(|seed| prepared.plan(Some(seed)));
        let keep = match &next {
            Some(Ok((next, _))) => Keep::For(next),
            _ => Keep::Nothing,
        };
        properties.prompt = graph.to_json();
        let setting = Setting { properties: &properties, listener, cancel: &cancel, keep };
        let outcome = executor.run(&plan, setting);
        executed += outcome.executed;
        cached += outcome.cached;
        failed += outcome.failures.len();
        if outcome.interrupted {
            listener.event(&Event::Interrupted { seconds: start.elapsed().as_secs_f64() });
            return Exit::Interrupted;
        }
        seed = next_seed;
        planned = match next {
            Some(Err(refusal)) => {
                tell(listener, &refusal);
                return Exit::Refused;
            }
            Some(Ok(next)) => Some(next),
            None => None,
        };
    }
    let seconds = start.elapsed().as_secs_f64();
    listener.event(&Event::Done { seconds, executed, cached, failed });
    if failed > 0 { Exit::Failed } else { Exit::Done }
}

/// A flag that the first Ctrl-C, or a request to terminate, sets; the second one ends the program.
pub(super) fn cancelled_by_ctrl_c() -> Arc<AtomicBool> {
    let cancel = Arc::new(AtomicBool::new(false));
    let flag = cancel.clone();
    let handler = move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(Exit::Interrupted.code().into());
        }
        let message = b"\nstopping at the next step; press Ctrl-C again to stop at once\n";
        let _ = std::io::stderr().write_all(message);
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        // Then Ctrl-C ends the program as it ends any other.
        tracing::warn!("Ctrl-C cannot be caught: {error}");
    }
    cancel
}

pub fn check(workflow: &args::Workflow, listener: &dyn Listener) -> Exit {
    let prepared = match prepare(workflow) {
        Ok(prepared) => prepared,
        Err((kind, message)) if workflow.json => {
            print_json(&json!({"valid": false, "warnings": [], "libraries_failed": [],
                "problems": [{"kind": kind, "message": message}]}));
            return Exit::Refused;
        }
        Err((kind, sentence)) => return refuse(listener, kind, &sentence),
    };
    let (problems, warnings) = match prepared.first_plan() {
        Ok((plan, _)) => (Vec::new(), plan.warnings().to_vec()),
        Err(Refusal { problems, warnings }) => (problems, warnings),
    };
    let exit = if problems.is_empty() { Exit::Done } else { Exit::Refused };
    if workflow.json {
        let failed = &prepared.libraries.failed;
        print_json(&json!({"valid": problems.is_empty(), "problems": problems,
            "warnings": warnings, "libraries_failed": failed}));
        return exit;
    }
    prepared.tell_libraries(listener);
    tell(listener, &Refusal { problems, warnings });
    if exit == Exit::Done {
        let name = name(workflow);
        let nodes = prepared.graph.nodes().len();
        let _ = writeln!(std::io::stdout(), "{name}: {nodes} nodes, nothing is wrong");
    }
    exit
}

/// What a sentence calls the workflow.
fn name(workflow: &args::Workflow) -> String {
    match workflow.path.to_str() {
        Some("-") => "standard input".to_owned(),
        _ => workflow.path.display().to_string(),
    }
}

fn print_json(json: &serde_json::Value) {
    // If the reader is gone there is nobody left to tell.
    let _ = writeln!(std::io::stdout(), "{json}");
}
