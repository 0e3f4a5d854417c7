//! The library's nodes by their class and input names.

use kosmograph_diffusion as _;
use node::testing::{Host, this_library};
use node::{Tensor, Value};

/// Runs a node; inputs that are not given have their defaults. An error is "input: sentence".
pub fn run(class: &str, inputs: &[(&str, Value)]) -> Result<Vec<Value>, String> {
    run_told(class, inputs).0
}

/// As [`run`], and what the node told meanwhile.
pub fn run_told(
    class: &str,
    inputs: &[(&str, Value)],
) -> (Result<Vec<Value>, String>, Vec<String>) {
    let host = Host::new();
    let result = host.run(&this_library!(), class, inputs);
    (result.map_err(|error| error.to_string()), host.logs())
}

/// The one output of a node that succeeds.
pub fn one(class: &str, inputs: &[(&str, Value)]) -> Value {
    run(class, inputs).unwrap_or_else(|error| panic!("{class}: {error}")).remove(0)
}

pub fn tensor(shape: &[usize], values: Vec<f32>) -> Value {
    Tensor::from_f32(shape, values).unwrap().into_value()
}

pub fn values(value: &Value) -> Vec<f32> {
    value.as_tensor().unwrap().to_f32().unwrap().into_owned()
}

pub fn samples(latent: &Value) -> Vec<f32> {
    values(&latent.get("samples").unwrap())
}
