//! What a node library does to itself costs its node, and what needs that node: not the program, and not a picture
//! that was made.
//!
//! Every test runs the program on a graph that saves a picture before the faulty node, has one that needs it, and
//! two branches that do not. The libraries are `tests/hostile/faulty.c`, each with one fault of its list.
#![cfg(target_os = "linux")]

mod interrupted;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use kosmograph_tests::{Finished, Run, build_c_text, build_cpp_text};
use serde_json::{Value, json};

/// The library with that fault: `libfaulty_NAME.so`. Built once, though several tests take it.
fn faulty(fault: &str) -> PathBuf {
    static BUILT: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let build = || {
        let define = format!("-DFAULT={fault}");
        let source = include_str!("../../hostile/faulty.c");
        let arguments = [OsStr::new(&define), OsStr::new("-pthread")];
        build_c_text(&format!("faulty_{fault}"), source, &arguments)
    };
    built.entry(fault.to_owned()).or_insert_with(build).clone()
}

fn throws() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || build_cpp_text("throws", include_str!("../../hostile/throws.cpp"));
    BUILT.get_or_init(build).clone()
}

fn file_name(library: &Path) -> String {
    library.file_name().expect("a library has a name").to_string_lossy().into_owned()
}

fn graph(class: &str) -> Value {
    let node = |class: &str, inputs: Value| json!({"class_type": class, "inputs": inputs});
    let empty = |color: u32| {
        node("EmptyImage", json!({"width": 32, "height": 32, "batch_size": 1, "color": color}))
    };
    let save = |images: &str, prefix: &str| {
        node("SaveImage", json!({"images": [images, 0], "filename_prefix": prefix}))
    };
    json!({
        "a": empty(0x336699),
        "s1": save("a", "before"),
        "bad": node(class, json!({"image": ["s1", 0]})),
        "s2": save("bad", "after"),
        "e": empty(255),
        "s3": save("e", "other"),
        // Needs what was computed before the fault, too.
        "i": node("ImageInvert", json!({"image": ["a", 0]})),
        "s4": save("i", "again"),
    })
}

/// The nodes that the graph has, and those that do not need the faulty one.
const NODES: [&str; 8] = ["a", "s1", "bad", "s2", "e", "s3", "i", "s4"];
const BESIDE: [&str; 3] = ["before_00001_.png", "other_00001_.png", "again_00001_.png"];

/// A workflow in a folder of its own, and a word by which its processes are known.
struct Job {
    folder: tempfile::TempDir,
    mark: String,
}

/// What every process of a job has in its environment.
const MARK: &str = "ISOLATION_TEST_MARK";

impl Job {
    fn new(graph: &Value) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("graph.json"), graph.to_string()).expect("a file");
        let mark = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self { folder, mark }
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// `kosmograph run` with the project's libraries and one more.
    fn run(&self, library: &Path) -> Run {
        let run = Run::new("run").with_plugins().arg("--plugins").arg(library);
        run.arg("--out")
            .arg(self.out())
            .arg(self.folder.path().join("graph.json"))
            .env(MARK, &self.mark)
            .limit(Duration::from_secs(60))
    }

    /// The ids of its processes. A zombie has no environment, and is none.
    fn processes(&self) -> Vec<u32> {
        let wanted = format!("{MARK}={}", self.mark).into_bytes();
        let entries = fs::read_dir("/proc").expect("/proc").flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let ours = |id: &u32| {
            let environment = fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == wanted)
        };
        ids.filter(ours).collect()
    }

    #[track_caller]
    fn expect_no_processes(&self) {
        // The system takes a moment to end a process whose parent is gone.
        let begin = Instant::now();
        while !self.processes().is_empty() {
            let left = self.processes();
            assert!(begin.elapsed() < Duration::from_secs(10), "processes are left: {left:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The names of what is in the output folder. What a worker was writing when it was ended keeps its
    /// hidden name, until the next run into the folder removes it.
    fn made(&self) -> BTreeSet<String> {
        let Ok(entries) = fs::read_dir(self.out()) else { return BTreeSet::new() };
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        let names = entries.map(|entry| name(entry.expect("an entry")));
        names.filter(|name| !(name.starts_with(".kosmograph-") && name.ends_with(".tmp"))).collect()
    }
}

/// A run with `--json` that has ended.
struct Ended {
    job: Job,
    finished: Finished,
    events: Vec<Value>,
}

fn run_with(library: &Path) -> Ended {
    run_graph(&graph("Faulty"), library)
}

fn run_graph(graph: &Value, library: &Path) -> Ended {
    let job = Job::new(graph);
    let finished = job.run(library).arg("--json").run();
    let events = finished.json_lines();
    let ended = Ended { job, finished, events };
    ended.expect_sound();
    ended
}

impl Ended {
    fn of(&self, event: &str) -> Vec<&Value> {
        self.events.iter().filter(|found| found["event"] == event).collect()
    }

    /// The names of the files that `output` events tell of; each once.
    #[track_caller]
    fn told(&self) -> BTreeSet<String> {
        let mut told = BTreeSet::new();
        for event in self.of("output") {
            for file in event["files"].as_array().expect("a list of files") {
                let path = Path::new(file.as_str().expect("a path"));
                assert_eq!(path.parent(), Some(&*self.job.out()), "{}", self.finished);
                assert!(told.insert(file_name(path)), "{file} is told twice in\n{}", self.finished);
            }
        }
        told
    }

    /// What holds after any run, whatever the library did.
    #[track_caller]
    fn expect_sound(&self) {
        let finished = &self.finished;
        let last = self.events.last().unwrap_or_else(|| panic!("no event in\n{finished}"));
        assert_eq!(last["event"], "done", "{finished}");
        assert_eq!(self.of("done").len(), 1, "{finished}");
        let failed = self.of("error").len();
        assert_eq!(last["failed"], failed, "{finished}");
        assert_eq!(finished.code, Some(if failed > 0 { 3 } else { 0 }), "{finished}");
        // Every picture is told, whole, and nothing else lies there.
        assert_eq!(self.job.made(), self.told(), "{finished}");
        for name in self.told() {
            let picture = image::open(self.job.out().join(&name));
            assert!(picture.is_ok(), "{name} is no picture: {picture:?}\n{finished}");
        }
        let ids: BTreeSet<&str> = self.events.iter().filter_map(|e| e["node"].as_str()).collect();
        assert!(ids.iter().all(|id| NODES.contains(id)), "{finished}");
        for id in NODES {
            let about = |event: &str| self.of(event).iter().filter(|e| e["node"] == id).count();
            let (done, error) = (about("node_done"), about("error"));
            let (started, skipped) = (about("node_started"), about("skipped"));
            assert!(done + error + skipped + about("cached") >= 1, "{id} in\n{finished}");
            // A library that breaks its process after the call fails a node that is done.
            assert!(error + skipped <= 1 && started >= done.max(error), "{id} in\n{finished}");
        }
        for text in ["panicked at", "stack backtrace", "RUST_BACKTRACE"] {
            let said = format!("{}{}", finished.stdout(), finished.stderr());
            assert!(!said.contains(text), "{text:?} in\n{finished}");
        }
        self.job.expect_no_processes();
    }

    /// The node failed by the library's fault, and nothing else did. Returns the sentence.
    #[track_caller]
    fn expect_failed(&self, library: &Path) -> String {
        let finished = &self.finished;
        let errors = self.of("error");
        assert_eq!(errors.len(), 1, "{finished}");
        assert_eq!(errors[0]["kind"], "node_failed", "{finished}");
        assert_eq!((&errors[0]["node"], &errors[0]["class"]), (&json!("bad"), &json!("Faulty")));
        let skipped = self.of("skipped");
        assert_eq!(skipped.len(), 1, "{finished}");
        assert_eq!(skipped[0]["node"], "s2", "{finished}");
        assert_eq!(skipped[0]["because_of"], "bad", "{finished}");
        assert_eq!(self.told(), BESIDE.map(String::from).into(), "{finished}");
        let message = errors[0]["message"].as_str().expect("a sentence").to_owned();
        assert!(message.contains(&file_name(library)), "{message:?} names no library");
        message
    }

    /// All went well.
    #[track_caller]
    fn expect_whole(&self) {
        let mut all: BTreeSet<String> = BESIDE.map(String::from).into();
        all.insert("after_00001_.png".into());
        assert_eq!(self.told(), all, "{}", self.finished);
        assert_eq!(self.finished.code, Some(0), "{}", self.finished);
    }
}

/// The library costs its node, and the sentence says one of `endings`.
#[track_caller]
fn expect_death(fault: &str, endings: &[&str]) {
    let library = faulty(fault);
    let message = run_with(&library).expect_failed(&library);
    assert!(!message.contains("loaded"), "{fault}: it was loaded before: {message}");
    assert!(endings.iter().any(|ending| message.contains(ending)), "{fault}: {message}");
}

// ---- The process of the node ends ------------------------------------------------------------

#[test]
fn a_library_that_is_right_runs_as_ever() {
    run_with(&faulty("none")).expect_whole();
}

#[test]
fn a_signal_is_named() {
    expect_death("segv", &["SIGSEGV"]);
    expect_death("abort", &["SIGABRT"]);
    expect_death("division", &["SIGFPE"]);
    expect_death("illegal", &["SIGILL", "SIGTRAP"]);
    expect_death("bus", &["SIGBUS"]);
    expect_death("sigkill", &["SIGKILL"]);
    expect_death("alarm", &["SIGALRM"]);
    expect_death("trap_in_thread", &["SIGSEGV"]);
}

#[test]
fn an_exit_is_no_success() {
    expect_death("exit0", &["exit code 0"]);
    expect_death("exit7", &["exit code 7"]);
    expect_death("quick_exit0", &["exit code 0"]);
    expect_death("quick_exit9", &["exit code 9"]);
    // Another program in its place, which ends well.
    expect_death("exec", &["exit code 0"]);
}

#[test]
fn a_file_that_had_its_name_and_was_not_told_is() {
    let run = run_with(&faulty("output_untold"));
    let mut told: BTreeSet<String> = BESIDE.map(String::from).into();
    told.insert("untold.png".into());
    assert_eq!(run.told(), told, "{}", run.finished);
    assert_eq!(run.of("error").len(), 1, "{}", run.finished);
    // Nor is anything left of one that had not.
    let run = run_with(&faulty("output_unnamed"));
    assert_eq!(run.told(), BESIDE.map(String::from).into(), "{}", run.finished);
    assert!(!run.job.out().join(".faulty.tmp").exists());
}

#[test]
fn a_stack_that_overflows() {
    // Rust's own guard turns the first into the second.
    expect_death("stack", &["SIGSEGV", "SIGABRT"]);
}

#[test]
fn a_signal_to_end_that_the_library_sends_itself() {
    // It is no wish of the user's.
    expect_death("sigterm", &["SIGTERM"]);
}

#[test]
fn an_exception_of_cpp() {
    let library = throws();
    let message = run_with(&library).expect_failed(&library);
    assert!(message.contains("SIGABRT"), "{message}");
}

#[test]
fn a_grandchild_that_lives_on_holds_nothing_up() {
    expect_death("fork_hangs", &["SIGABRT"]);
}

#[test]
fn all_descriptors_closed() {
    let library = faulty("close_all");
    run_with(&library).expect_failed(&library);
}

#[test]
fn half_a_line_of_a_dying_process_is_not_believed() {
    expect_death("forged_half", &["exit code 0"]);
}

#[test]
fn the_pictures_are_told_without_json_too() {
    let library = faulty("exit0");
    let job = Job::new(&graph("Faulty"));
    let finished = job.run(&library).expect_code(3);
    for name in BESIDE {
        assert!(finished.stdout().contains(name), "{name} is not told in\n{finished}");
    }
    assert_eq!(job.made(), BESIDE.map(String::from).into());
    let finished = finished.stderr_contains("libfaulty_exit0.so").stderr_contains("exit code 0");
    finished.stderr_lacks("panicked");
    job.expect_no_processes();
}

// ---- The process of the node lives on --------------------------------------------------------

#[test]
fn the_libraries_own_descriptors_are_not_the_events() {
    run_with(&faulty("stdout_text")).expect_whole();
    // It costs the node: others of its process may have lost something by it.
    for (fault, closed) in
        [("close0", "standard input"), ("close1", "standard output"), ("close2", "standard error")]
    {
        let library = faulty(fault);
        let message = run_with(&library).expect_failed(&library);
        assert!(message.contains(closed), "{fault}: {message}");
    }
}

#[test]
fn events_of_a_node_that_is_not_in_the_plan_are_not_believed() {
    // The run may go on or end the node: what is told is sound, and that is looked at for each run.
    run_with(&faulty("forged"));
}

#[test]
fn what_a_library_changes_about_its_process() {
    for fault in ["chdir", "handler", "handler_int", "mask", "altstack", "environment", "locale"] {
        run_with(&faulty(fault)).expect_whole();
    }
    // What is lowered for good is set back by who may, and else costs the node and its process.
    for fault in ["limit_file", "limit_open", "limit_data", "umask"] {
        let ended = run_with(&faulty(fault));
        let told = ended.told();
        assert!(BESIDE.iter().all(|name| told.contains(*name)), "{fault}: {}", ended.finished);
        assert!(ended.of("error").iter().all(|error| error["node"] == "bad"), "{}", ended.finished);
    }
}

#[test]
fn a_context_that_is_used_after_the_call() {
    run_with(&faulty("late_call"));
}

#[test]
fn a_crash_after_the_call_costs_no_picture() {
    run_with(&faulty("late_crash"));
}

#[test]
fn a_crash_at_the_end_of_the_process_is_too_late_to_matter() {
    for fault in ["atexit_crash", "atexit_hang", "atexit_exit0", "late_loop"] {
        run_with(&faulty(fault)).expect_whole();
    }
}

#[test]
fn memory_that_is_not_the_librarys() {
    // What of it the C library notices depends on luck; what was made and told does not.
    for fault in ["double_release", "free_host", "dangling", "too_small"] {
        run_with(&faulty(fault));
    }
    let library = faulty("write_past");
    run_with(&library).expect_failed(&library);
}

// ---- Before any node runs --------------------------------------------------------------------

/// A fault of the constructor, of the descriptor or of the exported function.
const WHEN_LOADED: [&str; 13] = [
    "ctor_segv",
    "ctor_abort",
    "ctor_exit0",
    "ctor_exit3",
    "ctor_hang",
    "ctor_deaf",
    "ctor_fork",
    "desc_dangling",
    "desc_large",
    "symbol_segv",
    "symbol_hang",
    "desc_deep",
    "symbol_null",
];

#[test]
fn a_library_that_cannot_be_described_costs_itself_alone() {
    for fault in WHEN_LOADED {
        let library = faulty(fault);
        let named = || Run::new("plugins").with_plugins().arg("--plugins").arg(&library);
        let limit = Duration::from_secs(60);
        let plugins = named().arg("--json").limit(limit).expect_success().json();
        let failed = plugins["failed"].as_array().expect("a list");
        assert_eq!(failed.len(), 1, "{fault}: {plugins:#}");
        let reason = failed[0]["reason"].as_str().expect("a sentence");
        assert!(reason.contains(&file_name(&library)), "{fault}: {reason}");
        let libraries = plugins["libraries"].as_array().expect("a list");
        assert!(libraries.len() >= 3, "{fault}: the others are not there: {plugins:#}");
        named().limit(limit).expect_success().stdout_contains("not loaded: ");
        // And a graph that does not need it runs.
        run_graph(&graph("ImageInvert"), &library).expect_whole();
    }
}

#[test]
fn the_sentence_about_a_library_says_what_became_of_it() {
    let said = |fault: &str| {
        let library = faulty(fault);
        let plugins = Run::new("plugins").arg("--plugins").arg(library).arg("--json");
        let plugins = plugins.expect_success().json();
        plugins["failed"][0]["reason"].as_str().expect("a sentence").to_owned()
    };
    for (fault, wanted) in [
        ("ctor_segv", "SIGSEGV"),
        ("ctor_exit0", "exit code 0"),
        ("ctor_hang", "5 s"),
        ("desc_dangling", "SIGSEGV"),
    ] {
        let reason = said(fault);
        assert!(reason.contains(wanted), "{fault}: {reason}");
    }
}

#[test]
fn a_class_of_a_library_that_cannot_be_described_is_missing_and_says_why() {
    let job = Job::new(&graph("Faulty"));
    let finished = job.run(&faulty("ctor_segv")).expect_code(3);
    let finished = finished.stderr_contains("libfaulty_ctor_segv.so").stderr_contains("Faulty");
    finished.stderr_contains("s2 (SaveImage) is left out");
    assert_eq!(job.made().len(), 3, "what does not need it is made: {:?}", job.made());
}

// ---- check-plugin ----------------------------------------------------------------------------

#[test]
fn check_plugin_fails_what_costs_its_process() {
    let check = |library: &Path| {
        let run = Run::new("check-plugin").arg(library).limit(Duration::from_secs(200));
        run.expect_code(3).stdout_contains("FAILED")
    };
    for fault in [
        "segv",
        "abort",
        "exit0",
        "exit7",
        "quick_exit0",
        "stack",
        "close1",
        "close2",
        "close_all",
        "handler",
        "handler_int",
        "mask",
        "limit_file",
        "limit_open",
        "late_call",
        "fork_returns",
        "ctor_segv",
        "ctor_exit0",
        "desc_dangling",
        "desc_large",
    ] {
        let finished = check(&faulty(fault));
        assert!(!finished.stderr().contains("panicked"), "{fault}: {finished}");
    }
    let finished = check(&throws());
    assert!(!finished.stderr().contains("fatal runtime error"), "{finished}");
    // What is right passes.
    Run::new("check-plugin").arg(faulty("none")).expect_success();
}
