//! Two of OpenCV's ways to resize 8-bit pictures, level for level: `cv::resize` by INTER_AREA, for shrinking, and `cv::pyrUp`.

use rayon::prelude::*;

/// [height, width, channels] → [to_height, to_width, channels], each pixel the mean of the area it covers. Neither side grows, and no
/// size is 0.
pub fn area(
    pixels: &[u8],
    (height, width, channels): (usize, usize, usize),
    (to_height, to_width): (usize, usize),
) -> Vec<u8> {
    let (rows, columns) = (Taps::new(height, to_height), Taps::new(width, to_width));
    let row = width * channels;
    let (block_height, block_width) = (height / to_height, width / to_width);
    let whole = height % to_height == 0 && width % to_width == 0;
    let mut out = vec![0; to_height * to_width * channels];
    out.par_chunks_mut(to_width * channels).enumerate().for_each(|(y, out)| {
        if whole {
            // Sums of whole pixels are exact; of four, a half is rounded up, else to even.
            for (i, value) in out.iter_mut().enumerate() {
                let (x, channel) = (i / channels, i % channels);
                let block = (0..block_height).flat_map(|dy| {
                    let start = (y * block_height + dy) * row + x * block_width * channels;
                    pixels[start + channel..].iter().step_by(channels).take(block_width)
                });
                let sum: u64 = block.map(|level| u64::from(*level)).sum();
                *value = match (block_height, block_width) {
                    (2, 2) => ((sum + 2) >> 2) as u8,
                    (block_height, block_width) => {
                        let share = 1.0 / (block_height * block_width) as f32;
                        (sum as f32 * share).round_ties_even() as u8
                    }
                };
            }
            return;
        }
        let mut sums = vec![0f32; out.len()];
        for (source, weight) in rows.of(y) {
            let line = &pixels[source * row..][..row];
            for (x, sums) in sums.chunks_mut(channels).enumerate() {
                for (channel, sum) in sums.iter_mut().enumerate() {
                    let taps = columns.of(x);
                    let along = taps.fold(0.0, |along, (source, weight)| {
                        along + f32::from(line[source * channels + channel]) * weight
                    });
                    *sum += along * weight;
                }
            }
        }
        for (value, sum) in out.iter_mut().zip(sums) {
            *value = sum.round_ties_even() as u8;
        }
    });
    out
}

/// The source pixels under each output pixel along one axis, and their shares.
struct Taps(Vec<Vec<(usize, f32)>>);

impl Taps {
    fn new(from: usize, to: usize) -> Taps {
        let scale = 1.0 / (to as f64 / from as f64);
        // A sliver of a pixel this thin is left out.
        const SLIVER: f64 = 1e-3;
        let taps = |out: usize| {
            let (start, end) = (out as f64 * scale, (out + 1) as f64 * scale);
            let size = scale.min(from as f64 - start);
            let last = (end.floor() as usize).min(from - 1);
            let first = (start.ceil() as usize).min(last);
            let mut taps = Vec::new();
            if first as f64 - start > SLIVER {
                taps.push((first - 1, ((first as f64 - start) / size) as f32));
            }
            taps.extend((first..last).map(|source| (source, (1.0 / size) as f32)));
            let rest = end - last as f64;
            if rest > SLIVER {
                taps.push((last, (rest.min(1.0).min(size) / size) as f32));
            }
            taps
        };
        Taps((0..to).map(taps).collect())
    }

    fn of(&self, out: usize) -> impl Iterator<Item = (usize, f32)> {
        self.0[out].iter().copied()
    }
}

/// [height, width, channels] → [2 height, 2 width, channels]: zeros between the pixels, and the binomial (1, 4, 6, 4, 1) / 8 along both
/// axes. Burt and Adelson, "The Laplacian Pyramid as a Compact Image Code" (1983).
pub fn pyramid_up(pixels: &[u8], (height, width, channels): (usize, usize, usize)) -> Vec<u8> {
    // Along a row: even pixels (1, 6, 1), odd ones (4, 4), the picture mirrored on the left and its last pixel repeated on the right.
    let mut wide = vec![0i32; height * 2 * width * channels];
    let lines = pixels.par_chunks(width * channels);
    wide.par_chunks_mut(2 * width * channels).zip(lines).for_each(|(out, line)| {
        for x in 0..width {
            for channel in 0..channels {
                let at = |x: usize| i32::from(line[x * channels + channel]);
                let (before, after) = neighbours(x, width);
                out[2 * x * channels + channel] = at(before) + 6 * at(x) + at(after);
                out[(2 * x + 1) * channels + channel] = 4 * (at(x) + at(after));
            }
        }
    });
    let row = 2 * width * channels;
    let mut out = vec![0u8; 2 * height * row];
    out.par_chunks_mut(2 * row).enumerate().for_each(|(y, out)| {
        let (before, after) = neighbours(y, height);
        let line = |y: usize| &wide[y * row..][..row];
        let (before, here, after) = (line(before), line(y), line(after));
        let (even, odd) = out.split_at_mut(row);
        for i in 0..row {
            even[i] = ((before[i] + 6 * here[i] + after[i] + 32) >> 6) as u8;
            odd[i] = ((4 * (here[i] + after[i]) + 32) >> 6) as u8;
        }
    });
    out
}

fn neighbours(i: usize, length: usize) -> (usize, usize) {
    let before = if i == 0 { 1.min(length - 1) } else { i - 1 };
    (before, (i + 1).min(length - 1))
}
