//! `kosmograph lock`, and what `run --locked` asks before anything runs.

use super::list::print;
use super::run::tell;
use super::{Exit, refuse};
use crate::args;
use crate::ask::nobody;
use crate::events::{Event, Listener};
use crate::job::Job;
use crate::lock::{Lock, beside};
use crate::problem::{Kind, Problem};
use crate::whole_file;
use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;

/// A lock is of one run.
const ONE: &str = "a lock is of one picture: one --seed, and no --sweep";

fn is_one(job: &Job) -> bool {
    job.sweep.runs.is_empty() && job.seeds.is_none_or(|seeds| seeds.count() == 1)
}

/// What the job depends on now.
fn now(job: &Job, device: &str) -> Result<Lock, Vec<Problem>> {
    let (plan, graph) = job.first_plan(&mut nobody).map_err(|refusal| refusal.problems)?;
    if !plan.problems().is_empty() {
        return Err(plan.problems().to_vec());
    }
    Lock::of(&plan, &graph, &job.libraries.catalogue, device)
        .map_err(|sentence| vec![Problem::new(Kind::InvalidPath, sentence)])
}

pub(super) fn lock(args: &args::Lock, listener: &dyn Listener) -> Exit {
    let mut job = match Job::read(&args.workflow) {
        Ok(job) => job,
        Err(problem) => {
            listener.event(&Event::Error(Cow::Owned(problem)));
            return Exit::Refused;
        }
    };
    job.folders.only_read = true;
    job.tell_libraries(listener);
    if !is_one(&job) {
        return refuse(listener, Kind::Arguments, &ONE);
    }
    let lock = match now(&job, &args.workflow.places.device_in_words()) {
        Ok(lock) => lock,
        Err(problems) => {
            tell(listener, &crate::plan::Refusal { problems, warnings: Vec::new() });
            return Exit::Refused;
        }
    };
    let to = args
        .to
        .clone()
        .or_else(|| (args.workflow.path != Path::new("-")).then(|| beside(&args.workflow.path)));
    let Some(to) = to else { return print(&lock.to_json()) };
    match whole_file::write(&to, |file| file.write_all(lock.to_json().as_bytes())) {
        Ok(()) => print(&format!("{}\n", to.display())),
        Err(error) => {
            let error: io::Error = error;
            let sentence = format!("the lock {} cannot be written: {error}", to.display());
            refuse(listener, Kind::Arguments, &sentence)
        }
    }
}

/// Whether the job depends on what its lock says; what is otherwise is told.
pub(super) fn holds(args: &args::Run, job: &Job, listener: &dyn Listener) -> bool {
    let file = args.lock.clone().unwrap_or_else(|| beside(&args.workflow.path));
    if !is_one(job) {
        refuse(listener, Kind::Arguments, &ONE);
        return false;
    }
    let problems = match (Lock::read(&file), now(job, &args.workflow.places.device_in_words())) {
        (Err(sentence), _) => vec![Problem::new(Kind::Arguments, sentence)],
        (_, Err(problems)) => problems,
        (Ok(lock), Ok(now)) => {
            let of = |difference: String| {
                Problem::new(
                    Kind::Arguments,
                    format!("the lock {} does not hold: {difference}", file.display()),
                )
            };
            lock.differences(&now).into_iter().map(of).collect()
        }
    };
    for problem in &problems {
        listener.event(&Event::Error(Cow::Borrowed(problem)));
    }
    problems.is_empty()
}
