//! A prompt as rows of tokens, laid out as ComfyUI lays it out for Stable Diffusion 1.5.
//!
//! Each stretch of text of one weight is tokenised by itself. Tokens fill rows of the encoder's
//! length, each between its start and its end; a stretch of fewer than 8 tokens that a row has no
//! room for begins the next one, a longer one is divided. `embedding:NAME` stands for the vectors of
//! a textual inversion (Gal et al., arXiv 2208.01618), which take the places of tokens.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::text::clip_prompt::segments;
use crate::text::clip_tokens::ClipTokenizer;

/// What a place in a row is filled with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Slot {
    Token(u32),
    /// Row `row` of the embedding number `embedding` of [`PromptRows::embeddings`].
    Vector {
        embedding: usize,
        row: usize,
    },
}

/// A prompt, tokenised and cut.
#[derive(Clone, Debug)]
pub struct PromptRows {
    /// One row or more, all of the same length: what stands in each place, and its weight.
    pub rows: Vec<Vec<(Slot, f64)>>,
    /// Textual inversions, [n, D] each.
    pub embeddings: Vec<Tensor>,
    /// Names behind `embedding:` that were not found, as they are written; their words are left out.
    pub missing: Vec<String>,
}

/// Stretches with fewer tokens than this are not divided between rows.
const WORD: usize = 8;
const MENTION: &str = "embedding:";
/// Signs behind the name of an embedding that may be the sentence's and not the name's.
pub const SENTENCE_SIGNS: [char; 6] = [',', '.', ';', ':', '!', '?'];

impl PromptRows {
    /// Reads `prompt` into rows of `length` tokens, markers included. `find` gives the vectors [n, D]
    /// of the textual inversion of a name, or `None` when there is none.
    ///
    /// # Errors
    /// `length` leaves no room for a token, or what `find` and the tokenizer report.
    pub fn new(
        prompt: &str,
        tokenizer: &ClipTokenizer,
        length: usize,
        mut find: impl FnMut(&str) -> Result<Option<Tensor>>,
    ) -> Result<PromptRows> {
        if length < 3 {
            return Err(Error::Input(format!(
                "a text encoder for {length} tokens has no room between its two markers"
            )));
        }
        let mut rows = PromptRows { rows: Vec::new(), embeddings: Vec::new(), missing: Vec::new() };
        let mut stretches = Vec::new();
        for segment in segments(prompt) {
            if !(segment.weight as f32).is_finite() {
                let start: String = segment.text.chars().take(40).collect();
                return Err(Error::Input(format!(
                    "the weight of \"{start}\" is too large: it has too many brackets around it"
                )));
            }
            for piece in pieces(&segment.text) {
                let text = match piece {
                    Piece::Text(text) => text.to_owned(),
                    Piece::Embedding { name, rest } => {
                        rows.embedding(name, rest, segment.weight, &mut find, &mut stretches)?
                    }
                };
                let tokens = tokenizer.tokens(&text)?.into_iter();
                stretches.push(tokens.map(|token| (Slot::Token(token), segment.weight)).collect());
            }
        }
        rows.rows = lay_out(&stretches, tokenizer, length);
        Ok(rows)
    }

    /// Adds rows of the empty prompt until there are `count`: SDXL's two encoders read texts of their own, and give
    /// as many rows each.
    ///
    /// # Errors
    /// What the tokenizer reports.
    pub fn fill(&mut self, count: usize, tokenizer: &ClipTokenizer, length: usize) -> Result<()> {
        while self.rows.len() < count {
            let row = empty_row(tokenizer, length)?;
            self.rows.push(row.into_iter().map(|token| (Slot::Token(token), 1.0)).collect());
        }
        Ok(())
    }

    /// Adds the vectors of a mention to `stretches`; returns the text that follows it.
    fn embedding(
        &mut self,
        name: &str,
        rest: String,
        weight: f64,
        find: &mut impl FnMut(&str) -> Result<Option<Tensor>>,
        stretches: &mut Vec<Vec<(Slot, f64)>>,
    ) -> Result<String> {
        // A bracket that nothing opened is no weight's and, as a sign, no name's.
        let bare = name.trim_end_matches(|c| c == ')' || SENTENCE_SIGNS.contains(&c));
        let (mut found, mut rest) = (find(name)?, rest);
        if found.is_none() && bare.len() < name.len() {
            found = if bare.is_empty() { None } else { find(bare)? };
            rest = format!("{} {rest}", &name[bare.len()..]);
        }
        match found {
            Some(vectors) => {
                let embedding = self.embeddings.len();
                let vector = |row| (Slot::Vector { embedding, row }, weight);
                stretches.push((0..vectors.dims2()?.0).map(vector).collect());
                self.embeddings.push(vectors);
            }
            None => self.missing.push(name.to_owned()),
        }
        Ok(rest)
    }
}

/// The row of an empty prompt, which weights are measured from.
pub fn empty_row(tokenizer: &ClipTokenizer, length: usize) -> Result<Vec<u32>> {
    Ok(tokenizer.row(&[], length)?)
}

#[derive(Debug, PartialEq)]
enum Piece<'a> {
    Text(&'a str),
    /// `embedding:NAME`, and the words behind the name.
    Embedding {
        name: &'a str,
        rest: String,
    },
}

/// Divides a text before each `embedding:` that follows white space of any kind.
fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut parts = Vec::new();
    let mut rest = text;
    let mut from = 0;
    while let Some(found) = rest[from..].find(MENTION) {
        let at = from + found;
        // One character of it goes, as with ComfyUI's space.
        let before = rest[..at].strip_suffix(char::is_whitespace);
        if let Some(before) = before {
            parts.push(before);
            (rest, from) = (&rest[at..], MENTION.len());
        } else {
            from = at + MENTION.len();
        }
    }
    parts.push(rest);
    parts.into_iter().filter(|part| !part.is_empty()).map(piece).collect()
}

fn piece(part: &str) -> Piece<'_> {
    let Some(named) = part.strip_prefix(MENTION) else { return Piece::Text(part) };
    let mut words = named.split_whitespace();
    let word = words.next().unwrap_or_default();
    // What other programs write next to a name is not of it.
    let (name, behind) = word.split_at(word.find(['<', '[']).unwrap_or(word.len()));
    let rest = std::iter::once(behind).chain(words).filter(|word| !word.is_empty());
    Piece::Embedding { name, rest: rest.collect::<Vec<_>>().join(" ") }
}

/// Fills rows of `length` places with `stretches`.
fn lay_out(
    stretches: &[Vec<(Slot, f64)>],
    tokenizer: &ClipTokenizer,
    length: usize,
) -> Vec<Vec<(Slot, f64)>> {
    let start = (Slot::Token(tokenizer.start_id()), 1.0);
    let end = (Slot::Token(tokenizer.end_id()), 1.0);
    let pad = (Slot::Token(tokenizer.pad_id()), 1.0);
    let mut rows = Vec::new();
    let mut row = vec![start];
    let mut finish = |row: &mut Vec<_>| {
        row.push(end);
        row.resize(length, pad);
        rows.push(std::mem::replace(row, vec![start]));
    };
    for stretch in stretches {
        let mut stretch = &stretch[..];
        // A stretch that no row has room for is divided, however short.
        let divided = stretch.len() >= WORD || stretch.len() > length - 2;
        while row.len() + stretch.len() > length - 1 {
            if divided {
                let (first, behind) = stretch.split_at(length - 1 - row.len());
                row.extend_from_slice(first);
                stretch = behind;
            }
            finish(&mut row);
        }
        row.extend_from_slice(stretch);
    }
    finish(&mut row);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static CLIP: LazyLock<ClipTokenizer> = LazyLock::new(|| ClipTokenizer::clip().unwrap());

    /// Finds embeddings named `e` followed by how many vectors they have.
    fn find(name: &str) -> Result<Option<Tensor>> {
        let count = name.strip_prefix('e').and_then(|count| count.parse::<usize>().ok());
        Ok(count.map(|count| Tensor::zeros((count, 4), DType::F32, &Device::Cpu)).transpose()?)
    }

    fn read(prompt: &str) -> PromptRows {
        PromptRows::new(prompt, &CLIP, 77, find).unwrap()
    }

    /// What stands between the markers of a row, padding left out: ids, or -1 - row for vectors.
    fn row(rows: &PromptRows, row: usize) -> Vec<(i64, f64)> {
        let places = rows.rows[row].iter().map(|(slot, weight)| match slot {
            Slot::Token(token) => (i64::from(*token), *weight),
            Slot::Vector { row, .. } => (-1 - *row as i64, *weight),
        });
        let places: Vec<_> = places.collect();
        assert_eq!((places.len(), places[0]), (77, (49406, 1.0)));
        let end = places.iter().position(|(id, _)| *id == 49407).unwrap();
        assert!(places[end..].iter().all(|place| *place == (49407, 1.0)));
        places[1..end].to_vec()
    }

    #[test]
    fn words_have_their_weights() {
        let rows = read("a photo of a (cat:1.2)");
        let expected =
            [(320, 1.0), (1125, 1.0), (539, 1.0), (320, 1.0), (2368, 1.2)].map(|(id, w)| (id, w));
        assert_eq!(row(&rows, 0), expected);
        assert_eq!(rows.rows.len(), 1);
        assert_eq!(row(&read(""), 0), []);
        assert_eq!(row(&read("()"), 0), []);
    }

    #[test]
    fn long_prompts_go_on_in_another_row() {
        let full = read(&"a ".repeat(75));
        assert_eq!((full.rows.len(), row(&full, 0).len()), (1, 75));
        let longer = read(&"a ".repeat(76));
        assert_eq!((longer.rows.len(), row(&longer, 0).len(), row(&longer, 1).len()), (2, 75, 1));
        let longest = read(&"a ".repeat(200));
        assert_eq!(longest.rows.len(), 3);
        assert_eq!(row(&longest, 2).len(), 50);
    }

    #[test]
    fn a_short_stretch_is_not_divided_and_a_long_one_is() {
        let text = "a ".repeat(72);
        let seven = read(&(text.clone() + "(a a a a a a a:1.5)"));
        assert_eq!((row(&seven, 0).len(), row(&seven, 1).len()), (72, 7));
        assert!(row(&seven, 1).iter().all(|place| *place == (320, 1.5)));
        let eight = read(&(text + "(a a a a a a a a:1.5)"));
        assert_eq!((row(&eight, 0).len(), row(&eight, 1).len()), (75, 5));
        assert_eq!(row(&eight, 0)[74], (320, 1.5));
    }

    #[test]
    fn embeddings_stand_in_the_places_of_words() {
        for prompt in [
            "a embedding:e2 cat",
            "a embedding:e2\ncat",
            "a\nembedding:e2 cat",
            "a\tembedding:e2\tcat",
            "a\r\nembedding:e2\r\ncat",
            "a\u{a0}embedding:e2\u{3000}cat",
            "a \u{2003}embedding:e2 \u{b}cat",
        ] {
            let rows = read(prompt);
            let expected = [(320, 1.0), (-1, 1.0), (-2, 1.0), (2368, 1.0)];
            assert_eq!(row(&rows, 0), expected, "{prompt:?}");
        }
        let weighted = read("(embedding:e1:1.3), embedding:e1, (a embedding:e1)");
        let comma = 267;
        assert_eq!(
            row(&weighted, 0),
            [(-1, 1.3), (comma, 1.0), (-1, 1.0), (comma, 1.0), (320, 1.1), (-1, 1.1)]
        );
        assert_eq!(weighted.embeddings.len(), 3);
        assert!(weighted.missing.is_empty());
        // 75 vectors fill a row of their own, 76 are divided.
        assert_eq!(read("a embedding:e75").rows.len(), 2);
        assert_eq!(row(&read("a embedding:e75"), 0).len(), 75);
    }

    #[test]
    fn a_missing_embedding_is_left_out() {
        let rows = read("a embedding:nobody, cat embedding: e1 embedding:");
        let comma = 267;
        assert_eq!(row(&rows, 0), [(320, 1.0), (comma, 1.0), (2368, 1.0), (-1, 1.0)]);
        assert_eq!(rows.missing, ["nobody,", ""]);
        let closed = read("embedding:e1) cat");
        assert_eq!((row(&closed, 0)[0], closed.missing.len()), ((-1, 1.0), 0));
        // Not behind a space, so words.
        assert!(row(&read("a,embedding:e1"), 0).iter().all(|(id, _)| *id > 0));
        assert_eq!(row(&read("embedding:e1<lora:x:1>"), 0)[0], (-1, 1.0));
    }

    #[test]
    fn other_lengths_and_impossible_ones() {
        for length in 0..3 {
            assert!(PromptRows::new("a", &CLIP, length, find).is_err());
        }
        let short = PromptRows::new("a a a a a", &CLIP, 4, find).unwrap();
        assert_eq!(short.rows.len(), 3);
        let brackets = "(".repeat(2000) + "cat" + &")".repeat(2000);
        let error = PromptRows::new(&brackets, &CLIP, 77, find).unwrap_err().to_string();
        assert!(error.contains("\"cat\" is too large"), "{error}");
    }

    proptest! {
        #[test]
        fn every_token_is_in_a_row(
            stretches in prop::collection::vec(0usize..30, 0..12), length in 3usize..40,
        ) {
            let mut next = 0;
            let stretches: Vec<Vec<(Slot, f64)>> = stretches
                .into_iter()
                .map(|count| {
                    next += count as u32;
                    (next - count as u32..next).map(|id| (Slot::Token(id), 2.0)).collect()
                })
                .collect();
            let rows = lay_out(&stretches, &CLIP, length);
            let mut seen: Vec<&(Slot, f64)> = Vec::new();
            for row in &rows {
                prop_assert_eq!(row.len(), length);
                prop_assert_eq!(row[0], (Slot::Token(49406), 1.0));
                let own: Vec<_> = row.iter().filter(|(_, weight)| *weight == 2.0).collect();
                prop_assert_eq!(row[own.len() + 1], (Slot::Token(49407), 1.0));
                seen.extend(own);
            }
            prop_assert!(seen.into_iter().eq(stretches.iter().flatten()));
        }

        #[test]
        fn any_text_is_laid_out(prompt in any::<String>()) {
            read(&prompt);
        }
    }
}
