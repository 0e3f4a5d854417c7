//! The CLIP object: tokenizers and text transformers.

use std::collections::HashMap;
use std::sync::Arc;

use kosmograph_models::Weights;
use kosmograph_models::clip::prompt_encode::EncodedPrompt;
use kosmograph_models::clip::text::{ClipText, ClipTextConfig, ContextLayer};
use kosmograph_models::lora::{Adapted, Layers};
use kosmograph_models::text::clip_prompt_tokens::{PromptRows, SENTENCE_SIGNS};
use kosmograph_models::text::clip_tokens::ClipTokenizer;
use node::interface::{self, AdapterLayer, LoraLayer, Merged, TensorInfo, marker};
use node::*;
use node_candle::export;

use crate::embedding::{Embedding, read_embedding};
use crate::{lora, weights};

/// What a LoRA's modules of SDXL's second encoder begin with.
const SECOND: &str = "text_encoder_2.";

/// CLIP's text half behind "text_encoder/1": Stable Diffusion 1's encoder, or SDXL's two as one. Their numbers are read
/// when it is first called. A clone shares the networks.
#[derive(Clone)]
pub struct ClipModel {
    /// One, or SDXL's L and G.
    encoders: Vec<Encoder>,
    device: candle_core::Device,
    /// The layer that gives the context, counted from the last, which is 1.
    clip_skip: usize,
    /// SDXL's way: a layer before the last is not normalised, and G's pooled vector is the text's.
    is_xl: bool,
}

#[derive(Clone)]
struct Encoder {
    /// "l" or "g".
    name: &'static str,
    text: Adapted<ClipText>,
    config: ClipTextConfig,
    tokenizer: Arc<ClipTokenizer>,
}

impl Encoder {
    fn new(config: ClipTextConfig, tokenizer: ClipTokenizer, weights: Weights) -> Result<Self> {
        let (symbols, rows) = (tokenizer.vocab_size(), config.vocab_size);
        if symbols > rows {
            return Err(Error::new(format!(
                "the tokenizer has {symbols} tokens, but the text encoder of {} knows {rows}",
                weights.origin()
            )));
        }
        let (name, tokenizer) = match config.is_g() {
            // G was trained with rows that are filled with 0.
            true => ("g", tokenizer.or_pad(0)),
            false => ("l", tokenizer),
        };
        // An older transformers saved the row of position numbers too.
        let tolerated = ["*position_ids"];
        let text = {
            let config = config.clone();
            Adapted::open(weights, &tolerated, move |weights| ClipText::load(&config, weights))?
        };
        Ok(Self { name, text, config, tokenizer: tokenizer.into() })
    }

    /// The prompt's rows, and a word to the person about each embedding that is not there or does not fit.
    fn rows(&self, cx: &Context, text: &str) -> Result<PromptRows> {
        let length = self.config.max_position_embeddings;
        // Files that were found and do not fit, by the names that led to them.
        let mut unfit: Vec<(String, String)> = Vec::new();
        let find = |name: &str| {
            let Some(path) = cx.file("embeddings", name) else { return Ok(None) };
            match read_embedding(&path, self.config.hidden_size) {
                Embedding::Fits(vectors) => Ok(Some(vectors)),
                Embedding::Unfit(sentence) => {
                    if unfit.iter().all(|(known, _)| known != name) {
                        unfit.push((name.to_owned(), sentence));
                    }
                    Ok(None)
                }
            }
        };
        let prompt = PromptRows::new(text, &self.tokenizer, length, find)?;
        for (_, sentence) in &unfit {
            cx.warn(format!("{sentence}; it is left out"));
        }
        // A name is told once, whether its file is missing or does not fit; a sign behind it may be the
        // sentence's.
        let is_unfit = |name: &&String| {
            let bare = name.trim_end_matches(SENTENCE_SIGNS);
            unfit.iter().any(|(known, _)| known == *name || known == bare)
        };
        for name in prompt.missing.iter().filter(|name| !is_unfit(name)) {
            cx.warn(match name.is_empty() {
                true => "\"embedding:\" has no name behind it; it is left out".to_owned(),
                false => format!(
                    "there is no embedding \"{name}\" in the folder embeddings; it is left out"
                ),
            });
        }
        Ok(prompt)
    }

    fn encode(&self, prompt: &PromptRows, layer: ContextLayer) -> Result<EncodedPrompt> {
        // One of fewer layers ends at its last, behind the norm (ComfyUI).
        let layers = self.config.num_hidden_layers;
        let layer = if layer.skip > layers { ContextLayer::from(1) } else { layer };
        Ok(self.text.get()?.encode_prompt(prompt, &self.tokenizer, layer)?)
    }
}

/// A text encoder to be: its configuration, its tokenizer, and its weights under transformers' names.
pub type Part = (ClipTextConfig, ClipTokenizer, Weights);

impl ClipModel {
    /// One text encoder, or SDXL's two, on their device. The files' headers are checked against the configurations.
    ///
    /// # Errors
    /// The weights are of another model than a configuration says; a tokenizer has tokens that its encoder does not
    /// know; or two encoders are not an L and a G.
    pub fn new(parts: Vec<Part>) -> Result<Self> {
        let device = parts.first().map_or(candle_core::Device::Cpu, |part| part.2.device().clone());
        let encoder = |(config, tokenizer, weights)| Encoder::new(config, tokenizer, weights);
        let mut encoders = parts.into_iter().map(encoder).collect::<Result<Vec<_>>>()?;
        // L's numbers come first in the context.
        encoders.sort_by_key(|encoder| encoder.name == "g");
        let names: Vec<&str> = encoders.iter().map(|encoder| encoder.name).collect();
        if !matches!(names[..], ["l"] | ["g"] | ["l", "g"]) {
            return Err(Error::new(format!(
                "the text encoders are {names:?}; one alone, or SDXL's \"l\" (12 layers, 768 wide) and \"g\" (32 \
                 layers, 1280 wide) would be right"
            )));
        }
        let is_xl = names.contains(&"g");
        Ok(Self { encoders, device, clip_skip: if is_xl { 2 } else { 1 }, is_xl })
    }

    /// The deepest of its encoders.
    fn layers(&self) -> usize {
        self.encoders.iter().map(|encoder| encoder.config.num_hidden_layers).max().unwrap_or(0)
    }

    /// The context and the pooled vector of each encoder's rows.
    fn encode(&self, prompts: &[PromptRows]) -> Result<(Tensor, Option<Tensor>)> {
        let layer = ContextLayer { skip: self.clip_skip, normed: !self.is_xl };
        let encoded = self.encoders.iter().zip(prompts);
        let encoded = encoded.map(|(encoder, prompt)| encoder.encode(prompt, layer));
        let encoded = encoded.collect::<Result<Vec<_>>>()?;
        // G's where there is one.
        let Some(EncodedPrompt { pooled, .. }) = encoded.last() else {
            return Err(Error::new("this CLIP has no encoder"));
        };
        let pooled = Some(export(pooled)?);
        if let [only] = &encoded[..] {
            return Ok((export(&only.context)?, pooled));
        }
        let length = encoded.iter().map(|one| one.context.dim(1)).collect::<Result<Vec<_>, _>>()?;
        let shortest = length.into_iter().min().unwrap_or(0);
        let cut = |one: &EncodedPrompt| one.context.narrow(1, 0, shortest);
        let cut = encoded.iter().map(cut).collect::<Result<Vec<_>, _>>()?;
        Ok((export(&candle_core::Tensor::cat(&cut, 2)?)?, pooled))
    }
}

impl Export for ClipModel {
    const TYPE: &'static str = "CLIP";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![ClipModel:
        marker::TextEncoder, marker::TextLayers, marker::Lora, marker::Layers, marker::Weights,
        marker::Merge, marker::Describe, marker::Memory];
}

impl interface::EncodeText for ClipModel {
    fn encode_text(&self, cx: &Context, text: &str) -> Result<(Tensor, Option<Tensor>)> {
        let rows = self.encoders.iter().map(|encoder| encoder.rows(cx, text));
        self.encode(&rows.collect::<Result<Vec<_>>>()?)
    }

    fn encode_texts(
        &self,
        cx: &Context,
        texts: &[(String, String)],
    ) -> Result<(Tensor, Option<Tensor>)> {
        let mut prompts = Vec::new();
        for encoder in &self.encoders {
            let text = texts.iter().find(|(name, _)| name == encoder.name);
            let text = text.map_or("", |(_, text)| text.as_str());
            prompts.push(encoder.rows(cx, text)?);
        }
        let most = prompts.iter().map(|prompt| prompt.rows.len()).max().unwrap_or(0);
        for (encoder, prompt) in self.encoders.iter().zip(&mut prompts) {
            prompt.fill(most, &encoder.tokenizer, encoder.config.max_position_embeddings)?;
        }
        self.encode(&prompts)
    }
}

impl interface::TextLayers for ClipModel {
    fn stop_at_layer(&self, cx: &Context, layer: i64) -> Result<Object> {
        let layers = self.layers();
        let skip = match layer.checked_neg().and_then(|skip| usize::try_from(skip).ok()) {
            None | Some(0) => {
                return Err(Error::new(format!(
                    "layers are counted from the end, -1 is the last; {layer} is none"
                )));
            }
            Some(skip) => skip,
        };
        let clip_skip = if skip <= layers {
            skip
        } else {
            // As ComfyUI has it, whose input goes down to the 24 layers of larger encoders.
            cx.warn(format!("this CLIP has {layers} layers, none is {layer}: it ends at the last"));
            1
        };
        Ok(Object::new(Self { clip_skip, ..self.clone() }))
    }
}

impl ClipModel {
    /// The same with `layers` on its encoders, and the modules that none of them has.
    fn adapted(&self, layers: &Layers, strength: f64) -> Result<(Object, Vec<String>)> {
        let mut changed = self.clone();
        let mut absent = Vec::new();
        // Modules of the second of two encoders stand under diffusers' name for it.
        let of_second = |module: &str| module.strip_prefix(SECOND).map(str::to_owned);
        let has_both = self.encoders.len() > 1;
        for (i, encoder) in changed.encoders.iter_mut().enumerate() {
            let own = layers.iter().filter_map(|(module, layer)| {
                let name = match of_second(module) {
                    Some(name) if encoder.name == "g" => name,
                    None if i == 0 || !has_both => module.clone(),
                    _ => return None,
                };
                Some((name, layer.clone()))
            });
            let (text, without_place) = encoder.text.with(&own.collect(), strength)?;
            encoder.text = text;
            let prefix = if encoder.name == "g" { SECOND } else { "" };
            absent.extend(without_place.into_iter().map(|module| format!("{prefix}{module}")));
        }
        if !self.is_xl {
            absent.extend(layers.keys().filter(|module| of_second(module).is_some()).cloned());
        }
        Ok((Object::new(changed), absent))
    }
}

impl interface::TakeLora for ClipModel {
    fn with_lora(
        &self,
        _cx: &Context,
        layers: &[LoraLayer],
        strength: f64,
    ) -> Result<(Object, Vec<String>)> {
        self.adapted(&lora::plain_layers(layers, &self.device)?, strength)
    }
}

impl interface::TakeLayers for ClipModel {
    fn with_layers(
        &self,
        _cx: &Context,
        layers: &[AdapterLayer],
        strength: f64,
    ) -> Result<(Object, Vec<String>)> {
        self.adapted(&lora::layers(layers, &self.device)?, strength)
    }
}

/// What a name of a file's is at the boundary: transformers 5 leaves the first word of a text encoder's out.
fn whole_name(encoder: &Encoder, name: &str) -> String {
    let is_whole = name.starts_with("text_model.") || name.starts_with("text_projection");
    let start = if encoder.name == "g" { SECOND } else { "" };
    format!("{start}{}{name}", if is_whole { "" } else { "text_model." })
}

impl Encoder {
    /// Its tensors by their names at the boundary, with those that its file has.
    fn named(&self) -> Vec<(String, String)> {
        let tensors = self.text.tensors().into_iter();
        tensors.map(|(name, ..)| (whole_name(self, &name), name)).collect()
    }
}

impl ClipModel {
    /// All tensors of all encoders, by their names at the boundary.
    fn all_tensors(&self) -> Vec<(String, Vec<usize>, candle_core::DType)> {
        let of = |encoder: &Encoder| {
            let tensors = encoder.text.tensors().into_iter();
            let named =
                tensors.map(|(name, shape, dtype)| (whole_name(encoder, &name), shape, dtype));
            named.collect::<Vec<_>>()
        };
        self.encoders.iter().flat_map(of).collect()
    }
}

impl interface::TellWeights for ClipModel {
    fn tensors(&self, _cx: &Context) -> Result<Vec<(String, TensorInfo)>> {
        Ok(weights::told(self.all_tensors()))
    }

    fn tensor(&self, _cx: &Context, name: &str) -> Result<Tensor> {
        for encoder in &self.encoders {
            let known = encoder.named().into_iter().find(|(known, _)| known == name);
            if let Some((_, own)) = known {
                return export(&encoder.text.tensor(&own)?);
            }
        }
        Err(Error::at("name", format!("this CLIP has no tensor \"{name}\"")))
    }
}

impl interface::MergeWeights for ClipModel {
    fn merged(
        &self,
        cx: &Context,
        tensors: Vec<Merged>,
        other: Option<Object>,
    ) -> Result<(Object, Vec<String>)> {
        let merge = weights::Merge::of(cx, self.all_tensors(), tensors, other, &self.device)?;
        let mut merged = self.clone();
        for encoder in &mut merged.encoders {
            // The encoder's own names, and those of the boundary that the other is asked by.
            let names: HashMap<String, String> =
                encoder.named().into_iter().map(|(told, own)| (own, told)).collect();
            let factors =
                |(own, told): (&String, &String)| Some((own.clone(), *merge.recipe.get(told)?));
            let recipe = names.iter().filter_map(factors).collect();
            let other = merge.other.clone();
            let asked = move |own: &str| other(names.get(own).map_or(own, String::as_str));
            encoder.text = encoder.text.merged(recipe, Arc::new(asked))?;
        }
        Ok((Object::new(merged), merge.absent))
    }
}

impl interface::Describe for ClipModel {
    fn describe(&self) -> serde_json::Value {
        let encoders: Vec<_> = self.encoders.iter().map(|encoder| encoder.name).collect();
        let bytes: usize = self.encoders.iter().map(|encoder| encoder.text.bytes()).sum();
        let width: usize = self.encoders.iter().map(|encoder| encoder.config.hidden_size).sum();
        let mut unsaid = serde_json::Map::new();
        for encoder in &self.encoders {
            let end = if encoder.name == "g" { "_2" } else { "" };
            let config = encoder.config.unsaid();
            unsaid.extend(config.map(|config| (format!("text_encoder{end}"), config)));
            // Whoever cannot say it is told of by whoever reads the file.
            let tokenizer = encoder.tokenizer.unsaid().ok().flatten();
            unsaid.extend(tokenizer.map(|said| (format!("tokenizer{end}"), said)));
        }
        let mut described = json!({
            "family": "clip",
            "encoders": encoders,
            "context_width": width,
            "layers": self.layers(),
            "bytes": bytes,
        });
        if !unsaid.is_empty() {
            described["unsaid"] = unsaid.into();
        }
        described
    }
}

impl interface::Memory for ClipModel {
    fn bytes(&self, purge: bool) -> usize {
        if purge {
            self.encoders.iter().for_each(|encoder| encoder.text.release());
        }
        self.encoders.iter().map(|encoder| encoder.text.held()).sum()
    }
}
