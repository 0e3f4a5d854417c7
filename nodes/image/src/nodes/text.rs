//! Nodes that work on texts: String…, Case Converter, Regex…

use fancy_regex::Captures;
use node::memory::ask_bytes;
use node::{Context, Error, Inputs, Node, Result, outputs};

use crate::python_text::{capitalised, is_space, slice, title};
use crate::regex::{Flags, Pattern};
use node::plain::{Text, Truth, Whole};

/// Joins two texts.
#[derive(Inputs)]
#[node(category = "utils/string")]
pub struct StringConcatenate {
    #[widget(default = "", multiline)]
    pub string_a: String,
    #[widget(default = "", multiline)]
    pub string_b: String,
    /// What comes between them.
    #[widget(default = "")]
    pub delimiter: String,
}

impl Node for StringConcatenate {
    outputs![string: Text];

    fn run(self, _cx: &Context) -> Result<Text> {
        let bytes = self.string_a.len() + self.delimiter.len() + self.string_b.len();
        ask_bytes("the text", bytes as u128, "")?;
        Ok(Text(self.string_a + &self.delimiter + &self.string_b))
    }
}

/// A part of a text.
#[derive(Inputs)]
#[node(category = "utils/string")]
pub struct StringSubstring {
    #[widget(default = "", multiline)]
    pub string: String,
    /// The first character, counted from 0, or from the end where it is negative.
    #[widget(default = 0)]
    pub start: i64,
    /// The character behind the last one.
    #[widget(default = 0)]
    pub end: i64,
}

impl Node for StringSubstring {
    outputs![string: Text];

    fn run(self, _cx: &Context) -> Result<Text> {
        Ok(Text(slice(&self.string, self.start, self.end).to_owned()))
    }
}

/// How many characters a text has.
#[derive(Inputs)]
#[node(category = "utils/string")]
pub struct StringLength {
    #[widget(default = "", multiline)]
    pub string: String,
}

impl Node for StringLength {
    outputs![length: Whole];

    fn run(self, _cx: &Context) -> Result<Whole> {
        Ok(Whole::of(self.string.chars().count()))
    }
}

/// A text in large or small letters.
#[derive(Inputs)]
#[node(category = "utils/string")]
pub struct CaseConverter {
    #[widget(default = "", multiline)]
    pub string: String,
    /// Capitalize: the first letter of the text large; Title Case: of each word.
    #[widget(default = "UPPERCASE", choices = ["UPPERCASE", "lowercase", "Capitalize", "Title Case"])]
    pub mode: String,
}

impl Node for CaseConverter {
    outputs![string: Text];

    fn run(self, _cx: &Context) -> Result<Text> {
        Ok(Text(match self.mode.as_str() {
            "UPPERCASE" => self.string.to_uppercase(),
            "lowercase" => self.string.to_lowercase(),
            "Capitalize" => capitalised(&self.string),
            _ => title(&self.string),
        }))
    }
}

/// A text without white space at its ends.
#[derive(Inputs)]
#[node(category = "utils/string")]
pub struct StringTrim {
    #[widget(default = "", multiline)]
    pub string: String,
    #[widget(default = "Both", choices = ["Both", "Left", "Right"])]
    pub mode: String,
}

impl Node for StringTrim {
    outputs![string: Text];

    fn run(self, _cx: &Context) -> Result<Text> {
        let text = &self.string;
        let trimmed = match self.mode.as_str() {
            "Left" => text.trim_start_matches(is_space),
            "Right" => text.trim_end_matches(is_space),
            _ => text.trim_matches(is_space),
        };
        Ok(Text(trimmed.to_owned()))
    }
}

/// A text with each place of another replaced.
#[derive(Inputs)]
#[node(category = "utils/string")]
pub struct StringReplace {
    #[widget(default = "", multiline)]
    pub string: String,
    /// What is looked for; nothing is found between all characters.
    #[widget(default = "", multiline)]
    pub find: String,
    #[widget(default = "", multiline)]
    pub replace: String,
}

impl Node for StringReplace {
    outputs![string: Text];

    fn run(self, _cx: &Context) -> Result<Text> {
        let places = self.string.matches(&self.find).count() as u128;
        ask_bytes("the text", self.string.len() as u128 + places * self.replace.len() as u128, "")?;
        Ok(Text(self.string.replace(&self.find, &self.replace)))
    }
}

/// Whether a text holds another.
#[derive(Inputs)]
#[node(category = "utils/string")]
pub struct StringContains {
    #[widget(default = "", multiline)]
    pub string: String,
    #[widget(default = "", multiline)]
    pub substring: String,
    /// Whether large letters differ from small ones.
    #[widget(default = true)]
    pub case_sensitive: bool,
}

impl Node for StringContains {
    outputs![contains: Truth];

    fn run(self, _cx: &Context) -> Result<Truth> {
        let [text, part] = cased([self.string, self.substring], self.case_sensitive);
        Ok(Truth(text.contains(&part)))
    }
}

fn cased(texts: [String; 2], case_sensitive: bool) -> [String; 2] {
    texts.map(|text| if case_sensitive { text } else { text.to_lowercase() })
}

/// Whether a text begins with another, ends with it, or is the same.
#[derive(Inputs)]
#[node(category = "utils/string")]
pub struct StringCompare {
    #[widget(default = "", multiline)]
    pub string_a: String,
    #[widget(default = "", multiline)]
    pub string_b: String,
    #[widget(default = "Starts With", choices = ["Starts With", "Ends With", "Equal"])]
    pub mode: String,
    /// Whether large letters differ from small ones.
    #[widget(default = true)]
    pub case_sensitive: bool,
}

impl Node for StringCompare {
    outputs![result: Truth];

    fn run(self, _cx: &Context) -> Result<Truth> {
        let [a, b] = cased([self.string_a, self.string_b], self.case_sensitive);
        Ok(Truth(match self.mode.as_str() {
            "Starts With" => a.starts_with(&b),
            "Ends With" => a.ends_with(&b),
            _ => a == b,
        }))
    }
}

fn pattern(text: &str, case_insensitive: bool, multiline: bool, dotall: bool) -> Result<Pattern> {
    Pattern::new(text, Flags { case_insensitive, multiline, dotall })
        .map_err(|error| Error::at("regex_pattern", error))
}

/// Whether a pattern is found in a text.
#[derive(Inputs)]
#[node(category = "utils/string")]
pub struct RegexMatch {
    #[widget(default = "", multiline)]
    pub string: String,
    /// As Python's re reads it.
    #[widget(default = "", multiline)]
    pub regex_pattern: String,
    #[widget(default = true)]
    pub case_insensitive: bool,
    /// ^ and $ match at every line.
    #[widget(default = false)]
    pub multiline: bool,
    /// . matches line breaks as well.
    #[widget(default = false)]
    pub dotall: bool,
}

impl Node for RegexMatch {
    outputs![matches: Truth];

    fn run(self, _cx: &Context) -> Result<Truth> {
        let pattern =
            pattern(&self.regex_pattern, self.case_insensitive, self.multiline, self.dotall)?;
        let first = pattern.matches(&self.string).next().transpose()?;
        Ok(Truth(first.is_some()))
    }
}

/// What a pattern finds in a text, several findings one a line; nothing where it finds nothing.
#[derive(Inputs)]
#[node(category = "utils/string")]
pub struct RegexExtract {
    #[widget(default = "", multiline)]
    pub string: String,
    /// As Python's re reads it.
    #[widget(default = "", multiline)]
    pub regex_pattern: String,
    /// All Matches gives the first group of each where the pattern has groups.
    #[widget(default = "First Match", choices = ["First Match", "All Matches", "First Group", "All Groups"])]
    pub mode: String,
    #[widget(default = true)]
    pub case_insensitive: bool,
    /// ^ and $ match at every line.
    #[widget(default = false)]
    pub multiline: bool,
    /// . matches line breaks as well.
    #[widget(default = false)]
    pub dotall: bool,
    /// Which group First Group and All Groups give.
    #[widget(default = 1, min = 0, max = 100)]
    pub group_index: u64,
}

impl Node for RegexExtract {
    outputs![string: Text];

    fn run(self, _cx: &Context) -> Result<Text> {
        let pattern =
            pattern(&self.regex_pattern, self.case_insensitive, self.multiline, self.dotall)?;
        let has_groups = pattern.groups() > 1;
        let (group, all) = match self.mode.as_str() {
            "First Match" => (0, false),
            "All Matches" => (usize::from(has_groups), true),
            "First Group" => (self.group_index as usize, false),
            _ if !has_groups => return Ok(Text(String::new())),
            _ => (self.group_index as usize, true),
        };
        if group >= pattern.groups() {
            return Ok(Text(String::new()));
        }
        let part = |found: &Captures| found.get(group).map_or("", |part| part.as_str()).to_owned();
        let mut found = Vec::new();
        for captures in pattern.matches(&self.string).take(if all { usize::MAX } else { 1 }) {
            found.push(part(&captures?));
        }
        Ok(Text(found.join("\n")))
    }
}

/// A text with what a pattern finds replaced.
#[derive(Inputs)]
#[node(category = "utils/string")]
pub struct RegexReplace {
    #[widget(default = "", multiline)]
    pub string: String,
    /// As Python's re reads it.
    #[widget(default = "", multiline)]
    pub regex_pattern: String,
    /// \1 and \g<name> are groups of the pattern.
    #[widget(default = "", multiline)]
    pub replace: String,
    #[widget(default = true)]
    pub case_insensitive: Option<bool>,
    /// ^ and $ match at every line.
    #[widget(default = false)]
    pub multiline: Option<bool>,
    /// . matches line breaks as well.
    #[widget(default = false)]
    pub dotall: Option<bool>,
    /// How many of the first findings are replaced; 0 replaces all.
    #[widget(default = 0, min = 0, max = 100)]
    pub count: Option<u64>,
}

impl Node for RegexReplace {
    outputs![string: Text];

    fn run(self, _cx: &Context) -> Result<Text> {
        let pattern = pattern(
            &self.regex_pattern,
            self.case_insensitive.unwrap_or(true),
            self.multiline.unwrap_or(false),
            self.dotall.unwrap_or(false),
        )?;
        let count = self.count.unwrap_or(0) as usize;
        Ok(Text(pattern.replace(&self.string, &self.replace, count)?))
    }
}
