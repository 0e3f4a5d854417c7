//! `kosmograph run` and `kosmograph check`.

use super::list::print;
use super::{Exit, lock, refuse, setup, sheet, sweep};
use crate::args::{self, Computing};
use crate::ask::{Answers, Memo};
use crate::catalogue::Catalogue;
use crate::changes::Seeds;
use crate::checks;
use crate::events::{Event, Listener};
use crate::execute::{Budget, Executor, Keep, Outcome, Setting};
use crate::folders::{Identify, absolute};
use crate::interrupt;
use crate::job::{Job, name};
use crate::plan::{LeftOut, Plan, Refusal, why_not_written};
use crate::plugin::Library;
use crate::preview::Previews;
use crate::problem::{Kind, Problem};
use crate::supervisor::{Supervisor, Task};
use crate::wire::Earlier;
use indicatif::MultiProgress;
use serde_json::json;
use std::borrow::Cow;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

pub(super) fn tell(listener: &dyn Listener, refusal: &Refusal) {
    for warning in &refusal.warnings {
        listener.event(&Event::Warning(Cow::Borrowed(warning)));
    }
    for problem in &refusal.problems {
        listener.event(&Event::Error(Cow::Borrowed(problem)));
    }
}

/// Tells what is wrong with a plan's outputs that are left out, and which they are, each once.
pub(super) fn tell_left_out(listener: &dyn Listener, plan: &Plan, told: &mut Vec<Problem>) {
    for problem in plan.problems().iter().filter(|problem| !told.contains(problem)) {
        listener.event(&Event::Error(Cow::Borrowed(problem)));
    }
    if *told != plan.problems() {
        for LeftOut { name, because_of } in plan.left_out() {
            let (name, because_of) = (Cow::Borrowed(name), because_of.into());
            listener.event(&Event::LeftOut { name, because_of });
        }
    }
    *told = plan.problems().to_vec();
}

/// Who runs the plans: a worker, or this process.
pub(super) enum Runner<'a> {
    Worker(Supervisor),
    Here(Executor<&'a Vec<Library>>),
}

impl Runner<'_> {
    /// Asks packs in Python about a plan. In this process there are none.
    pub(super) fn ask(
        &mut self,
        plan: &Plan,
        catalogue: &Catalogue,
        memo: Option<&mut Memo>,
        cancel: &AtomicBool,
    ) -> Option<Answers> {
        match self {
            Self::Worker(supervisor) => supervisor.ask(plan, catalogue, true, memo, cancel),
            Self::Here(_) => None,
        }
    }

    pub(super) fn run(
        &mut self,
        task: &Task,
        listener: &dyn Listener,
        cancel: &AtomicBool,
    ) -> Outcome {
        match self {
            Self::Worker(supervisor) => supervisor.run(task, listener, cancel),
            Self::Here(executor) => {
                let &Task { properties, keep, .. } = task;
                let earlier = &Earlier::NONE;
                executor.run(task.plan, Setting { properties, listener, cancel, keep, earlier })
            }
        }
    }
}

pub fn run(args: &args::Run, listener: &'static dyn Listener, screen: &MultiProgress) -> Exit {
    let cancel = interrupt::gracefully(listener);
    match args.previews.clone() {
        Some(folder) => run_with(args, &Previews::new(listener, folder), screen, cancel),
        None => run_with(args, listener, screen, cancel),
    }
}

fn run_with(
    args: &args::Run,
    listener: &dyn Listener,
    screen: &MultiProgress,
    cancel: &AtomicBool,
) -> Exit {
    let start = Instant::now();
    let mut job = match Job::read(&args.workflow) {
        Ok(job) => job,
        Err(problem) => {
            listener.event(&Event::Error(Cow::Owned(problem)));
            return Exit::Refused;
        }
    };
    if args.verify_files {
        job.folders.identify = Identify::Contents;
    }
    job.tell_libraries(listener);
    if (args.locked || args.lock.is_some()) && !lock::holds(args, &job, listener) {
        return Exit::Refused;
    }
    if let Some(Err(sentence)) = args.sheet.as_deref().map(sheet::check) {
        return refuse(listener, Kind::Arguments, &sentence);
    }
    if let Some(folder) = args.previews.as_deref()
        && let Some(reason) = why_not_written(&absolute(folder))
    {
        let sentence =
            format!("--previews {}: the folder cannot be written to: {reason}", folder.display());
        return refuse(listener, Kind::Arguments, &sentence);
    }
    let mut worker = match (!args.in_process)
        .then(|| setup(screen, memory_limit(args), args.workflow.places.computing))
        .transpose()
    {
        Ok(setup) => setup.map(|setup| Runner::Worker(Supervisor::new(setup))),
        Err(error) => {
            let sentence = format!("the program's own file cannot be found: {error}");
            return refuse(listener, Kind::Arguments, &sentence);
        }
    };
    let is_sweep = !job.sweep.runs.is_empty();
    // Of a sweep every run is planned, and asked about, before the first one begins.
    let mut memo = Memo::new();
    let mut ask = |plan: &Plan, catalogue: &Catalogue| {
        let memo = is_sweep.then_some(&mut memo);
        worker.as_mut()?.ask(plan, catalogue, memo, cancel)
    };
    let first = match is_sweep {
        true => job.later(&mut ask).map(|later| (None, Some(later))),
        false => job.first_plan(&mut ask).map(|planned| (Some(planned), None)),
    };
    let (mut planned, later) = match first {
        Ok(first) => first,
        Err(refusal) => {
            tell(listener, &refusal);
            return Exit::Refused;
        }
    };
    let budget = args.memory_budget.map(Budget::bytes);
    let loaded = match args.in_process.then(|| job.libraries.load()).transpose() {
        Ok(loaded) => loaded,
        Err(sentence) => return refuse(listener, Kind::Arguments, &sentence),
    };
    let Some(mut runner) = loaded
        .as_ref()
        .map(|loaded| Runner::Here(Executor::new(loaded).with_budget(budget)))
        .or(worker)
    else {
        return refuse(listener, Kind::Arguments, &"there is nothing to run nodes in");
    };
    if let Some(later) = later {
        let sheet = args.sheet.as_deref();
        let sweep = sweep::Setting { job: &job, later, memo, budget, cancel, sheet };
        return sweep.run(runner, &name(&args.workflow), listener, start);
    }
    let planned_for = |seed, runner: &mut Runner| {
        let mut ask =
            |plan: &Plan, catalogue: &Catalogue| runner.ask(plan, catalogue, None, cancel);
        job.plan_asking(Some(seed), &mut ask)
    };
    let mut seeds = job.seeds.into_iter().flat_map(Seeds::iter);
    let mut seed = seeds.next();
    let (mut executed, mut cached, mut failed, mut left_out) = (0, 0, 0, 0);
    let (mut warned, mut told): (Vec<Problem>, Vec<Problem>) = (Vec::new(), Vec::new());
    while let Some((plan, graph)) = planned.take() {
        tell_left_out(listener, &plan, &mut told);
        left_out += plan.left_out().len();
        let nodes = plan.steps().iter().map(|step| Cow::Borrowed(&step.name)).collect();
        listener.event(&Event::Plan { nodes, seed: job.seeds.and(seed), values: Vec::new() });
        for warning in plan.warnings().iter().filter(|warning| !warned.contains(warning)) {
            listener.event(&Event::Warning(Cow::Borrowed(warning)));
        }
        warned = plan.warnings().to_vec();
        let next_seed = seeds.next();
        // A file may be gone by now, although it was there when the first plan was made.
        let next = next_seed.map(|seed| planned_for(seed, &mut runner));
        let keep = match &next {
            Some(Ok((next, _))) => Keep::For(next),
            _ => Keep::Nothing,
        };
        let task = Task {
            plan: &plan,
            catalogue: &job.libraries.catalogue,
            properties: &job.properties(&graph),
            keep,
            forget: &[],
            budget,
        };
        let outcome = runner.run(&task, listener, cancel);
        executed += outcome.executed;
        cached += outcome.cached;
        failed += outcome.failures.len();
        if outcome.interrupted {
            interrupt::say();
            return Exit::Interrupted;
        }
        // What packs said before this run may be otherwise after it.
        let asks = |plan: &Plan| plan.steps().iter().any(|step| step.descriptor.asks.changed);
        let next = match (next, next_seed) {
            (Some(Ok((plan, _))), Some(seed)) if asks(&plan) => {
                Some(planned_for(seed, &mut runner))
            }
            (next, _) => next,
        };
        seed = next_seed;
        planned = match next {
            // What was made for earlier seeds is there, so this is no refusal of the whole.
            Some(Err(refusal)) => {
                // Nothing of this seed and those behind it is made.
                tell(listener, &refusal);
                left_out += plan.outputs().count();
                None
            }
            Some(Ok(next)) => Some(next),
            None => None,
        };
    }
    // What the worker still has to say comes before the last event.
    drop(runner);
    let seconds = start.elapsed().as_secs_f64();
    listener.event(&Event::Done { seconds, executed, cached, failed, left_out });
    if failed > 0 || left_out > 0 { Exit::Failed } else { Exit::Done }
}

/// The most private memory of a worker: what was asked for, or what the machine or container has, less a
/// reserve for everybody else. A driver of a GPU maps its memory as private: there is no bound then.
fn memory_limit(args: &args::Run) -> Option<u64> {
    if args.workflow.places.device.0 != "cpu" {
        return None;
    }
    Some(args.memory_limit.map_or_else(
        || {
            let all = Budget::Percent(100).bytes();
            all - (all / 20).min(1 << 30)
        },
        Budget::bytes,
    ))
}

pub fn check(workflow: &args::Workflow, listener: &dyn Listener, screen: &MultiProgress) -> Exit {
    let job = match Job::read(workflow) {
        Ok(job) => job,
        Err(problem) if workflow.json => {
            let answer = json!({"valid": false, "warnings": [], "libraries_failed": [],
                "problems": [problem], "left_out": []});
            return print(&format!("{answer}\n")).or(Exit::Refused);
        }
        Err(problem) => {
            listener.event(&Event::Error(Cow::Owned(problem)));
            return Exit::Refused;
        }
    };
    let (mut supervisor, go_on) =
        (setup(screen, None, Computing::default()).map(Supervisor::new), AtomicBool::new(false));
    let mut memo = Memo::new();
    let mut ask = |plan: &Plan, catalogue: &Catalogue| {
        let supervisor = supervisor.as_mut().ok()?;
        supervisor.ask(plan, catalogue, false, Some(&mut memo), &go_on)
    };
    let (problems, left_out, warnings, exit) = match job.first_plan(&mut ask) {
        Ok((plan, _)) => {
            let mut exit = if plan.problems().is_empty() { Exit::Done } else { Exit::Failed };
            let mut problems = plan.problems().to_vec();
            let mut left_out = plan.left_out().to_vec();
            let mut warnings = plan.warnings().to_vec();
            match &mut supervisor {
                Ok(supervisor) => {
                    let said = supervisor.check(&plan, &job.libraries.catalogue);
                    let (odd, refused): (Vec<_>, Vec<_>) =
                        said.into_iter().partition(|problem| problem.kind == Kind::Unfit);
                    warnings.extend(odd);
                    if !refused.is_empty() {
                        // What fails when it runs fails there, and what cannot go together is refused here.
                        let fails = |problem: &Problem| problem.kind == Kind::NodeFailed;
                        exit = if refused.iter().all(fails) { Exit::Failed } else { Exit::Refused };
                        left_out.extend(checks::left_out(&plan, &refused));
                    }
                    problems.extend(refused);
                }
                Err(error) => {
                    let sentence = format!("the program's own file cannot be found: {error}");
                    warnings.push(Problem::new(Kind::Unfit, sentence));
                }
            }
            (problems, left_out, warnings, exit)
        }
        Err(Refusal { problems, warnings }) => (problems, Vec::new(), warnings, Exit::Refused),
    };
    if workflow.json {
        let failed = &job.libraries.failed;
        let answer = json!({"valid": problems.is_empty(), "problems": problems, "left_out": left_out,
            "warnings": warnings, "libraries_failed": failed});
        return print(&format!("{answer}\n")).or(exit);
    }
    job.tell_libraries(listener);
    tell(listener, &Refusal { problems, warnings });
    for LeftOut { name, because_of } in &left_out {
        let (name, because_of) = (Cow::Borrowed(name), because_of.into());
        listener.event(&Event::LeftOut { name, because_of });
    }
    if exit == Exit::Done {
        let name = name(workflow);
        let nodes = job.graph.nodes().len();
        return print(&format!("{name}: {nodes} nodes, nothing is wrong\n"));
    }
    exit
}
