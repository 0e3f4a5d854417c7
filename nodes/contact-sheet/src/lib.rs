//! A contact sheet: pictures in columns and rows, with what they are written to them.
//!
//! Texts are drawn with a bitmap font of embedded-graphics, ten pixels wide and twenty high, which has the letters of Western Europe; any other is a
//! question mark. White on near black, so that pictures are seen and not the sheet.

use std::convert::Infallible;

use embedded_graphics::Drawable;
use embedded_graphics::Pixel;
use embedded_graphics::draw_target::DrawTarget;
use embedded_graphics::geometry::{OriginDimensions, Point, Size};
use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::mono_font::iso_8859_1::FONT_10X20;
use embedded_graphics::pixelcolor::{Rgb888, RgbColor};
use embedded_graphics::text::{Baseline, Text};
use kosmograph_memory::filled;
use kosmograph_pixels::Undone;
use kosmograph_pixels::pillow::{self, Filter};

/// An RGB picture in 8 bits: `pixels` is [height, width, 3].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    pub width: usize,
    pub height: usize,
    pub pixels: Vec<u8>,
}

impl Picture {
    /// The picture at such a size that neither side is longer than `longest`; a smaller one stays.
    ///
    /// # Errors
    /// [`Undone`].
    pub fn within(self, longest: usize) -> Result<Self, Undone> {
        let longer = self.width.max(self.height);
        if longer <= longest {
            return Ok(self);
        }
        let side = |side: usize| ((side * longest + longer / 2) / longer).max(1);
        let (width, height) = (side(self.width), side(self.height));
        let picture = pillow::Picture {
            pixels: &self.pixels,
            width: self.width,
            height: self.height,
            channels: 3,
        };
        let pixels = pillow::resize(picture, width, height, Filter::Lanczos)?;
        Ok(Self { width, height, pixels })
    }
}

/// What a sheet shows.
#[derive(Clone, Debug, Default)]
pub struct Sheet {
    /// Above everything; may be empty.
    pub title: String,
    /// Above each column; as many as there are columns.
    pub columns: Vec<String>,
    /// Left of each row; as many as there are rows.
    pub rows: Vec<String>,
    /// Row by row; what is missing is an empty place.
    pub cells: Vec<Cell>,
}

/// One place of a sheet.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    pub picture: Option<Picture>,
    /// Below the picture; may be empty.
    pub label: String,
}

const LETTER: (usize, usize) = (10, 20);
/// Around pictures and texts.
const GAP: usize = 12;
const BACKGROUND: u8 = 24;
/// Of an empty place.
const EMPTY: u8 = 44;
/// The most letters of a line beside a row.
const BESIDE: usize = 24;

impl Sheet {
    /// The sheet as one picture.
    ///
    /// # Errors
    /// [`Undone`]: there is not the memory for it.
    pub fn draw(&self) -> Result<Picture, Undone> {
        let largest = |side: fn(&Picture) -> usize, least: usize| {
            self.cells
                .iter()
                .filter_map(|cell| cell.picture.as_ref())
                .map(side)
                .max()
                .unwrap_or(least)
        };
        let (width, height) =
            (largest(|picture| picture.width, 128).max(64), largest(|picture| picture.height, 128));
        let letters = width / LETTER.0;
        let lines = |text: &String| wrapped(text, letters);
        let below: Vec<Vec<String>> = self.cells.iter().map(|cell| lines(&cell.label)).collect();
        let above: Vec<Vec<String>> = self.columns.iter().map(lines).collect();
        let beside: Vec<Vec<String>> = self.rows.iter().map(|text| wrapped(text, BESIDE)).collect();
        let high = |lines: &[Vec<String>]| lines.iter().map(Vec::len).max().unwrap_or(0) * LETTER.1;

        let (columns, rows) = (self.columns.len().max(1), self.rows.len().max(1));
        let longest = beside.iter().flatten().map(|line| line.chars().count()).max().unwrap_or(0);
        let left = if longest == 0 { GAP } else { longest * LETTER.0 + 2 * GAP };
        let whole = left + columns * (width + GAP);
        let title = wrapped(&self.title, (whole - GAP) / LETTER.0);
        let space = |pixels: usize| if pixels == 0 { 0 } else { pixels + GAP };
        let head = space(title.len() * LETTER.1);
        let top = GAP + head + space(high(&above));
        let row = height + space(high(&below)) + GAP;
        // A text beside a row may be longer than the row is high: it ends there.
        let room = row / LETTER.1;

        let size = (whole, top + rows * row);
        let pixels = filled("the sheet", &[size.1, size.0, 3], BACKGROUND)?;
        let mut canvas = Picture { width: size.0, height: size.1, pixels };
        canvas.write(&title, GAP, GAP);
        for (column, lines) in above.iter().enumerate() {
            canvas.write(lines, left + column * (width + GAP), GAP + head);
        }
        for (row_number, lines) in beside.iter().enumerate() {
            canvas.write(&lines[..lines.len().min(room)], GAP, top + row_number * row);
        }
        for place in 0..columns * rows {
            let x = left + place % columns * (width + GAP);
            let y = top + place / columns * row;
            let cell = self.cells.get(place);
            match cell.and_then(|cell| cell.picture.as_ref()) {
                Some(picture) => canvas.put(picture, x, y),
                None => canvas.fill((x, y), (width, height), EMPTY),
            }
            if let Some(lines) = below.get(place) {
                canvas.write(lines, x, y + height + GAP / 2);
            }
        }
        Ok(canvas)
    }
}

impl Picture {
    fn put(&mut self, picture: &Picture, x: usize, y: usize) {
        for (row, source) in picture.pixels.chunks_exact(picture.width * 3).enumerate() {
            let start = ((y + row) * self.width + x) * 3;
            self.pixels[start..][..source.len()].copy_from_slice(source);
        }
    }

    fn fill(&mut self, (x, y): (usize, usize), (width, height): (usize, usize), level: u8) {
        for row in y..y + height {
            self.pixels[(row * self.width + x) * 3..][..width * 3].fill(level);
        }
    }

    fn write(&mut self, lines: &[String], x: usize, y: usize) {
        let style = MonoTextStyle::new(&FONT_10X20, Rgb888::new(235, 235, 235));
        for (i, line) in lines.iter().enumerate() {
            // Sheets are far smaller than an i32 counts.
            let at = Point::new(x as i32, (y + i * LETTER.1) as i32);
            let Ok(_) = Text::with_baseline(line, at, style, Baseline::Top).draw(self);
        }
    }
}

impl OriginDimensions for Picture {
    fn size(&self) -> Size {
        Size::new(self.width as u32, self.height as u32)
    }
}

impl DrawTarget for Picture {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(
        &mut self,
        pixels: I,
    ) -> Result<(), Infallible> {
        for Pixel(at, colour) in pixels {
            let (Ok(x), Ok(y)) = (usize::try_from(at.x), usize::try_from(at.y)) else { continue };
            // What would lie outside is left off.
            if x < self.width && y < self.height {
                let at = (y * self.width + x) * 3;
                self.pixels[at..at + 3].copy_from_slice(&[colour.r(), colour.g(), colour.b()]);
            }
        }
        Ok(())
    }
}

/// The lines of a text of at most `letters` letters each, broken between words where there are some; six lines at most, the last of a longer text ends
/// in three dots.
fn wrapped(text: &str, letters: usize) -> Vec<String> {
    const MOST: usize = 6;
    let letters = letters.max(4);
    let mut lines: Vec<String> = Vec::new();
    for part in text.lines() {
        let mut line = String::new();
        let mut length = 0;
        for word in part.split_whitespace() {
            let mut word: Vec<char> = word.chars().collect();
            if length > 0 && length + 1 + word.len() > letters {
                lines.push(std::mem::take(&mut line));
                length = 0;
            }
            while word.len() > letters {
                let rest = word.split_off(break_of(&word, letters));
                lines.push(word.into_iter().collect());
                word = rest;
            }
            if length > 0 {
                line.push(' ');
                length += 1;
            }
            length += word.len();
            line.extend(word);
        }
        if !line.is_empty() {
            lines.push(line);
        }
        if lines.len() > MOST {
            break;
        }
    }
    if lines.len() > MOST {
        lines.truncate(MOST);
        if let Some(last) = lines.last_mut() {
            let kept: String = last.chars().take(letters - 3).collect();
            *last = kept + "...";
        }
    }
    lines
}

/// Where a word of more than `letters` letters is broken: behind what parts the names of files, where that
/// leaves no short line, and else where the line ends.
fn break_of(word: &[char], letters: usize) -> usize {
    let parts = |letter: &char| matches!(letter, '/' | '\\' | '_' | '-' | '.');
    match word[..letters].iter().rposition(parts) {
        Some(last) if last >= letters / 3 => last + 1,
        _ => letters,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(width: usize, height: usize, level: u8) -> Picture {
        Picture { width, height, pixels: vec![level; width * height * 3] }
    }

    #[test]
    fn texts_are_broken_between_words() {
        assert_eq!(wrapped("a cat on a mat", 7), ["a cat", "on a", "mat"]);
        assert_eq!(wrapped("abcdefghij k", 4), ["abcd", "efgh", "ij k"]);
        assert_eq!(wrapped("loras/pencil_1.st", 10), ["loras/", "pencil_1.", "st"]);
        assert_eq!(wrapped("a.bcdefghijkl", 10), ["a.bcdefghi", "jkl"]);
        assert_eq!(wrapped("", 7), Vec::<String>::new());
        assert_eq!(wrapped("a\nb", 7), ["a", "b"]);
        let long = wrapped(&"word ".repeat(40), 9);
        assert_eq!((long.len(), long[5].as_str()), (6, "word w..."));
    }

    #[test]
    fn pictures_lie_where_they_belong_and_texts_are_seen() {
        let cell = |level| Cell { picture: Some(plain(100, 50, level)), label: String::new() };
        let sheet = Sheet {
            title: "Titel".into(),
            columns: vec!["a".into(), "b".into()],
            rows: vec!["1".into(), "2".into()],
            cells: vec![cell(100), cell(110), cell(120)],
        };
        let drawn = sheet.draw().unwrap();
        // Left: a letter and two gaps; above: the title, the columns' names and their gaps.
        let (left, top, row) = (10 + 24, 12 + 32 + 32, 50 + 12);
        assert_eq!((drawn.width, drawn.height), (left + 2 * 112, top + 2 * row));
        let at = |x: usize, y: usize| drawn.pixels[(y * drawn.width + x) * 3];
        assert_eq!((at(left, top), at(left + 99, top + 49), at(left + 100, top)), (100, 100, 24));
        assert_eq!(at(left + 112, top), 110);
        assert_eq!((at(left, top + row), at(left + 112, top + row)), (120, 44));
        let ink = |x: std::ops::Range<usize>, y: std::ops::Range<usize>| {
            y.flat_map(|y| x.clone().map(move |x| (x, y)))
                .filter(|(x, y)| at(*x, *y) == 235)
                .count()
        };
        assert!(ink(12..62, 12..32) > 50, "the title");
        assert!(ink(12..22, top..top + 20) > 10, "1");
        assert!(ink(12..22, top + row..top + row + 20) > 10, "2");
        assert!(ink(left..left + 10, 44..64) > 10, "a");
        assert_eq!(drawn, sheet.draw().unwrap());
    }

    #[test]
    fn any_text_and_no_picture_make_a_sheet() {
        for text in ["", "Käse 🧀 \u{7}\t", &"x".repeat(10_000), "a\n\n\nb"] {
            let cell = Cell { picture: None, label: text.into() };
            let sheet = Sheet {
                title: text.into(),
                columns: vec![text.into()],
                rows: vec![text.into()],
                cells: vec![cell],
            };
            let drawn = sheet.draw().unwrap();
            assert_eq!(drawn.pixels.len(), drawn.width * drawn.height * 3);
        }
        assert!(Sheet::default().draw().unwrap().width > 0);
    }

    #[test]
    fn large_pictures_are_made_small() {
        let small = plain(1000, 500, 7).within(300).unwrap();
        assert_eq!((small.width, small.height, small.pixels[0]), (300, 150, 7));
        assert_eq!(plain(20, 10, 7).within(300).unwrap(), plain(20, 10, 7));
    }
}
