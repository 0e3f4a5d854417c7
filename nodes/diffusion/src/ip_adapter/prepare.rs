//! PrepImageForClipVision: a picture cut to a square of CLIP's size.

use kosmograph_pixels::pillow::{Filter, Picture, resize};
use kosmograph_pixels::shape::Shape;
use node::*;

/// The side that CLIP's encoders take.
const SIDE: usize = 224;

/// Cuts a square out of a picture and scales it to 224 × 224, so that CLIP's encoder sees that part.
#[derive(Inputs)]
#[node(category = "ipadapter/utils")]
pub struct PrepImageForClipVision {
    /// The picture.
    image: Image,
    /// How it is scaled, by Pillow's filters of these names.
    #[widget(choices = ["LANCZOS", "BICUBIC", "HAMMING", "BILINEAR", "BOX", "NEAREST"], default = "LANCZOS")]
    interpolation: String,
    /// Which part of it is kept. pad keeps all and fills up with white.
    #[widget(choices = ["top", "bottom", "left", "right", "center", "pad"], default = "center")]
    crop_position: String,
    /// How much it is sharpened where it has little contrast; 0 leaves it as it is.
    #[widget(default = 0.0, min = 0.0, max = 1.0, step = 0.05)]
    sharpening: f64,
}

impl Node for PrepImageForClipVision {
    outputs![IMAGE: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let filter = match self.interpolation.as_str() {
            "BICUBIC" => Filter::Bicubic,
            "HAMMING" => Filter::Hamming,
            "BILINEAR" => Filter::Bilinear,
            "BOX" => Filter::Box,
            "NEAREST" => Filter::Nearest,
            _ => Filter::Lanczos,
        };
        let (batch, height, width, channels) = self.image.dims();
        let pixels = self.image.0.to_f32()?;
        let side = match self.crop_position.as_str() {
            "pad" => height.max(width),
            _ => height.min(width),
        };
        // Where the square begins; of a padded one above and left of the picture.
        let middle = |length: usize| (length as i64 - side as i64) / 2;
        let (top, left) = match self.crop_position.as_str() {
            "top" => (0, middle(width)),
            "bottom" => ((height - side) as i64, middle(width)),
            "left" => (middle(height), 0),
            "right" => (middle(height), (width - side) as i64),
            _ => (middle(height), middle(width)),
        };
        let shape = Shape { batch, height: side, width: side, channels };
        let mut square = memory::room("the square pictures", &shape.dims())?;
        for picture in 0..batch {
            for y in 0..side as i64 {
                for x in 0..side as i64 {
                    let (y, x) = (top + y, left + x);
                    let inside = (0..height as i64).contains(&y) && (0..width as i64).contains(&x);
                    let at = ((picture * height + y.max(0) as usize) * width + x.max(0) as usize)
                        * channels;
                    match inside {
                        true => square.extend_from_slice(&pixels[at..at + channels]),
                        false => square.extend(std::iter::repeat_n(1.0, channels)),
                    }
                }
            }
        }
        // In bytes, cut off, as a picture becomes Pillow's there.
        let bytes: Vec<u8> =
            square.iter().map(|value| (value.clamp(0.0, 1.0) * 255.0) as u8).collect();
        let mut scaled = memory::room("the scaled pictures", &[batch, SIDE, SIDE, channels])?;
        for pixels in bytes.chunks_exact((side * side * channels).max(1)) {
            let picture = Picture { pixels, width: side, height: side, channels };
            let made = resize(picture, SIDE, SIDE, filter).map_err(Error::new)?;
            scaled.extend(made.into_iter().map(|byte| f32::from(byte) / 255.0));
        }
        if self.sharpening > 0.0 {
            scaled = sharpened(&scaled, [batch, SIDE, SIDE, channels], self.sharpening)?;
        }
        Ok(Image(Tensor::from_f32(&[batch, SIDE, SIDE, channels], scaled)?))
    }
}

/// AMD's contrast adaptive sharpening as IPAdapter_plus has it: a pixel less a share of its four neighbours, the larger the less they
/// and the four at the corners differ. Outside a picture everything is black. `amount` in 0..1.
fn sharpened(
    pixels: &[f32],
    [batch, height, width, channels]: [usize; 4],
    amount: f64,
) -> Result<Vec<f32>> {
    const LEAST: f64 = 1.0 / 8.0;
    const MOST: f64 = 1.0 / 5.0;
    let mut made = memory::room("the sharpened pictures", &[batch, height, width, channels])?;
    for (row, column, channel) in (0..batch * height * width * channels)
        .map(|at| (at / channels / width, at / channels % width, at % channels))
    {
        let y = row % height;
        let at = |dy: usize, dx: usize| -> f64 {
            // One further on, so that what lies outside has a place.
            let (y, x) = (y + dy, column + dx);
            match (1..=height).contains(&y) && (1..=width).contains(&x) {
                true => f64::from(
                    pixels[((row - row % height + y - 1) * width + x - 1) * channels + channel],
                ),
                false => 0.0,
            }
        };
        let (middle, beside) = (at(1, 1), [at(0, 1), at(1, 0), at(1, 2), at(2, 1)]);
        let corners = [at(0, 0), at(0, 2), at(2, 0), at(2, 2)];
        let least = |of: &[f64]| of.iter().copied().fold(f64::INFINITY, f64::min);
        let most = |of: &[f64]| of.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let low = least(&beside).min(middle) + least(&corners);
        let high = most(&beside).max(middle) + most(&corners);
        let share = (low.min(2.0 - high) / high).sqrt() * (amount * (MOST - LEAST) + LEAST);
        let value = (middle - share * beside.iter().sum::<f64>()) / (1.0 - 4.0 * share);
        // Of nothing but black there is no share.
        made.push(if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) as f32 });
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::testing::{Host, this_library};

    #[test]
    fn a_square_is_cut_where_it_is_asked_for() {
        // Columns that are their number.
        let values = (0..300).flat_map(|i| [(i % 100) as f32 / 100.0; 3]).collect();
        let picture = Tensor::from_f32(&[1, 3, 100, 3], values).unwrap().into_value();
        let cut = |position: &str| {
            let inputs = [
                ("image", picture.clone()),
                ("crop_position", Value::string(position)),
                ("interpolation", Value::string("NEAREST")),
            ];
            let made = Host::new().run(&this_library!(), "PrepImageForClipVision", &inputs);
            let made = made.unwrap().remove(0).as_tensor().unwrap();
            assert_eq!(made.shape(), [1, 224, 224, 3]);
            made.to_vec().unwrap()
        };
        let column = |number: f32| (number * 255.0).floor() / 255.0;
        assert_eq!(cut("left")[0], 0.0);
        assert_eq!(cut("right")[0], column(0.97));
        assert_eq!(cut("center")[0], column(0.48));
        // A padded one is white above, and has the picture's own columns in the middle.
        let padded = cut("pad");
        assert_eq!((padded[0], padded[112 * 224 * 3]), (1.0, 0.0));
    }

    /// By numpy, of pixels by a formula.
    #[test]
    fn pictures_are_sharpened_where_there_is_little_contrast() {
        let (height, width) = (4, 5);
        let value = |at: usize| {
            let (y, x, c) = (at / 3 / width, at / 3 % width, at % 3);
            ((y * 7 + x * 5 + c * 3) % 11) as f32 / 10.0
        };
        let pixels: Vec<f32> = (0..height * width * 3).map(value).collect();
        let half = [
            0.7,
            1.0,
            0.2,
            0.000491023,
            0.317945,
            0.964815,
            0.676064,
            0.99639,
            0.000491023,
            0.0,
            0.0221125,
            0.676064,
            0.5,
            0.8,
            0.0,
        ];
        let whole =
            [0.7, 1.0, 0.2, 0.0, 0.291542, 1.0, 0.7, 1.0, 0.0, 0.0, 0.0, 0.7, 0.5, 0.8, 0.0];
        for (amount, expected) in [(0.5, half), (1.0, whole)] {
            let found = sharpened(&pixels, [1, height, width, 3], amount).unwrap();
            assert_eq!(found.len(), pixels.len());
            // At the edge black counts as a neighbour: there it stays.
            assert_eq!(found[..6], pixels[..6]);
            for (found, expected) in found[width * 3..][..15].iter().zip(expected) {
                assert!((found - expected).abs() < 1e-4_f32, "{found} for {expected}");
            }
        }
        let black = sharpened(&[0.0; 27], [1, 3, 3, 3], 1.0).unwrap();
        assert!(black.iter().all(|value| *value == 0.0));
    }

    /// As Pillow makes a row of black and white pixels shorter: `Image.resize((224, 224), resample)`.
    #[test]
    fn every_filter_is_pillows() {
        let values = (0..448 * 448).flat_map(|i| [((i % 448) % 4 / 3) as f32; 3]).collect();
        let picture = Tensor::from_f32(&[1, 448, 448, 3], values).unwrap().into_value();
        for (name, bytes) in [
            ("LANCZOS", [0, 116, 19, 109]),
            ("BICUBIC", [0, 109, 20, 108]),
            ("HAMMING", [0, 118, 10, 118]),
            ("BILINEAR", [0, 96, 32, 96]),
            ("BOX", [0, 128, 0, 128]),
            ("NEAREST", [0, 255, 0, 255]),
        ] {
            let inputs = [("image", picture.clone()), ("interpolation", Value::string(name))];
            let made = Host::new().run(&this_library!(), "PrepImageForClipVision", &inputs);
            let made = made.unwrap().remove(0).as_tensor().unwrap().to_vec().unwrap();
            let found = [0, 1, 100, 101].map(|x| (made[(100 * 224 + x) * 3] * 255.0).round() as u8);
            assert_eq!(found, bytes, "{name}");
        }
    }
}
