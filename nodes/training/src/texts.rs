//! Captions as what the U-Net is steered by: encoded once, or anew in every pass where the text encoder or a word of it
//! learns.

use std::collections::HashMap;

use candle_core::{Device, Tensor, Var};
use kosmograph_models::clip::text::{ClipText, ContextLayer};
use kosmograph_models::text::clip_tokens::{ClipTokenizer, ClipTokensError};

use crate::error::{Error, Result};

/// A text encoder and what makes its tokens.
pub(crate) struct Encoder {
    pub clip: ClipText,
    pub tokenizer: ClipTokenizer,
}

impl Encoder {
    /// The row of tokens of `caption`, [1, T].
    fn ids(&self, caption: &str) -> Result<Tensor> {
        let row = self.tokenizer.encode_row(caption, self.clip.max_length()?).map_err(told)?;
        Ok(Tensor::new(row, &Device::Cpu)?.unsqueeze(0)?)
    }
}

/// What a caption says.
#[derive(Clone)]
pub(crate) struct Text {
    /// [1, T, C]
    pub context: Tensor,
    /// SDXL's pooled vector [1, P], of the larger encoder.
    pub pooled: Option<Tensor>,
}

/// The captions of a training.
pub(crate) struct Texts {
    /// One, or SDXL's L and G.
    encoders: Vec<Encoder>,
    /// The word that the vectors [V, C] stand for, in a textual inversion.
    word: Option<(String, Var)>,
    /// Whether something of this learns.
    learns: bool,
    encoded: HashMap<String, Text>,
}

impl Texts {
    /// With `learns` the encoders' weights are variables, or some stand beside them.
    pub fn new(encoders: Vec<Encoder>, learns: bool) -> Texts {
        Texts { encoders, word: None, learns, encoded: HashMap::new() }
    }

    /// The first encoder, by whose tokens captions are measured: of SDXL's two both have the same.
    fn first(&self) -> Result<&Encoder> {
        self.encoders
            .first()
            .ok_or_else(|| Error::Config("this model has no text encoder".to_owned()))
    }

    /// Lets `vectors` stand for `word` from now on.
    pub fn teach(&mut self, word: String, vectors: Var) {
        (self.word, self.learns) = (Some((word, vectors)), true);
    }

    /// The embedding of the first token of `word`, [1, C].
    pub fn embedding(&self, word: &str) -> Result<Tensor> {
        let Encoder { clip, tokenizer } = self.first()?;
        let tokens = tokenizer.tokens(word).map_err(told)?;
        let [first, ..] = tokens[..] else {
            return Err(Error::Config(format!("the word {word:?} to start from is no token")));
        };
        Ok(clip.embed(&Tensor::new(&[[first]], &Device::Cpu)?)?.squeeze(0)?)
    }

    /// A sentence where a caption has more tokens than the encoder takes.
    pub fn too_long(&self, caption: &str) -> Result<Option<String>> {
        let Encoder { clip, tokenizer } = self.first()?;
        let tokens = tokenizer.tokens(caption).map_err(told)?.len();
        let room = clip.max_length()?.saturating_sub(2);
        Ok((tokens > room).then(|| {
            let start: String = caption.chars().take(40).collect();
            format!("the caption \"{start} …\" has {tokens} tokens; the first {room} are used")
        }))
    }

    /// What a caption says.
    pub fn encode(&mut self, caption: &str) -> Result<Text> {
        if let Some(encoded) = self.encoded.get(caption) {
            return Ok(encoded.clone());
        }
        let encoded = match (&self.word, &self.encoders[..]) {
            (Some((word, vectors)), _) => {
                Text { context: self.with_word(caption, word, vectors)?, pooled: None }
            }
            (None, [l, g]) => of_both([&l.clip, &g.clip], [&l.ids(caption)?, &g.ids(caption)?])?,
            _ => {
                let encoder = self.first()?;
                Text { context: encoder.clip.forward(&encoder.ids(caption)?)?, pooled: None }
            }
        };
        if !self.learns {
            self.encoded.insert(caption.to_owned(), encoded.clone());
        }
        Ok(encoded)
    }

    fn with_word(&self, caption: &str, word: &str, vectors: &Var) -> Result<Tensor> {
        let Encoder { clip, tokenizer } = self.first()?;
        let (count, length) = (vectors.dim(0)?, clip.max_length()?);
        let (mut tokens, mut places) = (Vec::new(), Vec::new());
        for (i, part) in caption.split(word).enumerate() {
            if i > 0 {
                places.push(tokens.len() + 1);
                // Their rows are replaced; any token holds the place.
                tokens.extend(std::iter::repeat_n(tokenizer.end_id(), count));
            }
            tokens.extend(tokenizer.tokens(part).map_err(told)?);
        }
        let row = tokenizer.row(&tokens, length).map_err(told)?;
        let embedded = clip.embed(&Tensor::new(row, &Device::Cpu)?.unsqueeze(0)?)?.squeeze(0)?;
        let (mut parts, mut at) = (Vec::new(), 0);
        // What was cut off has no place; the last row is the end's.
        for place in places.into_iter().filter(|place| place + count < length) {
            parts.push(embedded.narrow(0, at, place - at)?);
            parts.push(vectors.as_tensor().clone());
            at = place + count;
        }
        parts.push(embedded.narrow(0, at, length - at)?);
        let embeddings = Tensor::cat(&parts, 0)?.unsqueeze(0)?;
        Ok(clip.forward_embeddings(&embeddings, 1)?.hidden)
    }
}

/// As SDXL is steered: the second last layer of each without its norm, L's numbers before G's, and G's pooled vector
/// (Podell et al., arXiv 2307.01952). An encoder of one layer gives that.
fn of_both([l, g]: [&ClipText; 2], ids: [&Tensor; 2]) -> Result<Text> {
    let states = |clip: &ClipText, ids: &Tensor| {
        let layer = match clip.layers() {
            1 => ContextLayer::from(1),
            _ => ContextLayer { skip: 2, normed: false },
        };
        clip.forward_embeddings(&clip.embed(ids)?, layer)
    };
    let (of_l, of_g) = (states(l, ids[0])?, states(g, ids[1])?);
    let length = of_l.hidden.dim(1)?.min(of_g.hidden.dim(1)?);
    let cut = |hidden: &Tensor| hidden.narrow(1, 0, length);
    let pooled = g.project(&g.pool(ids[1], &of_g.last)?)?;
    let context = Tensor::cat(&[cut(&of_l.hidden)?, cut(&of_g.hidden)?], 2)?;
    Ok(Text { context, pooled: Some(pooled) })
}

fn told(error: ClipTokensError) -> Error {
    Error::Data(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::{DType, safetensors};
    use kosmograph_models::Weights;
    use kosmograph_models::clip::text::ClipTextConfig;
    use serde_json::{Value, json};

    use super::*;

    /// Against transformers' two encoders, joined as diffusers joins them (tests/golden/sdxl_text).
    #[test]
    fn both_encoders_are_diffusers_s() {
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sdxl_text");
        let described = std::fs::read(case.join("config.json")).unwrap();
        let described: Value = serde_json::from_slice(&described).unwrap();
        let encoder = |name: &str, file: &str| {
            let of = |key: &str| described["config"][name][key].as_u64().unwrap();
            let mut config: ClipTextConfig = serde_json::from_value(json!({
                "vocab_size": described["config"]["vocab"], "hidden_size": of("hidden"),
                "intermediate_size": 4 * of("hidden"), "num_hidden_layers": of("layers"),
                "num_attention_heads": of("heads"), "eos_token_id": described["eos"],
                "max_position_embeddings": described["config"]["tokens"],
                "hidden_act": if name == "g" { "gelu" } else { "quick_gelu" },
            }))
            .unwrap();
            config.text_projection =
                (name == "g").then(|| described["projection_dim"].as_u64().unwrap() as usize);
            let weights = Weights::open(&case.join(file), &Device::Cpu).unwrap();
            ClipText::load(&config, &weights).unwrap()
        };
        let l = encoder("l", "weights.text_encoder.safetensors");
        let g = encoder("g", "weights.text_encoder_2.safetensors");
        let read = |file: &str| safetensors::load(case.join(file), &Device::Cpu).unwrap();
        let (inputs, expected) = (read("inputs.safetensors"), read("expected.safetensors"));
        let ids = |name: &str| inputs[name].to_dtype(DType::U32).unwrap();
        let text = of_both([&l, &g], [&ids("ids_l"), &ids("ids_g")]).unwrap();
        for (name, found) in [("conditioning", text.context), ("g.pooled", text.pooled.unwrap())] {
            assert_eq!(found.dims(), expected[name].dims());
            let difference = (found - &expected[name]).unwrap().abs().unwrap();
            let largest = difference.max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(largest < 5e-5, "{name} is {largest} apart");
        }
    }
}
