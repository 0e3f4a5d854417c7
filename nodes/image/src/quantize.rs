//! Few colours in the place of many, as Pillow makes them: a palette by median cut, and each pixel's entry in it.
//!
//! All of it is whole numbers, so the pictures are Pillow's to the level: also where Pillow is coarse (the entry for a
//! colour that is not in the palette is the nearest to that colour with its two lowest bits cleared) or odd (the error
//! that Floyd and Steinberg's method carries past the end of a row is the blue one's, for every channel).

use std::collections::HashMap;

/// The levels of red, green and blue.
pub type Colour = [u8; 3];

/// So many different colours are told apart at most; of more the lowest bits are left out.
const MOST_COLOURS: usize = 65_536;

/// How much a difference of each channel is seen.
const WEIGHT: [u32; 3] = [77, 150, 29];

/// What tells a colour from others while they are counted. Two colours of one number are counted as one, as Pillow does.
fn number([red, green, blue]: Colour, shift: u32) -> u32 {
    let part = |level: u8, shift_left: u32, factor: u32| {
        (u32::from(level >> shift) << shift_left).wrapping_mul(factor)
    };
    part(red, 0, 463) ^ part(green, 8, 10_069) ^ part(blue, 16, 64_997)
}

/// Colours that are counted, with their lowest `shift` bits left out.
struct Counted {
    shift: u32,
    /// By number, the first colour that had it and how many there were.
    colours: HashMap<u32, (Colour, u64)>,
}

impl Counted {
    fn of(pixels: &[Colour]) -> Self {
        let mut counted = Self { shift: 0, colours: HashMap::new() };
        for &pixel in pixels {
            counted.add(pixel, 1);
            while counted.colours.len() > MOST_COLOURS {
                counted.shift += 1;
                for (pixel, count) in std::mem::take(&mut counted.colours).into_values() {
                    counted.add(pixel, count);
                }
            }
        }
        counted
    }

    fn add(&mut self, pixel: Colour, count: u64) {
        self.colours.entry(number(pixel, self.shift)).or_insert((pixel, 0)).1 += count;
    }
}

/// Colours that are near each other.
#[derive(Default)]
struct Group {
    colours: Vec<(Colour, u64)>,
    pixels: u64,
    /// The two that it was cut into.
    parts: Option<(usize, usize)>,
}

impl Group {
    fn range(&self, channel: usize) -> u32 {
        let levels = || self.colours.iter().map(|(colour, _)| colour[channel]);
        u32::from(levels().max().unwrap_or(0) - levels().min().unwrap_or(0))
    }

    /// Cut where half of the pixels lie on either side, along the channel whose range is seen most; the brighter half
    /// first. `None` where all its colours are one.
    fn cut(&mut self) -> Option<(Group, Group)> {
        let ranges = [0, 1, 2].map(|channel| self.range(channel) * WEIGHT[channel]);
        // Of equal ones the first.
        let channel = (1..3).fold(0, |best, channel| match ranges[best] < ranges[channel] {
            true => channel,
            false => best,
        });
        if ranges[channel] == 0 {
            return None;
        }
        let mut colours = std::mem::take(&mut self.colours);
        colours.sort_by_key(|(colour, _)| std::cmp::Reverse(colour[channel]));
        let level = |at: usize| colours[at].0[channel];
        let mut first = 0;
        let mut at = 0;
        while at < colours.len() && first * 2 <= self.pixels {
            first += colours[at].1;
            at += 1;
        }
        while at < colours.len() && level(at) == level(at - 1) {
            at += 1;
        }
        if at == colours.len() {
            // The darkest level alone is the other half.
            while at > 0 && level(at - 1) == level(colours.len() - 1) {
                at -= 1;
            }
        }
        let darker = colours.split_off(at);
        let group = |colours: Vec<(Colour, u64)>| {
            let pixels = colours.iter().map(|(_, count)| count).sum();
            Group { colours, pixels, parts: None }
        };
        Some((group(colours), group(darker)))
    }
}

/// A heap of groups, the one of most pixels at its head. Which of equal ones comes first decides what is cut, so it is
/// Pillow's: written out, as no other's order of equals is said.
#[derive(Default)]
struct Heap(Vec<(u64, usize)>);

impl Heap {
    fn push(&mut self, group: (u64, usize)) {
        self.0.push(group);
        let mut at = self.0.len();
        while at != 1 && group.0 > self.0[at / 2 - 1].0 {
            self.0[at - 1] = self.0[at / 2 - 1];
            at /= 2;
        }
        self.0[at - 1] = group;
    }

    fn pop(&mut self) -> Option<usize> {
        let last = self.0.pop()?;
        let Some(&head) = self.0.first() else { return Some(last.1) };
        let (count, mut at) = (self.0.len(), 1);
        while at * 2 <= count {
            let mut below = at * 2;
            if below < count && self.0[below - 1].0 < self.0[below].0 {
                below += 1;
            }
            if last.0 > self.0[below - 1].0 {
                break;
            }
            self.0[at - 1] = self.0[below - 1];
            at = below;
        }
        self.0[at - 1] = last;
        Some(head.1)
    }
}

/// The palette of at most `most` colours for `pixels`, by median cut: the average of each group.
pub fn palette(pixels: &[Colour], most: usize) -> Vec<Colour> {
    if pixels.is_empty() {
        return Vec::new();
    }
    let Counted { shift, colours } = Counted::of(pixels);
    let shifted = |(colour, count): (Colour, u64)| (colour.map(|level| level >> shift), count);
    let colours = colours.into_values().map(shifted).collect();
    let mut groups = vec![Group { colours, pixels: pixels.len() as u64, parts: None }];
    let mut heap = Heap::default();
    heap.push((groups[0].pixels, 0));
    'cuts: for _ in 1..most {
        // Whatever is one colour is left as it is.
        let (group, (brighter, darker)) = loop {
            let Some(group) = heap.pop() else { break 'cuts };
            if let Some(parts) = groups[group].cut() {
                break (group, parts);
            }
        };
        let number = groups.len();
        groups[group].parts = Some((number, number + 1));
        heap.push((brighter.pixels, number));
        heap.push((darker.pixels, number + 1));
        groups.extend([brighter, darker]);
    }
    // Groups in the order of the tree, the brighter part first.
    let mut entry_of: HashMap<u32, usize> = HashMap::new();
    let (mut entries, mut open) = (0, vec![0]);
    while let Some(group) = open.pop() {
        if let Some((brighter, darker)) = groups[group].parts {
            open.extend([darker, brighter]);
            continue;
        }
        for (colour, _) in &groups[group].colours {
            entry_of.insert(number(colour.map(|level| level << shift), shift), entries);
        }
        entries += usize::from(!groups[group].colours.is_empty());
    }
    let mut sums = vec![([0u64; 3], 0u64); entries];
    for &pixel in pixels {
        let Some(&entry) = entry_of.get(&number(pixel, shift)) else { continue };
        let (sum, count) = &mut sums[entry];
        sum.iter_mut().zip(pixel).for_each(|(sum, level)| *sum += u64::from(level));
        *count += 1;
    }
    let average = |(sum, count): ([u64; 3], u64)| {
        sum.map(|sum| (0.5 + sum as f64 / count.max(1) as f64) as u8)
    };
    sums.into_iter().map(average).collect()
}

/// Finds the entries of a palette for colours.
pub struct Entries<'a> {
    palette: &'a [Colour],
    exact: HashMap<Colour, usize>,
    near: HashMap<Colour, usize>,
}

impl<'a> Entries<'a> {
    /// `palette` is not empty.
    pub fn new(palette: &'a [Colour]) -> Self {
        let mut exact = HashMap::new();
        for (entry, colour) in palette.iter().enumerate() {
            exact.entry(*colour).or_insert(entry);
        }
        Self { palette, exact, near: HashMap::new() }
    }

    /// The colour of the palette for this one.
    pub fn nearest(&mut self, colour: Colour) -> Colour {
        if let Some(&entry) = self.exact.get(&colour) {
            return self.palette[entry];
        }
        let coarse = colour.map(|level| level & !3);
        let entry = *self.near.entry(coarse).or_insert_with(|| {
            let distance = |entry: &usize| -> i32 {
                let differences = self.palette[*entry].into_iter().zip(coarse);
                differences.map(|(a, b)| (i32::from(a) - i32::from(b)).pow(2)).sum()
            };
            // Of equally near ones the first.
            (0..self.palette.len()).min_by_key(distance).unwrap_or(0)
        });
        self.palette[entry]
    }
}

/// `pixels`, `width` in a row, each in the nearest colour; what is lost is given to the pixels beside and below by the
/// weights of Floyd and Steinberg.
pub fn diffuse(pixels: &mut [Colour], width: usize, palette: &[Colour]) {
    let mut entries = Entries::new(palette);
    // For each pixel of the next row sixteen times what it is to be given, one place further to the right.
    let mut below = vec![[0i32; 3]; width + 1];
    for row in pixels.chunks_mut(width) {
        // To the right, and of the next row the place that the next pixel adds to and the one behind it.
        let (mut right, mut here, mut behind) = ([0i32; 3], [0i32; 3], [0i32; 3]);
        for (x, pixel) in row.iter_mut().enumerate() {
            let wanted: Colour = std::array::from_fn(|c| {
                let given = (right[c] + below[x + 1][c]) / 16;
                (i32::from(pixel[c]) + given).clamp(0, 255) as u8
            });
            *pixel = entries.nearest(wanted);
            for c in 0..3 {
                let lost = i32::from(wanted[c]) - i32::from(pixel[c]);
                below[x][c] = 3 * lost + here[c];
                here[c] = 5 * lost + behind[c];
                behind[c] = lost;
                right[c] = 7 * lost;
            }
        }
        below[width] = [here[2], behind[2], behind[2]];
    }
}

/// Thresholds of `side` × `side` pixels, a power of two, by Bayer's scheme: what is added to the levels before the
/// nearest colour is taken, for a palette of `entries` colours.
pub fn bayer(side: usize, entries: usize) -> Vec<f32> {
    let mut matrix = vec![0f32];
    let (mut now, mut steps) = (1, 1f32);
    while now < side {
        steps *= 4.0;
        let wide = now * 2;
        let mut wider = vec![0f32; wide * wide];
        for (at, value) in wider.iter_mut().enumerate() {
            let (y, x) = (at / wide, at % wide);
            let offset = [[-1.5, 0.5], [1.5, -0.5]][y / now][x / now];
            *value = (matrix[y % now * now + x % now] * steps + offset) / steps;
        }
        (matrix, now) = (wider, wide);
    }
    let spread = (512.0 / entries as f64) as f32;
    matrix.into_iter().map(|value| spread * value + 0.5).collect()
}
