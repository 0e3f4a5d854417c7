//! CLIP's byte-pair tokenizer: text → token ids.
//!
//! Text is brought to NFC, white space to single spaces, letters to lower case; then it is cut into
//! words, numerals and runs of other signs, each spelled in bytes and merged pair by pair. Radford
//! et al., "Learning Transferable Visual Models From Natural Language Supervision" (arXiv
//! 2103.00020); cleaning and cutting follow transformers' `CLIPTokenizer`. The work is done by the
//! `tokenizers` crate.
//!
//! CLIP's own vocabulary of 49,408 tokens ships with the project (`data/README.md`); a folder may
//! bring another.

use std::io::Read;
use std::path::Path;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, NormalizerWrapper, Replace};
use tokenizers::normalizers::{Sequence as Normalizers, replace::ReplacePattern};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

/// Begins every row.
const START: &str = "<|startoftext|>";
/// Ends every row, and stands for what has no other token.
const END: &str = "<|endoftext|>";
/// Marks the last symbol of a word.
const WORD_END: &str = "</w>";

/// How many tokens a row has, specials included, where a folder says nothing else.
pub const CONTEXT_LENGTH: usize = 77;

/// How many tokens CLIP's own vocabulary has.
const VOCABULARY: usize = 49_408;

static MERGES: &[u8] = include_bytes!("../../data/clip_merges.txt.gz");

/// Why a tokenizer could not be read, or a text not be tokenized.
#[derive(Debug, thiserror::Error)]
pub enum ClipTokensError {
    #[error("cannot read {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error(
        "{folder} has no tokenizer: neither vocab.json with merges.txt nor tokenizer.json is there"
    )]
    Missing { folder: String },
    #[error("{path} is not a tokenizer's file: {reason}")]
    Malformed { path: String, reason: String },
    /// Without its two markers a vocabulary is not CLIP's.
    #[error("the vocabulary of {path} has no {token}, which begins or ends every row of CLIP")]
    NoMarker { path: String, token: &'static str },
    #[error("the text could not be tokenized: {0}")]
    Encode(String),
    #[error("a row of {0} tokens has no room for its two markers")]
    Length(usize),
}

impl From<ClipTokensError> for crate::Error {
    fn from(error: ClipTokensError) -> Self {
        crate::Error::Text(error.into())
    }
}

/// A tokenizer with its markers.
#[derive(Debug)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    start: u32,
    end: u32,
    /// What fills a row, where something says it; else the end.
    pad: Option<u32>,
    vocab_size: usize,
}

impl ClipTokenizer {
    /// CLIP's own vocabulary, as it ships with the project.
    pub fn clip() -> Result<ClipTokenizer, ClipTokensError> {
        const NAME: &str = "the CLIP vocabulary in this program";
        let mut text = String::new();
        flate2::read::GzDecoder::new(MERGES)
            .read_to_string(&mut text)
            .map_err(|source| ClipTokensError::Read { path: NAME.to_owned(), source })?;
        let merges = parse_merges(&text, NAME)?;
        // The order is the published one: bytes, bytes that end a word, merges, markers.
        let bytes = byte_symbols();
        let symbols = bytes.iter().map(char::to_string);
        let tokens = symbols
            .clone()
            .chain(symbols.map(|symbol| symbol + WORD_END))
            .chain(merges.iter().map(|(left, right)| format!("{left}{right}")))
            .chain([START.to_owned(), END.to_owned()]);
        let vocab: Vocab = tokens.zip(0..).collect();
        ClipTokenizer::from_bpe(vocab, merges, NAME)
    }

    /// Reads the `tokenizer` folder of a diffusers or transformers model: `vocab.json` with
    /// `merges.txt`, or `tokenizer.json`. A `pad_token` in `special_tokens_map.json` is kept.
    pub fn read(folder: &Path) -> Result<ClipTokenizer, ClipTokensError> {
        let vocab = folder.join("vocab.json");
        let merges = folder.join("merges.txt");
        let whole = folder.join("tokenizer.json");
        let mut tokenizer = if vocab.is_file() && merges.is_file() {
            let vocab_name = vocab.display().to_string();
            let tokens: std::collections::HashMap<String, u32> =
                serde_json::from_str(&read_text(&vocab)?).map_err(|error| {
                    ClipTokensError::Malformed {
                        path: vocab_name.clone(),
                        reason: error.to_string(),
                    }
                })?;
            let merges = parse_merges(&read_text(&merges)?, &merges.display().to_string())?;
            ClipTokenizer::from_bpe(tokens.into_iter().collect(), merges, &vocab_name)?
        } else if whole.is_file() {
            let name = whole.display().to_string();
            let tokenizer = read_text(&whole)?.parse().map_err(|error: tokenizers::Error| {
                ClipTokensError::Malformed { path: name.clone(), reason: error.to_string() }
            })?;
            ClipTokenizer::from_tokenizer(tokenizer, &name)?
        } else {
            return Err(ClipTokensError::Missing { folder: folder.display().to_string() });
        };
        let specials = folder.join("special_tokens_map.json");
        if specials.is_file() {
            let map: serde_json::Value =
                serde_json::from_str(&read_text(&specials)?).map_err(|error| {
                    ClipTokensError::Malformed {
                        path: specials.display().to_string(),
                        reason: error.to_string(),
                    }
                })?;
            let pad = &map["pad_token"];
            // A plain string, or an object with the string in it.
            if let Some(pad) = pad.as_str().or_else(|| pad["content"].as_str()) {
                let id = tokenizer.tokenizer.token_to_id(pad).ok_or_else(|| {
                    ClipTokensError::Malformed {
                        path: specials.display().to_string(),
                        reason: format!("its pad_token {pad:?} is not in the vocabulary"),
                    }
                })?;
                tokenizer.pad = Some(id);
            }
        }
        Ok(tokenizer)
    }

    fn from_bpe(
        vocab: Vocab,
        merges: Merges,
        name: &str,
    ) -> Result<ClipTokenizer, ClipTokensError> {
        for token in [START, END] {
            if !vocab.contains_key(token) {
                return Err(ClipTokensError::NoMarker { path: name.to_owned(), token });
            }
        }
        let malformed = |error: tokenizers::Error| ClipTokensError::Malformed {
            path: name.to_owned(),
            reason: error.to_string(),
        };
        let bpe = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .unk_token(END.to_owned())
            .end_of_word_suffix(WORD_END.to_owned())
            .build()
            .map_err(malformed)?;
        let white_space = ReplacePattern::Regex(r"\s+".to_owned());
        let words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
        let words = SplitPattern::Regex(words.to_owned());
        let words = Split::new(words, SplitDelimiterBehavior::Removed, true).map_err(malformed)?;
        let mut tokenizer = Tokenizer::new(bpe);
        tokenizer
            .with_normalizer(Some(Normalizers::new(vec![
                NormalizerWrapper::NFC(NFC),
                NormalizerWrapper::Replace(Replace::new(white_space, " ").map_err(malformed)?),
                NormalizerWrapper::Lowercase(Lowercase),
            ])))
            .map_err(malformed)?;
        tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![
            PreTokenizerWrapper::Split(words),
            PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
        ])));
        tokenizer
            .add_special_tokens([START, END].map(|token| AddedToken::from(token, true)))
            .map_err(malformed)?;
        ClipTokenizer::from_tokenizer(tokenizer, name)
    }

    fn from_tokenizer(
        mut tokenizer: Tokenizer,
        name: &str,
    ) -> Result<ClipTokenizer, ClipTokensError> {
        let marker = |token: &'static str| {
            tokenizer
                .token_to_id(token)
                .ok_or_else(|| ClipTokensError::NoMarker { path: name.to_owned(), token })
        };
        let (start, end) = (marker(START)?, marker(END)?);
        // Rows are cut and filled here, the same way for every source.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| ClipTokensError::Malformed {
            path: name.to_owned(),
            reason: error.to_string(),
        })?;
        let highest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        Ok(ClipTokenizer { tokenizer, start, end, pad: None, vocab_size: highest as usize + 1 })
    }

    /// The same, filling rows with `pad` where its folder says nothing else: SDXL's larger encoder was trained with 0.
    pub fn or_pad(self, pad: u32) -> ClipTokenizer {
        ClipTokenizer { pad: self.pad.or(Some(pad)), ..self }
    }

    /// What a file must say of it whose weights alone would be read with CLIP's own vocabulary: `tokenizer.json` and, where
    /// something says it, what fills a row. `None` where it has as many tokens as that one: then it is taken to be that.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn unsaid(&self) -> Result<Option<serde_json::Value>, ClipTokensError> {
        if self.vocab_size == VOCABULARY {
            return Ok(None);
        }
        let malformed = |reason: String| ClipTokensError::Malformed { path: "it".into(), reason };
        let whole =
            self.tokenizer.to_string(false).map_err(|error| malformed(error.to_string()))?;
        let whole: serde_json::Value =
            serde_json::from_str(&whole).map_err(|error| malformed(error.to_string()))?;
        Ok(Some(serde_json::json!({"tokenizer.json": whole, "pad": self.pad})))
    }

    /// The tokenizer that a file says in its header, as [`ClipTokenizer::unsaid`] has it.
    ///
    /// # Errors
    /// It is none; `name` is where it stands.
    pub fn of_header(
        said: &serde_json::Value,
        name: &str,
    ) -> Result<ClipTokenizer, ClipTokensError> {
        let malformed = |reason: String| ClipTokensError::Malformed { path: name.into(), reason };
        let parsed = said["tokenizer.json"].to_string().parse();
        let parsed = parsed.map_err(|error: tokenizers::Error| malformed(error.to_string()))?;
        let mut tokenizer = ClipTokenizer::from_tokenizer(parsed, name)?;
        if !said["pad"].is_null() {
            let pad = said["pad"].as_u64().and_then(|pad| u32::try_from(pad).ok());
            let pad = pad.filter(|&pad| (pad as usize) < tokenizer.vocab_size);
            let wrong = || malformed(format!("its pad {} is not in the vocabulary", said["pad"]));
            tokenizer.pad = Some(pad.ok_or_else(wrong)?);
        }
        Ok(tokenizer)
    }

    /// `<|startoftext|>`.
    pub fn start_id(&self) -> u32 {
        self.start
    }

    /// `<|endoftext|>`.
    pub fn end_id(&self) -> u32 {
        self.end
    }

    /// What fills a row behind its end: `<|endoftext|>`, or what the folder says.
    pub fn pad_id(&self) -> u32 {
        self.pad.unwrap_or(self.end)
    }

    /// One more than the highest id: the rows that the encoder's embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The tokens of a text of any length, without markers: what is cut into chunks or weighted.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>, ClipTokensError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|error| ClipTokensError::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of a text between the two markers, neither cut nor filled up.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ClipTokensError> {
        let mut ids = vec![self.start];
        ids.extend(self.tokens(text)?);
        ids.push(self.end);
        Ok(ids)
    }

    /// One row of exactly `length` tokens: start, as many of `tokens` as fit, end, padding.
    pub fn row(&self, tokens: &[u32], length: usize) -> Result<Vec<u32>, ClipTokensError> {
        let Some(room) = length.checked_sub(2) else {
            return Err(ClipTokensError::Length(length));
        };
        let mut row = Vec::with_capacity(length);
        row.push(self.start);
        row.extend(tokens.iter().take(room));
        row.push(self.end);
        row.resize(length, self.pad_id());
        Ok(row)
    }

    /// The text as one row of exactly `length` tokens; what does not fit is cut off, as
    /// transformers does.
    pub fn encode_row(&self, text: &str, length: usize) -> Result<Vec<u32>, ClipTokensError> {
        self.row(&self.tokens(text)?, length)
    }
}

fn read_text(path: &Path) -> Result<String, ClipTokensError> {
    std::fs::read_to_string(path)
        .map_err(|source| ClipTokensError::Read { path: path.display().to_string(), source })
}

/// One pair a line; a first line `#version: …` and empty lines are none.
fn parse_merges(text: &str, name: &str) -> Result<Merges, ClipTokensError> {
    let lines = text.lines().enumerate();
    lines
        .filter(|(index, line)| !line.is_empty() && (*index > 0 || !line.starts_with("#version")))
        .map(|(index, line)| match line.split_once(' ') {
            Some((left, right))
                if !left.is_empty() && !right.is_empty() && !right.contains(' ') =>
            {
                Ok((left.to_owned(), right.to_owned()))
            }
            _ => Err(ClipTokensError::Malformed {
                path: name.to_owned(),
                reason: format!(
                    "line {} is {:?}; two symbols with a space between would be right",
                    index + 1,
                    line.chars().take(60).collect::<String>(),
                ),
            }),
        })
        .collect()
}

/// The character that spells each byte, in the order of the vocabulary: first the 188 bytes that
/// are visible Latin-1 characters, as themselves; then the other 68, in order, as the characters
/// from U+0100 on (GPT-2's byte alphabet).
fn byte_symbols() -> Vec<char> {
    let visible = (b'!'..=b'~').chain(0xa1..=0xac).chain(0xae..=0xff);
    let visible = visible.map(char::from);
    visible.chain('\u{100}'..'\u{144}').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vocabulary_is_clips() {
        let clip = ClipTokenizer::clip().unwrap();
        assert_eq!((clip.start_id(), clip.end_id(), clip.vocab_size()), (49406, 49407, 49408));
        assert_eq!(
            clip.encode("a photo of a cat").unwrap(),
            [49406, 320, 1125, 539, 320, 2368, 49407]
        );
    }

    #[test]
    fn rows_have_their_length() {
        let clip = ClipTokenizer::clip().unwrap();
        assert_eq!(clip.encode_row("a cat", 6).unwrap(), [49406, 320, 2368, 49407, 49407, 49407]);
        assert_eq!(clip.encode_row("a cat a cat", 4).unwrap(), [49406, 320, 2368, 49407]);
        assert_eq!(clip.row(&[], 2).unwrap(), [49406, 49407]);
        assert!(matches!(clip.row(&[], 1), Err(ClipTokensError::Length(1))));
        assert_eq!(clip.tokens(&"a ".repeat(100)).unwrap().len(), 100);
    }

    #[test]
    fn a_folder_brings_its_own_vocabulary() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let missing = ClipTokenizer::read(folder.path()).unwrap_err();
        assert!(missing.to_string().contains("neither vocab.json"), "{missing}");

        let vocab = r#"{"a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "ab</w>": 4, "<|startoftext|>": 5, "<|endoftext|>": 6, "!</w>": 7}"#;
        write("vocab.json", vocab);
        write("merges.txt", "#version: 0.2\na b</w>\n");
        let small = ClipTokenizer::read(folder.path()).unwrap();
        // What cannot be spelled is <|endoftext|>, as in transformers.
        assert_eq!(small.encode("AB  ba ?").unwrap(), [5, 4, 1, 2, 6, 6]);
        assert_eq!(small.encode_row("ab", 5).unwrap(), [5, 4, 6, 6, 6]);

        write("special_tokens_map.json", r#"{"pad_token": {"content": "!</w>"}}"#);
        let padded = ClipTokenizer::read(folder.path()).unwrap();
        assert_eq!(padded.encode_row("ab", 5).unwrap(), [5, 4, 6, 7, 7]);

        write("merges.txt", "a b</w>\nabc\n");
        let error = ClipTokenizer::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("merges.txt") && error.contains("line 2"), "{error}");
        write("merges.txt", "a c</w>\n");
        let error = ClipTokenizer::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("c</w>"), "{error}");
        write("vocab.json", r#"{"a": 0}"#);
        let error = ClipTokenizer::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("<|startoftext|>"), "{error}");
        write("vocab.json", "[");
        assert!(ClipTokenizer::read(folder.path()).is_err());
    }

    #[test]
    fn a_whole_tokenizer_file_is_the_same_tokenizer() {
        let folder = tempfile::tempdir().unwrap();
        let clip = ClipTokenizer::clip().unwrap();
        clip.tokenizer.save(folder.path().join("tokenizer.json"), false).unwrap();
        let read = ClipTokenizer::read(folder.path()).unwrap();
        for text in
            ["A  Photo,\tof\na CAT!!", "don't you're", "<|endoftext|> inside", "一只猫 1234"]
        {
            assert_eq!(read.encode(text).unwrap(), clip.encode(text).unwrap());
        }
        std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        let error = ClipTokenizer::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
    }
}
