//! A network's numbers as values: "weights/1" and "merge/1", from both sides.

use super::{marker, tensor};
use crate::object::{Arguments, Interface};
use crate::{Context, Error, Object, Result, Tensor, Value};

/// "weights/1", offered by a MODEL, a CLIP and a VAE.
pub trait TellWeights {
    /// All that there are, by their names.
    fn tensors(&self, cx: &Context<'_>) -> Result<Vec<(String, TensorInfo)>>;

    /// One, as it is in force.
    fn tensor(&self, cx: &Context<'_>, name: &str) -> Result<Tensor>;
}

/// A tensor of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub shape: Vec<usize>,
    pub stored: StoredAs,
}

/// What its file has a tensor in; what has fewer bits counts as f16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredAs {
    F32,
    F16,
    BF16,
}

impl StoredAs {
    const NAMES: [(StoredAs, &'static str); 3] =
        [(StoredAs::F32, "F32"), (StoredAs::F16, "F16"), (StoredAs::BF16, "BF16")];

    /// As node.h calls it.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(stored, _)| *stored == self).map_or("F32", |(_, name)| name)
    }

    /// `None` where node.h has no such name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, known)| *known == name).map(|(stored, _)| *stored)
    }
}

/// "merge/1", offered by a MODEL and a CLIP.
pub trait MergeWeights {
    /// The same object with the tensors merged, and the names that one of the two does not have.
    fn merged(
        &self,
        cx: &Context<'_>,
        tensors: Vec<Merged>,
        other: Option<Object>,
    ) -> Result<(Object, Vec<String>)>;
}

/// A tensor W that becomes own · W + other · V.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    pub name: String,
    pub own: f64,
    pub other: f64,
}

impl<T: TellWeights> Interface<T> for marker::Weights {
    const ID: &'static str = "weights/1";

    fn call(object: &T, cx: &Context<'_>, input: &Arguments<'_>) -> Result<Value> {
        if !input.get("name").is_none() {
            let tensor = object.tensor(cx, &input.text("name")?)?;
            return Ok(Value::map([("tensor", tensor.into_value())]));
        }
        let info = |info: TensorInfo| {
            let shape = info.shape.iter().map(|&side| Value::from(side as i64)).collect();
            Value::map([("shape", Value::list(shape)), ("type", Value::string(info.stored.name()))])
        };
        let tensors = object.tensors(cx)?.into_iter().map(|(name, tensor)| (name, info(tensor)));
        Ok(Value::map([("tensors", Value::map(tensors))]))
    }
}

impl<T: MergeWeights> Interface<T> for marker::Merge {
    const ID: &'static str = "merge/1";

    fn call(object: &T, cx: &Context<'_>, input: &Arguments<'_>) -> Result<Value> {
        let Some(tensors) = input.get("tensors").as_map() else {
            return Err(Error::at(
                "tensors",
                "a map from names to \"own\" and \"other\" is wanted",
            ));
        };
        let merged = |(name, factors): (String, Value)| {
            let factor = |key: &str| factors.get(key).and_then(|factor| factor.as_f64());
            let Some(own) = factor("own") else {
                return Err(Error::at("tensors", format!("\"{name}\" has no number \"own\"")));
            };
            Ok(Merged { name, own, other: factor("other").unwrap_or(0.0) })
        };
        let tensors = tensors.into_iter().map(merged).collect::<Result<_>>()?;
        let other = input.get("other");
        if !other.is_none() && other.as_object().is_none() {
            return Err(Error::at("other", "an object is wanted"));
        }
        let (merged, absent) = object.merged(cx, tensors, other.as_object())?;
        let absent = Value::list(absent.into_iter().map(Value::string).collect());
        Ok(Value::map([("object", merged.into_value()), ("absent", absent)]))
    }
}

impl Object {
    /// "weights/1": the tensors that there are.
    pub fn weights(&self, cx: &Context<'_>) -> Result<Vec<(String, TensorInfo)>> {
        let answer = self.call(cx, "weights/1", [])?;
        let wrong = || self.odd("weights/1", "tensors");
        let tensors = answer.get("tensors").unwrap_or(Value::NONE);
        let read = |(name, info): (&str, &Value)| {
            let shape = info.get("shape").unwrap_or(Value::NONE);
            let side = |side: &Value| side.as_i64().and_then(|side| usize::try_from(side).ok());
            let shape: Option<Vec<usize>> = shape.items().iter().map(side).collect();
            let stored = info.get("type").and_then(|name| StoredAs::named(name.as_str()?));
            let (Some(shape), Some(stored)) = (shape, stored) else { return Err(wrong()) };
            Ok((name.to_owned(), TensorInfo { shape, stored }))
        };
        if tensors.as_map().is_none() {
            return Err(wrong());
        }
        tensors.pairs().map(|(name, info)| read((name, info))).collect()
    }

    /// "weights/1": one tensor.
    pub fn weight(&self, cx: &Context<'_>, name: &str) -> Result<Tensor> {
        tensor(&self.call(cx, "weights/1", [("name", Value::string(name))])?, "tensor")
    }

    /// "merge/1".
    pub fn merged(
        &self,
        cx: &Context<'_>,
        tensors: Vec<Merged>,
        other: Option<&Object>,
    ) -> Result<(Object, Vec<String>)> {
        let factors = |merged: &Merged| {
            Value::map([("own", Value::from(merged.own)), ("other", Value::from(merged.other))])
        };
        let tensors = tensors.iter().map(|merged| (merged.name.clone(), factors(merged)));
        let other = other.map_or(Value::NONE, |other| other.clone().into_value());
        let input = [("tensors", Value::map(tensors)), ("other", other)];
        self.changed(&self.call(cx, "merge/1", input)?, "merge/1")
    }
}
