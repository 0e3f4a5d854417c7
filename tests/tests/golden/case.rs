//! One golden case: its files, and the comparisons made with them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::{DType, Device, Tensor};
use kosmograph_models::Weights;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// How far a tensor may be off, relative to the largest magnitude that is expected in it.
pub const BOUND: f64 = 2e-5;

/// The same where whoever runs this asks for `KOSMOGRAPH_PRECISION=bf16`: every factor of a matrix product is rounded by up to
/// 2⁻⁹ of itself there, in layer after layer. A bound of that option, and of nothing else.
const BOUND_OF_BF16: f64 = 5e-2;

/// And where it is `int8`: a factor of a linear layer of more than 128 rows is off by up to 2⁻⁸ of the largest in its row.
const BOUND_OF_INT8: f64 = 5e-2;

/// The bound where whoever runs this asks for factors of products that are rounded.
pub fn bound_of_rounded() -> Option<f64> {
    match std::env::var("KOSMOGRAPH_PRECISION").as_deref() {
        Ok("bf16") => Some(BOUND_OF_BF16),
        Ok("int8") => Some(BOUND_OF_INT8),
        _ => None,
    }
}

/// One comparison.
struct Comparison {
    name: String,
    /// The largest difference.
    error: f64,
    /// The largest difference that passes.
    bound: f64,
}

/// A folder of golden files.
pub struct Case {
    pub folder: PathBuf,
    /// `config.json`; null where the case has none.
    pub config: Value,
    inputs: BTreeMap<String, Tensor>,
    expected: BTreeMap<String, Tensor>,
    comparisons: Vec<Comparison>,
    /// Things that are equal or not: ids, names, pixels.
    equal: usize,
    problems: Vec<String>,
    skipped: Option<String>,
    /// The expected tensors that were compared.
    seen: BTreeSet<String>,
    /// The names of the case's own files that were read.
    read: RefCell<BTreeSet<String>>,
}

/// How a case ended that is no failure.
pub enum Ending {
    /// What was compared, as a line.
    Compared(String),
    /// What it needs is not here: why nothing was compared.
    Skipped(String),
}

impl Case {
    /// Reads `config.json`, `inputs.safetensors` and `expected.safetensors`, those of them that are
    /// there.
    pub fn open(folder: &Path) -> Result<Case> {
        let mut case = Case {
            folder: folder.to_owned(),
            config: Value::Null,
            inputs: BTreeMap::new(),
            expected: BTreeMap::new(),
            comparisons: Vec::new(),
            equal: 0,
            problems: Vec::new(),
            skipped: None,
            seen: BTreeSet::new(),
            read: RefCell::default(),
        };
        let there = |name: &str| Some(case.file(name)).filter(|path| path.is_file());
        let tensors = |path: PathBuf| read_tensors(&path);
        let config = there("config.json").map(|path| read_json(&path)).transpose()?;
        let mut inputs = there("inputs.safetensors").map(tensors).transpose()?.unwrap_or_default();
        let expected = there("expected.safetensors").map(tensors).transpose()?;
        case.config = config.unwrap_or_default();
        if let Some(from) = case.inputs_from() {
            inputs.extend(read_tensors(&from)?);
        }
        case.inputs = inputs;
        case.expected = expected.unwrap_or_default();
        Ok(case)
    }

    /// The path of a file of the case, which counts as read, or of another case's, `../CASE/FILE`.
    pub fn file(&self, name: impl AsRef<str>) -> PathBuf {
        let name = name.as_ref();
        self.read.borrow_mut().insert(name.to_owned());
        self.folder.join(name)
    }

    /// The file of another case that inputs are taken from besides the case's own.
    pub fn inputs_from(&self) -> Option<PathBuf> {
        // It is a path, and may go on in words.
        let path = self.config["inputs_from"].as_str()?.split_whitespace().next()?;
        Some(self.file(path))
    }

    /// A JSON file of the case; a large one may lie there compressed, as NAME.gz.
    pub fn json(&self, name: &str) -> Result<Value> {
        let plain = self.file(name);
        if plain.is_file() {
            return read_json(&plain);
        }
        let path = self.file(format!("{name}.gz"));
        let file = std::fs::File::open(&path).with_context(|| path.display().to_string())?;
        let mut text = String::new();
        let read = flate2::read::GzDecoder::new(file).read_to_string(&mut text);
        read.with_context(|| path.display().to_string())?;
        Ok(kosmograph_models::files::python_json::parse(&text, &path.display().to_string())?)
    }

    /// A number of `config.json`; `key` may be a path with dots.
    pub fn size(&self, key: &str) -> Result<usize> {
        let value = key.split('.').fold(&self.config, |value, key| &value[key]);
        let number =
            value.as_u64().with_context(|| format!("config.json has no number `{key}`"))?;
        Ok(number as usize)
    }

    /// A number of `config.json` under keys that may hold dots.
    pub fn size_of(&self, keys: &[&str]) -> Result<usize> {
        let value = keys.iter().fold(&self.config, |value, key| &value[*key]);
        let number =
            value.as_u64().with_context(|| format!("config.json has no number {keys:?}"))?;
        Ok(number as usize)
    }

    /// The weights of the case, its own or those that `weights_from` names.
    pub fn weights(&self) -> Result<Weights> {
        let file = self.config["weights_from"].as_str().unwrap_or("weights.safetensors");
        Ok(Weights::open(&self.file(file), &Device::Cpu)?)
    }

    /// The names of the inputs.
    pub fn inputs(&self) -> Vec<String> {
        self.inputs.keys().cloned().collect()
    }

    pub fn has_input(&self, name: &str) -> bool {
        self.inputs.contains_key(name)
    }

    /// An input, in the type of its file (bool as u8).
    pub fn input(&self, name: &str) -> Result<Tensor> {
        let tensor = self.inputs.get(name);
        tensor.cloned().with_context(|| format!("inputs.safetensors has no `{name}`"))
    }

    /// The names of the expected tensors.
    pub fn expected_names(&self) -> Vec<String> {
        self.expected.keys().cloned().collect()
    }

    pub fn expects(&self, name: &str) -> bool {
        self.expected.contains_key(name)
    }

    /// An expected tensor, which counts as compared.
    pub fn expected(&mut self, name: &str) -> Result<Tensor> {
        let tensor = self.expected.get(name);
        let tensor = tensor.with_context(|| format!("expected.safetensors has no `{name}`"))?;
        self.seen.insert(name.to_owned());
        Ok(tensor.clone())
    }

    /// Compares with an expected tensor of the same shape, within [`BOUND`] of its largest
    /// magnitude.
    pub fn check(&mut self, name: &str, found: &Tensor) -> Result<()> {
        let largest = largest_magnitude(&self.expected(name)?)?;
        self.check_within(name, found, BOUND * largest)
    }

    /// Compares with an expected tensor of the same shape, within an absolute bound.
    pub fn check_within(&mut self, name: &str, found: &Tensor, bound: f64) -> Result<()> {
        let expected = self.expected(name)?;
        self.compare(name, found, &expected, bound)
    }

    /// Compares two tensors of one shape, within an absolute bound.
    pub fn compare(
        &mut self,
        name: &str,
        found: &Tensor,
        expected: &Tensor,
        bound: f64,
    ) -> Result<()> {
        ensure!(
            expected.dims() == found.dims(),
            "`{name}` has the shape {:?}, expected is {:?}",
            found.dims(),
            expected.dims()
        );
        let difference = (found.to_dtype(DType::F64)? - expected.to_dtype(DType::F64)?)?;
        let error = largest_magnitude(&difference)?;
        let bound = match bound_of_rounded() {
            Some(rounded) => bound.max(rounded * largest_magnitude(expected)?),
            None => bound,
        };
        self.comparisons.push(Comparison { name: name.to_owned(), error, bound });
        // A NaN is neither within nor beyond.
        if !matches!(
            error.partial_cmp(&bound),
            Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)
        ) {
            self.problems.push(format!("`{name}` is off by {error:.2e}, allowed are {bound:.2e}"));
        }
        Ok(())
    }

    /// Compares things that must be equal.
    pub fn check_equal<T: PartialEq + std::fmt::Debug>(
        &mut self,
        what: &str,
        found: &T,
        expected: &T,
    ) {
        self.equal += 1;
        if found != expected {
            let shorten = |value: &T| format!("{value:?}").chars().take(300).collect::<String>();
            self.problems.push(format!(
                "{what} is {}, expected is {}",
                shorten(found),
                shorten(expected)
            ));
        }
    }

    /// Says that what the case needs is not here, and so nothing can be compared.
    pub fn skip(&mut self, why: String) {
        self.skipped = Some(why);
    }

    /// Says that something is wrong, and that the rest of the case may still be compared.
    pub fn problem(&mut self, sentence: String) {
        self.problems.push(sentence);
    }

    /// The line of the case, or what is wrong. `not_covered` are files of it, and beginnings of the names of
    /// expected tensors.
    pub fn finish(self, not_covered: &[&str]) -> Result<Ending> {
        if let Some(why) = self.skipped {
            ensure!(
                self.comparisons.is_empty() && self.equal == 0,
                "half of it was not run: {why}"
            );
            return Ok(Ending::Skipped(why));
        }
        let covered = |name: &&String| !not_covered.iter().any(|part| name.starts_with(part));
        let mut unread = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            unread.push(entry?.file_name().to_string_lossy().into_owned());
        }
        let read = self.read.into_inner();
        unread.retain(|name| !read.contains(name) && covered(&name));
        if let Some(name) = unread.first() {
            bail!("{} files were not read, among them {name}", unread.len());
        }
        let unseen = self.expected.keys().filter(|name| !self.seen.contains(*name));
        let unseen: Vec<&String> = unseen.filter(covered).collect();
        if !unseen.is_empty() {
            bail!(
                "{} expected tensors were not compared, among them {:?}",
                unseen.len(),
                unseen[0]
            );
        }
        if let Some(problem) = self.problems.first() {
            bail!("{} comparisons failed; the first: {problem}", self.problems.len());
        }
        let mut parts = Vec::new();
        let ratio = |c: &Comparison| if c.error == 0.0 { 0.0 } else { c.error / c.bound };
        let worst = self.comparisons.iter().max_by(|a, b| ratio(a).total_cmp(&ratio(b)));
        if let Some(worst) = worst {
            parts.push(format!(
                "max error {:.2e} / bound {:.2e} ({}, the worst of {} tensors)",
                worst.error,
                worst.bound,
                worst.name,
                self.comparisons.len()
            ));
        }
        if self.equal > 0 {
            parts.push(format!("{} exact comparisons", self.equal));
        }
        ensure!(!parts.is_empty(), "nothing was compared");
        Ok(Ending::Compared(parts.join("; ")))
    }
}

/// The weights of a file, each tensor that `factors` names multiplied by its factor.
pub fn scaled_weights(file: &Path, factors: &Value) -> Result<Weights> {
    let factors = factors.as_object().context("scaled_keys is not an object")?;
    let mut tensors: HashMap<String, Tensor> = read_tensors(file)?.into_iter().collect();
    for (name, factor) in factors {
        let factor =
            factor.as_f64().with_context(|| format!("the factor of {name} is no number"))?;
        let tensor = tensors
            .get_mut(name)
            .with_context(|| format!("{} has no `{name}` to scale", file.display()))?;
        *tensor = (&*tensor * factor)?;
    }
    Ok(Weights::from_tensors(file.display().to_string(), tensors, &Device::Cpu))
}

/// A JSON file.
pub fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(kosmograph_models::files::python_json::parse(&text, &path.display().to_string())?)
}

/// All tensors of a safetensors file; bool becomes u8.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let file = SafeTensors::deserialize(&bytes).with_context(|| path.display().to_string())?;
    file.iter()
        .map(|(name, view)| {
            let dtype = match view.dtype() {
                Dtype::F64 => DType::F64,
                Dtype::F32 => DType::F32,
                Dtype::F16 => DType::F16,
                Dtype::I64 => DType::I64,
                Dtype::BOOL | Dtype::U8 => DType::U8,
                other => return Err(anyhow!("{}: `{name}` is {other:?}", path.display())),
            };
            let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?;
            Ok((name.to_owned(), tensor))
        })
        .collect()
}

/// max |x|; NaN if there is one.
pub fn largest_magnitude(tensor: &Tensor) -> Result<f64> {
    let values = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    Ok(values.into_iter().fold(0.0, |largest: f64, value| {
        if largest.is_nan() || value.is_nan() { f64::NAN } else { largest.max(value.abs()) }
    }))
}
