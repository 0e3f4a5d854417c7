//! Pictures measured in a graph: the FEATURES object, its loader, and what is made of features.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor as Candle};
use kosmograph_models::measures::frechet::{Moments, distance};
use kosmograph_models::measures::{Network, inception, score, similarity};
use kosmograph_pixels::pillow::Picture;
use node::interface::{self, marker};
use node::*;
use node_candle::{export, import};

/// A network behind "features/1".
pub struct Measuring(Network);

impl Export for Measuring {
    const TYPE: &'static str = "FEATURES";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![Measuring: marker::Features, marker::Describe];
}

impl interface::TellFeatures for Measuring {
    fn features_of_images(&self, cx: &Context, image: &Tensor) -> Result<Tensor> {
        let image = Image(image.clone());
        let (batch, height, width, channels) = image.dims();
        let values = image.0.to_f32()?;
        let mut rows = Vec::new();
        // One after the other: what is between them is the network's to hold.
        for picture in values.chunks((height * width * channels).max(1)).take(batch) {
            cx.cancelled()?;
            let pixels = self.bytes(picture, channels)?;
            let picture = Picture { pixels: &pixels, width, height, channels: 3 };
            rows.push(self.0.features(&[picture])?);
        }
        export(&Candle::cat(&rows, 0)?)
    }

    fn features_of_text(&self, _cx: &Context, text: &str) -> Result<Tensor> {
        export(&self.0.text_features(text)?)
    }
}

impl Measuring {
    /// A picture in 0..1 as bytes in RGB: to the nearest level, for FID cut off as torchmetrics does.
    fn bytes(&self, picture: &[f32], channels: usize) -> Result<Vec<u8>> {
        let of_pixel = |pixel: &[f32]| match *pixel {
            [grey] => [grey; 3],
            [red, green, blue, ..] => [red, green, blue],
            _ => [0.0; 3],
        };
        let mut values =
            memory::room("a picture in three channels", &[picture.len() / channels.max(1), 3])?;
        values.extend(picture.chunks(channels.max(1)).flat_map(of_pixel));
        Ok(match self.0 {
            Network::Inception(_) => inception::to_bytes(&values),
            _ => values.iter().map(|value| (value * 255.0).round() as u8).collect(),
        })
    }
}

impl interface::Describe for Measuring {
    fn describe(&self) -> serde_json::Value {
        json!({"family": self.0.kind()})
    }
}

/// A FLOAT.
pub struct Number(f64);

impl Socket for Number {
    const TYPE: &'static str = "FLOAT";

    fn from_value(value: Value) -> Result<Self> {
        let wrong =
            || Error::new(format!("a number is wanted, but {} was given", value.kind_name()));
        value.as_f64().map(Self).ok_or_else(wrong)
    }

    fn into_value(self) -> Value {
        self.0.into()
    }
}

/// Loads a network that pictures are measured with: DINO, the whole of CLIP, or the Inception of FID.
#[derive(Inputs)]
#[node(category = "measure")]
pub struct FeaturesLoader {
    /// The file, or a folder with config.json.
    #[file(folder = "measures", entry = "any")]
    features_name: PathBuf,
}

impl Node for FeaturesLoader {
    outputs![features: Features];

    fn run(self, _cx: &Context) -> Result<Features> {
        let network = Network::open(&self.features_name, &Device::Cpu);
        let network = network.map_err(|error| Error::new(error).of_input("features_name"))?;
        Ok(Features(Object::new(Measuring(network))))
    }
}

/// How alike pictures are: 100 · cos of their features, the mean over all pairs, not below 0. With DINO, or as CLIP-I.
#[derive(Inputs)]
#[node(category = "measure")]
pub struct ImageSimilarity {
    /// The network.
    features: Features,
    /// What was drawn.
    images: Image,
    /// What it is compared with: the one picture that was drawn from, or all real ones (pairwise).
    reference: Image,
}

impl Node for ImageSimilarity {
    outputs![score: Number];

    fn run(self, cx: &Context) -> Result<Number> {
        let images = rows(&self.features.0.features_of_images(cx, self.images.0)?)?;
        let reference = rows(&self.features.0.features_of_images(cx, self.reference.0)?)?;
        pairs(&images, &reference).map(Number)
    }
}

/// How well pictures fit a text: CLIP-T.
#[derive(Inputs)]
#[node(category = "measure")]
pub struct TextSimilarity {
    /// CLIP.
    features: Features,
    /// What was drawn.
    images: Image,
    /// What it was to show.
    #[widget(multiline, default = "")]
    text: String,
}

impl Node for TextSimilarity {
    outputs![score: Number];

    fn run(self, cx: &Context) -> Result<Number> {
        let text = rows(&self.features.0.features_of_text(cx, &self.text)?)?;
        let images = rows(&self.features.0.features_of_images(cx, self.images.0)?)?;
        pairs(&images, &text).map(Number)
    }
}

/// How far apart two sets of pictures are: the Fréchet distance of their features, with FID's Inception FID.
#[derive(Inputs)]
#[node(category = "measure")]
pub struct FrechetDistance {
    /// The network.
    features: Features,
    /// What was drawn; two or more.
    images: Image,
    /// Real ones; two or more.
    reference: Image,
}

impl Node for FrechetDistance {
    outputs![distance: Number];

    fn run(self, cx: &Context) -> Result<Number> {
        let moments = |images: Tensor| -> Result<Moments> {
            let rows = rows(&self.features.0.features_of_images(cx, images)?)?;
            let mut moments = Moments::new(rows.first().map_or(0, Vec::len));
            for row in &rows {
                moments.add(row)?;
            }
            Ok(moments)
        };
        Ok(Number(distance(&moments(self.reference.0)?, &moments(self.images.0)?)?))
    }
}

fn rows(features: &Tensor) -> Result<Vec<Vec<f64>>> {
    Ok(import(features, &Device::Cpu)?.to_dtype(DType::F64)?.to_vec2::<f64>()?)
}

fn pairs(images: &[Vec<f64>], reference: &[Vec<f64>]) -> Result<f64> {
    if images.iter().chain(reference).any(|row| row.len() != images[0].len()) {
        return Err(Error::new("the features are of two lengths: the network contradicts itself"));
    }
    let pairs = images.iter().flat_map(|a| reference.iter().map(move |b| similarity(a, b)));
    Ok(score(&pairs.collect::<Vec<f64>>()))
}
