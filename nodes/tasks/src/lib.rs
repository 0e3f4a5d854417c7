//! What the commands `train` and `evaluate` call in a node library: the host's interfaces before `kosmograph-training` and
//! `kosmograph-evaluation`, which know nothing of nodes.
//!
//! A crate of its own, and no part of the library that offers it, since of the crates that could be compiled cargo takes those
//! first that more wait for: the training then does not wait for the server.

mod evaluate;
mod train;

pub use evaluate::Evaluations;
pub use train::Trainings;
