//! The little of YAML that files of paths need: texts, lists and maps, each with its line.
//!
//! `saphyr-parser` reads it: kept up, YAML 1.2, plain Rust. Its events are made a tree here, and not
//! by the crate around it, `saphyr`, for whose hash maps half the workspace would be built anew; so
//! texts stay as they are written (a folder may be called 2024), and aliases, of which a few lines
//! make a tree of any size, are refused.

use saphyr_parser::{Event, Parser, ScalarStyle};

/// Lists and maps inside each other: a file of paths has three.
const DEEPEST: usize = 16;

pub(super) struct Node {
    /// Counted from 1.
    pub line: usize,
    pub data: Data,
}

pub(super) enum Data {
    /// `plain` without quotes, so that `~` may mean nothing.
    Text {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

impl Node {
    pub fn is_null(&self) -> bool {
        let null = |text: &str| matches!(text, "" | "~" | "null" | "Null" | "NULL");
        matches!(&self.data, Data::Text { text, plain: true } if null(text))
    }

    pub fn as_text(&self) -> Option<&str> {
        match &self.data {
            Data::Text { text, .. } if !self.is_null() => Some(text),
            _ => None,
        }
    }

    pub fn as_map(&self) -> Option<&[(Node, Node)]> {
        match &self.data {
            Data::Map(pairs) => Some(pairs),
            _ => None,
        }
    }
}

/// A list or a map that is not at its end yet; of a map, keys and values in turn.
struct Open {
    line: usize,
    items: Vec<Node>,
    is_map: bool,
}

/// The documents in a text, of which there is one, or none where all is comment.
///
/// # Errors
/// What is wrong, with its line.
pub(super) fn documents(text: &str) -> Result<Vec<Node>, String> {
    let mut documents = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) =
            event.map_err(|error| format!("line {}: {}", error.marker().line(), error.info()))?;
        let line = span.start.line();
        let is_map = matches!(event, Event::MappingStart(..));
        let node = match event {
            Event::Scalar(text, style, ..) => {
                let plain = style == ScalarStyle::Plain;
                Node { line, data: Data::Text { text: text.into_owned(), plain } }
            }
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                if open.len() == DEEPEST {
                    return Err(format!("line {line}: it is nested more than {DEEPEST} deep"));
                }
                open.push(Open { line, items: Vec::new(), is_map });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open { line, items, is_map: true }) => {
                    Node { line, data: Data::Map(pairs(items)?) }
                }
                Some(Open { line, items, .. }) => Node { line, data: Data::List(items) },
                None => continue,
            },
            Event::Alias(_) => return Err(format!("line {line}: an alias (*) is not read here")),
            _ => continue,
        };
        match open.last_mut() {
            Some(around) => around.items.push(node),
            None => documents.push(node),
        }
    }
    Ok(documents)
}

fn pairs(items: Vec<Node>) -> Result<Vec<(Node, Node)>, String> {
    let mut pairs: Vec<(Node, Node)> = Vec::with_capacity(items.len() / 2);
    let mut names = std::collections::HashSet::new();
    let mut items = items.into_iter();
    while let (Some(key), Some(value)) = (items.next(), items.next()) {
        if let Some(name) = key.as_text()
            && !names.insert(name.to_owned())
        {
            return Err(format!("line {}: the key {name:?} stands twice", key.line));
        }
        pairs.push((key, value));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_take_all_memory_is_refused() {
        let wrong = |text: &str| documents(text).err().unwrap_or_default();
        assert!(wrong("a: &a [x]\nb: *a\n").contains("line 2: an alias"));
        let nested = |depth| format!("{}x{}", "[".repeat(depth), "]".repeat(depth));
        assert!(wrong(&nested(17)).contains("more than 16 deep"), "{}", wrong(&nested(17)));
        assert!(documents(&nested(16)).is_ok() && !wrong(&nested(10_000)).is_empty());
    }

    #[test]
    fn texts_stay_as_they_are_written() {
        let read = documents("a: 2024\nb: ~\nc: '~'\nd: |\n  x\n  y\n").unwrap();
        let map = read[0].as_map().unwrap();
        let texts: Vec<_> = map.iter().map(|(_, value)| value.as_text()).collect();
        assert_eq!(texts, [Some("2024"), None, Some("~"), Some("x\ny\n")]);
        assert_eq!(map.iter().map(|(key, _)| key.line).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }
}
