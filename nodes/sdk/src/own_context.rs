//! A context of a library's own making.

use crate::testing::Host;
use crate::{Context, interrupt};

/// A context of a library's own making, for a call of an object where nobody lent it one: what is read late is read when a
/// network is first needed, and whoever needs it has no context to give. It tells nobody anything.
pub struct OwnContext(Host);

impl OwnContext {
    /// `device` is where the object is to compute: "cpu" or "cuda:0".
    pub fn new(device: &str) -> Self {
        // Whoever waits for this wants to stop: so does what is called.
        let host = Host::new().with("device", device).with("tensors", "anywhere");
        Self(if interrupt::check().is_err() { host.stop_at(0) } else { host })
    }

    pub fn context(&self) -> Context<'_> {
        self.0.context()
    }
}
