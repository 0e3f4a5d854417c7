//! Hypernetworks: small networks beside a U-Net's attentions that change what keys and values are made of (AUTOMATIC1111's form of
//! NovelAI's idea). k + s · f(k) is projected to keys in the place of k, v + s · g(v) to values.
//!
//! A file of torch has, by the width of what is attended to, two networks: of keys and of values.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Result as CandleResult, Tensor};
use kosmograph_kernels::bounds::{between, larger};

use crate::error::{Error, Result};
use crate::files::pickle::{Plain, TorchFile};
use crate::files::weights::Weights;
use crate::layers::{LayerNorm, Linear};

/// torch's of a LayerNorm that nobody says otherwise.
const EPS: f64 = 1e-5;

/// Between the layers of a hypernetwork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activation {
    Linear,
    Relu,
    LeakyRelu,
    Elu,
    /// Called "swish" in the files; the hard form, as ComfyUI and A1111 have it.
    HardSwish,
    Tanh,
    Sigmoid,
    Softsign,
    Mish,
}

impl Activation {
    const NAMES: [(&'static str, Activation); 9] = [
        ("linear", Activation::Linear),
        ("relu", Activation::Relu),
        ("leakyrelu", Activation::LeakyRelu),
        ("elu", Activation::Elu),
        ("swish", Activation::HardSwish),
        ("tanh", Activation::Tanh),
        ("sigmoid", Activation::Sigmoid),
        ("softsign", Activation::Softsign),
        ("mish", Activation::Mish),
    ];

    fn forward(self, x: Tensor) -> CandleResult<Tensor> {
        match self {
            Activation::Linear => Ok(x),
            Activation::Relu => x.relu(),
            // torch's slope of what is below 0.
            Activation::LeakyRelu => larger(&x, &(&x * 0.01)?),
            Activation::Elu => x.elu(1.0),
            Activation::HardSwish => &x * (between(&(&x + 3.0)?, 0.0, 6.0)? / 6.0)?,
            Activation::Tanh => x.tanh(),
            Activation::Sigmoid => sigmoid(&x),
            Activation::Softsign => &x / (x.abs()? + 1.0)?,
            Activation::Mish => {
                // ln(1 + eˣ) without overflow: max(x, 0) + ln(1 + e^-|x|).
                let soft = (x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
                &x * soft.tanh()?
            }
        }
    }
}

/// 1/(1 + e^-x), by a tangent that does not overflow.
fn sigmoid(x: &Tensor) -> CandleResult<Tensor> {
    ((x * 0.5)?.tanh()? + 1.0)? * 0.5
}

enum Layer {
    Linear(Linear),
    Norm(LayerNorm),
    Activation(Activation),
}

impl Layer {
    fn forward(&self, x: Tensor) -> CandleResult<Tensor> {
        match self {
            Layer::Linear(linear) => linear.forward(&x),
            Layer::Norm(norm) => norm.forward(&x),
            Layer::Activation(activation) => activation.forward(x),
        }
    }
}

/// Networks of keys and of values, by the width of what is attended to.
pub struct Hypernetwork {
    networks: HashMap<usize, [Vec<Layer>; 2]>,
}

impl Hypernetwork {
    /// The hypernetwork in the file of torch at `path`.
    ///
    /// # Errors
    /// The file cannot be read, or is none, or names an activation that is not known.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let refused = |what: String| Error::NotThisKind { path: path.to_owned(), what };
        let settings = match TorchFile::open(path) {
            Ok(file) => file.plain().clone(),
            Err(error) => return Err(error),
        };
        let is_set = |name: &str| matches!(settings.get(name), Some(Plain::Bool(true)));
        let activation = match settings.get("activation_func") {
            None => Activation::Linear,
            Some(Plain::Text(name)) => {
                let known = Activation::NAMES.iter().find(|(known, _)| known == name);
                let names = Activation::NAMES.map(|(known, _)| known).join(", ");
                known
                    .ok_or_else(|| {
                        refused(format!("its activation is \"{name}\", which is none of {names}"))
                    })?
                    .1
            }
            Some(_) => return Err(refused("its activation is no text".to_owned())),
        };
        let form = Form {
            activation,
            normed: is_set("is_layer_norm"),
            to_the_end: is_set("activate_output"),
        };
        let weights = Weights::open(path, device)?;
        let mut networks = HashMap::new();
        for width in widths(&weights.names()) {
            let network = |which: usize| {
                form.load(&weights.sub(width.to_string()).sub(which.to_string()), width)
            };
            networks.insert(width, [network(0)?, network(1)?]);
        }
        if networks.is_empty() {
            return Err(refused(
                "it is no hypernetwork: it has no networks of a width, as \"768.0.linear.0.weight\""
                    .to_owned(),
            ));
        }
        Ok(Self { networks })
    }

    /// What keys and values are made of in the place of k and v [B, T, C]; `None` of a width that it has no networks for.
    ///
    /// # Errors
    /// candle's.
    pub fn change(
        &self,
        k: &Tensor,
        v: &Tensor,
        strength: f64,
    ) -> CandleResult<Option<(Tensor, Tensor)>> {
        let Some([keys, values]) = self.networks.get(&k.dim(2)?) else { return Ok(None) };
        let through = |x: &Tensor, layers: &[Layer]| {
            let y = layers.iter().try_fold(x.clone(), |x, layer| layer.forward(x))?;
            x + (y * strength)?
        };
        Ok(Some((through(k, keys)?, through(v, values)?)))
    }
}

/// How the networks of a file are built.
#[derive(Clone, Copy)]
struct Form {
    activation: Activation,
    /// Whether a norm follows each linear layer.
    normed: bool,
    /// Whether the last layer has an activation, too.
    to_the_end: bool,
}

impl Form {
    /// The layers of one network, by ComfyUI's rule: with norms the last linear layer keeps its activation.
    fn load(self, weights: &Weights, width: usize) -> Result<Vec<Layer>> {
        let names = in_order(&weights.names());
        let mut layers = Vec::new();
        let (mut at, mut inputs) = (0, width);
        while let Some(name) = names.get(at) {
            let (is_last, here) = (at + 1 == names.len(), weights.sub(name));
            let rows = here.shape("weight").and_then(|shape| shape.first().copied());
            let outputs = rows.unwrap_or(0);
            layers.push(Layer::Linear(Linear::load(&here, inputs, outputs)?));
            inputs = outputs;
            if self.activation != Activation::Linear && (!is_last || self.to_the_end) {
                layers.push(Layer::Activation(self.activation));
            }
            if self.normed {
                at += 1;
                let Some(norm) = names.get(at) else {
                    return Err(Error::Input(format!(
                        "{} says that a norm follows each layer, but none follows `{name}`",
                        weights.origin()
                    )));
                };
                layers.push(Layer::Norm(LayerNorm::load(&weights.sub(norm), inputs, EPS)?));
            }
            at += 1;
        }
        match inputs == width && !layers.is_empty() {
            true => Ok(layers),
            false => Err(Error::Input(format!(
                "a network of {} makes {inputs} numbers of {width}; as many would be right",
                weights.origin()
            ))),
        }
    }
}

/// The widths that tensors are named for, "768.0.linear.0.weight".
fn widths(names: &[String]) -> Vec<usize> {
    let mut widths: Vec<usize> =
        names.iter().filter_map(|name| name.split('.').next()?.parse().ok()).collect();
    widths.sort_unstable();
    widths.dedup();
    widths
}

/// The layers with a weight, in the order of the numbers in their names: "linear.2" before "linear.10".
fn in_order(names: &[String]) -> Vec<String> {
    let mut layers: Vec<String> =
        names.iter().filter_map(|name| name.strip_suffix(".weight")).map(str::to_owned).collect();
    let number = |name: &str| -> u64 {
        let digits: String = name.chars().filter(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(0)
    };
    layers.sort_by_key(|name| number(name));
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(k: usize) -> Vec<f32> {
        (0..8).map(|i| (((i * 37 + k * 11) % 23) as f32 / 11.5 - 1.0) * 2.0).collect()
    }

    fn close(found: &Tensor, expected: &[f32]) {
        let found: Vec<f32> = found.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 2e-5, "{found} for {expected}");
        }
    }

    /// By torch: nodes/diffusion/tests/data/make_hypernetwork.py.
    #[test]
    fn keys_and_values_are_changed_as_torch_does_it() -> Result<()> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../diffusion/tests/data");
        let expected: [(&str, [f32; 8], [f32; 8]); 3] = [
            (
                "mish",
                [-0.745183, -1.19825, 0.940268, -0.993739, 1.90687, 0.510682, -1.96302, 0.471864],
                [2.83788, -0.206611, -1.7933, 0.677522, -0.786413, 1.47547, -0.0667825, -0.249051],
            ),
            (
                "swish",
                [-0.143272, -1.09396, 1.08809, -0.738921, 1.85791, 0.539387, -1.62197, 0.539877],
                [1.99231, -0.059009, -1.90261, 0.583025, -0.475307, 1.61767, -0.131569, -1.036],
            ),
            (
                "tanh",
                [-0.168153, -1.22557, 1.0866, -0.620434, 1.91315, 0.521288, -1.69902, 0.62396],
                [2.0307, -0.0759023, -1.79102, 0.595343, -0.425956, 1.56764, -0.0734517, -0.993304],
            ),
        ];
        let tensor = |k| Tensor::from_vec(numbers(k), (1, 2, 4), &Device::Cpu);
        for (activation, keys, values) in expected {
            let file = folder.join(format!("hypernetwork_{activation}.pt"));
            let network = Hypernetwork::open(&file, &Device::Cpu)?;
            let (k, v) =
                network.change(&tensor(1)?, &tensor(4)?, 0.5)?.expect("it is of 4 numbers");
            close(&k, &keys);
            close(&v, &values);
            let other = Tensor::zeros((1, 2, 5), candle_core::DType::F32, &Device::Cpu)?;
            assert!(network.change(&other, &other, 1.0)?.is_none(), "of 5 it has none");
        }
        Ok(())
    }

    /// torch's.
    #[test]
    fn activations_are_torchs() -> CandleResult<()> {
        let x = Tensor::new(&[-4f32, -2.5, -1.0, -0.3, 0.0, 0.4, 1.5, 3.2, 8.0], &Device::Cpu)?;
        let expected: [(&str, [f32; 9]); 8] = [
            ("relu", [0.0, 0.0, 0.0, 0.0, 0.0, 0.4, 1.5, 3.2, 8.0]),
            ("leakyrelu", [-0.04, -0.025, -0.01, -0.003, 0.0, 0.4, 1.5, 3.2, 8.0]),
            ("elu", [-0.981684, -0.917915, -0.632121, -0.259182, 0.0, 0.4, 1.5, 3.2, 8.0]),
            ("swish", [0.0, -0.208333, -0.333333, -0.135, 0.0, 0.226667, 1.125, 3.2, 8.0]),
            (
                "tanh",
                [
                    -0.999329, -0.986614, -0.761594, -0.291313, 0.0, 0.379949, 0.905148, 0.996682,
                    1.0,
                ],
            ),
            (
                "sigmoid",
                [
                    0.0179862, 0.0758582, 0.268941, 0.425557, 0.5, 0.598688, 0.817574, 0.960834,
                    0.999665,
                ],
            ),
            (
                "softsign",
                [-0.8, -0.714286, -0.5, -0.230769, 0.0, 0.285714, 0.6, 0.761905, 0.888889],
            ),
            (
                "mish",
                [-0.0725918, -0.196816, -0.303401, -0.151133, 0.0, 0.289031, 1.40338, 3.1902, 8.0],
            ),
        ];
        for (name, expected) in expected {
            let known = Activation::NAMES.iter().find(|(known, _)| *known == name);
            close(&known.expect("it is known").1.forward(x.clone())?, &expected);
        }
        Ok(())
    }

    #[test]
    fn what_is_no_hypernetwork_is_told() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../diffusion/tests/data");
        let file = folder.join("embedding.pt");
        let said = Hypernetwork::open(&file, &Device::Cpu).err().map(|error| error.to_string());
        assert!(said.is_some_and(|said| said.contains("no hypernetwork")));
    }
}
