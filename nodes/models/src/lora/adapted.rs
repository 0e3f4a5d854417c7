//! A network with LoRAs on it.
//!
//! The base stays what it is. A network with LoRAs shares every tensor that they do not touch with
//! the base, and has copies of those that they do. A copy is made from the base's own values, with all
//! LoRAs at once, so that taking one off or changing its strength leaves no trace of it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::sync::Arc;

use candle_core::{DType, Result as CandleResult, Tensor};
use kosmograph_kernels as kernels;
use rayon::prelude::*;

mod merged;

pub use merged::{Factors, Other, Recipe};

use super::kinds::Change;
use super::{Layers, LoraError};
use crate::error::{Error, Result};
use crate::files::resident::Resident;
use crate::files::weights::{Weight, Weights};

/// A network `N` and the LoRAs that are on it: none, or any number. Cloning is cheap, and a clone
/// shares the network.
pub struct Adapted<N> {
    weights: Weights,
    load: Arc<Load<N>>,
    /// A tensor of the base, made or read for this alone.
    read: Arc<merged::Read>,
    base: Arc<Resident<Loaded<N>>>,
    /// By the name of the tensor: what is done to it, one after the other, and how strongly.
    changes: Arc<Changes>,
    /// The base itself, where there are no changes.
    network: Arc<Resident<Loaded<N>>>,
    /// As many as networks share the base.
    sharers: Arc<()>,
}

type Changes = BTreeMap<String, Vec<(Change, f64)>>;

type Load<N> = dyn Fn(&Weights) -> Result<N> + Send + Sync;

/// A network in memory.
pub struct Loaded<N> {
    network: N,
    /// The tensors of a base by name, for those that share them.
    tensors: HashMap<String, Weight>,
    /// Whose tensors it shares.
    _base: Option<Arc<Loaded<N>>>,
}

impl<N> Deref for Loaded<N> {
    type Target = N;

    fn deref(&self) -> &N {
        &self.network
    }
}

impl<N> Clone for Adapted<N> {
    fn clone(&self) -> Self {
        Self {
            weights: self.weights.clone(),
            load: self.load.clone(),
            read: self.read.clone(),
            base: self.base.clone(),
            changes: self.changes.clone(),
            network: self.network.clone(),
            sharers: self.sharers.clone(),
        }
    }
}

impl<N: Send + Sync + 'static> Adapted<N> {
    /// The network that `load` reads from `weights`, without a LoRA. The header is checked now, also
    /// for `tolerated` ([`Weights::check`]); the numbers are read with the first use.
    ///
    /// # Errors
    /// The weights are not those of this network.
    pub fn open(
        weights: Weights,
        tolerated: &[&str],
        load: impl Fn(&Weights) -> Result<N> + Send + Sync + 'static,
    ) -> Result<Self> {
        let bytes = weights.check(&load, tolerated)?;
        let load: Arc<Load<N>> = Arc::new(load);
        let base = {
            let (weights, load) = (weights.clone(), load.clone());
            Arc::new(Resident::new(bytes, move || {
                weights.ask(bytes)?;
                let (network, tensors) = weights.load_kept(&*load)?;
                Ok(Loaded { network, tensors, _base: None })
            }))
        };
        let (network, changes, sharers) = (base.clone(), Arc::default(), Arc::default());
        let read: Arc<merged::Read> = {
            let weights = weights.clone();
            Arc::new(move |name: &str| weights.tensor(name))
        };
        Ok(Self { weights, load, read, base, changes, network, sharers })
    }

    /// The same with one LoRA more, at a strength that may be negative, and the layers that this
    /// network has no place for. Nothing is computed before the first use.
    ///
    /// # Errors
    /// A layer fits its place's name and not its shape, or the strength is not finite.
    pub fn with(&self, layers: &Layers, strength: f64) -> Result<(Self, Vec<String>)> {
        let mut changes = (*self.changes).clone();
        let mut without_place = Vec::new();
        for (module, layer) in layers {
            if !strength.is_finite() {
                return Err(LoraError::Factor { layer: module.clone(), factor: strength }.into());
            }
            for (part, change) in [("weight", layer.weight()), ("bias", layer.bias())] {
                let Some(change) = change else { continue };
                let Some((name, shape)) = self.tensor_of(module, part) else {
                    let of_weight = part == "weight" || layer.weight().is_none();
                    let path = if of_weight { module.clone() } else { format!("{module}.{part}") };
                    without_place.push(path);
                    // Where there is no such module, there is no bias of it.
                    break;
                };
                if !change.fits(&shape) {
                    let (layer, lora) = (module.clone(), change.wanted());
                    return Err(LoraError::Misfit { layer, lora, model: shape }.into());
                }
                changes.entry(name).or_default().push((change.clone(), strength));
            }
        }
        // A weight that is kept in fewer bits is changed when it is used, and no wide copy is kept.
        let copied = changes.keys().filter(|name| !self.changes_late(name));
        let bytes = copied.filter_map(|name| self.weights.shape(name));
        let bytes = bytes.map(|shape| shape.iter().product::<usize>() * size_of::<f32>()).sum();
        let changes = Arc::new(changes);
        let network = {
            let (weights, load) = (self.weights.clone(), self.load.clone());
            let (base, changes) = (self.base.clone(), changes.clone());
            Arc::new(Resident::new(bytes, move || {
                let base = base.get()?;
                weights.ask(bytes)?;
                let mut tensors = base.tensors.clone();
                tensors.extend(changed(&base.tensors, &changes)?);
                let tensors = Weights::from_kept(weights.origin(), tensors, weights.device());
                let network = load(&tensors)?;
                Ok(Loaded { network, tensors: HashMap::new(), _base: Some(base) })
            }))
        };
        Ok((Self { changes, network, ..self.clone() }, without_place))
    }

    /// The network, made now if it is not in memory.
    ///
    /// # Errors
    /// What reading the base reports.
    pub fn get(&self) -> Result<Arc<Loaded<N>>> {
        self.network.get()
    }

    /// The shape of one of the network's tensors.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.weights.shape(name)
    }

    /// The network's tensors by name, shared with it, those that LoRAs change as they are then.
    ///
    /// # Errors
    /// What reading the base reports.
    pub fn shared_tensors(&self) -> Result<HashMap<String, Weight>> {
        let base = self.base.get()?;
        let mut tensors = base.tensors.clone();
        tensors.extend(changed(&base.tensors, &self.changes)?);
        Ok(tensors)
    }

    /// What the weights are called in errors.
    pub fn origin(&self) -> &str {
        self.weights.origin()
    }

    /// Lets the network go, and the base where no other network with LoRAs is in memory.
    pub fn release(&self) {
        self.network.release();
        self.base.release();
    }

    /// Bytes in memory now: of what several share, each has its part, so that the sum is right.
    pub fn held(&self) -> usize {
        let own = match self.changes.is_empty() {
            true => 0,
            false => self.network.held() / Arc::strong_count(&self.network),
        };
        own + self.base.held() / Arc::strong_count(&self.sharers)
    }

    /// What [`Adapted::held`] says when everything is in memory: of a base that is there already, the
    /// part that this one has of it, so that the difference of the two is what is still to be read.
    pub fn bytes(&self) -> usize {
        let own = if self.changes.is_empty() { 0 } else { self.network.bytes() };
        let sharers = if self.base.held() > 0 { Arc::strong_count(&self.sharers) } else { 1 };
        own + self.base.bytes() / sharers
    }

    /// Whether a tensor is changed each time it is used: a norm's or a bias is wide in any case.
    fn changes_late(&self, name: &str) -> bool {
        let axes = self.weights.shape(name).map_or(0, |shape| shape.len());
        axes >= 2 && self.weights.is_narrow(name)
    }

    /// The name and the shape of a module's weight or bias.
    fn tensor_of(&self, module: &str, part: &str) -> Option<(String, Vec<usize>)> {
        // transformers 5 leaves the first word of a text encoder's paths out.
        [module, module.strip_prefix("text_model.").unwrap_or(module)].iter().find_map(|module| {
            let name = format!("{module}.{part}");
            let shape = self.weights.shape(&name)?;
            Some((name, shape))
        })
    }
}

/// The tensors that `changes` names, with their changes, f32; those that are kept in fewer bits with the way
/// to change them.
fn changed(
    tensors: &HashMap<String, Weight>,
    changes: &Arc<Changes>,
) -> Result<HashMap<String, Weight>> {
    let change = |(name, changes_of_it): (&String, &Vec<(Change, f64)>)| {
        let weight = tensors.get(name).ok_or_else(|| {
            Error::Input(format!("the LoRA changes `{name}`, which this network does not use"))
        })?;
        let (late, key) = (changes.clone(), name.clone());
        let change = move |wide: Tensor| match late.get(&key) {
            Some(changes) => apply(&wide, changes),
            None => Ok(wide),
        };
        // What has one axis is read once, when the network is put together.
        let late = if weight.dims().len() >= 2 { weight.with_change(change) } else { None };
        let changed = match late {
            Some(changed) => changed,
            None => apply(&weight.tensor()?, changes_of_it)?.into(),
        };
        Ok((name.clone(), changed))
    };
    let changes: Vec<_> = changes.iter().collect();
    let mut changed = HashMap::with_capacity(changes.len());
    // Some at once; between them the work may be asked to stop.
    for some in changes.chunks(rayon::current_num_threads()) {
        kosmograph_interrupt::check()?;
        changed.par_extend(some.par_iter().map(|one| change(*one)).collect::<Result<Vec<_>>>()?);
    }
    Ok(changed)
}

/// `weight` with its changes, one after the other. Products that follow each other are one product.
fn apply(weight: &Tensor, changes: &[(Change, f64)]) -> CandleResult<Tensor> {
    let mut weight = weight.clone();
    let mut pairs = Vec::new();
    for (change, strength) in changes {
        match change.matrices(*strength) {
            Some(pair) => pairs.push(pair?),
            None => {
                weight = add(&weight, std::mem::take(&mut pairs))?;
                weight = change.apply(&weight.to_dtype(DType::F32)?, *strength)?;
            }
        }
    }
    add(&weight, pairs)
}

/// `weight` + Σ strength · scale · up · down: the ups side by side times the downs below each other.
fn add(weight: &Tensor, pairs: Vec<(Tensor, Tensor)>) -> CandleResult<Tensor> {
    if pairs.is_empty() {
        return Ok(weight.clone());
    }
    let (ups, downs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let (up, down) = (Tensor::cat(&ups, 1)?, Tensor::cat(&downs, 0)?);
    let flat = weight.reshape((weight.dim(0)?, ()))?;
    kernels::low_rank_update(&flat, &up, &down)?.reshape(weight.shape())
}

#[cfg(test)]
mod tests {
    use super::super::Layer;
    use super::*;
    use crate::files::weights::Fp8;
    use candle_core::Device;

    fn filled(shape: &[usize], value: f64) -> Tensor {
        Tensor::full(value as f32, shape, &Device::Cpu).expect("a tensor")
    }

    /// Two linear layers.
    fn pair(weights: &Weights) -> Result<[Weight; 2]> {
        Ok([weights.get_weight("a.weight", (3, 4))?, weights.get_weight("b.weight", (5, 2, 1, 1))?])
    }

    fn adapted(dtype: DType) -> Result<Adapted<[Weight; 2]>> {
        let tensor = |shape: &[usize]| filled(shape, 0.125).to_dtype(dtype);
        let tensors =
            [("a.weight".into(), tensor(&[3, 4])?), ("b.weight".into(), tensor(&[5, 2, 1, 1])?)];
        Adapted::open(Weights::from_tensors("w", tensors.into(), &Device::Cpu), &[], pair)
    }

    fn layers(module: &str, output: usize, input: usize, scale: f64) -> Result<Layers> {
        let (up, down) = (filled(&[output, 2], 0.5), filled(&[2, input], 0.25));
        Ok(Layers::from([(module.to_owned(), Layer::low_rank(module, up, down, None, scale)?)]))
    }

    fn value(weight: &Weight) -> Result<f32> {
        let values = weight.tensor()?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        assert!(values.iter().all(|value| *value == values[0]));
        Ok(values[0])
    }

    #[test]
    fn a_lora_is_added_and_shares_the_rest() -> Result<()> {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let base = adapted(dtype)?;
            let (once, none) = base.with(&layers("a", 3, 4, 0.5)?, -2.0)?;
            let (twice, some) = once.with(&layers("b", 5, 2, 1.0)?, 1.0)?;
            let (both, _) = twice.with(&layers("a", 3, 4, 1.0)?, 1.0)?;
            let (_, elsewhere) = base.with(&layers("c", 3, 4, 1.0)?, 1.0)?;
            assert!(none.is_empty() && some.is_empty() && elsewhere == ["c"]);
            // 0.125 and the product's 2 · 0.5 · 0.25.
            let of = |adapted: &Adapted<[Weight; 2]>| -> Result<(f32, f32)> {
                let network = adapted.get()?;
                Ok((value(&network[0])?, value(&network[1])?))
            };
            assert_eq!(of(&twice)?, (-0.125, 0.375));
            assert_eq!(of(&both)?, (0.125, 0.375));
            assert_eq!(of(&once)?, (-0.125, 0.125));
            assert_eq!(of(&base)?, (0.125, 0.125));
            assert_eq!(once.get()?[1].tensor()?.id(), base.get()?[1].tensor()?.id());
            assert_eq!(base.get()?[0].dtype(), dtype);
            assert_eq!(once.get()?[0].dtype(), DType::F32);
        }
        Ok(())
    }

    /// A card with room for the first of two layers: neither it nor its changed form takes more, and a LoRA gives what it gives
    /// where all is kept.
    #[test]
    fn what_finds_no_room_is_copied_at_each_use() -> Result<()> {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let tensor = |shape: &[usize]| filled(shape, 0.125).to_dtype(dtype);
            let tensors = [
                ("a.weight".into(), tensor(&[3, 4])?),
                ("b.weight".into(), tensor(&[5, 2, 1, 1])?),
            ];
            let weights = Weights::from_tensors("w", tensors.into(), &Device::Cpu);
            let weights = weights.with_room(12 * dtype.size_in_bytes());
            let base = Adapted::open(weights.clone(), &[], pair)?;
            let (a, _) = base.with(&layers("a", 3, 4, 0.5)?, -2.0)?;
            let (both, _) = a.with(&layers("b", 5, 2, 1.0)?, 1.0)?;
            let (network, changed) = (base.get()?, both.get()?);
            let places = |pair: &[Weight; 2]| pair.each_ref().map(Weight::has_place);
            assert_eq!((places(&network), places(&changed)), ([true, false], [false, false]));
            assert!(network[1].is_made_late() && changed.iter().all(Weight::is_made_late));
            assert_eq!(network.each_ref().map(Weight::dtype), [dtype; 2]);
            assert_eq!((value(&network[0])?, value(&network[1])?), (0.125, 0.125));
            assert_eq!((value(&changed[0])?, value(&changed[1])?), (-0.125, 0.375));
            let flat = network[1].clone().reshape((5, 2))?;
            assert_eq!((flat.dims(), value(&flat)?), (&[5, 2][..], 0.125));
            assert!(network[1].clone().reshape((5, 3)).is_err());
            // Nobody has the room as long as anybody has the layer, and then the next one has it.
            base.release();
            a.release();
            both.release();
            assert!(!pair(&weights)?[0].has_place());
            drop((network, changed, flat));
            assert!(pair(&weights)?[0].has_place());
        }
        Ok(())
    }

    #[test]
    fn halves_are_changed_when_they_are_used() -> Result<()> {
        for dtype in [DType::F16, DType::BF16] {
            let base = adapted(dtype)?;
            let bytes = base.bytes();
            let (changed, _) = base.with(&layers("a", 3, 4, 0.5)?, -2.0)?;
            assert_eq!(changed.bytes(), bytes, "a copy of {dtype:?} is kept");
            let network = changed.get()?;
            assert_eq!((network[0].dtype(), network[0].dims()), (DType::F32, &[3, 4][..]));
            assert_ne!(network[0].tensor()?.id(), network[0].tensor()?.id());
            assert_eq!(value(&network[0].clone().reshape((4, 3))?)?, value(&network[0])?);
            assert!(network[0].clone().reshape((4, 4)).is_err());
            // What is not changed stays the base's own.
            assert_eq!(network[1].tensor()?.id(), base.get()?[1].tensor()?.id());
        }
        // f32 has no narrower form to stay in: the copy is made once.
        let (kept, _) = adapted(DType::F32)?.with(&layers("a", 3, 4, 0.5)?, 1.0)?;
        assert_eq!(kept.get()?[0].tensor()?.id(), kept.get()?[0].tensor()?.id());
        Ok(())
    }

    #[test]
    fn a_weight_in_fp8_is_changed_when_it_is_used() -> Result<()> {
        let tensor = |shape: &[usize]| filled(shape, 0.125);
        let tensors = [("a.weight", tensor(&[3, 4])), ("b.weight", tensor(&[5, 2, 1, 1]))];
        let tensors = tensors.map(|(name, tensor)| (name.to_owned(), tensor));
        let weights = Weights::from_tensors("w", tensors.into(), &Device::Cpu);
        let base = Adapted::open(weights.rounded(Fp8::E4M3), &[], pair)?;
        let (once, _) = base.with(&layers("a", 3, 4, 0.5)?, -2.0)?;
        let (twice, _) = once.with(&layers("b", 5, 2, 1.0)?, 1.0)?;
        let (both, _) = twice.with(&layers("a", 3, 4, 1.0)?, 1.0)?;
        for (adapted, want) in
            [(&base, (0.125, 0.125)), (&twice, (-0.125, 0.375)), (&both, (0.125, 0.375))]
        {
            let network = adapted.get()?;
            assert_eq!((value(&network[0])?, value(&network[1])?), want);
            // The LoRA takes no weight's place.
            assert_eq!(adapted.bytes() - adapted.held(), 0);
        }
        // Each has its part of the one base, a byte for each number.
        for adapted in [&base, &once, &twice, &both] {
            assert_eq!(adapted.held(), (12 + 10) / 4);
        }
        Ok(())
    }

    #[test]
    fn memory_is_shared_among_those_that_share_it() -> Result<()> {
        let base = adapted(DType::F32)?;
        let (whole, change) = ((12 + 10) * 4, 12 * 4);
        let (changed, _) = base.with(&layers("a", 3, 4, 1.0)?, 1.0)?;
        assert_eq!((base.held(), changed.held(), changed.bytes()), (0, 0, whole + change));
        changed.get()?;
        assert_eq!((base.held(), changed.held()), (whole / 2, change + whole / 2));
        // Let go while the other shares it: it is there still.
        base.release();
        assert_eq!(base.held(), whole / 2);
        drop(base);
        assert_eq!(changed.held(), change + whole);
        let before = value(&changed.get()?[0])?;
        changed.release();
        assert_eq!(changed.held(), 0);
        assert_eq!(value(&changed.get()?[0])?, before);
        Ok(())
    }

    #[test]
    fn a_lora_of_another_model_is_named() -> Result<()> {
        let base = adapted(DType::F32)?;
        for (layers, parts) in [
            (layers("a", 3, 5, 1.0)?, ["[3, 5]", "[3, 4]"]),
            (layers("b", 4, 2, 1.0)?, ["[4, 2]", "[5, 2, 1, 1]"]),
        ] {
            let error = base.with(&layers, 1.0).err().expect("no error").to_string();
            assert!(
                error.contains("another model") && parts.iter().all(|p| error.contains(p)),
                "{error}"
            );
        }
        let error = base.with(&layers("a", 3, 4, 1.0)?, f64::NAN).err().expect("no error");
        assert!(error.to_string().contains("NaN"), "{error}");
        Ok(())
    }
}
