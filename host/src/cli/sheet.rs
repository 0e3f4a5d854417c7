//! `--sheet`: the pictures of a sweep as one.

use crate::folders::absolute;
use crate::plan::why_not_written;
use crate::sweep::Sweep;
use crate::whole_file;
use kosmograph_contact_sheet::{Cell, Picture, Sheet};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// Whether a sheet can be written to `file`: asked before anything runs, since a sweep may take hours.
///
/// # Errors
/// A sentence: its name is no PNG's, or its folder is not there or cannot be written to.
pub(super) fn check(file: &Path) -> Result<(), String> {
    let shown = file.display();
    let ending = file.extension().unwrap_or_default();
    if !ending.eq_ignore_ascii_case("png") {
        let right = file.with_extension("png");
        return Err(format!(
            "--sheet {shown}: a sheet is a PNG; {} would be right",
            right.display()
        ));
    }
    if file.is_dir() {
        return Err(format!("--sheet {shown}: is a folder"));
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(format!("--sheet {shown}: the folder {} is not there", folder.display()));
    }
    match why_not_written(&absolute(folder)) {
        Some(reason) => {
            let folder = folder.display();
            Err(format!("--sheet {shown}: the folder {folder} cannot be written to: {reason}"))
        }
        None => Ok(()),
    }
}

/// Writes the sheet of a sweep whose runs made these pictures, in their order; a run without one is an empty place.
///
/// # Errors
/// A sentence: there is not the memory for it, or the file cannot be written.
pub(super) fn write(
    sweep: &Sweep,
    made: &[Option<PathBuf>],
    name: &str,
    file: &Path,
) -> Result<(), String> {
    let (columns, rows) = names(sweep);
    // So that a sheet of many is no larger than one can look at.
    let longest = match columns.len().max(rows.len()) {
        0..=6 => 512,
        7..=16 => 320,
        17..=40 => 192,
        _ => 96,
    };
    let mut cells = Vec::with_capacity(sweep.runs.len());
    let alone = columns.iter().all(String::is_empty);
    for (number, run) in sweep.runs.iter().enumerate() {
        let picture = made.get(number).and_then(Option::as_ref);
        // What cannot be read is an empty place; its own run has told of it, or it is no picture of ours.
        let picture = picture.and_then(|file| read(file).ok());
        let picture = picture.map(|picture| picture.within(longest)).transpose();
        let picture = picture.map_err(|error| error.to_string())?;
        let missing = if picture.is_none() { "no picture" } else { "" };
        let label = match alone {
            true => format!("{} {missing}", sweep.said(run)),
            false => missing.to_owned(),
        };
        cells.push(Cell { picture, label });
    }
    let title = format!("{name}, {} runs", sweep.runs.len());
    let sheet = Sheet { title, columns, rows, cells };
    let drawn = sheet.draw().map_err(|error| error.to_string())?;
    let written = save(&drawn, file);
    written.map_err(|error| format!("the sheet {} cannot be written: {error}", file.display()))
}

fn save(sheet: &Picture, file: &Path) -> Result<(), png::EncodingError> {
    whole_file::write(file, |to| {
        let mut encoder = png::Encoder::new(to, sheet.width as u32, sheet.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&sheet.pixels)?;
        writer.finish()
    })
}

/// What stands above the columns and beside the rows. The values that change fastest are the columns, if there is another axis; of one axis alone
/// the columns have no names.
fn names(sweep: &Sweep) -> (Vec<String>, Vec<String>) {
    let mut axes: Vec<Vec<String>> = Vec::new();
    for axis in &sweep.axes {
        let label = |value| match sweep
            .axes
            .iter()
            .filter(|other| other.place.input() == axis.place.input())
            .count()
        {
            1 => axis.label(value),
            // Two nodes of one kind.
            _ => format!("{} {}", axis.title, axis.label(value)),
        };
        axes.push((0..axis.values.len()).map(label).collect());
    }
    // The runs are every combination of the axes with each seed.
    let combinations: usize = axes.iter().map(Vec::len).product();
    let seeds = sweep.runs.len() / combinations.max(1);
    if seeds > 1 {
        let seeds = sweep.runs[..seeds].iter().filter_map(|run| run.seed);
        axes.push(seeds.map(|seed| format!("seed {seed}")).collect());
    }
    axes.retain(|axis| axis.len() > 1);
    let Some(columns) = axes.pop() else { return (vec![String::new()], vec![String::new()]) };
    if axes.is_empty() {
        let across = (columns.len() as f64).sqrt().ceil() as usize;
        let down = columns.len().div_ceil(across);
        return (vec![String::new(); across], vec![String::new(); down]);
    }
    let mut rows = vec![String::new()];
    for axis in axes {
        let with = |row: &String| {
            let row = row.clone();
            axis.iter().map(move |value| match row.is_empty() {
                true => value.clone(),
                false => format!("{row}\n{value}"),
            })
        };
        rows = rows.iter().flat_map(|row| with(row).collect::<Vec<_>>()).collect();
    }
    (columns, rows)
}

/// A PNG as RGB in 8 bits; transparent ones lie on black.
fn read(file: &Path) -> Result<Picture, png::DecodingError> {
    let limits = png::Limits { bytes: 1 << 30 };
    let file = BufReader::new(File::open(file)?);
    let mut decoder = png::Decoder::new_with_limits(file, limits);
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info()?;
    let Some(size) = reader.output_buffer_size().filter(|size| *size <= 1 << 30) else {
        return Err(png::DecodingError::LimitsExceeded);
    };
    let mut levels = vec![0; size];
    let info = reader.next_frame(&mut levels)?;
    levels.truncate(info.buffer_size());
    let channels = info.color_type.samples();
    let pixels = levels.chunks_exact(channels).flat_map(|pixel| match *pixel {
        [grey] | [grey, _] => [grey; 3],
        [red, green, blue, alpha] => {
            let on_black = |level: u8| (u16::from(level) * u16::from(alpha) / 255) as u8;
            [red, green, blue].map(on_black)
        }
        _ => [pixel[0], pixel[1], pixel[2]],
    });
    let pixels = pixels.collect();
    Ok(Picture { width: info.width as usize, height: info.height as usize, pixels })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changes::Place;
    use crate::sweep::{Axis, Combination};
    use serde_json::json;

    /// A sweep of two axes of two values, whose pictures are plain.
    fn swept(folder: &Path, axes: usize, per_axis: usize) -> (Sweep, Vec<Option<PathBuf>>) {
        let graph = crate::graph::Graph::parse(
            &json!({"1": {"class_type": "K", "inputs": {}}}).to_string(),
        );
        let (graph, catalogue) = (graph.unwrap(), crate::catalogue::Catalogue::default());
        let axis = |number: usize| Axis {
            place: Place::find(&graph, &catalogue, &format!("1.x{number}"), "").unwrap(),
            node: "1".into(),
            title: "K".into(),
            values: (0..per_axis).map(|value| json!(value)).collect(),
            given: String::new(),
        };
        let axes: Vec<Axis> = (0..axes).map(axis).collect();
        let count = per_axis.pow(axes.len() as u32);
        let runs = (0..count).map(|run| Combination {
            seed: None,
            values: (0..axes.len())
                .rev()
                .map(|axis| run / per_axis.pow(axis as u32) % per_axis)
                .collect(),
        });
        let made = (0..count).map(|run| {
            let file = folder.join(format!("{run}.png"));
            let mut encoder = png::Encoder::new(File::create(&file).unwrap(), 64, 64);
            encoder.set_color(png::ColorType::Grayscale);
            let mut writer = encoder.write_header().unwrap();
            writer.write_image_data(&[50 + 10 * run as u8; 64 * 64]).unwrap();
            // The last one fails.
            (run + 1 < count).then_some(file)
        });
        (Sweep { axes: axes.clone(), runs: runs.collect() }, made.collect())
    }

    #[test]
    fn a_sheet_has_every_picture_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let (sweep, made) = swept(folder.path(), 2, 2);
        let (columns, rows) = names(&sweep);
        assert_eq!(
            (columns, rows),
            (vec!["x1 = 0".into(), "x1 = 1".into()], vec!["x0 = 0".into(), "x0 = 1".into()])
        );
        let file = folder.path().join("sheet.png");
        write(&sweep, &made, "w.json", &file).unwrap();
        let sheet = read(&file).unwrap();
        // Beside: six letters and two gaps; cells of 64 pixels and a gap; a line below.
        let left = 60 + 24;
        assert_eq!(sheet.width, left + 2 * (64 + 12));
        let column = |x: usize| -> Vec<u8> {
            let all = (0..sheet.height).map(|y| sheet.pixels[(y * sheet.width + x) * 3]);
            let mut levels: Vec<u8> = all.filter(|level| *level >= 44 && *level < 100).collect();
            levels.dedup();
            levels
        };
        assert_eq!((column(left + 5), column(left + 76 + 60)), (vec![50, 70], vec![60, 44]));
    }

    #[test]
    fn a_sheet_that_cannot_be_written_is_known_before() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.png");
        std::fs::write(&file, "old").unwrap();
        assert_eq!(check(&file), Ok(()));
        assert_eq!(check(Path::new("s.png")), Ok(()));
        assert_eq!(std::fs::read(&file).unwrap(), b"old");
        assert!(check(&folder.path().join("none/s.png")).unwrap_err().contains("is not there"));
        assert!(check(&folder.path().join("s.jpg")).unwrap_err().contains("s.png would be right"));
        #[cfg(target_os = "linux")]
        assert!(
            check(Path::new("/proc/s.png"))
                .unwrap_err()
                .contains("the folder /proc cannot be written to: ")
        );
    }

    #[test]
    fn one_axis_and_three_have_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let (sweep, made) = swept(folder.path(), 1, 5);
        let (columns, rows) = names(&sweep);
        assert_eq!((columns.len(), rows.len()), (3, 2));
        write(&sweep, &made, "w.json", &folder.path().join("sheet.png")).unwrap();
        let (sweep, _) = swept(folder.path(), 3, 2);
        let (columns, rows) = names(&sweep);
        assert_eq!((columns.len(), rows.len(), rows[1].as_str()), (2, 4, "x0 = 0\nx1 = 1"));
        let error = write(&sweep, &[], "w", &folder.path().join("no/sheet.png")).unwrap_err();
        assert!(error.contains("cannot be written"), "{error}");
    }
}
