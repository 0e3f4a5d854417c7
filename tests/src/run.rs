//! A small language for running the program:
//!
//! ```ignore
//! Run::new("run").with_plugins().arg(workflow).expect_code(2).stderr_contains("no such node");
//! ```

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{kosmograph, plugins_dir};

/// A call of `kosmograph` that is being put together.
#[derive(Clone, Debug)]
pub struct Run {
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    folder: Option<PathBuf>,
    input: Vec<u8>,
    limit: Duration,
}

impl Run {
    /// `kosmograph SUBCOMMAND`.
    pub fn new(subcommand: &str) -> Self {
        Self {
            arguments: vec![subcommand.into()],
            environment: Vec::new(),
            folder: None,
            input: Vec::new(),
            limit: Duration::from_secs(300),
        }
    }

    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// `--plugins` with the project's own node libraries.
    pub fn with_plugins(self) -> Self {
        self.arg("--plugins").arg(plugins_dir())
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// The working folder; the repository where none is given.
    pub fn folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    /// What is written to its standard input.
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// How long it may take before it counts as hanging; five minutes where nothing is said.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The command, for a test that wants to start it in a way of its own.
    pub fn command(&self) -> Command {
        let mut command = Command::new(kosmograph());
        // The caller's own settings are none of the test's business.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("KOSMOGRAPH_") {
                command.env_remove(name);
            }
        }
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.folder.clone().unwrap_or_else(crate::repository));
        command
    }

    /// Runs it to its end.
    pub fn run(self) -> Finished {
        let mut command = self.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let what = format!("{command:?}");
        let begin = Instant::now();
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("{what} cannot be started: {error}"));
        let (mut stdin, mut stdout, mut stderr) = (
            child.stdin.take().unwrap(),
            child.stdout.take().unwrap(),
            child.stderr.take().unwrap(),
        );
        let input = self.input.clone();
        // A program that ends early closes its input; that is no fault of the test.
        std::thread::spawn(move || drop(stdin.write_all(&input)));
        let stdout = std::thread::spawn(move || read(&mut stdout));
        let stderr = std::thread::spawn(move || read(&mut stderr));
        let code = wait(&mut child, &what, self.limit);
        let took = begin.elapsed();
        Finished {
            what,
            code,
            stdout: stdout.join().unwrap(),
            stderr: stderr.join().unwrap(),
            took,
        }
    }

    /// Runs it and expects success.
    pub fn expect_success(self) -> Finished {
        self.expect_code(0)
    }

    /// Runs it and expects an exit code: 0 done, 2 wrong workflow or arguments, 3 a node failed, 130
    /// interrupted.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Finished {
        let finished = self.run();
        let found = finished.code;
        assert_eq!(found, Some(code), "the exit code of\n{finished}");
        finished
    }
}

fn read(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("what the program prints can be read");
    bytes
}

/// The exit code; `None` when a signal ended it.
fn wait(child: &mut Child, what: &str, limit: Duration) -> Option<i32> {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("the program can be waited for") {
            return status.code();
        }
        if begin.elapsed() > limit {
            child.kill().expect("the program can be ended");
            panic!("{what} was still running after {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What a run left behind.
#[derive(Debug)]
pub struct Finished {
    what: String,
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub took: Duration,
}

impl Finished {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    #[track_caller]
    pub fn stdout_contains(self, text: &str) -> Self {
        assert!(self.stdout().contains(text), "{text:?} is not in the output of\n{self}");
        self
    }

    #[track_caller]
    pub fn stderr_contains(self, text: &str) -> Self {
        assert!(self.stderr().contains(text), "{text:?} is not in the errors of\n{self}");
        self
    }

    #[track_caller]
    pub fn stderr_lacks(self, text: &str) -> Self {
        assert!(!self.stderr().contains(text), "{text:?} is in the errors of\n{self}");
        self
    }

    /// Every line of the output as JSON, as `--json` prints events.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<serde_json::Value> {
        let parse = |line: &str| {
            serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{line:?} is not JSON ({error}) in\n{self}"))
        };
        self.stdout().lines().map(parse).collect()
    }

    /// The whole output as one JSON value.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("the output is not JSON ({error}) of\n{self}"))
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, code, took, .. } = self;
        let (stdout, stderr) = (self.stdout(), self.stderr());
        write!(
            f,
            "{what}\nexit code {code:?} after {took:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
        )
    }
}
