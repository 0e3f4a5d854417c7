//! ImageColorToMask, ImageRGBToYUV, ImageYUVToRGB and Morphology.

use node::{Context, Error, Image, Inputs, Mask, Node, Result, outputs};

use super::{image, mask, pictures};
use crate::morphology::Morphology as Operation;
use kosmograph_pixels::Shape;
use kosmograph_pixels::work::each_row;

/// A mask of the pixels that have exactly one colour.
#[derive(Inputs)]
#[node(category = "mask")]
pub struct ImageColorToMask {
    pub image: Image,
    /// Red · 65536 + green · 256 + blue, each 0 to 255.
    #[widget(default = 0, min = 0, max = 0xff_ff_ff, step = 1)]
    pub color: u64,
}

impl Node for ImageColorToMask {
    outputs![mask: Mask];

    fn run(self, _cx: &Context) -> Result<Mask> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let [_, red, green, blue] = (self.color as u32).to_be_bytes();
        let wanted = [red, green, blue].map(f32::from);
        let level = |value: f32| (value.clamp(0.0, 1.0) * 255.0).round_ties_even();
        let alone = Shape { channels: 1, ..shape };
        let mut out = alone.zeros()?;
        each_row(&mut out, shape.width, |i, row| {
            let source = &values[i * shape.row()..];
            for (value, pixel) in row.iter_mut().zip(source.chunks_exact(shape.channels)) {
                let same = wanted.iter().zip(colours(pixel)).all(|(a, b)| *a == level(b));
                *value = if same { 1.0 } else { 0.0 };
            }
        })?;
        mask(alone, out)
    }
}

/// Red, green and blue; grey is all three.
fn colours(pixel: &[f32]) -> [f32; 3] {
    match pixel {
        [red, green, blue, ..] => [*red, *green, *blue],
        _ => [pixel[0]; 3],
    }
}

/// Takes pictures apart into brightness (Y) and two differences of colour (U, V) around a half, each as a grey picture.
#[derive(Inputs)]
#[node(category = "image/batch")]
pub struct ImageRGBToYUV {
    pub image: Image,
}

impl Node for ImageRGBToYUV {
    outputs![Y: Image, U: Image, V: Image];

    fn run(self, _cx: &Context) -> Result<(Image, Image, Image)> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let to = Shape { channels: 3, ..shape };
        let mut planes = [to.room()?, to.room()?, to.room()?];
        for pixel in values.chunks_exact(shape.channels) {
            let [red, green, blue] = colours(pixel);
            let y = 0.299 * red + 0.587 * green + 0.114 * blue;
            let yuv = [y, (blue - y) * 0.564 + 0.5, (red - y) * 0.713 + 0.5];
            planes.iter_mut().zip(yuv).for_each(|(plane, value)| plane.extend([value; 3]));
        }
        let [y, u, v] = planes;
        Ok((image(to, y)?, image(to, u)?, image(to, v)?))
    }
}

/// Puts pictures together from brightness (Y) and two differences of colour (U, V) around a half; of each the mean of its colours counts.
#[derive(Inputs)]
#[node(category = "image/batch")]
#[allow(non_snake_case, reason = "saved workflows write it so")]
pub struct ImageYUVToRGB {
    pub Y: Image,
    pub U: Image,
    pub V: Image,
}

impl Node for ImageYUVToRGB {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let (shape, y) = pictures(&self.Y).map_err(|error| error.of_input("Y"))?;
        let (u_shape, u) = pictures(&self.U).map_err(|error| error.of_input("U"))?;
        let (v_shape, v) = pictures(&self.V).map_err(|error| error.of_input("V"))?;
        for (name, other) in [("U", u_shape), ("V", v_shape)] {
            if (Shape { channels: shape.channels, ..other }) != shape {
                return Err(Error::at(name, format!("is {other}, but Y is {shape}")));
            }
        }
        let mean = |pixel: &[f32]| colours(pixel).iter().sum::<f32>() / 3.0;
        let to = Shape { channels: 3, ..shape };
        let mut out = to.room()?;
        let others = u.chunks_exact(u_shape.channels).zip(v.chunks_exact(v_shape.channels));
        for (y, (u, v)) in y.chunks_exact(shape.channels).zip(others) {
            let (y, u, v) = (mean(y), mean(u) - 0.5, mean(v) - 0.5);
            let colour = [y + 1.403 * v, y - 0.714 * v - 0.344 * u, y + 1.773 * u];
            // What no picture has is brought to the nearest that one can have.
            out.extend(colour.map(|value| value.clamp(0.0, 1.0)));
        }
        image(to, out)
    }
}

/// Grey-scale morphology: each channel's largest (dilate) or smallest (erode) value in a square around each pixel, and what is made of both.
#[derive(Inputs)]
#[node(category = "image/postprocessing")]
pub struct Morphology {
    pub image: Image,
    /// open: eroded, then dilated; close: the other way round; gradient: dilated less eroded; top_hat: the picture less open; bottom_hat: close
    /// less the picture.
    #[widget(default = "erode", choices = Operation::NAMES)]
    pub operation: String,
    /// The side of the square, in pixels.
    #[widget(default = 3, min = 3, max = 999, step = 1)]
    pub kernel_size: u64,
}

impl Node for Morphology {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let (shape, values) = pictures(&self.image).map_err(|error| error.of_input("image"))?;
        let operation = Operation::named(&self.operation).ok_or_else(|| {
            Error::at("operation", format!("\"{}\" is not an operation", self.operation))
        })?;
        if values.iter().any(|value| value.is_nan()) {
            return Err(Error::at(
                "image",
                "holds values that are not numbers (NaN), of which none is the largest or smallest",
            ));
        }
        image(shape, operation.of(&values, shape, self.kernel_size as usize)?)
    }
}
