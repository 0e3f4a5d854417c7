//! Values that are no pictures as outputs of nodes: texts, numbers, truths, and whatever comes.

use super::Socket;
use crate::{Error, Result, Value};

fn wrong<T: Socket>(value: &Value) -> Error {
    Error::new(format!("{} is wanted, but {} was given", T::TYPE, value.kind_name()))
}

/// A text.
pub struct Text(pub String);

impl Socket for Text {
    const TYPE: &'static str = "STRING";

    fn from_value(value: Value) -> Result<Self> {
        match value.as_str() {
            Some(text) => Ok(Self(text.to_owned())),
            None => Err(wrong::<Self>(&value)),
        }
    }

    fn into_value(self) -> Value {
        Value::string(self.0)
    }
}

/// A whole number.
pub struct Whole(pub i64);

impl Socket for Whole {
    const TYPE: &'static str = "INT";

    fn from_value(value: Value) -> Result<Self> {
        value.as_i64().map(Self).ok_or_else(|| wrong::<Self>(&value))
    }

    fn into_value(self) -> Value {
        self.0.into()
    }
}

impl Whole {
    /// A length or a number of things, which is far below what an i64 holds.
    pub fn of(size: usize) -> Self {
        Self(i64::try_from(size).unwrap_or(i64::MAX))
    }
}

/// A number.
pub struct Number(pub f64);

impl Socket for Number {
    const TYPE: &'static str = "FLOAT";

    fn from_value(value: Value) -> Result<Self> {
        value.as_f64().map(Self).ok_or_else(|| wrong::<Self>(&value))
    }

    fn into_value(self) -> Value {
        self.0.into()
    }
}

/// True or false.
pub struct Truth(pub bool);

impl Socket for Truth {
    const TYPE: &'static str = "BOOLEAN";

    fn from_value(value: Value) -> Result<Self> {
        value.as_bool().map(Self).ok_or_else(|| wrong::<Self>(&value))
    }

    fn into_value(self) -> Value {
        self.0.into()
    }
}

/// A value of any kind, passed on as it is.
pub struct Anything(pub Value);

impl Socket for Anything {
    const TYPE: &'static str = "*";

    fn from_value(value: Value) -> Result<Self> {
        Ok(Self(value))
    }

    fn into_value(self) -> Value {
        self.0
    }
}
