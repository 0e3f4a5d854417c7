//! A worker's thread: takes jobs, has a process run each, and says what happens.
//!
//! The process outlives its jobs, and with it models and results. What a job's outputs are is in the
//! store, and on the disk, before anybody is told that it is done.

mod sent;
pub mod states;
mod watch;

pub use watch::error_of;

use crate::app::App;
use crate::engine::{Bulletin, Claim};
use crate::fleet::holder::{self, Taste};
use crate::message::now;
use crate::prompt::plan_again;
use crate::queue::{Next, Running, Why};
use crate::store::{Entry, Finished, State};
use kosmograph::execute::{Keep, Outcome, Properties};
use kosmograph::graph::Graph;
use kosmograph::plan::{Key, Plan};
use kosmograph::problem::{Kind, Problem};
use kosmograph::sandbox::Sandbox;
use kosmograph::supervisor::{Setup, Supervisor, Task};
use serde_json::Value as Json;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use watch::Watch;

/// How long to wait before the store is tried again.
const PATIENCE: Duration = Duration::from_secs(1);

/// Runs jobs until the server ends. `program` is this program.
pub fn work(app: &Arc<App>, number: usize, program: PathBuf) {
    let lines = app.clone();
    let stderr = Arc::new(move |bytes: &[u8]| {
        for line in String::from_utf8_lossy(bytes).lines() {
            lines.log.line(&lines.hub, line);
        }
    });
    let memory_limit = app.options.memory_limit;
    let sandbox = app.options.sandbox.then(|| sandbox(app));
    let mut confined = sandbox.clone();
    let computing = app.options.computing;
    let mut supervisor =
        Supervisor::new(Setup { program, memory_limit, stderr, computing, sandbox });
    app.vitals.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(supervisor.vitals());
    // So that the first job need not wait; where it fails, that job says why.
    if let Err(error) = supervisor.start() {
        tracing::error!("the process that runs nodes cannot be started: {error}");
    }
    let mut taste = Taste::default();
    loop {
        let next = match app.store.is_shared() {
            true => holder::take(app, number, &mut taste),
            false => app.queue.take(number),
        };
        match next {
            Next::Stop => return,
            Next::Free => supervisor.let_go(),
            Next::Job(job) => {
                run(app, &mut supervisor, &mut confined, &job);
                app.queue.done(&job);
            }
        }
    }
}

/// What a worker may touch, as the folders are now.
pub fn sandbox(app: &App) -> Sandbox {
    let entries = app.surroundings.libraries.catalogue.libraries();
    let libraries = entries.iter().filter(|library| library.python.is_none());
    let libraries: Vec<PathBuf> = libraries.map(|library| library.path.clone()).collect();
    let folders = &app.surroundings.folders;
    for folder in [&folders.output, &folders.temp] {
        // Somebody may have removed it; where it cannot be made the node that writes says so.
        let _ = std::fs::create_dir_all(folder);
    }
    let packs = entries.iter().filter_map(|library| library.python.as_ref());
    Sandbox::of(folders, &libraries).with_packs(packs)
}

/// Runs one job, from the mark in the store that it runs to the one that it does not.
fn run(app: &App, supervisor: &mut Supervisor, confined: &mut Option<Sandbox>, job: &Running) {
    let begun = match job.take_entry() {
        Some(entry) => Ok(Some(entry)),
        None => {
            let claimed = app.store.claim(std::slice::from_ref(&job.id), &app.worker);
            claimed.map(|claimed| claimed.map(|claimed| claimed.entry))
        }
    };
    let entry = match begun {
        Ok(Some(entry)) => entry,
        // Deleted in this moment.
        Ok(None) => {
            app.queue.done(job);
            app.tell_status();
            return;
        }
        Err(error) => {
            tracing::error!(job = job.id, "{error}; the job is put back");
            app.log.line(&app.hub, &error.to_string());
            std::thread::sleep(PATIENCE);
            put_back(app, job, true);
            return;
        }
    };
    app.tell_status();
    let targets: Vec<String> = serde_json::from_str(&entry.targets).unwrap_or_default();
    let planned = plan_again(app, &entry.prompt, &targets, &mut |plan, catalogue| {
        supervisor.ask(plan, catalogue, true, None, &job.cancel)
    });
    let shows = shows(app, &entry);
    let (watch, outcome) = match &planned {
        Ok((plan, graph)) => {
            let watch = Watch::new(app, job, Some((plan, graph)), shows);
            watch.begin();
            // A link that leads elsewhere by now, a folder that was made anew: another worker, for those.
            if let Some(confined) = confined.as_mut().filter(|confined| !confined.covers(plan)) {
                *confined = sandbox(app);
                supervisor.confine(confined.clone());
            }
            let forget: Vec<Key> = plan
                .outputs()
                .map(|at| plan.steps()[at].key)
                .filter(|key| app.made_before(*key).is_none())
                .collect();
            let task = Task {
                plan,
                catalogue: &app.surroundings.libraries.catalogue,
                properties: &properties(app, job, &entry, graph),
                keep: Keep::Everything,
                forget: &forget,
                budget: Some(app.options.budget),
            };
            let outcome = supervisor.run(&task, &watch, &job.cancel);
            (watch, outcome)
        }
        Err(problems) => {
            let watch = Watch::new(app, job, None, shows);
            watch.begin();
            let failures = problems.iter().map(sentence).collect();
            (watch, Outcome { failures, ..Outcome::default() })
        }
    };
    match (outcome.interrupted, job.why()) {
        (true, Some(Why::ServerEnds)) => return put_back(app, job, false),
        (true, Some(Why::Overtaken)) => return overtaken(app, job, watch),
        (true, Some(Why::TookTooLong)) => {
            let seconds = app.options.job_timeout.map_or(0, |timeout| timeout.as_secs());
            let message = format!("the job took longer than {seconds} s, the most it may take");
            watch.failed(&watch.at_work(Problem::new(Kind::NodeFailed, message)));
        }
        (true, _) => watch.interrupted(),
        (false, _) => match outcome.failures.first() {
            Some(failure) => watch.failed(failure),
            None => watch.succeeded(),
        },
    }
    finish(app, job, watch);
}

/// Whether a job wants pictures of what is being made: it says so, or leaves it to the server.
fn shows(app: &App, entry: &Entry) -> bool {
    let extra: Json = serde_json::from_str(&entry.extra).unwrap_or_default();
    match extra["preview_method"].as_str() {
        None | Some("default") => app.options.previews,
        Some(method) => method != "none",
    }
}

/// The problem as one that ended a job.
fn sentence(problem: &Problem) -> Problem {
    Problem { kind: Kind::NodeFailed, ..problem.clone() }
}

fn properties(app: &App, job: &Running, entry: &Entry, graph: &Graph) -> Properties {
    let folders = &app.surroundings.folders;
    let own = |root: &PathBuf| match sent::folder(app, job) {
        Some(folder) => root.join(folder),
        None => root.clone(),
    };
    let extra: Json = serde_json::from_str(&entry.extra).unwrap_or_default();
    let workflow = &extra["extra_pnginfo"]["workflow"];
    Properties {
        device: app.surroundings.device.clone(),
        output_directory: own(&folders.output),
        temp_directory: own(&folders.temp),
        prompt: graph.to_json(),
        workflow: (!workflow.is_null()).then(|| workflow.to_string()),
        preview_files: folders.preview_files(),
    }
}

/// The store first, then the clients.
fn finish(app: &App, job: &Running, watch: Watch) {
    let (finished, last, files) = watch.end();
    if let Some(outlet) = app.hub.elsewhere() {
        // What was told of it comes before its end.
        outlet.flush();
    }
    loop {
        match app.store.finish(&job.claim, &finished, app.options.history_limit) {
            Ok(true) => break,
            Ok(false) => return discard(app, job, &files),
            Err(error) => {
                tracing::error!(
                    job = job.id,
                    "{error}; the job's end is kept until it can be written"
                );
                app.log.line(&app.hub, &error.to_string());
            }
        }
        if app.is_stopping() {
            // It is run again when the server is back.
            return;
        }
        std::thread::sleep(PATIENCE);
    }
    app.metrics.finished(finished.state);
    app.queue.done(job);
    last.tell(app);
    if let Some(keeper) = app.keeper.get() {
        keeper.wake();
    }
}

/// Another worker has the job, or nobody any more: what was made of it here is nobody's.
fn overtaken(app: &App, job: &Running, watch: Watch) {
    let (_, _, files) = watch.end();
    discard(app, job, &files);
}

fn discard(app: &App, job: &Running, files: &[PathBuf]) {
    tracing::warn!(job = job.id, "the job was taken from this worker; what it made is deleted");
    for file in files {
        if let Err(error) = app.remove(file) {
            tracing::warn!(job = job.id, "{}: {error}", file.display());
        }
    }
}

/// The job waits again. In memory, too, where the server goes on.
fn put_back(app: &App, job: &Running, goes_on: bool) {
    if let Err(error) = app.store.put_back(&job.claim) {
        tracing::error!(job = job.id, "{error}");
    }
    if app.store.is_shared() {
        return app.tell_all(Bulletin::Changed);
    }
    if goes_on && !app.is_stopping() {
        app.queue.done(job);
        app.put_back(&job.id);
    }
}

/// Jobs that two servers ended with: they are not tried a third time.
pub fn give_up(app: &App, ids: &[String]) {
    for id in ids {
        let message = "the server ended twice while this job ran, so it is not tried again";
        let error = error_of(id, None, &Problem::new(Kind::NodeFailed, message), &[]);
        let messages = serde_json::json!([["execution_error", error]]);
        let (outputs, ended) = (serde_json::json!({}), now());
        let finished =
            Finished { state: State::Failed, ended, outputs, messages, error: Some(error) };
        let claim = Claim { id: id.clone(), token: String::new() };
        if let Err(error) = app.store.finish(&claim, &finished, app.options.history_limit) {
            tracing::error!(job = id, "{error}");
        }
    }
}

/// What a plan is of, where there is one.
pub type Planned<'a> = (&'a Plan, &'a Graph);
