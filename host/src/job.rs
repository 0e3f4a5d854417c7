//! Workflow file → [`Job`] → [`Plan`]: what `run`, `check` and whoever else is given a workflow share.
//!
//! Everything a plan needs is read here and nothing is run: the file, the folders, what the libraries
//! say of themselves. No library is loaded.

use crate::args;
use crate::changes::{Seeds, set, set_seed};
use crate::editor::{Converted, Now, Texts, convert};
use crate::events::{Event, Level, Listener};
use crate::execute::Properties;
use crate::folders::{Folders, Given};
use crate::graph::{self, Graph, Opened, is_editor_format};
use crate::libraries::Libraries;
use crate::plan::{Plan, Refusal};
use crate::problem::{Kind, Problem};
use crate::workflow_file::WorkflowFile;
use serde_json::{Map, Value};
use std::time::SystemTime;

/// Everything that is read before a plan is made.
pub struct Job {
    pub graph: Graph,
    /// What the seed and the day complete, where the editor's format was converted.
    texts: Texts,
    /// What could not be converted; there need not be anything.
    wrong: Refusal,
    now: Now,
    /// The editor's own graph, where the file carried one.
    editor: Option<String>,
    pub folders: Folders,
    pub libraries: Libraries,
    device: String,
    /// Whether a problem with one output is one with all.
    strict: bool,
    pub seeds: Option<Seeds>,
}

impl Job {
    /// Reads the workflow and what it is run with.
    ///
    /// # Errors
    /// A problem of kind [`Kind::Workflow`] or [`Kind::Arguments`]: the file or the command line as a
    /// whole is wrong. What is wrong with single nodes, [`Self::plan`] says.
    pub fn read(workflow: &args::Workflow) -> Result<Self, Problem> {
        fn as_kind<E: ToString>(kind: Kind) -> impl Fn(E) -> Problem {
            move |error| Problem::new(kind, error.to_string())
        }
        let file = WorkflowFile::read(&workflow.path).map_err(as_kind(Kind::Workflow))?;
        let name = name(workflow);
        let in_file = |error| Problem::new(Kind::Workflow, format!("{name}: {error}"));
        let Opened { object, editor: beside, inside } =
            graph::open(&file.prompt).map_err(in_file)?;
        let given = Given {
            models: &workflow.models,
            extra_model_paths: &workflow.extra_model_paths,
            input: workflow.input.as_deref(),
            output: workflow.out.as_deref(),
            workflow: file.folder.as_deref(),
        };
        let folders = Folders::find(given).map_err(as_kind(Kind::Arguments))?;
        let libraries = Libraries::find(&workflow.plugins).map_err(as_kind(Kind::Arguments))?;
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
            return Err(Problem::new(Kind::Arguments, sentence));
        }
        let json = |object: &Map<String, Value>| Value::Object(object.clone()).to_string();
        let mut editor = file.editor.or_else(|| beside.as_ref().map(json));
        let converted = match is_editor_format(&object) {
            true => {
                editor = Some(if inside { json(&object) } else { file.prompt });
                convert(&object, catalogue)
            }
            false => Graph::from_object(object).map_err(in_file)?.into(),
        };
        let Converted { mut graph, texts, problems, warnings } = converted;
        for change in &workflow.set {
            set(&mut graph, catalogue, change).map_err(as_kind(Kind::Arguments))?;
        }
        if let Some(seeds) = workflow.seed {
            set_seed(&mut graph, catalogue, seeds.first()).map_err(as_kind(Kind::Arguments))?;
        }
        let device = workflow.device.0.clone();
        let (seeds, now) = (workflow.seed, Now::from(SystemTime::now()));
        let wrong = Refusal { problems, warnings };
        Ok(Self {
            graph,
            texts,
            wrong,
            now,
            editor,
            folders,
            libraries,
            device,
            strict: workflow.strict,
            seeds,
        })
    }

    /// The plan for one seed, and the graph it is of.
    ///
    /// # Errors
    /// [`Refusal`], with every problem there is, where no output can be made; with `--strict` where one
    /// cannot.
    pub fn plan(&self, seed: Option<u64>) -> Result<(Plan, Graph), Refusal> {
        let mut graph = self.graph.clone();
        let catalogue = &self.libraries.catalogue;
        if let Some(seed) = seed {
            // It found a seed to set when the first one was.
            let _ = set_seed(&mut graph, catalogue, seed);
        }
        let mut warnings = self.wrong.warnings.clone();
        warnings.extend(self.texts.apply(&mut graph, catalogue, seed, &self.now));
        let known = self.wrong.problems.clone();
        let planned = Plan::with_known(&graph, catalogue, &self.folders, &self.device, known);
        match planned.and_then(|plan| if self.strict { plan.whole() } else { Ok(plan) }) {
            Ok(plan) => Ok((plan.warned(warnings), graph)),
            Err(mut refusal) => {
                warnings.append(&mut refusal.warnings);
                Err(Refusal { problems: refusal.problems, warnings })
            }
        }
    }

    /// The plan of the first seed, if the last one is valid, too.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn first_plan(&self) -> Result<(Plan, Graph), Refusal> {
        let first = self.plan(self.seeds.map(Seeds::first))?;
        if let Some(seeds) = self.seeds.filter(|seeds| seeds.last() != seeds.first()) {
            self.plan(Some(seeds.last()))?;
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

/// What a sentence calls the workflow.
pub fn name(workflow: &args::Workflow) -> String {
    match workflow.path.to_str() {
        Some("-") => "standard input".to_owned(),
        _ => workflow.path.display().to_string(),
    }
}
