//! What a library may not change of the process it is lent: descriptors, limits, signals, the folder,
//! the mask of new files, the locale. What it did is found after each call, and set back where it can be.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;
use nix::sys::stat::{FileStat, Mode, fstat, umask};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

/// A process as it was.
pub struct State {
    standard: [Standard; 3],
    limits: Vec<(Resource, &'static str, u64, u64)>,
    handlers: Vec<(i32, libc::sigaction)>,
    mask: Option<SigSet>,
    folder: Option<PathBuf>,
    umask: Mode,
    locale: CString,
}

/// One of the standard descriptors.
struct Standard {
    name: &'static str,
    /// The file it led to, kept open to lead there again. `None` where it was closed.
    file: Option<File>,
    identity: Option<(u64, u64)>,
}

/// What is other than it was; each the end of a sentence about who did it: "closed standard output".
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Set back, and nothing was lost.
    pub mended: Vec<String>,
    /// Set back, but others of the process may have lost something by it.
    pub harmful: Vec<String>,
    /// What cannot be set back.
    pub for_good: Vec<String>,
}

impl Changes {
    pub fn all(self) -> Vec<String> {
        let Self { mended, harmful, for_good } = self;
        for_good.into_iter().chain(harmful).chain(mended).collect()
    }
}

const LIMITS: &[(Resource, &str)] = &[
    (Resource::RLIMIT_AS, "address space"),
    (Resource::RLIMIT_CORE, "core files"),
    (Resource::RLIMIT_CPU, "processor time"),
    (Resource::RLIMIT_DATA, "memory"),
    (Resource::RLIMIT_FSIZE, "the size of files"),
    (Resource::RLIMIT_NOFILE, "open files"),
    (Resource::RLIMIT_STACK, "the stack"),
    #[cfg(target_os = "linux")]
    (Resource::RLIMIT_NPROC, "processes"),
];

/// The signals whose handlers are looked at: all but those that cannot be caught and, above, those of
/// real time, which a library may need for its own threads.
fn signals() -> impl Iterator<Item = i32> {
    (1..32).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal))
}

impl State {
    /// The process as it is now. Of the thread that calls, the signals that it blocks.
    pub fn now() -> Self {
        let limits = LIMITS.iter().filter_map(|&(limit, name)| {
            let (soft, hard) = getrlimit(limit).ok()?;
            Some((limit, name, soft, hard))
        });
        Self {
            standard: [
                Standard::of(std::io::stdin().as_fd(), "standard input"),
                Standard::of(std::io::stdout().as_fd(), "standard output"),
                Standard::of(std::io::stderr().as_fd(), "standard error"),
            ],
            limits: limits.collect(),
            handlers: signals().filter_map(|signal| Some((signal, handler(signal)?))).collect(),
            mask: SigSet::thread_get_mask().ok(),
            folder: std::env::current_dir().ok(),
            umask: current_umask(),
            locale: locale(),
        }
    }

    /// Signals that are handled in another way than they were. They are left so: a library may have
    /// reasons of its own, and a worker needs none of them.
    pub fn handlers_changed(&self) -> Vec<String> {
        let changed = |(signal, before): &&(i32, libc::sigaction)| {
            handler(*signal).is_some_and(|now| now.sa_sigaction != before.sa_sigaction)
        };
        let changed = self.handlers.iter().filter(changed);
        changed
            .map(|(signal, _)| {
                let name = super::signal_name(*signal);
                format!("changed what the process does at {name}")
            })
            .collect()
    }

    /// Finds what is other than it was, and sets it back.
    pub fn restore(&self) -> Changes {
        let mut changes = Changes::default();
        for (number, standard) in self.standard.iter().enumerate() {
            changes.harmful.extend(standard.restore(number));
        }
        for &(limit, name, soft, hard) in &self.limits {
            // One that was raised takes nothing from anybody.
            let lowered = getrlimit(limit).is_ok_and(|(now, most)| now < soft || most < hard);
            if lowered {
                let what = format!("lowered the limit on {name}");
                match setrlimit(limit, soft, hard) {
                    Ok(()) => changes.mended.push(what),
                    Err(_) => changes.for_good.push(format!("{what} for good")),
                }
            }
        }
        if let Some(mask) = &self.mask
            && SigSet::thread_get_mask().is_ok_and(|now| now != *mask)
        {
            let _ = mask.thread_set_mask();
            changes.mended.push("blocked or let through other signals".to_owned());
        }
        if let Some(folder) = &self.folder
            && std::env::current_dir().ok().as_ref() != Some(folder)
        {
            let what = "changed the working folder".to_owned();
            match std::env::set_current_dir(folder) {
                Ok(()) => changes.mended.push(what),
                Err(_) => changes.for_good.push(what),
            }
        }
        if current_umask() != self.umask {
            umask(self.umask);
            changes.mended.push("changed the permissions of new files (umask)".to_owned());
        }
        if locale() != self.locale {
            // SAFETY: a locale's name, as setlocale gave it.
            unsafe { libc::setlocale(libc::LC_ALL, self.locale.as_ptr()) };
            changes.mended.push("changed the locale".to_owned());
        }
        changes
    }
}

impl Standard {
    fn of(fd: BorrowedFd, name: &'static str) -> Self {
        let identity = fstat(fd).ok().map(|stat| identity(&stat));
        let file = identity.and_then(|_| super::out_of_reach(fd).ok());
        Self { name, file, identity }
    }

    /// What became of it, if it leads nowhere or to another file now.
    fn restore(&self, number: usize) -> Option<String> {
        let now = match number {
            0 => fstat(std::io::stdin().as_fd()),
            1 => fstat(std::io::stdout().as_fd()),
            _ => fstat(std::io::stderr().as_fd()),
        };
        let now = now.ok().map(|stat| identity(&stat));
        if now == self.identity {
            return None;
        }
        if let Some(file) = &self.file {
            let _ = match number {
                0 => dup2_stdin(file),
                1 => dup2_stdout(file),
                _ => dup2_stderr(file),
            };
        }
        let what = if now.is_none() { "closed" } else { "redirected" };
        Some(format!("{what} {} (descriptor {number}) of its process", self.name))
    }
}

// The types differ between systems.
#[allow(clippy::unnecessary_cast)]
fn identity(stat: &FileStat) -> (u64, u64) {
    (stat.st_dev as u64, stat.st_ino as u64)
}

fn handler(signal: i32) -> Option<libc::sigaction> {
    let mut now = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: asks and changes nothing; `now` is written where it returns 0.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) };
    // SAFETY: as above.
    (asked == 0).then(|| unsafe { now.assume_init() })
}

fn current_umask() -> Mode {
    // It can only be read by setting it. What another thread makes in between is private.
    let now = umask(Mode::from_bits_truncate(0o077));
    umask(now);
    now
}

fn locale() -> CString {
    // SAFETY: asks only; the answer is valid until the next call, and copied before.
    let name = unsafe { libc::setlocale(libc::LC_ALL, std::ptr::null()) };
    match name.is_null() {
        true => CString::default(),
        // SAFETY: a string of the C library that ends in 0.
        false => unsafe { CStr::from_ptr(name) }.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one changes of a process all tests of this program would notice: so a child does it.
    #[test]
    fn what_is_changed_is_found_and_set_back() {
        const CHILD: &str = "KOSMOGRAPH_TEST_OF_STATE";
        let name = "process::state::tests::what_is_changed_is_found_and_set_back";
        if std::env::var_os(CHILD).is_none() {
            let program = std::env::current_exe().unwrap();
            let mut child = std::process::Command::new(program);
            child.args(["--exact", name, "--nocapture"]).env(CHILD, "1");
            let output = child.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let state = State::now();
        assert_eq!(state.restore(), Changes::default());
        assert_eq!(state.handlers_changed(), [""; 0]);

        umask(Mode::from_bits_truncate(0o777));
        std::env::set_current_dir("/").unwrap();
        let (_, hard) = getrlimit(Resource::RLIMIT_CORE).unwrap();
        let had_cores =
            state.limits.iter().any(|&(_, name, soft, _)| name == "core files" && soft > 0);
        setrlimit(Resource::RLIMIT_CORE, 0, hard).unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, soft - 1, hard).unwrap();
        SigSet::all().thread_block().unwrap();
        let changes = state.restore();
        assert_eq!(changes.harmful, [""; 0]);
        assert_eq!(changes.mended.len(), 4 + usize::from(had_cores), "{changes:?}");
        assert_eq!(state.restore(), Changes::default());
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (soft, hard));

        let null = File::open("/dev/null").unwrap();
        dup2_stdin(&null).unwrap();
        // SAFETY: nothing of this test uses standard input; it is opened again below.
        unsafe { libc::close(0) };
        let changes = state.restore();
        assert_eq!(changes.harmful, ["closed standard input (descriptor 0) of its process"]);
        assert_eq!(state.restore(), Changes::default());

        // SAFETY: to ignore a signal runs no code of ours.
        unsafe {
            nix::sys::signal::signal(
                nix::sys::signal::Signal::SIGUSR1,
                nix::sys::signal::SigHandler::SigIgn,
            )
        }
        .unwrap();
        assert_eq!(state.handlers_changed(), ["changed what the process does at SIGUSR1"]);
    }
}
