//! Pictures with their captions, as latents.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use image::{DynamicImage, ImageDecoder, Limits};
use kosmograph_interrupt as interrupt;
use kosmograph_models::stable_diffusion::vae::Vae;
use kosmograph_picture_files::{self as picture_files, Still};
use kosmograph_pixels::pillow::{self, Filter, Picture};

use crate::draws::Draws;
use crate::error::{Error, Result};
use crate::run::Watch;

/// The ends of names that are taken for pictures.
const PICTURES: [&str; 7] = ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tiff"];

/// How pictures are cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    pub resolution: usize,
    pub buckets: bool,
    /// Sides are multiples of it.
    pub step: usize,
}

impl Cut {
    /// The size (width, height) that a picture of such a size is cut to: of those with about as many pixels as the
    /// square of the resolution, the one whose shape is nearest.
    pub fn size(self, (width, height): (usize, usize)) -> (usize, usize) {
        let Cut { resolution, buckets, step } = self;
        let down = |side: usize| (side / step).max(1) * step;
        let square = (down(resolution), down(resolution));
        if !buckets {
            return square;
        }
        let wanted = (width as f64 / height as f64).ln();
        let distance = |(w, h): (usize, usize)| ((w as f64 / h as f64).ln() - wanted).abs();
        let widths = (1..=2 * resolution / step).map(|i| i * step);
        let sizes = widths.map(|w| (w, down(resolution * resolution / w)));
        let fitting = sizes.filter(|(_, h)| *h <= 2 * resolution);
        fitting
            .chain([square])
            .min_by(|a, b| distance(*a).total_cmp(&distance(*b)))
            .unwrap_or(square)
    }
}

/// One picture.
pub struct Example {
    pub path: PathBuf,
    pub caption: String,
    /// (width, height) in pixels.
    pub size: (usize, usize),
    /// What SDXL is told of it: height and width as the picture came, top and left of what was cut out of it at its new
    /// size, and height and width of that.
    pub sizes: [f32; 6],
    /// What a ControlNet sees of it: [height, width, 3].
    pub hint: Option<Vec<u8>>,
    /// Mean and standard deviation of its latents [C, h, w]; a second pair is of its mirror image.
    pub latents: Vec<[Tensor; 2]>,
}

/// What a folder holds, and what was odd about it.
pub struct Pictures {
    pub examples: Vec<Example>,
    pub notes: Vec<String>,
}

/// Reads the pictures of `folder` in the order of their names, and their hints of `hints` where there is such a folder. A
/// picture that cannot be read, or whose hint cannot, is left out and told. `watch` sees how far it is.
///
/// # Errors
/// There is no such folder, or no picture in it that can be read; the autoencoder's.
pub fn read(
    folder: &Path,
    caption: Option<&str>,
    cut: Cut,
    flip: bool,
    hints: Option<&Path>,
    vae: &Vae,
    watch: &mut dyn Watch,
) -> Result<Pictures> {
    let paths = pictures(folder)?;
    if paths.is_empty() {
        let ends = PICTURES.join(", ");
        let sentence = format!("{} holds no pictures ({ends})", folder.display());
        return Err(Error::Data(sentence));
    }
    let all = paths.len();
    watch.note(&format!("{all} pictures of {} become latents", folder.display()), false);
    let (mut examples, mut notes, mut captionless) = (Vec::new(), Vec::new(), 0);
    for (number, path) in paths.into_iter().enumerate() {
        interrupt::check().map_err(|_| Error::Cancelled)?;
        watch.seen(number, all);
        let picture = match open(&path) {
            Ok(picture) => picture,
            Err(reason) => {
                notes.push(format!("{} is left out: {reason}", path.display()));
                continue;
            }
        };
        let hint = match hints.map(|hints| hint_of(&path, hints)).transpose() {
            Ok(hint) => hint,
            Err(reason) => {
                notes.push(format!("{} is left out: {reason}", path.display()));
                continue;
            }
        };
        let caption = match (read_caption(&path, &mut notes), caption) {
            (Some(caption), _) => caption,
            (None, given) => {
                captionless += usize::from(given.is_none());
                given.unwrap_or_default().to_owned()
            }
        };
        let from = (picture.width() as usize, picture.height() as usize);
        let size = cut.size(from);
        let (_, window) = window(from, size);
        let sizes = [from.1, from.0, window.top, window.left, size.1, size.0].map(|n| n as f32);
        let pixels = cut_to(&picture, size)?;
        let mut latents = vec![encode(vae, &pixels, size, false)?];
        if flip {
            latents.push(encode(vae, &pixels, size, true)?);
        }
        let hint = hint.map(|hint| cut_to(&hint, size)).transpose()?;
        examples.push(Example { path, caption, size, sizes, hint, latents });
    }
    if examples.is_empty() {
        let sentence = format!("{} holds no picture that can be read", folder.display());
        return Err(Error::Data(sentence));
    }
    if captionless > 0 {
        notes.push(format!(
            "{captionless} of {} pictures have no caption: a .txt beside each, or \"caption\" for all, would be right",
            examples.len()
        ));
    }
    Ok(Pictures { examples, notes })
}

/// The paths of the pictures in `folder`, in the order of their names.
pub(crate) fn pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source| Error::Read { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let end = path.extension().map(|end| end.to_string_lossy().to_lowercase());
        if end.is_some_and(|end| PICTURES.contains(&&*end)) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The pictures of a document's marks, in the order of their numbers.
pub(crate) fn numbered(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = pictures(folder)?;
    let number = |path: &PathBuf| path.file_stem()?.to_str()?.parse::<u64>().ok();
    // As many as before, those without a number by their names behind them.
    paths.sort_by_key(|path| number(path).unwrap_or(u64::MAX));
    Ok(paths)
}

/// The picture in `hints` that has the name of `picture`, whatever its end.
fn hint_of(picture: &Path, hints: &Path) -> std::result::Result<image::RgbImage, String> {
    let name = hints.join(picture.file_name().unwrap_or_default());
    let ends = PICTURES.iter().map(|end| name.with_extension(end));
    let mut all = std::iter::once(name.clone()).chain(ends);
    match all.find(|path| path.is_file()) {
        Some(path) => {
            open(&path).map_err(|reason| format!("its hint {}: {reason}", path.display()))
        }
        None => Err(format!("{} holds no hint of its name", hints.display())),
    }
}

/// Pixels [height, width, 3] as planes [3, H, W] in 0..1.
///
/// # Errors
/// Only what the tensor library reports.
pub fn planes(pixels: &[u8], (width, height): (usize, usize), mirrored: bool) -> Result<Tensor> {
    let value = |at: usize| {
        let (channel, y, x) = (at / (height * width), at / width % height, at % width);
        let x = if mirrored { width - 1 - x } else { x };
        f32::from(pixels[(y * width + x) * 3 + channel]) / 255.0
    };
    let values: Vec<f32> = (0..3 * height * width).map(value).collect();
    Ok(Tensor::from_vec(values, (3, height, width), &Device::Cpu)?)
}

pub(crate) fn open(path: &Path) -> std::result::Result<image::RgbImage, String> {
    if path.exists() && !path.is_file() {
        return Err("it is no file".to_owned());
    }
    let mut decoder = decoder_of(path)?;
    let orientation = decoder.orientation().map_err(|error| error.to_string())?;
    let mut picture = picture_files::pixels(decoder).map_err(|error| error.to_string())?;
    picture.apply_orientation(orientation);
    // On white, where it is transparent.
    let mut rgba = picture.into_rgba8();
    for pixel in rgba.pixels_mut() {
        let [r, g, b, a] = pixel.0.map(u32::from);
        let over = |value: u32| ((value * a + 255 * (255 - a) + 127) / 255) as u8;
        pixel.0 = [over(r), over(g), over(b), 255];
    }
    Ok(DynamicImage::ImageRgba8(rgba).into_rgb8())
}

/// A picture of a shard, as the authors of Kosmos-G open it: without what is transparent, and not turned.
pub(crate) fn open_bytes(bytes: &[u8]) -> std::result::Result<image::RgbImage, String> {
    let source = picture_files::of(std::io::Cursor::new(bytes));
    let decoder =
        picture_files::still(source, Limits::default()).map_err(|error| error.to_string())?;
    ask_for(&*decoder, "a picture")?;
    let picture = picture_files::pixels(decoder).map_err(|error| error.to_string())?;
    Ok(picture.into_rgb8())
}

/// The pixels of a file as ComfyUI's nodes for training take them: without what is transparent, and not turned.
///
/// # Errors
/// A sentence: why it cannot be read.
pub fn read_rgb(path: &Path) -> std::result::Result<image::RgbImage, String> {
    let decoder = decoder_of(path)?;
    let picture = picture_files::pixels(decoder).map_err(|error| error.to_string())?;
    Ok(picture.into_rgb8())
}

/// A file whose header is read, and for whose pixels there is memory.
fn decoder_of(path: &Path) -> std::result::Result<Still<'static>, String> {
    let source = picture_files::file(path).map_err(|error| error.to_string())?;
    let decoder =
        picture_files::still(source, Limits::default()).map_err(|error| error.to_string())?;
    ask_for(&*decoder, &path.display().to_string())?;
    Ok(decoder)
}

/// Whether there are pixels, and the memory for them.
fn ask_for(decoder: &dyn ImageDecoder, name: &str) -> std::result::Result<(), String> {
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err("it has no pixels".to_owned());
    }
    let shape = [height as usize, width as usize, 4];
    kosmograph_memory::ask(format_args!("the pixels of {name}"), &shape, 2)
        .map_err(|error| error.to_string())
}

/// The most of a caption file that is read: CLIP takes 75 tokens.
const LONGEST_CAPTION: u64 = 1 << 16;

pub(crate) fn read_caption(picture: &Path, notes: &mut Vec<String>) -> Option<String> {
    caption_beside(picture, &["txt", "caption"], notes)
}

/// The text in the file of the picture's name with the first of `ends` that is there, without white space around it.
pub fn caption_beside(picture: &Path, ends: &[&str], notes: &mut Vec<String>) -> Option<String> {
    let path = ends.iter().map(|end| picture.with_extension(end)).find(|path| path.is_file())?;
    let read = || {
        let mut bytes = Vec::new();
        std::fs::File::open(&path)?.take(LONGEST_CAPTION).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    };
    let mut text = match read() {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            notes.push(format!("{} cannot be read: {error}", path.display()));
            return None;
        }
    };
    text.truncate(text.trim_end().len());
    Some(text.trim_start().to_owned())
}

/// Scaled so that it just covers `size`, and the middle of that.
pub(crate) fn cut_to(picture: &image::RgbImage, size: (usize, usize)) -> Result<Vec<u8>> {
    let from = (picture.width() as usize, picture.height() as usize);
    let source = Picture { pixels: picture.as_raw(), width: from.0, height: from.1, channels: 3 };
    let ((to_width, to_height), window) = window(from, size);
    let pixels = pillow::resize_window(source, to_width, to_height, window, Filter::Lanczos);
    pixels.map_err(|error| Error::Data(error.to_string()))
}

/// The size that a picture of the size `from` is brought to, and the middle of it that is taken; all (width, height).
fn window(
    from: (usize, usize),
    (width, height): (usize, usize),
) -> ((usize, usize), pillow::Window) {
    let scale = (width as f64 / from.0 as f64).max(height as f64 / from.1 as f64);
    let scaled = |side: usize, least: usize| ((side as f64 * scale).round() as usize).max(least);
    let to = (scaled(from.0, width), scaled(from.1, height));
    let (left, top) = ((to.0 - width) / 2, (to.1 - height) / 2);
    (to, pillow::Window { left, top, width, height })
}

/// Mean and standard deviation of a picture's latents [C, h, w], scaled as the U-Net takes them.
pub(crate) fn encode(
    vae: &Vae,
    pixels: &[u8],
    (width, height): (usize, usize),
    mirrored: bool,
) -> Result<[Tensor; 2]> {
    let value = |channel: usize, y: usize, x: usize| {
        let x = if mirrored { width - 1 - x } else { x };
        f32::from(pixels[(y * width + x) * 3 + channel]) / 127.5 - 1.0
    };
    let mut planes = Vec::with_capacity(3 * width * height);
    for channel in 0..3 {
        for y in 0..height {
            planes.extend((0..width).map(|x| value(channel, y, x)));
        }
    }
    let image = Tensor::from_vec(planes, (1, 3, height, width), &Device::Cpu)?;
    let posterior = vae.encode(&image)?;
    let scale = vae.config().scaling_factor();
    let scaled = |t: &Tensor| -> Result<Tensor> { Ok((t * scale)?.squeeze(0)?) };
    Ok([scaled(posterior.mean())?, scaled(&posterior.std()?)?])
}

/// The batches of one round over the pictures, each of pictures of one size, by `draws`. The last one of a size may be
/// smaller; where there are fewer pictures than a batch takes, they come again.
pub fn batches(sizes: &[(usize, usize)], batch: usize, draws: &mut Draws) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    draws.shuffle(&mut order);
    let mut by_size: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for index in order {
        by_size.entry(sizes[index]).or_default().push(index);
    }
    let mut batches = Vec::new();
    for indices in by_size.values() {
        for chunk in indices.chunks(batch.max(1)) {
            batches.push(chunk.iter().copied().cycle().take(batch.max(1)).collect());
        }
    }
    draws.shuffle(&mut batches);
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_keep_the_shape_and_the_count_of_pixels() {
        let cut = Cut { resolution: 512, buckets: true, step: 64 };
        assert_eq!(cut.size((1000, 1000)), (512, 512));
        assert_eq!(cut.size((1500, 1000)), (640, 384));
        // No side is longer than twice the resolution.
        assert_eq!(cut.size((10, 10_000)), (256, 1024));
        for size in [(3, 1), (1, 7), (640, 480), (480, 640)] {
            let (width, height) = cut.size(size);
            assert!(
                width * height <= 512 * 512
                    && width.is_multiple_of(64)
                    && height.is_multiple_of(64)
            );
        }
        let cut = Cut { buckets: false, ..cut };
        assert_eq!(cut.size((1500, 1000)), (512, 512));
    }

    #[test]
    fn every_picture_comes_once_in_batches_of_one_size() {
        let sizes = [(8, 8), (8, 8), (16, 8), (8, 8), (16, 8)];
        let batches = batches(&sizes, 2, &mut Draws::new(3, 0));
        assert_eq!(batches.len(), 3);
        let mut seen: Vec<usize> = batches.iter().flatten().copied().collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [0, 1, 2, 3, 4]);
        assert!(batches.iter().all(|batch| sizes[batch[0]] == sizes[batch[1]]));
    }

    #[test]
    fn pictures_of_marks_are_in_the_order_of_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["10", "9", "1", "11", "b", "2", "a"] {
            std::fs::write(folder.path().join(format!("{name}.png")), "").unwrap();
        }
        let found = numbered(folder.path()).unwrap();
        let names: Vec<_> = found.iter().map(|path| path.file_stem().unwrap()).collect();
        assert_eq!(names, ["1", "2", "9", "10", "11", "a", "b"]);
    }
}
