//! Sentencepiece's unigram tokenizer, read from its own `.model` file.
//!
//! Text is first normalised (the model's character map, one space where there were many, `▁` for a
//! space and one in front), then cut into the pieces of the largest summed log probability. Kudo,
//! "Subword Regularization", ACL 2018 (arXiv 1804.10959); the file and the algorithms follow
//! google/sentencepiece 0.2 (`sentencepiece_model.proto`, `normalizer.cc`, `unigram_model.cc`).
//!
//! `tokenizers` has a `Unigram` too. It sums in f64, where sentencepiece rounds to f32, so that it
//! cuts "A1111" elsewhere than the model was trained with; of 6,000 random texts it cut 6
//! differently, this one none.
//!
//! The file is a protocol buffer. Only the fields that change a segmentation are declared below;
//! the reader skips the others.

use std::collections::HashMap;
use std::path::Path;

use prost::Message;

use crate::text::charsmap::{Charsmap, CharsmapError};

/// The space of sentencepiece, U+2581.
pub const SPACE: char = '\u{2581}';

/// The longest piece that is read. Sentencepiece's trainer makes pieces of 16 characters; the time
/// to cut a text grows with the longest.
const MAX_PIECE_BYTES: usize = 512;

/// How much less than the least probable piece an unknown character scores.
const UNKNOWN_PENALTY: f32 = 10.0;

/// Why a sentencepiece model could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SentencepieceError {
    #[error("cannot read the sentencepiece model {path}: {source}")]
    Read { path: String, source: std::io::Error },
    /// Truncated, a wrong wire type, a length beyond the end: not this protocol buffer.
    #[error("this is not a sentencepiece model: {0}")]
    Malformed(#[from] prost::DecodeError),
    #[error("the sentencepiece model is damaged: {0}")]
    Charsmap(#[from] CharsmapError),
    #[error("the sentencepiece model is of type {0}; only unigram (type 1) is read here")]
    NotUnigram(i32),
    /// A model has one piece of type UNKNOWN, for what it cannot spell.
    #[error("the sentencepiece model has {0} unknown pieces; one would be right")]
    Unknown(usize),
    #[error(
        "piece {id} of the sentencepiece model, {piece:?}, has the score {score}; a finite number would be right"
    )]
    Score { id: usize, piece: String, score: f32 },
    #[error(
        "piece {id} of the sentencepiece model is {length} bytes long; at most {MAX_PIECE_BYTES} are read"
    )]
    Length { id: usize, length: usize },
    #[error("the sentencepiece model {0}, which is not supported here")]
    Unsupported(&'static str),
}

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer_spec: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer_spec: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(enumeration = "PieceType", optional, tag = "3", default = "Normal")]
    r#type: Option<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum PieceType {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3", default = "1")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    treat_whitespace_as_suffix: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3", default = "true")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4", default = "true")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5", default = "true")]
    escape_whitespaces: Option<bool>,
}

/// A unigram model with its normaliser.
#[derive(Debug)]
pub struct Sentencepiece {
    vocabulary: Vocabulary,
    charsmap: Charsmap,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
}

impl Sentencepiece {
    /// Reads a `.model` file.
    pub fn read(path: &Path) -> Result<Sentencepiece, SentencepieceError> {
        let bytes = std::fs::read(path).map_err(|source| SentencepieceError::Read {
            path: path.display().to_string(),
            source,
        })?;
        Sentencepiece::from_bytes(&bytes)
    }

    /// Reads the contents of a `.model` file.
    pub fn from_bytes(bytes: &[u8]) -> Result<Sentencepiece, SentencepieceError> {
        let model = ModelProto::decode(bytes)?;
        let trainer = model.trainer_spec.unwrap_or_default();
        if trainer.model_type() != 1 {
            return Err(SentencepieceError::NotUnigram(trainer.model_type()));
        }
        if trainer.treat_whitespace_as_suffix() {
            return Err(SentencepieceError::Unsupported("puts its spaces behind the words"));
        }
        let normalizer = model.normalizer_spec.unwrap_or_default();
        Ok(Sentencepiece {
            vocabulary: Vocabulary::new(&model.pieces)?,
            charsmap: Charsmap::from_bytes(normalizer.precompiled_charsmap())?,
            add_dummy_prefix: normalizer.add_dummy_prefix(),
            remove_extra_whitespaces: normalizer.remove_extra_whitespaces(),
            escape_whitespaces: normalizer.escape_whitespaces(),
        })
    }

    /// A model of the given pieces, for tests of what stands on one.
    #[cfg(test)]
    pub(crate) fn of_pieces(pieces: &[(&str, f32)]) -> Sentencepiece {
        Sentencepiece::from_bytes(&test_model(pieces)).unwrap()
    }

    /// The pieces of `text`. A run of characters the model does not know is one piece, as it stands
    /// in the normalised text.
    pub fn encode(&self, text: &str) -> Vec<String> {
        let normalised = self.normalize(text);
        self.vocabulary.segment(&normalised).into_iter().map(str::to_owned).collect()
    }

    /// The text as the model sees it.
    pub fn normalize(&self, text: &str) -> String {
        let space = if self.escape_whitespaces { SPACE } else { ' ' };
        let mut rest = text;
        if self.remove_extra_whitespaces {
            while !rest.is_empty() {
                let (taken, replacement) = self.rewrite_prefix(rest);
                if replacement != " " {
                    break;
                }
                rest = &rest[taken..];
            }
        }
        // Text without anything in it gets no space in front either.
        if rest.is_empty() {
            return String::new();
        }
        let mut out = String::with_capacity(rest.len() + 16);
        if self.add_dummy_prefix {
            out.push(space);
        }
        let mut after_space = self.remove_extra_whitespaces;
        while !rest.is_empty() {
            let (taken, mut replacement) = self.rewrite_prefix(rest);
            if after_space {
                replacement = replacement.trim_start_matches(' ');
            }
            for character in replacement.chars() {
                out.push(if character == ' ' { space } else { character });
            }
            if !replacement.is_empty() {
                after_space = self.remove_extra_whitespaces && replacement.ends_with(' ');
            }
            rest = &rest[taken..];
        }
        if self.remove_extra_whitespaces {
            out.truncate(out.trim_end_matches(space).len());
        }
        out
    }

    /// How many bytes at the beginning of `text` are rewritten together (at least one character),
    /// and into what.
    fn rewrite_prefix<'a>(&'a self, text: &'a str) -> (usize, &'a str) {
        if let Some(symbol) =
            self.vocabulary.user_defined.iter().find(|s| text.starts_with(s.as_str()))
        {
            return (symbol.len(), symbol);
        }
        self.charsmap.longest_match(text).unwrap_or_else(|| {
            let length = text.chars().next().map_or(0, char::len_utf8);
            (length, &text[..length])
        })
    }
}

/// The pieces that text can be cut into, with their log probabilities.
#[derive(Debug)]
struct Vocabulary {
    scores: HashMap<String, f32>,
    /// The length of the longest piece, in bytes.
    longest: usize,
    /// Of one character that has no piece.
    unknown: f32,
    /// Pieces that are never rewritten and never cut, longest first.
    user_defined: Vec<String>,
}

impl Vocabulary {
    /// Control pieces (`<s>`) and unused ones are left out: text that spells them is text.
    fn new(pieces: &[Piece]) -> Result<Vocabulary, SentencepieceError> {
        let of_type = |r#type| pieces.iter().filter(move |piece| piece.r#type() == r#type);
        match of_type(PieceType::Unknown).count() {
            1 => {}
            count => return Err(SentencepieceError::Unknown(count)),
        }
        for (id, piece) in pieces.iter().enumerate() {
            if !piece.score().is_finite() {
                return Err(SentencepieceError::Score {
                    id,
                    piece: piece.piece().to_owned(),
                    score: piece.score(),
                });
            }
            if piece.piece().len() > MAX_PIECE_BYTES {
                return Err(SentencepieceError::Length { id, length: piece.piece().len() });
            }
        }
        if of_type(PieceType::Byte).next().is_some() {
            return Err(SentencepieceError::Unsupported("spells unknown characters as bytes"));
        }
        let scores = || of_type(PieceType::Normal).map(Piece::score);
        let lowest = scores().reduce(f32::min).unwrap_or(0.0);
        let highest = scores().reduce(f32::max).unwrap_or(0.0);
        let normal =
            of_type(PieceType::Normal).map(|piece| (piece.piece().to_owned(), piece.score()));
        // A user-defined piece beats any way to spell the same bytes with others.
        let user_defined = of_type(PieceType::UserDefined)
            .map(|piece| (piece.piece().to_owned(), piece.piece().len() as f32 * highest - 0.1));
        let scores: HashMap<String, f32> =
            normal.chain(user_defined).filter(|(piece, _)| !piece.is_empty()).collect();
        let mut user_defined: Vec<String> = of_type(PieceType::UserDefined)
            .map(|piece| piece.piece().to_owned())
            .filter(|piece| !piece.is_empty())
            .collect();
        user_defined.sort_by_key(|piece| std::cmp::Reverse(piece.len()));
        Ok(Vocabulary {
            longest: scores.keys().map(String::len).max().unwrap_or(0),
            unknown: lowest - UNKNOWN_PENALTY,
            scores,
            user_defined,
        })
    }

    /// The best segmentation, by Viterbi's algorithm; runs of unknown characters are joined.
    ///
    /// Sums are in f32, as sentencepiece's are: the same pieces in another order tie but for the
    /// rounding, and the rounding decides.
    fn segment<'a>(&self, text: &'a str) -> Vec<&'a str> {
        /// The best path to one byte position: its score and its last piece.
        #[derive(Clone, Copy)]
        struct Best {
            score: f32,
            start: usize,
            unknown: bool,
        }
        let mut best: Vec<Option<Best>> = vec![None; text.len() + 1];
        for (start, character) in text.char_indices() {
            let so_far = best[start].map_or(0.0, |best| best.score);
            let mut reach = |end: usize, score: f32, unknown: bool| {
                if best[end].is_none_or(|best| score > best.score) {
                    best[end] = Some(Best { score, start, unknown });
                }
            };
            let mut spelled = false;
            let ends = text[start..].char_indices().map(|(at, last)| start + at + last.len_utf8());
            for end in ends.take_while(|end| end - start <= self.longest) {
                if let Some(score) = self.scores.get(&text[start..end]) {
                    reach(end, score + so_far, false);
                    spelled |= end - start == character.len_utf8();
                }
            }
            if !spelled {
                reach(start + character.len_utf8(), self.unknown + so_far, true);
            }
        }

        let mut pieces: Vec<&str> = Vec::new();
        let (mut end, mut after_unknown) = (text.len(), false);
        // Every position is reached: each character has a piece or is unknown.
        while let Some(last) = best[end] {
            match pieces.last_mut() {
                Some(piece) if last.unknown && after_unknown => {
                    *piece = &text[last.start..end + piece.len()];
                }
                _ => pieces.push(&text[last.start..end]),
            }
            (end, after_unknown) = (last.start, last.unknown);
        }
        pieces.reverse();
        pieces
    }
}

/// The contents of a `.model` file with the given pieces.
#[cfg(test)]
pub(crate) fn test_model(pieces: &[(&str, f32)]) -> Vec<u8> {
    let unknown = Piece { r#type: Some(PieceType::Unknown as i32), ..Piece::default() };
    let normal = pieces.iter().map(|(piece, score)| Piece {
        piece: Some((*piece).to_owned()),
        score: Some(*score),
        r#type: None,
    });
    let pieces = std::iter::once(unknown).chain(normal).collect();
    ModelProto { pieces, ..ModelProto::default() }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::charsmap::test_map;
    use proptest::prelude::*;

    fn piece(piece: &str, score: f32, r#type: PieceType) -> Piece {
        Piece { piece: Some(piece.to_owned()), score: Some(score), r#type: Some(r#type as i32) }
    }

    fn model() -> ModelProto {
        let normal = [
            ("▁", -4.0),
            ("a", -3.0),
            ("b", -3.0),
            ("c", -5.0),
            ("ab", -2.0),
            ("▁ab", -2.5),
            ("<", -9.0),
            (">", -9.0),
        ];
        let mut pieces = vec![
            piece("<unk>", 0.0, PieceType::Unknown),
            piece("<s>", 0.0, PieceType::Control),
            piece("abc", 0.0, PieceType::Unused),
            piece("a=b", 0.0, PieceType::UserDefined),
        ];
        pieces.extend(normal.map(|(text, score)| piece(text, score, PieceType::Normal)));
        ModelProto {
            pieces,
            trainer_spec: Some(TrainerSpec {
                model_type: Some(1),
                treat_whitespace_as_suffix: None,
            }),
            normalizer_spec: Some(NormalizerSpec {
                precompiled_charsmap: Some(test_map(&[
                    ("\t", " "),
                    ("A", "a"),
                    ("ＡＢ", "ab"),
                    ("Ａ", "x"),
                    ("=", "e"),
                    ("\u{1}", ""),
                ])),
                ..NormalizerSpec::default()
            }),
        }
    }

    fn encode(model: &ModelProto, text: &str) -> Vec<String> {
        Sentencepiece::from_bytes(&model.encode_to_vec()).unwrap().encode(text)
    }

    #[test]
    fn text_is_normalised_and_cut() {
        let model = model();
        assert_eq!(encode(&model, "ab abc"), ["▁ab", "▁ab", "c"]);
        assert_eq!(encode(&model, " \t Aab\t\tb \t"), ["▁", "a", "ab", "▁", "b"]);
        assert_eq!(encode(&model, "ＡＢＡ"), ["▁ab", "x"]);
        assert_eq!(encode(&model, "a\u{1}b"), ["▁ab"]);
        assert!(encode(&model, "").is_empty());
        assert!(encode(&model, " \t").is_empty());
    }

    #[test]
    fn a_run_of_unknown_characters_is_one_piece() {
        assert_eq!(encode(&model(), "aééxb zz"), ["▁", "a", "ééx", "b", "▁", "zz"]);
    }

    #[test]
    fn special_pieces_are_not_spelled_by_text() {
        assert_eq!(encode(&model(), "<s><unk>"), ["▁", "<", "s", ">", "<", "unk", ">"]);
        // A user-defined piece is neither rewritten nor cut.
        assert_eq!(encode(&model(), "ba=ba"), ["▁", "b", "a=b", "a"]);
    }

    #[test]
    fn the_normalizer_obeys_its_switches() {
        let mut model = model();
        let spec = model.normalizer_spec.as_mut().unwrap();
        spec.remove_extra_whitespaces = Some(false);
        spec.add_dummy_prefix = Some(false);
        let sentencepiece = Sentencepiece::from_bytes(&model.encode_to_vec()).unwrap();
        assert_eq!(sentencepiece.normalize(" a  b\t"), "▁a▁▁b▁");
        model.normalizer_spec.as_mut().unwrap().escape_whitespaces = Some(false);
        let sentencepiece = Sentencepiece::from_bytes(&model.encode_to_vec()).unwrap();
        assert_eq!(sentencepiece.normalize(" a"), " a");
        // Without a specification the proto's defaults hold.
        model.normalizer_spec = None;
        let sentencepiece = Sentencepiece::from_bytes(&model.encode_to_vec()).unwrap();
        assert_eq!(sentencepiece.normalize(" A  b "), "▁A▁b");
    }

    #[test]
    fn what_is_no_unigram_model_is_said() {
        let error = |change: &dyn Fn(&mut ModelProto)| {
            let mut model = model();
            change(&mut model);
            Sentencepiece::from_bytes(&model.encode_to_vec()).unwrap_err().to_string()
        };
        let said = error(&|model| model.trainer_spec.as_mut().unwrap().model_type = Some(2));
        assert!(said.contains("type 2; only unigram"), "{said}");
        let said = error(&|model| model.pieces[0].r#type = Some(1));
        assert!(said.contains("0 unknown pieces"), "{said}");
        let said = error(&|model| model.pieces[5].score = Some(f32::NAN));
        assert!(said.contains("piece 5") && said.contains("NaN"), "{said}");
        let said = error(&|model| model.pieces[5].piece = Some("a".repeat(100_000)));
        assert!(said.contains("100000 bytes long"), "{said}");
        let said = error(&|model| model.pieces[5].r#type = Some(6));
        assert!(said.contains("bytes, which is not supported"), "{said}");
        let said = error(&|model| {
            model.normalizer_spec.as_mut().unwrap().precompiled_charsmap = Some(vec![255; 40]);
        });
        assert!(said.contains("character map"), "{said}");
        let missing = Sentencepiece::read(Path::new("no/such.model")).unwrap_err().to_string();
        assert!(missing.contains("no/such.model"), "{missing}");
    }

    #[test]
    fn hostile_wire_data_is_an_error() {
        // A piece announced with 2^35 bytes; a string field sent as a number; a group that never
        // ends.
        for bytes in [&[0x0a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01][..], &[0x08, 0x01], &[0x0b]] {
            assert!(matches!(
                Sentencepiece::from_bytes(bytes),
                Err(SentencepieceError::Malformed(_))
            ));
        }
        let whole = model().encode_to_vec();
        assert!(Sentencepiece::from_bytes(&whole[..whole.len() - 1]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Sentencepiece::from_bytes(&bytes);
        }

        #[test]
        fn a_damaged_model_is_refused_or_still_cuts_text(
            position in any::<prop::sample::Index>(), byte in any::<u8>(), text in "\\PC{0,20}[ \tA=\u{1}Ａ]{0,6}",
        ) {
            let mut bytes = model().encode_to_vec();
            let position = position.index(bytes.len());
            bytes[position] = byte;
            if let Ok(sentencepiece) = Sentencepiece::from_bytes(&bytes) {
                let _ = sentencepiece.encode(&text);
            }
        }

        #[test]
        fn the_pieces_spell_the_normalised_text(text in "\\PC{0,40}") {
            let sentencepiece = Sentencepiece::from_bytes(&model().encode_to_vec()).unwrap();
            prop_assert_eq!(sentencepiece.encode(&text).concat(), sentencepiece.normalize(&text));
        }
    }
}
