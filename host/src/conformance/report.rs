//! What was checked and what came of it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What came of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Passed,
    /// Why it could not be checked.
    Skipped(String),
    /// How the rule was broken.
    Failed(String),
}

/// One rule, held against one library or node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The class, or "library", and the rule.
    pub name: String,
    pub outcome: Outcome,
}

/// What a check says while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// The check of this name begins.
    Started(String),
    /// What is about to be done, as the end of a sentence: "called without image".
    Doing(String),
    Finished(Check),
    /// A copy of the process has come back from a call.
    Forked,
    /// All checks were made: what the process does now is end.
    Through,
}

/// All checks of one library, in the order in which they ran.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub library: String,
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether no rule was broken.
    pub fn passed(&self) -> bool {
        self.failures().next().is_none()
    }

    pub fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| matches!(check.outcome, Outcome::Failed(_)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut passed, mut skipped, mut failed) = (0, 0, 0);
        for Check { name, outcome } in &self.checks {
            match outcome {
                Outcome::Passed => {
                    passed += 1;
                    writeln!(f, "passed   {name}")?;
                }
                Outcome::Skipped(why) => {
                    skipped += 1;
                    writeln!(f, "skipped  {name}: {why}")?;
                }
                Outcome::Failed(why) => {
                    failed += 1;
                    writeln!(f, "FAILED   {name}: {why}")?;
                }
            }
        }
        let library = &self.library;
        writeln!(f, "{library}: {passed} passed, {skipped} skipped, {failed} failed")
    }
}

/// Takes down checks one after the other and tells whoever watches.
pub(super) struct Log<'a> {
    pub checks: Vec<Check>,
    watch: &'a mut dyn FnMut(&Event),
}

impl<'a> Log<'a> {
    pub fn new(watch: &'a mut dyn FnMut(&Event)) -> Self {
        Self { checks: Vec::new(), watch }
    }

    /// Runs one check; its error is how the rule was broken.
    pub fn check(
        &mut self,
        name: &str,
        body: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> bool {
        self.check_or_skip(name, |log| body(log).map(|()| None))
    }

    /// As [`Self::check`]; `Some` is why it could not be checked. Returns whether it passed.
    pub fn check_or_skip(
        &mut self,
        name: &str,
        body: impl FnOnce(&mut Self) -> Result<Option<String>, String>,
    ) -> bool {
        (self.watch)(&Event::Started(name.to_owned()));
        let outcome = match body(self) {
            Ok(None) => Outcome::Passed,
            Ok(Some(why)) => Outcome::Skipped(why),
            Err(why) => Outcome::Failed(why),
        };
        let passed = outcome == Outcome::Passed;
        let check = Check { name: name.to_owned(), outcome };
        (self.watch)(&Event::Finished(check.clone()));
        self.checks.push(check);
        passed
    }

    pub fn through(&mut self) {
        (self.watch)(&Event::Through);
    }

    pub fn doing(&mut self, what: &str) {
        (self.watch)(&Event::Doing(what.to_owned()));
    }
}
