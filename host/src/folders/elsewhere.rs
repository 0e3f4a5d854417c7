//! Folders of pictures that are copies of what lies elsewhere, in a bucket of an object store.

use std::fmt::Debug;
use std::io;
use std::path::Path;

/// Where the files of `input`, `output` and `temp` really are. Whoever is about to read one of them asks for it
/// first.
pub trait Elsewhere: Debug + Send + Sync {
    /// Makes the file at `path` what it is there: written anew, removed, or left as it is.
    ///
    /// # Errors
    /// It cannot be asked for or written.
    fn bring(&self, path: &Path) -> io::Result<()>;

    /// The names of the files that lie in `folder` there, in no order; none where nobody can tell.
    fn names(&self, folder: &Path) -> Vec<String>;
}
