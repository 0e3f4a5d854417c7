//! The SDK's errors on their way through a sampler, which knows them not and hands them back as they are.

use std::fmt;

use kosmograph_models::samplers;
use node::Error;

/// An error of the SDK's that is one of the standard library's, too.
#[derive(Debug)]
struct Ours(Error);

impl fmt::Display for Ours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Ours {}

/// What the denoiser or the host said, for a sampler to pass on.
pub fn into_sampler(error: Error) -> samplers::Error {
    samplers::Error::caller(Ours(error))
}

/// What a sampler ended with: ours again where it was ours.
pub fn out_of_sampler(error: samplers::Error) -> Error {
    match error {
        samplers::Error::Caller(error) => match error.downcast::<Ours>() {
            Ok(ours) => ours.0,
            Err(other) => Error::new(other),
        },
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_comes_back_as_it_was() {
        let back = |error| out_of_sampler(into_sampler(error));
        assert!(matches!(back(Error::Cancelled), Error::Cancelled));
        let at = back(Error::at("model", "no"));
        assert!(matches!(at, Error::Failed { input: Some(input), .. } if input == "model"));
        let unknown = out_of_sampler(samplers::Error::Unknown("eular".to_owned())).to_string();
        assert!(unknown.contains("\"eular\"; there are euler,"), "{unknown}");
    }
}
