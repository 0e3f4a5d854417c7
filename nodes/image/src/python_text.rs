//! What Python's `str` does with texts, where Rust's does it otherwise.

/// The part of `text` from character `start` to `end`, which count from the end where they are negative, as `text[start:end]`.
pub fn slice(text: &str, start: i64, end: i64) -> &str {
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let clamped = |index: i64| match index < 0 {
        true => index.saturating_add(length).max(0),
        false => index.min(length),
    };
    let (start, end) = (clamped(start), clamped(end));
    if start >= end {
        return "";
    }
    let byte = |index: i64| {
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte)
    };
    &text[byte(start)..byte(end)]
}

/// Whether `str.strip` takes the character away: white space, and four separators of ASCII.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The first letter large, the others small: `str.capitalize`.
pub fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| large(first) + &chars.as_str().to_lowercase())
}

/// The first letter of each word large, the others small, where whatever is no letter with two cases ends a word: `str.title`.
pub fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        match inside {
            true => out.extend(c.to_lowercase()),
            false => out.push_str(&large(c)),
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

/// A letter as the first of a word: ß is Ss there.
fn large(c: char) -> String {
    let mut chars = c.to_uppercase();
    let first = chars.next().into_iter();
    first.chain(chars.flat_map(char::to_lowercase)).collect()
}

/// A number as `str(float)` writes it: the fewest digits that read as the same number, with an exponent below 1e-4 and from 1e16 on.
pub fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf".into() } else { "-inf".into() };
    }
    if number != 0.0 && !(1e-4..1e16).contains(&number.abs()) {
        // Rust writes 1e-7, Python 1e-07.
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{number:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    // What is expected here was printed by Python 3.11.

    #[test]
    fn parts_of_texts() {
        let cases = [
            (0, 3, "Käs"),
            (1, -1, "äse"),
            (-3, 100, "se🧀"),
            (3, 1, ""),
            (-100, 2, "Kä"),
            (i64::MIN, i64::MAX, "Käse🧀"),
            (5, 9, ""),
        ];
        for (start, end, expected) in cases {
            assert_eq!(slice("Käse🧀", start, end), expected, "{start}:{end}");
        }
    }

    #[test]
    fn cases_of_letters() {
        assert_eq!(
            title("they're bill's 3rd ÄPFEL ß-straße"),
            "They'Re Bill'S 3Rd Äpfel Ss-Straße"
        );
        assert_eq!(capitalised("äPFEL Und BIRNEN"), "Äpfel und birnen");
        assert_eq!(capitalised("ßa"), "Ssa");
        assert_eq!(capitalised(""), "");
    }

    #[test]
    fn numbers() {
        let cases = [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (1e15, "1000000000000000.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (-0.0, "-0.0"),
            (1e300, "1e+300"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
            (2.5, "2.5"),
        ];
        for (number, expected) in cases {
            assert_eq!(float(number), expected);
        }
    }
}
