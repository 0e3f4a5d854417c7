//! A picture as a PNG file that carries its workflow.

use std::io::Write;

use node::interrupt;
use png::{BitDepth, ColorType, DeflateCompression, Encoder, EncodingError, Filter};

/// Text beside the pixels: (keyword, text), each a `tEXt` chunk. Keywords are 1 to 79 bytes of Latin-1.
pub type Texts<'a> = &'a [(&'a str, &'a str)];

/// A picture above this is packed in portions: as a whole it takes seconds, and as much memory again.
const LARGE: usize = 1 << 26;
const PORTION: usize = 1 << 22;

/// Writes one picture of 8-bit levels [height, width, channels] with 1 (grey), 3 (RGB) or 4 (RGBA) channels.
///
/// `compression` is zlib's level, 1 (fast) to 9. Whatever `texts` holds beyond ASCII is written as JSON escapes it.
///
/// # Errors
/// Those of `to`, sizes beyond PNG's, and another number of channels.
pub fn write_png(
    to: impl Write,
    levels: &[u8],
    (width, channels): (usize, usize),
    compression: u8,
    texts: Texts<'_>,
) -> Result<(), EncodingError> {
    let colour = colour(channels)?;
    let height = levels.len() / (width * channels);
    let pixels = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
    let mut encoder = Encoder::new(to, pixels(width), pixels(height));
    encoder.set_color(colour);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_deflate_compression(DeflateCompression::Level(compression));
    encoder.set_filter(Filter::Adaptive);
    for (keyword, text) in texts {
        encoder.add_text_chunk((*keyword).to_owned(), ascii_json(text))?;
    }
    let mut writer = encoder.write_header()?;
    if levels.len() <= LARGE {
        writer.write_image_data(levels)?;
        return writer.finish();
    }
    let mut stream = writer.stream_writer()?;
    for levels in levels.chunks(PORTION) {
        interrupt::check().map_err(std::io::Error::other)?;
        stream.write_all(levels)?;
    }
    stream.finish()?;
    writer.finish()
}

fn colour(channels: usize) -> Result<ColorType, EncodingError> {
    Ok(match channels {
        1 => ColorType::Grayscale,
        3 => ColorType::Rgb,
        4 => ColorType::Rgba,
        _ => {
            let sentence = format!("a picture has 1, 3 or 4 channels, but this one has {channels}");
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, sentence).into());
        }
    })
}

/// Writes pictures of one size as an animated PNG that runs for ever, each shown for `milliseconds`. What else is given is as in [`write_png`];
/// zlib's level may be 0. `frames` are as many as `count` says.
///
/// # Errors
/// As [`write_png`].
pub fn write_apng(
    to: impl Write,
    (count, frames): (usize, impl Iterator<Item = Vec<u8>>),
    (width, height, channels): (usize, usize, usize),
    (milliseconds, compression): (u32, u8),
    texts: Texts<'_>,
) -> Result<(), EncodingError> {
    let pixels = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
    let mut encoder = Encoder::new(to, pixels(width), pixels(height));
    encoder.set_color(colour(channels)?);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_deflate_compression(match compression {
        0 => DeflateCompression::NoCompression,
        level => DeflateCompression::Level(level),
    });
    encoder.set_filter(Filter::Adaptive);
    encoder.set_animated(pixels(count), 0)?;
    // A share of a second in two numbers of 16 bits.
    let (numerator, denominator) = match u16::try_from(milliseconds) {
        Ok(milliseconds) => (milliseconds, 1000),
        Err(_) => (u16::try_from(milliseconds / 1000).unwrap_or(u16::MAX), 1),
    };
    encoder.set_frame_delay(numerator, denominator)?;
    for (keyword, text) in texts {
        encoder.add_text_chunk((*keyword).to_owned(), ascii_json(text))?;
    }
    let mut writer = encoder.write_header()?;
    for levels in frames {
        interrupt::check().map_err(std::io::Error::other)?;
        writer.write_image_data(&levels)?;
    }
    writer.finish()
}

/// JSON text with every character beyond ASCII as `\uXXXX`. Such characters stand only inside of JSON's strings, where this means the
/// same; and a `tEXt` chunk is Latin-1, which does not have them all.
pub(crate) fn ascii_json(json: &str) -> String {
    let mut ascii = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            ascii.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    ascii
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_back(bytes: &[u8]) -> (png::OutputInfo, Vec<u8>, Vec<(String, String)>) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut levels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut levels).unwrap();
        levels.truncate(info.buffer_size());
        let texts = &reader.info().uncompressed_latin1_text;
        let texts = texts.iter().map(|chunk| (chunk.keyword.clone(), chunk.text.clone()));
        (info, levels, texts.collect())
    }

    proptest! {
        #[test]
        fn levels_and_texts_come_back(
            (width, channels, levels) in (1usize..9, 1usize..9, prop_oneof![Just(1usize), Just(3), Just(4)])
                .prop_flat_map(|(w, h, c)| (Just(w), Just(c), prop::collection::vec(any::<u8>(), w * h * c))),
            text in ".{0,40}", compression in 1u8..=9,
        ) {
            let json = serde_json::json!({ "text": text }).to_string();
            let mut file = Vec::new();
            let texts = [("prompt", json.as_str()), ("workflow", "{}")];
            write_png(&mut file, &levels, (width, channels), compression, &texts).unwrap();
            let (info, read, texts) = read_back(&file);
            prop_assert_eq!(info.width as usize, width);
            prop_assert_eq!(read, levels);
            prop_assert!(texts[0].1.is_ascii());
            let json: serde_json::Value = serde_json::from_str(&texts[0].1).unwrap();
            prop_assert_eq!(json["text"].as_str(), Some(text.as_str()));
            prop_assert_eq!(&texts[1], &("workflow".to_owned(), "{}".to_owned()));
        }
    }

    #[test]
    fn two_channels_are_an_error() {
        let error = write_png(Vec::new(), &[0; 4], (2, 2), 4, &[]).unwrap_err();
        assert!(error.to_string().contains("1, 3 or 4 channels"), "{error}");
    }
}
