//! What goes wrong in an evaluation, as sentences.

use std::path::PathBuf;

/// An error of an evaluation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A network's.
    #[error(transparent)]
    Models(#[from] kosmograph_models::Error),
    /// The tensor library's.
    #[error(transparent)]
    Tensors(#[from] candle_core::Error),
    /// A file or folder that cannot be read.
    #[error("reading {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    /// The sheet cannot be written.
    #[error("writing {path}: {reason}")]
    Write { path: PathBuf, reason: String },
    /// What was asked for is wrong, or there is nothing to measure.
    #[error("{0}")]
    Request(String),
    /// Somebody asked to stop.
    #[error("cancelled")]
    Cancelled,
}

/// The result of a step of an evaluation.
pub type Result<T, E = Error> = std::result::Result<T, E>;
