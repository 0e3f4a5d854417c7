//! What the end-to-end tests share: where things are, how they are built, and a small language for
//! running the program and saying what is expected of it.
//!
//! Everything panics with what the test's reader needs: the command, its exit code, what it printed.

mod build;
pub mod gguf;
pub mod judge;
mod run;
pub mod server;
pub mod single_file;
pub mod torch;

pub use build::{
    build_c, build_c_text, build_cpp_text, c_compiler, kosmograph, node_library, plugins_dir,
    repository, run_c_text, scratch,
};
pub use run::{Finished, Run};
