//! Asks packs of nodes in Python, before a job is taken, whether its inputs are right (VALIDATE_INPUTS).
//!
//! That is a stranger's code: it runs in a process beside those that run jobs, confined as they are, which is started when
//! the first job comes that has something to ask, and one job after the other is asked about. The workers ask again when
//! they begin a job: a file may have gone since.

use crate::app::App;
use crate::run::sandbox;
use kosmograph::ask::{Answers, Memo};
use kosmograph::catalogue::Catalogue;
use kosmograph::plan::Plan;
use kosmograph::supervisor::{Setup, Supervisor};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError};

/// What is refused of `plan`; nothing where no class of it has anything to say.
pub fn ask(app: &App, plan: &Plan, catalogue: &Catalogue) -> Option<Answers> {
    if !plan.steps().iter().any(|step| step.descriptor.asks.valid) {
        return None;
    }
    let mut asker = app.asker.lock().unwrap_or_else(PoisonError::into_inner);
    let supervisor = match &mut *asker {
        Some(supervisor) => supervisor,
        none => none.insert(Supervisor::new(Setup {
            // Where its own file is gone nothing can be started, which is the answer then.
            program: std::env::current_exe().unwrap_or_default(),
            memory_limit: app.options.memory_limit,
            stderr: Arc::new(|_| ()),
            computing: app.options.computing,
            sandbox: app.options.sandbox.then(|| sandbox(app)),
        })),
    };
    supervisor.ask(plan, catalogue, false, Some(&mut Memo::new()), &AtomicBool::new(false))
}
