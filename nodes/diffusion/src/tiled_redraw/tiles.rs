//! Where tiles and seams lie, what part of the picture each is drawn from, and how it fades into what is there.
//!
//! After Coyote-A's "Ultimate SD upscale" as its users describe it: tiles in rows or in two halves like a chessboard, each with a padding of what
//! is around it; then, if wanted, the seams between them once more.

use kosmograph_pixels::Undone;
use kosmograph_pixels::pillow::{self, Filter, Picture};

/// A part of the picture, in its pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub left: usize,
    pub top: usize,
    pub width: usize,
    pub height: usize,
}

/// What is drawn anew at once: levels 0..255 of how much, laid on a picture of nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    pub left: usize,
    pub top: usize,
    pub width: usize,
    pub height: usize,
    /// [height, width]; all of it where there are none.
    pub levels: Option<std::sync::Arc<Vec<u8>>>,
}

/// The order of tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Linear,
    Chess,
    None,
}

/// What is drawn over the seams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seams {
    None,
    BandPass,
    HalfTile,
    HalfTileAndIntersections,
}

impl Order {
    pub const NAMES: [&'static str; 3] = ["Linear", "Chess", "None"];

    pub fn named(name: &str) -> Order {
        match name {
            "Linear" => Order::Linear,
            "Chess" => Order::Chess,
            _ => Order::None,
        }
    }
}

impl Seams {
    pub const NAMES: [&'static str; 4] =
        ["None", "Band Pass", "Half Tile", "Half Tile + Intersections"];

    pub fn named(name: &str) -> Seams {
        match name {
            "Band Pass" => Seams::BandPass,
            "Half Tile" => Seams::HalfTile,
            "Half Tile + Intersections" => Seams::HalfTileAndIntersections,
            _ => Seams::None,
        }
    }
}

/// A picture in tiles.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Of the picture.
    pub width: usize,
    pub height: usize,
    pub tile_width: usize,
    pub tile_height: usize,
}

impl Grid {
    pub fn columns(&self) -> usize {
        self.width.div_ceil(self.tile_width)
    }

    pub fn rows(&self) -> usize {
        self.height.div_ceil(self.tile_height)
    }

    /// The tiles in their order; of a chessboard first those whose row and column are both even or both odd.
    pub fn tiles(&self, order: Order) -> Vec<Patch> {
        let all = || (0..self.rows()).flat_map(|y| (0..self.columns()).map(move |x| (x, y)));
        let is_first = |(x, y): &(usize, usize)| (x + y) % 2 == 0;
        let places: Vec<(usize, usize)> = match order {
            Order::Linear => all().collect(),
            Order::Chess => {
                all().filter(is_first).chain(all().filter(|at| !is_first(at))).collect()
            }
            Order::None => Vec::new(),
        };
        let tile = |(x, y)| self.patch((x * self.tile_width, y * self.tile_height), None);
        places.into_iter().map(tile).collect()
    }

    fn patch(&self, (left, top): (usize, usize), levels: Option<std::sync::Arc<Vec<u8>>>) -> Patch {
        Patch { left, top, width: self.tile_width, height: self.tile_height, levels }
    }

    /// Bands of `width` pixels along every seam, rows first: fading to both sides.
    ///
    /// # Errors
    /// [`Undone`].
    pub fn bands(&self, width: usize) -> Result<Vec<Patch>, Undone> {
        let mut bands = Vec::new();
        let row = std::sync::Arc::new(there_and_back(self.width, width)?);
        for y in 1..self.rows() {
            let top = (y * self.tile_height).saturating_sub(width / 2);
            let levels = Some(row.clone());
            bands.push(Patch { left: 0, top, width: self.width, height: width, levels });
        }
        let column = std::sync::Arc::new(turned(&there_and_back(self.height, width)?, self.height));
        for x in 1..self.columns() {
            let left = (x * self.tile_width).saturating_sub(width / 2);
            let levels = Some(column.clone());
            bands.push(Patch { left, top: 0, width, height: self.height, levels });
        }
        Ok(bands)
    }

    /// Tiles that lie half on one and half on the next, fading to both, over the seams between rows and then between columns.
    ///
    /// # Errors
    /// [`Undone`].
    pub fn half_tiles(&self) -> Result<Vec<Patch>, Undone> {
        let (width, height) = (self.tile_width, self.tile_height);
        let down = std::sync::Arc::new(there_and_back(width, height)?);
        let across = std::sync::Arc::new(turned(&there_and_back(height, width)?, height));
        let mut tiles = Vec::new();
        for y in 0..self.rows().saturating_sub(1) {
            for x in 0..self.columns() {
                let at = (x * width, y * height + height / 2);
                tiles.push(self.patch(at, Some(down.clone())));
            }
        }
        for y in 0..self.rows() {
            for x in 0..self.columns().saturating_sub(1) {
                let at = (x * width + width / 2, y * height);
                tiles.push(self.patch(at, Some(across.clone())));
            }
        }
        Ok(tiles)
    }

    /// Tiles over the places where four meet, fading from their middle.
    ///
    /// # Errors
    /// [`Undone`].
    pub fn intersections(&self) -> Result<Vec<Patch>, Undone> {
        let (width, height) = (self.tile_width, self.tile_height);
        // Pillow's radial gradient, inverted: √2 times the distance from the middle of 256 × 256, so that corners are reached at the end.
        let level = |at: usize| {
            let (x, y) = ((at % 256) as f64 - 128.0, (at / 256) as f64 - 128.0);
            255 - ((x * x + y * y) * 2.0).sqrt().min(255.0) as u8
        };
        let round: Vec<u8> = (0..256 * 256).map(level).collect();
        let levels = std::sync::Arc::new(resized(&round, (256, 256), (width, height))?);
        let mut tiles = Vec::new();
        for y in 0..self.rows().saturating_sub(1) {
            for x in 0..self.columns().saturating_sub(1) {
                let at = (x * width + width / 2, y * height + height / 2);
                tiles.push(self.patch(at, Some(levels.clone())));
            }
        }
        Ok(tiles)
    }

    /// What a patch is drawn from: where it is, with `padding` around it, as far as the picture goes; then grown to the proportions of `to`, or,
    /// without one, to multiples of 8. Also the size that it is drawn at. `None` where it lies outside.
    pub fn drawn_from(
        &self,
        patch: &Patch,
        padding: usize,
        to: Option<(usize, usize)>,
    ) -> Option<(Window, (usize, usize))> {
        let seen = patch.seen(self.width, self.height)?;
        let left = seen.left.saturating_sub(padding);
        let top = seen.top.saturating_sub(padding);
        let right = (seen.left + seen.width + padding).min(self.width);
        let bottom = (seen.top + seen.height + padding).min(self.height);
        let (width, height) = (right - left, bottom - top);
        let (wanted, size) = match to {
            Some((to_width, to_height)) => {
                let proportions = to_width as f64 / to_height as f64;
                let wanted = if width as f64 / height as f64 > proportions {
                    (width, (width as f64 / proportions).round_ties_even() as usize)
                } else {
                    ((height as f64 * proportions).round_ties_even() as usize, height)
                };
                (wanted, (to_width, to_height))
            }
            None => {
                let size = (width.div_ceil(8) * 8, height.div_ceil(8) * 8);
                (size, size)
            }
        };
        let (left, width) = grown(left, right, wanted.0, self.width);
        let (top, height) = grown(top, bottom, wanted.1, self.height);
        Some((Window { left, top, width, height }, size))
    }
}

/// A side from `first` to `last` that is to be `wanted` long: half of what is missing is taken behind it, the rest before it, what is missing
/// still behind it again, as far as the picture goes.
fn grown(first: usize, last: usize, wanted: usize, whole: usize) -> (usize, usize) {
    let missing = |first: usize, last: usize| wanted.saturating_sub(last - first);
    let last = (last + missing(first, last) / 2).min(whole);
    let first = first.saturating_sub(missing(first, last));
    let last = (last + missing(first, last)).min(whole);
    (first, last - first)
}

impl Patch {
    /// Where it is not 0, within a picture of that size.
    pub fn seen(&self, width: usize, height: usize) -> Option<Window> {
        let (mut left, mut right, mut top, mut bottom) = (usize::MAX, 0, usize::MAX, 0);
        for y in 0..self.height {
            let any = match &self.levels {
                None => Some((0, self.width)),
                Some(levels) => {
                    let row = &levels[y * self.width..][..self.width];
                    let first = row.iter().position(|level| *level > 0);
                    let last = row.iter().rposition(|level| *level > 0);
                    first.zip(last.map(|last| last + 1))
                }
            };
            if let Some((first, last)) = any {
                (left, right) = (left.min(first), right.max(last));
                (top, bottom) = (top.min(y), y + 1);
            }
        }
        if right == 0 {
            return None;
        }
        let (left, top) = (self.left + left, self.top + top);
        let (right, bottom) = ((self.left + right).min(width), (self.top + bottom).min(height));
        (left < right && top < bottom).then(|| Window {
            left,
            top,
            width: right - left,
            height: bottom - top,
        })
    }

    /// How much of each pixel of `window` is drawn anew, 0..1, [height, width], behind a Gaussian of `blur` pixels. Around the picture is nothing.
    pub fn faded(&self, window: Window, blur: usize) -> Vec<f32> {
        let reach = 3 * blur;
        // A frame of `reach` around the window is what the blur sees of the rest.
        let (wide, high) = (window.width + 2 * reach, window.height + 2 * reach);
        let level = |x: usize, y: usize| -> f32 {
            let column = (x + window.left).checked_sub(self.left + reach);
            let row = (y + window.top).checked_sub(self.top + reach);
            match (column, row) {
                (Some(x), Some(y)) if x < self.width && y < self.height => match &self.levels {
                    Some(levels) => f32::from(levels[y * self.width + x]) / 255.0,
                    None => 1.0,
                },
                _ => 0.0,
            }
        };
        let kernel: Vec<f32> = match blur {
            0 => vec![1.0],
            blur => {
                let weight = |i: usize| {
                    let apart = i as f64 - reach as f64;
                    (-apart * apart / (2.0 * (blur * blur) as f64)).exp()
                };
                let sum: f64 = (0..=2 * reach).map(weight).sum();
                (0..=2 * reach).map(|i| (weight(i) / sum) as f32).collect()
            }
        };
        let mut across = vec![0f32; high * window.width];
        for (y, row) in across.chunks_mut(window.width).enumerate() {
            let line: Vec<f32> = (0..wide).map(|x| level(x, y)).collect();
            for (x, value) in row.iter_mut().enumerate() {
                *value = kernel.iter().zip(&line[x..]).map(|(weight, level)| weight * level).sum();
            }
        }
        let mut faded = vec![0f32; window.height * window.width];
        for (y, row) in faded.chunks_mut(window.width).enumerate() {
            for (i, weight) in kernel.iter().enumerate() {
                let line = &across[(y + i) * window.width..][..window.width];
                row.iter_mut().zip(line).for_each(|(sum, value)| *sum += weight * value);
            }
        }
        faded
    }
}

/// Levels [height, width] that rise from 0 to 255 over the upper half and fall over the lower: Pillow's linear gradient, resized by its cubic.
fn there_and_back(width: usize, height: usize) -> Result<Vec<u8>, Undone> {
    let half = height / 2;
    let mut levels = vec![0; width * height];
    if half > 0 {
        let gradient: Vec<u8> = (0..=255).flat_map(|level| [level; 256]).collect();
        let rising = resized(&gradient, (256, 256), (width, half))?;
        levels[..width * half].copy_from_slice(&rising);
        let falling = rising.iter().rev();
        levels[width * half..].iter_mut().zip(falling).for_each(|(level, other)| *level = *other);
    }
    Ok(levels)
}

/// Rows as columns, of levels that are `width` wide.
fn turned(levels: &[u8], width: usize) -> Vec<u8> {
    (0..width).flat_map(|x| levels[x..].iter().step_by(width.max(1)).copied()).collect()
}

fn resized(
    pixels: &[u8],
    (width, height): (usize, usize),
    (to_width, to_height): (usize, usize),
) -> Result<Vec<u8>, Undone> {
    let picture = Picture { pixels, width, height, channels: 1 };
    pillow::resize(picture, to_width, to_height, Filter::Bicubic)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid { width: 1000, height: 600, tile_width: 512, tile_height: 256 };

    #[test]
    fn tiles_cover_the_picture_in_their_order() {
        let places = |order| {
            let tiles = GRID.tiles(order);
            tiles.iter().map(|tile| (tile.left, tile.top)).collect::<Vec<_>>()
        };
        let rows = [(0, 0), (512, 0), (0, 256), (512, 256), (0, 512), (512, 512)];
        assert_eq!(places(Order::Linear), rows);
        let chess = [(0, 0), (512, 256), (0, 512), (512, 0), (0, 256), (512, 512)];
        assert_eq!(places(Order::Chess), chess);
        assert_eq!(places(Order::None), []);
    }

    #[test]
    fn a_tile_is_drawn_from_what_is_around_it() {
        let of =
            |at: usize, padding, to| GRID.drawn_from(&GRID.tiles(Order::Linear)[at], padding, to);
        let window = |left, top, width, height| Window { left, top, width, height };
        // In a corner it grows to the other side, in proportion.
        let to = Some((576, 320));
        assert_eq!(of(0, 32, to), Some((window(0, 0, 544, 302), (576, 320))));
        // In the middle of a side there is padding on both.
        assert_eq!(of(2, 32, to), Some((window(0, 224, 576, 320), (576, 320))));
        // The last is cut off by the picture, and still has the proportions, as far as it goes.
        assert_eq!(of(5, 32, to), Some((window(480, 311, 520, 289), (576, 320))));
        // Alone it is brought to multiples of 8.
        assert_eq!(of(5, 30, None), Some((window(480, 480, 520, 120), (520, 120))));
        let outside = Patch { left: 1000, top: 0, width: 10, height: 10, levels: None };
        assert_eq!(GRID.drawn_from(&outside, 32, to), None);
    }

    #[test]
    fn seams_are_where_tiles_meet() {
        let places = |patches: Vec<Patch>| {
            let of = |p: &Patch| (p.left, p.top, p.width, p.height);
            patches.iter().map(of).collect::<Vec<_>>()
        };
        let bands = GRID.bands(64).unwrap();
        // Pillow's gradient, resized by Pillow to 1000 × 32, and back.
        let column = |x: usize| -> Vec<u8> {
            let levels = bands[0].levels.clone().unwrap();
            levels[x..].iter().step_by(1000).copied().collect()
        };
        assert_eq!(column(0)[..4], [4, 11, 20, 28]);
        assert_eq!(column(999)[28..36], [228, 236, 244, 251, 251, 244, 236, 228]);
        assert_eq!(places(bands), [(0, 224, 1000, 64), (0, 480, 1000, 64), (480, 0, 64, 600)]);
        let halves = GRID.half_tiles().unwrap();
        assert_eq!(halves.len(), 2 * 2 + 3);
        assert_eq!((halves[0].left, halves[0].top), (0, 128));
        assert_eq!((halves[4].left, halves[4].top), (256, 0));
        let crossings = GRID.intersections().unwrap();
        assert_eq!(places(crossings.clone()), [(256, 128, 512, 256), (256, 384, 512, 256)]);
        let levels = crossings[0].levels.clone().unwrap();
        let at = |x: usize, y: usize| levels[y * 512 + x];
        // Pillow's radial gradient, inverted and resized by Pillow.
        let found = [at(256, 128), at(0, 0), at(0, 128), at(5, 128), at(128, 64), at(200, 10)];
        assert_eq!(found, [255, 0, 74, 77, 127, 84]);
    }

    #[test]
    fn a_tile_fades_as_a_gaussian_does() {
        let tile = Patch { left: 10, top: 0, width: 20, height: 30, levels: None };
        let window = Window { left: 0, top: 0, width: 40, height: 30 };
        let sharp = tile.faded(window, 0);
        let row: Vec<f32> = sharp[15 * 40..16 * 40].to_vec();
        assert_eq!((row[9], row[10], row[29], row[30]), (0.0, 1.0, 1.0, 0.0));
        let soft = tile.faded(window, 2);
        // Of the sum of exp(-d²/8), d from -6 to 6 (5.0066), what lies within: left of the edge 5 + ½ steps away.
        let at = |x: usize| soft[15 * 40 + x];
        assert!(
            (at(9) - 0.400_8).abs() < 1e-3 && (at(10) - 0.599_2).abs() < 1e-3,
            "{} {}",
            at(9),
            at(10)
        );
        assert!((at(20) - 1.0).abs() < 1e-6 && at(0) == 0.0);
        // Around the picture is nothing.
        assert!((soft[20] - 0.599_2).abs() < 1e-3, "{}", soft[20]);
    }
}
