//! What the executor runs nodes by.

use crate::plugin::{Call, Library, NodeFailure};
use crate::value::Value;

/// Who runs nodes: the loaded libraries, or a test in their place.
pub trait Runner {
    /// Runs node number `node` of library number `library`. `inputs` are in the descriptor's order.
    ///
    /// # Errors
    /// [`NodeFailure`].
    fn run(
        &self,
        library: usize,
        node: u32,
        call: &dyn Call,
        inputs: &[Value],
    ) -> Result<Vec<Value>, NodeFailure>;

    /// Asks node number `node` which of its lazy inputs it wants, by name; those that are not computed are none. Where
    /// nobody is asked, it wants none of them.
    ///
    /// # Errors
    /// [`NodeFailure`].
    fn lazy(
        &self,
        _library: usize,
        _node: u32,
        _call: &dyn Call,
        _inputs: &[Value],
    ) -> Result<Vec<String>, NodeFailure> {
        Ok(Vec::new())
    }
}

/// Numbered as in the catalogue.
impl Runner for &Vec<Library> {
    fn run(
        &self,
        library: usize,
        node: u32,
        call: &dyn Call,
        inputs: &[Value],
    ) -> Result<Vec<Value>, NodeFailure> {
        match self.get(library) {
            Some(library) => library.run(node as usize, call, inputs),
            None => Err(NodeFailure::Failed {
                input: None,
                sentence: format!("library number {library} of the plan is not loaded"),
            }),
        }
    }
}
