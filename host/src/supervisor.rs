//! Runs plans in a worker and outlives it: whoever loads a stranger's library is another process.
//!
//! A worker may crash, exit, hang or talk nonsense. The supervisor keeps the plan, so it knows which node
//! was at work, what was made and told already, and what can still be made; it says how the worker ended,
//! counts that as the node's failure, and has another worker do the rest.

mod child;
mod track;

pub use child::Stderr;
pub(crate) use child::pass_on;

use crate::args::Computing;
use crate::ask::{self, Answer, Answers, Memo, OfStep};
use crate::catalogue::Catalogue;
use crate::checks;
use crate::events::{Event, Listener};
use crate::execute::{Keep, Outcome, Properties};
use crate::handed::Memory;
use crate::plan::{Key, Plan};
use crate::problem::{Kind, Problem};
use crate::sandbox::Sandbox;
use crate::wire::{Check, Command, Notice, Provider, Report, Run, Work};
use child::{Child, Heard};
use std::borrow::Cow;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use track::Track;

/// How long a worker that was asked to stop may take before it is ended.
const GRACE: Duration = Duration::from_millis(1200);

/// How long libraries may look at a plan. They read headers.
const CHECKING: Duration = Duration::from_secs(10);

/// How long packs may take to answer: the first of them may have to import torch, from a slow disk.
const ASKING: Duration = Duration::from_secs(120);

/// How workers are started.
#[derive(Clone)]
pub struct Setup {
    /// This program.
    pub program: PathBuf,
    /// The most private memory a worker may have, in bytes.
    pub memory_limit: Option<u64>,
    /// Where what workers print goes.
    pub stderr: Stderr,
    /// How its libraries compute, as far as it was said.
    pub computing: Computing,
    /// What a worker may touch; `None` is whatever this process may.
    pub sandbox: Option<Sandbox>,
}

/// One run of one plan, as a worker is given it.
pub struct Task<'a> {
    pub plan: &'a Plan,
    /// What the plan was made with.
    pub catalogue: &'a Catalogue,
    pub properties: &'a Properties,
    pub keep: Keep<'a>,
    /// Results that are not to be used, though they may be kept: the files they stand for are gone.
    pub forget: &'a [Key],
    /// How many bytes objects may hold, where that is bounded.
    pub budget: Option<u64>,
}

/// What others may know of a supervisor's worker while it works.
#[derive(Debug, Default)]
pub struct Vitals {
    /// The process there is; 0 where there is none.
    process: AtomicU32,
    /// How many were started so far.
    started: AtomicU64,
}

impl Vitals {
    pub fn process(&self) -> Option<u32> {
        Some(self.process.load(Ordering::Relaxed)).filter(|&id| id != 0)
    }

    pub fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }
}

/// See the module. The worker stays from one run to the next, and with it what it keeps.
pub struct Supervisor {
    setup: Setup,
    worker: Option<Child>,
    vitals: Arc<Vitals>,
    memory: Memory,
}

/// How a command ended.
enum End {
    Finished {
        interrupted: bool,
    },
    /// The worker is no more, and nobody asked it to go.
    Lost(ExitStatus, String),
    /// It did not stop in time and was ended.
    Ended,
}

impl Supervisor {
    pub fn new(setup: Setup) -> Self {
        Self { setup, worker: None, vitals: Arc::default(), memory: Memory::default() }
    }

    /// Of the worker there is, for as long as this supervisor is there.
    pub fn vitals(&self) -> Arc<Vitals> {
        self.vitals.clone()
    }

    /// From now on runs have these pictures in memory.
    pub fn lend(&mut self, memory: Memory) {
        self.memory = memory;
    }

    /// Lets the worker go, with all that it keeps: the next command starts another.
    pub fn let_go(&mut self) {
        self.worker = None;
        self.vitals.process.store(0, Ordering::Relaxed);
    }

    /// From now on a worker may touch what `sandbox` says: one that was started for less is let go.
    pub fn confine(&mut self, sandbox: Sandbox) {
        if self.setup.sandbox.as_ref() != Some(&sandbox) {
            self.setup.sandbox = Some(sandbox);
            self.let_go();
        }
    }

    /// Starts a worker now if there is none, so that the next command need not wait for one.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&mut self) -> std::io::Result<()> {
        if self.worker.is_none() {
            let child = Child::start(&self.setup)?;
            self.vitals.process.store(child.id(), Ordering::Relaxed);
            self.vitals.started.fetch_add(1, Ordering::Relaxed);
            self.worker = Some(child);
        }
        Ok(())
    }

    /// Runs the plan of `task`. Failures are in the outcome and were told to the listener, as
    /// [`crate::execute::Executor::run`] does it; `cancel` stops it.
    pub fn run(&mut self, task: &Task, listener: &dyn Listener, cancel: &AtomicBool) -> Outcome {
        let mut track = Track::new(task.plan);
        let mut in_vain = 0;
        let interrupted = loop {
            let command = Command::Run(Box::new(Run {
                properties: task.properties.clone(),
                libraries: task.catalogue.libraries().iter().map(Provider::from).collect(),
                plan: task.plan.into(),
                keep: task.keep.into(),
                forget: task.forget.to_vec(),
                budget: task.budget,
                previews: listener.wants_previews(),
                earlier: track.earlier(),
                memory: self.memory.clone(),
            }));
            let end = self.command(&command, cancel, &mut |report| {
                if let Report::Notice(Notice::Preview { node, preview }) = &report {
                    if track.is_at_work(node) && preview.is_sound() {
                        listener.preview(node, preview);
                    }
                } else if let Report::Notice(Notice::Handed { node, handed }) = &report {
                    if track.is_at_work(node) {
                        listener.handed(node, handed);
                    }
                } else if let Some(event) = track.believe(report) {
                    listener.event(&event);
                }
            });
            if let Ok(End::Ended | End::Lost(..)) = &end
                && let Some(event) = track.untold(task.properties)
            {
                listener.event(&event);
            }
            let sentence = match end {
                // A cancelled worker may have been through just in time.
                Ok(End::Finished { interrupted }) if cancel.load(Ordering::Relaxed) => {
                    break interrupted;
                }
                Ok(End::Finished { .. }) if track.is_through() => break false,
                // It, or a library in its name, says what cannot be.
                Ok(End::Finished { .. }) => {
                    self.let_go();
                    Err("the process that runs nodes says that it is through, which it is not"
                        .into())
                }
                Ok(End::Ended) => break true,
                Ok(End::Lost(..)) if cancelled_soon(cancel) => break true,
                Ok(End::Lost(status, last_words)) => {
                    track.blame(&child::ending(status, &last_words), task.catalogue)
                }
                Err(error) => {
                    Err(format!("the process that runs nodes cannot be started: {error}"))
                }
            };
            match sentence {
                Ok(failure) => {
                    in_vain = 0;
                    listener.event(&Event::Error(Cow::Borrowed(&failure)));
                    track.failed(failure);
                    if track.is_through() {
                        track.skip_the_rest(&mut |event| listener.event(&event));
                        break false;
                    }
                }
                // It ended before any node began. Once may be chance, as memory that another took.
                Err(_) if in_vain == 0 => in_vain += 1,
                Err(sentence) => {
                    let problem = Problem::new(Kind::NodeFailed, sentence);
                    listener.event(&Event::Error(Cow::Borrowed(&problem)));
                    let mut outcome = track.outcome(false);
                    outcome.failures.push(problem);
                    return outcome;
                }
            }
        };
        track.outcome(interrupted)
    }

    /// Has a worker do what a library does beside nodes; its events go to `listener` as they come. Returns whether that was
    /// interrupted.
    pub fn work(&mut self, work: Work, listener: &dyn Listener, cancel: &AtomicBool) -> bool {
        let kind = work.kind;
        let command = &Command::Work(Box::new(work));
        let mut loading = None;
        let end = self.command(command, cancel, &mut |report| match report {
            Report::Event(event) => listener.event(&event),
            Report::Notice(Notice::Loading { library }) => loading = Some(library),
            Report::Notice(_) => (),
        });
        let sentence = match end {
            Ok(End::Finished { interrupted }) => return interrupted,
            Ok(End::Ended) => return true,
            Ok(End::Lost(..)) if cancelled_soon(cancel) => return true,
            Ok(End::Lost(status, last_words)) => {
                let who = match &loading {
                    Some(library) => format!("the library {}", library.display()),
                    None => format!("the process that {}", kind.does()),
                };
                format!("{who} {}", child::ending(status, &last_words))
            }
            Err(error) => format!("the process that {} cannot be started: {error}", kind.does()),
        };
        listener.event(&Event::refused(kind.problem(), sentence));
        false
    }

    /// What the nodes of `plan` that read no more than headers fail with, and what the libraries that check say of it: as warnings,
    /// and what they refuse as mismatches. A library that crashes or hangs over it is a warning.
    pub fn check(&mut self, plan: &Plan, catalogue: &Catalogue) -> Vec<Problem> {
        let entries = catalogue.libraries().iter().enumerate();
        let takes_part = |number: usize| plan.steps().iter().any(|step| step.library == number);
        let asked: Vec<usize> = entries
            .filter(|(number, entry)| entry.checks && takes_part(*number))
            .map(|(number, _)| number)
            .collect();
        if asked.is_empty() && !plan.steps().iter().any(checks::is_tried) {
            return Vec::new();
        }
        let libraries = catalogue.libraries().iter().map(Provider::from).collect();
        let command = Command::Check(Box::new(Check { libraries, asked, plan: plan.into() }));
        let mut loading = None;
        let mut warnings = Vec::new();
        let late = Arc::new(AtomicBool::new(false));
        let alarm = late.clone();
        let alarm = std::thread::Builder::new().name("alarm".into()).spawn(move || {
            std::thread::sleep(CHECKING);
            alarm.store(true, Ordering::Relaxed);
        });
        if let Err(error) = alarm {
            // Without it a library that hangs would hang this process, too.
            let sentence = format!("the plan is not checked, as no thread can be started: {error}");
            return vec![Problem::new(Kind::Unfit, sentence)];
        }
        let end = self.command(&command, &late, &mut |report| match report {
            Report::Event(Event::Warning(problem)) => {
                let mut steps = plan.steps().iter();
                // About a step of the plan, or about a library as a whole.
                let believed = match &problem.node {
                    Some(node) => steps.any(|step| step.name == **node),
                    None => true,
                };
                let kinds = [Kind::Unfit, Kind::ReturnTypeMismatch, Kind::NodeFailed];
                if believed && kinds.contains(&problem.kind) {
                    warnings.push(problem.into_owned());
                }
            }
            Report::Notice(Notice::Loading { library }) => loading = Some(library),
            _ => (),
        });
        let who = || match &loading {
            Some(library) => format!("the library {}", library.display()),
            None => "the process that checks".to_owned(),
        };
        let sentence = match end {
            Ok(End::Finished { interrupted: false }) => return warnings,
            Ok(End::Finished { .. } | End::Ended) => {
                format!("{} had not checked the plan after {} s", who(), CHECKING.as_secs())
            }
            Ok(End::Lost(status, last_words)) => {
                format!("{} {}", who(), child::ending(status, &last_words))
            }
            Err(error) => format!("the process that checks cannot be started: {error}"),
        };
        warnings.push(Problem::new(Kind::Unfit, sentence));
        warnings
    }

    /// Asks packs in Python what they are to be asked about `plan`: nothing where it raises no question. Those after
    /// changes only where `changed` says so; what stands in `memo` is not asked again.
    pub fn ask(
        &mut self,
        plan: &Plan,
        catalogue: &Catalogue,
        changed: bool,
        memo: Option<&mut Memo>,
        cancel: &AtomicBool,
    ) -> Option<Answers> {
        let questions = ask::questions(plan, catalogue, changed);
        if questions.is_empty() {
            return None;
        }
        let mut known = Memo::new();
        let memo = memo.unwrap_or(&mut known);
        let open: Vec<&OfStep> =
            questions.iter().filter(|asked| !memo.contains_key(&asked.memo())).collect();
        if !open.is_empty() {
            let command = Command::Ask(open.iter().map(|asked| asked.question.clone()).collect());
            let mut heard = Vec::new();
            let end = self.in_time(&command, cancel, &mut |report| {
                if let Report::Notice(Notice::Answer { answer }) = report {
                    heard.push(answer);
                }
            });
            if cancel.load(Ordering::Relaxed) {
                // What is run now ends before it begins.
                return None;
            }
            let why = match end {
                Ok(End::Finished { interrupted: false }) => {
                    "its pack was asked about it and did not answer".to_owned()
                }
                Ok(End::Finished { .. } | End::Ended) => {
                    format!("its pack had not answered after {} s", ASKING.as_secs())
                }
                Ok(End::Lost(status, last_words)) => {
                    let ended = child::ending(status, &last_words);
                    format!("its pack was asked about it, and the process that asks {ended}")
                }
                Err(error) => format!("the process that asks its pack cannot be started: {error}"),
            };
            let mut heard = heard.into_iter();
            for asked in open {
                let unheard = || Answer { sentence: Some(why.clone()), fingerprint: None };
                memo.insert(asked.memo(), heard.next().unwrap_or_else(unheard));
            }
        }
        let mut answers = Answers::default();
        for asked in &questions {
            answers.add(plan, asked, memo.get(&asked.memo()).cloned().unwrap_or_default());
        }
        Some(answers)
    }

    /// As [`Self::command`], and no longer than [`ASKING`].
    fn in_time(
        &mut self,
        command: &Command,
        cancel: &AtomicBool,
        hear: &mut dyn FnMut(Report),
    ) -> std::io::Result<End> {
        let (stop, start) = (AtomicBool::new(false), Instant::now());
        let (done, is_done) = channel::<()>();
        std::thread::scope(|scope| {
            let stop = &stop;
            let watch = move || {
                let wait = Duration::from_millis(50);
                while let Err(RecvTimeoutError::Timeout) = is_done.recv_timeout(wait) {
                    if cancel.load(Ordering::Relaxed) || start.elapsed() > ASKING {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            };
            std::thread::Builder::new().name("asking".into()).spawn_scoped(scope, watch)?;
            let end = self.command(command, stop, hear);
            drop(done);
            end
        })
    }

    /// Sends `command` and hears what comes until it is done, or until the worker is no more.
    fn command(
        &mut self,
        command: &Command,
        cancel: &AtomicBool,
        hear: &mut dyn FnMut(Report),
    ) -> std::io::Result<End> {
        self.start()?;
        let Some(mut worker) = self.worker.take() else {
            return Err(std::io::ErrorKind::NotFound.into());
        };
        // One that is gone already takes no command; the wait below says how it ended.
        let _ = worker.send(command);
        let mut stop_by = None;
        let end = loop {
            match worker.hear(Duration::from_millis(50)) {
                Heard::Report(Report::Notice(Notice::Finished { interrupted })) => {
                    break End::Finished { interrupted };
                }
                Heard::Report(report) => hear(report),
                Heard::Nothing => (),
                Heard::End => {
                    self.vitals.process.store(0, Ordering::Relaxed);
                    let (status, last_words) = worker.end()?;
                    return Ok(match stop_by {
                        Some(_) => End::Ended,
                        None => End::Lost(status, last_words),
                    });
                }
            }
            match stop_by {
                None if cancel.load(Ordering::Relaxed) => {
                    let _ = worker.send(&Command::Cancel);
                    stop_by = Some(Instant::now() + GRACE);
                }
                Some(time) if Instant::now() >= time => {
                    self.vitals.process.store(0, Ordering::Relaxed);
                    worker.end()?;
                    return Ok(End::Ended);
                }
                _ => (),
            }
        };
        self.worker = Some(worker);
        Ok(end)
    }
}

/// Whether the work is to stop. A signal to all processes of a group ends the worker before the wish to
/// stop has arrived here: so it is given a moment.
fn cancelled_soon(cancel: &AtomicBool) -> bool {
    let until = Instant::now() + Duration::from_millis(100);
    loop {
        if cancel.load(Ordering::Relaxed) {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folders::Folders;
    use crate::graph::Graph;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Heard(Mutex<Vec<serde_json::Value>>);

    impl Listener for Heard {
        fn event(&self, event: &Event) {
            self.0.lock().unwrap().push(serde_json::to_value(event).unwrap());
        }
    }

    /// Runs a plan of one output in a worker that is played by a shell.
    fn run(script: &str) -> (Outcome, Vec<serde_json::Value>) {
        let library = json!({"name": "a", "version": "1", "nodes": [
            {"class": "Show", "inputs": [], "output_node": true}]});
        let mut catalogue = Catalogue::default();
        catalogue.add(Path::new("/p/liba.so"), &library).unwrap();
        let graph = Graph::parse(r#"{"s": {"class_type": "Show", "inputs": {}}}"#).unwrap();
        let plan = Plan::new(&graph, &catalogue, &Folders::default(), "cpu").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("worker");
        std::fs::write(&program, format!("#!/bin/sh\nread command\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut supervisor = Supervisor::new(Setup {
            program,
            memory_limit: None,
            stderr: Arc::new(|_| ()),
            computing: Computing::default(),
            sandbox: None,
        });
        let task = Task {
            plan: &plan,
            catalogue: &catalogue,
            properties: &Properties::default(),
            keep: Keep::Nothing,
            forget: &[],
            budget: None,
        };
        let heard = Heard::default();
        let outcome = supervisor.run(&task, &heard, &AtomicBool::new(false));
        (outcome, heard.0.into_inner().unwrap())
    }

    const STARTED: &str = r#"echo '{"event":"node_started","node":"s","class":"Show"}'"#;
    const DONE: &str = r#"echo '{"event":"node_done","node":"s","seconds":0.5}'"#;
    const FINISHED: &str = r#"echo '{"worker":"finished","interrupted":false}'"#;

    #[test]
    fn a_worker_that_does_its_work_is_believed() {
        let (outcome, heard) = run(&format!("{STARTED}; {DONE}; {FINISHED}; sleep 5"));
        assert!(outcome.failures.is_empty() && !outcome.interrupted, "{outcome:?}");
        assert_eq!((outcome.executed, heard.len()), (1, 2));
    }

    #[test]
    fn a_worker_that_is_through_before_it_was_is_not() {
        for script in [
            FINISHED.to_owned(),
            format!("{STARTED}; {FINISHED}"),
            r#"echo '{"worker":"finished","interrupted":true}'"#.to_owned(),
        ] {
            let (outcome, heard) = run(&script);
            assert!(!outcome.interrupted, "nobody asked it to stop");
            assert_eq!(outcome.failures.len(), 1, "{script}: {outcome:?}");
            assert_eq!(heard.last().unwrap()["kind"], "node_failed", "{script}");
        }
    }

    #[test]
    fn a_worker_that_ends_is_blamed_on_its_node() {
        let (outcome, heard) =
            run(&format!("{STARTED}; printf '{{\"event\":\"node_d'; kill -SEGV $$"));
        assert_eq!(outcome.failures.len(), 1, "{heard:?}");
        let told = "its library liba.so ended its process with SIGSEGV (segmentation fault)";
        assert_eq!(outcome.failures[0].message, told);
        // One that never begins is given a second try, and no third.
        let (outcome, heard) = run("exit 7");
        assert_eq!((outcome.failures.len(), heard.len()), (1, 1), "{heard:?}");
        assert!(outcome.failures[0].message.ends_with("exit code 7"), "{outcome:?}");
    }
}
