//! Canny's edge detector, bit for bit OpenCV's.
//!
//! J. Canny, "A Computational Approach to Edge Detection", PAMI 8 (1986), as `cv::Canny` computes it for an 8-bit grey picture with a
//! 3 × 3 Sobel kernel and the L1 norm, all in integers. ControlNets for edges were trained on exactly these pictures, so "about the same
//! edges" would be another input than the one they know.

use node::interrupt;
use node::memory::ask;

use kosmograph_pixels::Undone;
use kosmograph_pixels::work::each_row;

/// OpenCV's RGB → grey: ITU-R 601 weights with 15 bits after the point, rounded to nearest.
pub fn grey(red: u8, green: u8, blue: u8) -> u8 {
    ((u32::from(red) * 9798 + u32::from(green) * 19235 + u32::from(blue) * 3735 + (1 << 14)) >> 15)
        as u8
}

/// Edges of a grey picture [height, width]: 255 on an edge, 0 elsewhere.
///
/// A pixel whose gradient |dx| + |dy| (0..2040) is above `high` and a maximum across the edge begins an edge; one above `low` continues
/// it. `low` and `high` may come in either order, as in OpenCV. `pixels` holds height · width values, neither of which is 0.
///
/// # Errors
/// [`Undone`].
pub fn canny(pixels: &[u8], width: usize, low: i32, high: i32) -> Result<Vec<u8>, Undone> {
    let (low, high) = (low.min(high), low.max(high));
    // A gradient, its magnitude, a state and a level of each pixel, and the places of some.
    ask("finding the edges", &[pixels.len() / width, width], 16)?;
    let gradients = sobel(pixels, width)?;
    let mut map = suppress_non_maxima(&gradients, width, low, high)?;
    drop(gradients);
    connect(&mut map, width)?;
    Ok(map.iter().map(|state| if *state == State::Edge { 255 } else { 0 }).collect())
}

/// (dx, dy) of each pixel by the 3 × 3 Sobel kernels; beyond the border the outermost pixel repeats.
fn sobel(pixels: &[u8], width: usize) -> Result<Vec<(i32, i32)>, Undone> {
    let height = pixels.len() / width;
    let mut gradients = vec![(0, 0); pixels.len()];
    each_row(&mut gradients, width, |y, out| {
        let row = |y: usize| &pixels[y * width..(y + 1) * width];
        let (above, here, below) = (row(y.saturating_sub(1)), row(y), row((y + 1).min(height - 1)));
        for (x, gradient) in out.iter_mut().enumerate() {
            let (left, right) = (x.saturating_sub(1), (x + 1).min(width - 1));
            let smooth =
                |x: usize| i32::from(above[x]) + 2 * i32::from(here[x]) + i32::from(below[x]);
            let along =
                |row: &[u8]| i32::from(row[left]) + 2 * i32::from(row[x]) + i32::from(row[right]);
            *gradient = (smooth(right) - smooth(left), along(below) - along(above));
        }
    })?;
    Ok(gradients)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Nothing,
    /// A maximum between the thresholds: an edge if an edge reaches it.
    Candidate,
    Edge,
}

/// Keeps the pixels whose gradient is the largest across the edge.
fn suppress_non_maxima(
    gradients: &[(i32, i32)],
    width: usize,
    low: i32,
    high: i32,
) -> Result<Vec<State>, Undone> {
    let height = gradients.len() / width;
    let magnitude: Vec<i32> = gradients.iter().map(|(dx, dy)| dx.abs() + dy.abs()).collect();
    // Outside the picture nothing has a gradient.
    let at = |x: isize, y: isize| {
        let inside = x >= 0 && y >= 0 && x < width as isize && y < height as isize;
        if inside { magnitude[y as usize * width + x as usize] } else { 0 }
    };
    let mut map = vec![State::Nothing; gradients.len()];
    each_row(&mut map, width, |y, out| {
        for (x, state) in out.iter_mut().enumerate() {
            let m = magnitude[y * width + x];
            if m <= low {
                continue;
            }
            let (dx, dy) = gradients[y * width + x];
            let (x, y) = (x as isize, y as isize);
            // tan 22.5° and tan 67.5° = tan 22.5° + 2, with 15 bits after the point.
            const TAN_22: i32 = 13573;
            let (run, rise) = (dx.abs(), dy.abs() << 15);
            let shallow = run * TAN_22;
            let steep = shallow + (run << 16);
            // Of two equal neighbours in a row or column the first one wins; on a diagonal, none.
            let is_maximum = if rise < shallow {
                m > at(x - 1, y) && m >= at(x + 1, y)
            } else if rise > steep {
                m > at(x, y - 1) && m >= at(x, y + 1)
            } else {
                let slant = if (dx ^ dy) < 0 { -1 } else { 1 };
                m > at(x - slant, y - 1) && m > at(x + slant, y + 1)
            };
            if is_maximum {
                *state = if m > high { State::Edge } else { State::Candidate };
            }
        }
    })?;
    Ok(map)
}

/// Hysteresis: a candidate that touches an edge, also by a corner, is an edge.
fn connect(map: &mut [State], width: usize) -> Result<(), Undone> {
    let height = map.len() / width;
    let mut open: Vec<usize> = (0..map.len()).filter(|i| map[*i] == State::Edge).collect();
    let mut done = 0usize;
    while let Some(i) = open.pop() {
        done += 1;
        if done.is_multiple_of(1 << 20) {
            interrupt::check()?;
        }
        let (x, y) = (i % width, i / width);
        for y in y.saturating_sub(1)..=(y + 1).min(height - 1) {
            for x in x.saturating_sub(1)..=(x + 1).min(width - 1) {
                let neighbour = y * width + x;
                if map[neighbour] == State::Candidate {
                    map[neighbour] = State::Edge;
                    open.push(neighbour);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_step_is_one_line() {
        // Left half 0, right half 200: both columns at the step have the gradient 800, the left one wins.
        let width = 8;
        let pixels: Vec<u8> = (0..8 * 8).map(|i| if i % 8 < 4 { 0 } else { 200 }).collect();
        let edges = canny(&pixels, width, 100, 200).unwrap();
        for (i, value) in edges.iter().enumerate() {
            assert_eq!(*value, if i % width == 3 { 255 } else { 0 }, "pixel {i}");
        }
    }

    #[test]
    fn the_gradient_must_be_above_the_threshold_not_at_it() {
        let pixels: Vec<u8> = (0..8 * 8).map(|i| if i % 8 < 4 { 0 } else { 50 }).collect();
        assert!(
            canny(&pixels, 8, 100, 200).unwrap().iter().all(|value| *value == 0),
            "4 · 50 is 200"
        );
        assert!(canny(&pixels, 8, 100, 199).unwrap().contains(&255));
    }

    proptest! {
        #[test]
        fn any_size_and_any_thresholds(
            (width, pixels) in (1usize..20, 1usize..20)
                .prop_flat_map(|(w, h)| (Just(w), prop::collection::vec(any::<u8>(), w * h))),
            low in 0i32..2040, high in 0i32..2040,
        ) {
            let edges = canny(&pixels, width, low, high).unwrap();
            prop_assert_eq!(edges.len(), pixels.len());
            // The order of the thresholds does not matter, and a higher one never adds an edge.
            prop_assert_eq!(&edges, &canny(&pixels, width, high, low).unwrap());
            let fewer = canny(&pixels, width, low.max(high), low.max(high)).unwrap();
            prop_assert!(edges.iter().zip(&fewer).all(|(more, fewer)| more >= fewer));
        }
    }
}
