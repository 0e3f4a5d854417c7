//! The command line, as it is typed.

mod computing;

use crate::changes::Seeds;
use crate::execute::Budget;
use clap::{Args, Subcommand};
pub use computing::{Computing, Device, OnGpu, Precision};
use std::path::PathBuf;

/// What stands behind the help.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    done
  2    the workflow or the arguments are wrong; nothing was run
  3    an output has a problem and was left out, or a node failed (what did not depend on it was
       still made), or a library does not conform
  130  interrupted: Ctrl-C ends the run at the next step, a second one at once

Where things are looked for:
  Node libraries   --plugins, then KOSMOGRAPH_PLUGINS, then beside the program (libkosmograph_*),
                   then ../lib/kosmograph from there. Of two with one class the first is used.
  Models           --models, then KOSMOGRAPH_MODELS, then ./models, then ../models from the
                   workflow's folder, then models in the folders above the program. NAME is looked
                   for in ROOT/checkpoints (or whatever kind it is), then in ROOT itself. Of
                   ComfyUI's own folder, models and input are taken.
  More models      --extra-model-paths, and extra_model_paths.yaml beside a ROOT that is called
                   models (but not beside the workflow's): a section's folders come before the
                   ROOTs if it says is_default, or else after them.
  Input pictures   --input, or else ./input, then input beside the workflow, then the workflow's
                   folder. A workflow cannot reach files outside of these; --set can.
  Output           --out, or else ./output. Previews are written to ./temp.

A workflow as ComfyUI's editor saves it:
  Of {a|b} in a prompt the seed chooses: --seed's, or else the workflow's first. What should become
  of a seed afterwards (fixed, increment, randomize) is left to --seed N..M: without it the saved
  seed is used. Muted and bypassed nodes, reroutes, primitives, notes and subgraphs are resolved as
  the editor does; what cannot be is told.

KOSMOGRAPH_LOG (or RUST_LOG) says how much the host logs: error, warn, info, debug.";

/// What the host does; `serve`, which stands above it, is the program's own.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a workflow and print the paths of what it made
    #[command(after_help = EXIT_CODES)]
    Run(Run),
    /// Say everything that is wrong with a workflow, without loading weights
    #[command(after_help = EXIT_CODES)]
    Check(Check),
    /// Write down what a picture depends on: the workflow, its files by BLAKE3, libraries, versions and the
    /// processor
    #[command(after_help = EXIT_CODES)]
    Lock(Lock),
    /// List the classes of nodes there are, or the inputs of one
    Nodes(Nodes),
    /// List the node libraries, and those that could not be loaded and why
    Plugins(Plugins),
    /// Test whether a node library keeps the rules of the boundary
    CheckPlugin(CheckPlugin),
    /// Make of a checkpoint what the loaders read: Kosmos-G's to a folder, a torch file to safetensors
    #[command(after_help = EXIT_CODES)]
    Convert(Convert),
    /// Train a LoRA, a U-Net or the vectors of a word from a folder of pictures (docs/train.md)
    #[command(after_help = EXIT_CODES)]
    Train(Train),
    /// Make prompts with pictures of captioned pictures, for Kosmos-G to learn from (docs/train.md)
    #[command(after_help = EXIT_CODES)]
    Data(Train),
    /// Measure drawn pictures against real ones: how alike they are, how well they fit their texts, how far apart
    /// (docs/evaluate.md)
    #[command(after_help = EXIT_CODES)]
    Evaluate(Evaluate),
    /// Run workflows from standard input, a job a line, and keep models loaded between them: for programs
    /// (docs/python.md)
    Jobs(Jobs),
    /// Run jobs from standard input, one after the other, and report on standard output: for programs
    /// that keep models loaded between jobs (docs/worker.md). The program adds its own arguments to it.
    #[command(skip)]
    Worker(Worker),
    /// Load a library and write down what it says of itself
    #[command(hide = true)]
    Describe(Describe),
}

impl Command {
    /// Whether this process was started by another of this program, to load a library.
    pub fn is_child(&self) -> bool {
        match self {
            Self::Worker(_) | Self::Describe(_) => true,
            Self::CheckPlugin(check) => check.here,
            _ => false,
        }
    }
}

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub workflow: Workflow,
    /// The most that models and kept results may take, 6G, 6.5GB or 75% of the memory there is:
    /// before each node what it does not use is let go, the least recently used first, and read or
    /// made again later
    #[arg(long, value_name = "SIZE")]
    pub memory_budget: Option<Budget>,
    /// While a sampler runs, write what each step has made so far into this folder, as NODE_STEP.png
    #[arg(long, value_name = "DIR")]
    pub previews: Option<PathBuf>,
    /// Put the pictures of a sweep beside each other, with their values, into this PNG file: those of one output, which
    /// the swept values reach
    #[arg(long, value_name = "FILE", requires = "sweep")]
    pub sheet: Option<PathBuf>,
    /// Run only if everything is as WORKFLOW.lock says, which kosmograph lock wrote: name what is otherwise
    #[arg(long)]
    pub locked: bool,
    /// The same with a lock that lies elsewhere
    #[arg(long, value_name = "FILE")]
    pub lock: Option<PathBuf>,
    /// Recognise files by what is in them, not by size and time of change: every model is read
    /// through, once more for each seed
    #[arg(long)]
    pub verify_files: bool,
    /// The most memory that the process which runs the nodes may take for itself, mapped model files
    /// not counted: a node that needs more fails [default: what there is, less a reserve]
    #[arg(long, value_name = "SIZE")]
    pub memory_limit: Option<Budget>,
    /// Load the libraries into this very process, which they may take with them: for debuggers
    #[arg(long, conflicts_with_all = ["memory_limit", "python_nodes", "precision", "gpu_weights"])]
    pub in_process: bool,
    /// Show only errors
    #[arg(long, conflicts_with = "json")]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct Lock {
    #[command(flatten)]
    pub workflow: Workflow,
    /// Where it is written [default: WORKFLOW.lock, or standard output for a workflow from standard input]
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,
}

/// See `cli/jobs.rs`.
#[derive(Debug, Args)]
pub struct Jobs {
    #[command(flatten)]
    pub places: Places,
    /// The most that models and kept results may take, 6G or 75% of the memory there is
    #[arg(long, value_name = "SIZE", default_value = "60%")]
    pub memory_budget: Budget,
    /// The most memory that the process which runs the nodes may take for itself
    #[arg(long, value_name = "SIZE")]
    pub memory_limit: Option<Budget>,
}

/// See [`crate::worker`].
#[derive(Debug, Args)]
pub struct Worker {
    /// The most private memory of the process, in bytes
    #[arg(long, value_name = "BYTES")]
    pub memory_limit: Option<u64>,
    /// The first line of standard input says what the process may touch
    #[arg(long)]
    pub confined: bool,
}

#[derive(Debug, Args)]
pub struct Describe {
    pub library: PathBuf,
    /// Read what libraries need and touch nothing else
    #[arg(long)]
    pub confined: bool,
    /// It is a pack of nodes in Python: this one, as JSON
    #[arg(long, value_name = "JSON")]
    pub python: Option<String>,
}

#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    pub workflow: Workflow,
}

/// A workflow and what it is run with.
#[derive(Debug, Args)]
pub struct Workflow {
    /// A JSON file, API format or the editor's own, a PNG that carries one or AUTOMATIC1111's parameters,
    /// or - for standard input
    #[arg(value_name = "WORKFLOW")]
    pub path: PathBuf,
    /// Give an input another value; NODE is an id, a title or a class, or one of several by its number,
    /// KSampler#2. A file's path may be any
    #[arg(long, value_name = "NODE.INPUT=VALUE")]
    pub set: Vec<String>,
    /// Run once for each value of an input: a,b,c or 1..9 or 0:1:0.25 or @FILE with one a line; a comma within
    /// a value is \,. Given several times, every combination is run
    #[arg(long, value_name = "NODE.INPUT=VALUES")]
    pub sweep: Vec<String>,
    /// Refuse the whole workflow when one of its outputs has a problem: others are left out otherwise
    #[arg(long)]
    pub strict: bool,
    /// Set every seed, and the number at the other end of a link to one; N..M runs once for each from N to M - 1,
    /// N..=M to M. A seed that a node computes stays, with a warning
    #[arg(long, value_name = "N|N..M")]
    pub seed: Option<Seeds>,
    #[command(flatten)]
    pub places: Places,
    /// Write what happens as JSON, one event a line
    #[arg(long)]
    pub json: bool,
}

/// Where things are, and what nodes compute on; the same for one workflow as for a server.
#[derive(Debug, Args)]
pub struct Places {
    /// Where results are written [default: ./output]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Where input pictures are [default: ./input]
    #[arg(long, value_name = "DIR")]
    pub input: Option<PathBuf>,
    /// A folder of models, or ComfyUI's own folder; may be given several times
    #[arg(long, value_name = "DIR")]
    pub models: Vec<PathBuf>,
    /// A file as ComfyUI's extra_model_paths.yaml; may be given several times
    #[arg(long, value_name = "FILE")]
    pub extra_model_paths: Vec<PathBuf>,
    /// A folder of node libraries, or one library; may be given several times
    #[arg(long, value_name = "DIR")]
    pub plugins: Vec<PathBuf>,
    #[command(flatten)]
    pub python: PythonNodes,
    /// What nodes compute on: cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: Device,
    #[command(flatten)]
    pub computing: Computing,
}

impl Places {
    /// The device, and how it computes where that is not f32.
    pub fn device_in_words(&self) -> String {
        match self.computing.precision {
            Some(rounded @ (Precision::Bf16 | Precision::Int8)) => {
                format!("{} with products in {}", self.device.0, rounded.name())
            }
            Some(Precision::F32) | None => self.device.0.clone(),
        }
    }
}

#[derive(Debug, Args)]
pub struct Nodes {
    /// One class
    pub class: Option<String>,
    /// As ComfyUI's object_info
    #[arg(long)]
    pub json: bool,
    /// A folder of node libraries, or one library; may be given several times
    #[arg(long, value_name = "DIR")]
    pub plugins: Vec<PathBuf>,
    /// A folder of models, or ComfyUI's own folder; may be given several times
    #[arg(long, value_name = "DIR")]
    pub models: Vec<PathBuf>,
    /// A file as ComfyUI's extra_model_paths.yaml; may be given several times
    #[arg(long, value_name = "FILE")]
    pub extra_model_paths: Vec<PathBuf>,
    /// Where input pictures are
    #[arg(long, value_name = "DIR")]
    pub input: Option<PathBuf>,
    #[command(flatten)]
    pub python: PythonNodes,
}

/// Nodes that are written in Python; see [`crate::python`].
#[derive(Clone, Debug, Default, Args)]
pub struct PythonNodes {
    /// A pack of nodes in Python, as ComfyUI loads it, or a folder of packs; may be given several times. Somebody's
    /// code is run, with all that you may do (docs/python.md)
    #[arg(long, value_name = "DIR")]
    pub python_nodes: Vec<PathBuf>,
    /// The Python that runs them
    #[arg(long, value_name = "PATH", default_value = "python3")]
    pub python: PathBuf,
}

#[derive(Debug, Args)]
pub struct Plugins {
    #[arg(long)]
    pub json: bool,
    /// A folder of node libraries, or one library; may be given several times
    #[arg(long, value_name = "DIR")]
    pub plugins: Vec<PathBuf>,
    #[command(flatten)]
    pub python: PythonNodes,
}

#[derive(Debug, Args)]
pub struct Convert {
    /// The checkpoint: .pt, .pth, .ckpt or .bin; nothing in it is executed
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// The result, where nothing is yet: a folder for Kosmos-G, a file NAME.safetensors for others
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// The folder with Kosmos-G's sentencepiece.bpe.model and dict.txt [default: beside IN, or data there]
    #[arg(long, value_name = "FOLDER")]
    pub tokenizer: Option<PathBuf>,
    /// A folder of node libraries, or one library; may be given several times
    #[arg(long, value_name = "DIR")]
    pub plugins: Vec<PathBuf>,
    /// Show only errors
    #[arg(long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct Train {
    /// What to train and how, a JSON file; relative paths in it begin at its folder
    #[arg(value_name = "CONFIG")]
    pub config: PathBuf,
    /// Which of the budgets that a file of several stages has
    #[arg(long, value_name = "NAME")]
    pub budget: Option<String>,
    /// Report on standard output as JSON, an event each line
    #[arg(long)]
    pub json: bool,
    /// A folder of node libraries, or one library; may be given several times
    #[arg(long, value_name = "DIR")]
    pub plugins: Vec<PathBuf>,
    /// Show only errors
    #[arg(long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct Evaluate {
    /// The drawn pictures: a folder of them, or of a folder for each subject
    #[arg(value_name = "DRAWN")]
    pub drawn: PathBuf,
    /// The real ones, in the same layout
    #[arg(value_name = "REAL")]
    pub real: PathBuf,
    /// What to measure with, and the network's file or folder: dino=FILE, clip=FOLDER, fid=FILE; several times
    #[arg(long, value_name = "NAME=PATH", required = true, value_parser = named_path)]
    pub measure: Vec<(String, PathBuf)>,
    /// A JSON file with the real picture of each subject that it was drawn from, {"SUBJECT": "FILE"} [default: the first by
    /// name]
    #[arg(long, value_name = "FILE")]
    pub inputs: Option<PathBuf>,
    /// Put the best and the worst pictures beside each other into this PNG file
    #[arg(long, value_name = "FILE")]
    pub sheet: Option<PathBuf>,
    /// Report on standard output as JSON, an event each line; the last but one has everything
    #[arg(long)]
    pub json: bool,
    /// A folder of node libraries, or one library; may be given several times
    #[arg(long, value_name = "DIR")]
    pub plugins: Vec<PathBuf>,
    /// Show only errors
    #[arg(long)]
    pub quiet: bool,
}

/// NAME=PATH.
fn named_path(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), path.into()))
        }
        _ => Err("NAME=PATH would be right, as dino=models/dino.pth".to_owned()),
    }
}

#[derive(Debug, Args)]
pub struct CheckPlugin {
    /// The library's file
    pub library: PathBuf,
    /// Check in this very process, which the library may crash, and report to the one that watches
    #[arg(long, hide = true)]
    pub here: bool,
}
