//! CLIPSegLoader and CLIPSegMask: what words say of a picture, as a mask.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kosmograph_models::text::clip_tokens::ClipTokenizer;
use kosmograph_models::{Resident, Weights};
use kosmograph_pixels::Shape;
use kosmograph_pixels::pillow::{Filter, Picture, resize};
use kosmograph_pixels::torch::{Mode, interpolate};
use node::interface::{self, marker};
use node::*;
use node_candle::device;

use crate::clipseg::{ClipSeg, TOLERATED};
use crate::pictures::{IMAGENET, Levels, each, planes};

node::object_socket! {
    /// A CLIPSEG_MODEL: offers "seek/1", from "image" [B, H, W, C] and "text" to "probabilities" [B, H, W], 0 … 1.
    pub ClipSegModel, "CLIPSEG_MODEL"
}

/// The network and CLIP's words.
pub struct Seeker {
    network: Resident<ClipSeg>,
    tokenizer: Arc<ClipTokenizer>,
}

impl Seeker {
    /// Of a file, or of the folder that it lies in; its header is looked at now, and the rest when it is needed.
    ///
    /// # Errors
    /// It is of another network.
    pub fn open(path: &Path, cx: &Context) -> Result<Seeker> {
        let weights = Weights::open(path, &device(&cx.device())?)?;
        let network = Resident::open(weights, &TOLERATED, ClipSeg::load)?;
        let tokenizer = ClipTokenizer::clip();
        let tokenizer = tokenizer.map_err(kosmograph_models::Error::from)?;
        Ok(Seeker { network, tokenizer: Arc::new(tokenizer) })
    }

    /// CLIP's tokens of a text, and how many it takes.
    ///
    /// # Errors
    /// The file is damaged.
    fn tokens(&self, text: &str) -> Result<(Vec<u32>, usize)> {
        let tokens = self.tokenizer.encode(text).map_err(kosmograph_models::Error::from)?;
        Ok((tokens, self.network.get()?.longest()?))
    }

    /// How probable it is that each pixel belongs to what each of `phrases` says, 0 … 1, row by row. Of a phrase that is too
    /// long for CLIP its beginning counts.
    ///
    /// # Errors
    /// There is no memory.
    pub fn probabilities(
        &self,
        cx: &Context,
        picture: &Levels,
        phrases: &[&str],
    ) -> Result<Vec<Vec<f32>>> {
        let network = self.network.get()?;
        let pixels = pixels(network.size(), picture)?.to_device(&device(&cx.device())?)?;
        let looked = network.look(&pixels)?;
        let (width, height) = (picture.width, picture.height);
        let mut found = Vec::with_capacity(phrases.len());
        for phrase in phrases {
            cx.cancelled()?;
            let (mut tokens, longest) = self.tokens(phrase)?;
            if tokens.len() > longest {
                tokens.truncate(longest.saturating_sub(1));
                tokens.push(self.tokenizer.end_id());
            }
            let scores = network.scores(&looked, &network.words(&tokens)?)?;
            let (_, rows, columns) = scores.dims3()?;
            let scores = scores.flatten_all()?.to_vec1::<f32>()?;
            let shape = Shape { batch: 1, height: rows, width: columns, channels: 1 };
            memory::ask("the probabilities", &[height, width], size_of::<f32>())?;
            let mut large = interpolate(&scores, shape, (height, width), Mode::Bilinear)?;
            large.iter_mut().for_each(|score| *score = 1.0 / (1.0 + (-*score).exp()));
            found.push(large);
        }
        Ok(found)
    }
}

/// A picture as CLIPSeg takes it: squeezed into a square by Pillow's bilinear, normalised as ImageNet's.
///
/// # Errors
/// There is no memory.
pub fn pixels(size: usize, picture: &Levels) -> Result<candle_core::Tensor> {
    let (width, height) = (picture.width, picture.height);
    let picture = Picture { pixels: &picture.pixels, width, height, channels: 3 };
    let square = resize(picture, size, size, Filter::Bilinear)?;
    planes(|at| f32::from(square[at]) / 255.0, (size, size), IMAGENET)
}

/// The marker of "seek/1".
struct Seek;

const SEEK: &str = "seek/1";

impl Interface<Seeker> for Seek {
    const ID: &'static str = SEEK;

    fn call(object: &Seeker, cx: &Context, input: &Arguments) -> Result<Value> {
        let image = <Image as Socket>::from_value(input.get("image"))?;
        let text = input.text("text")?;
        let (tokens, longest) = object.tokens(&text)?;
        if tokens.len() > longest {
            return Err(Error::at(
                "text",
                format!(
                    "the text has {} tokens, and CLIP takes {longest}; fewer words would be right",
                    tokens.len()
                ),
            ));
        }
        let (batch, height, width, _) = image.dims();
        memory::ask("the masks", &[batch, height, width], 2 * size_of::<f32>())?;
        let found = each(cx, &image, |picture, number| {
            cx.progress(number, batch)?;
            Ok(object.probabilities(cx, &picture, &[&text])?.concat())
        })?;
        let found = Tensor::from_f32(&[batch, height, width], found.concat())?;
        Ok(Value::map([("probabilities", found.into_value())]))
    }
}

impl Export for Seeker {
    const TYPE: &'static str = "CLIPSEG_MODEL";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![Seeker: Seek, marker::Describe, marker::Memory];
}

impl interface::Describe for Seeker {
    fn describe(&self) -> serde_json::Value {
        json!({"family": "clipseg", "bytes": self.network.bytes()})
    }
}

impl interface::Memory for Seeker {
    fn bytes(&self, purge: bool) -> usize {
        if purge {
            self.network.release();
        }
        self.network.held()
    }
}

/// Loads CLIPSeg, which finds in a picture what words say.
#[derive(Inputs)]
#[node(class = "CLIPSegLoader", category = "loaders")]
pub struct ClipSegLoader {
    /// The folder with model.safetensors or pytorch_model.bin, or the file in it.
    #[file(folder = "clipseg", entry = "any")]
    model_name: PathBuf,
}

impl Node for ClipSegLoader {
    outputs![CLIPSEG_MODEL: ClipSegModel];

    fn run(self, cx: &Context) -> Result<ClipSegModel> {
        let seeker =
            Seeker::open(&self.model_name, cx).map_err(|error| error.of_input("model_name"))?;
        Ok(ClipSegModel(Object::new(seeker)))
    }
}

/// A mask of what a text says, "the dog on the left".
#[derive(Inputs)]
#[node(class = "CLIPSegMask", category = "mask")]
pub struct ClipSegMask {
    clipseg_model: ClipSegModel,
    image: Image,
    /// What is looked for.
    #[widget(default = "", multiline)]
    text: String,
    /// From which probability on a pixel belongs to the mask; at 0 the mask is the probabilities themselves.
    #[widget(default = 0.4, min = 0.0, max = 1.0, step = 0.01)]
    threshold: f64,
}

impl Node for ClipSegMask {
    outputs![MASK: Mask];

    fn run(self, cx: &Context) -> Result<Mask> {
        if self.text.trim().is_empty() {
            return Err(Error::at(
                "text",
                "it says nothing; \"a dog\" would be something to look for",
            ));
        }
        let input = [("image", self.image.into_value()), ("text", Value::string(self.text.trim()))];
        let answer = self.clipseg_model.0.call(cx, SEEK, input)?;
        let found =
            <Mask as Socket>::from_value(answer.get("probabilities").unwrap_or(Value::NONE))?;
        if self.threshold <= 0.0 {
            return Ok(found);
        }
        let shape = found.0.shape().to_vec();
        let is_in = |p: &f32| f32::from(u8::from(f64::from(*p) >= self.threshold));
        let mask: Vec<f32> = found.0.to_f32()?.iter().map(is_in).collect();
        <Mask as Socket>::from_value(Tensor::from_f32(&shape, mask)?.into_value())
    }
}
