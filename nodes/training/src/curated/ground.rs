//! What stands out from an even ground, and what a mask cuts out of a picture.

use std::collections::VecDeque;

use image::{GrayImage, RgbImage};

/// How unlike its neighbour a pixel of the ground can be, in the most different of its channels, of 255.
const STEP: u8 = 12;

/// What the ground does not reach: it is flooded from the border over pixels that are like their neighbours, and of what is
/// left the largest piece is taken, with its holes.
pub(super) fn standing_out(picture: &RgbImage) -> GrayImage {
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
pub(super) fn cut_out(picture: &RgbImage, mask: &GrayImage, on_white: bool) -> RgbImage {
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
