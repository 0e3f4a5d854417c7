//! JSON as Python writes it: diffusers' files may hold `-Infinity` (`lambda_min_clipped` of a
//! scheduler) and `NaN`, which are not JSON.

use serde_json::Value;

use crate::error::{Error, Result};

/// Parses JSON text in which NaN, Infinity and -Infinity count as null; `file` is what errors call
/// it.
///
/// # Errors
/// The text is not JSON besides.
pub fn parse(text: &str, file: &str) -> Result<Value> {
    serde_json::from_str(&without_non_numbers(text))
        .map_err(|error| Error::Config { file: file.to_owned(), problem: error.to_string() })
}

fn without_non_numbers(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| rest.starts_with(word));
        let length = match (next, word) {
            // Strings stay what they are.
            ('"', _) => string_length(rest),
            (_, Some(word)) => {
                out.push_str("null");
                rest = &rest[word.len()..];
                continue;
            }
            _ => next.len_utf8(),
        };
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out
}

/// The length of the string literal that `text` begins with, quotes included; all of `text` where it
/// does not end.
fn string_length(text: &str) -> usize {
    let mut is_escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return i + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn non_numbers_are_null_but_not_in_strings() {
        let text = r#"{"a": -Infinity, "b": [NaN, Infinity, 1], "NaN \" Infinity": "-Infinity"}"#;
        let expected = json!({"a": null, "b": [null, null, 1], "NaN \" Infinity": "-Infinity"});
        assert_eq!(parse(text, "x").expect("parses"), expected);
        assert!(parse("{", "some.json").unwrap_err().to_string().contains("some.json"));
    }

    proptest! {
        #[test]
        fn any_text_is_an_answer(text in "\\PC*") {
            let _ = parse(&text, "x");
        }

        #[test]
        fn json_stays_what_it_is(text in "[\"\\\\a-zN{}:, ∞0-9]*") {
            let value = json!({ text.clone(): [text, 1.5, null] });
            prop_assert_eq!(parse(&value.to_string(), "x").expect("parses"), value);
        }
    }
}
