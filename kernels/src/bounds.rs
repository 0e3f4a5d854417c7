//! The larger and the smaller of two values, element by element: the tensor library's own operators. There they are generic over
//! what a tensor is compared with, so that every crate that asks for one compiles them anew for all kinds of numbers.

use candle_core::{Result, Tensor};

/// max(a, b), of one shape.
///
/// # Errors
/// Those of the tensor library, as of all functions here.
pub fn larger(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.maximum(b)
}

/// min(a, b), of one shape.
pub fn smaller(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.minimum(b)
}

/// max(x, least), any shape.
pub fn at_least(x: &Tensor, least: f64) -> Result<Tensor> {
    x.maximum(least)
}

/// min(x, most), any shape.
pub fn at_most(x: &Tensor, most: f64) -> Result<Tensor> {
    x.minimum(most)
}

/// min(max(x, least), most), any shape.
pub fn between(x: &Tensor, least: f64, most: f64) -> Result<Tensor> {
    at_most(&at_least(x, least)?, most)
}
