//! Cache keys: what a result depends on, in 128 bits.
//!
//! A key covers the class, its library and the library's version, the device, the inputs and with
//! them all ancestors, and the identity of the files read: a model file that was replaced under
//! its name is another model. It does not cover the node's id, so the same work in two places of a
//! workflow, or in two workflows, is done once.
//!
//! The hash is BLAKE3, cut to 128 bits. A collision would silently put one picture in the place of
//! another, and inputs come from strangers, so it must not be possible to make one; a hash of 64
//! bits, or one that is not cryptographic, does not promise that. It takes less than a microsecond.

use super::{Literal, Source};
use crate::catalogue::{Class, NodeDescriptor};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key([u8; 16]);

/// Half of a key: it is a hash already, and nobody can choose it.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
    }
}

/// A map by [`Key`].
pub type KeyMap<T> = HashMap<Key, T, BuildHasherDefault<OfKey>>;
/// A set of [`Key`]s.
pub type KeySet = HashSet<Key, BuildHasherDefault<OfKey>>;

/// Passes on what a [`Key`] gives.
#[derive(Clone, Copy, Debug, Default)]
pub struct OfKey(u64);

impl Hasher for OfKey {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, half: u64) {
        self.0 = half;
    }

    /// Nothing but a key is hashed with it; what is anyway is mixed poorly, and not wrongly.
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }
}

/// Makes the keys of one plan.
pub(super) struct Keys<'a> {
    device: &'a str,
    /// Tells this plan's impure nodes from those of every other plan of this process.
    plan: u64,
}

impl<'a> Keys<'a> {
    pub(super) fn new(device: &'a str) -> Self {
        static PLANS: AtomicU64 = AtomicU64::new(0);
        Self { device, plan: PLANS.fetch_add(1, Ordering::Relaxed) }
    }

    /// `key_of_step` gives the keys of the steps that `sources` link to; `change` is what the class said of its results
    /// besides, where it was asked.
    pub(super) fn of(
        &self,
        id: &str,
        class: &Class,
        descriptor: &NodeDescriptor,
        sources: &[Source],
        change: Option<&str>,
        key_of_step: impl Fn(usize) -> Key,
    ) -> Key {
        let node = &class.descriptor;
        let mut hash = Parts(blake3::Hasher::new());
        hash.text("kosmograph result 1");
        hash.text(self.device);
        hash.text(&class.provider);
        hash.text(&node.class);
        // Two nodes that save the same are two files; two that are not pure have nothing in common.
        let is_pure = node.pure && (change.is_some() || !node.asks.changed);
        if node.output_node || !is_pure {
            hash.text(id);
        }
        match change.filter(|_| node.asks.changed) {
            _ if !is_pure => hash.bytes(&self.plan.to_le_bytes()),
            Some(change) => {
                hash.bytes(b"c");
                hash.text(change);
            }
            None => (),
        }
        for (at, source) in sources.iter().enumerate() {
            // The names of its own inputs go with the class.
            if at >= node.inputs.len()
                && let Some(more) = descriptor.inputs.get(at)
            {
                hash.text(&more.name);
            }
            match source {
                Source::Absent => hash.bytes(b"0"),
                Source::Link { step, slot } => {
                    hash.bytes(b"l");
                    hash.bytes(&key_of_step(*step).0);
                    hash.bytes(&(*slot as u64).to_le_bytes());
                }
                Source::Literal(literal) => hash.literal(literal),
            }
        }
        let mut key = [0; 16];
        hash.0.finalize_xof().fill(&mut key);
        Key(key)
    }
}

/// Every part begins with a tag or its length, so that no two lists of parts are the same bytes.
struct Parts(blake3::Hasher);

impl Parts {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(&(text.len() as u64).to_le_bytes());
        self.bytes(text.as_bytes());
    }

    fn literal(&mut self, literal: &Literal) {
        match literal {
            Literal::Boolean(value) => self.bytes(&[b'b', u8::from(*value)]),
            Literal::Integer(value) => {
                self.bytes(b"i");
                self.bytes(&value.to_le_bytes());
            }
            Literal::Natural(value) => {
                self.bytes(b"n");
                self.bytes(&value.to_le_bytes());
            }
            Literal::Number(value) => {
                self.bytes(b"f");
                self.bytes(&value.to_bits().to_le_bytes());
            }
            Literal::Text(text) => {
                self.bytes(b"s");
                self.text(text);
            }
            Literal::Path { path, identity } => {
                self.bytes(b"p");
                self.text(path);
                self.bytes(identity);
            }
            Literal::TextWithFiles { text, files } => {
                self.bytes(b"m");
                self.text(text);
                self.bytes(&(files.len() as u64).to_le_bytes());
                for file in files {
                    self.text(&file.property);
                    self.text(&file.path);
                    self.bytes(&file.identity);
                }
            }
        }
    }
}
