//! The runs of `--sweep`, one after the other.

mod pictures;

use super::run::{Runner, tell, tell_left_out};
use super::{Exit, refuse, sheet};
use crate::ask::Memo;
use crate::events::{Event, Level, Listener, Swept};
use crate::execute::{Keep, Later};
use crate::interrupt;
use crate::job::Job;
use crate::problem::{Kind, Problem};
use crate::supervisor::Task;
use crate::sweep::Combination;
use pictures::{Chosen, Made, Pictures};
use std::borrow::Cow;
use std::path::Path;
use std::sync::atomic::AtomicBool;
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
        let pictures = Pictures::new(listener);
        let (mut executed, mut cached, mut failed, mut left_out) = (0, 0, 0, 0);
        let (mut warned, mut told): (Vec<Problem>, Vec<Problem>) = (Vec::new(), Vec::new());
        let mut made = Made::default();
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
            made.add(&plan, pictures.take());
            if outcome.interrupted {
                // What was made is worth a sheet, too.
                if let Some(file) = sheet.filter(|_| made.any())
                    && interrupt::finish(|| write_sheet(job, &made, name, file, listener))
                {
                    let (count, all) = (made.runs(), job.sweep.runs.len());
                    let message = format!(
                        "the sweep was interrupted in run {count} of {all}; the sheet's other places are empty"
                    );
                    listener.event(&Event::log(Level::Warning, message));
                }
                interrupt::say();
                return Exit::Interrupted;
            }
        }
        // What the worker still has to say comes before the last event.
        drop(runner);
        if let Some(file) = sheet
            && !write_sheet(job, &made, name, file, listener)
        {
            failed += 1;
        }
        let seconds = start.elapsed().as_secs_f64();
        listener.event(&Event::Done { seconds, executed, cached, failed, left_out });
        if failed > 0 || left_out > 0 { Exit::Failed } else { Exit::Done }
    }
}

/// Writes the sheet of what was made, and tells of it; whether that went well.
fn write_sheet(job: &Job, made: &Made, name: &str, file: &Path, listener: &dyn Listener) -> bool {
    let chosen = made.chosen(job);
    let name = match &chosen {
        Some(Chosen { node, is_one_of_several: true, .. }) => format!("{name}, {node}"),
        _ => name.to_owned(),
    };
    let pictures = made.of(chosen.as_ref());
    match sheet::write(&job.sweep, &pictures, &name, file) {
        Ok(()) => {
            listener.event(&Event::Sheet { file: file.to_string_lossy() });
            true
        }
        Err(sentence) => {
            refuse(listener, Kind::Arguments, &sentence);
            false
        }
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
