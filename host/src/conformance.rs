//! Whether a library keeps the rules of node.h: `kosmograph check-plugin`.
//!
//! Every node is called with inputs that are missing, of a wrong kind, out of range and too many, and
//! must say in a sentence what is wrong; it is called with inputs made up from its descriptor, and must
//! do what it promises, stop when asked, and give back what it was lent. Objects that come out are
//! called in the same way.
//!
//! A library that breaks the rules may take the process with it. So [`check_in_child`] runs
//! [`check`] in a process of its own, which says what it is about to do before it does it.

mod call;
mod child;
mod library;
mod object;
mod promise;
mod report;
mod synthesis;

pub use child::{check_in_child, report_here};
pub use library::check;
pub use report::{Check, Event, Outcome, Report};
