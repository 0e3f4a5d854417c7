//! SAMLoader, SAMMaskByPoints and SAMMaskByBox: what a point or a box shows, as a mask.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use candle_core::Tensor as Candle;
use kosmograph_models::{Resident, Weights};
use kosmograph_pixels::Shape;
use kosmograph_pixels::pillow::{Filter, Picture, resize};
use kosmograph_pixels::torch::{Mode, interpolate};
use node::interface::{self, marker};
use node::*;
use node_candle::device;

use crate::pictures::{IMAGENET, Levels, each, planes};
use crate::sam::{Prompt, Sam, TOLERATED, by_authors_names};

node::object_socket! {
    /// A SAM_MODEL: offers "segment/1", from "image" [B, H, W, C], "points" [N, 3] (x, y in pixels, 1 for what belongs to the mask and 0 for what
    /// does not), "box" [4] (left, top, right, bottom) and "which" to "mask" [B, H, W].
    pub SamModel, "SAM_MODEL"
}

/// A picture that was encoded.
struct Encoded {
    pixels: Vec<u8>,
    width: usize,
    states: Candle,
}

struct Segmenter {
    network: Resident<Sam>,
    /// The last picture: other points in it cost nothing but their masks.
    last: Mutex<Option<Encoded>>,
}

/// The marker of "segment/1".
struct Segment;

const SEGMENT: &str = "segment/1";

impl Interface<Segmenter> for Segment {
    const ID: &'static str = SEGMENT;

    fn call(object: &Segmenter, cx: &Context, input: &Arguments) -> Result<Value> {
        let image = <Image as Socket>::from_value(input.get("image"))?;
        let numbers = |name: &str| -> Result<Vec<f32>> {
            input.optional_tensor(name).map_or(Ok(Vec::new()), |tensor| tensor.to_vec())
        };
        let points = numbers("points")?;
        let points = points.chunks_exact(3).map(|point| (point[0], point[1], point[2] > 0.5));
        let prompt = Prompt { points: points.collect(), corners: numbers("box")?.try_into().ok() };
        let which = Which::named(&input.text("which")?)?;
        let (batch, height, width, _) = image.dims();
        let network = object.network.get()?;
        memory::ask("the masks", &[batch, height, width], 2 * size_of::<f32>())?;
        let masks = each(cx, &image, |picture, number| {
            cx.progress(2 * number, 2 * batch)?;
            let states = object.encoded(cx, &network, &picture)?;
            cx.progress(2 * number + 1, 2 * batch)?;
            mask(&network, &states, (height, width), &prompt, which)
        })?;
        let mask = Tensor::from_f32(&[batch, height, width], masks.concat())?;
        Ok(Value::map([("mask", mask.into_value())]))
    }
}

/// Which of the masks that fit is given.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// Of three the one that the network thinks best.
    Best,
    /// The only one, where the network is asked for one.
    Single,
    /// That of three.
    Number(usize),
}

impl Which {
    const NAMES: [&'static str; 5] = ["best", "single", "whole", "part", "subpart"];

    fn named(name: &str) -> Result<Which> {
        Ok(match Self::NAMES.iter().position(|known| *known == name) {
            Some(0) => Which::Best,
            Some(1) => Which::Single,
            // The network's three, which are not sorted by size in every picture.
            Some(number) => Which::Number(4 - number),
            None => {
                let names = Self::NAMES.join(", ");
                return Err(Error::new(format!(
                    "which is {name:?}; one of {names} would be right"
                )));
            }
        })
    }
}

impl Segmenter {
    fn encoded(&self, cx: &Context, network: &Sam, picture: &Levels) -> Result<Candle> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same =
            |last: &&Encoded| last.width == picture.width && last.pixels == picture.pixels;
        if let Some(same) = last.as_ref().filter(is_same) {
            return Ok(same.states.clone());
        }
        // What was kept makes room for what comes.
        *last = None;
        memory::ask_bytes(
            "the attention of Segment Anything",
            network.working_bytes(),
            "three times the scores of all patches for all patches",
        )?;
        let pixels = pixels(network.size(), picture)?.to_device(&device(&cx.device())?)?;
        let states = network.encode(&pixels)?;
        let kept = states.clone();
        *last =
            Some(Encoded { pixels: picture.pixels.clone(), width: picture.width, states: kept });
        Ok(states)
    }
}

/// The size of a picture with `size` pixels on its longer side.
fn within(size: usize, (height, width): (usize, usize)) -> (usize, usize) {
    let factor = size as f64 / height.max(width) as f64;
    let side = |side: usize| ((side as f64 * factor + 0.5) as usize).max(1);
    (side(height), side(width))
}

/// A picture as the encoder takes it: in the upper left of a square, bilinear by Pillow, normalised; the rest is 0.
///
/// # Errors
/// There is no memory.
pub fn pixels(size: usize, picture: &Levels) -> Result<Candle> {
    let (width, height) = (picture.width, picture.height);
    let (to_height, to_width) = within(size, (height, width));
    let picture = Picture { pixels: &picture.pixels, width, height, channels: 3 };
    let small = resize(picture, to_width, to_height, Filter::Bilinear)?;
    let pixels = planes(|at| f32::from(small[at]) / 255.0, (to_height, to_width), IMAGENET)?;
    let pixels = pixels.pad_with_zeros(2, 0, size - to_height)?;
    Ok(pixels.pad_with_zeros(3, 0, size - to_width)?)
}

/// The mask of one encoded picture, [height · width], 1 where it is and 0 where not.
fn mask(
    network: &Sam,
    states: &Candle,
    (height, width): (usize, usize),
    prompt: &Prompt,
    which: Which,
) -> Result<Vec<f32>> {
    let size = network.size();
    let (small_height, small_width) = within(size, (height, width));
    let (across, down) = (small_width as f32 / width as f32, small_height as f32 / height as f32);
    let scaled = Prompt {
        points: prompt.points.iter().map(|(x, y, is_in)| (x * across, y * down, *is_in)).collect(),
        corners: prompt.corners.map(|[left, top, right, bottom]| {
            [left * across, top * down, right * across, bottom * down]
        }),
    };
    let (masks, quality) = network.masks(states, &scaled, which == Which::Single)?;
    let number = match which {
        Which::Single => 0,
        Which::Number(number) => number,
        Which::Best => {
            let best = quality.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            best.map_or(0, |(number, _)| number)
        }
    };
    let count = masks.dim(0)?;
    if number >= count {
        let sentence = format!("this model makes {count} masks; for which, best would be right");
        return Err(Error::new(sentence));
    }
    let mask = masks.get(number)?;
    let (low_height, low_width) = mask.dims2()?;
    let values = mask.flatten_all()?.to_vec1::<f32>()?;
    let one = |height, width| Shape { batch: 1, height, width, channels: 1 };
    let values = interpolate(&values, one(low_height, low_width), (size, size), Mode::Bilinear)?;
    let rows = values.chunks(size).take(small_height);
    let values: Vec<f32> = rows.flat_map(|row| row[..small_width].iter().copied()).collect();
    let values =
        interpolate(&values, one(small_height, small_width), (height, width), Mode::Bilinear)?;
    Ok(values.into_iter().map(|value| if value > 0.0 { 1.0 } else { 0.0 }).collect())
}

impl Export for Segmenter {
    const TYPE: &'static str = "SAM_MODEL";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![Segmenter: Segment, marker::Describe, marker::Memory];
}

impl interface::Describe for Segmenter {
    fn describe(&self) -> serde_json::Value {
        json!({"family": "segment-anything", "bytes": self.network.bytes()})
    }
}

impl interface::Memory for Segmenter {
    fn bytes(&self, purge: bool) -> usize {
        if purge {
            self.network.release();
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        self.network.held()
    }
}

/// Loads Segment Anything, which cuts out what a point or a box shows.
#[derive(Inputs)]
#[node(class = "SAMLoader", category = "loaders")]
pub struct SamLoader {
    /// The file, the authors' (sam_vit_b_01ec64.pth) or transformers' (model.safetensors), or its folder.
    #[file(folder = "sams", entry = "any")]
    model_name: PathBuf,
    /// Not used: it computes where all else does.
    #[widget(default = "AUTO", choices = ["AUTO", "Prefer GPU", "CPU"])]
    device_mode: Option<String>,
}

impl Node for SamLoader {
    outputs![SAM_MODEL: SamModel];

    fn run(self, cx: &Context) -> Result<SamModel> {
        let open = || -> Result<Segmenter> {
            let weights = Weights::open(&self.model_name, &device(&cx.device())?)?;
            let network = Resident::open(by_authors_names(&weights)?, &[TOLERATED], Sam::load)?;
            Ok(Segmenter { network, last: Mutex::new(None) })
        };
        let segmenter = open().map_err(|error| error.of_input("model_name"))?;
        let _ = self.device_mode;
        Ok(SamModel(Object::new(segmenter)))
    }
}

/// A mask of what points show.
#[derive(Inputs)]
#[node(class = "SAMMaskByPoints", category = "mask")]
pub struct SamMaskByPoints {
    sam_model: SamModel,
    image: Image,
    /// Points that belong to it, in pixels from the upper left: "120,80; 130,95", or [{"x": 120, "y": 80}].
    #[widget(default = "", multiline)]
    coordinates_positive: String,
    /// Points that do not.
    #[widget(default = "", multiline)]
    coordinates_negative: Option<String>,
    /// The mask that the network thinks best of three, or a certain one; single asks it for one alone, which fits several points better.
    #[widget(default = "best", choices = Which::NAMES)]
    which: Option<String>,
}

impl Node for SamMaskByPoints {
    outputs![MASK: Mask];

    fn run(self, cx: &Context) -> Result<Mask> {
        let positive = points(&self.coordinates_positive, "coordinates_positive")?;
        let negative = self.coordinates_negative.unwrap_or_default();
        let negative = points(&negative, "coordinates_negative")?;
        if positive.is_empty() {
            return Err(Error::at(
                "coordinates_positive",
                "there is no point; \"120,80\" would be one",
            ));
        }
        let asked = Asked { positive, negative, corners: None, which: self.which };
        asked.of(cx, &self.sam_model, self.image)
    }
}

/// A mask of what a box shows.
#[derive(Inputs)]
#[node(class = "SAMMaskByBox", category = "mask")]
pub struct SamMaskByBox {
    sam_model: SamModel,
    image: Image,
    /// The left side of the box, in pixels from the left.
    #[widget(default = 0, min = 0, max = 16384)]
    x: u64,
    /// Its upper side, in pixels from above.
    #[widget(default = 0, min = 0, max = 16384)]
    y: u64,
    #[widget(default = 512, min = 1, max = 16384)]
    width: u64,
    #[widget(default = 512, min = 1, max = 16384)]
    height: u64,
    /// Points within it that belong to the mask, as in SAMMaskByPoints.
    #[widget(default = "", multiline)]
    coordinates_positive: Option<String>,
    /// Points that do not.
    #[widget(default = "", multiline)]
    coordinates_negative: Option<String>,
    /// As in SAMMaskByPoints.
    #[widget(default = "single", choices = Which::NAMES)]
    which: Option<String>,
}

impl Node for SamMaskByBox {
    outputs![MASK: Mask];

    fn run(self, cx: &Context) -> Result<Mask> {
        let (_, height, width, _) = self.image.dims();
        for (name, from, side) in [("x", self.x, width), ("y", self.y, height)] {
            if from >= side as u64 {
                let sentence = format!("is {from}, and the picture ends at {side}");
                return Err(Error::at(name, sentence));
            }
        }
        let end = |from: u64, length: u64, side: usize| (from + length).min(side as u64) as f32;
        let corners = [
            self.x as f32,
            self.y as f32,
            end(self.x, self.width, width),
            end(self.y, self.height, height),
        ];
        let read = |text: Option<String>, name: &str| points(&text.unwrap_or_default(), name);
        let asked = Asked {
            positive: read(self.coordinates_positive, "coordinates_positive")?,
            negative: read(self.coordinates_negative, "coordinates_negative")?,
            corners: Some(corners),
            which: self.which.or_else(|| Some("single".to_owned())),
        };
        asked.of(cx, &self.sam_model, self.image)
    }
}

/// What a node asks of a SAM_MODEL.
struct Asked {
    positive: Vec<[f32; 2]>,
    negative: Vec<[f32; 2]>,
    corners: Option<[f32; 4]>,
    which: Option<String>,
}

impl Asked {
    fn of(self, cx: &Context, model: &SamModel, image: Image) -> Result<Mask> {
        let (_, height, width, _) = image.dims();
        let mut numbers = Vec::new();
        for (name, points, label) in [
            ("coordinates_positive", &self.positive, 1.0),
            ("coordinates_negative", &self.negative, 0.0),
        ] {
            for [x, y] in points {
                let is_in = |at: f32, side: usize| at >= 0.0 && at <= side as f32;
                if !is_in(*x, width) || !is_in(*y, height) {
                    return Err(Error::at(
                        name,
                        format!("{x},{y} lies outside of the picture of {width} × {height} pixels"),
                    ));
                }
                numbers.extend([*x, *y, label]);
            }
        }
        let count = numbers.len() / 3;
        let points = match count {
            0 => Value::NONE,
            count => Tensor::from_f32(&[count, 3], numbers)?.into_value(),
        };
        let corners = match self.corners {
            None => Value::NONE,
            Some(corners) => Tensor::from_f32(&[4], corners.to_vec())?.into_value(),
        };
        let which = self.which.unwrap_or_else(|| Which::NAMES[0].to_owned());
        let input = [
            ("image", image.into_value()),
            ("points", points),
            ("box", corners),
            ("which", Value::string(which)),
        ];
        let answer = model.0.call(cx, SEGMENT, input)?;
        <Mask as Socket>::from_value(answer.get("mask").unwrap_or(Value::NONE))
    }
}

/// The most points that are read; more are a mistake.
const MOST_POINTS: usize = 1000;

/// The points of a text: "x,y; x,y", or a list of {"x", "y"} as point editors write it.
fn points(text: &str, input: &str) -> Result<Vec<[f32; 2]>> {
    let wrong = |what: &str| {
        Error::at(
            input,
            format!(
                "{what} is no point; \"120,80; 130,95\" or [{{\"x\": 120, \"y\": 80}}] would be right"
            ),
        )
    };
    let text = text.trim();
    let points: Vec<[f32; 2]> = if text.starts_with('[') {
        let list: Vec<serde_json::Value> = serde_json::from_str(text).map_err(|error| {
            Error::at(input, format!("the list of points cannot be read: {error}"))
        })?;
        let point = |point: &serde_json::Value| {
            let side = |name: &str, at: usize| {
                point.get(name).or_else(|| point.get(at)).and_then(serde_json::Value::as_f64)
            };
            let of = side("x", 0).zip(side("y", 1)).map(|(x, y)| [x as f32, y as f32]);
            of.ok_or_else(|| wrong(&point.to_string()))
        };
        list.iter().map(point).collect::<Result<_>>()?
    } else {
        let parts = text.split([';', '\n']).map(str::trim).filter(|part| !part.is_empty());
        let point = |part: &str| {
            let numbers = part.split_once(',').and_then(|(x, y)| {
                let number = |text: &str| text.trim().parse::<f32>().ok().filter(|n| n.is_finite());
                Some([number(x)?, number(y)?])
            });
            numbers.ok_or_else(|| wrong(&format!("{part:?}")))
        };
        parts.map(point).collect::<Result<_>>()?
    };
    match points.len() > MOST_POINTS {
        true => Err(Error::at(input, format!("{} points are too many", points.len()))),
        false => Ok(points),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read_as_they_are_written() {
        let read = |text| points(text, "p").map_err(|error| error.to_string());
        assert_eq!(read("1,2; 3.5 , 4\n"), Ok(vec![[1.0, 2.0], [3.5, 4.0]]));
        assert_eq!(read(r#"[{"x": 1, "y": 2}, [3, 4]]"#), Ok(vec![[1.0, 2.0], [3.0, 4.0]]));
        assert_eq!(read("  "), Ok(vec![]));
        for (text, sentence) in [
            ("1", "p: \"1\" is no point"),
            ("1,nan", "p: \"1,nan\" is no point"),
            ("[1]", "p: 1 is no point"),
            ("[{\"x\": 1}", "p: the list of points cannot be read"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(sentence), "{error}");
        }
        assert!(read(&"1,1;".repeat(1001)).is_err());
    }
}
