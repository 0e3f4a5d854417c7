//! What a picture looks like while it is made: x₀ of a step, as "preview/1" of node.h brings it.
//!
//! The host knows no model. Each latent channel has a colour ("latent_rgb" of the MODEL's "describe/1");
//! their sum is a small picture, one pixel for each of the latent's. A library that has a better one sends
//! that.

use crate::events::{Event, Level, Listener};
use crate::promise::Promise;
use crate::value::Value;
use crate::whole_file;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The longest side of a preview, in pixels; of a larger picture every n-th is taken.
const LONGEST: usize = 512;

/// A small picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    pub step: u64,
    pub steps: u64,
    pub width: u32,
    pub height: u32,
    /// Rows of red, green and blue, base64 where it travels.
    #[serde(with = "base64_text")]
    pub rgb: Vec<u8>,
}

mod base64_text {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(from)?;
        STANDARD.decode(text.as_bytes()).map_err(D::Error::custom)
    }
}

impl Preview {
    /// The first picture of what "preview/1" was given, a map that the boundary's table allows.
    ///
    /// # Errors
    /// Where there is neither a picture nor latents with their colours.
    pub(crate) fn paint(input: &Value) -> Result<Self, String> {
        let number = |key: &str| input.get(key).and_then(Value::as_u64).unwrap_or_default();
        let numbers = |key: &str| {
            let tensor = input.get(key)?.as_tensor()?;
            Some((tensor.shape().to_vec(), tensor.to_f32()?))
        };
        let (step, steps) = (number("step"), number("steps"));
        if let Some((shape, image)) = numbers("image") {
            let (height, width) = (shape[1] as usize, shape[2] as usize);
            let pixel = |y: usize, x: usize| {
                let at = (y * width + x) * 3;
                [image[at], image[at + 1], image[at + 2]]
            };
            return Ok(Self::of(step, steps, (height, width), pixel));
        }
        let (Some((shape, latents)), Some((_, rgb))) = (numbers("latents"), numbers("rgb")) else {
            return Err("neither \"image\" nor \"latents\" with \"rgb\" were given".to_owned());
        };
        let bias = numbers("bias").map_or(vec![0.0; 3], |(_, bias)| bias);
        let (channels, height, width) = (shape[1] as usize, shape[2] as usize, shape[3] as usize);
        let pixel = |y: usize, x: usize| {
            let latent = |c: usize| latents[(c * height + y) * width + x];
            std::array::from_fn(|i| {
                let sum: f32 = (0..channels).map(|c| latent(c) * rgb[c * 3 + i]).sum();
                // The factors make -1..1.
                (sum + bias[i] + 1.0) / 2.0
            })
        };
        Ok(Self::of(step, steps, (height, width), pixel))
    }

    /// Every n-th pixel of a picture of values in 0..1, so that it is small.
    fn of(
        step: u64,
        steps: u64,
        (height, width): (usize, usize),
        pixel: impl Fn(usize, usize) -> [f32; 3],
    ) -> Self {
        let every = height.max(width).div_ceil(LONGEST).max(1);
        let (rows, columns) = (height.div_ceil(every), width.div_ceil(every));
        let mut rgb = Vec::with_capacity(rows * columns * 3);
        for y in (0..height).step_by(every) {
            for x in (0..width).step_by(every) {
                // A NaN is black.
                rgb.extend(
                    pixel(y, x).map(|value| (value * 255.0).round().clamp(0.0, 255.0) as u8),
                );
            }
        }
        Self { step, steps, width: columns as u32, height: rows as u32, rgb }
    }

    /// Whether it is a picture, and a small one: it may come from a process that is not believed.
    pub(crate) fn is_sound(&self) -> bool {
        let (width, height) = (self.width as usize, self.height as usize);
        let fits = |side: usize| (1..=LONGEST).contains(&side);
        fits(width) && fits(height) && self.rgb.len() == width * height * 3
    }

    /// Writes it as a PNG.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write_png(&self, to: impl std::io::Write) -> Result<(), png::EncodingError> {
        let mut encoder = png::Encoder::new(to, self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.rgb)?;
        writer.finish()
    }
}

/// `--previews DIR`: passes events on, and writes each preview into the folder as `NODE_STEP.png`.
pub struct Previews<'a> {
    to: &'a dyn Listener,
    folder: PathBuf,
    /// Whether it was told that one cannot be written: the next ones will not be either.
    told: AtomicBool,
}

impl<'a> Previews<'a> {
    pub fn new(to: &'a dyn Listener, folder: PathBuf) -> Self {
        Self { to, folder, told: AtomicBool::new(false) }
    }
}

impl Listener for Previews<'_> {
    fn event(&self, event: &Event) {
        self.to.event(event);
    }

    fn trouble(&self) -> Option<String> {
        self.to.trouble()
    }

    fn promise(&self, promise: &Promise) {
        self.to.promise(promise);
    }

    fn wants_previews(&self) -> bool {
        true
    }

    fn preview(&self, node: &str, preview: &Preview) {
        // An id of a subgraph's node has a colon, and a workflow may have any text for one.
        let sound = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let name: String = node.chars().map(sound).take(64).collect();
        let file = self.folder.join(format!("{name}_{:05}.png", preview.step));
        match write(&self.folder, &file, preview) {
            Ok(()) => {
                let (step, steps) = (preview.step, preview.steps);
                let file = file.display().to_string().into();
                self.to.event(&Event::Preview { node: Cow::Borrowed(node), step, steps, file });
            }
            // A preview is no reason to stop.
            Err(error) => {
                if !self.told.swap(true, Ordering::Relaxed) {
                    let message = format!(
                        "the preview {} cannot be written: {error}; of others that cannot be nothing is said",
                        file.display()
                    );
                    self.to.event(&Event::log(Level::Warning, message));
                }
            }
        }
    }
}

fn write(folder: &Path, file: &Path, preview: &Preview) -> Result<(), png::EncodingError> {
    fs::create_dir_all(folder)?;
    whole_file::write_passing(file, |to| preview.write_png(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(pairs: Vec<(&str, Value)>) -> Value {
        let counts = [("step", Value::integer(2)), ("steps", Value::integer(4))];
        let pairs = counts.into_iter().chain(pairs);
        Value::map(pairs)
    }

    #[test]
    fn latents_become_colours() {
        let latents = Value::tensor_f32(&[2, 2, 1, 2], &[1.0, 0.0, 0.0, -1.0, 9., 9., 9., 9.]);
        let rgb = Value::tensor_f32(&[2, 3], &[1.0, 0.0, -1.0, 0.0, 1.0, 0.5]).unwrap();
        let pairs = vec![("latents", latents.unwrap()), ("rgb", rgb)];
        let preview = Preview::paint(&input(pairs)).unwrap();
        assert_eq!((preview.step, preview.steps, preview.width, preview.height), (2, 4, 2, 1));
        // (1, 0, -1) and (0, -1, -0.5), from -1..1.
        assert_eq!(preview.rgb, [255, 128, 0, 128, 0, 64]);
        assert!(preview.is_sound());
        let line = serde_json::to_string(&preview).unwrap();
        assert_eq!(serde_json::from_str::<Preview>(&line).unwrap(), preview);
        assert!(Preview::paint(&input(vec![])).unwrap_err().contains("neither"));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_told_once() {
        #[derive(Default)]
        struct Heard(std::sync::Mutex<Vec<String>>);
        impl Listener for Heard {
            fn event(&self, event: &Event) {
                self.0.lock().unwrap().push(serde_json::to_string(event).unwrap());
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "in the way").unwrap();
        let heard = Heard::default();
        let previews = Previews::new(&heard, file.join("below"));
        let preview = Preview { step: 1, steps: 2, width: 1, height: 1, rgb: vec![0; 3] };
        previews.preview("3", &preview);
        previews.preview("3", &preview);
        let heard = heard.0.into_inner().unwrap();
        assert_eq!(heard.len(), 1, "{heard:?}");
        assert!(heard[0].contains("3_00001.png cannot be written: "), "{heard:?}");
    }

    #[test]
    fn a_large_picture_is_thinned() {
        let image = Value::tensor_f32(&[1, 2, 2000, 3], &vec![f32::NAN; 12_000]).unwrap();
        let preview = Preview::paint(&input(vec![("image", image)])).unwrap();
        assert_eq!((preview.width, preview.height), (500, 1));
        assert!(preview.rgb.iter().all(|&value| value == 0) && preview.is_sound());
        let lie = Preview { height: 2, ..preview };
        assert!(!lie.is_sound());
    }
}
