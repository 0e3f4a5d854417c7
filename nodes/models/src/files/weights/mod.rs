//! Weights by name: a view of memory-mapped files, whatever they call their tensors.
//!
//! Files come from strangers. The header's offsets, every shape, the type and the finiteness of
//! every value are checked before a model sees a tensor, and [`Weights::finish`] finds tensors that
//! no part of the model asked for: together they prove that the file is this model's.

mod on_gpu;
mod refusal;
mod scales;
mod source;
#[cfg(test)]
mod tests;
mod weight;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};

use crate::error::{Error, Result};
use crate::files::packed::{Format, Packed, Scale};
use on_gpu::Room;
pub use source::Part;
use source::Source;

pub(crate) use source::Numbers;
pub use weight::Weight;

/// Named tensors, seen from a prefix: `weights.sub("down_blocks.0")` is the same weights with every
/// name under `down_blocks.0.`. Cloning is cheap.
#[derive(Clone)]
pub struct Weights {
    store: Arc<Store>,
    /// Empty, or ends in a dot.
    prefix: String,
    device: Device,
    /// What the numbers are rounded to, where they are kept in fewer bits than the file's.
    rounding: Option<Format>,
    /// The bytes that layers' weights may take on a GPU, where that is not what the environment says.
    room: Option<Arc<Room>>,
}

/// Which of a file's types a tensor is handed out in.
#[derive(Clone, Copy)]
enum Keep {
    F32,
    /// f16 and bf16 stay what they are.
    Half,
    /// All types stay what they are.
    Stored,
}

/// fp8, of which ComfyUI keeps a U-Net where it is asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fp8 {
    E4M3,
    E5M2,
}

struct Store {
    /// What errors call it: the file's path.
    origin: String,
    source: Arc<Source>,
    reading: Reading,
    /// What is trained beside a weight, by its full name.
    low_rank: HashMap<String, LowRank>,
    /// Full names that were read, and the bytes that each takes in memory.
    read: Mutex<HashMap<String, usize>>,
}

/// A change in few numbers beside the weight of a linear layer or a convolution, which itself stays as it is. That is how
/// a LoRA is trained; a finished one is added to the weights ([`crate::lora::Adapted`]).
#[derive(Clone, Debug)]
pub enum LowRank {
    /// y = W x + scale · up(down(x)).
    Product {
        /// [rank, input], or [rank, input, kH, kW] of a convolution.
        down: Tensor,
        /// [output, rank], or [output, rank, 1, 1].
        up: Tensor,
        scale: f64,
    },
    /// LoHa: y = (W + scale · (a₁ b₁) ∘ (a₂ b₂)) x.
    Hadamard {
        /// [output, rank] and [rank, input · kH · kW] each.
        sides: [[Tensor; 2]; 2],
        /// Of the weight.
        shape: Vec<usize>,
        scale: f64,
    },
    /// LoKr: y = (W + scale · w₁ ⊗ (a b)) x.
    Kronecker {
        w1: Tensor,
        /// [output / rows of w₁, rank] and [rank, the rest].
        w2: [Tensor; 2],
        /// Of the weight.
        shape: Vec<usize>,
        scale: f64,
    },
}

/// What it means to read a tensor.
enum Reading {
    /// Its numbers come into memory and are looked at.
    Numbers,
    /// Its name, shape and type are looked at; zeros that take no memory stand for the numbers.
    Header,
    /// As `Numbers`, and the tensors are remembered.
    Keeping(Mutex<HashMap<String, Weight>>),
    /// Its numbers were looked at before.
    Again,
}

impl Weights {
    /// Opens a `.safetensors` file, a `.safetensors.index.json` with its shards beside it, a file of
    /// `torch.save` (see [`crate::files::pickle`]), or a folder with one of these under the names that
    /// diffusers and transformers give them. What a file is shows in its first bytes, not in its
    /// name. Tensors will be read onto `device`.
    ///
    /// The files are mapped, not read; they must not change while the weights are in use.
    ///
    /// # Errors
    /// A file cannot be opened; a header is damaged, or disagrees with the file's length; a folder
    /// holds no weights; an index names a file outside its folder, or a tensor that its shard lacks.
    pub fn open(path: &Path, device: &Device) -> Result<Weights> {
        Ok(Weights::new(path.display().to_string(), Source::open(path)?, device))
    }

    /// The same tensors under other names: `names` leads from each new name to the one that stands in
    /// the file, without this prefix. Tensors that it does not lead to are not there any more. Errors
    /// call a tensor what the file calls it.
    pub fn renamed(&self, names: impl IntoIterator<Item = (String, String)>) -> Weights {
        self.renamed_parts(names.into_iter().map(|(new, old)| (new, (old, Part::Whole))))
    }

    /// [`Weights::renamed`] where a name may lead to a part of a tensor.
    pub fn renamed_parts(
        &self,
        names: impl IntoIterator<Item = (String, (String, Part))>,
    ) -> Weights {
        let full = |(new, (old, part)): (String, (String, Part))| {
            (new, (format!("{}{old}", self.prefix), part))
        };
        let names = names.into_iter().map(full).collect();
        let source = Source::Renamed { source: self.store.source.clone(), names };
        let renamed = Weights::new(self.store.origin.clone(), source, &self.device);
        Weights { rounding: self.rounding, room: self.room.clone(), ..renamed }
    }

    /// The same weights with every number rounded to the nearest fp8, those of layers kept so.
    pub fn rounded(&self, to: Fp8) -> Weights {
        let format = match to {
            Fp8::E4M3 => Format::F8E4M3,
            Fp8::E5M2 => Format::F8E5M2,
        };
        Weights { rounding: Some(format), ..self.clone() }
    }

    /// The same weights, of which layers' take at most `bytes` where they compute; the rest stays in main memory and is copied at
    /// each use. Of a GPU's weights that is what `KOSMOGRAPH_GPU_WEIGHTS` says, for all networks of a library together.
    #[cfg(test)]
    pub(crate) fn with_room(&self, bytes: usize) -> Weights {
        Weights { room: Some(Room::new(bytes)), ..self.clone() }
    }

    /// What the header of a safetensors or GGUF file says under `key` of its metadata, where it is text.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.store.source.metadata(key)
    }

    /// Weights that are in memory already; `origin` is what errors call them.
    pub fn from_tensors(
        origin: impl Into<String>,
        tensors: HashMap<String, Tensor>,
        device: &Device,
    ) -> Weights {
        let weights = tensors.into_iter().map(|(name, tensor)| (name, tensor.into())).collect();
        Weights::new(origin.into(), Source::Tensors(weights), device)
    }

    /// Weights that grant every request with zeros that take no memory and note what was asked
    /// for, to learn which tensors a configuration needs: see [`Weights::recorded`].
    pub fn recording() -> Weights {
        let source = Source::Recording(Mutex::new(BTreeMap::new()));
        Weights::new("the recording".to_owned(), source, &Device::Cpu)
    }

    /// Tensors that [`Weights::load_kept`] gave, some of them replaced by their like: the values are
    /// not looked at again. `origin` is what errors call them.
    pub fn from_kept(
        origin: impl Into<String>,
        weights: HashMap<String, Weight>,
        device: &Device,
    ) -> Weights {
        Weights::new(origin.into(), Source::Tensors(weights), device).with(Reading::Again, "")
    }

    /// As [`Weights::from_kept`], where some of the tensors may be variables (`Var`), and with changes of low rank
    /// beside some weights, by their names: what training loads a network from. The network then computes with the
    /// variables' own memory, so an update of theirs needs no other loading.
    pub fn from_trained(
        origin: impl Into<String>,
        tensors: HashMap<String, Weight>,
        low_rank: HashMap<String, LowRank>,
        device: &Device,
    ) -> Weights {
        let (source, reading) = (Arc::new(Source::Tensors(tensors)), Reading::Again);
        let origin = origin.into();
        let store = Arc::new(Store { origin, source, reading, low_rank, read: Mutex::default() });
        Weights { store, prefix: String::new(), device: device.clone(), rounding: None, room: None }
    }

    /// What is trained beside the weight `name`, if something is.
    pub(crate) fn low_rank(&self, name: &str) -> Option<LowRank> {
        self.store.low_rank.get(&format!("{}{name}", self.prefix)).cloned()
    }

    fn new(origin: String, source: Source, device: &Device) -> Weights {
        let (source, reading) = (Arc::new(source), Reading::Numbers);
        let (low_rank, read) = (HashMap::new(), Mutex::default());
        let store = Arc::new(Store { origin, source, reading, low_rank, read });
        Weights { store, prefix: String::new(), device: device.clone(), rounding: None, room: None }
    }

    /// The same weights under the prefix `prefix`, to be read in another way and from the beginning.
    fn with(&self, reading: Reading, prefix: &str) -> Weights {
        let (origin, source) = (self.store.origin.clone(), self.store.source.clone());
        let (low_rank, read) = (self.store.low_rank.clone(), Mutex::default());
        let store = Arc::new(Store { origin, source, reading, low_rank, read });
        Weights { store, prefix: prefix.to_owned(), ..self.clone() }
    }

    /// What `load` loads, and the tensors that it holds then, by the names (under this prefix) that it
    /// asked for: a variant that changes some of them can share the others.
    ///
    /// # Errors
    /// What `load` reports.
    pub fn load_kept<N>(
        &self,
        load: impl FnOnce(&Weights) -> Result<N>,
    ) -> Result<(N, HashMap<String, Weight>)> {
        let keeping = self.with(Reading::Keeping(Mutex::default()), &self.prefix);
        let network = load(&keeping)?;
        let kept = match &keeping.store.reading {
            Reading::Keeping(kept) => std::mem::take(&mut *lock(kept)),
            _ => HashMap::new(),
        };
        let own = |(name, tensor): (String, Weight)| {
            Some((name.strip_prefix(&self.prefix)?.to_owned(), tensor))
        };
        Ok((network, kept.into_iter().filter_map(own).collect()))
    }

    /// Whether these are the weights of the model that `load` loads: every tensor it asks for is
    /// there, in its shape and of a type that can be read, and no other but the `tolerated` ones
    /// ([`Weights::finish`]). No numbers are read. Returns the bytes that the model will take.
    ///
    /// # Errors
    /// What `load` and [`Weights::finish`] report.
    pub fn check<N>(
        &self,
        load: impl FnOnce(&Weights) -> Result<N>,
        tolerated: &[&str],
    ) -> Result<usize> {
        let header = self.with(Reading::Header, &self.prefix);
        load(&header)?;
        header.finish(tolerated)?;
        Ok(header.loaded_bytes())
    }

    /// The same weights, names taken from under `name` (a dotted path).
    pub fn sub(&self, name: impl AsRef<str>) -> Weights {
        let name = name.as_ref();
        let prefix =
            if name.is_empty() { self.prefix.clone() } else { format!("{}{name}.", self.prefix) };
        Weights { prefix, ..self.clone() }
    }

    /// Whether there is memory for `bytes` of these weights, where they are read to the CPU.
    ///
    /// # Errors
    /// There is not; the error names the file.
    pub fn ask(&self, bytes: usize) -> Result<()> {
        if self.device.is_cpu() {
            let what = format_args!("the weights of {}", self.origin());
            kosmograph_memory::ask_bytes(what, bytes as u128, "")?;
        }
        Ok(())
    }

    /// What these weights were opened from, for error messages.
    pub fn origin(&self) -> &str {
        &self.store.origin
    }

    /// Where tensors are read to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Is there a tensor of this name, or any below it when it is a dotted path?
    pub fn has(&self, name: &str) -> bool {
        let full = format!("{}{name}", self.prefix);
        self.store.source.has(&full)
    }

    /// The shape of a tensor, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let full = format!("{}{name}", self.prefix);
        match &*self.store.source {
            Source::Recording(recorded) => lock(recorded).get(&full).cloned(),
            source => source.stored(&full).map(|stored| stored.shape),
        }
    }

    /// What the file has a tensor in: f32, f16 or bf16. Numbers in fewer bits count as f16.
    pub fn file_type(&self, name: &str) -> Option<DType> {
        let stored = self.store.source.stored(&format!("{}{name}", self.prefix))?;
        Some(match stored.numbers {
            _ if self.rounding.is_some() => DType::F16,
            Ok(Numbers::Packed(_)) => DType::F16,
            Ok(Numbers::Plain(half @ (DType::F16 | DType::BF16))) => half,
            _ => DType::F32,
        })
    }

    /// The names under this prefix, without it, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .store
            .source
            .names()
            .into_iter()
            .filter_map(|name| name.strip_prefix(&self.prefix).map(str::to_owned))
            .collect();
        names.sort();
        names
    }

    /// Whether a layer's weight `name` is kept in fewer bits than f32, so that it is widened where it is used and a change of it
    /// is made there: see [`Weight::with_change`]. On a GPU weights are what they compute in.
    pub fn is_narrow(&self, name: &str) -> bool {
        let stored = self.store.source.stored(&format!("{}{name}", self.prefix));
        let narrow = |numbers| {
            let half = matches!(numbers, Ok(Numbers::Plain(DType::F16 | DType::BF16)));
            half || matches!(numbers, Ok(Numbers::Packed(_))) || self.rounding.is_some()
        };
        self.device.is_cpu() && stored.is_some_and(|stored| narrow(stored.numbers))
    }

    /// The tensor `name` in f32, which must have the shape `shape`.
    ///
    /// # Errors
    /// There is no such tensor, its shape or its type is another, or a value is NaN or infinite.
    pub fn get(&self, name: &str, shape: impl Into<Shape>) -> Result<Tensor> {
        Ok(self.read(name, shape.into(), Keep::F32)?.tensor()?)
    }

    /// [`Weights::get`] for the weight of a linear layer or a convolution: f16 and bf16 stay what
    /// they are. The kernels widen such a weight when they use it, which is exact, so it costs half
    /// the memory and no accuracy.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn get_kept(&self, name: &str, shape: impl Into<Shape>) -> Result<Tensor> {
        Ok(self.read(name, shape.into(), Keep::Half)?.tensor()?)
    }

    /// [`Weights::get_kept`] for a layer that can take fp8 and ggml's blocks too: they stay what they are,
    /// and the layer widens them when it computes. A GPU has them in f16.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn get_weight(&self, name: &str, shape: impl Into<Shape>) -> Result<Weight> {
        self.read(name, shape.into(), Keep::Stored)
    }

    fn read(&self, name: &str, expected: Shape, keep: Keep) -> Result<Weight> {
        let full = format!("{}{name}", self.prefix);
        let placeholder =
            || Ok(Tensor::zeros((), DType::F32, &self.device)?.broadcast_as(&expected)?.into());
        if let Source::Recording(recorded) = &*self.store.source {
            lock(recorded).insert(full, expected.dims().to_vec());
            return placeholder();
        }
        let (found, stored) = self.shape_and_numbers(&full)?;
        self.check_shape(&full, &expected, &found)?;
        // What it is in memory.
        let kept = match (self.rounding, stored) {
            (Some(rounding), Numbers::Plain(_)) => Numbers::Packed(rounding),
            _ => stored,
        };
        let kept = match (keep, kept) {
            (Keep::Stored | Keep::Half, Numbers::Plain(DType::F16 | DType::BF16)) => kept,
            (Keep::Stored, Numbers::Packed(_)) if self.device.is_cpu() => kept,
            (Keep::Stored, Numbers::Packed(_)) => Numbers::Plain(DType::F16),
            _ => Numbers::Plain(DType::F32),
        };
        let numbers = expected.elem_count();
        let bytes = match kept {
            Numbers::Plain(dtype) => numbers * dtype.size_in_bytes(),
            Numbers::Packed(format) => format.bytes(numbers).unwrap_or(numbers),
        };
        if !matches!(self.store.reading, Reading::Header) {
            kosmograph_interrupt::check()?;
        }
        let weight = match self.store.reading {
            Reading::Header => placeholder()?,
            _ => {
                let weight = self.stored_weight(&full, stored)?;
                let is_new = !matches!(self.store.reading, Reading::Again);
                let room = if let Keep::Stored = keep { self.room()? } else { None };
                let weight = self.kept(&full, weight, (kept, room), is_new)?;
                // Some files leave ones out of a shape, or have more of them.
                weight.reshape(expected)?
            }
        };
        if let Reading::Keeping(kept) = &self.store.reading {
            lock(kept).insert(full.clone(), weight.clone());
        }
        lock(&self.store.read).insert(full, bytes);
        Ok(weight)
    }

    /// A tensor as the file has it, rounded where that is asked for.
    fn stored_weight(&self, full: &str, stored: Numbers) -> Result<Weight> {
        let source = &self.store.source;
        if let Some(weight) = source.as_it_is(full) {
            return Ok(weight);
        }
        let dtype = match stored {
            Numbers::Packed(format) => {
                return source.packed(full, format)?.ok_or_else(|| self.missing(full));
            }
            Numbers::Plain(dtype) => dtype,
        };
        let tensor = self.numbers(full, dtype)?;
        let tensor = match source.scale(full, tensor.dims())? {
            Scale::One => tensor,
            Scale::All(scale) => (tensor.to_dtype(DType::F32)? * f64::from(scale))?,
            Scale::Rows(rows) => {
                let mut shape = vec![1; tensor.rank()];
                shape[0] = rows.len();
                let rows = Tensor::from_vec(rows, shape, &Device::Cpu)?;
                tensor.to_dtype(DType::F32)?.broadcast_mul(&rows)?
            }
        };
        Ok(match self.rounding {
            Some(format) => Weight::packed(Arc::new(Packed::rounded(&tensor, format)?)),
            None => tensor.into(),
        })
    }

    /// `weight` in the type it is kept in, where it computes, or in main memory where there is no room for it; looked at where it
    /// `is_new`.
    fn kept(
        &self,
        full: &str,
        weight: Weight,
        (kept, room): (Numbers, Option<Arc<Room>>),
        is_new: bool,
    ) -> Result<Weight> {
        if let (Some(packed), true) = (weight.as_packed(), is_new)
            && let Some((index, value)) = packed.not_finite()
        {
            return Err(self.not_finite(full, index, value));
        }
        let Numbers::Plain(dtype) = kept else { return Ok(weight) };
        if weight.is_made_late() || weight.has_place() {
            // Made here, it would be kept.
            return Ok(weight);
        }
        let tensor = weight.tensor()?.to_dtype(dtype)?;
        if is_new {
            self.check_finite(full, &tensor)?;
        }
        if let (Some(room), true) = (room, tensor.device().is_cpu()) {
            return Ok(room.keep(tensor, &self.device)?);
        }
        Ok(tensor.to_device(&self.device)?.into())
    }

    /// The room for a layer's weights where they compute, if that is bounded.
    fn room(&self) -> Result<Option<Arc<Room>>> {
        match &self.room {
            None if self.device.is_cuda() => Room::of_the_environment(),
            room => Ok(room.clone()),
        }
    }

    /// The one number of the tensor `name`, of any type.
    ///
    /// # Errors
    /// There is no such tensor, it holds more or fewer numbers than one, or NaN or an infinity.
    pub fn number(&self, name: &str) -> Result<f64> {
        let full = format!("{}{name}", self.prefix);
        let shape = self.shape(name).ok_or_else(|| self.missing(&full))?;
        if shape.iter().product::<usize>() != 1 {
            return Err(Error::Shape {
                file: self.file(&full),
                name: full,
                expected: Vec::new(),
                found: shape,
            });
        }
        let stored = self.store.source.stored(&full).ok_or_else(|| self.missing(&full))?;
        if let Ok(Numbers::Plain(whole @ (DType::I64 | DType::U8))) = stored.numbers {
            let number = self.numbers(&full, whole)?.flatten_all()?.to_dtype(DType::I64)?;
            lock(&self.store.read).insert(full, whole.size_in_bytes());
            return Ok(number.get(0)?.to_scalar::<i64>()? as f64);
        }
        self.only(&self.get(name, shape)?)
    }

    fn only(&self, number: &Tensor) -> Result<f64> {
        Ok(f64::from(number.flatten_all()?.get(0)?.to_scalar::<f32>()?))
    }

    /// The shape and the type of a tensor that can be read.
    fn shape_and_numbers(&self, full: &str) -> Result<(Vec<usize>, Numbers)> {
        let stored = self.store.source.stored(full).ok_or_else(|| self.missing(full))?;
        match stored.numbers {
            Ok(Numbers::Plain(dtype)) if !dtype.is_float() => {
                Err(self.wrong_type(full, format!("{dtype:?}")))
            }
            Ok(numbers) => Ok((stored.shape, numbers)),
            Err(other) => Err(self.wrong_type(full, other)),
        }
    }

    /// A tensor's numbers, in the type `dtype` that they have in the file.
    fn numbers(&self, full: &str, dtype: DType) -> Result<Tensor> {
        match self.store.source.tensor(full, dtype)? {
            Some(tensor) => Ok(tensor),
            None => Err(self.missing(full)),
        }
    }

    /// Ends the loading of a model: every tensor under this prefix must have been read, but for
    /// `tolerated` names (under this prefix; a `*` stands for any run of characters): buffers that
    /// checkpoints carry and no computation uses.
    ///
    /// # Errors
    /// Tensors were left unread; the error names some of them.
    pub fn finish(&self, tolerated: &[&str]) -> Result<()> {
        let unread: Vec<String> = {
            let read = lock(&self.store.read);
            let is_unread = |name: &String| !read.contains_key(&format!("{}{name}", self.prefix));
            let is_tolerated = |name: &String| tolerated.iter().any(|t| matches(t, name));
            self.names().into_iter().filter(|name| is_unread(name) && !is_tolerated(name)).collect()
        };
        if unread.is_empty() {
            return Ok(());
        }
        let own = |name: &String| {
            let full = format!("{}{name}", self.prefix);
            format!("`{}`", self.store.source.own_name(&full))
        };
        let sample: Vec<String> = unread.iter().take(5).map(own).collect();
        Err(Error::UnusedTensors {
            file: self.store.origin.clone(),
            count: unread.len(),
            sample: sample.join(", "),
        })
    }

    /// The bytes that the tensors read so far, under this prefix, take in memory.
    pub fn loaded_bytes(&self) -> usize {
        let read = lock(&self.store.read);
        read.iter().filter(|(name, _)| name.starts_with(&self.prefix)).map(|(_, bytes)| bytes).sum()
    }

    /// What a [`Weights::recording`] was asked for: full names and shapes.
    pub fn recorded(&self) -> BTreeMap<String, Vec<usize>> {
        match &*self.store.source {
            Source::Recording(recorded) => lock(recorded).clone(),
            _ => BTreeMap::new(),
        }
    }
}

/// Is `name` what `pattern` stands for? A `*` is any run of characters.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            (0..=name.len())
                .filter(|&i| name.is_char_boundary(i))
                .any(|i| matches(rest, &name[i..]))
        }),
    }
}

/// A panic while a set of names was locked leaves that set whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
