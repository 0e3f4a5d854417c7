//! What requests do to the queue, whoever has it: this process alone, whose memory keeps the order, or many
//! machines, whose engine does.

use crate::app::App;
use crate::engine::{Bulletin, Result};
use crate::queue::Why;
use crate::store::{Finished, NewJob, Waiting};

impl App {
    /// Promises room for `count` jobs; false where there is none. In a shared queue others may be quicker: it
    /// then has as many more as there are servers at work on a submission.
    pub fn promise(&self, count: usize) -> Result<bool> {
        match self.store.is_shared() {
            true => Ok(self.store.counts()?.waiting + count <= self.queue.limit()),
            false => Ok(self.queue.promise(count)),
        }
    }

    /// The number of a job that brings none; negative with `front`. What was promised is taken back where there
    /// is no number.
    pub fn next_number(&self, front: bool) -> Result<f64> {
        match self.store.is_shared() {
            true => self.store.next_number(front),
            false => Ok(self.queue.next_number(front)),
        }
    }

    /// Takes jobs that were promised room into the queue: they are not lost any more when this returns. Their
    /// ids.
    pub fn accept(&self, jobs: Vec<NewJob>, key: Option<&str>) -> Result<Vec<String>> {
        let seqs = self.store.insert(&jobs, key).inspect_err(|_| self.queue.release(jobs.len()))?;
        let ids: Vec<String> = jobs.iter().map(|job| job.id.clone()).collect();
        if self.store.is_shared() {
            self.tell_all(Bulletin::Changed);
            return Ok(ids);
        }
        let waiting = jobs.into_iter().zip(seqs).map(|(job, seq)| {
            let NewJob { id, number, client, .. } = job;
            Waiting { seq, id, number, client }
        });
        self.queue.push(waiting.collect(), |remaining| self.tell_remaining(remaining));
        Ok(ids)
    }

    /// Deletes jobs that wait, those of `ids` or all; the ids of those that were deleted.
    pub fn remove_waiting(&self, ids: Option<&[String]>) -> Result<Vec<String>> {
        if self.store.is_shared() {
            let removed = self.store.delete_waiting(ids)?;
            if !removed.is_empty() {
                self.tell_all(Bulletin::Changed);
            }
            return Ok(removed);
        }
        let removed = self.queue.remove(ids);
        self.store.delete_waiting(Some(&removed))
    }

    /// Ends a job that waits; false where it does not.
    pub fn cancel_waiting(&self, id: &str, how: &Finished) -> Result<bool> {
        let most = self.options.history_limit;
        if self.store.is_shared() {
            let ended = self.store.end_waiting(id, how, most)?;
            if ended {
                self.tell_all(Bulletin::Changed);
            }
            return Ok(ended);
        }
        if self.queue.remove(Some(std::slice::from_ref(&id.to_owned()))).is_empty() {
            return Ok(false);
        }
        self.store.end_waiting(id, how, most).inspect_err(|_| self.put_back(id))
    }

    /// Has jobs stop that run, those of `ids` or all; how many there are.
    pub fn stop_running(&self, ids: Option<&[String]>) -> Result<usize> {
        let is_meant = |id: &String| ids.is_none_or(|ids| ids.contains(id));
        let here = self.queue.running().into_iter().filter(|job| is_meant(&job.id));
        let here: Vec<_> = here.inspect(|job| job.stop(Why::Asked)).collect();
        if !self.store.is_shared() {
            return Ok(here.len());
        }
        // What the engine says: this process may not have heard of the youngest yet.
        let running = self.store.at_work()?.into_iter().map(|job| job.id).filter(is_meant);
        let running: Vec<String> = running.collect();
        self.store.ask_to_stop(&running)?;
        let count = running.len();
        if count > 0 {
            self.tell_all(Bulletin::Stop { ids: running });
        }
        Ok(count)
    }

    /// Has every worker let go of what it keeps, between jobs.
    pub fn free(&self) -> Result<()> {
        match self.store.is_shared() {
            true => self.store.publish(&[Bulletin::Free]),
            false => {
                self.queue.free();
                Ok(())
            }
        }
    }

    /// How many jobs there are up to the one of this id, which waits: 1 is next.
    pub fn position(&self, id: &str) -> Option<usize> {
        if !self.store.is_shared() {
            return self.queue.position(id);
        }
        let position = self.store.position(id);
        position.inspect_err(|error| tracing::warn!(job = id, "{error}")).ok().flatten()
    }

    /// Says it to whoever shares the queue. That it may not be heard is why everybody looks now and then, too.
    pub fn tell_all(&self, bulletin: Bulletin) {
        if let Err(error) = self.store.publish(&[bulletin]) {
            tracing::warn!("{error}");
        }
    }
}
