//! Values that stand in the workflow and are passed on, and a node that shows any value.

use node::{Context, Inputs, Node, Result, Value, json, outputs};

use crate::python_text::float;
use node::plain::{Anything, Number, Text, Truth, Whole};

/// A text.
#[derive(Inputs)]
#[node(category = "utils/primitive")]
pub struct PrimitiveString {
    #[widget(default = "")]
    pub value: String,
}

impl Node for PrimitiveString {
    outputs![string: Text];

    fn run(self, _cx: &Context) -> Result<Text> {
        Ok(Text(self.value))
    }
}

/// A text of several lines.
#[derive(Inputs)]
#[node(category = "utils/primitive")]
pub struct PrimitiveStringMultiline {
    #[widget(default = "", multiline)]
    pub value: String,
}

impl Node for PrimitiveStringMultiline {
    outputs![string: Text];

    fn run(self, _cx: &Context) -> Result<Text> {
        Ok(Text(self.value))
    }
}

/// A whole number.
#[derive(Inputs)]
#[node(category = "utils/primitive")]
pub struct PrimitiveInt {
    #[widget(default = 0, min = i64::MIN, max = i64::MAX)]
    pub value: i64,
}

impl Node for PrimitiveInt {
    outputs![int: Whole];

    fn run(self, _cx: &Context) -> Result<Whole> {
        Ok(Whole(self.value))
    }
}

/// A number.
#[derive(Inputs)]
#[node(category = "utils/primitive")]
pub struct PrimitiveFloat {
    #[widget(default = 0.0, min = -9_223_372_036_854_775_807.0, max = 9_223_372_036_854_775_807.0)]
    pub value: f64,
}

impl Node for PrimitiveFloat {
    outputs![float: Number];

    fn run(self, _cx: &Context) -> Result<Number> {
        Ok(Number(self.value))
    }
}

/// True or false.
#[derive(Inputs)]
#[node(category = "utils/primitive")]
pub struct PrimitiveBoolean {
    #[widget(default = false)]
    pub value: bool,
}

impl Node for PrimitiveBoolean {
    outputs![boolean: Truth];

    fn run(self, _cx: &Context) -> Result<Truth> {
        Ok(Truth(self.value))
    }
}

/// Shows any value as text, and gives that text.
#[derive(Inputs)]
#[node(category = "utils", output_node)]
pub struct PreviewAny {
    pub source: Option<Anything>,
}

impl Node for PreviewAny {
    outputs![string: Text];

    fn run(self, cx: &Context) -> Result<Text> {
        let text = self.source.map_or("None".to_owned(), |source| shown(&source.0));
        cx.output(&json!({"text": [text]}));
        Ok(Text(text))
    }
}

/// A value as Python prints it where it has such a one, else what it is.
pub(super) fn shown(value: &Value) -> String {
    if let Some(text) = value.as_str() {
        return text.to_owned();
    }
    if let Some(truth) = value.as_bool() {
        return if truth { "True" } else { "False" }.to_owned();
    }
    if let Some(number) = value.as_i64() {
        return number.to_string();
    }
    if let Some(number) = value.as_f64() {
        return float(number);
    }
    if let Some(tensor) = value.as_tensor() {
        return format!("{tensor:?}");
    }
    if let Some(object) = value.as_object() {
        return object.type_name().to_owned();
    }
    if let Some(items) = value.as_list() {
        return format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(", "));
    }
    if let Some(pairs) = value.as_map() {
        let pairs = pairs.iter().map(|(key, value)| format!("'{key}': {}", shown(value)));
        return format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "));
    }
    "None".to_owned()
}
