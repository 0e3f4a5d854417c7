//! What is wrong with a workflow or went wrong in a run, as a person wants to read it: which node, which input, what
//! would be right, and the nearest name that exists. Problems are collected, never thrown at the
//! first: whoever repairs a workflow wants the whole list.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;

/// The kinds, by the names ComfyUI's validation uses where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A node said why it gives nothing, or its library broke a rule, or its process.
    NodeFailed,
    /// The workflow's file as a whole.
    Workflow,
    /// The command line.
    Arguments,
    /// A checkpoint that cannot be converted.
    Convert,
    /// A training that cannot begin, or did not end.
    Train,
    /// Pictures that cannot be measured.
    Evaluate,
    /// The JSON of a node is not what a node looks like.
    InvalidPrompt,
    /// No library has the class.
    MissingNodeType,
    /// No node of the workflow is run for what it does outside the graph.
    PromptNoOutputs,
    RequiredInputMissing,
    /// A link leads to no node, to no output, or is no link at all.
    BadLinkedInput,
    ReturnTypeMismatch,
    InvalidInputType,
    ValueSmallerThanMin,
    ValueBiggerThanMax,
    /// A warning: editors move in these steps, nodes may well take what lies between.
    ValueOffStep,
    ValueNotInList,
    /// A file or folder that is not there, or not where a workflow may reach.
    InvalidPath,
    DependencyCycle,
    /// The class of a node, in Python, refuses its inputs.
    CustomValidationFailed,
    /// What the numbers of a node ask for is more than there is.
    TooMuchMemory,
    /// A warning: the class has no input of that name.
    UnknownInput,
    /// A warning of a library: what was put together does not go together.
    Unfit,
}

/// The node a problem is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeName {
    #[serde(rename = "node")]
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Empty where the workflow does not say.
    pub class: String,
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "node {}", self.id)?;
        match &self.title {
            Some(title) if *title != self.class => write!(f, " \"{}\"", printable(title))?,
            _ => (),
        }
        if !self.class.is_empty() {
            write!(f, " ({})", self.class)?;
        }
        Ok(())
    }
}

/// `text`, which anybody may have written, as a line of a terminal: control characters, which move a cursor or
/// colour what follows, are written out.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let shown = |c: char| -> String {
        if c.is_control() { c.escape_default().collect() } else { c.into() }
    };
    text.chars().map(shown).collect::<String>().into()
}

/// One thing that is wrong, or, among the warnings, one that is odd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub kind: Kind,
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    // Boxed, as problems travel as the error of many small functions.
    pub node: Option<Box<NodeName>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// A sentence without its full stop.
    pub message: String,
    /// The nearest name that exists, where a name was wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<String>,
}

impl Problem {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, node: None, input: None, message: message.into(), nearest: None }
    }

    /// Why `node` gave nothing, and the input at fault where it is known.
    pub fn failure(node: NodeName, input: Option<String>, message: impl Into<String>) -> Self {
        let input = input.filter(|input| !input.is_empty());
        Self { input, ..Self::new(Kind::NodeFailed, message).at(node) }
    }

    pub fn at(mut self, node: NodeName) -> Self {
        self.node = Some(Box::new(node));
        self
    }

    pub fn input(mut self, name: &str) -> Self {
        self.input = Some(name.to_owned());
        self
    }

    /// Looks among `names` for the one that was probably meant by `wrong`.
    pub fn nearest<'a>(mut self, wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Self {
        self.nearest = nearest(wrong, names).map(str::to_owned);
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if let Some(node) = &self.node {
            write!(f, "{node}")?;
            if let Some(input) = &self.input {
                write!(f, ", input \"{input}\"")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.message)?;
        if let Some(nearest) = &self.nearest {
            write!(f, "; did you mean \"{nearest}\"?")?;
        }
        Ok(())
    }
}

/// As [`nearest`], of names of files: one that is called the same in another folder comes first, and
/// extensions, which most have in common, make nothing alike.
pub fn nearest_file<'a>(wrong: &str, names: &'a [String]) -> Option<&'a str> {
    // White space at the ends, and what looks like ComfyUI's `file.png [output]`, is not of a name.
    let bare = wrong.trim();
    let noted = bare.strip_suffix(']').and_then(|name| name.rsplit_once('['));
    let wrong = noted.map(|(name, _)| name.trim_end()).filter(|name| !name.is_empty());
    let wrong = wrong.unwrap_or(bare);
    let name = |path: &str| path.rsplit(['/', '\\']).next().unwrap_or(path).to_lowercase();
    if let Some(same) = names.iter().find(|path| name(path) == name(wrong)) {
        return Some(same);
    }
    fn stem(path: &str) -> &str {
        let begin = path.rfind(['/', '\\']).map_or(0, |slash| slash + 1);
        let dot = path[begin..].rfind('.').filter(|&dot| dot > 0);
        // What looks like a version is no extension.
        let is_extension = |dot: &usize| path[begin + dot..].contains(char::is_alphabetic);
        dot.filter(is_extension).map_or(path, |dot| &path[..begin + dot])
    }
    let stems: Vec<&str> = names.iter().map(|name| stem(name)).collect();
    let found = nearest(stem(wrong), stems.iter().copied())?;
    // Of several that differ in their extensions alone, the one whose own is likest.
    let alike = names.iter().zip(&stems).filter(|(_, stem)| **stem == found).map(|(name, _)| name);
    let mut alike = alike.map(|name| (strsim::normalized_damerau_levenshtein(wrong, name), name));
    let first = alike.next()?;
    let best = alike.fold(first, |best, next| if next.0 > best.0 { next } else { best });
    Some(best.1)
}

/// The name nearest to `wrong`, if one is near enough to have been meant: case and the signs
/// between words count for little, and half the word may be wrong at most. Ties go to the first.
pub fn nearest<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // The distance is quadratic in the lengths; nobody mistypes a name of thousands of signs.
    const LONGEST: usize = 256;
    if wrong.len() > LONGEST {
        return None;
    }
    let plain = |name: &str| -> String {
        name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
    };
    let wrong_plain = plain(wrong);
    let mut best: Option<(f64, &str)> = None;
    for name in names {
        if name.len() > LONGEST {
            continue;
        }
        let exact = strsim::normalized_damerau_levenshtein(wrong, name);
        let folded = 0.98 * strsim::normalized_damerau_levenshtein(&wrong_plain, &plain(name));
        let similarity = exact.max(folded);
        if similarity >= 0.5 && best.is_none_or(|(so_far, _)| similarity > so_far) {
            best = Some((similarity, name));
        }
    }
    best.map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_what_was_meant() {
        let classes = ["LoadImage", "SaveImage", "VaeDecode", "VAEDecode", "KSampler"];
        assert_eq!(nearest("LoadImag", classes), Some("LoadImage"));
        assert_eq!(nearest("save_image", classes), Some("SaveImage"));
        assert_eq!(nearest("VAEDecoder", classes), Some("VAEDecode"));
        assert_eq!(nearest("Zwölf", classes), None);
        assert_eq!(nearest(&"x".repeat(100_000), classes), None);
    }

    #[test]
    fn files_are_alike_by_their_names() {
        let names = ["loras/pencil.safetensors", "v1-5-pruned.safetensors", "sub/dreamy.ckpt"];
        let names = names.map(str::to_owned);
        assert_eq!(nearest_file("sd_xl_base_1.0.safetensors", &names), None);
        assert_eq!(nearest_file("v1-5-prunned.ckpt", &names), Some("v1-5-pruned.safetensors"));
        assert_eq!(nearest_file("SD15\\Dreamy.ckpt", &names), Some("sub/dreamy.ckpt"));
        assert_eq!(nearest_file("v1.5", &["v1.4".to_owned()]), Some("v1.4"));
        let pictures = ["rgb.bmp", "rgb.jpg", "rgb.png", "x [1].png"].map(str::to_owned);
        for wrong in
            ["rgb.png ", " rgb.png", "rgb.png [foo]", "rgb.png[output]", "rgb.pngg", "rgg.png"]
        {
            assert_eq!(nearest_file(wrong, &pictures), Some("rgb.png"), "{wrong}");
        }
        assert_eq!(nearest_file("[foo]", &pictures), None);
    }

    #[test]
    fn a_title_moves_no_cursor() {
        let title = Some("a\u{1b}[2J\nb ä".to_owned());
        let node = NodeName { id: "3".into(), title, class: "K".into() };
        assert_eq!(node.to_string(), "node 3 \"a\\u{1b}[2J\\nb ä\" (K)");
    }

    #[test]
    fn a_problem_reads_as_a_sentence() {
        let node = NodeName { id: "3".into(), title: Some("Sampler".into()), class: "K".into() };
        let problem = Problem::new(Kind::UnknownInput, "the class has no such input")
            .at(node)
            .input("stpes")
            .nearest("stpes", ["steps", "seed"]);
        assert_eq!(
            problem.to_string(),
            "node 3 \"Sampler\" (K), input \"stpes\": the class has no such input; \
             did you mean \"steps\"?"
        );
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(json["node"], "3");
        assert_eq!(json["kind"], "unknown_input");
        assert_eq!(json["nearest"], "steps");
    }
}
