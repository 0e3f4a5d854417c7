//! Three of OpenCV's ways to resize 8-bit pictures, level for level: `cv::resize` by INTER_AREA and by INTER_LANCZOS4, and `cv::pyrUp`.

use kosmograph_memory::filled;

use crate::work::{Undone, each_row};

/// [height, width, channels] → [to_height, to_width, channels], each pixel the mean of the area it covers. Neither side grows, and no
/// size is 0.
///
/// # Errors
/// [`Undone`].
pub fn area(
    pixels: &[u8],
    (height, width, channels): (usize, usize, usize),
    (to_height, to_width): (usize, usize),
) -> Result<Vec<u8>, Undone> {
    let (rows, columns) = (Taps::new(height, to_height), Taps::new(width, to_width));
    let row = width * channels;
    let (block_height, block_width) = (height / to_height, width / to_width);
    let whole = height % to_height == 0 && width % to_width == 0;
    let mut out = vec![0; to_height * to_width * channels];
    each_row(&mut out, to_width * channels, |y, out| {
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
    })?;
    Ok(out)
}

/// `cv::resize` by INTER_AREA to any size: [`area`], or where a side grows, between two pixels those shares of them that an output pixel
/// covers. No size is 0.
///
/// # Errors
/// [`Undone`].
pub fn area_to(
    pixels: &[u8],
    (height, width, channels): (usize, usize, usize),
    (to_height, to_width): (usize, usize),
) -> Result<Vec<u8>, Undone> {
    if to_height <= height && to_width <= width {
        return area(pixels, (height, width, channels), (to_height, to_width));
    }
    let taps = |from: usize, to: usize| -> Vec<[(usize, i32); 2]> {
        let back = to as f64 / from as f64;
        let scale = 1.0 / back;
        let tap = |out: usize| {
            let first = (out as f64 * scale).floor();
            let beyond = ((out + 1) as f64 - (first + 1.0) * back) as f32;
            let share = if beyond <= 0.0 { 0.0 } else { beyond - beyond.floor() };
            let at = |i: usize| i.min(from - 1);
            let weight = |share: f32| (share * 2048.0).round_ties_even() as i32;
            [(at(first as usize), weight(1.0 - share)), (at(first as usize + 1), weight(share))]
        };
        (0..to).map(tap).collect()
    };
    let wide = along_rows(pixels, width, channels, &taps(width, to_width))?;
    let row = to_width * channels;
    let mut out = vec![0; to_height * row];
    let rows = taps(height, to_height);
    each_row(&mut out, row, |y, out| {
        let [(above, a), (below, b)] = rows[y];
        let (above, below) = (&wide[above * row..][..row], &wide[below * row..][..row]);
        for ((value, above), below) in out.iter_mut().zip(above).zip(below) {
            // As OpenCV's vector code rounds: 16 bits at a time.
            let sum = ((a * (above >> 4)) >> 16) + ((b * (below >> 4)) >> 16);
            *value = ((sum + 2) >> 2).clamp(0, 255) as u8;
        }
    })?;
    Ok(out)
}

/// `cv::resize` by INTER_LANCZOS4 to any size: the eight pixels around, in fixed point with 11 bits for each axis. No size is 0.
///
/// # Errors
/// [`Undone`].
pub fn lanczos4(
    pixels: &[u8],
    (height, width, channels): (usize, usize, usize),
    (to_height, to_width): (usize, usize),
) -> Result<Vec<u8>, Undone> {
    let wide = along_rows(pixels, width, channels, &lanczos_taps(width, to_width))?;
    let row = to_width * channels;
    let mut out = vec![0; to_height * row];
    let rows = lanczos_taps(height, to_height);
    each_row(&mut out, row, |y, out| {
        for (i, value) in out.iter_mut().enumerate() {
            let sum: i32 =
                rows[y].iter().map(|(source, weight)| wide[source * row + i] * weight).sum();
            *value = ((sum + (1 << 21)) >> 22).clamp(0, 255) as u8;
        }
    })?;
    Ok(out)
}

/// Each row's sums under `taps`, whose weights count 2048 for 1: [H, taps, C].
fn along_rows<const N: usize>(
    pixels: &[u8],
    width: usize,
    channels: usize,
    taps: &[[(usize, i32); N]],
) -> Result<Vec<i32>, Undone> {
    let rows = pixels.len() / (width * channels);
    let mut out = filled("the rows between", &[rows, taps.len(), channels], 0i32)?;
    each_row(&mut out, taps.len() * channels, |y, out| {
        let line = &pixels[y * width * channels..][..width * channels];
        for (out, taps) in out.chunks_mut(channels).zip(taps) {
            for (channel, out) in out.iter_mut().enumerate() {
                let part = |(source, weight): &(usize, i32)| {
                    i32::from(line[source * channels + channel]) * weight
                };
                *out = taps.iter().map(part).sum();
            }
        }
    })?;
    Ok(out)
}

/// sinc(t) sinc(t/4) at the eight source pixels around each output pixel, as shares of their sum; beyond the edges the outermost stands.
/// In f32 where OpenCV computes in f32: a share between two of its 2048 steps shows it.
fn lanczos_taps(from: usize, to: usize) -> Vec<[(usize, i32); 8]> {
    let scale = 1.0 / (to as f64 / from as f64);
    let taps = |out: usize| {
        let at = ((out as f64 + 0.5) * scale - 0.5) as f32;
        let (first, offset) = (at.floor(), at - at.floor());
        let weights: [f32; 8] = std::array::from_fn(|i| {
            let distance = offset + 3.0 - i as f32;
            // sin(πt) is the same for all but for its sign, and the sum divides it out.
            let t = f64::from(distance) * std::f64::consts::FRAC_PI_4;
            let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
            // On a pixel itself, that pixel alone.
            if distance.abs() < 1e-6 { 1e30 } else { (sign * t.sin() / (t * t)) as f32 }
        });
        let share = 1.0 / weights.iter().sum::<f32>();
        std::array::from_fn(|i| {
            let source = (first as i64 - 3 + i as i64).clamp(0, from as i64 - 1) as usize;
            (source, (weights[i] * share * 2048.0).round_ties_even() as i32)
        })
    };
    (0..to).map(taps).collect()
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
///
/// # Errors
/// [`Undone`].
pub fn pyramid_up(
    pixels: &[u8],
    (height, width, channels): (usize, usize, usize),
) -> Result<Vec<u8>, Undone> {
    // Along a row: even pixels (1, 6, 1), odd ones (4, 4), the picture mirrored on the left and its last pixel repeated on the right.
    let mut wide = vec![0i32; height * 2 * width * channels];
    each_row(&mut wide, 2 * width * channels, |i, out| {
        let line = &pixels[i * width * channels..][..width * channels];
        for x in 0..width {
            for channel in 0..channels {
                let at = |x: usize| i32::from(line[x * channels + channel]);
                let (before, after) = neighbours(x, width);
                out[2 * x * channels + channel] = at(before) + 6 * at(x) + at(after);
                out[(2 * x + 1) * channels + channel] = 4 * (at(x) + at(after));
            }
        }
    })?;
    let row = 2 * width * channels;
    let mut out = vec![0u8; 2 * height * row];
    each_row(&mut out, 2 * row, |y, out| {
        let (before, after) = neighbours(y, height);
        let line = |y: usize| &wide[y * row..][..row];
        let (before, here, after) = (line(before), line(y), line(after));
        let (even, odd) = out.split_at_mut(row);
        for i in 0..row {
            even[i] = ((before[i] + 6 * here[i] + after[i] + 32) >> 6) as u8;
            odd[i] = ((4 * (here[i] + after[i]) + 32) >> 6) as u8;
        }
    })?;
    Ok(out)
}

fn neighbours(i: usize, length: usize) -> (usize, usize) {
    let before = if i == 0 { 1.min(length - 1) } else { i - 1 };
    (before, (i + 1).min(length - 1))
}
