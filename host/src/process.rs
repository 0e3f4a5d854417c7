//! A child process of this program that runs a stranger's code: how it keeps its pipes out of that
//! code's reach, how it ends with its parent, and how its own end is told in a sentence.

mod state;

pub use state::{Changes, State};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;
use nix::unistd::{dup2_stdin, dup2_stdout};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

/// Takes over standard output: what is written to the result goes where standard output went, and
/// whatever prints from now on goes to standard error.
///
/// # Errors
/// Standard output or standard error is closed.
pub fn take_stdout() -> io::Result<File> {
    let taken = out_of_reach(io::stdout().as_fd())?;
    dup2_stdout(io::stderr().as_fd())?;
    Ok(taken)
}

/// Takes over standard input: the result reads what standard input had, and standard input is empty.
///
/// # Errors
/// Standard input is closed, or there is no /dev/null.
pub fn take_stdin() -> io::Result<File> {
    let taken = out_of_reach(io::stdin().as_fd())?;
    dup2_stdin(open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)?;
    Ok(taken)
}

/// The same open file under a number that nobody meets who closes "all" descriptors from 0 up, and
/// that no program started from here inherits.
fn out_of_reach(fd: impl AsFd) -> io::Result<File> {
    // Where the limit on numbers is lower than usual, any will do.
    let high = [900, 200, 3].into_iter().map(|least: RawFd| {
        fcntl(fd.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(least)).map_err(io::Error::from)
    });
    let mut result = Err(io::Error::from(io::ErrorKind::InvalidInput));
    for number in high {
        result = number;
        if result.is_ok() {
            break;
        }
    }
    // SAFETY: fcntl made the descriptor a moment ago, and nobody else knows its number.
    result.map(|number| File::from(unsafe { OwnedFd::from_raw_fd(number) }))
}

/// Lets this process end when the one that started it does, however that ends. Linux only; elsewhere
/// a pipe that is closed has to say it.
pub fn end_with_parent() {
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
}

/// Ends this process without running what libraries left to be run at its end.
pub fn end_at_once(code: i32) -> ! {
    // SAFETY: _exit does not return and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// The exit code of a process that found a fault of its own when no memory was left under its limit.
pub const NO_MEMORY: i32 = 97;
/// The exit code of a process that cannot begin, as it is given no thread.
pub const NO_THREAD: i32 = 98;

/// Has this process end at once where it panics and no memory is left: the usual report takes memory, and where it gets none it waits for
/// itself for ever. Elsewhere panics are what they are.
pub fn end_where_no_memory_is_left() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if is_memory_left() {
            return usual(info);
        }
        let _ = writeln!(Unbuffered, "{info}");
        end_at_once(NO_MEMORY)
    }));
}

/// Whether as much can be had as a report of a panic may take, names of functions and lines included.
fn is_memory_left() -> bool {
    let layout = std::alloc::Layout::new::<[u8; 32 << 20]>();
    // SAFETY: the layout has a size, and what was allocated is given back with the same one, unused.
    unsafe {
        // What nobody looks at need not be allocated.
        let there = std::hint::black_box(std::alloc::alloc(layout));
        if !there.is_null() {
            std::alloc::dealloc(there, layout);
        }
        !there.is_null()
    }
}

/// Standard error without anything in between, so that nothing is allocated or waited for.
struct Unbuffered;

impl std::fmt::Write for Unbuffered {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        // SAFETY: borrowed for this call only; the process has this descriptor or the call fails.
        let to = unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) };
        nix::unistd::write(to, text.as_bytes()).map(drop).map_err(|_| std::fmt::Error)
    }
}

/// Signals that are no reason to end this process: Ctrl-C in a worker, which its parent hears too and
/// passes on; a file that grows past `ulimit -f`, which is an error of that file then.
pub fn ignore_signals(signals: &[nix::sys::signal::Signal]) {
    for &signal in signals {
        // SAFETY: to ignore a signal runs no code of ours.
        let _ = unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigIgn) };
    }
}

/// Makes this process the one that the system ends first when memory runs out, and bounds its private
/// memory to `bytes`. Mapped model files do not count.
pub fn bound_memory(bytes: Option<u64>) {
    #[cfg(target_os = "linux")]
    {
        // Where it may not be raised the process is as likely to be ended as any other.
        let _ = std::fs::write("/proc/self/oom_score_adj", "600");
        if let Some(bytes) = bytes {
            use nix::sys::resource::{Resource, getrlimit, setrlimit};
            let hard = getrlimit(Resource::RLIMIT_DATA).map_or(u64::MAX, |(_, hard)| hard);
            if let Err(error) = setrlimit(Resource::RLIMIT_DATA, bytes.min(hard), hard) {
                tracing::warn!("memory cannot be bounded to {bytes} bytes: {error}");
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = bytes;
}

/// How a process ended, as the end of a sentence: `exit code 7`, `SIGSEGV (segmentation fault)`.
pub fn ending(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => signal_name(signal),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => status.to_string(),
    }
}

/// The name of a signal and what it means.
pub fn signal_name(signal: i32) -> String {
    let Ok(known) = nix::sys::signal::Signal::try_from(signal) else {
        return format!("signal {signal}");
    };
    use nix::sys::signal::Signal;
    let meaning = match known {
        Signal::SIGSEGV => "segmentation fault",
        Signal::SIGABRT => "abort",
        Signal::SIGBUS => "bus error",
        Signal::SIGFPE => "arithmetic fault",
        Signal::SIGILL => "illegal instruction",
        Signal::SIGTRAP => "trap",
        Signal::SIGSYS => "forbidden system call",
        Signal::SIGKILL => "killed",
        Signal::SIGTERM => "terminated",
        Signal::SIGXCPU => "processor time used up",
        Signal::SIGXFSZ => "file too large",
        _ => return known.as_str().to_owned(),
    };
    format!("{} ({meaning})", known.as_str())
}

/// Has a process that is confined not inherit what this one signs in with: an object store's keys, tokens, passwords.
pub fn keep_secrets(command: &mut Command) {
    let names = std::env::vars_os().map(|(name, _)| name);
    for name in names.filter(|name| is_secret(name)) {
        command.env_remove(name);
    }
}

/// Whether a variable of the environment is likely to have a secret in it: an object store's, a database's, a token.
fn is_secret(name: &OsStr) -> bool {
    let name = name.to_string_lossy().to_ascii_uppercase();
    let is_of = |prefix: &str| name.starts_with(prefix);
    let has = |word: &str| name.split('_').any(|part| part == word);
    is_of("AWS_")
        || is_of("PGPASS")
        || ["SECRET", "TOKEN", "PASSWORD", "CREDENTIALS"].into_iter().any(has)
        || name.ends_with("API_KEY")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_with_secrets() {
        for name in [
            "AWS_ACCESS_KEY_ID",
            "AWS_SESSION_TOKEN",
            "PGPASSWORD",
            "HF_TOKEN",
            "my_secret",
            "OPENAI_API_KEY",
        ] {
            assert!(is_secret(OsStr::new(name)), "{name}");
        }
        for name in [
            "PATH",
            "HOME",
            "RAYON_NUM_THREADS",
            "KOSMOGRAPH_LOG",
            "TOKENIZERS_PARALLELISM",
            "LD_LIBRARY_PATH",
        ] {
            assert!(!is_secret(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn endings_are_named() {
        let end = |script: &str| ending(Command::new("sh").args(["-c", script]).status().unwrap());
        assert_eq!(end("exit 0"), "exit code 0");
        assert_eq!(end("exit 7"), "exit code 7");
        assert_eq!(end("kill -SEGV $$"), "SIGSEGV (segmentation fault)");
        assert_eq!(end("kill -KILL $$"), "SIGKILL (killed)");
        assert_eq!(end("kill -USR1 $$"), "SIGUSR1");
    }
}
