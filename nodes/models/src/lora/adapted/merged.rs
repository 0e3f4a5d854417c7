//! A network's numbers as they are in force, and networks of which each tensor is made of two others': merges.
//!
//! A merge is the base of another network: LoRAs go onto it as onto any, and what it is made of may have LoRAs on it. Nothing is
//! computed before the first use. Then one tensor after the other is made, in the type that its file has it in, of tensors that
//! are in memory already or are read for this alone: beside the network itself there is one layer at a time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::{DType, Result as CandleResult, Tensor};

use super::{Adapted, Load, Loaded, apply};
use crate::error::{Error, Result};
use crate::files::resident::Resident;
use crate::files::weights::{Weight, Weights};

/// What a tensor W becomes: own · W + other · V.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    pub own: f64,
    pub other: f64,
}

/// By the names of tensors; what it does not name stays what it is.
pub type Recipe = BTreeMap<String, Factors>;

/// The tensor of a name of the other network, in f32.
pub type Other = dyn Fn(&str) -> Result<Tensor> + Send + Sync;

/// What a base is made of: a tensor as it is in memory, without changes.
pub(super) type Read = dyn Fn(&str) -> Result<Tensor> + Send + Sync;

/// Tensors that files carry and no network reads.
fn is_buffer(name: &str) -> bool {
    name.ends_with("position_ids") || name == "logit_scale"
}

impl Weights {
    /// The names, the shapes and the types of the tensors that networks read.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>, DType)> {
        let tensor = |name: String| {
            let (shape, dtype) = (self.shape(&name)?, self.file_type(&name)?);
            Some((name, shape, dtype))
        };
        self.names().into_iter().filter(|name| !is_buffer(name)).filter_map(tensor).collect()
    }

    /// One of them, in the shape and the type that the file has.
    ///
    /// # Errors
    /// There is no such tensor, or it cannot be read.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let shape = self.shape(name).unwrap_or_default();
        Ok(self.get_weight(name, shape)?.tensor()?)
    }
}

impl<N: Send + Sync + 'static> Adapted<N> {
    /// The names, the shapes and the types of its tensors, as their file has them.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>, DType)> {
        self.weights.tensors()
    }

    /// A tensor with all that is changed about it, in f32. The network need not be in memory, and is not read for it.
    ///
    /// # Errors
    /// There is no such tensor, or it cannot be read.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let loaded = self.base.in_memory();
        let held = loaded.as_ref().and_then(|loaded| loaded.tensors.get(name));
        let base = match held {
            Some(weight) => weight.tensor()?,
            None => (self.read)(name)?,
        };
        let changed = match self.changes.get(name) {
            Some(changes) => apply(&base, changes)?,
            None => base,
        };
        Ok(changed.to_dtype(DType::F32)?)
    }

    /// The network whose tensors are made of this one's, as they are in force, and of `other`'s.
    ///
    /// # Errors
    /// A factor that is no finite number.
    pub fn merged(&self, recipe: Recipe, other: Arc<Other>) -> Result<Self> {
        let finite = |(_, factors): &(&String, &Factors)| {
            factors.own.is_finite() && factors.other.is_finite()
        };
        if let Some((name, factors)) = recipe.iter().find(|entry| !finite(entry)) {
            return Err(Error::Input(format!(
                "`{name}` cannot be merged by {} and {}: finite factors are wanted",
                factors.own, factors.other
            )));
        }
        let tensors = self.tensors();
        let bytes = tensors
            .iter()
            .map(|(_, shape, dtype)| shape.iter().product::<usize>() * dtype.size_in_bytes());
        let bytes = bytes.sum();
        let types: HashMap<String, DType> =
            tensors.into_iter().map(|(name, _, dtype)| (name, dtype)).collect();
        let names: Vec<String> = types.keys().cloned().collect();
        let parent = self.clone();
        let read: Arc<Read> = Arc::new(move |name: &str| {
            let own = parent.tensor(name)?;
            let dtype = types.get(name).copied().unwrap_or(DType::F32);
            match recipe.get(name) {
                None => Ok(own.to_dtype(dtype)?),
                Some(factors) => merge(name, &own, *factors, dtype, &*other),
            }
        });
        let base = based_on(&self.weights, self.load.clone(), read.clone(), names, bytes);
        let base = Arc::new(base);
        Ok(Self {
            weights: self.weights.clone(),
            load: self.load.clone(),
            read,
            network: base.clone(),
            base,
            changes: Arc::default(),
            sharers: Arc::new(()),
        })
    }
}

/// The network whose tensors `read` gives.
fn based_on<N: Send + Sync + 'static>(
    weights: &Weights,
    load: Arc<Load<N>>,
    read: Arc<Read>,
    names: Vec<String>,
    bytes: usize,
) -> Resident<Loaded<N>> {
    let weights = weights.clone();
    Resident::new(bytes, move || {
        weights.ask(bytes)?;
        let mut tensors: HashMap<String, Weight> = HashMap::with_capacity(names.len());
        for name in &names {
            kosmograph_interrupt::check()?;
            tensors.insert(name.clone(), read(name)?.into());
        }
        let kept = Weights::from_kept(weights.origin(), tensors.clone(), weights.device());
        Ok(Loaded { network: load(&kept)?, tensors, _base: None })
    })
}

fn merge(
    name: &str,
    own: &Tensor,
    factors: Factors,
    dtype: DType,
    other: &Other,
) -> Result<Tensor> {
    let scaled = (own * factors.own)?;
    let sum = match factors.other {
        0.0 => scaled,
        factor => {
            let theirs = other(name)?.to_device(own.device())?.to_dtype(DType::F32)?;
            if theirs.dims() != own.dims() {
                return Err(Error::Input(format!(
                    "`{name}` is {:?} in one network and {:?} in the other: they cannot be merged",
                    own.dims(),
                    theirs.dims()
                )));
            }
            (scaled + (theirs * factor)?)?
        }
    };
    let merged = sum.to_dtype(dtype)?;
    match is_finite(&merged)? {
        true => Ok(merged),
        false => Err(Error::Input(format!(
            "merging by {} and {} makes numbers of `{name}` that {dtype:?} cannot hold; smaller factors would be right",
            factors.own, factors.other
        ))),
    }
}

fn is_finite(tensor: &Tensor) -> CandleResult<bool> {
    let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.iter().all(|value| value.is_finite()))
}

#[cfg(test)]
mod tests {
    use super::super::super::{Layer, Layers};
    use super::*;
    use candle_core::Device;

    fn pair(weights: &Weights) -> Result<[Weight; 2]> {
        Ok([weights.get_weight("a.weight", (2, 2))?, weights.get_weight("b.weight", 2)?])
    }

    fn network(a: [[f32; 2]; 2], b: [f32; 2], dtype: DType) -> Result<Adapted<[Weight; 2]>> {
        let tensor = |tensor: Tensor| tensor.to_dtype(dtype);
        let tensors = HashMap::from([
            ("a.weight".to_owned(), tensor(Tensor::new(&a, &Device::Cpu)?)?),
            ("b.weight".to_owned(), tensor(Tensor::new(&b, &Device::Cpu)?)?),
        ]);
        Adapted::open(Weights::from_tensors("w", tensors, &Device::Cpu), &[], pair)
    }

    fn values(weight: &Weight) -> Result<Vec<f32>> {
        Ok(weight.tensor()?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }

    fn other(of: &Adapted<[Weight; 2]>) -> Arc<Other> {
        let of = of.clone();
        Arc::new(move |name: &str| of.tensor(name))
    }

    fn lora(scale: f64) -> Result<Layers> {
        let up = Tensor::new(&[[1f32], [2.0]], &Device::Cpu)?;
        let down = Tensor::new(&[[1f32, -1.0]], &Device::Cpu)?;
        Ok(Layers::from([("a".to_owned(), Layer::low_rank("a", up, down, None, scale)?)]))
    }

    #[test]
    fn tensors_are_merged_with_loras_before_and_behind() -> Result<()> {
        for dtype in [DType::F32, DType::F16] {
            let first = network([[1.0, 2.0], [3.0, 4.0]], [8.0, 16.0], dtype)?;
            let second = network([[5.0, 6.0], [7.0, -8.0]], [0.5, 0.25], dtype)?;
            let recipe =
                |own, other| Recipe::from([("a.weight".to_owned(), Factors { own, other })]);
            let merged = first.merged(recipe(0.25, 0.75), other(&second))?;
            assert_eq!((merged.held(), merged.bytes()), (0, 6 * dtype.size_in_bytes()));
            let network = merged.get()?;
            // 0.25 · 1 + 0.75 · 5 and so on, by hand; what the recipe does not name stays.
            assert_eq!(values(&network[0])?, [4.0, 5.0, 6.0, -5.0]);
            assert_eq!(values(&network[1])?, [8.0, 16.0]);
            assert_eq!(network[0].dtype(), dtype);
            // A LoRA behind it: 2 · [[1, -1], [2, -2]].
            let (behind, absent) = merged.with(&lora(1.0)?, 2.0)?;
            assert!(absent.is_empty());
            assert_eq!(values(&behind.get()?[0])?, [6.0, 3.0, 10.0, -9.0]);
            // And before it, on either side: 0.25 · 2 · and 0.75 · 4 · the same.
            let (adapted, _) = first.with(&lora(1.0)?, 2.0)?;
            let before = adapted.merged(recipe(0.25, 0.75), other(&second))?;
            assert_eq!(values(&before.get()?[0])?, [4.5, 4.5, 7.0, -6.0]);
            let (adapted, _) = second.with(&lora(1.0)?, 4.0)?;
            let theirs = first.merged(recipe(0.25, 0.75), other(&adapted))?;
            assert_eq!(values(&theirs.get()?[0])?, [7.0, 2.0, 12.0, -11.0]);
            // A merge of a merge, and read again after it was let go; also where nobody loads the network.
            let twice = theirs.merged(recipe(1.0, -1.0), other(&merged))?;
            assert_eq!(values(&twice.get()?[0])?, [3.0, -3.0, 6.0, -6.0]);
            twice.release();
            assert_eq!(twice.held(), 0);
            assert_eq!(
                twice.tensor("a.weight")?.flatten_all()?.to_vec1::<f32>()?,
                [3.0, -3.0, 6.0, -6.0]
            );
            assert_eq!(values(&first.get()?[0])?, [1.0, 2.0, 3.0, 4.0]);
        }
        Ok(())
    }

    #[test]
    fn what_cannot_be_merged_is_told() -> Result<()> {
        let first = network([[1.0, 2.0], [3.0, 4.0]], [8.0, 16.0], DType::F16)?;
        let recipe = |own| Recipe::from([("b.weight".to_owned(), Factors { own, other: 0.0 })]);
        let huge = first.merged(recipe(1e6), other(&first))?;
        let sentence = huge.get().err().map(|error| error.to_string()).unwrap_or_default();
        assert!(sentence.contains("`b.weight` that F16 cannot hold"), "{sentence}");
        assert!(first.merged(recipe(f64::NAN), other(&first)).is_err());
        let shaped: Arc<Other> = Arc::new(|_| Ok(Tensor::zeros(3, DType::F32, &Device::Cpu)?));
        let recipe = Recipe::from([("b.weight".to_owned(), Factors { own: 1.0, other: 1.0 })]);
        let sentence = first.merged(recipe, shaped)?.get().err().map(|error| error.to_string());
        let sentence = sentence.unwrap_or_default();
        assert!(sentence.contains("[2] in one network and [3] in the other"), "{sentence}");
        Ok(())
    }
}
