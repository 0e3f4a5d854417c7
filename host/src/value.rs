//! [`Value`]: what travels along a link, with its reference counted by Rust's rules.
//!
//! Counting, checking and reading are the crate `kosmograph-values`, which the SDK uses as well. Unsafe code
//! of the host is in [`plugin`](crate::plugin) alone.

pub(crate) use kosmograph_values::check::bytes as text_bytes;
pub use kosmograph_values::{Checker, Malformed, TensorView, Value, place};
pub(crate) use kosmograph_values::{alive, parts};
