//! Pictures, masks and numbers by nodes of packs that saved workflows know.

use std::io::Cursor;
use std::path::Path;

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use node::plain::{Number, Whole};
use node::{Context, Error, Image, Inputs, Mask, Node, Result, Socket, Value, outputs};

use super::preview_image::random_letters;
use super::save_image::{Destination, save_pictures};
use super::{image, mask, masks};
use crate::decode::decode_from;
use kosmograph_picture_files as picture_files;

/// With padding or without, as pages send it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A picture that is written as text in base64, with or without "data:image/png;base64," before it; and its alpha, 1 where it has none.
fn written(text: &str, input: &'static str) -> Result<(Image, Mask)> {
    let text = match text.trim_start().strip_prefix("data:").and_then(|rest| rest.split_once(',')) {
        Some((_, data)) => data,
        None => text,
    };
    let text: String = text.chars().filter(|letter| !letter.is_whitespace()).collect();
    if text.is_empty() {
        return Err(Error::at(input, "is empty; a picture in base64 would be right"));
    }
    let bytes = BASE64
        .decode(text)
        .map_err(|error| Error::at(input, format!("is no picture in base64: {error}")))?;
    let length = bytes.len() as u64;
    let decoded = decode_from(
        picture_files::of(Cursor::new(bytes)),
        length,
        Path::new("the picture in base64"),
    );
    let decoded = decoded.map_err(|error| Error::at(input, error))?;
    let (shape, alpha) = (decoded.shape, decoded.mask);
    let count = shape.batch * shape.height * shape.width;
    let alpha = match alpha {
        Some(mask) => mask.into_iter().map(|transparent| 1.0 - transparent).collect(),
        None => vec![1.0; count],
    };
    Ok((image(shape, decoded.pixels)?, mask(shape, alpha)?))
}

/// A picture that stands in the workflow itself, in base64. The mask is its alpha: 1 where it is opaque.
#[derive(Inputs)]
#[node(class = "ETN_LoadImageBase64", category = "image")]
pub struct EtnLoadImageBase64 {
    /// The picture's file in base64.
    #[widget(default = "")]
    pub image: String,
}

impl Node for EtnLoadImageBase64 {
    outputs![image: Image, mask: Mask];

    fn run(self, _cx: &Context) -> Result<(Image, Mask)> {
        written(&self.image, "image")
    }
}

/// A picture that stands in the workflow itself, in base64, and is shown or saved besides. The mask is its alpha: 1 where it is opaque.
#[derive(Inputs)]
#[node(class = "easy loadImageBase64", category = "image", output_node, writes = "output")]
pub struct EasyLoadImageBase64 {
    /// The picture's file in base64.
    #[widget(default = "")]
    pub base64_data: String,
    /// Preview puts it into the folder for temporary files, Save and Hide/Save into that for output.
    #[widget(default = "Preview", choices = ["Hide", "Preview", "Save", "Hide/Save"])]
    pub image_output: String,
    /// How the saved file begins; may name sub-folders.
    #[widget(default = "ComfyUI", prefix)]
    pub save_prefix: String,
}

impl Node for EasyLoadImageBase64 {
    outputs![image: Image, mask: Mask];

    fn run(self, cx: &Context) -> Result<(Image, Mask)> {
        let (image, mask) = written(&self.base64_data, "base64_data")?;
        match self.image_output.as_str() {
            "Hide" => {}
            "Preview" => show(cx, &image, "easyPreview")?,
            _ => {
                let to =
                    Destination { property: "output_directory", kind: "output", compression: 4 };
                save_pictures(cx, &image, &self.save_prefix, &to)?;
            }
        }
        Ok((image, mask))
    }
}

/// Pictures in the folder for temporary files.
fn show(cx: &Context, pictures: &Image, prefix: &str) -> Result<()> {
    let to = Destination { property: "temp_directory", kind: "temp", compression: 1 };
    save_pictures(cx, pictures, &format!("{prefix}_{}", random_letters()), &to)
}

/// Shows two pictures, to be compared.
#[derive(Inputs)]
#[node(class = "Image Comparer (rgthree)", category = "image", output_node, writes = "temp")]
pub struct ImageComparer {
    /// The one.
    pub image_a: Option<Image>,
    /// The other.
    pub image_b: Option<Image>,
}

impl Node for ImageComparer {
    outputs![];

    fn run(self, cx: &Context) -> Result<()> {
        for (pictures, prefix) in
            [(&self.image_a, "rgthree.compare_a"), (&self.image_b, "rgthree.compare_b")]
        {
            if let Some(pictures) = pictures {
                show(cx, pictures, prefix)?;
            }
        }
        Ok(())
    }
}

/// A mask that grows by half of `dilation` to each side, or shrinks where that is below 0.
#[derive(Inputs)]
#[node(category = "mask")]
pub struct ImpactDilateMask {
    pub mask: Mask,
    /// The side of the square in which the highest value counts; below 0, the lowest.
    #[widget(default = 10, min = -512, max = 512)]
    pub dilation: i64,
}

impl Node for ImpactDilateMask {
    outputs![MASK: Mask];

    fn run(self, _cx: &Context) -> Result<Mask> {
        let (shape, values) = masks(&self.mask).map_err(|error| error.of_input("mask"))?;
        if self.dilation == 0 {
            return Ok(self.mask);
        }
        let side = self.dilation.unsigned_abs() as usize;
        let pick: fn(f32, f32) -> f32 = if self.dilation > 0 { f32::max } else { f32::min };
        let (height, width) = (shape.height, shape.width);
        // OpenCV's anchor: the middle, of an even square behind it.
        let reach = |at: usize, whole: usize| {
            at.saturating_sub(side / 2)..(at + side - side / 2).min(whole)
        };
        let best = |places: &mut dyn Iterator<Item = f32>| places.reduce(pick).unwrap_or(0.0);
        let mut made = node::memory::room("the mask", &[shape.batch, height, width])?;
        for plane in values.chunks_exact((height * width).max(1)) {
            node::interrupt::check()?;
            let wide: Vec<f32> = (0..height * width)
                .map(|at| {
                    let row = &plane[at / width * width..][..width];
                    best(&mut reach(at % width, width).map(|x| row[x]))
                })
                .collect();
            made.extend((0..height * width).map(|at| {
                best(&mut reach(at / width, height).map(|y| wide[y * width + at % width]))
            }));
        }
        mask(shape, made)
    }
}

/// WAS's own type of numbers.
pub struct WasNumber(Value);

impl Socket for WasNumber {
    const TYPE: &'static str = "NUMBER";

    fn from_value(value: Value) -> Result<Self> {
        Ok(Self(value))
    }

    fn into_value(self) -> Value {
        self.0
    }
}

/// A number, as the type that is chosen.
#[derive(Inputs)]
#[node(class = "Constant Number", category = "utils")]
pub struct ConstantNumber {
    /// integer cuts off what follows the point; bool is 1 above 0.5, else 0.
    #[widget(default = "integer", choices = ["integer", "float", "bool"])]
    pub number_type: String,
    #[widget(default = 0.0, min = -18_446_744_073_709_551_615.0, max = 18_446_744_073_709_551_615.0)]
    pub number: f64,
    /// Counts in the place of the number, where there is one.
    pub number_as_text: Option<String>,
}

impl Node for ConstantNumber {
    outputs![NUMBER: WasNumber, FLOAT: Number, INT: Whole];

    fn run(self, _cx: &Context) -> Result<(WasNumber, Number, Whole)> {
        let number =
            match self.number_as_text.as_deref().map(str::trim).filter(|text| !text.is_empty()) {
                // Every text is true.
                Some(_) if self.number_type == "bool" => 1.0,
                Some(text) => text
                    .parse()
                    .map_err(|_| Error::at("number_as_text", format!("\"{text}\" is no number")))?,
                None => self.number,
            };
        let number: f64 = number;
        if !number.is_finite() {
            return Err(Error::at("number_as_text", "a finite number would be right"));
        }
        let whole = number.trunc() as i64;
        Ok(match self.number_type.as_str() {
            "integer" => (WasNumber(whole.into()), Number(whole as f64), Whole(whole)),
            "bool" => {
                let truth = i64::from(number > 0.5);
                (WasNumber(truth.into()), Number(truth as f64), Whole(truth))
            }
            _ => (WasNumber(number.into()), Number(number), Whole(whole)),
        })
    }
}

/// Refuses: no node here fetches from the net. Save the picture into the input folder and load it with LoadImage.
#[derive(Inputs)]
#[node(class = "EZLoadImgFromUrlNode", category = "image")]
pub struct EzLoadImgFromUrl {
    /// The address of the picture.
    #[widget(default = "")]
    pub url: String,
}

impl Node for EzLoadImgFromUrl {
    outputs![IMAGE: Image, MASK: Mask];

    fn run(self, _cx: &Context) -> Result<(Image, Mask)> {
        Err(Error::at(
            "url",
            "is an address, and nothing here fetches from the net by itself; save the picture into the \
             input folder and load it with LoadImage",
        ))
    }
}

/// A mask's plane of the whole picture, in tests.
#[cfg(test)]
mod tests {
    use node::Tensor;
    use node::testing::{Host, this_library};

    use super::*;

    fn run(class: &str, inputs: &[(&str, Value)]) -> Result<Vec<Value>> {
        Host::new().run(&this_library!(), class, inputs)
    }

    fn tensor(value: &Value) -> (Vec<usize>, Vec<f32>) {
        let tensor = value.as_tensor().unwrap();
        (tensor.shape(), tensor.to_vec().unwrap())
    }

    /// Two pixels that Pillow saved: (255, 0, 51) opaque, and (0, 102, 255) with an alpha of 51.
    const WITH_ALPHA: &str = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAYAAAD0In+KAAAAEUlEQVR4nGP4z2D8nyHtvzEAEZEDypb+zpgAAAAASUVORK5CYII=";

    #[test]
    fn a_picture_in_base64_is_one() {
        for prefix in ["", "data:image/png;base64,"] {
            let text = Value::string(format!("{prefix}{WITH_ALPHA}"));
            let made = run("ETN_LoadImageBase64", &[("image", text)]).unwrap();
            let (shape, values) = tensor(&made[0]);
            assert_eq!(shape, [1, 1, 2, 3]);
            let levels: Vec<f32> = values.iter().map(|value| value * 255.0).collect();
            assert_eq!(levels, [255.0, 0.0, 51.0, 0.0, 102.0, 255.0]);
            let (shape, alpha) = tensor(&made[1]);
            assert_eq!(shape, [1, 1, 2]);
            assert!((alpha[0] - 1.0).abs() < 1e-6 && (alpha[1] - 0.2).abs() < 1e-6, "{alpha:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        let host = Host::new().with("output_directory", folder.path().to_str().unwrap());
        let inputs = [
            ("base64_data", Value::string(WITH_ALPHA)),
            ("image_output", Value::string("Save")),
            ("save_prefix", Value::string("given")),
        ];
        host.run(&this_library!(), "easy loadImageBase64", &inputs).unwrap();
        assert!(folder.path().join("given_00001_.png").is_file());
        for (text, word) in [("", "empty"), ("%%%", "base64"), ("AAAA", "not a picture")] {
            let refused = run("ETN_LoadImageBase64", &[("image", Value::string(text))]);
            let said = refused.err().unwrap().to_string();
            assert!(said.starts_with("image: ") && said.contains(word), "{said}");
        }
    }

    /// By cv2.dilate and cv2.erode with a square of ones.
    #[test]
    fn masks_grow_and_shrink_as_opencv_has_it() {
        let values: Vec<f32> = (0..24).map(|i| ((i * 7 + 3) % 12) as f32 / 11.0).collect();
        let given = Tensor::from_f32(&[1, 4, 6], values).unwrap().into_value();
        let of = |dilation: i64| {
            let inputs = [("mask", given.clone()), ("dilation", dilation.into())];
            let (_, values) = tensor(&run("ImpactDilateMask", &inputs).unwrap()[0]);
            values.iter().map(|value| (value * 11.0).round() as i64).collect::<Vec<_>>()
        };
        assert_eq!(
            of(3),
            [
                10, 11, 11, 11, 8, 8, 10, 11, 11, 11, 8, 8, 10, 11, 11, 11, 8, 8, 10, 11, 11, 11,
                8, 8
            ]
        );
        assert_eq!(
            of(2),
            [3, 10, 10, 5, 7, 7, 9, 10, 11, 11, 7, 8, 9, 10, 11, 11, 7, 8, 9, 10, 11, 11, 7, 8]
        );
        assert_eq!(
            of(-2),
            [3, 3, 5, 0, 0, 2, 3, 3, 4, 0, 0, 1, 3, 3, 4, 0, 0, 1, 3, 3, 4, 0, 0, 1]
        );
        assert_eq!(of(0)[..6], [3, 10, 5, 0, 7, 2]);
    }

    #[test]
    fn a_number_is_what_its_type_says() {
        for (kind, number, text, float, whole) in [
            ("integer", -2.7, "", -2.0, -2),
            ("float", 2.7, "", 2.7, 2),
            ("bool", 0.5, "", 0.0, 0),
            ("bool", 0.6, "", 1.0, 1),
            ("float", 0.0, " 1e3 ", 1000.0, 1000),
        ] {
            let mut inputs = vec![("number_type", Value::string(kind)), ("number", number.into())];
            if !text.is_empty() {
                inputs.push(("number_as_text", Value::string(text)));
            }
            let made = run("Constant Number", &inputs).unwrap();
            assert_eq!(made[1].as_f64(), Some(float), "{kind} {number}");
            assert_eq!(made[2].as_i64(), Some(whole), "{kind} {number}");
        }
        let inputs =
            [("number_type", Value::string("float")), ("number_as_text", Value::string("many"))];
        let said = run("Constant Number", &inputs).err().unwrap().to_string();
        assert!(said.contains("\"many\" is no number"), "{said}");
    }

    #[test]
    fn pictures_are_shown_and_addresses_refused() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::new().with("temp_directory", folder.path().to_str().unwrap());
        let picture = Tensor::from_f32(&[1, 1, 1, 3], vec![0.0, 0.5, 1.0]).unwrap().into_value();
        let inputs = [("image_a", picture.clone()), ("image_b", picture)];
        host.run(&this_library!(), "Image Comparer (rgthree)", &inputs).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        let url = [("url", Value::string("https://example.org/a.png"))];
        let said = run("EZLoadImgFromUrlNode", &url).err().unwrap().to_string();
        assert!(said.starts_with("url: ") && said.contains("LoadImage"), "{said}");
    }
}
