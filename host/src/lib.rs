//! `kosmograph` runs image workflows that are written as JSON graphs.
//!
//! The path of the data: workflow JSON → [`graph::Graph`] → [`plan::Plan`] → [`execute`]. The host
//! knows no node: classes come from the libraries that [`catalogue`] lists.

pub mod catalogue;
pub mod folders;
pub mod graph;
pub mod object_info;
pub mod plan;
pub mod plugin;
pub mod problem;
pub mod value;
pub mod workflow_file;
