//! A person in the place of a word: "photo_maker/1", from both sides.

use super::{marker, tensor};
use crate::object::{Arguments, Interface};
use crate::{Context, Object, Result, Tensor, Value};

/// "photo_maker/1", offered by a PHOTOMAKER.
pub trait PutPerson {
    /// The states of a text [1, T, E] with the person of pictures [N, H, W, 3], 0 to 1, in the place of N tokens from number `at` on.
    fn put_person(
        &self,
        cx: &Context<'_>,
        image: &Tensor,
        context: &Tensor,
        at: usize,
    ) -> Result<Tensor>;
}

impl<T: PutPerson> Interface<T> for marker::PhotoMaker {
    const ID: &'static str = "photo_maker/1";

    fn call(object: &T, cx: &Context<'_>, input: &Arguments<'_>) -> Result<Value> {
        let (image, context) = (input.tensor("image")?, input.tensor("context")?);
        let context = object.put_person(cx, &image, &context, input.size("at")?)?;
        Ok(Value::map([("context", context.into_value())]))
    }
}

impl Object {
    /// "photo_maker/1".
    pub fn put_person(
        &self,
        cx: &Context<'_>,
        image: Tensor,
        context: Tensor,
        at: usize,
    ) -> Result<Tensor> {
        let at = i64::try_from(at).unwrap_or(i64::MAX);
        let input =
            [("image", image.into_value()), ("context", context.into_value()), ("at", at.into())];
        tensor(&self.call(cx, "photo_maker/1", input)?, "context")
    }
}
