//! Patterns as Python's `re` reads them.
//!
//! The crate fancy-regex knows what Python's patterns know beyond regular languages, look-around and back references; it gives up after a
//! million steps of going back, where Python would go on for days. Two signs mean another thing in Python and are written anew:
//! `$` without "multiline" matches before a line break at the very end too, and `\Z` only at the very end.

use fancy_regex::{Captures, Regex, RegexBuilder};
use node::Result;
use node::memory::ask_bytes;

/// Why a pattern cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PatternError {
    #[error("\"{pattern}\" is no pattern that can be read: {cause}")]
    Unreadable { pattern: String, cause: Box<fancy_regex::Error> },
    #[error("looking for \"{pattern}\" was given up: {cause}")]
    TooLong { pattern: String, cause: Box<fancy_regex::Error> },
    #[error("\"{replacement}\" names the group {group}, which the pattern does not have")]
    NoGroup { replacement: String, group: String },
    #[error("\"{replacement}\" holds {sign}, which means nothing in a replacement")]
    Sign { replacement: String, sign: String },
}

/// How a pattern is read.
#[derive(Clone, Copy, Debug)]
pub struct Flags {
    pub case_insensitive: bool,
    /// `^` and `$` at every line.
    pub multiline: bool,
    /// `.` is a line break too.
    pub dotall: bool,
}

/// A pattern that was read.
pub struct Pattern {
    text: String,
    regex: Regex,
}

impl Pattern {
    /// # Errors
    /// [`PatternError::Unreadable`].
    pub fn new(text: &str, flags: Flags) -> Result<Self, PatternError> {
        let regex = RegexBuilder::new(&translated(text, flags.multiline))
            .case_insensitive(flags.case_insensitive)
            .multi_line(flags.multiline)
            .dot_matches_new_line(flags.dotall)
            .build();
        let regex = regex.map_err(|cause| PatternError::Unreadable {
            pattern: text.to_owned(),
            cause: Box::new(cause),
        })?;
        Ok(Self { text: text.to_owned(), regex })
    }

    /// Groups of a match, the whole as group 0.
    pub fn groups(&self) -> usize {
        self.regex.captures_len()
    }

    /// Each match, from left to right.
    ///
    /// # Errors
    /// [`PatternError::TooLong`], once.
    pub fn matches<'t>(
        &'t self,
        text: &'t str,
    ) -> impl Iterator<Item = Result<Captures<'t>, PatternError>> {
        self.regex.captures_iter(text).map(|found| {
            found.map_err(|cause| PatternError::TooLong {
                pattern: self.text.clone(),
                cause: Box::new(cause),
            })
        })
    }

    /// `text` with the first `count` matches replaced, all of them where it is 0. `\1`, `\g<1>` and `\g<name>` in the replacement are groups,
    /// `\n` and the like what they are in Python.
    ///
    /// # Errors
    /// [`PatternError`], and no memory for the result.
    pub fn replace(&self, text: &str, replacement: &str, count: usize) -> Result<String> {
        let parts = self.template(replacement)?;
        let most = if count == 0 { usize::MAX } else { count };
        // Looked for twice: the places are counted before room for as many replacements is taken.
        let mut places = 0u128;
        for found in self.matches(text).take(most) {
            found?;
            places += 1;
        }
        let sizes = parts.iter().map(|part| match part {
            Part::Text(text) => places * text.len() as u128,
            // Places do not overlap, so all of them together are no longer than the text.
            Part::Group(_) => text.len() as u128,
        });
        ask_bytes("the text", text.len() as u128 + sizes.sum::<u128>(), "")?;

        let (mut out, mut end) = (String::new(), 0);
        for found in self.matches(text).take(most) {
            let found = found?;
            let Some(whole) = found.get(0) else { continue };
            out.push_str(&text[end..whole.start()]);
            for part in &parts {
                match part {
                    Part::Text(text) => out.push_str(text),
                    // A group that took no part is nothing.
                    Part::Group(group) => {
                        out.push_str(found.get(*group).map_or("", |part| part.as_str()));
                    }
                }
            }
            end = whole.end();
        }
        out.push_str(&text[end..]);
        Ok(out)
    }

    fn template(&self, replacement: &str) -> Result<Vec<Part>, PatternError> {
        let sign = |sign: &str| PatternError::Sign {
            replacement: replacement.to_owned(),
            sign: sign.to_owned(),
        };
        let (mut parts, mut plain) = (Vec::new(), String::new());
        let mut rest = replacement;
        while let Some(at) = rest.find('\\') {
            plain.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            let mut chars = rest.chars();
            let Some(c) = chars.next() else { return Err(sign("a single \\ at its end")) };
            let (group, after) = match c {
                'g' => {
                    let name = rest[1..].strip_prefix('<').and_then(|rest| rest.split_once('>'));
                    let (name, after) = name.ok_or_else(|| sign("\\g without <name>"))?;
                    (Some(name), after)
                }
                // One digit or two; \0 is a character in Python.
                '1'..='9' => {
                    let two = rest.as_bytes().get(1).is_some_and(u8::is_ascii_digit);
                    let (name, after) = rest.split_at(if two { 2 } else { 1 });
                    (Some(name), after)
                }
                _ => (None, chars.as_str()),
            };
            match (group, c) {
                (Some(name), _) => {
                    let number = match name.parse::<usize>() {
                        Ok(number) => Some(number).filter(|number| *number < self.groups()),
                        Err(_) => self.regex.capture_names().position(|known| known == Some(name)),
                    };
                    let number = number.ok_or_else(|| PatternError::NoGroup {
                        replacement: replacement.to_owned(),
                        group: name.to_owned(),
                    })?;
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                    parts.push(Part::Group(number));
                }
                (None, 'n') => plain.push('\n'),
                (None, 't') => plain.push('\t'),
                (None, 'r') => plain.push('\r'),
                (None, 'f') => plain.push('\u{c}'),
                (None, 'v') => plain.push('\u{b}'),
                (None, 'a') => plain.push('\u{7}'),
                (None, '0') => plain.push('\0'),
                (None, '\\') => plain.push('\\'),
                (None, c) if c.is_ascii_alphabetic() => return Err(sign(&format!("\\{c}"))),
                (None, c) => plain.extend(['\\', c]),
            }
            rest = after;
        }
        plain.push_str(rest);
        parts.push(Part::Text(plain));
        Ok(parts)
    }
}

enum Part {
    Text(String),
    Group(usize),
}

/// A pattern of Python's with `$` and `\Z` as the crate understands them.
fn translated(pattern: &str, multiline: bool) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    let mut set = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('Z') if !set => out.push_str("\\z"),
                Some(next) => out.extend(['\\', next]),
                None => out.push('\\'),
            },
            '[' if !set => {
                set = true;
                out.push('[');
                // A ] that comes first, or after ^, is one of the set.
                let mut rest = chars.clone();
                let mut next = rest.next();
                if next == Some('^') {
                    out.push('^');
                    chars = rest.clone();
                    next = rest.next();
                }
                if next == Some(']') {
                    out.push_str("\\]");
                    chars = rest;
                }
            }
            // Python knows no sets within sets.
            '[' => out.push_str("\\["),
            '&' | '~' if set => out.extend(['\\', c]),
            ']' => {
                set = false;
                out.push(']');
            }
            '$' if !set && !multiline => out.push_str("(?=\\n?\\z)"),
            c => out.push(c),
        }
    }
    out
}
