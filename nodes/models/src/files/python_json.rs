//! JSON as Python writes it: diffusers' files may hold `-Infinity` (`lambda_min_clipped` of a
//! scheduler) and `NaN`, which are not JSON.

use kosmograph_python_json::{not_finite, outside_strings};
use serde_json::Value;

use crate::error::{Error, Result};

/// Parses JSON text in which NaN, Infinity and -Infinity count as null; `file` is what errors call
/// it.
///
/// # Errors
/// The text is not JSON besides.
pub fn parse(text: &str, file: &str) -> Result<Value> {
    // Editors of Windows put a byte order mark before what they save.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let nulls = |rest: &str| Some((not_finite(rest)?.len(), "null".into()));
    serde_json::from_str(&outside_strings(text, nulls))
        .map_err(|error| Error::Config { file: file.to_owned(), problem: error.to_string() })
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
        assert_eq!(parse("\u{feff}{\"a\": NaN}", "x").expect("parses"), json!({"a": null}));
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
