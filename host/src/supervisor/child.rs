//! One worker process: its pipes, its last words, its end.

use super::Setup;
use crate::process::{self, NO_MEMORY, NO_THREAD};
use crate::wire::{Command, Report};
use crate::worker::PIPE_LOST;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{self as std_process, ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Where what a worker prints goes, in pieces as they come.
pub type Stderr = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// The longest line that is read, in bytes: a picture's workflow is a few MB.
const LONGEST_LINE: usize = 256 << 20;

/// How long after a worker's end its last lines may take to be read, on a machine that has much to do.
const LAST_LINES_IN: Duration = Duration::from_millis(500);

/// How many lines may wait to be heard; then the worker waits.
const WAITING: usize = 256;

/// How much of what was printed last is kept, in bytes.
const LAST_WORDS: usize = 4096;

/// What came from a worker.
pub(super) enum Heard {
    Report(Report),
    /// Not in time, or a line that is no report.
    Nothing,
    /// It is no more, or says no more.
    End,
}

/// A worker that was started.
pub(super) struct Child {
    process: std_process::Child,
    commands: Option<ChildStdin>,
    lines: Receiver<Vec<u8>>,
    last_words: Arc<Mutex<VecDeque<u8>>>,
    printing: Option<Receiver<()>>,
}

impl Child {
    pub fn start(setup: &Setup) -> io::Result<Self> {
        let mut command = std_process::Command::new(&setup.program);
        command.arg("worker");
        if let Some(bytes) = setup.memory_limit {
            command.arg("--memory-limit").arg(bytes.to_string());
        }
        if setup.sandbox.is_some() {
            command.arg("--confined");
            process::keep_secrets(&mut command);
        }
        setup.computing.tell(&mut command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own: whatever a library forks ends with the worker.
        command.process_group(0);
        let mut process = command.spawn()?;
        let (sender, lines) = sync_channel(WAITING);
        if let Some(stdout) = process.stdout.take() {
            thread("reports", move || read_lines(stdout, &sender))?;
        }
        let last_words = Arc::new(Mutex::new(VecDeque::new()));
        let (printed, printing) = channel();
        if let Some(stderr) = process.stderr.take() {
            let (to, kept) = (setup.stderr.clone(), last_words.clone());
            thread("printed", move || {
                pass_on(stderr, &*to, &kept);
                drop(printed);
            })?;
        }
        let mut commands = process.stdin.take();
        if let (Some(sandbox), Some(pipe)) = (&setup.sandbox, &mut commands) {
            let mut line = serde_json::to_vec(sandbox)?;
            line.push(b'\n');
            // One that is gone already takes nothing; how it ended is told by whoever waits for it.
            let _ = pipe.write_all(&line);
        }
        Ok(Self { process, commands, lines, last_words, printing: Some(printing) })
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// # Errors
    /// The worker is gone, or does not listen.
    pub fn send(&mut self, command: &Command) -> io::Result<()> {
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        match &mut self.commands {
            Some(pipe) => pipe.write_all(&line).and_then(|()| pipe.flush()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// What comes next, if it comes in time.
    pub fn hear(&mut self, patience: Duration) -> Heard {
        match self.lines.recv_timeout(patience) {
            Ok(line) => match Report::read(&line) {
                Some(report) => Heard::Report(report),
                None => {
                    tracing::warn!("a worker said what is no report: {}", shown(&line));
                    Heard::Nothing
                }
            },
            Err(RecvTimeoutError::Disconnected) => Heard::End,
            Err(RecvTimeoutError::Timeout) => match self.process.try_wait() {
                // What it wrote is in the pipe, but whoever reads that may not have had its turn. What it
                // forked may hold the pipe open for ever.
                Ok(Some(_)) => match self.lines.recv_timeout(LAST_LINES_IN) {
                    Ok(line) => Report::read(&line).map_or(Heard::Nothing, Heard::Report),
                    Err(_) => Heard::End,
                },
                _ => Heard::Nothing,
            },
        }
    }

    /// Ends it if it has not ended by itself, and says how it did, and what it printed last.
    pub fn end(&mut self) -> io::Result<(ExitStatus, String)> {
        // Its pipe is closed when it is about to end: a core dump takes a while.
        let status = match self.wait(Duration::from_millis(200))? {
            Some(status) => status,
            None => {
                self.process.kill()?;
                self.process.wait()?
            }
        };
        self.end_group();
        self.wait_for_printing();
        let last_words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = last_words.iter().copied().collect();
        Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn wait(&mut self, patience: Duration) -> io::Result<Option<ExitStatus>> {
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends what is left of the worker's group: processes that a library forked.
    fn end_group(&self) {
        if let Ok(group) = i32::try_from(self.process.id()) {
            // There may be nobody left.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }

    /// Until all it printed was passed on; what it forked may print for ever.
    fn wait_for_printing(&mut self) {
        if let Some(printing) = self.printing.take() {
            let _ = printing.recv_timeout(Duration::from_millis(200));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // The end of its commands is its end.
        self.commands = None;
        if let Ok(None) | Err(_) = self.wait(Duration::from_secs(1)) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
        self.end_group();
        self.wait_for_printing();
    }
}

fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body)
}

/// Whole lines only: half a line is what a worker left when it ended.
fn read_lines(stdout: impl Read, lines: &SyncSender<Vec<u8>>) {
    let mut stdout = BufReader::with_capacity(64 << 10, stdout);
    loop {
        let mut line = Vec::new();
        let most = (LONGEST_LINE + 1) as u64;
        match stdout.by_ref().take(most).read_until(b'\n', &mut line) {
            Ok(_) if line.last() == Some(&b'\n') => line.pop(),
            // The end, or one that never ends: then the worker is not heard any more.
            _ => return,
        };
        if lines.send(line).is_err() {
            return;
        }
    }
}

/// What Rust's runtime says before it aborts. The supervisor says it in its own sentence ([`ending`]).
const LAST_LINES: [&str; 4] = [
    "memory allocation of ",
    "fatal runtime error: ",
    "thread ",
    "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace",
];

/// Passes on what a process prints, but for what Rust's runtime says before it aborts; `kept` has the last of
/// everything.
pub(crate) fn pass_on(mut stderr: impl Read, to: &dyn Fn(&[u8]), kept: &Mutex<VecDeque<u8>>) {
    let (mut buffer, mut line) = ([0; 4096], Vec::new());
    while let Ok(length @ 1..) = stderr.read(&mut buffer) {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(&buffer[..length]);
        let more = kept.len().saturating_sub(LAST_WORDS);
        kept.drain(..more);
        drop(kept);
        for piece in buffer[..length].split_inclusive(|&byte| byte == b'\n') {
            line.extend_from_slice(piece);
            // Half a line is shown at once, unless it may become one of those.
            if line.ends_with(b"\n") || !may_be_last(&line) {
                if !is_last(&line) {
                    to(&line);
                }
                line.clear();
            }
        }
    }
    if !is_last(&line) {
        to(&line);
    }
}

fn may_be_last(line: &[u8]) -> bool {
    let begins = |marker: &str| {
        let marker = marker.as_bytes();
        line.starts_with(marker) || marker.starts_with(line)
    };
    LAST_LINES.into_iter().any(begins)
}

fn is_last(line: &[u8]) -> bool {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end();
    (text.starts_with(LAST_LINES[0]) && text.ends_with(" bytes failed"))
        || text.starts_with(LAST_LINES[1])
        || text == LAST_LINES[3]
        || (text.starts_with(LAST_LINES[2]) && text.ends_with(" has overflowed its stack"))
}

fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned()
}

/// How a worker ended, as the rest of a sentence that begins with who was at work.
pub(super) fn ending(status: ExitStatus, last_words: &str) -> String {
    if status.code() == Some(PIPE_LOST) {
        return "closed or broke the descriptors of its process".to_owned();
    }
    if status.code() == Some(NO_MEMORY) {
        return "had no memory left under its limit (--memory-limit, ulimit -d) and was ended"
            .to_owned();
    }
    if status.code() == Some(NO_THREAD) {
        let limits =
            "the limits on its memory (--memory-limit) or on the number of processes (ulimit -u)";
        return format!("cannot begin: {limits} leave no room for a thread");
    }
    // A library may send it to itself, but hardly any does.
    if status.signal() == Some(libc::SIGKILL) {
        return "was at work when its process ended with SIGKILL: something outside ended it (often the \
                system, when memory runs out)"
            .to_owned();
    }
    let ending = format!("ended its process with {}", process::ending(status));
    // What Rust's runtime says before it aborts.
    let asked = last_words
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("memory allocation of ")?.strip_suffix(" bytes failed"));
    if let Some(bytes) = asked {
        return format!("{ending}: {bytes} bytes more memory could not be had");
    }
    if last_words.contains("has overflowed its stack") {
        return format!("{ending}: its stack overflowed");
    }
    ending
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(script: &str) -> ExitStatus {
        std_process::Command::new("sh").args(["-c", script]).status().unwrap()
    }

    #[test]
    fn endings_say_what_is_known() {
        assert_eq!(ending(status("exit 0"), ""), "ended its process with exit code 0");
        let said = "x\nmemory allocation of 15999999992 bytes failed\n";
        assert_eq!(
            ending(status("kill -ABRT $$"), said),
            "ended its process with SIGABRT (abort): 15999999992 bytes more memory could not be had"
        );
        let killed = ending(status("kill -KILL $$"), "");
        let said = "SIGKILL: something outside ended it (often the system, when memory runs out)";
        assert!(killed.ends_with(said) && !killed.contains("ended its process"), "{killed}");
        assert!(ending(status(&format!("exit {PIPE_LOST}")), "").contains("descriptors"));
        assert!(ending(status(&format!("exit {NO_MEMORY}")), "").contains("no memory left under"));
        assert!(ending(status(&format!("exit {NO_THREAD}")), "").contains("no room for a thread"));
    }

    #[test]
    fn the_runtimes_last_lines_are_kept_and_not_shown() {
        let said = "one\nmemory allocation of 5 bytes failed\nthread 'main' (7) has overflowed its \
                    stack\nthread safe\nfatal runtime error: stack overflow, aborting\nnote: run with \
                    `RUST_BACKTRACE=1` environment variable to display a backtrace\nhalf";
        let shown = Mutex::new(Vec::new());
        let kept = Mutex::default();
        // In pieces, as a pipe gives them.
        struct Slowly<'a>(&'a [u8]);
        impl Read for Slowly<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let length = self.0.len().min(3);
                buffer[..length].copy_from_slice(&self.0[..length]);
                self.0 = &self.0[length..];
                Ok(length)
            }
        }
        let to = |bytes: &[u8]| shown.lock().unwrap().extend_from_slice(bytes);
        pass_on(Slowly(said.as_bytes()), &to, &kept);
        let shown = String::from_utf8(shown.into_inner().unwrap()).unwrap();
        assert_eq!(shown, "one\nthread safe\nhalf");
        assert_eq!(kept.into_inner().unwrap().len(), said.len());
    }

    #[test]
    fn half_a_line_is_not_believed() {
        let (sender, lines) = sync_channel(8);
        read_lines(&b"one\n\nhalf"[..], &sender);
        drop(sender);
        assert_eq!(lines.iter().collect::<Vec<_>>(), [b"one".to_vec(), vec![]]);
    }
}
