//! Workflow file → [`Job`] → [`Plan`]: what `run`, `check` and whoever else is given a workflow share.
//!
//! Everything a plan needs is read here and nothing is run: the file, the folders, what the libraries
//! say of themselves. No library is loaded.

use crate::args;
use crate::ask::{Answers, Ask, Changes, nobody};
use crate::catalogue::Catalogue;
use crate::changes::{Place, Seeds, no_contradiction, set, set_seed};
use crate::editor::{Converted, Now, Texts, convert, is_left_out};
use crate::events::{Event, Level, Listener};
use crate::execute::{Later, Properties};
use crate::folders::{Folders, Given};
use crate::graph::{self, Graph, Opened, is_editor_format};
use crate::libraries::{Asked, Libraries};
use crate::plan::{Plan, Refusal};
use crate::problem::{Kind, Problem};
use crate::python::Packs;
use crate::replace::replace;
use crate::sweep::{Combination, Sweep};
use crate::workflow_file::WorkflowFile;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::SystemTime;

/// How many muted outputs a sentence names.
const MOST_NAMED: usize = 5;

/// What workflows are run with, whichever they are.
#[derive(Clone, Debug)]
pub struct Surroundings {
    pub folders: Folders,
    pub libraries: Arc<Libraries>,
    /// "cpu" or "cuda:0".
    pub device: String,
}

impl Surroundings {
    /// Finds the libraries and packs in the folders that `places` names, and where they are looked for anyway.
    ///
    /// # Errors
    /// A problem of kind [`Kind::Arguments`]: a folder is not there, or there is no library.
    pub fn find(folders: Folders, places: &args::Places) -> Result<Self, Problem> {
        Self::asked(folders, places, Asked::Freely)
    }

    /// As [`Self::find`]; a library that was not asked before is asked as `asked` says.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub fn asked(folders: Folders, places: &args::Places, asked: Asked) -> Result<Self, Problem> {
        let arguments = |sentence: String| Problem::new(Kind::Arguments, sentence);
        let mut libraries = Libraries::asked(&places.plugins, asked)
            .map_err(|error| arguments(error.to_string()))?;
        let packs = Packs::find(&places.python.python_nodes, &places.python.python, &folders)
            .map_err(|error| arguments(error.to_string()))?;
        libraries.add_packs(&packs, asked);
        if libraries.catalogue.classes().is_empty() {
            let searched: Vec<String> =
                libraries.searched.iter().map(|path| path.display().to_string()).collect();
            let failed: String =
                libraries.failed.iter().map(|failed| format!("\n{}", failed.reason)).collect();
            return Err(arguments(format!(
                "no node library was found in {}; say where they are with --plugins DIR{failed}",
                searched.join(", ")
            )));
        }
        places.computing.check(&places.device).map_err(|said| arguments(said.to_owned()))?;
        Ok(Self { folders, libraries: Arc::new(libraries), device: places.device.0.clone() })
    }
}

/// Everything that is read before a plan is made.
pub struct Job {
    pub graph: Graph,
    /// What the seed and the day complete, where the editor's format was converted.
    texts: Texts,
    /// What could not be converted; there need not be anything.
    wrong: Refusal,
    now: Now,
    /// The editor's own graph, where the file carried one.
    pub editor: Option<String>,
    /// Whether the file itself was in the editor's format.
    pub is_converted: bool,
    pub folders: Folders,
    pub libraries: Arc<Libraries>,
    device: String,
    /// Whether a problem with one output is one with all.
    strict: bool,
    pub seeds: Option<Seeds>,
    /// No runs where nothing is swept.
    pub sweep: Sweep,
}

impl Job {
    /// Reads the workflow and what it is run with.
    ///
    /// # Errors
    /// A problem of kind [`Kind::Workflow`] or [`Kind::Arguments`]: the file or the command line as a
    /// whole is wrong. What is wrong with single nodes, [`Self::plan`] says.
    pub fn read(workflow: &args::Workflow) -> Result<Self, Problem> {
        let arguments = |sentence: String| Problem::new(Kind::Arguments, sentence);
        let file = WorkflowFile::read(&workflow.path)
            .map_err(|error| Problem::new(Kind::Workflow, error.to_string()))?;
        let name = name(workflow);
        // What is no workflow is told before the machine is looked through.
        let opened = opened(&file, &name)?;
        let given = Given {
            models: &workflow.places.models,
            extra_model_paths: &workflow.places.extra_model_paths,
            input: workflow.places.input.as_deref(),
            output: workflow.places.out.as_deref(),
            workflow: file.folder.as_deref(),
        };
        let folders = Folders::find(given).map_err(|error| arguments(error.to_string()))?;
        let with = Surroundings::find(folders, &workflow.places)?;
        if opened.has_no_nodes() {
            let sentence = format!("{name}: the workflow has no nodes");
            return Err(Problem::new(Kind::Workflow, sentence));
        }
        let mut this = Self::opened(file, opened, &name, with)?;
        let catalogue = &this.libraries.catalogue;
        let mut given: Vec<(Place, String)> = Vec::new();
        for change in &workflow.set {
            let place = set(&mut this.graph, catalogue, change)
                .map_err(|error| arguments(error.to_string()))?;
            given.push((place, format!("--set {change}")));
        }
        this.sweep = Sweep::read(&this.graph, catalogue, &workflow.sweep, workflow.seed)
            .map_err(|error| arguments(error.to_string()))?;
        let axes = this.sweep.axes.iter();
        let swept: Vec<_> = axes.map(|axis| (axis.place.clone(), axis.given.clone())).collect();
        no_contradiction(&this.graph, catalogue, &given, &swept, workflow.seed)
            .map_err(|error| arguments(error.to_string()))?;
        if let Some(seeds) = workflow.seed {
            // What it does not reach, each plan tells.
            set_seed(&mut this.graph, catalogue, seeds.first())
                .map_err(|error| arguments(error.to_string()))?;
        }
        (this.strict, this.seeds) = (workflow.strict, workflow.seed);
        Ok(this)
    }

    /// The job of a workflow that was read, whose sentences call it `name`.
    ///
    /// # Errors
    /// A problem of kind [`Kind::Workflow`]: the file as a whole is wrong.
    pub fn of(file: WorkflowFile, name: &str, with: Surroundings) -> Result<Self, Problem> {
        let opened = opened(&file, name)?;
        Self::opened(file, opened, name, with)
    }

    fn opened(
        file: WorkflowFile,
        opened: Opened,
        name: &str,
        with: Surroundings,
    ) -> Result<Self, Problem> {
        let Opened { object, editor: beside, inside } = opened;
        let Surroundings { folders, libraries, device } = with;
        let json = |object: &Map<String, Value>| Value::Object(object.clone()).to_string();
        let mut editor = file.editor.or_else(|| beside.as_ref().map(json));
        let is_converted = is_editor_format(&object);
        let converted = match is_converted {
            true => {
                editor = Some(if inside { json(&object) } else { file.prompt });
                convert(&object, &libraries.catalogue)
            }
            false => Graph::from_object(object)
                .map_err(|error| Problem::new(Kind::Workflow, format!("{name}: {error}")))?
                .into(),
        };
        let Converted { mut graph, texts, problems, warnings } = converted;
        let notes = file.notes.iter().map(|note| Problem::new(Kind::Unfit, note.as_str()));
        let replaced = replace(&mut graph, &libraries.catalogue);
        let warnings = notes.chain(warnings).chain(replaced).collect();
        let (now, wrong) = (Now::from(SystemTime::now()), Refusal { problems, warnings });
        let (strict, seeds, sweep) = (false, None, Sweep::default());
        Ok(Self {
            graph,
            texts,
            wrong,
            now,
            editor,
            is_converted,
            folders,
            libraries,
            device,
            strict,
            seeds,
            sweep,
        })
    }

    /// The plan for one seed, and the graph it is of.
    ///
    /// # Errors
    /// [`Refusal`], with every problem there is, where no output can be made; with `--strict` where one
    /// cannot.
    pub fn plan(&self, seed: Option<u64>) -> Result<(Plan, Graph), Refusal> {
        self.plan_asking(seed, &mut nobody)
    }

    /// As [`Self::plan`], after packs in Python were asked.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn plan_asking(&self, seed: Option<u64>, ask: &mut Ask) -> Result<(Plan, Graph), Refusal> {
        self.planned(self.graph.clone(), seed, ask)
    }

    /// The plan of one run of the sweep, and the graph it is of.
    ///
    /// # Errors
    /// As [`Self::plan`]; each problem says which run it is in.
    pub fn plan_run(&self, run: &Combination, ask: &mut Ask) -> Result<(Plan, Graph), Refusal> {
        let mut graph = self.graph.clone();
        self.sweep.apply(run, &mut graph);
        self.planned(graph, run.seed, ask).map_err(|mut refusal| {
            let said = self.sweep.said(run);
            for problem in &mut refusal.problems {
                problem.message.push_str(&format!("; this is in the run with {said}"));
            }
            refusal
        })
    }

    /// All runs of the sweep, planned: what each of them will read of those before it.
    ///
    /// # Errors
    /// As [`Self::plan_run`], of the first run that cannot be planned.
    pub fn later(&self, ask: &mut Ask) -> Result<Later, Refusal> {
        let mut later = Later::default();
        for run in &self.sweep.runs {
            later.add(&self.plan_run(run, ask)?.0);
        }
        Ok(later)
    }

    fn planned(
        &self,
        mut graph: Graph,
        seed: Option<u64>,
        ask: &mut Ask,
    ) -> Result<(Plan, Graph), Refusal> {
        let catalogue = &self.libraries.catalogue;
        let mut warnings = self.wrong.warnings.clone();
        if let Some(seed) = seed {
            // It found a seed to set when the first one was.
            warnings.extend(set_seed(&mut graph, catalogue, seed).unwrap_or_default());
        }
        warnings.extend(self.texts.apply(&mut graph, catalogue, seed, &self.now));
        let known = self.wrong.problems.clone();
        let plan = |known, changes: &Changes| {
            Plan::with_known(&graph, catalogue, &self.folders, &self.device, known, changes)
        };
        let mut planned = plan(known.clone(), &Changes::new());
        if let Some(answers) = planned.as_ref().ok().and_then(|plan| ask(plan, catalogue)) {
            let Answers { problems, warnings: odd, changes } = answers;
            warnings.extend(odd);
            planned = plan([known, problems].concat(), &changes);
        }
        match planned.and_then(|plan| if self.strict { plan.whole() } else { Ok(plan) }) {
            Ok(plan) => Ok((plan.warned(warnings), graph)),
            Err(mut refusal) => {
                warnings.append(&mut refusal.warnings);
                self.name_muted(&mut refusal.problems);
                Err(Refusal { problems: refusal.problems, warnings })
            }
        }
    }

    /// Where there is no output because the editor's were muted or bypassed, that is what is told.
    fn name_muted(&self, problems: &mut [Problem]) {
        let mut without = problems.iter_mut().filter(|one| one.kind == Kind::PromptNoOutputs);
        let Some(problem) = without.next().filter(|_| self.is_converted) else { return };
        let editor = self.editor.as_deref().and_then(|text| serde_json::from_str(text).ok());
        let muted = editor.map(|editor| muted_outputs(&editor, &self.libraries.catalogue));
        if let Some(muted) = muted.filter(|muted| !muted.is_empty()) {
            problem.message = format!(
                "every output node of the workflow is muted or bypassed, so nothing would come of running \
                 it: {}; switch one on in the editor",
                muted.join(", ")
            );
        }
    }

    /// The plan of the first seed, if the last one is valid, too; of a sweep that of the first run, if all are valid.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn first_plan(&self, ask: &mut Ask) -> Result<(Plan, Graph), Refusal> {
        if let Some(first) = self.sweep.runs.first() {
            self.later(ask)?;
            return self.plan_run(first, ask);
        }
        let first = self.plan_asking(self.seeds.map(Seeds::first), ask)?;
        if let Some(seeds) = self.seeds.filter(|seeds| seeds.last() != seeds.first()) {
            self.plan_asking(Some(seeds.last()), ask)?;
        }
        Ok(first)
    }

    /// What nodes may ask for while `graph`, which is this job's for one seed, is run.
    pub fn properties(&self, graph: &Graph) -> Properties {
        Properties {
            device: self.device.clone(),
            output_directory: self.folders.output.clone(),
            temp_directory: self.folders.temp.clone(),
            prompt: graph.to_json(),
            workflow: self.editor.clone(),
            preview_files: self.folders.preview_files(),
        }
    }

    /// What is odd about the libraries: told, for it may explain a class that is not there.
    pub fn tell_libraries(&self, listener: &dyn Listener) {
        let failed = self.libraries.failed.iter().map(|failed| failed.reason.as_str());
        let warnings = self.libraries.catalogue.warnings().iter().map(String::as_str);
        for message in failed.chain(warnings) {
            listener.event(&Event::log(Level::Warning, message));
        }
    }
}

/// The graph and the definitions of subgraphs in it, those within others too.
fn graphs_in(graph: &Value) -> Vec<&Value> {
    let mut all = vec![graph];
    let mut next = 0;
    while let Some(graph) = all.get(next) {
        let inside = graph["definitions"]["subgraphs"].as_array().into_iter().flatten();
        all.extend(inside);
        next += 1;
    }
    all
}

/// The output nodes of the editor's graph that it does not run, those of its subgraphs too.
fn muted_outputs(editor: &Value, catalogue: &Catalogue) -> Vec<String> {
    let nodes = graphs_in(editor);
    let nodes = nodes.iter().flat_map(|graph| graph["nodes"].as_array().into_iter().flatten());
    let is_muted = |node: &&Value| is_left_out(node);
    let name = |node: &Value| {
        let class = node["type"].as_str()?;
        catalogue.get(class).filter(|class| class.descriptor.output_node)?;
        Some(format!("node {} ({class})", node["id"]))
    };
    nodes.filter(is_muted).filter_map(name).take(MOST_NAMED).collect()
}

fn opened(file: &WorkflowFile, name: &str) -> Result<Opened, Problem> {
    let in_file = |error| Problem::new(Kind::Workflow, format!("{name}: {error}"));
    graph::open(&file.prompt).map_err(in_file)
}

/// What a sentence calls the workflow.
pub fn name(workflow: &args::Workflow) -> String {
    match workflow.path.to_str() {
        Some("-") => "standard input".to_owned(),
        _ => workflow.path.display().to_string(),
    }
}
