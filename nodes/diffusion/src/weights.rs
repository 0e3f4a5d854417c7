//! "weights/1" and "merge/1" of this library's objects: what is told of tensors, and how the other object is asked for its own.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use candle_core::{DType, Device};
use kosmograph_models::lora::{Factors, Other, Recipe};
use node::interface::{Merged, StoredAs, TensorInfo};
use node::*;
use node_candle::import;

/// Tensors as "weights/1" tells them.
pub fn told(tensors: Vec<(String, Vec<usize>, DType)>) -> Vec<(String, TensorInfo)> {
    let info = |(name, shape, dtype)| {
        let stored = match dtype {
            DType::F16 => StoredAs::F16,
            DType::BF16 => StoredAs::BF16,
            _ => StoredAs::F32,
        };
        (name, TensorInfo { shape, stored })
    };
    tensors.into_iter().map(info).collect()
}

/// What "merge/1" was asked for.
pub struct Merge {
    pub recipe: Recipe,
    /// Asks the other object for a tensor, whenever that is needed.
    pub other: Arc<Other>,
    /// Names that one of the two does not have, or has in another shape.
    pub absent: Vec<String>,
}

impl Merge {
    /// `own` are the tensors that there are.
    ///
    /// # Errors
    /// The other object tells nothing of its tensors, or a factor is no finite number.
    pub fn of(
        cx: &Context<'_>,
        own: Vec<(String, Vec<usize>, DType)>,
        tensors: Vec<Merged>,
        other: Option<Object>,
        device: &Device,
    ) -> Result<Self> {
        let theirs: HashMap<String, TensorInfo> = match &other {
            Some(other) if !other.offers("weights/1") => {
                return Err(Error::at(
                    "other",
                    format!(
                        "this {} does not tell its numbers: its library does not offer \"weights/1\"",
                        other.type_name()
                    ),
                ));
            }
            Some(other) => other.weights(cx)?.into_iter().collect(),
            None => HashMap::new(),
        };
        let own: HashMap<String, Vec<usize>> =
            own.into_iter().map(|(name, shape, _)| (name, shape)).collect();
        let fits = |merged: &Merged| {
            let shape = own.get(&merged.name);
            let needs_other = merged.other != 0.0;
            let same = || theirs.get(&merged.name).map(|info| &info.shape) == shape;
            shape.is_some() && (!needs_other || same())
        };
        let (merged, absent): (Vec<Merged>, Vec<Merged>) =
            tensors.into_iter().partition(|merged| fits(merged));
        let recipe =
            merged.into_iter().map(|Merged { name, own, other }| (name, Factors { own, other }));
        let device = device.clone();
        let asked = cx.device();
        let other: Arc<Other> = Arc::new(move |name: &str| {
            let own = OwnContext::new(&asked);
            let said = |error: Error| match error {
                Error::Cancelled => kosmograph_models::Error::Cancelled,
                error => kosmograph_models::Error::Input(error.to_string()),
            };
            let other = other.as_ref().ok_or_else(|| {
                kosmograph_models::Error::Input(format!(
                    "there is no other network to take `{name}` from"
                ))
            })?;
            other
                .weight(&own.context(), name)
                .and_then(|tensor| import(&tensor, &device))
                .map_err(said)
        });
        let absent = absent.into_iter().map(|merged| merged.name).collect();
        Ok(Self { recipe: recipe.collect(), other, absent })
    }
}

/// The object with its tensors made of its own and of another's, by what `factors` says of each name: own and other; nothing
/// where a tensor stays. What one of the two lacks is told.
///
/// # Errors
/// One of them does not tell its numbers, or the two have nothing in common.
pub fn merged(
    cx: &Context<'_>,
    (object, input): (&Object, &str),
    other: Option<(&Object, &str)>,
    factors: &dyn Fn(&str) -> Option<(f64, f64)>,
) -> Result<Object> {
    let refused = |object: &Object, what: &str| {
        Error::new(format!(
            "this {} cannot be merged: its library does not offer \"{what}\"",
            object.type_name()
        ))
    };
    for id in ["weights/1", "merge/1"] {
        if !object.offers(id) {
            return Err(refused(object, id).of_input(input));
        }
    }
    if let Some((other, input)) = other.filter(|(other, _)| !other.offers("weights/1")) {
        return Err(refused(other, "weights/1").of_input(input));
    }
    let named = |(name, _): (String, TensorInfo)| {
        let (own, other) = factors(&name)?;
        (own != 1.0 || other != 0.0).then_some(Merged { name, own, other })
    };
    let tensors: Vec<Merged> = object.weights(cx)?.into_iter().filter_map(named).collect();
    let wanted = tensors.len();
    let (merged, absent) = object.merged(cx, tensors, other.map(|(other, _)| other))?;
    if wanted > 0 && absent.len() == wanted {
        let input = other.map_or(input, |(_, input)| input);
        return Err(Error::at(
            input,
            format!(
                "none of the {wanted} tensors is in both networks in one shape: they are of two families, and cannot be \
                 merged"
            ),
        ));
    }
    let some: HashSet<&str> = absent.iter().take(3).map(String::as_str).collect();
    if !absent.is_empty() {
        let mut some: Vec<&str> = some.into_iter().collect();
        some.sort_unstable();
        cx.warn(format!(
            "{} of {wanted} tensors are not in both networks, or not in one shape, and stay as they are: {} …",
            absent.len(),
            some.join(", ")
        ));
    }
    Ok(merged)
}
