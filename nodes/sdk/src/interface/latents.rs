//! What is done to latents, as a value: "latent_operation/1", from both sides.

use super::{give, marker, tensor};
use crate::object::{Arguments, Interface};
use crate::{Context, Object, Result, Tensor, Value};

/// "latent_operation/1", offered by a LATENT_OPERATION.
pub trait OperateOnLatents {
    /// [B, C, H, W] to the same.
    fn operate(&self, cx: &Context<'_>, latents: &Tensor) -> Result<Tensor>;
}

impl<T: OperateOnLatents> Interface<T> for marker::LatentOperation {
    const ID: &'static str = "latent_operation/1";

    fn call(object: &T, cx: &Context<'_>, input: &Arguments<'_>) -> Result<Value> {
        give("latents", object.operate(cx, &input.tensor("latents")?)?)
    }
}

impl Object {
    /// "latent_operation/1".
    pub fn operate(&self, cx: &Context<'_>, latents: Tensor) -> Result<Tensor> {
        let input = [("latents", latents.into_value())];
        tensor(&self.call(cx, "latent_operation/1", input)?, "latents")
    }
}
