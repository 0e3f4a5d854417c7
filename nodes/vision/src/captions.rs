//! BLIPLoader and BLIPCaption: what a picture shows, in words.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kosmograph_models::{Resident, Weights};
use kosmograph_pixels::pillow::{Filter, Picture, resize};
use node::interface::{self, marker};
use node::*;
use node_candle::device;

use crate::blip::{Blip, TOLERATED, Words, of_captions};
use crate::depth::stopped;
use crate::pictures::{Levels, each, planes};
use node::plain::Text;

/// The statistics of CLIP's channels, in 0..1.
const CLIP: ([f32; 3], [f32; 3]) =
    ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_6, 0.275_777_1]);

node::object_socket! {
    /// A BLIP_MODEL: offers "caption/1", from "image" [B, H, W, C], "prefix" and "max_length" to "texts", one for each picture.
    pub BlipModel, "BLIP_MODEL"
}

/// The network and its words.
pub struct Captioner {
    network: Resident<Blip>,
    words: Arc<Words>,
}

impl Captioner {
    /// Of the folder that weights and vocabulary lie in, or of the file in it; its header is looked at now, and the rest when it
    /// is needed.
    ///
    /// # Errors
    /// It is of another network, or there is no vocabulary.
    pub fn open(path: &Path, cx: &Context) -> Result<Captioner> {
        let weights = Weights::open(path, &device(&cx.device())?)?;
        let network = Resident::open(of_captions(&weights)?, &TOLERATED, Blip::load)?;
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
        Ok(Captioner { network, words: Arc::new(Words::open(folder)?) })
    }

    /// What a picture shows, in a sentence that begins with `prefix` and has at most `longest` tokens.
    ///
    /// # Errors
    /// The network's.
    pub fn caption(
        &self,
        cx: &Context,
        picture: &Levels,
        prefix: &str,
        longest: usize,
    ) -> Result<String> {
        let begun = self.words.begun(prefix)?;
        self.sentence(cx, picture, &begun, longest, |_, _| cx.cancelled())
    }

    fn sentence(
        &self,
        cx: &Context,
        picture: &Levels,
        begun: &[u32],
        longest: usize,
        done: impl Fn(usize, usize) -> Result<()>,
    ) -> Result<String> {
        let network = self.network.get()?;
        let pixels = pixels(network.size(), picture)?.to_device(&device(&cx.device())?)?;
        let said = network.sentence(&pixels, begun, self.words.end(), longest, |said, of| {
            done(said, of).map_err(|_| kosmograph_models::Error::Cancelled)
        });
        Ok(self.words.text(&said.map_err(stopped)?)?)
    }
}

const CAPTION: &str = "caption/1";

/// The marker of "caption/1".
struct Caption;

impl Interface<Captioner> for Caption {
    const ID: &'static str = CAPTION;

    fn call(object: &Captioner, cx: &Context, input: &Arguments) -> Result<Value> {
        let image = <Image as Socket>::from_value(input.get("image"))?;
        let longest = input.size("max_length")?;
        let network = object.network.get()?;
        let begun = object.words.begun(&input.text("prefix")?)?;
        let most = longest.min(network.positions());
        if begun.len() >= most {
            return Err(Error::new(format!(
                "the caption begins with {} tokens and may have {most}; a shorter prefix or a larger max_length would be right",
                begun.len()
            )));
        }
        let batch = image.dims().0;
        let texts = each(cx, &image, |picture, number| {
            let said = object.sentence(cx, &picture, &begun, longest, |done, of| {
                cx.progress(number * of + done, batch * of)
            });
            said.map(Value::string)
        })?;
        Ok(Value::map([("texts", Value::list(texts))]))
    }
}

impl Export for Captioner {
    const TYPE: &'static str = "BLIP_MODEL";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![Captioner: Caption, marker::Describe, marker::Memory];
}

impl interface::Describe for Captioner {
    fn describe(&self) -> serde_json::Value {
        json!({"family": "blip", "bytes": self.network.bytes()})
    }
}

impl interface::Memory for Captioner {
    fn bytes(&self, purge: bool) -> usize {
        if purge {
            self.network.release();
        }
        self.network.held()
    }
}

/// A picture as BLIP takes it: squeezed into a square by Pillow's cubic, normalised.
///
/// # Errors
/// There is no memory.
pub fn pixels(size: usize, picture: &Levels) -> Result<candle_core::Tensor> {
    let (width, height) = (picture.width, picture.height);
    let picture = Picture { pixels: &picture.pixels, width, height, channels: 3 };
    let square = resize(picture, size, size, Filter::Bicubic)?;
    planes(|at| f32::from(square[at]) / 255.0, (size, size), CLIP)
}

/// Loads BLIP, which says what a picture shows.
#[derive(Inputs)]
#[node(class = "BLIPLoader", category = "loaders")]
pub struct BlipLoader {
    /// The folder with model.safetensors or pytorch_model.bin, and vocab.txt or tokenizer.json.
    #[file(folder = "blip", entry = "any")]
    blip_name: PathBuf,
}

impl Node for BlipLoader {
    outputs![BLIP_MODEL: BlipModel];

    fn run(self, cx: &Context) -> Result<BlipModel> {
        let captioner =
            Captioner::open(&self.blip_name, cx).map_err(|error| error.of_input("blip_name"))?;
        Ok(BlipModel(Object::new(captioner)))
    }
}

/// Says what a picture shows, in a text that a prompt can take; of several pictures one a line. The likeliest word each time: the same picture has
/// the same caption.
#[derive(Inputs)]
#[node(class = "BLIPCaption", category = "text")]
pub struct BlipCaption {
    blip_model: BlipModel,
    /// What is looked at.
    image: Image,
    /// What the caption begins with, "a photography of"; it is part of it.
    #[widget(default = "")]
    prefix: String,
    /// The most tokens of a caption, with what it begins with; a word has one or two.
    #[widget(default = 20, min = 2, max = 512)]
    max_length: u64,
}

impl Node for BlipCaption {
    outputs![STRING: Text];

    fn run(self, cx: &Context) -> Result<Text> {
        let input = [
            ("image", self.image.into_value()),
            ("prefix", Value::string(self.prefix)),
            ("max_length", (self.max_length as i64).into()),
        ];
        let answer = self.blip_model.0.call(cx, CAPTION, input)?;
        let texts = answer.get("texts").and_then(|texts| texts.as_list()).unwrap_or_default();
        let texts: Vec<&str> = texts.iter().filter_map(Value::as_str).collect();
        Ok(Text(texts.join("\n")))
    }
}
