//! ControlNets: "control/1", and what makes one of something else.

use super::{list, marker, named, named_tensors};
use crate::object::{Arguments, Interface};
use crate::{Context, Error, Object, Result, Tensor, Value};

/// "control/1", offered by a CONTROL_NET.
pub trait Control {
    fn residuals(&self, cx: &Context<'_>, call: &ControlCall) -> Result<Vec<Tensor>>;

    /// All that it gives: what a T2I-Adapter has is features.
    fn steer(&self, cx: &Context<'_>, call: &ControlCall) -> Result<ControlAnswer> {
        Ok(ControlAnswer { residuals: self.residuals(cx, call)?, features: Vec::new() })
    }
}

/// What "control/1" gives.
#[derive(Clone, Debug, Default)]
pub struct ControlAnswer {
    /// One per skip connection, the middle's last; or none.
    pub residuals: Vec<Tensor>,
    /// By the name of the block whose result they are added to.
    pub features: Vec<(String, Tensor)>,
}

/// What "control/1" takes.
#[derive(Clone, Debug)]
pub struct ControlCall {
    /// [B, C, H, W].
    pub x: Tensor,
    /// \[B\].
    pub timestep: Tensor,
    /// [B, T, D].
    pub context: Tensor,
    /// [B, 3, 8H, 8W] in 0..1.
    pub hint: Tensor,
    pub strength: f64,
    pub guess: bool,
    /// [B, P].
    pub pooled: Option<Tensor>,
    /// [B, S].
    pub sizes: Option<Tensor>,
}

/// "control_of/1", offered by a MODEL.
pub trait ControlOf {
    /// The ControlNet that these changes make of the model's own contracting half.
    fn control_of(&self, cx: &Context<'_>, changes: &ControlChanges) -> Result<Object>;
}

/// What makes a ControlNet of a U-Net, each by diffusers' name of a ControlNet's tensor.
#[derive(Clone, Debug, Default)]
pub struct ControlChanges {
    /// In the place of the U-Net's tensor.
    pub weights: Vec<(String, Tensor)>,
    /// Added to the U-Net's tensor, where it has one of that name.
    pub differences: Vec<(String, Tensor)>,
    /// The factors of what is added to the U-Net's tensor.
    pub up: Vec<(String, Tensor)>,
    pub down: Vec<(String, Tensor)>,
}

/// "base_model/1", offered by a CONTROL_NET that is said as changes of a model's own U-Net.
pub trait BaseModel {
    /// The ControlNet that it is of `model`.
    fn of_model(&self, cx: &Context<'_>, model: &Object) -> Result<Object>;
}

/// "control_type/1", offered by a CONTROL_NET.
pub trait ControlType {
    /// The same control network, told that its hints are of the kind `kind`, or of none.
    fn of_type(&self, cx: &Context<'_>, kind: Option<usize>) -> Result<Object>;
}

interface!(ControlNet, "control/1", Control, |object, cx, input| {
    let call = ControlCall {
        x: input.tensor("x")?,
        timestep: input.tensor("timestep")?,
        context: input.tensor("context")?,
        hint: input.tensor("hint")?,
        strength: input.number("strength")?,
        guess: input.boolean("guess")?,
        pooled: input.optional_tensor("pooled"),
        sizes: input.optional_tensor("sizes"),
    };
    let ControlAnswer { residuals, features } = object.steer(cx, &call)?;
    let residuals = [("residuals", list(residuals))];
    let features = (!features.is_empty()).then(|| ("features", named(features)));
    Ok(Value::map(residuals.into_iter().chain(features)))
});
interface!(ControlOf, "control_of/1", ControlOf, |object, cx, input| {
    let tensors = |key: &str| named_tensors(&input.get(key));
    let changes = ControlChanges {
        weights: tensors("weights"),
        differences: tensors("differences"),
        up: tensors("up"),
        down: tensors("down"),
    };
    Ok(Value::map([("control_net", object.control_of(cx, &changes)?.into_value())]))
});
interface!(BaseModel, "base_model/1", BaseModel, |object, cx, input| {
    let model = input.get("model").as_object();
    let model = model.ok_or_else(|| Error::at("model", "a MODEL is wanted"))?;
    Ok(Value::map([("control_net", object.of_model(cx, &model)?.into_value())]))
});
interface!(ControlType, "control_type/1", ControlType, |object, cx, input| {
    let kind = usize::try_from(input.integer("type")?).ok();
    Ok(Value::map([("control_net", object.of_type(cx, kind)?.into_value())]))
});
