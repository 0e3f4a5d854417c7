//! "train/1" where `kosmograph data` is told of networks: BLIP writes captions and CLIPSeg finds what they name; the crate of the
//! trainings makes prompts with pictures of what they see.

use std::path::Path;

use image::RgbImage;
use kosmograph_training::stages::{self, Stage};
use kosmograph_training::{Eyes, Report, Watch, curate};
use node::*;

use crate::captions::Captioner;
use crate::masks_by_words::Seeker;
use crate::pictures::Levels;

/// Data of captioned pictures, and of pictures without captions.
pub struct Curating;

impl Train for Curating {
    fn train(cx: &Context<'_>, config: &str, folder: &Path) -> Result<Trained> {
        let stages = stages::read(config, folder).map_err(Error::new)?;
        let [Stage { config, .. }] = stages.as_slice() else { return Ok(not_ours()) };
        let Some(data) = config.data.as_ref().filter(|_| config.wants_eyes()) else {
            return Ok(not_ours());
        };
        let opened = |key: &str, error: Error| Error::new(format!("\"data.{key}\": {error}"));
        let captioner = match &data.captioner {
            Some(path) => Some(Captioner::open(path, cx).map_err(|e| opened("captioner", e))?),
            None => None,
        };
        let seeker = match &data.segmenter {
            Some(path) => Some(Seeker::open(path, cx).map_err(|e| opened("segmenter", e))?),
            None => None,
        };
        let mut looking = Looking { cx, captioner, seeker };
        match curate(config, Some(&mut looking), &mut Told(cx)) {
            Ok(output) => Ok(Trained::Made(json!({"output": output}))),
            Err(kosmograph_training::Error::Cancelled) => Err(Error::Cancelled),
            Err(_) if cx.cancelled().is_err() => Err(Error::Cancelled),
            Err(error) => Err(Error::new(error)),
        }
    }
}

fn not_ours() -> Trained {
    Trained::Declined(
        "the node library vision makes data with \"data.captioner\" or \"data.segmenter\" alone; the library diffusion, which does \
         what this configuration says, was not found: say where it is with --plugins DIR"
            .to_owned(),
    )
}

/// The tokens of a caption at most: those of a sentence.
const LONGEST: usize = 40;

/// The networks that look.
struct Looking<'a> {
    cx: &'a Context<'a>,
    captioner: Option<Captioner>,
    seeker: Option<Seeker>,
}

impl Eyes for Looking<'_> {
    fn caption(&mut self, picture: &RgbImage) -> kosmograph_training::Result<String> {
        let Some(captioner) = &self.captioner else { return Ok(String::new()) };
        captioner.caption(self.cx, &levels(picture), "", LONGEST).map_err(|error| failed(&error))
    }

    fn probabilities(
        &mut self,
        picture: &RgbImage,
        phrases: &[&str],
    ) -> kosmograph_training::Result<Vec<Vec<f32>>> {
        let Some(seeker) = &self.seeker else { return Ok(Vec::new()) };
        let found = seeker.probabilities(self.cx, &levels(picture), phrases);
        found.map_err(|error| failed(&error))
    }
}

fn levels(picture: &RgbImage) -> Levels {
    let (width, height) = picture.dimensions();
    Levels { pixels: picture.as_raw().clone(), width: width as usize, height: height as usize }
}

fn failed(error: &Error) -> kosmograph_training::Error {
    match error {
        Error::Cancelled => kosmograph_training::Error::Cancelled,
        error => kosmograph_training::Error::Data(error.to_string()),
    }
}

/// Tells the host.
struct Told<'a>(&'a Context<'a>);

impl Watch for Told<'_> {
    /// Nothing learns.
    fn update(&mut self, _: &Report) -> kosmograph_training::Result<()> {
        Ok(())
    }

    fn note(&mut self, sentence: &str, odd: bool) {
        if odd { self.0.warn(sentence) } else { self.0.info(sentence) }
    }

    fn made(&mut self, path: &Path) {
        self.0.output(&json!({"files": [path]}));
    }

    fn seen(&mut self, pictures: usize, of: usize) {
        // Whoever wants it to stop is heard by `stopped`.
        let _ = self.0.progress(pictures, of);
    }

    fn stopped(&self) -> bool {
        self.0.cancelled().is_err()
    }
}
