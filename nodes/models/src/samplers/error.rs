//! Why a sampling ended before its end.

use super::NAMES;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a sampler refuses, and what others said while it ran.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No sampler has that name.
    #[error("there is no sampler \"{0}\"; there are {names}", names = NAMES.join(", "))]
    Unknown(String),

    /// A sampler of CFG++, for which half of what it asks is there.
    #[error("{0} asks for what the model says without guidance, too")]
    AsksForBoth(&'static str),

    /// Noise levels that rise or are not numbers.
    #[error("noise levels must fall and not be negative; these are {0:?}")]
    Levels(Vec<f64>),

    /// The model answers with numbers that are none.
    #[error(
        "dpm_adaptive finds no step that is short enough: the model answers with numbers that are none"
    )]
    NotANumber,

    /// Steps that become ever shorter.
    #[error("dpm_adaptive has not come to an end in {0} steps; another sampler would be right")]
    Endless(usize),

    /// What the model, the noise or the observer reported, as it was: theirs again by `downcast`.
    #[error(transparent)]
    Caller(Box<dyn std::error::Error + Send + Sync>),

    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// An error of the caller's own on its way through a sampler.
    pub fn caller(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Error::Caller(Box::new(error))
    }
}
