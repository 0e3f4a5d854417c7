//! Which subjects a caption names, and what each covers of its picture.

use std::cmp::Reverse;

use image::{GrayImage, RgbImage};

use super::ground::standing_out;
use super::{DataConfig, Eyes, nouns};
use crate::data;
use crate::documents::find_word;
use crate::error::Result;

/// The least and the most of a picture that a subject can cover.
const SHARES: [f64; 2] = [0.005, 0.95];

/// A subject: where its word is in the caption, and what it covers.
pub(super) struct Subject {
    pub word: (usize, usize),
    pub mask: GrayImage,
}

/// The subjects of the picture `stem` in the order of the caption, or why there are none.
///
/// # Errors
/// What `eyes` report.
pub(super) fn subjects(
    stem: &str,
    caption: &str,
    picture: &RgbImage,
    asked: &DataConfig,
    eyes: Option<&mut dyn Eyes>,
) -> Result<Result<Vec<Subject>, String>> {
    let mut found = match eyes {
        Some(eyes) => seen(caption, picture, asked, eyes)?,
        None if asked.masks.is_some() => masked(stem, caption, picture, asked),
        None => alone(caption, picture, asked),
    };
    if let Ok(found) = &mut found {
        found.sort_by_key(|subject| (subject.word.0, Reverse(subject.word.1)));
        // Of two words that overlap the first, and of two that begin together the longer.
        let mut end = 0;
        found.retain(|subject| {
            let is_free = subject.word.0 >= end;
            end = end.max(subject.word.1);
            is_free
        });
    }
    Ok(found)
}

/// Where `word` stands in the caption as a word of its own, whole letters.
fn word_of(caption: &str, word: &str) -> Option<(usize, usize)> {
    let mut from = 0;
    while !word.trim().is_empty() {
        let (start, end) = find_word(&caption[from..], word, true)?;
        let (start, end) = (from + start, from + end);
        if !caption[end..].chars().next().is_some_and(nouns::goes_on) {
            return Some((start, end));
        }
        from = end;
    }
    None
}

/// What the mask `what` covers, if that can be a subject.
fn covering(mask: &GrayImage, what: &str) -> Result<(), String> {
    let covered = mask.pixels().filter(|pixel| pixel.0[0] > 127).count();
    let share = covered as f64 / mask.len().max(1) as f64;
    match (SHARES[0]..=SHARES[1]).contains(&share) {
        true => Ok(()),
        false => {
            let [least, most] = SHARES.map(|share| 100.0 * share);
            Err(format!(
                "{what} covers {:.1} % of it, where {least} to {most} would be right",
                100.0 * share
            ))
        }
    }
}

/// The words of `data.subjects`, or the nouns, that somebody sees in the picture.
fn seen(
    caption: &str,
    picture: &RgbImage,
    asked: &DataConfig,
    eyes: &mut dyn Eyes,
) -> Result<Result<Vec<Subject>, String>> {
    // (where the phrase begins, where the word is)
    let words: Vec<(usize, (usize, usize))> = match asked.subjects.is_empty() {
        true => nouns::of(caption).into_iter().map(|noun| (noun.phrase, noun.word)).collect(),
        false => {
            let places = asked.subjects.iter().filter_map(|word| word_of(caption, word));
            places.map(|word| (word.0, word)).collect()
        }
    };
    if words.is_empty() {
        let what = if asked.subjects.is_empty() { "nothing" } else { "none of \"data.subjects\"" };
        return Ok(Err(format!("its caption, {caption:?}, names {what}")));
    }
    let phrases: Vec<&str> = words.iter().map(|(from, (_, end))| &caption[*from..*end]).collect();
    let mut found = Vec::new();
    for (probabilities, (_, word)) in eyes.probabilities(picture, &phrases)?.iter().zip(words) {
        let levels = probabilities.iter().map(|p| match f64::from(*p) >= asked.threshold {
            true => 255,
            false => 0,
        });
        let mask = GrayImage::from_raw(picture.width(), picture.height(), levels.collect());
        let mask = mask.filter(|mask| covering(mask, "it").is_ok());
        found.extend(mask.map(|mask| Subject { word, mask }));
    }
    Ok(match found.is_empty() {
        true => {
            let names = phrases.join("\", \"");
            Err(format!("none of \"{names}\" can be seen in it, or one is all of it"))
        }
        false => Ok(found),
    })
}

/// The subjects that there are masks of.
fn masked(
    stem: &str,
    caption: &str,
    picture: &RgbImage,
    asked: &DataConfig,
) -> Result<Vec<Subject>, String> {
    let folder = asked.masks.clone().unwrap_or_default().join(stem);
    let masks = data::pictures(&folder)
        .map_err(|_| format!("there is no folder {} with its masks", folder.display()))?;
    let mut found = Vec::new();
    for path in masks {
        let word = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if !asked.subjects.is_empty() && !asked.subjects.contains(&word) {
            continue;
        }
        let Some(word) = word_of(caption, &word) else { continue };
        let mask = data::open(&path).map_err(|reason| format!("{}: {reason}", path.display()))?;
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
        let mask = image::imageops::grayscale(&mask);
        covering(&mask, &path.display().to_string())?;
        found.push(Subject { word, mask });
    }
    match found.is_empty() {
        true => Err(format!("its caption names none of the masks in {}", folder.display())),
        false => Ok(found),
    }
}

/// The only subject of the caption: what stands out from the picture's border.
fn alone(caption: &str, picture: &RgbImage, asked: &DataConfig) -> Result<Vec<Subject>, String> {
    let mut places = asked.subjects.iter().filter_map(|word| word_of(caption, word));
    let Some(place) = places.next() else {
        return Err("its caption names none of \"data.subjects\"".to_owned());
    };
    let is_other = |other: (usize, usize)| other != place;
    let rest = &caption[place.1..];
    let again = asked.subjects.iter().any(|word| word_of(rest, word).is_some());
    if again || places.any(is_other) {
        return Err("its caption names more than one subject, and without \"data.segmenter\" or \"data.masks\" nothing says which is which".to_owned());
    }
    let mask = standing_out(picture);
    covering(&mask, "what stands out from its border")?;
    Ok(vec![Subject { word: place, mask }])
}
