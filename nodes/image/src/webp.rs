//! Animated WebP files, without loss.
//!
//! The crate `image` packs single pictures; what makes an animation of them is a few chunks around (developers.google.com/speed/webp/docs/riff_container).

use std::io::{self, Write};

use image::ExtendedColorType;
use kosmograph_picture_files as picture_files;
use node::interrupt;

/// The longest side that the format has, in pixels.
pub const LONGEST: usize = 1 << 14;

/// Writes pictures of 8-bit levels [height, width, channels] as an animation that runs for ever, each shown for `milliseconds`; channels are 1, 3 or 4.
/// `texts` stand in its EXIF data as ComfyUI writes them: the first as the camera's model, the second as its maker.
///
/// # Errors
/// Those of `to`; a picture that cannot be packed; more than 4 GB.
pub fn write(
    mut to: impl Write,
    frames: impl Iterator<Item = Vec<u8>>,
    (width, height, channels): (usize, usize, usize),
    milliseconds: u32,
    texts: &[(&str, String)],
) -> io::Result<()> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
    if width.max(height) > LONGEST {
        return Err(invalid(format!(
            "a WebP picture has at most {LONGEST} pixels to a side, but this one has {width} x {height}"
        )));
    }
    let colour = match channels {
        1 => ExtendedColorType::L8,
        3 => ExtendedColorType::Rgb8,
        4 => ExtendedColorType::Rgba8,
        _ => return Err(invalid(format!("a picture has 1, 3 or 4 channels, not {channels}"))),
    };
    let mut body = Vec::new();
    let (alpha, exif) = (channels == 4, exif(texts));
    let flags = 0x02 | u32::from(alpha) << 4 | u32::from(!exif.is_empty()) << 3;
    let mut header = flags.to_le_bytes().to_vec();
    header.extend(three(width - 1));
    header.extend(three(height - 1));
    chunk(&mut body, b"VP8X", &header);
    // No colour behind the picture, for ever.
    chunk(&mut body, b"ANIM", &[0; 6]);
    for levels in frames {
        interrupt::check().map_err(io::Error::other)?;
        let size = (width as u32, height as u32);
        let packed = picture_files::webp(&levels, size, colour).map_err(io::Error::other)?;
        let mut frame = Vec::new();
        // At the left upper corner, in units of two pixels.
        frame.extend([0; 6]);
        frame.extend(three(width - 1));
        frame.extend(three(height - 1));
        frame.extend(three(milliseconds as usize));
        // It replaces the one before, and is not laid upon it.
        frame.push(0x02);
        let picture = find(&packed, b"VP8L")
            .ok_or_else(|| io::Error::other("a packed picture has no pixels"))?;
        chunk(&mut frame, b"VP8L", picture);
        chunk(&mut body, b"ANMF", &frame);
    }
    if !exif.is_empty() {
        chunk(&mut body, b"EXIF", &exif);
    }
    let size = u32::try_from(body.len() + 4).map_err(|_| {
        invalid("the animation is larger than the 4 GB that a WebP file has".into())
    })?;
    to.write_all(b"RIFF")?;
    to.write_all(&size.to_le_bytes())?;
    to.write_all(b"WEBP")?;
    to.write_all(&body)
}

/// The lowest three bytes, the lowest first.
fn three(number: usize) -> [u8; 3] {
    let [a, b, c, ..] = (number as u32).to_le_bytes();
    [a, b, c]
}

fn chunk(to: &mut Vec<u8>, name: &[u8; 4], data: &[u8]) {
    to.extend(name);
    // The whole file is held against the same limit when it is complete.
    to.extend((data.len() as u32).to_le_bytes());
    to.extend(data);
    if data.len() % 2 == 1 {
        to.push(0);
    }
}

/// The data of the first chunk of that name in a WebP file.
fn find<'a>(file: &'a [u8], name: &[u8; 4]) -> Option<&'a [u8]> {
    let mut rest = file.get(12..)?;
    loop {
        let (head, data) = rest.split_at_checked(8)?;
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if head.starts_with(name) {
            return data.get(..length);
        }
        rest = data.get(length + length % 2..)?;
    }
}

/// A TIFF directory of texts, `name:text` each.
fn exif(texts: &[(&str, String)]) -> Vec<u8> {
    // Model, Make; a directory is in the order of its tags.
    const TAGS: [u16; 2] = [0x0110, 0x010f];
    let mut entries: Vec<(u16, Vec<u8>)> = texts
        .iter()
        .zip(TAGS)
        .map(|((name, text), tag)| (tag, format!("{name}:{text}\0").into_bytes()))
        .collect();
    if entries.is_empty() {
        return Vec::new();
    }
    entries.sort();
    let mut out = b"II*\0\x08\0\0\0".to_vec();
    out.extend((entries.len() as u16).to_le_bytes());
    let mut at = 8 + 2 + entries.len() * 12 + 4;
    for (tag, text) in &entries {
        out.extend(tag.to_le_bytes());
        out.extend(2u16.to_le_bytes());
        out.extend((text.len() as u32).to_le_bytes());
        out.extend((at as u32).to_le_bytes());
        at += text.len();
    }
    out.extend([0; 4]);
    entries.iter().for_each(|(_, text)| out.extend(text));
    out
}
