//! The weights in a prompt, as ComfyUI reads them: `(word:1.2)`, `(word)` for 1.1, nested brackets
//! multiplied, `\(` and `\)` for the signs themselves.
//!
//! Every text is a prompt: what is unbalanced, or no number, is read as it stands. People's saved
//! prompts hold such slips, and the same slip has to give the same picture, so the readings of
//! unbalanced brackets below are ComfyUI's in each case. One pass, without recursion: a prompt comes
//! from a stranger and may be a million brackets.

use std::ops::Range;

/// A stretch of a prompt in which all words have one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Without the brackets and numbers that made the weight, and with `\(` as `(`.
    pub text: String,
    /// 1 for plain text. May be 0 or negative; may overflow under a thousand brackets.
    pub weight: f64,
}

/// What an unweighted bracket multiplies by.
const BRACKET: f64 = 1.1;
/// The longest text that is read as a number. `:` and more digits than this is a text.
const LONGEST_NUMBER: usize = 64;

/// The prompt's segments in order; empty ones are left out.
pub fn segments(prompt: &str) -> Vec<Segment> {
    let marked = Marked::new(prompt);
    let mut segments = Vec::new();
    // What is still to be read, the next one last.
    let mut open = vec![Item::Group(0..marked.text.len(), 1.0)];
    while let Some(item) = open.pop() {
        match item {
            Item::Text(range, weight) if !range.is_empty() => {
                segments.push(Segment { text: marked.text[range].to_owned(), weight });
            }
            Item::Text(..) => {}
            Item::Group(range, weight) => {
                let items = marked.items(range, weight);
                open.extend(items.into_iter().rev());
            }
        }
    }
    segments
}

/// A part of the marked text, in bytes, and the weight around it.
#[derive(Debug)]
enum Item {
    Text(Range<usize>, f64),
    /// Has brackets that count.
    Group(Range<usize>, f64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mark {
    Text,
    /// A bracket that counts, and where its partner is.
    Open(Option<usize>),
    Close,
}

/// A prompt whose escapes are resolved, with a mark for each byte.
struct Marked {
    text: String,
    marks: Vec<Mark>,
    /// For each byte, where the last `:` up to it is.
    colons: Vec<Option<usize>>,
}

impl Marked {
    fn new(prompt: &str) -> Marked {
        let mut text = String::with_capacity(prompt.len());
        let mut marks = Vec::with_capacity(prompt.len());
        let mut unclosed = Vec::new();
        let mut signs = prompt.chars().peekable();
        while let Some(sign) = signs.next() {
            let escaped = sign == '\\' && matches!(signs.peek(), Some('(' | ')'));
            let sign = if escaped { signs.next().unwrap_or(sign) } else { sign };
            let mark = match sign {
                '(' if !escaped => {
                    unclosed.push(text.len());
                    Mark::Open(None)
                }
                ')' if !escaped => {
                    if let Some(partner) = unclosed.pop() {
                        marks[partner] = Mark::Open(Some(text.len()));
                    }
                    Mark::Close
                }
                _ => Mark::Text,
            };
            text.push(sign);
            marks.resize(text.len(), mark);
        }
        let mut last = None;
        let colon = |(i, byte)| {
            if byte == b':' {
                last = Some(i);
            }
            last
        };
        let colons = text.bytes().enumerate().map(colon).collect();
        Marked { text, marks, colons }
    }

    /// The texts and groups of a range on its outermost level.
    fn items(&self, range: Range<usize>, weight: f64) -> Vec<Item> {
        let mut items = Vec::new();
        let end = range.end;
        let (mut start, mut i) = (range.start, range.start);
        // Below 0 behind a `)` that closes nothing: the next `(` is a sign like any other, and only
        // levels that.
        let mut level = 0i64;
        while i < end {
            match self.marks[i] {
                Mark::Open(partner) if level == 0 => {
                    items.push(Item::Text(start..i, weight));
                    match partner.filter(|partner| *partner < end) {
                        Some(partner) => {
                            items.push(self.group(i + 1..partner, weight));
                            (start, i) = (partner + 1, partner + 1);
                        }
                        // Never closed: the rest is a group if it happens to end in a bracket.
                        None if end - i >= 2 && self.marks[end - 1] == Mark::Close => {
                            items.push(self.group(i + 1..end - 1, weight));
                            (start, i) = (end, end);
                        }
                        None => {
                            (start, i) = (i, end);
                        }
                    }
                    continue;
                }
                Mark::Open(_) => level += 1,
                Mark::Close => level -= 1,
                Mark::Text => {}
            }
            i += 1;
        }
        items.push(Item::Text(start..end, weight));
        items
    }

    /// The inside of a pair of brackets: a number behind its last colon is its weight, whatever the
    /// weight around it.
    fn group(&self, inside: Range<usize>, weight: f64) -> Item {
        let colon = inside.end.checked_sub(1).and_then(|last| self.colons[last]);
        if let Some(colon) = colon.filter(|colon| *colon > inside.start)
            && let Some(number) = number(&self.text[colon + 1..inside.end])
        {
            return Item::Group(inside.start..colon, number);
        }
        Item::Group(inside, weight * BRACKET)
    }
}

/// A number as Python reads one, `1.2`, `.5`, ` 1_0e-1 `; what is not finite in f32 is none.
fn number(text: &str) -> Option<f64> {
    let text = text.get(..LONGEST_NUMBER.min(text.len())).filter(|short| *short == text)?.trim();
    let digits = text.replace('_', "");
    let between_digits = text.split('_').count() == 1
        || text.split('_').collect::<Vec<_>>().windows(2).all(|pair| {
            pair[0].ends_with(|c: char| c.is_ascii_digit())
                && pair[1].starts_with(|c: char| c.is_ascii_digit())
        });
    let number = digits.parse::<f64>().ok()?;
    (between_digits && (number as f32).is_finite()).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(prompt: &str) -> Vec<(String, f64)> {
        segments(prompt).into_iter().map(|segment| (segment.text, segment.weight)).collect()
    }

    fn expect(prompt: &str, expected: &[(&str, f64)]) {
        let expected: Vec<_> = expected.iter().map(|(text, w)| ((*text).to_owned(), *w)).collect();
        assert_eq!(read(prompt), expected, "{prompt:?}");
    }

    #[test]
    fn weights_are_read() {
        expect("a cat", &[("a cat", 1.0)]);
        expect("", &[]);
        expect("()", &[]);
        expect("a (cat) b", &[("a ", 1.0), ("cat", 1.1), (" b", 1.0)]);
        expect("(cat:1.2)", &[("cat", 1.2)]);
        expect("((cat))", &[("cat", 1.1 * 1.1)]);
        expect("((cat:0.5))", &[("cat", 0.5)]);
        expect("(a (b):1.5)", &[("a ", 1.5), ("b", 1.5 * 1.1)]);
        expect("(a (b:0.7) c)", &[("a ", 1.1), ("b", 0.7), (" c", 1.1)]);
        expect("(one:two:1.3)", &[("one:two", 1.3)]);
        expect("(a: 1.3 )(b:-1)(c:0)", &[("a", 1.3), ("b", -1.0), ("c", 0.0)]);
        expect("(a:.5)(b:2.)(c:1e-1)(d:+1_0)", &[("a", 0.5), ("b", 2.0), ("c", 0.1), ("d", 10.0)]);
    }

    #[test]
    fn what_is_no_number_is_text() {
        expect("(cat:1.2.3)", &[("cat:1.2.3", 1.1)]);
        expect("(cat:)", &[("cat:", 1.1)]);
        expect("(:1.2)", &[(":1.2", 1.1)]);
        expect("(12:30)", &[("12", 30.0)]);
        expect("(a:1__0)(b:_1)(c:1_)", &[("a:1__0", 1.1), ("b:_1", 1.1), ("c:1_", 1.1)]);
        // A picture of infinities would be black: these stay words.
        expect("(to infinity:inf)", &[("to infinity:inf", 1.1)]);
        expect("(a:nan)(b:1e39)", &[("a:nan", 1.1), ("b:1e39", 1.1)]);
        expect("(a:é)", &[("a:é", 1.1)]);
    }

    #[test]
    fn escaped_brackets_are_signs() {
        expect(r"cat \(animal\)", &[("cat (animal)", 1.0)]);
        expect(r"(cat \(animal\):1.3)", &[("cat (animal)", 1.3)]);
        expect(r"(smile :\))", &[("smile :)", 1.1)]);
        expect(r"(a:1.2\))", &[("a:1.2)", 1.1)]);
        expect(r"a\b\\(c)", &[(r"a\b\(c)", 1.0)]);
    }

    #[test]
    fn unbalanced_brackets_are_comfyuis() {
        expect("(a", &[("(a", 1.0)]);
        expect("b (a (c)d", &[("b ", 1.0), ("(a (c)d", 1.0)]);
        // The first bracket takes the last one, and what it opened on the way stays open.
        expect("(a (b)", &[("a ", 1.1), ("(b", 1.1)]);
        expect("(a (b:1.3)", &[("a ", 1.3), ("(b", 1.3)]);
        expect("((a)", &[("(a", 1.1)]);
        expect("a) b", &[("a) b", 1.0)]);
        expect("a) (b:1.2) c", &[("a) (b:1.2) c", 1.0)]);
        expect("a) ((b:1.2)) c", &[("a) (", 1.0), ("b", 1.2), (") c", 1.0)]);
        expect(":) (cat:1.2)", &[(":) (cat:1.2)", 1.0)]);
    }

    #[test]
    fn a_million_brackets_take_no_time_and_no_stack() {
        let count = 500_000;
        let nested = "(".repeat(count) + "a" + &")".repeat(count);
        assert_eq!(read(&nested), [("a".to_owned(), f64::INFINITY)]);
        assert_eq!(read(&"(".repeat(count)).len(), 1);
        assert_eq!(read(&"()".repeat(count)).len(), 0);
        let digits = "(".repeat(count) + "a:" + &"1".repeat(count) + &")".repeat(count);
        assert_eq!(read(&digits).len(), 1);
    }

    /// The definition, level by level: the outermost brackets divide a text, and the inside of each
    /// is read again.
    fn by_definition(text: &[char], weight: f64, out: &mut Vec<(String, f64)>) {
        let mut items: Vec<&[char]> = Vec::new();
        let (mut start, mut level) = (0, 0i64);
        for (i, sign) in text.iter().enumerate() {
            match sign {
                '(' => {
                    if level == 0 {
                        items.push(&text[start..i]);
                        start = i;
                    }
                    level += 1;
                }
                ')' => {
                    level -= 1;
                    if level == 0 {
                        items.push(&text[start..=i]);
                        start = i + 1;
                    }
                }
                _ => {}
            }
        }
        items.push(&text[start..]);
        for item in items.into_iter().filter(|item| !item.is_empty()) {
            if item.len() < 2 || item[0] != '(' || item[item.len() - 1] != ')' {
                out.push((item.iter().collect(), weight));
                continue;
            }
            let inside = &item[1..item.len() - 1];
            let colon = inside.iter().rposition(|sign| *sign == ':').filter(|colon| *colon > 0);
            let weighted = colon.and_then(|colon| {
                let text: String = inside[colon + 1..].iter().collect();
                text.trim().parse::<f64>().ok().map(|weight| (&inside[..colon], weight))
            });
            let (inside, weight) = weighted.unwrap_or((inside, weight * 1.1));
            by_definition(inside, weight, out);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_prompt(prompt in any::<String>()) {
            segments(&prompt);
        }

        #[test]
        fn one_pass_reads_as_the_definition(prompt in "[()ab:1. ]{0,24}") {
            let mut expected = Vec::new();
            by_definition(&prompt.chars().collect::<Vec<_>>(), 1.0, &mut expected);
            prop_assert_eq!(read(&prompt), expected);
        }

        #[test]
        fn nested_brackets_multiply(text in "[a-z ]{1,12}", depth in 0usize..12) {
            let prompt = "(".repeat(depth) + &text + &")".repeat(depth);
            let weight = (0..depth).fold(1.0, |weight, _| weight * BRACKET);
            prop_assert_eq!(read(&prompt), [(text, weight)]);
        }

        #[test]
        fn escaped_text_comes_back(prompt in r"[()a:1\n é]{1,24}") {
            let escaped = prompt.replace('(', r"\(").replace(')', r"\)");
            prop_assert_eq!(read(&escaped), [(prompt, 1.0)]);
        }

        #[test]
        fn the_words_are_kept(words in prop::collection::vec(("[a-z]{1,4}", 0usize..4), 0..8)) {
            let prompt: String = words
                .iter()
                .map(|(word, depth)| "(".repeat(*depth) + word + &")".repeat(*depth))
                .collect();
            let together: String = segments(&prompt).into_iter().map(|s| s.text).collect();
            let expected: String = words.into_iter().map(|(word, _)| word).collect();
            prop_assert_eq!(together, expected);
        }
    }
}
