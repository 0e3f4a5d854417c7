//! Prompts with pictures of captioned pictures, as the paper makes them of Open Images: each subject that a caption names is cut
//! out and marked, its word is dropped half of the time, and it is shown cropped or on white.
//!
//! Whoever looks ([`Eyes`]) writes the captions that are missing and says what each subject covers. Without it that is in masks
//! from elsewhere, or it is what is left when the ground is flooded from the picture's border, which does for one subject on a
//! ground that is about even.

mod ground;
mod nouns;
mod subjects;
mod unfinished;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use image::{ExtendedColorType, RgbImage};
use kosmograph_picture_files as picture_files;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::data;
use crate::documents::MARK;
use crate::draws::Draws;
use crate::error::{Error, Result};
use crate::run::Watch;
use ground::cut_out;
use subjects::{Subject, subjects};
use unfinished::Unfinished;

/// `data`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Words of the captions that name subjects. Where there are masks their names say so instead.
    pub subjects: Vec<String>,
    /// A folder with a folder of each picture's name, and in that the masks of its subjects: `dog.png`, white where the
    /// dog is.
    pub masks: Option<PathBuf>,
    /// BLIP, which writes the captions that are missing.
    pub captioner: Option<PathBuf>,
    /// CLIPSeg, which says what a subject covers. Without `subjects` it is asked for the nouns of the caption.
    pub segmenter: Option<PathBuf>,
    /// From which of the segmenter's probabilities on a pixel belongs to a subject.
    pub threshold: f64,
    /// How many documents are made of a picture.
    pub variants: usize,
    /// The share of the documents that say nothing of their subjects but the marks.
    pub words_dropped: f64,
    /// The share of the subjects that are shown on white; the others are cropped as they are.
    pub on_white: f64,
}

impl Default for DataConfig {
    fn default() -> Self {
        DataConfig {
            subjects: Vec::new(),
            masks: None,
            captioner: None,
            segmenter: None,
            threshold: 0.4,
            variants: 1,
            words_dropped: 0.5,
            on_white: 0.5,
        }
    }
}

/// Who looks at pictures: the networks that [`DataConfig::captioner`] and [`DataConfig::segmenter`] name.
pub trait Eyes {
    /// What a picture shows, in a sentence.
    ///
    /// # Errors
    /// What the network reports.
    fn caption(&mut self, picture: &RgbImage) -> Result<String>;

    /// How probable it is that each pixel belongs to what each of `phrases` says, 0 … 1: row by row, as large as the picture.
    ///
    /// # Errors
    /// What the network reports.
    fn probabilities(&mut self, picture: &RgbImage, phrases: &[&str]) -> Result<Vec<Vec<f32>>>;
}

impl DataConfig {
    pub(crate) fn wants_eyes(&self) -> bool {
        self.captioner.is_some() || self.segmenter.is_some()
    }

    /// What begins at the configuration's folder.
    pub(crate) fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        [&mut self.masks, &mut self.captioner, &mut self.segmenter].into_iter().flatten()
    }

    /// # Errors
    /// A value is outside of what it can be, or nothing says what subjects are.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |sentence: String| Err(Error::Config(sentence));
        if !(1..=1000).contains(&self.variants) {
            return refuse(format!(
                "\"data.variants\" is {}; 1 to 1000 would be right",
                self.variants
            ));
        }
        for (name, share) in [("words_dropped", self.words_dropped), ("on_white", self.on_white)] {
            if !(0.0..=1.0).contains(&share) {
                return refuse(format!("\"data.{name}\" is {share}; 0 to 1 would be right"));
            }
        }
        if !(0.0..1.0).contains(&self.threshold) {
            let sentence = format!(
                "\"data.threshold\" is {:?}; 0 to less than 1 would be right",
                self.threshold
            );
            return refuse(sentence);
        }
        if self.masks.is_some() && self.segmenter.is_some() {
            let sentence = "\"data.masks\" and \"data.segmenter\" both say what subjects cover; one of them would be right";
            return refuse(sentence.to_owned());
        }
        if let Some(blank) =
            self.subjects.iter().find(|word| word.trim() != word.as_str() || word.is_empty())
        {
            return refuse(format!(
                "\"data.subjects\" has {blank:?}; words without white space around them would be right"
            ));
        }
        let is_said = self.masks.is_some() || self.segmenter.is_some();
        if !is_said && self.subjects.is_empty() {
            let sentence = "nothing says what the subjects are: \"data.subjects\", words of the captions, \"data.segmenter\" or \"data.masks\" \
                            would be right";
            return refuse(sentence.to_owned());
        }
        Ok(())
    }
}

/// Writes the folder of documents that `config` says. It has its name when it is whole; what an interruption left is gone on
/// with.
///
/// # Errors
/// The folder is there already, somebody who looks is wanted and nobody does, no picture gives a document, what is there of an
/// earlier call is of another configuration, a file cannot be read or written, or somebody asked to stop.
pub fn curate(
    config: &Config,
    mut eyes: Option<&mut dyn Eyes>,
    watch: &mut dyn Watch,
) -> Result<PathBuf> {
    config.output_is_free()?;
    let asked = config.data.clone().unwrap_or_default();
    if asked.wants_eyes() && eyes.is_none() {
        let sentence = "\"data.captioner\" and \"data.segmenter\" go with `kosmograph data`, in a configuration of its own";
        return Err(Error::Config(sentence.to_owned()));
    }
    let unfinished = Unfinished::begin(config)?;
    let paths = data::pictures(&config.pictures)?;
    let (mut notes, mut made, mut used) = (Vec::new(), 0, 0);
    let mut stems = HashMap::new();
    for (number, path) in paths.iter().enumerate() {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let first = *stems.entry(stem.clone()).or_insert(path);
        if first != path {
            let (path, first) = (path.display(), first.display());
            watch.note(&format!("{path} is left out: {first} has its name"), true);
            continue;
        }
        let eyes: Option<&mut dyn Eyes> = match &mut eyes {
            Some(eyes) => Some(&mut **eyes),
            None => None,
        };
        let source = Source { path, stem: &stem, number, config, asked: &asked };
        let found = match watch.stopped() {
            true => Err(Error::Cancelled),
            false => source.write(eyes, unfinished.path(), &mut notes),
        };
        notes.drain(..).for_each(|note: String| watch.note(&note, true));
        let found = found.inspect_err(|error| {
            let why = if matches!(error, Error::Cancelled) { "stopped" } else { "ended" };
            let (all, folder) = (paths.len(), unfinished.path().display());
            let sentence = format!(
                "{why} after {number} of {all} pictures; the same command goes on from {folder}"
            );
            watch.note(&sentence, false);
        })?;
        made += found;
        used += usize::from(found > 0);
        watch.seen(number + 1, paths.len());
    }
    if made == 0 {
        unfinished.remove_empty();
        return Err(Error::Data(format!(
            "{} holds no picture that a document can be made of",
            config.pictures.display()
        )));
    }
    unfinished.finish(config)?;
    watch.note(&format!("{made} documents of {used} pictures (of {})", paths.len()), false);
    Ok(config.output.clone())
}

/// What documents are made of.
struct Seen {
    picture: RgbImage,
    caption: String,
    subjects: Vec<Subject>,
}

/// A picture that documents are made of.
struct Source<'a> {
    path: &'a Path,
    stem: &'a str,
    /// Its place among all pictures: what chance hangs on.
    number: usize,
    config: &'a Config,
    asked: &'a DataConfig,
}

impl Source<'_> {
    /// Writes the documents that are not there yet; how many there are. What is wrong with the picture is told in `notes`.
    fn write(
        &self,
        eyes: Option<&mut dyn Eyes>,
        folder: &Path,
        notes: &mut Vec<String>,
    ) -> Result<usize> {
        let asked = self.asked;
        let names: Vec<String> =
            (0..asked.variants).map(|k| format!("{}-{k}", self.stem)).collect();
        if names.iter().all(|name| folder.join(format!("{name}.txt")).is_file()) {
            return Ok(names.len());
        }
        let seen = self.see(eyes, notes).map_err(|error| match error {
            Error::Cancelled => error,
            error => Error::Data(format!("{}: {error}", self.path.display())),
        })?;
        let Seen { picture, caption, subjects } = match seen {
            Ok(seen) => seen,
            Err(reason) => {
                notes.push(format!("{} is left out: {reason}", self.path.display()));
                return Ok(0);
            }
        };
        for (variant, name) in names.iter().enumerate() {
            let number = (self.number * asked.variants + variant) as u64;
            let mut draws = Draws::new(self.config.seed, number);
            let drops = draws.share() < asked.words_dropped;
            let (mut prompt, mut at) = (String::new(), 0);
            let inside = folder.join(name);
            // What an interruption left may be of a caption that had more subjects.
            let emptied = match inside.is_dir() {
                true => std::fs::remove_dir_all(&inside),
                false => Ok(()),
            };
            let made = emptied.and_then(|()| std::fs::create_dir_all(&inside));
            made.map_err(|source| Error::Write { path: inside.clone(), source })?;
            for (k, Subject { word: (start, end), mask }) in subjects.iter().enumerate() {
                prompt.push_str(&caption[at..if drops { *start } else { *end }]);
                prompt.push_str(MARK);
                at = *end;
                let shown = cut_out(&picture, mask, draws.share() < asked.on_white);
                let to = inside.join(format!("{}.png", k + 1));
                save(&shown, &to)?;
            }
            prompt.push_str(&caption[at..]);
            let to = folder.join(format!("{name}.png"));
            save(&picture, &to)?;
            // Last: a document with its words is whole.
            let to = folder.join(format!("{name}.txt"));
            let written = std::fs::write(&to, format!("{}\n", prompt.trim()));
            written.map_err(|source| Error::Write { path: to, source })?;
        }
        Ok(names.len())
    }

    /// The picture, its caption and its subjects; or why it is left out.
    fn see(
        &self,
        mut eyes: Option<&mut dyn Eyes>,
        notes: &mut Vec<String>,
    ) -> Result<Result<Seen, String>> {
        let asked = self.asked;
        let is_text = |caption: &String| !caption.is_empty();
        let told = notes.len();
        let caption = data::read_caption(self.path, notes).filter(is_text);
        if notes.len() > told {
            return Ok(Err("its caption cannot be read".to_owned()));
        }
        let caption = caption.or_else(|| self.config.caption.clone().filter(is_text));
        if caption.is_none() && asked.captioner.is_none() {
            let sentence = "it has no caption: words in a .txt of its name beside it would be right, or \"data.captioner\", which writes one";
            return Ok(Err(sentence.to_owned()));
        }
        let picture = match data::open(self.path) {
            Ok(picture) => picture,
            Err(reason) => return Ok(Err(reason)),
        };
        let caption = match (caption, eyes.as_deref_mut()) {
            (Some(caption), _) => caption,
            (None, Some(eyes)) => eyes.caption(&picture)?,
            (None, None) => return Ok(Err("nobody writes its caption".to_owned())),
        };
        if caption.contains(MARK) {
            let sentence =
                format!("its caption, {caption:?}, has a mark of a picture in it already");
            return Ok(Err(sentence));
        }
        let eyes = eyes.filter(|_| asked.segmenter.is_some());
        let subjects = subjects(self.stem, &caption, &picture, asked, eyes)?;
        Ok(subjects.map(|subjects| Seen { picture, caption, subjects }))
    }
}

fn save(picture: &RgbImage, path: &Path) -> Result<()> {
    let saved = picture_files::save(path, picture, picture.dimensions(), ExtendedColorType::Rgb8);
    let failed =
        |error| Error::Write { path: path.to_owned(), source: std::io::Error::other(error) };
    saved.map_err(failed)
}

#[cfg(test)]
mod tests {
    use image::GrayImage;

    use super::ground::standing_out;
    use super::*;

    /// A red square with a hole on a ground that grows lighter, and a speck.
    fn picture() -> RgbImage {
        RgbImage::from_fn(32, 24, |x, y| {
            let in_square = (8..20).contains(&x) && (6..18).contains(&y);
            let in_hole = (12..14).contains(&x) && (10..12).contains(&y);
            match (in_square && !in_hole, (x, y) == (28, 3)) {
                (true, _) => image::Rgb([200, 20, 20]),
                (_, true) => image::Rgb([0, 0, 0]),
                _ => image::Rgb([40 + 4 * x as u8, 60, 200]),
            }
        })
    }

    #[test]
    fn what_stands_out_is_the_largest_piece_with_its_holes() {
        let mask = standing_out(&picture());
        let covered = |x: u32, y: u32| mask.get_pixel(x, y).0 == [255];
        assert_eq!(mask.pixels().filter(|pixel| pixel.0 == [255]).count(), 12 * 12);
        assert!(covered(8, 6) && covered(12, 10) && !covered(28, 3) && !covered(7, 6));
    }

    #[test]
    fn a_subject_is_cut_out_as_it_is_or_on_white() {
        let (picture, mut mask) = (picture(), GrayImage::new(32, 24));
        for (x, y) in [(8, 6), (11, 9)] {
            mask.get_pixel_mut(x, y).0 = [255];
        }
        let cropped = cut_out(&picture, &mask, false);
        assert_eq!(cropped.dimensions(), (4, 4));
        assert!(cropped.pixels().all(|pixel| pixel.0 == [200, 20, 20]));
        let on_white = cut_out(&picture, &mask, true);
        assert_eq!(
            (on_white.get_pixel(0, 0).0, on_white.get_pixel(1, 0).0),
            ([200, 20, 20], [255; 3])
        );
    }

    #[test]
    fn words_are_found_in_the_captions_order_and_what_is_unclear_is_told() {
        let asked = DataConfig {
            subjects: vec!["square".to_owned(), "dog".to_owned()],
            ..DataConfig::default()
        };
        let of = |caption: &str| subjects("a", caption, &picture(), &asked, None).unwrap();
        let found = of("a red Square on blue").unwrap();
        assert_eq!(found.iter().map(|subject| subject.word).collect::<Vec<_>>(), [(6, 12)]);
        for (caption, want) in [
            ("a cat", "names none"),
            ("a dog and a square", "more than one subject"),
            ("a dog and a dog", "more than one subject"),
        ] {
            let told = of(caption).err().unwrap();
            assert!(told.contains(want), "{told}");
        }
        let even = RgbImage::from_pixel(8, 8, image::Rgb([9; 3]));
        let told = subjects("a", "a dog", &even, &asked, None).unwrap().err().unwrap();
        assert!(told.contains("covers 0.0 %"), "{told}");
    }
}
