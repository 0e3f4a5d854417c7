//! Folders of pictures to train on, with captions or without: ComfyUI's nodes.

use std::path::{Path, PathBuf};

use kosmograph_pixels::pillow::{self, Filter, Picture};
use kosmograph_training::data;
use node::*;

/// The ends of names that are taken for pictures.
const ENDS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// What is done with pictures of another size than the first.
const METHODS: [&str; 4] = ["None", "Stretch", "Crop", "Pad"];

/// Loads all pictures of a folder as one batch, in the order of their names. One that cannot be read is told and left out.
#[derive(Inputs)]
#[node(category = "loaders")]
pub struct LoadImageSetFromFolderNode {
    /// A folder of the input folder.
    #[file(folder = "input", entry = "directory")]
    folder: PathBuf,
    /// What is done with pictures of another size than the first: refused, scaled (Stretch, and Pad as ComfyUI has it), or cut from the
    /// upper left.
    #[widget(choices = METHODS, default = "None")]
    resize_method: Option<String>,
}

impl Node for LoadImageSetFromFolderNode {
    outputs![IMAGE: Image];

    fn run(self, cx: &Context) -> Result<Image> {
        let paths = pictures(&self.folder, false).map_err(|error| error.of_input("folder"))?;
        let method = self.resize_method.as_deref().unwrap_or("None");
        Ok(load(cx, paths, method, [None; 2])?.0)
    }
}

/// Loads all pictures of a folder as one batch and encodes the texts beside them (NAME.txt); of folders in it, "3_dog", too, each as often as its
/// number says.
#[derive(Inputs)]
#[node(category = "loaders")]
pub struct LoadImageTextSetFromFolderNode {
    /// A folder of the input folder.
    #[file(folder = "input", entry = "directory")]
    folder: PathBuf,
    /// What encodes the texts.
    clip: Clip,
    /// As in LoadImageSetFromFolderNode.
    #[widget(choices = METHODS, default = "None")]
    resize_method: Option<String>,
    /// The width of all; -1 is that of the first.
    #[widget(default = -1, min = -1, max = 10000, step = 1)]
    width: Option<i64>,
    /// The height of all; -1 is that of the first.
    #[widget(default = -1, min = -1, max = 10000, step = 1)]
    height: Option<i64>,
}

impl Node for LoadImageTextSetFromFolderNode {
    outputs![IMAGE: Image, CONDITIONING: Conditioning];

    fn run(self, cx: &Context) -> Result<(Image, Conditioning)> {
        let side = |name: &str, side: Option<i64>| match side {
            Some(0) => {
                Err(Error::at(name, "0 is no side of a picture; -1 or more than 0 would be right"))
            }
            side => Ok(side.and_then(|side| usize::try_from(side).ok())),
        };
        let sides = [side("width", self.width)?, side("height", self.height)?];
        let paths = pictures(&self.folder, true).map_err(|error| error.of_input("folder"))?;
        let method = self.resize_method.as_deref().unwrap_or("None");
        let (images, paths) = load(cx, paths, method, sides)?;
        let (mut entries, mut notes, mut without) = (Vec::new(), Vec::new(), 0);
        let mut known: Vec<(String, Value)> = Vec::new();
        for path in &paths {
            cx.cancelled()?;
            let caption = data::caption_beside(path, &["txt"], &mut notes);
            without += usize::from(caption.is_none());
            let caption = caption.unwrap_or_default();
            let entry = match known.iter().find(|(other, _)| *other == caption) {
                Some((_, entry)) => entry.clone(),
                None => {
                    let (context, pooled) = self.clip.0.encode_text(cx, &caption)?;
                    let entry = Conditioning::new(context, pooled).entries().remove(0);
                    known.push((caption, entry.clone()));
                    entry
                }
            };
            entries.push(entry);
        }
        notes.iter().for_each(|note| cx.warn(note));
        if without > 0 {
            let all = paths.len();
            cx.warn(format!(
                "{without} of {all} pictures have no text beside them, which is an empty one"
            ));
        }
        Ok((images, Conditioning(Value::list(entries))))
    }
}

/// The paths of the pictures in `folder` by name; with `within` also those of its folders, each as often as the number says that the
/// folder's name begins with.
fn pictures(folder: &Path, within: bool) -> Result<Vec<PathBuf>> {
    let failed = |error: std::io::Error| Error::new(format!("{}: {error}", folder.display()));
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        entries.push(entry.map_err(failed)?.path());
    }
    entries.sort();
    let mut paths = Vec::new();
    for path in entries {
        let end = path.extension().map(|end| end.to_string_lossy().to_lowercase());
        if path.is_dir() {
            if within {
                let of_folder = pictures(&path, false)?;
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let times = name.split('_').next().and_then(|number| number.parse().ok());
                let times: usize = times.unwrap_or(1);
                if times.saturating_mul(of_folder.len()) > MOST {
                    return Err(Error::new(format!(
                        "{}: {times} times its {} pictures are more than {MOST}",
                        path.display(),
                        of_folder.len()
                    )));
                }
                for _ in 0..times {
                    paths.extend(of_folder.iter().cloned());
                }
            }
        } else if end.is_some_and(|end| ENDS.contains(&&*end)) {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// More pictures than anybody puts into one batch.
const MOST: usize = 1 << 20;

/// The pictures as one batch, and the paths of those that could be read.
fn load(
    cx: &Context,
    paths: Vec<PathBuf>,
    method: &str,
    sides: [Option<usize>; 2],
) -> Result<(Image, Vec<PathBuf>)> {
    let wrong = |sentence: String| Err(Error::at("folder", sentence));
    if paths.is_empty() {
        return wrong(format!("the folder holds no pictures ({})", ENDS.join(", ")));
    }
    let (mut values, mut kept) = (Vec::new(), Vec::new());
    let mut size: Option<(usize, usize)> = None;
    for (path, step) in paths.iter().zip(cx.steps(paths.len())) {
        step?;
        let picture = match data::read_rgb(path) {
            Ok(picture) => picture,
            Err(reason) => {
                cx.warn(format!("{} is left out: {reason}", path.display()));
                continue;
            }
        };
        let own = (picture.width() as usize, picture.height() as usize);
        let (width, height) =
            *size.get_or_insert((sides[0].unwrap_or(own.0), sides[1].unwrap_or(own.1)));
        if values.is_empty() {
            memory::ask("the pictures of the folder", &[paths.len(), height, width, 3], 4)?;
        }
        let levels = match method {
            _ if own == (width, height) => picture.into_raw(),
            "Stretch" | "Pad" => {
                let source =
                    Picture { pixels: picture.as_raw(), width: own.0, height: own.1, channels: 3 };
                pillow::resize(source, width, height, Filter::Lanczos).map_err(Error::new)?
            }
            "Crop" => cut(&picture, (width, height)),
            _ => {
                return Err(Error::at(
                    "resize_method",
                    format!(
                        "{} is {} x {} pixels and the set {width} x {height}; pictures of one size, or another method, would \
                         be right",
                        path.display(),
                        own.0,
                        own.1
                    ),
                ));
            }
        };
        values.extend(levels.into_iter().map(|level| f32::from(level) / 255.0));
        kept.push(path.clone());
    }
    let Some((width, height)) = size else {
        return wrong("none of the folder's pictures can be read".to_owned());
    };
    Ok((Image(Tensor::from_f32(&[kept.len(), height, width, 3], values)?), kept))
}

/// The upper left part, black where the picture has none.
fn cut(picture: &image::RgbImage, (width, height): (usize, usize)) -> Vec<u8> {
    let mut levels = vec![0u8; width * height * 3];
    for (x, y, pixel) in picture.enumerate_pixels() {
        let (x, y) = (x as usize, y as usize);
        if x < width && y < height {
            levels[(y * width + x) * 3..][..3].copy_from_slice(&pixel.0);
        }
    }
    levels
}
