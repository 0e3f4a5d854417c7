//! The runs of `--sweep`, one after the other.

use super::run::{Runner, tell, tell_left_out};
use super::{Exit, refuse, sheet};
use crate::ask::Memo;
use crate::events::{Event, Listener, Swept};
use crate::execute::{Keep, Later};
use crate::interrupt;
use crate::job::Job;
use crate::preview::Preview;
use crate::problem::{Kind, Problem};
use crate::promise::Promise;
use crate::supervisor::Task;
use crate::sweep::Combination;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// What a sweep is run with.
pub(super) struct Setting<'a> {
    pub job: &'a Job,
    /// Of all its runs.
    pub later: Later,
    /// What packs in Python answered about all of its runs.
    pub memo: Memo,
    pub budget: Option<u64>,
    pub cancel: &'a AtomicBool,
    pub sheet: Option<&'a Path>,
}

impl Setting<'_> {
    pub(super) fn run(
        self,
        mut runner: Runner,
        name: &str,
        listener: &dyn Listener,
        start: Instant,
    ) -> Exit {
        let Self { job, later, mut memo, budget, cancel, sheet } = self;
        let pictures = Pictures { to: listener, made: Mutex::default() };
        let (mut executed, mut cached, mut failed, mut left_out) = (0, 0, 0, 0);
        let (mut warned, mut told): (Vec<Problem>, Vec<Problem>) = (Vec::new(), Vec::new());
        let mut made: Vec<Option<PathBuf>> = Vec::new();
        for (number, run) in job.sweep.runs.iter().enumerate() {
            // A file may be gone by now, although it was there when all plans were made.
            let (plan, graph) = match job.plan_run(run, &mut |plan, catalogue| {
                runner.ask(plan, catalogue, Some(&mut memo), cancel)
            }) {
                Ok(planned) => planned,
                Err(refusal) => {
                    tell(listener, &refusal);
                    left_out += 1;
                    break;
                }
            };
            tell_left_out(listener, &plan, &mut told);
            left_out += plan.left_out().len();
            let nodes = plan.steps().iter().map(|step| Cow::Borrowed(&step.name)).collect();
            listener.event(&Event::Plan { nodes, seed: run.seed, values: values(job, run) });
            for warning in plan.warnings().iter().filter(|warning| !warned.contains(warning)) {
                listener.event(&Event::Warning(Cow::Borrowed(warning)));
            }
            warned = plan.warnings().to_vec();
            let wanted = later.after(number);
            let task = Task {
                plan: &plan,
                catalogue: &job.libraries.catalogue,
                properties: &job.properties(&graph),
                keep: if wanted.is_empty() { Keep::Nothing } else { Keep::Results(&wanted) },
                forget: &[],
                budget,
            };
            let outcome = runner.run(&task, &pictures, cancel);
            executed += outcome.executed;
            cached += outcome.cached;
            failed += outcome.failures.len();
            made.push(pictures.take());
            if outcome.interrupted {
                interrupt::say();
                return Exit::Interrupted;
            }
        }
        // What the worker still has to say comes before the last event.
        drop(runner);
        if let Some(file) = sheet {
            match sheet::write(&job.sweep, &made, name, file) {
                Ok(()) => {
                    let file = file.to_string_lossy();
                    listener.event(&Event::Sheet { file });
                }
                Err(sentence) => {
                    failed += 1;
                    refuse(listener, Kind::Arguments, &sentence);
                }
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        listener.event(&Event::Done { seconds, executed, cached, failed, left_out });
        if failed > 0 || left_out > 0 { Exit::Failed } else { Exit::Done }
    }
}

fn values<'a>(job: &'a Job, run: &Combination) -> Vec<Swept<'a>> {
    let values = job.sweep.axes.iter().zip(&run.values);
    let swept = values.map(|(axis, value)| Swept {
        node: Cow::Borrowed(&axis.node),
        input: Cow::Borrowed(axis.place.input()),
        value: Cow::Borrowed(&axis.values[*value]),
    });
    swept.collect()
}

/// Passes everything on, and remembers the first picture that is told.
struct Pictures<'a> {
    to: &'a dyn Listener,
    made: Mutex<Option<PathBuf>>,
}

impl Pictures<'_> {
    fn take(&self) -> Option<PathBuf> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Listener for Pictures<'_> {
    fn event(&self, event: &Event) {
        if let Event::Output { files, .. } = event {
            let is_picture = |file: &&String| file.to_ascii_lowercase().ends_with(".png");
            let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            if made.is_none() {
                *made = files.iter().find(is_picture).map(PathBuf::from);
            }
        }
        self.to.event(event);
    }

    fn promise(&self, promise: &Promise) {
        self.to.promise(promise);
    }

    fn wants_previews(&self) -> bool {
        self.to.wants_previews()
    }

    fn preview(&self, node: &str, preview: &Preview) {
        self.to.preview(node, preview);
    }

    fn trouble(&self) -> Option<String> {
        self.to.trouble()
    }
}
