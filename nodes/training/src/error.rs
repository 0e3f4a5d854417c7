//! What goes wrong in a training, as sentences.

use std::path::PathBuf;

/// An error of a training.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model's.
    #[error(transparent)]
    Models(#[from] kosmograph_models::Error),
    /// The tensor library's.
    #[error(transparent)]
    Tensors(#[from] candle_core::Error),
    /// A sampler's, or a noise schedule's.
    #[error(transparent)]
    Sampling(#[from] kosmograph_models::samplers::Error),
    /// Not enough memory.
    #[error(transparent)]
    Memory(#[from] kosmograph_memory::Shortage),
    /// A file that cannot be read.
    #[error("reading {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    /// A file that cannot be written.
    #[error("writing {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    /// A configuration that is wrong.
    #[error("{0}")]
    Config(String),
    /// Pictures that are missing or cannot be read.
    #[error("{0}")]
    Data(String),
    /// A file of a training that does not belong to this one.
    #[error("{path} is of another training: {what}")]
    Checkpoint { path: PathBuf, what: String },
    /// A file of a training that cannot be gone on with.
    #[error("{path} is damaged: {what}; removing it would be right, the training then begins anew")]
    Damaged { path: PathBuf, what: String },
    /// Something that is trained and is not there.
    #[error("there is no parameter `{0}`")]
    NoParameter(String),
    /// The loss is no number any more.
    #[error(
        "the loss of step {step} is {loss}: the training has diverged; a smaller learning_rate would be right{kept}"
    )]
    Diverged { step: usize, loss: f64, kept: String },
    /// Somebody asked to stop.
    #[error("cancelled")]
    Cancelled,
}

/// The result of a step of a training.
pub type Result<T, E = Error> = std::result::Result<T, E>;
