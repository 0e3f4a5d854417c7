//! Files that a text names in passing: `embedding:NAME` in a prompt.
//!
//! The descriptor says so with "mentions": the folder. The files are found while the plan is made,
//! as those of inputs that are files are, so that a missing one is told before anything runs and a
//! replaced one is another text to the cache. What ends a name is the node's business (weights,
//! commas); the plan takes every name that could be meant and that is there.

use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// A file that a text mentions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mention {
    /// What a node asks for: `file:embeddings/NAME`.
    pub property: String,
    /// Absolute.
    pub path: String,
    pub identity: [u8; 16],
}

/// The longest name that is looked for, in bytes: file systems take no longer ones.
const LONGEST: usize = 1024;

/// What may follow a name that is not part of it.
const ENDS: &[char] = &[',', ':', ';', '(', ')', '[', ']', '{', '}', '<', '>', '|', '"'];

/// What may stand behind a name at the end of a sentence.
const SENTENCE_SIGNS: &[char] = &['.', '!', '?'];

/// The word that a file of `folder` is mentioned by: `embedding` for `embeddings`.
pub(super) fn keyword(folder: &str) -> &str {
    folder.strip_suffix('s').unwrap_or(folder)
}

/// For each mention in `text`, once, the names that may be meant by it, the longest first:
/// `embedding:a,b` may mean the file `a,b`, and most likely means `a`. A mention without a name is one of the empty name.
pub(super) fn names(text: &str, folder: &str) -> Vec<Vec<String>> {
    let keyword = format!("{}:", keyword(folder));
    let mut seen = HashSet::new();
    let mut mentions = Vec::new();
    for (at, _) in text.match_indices(&keyword) {
        let in_a_word = |c: char| c.is_alphanumeric() || c == '_';
        if text[..at].chars().next_back().is_some_and(in_a_word) {
            continue;
        }
        let rest = &text[at + keyword.len()..];
        // As in ComfyUI white space before the name is none of it. Where no word follows, nothing is named, which is told.
        let word = rest.split_whitespace().next().unwrap_or_default();
        let word = if word.starts_with(&keyword) { "" } else { word };
        if word.len() > LONGEST {
            continue;
        }
        // A parenthesis that is part of the name is written with a backslash in a prompt.
        let word = word.replace("\\(", "(").replace("\\)", ")");
        let cuts = word.match_indices(ENDS).map(|(cut, _)| &word[..cut]);
        // Signs behind the word may be the sentence's.
        let signs = word.match_indices(SENTENCE_SIGNS).map(|(cut, _)| cut);
        let signs = signs.filter(|cut| word[*cut..].chars().all(|c| SENTENCE_SIGNS.contains(&c)));
        let cuts = cuts.chain(signs.map(|cut| &word[..cut]));
        let mut names: Vec<&str> =
            cuts.chain([word.as_str()]).filter(|name| !name.is_empty()).collect();
        names.sort_by_key(|name| std::cmp::Reverse(name.len()));
        names.dedup();
        if names.is_empty() {
            names.push("");
        }
        if seen.insert(word.clone()) {
            mentions.push(names.into_iter().map(str::to_owned).collect());
        }
    }
    mentions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_where_a_prompt_goes_on() {
        let found = |text| names(text, "embeddings");
        assert_eq!(found("a cat, embedding:moody"), [["moody"]]);
        assert_eq!(
            found("(embedding:sub/moody.pt:1.2) x"),
            [vec!["sub/moody.pt:1.2)", "sub/moody.pt:1.2", "sub/moody.pt"]]
        );
        assert_eq!(
            found("embedding:a, embedding:a,\nembedding:b\\(1\\)"),
            [vec!["a,", "a"], vec!["b(1)", "b(1", "b"]]
        );
        assert!(found("myembedding:a lora:x").is_empty());
        assert_eq!(found("embedding: b"), [["b"]]);
        assert_eq!(found("embedding:\n\t b c"), [["b"]]);
        assert_eq!(found("a embedding:e) b"), [vec!["e)", "e"]]);
        assert_eq!(found("embedding:e."), [vec!["e.", "e"]]);
        assert_eq!(found("embedding:, x embedding: "), [[","], [""]]);
        assert_eq!(found("embedding: embedding:e"), [[""], ["e"]]);
        assert_eq!(names("lora:x", "loras"), [["x"]]);
    }
}
