//! `kosmograph` runs image workflows that are written as JSON graphs.
//!
//! The path of the data: workflow JSON → [`graph::Graph`] → [`plan::Plan`] → [`execute`]. The host
//! knows no node: classes come from the libraries that [`catalogue`] lists.

pub mod a1111;
pub mod args;
pub mod ask;
pub mod catalogue;
pub mod changes;
pub mod checks;
pub mod cli;
pub mod conformance;
pub mod editor;
pub mod events;
pub mod execute;
pub mod folders;
pub mod graph;
pub mod handed;
pub mod interrupt;
pub mod job;
pub mod libraries;
pub mod lock;
pub mod need;
pub mod object_info;
pub mod plan;
pub mod plugin;
pub mod preview;
pub mod problem;
pub mod process;
pub mod progress;
pub mod promise;
pub mod python;
pub mod replace;
pub mod sandbox;
pub mod supervisor;
pub mod sweep;
pub mod value;
pub mod whole_file;
pub mod wire;
pub mod worker;
pub mod workflow_file;
