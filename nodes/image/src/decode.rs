//! Pictures from files: PNG, JPEG, WebP, BMP, GIF and TIFF, told apart by their content.
//!
//! Files come from strangers. Sizes are checked before pixels are allocated, and what is damaged is an error, not a picture with a grey
//! lower half.

use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};

use image::metadata::Orientation;
use image::{DynamicImage, Frames, ImageDecoder, ImageError, ImageFormat, Limits};
use kosmograph_picture_files::{self as picture_files, Opened, Source, Still};
use rayon::prelude::*;

use node::interrupt::{self, Interrupted};
use node::memory::{Shortage, ask, ask_bytes};

use crate::jpeg::has_end;
use crate::levels::{self, from_level};
use kosmograph_pixels::Shape;

/// The longest side that is read, in pixels.
pub const MAX_SIDE: u32 = 16_384;
/// The most pixels that are read, those of all frames together: 512 MiB of RGBA.
pub const MAX_PIXELS: u64 = 1 << 27;
/// The largest file that is read, in bytes.
pub const MAX_FILE: u64 = 1 << 29;
/// What a decoder may allocate: [`MAX_PIXELS`] with four 16-bit channels and as much again to work in.
const MAX_ALLOC: u64 = MAX_PIXELS * 16;
/// What may be allocated for all that stands beside the pixels, unpacked: nobody looks at a colour profile.
const MAX_METADATA: u64 = 1 << 26;
/// What a pixel takes until it is read: four levels of 16 bits or what a decoder works with, then as many of 8, RGB and alpha as f32.
const BYTES_OF_PIXEL: usize = 4 + 4 * size_of::<f32>();

/// What a file shows.
#[derive(Debug)]
pub struct Decoded {
    /// Of `pixels`: one picture for each frame of an animation, else one; three channels.
    pub shape: Shape,
    /// RGB in 0..1, [B, H, W, 3].
    pub pixels: Vec<f32>,
    /// 1 - alpha, [B, H, W]; `None` when the file has no alpha channel.
    pub mask: Option<Vec<f32>>,
}

/// Why a file is not a picture that can be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("{} cannot be read: {cause}", path.display())]
    Io { path: PathBuf, cause: io::Error },
    #[error("{} is not a file; the name of a picture is wanted", path.display())]
    NotAFile { path: PathBuf },
    #[error("{} has {bytes} bytes; files of at most {MAX_FILE} bytes are read", path.display())]
    FileTooLarge { path: PathBuf, bytes: u64 },
    #[error(
        "{} is not a picture: it does not begin as a PNG, JPEG, WebP, BMP, GIF or TIFF file does",
        path.display()
    )]
    NotAPicture { path: PathBuf },
    #[error(
        "{} is a picture of the kind {format:?}, which is not read; save it as PNG, JPEG, WebP, BMP, GIF or TIFF",
        path.display()
    )]
    Format { path: PathBuf, format: ImageFormat },
    /// A side above [`MAX_SIDE`] or more pixels than [`MAX_PIXELS`].
    #[error(
        "{} shows {frames} x {width} x {height} pixels; at most {MAX_SIDE} on a side and {MAX_PIXELS} in all frames together are read",
        path.display()
    )]
    TooLarge { path: PathBuf, frames: u64, width: u32, height: u32 },
    /// More than there is memory for.
    #[error("{}: {shortage}", path.display())]
    Memory { path: PathBuf, shortage: Shortage },
    /// The work is to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("{} is damaged: the JPEG ends before its end marker, so a part of it is missing", path.display())]
    Truncated { path: PathBuf },
    #[error("{} has no frames", path.display())]
    Empty { path: PathBuf },
    #[error("{} is damaged or not supported: {cause}", path.display())]
    Damaged { path: PathBuf, cause: ImageError },
}

/// Reads the picture, or the frames of the animation, in the file `path`.
///
/// EXIF orientation is applied. Grey becomes RGB, and of 16 bits the upper 8 are kept, as ComfyUI has it, so that a picture and its
/// 8-bit copy are the same. A GIF has an alpha channel when a pixel is transparent. Of a TIFF the first page is read.
pub fn decode(path: &Path) -> Result<Decoded, DecodeError> {
    let io_error = |cause| DecodeError::Io { path: path.to_owned(), cause };

    let metadata = std::fs::metadata(path).map_err(io_error)?;
    if !metadata.is_file() {
        // A pipe would never end.
        return Err(DecodeError::NotAFile { path: path.to_owned() });
    }
    if metadata.len() > MAX_FILE {
        return Err(DecodeError::FileTooLarge { path: path.to_owned(), bytes: metadata.len() });
    }
    decode_from(picture_files::file(path).map_err(io_error)?, metadata.len(), path)
}

/// As [`decode`], of a file of so many `bytes` that is read already, or is being; `path` is what errors call it.
pub fn decode_from(file: Source<'_>, bytes: u64, path: &Path) -> Result<Decoded, DecodeError> {
    let io_error = |cause| DecodeError::Io { path: path.to_owned(), cause };
    let damaged = |cause| DecodeError::Damaged { path: path.to_owned(), cause };
    let (format, mut file) = picture_files::format(file).map_err(io_error)?;
    let format = match format {
        None => return Err(DecodeError::NotAPicture { path: path.to_owned() }),
        Some(
            format @ (ImageFormat::Png
            | ImageFormat::Gif
            | ImageFormat::WebP
            | ImageFormat::Jpeg
            | ImageFormat::Bmp
            | ImageFormat::Tiff),
        ) => format,
        Some(format) => return Err(DecodeError::Format { path: path.to_owned(), format }),
    };
    if format == ImageFormat::Jpeg {
        ask_bytes("the file", bytes.into(), "")
            .map_err(|shortage| DecodeError::Memory { path: path.to_owned(), shortage })?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io_error)?;
        if !has_end(&bytes) {
            return Err(DecodeError::Truncated { path: path.to_owned() });
        }
        file = picture_files::of(Cursor::new(bytes));
    }
    match picture_files::opened(file, format, limits(), MAX_METADATA).map_err(damaged)? {
        Opened::Still(mut decoder) => {
            let orientation = prepare(&mut *decoder, path)?;
            still(decoder, orientation, path)
        }
        Opened::Animation(mut decoder) => {
            let orientation = prepare(&mut *decoder, path)?;
            animation(decoder.frames().map_err(damaged)?, orientation, path)
        }
    }
}

fn limits() -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_ALLOC);
    limits
}

/// Checks the size that the header tells and sets the limits; returns how the picture is to be turned.
fn prepare(decoder: &mut dyn ImageDecoder, path: &Path) -> Result<Orientation, DecodeError> {
    let (width, height) = decoder.dimensions();
    check_size(1, width, height, path)?;
    let damaged = |cause| DecodeError::Damaged { path: path.to_owned(), cause };
    decoder.set_limits(limits()).map_err(damaged)?;
    // Metadata that cannot be read leaves a picture that can.
    Ok(decoder.orientation().unwrap_or(Orientation::NoTransforms))
}

fn check_size(frames: u64, width: u32, height: u32, path: &Path) -> Result<(), DecodeError> {
    let pixels = frames * u64::from(width) * u64::from(height);
    if width > MAX_SIDE || height > MAX_SIDE || pixels > MAX_PIXELS {
        return Err(DecodeError::TooLarge { path: path.to_owned(), frames, width, height });
    }
    let frames = usize::try_from(frames).unwrap_or(usize::MAX);
    ask("its pixels", &[frames, height as usize, width as usize], BYTES_OF_PIXEL)
        .map_err(|shortage| DecodeError::Memory { path: path.to_owned(), shortage })?;
    interrupt::check()?;
    Ok(())
}

fn still(
    decoder: Still<'_>,
    orientation: Orientation,
    path: &Path,
) -> Result<Decoded, DecodeError> {
    let damaged = |cause| DecodeError::Damaged { path: path.to_owned(), cause };
    let mut picture = picture_files::pixels(decoder).map_err(damaged)?;
    picture.apply_orientation(orientation);
    let colour = picture.color();
    let (width, height) = (picture.width(), picture.height());
    let (frame, channels) = upper_bytes(picture);
    decoded(&mut Vec::from([frame]), channels, (width, height), colour.has_alpha(), path)
}

fn animation(
    frames: Frames<'_>,
    orientation: Orientation,
    path: &Path,
) -> Result<Decoded, DecodeError> {
    let damaged = |cause| DecodeError::Damaged { path: path.to_owned(), cause };
    let mut pictures = Vec::new();
    let mut size = (0, 0);
    for frame in frames {
        let mut picture = DynamicImage::ImageRgba8(frame.map_err(damaged)?.into_buffer());
        picture.apply_orientation(orientation);
        size = (picture.width(), picture.height());
        check_size(pictures.len() as u64 + 1, size.0, size.1, path)?;
        pictures.push(picture.into_rgba8().into_raw());
    }
    let has_alpha = pictures.iter().any(|picture| picture.chunks(4).any(|pixel| pixel[3] != 255));
    decoded(&mut pictures, 4, size, has_alpha, path)
}

/// The picture's own channels with 8 bits, and how many they are: grey, grey and alpha, RGB or RGBA. Of 16 bits the upper 8; the
/// image crate would round to nearest.
fn upper_bytes(picture: DynamicImage) -> (Vec<u8>, usize) {
    let upper = |levels: &[u16]| levels.iter().map(|level| (level >> 8) as u8).collect();
    match picture {
        DynamicImage::ImageLuma8(picture) => (picture.into_raw(), 1),
        DynamicImage::ImageLumaA8(picture) => (picture.into_raw(), 2),
        DynamicImage::ImageRgb8(picture) => (picture.into_raw(), 3),
        DynamicImage::ImageRgba8(picture) => (picture.into_raw(), 4),
        DynamicImage::ImageLuma16(picture) => (upper(&picture), 1),
        DynamicImage::ImageLumaA16(picture) => (upper(&picture), 2),
        DynamicImage::ImageRgb16(picture) => (upper(&picture), 3),
        DynamicImage::ImageRgba16(picture) => (upper(&picture), 4),
        // Numbers, as a TIFF may hold.
        picture => (picture.into_rgba8().into_raw(), 4),
    }
}

/// `frames` are each of `width` · `height` pixels of so many channels, as [`upper_bytes`] gives them; they are taken out, so that no
/// two copies of all lie in memory.
fn decoded(
    frames: &mut Vec<Vec<u8>>,
    channels: usize,
    (width, height): (u32, u32),
    has_alpha: bool,
    path: &Path,
) -> Result<Decoded, DecodeError> {
    if frames.is_empty() || width == 0 || height == 0 {
        return Err(DecodeError::Empty { path: path.to_owned() });
    }
    let shape =
        Shape { batch: frames.len(), height: height as usize, width: width as usize, channels: 3 };
    let count = shape.batch * shape.height * shape.width;
    let mut pixels = Vec::with_capacity(count * 3);
    let mut mask = has_alpha.then(|| Vec::with_capacity(count));
    for frame in frames.drain(..) {
        match channels {
            1 => pixels.extend(frame.iter().flat_map(|grey| [from_level(*grey); 3])),
            2 => pixels.extend(frame.chunks_exact(2).flat_map(|pixel| [from_level(pixel[0]); 3])),
            3 => pixels.par_extend(levels::values(&frame)),
            _ => pixels.extend(
                frame.chunks_exact(4).flat_map(|pixel| [0, 1, 2].map(|i| from_level(pixel[i]))),
            ),
        }
        if let Some(mask) = &mut mask {
            let alpha = frame.chunks_exact(channels).map(|pixel| pixel[channels - 1]);
            mask.extend(alpha.map(|alpha| 1.0 - from_level(alpha)));
        }
    }
    Ok(Decoded { shape, pixels, mask })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the image crate makes of any picture with 8 bits is what is read of it, whatever channels its file has.
    #[test]
    fn every_layout_of_channels_is_read() {
        let whole = image::RgbaImage::from_fn(7, 5, |x, y| {
            image::Rgba([(37 * x) as u8, (51 * y) as u8, (x * y) as u8, (255 - 40 * x) as u8])
        });
        let whole = DynamicImage::ImageRgba8(whole);
        let of_8_bits: [DynamicImage; 4] = [
            whole.to_luma8().into(),
            whole.to_luma_alpha8().into(),
            whole.to_rgb8().into(),
            whole.to_rgba8().into(),
        ];
        // Levels of 8 bits in 16: nothing to be rounded, which the image crate would do in its own way.
        let of_16_bits: [DynamicImage; 4] = [
            of_8_bits[0].to_luma16().into(),
            of_8_bits[1].to_luma_alpha16().into(),
            of_8_bits[2].to_rgb16().into(),
            of_8_bits[3].to_rgba16().into(),
        ];
        for kind in of_8_bits.into_iter().chain(of_16_bits) {
            let colour = kind.color();
            let mut file = Vec::new();
            kind.write_to(&mut Cursor::new(&mut file), ImageFormat::Png).unwrap();
            let length = file.len() as u64;
            let source = picture_files::of(Cursor::new(file));
            let read = decode_from(source, length, Path::new("a.png")).unwrap();

            let right = kind.to_rgba8();
            let levels = |range: std::ops::Range<usize>| -> Vec<f32> {
                let pixels = right.pixels().flat_map(|pixel| pixel.0[range.clone()].to_vec());
                pixels.map(from_level).collect()
            };
            assert_eq!(read.shape, Shape { batch: 1, height: 5, width: 7, channels: 3 });
            assert_eq!(read.pixels, levels(0..3), "{colour:?}");
            let alpha = levels(3..4).into_iter().map(|alpha| 1.0 - alpha).collect();
            assert_eq!(read.mask, colour.has_alpha().then_some(alpha), "{colour:?}");
        }
    }
}
