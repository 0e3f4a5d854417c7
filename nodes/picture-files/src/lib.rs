//! Pictures from files and to files, for nodes, training, measuring and the server.
//!
//! The codecs of the crate `image` are generic over where they read from and write to, so that every crate that opens a
//! picture compiles all of them anew, once for each kind of reader. Here is one kind of each, and all that is generic about it
//! stays in here. What of a picture is wanted (turned or not, with its transparence, within which limits) is the caller's.

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek};
use std::path::Path;

use image::codecs::gif::GifDecoder;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::{WebPDecoder, WebPEncoder};
use image::{
    AnimationDecoder, DynamicImage, ExtendedColorType, Frames, ImageDecoder, ImageEncoder,
    ImageFormat, ImageReader, ImageResult, Limits, RgbImage,
};

/// A file, or bytes in memory.
pub trait Bytes: Read + Seek {}

impl<T: Read + Seek> Bytes for T {}

/// What every picture is read from.
pub type Source<'a> = BufReader<Box<dyn Bytes + 'a>>;

/// # Errors
/// The file cannot be opened.
pub fn file(path: &Path) -> std::io::Result<Source<'static>> {
    Ok(of(File::open(path)?))
}

/// From a reader or from bytes in a cursor.
pub fn of<'a>(bytes: impl Bytes + 'a) -> Source<'a> {
    BufReader::new(Box::new(bytes))
}

/// A picture whose header is read.
pub type Still<'a> = Box<dyn ImageDecoder + 'a>;

/// Several pictures, whose header is read.
pub trait Animation<'a>: ImageDecoder {
    /// # Errors
    /// The first of them cannot be found.
    fn frames(self: Box<Self>) -> ImageResult<Frames<'a>>;
}

impl<'a> Animation<'a> for GifDecoder<Source<'a>> {
    fn frames(self: Box<Self>) -> ImageResult<Frames<'a>> {
        Ok((*self).into_frames())
    }
}

impl<'a> Animation<'a> for WebPDecoder<Source<'a>> {
    fn frames(self: Box<Self>) -> ImageResult<Frames<'a>> {
        Ok((*self).into_frames())
    }
}

impl<'a> Animation<'a> for PngDecoder<Source<'a>> {
    fn frames(self: Box<Self>) -> ImageResult<Frames<'a>> {
        Ok(self.apng()?.into_frames())
    }
}

/// What a file holds.
pub enum Opened<'a> {
    Still(Still<'a>),
    Animation(Box<dyn Animation<'a> + 'a>),
}

/// What the file's first bytes say that it is; `None` where they say nothing. Stands at its beginning again afterwards.
///
/// # Errors
/// It cannot be read.
pub fn format(source: Source<'_>) -> std::io::Result<(Option<ImageFormat>, Source<'_>)> {
    let reader = ImageReader::new(source).with_guessed_format()?;
    Ok((reader.format(), reader.into_inner()))
}

/// Reads the header of the only or the first picture of a file, whatever its kind.
///
/// # Errors
/// It is none, or damaged, or larger than the limits.
pub fn still(source: Source<'_>, limits: Limits) -> ImageResult<Still<'_>> {
    let mut reader = ImageReader::new(source).with_guessed_format()?;
    reader.limits(limits);
    Ok(Box::new(reader.into_decoder()?))
}

/// Reads the header of a file of this kind: a GIF is an animation always, PNG and WebP where they say so. While its header is
/// read, a PNG's colour profile is unpacked to `metadata` bytes at most.
///
/// # Errors
/// As of [`still`].
pub fn opened(
    source: Source<'_>,
    format: ImageFormat,
    limits: Limits,
    metadata: u64,
) -> ImageResult<Opened<'_>> {
    Ok(match format {
        ImageFormat::Png => {
            let mut of_header = Limits::no_limits();
            of_header.max_alloc = Some(metadata);
            let decoder = PngDecoder::with_limits(source, of_header)?;
            match decoder.is_apng()? {
                true => Opened::Animation(Box::new(decoder)),
                false => Opened::Still(Box::new(decoder)),
            }
        }
        ImageFormat::Gif => Opened::Animation(Box::new(GifDecoder::new(source)?)),
        ImageFormat::WebP => {
            let decoder = WebPDecoder::new(source)?;
            match decoder.has_animation() {
                true => Opened::Animation(Box::new(decoder)),
                false => Opened::Still(Box::new(decoder)),
            }
        }
        format => {
            let mut reader = ImageReader::with_format(source, format);
            reader.limits(limits);
            Opened::Still(Box::new(reader.into_decoder()?))
        }
    })
}

/// Reads a picture's pixels.
///
/// # Errors
/// It is damaged, or larger than the limits.
pub fn pixels(decoder: Still<'_>) -> ImageResult<DynamicImage> {
    DynamicImage::from_decoder(decoder)
}

/// Levels that are fractions become 16 bits.
///
/// # Errors
/// The picture has no pixels, or more than the format has.
pub fn png(picture: &DynamicImage) -> ImageResult<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    match picture {
        // A PNG has whole numbers.
        DynamicImage::ImageRgb32F(_) => {
            picture.to_rgb16().write_to(&mut bytes, ImageFormat::Png)?
        }
        DynamicImage::ImageRgba32F(_) => {
            picture.to_rgba16().write_to(&mut bytes, ImageFormat::Png)?
        }
        picture => picture.write_to(&mut bytes, ImageFormat::Png)?,
    }
    Ok(bytes.into_inner())
}

/// Of a quality of 1 to 100.
///
/// # Errors
/// As of [`png`].
pub fn jpeg(picture: &RgbImage, quality: u8) -> ImageResult<Vec<u8>> {
    let mut bytes = Vec::new();
    picture.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, quality))?;
    Ok(bytes)
}

/// A WebP without loss, which is what the encoder can: of rows of pixels of L8, Rgb8 or Rgba8.
///
/// # Errors
/// As of [`png`].
pub fn webp(
    pixels: &[u8],
    (width, height): (u32, u32),
    colour: ExtendedColorType,
) -> ImageResult<Vec<u8>> {
    let mut bytes = Vec::new();
    WebPEncoder::new_lossless(&mut bytes).write_image(pixels, width, height, colour)?;
    Ok(bytes)
}

/// Writes rows of pixels as what the end of the file's name says.
///
/// # Errors
/// As of [`png`]; no format ends so; the file cannot be written.
pub fn save(
    path: &Path,
    pixels: &[u8],
    (width, height): (u32, u32),
    colour: ExtendedColorType,
) -> ImageResult<()> {
    image::save_buffer(path, pixels, width, height, colour)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> ImageResult<DynamicImage> {
        still(of(Cursor::new(bytes)), Limits::default()).and_then(pixels)
    }

    #[test]
    fn what_is_written_is_read() {
        let mut picture = RgbImage::new(5, 3);
        picture.pixels_mut().enumerate().for_each(|(i, pixel)| pixel.0 = [i as u8 * 16, 7, 200]);
        let whole = DynamicImage::ImageRgb8(picture.clone());
        assert_eq!(read(&png(&whole).unwrap()).unwrap(), whole);
        let packed = webp(&picture, picture.dimensions(), ExtendedColorType::Rgb8).unwrap();
        assert_eq!(read(&packed).unwrap(), whole);
        let lossy = read(&jpeg(&picture, 95).unwrap()).unwrap();
        assert_eq!((lossy.width(), lossy.height()), (5, 3));
    }

    #[test]
    fn a_png_of_fractions_has_sixteen_bits() {
        let float =
            DynamicImage::ImageRgb32F(image::Rgb32FImage::from_pixel(2, 2, image::Rgb([0.5; 3])));
        let read = read(&png(&float).unwrap()).unwrap().into_rgb16();
        assert!(read.pixels().all(|pixel| pixel.0 == [32768; 3]), "{read:?}");
    }

    #[test]
    fn a_gif_is_an_animation_and_a_plain_webp_is_none() {
        let picture = image::RgbaImage::new(4, 4);
        let mut gif = Vec::new();
        let mut encoder = image::codecs::gif::GifEncoder::new(&mut gif);
        for _ in 0..2 {
            encoder.encode_frame(image::Frame::new(picture.clone())).unwrap();
        }
        drop(encoder);
        let webp = webp(&picture, picture.dimensions(), ExtendedColorType::Rgba8).unwrap();
        let open = |bytes: Vec<u8>| {
            let (format, source) = format(of(Cursor::new(bytes))).unwrap();
            opened(source, format.unwrap(), Limits::default(), 1 << 20).unwrap()
        };
        match open(gif) {
            Opened::Animation(found) => assert_eq!(found.frames().unwrap().count(), 2),
            Opened::Still(_) => panic!("the GIF is one picture"),
        }
        assert!(matches!(open(webp), Opened::Still(_)));
    }

    proptest! {
        /// Whatever a stranger sends is a picture or an error.
        #[test]
        fn damaged_bytes_are_an_error(at in 0usize..200, to: u8, cut in 0usize..200) {
            let picture = DynamicImage::ImageRgb8(RgbImage::new(9, 9));
            let mut bytes = png(&picture).unwrap();
            let length = bytes.len();
            bytes[at % length] = to;
            bytes.truncate(length - cut % length);
            let _ = read(&bytes);
        }
    }
}
