//! What a worker does around its jobs: takes them, holds them by their leases, gives them up.

use super::{ATTEMPTS, PATIENCE, presence};
use crate::app::App;
use crate::engine::{Abandoned, Bulletin, Claim, Claimed, Result, Standing};
use crate::message::now;
use crate::placement::rank;
use crate::queue::{Next, Why};
use crate::store::{Finished, State};
use crate::{needs, run};
use kosmograph::problem::{Kind, Problem};
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How often to look for a job where nobody tells of one.
const LOOK: Duration = Duration::from_secs(1);

/// How many kinds of jobs a worker remembers not to fit.
const MOST_UNFIT: usize = 1000;

/// What one worker's thread knows of the jobs that it can do.
#[derive(Debug, Default)]
pub struct Taste {
    /// Whether a kind of job can be done with the classes here.
    kinds: HashMap<String, bool>,
    unfit: Vec<String>,
    /// The models of the last jobs, which are likely to be in memory.
    pub held: HashSet<String>,
}

impl Taste {
    /// Whether a job of this kind can be done here.
    fn fits(&mut self, app: &App, kind: &str) -> Result<bool> {
        if let Some(fits) = self.kinds.get(kind) {
            return Ok(*fits);
        }
        let needs = app.store.needs(kind)?.unwrap_or_else(|| "{}".into());
        let lacking = needs::lacking(&needs, &app.surroundings.libraries.catalogue);
        if let Some(lacking) = &lacking {
            tracing::info!("jobs that need {lacking} are left to others");
            if self.unfit.len() >= MOST_UNFIT {
                self.unfit.clear();
                self.kinds.clear();
            }
            self.unfit.push(kind.to_owned());
        }
        self.kinds.insert(kind.to_owned(), lacking.is_none());
        Ok(lacking.is_none())
    }

    /// Takes a job, if there is one for this worker.
    fn claim(&mut self, app: &App) -> Result<Option<(Claimed, Vec<String>)>> {
        loop {
            let window = app.store.window(&self.unfit)?;
            let mut is_other = false;
            let mut candidates = Vec::with_capacity(window.candidates.len());
            for candidate in window.candidates {
                match self.fits(app, &candidate.kind)? {
                    true => candidates.push(candidate),
                    // Known from now on: those behind it come into view.
                    false => is_other = true,
                }
            }
            let ranked = rank(&candidates, &self.held, window.claims);
            let ids: Vec<String> = ranked.iter().map(|at| candidates[*at].id.clone()).collect();
            if let Some(claimed) = app.store.claim(&ids, &app.worker)? {
                let taken = candidates.into_iter().find(|one| one.id == claimed.claim.id);
                return Ok(Some((claimed, taken.map(|one| one.models).unwrap_or_default())));
            }
            // Others were quicker, or nothing here is for this worker.
            if !is_other {
                return Ok(None);
            }
        }
    }
}

/// What a worker's thread does next; waits until there is something.
pub fn take(app: &App, number: usize, taste: &mut Taste) -> Next {
    loop {
        if let Some(next) = app.queue.asked(number) {
            if matches!(next, Next::Free) {
                taste.held.clear();
                app.presence.holds(number, &taste.held);
            }
            return next;
        }
        let seen = app.queue.seen();
        match taste.claim(app) {
            Ok(Some((claimed, models))) => {
                if !models.is_empty() && !models.iter().all(|model| taste.held.contains(model)) {
                    // What was there before may have had to go.
                    taste.held = models.into_iter().collect();
                    app.presence.holds(number, &taste.held);
                }
                app.tell_all(Bulletin::Changed);
                return Next::Job(app.queue.begin(claimed));
            }
            Ok(None) => app.queue.wait(seen, LOOK),
            Err(error) => {
                tracing::warn!("{error}");
                app.queue.wait(seen, PATIENCE);
            }
        }
    }
}

/// Stops those of these jobs that run here.
pub fn stop(app: &App, ids: &[String]) {
    for job in app.queue.running().iter().filter(|job| ids.contains(&job.id)) {
        job.stop(Why::Asked);
    }
}

/// Holds what runs here, as long as the process lives. While the engine is away jobs go on: who comes back in
/// time still holds them, and who does not is told that they were taken.
pub fn hold(app: &App) {
    let pause = app.worker.lease / 4;
    loop {
        // Who is not heard of for a lease is not there.
        let about = presence::about(app).to_string();
        if let Err(error) = app.store.announce(&app.worker.name, &about, app.worker.lease) {
            tracing::warn!("{error}");
        }
        std::thread::sleep(pause);
        let running = app.queue.running();
        if running.is_empty() {
            continue;
        }
        let claims: Vec<Claim> = running.iter().map(|job| job.claim.clone()).collect();
        match app.store.renew(&claims, app.worker.lease) {
            Ok(standings) => {
                for (job, standing) in running.iter().zip(standings) {
                    match standing {
                        Standing::Held => (),
                        Standing::Stop => job.stop(Why::Asked),
                        // One that ended in this moment is not stopped by it any more.
                        Standing::Lost => job.stop(Why::Overtaken),
                    }
                }
            }
            Err(error) => tracing::warn!("{error}; what runs goes on"),
        }
    }
}

/// Gives jobs back whose workers are not heard of any more, as long as the process lives.
///
/// An engine that was away held nobody's lease: whoever finds it again waits until all others have had a
/// lease's time to do so, too.
pub fn reap(app: &App) {
    let pause = (app.worker.lease / 3).max(Duration::from_millis(200));
    let mut since: Option<Instant> = None;
    loop {
        std::thread::sleep(pause);
        let is_in_touch = since.is_some_and(|since| since.elapsed() >= app.worker.lease);
        let asked = match is_in_touch {
            true => app.store.reap(ATTEMPTS),
            false => app.store.counts().map(|_| (0, Vec::new())),
        };
        match asked {
            Ok((again, abandoned)) => {
                since.get_or_insert_with(Instant::now);
                if again > 0 {
                    tracing::warn!("{again} jobs wait again: their workers are not heard of");
                }
                let is_changed = again > 0 || !abandoned.is_empty();
                abandoned.iter().for_each(|job| give_up(app, job));
                if is_changed {
                    app.tell_all(Bulletin::Changed);
                }
            }
            Err(error) => {
                since = None;
                tracing::warn!("{error}");
            }
        }
    }
}

/// Ends a job that no worker holds and none is to begin again.
fn give_up(app: &App, job: &Abandoned) {
    let (state, error, last) = match job.stop {
        true => {
            let data = json!({"prompt_id": job.claim.id, "node_id": "", "node_type": "",
                "executed": [], "timestamp": now()});
            (State::Cancelled, None, json!(["execution_interrupted", data]))
        }
        false => {
            let count = job.attempts;
            let message = format!(
                "{count} workers were lost while they ran this job, so it is not tried again"
            );
            let problem = Problem::new(Kind::NodeFailed, message);
            let error = run::error_of(&job.claim.id, None, &problem, &[]);
            (State::Failed, Some(error.clone()), json!(["execution_error", error]))
        }
    };
    let (outputs, messages, ended) = (json!({}), json!([last]), now());
    let finished = Finished { state, ended, outputs, messages, error };
    match app.store.finish(&job.claim, &finished, app.options.history_limit) {
        Ok(_) => tracing::warn!(job = job.claim.id, "given up after {} workers", job.attempts),
        // Its lease ends again.
        Err(error) => tracing::warn!(job = job.claim.id, "{error}"),
    }
}
