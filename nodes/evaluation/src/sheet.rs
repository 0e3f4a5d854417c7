//! The best and the worst pictures beside what they were drawn from.

use std::path::Path;

use kosmograph_contact_sheet::{Cell, Picture, Sheet};

use crate::Measured;
use crate::error::{Error, Result};
use crate::figures::NAMES;
use crate::layout::Subject;
use crate::picture;

/// How many of each.
const COLUMNS: usize = 6;
const LONGEST_SIDE: usize = 256;

/// Writes the sheet to the PNG file `path`: by the first figure that there is, DINO before CLIP-I.
pub(crate) fn write(path: &Path, subjects: &[Subject], pictures: &[Measured]) -> Result<()> {
    let has = |name: &str| pictures.iter().any(|picture| picture.figures.get(name).is_some());
    let Some((name, title)) = NAMES.iter().find(|(name, _)| has(name)) else {
        return Err(Error::Request("there is no figure that a sheet could show".to_owned()));
    };
    let mut order: Vec<(&Measured, f64)> =
        pictures.iter().filter_map(|picture| Some((picture, picture.figures.get(name)?))).collect();
    order.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let count = order.len().min(COLUMNS);
    let best = &order[..count];
    let worst: Vec<_> = order.iter().rev().take(count).collect();
    let mut cells = Vec::new();
    for some in [best.iter().collect::<Vec<_>>(), worst] {
        for (measured, _) in &some {
            cells.push(Cell { picture: shown(&measured.path), label: label(measured, subjects) });
        }
        for (measured, _) in &some {
            let subject = &subjects[measured.subject];
            let picture = subject.real.get(subject.input).and_then(|input| shown(input));
            cells.push(Cell { picture, label: String::new() });
        }
    }
    let sheet = Sheet {
        title: format!("the best and the worst of {} pictures by {title}", order.len()),
        columns: vec![String::new(); count],
        rows: ["best", "drawn from", "worst", "drawn from"].map(str::to_owned).to_vec(),
        cells,
    };
    let failed = |reason: String| Error::Write { path: path.to_owned(), reason };
    let drawn = sheet.draw().map_err(|error| failed(error.to_string()))?;
    let (width, height) = (drawn.width as u32, drawn.height as u32);
    let (colour, format) = (image::ExtendedColorType::Rgb8, image::ImageFormat::Png);
    image::save_buffer_with_format(path, &drawn.pixels, width, height, colour, format)
        .map_err(|error| failed(error.to_string()))
}

/// A picture for the sheet; what cannot be read any more is an empty place.
fn shown(path: &Path) -> Option<Picture> {
    let opened = picture::open(path).ok()?;
    let (width, height) = (opened.picture().width, opened.picture().height);
    let picture = Picture { width, height, pixels: opened.into_pixels() };
    picture.within(LONGEST_SIDE).ok()
}

fn label(measured: &Measured, subjects: &[Subject]) -> String {
    let figures = NAMES
        .iter()
        .take(3)
        .filter_map(|(name, title)| Some(format!("{title} {:.1}", measured.figures.get(name)?)));
    let figures = figures.collect::<Vec<_>>().join(" ");
    let what = measured.text.as_deref().unwrap_or(&subjects[measured.subject].name);
    format!("{figures} {what}")
}
