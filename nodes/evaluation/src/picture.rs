//! One picture from its file, as the scripts of the papers open it: the colours as they are, without what is
//! transparent and without turning by what a camera noted.

use std::path::Path;

use image::{ImageDecoder, Limits};
use kosmograph_picture_files as picture_files;
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
    let source = picture_files::file(path).map_err(|error| error.to_string())?;
    let decoder =
        picture_files::still(source, Limits::default()).map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err("it has no pixels".to_owned());
    }
    let shape = [height as usize, width as usize, 4];
    kosmograph_memory::ask(format_args!("the pixels of {}", path.display()), &shape, 2)
        .map_err(|error| error.to_string())?;
    let picture = picture_files::pixels(decoder).map_err(|error| error.to_string())?;
    Ok(Rgb(picture.into_rgb8()))
}
