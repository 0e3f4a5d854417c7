//! `kosmograph worker`: a process that loads libraries and runs what it is told.
//!
//! Commands come on standard input and reports go to standard output, a JSON object a line
//! ([`crate::wire`]). Both are taken out of the libraries' reach first: what a library prints goes to
//! standard error, and one that closes descriptors closes its own. Results and models stay between
//! commands. When standard input ends, the process ends, whatever it is doing: who gave the commands is
//! gone.

use crate::args;
use crate::ask::{Answer, Question};
use crate::catalogue::digest;
use crate::checks;
use crate::events::{Event, Level, Listener};
use crate::execute::{Executor, Keep, Runner, Setting};
use crate::handed::{self, Memory};
use crate::plan::{KeyMap, Plan};
use crate::plugin::{Call, Library, LogLevel, NodeFailure, input, used_late};
use crate::preview::Preview;
use crate::problem::{Kind, NodeName, Problem};
use crate::process::{self, Changes, State};
use crate::promise::Promise;
use crate::python::{self, Pack, PythonPack};
use crate::sandbox::Sandbox;
use crate::value::Value;
use crate::wire::{self, Command, Notice, Provider, Run, Work, WorkKind};
use nix::sys::signal::Signal;
use serde::Serialize;
use serde_json::Value as Json;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The exit code of a worker that cannot report any more: a library closed its pipe, or broke it.
pub const PIPE_LOST: i32 = 96;

/// Runs commands until there are no more.
pub fn main(args: &args::Worker) -> ! {
    process::end_with_parent();
    // Ctrl-C goes to every process of a terminal; the parent hears it too, and says what to do.
    process::ignore_signals(&[Signal::SIGINT]);
    process::bound_memory(args.memory_limit);
    process::end_where_no_memory_is_left();
    let (input, output) = match (process::take_stdin(), process::take_stdout()) {
        (Ok(input), Ok(output)) => (input, output),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("error: a worker needs standard input, output and error: {error}");
            process::end_at_once(2)
        }
    };
    let mut input = BufReader::new(input);
    if args.confined {
        // Before there is another thread, which would not be confined, and before there is a library.
        confine(&mut input);
    }
    let (sender, commands) = channel();
    let reader = std::thread::Builder::new().name("commands".into()).spawn(move || {
        read_commands(input, &sender);
        process::end_at_once(0)
    });
    if reader.is_err() {
        // Its stack is memory, too. Who started this process has the sentence.
        process::end_at_once(process::NO_THREAD);
    }
    let wire = Wire::new(output);
    let loader = Loader::new(&wire);
    let mut executor = Executor::new(&loader);
    for (command, cancel) in commands {
        let interrupted = match command {
            Command::Run(run) => run_plan(*run, &loader, &mut executor, &cancel),
            Command::Work(work) => run_work(&work, &loader, &cancel),
            Command::Check(check) => run_check(*check, &loader, &cancel),
            Command::Ask(questions) => run_ask(&questions, &loader, &cancel),
            Command::Cancel => continue,
        };
        wire.send(&Notice::Finished { interrupted });
    }
    process::end_at_once(0)
}

/// Reads what this process may touch, and touches nothing else from then on. It ends where it cannot be
/// confined as it was asked to be.
fn confine(input: &mut BufReader<File>) {
    let mut line = Vec::new();
    let read = input.read_until(b'\n', &mut line);
    let confined = match (read, serde_json::from_slice::<Sandbox>(&line)) {
        (Ok(_), Ok(sandbox)) => sandbox.enter().map_err(|error| error.to_string()),
        (Err(error), _) => Err(error.to_string()),
        (_, Err(error)) => Err(error.to_string()),
    };
    if let Err(reason) = confined {
        eprintln!("error: this process cannot be confined: {reason}");
        process::end_at_once(2)
    }
}

/// Sends each command on with its own flag, which the next [`Command::Cancel`] sets.
fn read_commands(input: BufReader<File>, commands: &Sender<(Command, Arc<AtomicBool>)>) {
    let mut cancel = Arc::new(AtomicBool::new(false));
    for line in input.split(b'\n').map_while(Result::ok) {
        match serde_json::from_slice(&line) {
            Ok(Command::Cancel) => cancel.store(true, Ordering::Relaxed),
            Ok(command) => {
                cancel = Arc::new(AtomicBool::new(false));
                if commands.send((command, cancel.clone())).is_err() {
                    return;
                }
            }
            Err(error) => eprintln!("error: this line is no command: {error}"),
        }
    }
}

fn run_plan(
    run: Run,
    loader: &Loader,
    executor: &mut Executor<&Loader>,
    cancel: &AtomicBool,
) -> bool {
    let Run { properties, libraries, plan, keep, forget, budget, previews, earlier, memory } = run;
    *loader.wire.memory.lock().unwrap_or_else(PoisonError::into_inner) = memory;
    let wire = loader.wire;
    wire.previews.store(previews, Ordering::Relaxed);
    let next = match &keep {
        wire::Keep::For(next) => Some(Plan::try_from(next.clone())),
        _ => None,
    };
    let plans = Plan::try_from(plan).and_then(|plan| Ok((plan, next.transpose()?)));
    let (plan, next) = match plans {
        Ok(plans) => plans,
        Err(error) => {
            wire.event(&Event::refused(Kind::Workflow, error.to_string()));
            return false;
        }
    };
    let wanted: KeyMap<Vec<bool>> = match &keep {
        wire::Keep::Results(wanted) => wanted.iter().cloned().collect(),
        _ => KeyMap::default(),
    };
    let keep = match (&keep, &next) {
        (_, Some(next)) => Keep::For(next),
        (wire::Keep::Results(_), _) => Keep::Results(&wanted),
        (wire::Keep::Everything, _) => Keep::Everything,
        _ => Keep::Nothing,
    };
    *loader.providers.borrow_mut() = libraries;
    let setting =
        Setting { properties: &properties, listener: wire, cancel, keep, earlier: &earlier };
    executor.set_budget(budget);
    executor.forget(&forget);
    // What a process of Python held went with it.
    executor.forget_where(python::is_lost);
    executor.run(&plan, setting).interrupted
}

/// The way to the process that gives the commands.
struct Wire {
    // Lines of several threads must not mix.
    pipe: Mutex<File>,
    flood: Mutex<Flood>,
    /// Whether the present command's previews are wanted.
    previews: AtomicBool,
    /// What the present command has in memory.
    memory: Mutex<Memory>,
    /// A library may fork, and what it forked has nothing to say here.
    process: u32,
}

/// What the node at work has said so far.
struct Flood {
    reports: u32,
    lines: u32,
    last: Instant,
}

/// How many reports of progress of one node are all passed on; of more, some are.
const REPORTS: u32 = 4096;

/// How many lines of one node are passed on.
const LINES: u32 = 4096;

/// The least time between reports when there are very many.
const BETWEEN: Duration = Duration::from_millis(10);

impl Wire {
    fn new(pipe: File) -> Self {
        let flood = Mutex::new(Flood { reports: 0, lines: 0, last: Instant::now() });
        let previews = AtomicBool::new(false);
        let memory = Mutex::default();
        Self { pipe: Mutex::new(pipe), flood, previews, memory, process: std::process::id() }
    }

    fn send(&self, message: &impl Serialize) {
        if std::process::id() != self.process {
            process::end_at_once(PIPE_LOST);
        }
        let Ok(mut line) = serde_json::to_vec(message) else { return };
        line.push(b'\n');
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        if pipe.write_all(&line).is_err() {
            process::end_at_once(PIPE_LOST);
        }
    }

    /// Whether somebody wants to hear this, too: a node may say more than anybody can read. That lines are
    /// left out is said once.
    fn passes_on(&self, event: &Event) -> bool {
        let mut flood = self.flood.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::NodeStarted(_) => *flood = Flood { reports: 0, lines: 0, last: Instant::now() },
            Event::Progress { step, steps, .. } => {
                flood.reports = flood.reports.saturating_add(1);
                let is_soon = flood.reports > REPORTS && flood.last.elapsed() < BETWEEN;
                if is_soon && step != steps {
                    return false;
                }
                flood.last = Instant::now();
            }
            Event::Log { node, .. } => {
                flood.lines = flood.lines.saturating_add(1);
                if flood.lines == LINES + 1 {
                    let message = format!("it says more than {LINES} lines; the rest is left out");
                    let (level, node) = (Level::Warning, node.clone());
                    self.send(&Event::Log { level, node, message: message.into() });
                }
                return flood.lines <= LINES;
            }
            _ => (),
        }
        true
    }
}

impl Listener for Wire {
    fn event(&self, event: &Event) {
        if self.passes_on(event) {
            self.send(event);
        }
    }

    fn promise(&self, promise: &Promise) {
        self.send(&Notice::Making { promise: promise.clone() });
    }

    fn wants_previews(&self) -> bool {
        self.previews.load(Ordering::Relaxed)
    }

    fn preview(&self, node: &str, preview: &Preview) {
        self.send(&Notice::Preview { node: node.to_owned(), preview: preview.clone() });
    }

    fn shown(&self, node: &str, input: &str, value: &Value) {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        match memory.hand_over(input, value) {
            Ok(None) => (),
            Ok(Some(handed)) => self.send(&Notice::Handed { node: node.to_owned(), handed }),
            Err(reason) => {
                let message =
                    format!("the picture of node {node} cannot be handed over in memory: {reason}");
                self.send(&Event::log(Level::Warning, message));
            }
        }
    }
}

/// Loads a library when the first of its nodes runs, and looks after what each call does to the process.
struct Loader<'a> {
    wire: &'a Wire,
    /// Of the plan that runs.
    providers: RefCell<Vec<Provider>>,
    loaded: RefCell<HashMap<PathBuf, Loaded>>,
    /// Nodes in Python, each with its process.
    packs: RefCell<HashMap<PythonPack, Pack>>,
    /// The process as libraries must leave it.
    state: State,
}

/// A library, which is never unloaded, and the digest of its descriptor.
type Loaded = (&'static Library, [u8; 16]);

impl<'a> Loader<'a> {
    fn new(wire: &'a Wire) -> Self {
        let (providers, loaded, packs) =
            (RefCell::default(), RefCell::default(), RefCell::default());
        Self { wire, providers, loaded, packs, state: State::now() }
    }

    /// The library of `provider`, or a sentence about it.
    fn library(&self, provider: &Provider) -> Result<&'static Library, String> {
        let Provider { path, digest: planned, .. } = provider;
        let known = self.loaded.borrow().get(path).copied();
        let (library, found) = match known {
            Some(known) => known,
            None => {
                self.wire.send(&Notice::Loading { library: path.clone() });
                let library = Library::load(path).map_err(|error| error.to_string())?;
                let digest = digest(&library.descriptor);
                let loaded: Loaded = (Box::leak(Box::new(library)), digest);
                self.loaded.borrow_mut().insert(path.clone(), loaded);
                self.wire.send(&Notice::Loaded);
                loaded
            }
        };
        match found == *planned {
            true => Ok(library),
            false => Err(format!(
                "{}: this library is another one than when the workflow was planned",
                path.display()
            )),
        }
    }

    /// Has the pack of `provider` do something.
    fn pack<T>(
        &self,
        provider: &Provider,
        body: impl FnOnce(&mut Pack) -> Result<T, NodeFailure>,
    ) -> Result<T, NodeFailure> {
        let Some(told) = &provider.python else {
            let library = file_name(&provider.path);
            return Err(NodeFailure::failed(format!("{library} is no pack of nodes in Python")));
        };
        let mut packs = self.packs.borrow_mut();
        body(packs.entry(told.clone()).or_insert_with(|| Pack::new(told.clone())))
    }

    /// Calls into the library of `provider`, and sets right what that does to the process.
    fn call<T>(
        &self,
        provider: &Provider,
        call: &dyn Call,
        body: impl FnOnce(&Library) -> Result<T, NodeFailure>,
    ) -> Result<T, NodeFailure> {
        let result = match self.library(provider) {
            Ok(library) => body(library),
            Err(sentence) => Err(NodeFailure::failed(sentence)),
        };
        let Changes { mended, harmful, for_good } = self.state.restore();
        if !for_good.is_empty() {
            let by = for_good.join(" and ");
            self.wire.send(&Notice::Spoilt { by });
            process::end_at_once(PIPE_LOST);
        }
        let library = file_name(&provider.path);
        for what in mended {
            call.log(LogLevel::Warn, &format!("its library {library} {what}; it was set back"));
        }
        if used_late() {
            let what = "a library used what it was lent for a call after the call had ended";
            call.log(LogLevel::Warn, what);
        }
        if !harmful.is_empty() {
            let what = format!("it {}", harmful.join(" and "));
            return Err(NodeFailure::broken(what).by(&library));
        }
        result.map_err(|failure| failure.by(&library))
    }
}

impl Runner for &Loader<'_> {
    fn run(
        &self,
        library: usize,
        node: u32,
        call: &dyn Call,
        inputs: &[Value],
    ) -> Result<Vec<Value>, NodeFailure> {
        let provider = self.providers.borrow().get(library).cloned();
        let Some(provider) = provider else {
            let sentence = format!("the plan has no library number {library}");
            return Err(NodeFailure::failed(sentence));
        };
        if handed::is_library(&provider.path) {
            let memory = self.wire.memory.lock().unwrap_or_else(PoisonError::into_inner);
            return memory.run(node as usize, inputs);
        }
        if provider.python.is_some() {
            return self
                .pack(&provider, |pack| pack.run(provider.digest, node as usize, call, inputs));
        }
        self.call(&provider, call, |library| library.run(node as usize, call, inputs))
    }

    fn lazy(
        &self,
        library: usize,
        node: u32,
        call: &dyn Call,
        inputs: &[Value],
    ) -> Result<Vec<String>, NodeFailure> {
        match self.providers.borrow().get(library).cloned() {
            Some(provider) if provider.python.is_some() => {
                self.pack(&provider, |pack| pack.lazy(provider.digest, node as usize, call, inputs))
            }
            _ => Ok(Vec::new()),
        }
    }
}

/// A file's own name, as a sentence calls a library.
pub(crate) fn file_name(path: &Path) -> Cow<'_, str> {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy()
}

/// Lets the first library do it that knows what it is given. Returns whether it was interrupted.
fn run_work(work: &Work, loader: &Loader, cancel: &AtomicBool) -> bool {
    let (wire, kind) = (loader.wire, work.kind);
    let given =
        |name: &str| work.input.iter().find(|(other, _)| other == name).map(|(_, text)| text);
    let asked =
        Value::map(work.input.iter().map(|(name, text)| (name.as_str(), Value::string(text))));
    let name = &kind.name();
    let call = Beside { wire, name, cancel, passes_on: kind != WorkKind::Convert };
    let start = Instant::now();
    wire.event(&Event::NodeStarted(Cow::Borrowed(name)));
    let (mut able, mut declined) = (0, None);
    for provider in &work.libraries {
        let answer = loader.call(provider, &call, |library| {
            library.call_extension(kind.extension(), &call, &asked).transpose()
        });
        match answer {
            Ok(None) => (),
            Err(NodeFailure::Cancelled) => return true,
            Err(NodeFailure::Failed { sentence, .. }) => {
                wire.event(&Event::refused(kind.problem(), sentence));
                return false;
            }
            Ok(Some(answer)) => {
                able += 1;
                let Some(made) = answer.get("made").and_then(Value::as_str) else {
                    declined = answer
                        .get("declined")
                        .and_then(Value::as_str)
                        .map(str::to_owned)
                        .or(declined);
                    continue;
                };
                // The library's own account; what is no JSON says nothing.
                let made: Json = serde_json::from_str(made).unwrap_or_default();
                let output = made["output"].as_str().or(given("output").map(String::as_str));
                let (node, files) = (name.id.as_str().into(), output.map(str::to_owned));
                let files = files.into_iter().collect();
                wire.event(&Event::Output { node, output: Cow::Owned(made), files });
                let (node, seconds) = (name.id.as_str().into(), start.elapsed().as_secs_f64());
                wire.event(&Event::NodeDone { node, seconds });
                return false;
            }
        }
    }
    let does = kind.does();
    let message = match (able, given("input"), declined) {
        (_, _, Some(sentence)) => sentence,
        (1.., Some(input), _) => {
            format!("{input} is of no kind that is converted: a torch checkpoint is")
        }
        _ => {
            format!("no node library that {does} was found; say where they are with --plugins DIR")
        }
    };
    wire.event(&Event::refused(Kind::Arguments, message));
    false
}

/// Runs what reads no more than headers, and asks libraries about a plan; what comes of it travels as warnings.
fn run_check(check: wire::Check, loader: &Loader, cancel: &AtomicBool) -> bool {
    let wire = loader.wire;
    let Ok(plan) = Plan::try_from(check.plan) else { return false };
    *loader.providers.borrow_mut() = check.libraries.clone();
    let tried = checks::tried(&plan, |step, inputs| {
        let quiet = Quiet { cancel };
        loader.run(step.library, step.node, &quiet, inputs)
    });
    if cancel.load(Ordering::Relaxed) {
        return true;
    }
    for problem in tried {
        wire.event(&Event::Warning(Cow::Owned(problem)));
    }
    let asked = input([("plan", Value::string(checks::told(&plan).to_string()))]);
    let name = &NodeName { id: "check".into(), title: None, class: "check".into() };
    let call = Beside { wire, name, cancel, passes_on: false };
    for provider in check.asked.iter().filter_map(|&number| check.libraries.get(number)) {
        let answer = loader.call(provider, &call, |library| {
            library.call_extension("check/1", &call, &asked).transpose()
        });
        let problems = match &answer {
            Ok(Some(answer)) => {
                let answer = answer.get("problems").and_then(Value::as_str).unwrap_or_default();
                checks::heard(answer, &plan)
            }
            Ok(None) => Vec::new(),
            Err(NodeFailure::Cancelled) => return true,
            Err(NodeFailure::Failed { sentence, .. }) => {
                let library = file_name(&provider.path);
                vec![Problem::new(Kind::Unfit, format!("{library} could not check: {sentence}"))]
            }
        };
        for problem in problems {
            wire.event(&Event::Warning(Cow::Owned(problem)));
        }
    }
    false
}

/// Puts questions to packs in Python; a pack that fails at one is told so, and is asked the next.
fn run_ask(questions: &[Question], loader: &Loader, cancel: &AtomicBool) -> bool {
    let name = &NodeName { id: "ask".into(), title: None, class: "ask".into() };
    let call = Beside { wire: loader.wire, name, cancel, passes_on: false };
    for Question { pack, told } in questions {
        if cancel.load(Ordering::Relaxed) {
            return true;
        }
        let answer = loader.pack(pack, |running| running.ask(pack.digest, told, &call));
        let answer = match answer {
            Ok(answer) => answer,
            Err(NodeFailure::Cancelled) => return true,
            Err(NodeFailure::Failed { sentence, .. }) => {
                Answer { sentence: Some(sentence), fingerprint: None }
            }
        };
        loader.wire.send(&Notice::Answer { answer });
    }
    false
}

/// The host of a node that `check` runs: what it says on the way is told when it runs.
struct Quiet<'a> {
    cancel: &'a AtomicBool,
}

impl Call for Quiet<'_> {
    fn log(&self, _: LogLevel, _: &str) {}

    fn progress(&self, _: u64, _: u64) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// Headers are read on the CPU, wherever the numbers go later.
    fn property(&self, name: &str) -> Option<String> {
        (name == "device").then(|| "cpu".to_owned())
    }

    fn output(&self, _: Json) {}
}

/// The host of what a library does beside nodes.
struct Beside<'a> {
    wire: &'a Wire,
    name: &'a NodeName,
    cancel: &'a AtomicBool,
    /// Whether what the library says on the way is an event.
    passes_on: bool,
}

impl Call for Beside<'_> {
    fn log(&self, level: LogLevel, message: &str) {
        let event = Event::Log { level: level.into(), node: None, message: message.into() };
        self.wire.event(&event);
    }

    fn progress(&self, step: u64, steps: u64) -> bool {
        // 0 of 0 only asks whether to stop.
        if steps > 0 {
            self.wire.event(&Event::Progress { node: self.name.id.as_str().into(), step, steps });
        }
        self.cancel.load(Ordering::Relaxed)
    }

    fn property(&self, name: &str) -> Option<String> {
        (name == "device").then(|| "cpu".to_owned())
    }

    fn output(&self, made: Json) {
        if !self.passes_on {
            return;
        }
        let files = made["files"].as_array().into_iter().flatten();
        let files = files.filter_map(|file| file.as_str().map(str::to_owned)).collect();
        let (node, output) = (self.name.id.as_str().into(), Cow::Owned(made));
        self.wire.event(&Event::Output { node, output, files });
    }
}
