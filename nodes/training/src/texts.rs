//! Captions as what the U-Net is steered by: encoded once, or anew in every pass where the text encoder or a word of it
//! learns.

use std::collections::HashMap;

use candle_core::{Device, Tensor, Var};
use kosmograph_models::clip::text::ClipText;
use kosmograph_models::text::clip_tokens::{ClipTokenizer, ClipTokensError};

use crate::error::{Error, Result};

/// The captions of a training.
pub(crate) struct Texts {
    clip: ClipText,
    tokenizer: ClipTokenizer,
    /// The word that the vectors [V, C] stand for, in a textual inversion.
    word: Option<(String, Var)>,
    /// Whether something of this learns.
    learns: bool,
    encoded: HashMap<String, Tensor>,
}

impl Texts {
    /// With `learns` the encoder's weights are variables, or some stand beside them.
    pub fn new(clip: ClipText, tokenizer: ClipTokenizer, learns: bool) -> Texts {
        Texts { clip, tokenizer, word: None, learns, encoded: HashMap::new() }
    }

    /// Lets `vectors` stand for `word` from now on.
    pub fn teach(&mut self, word: String, vectors: Var) {
        (self.word, self.learns) = (Some((word, vectors)), true);
    }

    /// The embedding of the first token of `word`, [1, C].
    pub fn embedding(&self, word: &str) -> Result<Tensor> {
        let tokens = self.tokenizer.tokens(word).map_err(told)?;
        let [first, ..] = tokens[..] else {
            return Err(Error::Config(format!("the word {word:?} to start from is no token")));
        };
        Ok(self.clip.embed(&Tensor::new(&[[first]], &Device::Cpu)?)?.squeeze(0)?)
    }

    /// A sentence where a caption has more tokens than the encoder takes.
    pub fn too_long(&self, caption: &str) -> Result<Option<String>> {
        let (tokens, room) = (self.tokenizer.tokens(caption).map_err(told)?.len(), self.room()?);
        Ok((tokens > room).then(|| {
            let start: String = caption.chars().take(40).collect();
            format!("the caption \"{start} …\" has {tokens} tokens; the first {room} are used")
        }))
    }

    fn room(&self) -> Result<usize> {
        Ok(self.clip.max_length()?.saturating_sub(2))
    }

    /// What a caption says, [1, T, C].
    pub fn encode(&mut self, caption: &str) -> Result<Tensor> {
        if let Some(encoded) = self.encoded.get(caption) {
            return Ok(encoded.clone());
        }
        let length = self.clip.max_length()?;
        let encoded = match &self.word {
            Some((word, vectors)) => self.with_word(caption, word, vectors, length)?,
            None => {
                let row = self.tokenizer.encode_row(caption, length).map_err(told)?;
                self.clip.forward(&Tensor::new(row, &Device::Cpu)?.unsqueeze(0)?)?
            }
        };
        if !self.learns {
            self.encoded.insert(caption.to_owned(), encoded.clone());
        }
        Ok(encoded)
    }

    fn with_word(&self, caption: &str, word: &str, vectors: &Var, length: usize) -> Result<Tensor> {
        let count = vectors.dim(0)?;
        let (mut tokens, mut places) = (Vec::new(), Vec::new());
        for (i, part) in caption.split(word).enumerate() {
            if i > 0 {
                places.push(tokens.len() + 1);
                // Their rows are replaced; any token holds the place.
                tokens.extend(std::iter::repeat_n(self.tokenizer.end_id(), count));
            }
            tokens.extend(self.tokenizer.tokens(part).map_err(told)?);
        }
        let row = self.tokenizer.row(&tokens, length).map_err(told)?;
        let embedded =
            self.clip.embed(&Tensor::new(row, &Device::Cpu)?.unsqueeze(0)?)?.squeeze(0)?;
        let (mut parts, mut at) = (Vec::new(), 0);
        // What was cut off has no place; the last row is the end's.
        for place in places.into_iter().filter(|place| place + count < length) {
            parts.push(embedded.narrow(0, at, place - at)?);
            parts.push(vectors.as_tensor().clone());
            at = place + count;
        }
        parts.push(embedded.narrow(0, at, length - at)?);
        let embeddings = Tensor::cat(&parts, 0)?.unsqueeze(0)?;
        Ok(self.clip.forward_embeddings(&embeddings, 1)?.hidden)
    }
}

fn told(error: ClipTokensError) -> Error {
    Error::Data(error.to_string())
}
