//! Texts that the editor completes when Queue is pressed.
//!
//! - In prompts (texts of several lines) comments go, `/* … */` and `//` to the end of the line, and
//!   of `{red|green|{dark|light} blue}` one choice stays. `\{`, `\|` and `\}` are the signs
//!   themselves. The editor draws a choice by chance; here the seed decides, so that a picture can be
//!   drawn again: choice number h mod n, h the first 64 bits of BLAKE3 over the seed, the node's id,
//!   the input's name and which brace it is. The seed is `--seed`'s, or else the workflow's first.
//! - In the prefix of a file's name `%date:yyyy-MM-dd hh:mm:ss%` is the day and `%Node.input%` the
//!   value of another node's input; the node is named as in "Node name for S&R", or by its title.
//!   What a class replaces itself (`%width%`) stays.
//!
//! A text that `--set` put there is taken as it is.

use super::saved::SavedNode;
use crate::catalogue::{Catalogue, InputKind, NodeDescriptor};
use crate::graph::{Graph, Input, Node, Origin};
use crate::problem::{Kind, Problem};
use chrono::{Datelike, Timelike};
use serde_json::Value;

/// The time in `%date:…%`.
pub type Now = chrono::DateTime<chrono::Local>;

/// The texts of a converted workflow that the seed or the day completes.
#[derive(Clone, Debug, Default)]
pub struct Texts {
    texts: Vec<Text>,
    nodes: Vec<Named>,
}

#[derive(Clone, Debug)]
struct Text {
    node: String,
    input: String,
    text: String,
    kind: TextKind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum TextKind {
    Prompt,
    FileName,
}

/// What `%Node.input%` may name, muted nodes too.
#[derive(Clone, Debug)]
struct Named {
    id: String,
    /// "Node name for S&R".
    search: Option<String>,
    title: Option<String>,
    values: Vec<(String, Value)>,
}

impl Texts {
    pub(super) fn remember(&mut self, node: &SavedNode, id: &str, values: &[(String, Value)]) {
        let search = node.properties.get("Node name for S&R").and_then(Value::as_str);
        self.nodes.push(Named {
            id: id.to_owned(),
            search: search.map(str::to_owned),
            title: node.title.clone(),
            values: values.to_vec(),
        });
    }

    pub(super) fn collect(&mut self, node: &Node, class: &NodeDescriptor) {
        for input in &class.inputs {
            let InputKind::Text { multiline, prefix, .. } = &input.kind else { continue };
            let Some(Input::Literal { value: Value::String(text), .. }) = node.input(&input.name)
            else {
                continue;
            };
            let kind = match multiline {
                true if text.contains(['{', '\\', '/']) => TextKind::Prompt,
                false if *prefix => TextKind::FileName,
                // As the page has it, whatever the library says.
                false if class.output_node && input.name == "filename_prefix" => TextKind::FileName,
                _ => continue,
            };
            let (node, input, text) = (node.id.clone(), input.name.clone(), text.clone());
            self.texts.push(Text { node, input, text, kind });
        }
    }

    /// Completes the texts of `graph` for a seed; `None` is the first seed in the workflow. Returns
    /// what stayed as it was and looks as if it should not.
    pub fn apply(
        &self,
        graph: &mut Graph,
        catalogue: &Catalogue,
        seed: Option<u64>,
        now: &Now,
    ) -> Vec<Problem> {
        let seed = seed.or_else(|| first_seed(graph, catalogue)).unwrap_or_default();
        let mut warnings = Vec::new();
        for text in &self.texts {
            let Some(position) = graph.position(&text.node) else { continue };
            let node = &graph.nodes()[position];
            let untouched = matches!(node.input(&text.input),
                Some(Input::Literal { value: Value::String(now), origin: Origin::File }) if *now == text.text);
            if !untouched {
                continue;
            }
            let complete = match text.kind {
                TextKind::Prompt => chosen(&text.text, |brace| draw(seed, text, brace)),
                TextKind::FileName => {
                    let odd = |message: String| {
                        let odd = Problem::new(Kind::UnknownInput, message);
                        warnings.push(odd.at(node.name()).input(&text.input));
                    };
                    self.replaced(&text.text, graph, now, odd)
                }
            };
            let input = Input::Literal { value: complete.into(), origin: Origin::File };
            graph.inputs_mut(position).set(&text.input, input);
        }
        warnings
    }

    /// A prefix of a file's name with its `%…%` replaced.
    fn replaced(
        &self,
        text: &str,
        graph: &Graph,
        now: &Now,
        mut odd: impl FnMut(String),
    ) -> String {
        let mut complete = String::new();
        let mut rest = text;
        while let Some(begin) = rest.find('%') {
            complete.push_str(&rest[..begin]);
            let inside = &rest[begin + 1..];
            let Some(end) = inside.find('%').filter(|&end| end > 0) else {
                complete.push('%');
                rest = inside;
                continue;
            };
            let pattern = &inside[..end];
            rest = &inside[end + 1..];
            if let Some(format) = pattern.strip_prefix("date:") {
                complete.push_str(&date(format, now));
                continue;
            }
            match pattern.split_once('.').map(|(node, input)| self.value(graph, node, input)) {
                Some(Ok(value)) => complete.push_str(&value),
                other => {
                    if let Some(Err(sentence)) = other {
                        odd(format!("%{pattern}% {sentence}, and stays as it is"));
                    }
                    complete.push('%');
                    complete.push_str(pattern);
                    // The sign at its end may begin the next pattern.
                    rest = &inside[end..];
                    if is_known(pattern) {
                        complete.push('%');
                        rest = &inside[end + 1..];
                    }
                }
            }
        }
        complete.push_str(rest);
        complete
    }

    /// The value of a node's input as it may stand in a file's name, or why there is none.
    fn value(&self, graph: &Graph, name: &str, input: &str) -> Result<String, String> {
        let by_search = self.nodes.iter().find(|node| node.search.as_deref() == Some(name));
        let by_title = || self.nodes.iter().find(|node| node.title.as_deref() == Some(name));
        let node = by_search.or_else(by_title).ok_or_else(|| {
            format!("names no node: \"{name}\" is nobody's title or name for search and replace")
        })?;
        let in_graph = graph.position(&node.id).and_then(|at| graph.nodes()[at].input(input));
        let value = match in_graph {
            Some(Input::Literal { value, .. }) => Some(value),
            _ => node.values.iter().find(|(name, _)| name == input).map(|(_, value)| value),
        };
        let text = match value {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) => String::new(),
            Some(value) => value.to_string(),
            None => return Err(format!("names no value: node {} has no \"{input}\"", node.id)),
        };
        let forbidden = |c: char| "/?<>\\:*|\"".contains(c) || c.is_control();
        Ok(text.replace(forbidden, "_"))
    }
}

/// The patterns that classes replace themselves.
fn is_known(pattern: &str) -> bool {
    ["width", "height", "year", "month", "day", "hour", "minute", "second", "batch_num"]
        .contains(&pattern)
}

/// The first seed in the order of the workflow.
fn first_seed(graph: &Graph, catalogue: &Catalogue) -> Option<u64> {
    graph.nodes().iter().find_map(|node| {
        let class = catalogue.get(&node.class)?;
        let mut seeds = class.descriptor.inputs.iter().filter(|input| input.kind.is_seed());
        seeds.find_map(|input| match node.input(&input.name) {
            Some(Input::Literal { value, .. }) => value.as_u64(),
            _ => None,
        })
    })
}

fn draw(seed: u64, text: &Text, brace: u64) -> u64 {
    let mut hash = blake3::Hasher::new();
    hash.update(&seed.to_le_bytes());
    for part in [&text.node, &text.input] {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.update(&brace.to_le_bytes());
    let mut first = [0; 8];
    hash.finalize_xof().fill(&mut first);
    u64::from_le_bytes(first)
}

/// A brace that is open: its finished choices, the one that is being read, which brace it is.
struct Brace {
    choices: Vec<String>,
    number: u64,
}

/// A prompt without comments, with one choice for each brace: number `draw(brace) mod choices`,
/// braces counted as they open. One that is not closed ends with the text.
fn chosen(text: &str, draw: impl Fn(u64) -> u64) -> String {
    let text = without_comments(text);
    let mut open: Vec<Brace> = Vec::new();
    let mut outside = String::new();
    let mut braces = 0;
    let close = |mut brace: Brace, outside: &mut String, open: &mut Vec<Brace>| {
        let count = brace.choices.len() as u64;
        let choice = brace.choices.swap_remove((draw(brace.number) % count) as usize);
        place(open, outside).push_str(&choice);
    };
    let mut signs = text.chars();
    while let Some(sign) = signs.next() {
        match sign {
            '\\' => {
                let here = place(&mut open, &mut outside);
                here.push('\\');
                here.extend(signs.next());
            }
            '{' => {
                open.push(Brace { choices: vec![String::new()], number: braces });
                braces += 1;
            }
            '}' if !open.is_empty() => {
                if let Some(brace) = open.pop() {
                    close(brace, &mut outside, &mut open);
                }
            }
            '|' if !open.is_empty() => {
                if let Some(brace) = open.last_mut() {
                    brace.choices.push(String::new());
                }
            }
            sign => place(&mut open, &mut outside).push(sign),
        }
    }
    while let Some(brace) = open.pop() {
        close(brace, &mut outside, &mut open);
    }
    // Other escapes, of parentheses, are for who reads the prompt.
    let mut plain = String::with_capacity(outside.len());
    let mut signs = outside.chars().peekable();
    while let Some(sign) = signs.next() {
        match (sign, signs.peek()) {
            ('\\', Some('{' | '}' | '|')) => (),
            ('\\', Some(_)) => {
                plain.push(sign);
                plain.extend(signs.next());
            }
            _ => plain.push(sign),
        }
    }
    plain
}

/// Where the next sign goes: into the choice that is being read, or the text itself.
fn place<'a>(open: &'a mut [Brace], outside: &'a mut String) -> &'a mut String {
    match open.last_mut().and_then(|brace| brace.choices.last_mut()) {
        Some(choice) => choice,
        None => outside,
    }
}

fn without_comments(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('/') {
        plain.push_str(&rest[..at]);
        let from = &rest[at..];
        let block = from.strip_prefix("/*").and_then(|inside| Some(2 + inside.find("*/")? + 2));
        let line = || from.starts_with("//").then(|| from.find(['\n', '\r']).unwrap_or(from.len()));
        match block.or_else(line) {
            Some(length) => rest = &from[length..],
            None => {
                plain.push('/');
                rest = &from[1..];
            }
        }
    }
    plain.push_str(rest);
    plain
}

/// `yyyy` and `yy`, and one or two of `M`, `d`, `h`, `m`, `s`, replaced; the rest as it is.
fn date(format: &str, now: &Now) -> String {
    let mut text = String::new();
    let mut rest = format;
    while let Some(letter) = rest.chars().next() {
        let longest = if letter == 'y' { 4 } else { 2 };
        let run = rest.chars().take(longest).take_while(|&next| next == letter).count();
        let number = match letter {
            'y' if run == 4 => Some(now.year().unsigned_abs()),
            'y' if run >= 2 => Some(now.year().unsigned_abs() % 100),
            'M' => Some(now.month()),
            'd' => Some(now.day()),
            'h' => Some(now.hour()),
            'm' => Some(now.minute()),
            's' => Some(now.second()),
            _ => None,
        };
        let taken = match (letter, number) {
            // Three are a two and a one, which says nothing.
            ('y', Some(_)) if run == 3 => 2,
            (_, Some(_)) => run,
            (letter, None) => letter.len_utf8(),
        };
        match number {
            Some(number) => text.push_str(&format!("{number:0taken$}")),
            None => text.push(letter),
        }
        rest = &rest[taken..];
    }
    text
}
