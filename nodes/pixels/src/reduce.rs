//! The antialiased filters of Pillow, which torch took over: positions, reach and shares along one axis. Follows `precompute_coeffs` of
//! Pillow's `src/libImaging/Resample.c`.

use std::f64::consts::PI;

/// Which neighbours an output pixel is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The pixel under the centre of the output pixel. No antialiasing.
    Nearest,
    /// The mean over the area of the output pixel (`BOX`).
    Box,
    /// A triangle, one source pixel to each side.
    Bilinear,
    /// A triangle's width by a cosine's window, one source pixel to each side.
    Hamming,
    /// Keys' cubic with a = -0.5, two source pixels to each side.
    Bicubic,
    /// A sinc windowed by a sinc, three source pixels to each side.
    Lanczos,
}

impl Filter {
    /// How far the filter reaches, in source pixels at scale one.
    fn support(self) -> f64 {
        match self {
            Filter::Nearest => 0.0,
            Filter::Box => 0.5,
            Filter::Bilinear | Filter::Hamming => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Filter::Nearest => 0.0,
            Filter::Box => f64::from(x > -0.5 && x <= 0.5),
            Filter::Bilinear => (1.0 - x.abs()).max(0.0),
            Filter::Hamming => match x.abs() {
                x if x >= 1.0 => 0.0,
                x => sinc(x) * (0.54 + 0.46 * (x * PI).cos()),
            },
            Filter::Bicubic => {
                const A: f64 = -0.5;
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * PI;
    x.sin() / x
}

/// For each of the `outs` of `to` pixels along one axis that are made of `from`, the first source pixel and the shares from there on,
/// whose sum is 1.
pub(crate) fn shares(
    from: usize,
    to: usize,
    outs: std::ops::Range<usize>,
    filter: Filter,
) -> impl Iterator<Item = (usize, impl Iterator<Item = f64>)> {
    let scale = from as f64 / to as f64;
    // Shrinking stretches the filter over the source pixels that fall together: this is the antialiasing.
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    outs.map(move |out| {
        let centre = (out as f64 + 0.5) * scale;
        let first = ((centre - support + 0.5) as i64).max(0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weights: Vec<f64> = (first..end)
            .map(|x| filter.weight((x as f64 - centre + 0.5) * (1.0 / stretch)))
            .collect();
        let sum: f64 = weights.iter().sum();
        let share = move |weight| if sum == 0.0 { weight } else { weight / sum };
        (first, weights.into_iter().map(share))
    })
}
