//! Boxes that say what is where: "grounding/1", from both sides.

use super::patches::{of_patches, patches_of};
use super::{Patch, marker, tensor};
use crate::object::{Arguments, Interface};
use crate::{Context, Error, Object, Result, Tensor, Value};

/// "grounding/1", offered by a GLIGEN.
pub trait Ground {
    /// What a U-Net is patched with for these boxes.
    fn ground(&self, cx: &Context<'_>, boxes: Vec<GroundedBox>) -> Result<Vec<Patch>>;
}

/// A box, in latent pixels.
#[derive(Clone, Debug)]
pub struct GroundedBox {
    /// [1, P], the pooled vector of its text.
    pub text: Tensor,
    pub height: i64,
    pub width: i64,
    pub y: i64,
    pub x: i64,
}

impl GroundedBox {
    /// # Errors
    /// The map is not what node.h says.
    pub fn read(value: &Value) -> Result<Self> {
        let number = |key: &str| {
            let number = value.get(key).and_then(|number| number.as_i64());
            number.ok_or_else(|| Error::at("boxes", format!("a box has an integer \"{key}\"")))
        };
        Ok(Self {
            text: tensor(value, "text").map_err(|error| error.of_input("boxes"))?,
            height: number("height")?,
            width: number("width")?,
            y: number("y")?,
            x: number("x")?,
        })
    }

    /// As a map of node.h's.
    pub fn into_value(self) -> Value {
        Value::map([
            ("text", self.text.into_value()),
            ("height", self.height.into()),
            ("width", self.width.into()),
            ("y", self.y.into()),
            ("x", self.x.into()),
        ])
    }
}

impl<T: Ground> Interface<T> for marker::Grounding {
    const ID: &'static str = "grounding/1";

    fn call(object: &T, cx: &Context<'_>, input: &Arguments<'_>) -> Result<Value> {
        let Some(boxes) = input.get("boxes").as_list() else {
            return Err(Error::at("boxes", "a list of boxes is wanted"));
        };
        let boxes = boxes.iter().map(GroundedBox::read).collect::<Result<_>>()?;
        Ok(Value::map([("patches", of_patches(object.ground(cx, boxes)?))]))
    }
}

impl Object {
    /// "grounding/1" of boxes as a CONDITIONING has them.
    pub fn ground(&self, cx: &Context<'_>, boxes: Value) -> Result<Vec<Patch>> {
        let answer = self.call(cx, "grounding/1", [("boxes", boxes)])?;
        patches_of(&answer.get("patches").unwrap_or(Value::NONE))
    }
}
