//! `kosmograph worker --queue …`: takes jobs from a queue that many machines share, and runs them as the server
//! of one machine does.

use crate::access::Access;
use crate::app::{App, Options};
use crate::args::Worker;
use crate::queue::{Queue, Why};
use crate::start::{self, REFUSED, look_after};
use crate::{engine, fleet, keep, run};
use kosmograph::execute::Budget;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Runs jobs until it is told to end. `None` where the arguments name no queue: then jobs come from standard
/// input, which is the host's business.
pub fn main(args: &Worker) -> Option<ExitCode> {
    let worked = match (&args.shared.queue, args.for_a_queue()) {
        // The processes that run nodes are workers, too; they have no queue of their own.
        (None, None) => return None,
        (None, Some(argument)) => Err(format!(
            "{argument} is for a worker of a queue: say which with --queue URL; without it jobs come from standard input, \
             and each says what it needs (docs/worker.md)"
        )),
        (Some(_), _) => {
            start::prepare();
            args.shared.address().and_then(|address| work(args, &address.unwrap_or_default()))
        }
    };
    Some(match worked {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "error: {sentence}");
            ExitCode::from(REFUSED)
        }
    })
}

fn work(args: &Worker, address: &str) -> Result<(), String> {
    let state = match &args.state {
        Some(folder) => std::path::absolute(folder).map_err(|error| format!("--state: {error}"))?,
        None => start::state_folder(None)?.join("worker"),
    };
    let confined = start::is_confined(args.no_sandbox);
    let (surroundings, bucket) = start::surroundings(&args.places, &args.shared, &state, confined)?;
    for failed in &surroundings.libraries.failed {
        tracing::warn!("{}", failed.reason);
    }
    let engine = engine::open(address, args.shared.queue_ca.as_deref())?;
    let workers = usize::from(args.workers);
    let queue = Queue::new(usize::MAX, workers, 0.0, Vec::new());
    // Nobody can ask this process anything.
    let access = Access::new(None, &[], &[], true, [0; 32]).map_err(|error| error.to_string())?;
    let mut app = App::new(options(args, confined), surroundings, bucket, engine, queue, access);
    app.worker.lease = Duration::from_secs(args.lease);
    let (app, name) = (Arc::new(app), engine::Worker::here().name);
    fleet::work(&app).map_err(|error| error.to_string())?;
    keep::start(&app, None, args.shared.store_cache)
        .map_err(|error| format!("no thread can be started: {error}"))?;
    let program = std::env::current_exe()
        .map_err(|error| format!("the program's own file cannot be found: {error}"))?;
    for number in 0..workers {
        let (app, program) = (app.clone(), program.clone());
        let work = move || run::work(&app, number, program);
        std::thread::Builder::new()
            .name(format!("worker {number}"))
            .spawn(work)
            .map_err(|error| format!("no thread can be started: {error}"))?;
    }
    tracing::info!("{name} takes jobs");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("signals cannot be heard: {error}"))?;
    let result = runtime.block_on(until_told(&app, Duration::from_secs(args.stop_grace)));
    if let Err(error) = app.store.retire(&app.worker.name) {
        tracing::warn!("{error}");
    }
    // What threads still hold goes with the process: a runtime must not be let go of inside another.
    std::mem::forget(app);
    result
}

/// Until a signal says to end, and until what runs then is done or put back.
async fn until_told(app: &Arc<App>, grace: Duration) -> Result<(), String> {
    let cannot = |error: std::io::Error| format!("signals cannot be heard: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    tokio::spawn(look_after(app.clone()));
    let at_once = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => true,
    };
    app.stop();
    let end = Instant::now() + if at_once { Duration::ZERO } else { grace };
    let count = app.queue.running().len();
    tracing::info!("no job is taken any more; {count} run");
    while !app.queue.running().is_empty() && Instant::now() < end {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(20)) => (),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    app.queue.running().iter().for_each(|job| job.stop(Why::ServerEnds));
    let end = Instant::now() + start::STOPPING;
    while !app.queue.running().is_empty() && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

fn options(args: &Worker, confined: bool) -> Options {
    let workers = u64::from(args.workers);
    let memory_limit = (args.places.device.0 == "cpu").then(|| {
        let all = Budget::Percent(100).bytes();
        args.here.memory_limit.unwrap_or((all - (all / 20).min(1 << 30)) / workers)
    });
    let budget = match args.memory_budget {
        budget @ Budget::Percent(_) => budget.bytes() / workers,
        budget => budget.bytes(),
    };
    Options {
        budget,
        memory_limit,
        computing: args.places.computing,
        previews: args.previews,
        sandbox: confined,
        job_timeout: args.job_timeout.map(Duration::from_secs),
        history_limit: args.history_limit,
        upload_limit: 0,
        frontend: None,
        workflows: PathBuf::new(),
        userdata: PathBuf::new(),
        tls: false,
        arguments: Vec::new(),
    }
}
