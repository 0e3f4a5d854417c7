//! This project's weights as candle-transformers asks for its own: mapped files of any kind, each tensor looked at, sizes known before memory
//! is taken.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use kosmograph_models::{Error, Result, Weights};

/// Weights behind candle's `VarBuilder`.
struct Backend {
    weights: Weights,
    /// The name in the file of the tensor that is asked for.
    name: fn(&str) -> String,
    /// The first failure, whole: candle's errors carry texts alone.
    failure: Arc<Mutex<Option<Error>>>,
}

impl SimpleBackend for Backend {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        _: DType,
        _: &Device,
    ) -> candle_core::Result<Tensor> {
        self.weights.get(&(self.name)(name), shape).map_err(|error| self.failed(error))
    }

    fn get_unchecked(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let own = (self.name)(name);
        match self.weights.shape(&own) {
            Some(shape) => self.get(shape.into(), name, Init::Const(0.0), dtype, device),
            None => Err(self.failed(missing(&self.weights, &own))),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.weights.shape(&(self.name)(name)).is_some()
    }
}

impl Backend {
    fn failed(&self, error: Error) -> candle_core::Error {
        let told = candle_core::Error::Msg(error.to_string());
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        told
    }
}

/// What candle-transformers builds of these weights.
///
/// # Errors
/// What [`Weights::get`] reports of the first tensor that is not what it should be.
pub fn build<N>(
    weights: &Weights,
    network: impl FnOnce(VarBuilder) -> candle_core::Result<N>,
) -> Result<N> {
    build_named(weights, str::to_owned, network)
}

/// [`build`], where the tensor that is asked for has another name in the file.
///
/// # Errors
/// As [`build`].
pub fn build_named<N>(
    weights: &Weights,
    name: fn(&str) -> String,
    network: impl FnOnce(VarBuilder) -> candle_core::Result<N>,
) -> Result<N> {
    let failure = Arc::new(Mutex::new(None));
    let backend = Backend { weights: weights.clone(), name, failure: Arc::clone(&failure) };
    let device = weights.device().clone();
    network(VarBuilder::from_backend(Box::new(backend), DType::F32, device)).map_err(|error| {
        let first = failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.unwrap_or(error.into())
    })
}

/// The sizes of a tensor that says how large a network is, as many as `N`.
///
/// # Errors
/// It is not there, or has another number of axes, or one of them is empty.
pub fn sizes<const N: usize>(weights: &Weights, name: &str) -> Result<[usize; N]> {
    let Some(found) = weights.shape(name) else { return Err(missing(weights, name)) };
    match <[usize; N]>::try_from(found.as_slice()) {
        Ok(sizes) if !sizes.contains(&0) => Ok(sizes),
        Ok(_) => Err(Error::Input(format!("`{name}` in {} is empty", weights.origin()))),
        _ => Err(Error::Axes {
            file: weights.origin().to_owned(),
            name: name.to_owned(),
            axes: N,
            found,
        }),
    }
}

fn missing(weights: &Weights, name: &str) -> Error {
    Error::MissingTensor { file: weights.origin().to_owned(), name: name.to_owned(), nearest: None }
}

/// How many layers there are, of those that have a tensor of this name.
pub fn count(weights: &Weights, name: impl Fn(usize) -> String) -> usize {
    (0..).take_while(|i| weights.shape(&name(*i)).is_some()).count()
}

/// How many heads of `wide` numbers attention of this width has.
///
/// # Errors
/// It cannot be divided so.
pub fn heads(weights: &Weights, width: usize, wide: usize) -> Result<usize> {
    if wide == 0 || !width.is_multiple_of(wide) {
        return Err(Error::Input(format!(
            "{} has attention of width {width}, which is no multiple of the {wide} numbers of a head",
            weights.origin()
        )));
    }
    Ok(width / wide)
}

/// That a file is no `wanted`, by the names of its first tensors.
pub fn not_this(weights: &Weights, wanted: &str) -> Error {
    let names: Vec<String> =
        weights.names().iter().take(3).map(|name| format!("`{name}`")).collect();
    let what = match names.is_empty() {
        true => format!("it holds no tensors; {wanted} would be right"),
        false => format!(
            "its tensors ({} …) are those of another network; {wanted} would be right",
            names.join(", ")
        ),
    };
    Error::NotThisKind { path: weights.origin().into(), what }
}

/// A new name for each tensor, by `rename`.
pub fn renamed(weights: &Weights, rename: impl Fn(&str) -> String) -> Weights {
    let names = weights.names().into_iter().map(|name| (rename(&name), name));
    weights.renamed(names.collect::<Vec<_>>())
}
