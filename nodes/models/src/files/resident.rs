//! A network that is read when it is first needed, and can be let go and read again.
//!
//! Opening a model checks its file's header alone. The numbers come into memory with the first use,
//! so that what a workflow opens early and uses late costs nothing in between, and go when somebody
//! needs the room: the file is mapped, and mostly still in the page cache when it is read again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::error::Result;
use crate::files::weights::Weights;

/// A network `N` and how to read it.
pub struct Resident<N> {
    read: Box<dyn Fn() -> Result<N> + Send + Sync>,
    network: Mutex<Network<N>>,
    bytes: usize,
}

struct Network<N> {
    kept: Option<Arc<N>>,
    /// The last one that was read: it is in memory as long as anybody has it, kept here or not.
    last: Weak<N>,
}

impl<N> Resident<N> {
    /// `bytes` is what the network takes in memory; `read` reads it, any number of times the same.
    pub fn new(bytes: usize, read: impl Fn() -> Result<N> + Send + Sync + 'static) -> Self {
        let network = Mutex::new(Network { kept: None, last: Weak::new() });
        Self { read: Box::new(read), network, bytes }
    }

    /// The network that `load` reads from `weights`, whose header is checked now: see
    /// [`Weights::check`], also for `tolerated`.
    ///
    /// # Errors
    /// The weights are not those of this network.
    pub fn open(
        weights: Weights,
        tolerated: &[&str],
        load: impl Fn(&Weights) -> Result<N> + Send + Sync + 'static,
    ) -> Result<Self> {
        let bytes = weights.check(&load, tolerated)?;
        Ok(Self::new(bytes, move || {
            weights.ask(bytes)?;
            load(&weights)
        }))
    }

    /// The network, read now if it is not in memory.
    ///
    /// # Errors
    /// What reading it reports: the file has gone, or a value in it is NaN.
    pub fn get(&self) -> Result<Arc<N>> {
        let mut network = self.lock();
        if let Some(kept) = network.kept.clone().or_else(|| network.last.upgrade()) {
            network.kept = Some(kept.clone());
            return Ok(kept);
        }
        let read = Arc::new((self.read)()?);
        *network = Network { kept: Some(read.clone()), last: Arc::downgrade(&read) };
        Ok(read)
    }

    /// The network, where it is in memory now.
    pub fn in_memory(&self) -> Option<Arc<N>> {
        let network = self.lock();
        network.kept.clone().or_else(|| network.last.upgrade())
    }

    /// Lets the network go; who computes with it at this moment keeps it until then.
    pub fn release(&self) {
        self.lock().kept = None;
    }

    /// Bytes in memory now: all or nothing.
    pub fn held(&self) -> usize {
        if self.lock().last.strong_count() > 0 { self.bytes } else { 0 }
    }

    /// Bytes in memory when it is there.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A panic while reading leaves the place empty, which is a whole state.
    fn lock(&self) -> MutexGuard<'_, Network<N>> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn is_read_when_needed_and_once_until_it_is_let_go() -> Result<()> {
        let reads = Arc::new(AtomicUsize::new(0));
        let count = reads.clone();
        let resident = Resident::new(8, move || Ok(count.fetch_add(1, Ordering::Relaxed)));
        assert_eq!((resident.held(), resident.bytes()), (0, 8));
        assert_eq!((*resident.get()?, *resident.get()?, resident.held()), (0, 0, 8));
        // What is in use is there still, and is not read a second time beside it.
        let used = resident.get()?;
        resident.release();
        assert_eq!((*used, resident.held(), *resident.get()?), (0, 8, 0));
        resident.release();
        drop(used);
        assert_eq!((resident.held(), *resident.get()?, resident.held()), (0, 1, 8));
        Ok(())
    }

    #[test]
    fn a_failure_is_told_and_tried_again() {
        let resident = Resident::<()>::new(8, || Err(Error::Cancelled));
        assert!(resident.get().is_err() && resident.get().is_err());
        assert_eq!(resident.held(), 0);
    }
}
