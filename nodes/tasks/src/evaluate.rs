//! "evaluate/1": what `kosmograph evaluate` calls.

use kosmograph_evaluation::{Request, Watch, evaluate};
use node::*;

/// DINO, CLIP-I, CLIP-T and FID.
pub struct Evaluations;

impl Evaluate for Evaluations {
    fn evaluate(cx: &Context<'_>, request: &serde_json::Value) -> Result<serde_json::Value> {
        let request: Request = serde_json::from_value(request.clone())
            .map_err(|error| Error::new(format!("the request: {error}")))?;
        match evaluate(&request, &mut Told(cx)) {
            Err(kosmograph_evaluation::Error::Cancelled) => Err(Error::Cancelled),
            Err(_) if cx.cancelled().is_err() => Err(Error::Cancelled),
            made => made.map_err(Error::new),
        }
    }
}

/// Tells the host.
struct Told<'a>(&'a Context<'a>);

impl Watch for Told<'_> {
    fn progress(&mut self, done: usize, all: usize) -> kosmograph_evaluation::Result<()> {
        self.0.progress(done, all).map_err(|_| kosmograph_evaluation::Error::Cancelled)
    }

    fn note(&mut self, sentence: &str, odd: bool) {
        if odd { self.0.warn(sentence) } else { self.0.info(sentence) }
    }
}
