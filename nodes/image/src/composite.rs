//! Pictures laid on pictures: with a mask, blended, and by the operators of Porter and Duff.
//!
//! Sums and products are made in f32 in the order in which ComfyUI's nodes make them.

use kosmograph_pixels::Shape;
use kosmograph_pixels::Undone;
use kosmograph_pixels::crop::crop_center;
use kosmograph_pixels::torch::{Mode, interpolate};
use kosmograph_pixels::work::each_row;

/// `values` at the size of `to`: cut around the centre to its proportions and scaled bicubically where they have another one.
///
/// # Errors
/// [`Undone`].
pub fn fitted(values: Vec<f32>, shape: Shape, to: Shape) -> Result<(Shape, Vec<f32>), Undone> {
    if (shape.height, shape.width) == (to.height, to.width) {
        return Ok((shape, values));
    }
    let size = (to.height, to.width);
    let (cropped, values) = crop_center(&values, shape, size)?;
    let values = interpolate(&values, cropped, size, Mode::Bicubic)?;
    Ok((Shape { height: to.height, width: to.width, ..shape }, values))
}

/// `source` laid on `destination` from (`x`, `y`) on, as much of it as `mask` says, which has the source's size and one channel. Both have
/// as many channels; a source or mask of fewer pictures is taken again from its first on.
///
/// # Errors
/// [`Undone`].
pub fn masked(
    (destination, shape): (&[f32], Shape),
    (source, source_shape): (&[f32], Shape),
    mask: Option<(&[f32], Shape)>,
    (x, y): (usize, usize),
) -> Result<Vec<f32>, Undone> {
    let mut out = shape.room()?;
    out.extend_from_slice(destination);
    let channels = shape.channels;
    let columns = source_shape.width.min(shape.width.saturating_sub(x));
    let rows = source_shape.height.min(shape.height.saturating_sub(y));
    each_row(&mut out, shape.row(), |i, row| {
        let (picture, line) = (i / shape.height, i % shape.height);
        if line < y || line - y >= rows || columns == 0 {
            return;
        }
        // A mask goes with the source's pictures, which go with the destination's.
        let start = picture % source_shape.batch * source_shape.picture();
        let source = &source[start + (line - y) * source_shape.row()..][..columns * channels];
        let own = &mut row[x * channels..][..columns * channels];
        match mask {
            None => own.copy_from_slice(source),
            Some((mask, mask_shape)) => {
                let start = picture % mask_shape.batch * mask_shape.picture();
                let mask = &mask[start + (line - y) * mask_shape.row()..][..columns];
                let pixels = own.chunks_exact_mut(channels).zip(source.chunks_exact(channels));
                for ((own, source), part) in pixels.zip(mask) {
                    for (value, source) in own.iter_mut().zip(source) {
                        *value = part * source + (1.0 - part) * *value;
                    }
                }
            }
        }
    })?;
    Ok(out)
}

/// How two pictures become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blend {
    Normal,
    Multiply,
    Screen,
    Overlay,
    /// Of the W3C's compositing: the second picture is the light.
    SoftLight,
    Difference,
}

impl Blend {
    /// ComfyUI's names, in its order.
    pub const NAMES: [&'static str; 6] =
        ["normal", "multiply", "screen", "overlay", "soft_light", "difference"];

    pub fn named(name: &str) -> Option<Blend> {
        use Blend::*;
        let index = Self::NAMES.iter().position(|known| *known == name)?;
        [Normal, Multiply, Screen, Overlay, SoftLight, Difference].get(index).copied()
    }

    fn of(self, a: f32, b: f32) -> f32 {
        match self {
            Blend::Normal => b,
            Blend::Multiply => a * b,
            Blend::Screen => 1.0 - (1.0 - a) * (1.0 - b),
            Blend::Overlay if a <= 0.5 => 2.0 * a * b,
            Blend::Overlay => 1.0 - 2.0 * (1.0 - a) * (1.0 - b),
            Blend::SoftLight if b <= 0.5 => a - (1.0 - 2.0 * b) * a * (1.0 - a),
            Blend::SoftLight => {
                let lit = if a <= 0.25 { ((16.0 * a - 12.0) * a + 4.0) * a } else { a.sqrt() };
                a + (2.0 * b - 1.0) * (lit - a)
            }
            Blend::Difference => a - b,
        }
    }
}

/// `factor` of the blend of both, the rest of `first`; cut to 0..1. They have one size and as many channels; where one has a single picture it
/// goes with all of the other, which have as many or more.
///
/// # Errors
/// [`Undone`].
pub fn blend(
    (first, first_shape): (&[f32], Shape),
    (second, second_shape): (&[f32], Shape),
    factor: f64,
    mode: Blend,
) -> Result<(Shape, Vec<f32>), Undone> {
    let shape = Shape { batch: first_shape.batch.max(second_shape.batch), ..first_shape };
    let (rest, factor) = ((1.0 - factor) as f32, factor as f32);
    let mut out = shape.zeros()?;
    each_row(&mut out, shape.row(), |i, row| {
        let (picture, line) = (i / shape.height, i % shape.height);
        let at = |batch: usize| picture % batch * shape.picture() + line * shape.row();
        let first = &first[at(first_shape.batch)..];
        let second = &second[at(second_shape.batch)..];
        for ((value, a), b) in row.iter_mut().zip(first).zip(second) {
            *value = (a * rest + mode.of(*a, *b) * factor).clamp(0.0, 1.0);
        }
    })?;
    Ok((shape, out))
}

/// An operator of "Compositing digital images" (Porter and Duff 1984), or one of the blends that came to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PorterDuff {
    Add,
    Clear,
    Darken,
    Dst,
    DstAtop,
    DstIn,
    DstOut,
    DstOver,
    Lighten,
    Multiply,
    Overlay,
    Screen,
    Src,
    SrcAtop,
    SrcIn,
    SrcOut,
    SrcOver,
    Xor,
}

impl PorterDuff {
    /// ComfyUI's names, in its order.
    pub const NAMES: [&'static str; 18] = [
        "ADD", "CLEAR", "DARKEN", "DST", "DST_ATOP", "DST_IN", "DST_OUT", "DST_OVER", "LIGHTEN",
        "MULTIPLY", "OVERLAY", "SCREEN", "SRC", "SRC_ATOP", "SRC_IN", "SRC_OUT", "SRC_OVER", "XOR",
    ];

    pub fn named(name: &str) -> Option<PorterDuff> {
        use PorterDuff::*;
        let all = [
            Add, Clear, Darken, Dst, DstAtop, DstIn, DstOut, DstOver, Lighten, Multiply, Overlay,
            Screen, Src, SrcAtop, SrcIn, SrcOut, SrcOver, Xor,
        ];
        let index = Self::NAMES.iter().position(|known| *known == name)?;
        all.get(index).copied()
    }

    /// The opacity of the result of a source and a destination of these opacities.
    fn alpha(self, s: f32, d: f32) -> f32 {
        match self {
            Self::Add => (s + d).clamp(0.0, 1.0),
            Self::Clear => 0.0,
            Self::Darken | Self::Lighten | Self::Overlay | Self::Screen => s + d - s * d,
            Self::Dst | Self::SrcAtop => d,
            Self::Src | Self::DstAtop => s,
            Self::DstIn | Self::SrcIn | Self::Multiply => s * d,
            Self::DstOut => (1.0 - s) * d,
            Self::SrcOut => (1.0 - d) * s,
            Self::DstOver => d + (1.0 - d) * s,
            Self::SrcOver => s + (1.0 - s) * d,
            Self::Xor => (1.0 - d) * s + (1.0 - s) * d,
        }
    }

    /// The colour of the result, of colours that are multiplied by their opacities, as it is.
    fn colour(self, (source, s): (f32, f32), (destination, d): (f32, f32)) -> f32 {
        match self {
            Self::Add => (source + destination).clamp(0.0, 1.0),
            Self::Clear => 0.0,
            Self::Darken => (1.0 - d) * source + (1.0 - s) * destination + source.min(destination),
            Self::Lighten => (1.0 - d) * source + (1.0 - s) * destination + source.max(destination),
            Self::Dst => destination,
            Self::DstAtop => s * destination + (1.0 - d) * source,
            Self::DstIn => destination * s,
            Self::DstOut => (1.0 - s) * destination,
            Self::DstOver => destination + (1.0 - d) * source,
            Self::Multiply => source * destination,
            Self::Overlay if 2.0 * destination < d => 2.0 * source * destination,
            Self::Overlay => s * d - 2.0 * (d - source) * (s - destination),
            Self::Screen => source + destination - source * destination,
            Self::Src => source,
            Self::SrcAtop => d * source + (1.0 - s) * destination,
            Self::SrcIn => source * d,
            Self::SrcOut => (1.0 - d) * source,
            Self::SrcOver => source + (1.0 - s) * destination,
            Self::Xor => (1.0 - d) * source + (1.0 - s) * destination,
        }
    }

    /// `source` and `destination` as one, and how transparent the result is: masks and the second result are 1 where nothing is seen. All have
    /// `shape`'s size, the masks one channel.
    ///
    /// # Errors
    /// [`Undone`].
    pub fn of(
        self,
        (source, source_mask): (&[f32], &[f32]),
        (destination, destination_mask): (&[f32], &[f32]),
        shape: Shape,
    ) -> Result<(Vec<f32>, Vec<f32>), Undone> {
        let masks = Shape { channels: 1, ..shape };
        let (mut out, mut out_mask) = (shape.zeros()?, masks.zeros()?);
        each_row(&mut out_mask, shape.width, |i, row| {
            let at = i * shape.width;
            let both = source_mask[at..].iter().zip(&destination_mask[at..]);
            for (value, (s, d)) in row.iter_mut().zip(both) {
                *value = 1.0 - self.alpha(1.0 - s, 1.0 - d);
            }
        })?;
        each_row(&mut out, shape.row(), |i, row| {
            for (x, pixel) in row.chunks_exact_mut(shape.channels).enumerate() {
                let at = i * shape.width + x;
                let (s, d) = (1.0 - source_mask[at], 1.0 - destination_mask[at]);
                let alpha = self.alpha(s, d);
                for (channel, value) in pixel.iter_mut().enumerate() {
                    let at = at * shape.channels + channel;
                    let colour = self.colour((source[at] * s, s), (destination[at] * d, d));
                    let colour = if alpha > 1e-5 { colour / alpha } else { 0.0 };
                    *value = colour.clamp(0.0, 1.0);
                }
            }
        })?;
        Ok((out, out_mask))
    }
}
