//! SDXLPromptStyler: texts put into a template of a file of the user's.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use node::{Context, Error, Inputs, Node, Result, outputs};
use serde::Deserialize;

use node::plain::Text;

/// The largest file of styles that is read; the published one has 0.1 MB.
const LARGEST: u64 = 16 << 20;

/// A template: {prompt} is where the text goes.
#[derive(Debug, Deserialize)]
struct Style {
    name: String,
    #[serde(default)]
    prompt: String,
    #[serde(default)]
    negative_prompt: String,
}

/// Puts texts into a style's templates. Styles are yours: a JSON list of {"name", "prompt", "negative_prompt"}, sdxl_styles.json
/// in the folder styles; {prompt} in a template is where the text goes.
#[derive(Inputs)]
#[node(category = "utils")]
pub struct SDXLPromptStyler {
    /// What the picture should show.
    #[widget(default = "", multiline)]
    text_positive: String,
    /// What it should not; it comes behind the style's.
    #[widget(default = "", multiline)]
    text_negative: String,
    /// The name of a style.
    #[widget(default = "base")]
    style: String,
    /// Whether what comes out is told: Yes or No, or a boolean.
    #[widget(default = "No")]
    log_prompt: Option<String>,
    /// Whether the style's positive template is used; without it the text stays.
    #[widget(default = true)]
    style_positive: Option<bool>,
    /// Whether its negative one is.
    #[widget(default = true)]
    style_negative: Option<bool>,
    /// The file of styles.
    #[file(folder = "styles", entry = "file", default = "sdxl_styles.json")]
    style_file: Option<PathBuf>,
}

impl Node for SDXLPromptStyler {
    outputs![text_positive: Text, text_negative: Text];

    fn run(self, cx: &Context) -> Result<(Text, Text)> {
        let Some(style_file) = self.style_file else {
            return Err(Error::at("style_file", "there is no file of styles"));
        };
        let styles = read(&style_file).map_err(|error| error.of_input("style_file"))?;
        let Some(style) = styles.iter().find(|style| style.name == self.style) else {
            let names: Vec<&str> =
                styles.iter().take(12).map(|style| style.name.as_str()).collect();
            let more = if styles.len() > names.len() { " …" } else { "" };
            return Err(Error::at(
                "style",
                format!(
                    "{:?} is none of the {} styles in {}: {}{more}",
                    self.style,
                    styles.len(),
                    style_file.display(),
                    names.join(", ")
                ),
            ));
        };
        let positive = match self.style_positive {
            Some(false) => self.text_positive,
            _ => style.prompt.replace("{prompt}", &self.text_positive),
        };
        let negative = match (self.style_negative, style.negative_prompt.as_str()) {
            (Some(false), _) | (_, "") => self.text_negative,
            (_, template) if self.text_negative.is_empty() => template.to_owned(),
            (_, template) => format!("{template}, {}", self.text_negative),
        };
        if self.log_prompt.is_some_and(|log| matches!(log.as_str(), "Yes" | "True")) {
            cx.info(format!("{}: {positive} | {negative}", style.name));
        }
        Ok((Text(positive), Text(negative)))
    }
}

fn read(file: &Path) -> Result<Vec<Style>> {
    let wrong = |why: &dyn std::fmt::Display| {
        Error::new(format!(
            "{} is no list of styles, [{{\"name\", \"prompt\", \"negative_prompt\"}}]: {why}",
            file.display()
        ))
    };
    let mut text = Vec::new();
    let opened =
        File::open(file).and_then(|opened| opened.take(LARGEST + 1).read_to_end(&mut text));
    opened.map_err(|error| Error::new(format!("cannot read {}: {error}", file.display())))?;
    if text.len() as u64 > LARGEST {
        return Err(wrong(&"it is longer than 16 MB"));
    }
    serde_json::from_slice(&text).map_err(|error| wrong(&error))
}
