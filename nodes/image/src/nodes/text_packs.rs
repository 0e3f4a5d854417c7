//! Nodes with texts and numbers that saved workflows know from packs.

use node::{Context, Error, Image, Inputs, Mask, Node, Result, json, outputs};

use crate::python_text::float;
use node::plain::{Text, Whole};

/// Shows a text, and passes it on.
#[derive(Inputs)]
#[node(class = "ShowText|pysssss", category = "utils", output_node)]
pub struct ShowText {
    pub text: String,
}

impl Node for ShowText {
    outputs![STRING: Text];

    fn run(self, cx: &Context) -> Result<Text> {
        cx.output(&json!({"text": [self.text]}));
        Ok(Text(self.text))
    }
}

/// A text without the lines that begin with #.
#[derive(Inputs)]
#[node(class = "Text Multiline", category = "utils/string")]
pub struct TextMultiline {
    #[widget(default = "", multiline)]
    pub text: String,
}

impl Node for TextMultiline {
    outputs![STRING: Text];

    fn run(self, _cx: &Context) -> Result<Text> {
        let lines = self.text.lines().filter(|line| !line.trim_start().starts_with('#'));
        Ok(Text(lines.collect::<Vec<_>>().join("\n")))
    }
}

/// A text.
#[derive(Inputs)]
#[node(class = "String Literal", category = "utils/string")]
pub struct StringLiteral {
    #[widget(default = "", multiline)]
    pub string: String,
}

impl Node for StringLiteral {
    outputs![STRING: Text];

    fn run(self, _cx: &Context) -> Result<Text> {
        Ok(Text(self.string))
    }
}

/// What the second output of Comfyroll's nodes says.
fn help() -> Text {
    Text("kosmograph nodes says what this node does".to_owned())
}

/// A text.
#[derive(Inputs)]
#[node(class = "CR Prompt Text", category = "utils/string")]
pub struct CrPromptText {
    #[widget(default = "prompt", multiline)]
    pub prompt: String,
}

impl Node for CrPromptText {
    outputs![prompt: Text, show_help: Text];

    fn run(self, _cx: &Context) -> Result<(Text, Text)> {
        Ok((Text(self.prompt), help()))
    }
}

/// A whole number as text.
#[derive(Inputs)]
#[node(class = "CR Integer To String", category = "utils/string")]
pub struct CrIntegerToString {
    #[widget(default = 0)]
    pub int_: i64,
}

impl Node for CrIntegerToString {
    outputs![STRING: Text, show_help: Text];

    fn run(self, _cx: &Context) -> Result<(Text, Text)> {
        Ok((Text(self.int_.to_string()), help()))
    }
}

/// A number as text.
#[derive(Inputs)]
#[node(class = "CR Float To String", category = "utils/string")]
pub struct CrFloatToString {
    #[widget(default = 0.0)]
    pub float_: f64,
}

impl Node for CrFloatToString {
    outputs![STRING: Text, show_help: Text];

    fn run(self, _cx: &Context) -> Result<(Text, Text)> {
        Ok((Text(float(self.float_)), help()))
    }
}

/// Refuses: no node here fetches from the net. Save the picture into the input folder and load it with LoadImage.
#[derive(Inputs)]
#[node(category = "image")]
pub struct LoadImageFromUrl {
    /// The address of the picture.
    #[widget(default = "", multiline)]
    pub image: String,
    #[widget(default = false)]
    pub keep_alpha_channel: Option<bool>,
    #[widget(default = false)]
    pub output_mode: Option<bool>,
}

impl Node for LoadImageFromUrl {
    outputs![images: Image, masks: Mask, has_image: Whole];

    fn run(self, _cx: &Context) -> Result<(Image, Mask, Whole)> {
        Err(Error::at(
            "image",
            "is an address, and nothing here fetches from the net by itself; save the picture into the \
             input folder and load it with LoadImage",
        ))
    }
}
