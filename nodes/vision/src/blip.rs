//! BLIP (Li et al., arXiv 2201.12086), which says what a picture shows: candle-transformers' network, and the way from its scores to a
//! sentence. Names are those of transformers' files (Salesforce/blip-image-captioning-base).

use std::io::Read;
use std::path::Path;

use candle_core::{Module, Tensor};
use candle_nn::Activation;
use candle_transformers::models::blip::{BlipForConditionalGeneration, Config, VisionConfig};
use candle_transformers::models::blip_text;
use kosmograph_models::{Error, Result, Weights};
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use crate::weights::{build, count, heads, not_this, renamed, sizes};

/// Of every published size.
const HEAD: usize = 64;
/// The largest list of words that is read; BERT's has 232 kB, its tokenizer.json 711.
const LARGEST_VOCABULARY: u64 = 16 << 20;

/// The network.
pub struct Blip {
    network: BlipForConditionalGeneration,
    size: usize,
    positions: usize,
    words: usize,
}

impl Blip {
    /// Weights that [`of_captions`] gave; every size is in the shapes.
    ///
    /// # Errors
    /// A tensor is missing, of another shape, or damaged.
    pub fn load(weights: &Weights) -> Result<Blip> {
        let vision = vision_config(&weights.sub("vision_model"))?;
        let text = text_config(&weights.sub("text_decoder.bert"))?;
        let (size, positions, words) =
            (vision.image_size, text.max_position_embeddings, text.vocab_size);
        if text.encoder_hidden_size != vision.hidden_size {
            return Err(Error::Input(format!(
                "{} is no BLIP of one piece: its pictures are {} wide, and its words look at {}",
                weights.origin(),
                vision.hidden_size,
                text.encoder_hidden_size
            )));
        }
        let config = Config {
            projection_dim: text.hidden_size,
            image_text_hidden_size: text.hidden_size,
            text_config: text,
            vision_config: vision,
        };
        let network = build(weights, |names| BlipForConditionalGeneration::new(&config, names))?;
        Ok(Blip { network, size, positions, words })
    }

    /// The side of the picture that it takes, in pixels.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The most tokens of a sentence.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Normalised pixels [1, 3, S, S] to the sentence that begins with `tokens` and goes on with the likeliest each time, until `end` or until
    /// there are `longest`. `done` hears how many there are.
    ///
    /// # Errors
    /// A token that the network does not know, or what `done` reports.
    pub fn sentence(
        &self,
        pixels: &Tensor,
        tokens: &[u32],
        end: u32,
        longest: usize,
        mut done: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<Vec<u32>> {
        if let Some(odd) = tokens.iter().find(|token| **token as usize >= self.words) {
            return Err(Error::Input(format!(
                "token {odd} is none of the {} that this BLIP knows; its vocabulary is another one's",
                self.words
            )));
        }
        let longest = longest.min(self.positions);
        let seen = self.network.vision_model().forward(pixels)?;
        // A copy shares the weights, and has what was said so far for itself.
        let mut network = self.network.clone();
        let decoder = network.text_decoder();
        let mut said = tokens.to_vec();
        let mut new = said.len();
        while said.len() < longest && new > 0 {
            done(said.len(), longest)?;
            let input = Tensor::new(&said[said.len() - new..], pixels.device())?.unsqueeze(0)?;
            let scores = decoder.forward(&input, &seen)?;
            let last = scores.narrow(1, new - 1, 1)?.flatten_all()?.to_vec1::<f32>()?;
            let likeliest = last.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            let Some((token, _)) = likeliest else { break };
            let token = token as u32;
            if token == end {
                break;
            }
            said.push(token);
            new = 1;
        }
        Ok(said)
    }
}

impl Blip {
    /// How likely each word is after each of `tokens`, [1, T, words], before a softmax.
    ///
    /// # Errors
    /// There are more tokens than positions.
    pub fn scores(&self, pixels: &Tensor, tokens: &[u32]) -> Result<Tensor> {
        let seen = self.network.vision_model().forward(pixels)?;
        let input = Tensor::new(tokens, pixels.device())?.unsqueeze(0)?;
        Ok(self.network.clone().text_decoder().forward(&input, &seen)?)
    }
}

fn vision_config(weights: &Weights) -> Result<VisionConfig> {
    let embeddings = weights.sub("embeddings");
    let [hidden, colours, patch, wide] = sizes(&embeddings, "patch_embedding.weight")?;
    let [_, positions, _] = sizes(&embeddings, "position_embedding")?;
    let side = positions.saturating_sub(1).isqrt();
    if colours != 3 || patch != wide || side == 0 || side * side + 1 != positions {
        return Err(Error::Input(format!(
            "{} is no BLIP: it has {positions} positions, and patches of {patch} × {wide} pixels with {colours} colours; squares of \
             three, and one position more than a square number, would be right",
            weights.origin()
        )));
    }
    let layers = weights.sub("encoder.layers");
    let [intermediate, _] = sizes(&layers, "0.mlp.fc1.weight")?;
    Ok(VisionConfig {
        hidden_size: hidden,
        intermediate_size: intermediate,
        projection_dim: hidden,
        num_hidden_layers: count(&layers, |i| format!("{i}.layer_norm1.weight")),
        num_attention_heads: heads(weights, hidden, HEAD)?,
        image_size: side * patch,
        patch_size: patch,
        hidden_act: Activation::Gelu,
        layer_norm_eps: 1e-5,
    })
}

fn text_config(weights: &Weights) -> Result<blip_text::Config> {
    let [words, hidden] = sizes(weights, "embeddings.word_embeddings.weight")?;
    let [positions, _] = sizes(weights, "embeddings.position_embeddings.weight")?;
    let layers = weights.sub("encoder.layer");
    let [intermediate, _] = sizes(&layers, "0.intermediate.dense.weight")?;
    let [_, seen] = sizes(&layers, "0.crossattention.self.key.weight")?;
    Ok(blip_text::Config {
        vocab_size: words,
        hidden_size: hidden,
        encoder_hidden_size: seen,
        intermediate_size: intermediate,
        projection_dim: hidden,
        num_hidden_layers: count(&layers, |i| format!("{i}.attention.self.query.weight")),
        num_attention_heads: heads(weights, hidden, HEAD)?,
        max_position_embeddings: positions,
        hidden_act: Activation::Gelu,
        layer_norm_eps: 1e-12,
        is_decoder: true,
    })
}

/// What files carry and nothing here computes with.
pub const TOLERATED: [&str; 3] = [
    "text_decoder.bert.embeddings.position_ids",
    "text_decoder.bert.pooler.*",
    "text_decoder.cls.predictions.decoder.bias",
];

/// The weights of a BLIP that makes captions, with what its two halves share in both places.
///
/// # Errors
/// They are of another network, or of a BLIP that answers or compares.
pub fn of_captions(weights: &Weights) -> Result<Weights> {
    const WANTED: &str = "a BLIP of captions (the folder of Salesforce/blip-image-captioning-base)";
    if weights.has("text_encoder") && weights.has("vision_model") {
        return Err(Error::NotThisKind {
            path: weights.origin().into(),
            what: format!(
                "it is a BLIP that answers questions or compares texts; {WANTED} would be right"
            ),
        });
    }
    if !weights.has("text_decoder.bert") || !weights.has("vision_model.embeddings") {
        return Err(not_this(weights, WANTED));
    }
    const SHARED: [(&str, &str); 2] = [
        (
            "text_decoder.cls.predictions.decoder.weight",
            "text_decoder.bert.embeddings.word_embeddings.weight",
        ),
        ("text_decoder.cls.predictions.bias", "text_decoder.cls.predictions.decoder.bias"),
    ];
    let own = renamed(weights, str::to_owned);
    let missing = SHARED.iter().filter(|(name, other)| !own.has(name) && own.has(other));
    let names = own.names().into_iter().map(|name| (name.clone(), name));
    let shared = missing.map(|(name, other)| ((*name).to_owned(), (*other).to_owned()));
    Ok(own.renamed(names.chain(shared).collect::<Vec<_>>()))
}

/// The words of BERT, and the two tokens that BLIP begins and ends with.
pub struct Words {
    tokenizer: Tokenizer,
    begin: u32,
    end: u32,
}

impl Words {
    /// The vocabulary in a folder: tokenizer.json or vocab.txt.
    ///
    /// # Errors
    /// There is none, it is too long for one, or it is none.
    pub fn open(folder: &Path) -> Result<Words> {
        let (json, list) = (folder.join("tokenizer.json"), folder.join("vocab.txt"));
        let (file, mut tokenizer) = match (json.is_file(), list.is_file()) {
            (true, _) => {
                let read = Tokenizer::from_bytes(contents(&json)?);
                let tokenizer = read.map_err(|error| no_vocabulary(&json, &error.to_string()))?;
                (json, tokenizer)
            }
            (_, true) => {
                let tokenizer = of_list(&list)?;
                (list, tokenizer)
            }
            _ => {
                return Err(Error::NotThisKind {
                    path: folder.to_owned(),
                    what: "there is neither tokenizer.json nor vocab.txt in it, and captions are made of their words".to_owned(),
                });
            }
        };
        // Nothing is shortened or filled up behind our back.
        tokenizer.with_padding(None);
        let whole = tokenizer.with_truncation(None).map(|_| ());
        whole.map_err(|error| no_vocabulary(&file, &error.to_string()))?;
        let Some(end) = tokenizer.token_to_id("[SEP]") else {
            return Err(no_vocabulary(&file, "it has no [SEP], which ends a caption"));
        };
        // BLIP adds two tokens to BERT's words; the first begins a caption.
        let begin = tokenizer.token_to_id("[DEC]");
        let begin = begin.unwrap_or(tokenizer.get_vocab_size(false) as u32);
        Ok(Words { tokenizer, begin, end })
    }

    pub fn end(&self) -> u32 {
        self.end
    }

    /// What a caption that begins with `text` begins with.
    ///
    /// # Errors
    /// The text cannot be cut into words.
    pub fn begun(&self, text: &str) -> Result<Vec<u32>> {
        let words = self.tokenizer.encode(text, false);
        let words =
            words.map_err(|error| Error::Input(format!("{text:?} cannot be read: {error}")))?;
        Ok([&[self.begin], words.get_ids()].concat())
    }

    /// The text of tokens, without those that are no words.
    ///
    /// # Errors
    /// The vocabulary cannot join them.
    pub fn text(&self, tokens: &[u32]) -> Result<String> {
        let is_word = |token: &&u32| **token != self.begin && **token != self.end;
        let words: Vec<u32> = tokens.iter().filter(is_word).copied().collect();
        let text = self.tokenizer.decode(&words, true);
        text.map_err(|error| Error::Input(format!("a caption cannot be written: {error}")))
    }
}

/// BERT's tokenizer of a list of words, one a line.
fn of_list(file: &Path) -> Result<Tokenizer> {
    const NO_WORDS: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let text = String::from_utf8(contents(file)?);
    let text = text.map_err(|_| no_vocabulary(file, "it is no text in UTF-8"))?;
    let words = || text.lines().map(str::trim).zip(0u32..);
    let vocabulary: Map<String, Value> =
        words().map(|(word, number)| (word.to_owned(), number.into())).collect();
    let no_words = words().filter(|(word, _)| NO_WORDS.contains(word)).map(|(word, number)| {
        json!({"id": number, "content": word, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "post_processor": null,
        "added_tokens": no_words.collect::<Vec<_>>(),
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary}});
    Tokenizer::from_bytes(tokenizer.to_string())
        .map_err(|error| no_vocabulary(file, &error.to_string()))
}

fn no_vocabulary(file: &Path, why: &str) -> Error {
    Error::NotThisKind {
        path: file.to_owned(),
        what: format!("it is no vocabulary of BERT: {why}"),
    }
}

fn contents(file: &Path) -> Result<Vec<u8>> {
    let failed = |source| Error::Io { path: file.to_owned(), source };
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(failed)?;
    opened.take(LARGEST_VOCABULARY + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 > LARGEST_VOCABULARY {
        true => Err(no_vocabulary(file, "it is longer than 16 MB")),
        false => Ok(bytes),
    }
}
