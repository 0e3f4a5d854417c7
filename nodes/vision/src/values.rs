//! A text as a node's output.

use node::{Error, Result, Socket, Value};

/// A text.
pub struct Text(pub String);

impl Socket for Text {
    const TYPE: &'static str = "STRING";

    fn from_value(value: Value) -> Result<Self> {
        match value.as_str() {
            Some(text) => Ok(Self(text.to_owned())),
            None => {
                Err(Error::new(format!("a text is wanted, but {} was given", value.kind_name())))
            }
        }
    }

    fn into_value(self) -> Value {
        Value::string(self.0)
    }
}
