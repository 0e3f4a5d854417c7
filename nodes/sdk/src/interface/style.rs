//! A picture's style as tokens: "style_model/1", from both sides.

use super::{marker, tensor};
use crate::object::{Arguments, Interface};
use crate::{Context, Object, Result, Tensor, Value};

/// "style_model/1", offered by a STYLE_MODEL.
pub trait StyleTokens {
    /// [B, S, E] of what CLIP's picture half says before its projection, [B, T, D].
    fn tokens(&self, cx: &Context<'_>, last_hidden_state: &Tensor) -> Result<Tensor>;
}

impl<T: StyleTokens> Interface<T> for marker::StyleModel {
    const ID: &'static str = "style_model/1";

    fn call(object: &T, cx: &Context<'_>, input: &Arguments<'_>) -> Result<Value> {
        let tokens = object.tokens(cx, &input.tensor("last_hidden_state")?)?;
        Ok(Value::map([("tokens", tokens.into_value())]))
    }
}

impl Object {
    /// "style_model/1".
    pub fn style_tokens(&self, cx: &Context<'_>, last_hidden_state: Tensor) -> Result<Tensor> {
        let input = [("last_hidden_state", last_hidden_state.into_value())];
        tensor(&self.call(cx, "style_model/1", input)?, "tokens")
    }
}
