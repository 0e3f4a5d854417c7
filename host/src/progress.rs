//! What a person sees of a run: bars on a terminal, lines elsewhere, or, for `--json`, the events.
//!
//! The paths of saved files go to standard output, so that `xdg-open $(kosmograph run …)` works;
//! everything else goes to standard error. A standard output that cannot be written is no reason to stop:
//! the files are still written, and the trouble is told at the end.

use crate::events::{Event, Level, Listener};
use crate::problem::{NodeName, printable};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    Everything,
    /// `--quiet`.
    Errors,
}

/// Writes each event as a line of JSON to standard output.
#[derive(Debug, Default)]
pub struct JsonLines {
    out: Out,
}

impl Listener for JsonLines {
    fn event(&self, event: &Event) {
        let Ok(mut line) = serde_json::to_vec(event) else { return };
        line.push(b'\n');
        self.out.print(&line);
    }

    fn trouble(&self) -> Option<String> {
        self.out.trouble()
    }
}

/// Shows events to a person.
pub struct Terminal {
    show: Show,
    screen: MultiProgress,
    running: Mutex<Option<Running>>,
    out: Out,
}

/// The node that runs.
struct Running {
    label: String,
    bar: ProgressBar,
    /// When a line about it was last written, where there are no bars.
    told: Instant,
}

/// A bar or line more often than this is a waste.
const NOT_BEFORE: Duration = Duration::from_secs(2);

impl Terminal {
    /// `screen` is shared with the log, whose lines must not run into the bars.
    pub fn new(show: Show, screen: MultiProgress) -> Self {
        // Without a terminal indicatif draws nothing, and lines are written instead.
        Self { show, screen, running: Mutex::default(), out: Out::default() }
    }

    fn has_bars(&self) -> bool {
        std::io::stderr().is_terminal() && self.show == Show::Everything
    }

    fn say(&self, line: &str) {
        let line = shown(line);
        self.screen.suspend(|| {
            let _ = writeln!(std::io::stderr(), "{line}");
        });
    }

    fn print_paths<'a>(&self, files: impl IntoIterator<Item = &'a str>) {
        let lines = paths(files, std::io::stdout().is_terminal());
        self.screen.suspend(|| self.out.print(lines.as_bytes()));
    }

    fn say_unless_quiet(&self, line: &str) {
        if self.show == Show::Everything {
            self.say(line);
        }
    }

    fn start(&self, name: &NodeName) {
        if self.show == Show::Errors {
            return;
        }
        let label = label(name);
        let bar = if self.has_bars() {
            let bar = ProgressBar::new_spinner().with_prefix(label.clone());
            bar.set_style(style("{spinner} {prefix} {elapsed}"));
            let bar = self.screen.add(bar);
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        } else {
            self.say(&format!("{label} …"));
            ProgressBar::hidden()
        };
        *lock(&self.running) = Some(Running { label, bar, told: Instant::now() });
    }

    fn progress(&self, step: u64, steps: u64) {
        let mut running = lock(&self.running);
        let Some(running) = running.as_mut() else { return };
        if self.has_bars() {
            if running.bar.length() != Some(steps) {
                running.bar.set_length(steps);
                running
                    .bar
                    .set_style(style("{spinner} {prefix} [{bar:30}] {pos}/{len}, {eta} left"));
            }
            running.bar.set_position(step);
        } else if running.told.elapsed() >= NOT_BEFORE {
            running.told = Instant::now();
            let line = format!("{} {step}/{steps}", running.label);
            self.say(&line);
        }
    }

    /// Takes the bar away; the label of the node that ran, if one did.
    fn end(&self) -> Option<String> {
        let running = lock(&self.running).take()?;
        running.bar.finish_and_clear();
        self.screen.remove(&running.bar);
        Some(running.label)
    }
}

impl Listener for Terminal {
    fn event(&self, event: &Event) {
        match event {
            Event::Plan { seed, values, .. } => {
                let seed = seed.map(|seed| format!("seed {seed}"));
                let values = values.iter().map(|swept| {
                    let value = swept.value.as_str().map_or(swept.value.to_string(), str::to_owned);
                    format!("{}.{}={value}", swept.node, swept.input)
                });
                let said: Vec<String> = seed.into_iter().chain(values).collect();
                if !said.is_empty() {
                    self.say_unless_quiet(&said.join("  "));
                }
            }
            Event::Sheet { file } => {
                if self.show == Show::Everything {
                    self.print_paths([&**file]);
                }
            }
            Event::Preview { .. } | Event::MadeRoom { .. } => (),
            Event::NodeStarted(name) => self.start(name),
            Event::Progress { step, steps, .. } => self.progress(*step, *steps),
            Event::Cached(name) => self.say_unless_quiet(&format!("{} cached", label(name))),
            Event::NodeDone { seconds, .. } => {
                if let Some(label) = self.end() {
                    self.say_unless_quiet(&format!("{label} {seconds:.2} s"));
                }
            }
            Event::Skipped { name, because_of } => self.say_unless_quiet(&format!(
                "{} skipped: it needs what node {because_of} would have made",
                label(name)
            )),
            Event::LeftOut { name, because_of } => {
                let cause = match name.id == *because_of {
                    true => String::new(),
                    false => format!(", it needs node {because_of}"),
                };
                self.say(&format!("{name} is left out{cause}"));
            }
            Event::Output { files, .. } => {
                if self.show == Show::Everything {
                    self.print_paths(files.iter().map(String::as_str));
                }
            }
            Event::Error(problem) => {
                self.end();
                self.say(&format!("error: {problem}"));
            }
            Event::Warning(problem) => self.say_unless_quiet(&format!("warning: {problem}")),
            Event::Log { level, node, message } => {
                let from = node.as_ref().map_or(String::new(), |node| format!("{node}: "));
                match level {
                    Level::Error => self.say(&format!("error: {from}{message}")),
                    Level::Warning => self.say_unless_quiet(&format!("warning: {from}{message}")),
                    Level::Info => self.say_unless_quiet(&format!("{from}{message}")),
                    // Told to tracing by who heard it.
                    Level::Debug => (),
                }
            }
            Event::Done { seconds, executed, cached, failed, left_out } => {
                self.end();
                let some = |count: &usize, what: &str| match count {
                    0 => String::new(),
                    count => format!(", {count} {what}"),
                };
                let failed = some(failed, "failed") + &some(left_out, "left out");
                self.say_unless_quiet(&format!(
                    "{executed} nodes run, {cached} cached{failed}, {seconds:.2} s"
                ));
            }
            Event::Interrupted { seconds } => {
                self.end();
                self.say(&format!("interrupted after {seconds:.2} s"));
            }
        }
    }

    fn trouble(&self) -> Option<String> {
        self.out.trouble()
    }
}

fn label(name: &NodeName) -> String {
    let label = match &name.title {
        Some(title) if *title != name.class => format!("{title} ({})", name.class),
        _ => name.class.clone(),
    };
    printable(&label).into_owned()
}

/// As [`printable`], where several lines and columns are what they are.
fn shown(text: &str) -> Cow<'_, str> {
    let parts = text.split_inclusive(['\n', '\t']);
    let escaped = |part: &str| -> String {
        match part.strip_suffix(['\n', '\t']) {
            Some(text) => format!("{}{}", printable(text), &part[text.len()..]),
            None => printable(part).into_owned(),
        }
    };
    match text.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\t')) {
        true => parts.map(escaped).collect::<String>().into(),
        false => text.into(),
    }
}

/// Paths as lines: for a terminal, where a person reads them, as [`printable`]; elsewhere as they are, for who opens them.
fn paths<'a>(files: impl IntoIterator<Item = &'a str>, to_terminal: bool) -> String {
    let line = |file: &'a str| match to_terminal {
        true => format!("{}\n", printable(file)),
        false => format!("{file}\n"),
    };
    files.into_iter().map(line).collect()
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Standard output, and the first reason why something did not arrive there.
#[derive(Debug, Default)]
struct Out {
    // Lines of several threads must not mix.
    trouble: Mutex<Option<std::io::Error>>,
}

impl Out {
    fn print(&self, bytes: &[u8]) {
        let mut trouble = lock(&self.trouble);
        // Half a line has been lost; what came after it would only look whole.
        if trouble.is_none() {
            let mut out = std::io::stdout().lock();
            *trouble = out.write_all(bytes).and_then(|()| out.flush()).err();
        }
    }

    fn trouble(&self) -> Option<String> {
        let trouble = lock(&self.trouble);
        trouble.as_ref().map(|error| format!("standard output cannot be written: {error}"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the log write between the bars.
#[derive(Clone)]
pub struct LogWriter(pub MultiProgress);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.suspend(|| std::io::stderr().write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_workflow_says_moves_no_cursor() {
        let node =
            NodeName { id: "1".into(), title: Some("\u{1b}[31mred\n".into()), class: "K".into() };
        assert_eq!(label(&node), "\\u{1b}[31mred\\n (K)");
        assert_eq!(shown("one\n\ttwo\r\u{7}"), "one\n\ttwo\\r\\u{7}");
        assert!(matches!(shown("one\ntwo"), Cow::Borrowed(_)));
        let files = ["/o/a\u{1b}c.png", "/o/ä.png"];
        assert_eq!(paths(files, true), "/o/a\\u{1b}c.png\n/o/ä.png\n");
        assert_eq!(paths(files, false), "/o/a\u{1b}c.png\n/o/ä.png\n");
    }
}
