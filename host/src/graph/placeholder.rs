//! Placeholders: what a program was to fill in before the workflow is run, and did not.
//!
//! `%seed%`, `{{seed}}`, `{{ seed | int }}`, `${seed}`, `$(seed)`, `{seed}`, `<seed>`, `<%= seed %>`,
//! `[[seed]]`, `%(seed)s` and `__RANDOM_INT__`, as templates and API clients write them; `$seed`, `#seed#`,
//! `@seed@` and `[seed]` only where nothing stands beside them, as they may be parts of a name.

/// The longest name of a placeholder, in bytes.
const LONGEST: usize = 64;
/// What begins and ends one, the longer signs first, and what may stand in it besides a name.
const SIGNS: [(&str, &str, &str); 15] = [
    ("{{{", "}}}", FILTER),
    ("{{", "}}", FILTER),
    ("<%=", "%>", FILTER),
    ("<<", ">>", ""),
    ("[[", "]]", ""),
    ("${", "}", ""),
    ("$(", ")", ""),
    ("%(", ")s", ""),
    ("%(", ")d", ""),
    ("%(", ")i", ""),
    ("%(", ")f", ""),
    ("__", "__", ""),
    ("%", "%", ""),
    ("{", "}", ""),
    ("<", ">", ""),
];
/// Of what is done to a value: `| default(3)`.
const FILTER: &str = "|(),";

/// The length of the placeholder that `text` begins with, in bytes.
fn length(text: &str) -> Option<usize> {
    SIGNS.iter().find_map(|(begin, end, others)| {
        let inside = text.strip_prefix(begin)?;
        let length = inside.find(end).filter(|length| (1..=LONGEST).contains(length))?;
        let name = &inside[..length];
        // Two signs may stand apart from the name, one may not: 5 < 6 > 4.
        let name = if begin.len() > 1 { name.trim() } else { name };
        let of_names = |c: char| is_of_names(c) || others.contains(c);
        let is_name = name.chars().all(of_names) && name.contains(char::is_alphabetic);
        let is_name = is_name && !name.starts_with(['_', ' ']) && !name.ends_with(' ');
        is_name.then_some(begin.len() + length + end.len())
    })
}

/// As [`length`], where the text is JSON, in which a `$` stands for nothing else.
pub(super) fn bare_length(text: &str) -> Option<usize> {
    length(text).or_else(|| {
        let name = text.strip_prefix('$')?;
        let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
        let is_name = (1..=LONGEST).contains(&end) && name[..end].contains(char::is_alphabetic);
        is_name.then_some(1 + end)
    })
}

/// The first placeholder in `text`.
pub fn placeholder(text: &str) -> Option<&str> {
    if is_alone(text.trim()) {
        return Some(text.trim());
    }
    let begins = |(at, _): &(usize, char)| text[*at..].starts_with(['{', '[', '$', '_', '%', '<']);
    let mut places = text.char_indices().filter(begins);
    places.find_map(|(at, _)| Some(&text[at..at + length(&text[at..])?]))
}

/// Whether `text` is one of the placeholders that are known by standing alone.
fn is_alone(text: &str) -> bool {
    let between = |begin: char, end: char| text.strip_prefix(begin)?.strip_suffix(end);
    let name = between('#', '#')
        .or_else(|| between('@', '@'))
        .or_else(|| between('[', ']'))
        .or_else(|| between('$', '$'))
        .or_else(|| text.strip_prefix('$'));
    name.is_some_and(|name| {
        name.starts_with(char::is_alphabetic)
            && name.len() <= LONGEST
            && name.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c))
    })
}

fn is_of_names(c: char) -> bool {
    c.is_alphanumeric() || "_-.: ".contains(c)
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
        for text in [
            "__RANDOM_INT__",
            "{{{seed}}}",
            "{{seed | int}}",
            "{{ K.seed|default(3) }}",
            "<%= seed %>",
        ] {
            assert_eq!(placeholder(text), Some(text));
        }
        for text in
            ["$(seed)", "%(seed)s", "%(cfg)f", "<<seed>>", "$seed", "$SEED$", "#seed#", "@seed@"]
        {
            assert_eq!(placeholder(text), Some(text));
        }
        assert_eq!(placeholder(" [seed] "), Some("[seed]"));
        assert_eq!(placeholder("models/%model%.safetensors"), Some("%model%"));
        for text in
            ["", "50%", "100% of 20%", "a_b__c", "{}", "{{}}", "____", "<", "5 < 6 > 4", "[1]"]
        {
            assert_eq!(placeholder(text), None, "{text}");
        }
        // Parts of names.
        for text in ["[a] b.png", "cat #3#.png", "5$", "$", "$5", "mail@home.png", "a$b.png"] {
            assert_eq!(placeholder(text), None, "{text}");
        }
    }
}
