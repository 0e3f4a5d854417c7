//! LoRAs in a stack, put on one after the other.

use std::path::PathBuf;

use node::*;

use crate::lora::LoraLoader;

/// A LORA_STACK: a list of maps of "file", "strength_model" and "strength_clip".
#[derive(Clone)]
pub struct LoraStack(Value);

impl Socket for LoraStack {
    const TYPE: &'static str = "LORA_STACK";

    fn from_value(value: Value) -> Result<Self> {
        let is_lora = |item: &Value| item.get("file").is_some_and(|file| file.as_str().is_some());
        match value.as_list().is_some_and(|items| items.iter().all(is_lora)) {
            true => Ok(Self(value)),
            false => Err(Error::new(format!(
                "LORA_STACK (a list of maps with a \"file\") is wanted, but {} was given",
                value.kind_name()
            ))),
        }
    }

    fn into_value(self) -> Value {
        self.0
    }
}

impl LoraStack {
    /// The LoRAs, from the first on: file, strength in the U-Net and in CLIP.
    fn loras(&self) -> Vec<(PathBuf, f64, f64)> {
        let strength = |item: &Value, name: &str| {
            item.get(name).and_then(|value| value.as_f64()).unwrap_or(1.0)
        };
        let lora = |item: Value| {
            let file = PathBuf::from(item.get("file")?.as_str()?);
            Some((file, strength(&item, "strength_model"), strength(&item, "strength_clip")))
        };
        self.0.as_list().unwrap_or_default().into_iter().filter_map(lora).collect()
    }

    /// Both with every LoRA of the stack on them.
    ///
    /// # Errors
    /// What LoraLoader reports.
    pub fn put_on(&self, cx: &Context, mut model: Model, mut clip: Clip) -> Result<(Model, Clip)> {
        for (lora_name, strength_model, strength_clip) in self.loras() {
            let lora = LoraLoader { model, clip, lora_name, strength_model, strength_clip };
            let put = lora.run(cx).map_err(|error| error.of_input("lora_stack"));
            (model, clip) = put?;
        }
        Ok((model, clip))
    }
}

/// A text as an output.
pub struct Text(String);

impl Socket for Text {
    const TYPE: &'static str = "STRING";

    fn from_value(value: Value) -> Result<Self> {
        let wrong = || Error::new(format!("a text is wanted, but {} was given", value.kind_name()));
        value.as_str().map(|text| Self(text.to_owned())).ok_or_else(wrong)
    }

    fn into_value(self) -> Value {
        Value::string(self.0)
    }
}

/// What the last output of Comfyroll's nodes says.
fn help() -> Text {
    Text("kosmograph nodes says what this node does".to_owned())
}

/// Up to three LoRAs, behind those of another stack.
#[derive(Inputs)]
#[node(class = "CR LoRA Stack", category = "loaders")]
pub struct CrLoraStack {
    #[widget(choices = ["Off", "On"], default = "Off")]
    switch_1: String,
    #[file(folder = "loras", entry = "file", none = "None", default = "None")]
    lora_name_1: Option<PathBuf>,
    /// How strongly it changes the U-Net.
    #[widget(default = 1.0, min = -10.0, max = 10.0, step = 0.01)]
    model_weight_1: f64,
    /// How strongly it changes CLIP.
    #[widget(default = 1.0, min = -10.0, max = 10.0, step = 0.01)]
    clip_weight_1: f64,
    #[widget(choices = ["Off", "On"], default = "Off")]
    switch_2: String,
    #[file(folder = "loras", entry = "file", none = "None", default = "None")]
    lora_name_2: Option<PathBuf>,
    #[widget(default = 1.0, min = -10.0, max = 10.0, step = 0.01)]
    model_weight_2: f64,
    #[widget(default = 1.0, min = -10.0, max = 10.0, step = 0.01)]
    clip_weight_2: f64,
    #[widget(choices = ["Off", "On"], default = "Off")]
    switch_3: String,
    #[file(folder = "loras", entry = "file", none = "None", default = "None")]
    lora_name_3: Option<PathBuf>,
    #[widget(default = 1.0, min = -10.0, max = 10.0, step = 0.01)]
    model_weight_3: f64,
    #[widget(default = 1.0, min = -10.0, max = 10.0, step = 0.01)]
    clip_weight_3: f64,
    /// What comes first.
    lora_stack: Option<LoraStack>,
}

impl Node for CrLoraStack {
    outputs![LORA_STACK: LoraStack, show_help: Text];

    fn run(self, _cx: &Context) -> Result<(LoraStack, Text)> {
        let mut stack = self.lora_stack.and_then(|stack| stack.0.as_list()).unwrap_or_default();
        for (number, switch, file, strength_model, strength_clip) in [
            (1, self.switch_1, self.lora_name_1, self.model_weight_1, self.clip_weight_1),
            (2, self.switch_2, self.lora_name_2, self.model_weight_2, self.clip_weight_2),
            (3, self.switch_3, self.lora_name_3, self.model_weight_3, self.clip_weight_3),
        ] {
            let Some(file) = file else { continue };
            let at = |sentence: String| Error::at(format!("lora_name_{number}"), sentence);
            std::fs::File::open(&file)
                .map_err(|error| at(format!("{} cannot be read: {error}", file.display())))?;
            if switch == "On" {
                let Some(file) = file.to_str() else {
                    return Err(at(format!("{} is no name in UTF-8", file.display())));
                };
                stack.push(Value::map([
                    ("file", Value::string(file)),
                    ("strength_model", strength_model.into()),
                    ("strength_clip", strength_clip.into()),
                ]));
            }
        }
        Ok((LoraStack(Value::list(stack)), help()))
    }
}

/// Puts every LoRA of a stack on a model and its CLIP.
#[derive(Inputs)]
#[node(class = "CR Apply LoRA Stack", category = "loaders")]
pub struct CrApplyLoraStack {
    model: Model,
    clip: Clip,
    lora_stack: LoraStack,
}

impl Node for CrApplyLoraStack {
    outputs![MODEL: Model, CLIP: Clip, show_help: Text];

    fn run(self, cx: &Context) -> Result<(Model, Clip, Text)> {
        let (model, clip) = self.lora_stack.put_on(cx, self.model, self.clip)?;
        Ok((model, clip, help()))
    }
}
