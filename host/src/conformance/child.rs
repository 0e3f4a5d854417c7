//! The checks in a process of their own, so that a library that crashes is a failed check.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::{Check, Event, Outcome, Report, library};
use crate::process;
use crate::supervisor::pass_on;

/// A call with made-up inputs is small; one that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the checks of process `id` write what output nodes make.
pub(super) fn folder(id: u32) -> PathBuf {
    std::env::temp_dir().join(format!("kosmograph-check-{id}"))
}

/// Runs the checks here and writes each event as a line for [`check_in_child`]. Whatever a library
/// prints goes to standard error; so do the checks of what it leaves to be done at the end of the process.
pub fn report_here(path: &Path) {
    process::end_with_parent();
    process::bound_memory(None);
    // If the parent is gone there is nobody to tell.
    let Ok(mut out) = process::take_stdout() else { return };
    let process = std::process::id();
    library::check_watched(path, &mut |event| {
        let is_copy = std::process::id() != process;
        let event = if is_copy { &Event::Forked } else { event };
        if let Ok(mut line) = serde_json::to_vec(event) {
            line.push(b'\n');
            let _ = out.write_all(&line);
        }
        if is_copy {
            process::end_at_once(0);
        }
    });
}

/// Runs the checks in a child: this program with the arguments `check-plugin --here PATH`, which calls
/// [`report_here`]. A crash, an abort or a hang is a failed check that names what was being done.
///
/// # Errors
/// When the child cannot be started.
pub fn check_in_child(path: &Path) -> std::io::Result<Report> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["check-plugin", "--here"]).arg(path);
    watch(command, path, PATIENCE)
}

/// Starts `command` and puts its events together; `patience` is the longest it may say nothing.
fn watch(mut command: Command, path: &Path, patience: Duration) -> std::io::Result<Report> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let stderr = child.stderr.take();
    // What Rust's runtime says of an end is said in the report's own sentence.
    let (printed, printing) = channel::<()>();
    let thread = || std::thread::Builder::new().name("check".into());
    let passing_on = thread().spawn(move || {
        let Some(stderr) = stderr else { return };
        pass_on(stderr, &|bytes| drop(std::io::stderr().write_all(bytes)), &Mutex::default());
        drop(printed);
    });
    let (sender, events) = channel();
    let stdout = child.stdout.take();
    let reader = thread().spawn(move || {
        let Some(stdout) = stdout else { return };
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let Ok(event) = serde_json::from_slice::<Event>(&line) else { continue };
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    let reader = match passing_on.and(reader) {
        Ok(reader) => reader,
        Err(error) => {
            child.kill().and_then(|()| child.wait())?;
            return Err(error);
        }
    };
    let mut checks = Vec::new();
    let (mut running, mut doing, mut through) = (None, None, false);
    let hangs = loop {
        match events.recv_timeout(patience) {
            Ok(Event::Started(name)) => (running, doing) = (Some(name), None),
            Ok(Event::Doing(what)) => doing = Some(what),
            Ok(Event::Through) => through = true,
            Ok(Event::Forked) => {
                let name = "library: one process comes back from a call".to_owned();
                let doing = doing.as_deref().unwrap_or("called");
                let what = format!("it forked while it was {doing}, and both processes came back");
                // One sentence says it for all calls.
                if !checks.iter().any(|check: &Check| check.name == name) {
                    checks.push(Check { name, outcome: Outcome::Failed(what) });
                }
            }
            Ok(Event::Finished(check)) => {
                running = None;
                checks.push(check);
            }
            Err(RecvTimeoutError::Timeout) => {
                child.kill()?;
                break true;
            }
            Err(RecvTimeoutError::Disconnected) => break false,
        }
    };
    let status = child.wait()?;
    // After a kill, whatever the library started may still hold the pipe; the reader is left to it.
    if !hangs {
        let _ = reader.join();
    }
    // Until what it printed was passed on; what it forked may print for ever.
    let _ = printing.recv_timeout(Duration::from_millis(200));
    // What a killed child could not clean up itself.
    let _ = std::fs::remove_dir_all(folder(child.id()));
    let what = match hangs {
        true => Some(format!("the library was still busy after {} s", patience.as_secs())),
        false if !status.success() || !through => {
            Some(format!("the process ended with {}", process::ending(status)))
        }
        false => None,
    };
    if let Some(what) = what {
        let while_doing = doing.map(|doing| format!(" while it was {doing}")).unwrap_or_default();
        let name = running.unwrap_or_else(|| "library: the process survives".to_owned());
        checks.push(Check { name, outcome: Outcome::Failed(format!("{what}{while_doing}")) });
    }
    Ok(Report { library: path.display().to_string(), checks })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A child played by a shell.
    fn child(script: &str, patience: Duration) -> Report {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        watch(command, Path::new("x.so"), patience).unwrap()
    }

    const EVENTS: &str = r#"
        printf 'half a line of nobody'
        printf '\n{"started":"A: loads"}\n'
        printf '\n{"finished":{"name":"A: loads","outcome":"passed"}}\n'
        printf '\n{"started":"B: runs"}\n'
        printf '\n{"doing":"called without image"}\n'
    "#;

    #[test]
    fn a_crash_names_what_was_being_done() {
        let report = child(&format!("{EVENTS} kill -SEGV $$"), PATIENCE);
        let failed: Vec<&Check> = report.failures().collect();
        assert_eq!((report.checks.len(), failed.len()), (2, 1));
        assert_eq!(failed[0].name, "B: runs");
        let wanted = "the process ended with SIGSEGV (segmentation fault) while it was called without \
                      image";
        assert_eq!(failed[0].outcome, Outcome::Failed(wanted.to_owned()));
    }

    #[test]
    fn a_hang_ends() {
        let report = child(&format!("{EVENTS} exec sleep 100"), Duration::from_millis(300));
        let text = report.to_string();
        assert!(text.contains("FAILED   B: runs: the library was still busy"), "{text}");
    }

    #[test]
    fn an_exit_in_the_middle_is_no_end() {
        let report = child(&format!("{EVENTS} exit 0"), PATIENCE);
        let text = report.to_string();
        assert!(text.contains("FAILED   B: runs: the process ended with exit code 0"), "{text}");
    }

    #[test]
    fn an_end_in_peace_is_a_report() {
        let finished = r#"printf '\n{"finished":{"name":"A","outcome":{"skipped":"b"}}}\n'"#;
        let report = child(&format!(r#"{finished}; printf '"through"\n'"#), PATIENCE);
        assert!(report.passed(), "{report}");
        assert!(report.to_string().contains("skipped  A: b"));
    }
}
