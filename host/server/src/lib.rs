//! `kosmograph serve`: ComfyUI's server contract over a queue that survives and workers that may crash.
//!
//! Three parts. The [`store`] says what is true: a job is accepted when it is committed, and done when its
//! pictures are synced and its row is. Worker threads ([`run`]) take jobs from the [`queue`] and have a
//! process run each, through the host's supervisor; this process loads no node library. [`routes`] answers
//! requests, and the [`hub`] tells open sockets what happens. docs/serve.md is the operator's side.

mod access;
mod app;
mod args;
mod asker;
mod bucket;
mod desk;
mod engine;
mod fault;
mod fleet;
pub mod hub;
mod keep;
mod listen;
mod log;
pub mod message;
mod metrics;
mod needs;
mod placement;
mod prompt;
mod queue;
mod routes;
mod run;
mod start;
mod store;
mod validation;
mod webhook;
mod worker;

pub use args::{Serve, Worker};
pub use start::main;
pub use worker::main as work;
