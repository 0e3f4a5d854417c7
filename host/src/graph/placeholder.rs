//! Placeholders: what a program was to fill in before the workflow is run, and did not.
//!
//! `%seed%`, `{{seed}}`, `${seed}`, `{seed}`, `<seed>`, `[[seed]]` and `__RANDOM_INT__`, as templates and
//! API clients write them.

/// The longest name of a placeholder, in bytes.
const LONGEST: usize = 64;
/// What begins and ends one, the longer signs first.
const SIGNS: [(&str, &str); 7] =
    [("{{", "}}"), ("[[", "]]"), ("${", "}"), ("__", "__"), ("%", "%"), ("{", "}"), ("<", ">")];

/// The length of the placeholder that `text` begins with, in bytes.
pub(super) fn length(text: &str) -> Option<usize> {
    SIGNS.iter().find_map(|(begin, end)| {
        let inside = text.strip_prefix(begin)?;
        let length = inside.find(end).filter(|length| (1..=LONGEST).contains(length))?;
        let name = &inside[..length];
        // Two signs may stand apart from the name, one may not: 5 < 6 > 4.
        let name = if begin.len() > 1 { name.trim() } else { name };
        let of_names = |c: char| c.is_alphanumeric() || "_-.: ".contains(c);
        let is_name = name.chars().all(of_names) && name.contains(char::is_alphabetic);
        let is_name = is_name && !name.starts_with(['_', ' ']) && !name.ends_with(' ');
        is_name.then_some(begin.len() + length + end.len())
    })
}

/// The first placeholder in `text`.
pub fn placeholder(text: &str) -> Option<&str> {
    let begins = |(at, _): &(usize, char)| text[*at..].starts_with(['{', '[', '$', '_', '%', '<']);
    let mut places = text.char_indices().filter(begins);
    places.find_map(|(at, _)| Some(&text[at..at + length(&text[at..])?]))
}

#[cfg(test)]
mod tests {
    use super::placeholder;

    #[test]
    fn placeholders_are_known_by_their_signs() {
        for text in
            ["%seed%", "{{seed}}", "{{ my.seed }}", "${SEED}", "{seed}", "<seed>", "[[a b]]"]
        {
            assert_eq!(placeholder(text), Some(text));
        }
        assert_eq!(placeholder("__RANDOM_INT__"), Some("__RANDOM_INT__"));
        assert_eq!(placeholder("models/%model%.safetensors"), Some("%model%"));
        for text in
            ["", "50%", "100% of 20%", "a_b__c", "{}", "{{}}", "____", "<", "5 < 6 > 4", "[1]"]
        {
            assert_eq!(placeholder(text), None, "{text}");
        }
    }
}
