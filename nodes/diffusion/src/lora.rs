//! `LoraLoader` and `LoraLoaderModelOnly`: a LoRA put on a model, through "lora/2" of node.h, or "lora/1"
//! where a model has no more and the LoRA is a plain one.

use std::path::{Path, PathBuf};

use candle_core::Device;
use kosmograph_models::lora::{Factor, Layer, Layers, Lora};
use node::interface::{AdapterLayer, LoraLayer};
use node::*;
use node_candle::{export, import};

/// Puts a LoRA on a model and its text encoder. The model itself stays as it is; a strength of 0 leaves
/// it without the LoRA, a negative one takes away what the LoRA would add.
#[derive(Inputs)]
#[node(category = "loaders", checked)]
pub struct LoraLoader {
    /// The U-Net that is changed.
    pub model: Model,
    /// The text encoder that is changed.
    pub clip: Clip,
    /// The LoRA's file.
    #[file(folder = "loras", entry = "file")]
    pub lora_name: PathBuf,
    /// How strongly the U-Net is changed.
    #[widget(default = 1.0, min = -100.0, max = 100.0, step = 0.01)]
    pub strength_model: f64,
    /// How strongly the text encoder is changed.
    #[widget(default = 1.0, min = -100.0, max = 100.0, step = 0.01)]
    pub strength_clip: f64,
}

impl Node for LoraLoader {
    outputs![MODEL: Model, CLIP: Clip];

    fn run(self, cx: &Context) -> Result<(Model, Clip)> {
        if (self.strength_model, self.strength_clip) == (0.0, 0.0) {
            return Ok((self.model, self.clip));
        }
        let mut lora = Opened::open(&self.lora_name)?;
        let model = lora.put_on_model(cx, self.model, self.strength_model)?;
        let clip = lora.put_on_clip(cx, self.clip, self.strength_clip)?;
        lora.tell(cx)?;
        Ok((model, clip))
    }
}

/// Puts a LoRA on a model alone, whatever the LoRA has for a text encoder.
#[derive(Inputs)]
#[node(category = "loaders", checked)]
pub struct LoraLoaderModelOnly {
    /// The U-Net that is changed.
    model: Model,
    /// The LoRA's file.
    #[file(folder = "loras", entry = "file")]
    lora_name: PathBuf,
    /// How strongly it is changed.
    #[widget(default = 1.0, min = -100.0, max = 100.0, step = 0.01)]
    strength_model: f64,
}

impl Node for LoraLoaderModelOnly {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        if self.strength_model == 0.0 {
            return Ok(self.model);
        }
        let mut lora = Opened::open(&self.lora_name)?;
        let of_text = !lora.lora.text_encoder.is_empty() || !lora.lora.text_encoder_2.is_empty();
        if lora.lora.unet.is_empty() && of_text {
            let sentence = "has layers for the text encoder alone; LoraLoader puts them on";
            return Err(Error::at("lora_name", format!("{} {sentence}", lora.file)));
        }
        let model = lora.put_on_model(cx, self.model, self.strength_model)?;
        lora.tell(cx)?;
        Ok(model)
    }
}

/// A LoRA's file, and what became of its layers so far.
struct Opened {
    file: String,
    lora: Lora,
    placed: usize,
    /// Layers that found no place.
    absent: Vec<String>,
}

impl Opened {
    fn open(path: &Path) -> Result<Self> {
        let mut lora =
            Lora::open(path).map_err(|error| Error::from(error).of_input("lora_name"))?;
        let absent = std::mem::take(&mut lora.unknown);
        Ok(Self { file: path.display().to_string(), lora, placed: 0, absent })
    }

    fn put_on_model(&mut self, cx: &Context, model: Model, strength: f64) -> Result<Model> {
        let layers = std::mem::take(&mut self.lora.unet);
        let put = self.put_on(cx, model.0, &layers, strength);
        Ok(Model(put.map_err(|error| error.of_input("model"))?))
    }

    fn put_on_clip(&mut self, cx: &Context, clip: Clip, strength: f64) -> Result<Clip> {
        let mut layers = std::mem::take(&mut self.lora.text_encoder);
        let second = std::mem::take(&mut self.lora.text_encoder_2);
        let second = second.into_iter().map(|(path, layer)| (format!("{SECOND}{path}"), layer));
        layers.extend(second);
        let put = self.put_on(cx, clip.0, &layers, strength);
        Ok(Clip(put.map_err(|error| error.of_input("clip"))?))
    }

    fn put_on(
        &mut self,
        cx: &Context,
        object: Object,
        layers: &Layers,
        strength: f64,
    ) -> Result<Object> {
        if strength == 0.0 || layers.is_empty() {
            return Ok(object);
        }
        let put = if object.offers("lora/2") {
            object.with_layers(cx, across(layers)?, strength)
        } else if !object.offers("lora/1") {
            return Err(Error::new(format!(
                "this {} cannot take a LoRA: the library it comes from offers neither \"lora/2\" nor \
                 \"lora/1\"",
                object.type_name()
            )));
        } else if let Some(plain) = plain(layers)? {
            object.with_lora(cx, plain, strength)
        } else {
            return Err(Error::new(format!(
                "{} changes its layers otherwise than by a product of two matrices, and this {} takes no \
                 other: the library it comes from does not offer \"lora/2\"",
                self.file,
                object.type_name()
            )));
        };
        let (object, absent) = put.map_err(|error| match error {
            Error::Failed { sentence, .. } => {
                Error::at("lora_name", format!("{}: {sentence}{}", self.file, self.family()))
            }
            Error::Cancelled => Error::Cancelled,
        })?;
        self.placed += layers.len().saturating_sub(absent.len());
        self.absent.extend(absent);
        Ok(object)
    }

    /// What the file seems to be, as the end of a sentence.
    fn family(&self) -> String {
        match self.lora.family {
            Some(family) => format!("; it seems to be a LoRA for {family}"),
            None => String::new(),
        }
    }

    /// Tells of layers that found no place.
    ///
    /// # Errors
    /// None found one.
    fn tell(&self, cx: &Context) -> Result<()> {
        let Self { file, placed, absent, .. } = self;
        if absent.is_empty() {
            return Ok(());
        }
        let (count, family) = (absent.len(), self.family());
        let examples: Vec<String> = absent.iter().take(3).map(|name| format!("`{name}`")).collect();
        let examples = examples.join(", ");
        if *placed == 0 {
            return Err(Error::at(
                "lora_name",
                format!(
                    "{file}: none of its {count} layers has a place in this model, {examples} and so \
                     on{family}; one that was made for this model would be right"
                ),
            ));
        }
        cx.warn(format!(
            "{file}: {count} of its {} layers have no place in this model, among them {examples}{family}",
            placed + count
        ));
        Ok(())
    }
}

/// What the paths of a second text encoder's layers begin with.
const SECOND: &str = "text_encoder_2.";

/// Layers as they cross the boundary.
pub fn across(layers: &Layers) -> Result<Vec<AdapterLayer>> {
    let layer = |(module, layer): (&String, &Layer)| {
        let factor =
            |(factor, tensor): (&Factor, _)| Ok((factor.name().to_owned(), export(tensor)?));
        let factors = layer.factors().iter().map(factor).collect::<Result<_>>()?;
        Ok(AdapterLayer { module: module.clone(), factors, alpha: layer.alpha() })
    };
    layers.iter().map(layer).collect()
}

/// The same for "lora/1"; nothing where one is of another kind than it knows.
fn plain(layers: &Layers) -> Result<Option<Vec<LoraLayer>>> {
    let layer = |(module, layer): (&String, &Layer)| {
        let Some((up, down, mid, scale)) = layer.as_low_rank() else { return Ok(None) };
        let (up, down) = (export(up)?, export(down)?);
        let mid = mid.map(export).transpose()?;
        Ok(Some(LoraLayer { module: module.clone(), up, down, mid, scale }))
    };
    layers.iter().map(layer).collect()
}

/// Layers that came across the boundary by "lora/2".
///
/// # Errors
/// A factor is none that is known, or those of a layer do not fit each other.
pub fn layers(layers: &[AdapterLayer], device: &Device) -> Result<Layers> {
    let layer = |layer: &AdapterLayer| {
        let factor = |(name, tensor): &(String, Tensor)| {
            let factor = Factor::of_name(name).ok_or_else(|| {
                Error::new(format!(
                    "layer \"{}\" of the LoRA has a factor \"{name}\", which no kind of layer has",
                    layer.module
                ))
            })?;
            Ok((factor, import(tensor, device)?))
        };
        let factors = layer.factors.iter().map(factor).collect::<Result<_>>()?;
        Ok((layer.module.clone(), Layer::new(&layer.module, factors, layer.alpha)?))
    };
    layers.iter().map(layer).collect()
}

/// Layers that came across the boundary by "lora/1".
///
/// # Errors
/// The shapes of one do not fit each other, or its scale is not finite.
pub fn plain_layers(layers: &[LoraLayer], device: &Device) -> Result<Layers> {
    let layer = |layer: &LoraLayer| {
        let (up, down) = (import(&layer.up, device)?, import(&layer.down, device)?);
        let mid = layer.mid.as_ref().map(|mid| import(mid, device)).transpose()?;
        let module = layer.module.clone();
        Ok((module, Layer::low_rank(&layer.module, up, down, mid, layer.scale)?))
    };
    layers.iter().map(layer).collect()
}
