//! The tiles of a model's work as a node's progress.

use node::*;

/// Reports the tiles that are done.
pub fn observe(cx: &Context) -> impl FnMut(usize, usize) -> kosmograph_models::Result<()> {
    move |done, count| cx.progress(done, count).map_err(|_| kosmograph_models::Error::Cancelled)
}

/// A model's error; that somebody stopped it is none.
pub fn stopped(error: kosmograph_models::Error) -> Error {
    match error {
        kosmograph_models::Error::Cancelled => Error::Cancelled,
        error => error.into(),
    }
}
