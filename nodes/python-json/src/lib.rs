//! JSON as Python's `json` writes it: NaN, Infinity and -Infinity stand bare in it, and are no JSON. Workflows have them, and so
//! do diffusers' configurations.

use std::borrow::Cow;

/// The numbers that Python writes bare.
pub const NOT_FINITE: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

/// The word of [`NOT_FINITE`] that `text` begins with.
pub fn not_finite(text: &str) -> Option<&'static str> {
    NOT_FINITE.into_iter().find(|word| text.starts_with(word))
}

/// `text` with what `replace` finds outside of its strings. It is given the rest of the text from each place on, and answers
/// with the length in bytes of what it takes and with what stands there instead.
pub fn outside_strings(
    text: &str,
    mut replace: impl FnMut(&str) -> Option<(usize, Cow<'static, str>)>,
) -> Cow<'_, str> {
    let mut out: Option<String> = None;
    let mut rest = text;
    // Where `rest` begins, and how far `text` is in `out`.
    let (mut at, mut written) = (0, 0);
    while let Some(next) = rest.chars().next() {
        let length = if next == '"' {
            string_length(rest)
        } else if let Some((taken, instead)) = replace(rest) {
            let out = out.get_or_insert_with(|| String::with_capacity(text.len()));
            out.push_str(&text[written..at]);
            out.push_str(&instead);
            written = at + taken;
            taken
        } else {
            next.len_utf8()
        };
        at += length;
        rest = &rest[length..];
    }
    match out {
        Some(mut out) => {
            out.push_str(&text[written..]);
            out.into()
        }
        None => text.into(),
    }
}

/// The bytes of the JSON string that `text` begins with, quotes included; all of `text` where it does not end.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => (),
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nulls(text: &str) -> Cow<'_, str> {
        outside_strings(text, |rest| Some((not_finite(rest)?.len(), "null".into())))
    }

    #[test]
    fn strings_stay_what_they_are() {
        let text = r#"{"NaN \" Infinity": [NaN, -Infinity, -1, Infinity, "-Infinity"], "é": NaN}"#;
        let expected = r#"{"NaN \" Infinity": [null, null, -1, null, "-Infinity"], "é": null}"#;
        assert_eq!(nulls(text), expected);
        assert!(matches!(nulls(r#"{"a": [1, "NaN"]}"#), Cow::Borrowed(_)));
        assert_eq!(nulls("\"NaN \\"), "\"NaN \\");
    }

    proptest! {
        #[test]
        fn any_text_is_an_answer(text in "[\"\\\\a-zN{}:, ∞é0-9]*") {
            let _ = nulls(&text);
            prop_assert_eq!(outside_strings(&text, |_| None), text.as_str());
        }
    }
}
