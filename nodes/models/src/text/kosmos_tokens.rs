//! The prompt of Kosmos-G: text with `<i>` marks → token ids, and which of them the pictures take.
//!
//! Pieces come from sentencepiece, their ids from fairseq's dictionary: `<s>` 0, `<pad>` 1, `</s>`
//! 2, `<unk>` 3, then the lines of `dict.txt`, then the six symbols that the authors' task adds.
//! Follows `app_model.py` (`kosmosg_preprocess`) of the authors' code.

use std::collections::HashMap;
use std::path::Path;

use crate::text::sentencepiece::{Sentencepiece, SentencepieceError};

/// Begins every prompt.
pub const BOS: u32 = 0;
/// Fills up rows of a batch.
pub const PAD: u32 = 1;
/// Ends a document; a prompt has none.
pub const EOS: u32 = 2;
/// Any piece that the dictionary lacks.
pub const UNK: u32 = 3;

/// Marks the place of a picture in a prompt.
pub const PICTURE_MARK: &str = "<i>";

/// The most pictures in one prompt, as in the authors' demo.
pub const MAX_PICTURES: usize = 10;

/// Symbols that come before the dictionary's own.
const BEFORE: [&str; 4] = ["<s>", "<pad>", "</s>", "<unk>"];
/// Symbols that come after them.
const AFTER: [&str; 6] = ["<mask>", "</doc>", "<image>", "</image>", "</chunk>", "</line>"];

/// The names of the files in a Kosmos folder.
pub const SENTENCEPIECE_FILE: &str = "sentencepiece.bpe.model";
/// See [`SENTENCEPIECE_FILE`].
pub const DICTIONARY_FILE: &str = "dict.txt";

/// Why a tokenizer could not be read, or a prompt not be laid out.
#[derive(Debug, thiserror::Error)]
pub enum KosmosTokensError {
    #[error("cannot read the dictionary {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("{path}: {source}")]
    Sentencepiece { path: String, source: SentencepieceError },
    /// A line of `dict.txt` is a symbol, a space and a count.
    #[error(
        "line {line} of the dictionary is {found:?}; a symbol, a space and a count would be right"
    )]
    DictionaryLine { line: usize, found: String },
    #[error("line {line} of the dictionary has the symbol {symbol:?} a second time")]
    DictionaryTwice { line: usize, symbol: String },
    /// The number of marks must equal the number of pictures.
    #[error("the prompt has {marks} <i> {}, but {pictures} {} connected: every picture needs its own <i> in the text, where it belongs",
        plural(*marks, "mark", "marks"), plural(*pictures, "picture is", "pictures are"))]
    Marks { marks: usize, pictures: usize },
    #[error("{0} pictures are connected; a prompt holds at most {MAX_PICTURES}")]
    TooManyPictures(usize),
}

impl From<KosmosTokensError> for crate::Error {
    fn from(error: KosmosTokensError) -> Self {
        crate::Error::Text(error.into())
    }
}

fn plural(count: usize, one: &'static str, many: &'static str) -> &'static str {
    if count == 1 { one } else { many }
}

/// A prompt as the decoder reads it: one row, T tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids, [T].
    pub ids: Vec<u32>,
    /// Which positions an image token takes instead of the embedding of its id, [T].
    pub image_mask: Vec<bool>,
}

/// Sentencepiece and dictionary together.
#[derive(Debug)]
pub struct KosmosTokenizer {
    sentencepiece: Sentencepiece,
    ids: HashMap<String, u32>,
    image: u32,
    image_end: u32,
}

impl KosmosTokenizer {
    /// Reads `sentencepiece.bpe.model` and `dict.txt` of a folder.
    pub fn read(folder: &Path) -> Result<KosmosTokenizer, KosmosTokensError> {
        let model = folder.join(SENTENCEPIECE_FILE);
        let sentencepiece = Sentencepiece::read(&model).map_err(|source| {
            KosmosTokensError::Sentencepiece { path: model.display().to_string(), source }
        })?;
        let path = folder.join(DICTIONARY_FILE);
        let dictionary = std::fs::read_to_string(&path).map_err(|source| {
            KosmosTokensError::Read { path: path.display().to_string(), source }
        })?;
        KosmosTokenizer::new(sentencepiece, &dictionary)
    }

    /// A tokenizer of the model and the text of its `dict.txt`.
    pub fn new(
        sentencepiece: Sentencepiece,
        dictionary: &str,
    ) -> Result<KosmosTokenizer, KosmosTokensError> {
        let mut ids: HashMap<String, u32> = HashMap::new();
        for (id, symbol) in (0..).zip(BEFORE) {
            ids.insert(symbol.to_owned(), id);
        }
        // Not `lines`, which would eat a carriage return that is a symbol's own.
        let lines = dictionary.split('\n').enumerate();
        for (index, line) in lines.filter(|(_, line)| !line.is_empty()) {
            let line_number = index + 1;
            let symbol = line.trim_end().rsplit_once(' ').and_then(|(symbol, count)| {
                let counted = !symbol.is_empty() && count.parse::<u64>().is_ok();
                counted.then_some(symbol)
            });
            let Some(symbol) = symbol else {
                return Err(KosmosTokensError::DictionaryLine {
                    line: line_number,
                    found: line.chars().take(60).collect(),
                });
            };
            let id = ids.len() as u32;
            if ids.insert(symbol.to_owned(), id).is_some() {
                return Err(KosmosTokensError::DictionaryTwice {
                    line: line_number,
                    symbol: symbol.to_owned(),
                });
            }
        }
        // A symbol that the dictionary has already keeps its id, as in fairseq.
        for symbol in AFTER {
            let next = ids.len() as u32;
            ids.entry(symbol.to_owned()).or_insert(next);
        }
        let id = |symbol: &str| ids.get(symbol).copied().unwrap_or(UNK);
        Ok(KosmosTokenizer { sentencepiece, image: id("<image>"), image_end: id("</image>"), ids })
    }

    /// How many ids there are, special symbols included: the rows that the decoder's embedding
    /// needs.
    pub fn vocab_size(&self) -> usize {
        self.ids.len()
    }

    /// The id of a symbol of the dictionary or of a special one, [`UNK`] for any other.
    pub fn id(&self, symbol: &str) -> u32 {
        self.ids.get(symbol).copied().unwrap_or(UNK)
    }

    /// `<image>`: begins a picture, and stands at each of its tokens.
    pub fn image_id(&self) -> u32 {
        self.image
    }

    /// `</image>`: ends a picture.
    pub fn image_end_id(&self) -> u32 {
        self.image_end
    }

    /// The ids of a text by itself, without any special token. A run of unknown characters is one
    /// [`UNK`].
    pub fn snippet(&self, text: &str) -> Vec<u32> {
        self.sentencepiece.encode(text).iter().map(|piece| self.id(piece)).collect()
    }

    /// `<s>` and the text: what stands for the negative prompt. The empty text gives `<s>` alone,
    /// the null condition.
    pub fn negative(&self, text: &str) -> Vec<u32> {
        let mut ids = vec![BOS];
        ids.extend(self.snippet(text));
        ids
    }

    /// Lays out a prompt: `<s>`, then for every mark the text before it, `<image>` once and
    /// `image_tokens` times more (these the picture's tokens replace), `</image>`; then the rest.
    /// Each text between marks is cut into pieces by itself.
    ///
    /// `pictures` is the number of pictures at hand; it must equal the number of marks and be at
    /// most [`MAX_PICTURES`].
    pub fn prompt(
        &self,
        text: &str,
        pictures: usize,
        image_tokens: usize,
    ) -> Result<Prompt, KosmosTokensError> {
        if pictures > MAX_PICTURES {
            return Err(KosmosTokensError::TooManyPictures(pictures));
        }
        let marks = text.matches(PICTURE_MARK).count();
        if marks != pictures {
            return Err(KosmosTokensError::Marks { marks, pictures });
        }
        let mut ids = vec![BOS];
        let mut image_mask = vec![false];
        for (index, snippet) in text.split(PICTURE_MARK).enumerate() {
            if index > 0 {
                ids.extend(std::iter::repeat_n(self.image_id(), 1 + image_tokens));
                ids.push(self.image_end_id());
                image_mask.push(false);
                image_mask.extend(std::iter::repeat_n(true, image_tokens));
                image_mask.push(false);
            }
            ids.extend(self.snippet(snippet));
            image_mask.resize(ids.len(), false);
        }
        Ok(Prompt { ids, image_mask })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DICTIONARY: &str = "▁a 1\n▁dog 12\n, 1\n";

    fn tokenizer() -> KosmosTokenizer {
        let pieces = [("▁", -3.0), ("▁a", -2.0), ("▁dog", -2.0), (",", -2.0), ("x", -2.0)];
        KosmosTokenizer::new(Sentencepiece::of_pieces(&pieces), DICTIONARY).unwrap()
    }

    #[test]
    fn ids_follow_the_dictionary() {
        let tokenizer = tokenizer();
        assert_eq!(tokenizer.vocab_size(), 4 + 3 + 6);
        assert_eq!((tokenizer.id("<s>"), tokenizer.id("▁a"), tokenizer.id("<mask>")), (BOS, 4, 7));
        assert_eq!(
            (tokenizer.image_id(), tokenizer.image_end_id(), tokenizer.id("</line>")),
            (9, 10, 12)
        );
        // "x" is a piece that the dictionary lacks; "zz" is no piece.
        assert_eq!(tokenizer.snippet("a dog,x zz"), [4, 5, 6, UNK, UNK, UNK]);
        assert_eq!(tokenizer.negative(""), [BOS]);
        assert_eq!(tokenizer.negative("a"), [BOS, 4]);
        // A mark is characters like others there.
        let marked = tokenizer.negative("a <i> dog");
        assert_eq!(marked, [&[BOS][..], &tokenizer.snippet("a <i> dog")].concat());
        assert!(!marked.contains(&tokenizer.image_id()));
    }

    #[test]
    fn pictures_stand_at_their_marks() {
        let prompt = tokenizer().prompt("a<i> dog <i>", 2, 3).unwrap();
        assert_eq!(prompt.ids, [0, 4, 9, 9, 9, 9, 10, 5, 9, 9, 9, 9, 10]);
        let mask: Vec<u8> = prompt.image_mask.iter().map(|image| u8::from(*image)).collect();
        assert_eq!(mask, [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0]);
        assert_eq!(tokenizer().prompt("", 0, 3).unwrap().ids, [BOS]);
    }

    #[test]
    fn marks_and_pictures_must_agree() {
        let error =
            |text: &str, pictures| tokenizer().prompt(text, pictures, 3).unwrap_err().to_string();
        let more_marks = error("<i> and <i>", 1);
        assert!(more_marks.contains("2 <i> marks, but 1 picture is connected"), "{more_marks}");
        let more_pictures = error("<i>", 2);
        assert!(
            more_pictures.contains("1 <i> mark, but 2 pictures are connected"),
            "{more_pictures}"
        );
        let too_many = error(&"<i>".repeat(11), 11);
        assert!(too_many.contains("11 pictures") && too_many.contains("at most 10"), "{too_many}");
    }

    #[test]
    fn a_damaged_dictionary_is_named() {
        let error = |text: &str| {
            KosmosTokenizer::new(Sentencepiece::of_pieces(&[]), text).unwrap_err().to_string()
        };
        assert!(error("a 1\nb\n").contains("line 2 of the dictionary is \"b\""));
        assert!(error("a one\n").contains("line 1"));
        assert!(
            error("a 1\na 2\n")
                .contains("line 2 of the dictionary has the symbol \"a\" a second time")
        );
        let missing = KosmosTokenizer::read(Path::new("no/such/folder")).unwrap_err().to_string();
        assert!(missing.contains("sentencepiece.bpe.model"), "{missing}");
    }
}
