//! Sentencepiece's `precompiled_charsmap`: the rewriting of characters (nmt_nfkc and its kin) that
//! a model was trained with, as a trie from byte sequences to replacements.
//!
//! The `tokenizers` crate has a reader of its own, `Precompiled`. It rewrites grapheme by grapheme
//! with the shortest rule that matches, where sentencepiece takes the longest from each position,
//! and it indexes the trie unchecked, so that a damaged file is a panic. This one follows
//! sentencepiece (`normalizer.cc`) and reads hostile files.
//!
//! Layout: u32 size of the trie in bytes, the trie (little-endian u32 units of a Darts-clone double
//! array), then the replacements, each ended by a NUL.

/// Why a map could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CharsmapError {
    /// The size field, or the trie it announces, reaches beyond the end.
    #[error("its character map announces a trie of {announced} bytes, of which {found} are there")]
    Truncated { announced: usize, found: usize },
    /// A trie is made of 4-byte units, at least one.
    #[error(
        "its character map has a trie of {0} bytes; a multiple of 4 and at least 4 would be right"
    )]
    TrieSize(usize),
    /// Replacements are text.
    #[error("the replacements of its character map are not UTF-8 from byte {0} on")]
    NotText(usize),
}

/// Rules that replace a run of bytes by a string.
#[derive(Debug)]
pub struct Charsmap {
    trie: Vec<u32>,
    replacements: String,
}

impl Charsmap {
    /// Reads a map; an empty one replaces nothing.
    pub fn from_bytes(bytes: &[u8]) -> Result<Charsmap, CharsmapError> {
        if bytes.is_empty() {
            return Ok(Charsmap { trie: Vec::new(), replacements: String::new() });
        }
        let Some((size, rest)) = bytes.split_first_chunk::<4>() else {
            return Err(CharsmapError::Truncated { announced: 4, found: bytes.len() });
        };
        let size = u32::from_le_bytes(*size) as usize;
        if size == 0 || !size.is_multiple_of(4) {
            return Err(CharsmapError::TrieSize(size));
        }
        let Some((trie, replacements)) = rest.split_at_checked(size) else {
            return Err(CharsmapError::Truncated { announced: size, found: rest.len() });
        };
        let (units, _) = trie.as_chunks::<4>();
        let replacements = std::str::from_utf8(replacements)
            .map_err(|error| CharsmapError::NotText(error.valid_up_to()))?;
        Ok(Charsmap {
            trie: units.iter().map(|unit| u32::from_le_bytes(*unit)).collect(),
            replacements: replacements.to_owned(),
        })
    }

    /// The longest rule that matches the beginning of `text`: how many bytes it takes, and what
    /// stands in their place.
    ///
    /// A rule that ends within a character or points outside the replacements comes from a damaged
    /// file and matches nothing.
    pub fn longest_match<'a>(&'a self, text: &str) -> Option<(usize, &'a str)> {
        // Units of a Darts-clone double array: bits 0-7 label, bit 8 "a leaf hangs here", bits 9-31
        // offset to the children; a leaf has bit 31 and its value below it.
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let mut node = offset(*self.trie.first()?);
        let mut found = None;
        for (position, byte) in text.bytes().enumerate() {
            node ^= usize::from(byte);
            let Some(&unit) = self.trie.get(node) else {
                break;
            };
            if unit & (1 << 31 | 0xff) != u32::from(byte) {
                break;
            }
            node ^= offset(unit);
            if unit >> 8 & 1 == 1 {
                let rule = self.trie.get(node).and_then(|leaf| {
                    let tail = self.replacements.get((leaf & !(1 << 31)) as usize..)?;
                    Some(tail.split('\0').next().unwrap_or(tail))
                });
                if let (Some(rule), true) = (rule, text.is_char_boundary(position + 1)) {
                    found = Some((position + 1, rule));
                }
            }
        }
        found
    }
}

/// A map of the given rules, for tests: every node of the trie gets a block of 256 units of its
/// own.
#[cfg(test)]
pub(crate) fn test_map(rules: &[(&str, &str)]) -> Vec<u8> {
    use std::collections::BTreeMap;

    let mut nodes: BTreeMap<&[u8], usize> = BTreeMap::new();
    for (text, _) in rules {
        for end in 0..=text.len() {
            let next = nodes.len();
            nodes.entry(&text.as_bytes()[..end]).or_insert(next);
        }
    }
    let block = |prefix: &[u8]| (nodes[prefix] + 1) * 256;
    // A label that no byte follows to: the unit of byte 0 is only a leaf's place.
    let mut trie = vec![0xffu32 ^ 0xfe00_0000; (nodes.len() + 1) * 256];
    let mut replacements = Vec::new();
    for prefix in nodes.keys().copied() {
        let (unit, label) = match prefix.split_last() {
            None => (0, 0),
            Some((byte, parent)) => (block(parent) ^ usize::from(*byte), u32::from(*byte)),
        };
        trie[unit] = ((unit ^ block(prefix)) as u32) << 10 | label;
        if let Some((_, to)) = rules.iter().find(|(from, _)| from.as_bytes() == prefix) {
            trie[unit] |= 1 << 8;
            trie[block(prefix)] = 1 << 31 | replacements.len() as u32;
            replacements.extend_from_slice(to.as_bytes());
            replacements.push(0);
        }
    }
    let mut bytes = (trie.len() as u32 * 4).to_le_bytes().to_vec();
    bytes.extend(trie.iter().flat_map(|unit| unit.to_le_bytes()));
    bytes.extend(replacements);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_longest_rule_wins() {
        let map = test_map(&[("a", "1"), ("abc", "3"), ("é", "e"), ("b", "")]);
        let map = Charsmap::from_bytes(&map).unwrap();
        assert_eq!(map.longest_match("abcd"), Some((3, "3")));
        assert_eq!(map.longest_match("abd"), Some((1, "1")));
        assert_eq!(map.longest_match("ée"), Some((2, "e")));
        assert_eq!(map.longest_match("b"), Some((1, "")));
        assert_eq!(map.longest_match("c"), None);
        assert_eq!(map.longest_match("\0"), None);
        assert_eq!(map.longest_match(""), None);
        assert_eq!(Charsmap::from_bytes(&[]).unwrap().longest_match("a"), None);
    }

    #[test]
    fn a_damaged_map_is_named() {
        assert_eq!(
            Charsmap::from_bytes(&[1, 2]).unwrap_err(),
            CharsmapError::Truncated { announced: 4, found: 2 }
        );
        assert_eq!(
            Charsmap::from_bytes(&[255, 255, 255, 127, 0]).unwrap_err(),
            CharsmapError::TrieSize(0x7fff_ffff),
        );
        assert_eq!(
            Charsmap::from_bytes(&[8, 0, 0, 0, 0]).unwrap_err(),
            CharsmapError::Truncated { announced: 8, found: 1 }
        );
        assert_eq!(
            Charsmap::from_bytes(&[4, 0, 0, 0, 0, 0, 0, 0, b'a', 0xff]).unwrap_err(),
            CharsmapError::NotText(1)
        );
    }

    proptest! {
        #[test]
        fn any_map_answers_any_text(bytes in proptest::collection::vec(any::<u8>(), 0..64), units in 0u32..12, text in any::<String>()) {
            let mut map = (units * 4).to_le_bytes().to_vec();
            map.extend(bytes);
            if let Ok(map) = Charsmap::from_bytes(&map)
                && let Some((taken, _)) = map.longest_match(&text)
            {
                prop_assert!(taken > 0 && text.is_char_boundary(taken));
            }
        }
    }
}
