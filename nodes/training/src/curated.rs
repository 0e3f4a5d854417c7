//! Prompts with pictures of captioned pictures, as the paper makes them of Open Images: each subject that a caption names is cut
//! out and marked, its word is dropped half of the time, and it is shown cropped or on white.
//!
//! What a subject covers says a mask, which the nodes of the library `vision` make; without masks it is what is left when the
//! ground is flooded from the picture's border, which does for one subject on a ground that is about even.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use image::{GrayImage, RgbImage};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::data;
use crate::documents::{MARK, find_word};
use crate::draws::Draws;
use crate::error::{Error, Result};
use crate::run::Watch;

/// `data`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Words of the captions that name subjects. Where there are masks their names say so instead.
    pub subjects: Vec<String>,
    /// A folder with a folder of each picture's name, and in that the masks of its subjects: `dog.png`, white where the
    /// dog is.
    pub masks: Option<PathBuf>,
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
            variants: 1,
            words_dropped: 0.5,
            on_white: 0.5,
        }
    }
}

impl DataConfig {
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
        if self.masks.is_none() && self.subjects.iter().all(|word| word.trim().is_empty()) {
            let sentence = "nothing says what the subjects are: \"data.subjects\", words of the captions, or \"data.masks\" would be \
                            right";
            return refuse(sentence.to_owned());
        }
        Ok(())
    }
}

/// How unlike its neighbour a pixel of the ground can be, in the most different of its channels, of 255.
const STEP: u8 = 12;
/// The least and the most of a picture that a subject can cover.
const SHARES: [f64; 2] = [0.005, 0.95];
/// What a folder of documents says of how it was made.
const SAID: &str = "data.json";

/// A subject: where its word is in the caption, and what it covers.
struct Subject {
    word: (usize, usize),
    mask: GrayImage,
}

/// Writes the folder of documents that `config` says. It has its name when it is whole; what an interruption left is gone on
/// with.
///
/// # Errors
/// No picture gives a document, what is there of an earlier call is of another configuration, a file cannot be read or
/// written, or somebody asked to stop.
pub(crate) fn write(config: &Config, watch: &mut dyn Watch) -> Result<PathBuf> {
    let asked = config.data.clone().unwrap_or_default();
    let name = config.output.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = config.output.with_file_name(format!("{name}.unfinished"));
    begin(&unfinished, config)?;
    let paths = data::pictures(&config.pictures)?;
    let (mut notes, mut made, mut used) = (Vec::new(), 0, 0);
    for (number, path) in paths.iter().enumerate() {
        if watch.stopped() {
            watch.note(
                &format!(
                    "stopped after {number} of {} pictures; the same command goes on from {}",
                    paths.len(),
                    unfinished.display()
                ),
                false,
            );
            return Err(Error::Cancelled);
        }
        let found = of_picture(path, config, &asked, &unfinished, number, &mut notes)?;
        made += found;
        used += usize::from(found > 0);
        notes.drain(..).for_each(|note: String| watch.note(&note, true));
    }
    if made == 0 {
        let _ = std::fs::remove_dir_all(&unfinished);
        return Err(Error::Data(format!(
            "{} holds no picture that a document can be made of",
            config.pictures.display()
        )));
    }
    let failed = |source| Error::Write { path: config.output.clone(), source };
    std::fs::rename(&unfinished, &config.output).map_err(failed)?;
    watch.note(&format!("{made} documents of {used} pictures (of {})", paths.len()), false);
    Ok(config.output.clone())
}

/// Makes the folder for what is not whole yet, or finds it as this configuration left it.
fn begin(unfinished: &Path, config: &Config) -> Result<()> {
    let said = unfinished.join(SAID);
    let mut text = serde_json::json!({
        "pictures": config.pictures, "caption": config.caption, "seed": config.seed, "data": config.data,
    })
    .to_string();
    text.push('\n');
    match std::fs::read_to_string(&said) {
        Ok(before) if before == text => Ok(()),
        Ok(_) => Err(Error::Config(format!(
            "{} is of another configuration; removing it, or another output, would be right",
            unfinished.display()
        ))),
        Err(_) => std::fs::create_dir_all(unfinished)
            .and_then(|()| std::fs::write(&said, text))
            .map_err(|source| Error::Write { path: said.clone(), source }),
    }
}

/// Writes the documents of one picture that are not there yet; how many it has. What is wrong with it is told in `notes`.
fn of_picture(
    path: &Path,
    config: &Config,
    asked: &DataConfig,
    folder: &Path,
    number: usize,
    notes: &mut Vec<String>,
) -> Result<usize> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let names: Vec<String> = (0..asked.variants).map(|k| format!("{stem}-{k}")).collect();
    if names.iter().all(|name| folder.join(format!("{name}.txt")).is_file()) {
        return Ok(names.len());
    }
    let mut leave_out = |reason: String| {
        notes.push(format!("{} is left out: {reason}", path.display()));
        Ok(0)
    };
    let mut of_caption = Vec::new();
    let caption = data::read_caption(path, &mut of_caption).or_else(|| config.caption.clone());
    let Some(caption) = caption.filter(|caption| !caption.is_empty()) else {
        let sentence = "it has no caption: a .txt of its name beside it would be right (the node BLIPCaption writes one)";
        return leave_out(sentence.to_owned());
    };
    let picture = match data::open(path) {
        Ok(picture) => picture,
        Err(reason) => return leave_out(reason),
    };
    let subjects = match subjects(&stem, &caption, &picture, asked) {
        Ok(subjects) => subjects,
        Err(reason) => return leave_out(reason),
    };
    for (variant, name) in names.iter().enumerate() {
        let mut draws = Draws::new(config.seed, (number * asked.variants + variant) as u64);
        let drops = draws.share() < asked.words_dropped;
        let (mut prompt, mut at) = (String::new(), 0);
        let inside = folder.join(name);
        for (k, Subject { word: (start, end), mask }) in subjects.iter().enumerate() {
            prompt.push_str(&caption[at..if drops { *start } else { *end }]);
            prompt.push_str(MARK);
            at = *end;
            let shown = cut_out(&picture, mask, draws.share() < asked.on_white);
            let to = inside.join(format!("{}.png", k + 1));
            let saved = std::fs::create_dir_all(&inside).map_err(image::ImageError::IoError);
            saved.and_then(|()| shown.save(&to)).map_err(|error| unsaved(&to, error))?;
        }
        prompt.push_str(&caption[at..]);
        let to = folder.join(format!("{name}.png"));
        picture.save(&to).map_err(|error| unsaved(&to, error))?;
        // Last: a document with its words is whole.
        let to = folder.join(format!("{name}.txt"));
        let written = std::fs::write(&to, format!("{}\n", prompt.trim()));
        written.map_err(|source| Error::Write { path: to, source })?;
    }
    Ok(names.len())
}

fn unsaved(path: &Path, error: image::ImageError) -> Error {
    Error::Write { path: path.to_owned(), source: std::io::Error::other(error) }
}

/// The subjects of a picture in the order of the caption, or why there are none.
fn subjects(
    stem: &str,
    caption: &str,
    picture: &RgbImage,
    asked: &DataConfig,
) -> Result<Vec<Subject>, String> {
    let mut found: Vec<Subject> = Vec::new();
    let mut put = |word: (usize, usize), mask: GrayImage, what: &str| {
        let covered = mask.pixels().filter(|pixel| pixel.0[0] > 127).count();
        let share = covered as f64 / mask.len().max(1) as f64;
        if !(SHARES[0]..=SHARES[1]).contains(&share) {
            let [least, most] = SHARES.map(|share| 100.0 * share);
            return Err(format!(
                "{what} covers {:.1} % of it, where {least} to {most} would be right",
                100.0 * share
            ));
        }
        let overlaps = found.iter().any(|other| word.0 < other.word.1 && other.word.0 < word.1);
        if !overlaps {
            found.push(Subject { word, mask });
        }
        Ok(())
    };
    match &asked.masks {
        Some(folder) => {
            let folder = folder.join(stem);
            let masks = data::pictures(&folder)
                .map_err(|_| format!("there is no folder {} with its masks", folder.display()))?;
            for path in masks {
                let word = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let Some(place) = find_word(caption, &word, true) else { continue };
                let mask =
                    data::open(&path).map_err(|reason| format!("{}: {reason}", path.display()))?;
                if mask.dimensions() != picture.dimensions() {
                    return Err(format!(
                        "{} has {} × {} pixels, where its own {} × {} would be right",
                        path.display(),
                        mask.width(),
                        mask.height(),
                        picture.width(),
                        picture.height()
                    ));
                }
                put(place, image::imageops::grayscale(&mask), &path.display().to_string())?;
            }
            if found.is_empty() {
                return Err(format!("its caption names none of the masks in {}", folder.display()));
            }
        }
        None => {
            let mut places =
                asked.subjects.iter().filter_map(|word| find_word(caption, word, true));
            let Some(place) = places.next() else {
                return Err("its caption names none of \"data.subjects\"".to_owned());
            };
            let is_other = |other: (usize, usize)| other != place;
            let again = asked
                .subjects
                .iter()
                .any(|word| find_word(&caption[place.1..], word, true).is_some());
            if again || places.any(is_other) {
                return Err("its caption names more than one subject, and without \"data.masks\" nothing says which is which".to_owned());
            }
            put(place, standing_out(picture), "what stands out from its border")?;
        }
    }
    found.sort_by_key(|subject| subject.word);
    Ok(found)
}

/// What the ground does not reach: it is flooded from the border over pixels that are like their neighbours, and of what is
/// left the largest piece is taken, with its holes.
fn standing_out(picture: &RgbImage) -> GrayImage {
    let (width, height) = picture.dimensions();
    let pixel = |(x, y): (u32, u32)| picture.get_pixel(x, y).0;
    let alike = |a: [u8; 3], b: [u8; 3]| a.into_iter().zip(b).all(|(a, b)| a.abs_diff(b) <= STEP);
    let mut ground = GrayImage::new(width, height);
    let border = (0..width)
        .flat_map(|x| [(x, 0), (x, height - 1)])
        .chain((0..height).flat_map(|y| [(0, y), (width - 1, y)]));
    let mut queue: VecDeque<(u32, u32)> = border.collect();
    queue.iter().for_each(|(x, y)| ground.get_pixel_mut(*x, *y).0 = [255]);
    while let Some(at) = queue.pop_front() {
        for next in neighbours(at, (width, height)) {
            if ground.get_pixel(next.0, next.1).0 == [0] && alike(pixel(at), pixel(next)) {
                ground.get_pixel_mut(next.0, next.1).0 = [255];
                queue.push_back(next);
            }
        }
    }
    // The pieces that are left, each under its number; the largest is the subject.
    let mut pieces = vec![0u32; ground.len()];
    let place = |(x, y): (u32, u32)| y as usize * width as usize + x as usize;
    let (mut largest, mut best, mut count) = (0, 0, 0);
    for start in (0..height).flat_map(|y| (0..width).map(move |x| (x, y))) {
        if ground.get_pixel(start.0, start.1).0 != [0] || pieces[place(start)] != 0 {
            continue;
        }
        count += 1;
        pieces[place(start)] = count;
        let (mut queue, mut size) = (VecDeque::from([start]), 0usize);
        while let Some(at) = queue.pop_front() {
            size += 1;
            for next in neighbours(at, (width, height)) {
                if ground.get_pixel(next.0, next.1).0 == [0] && pieces[place(next)] == 0 {
                    pieces[place(next)] = count;
                    queue.push_back(next);
                }
            }
        }
        if size > largest {
            (largest, best) = (size, count);
        }
    }
    GrayImage::from_fn(width, height, |x, y| {
        image::Luma([if best > 0 && pieces[place((x, y))] == best { 255 } else { 0 }])
    })
}

/// The pixels beside, above and below one.
fn neighbours((x, y): (u32, u32), (width, height): (u32, u32)) -> impl Iterator<Item = (u32, u32)> {
    let beside = [
        (x.checked_sub(1), Some(y)),
        (Some(x + 1).filter(|x| *x < width), Some(y)),
        (Some(x), y.checked_sub(1)),
        (Some(x), Some(y + 1).filter(|y| *y < height)),
    ];
    beside.into_iter().filter_map(|(x, y)| x.zip(y))
}

/// The box around a mask, as the picture has it or with white where the mask is not.
fn cut_out(picture: &RgbImage, mask: &GrayImage, on_white: bool) -> RgbImage {
    let covered = || mask.enumerate_pixels().filter(|(.., pixel)| pixel.0[0] > 127);
    let left = covered().map(|(x, ..)| x).min().unwrap_or_default();
    let right = covered().map(|(x, ..)| x).max().unwrap_or_default();
    let top = covered().map(|(_, y, _)| y).min().unwrap_or_default();
    let bottom = covered().map(|(_, y, _)| y).max().unwrap_or_default();
    RgbImage::from_fn(right - left + 1, bottom - top + 1, |x, y| {
        let (x, y) = (x + left, y + top);
        match on_white && mask.get_pixel(x, y).0[0] <= 127 {
            true => image::Rgb([255; 3]),
            false => *picture.get_pixel(x, y),
        }
    })
}

#[cfg(test)]
mod tests {
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
        let of = |caption: &str| subjects("a", caption, &picture(), &asked);
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
        let told = subjects("a", "a dog", &even, &asked).err().unwrap();
        assert!(told.contains("covers 0.0 %"), "{told}");
    }
}
