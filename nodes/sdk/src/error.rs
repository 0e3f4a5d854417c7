//! Why a node did not give its outputs.

use std::fmt::{self, Display};

/// The result of a node, an interface, or any step of either.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure, as the person who runs the workflow reads it, or the wish to stop.
///
/// Like `anyhow::Error` it takes any error by `?`, so it is not a `std::error::Error` itself.
#[derive(Debug)]
pub enum Error {
    /// What is wrong and what would be right, in one sentence, and the input at fault.
    Failed { input: Option<String>, sentence: String },
    /// The host asked to stop.
    Cancelled,
}

impl Error {
    /// A failure of the node as a whole.
    pub fn new(sentence: impl Display) -> Self {
        Self::Failed { input: None, sentence: sentence.to_string() }
    }

    /// A failure that is the fault of one input.
    pub fn at(input: impl Display, sentence: impl Display) -> Self {
        Self::Failed { input: Some(input.to_string()), sentence: sentence.to_string() }
    }

    /// The same failure, which is one of `place`: "element 2 of 3".
    pub fn within(self, place: impl Display) -> Self {
        match self {
            Self::Failed { input, sentence } => {
                Self::Failed { input, sentence: format!("{place}: {sentence}") }
            }
            Self::Cancelled => self,
        }
    }

    /// The same failure, laid at the door of `input` unless another one was named already.
    pub fn of_input(self, name: impl Display) -> Self {
        match self {
            Self::Failed { input: None, sentence } => Self::at(name, sentence),
            other => other,
        }
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { input: Some(input), sentence } => write!(f, "{input}: {sentence}"),
            Self::Failed { input: None, sentence } => f.write_str(sentence),
            Self::Cancelled => f.write_str("cancelled"),
        }
    }
}

impl<E: std::error::Error> From<E> for Error {
    /// The sentence is the error and what caused it, joined by colons.
    fn from(error: E) -> Self {
        let mut sentence = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Many errors print their cause themselves.
            if !sentence.contains(&cause_text) {
                sentence.push_str(": ");
                sentence.push_str(&cause_text);
            }
            source = cause.source();
        }
        Self::new(sentence)
    }
}

/// Ends the function with an [`Error`] made as by `format!`.
#[macro_export]
macro_rules! fail {
    ($($message:tt)*) => {
        return ::core::result::Result::Err($crate::Error::new(::std::format!($($message)*)))
    };
}
