//! One picture from its file, as the scripts of the papers open it: the colours as they are, without what is
//! transparent and without turning by what a camera noted.

use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageReader};
use kosmograph_pixels::pillow::Picture;

/// A picture in 8 bits.
pub struct Rgb(image::RgbImage);

impl Rgb {
    /// As the networks take it.
    pub fn picture(&self) -> Picture<'_> {
        let (width, height) = (self.0.width() as usize, self.0.height() as usize);
        Picture { pixels: self.0.as_raw(), width, height, channels: 3 }
    }

    /// The pixels, [height, width, 3].
    pub fn into_pixels(self) -> Vec<u8> {
        self.0.into_raw()
    }
}

/// Opens the picture at `path`.
///
/// # Errors
/// Why it cannot be read, for a person.
pub fn open(path: &Path) -> Result<Rgb, String> {
    let reader = ImageReader::open(path).map_err(|error| error.to_string())?;
    let reader = reader.with_guessed_format().map_err(|error| error.to_string())?;
    let decoder = reader.into_decoder().map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err("it has no pixels".to_owned());
    }
    let shape = [height as usize, width as usize, 4];
    kosmograph_memory::ask(format_args!("the pixels of {}", path.display()), &shape, 2)
        .map_err(|error| error.to_string())?;
    let picture = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
    Ok(Rgb(picture.into_rgb8()))
}
