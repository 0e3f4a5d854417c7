//! From the command line to the server, and back to the shell.

use crate::access::{Access, secret};
use crate::app::{App, Options};
use crate::args::{Serve, Shared};
use crate::bucket::Bucket;
use crate::engine::{self, Engine};
use crate::queue::{Queue, Why};
use crate::store::Store;
use crate::webhook::{self, Webhooks};
use crate::{fleet, keep, listen, routes, run};
use kosmograph::args::Places;
use kosmograph::execute::Budget;
use kosmograph::folders::{Elsewhere, Folders, Given};
use kosmograph::job::Surroundings;
use kosmograph::libraries::Asked;
use kosmograph::process;
use kosmograph::sandbox::Sandbox;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tracing_subscriber::EnvFilter;

/// The exit code where the arguments, or what they name, are wrong.
pub const REFUSED: u8 = 2;

/// How long a job that is put back may take to stop.
pub const STOPPING: Duration = Duration::from_secs(3);

/// Serves until it is told to end.
pub fn main(args: Serve) -> ExitCode {
    prepare();
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "error: {sentence}");
            ExitCode::from(REFUSED)
        }
    }
}

/// Signals, descriptors and the log, of a process that stays.
pub fn prepare() {
    process::ignore_signals(&[Signal::SIGXFSZ]);
    allow_descriptors();
    let wanted = std::env::var("KOSMOGRAPH_LOG").or_else(|_| std::env::var("RUST_LOG"));
    let filter = EnvFilter::try_new(wanted.as_deref().unwrap_or("info"));
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("info"));
    // It fails where another one was set, which then does the work.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .try_init();
}

/// As [`main`], with a sentence about what cannot be.
fn serve(args: Serve) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let addresses: Vec<SocketAddr> = args.listen.iter().map(|listen| listen.0).collect();
    let is_loopback = addresses.iter().all(|address| address.ip().is_loopback());
    if !is_loopback && args.token_file.is_none() && !args.no_auth {
        return Err("--listen: other machines reach this address, so say who may use the server: \
                    --token-file FILE, or --no-auth for everybody"
            .into());
    }
    if args.shared.bucket().is_some() && args.keep_outputs.is_some() {
        return Err(
            "--keep-outputs is for a folder; what a bucket keeps, and for how long, its own \
                    lifecycle rules say"
                .into(),
        );
    }
    let state = state_folder(args.state.as_deref())?;
    let address = args.shared.address()?;
    let own = match &address {
        None => Some(Store::open(&state).map_err(|error| text(&error))?),
        Some(_) => {
            std::fs::create_dir_all(&state)
                .map_err(|error| format!("{}: {error}", state.display()))?;
            None
        }
    };
    let secret = secret(&state).map_err(|error| format!("{}: {error}", state.display()))?;
    let access =
        Access::new(args.token_file.as_deref(), &args.cors, &args.host_name, is_loopback, secret)
            .map_err(|error| text(&error))?;
    let tls = match (&args.tls_certfile, &args.tls_keyfile) {
        (Some(certificate), Some(key)) => Some(listen::tls(certificate, key)?),
        _ => None,
    };
    let webhooks = Webhooks::of(&args.webhooks)?;
    // Before libraries are looked through: a port that is taken is told at once.
    let listeners = addresses.iter().map(bind).collect::<Result<Vec<_>, _>>()?;
    let confined = is_confined(args.no_sandbox);
    let (surroundings, bucket) = surroundings(&args.places, &args.shared, &state, confined)?;
    for failed in &surroundings.libraries.failed {
        tracing::warn!("{}", failed.reason);
    }
    let mut lost = Vec::new();
    let (engine, queue): (Box<dyn Engine>, Queue) = match (own, &address) {
        (Some(store), _) => {
            let again;
            (again, lost) = store.running_at_start().map_err(|error| text(&error))?;
            let waiting = store.waiting().map_err(|error| text(&error))?;
            if !waiting.is_empty() {
                let count = waiting.len();
                tracing::info!("{count} jobs wait, of which {again} ran when the server ended");
            }
            let last = store.last_number().map_err(|error| text(&error))?;
            let limit = args.queue_limit.max(waiting.len());
            (Box::new(store), Queue::new(limit, usize::from(args.workers), last, waiting))
        }
        (None, address) => {
            let engine = engine::open(
                address.as_deref().unwrap_or_default(),
                args.shared.queue_ca.as_deref(),
            )?;
            (engine, Queue::new(args.queue_limit, 0, 0.0, Vec::new()))
        }
    };
    // Those of a shared queue are processes of their own.
    let workers = if engine.is_shared() { 0 } else { usize::from(args.workers) };
    let options = options(&args, &state, confined)?;
    if let Some(frontend) = &options.frontend {
        tracing::info!("the official frontend is {}", frontend.display());
    }
    if args.no_auth {
        tracing::warn!("--no-auth: everybody who reaches this server may use it");
    }
    let mut app = App::new(options, surroundings, bucket, engine, queue, access);
    app.webhooks = webhooks.map(Arc::new);
    let app = Arc::new(app);
    run::give_up(&app, &lost);
    if app.store.is_shared() {
        fleet::serve(&app).map_err(|error| text(&error))?;
    }
    keep::start(&app, args.keep_outputs, args.shared.store_cache)
        .map_err(|error| format!("no thread can be started: {error}"))?;
    let program = std::env::current_exe()
        .map_err(|error| format!("the program's own file cannot be found: {error}"))?;
    let threads: Vec<JoinHandle<()>> = (0..workers)
        .map(|number| {
            let (app, program) = (app.clone(), program.clone());
            let work = move || run::work(&app, number, program);
            std::thread::Builder::new().name(format!("worker {number}")).spawn(work)
        })
        .collect::<Result<_, _>>()
        .map_err(|error| format!("no thread can be started: {error}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .map_err(|error| format!("the server cannot be started: {error}"))?;
    let grace = Duration::from_secs(args.stop_grace);
    let result = runtime.block_on(until_told(app.clone(), listeners, tls, grace));
    for thread in threads {
        // Its worker ends with it; what a thread that hangs was at is run again.
        if thread.is_finished() {
            let _ = thread.join();
        }
    }
    runtime.shutdown_timeout(Duration::from_millis(200));
    if args.shared.store.is_none() || app.bucket.is_some() {
        let _ = std::fs::remove_dir_all(&app.surroundings.folders.temp);
    }
    // A runtime of the engine's must not be let go of inside another one's thread.
    std::mem::forget(app);
    result
}

/// Answers requests until a signal says to end, and until what runs then is done or put back.
async fn until_told(
    app: Arc<App>,
    listeners: Vec<TcpListener>,
    tls: Option<TlsAcceptor>,
    grace: Duration,
) -> Result<(), String> {
    let cannot = |error: std::io::Error| format!("the server cannot be started: {error}");
    let router = routes::router(app.clone());
    let room = Arc::new(Semaphore::new(listen::MOST));
    let scheme = if tls.is_some() { "https" } else { "http" };
    for listener in listeners {
        let address = listener.local_addr().map_err(cannot)?;
        listener.set_nonblocking(true).map_err(cannot)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(cannot)?;
        tokio::spawn(listen::serve(listener, router.clone(), tls.clone(), room.clone()));
        tracing::info!("listening at {scheme}://{address}");
    }
    if !app.store.is_shared() {
        tokio::spawn(look_after(app.clone()));
    }
    if let Some(webhooks) = &app.webhooks {
        listen::use_ring();
        tokio::spawn(webhook::deliver(app.clone(), webhooks.clone()));
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let at_once = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => true,
    };
    app.stop();
    let end = Instant::now() + if at_once { Duration::ZERO } else { grace };
    if app.store.is_shared() {
        // Nothing runs here.
        return Ok(());
    }
    if !app.queue.running().is_empty() && !at_once {
        tracing::info!(
            "the server ends when what runs is done, in {} s at the latest",
            grace.as_secs()
        );
    }
    while !app.queue.running().is_empty() && Instant::now() < end {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(20)) => (),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    let running = app.queue.running();
    running.iter().for_each(|job| job.stop(Why::ServerEnds));
    let end = Instant::now() + STOPPING;
    while !app.queue.running().is_empty() && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Whoever submitted hears that it is over before the sockets close.
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(())
}

/// Tells progress that came too quickly, repeats it to clients of silent nodes, and ends jobs that take too long.
pub async fn look_after(app: Arc<App>) {
    let mut ticks = tokio::time::interval(run::states::LOOK);
    loop {
        ticks.tick().await;
        for job in app.queue.running() {
            if app.options.job_timeout.is_some_and(|most| job.since.elapsed() > most) {
                job.stop(Why::TookTooLong);
            }
            run::states::tell(&app, &job, false);
            run::states::repeat(&app, &job);
        }
    }
}

fn bind(address: &SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            let (address, port) = (address.ip(), address.port());
            format!("--listen: the port {port} of {address} is taken; another server listens there")
        }
        _ => format!("--listen {address}: {error}"),
    })
}

/// Every client is an open file, and what a shell allows is few.
fn allow_descriptors() {
    const WANTED: u64 = 16_384;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, WANTED.min(hard).max(soft), hard)
    });
    if let Err(error) = raised {
        tracing::warn!("the number of open files cannot be raised: {error}");
    }
}

/// Whether workers can be confined, and are to be; where they are not that is said loudly.
pub fn is_confined(no_sandbox: bool) -> bool {
    let is_possible = Sandbox::is_possible();
    if no_sandbox {
        tracing::warn!(
            "--no-sandbox: node libraries may read, write and send whatever this user may"
        );
    } else if !is_possible {
        tracing::warn!(
            "this system has no Landlock: node libraries may read, write and send whatever this user may"
        );
    }
    is_possible && !no_sandbox
}

pub fn state_folder(given: Option<&Path>) -> Result<PathBuf, String> {
    if let Some(folder) = given {
        return std::path::absolute(folder).map_err(|error| format!("--state: {error}"));
    }
    let absolute = |name| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let states = absolute("XDG_STATE_HOME")
        .or(absolute("HOME").map(|home| home.join(".local/state")))
        .ok_or("there is no home folder; say where queue and history are kept with --state DIR")?;
    Ok(states.join("kosmograph"))
}

pub fn surroundings(
    places: &Places,
    shared: &Shared,
    state: &Path,
    confined: bool,
) -> Result<(Surroundings, Option<Arc<Bucket>>), String> {
    let made = |path: &Path| {
        let made = std::fs::create_dir_all(path);
        made.map_err(|error| format!("{}: the folder cannot be made: {error}", path.display()))
    };
    let store = shared.folder(state);
    let bucket = match (shared.bucket(), &store) {
        (Some(address), Some(copy)) => {
            let copy = std::path::absolute(copy).map_err(|error| format!("--state: {error}"))?;
            Some(Arc::new(Bucket::open(address, copy)?))
        }
        _ => None,
    };
    let below = |name: &str| store.as_ref().map(|store| store.join(name));
    let input = below("input").or(places.input.clone()).unwrap_or_else(|| "input".into());
    let out = below("output").or(places.out.clone());
    made(&input)?;
    let given = Given {
        models: &places.models,
        extra_model_paths: &places.extra_model_paths,
        input: Some(&input),
        output: out.as_deref(),
        workflow: None,
    };
    let mut folders = Folders::find(given).map_err(|error| error.to_string())?;
    made(&folders.output)?;
    match below("temp") {
        // Others may be about to show them.
        Some(temp) => {
            folders.temp = std::path::absolute(temp).map_err(|error| error.to_string())?;
        }
        // Previews of an earlier server are nobody's any more.
        None => {
            folders.temp = state.join("temp");
            let _ = std::fs::remove_dir_all(&folders.temp);
        }
    }
    made(&folders.temp)?;
    folders.of_clients = true;
    folders.elsewhere = bucket.clone().map(|bucket| bucket as Arc<dyn Elsewhere>);
    let asked = if confined { Asked::Confined } else { Asked::Freely };
    let surroundings = Surroundings::asked(folders, places, asked);
    Ok((surroundings.map_err(|problem| problem.to_string())?, bucket))
}

/// The arguments as clients may see them: without what may be a password.
fn arguments(all: impl Iterator<Item = String>) -> Vec<String> {
    let mut is_address = false;
    let hide = |argument: String| {
        let hidden = match argument.strip_prefix("--queue=") {
            Some(_) => Some("--queue=…".to_owned()),
            None => is_address.then(|| "…".to_owned()),
        };
        is_address = argument == "--queue";
        hidden.unwrap_or(argument)
    };
    all.map(hide).collect()
}

fn options(args: &Serve, state: &Path, confined: bool) -> Result<Options, String> {
    let frontend = match &args.frontend {
        Some(folder) if folder.join("index.html").is_file() => Some(folder.clone()),
        Some(folder) => {
            return Err(format!(
                "--frontend {}: there is no index.html; the folder comfyui_frontend_package/static has one",
                folder.display()
            ));
        }
        None if args.no_frontend => None,
        None => routes::installed_frontend(),
    };
    let memory_limit = (args.places.device.0 == "cpu").then(|| {
        args.memory_limit.map_or_else(
            || {
                let all = Budget::Percent(100).bytes();
                (all - (all / 20).min(1 << 30)) / u64::from(args.workers)
            },
            Budget::bytes,
        )
    });
    let budget = match args.memory_budget {
        // Of all there is: workers share it.
        budget @ Budget::Percent(_) => budget.bytes() / u64::from(args.workers),
        budget => budget.bytes(),
    };
    let user = args.shared.folder(state).unwrap_or_else(|| state.to_owned());
    let userdata = user.join("user/default");
    // The editor asks for these at once, and takes a folder that is not there for trouble.
    for folder in ["workflows", "subgraphs"].map(|name| userdata.join(name)) {
        std::fs::create_dir_all(&folder)
            .map_err(|error| format!("{}: the folder cannot be made: {error}", folder.display()))?;
    }
    Ok(Options {
        budget,
        memory_limit,
        computing: args.places.computing,
        previews: args.previews,
        sandbox: confined,
        job_timeout: args.job_timeout.map(Duration::from_secs),
        history_limit: args.history_limit,
        upload_limit: usize::try_from(args.upload_limit.bytes()).unwrap_or(usize::MAX),
        frontend,
        workflows: args.workflows.clone().unwrap_or_else(|| "workflows".into()),
        userdata,
        tls: args.tls_certfile.is_some(),
        arguments: arguments(std::env::args()),
    })
}
