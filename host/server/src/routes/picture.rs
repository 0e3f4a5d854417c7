//! Pictures as `/view` is asked for them: smaller in bytes, without alpha, the alpha alone; and a mask put
//! into one.

use crate::fault::Fault;
use image::{DynamicImage, ExtendedColorType, Limits, RgbaImage};
use kosmograph_picture_files::{self as picture_files, Source};
use std::io::Cursor;
use std::path::Path;

/// The largest side of a picture that is decoded, and the most memory that takes.
const LARGEST: u32 = 32_768;
const MOST_BYTES: u64 = 2 << 30;

/// Which channels are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    All,
    Colours,
    Alpha,
}

/// A copy that is made for showing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preview {
    Jpeg(u8),
    /// Without loss: what the encoder of Rust can.
    Webp,
}

impl Preview {
    /// `jpeg;90`; every other format counts as WebP, as do pictures with alpha.
    pub fn of(asked: &str, channel: Channel) -> Self {
        let (format, quality) = asked.split_once(';').unwrap_or((asked, "90"));
        let quality = quality.trim().parse::<u8>().unwrap_or(90).clamp(1, 100);
        match format.trim() {
            "jpeg" if channel == Channel::Colours || channel == Channel::All => Self::Jpeg(quality),
            _ => Self::Webp,
        }
    }
}

/// A picture that was made.
pub struct Made {
    pub bytes: Vec<u8>,
    pub media_type: &'static str,
}

/// Decodes a picture, within limits.
///
/// # Errors
/// It is none, or too large.
fn decode(source: Source<'_>) -> Result<DynamicImage, Fault> {
    let none = |error: &dyn std::fmt::Display| {
        Fault::bad(format!("this is no picture that can be read: {error}"))
    };
    let mut limits = Limits::default();
    limits.max_image_width = Some(LARGEST);
    limits.max_image_height = Some(LARGEST);
    limits.max_alloc = Some(MOST_BYTES);
    let picture = picture_files::still(source, limits).and_then(picture_files::pixels);
    picture.map_err(|error| none(&error))
}

/// The file at `path` as it is asked for.
///
/// # Errors
/// It is no picture.
pub fn shown(path: &Path, channel: Channel, preview: Option<Preview>) -> Result<Made, Fault> {
    let file = picture_files::file(path).map_err(|error| Fault::not_found(error.to_string()))?;
    let picture = decode(file)?;
    let picture = match channel {
        Channel::All => picture,
        Channel::Colours => DynamicImage::ImageRgb8(picture.to_rgb8()),
        Channel::Alpha => {
            let mut alpha = picture.to_rgba8();
            alpha.pixels_mut().for_each(|pixel| pixel.0[..3].fill(0));
            DynamicImage::ImageRgba8(alpha)
        }
    };
    let (made, media_type) = match preview {
        None => (picture_files::png(&picture), "image/png"),
        Some(Preview::Jpeg(quality)) => {
            (picture_files::jpeg(&picture.to_rgb8(), quality), "image/jpeg")
        }
        Some(Preview::Webp) => {
            let size = (picture.width(), picture.height());
            let made = match picture.color().has_alpha() {
                true => picture_files::webp(&picture.to_rgba8(), size, ExtendedColorType::Rgba8),
                false => picture_files::webp(&picture.to_rgb8(), size, ExtendedColorType::Rgb8),
            };
            (made, "image/webp")
        }
    };
    let failed = |error| Fault::bad(format!("the picture cannot be encoded: {error}"));
    let bytes = made.map_err(failed)?;
    Ok(Made { bytes, media_type })
}

/// The picture `original` with the alpha of `mask`, as PNG with the texts that the original carries.
///
/// # Errors
/// One of them is no picture, or they differ in size.
pub fn masked(original: &[u8], mask: &[u8]) -> Result<Vec<u8>, Fault> {
    let mut picture = decode(picture_files::of(Cursor::new(original)))?.to_rgba8();
    let alpha = decode(picture_files::of(Cursor::new(mask)))?.to_rgba8();
    if picture.dimensions() != alpha.dimensions() {
        let ((width, height), (mask_width, mask_height)) =
            (picture.dimensions(), alpha.dimensions());
        return Err(Fault::bad(format!(
            "the mask has {mask_width}×{mask_height} pixels, the picture {width}×{height}"
        )));
    }
    for (pixel, mask) in picture.pixels_mut().zip(alpha.pixels()) {
        pixel.0[3] = mask.0[3];
    }
    png_with_texts(&picture, &texts(original))
        .map_err(|error| Fault::bad(format!("the picture cannot be encoded: {error}")))
}

/// The texts in a PNG, by keyword: its workflow, for instance.
fn texts(png: &[u8]) -> Vec<(String, String)> {
    let Ok(mut reader) = png::Decoder::new(Cursor::new(png)).read_info() else { return Vec::new() };
    // Texts may stand behind the picture, too.
    let _ = reader.finish();
    let info = reader.info();
    let plain = info.uncompressed_latin1_text.iter();
    let plain = plain.map(|chunk| (chunk.keyword.clone(), chunk.text.clone()));
    let packed = info.compressed_latin1_text.iter();
    let packed = packed.filter_map(|chunk| Some((chunk.keyword.clone(), chunk.get_text().ok()?)));
    let wide = info.utf8_text.iter();
    let wide = wide.filter_map(|chunk| Some((chunk.keyword.clone(), chunk.get_text().ok()?)));
    plain.chain(packed).chain(wide).collect()
}

fn png_with_texts(
    picture: &RgbaImage,
    texts: &[(String, String)],
) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, text) in texts {
        // What Latin-1 does not have goes into the chunk that has everything.
        match text.chars().all(|c| u32::from(c) < 256) {
            true => encoder.add_text_chunk(keyword.clone(), text.clone())?,
            false => encoder.add_itxt_chunk(keyword.clone(), text.clone())?,
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(pixel: [u8; 4], texts: &[(String, String)]) -> Vec<u8> {
        png_with_texts(&RgbaImage::from_pixel(3, 2, image::Rgba(pixel)), texts).unwrap()
    }

    #[test]
    fn a_mask_becomes_the_alpha_and_the_texts_stay() {
        let said = vec![("prompt".to_owned(), "{\"1\": {}}".to_owned())];
        let both = masked(&png([1, 2, 3, 255], &said), &png([9, 9, 9, 40], &[])).unwrap();
        assert_eq!(texts(&both), said);
        let pixels = image::load_from_memory(&both).unwrap().to_rgba8();
        assert_eq!(pixels.get_pixel(2, 1).0, [1, 2, 3, 40]);
        assert!(masked(b"no picture", &both).is_err());
    }

    #[test]
    fn previews_are_what_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        std::fs::write(&path, png([10, 20, 30, 128], &[])).unwrap();
        let shown = |channel, asked: Option<&str>| {
            shown(&path, channel, asked.map(|asked| Preview::of(asked, channel))).unwrap()
        };
        assert_eq!(shown(Channel::All, Some("webp;90")).media_type, "image/webp");
        assert_eq!(shown(Channel::All, Some("jpeg;50")).media_type, "image/jpeg");
        assert_eq!(shown(Channel::All, Some("bmp")).media_type, "image/webp");
        let alpha = image::load_from_memory(&shown(Channel::Alpha, None).bytes).unwrap();
        assert_eq!(alpha.to_rgba8().get_pixel(0, 0).0, [0, 0, 0, 128]);
        let colours = image::load_from_memory(&shown(Channel::Colours, None).bytes).unwrap();
        assert!(!colours.color().has_alpha());
    }
}
