//! Where tensors come from: mapped files, memory, or another source under other names.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Result as CandleResult, Tensor};
use safetensors::tensor::{Dtype, Metadata, SafeTensorError, SafeTensors, TensorInfo};

use crate::error::{Error, Result};
use crate::files::gguf::GgufFile;
use crate::files::mapped::Mapped;
use crate::files::packed::{Format, Packed, Scale};
use crate::files::pickle::TorchFile;

use super::scales;
use super::weight::Weight;

/// The file names a folder's weights are looked for under, the first that exists.
const FOLDER_NAMES: [&str; 10] = [
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.fp16.safetensors.index.json",
    "model.fp16.safetensors",
    "model.fp16.safetensors.index.json",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
];

/// Named tensors.
pub(super) enum Source {
    Files {
        files: Vec<MappedFile>,
        file_of: HashMap<String, usize>,
        /// The factors of scaled fp8, which no model asks for.
        aside: HashMap<String, usize>,
    },
    Torch(TorchFile),
    Gguf(GgufFile),
    Tensors(HashMap<String, Weight>),
    /// Every tensor exists, in the shape it is asked for.
    Recording(Mutex<BTreeMap<String, Vec<usize>>>),
    /// Tensors of `source` under other names: `names` leads to those they have there, and to the part of each that
    /// is meant.
    Renamed {
        source: Arc<Source>,
        names: HashMap<String, (String, Part)>,
    },
}

/// What of a tensor is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// The first, second or third (0, 1, 2) of three equal parts of its rows: queries, keys and values.
    Third(usize),
    /// A matrix with rows and columns exchanged.
    Transposed,
}

impl Part {
    fn shape(self, mut shape: Vec<usize>) -> Vec<usize> {
        match (self, &mut shape[..]) {
            (Part::Third(_), [rows, ..]) => *rows /= 3,
            (Part::Transposed, [rows, columns]) => std::mem::swap(rows, columns),
            _ => {}
        }
        shape
    }

    /// Of numbers in fewer bits a third stays so, where it begins on a block of its own.
    fn of_weight(self, weight: Weight) -> CandleResult<Weight> {
        let third = |third: usize, packed: &Packed| {
            let rows = packed.shape().first().copied().unwrap_or(0) / 3;
            packed.rows(third.min(2) * rows, rows)
        };
        let packed = match (self, weight.as_packed()) {
            (Part::Whole, _) => return Ok(weight),
            (Part::Third(number), Some(packed)) => third(number, packed),
            _ => None,
        };
        match packed {
            Some(packed) => Ok(Weight::packed(Arc::new(packed))),
            None => Ok(self.of(weight.tensor()?)?.into()),
        }
    }

    /// The factors of the rows that are meant. A matrix that is turned has one for all of it: such files know
    /// no others.
    fn of_scale(self, scale: Scale) -> Scale {
        match (self, scale) {
            (Part::Third(third), Scale::Rows(rows)) => {
                let count = rows.len() / 3;
                Scale::Rows(rows.into_iter().skip(third.min(2) * count).take(count).collect())
            }
            (_, scale) => scale,
        }
    }

    /// A copy, so that the rest is not held.
    fn of(self, tensor: Tensor) -> CandleResult<Tensor> {
        match self {
            Part::Third(third) if tensor.rank() > 0 => {
                let rows = tensor.dim(0)? / 3;
                tensor.narrow(0, third.min(2) * rows, rows)?.force_contiguous()
            }
            Part::Transposed if tensor.rank() == 2 => tensor.t()?.contiguous(),
            _ => Ok(tensor),
        }
    }
}

pub(super) struct MappedFile {
    path: PathBuf,
    map: Mapped,
    metadata: Metadata,
    /// Where the tensors' bytes begin.
    data_start: usize,
    /// Weights of a type that the header's metadata names and that is not read.
    unread: HashMap<String, String>,
}

/// How a tensor's numbers are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Numbers {
    Plain(DType),
    Packed(Format),
}

/// What a tensor is, before its numbers are read.
pub(super) struct Stored {
    pub(super) shape: Vec<usize>,
    /// The name of a type that is not read, where it is one.
    pub(super) numbers: Result<Numbers, String>,
}

impl Source {
    /// Opens a file or folder: see [`super::Weights::open`].
    pub(super) fn open(path: &Path) -> Result<Source> {
        if path.is_dir() {
            let files = FOLDER_NAMES.iter().map(|name| path.join(name));
            return match files.into_iter().find(|file| file.is_file()) {
                Some(file) => Source::open(&file),
                None => Err(Error::NoWeights {
                    folder: path.to_owned(),
                    tried: FOLDER_NAMES.join(", "),
                }),
            };
        }
        if path.extension().is_some_and(|extension| extension == "json") {
            let (files, file_of) = open_index(path)?;
            return Ok(Source::of_files(files, file_of));
        }
        let first = first_bytes(path)?;
        if TorchFile::begins(&first) {
            return Ok(Source::Torch(TorchFile::open(path)?));
        }
        if GgufFile::begins(&first) {
            return Ok(Source::Gguf(GgufFile::open(path)?));
        }
        let (files, file_of) = open_one(path)?;
        Ok(Source::of_files(files, file_of))
    }

    fn of_files(files: Vec<MappedFile>, file_of: HashMap<String, usize>) -> Source {
        let is_aside = |name: &str| scales::is_aside(name, |other| file_of.contains_key(other));
        let (aside, file_of) = file_of
            .iter()
            .map(|(name, file)| (name.clone(), *file))
            .partition(|(name, _)| is_aside(name));
        Source::Files { files, file_of, aside }
    }

    pub(super) fn names(&self) -> Vec<&str> {
        match self {
            Source::Files { file_of, .. } => file_of.keys().map(String::as_str).collect(),
            Source::Torch(file) => file.names().collect(),
            Source::Gguf(file) => file.names().collect(),
            Source::Tensors(tensors) => tensors.keys().map(String::as_str).collect(),
            Source::Recording(_) => Vec::new(),
            Source::Renamed { names, .. } => names.keys().map(String::as_str).collect(),
        }
    }

    /// Is there a tensor of this name, or any below it when it is a dotted path?
    pub(super) fn has(&self, name: &str) -> bool {
        let below =
            |other: &&str| other.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
        match self {
            Source::Recording(_) => true,
            _ => self.stored(name).is_some() || self.names().iter().any(below),
        }
    }

    /// What the file calls the tensor that is `name` here.
    pub(super) fn own_name<'a>(&'a self, name: &'a str) -> &'a str {
        match self {
            Source::Renamed { source, names } => match names.get(name) {
                Some((own, _)) => source.own_name(own),
                None => name,
            },
            _ => name,
        }
    }

    /// Are the two shapes the same in these files? ggml counts up to four axes and knows no ones at the end of
    /// its row of them, which is the beginning of ours.
    pub(super) fn same_shape(&self, a: &[usize], b: &[usize]) -> bool {
        match self {
            Source::Gguf(_) => {
                let length = |shape: &&usize| **shape != 1;
                a.iter().filter(length).eq(b.iter().filter(length))
            }
            Source::Renamed { source, .. } => source.same_shape(a, b),
            _ => false,
        }
    }

    /// The mapped file that a tensor lies in.
    pub(super) fn file(&self, name: &str) -> Option<&Path> {
        match self {
            Source::Files { files, file_of, .. } => Some(&files[*file_of.get(name)?].path),
            Source::Renamed { source, names } => source.file(&names.get(name)?.0),
            Source::Torch(file) => Some(file.path()),
            Source::Gguf(file) => Some(file.path()),
            Source::Tensors(_) | Source::Recording(_) => None,
        }
    }

    pub(super) fn stored(&self, name: &str) -> Option<Stored> {
        match self {
            Source::Files { files, file_of, .. } => {
                let file = &files[*file_of.get(name)?];
                let info = file.metadata.info(name)?;
                let numbers = match file.unread.get(name) {
                    Some(format) => Err(format.clone()),
                    None => numbers_of(info.dtype),
                };
                Some(Stored { shape: info.shape.clone(), numbers })
            }
            Source::Torch(file) => {
                let info = file.info(name)?;
                Some(Stored { shape: info.shape.clone(), numbers: numbers_of(info.dtype) })
            }
            Source::Gguf(file) => {
                let info = file.info(name)?;
                Some(Stored { shape: info.shape.clone(), numbers: info.numbers.clone() })
            }
            Source::Tensors(tensors) => {
                let weight = tensors.get(name)?;
                let numbers = match weight.as_packed() {
                    Some(packed) => Numbers::Packed(packed.format()),
                    None => Numbers::Plain(weight.dtype()),
                };
                Some(Stored { shape: weight.dims().to_vec(), numbers: Ok(numbers) })
            }
            Source::Recording(_) => None,
            Source::Renamed { source, names } => {
                let (own, part) = names.get(name)?;
                let Stored { shape, numbers } = source.stored(own)?;
                Some(Stored { shape: part.shape(shape), numbers })
            }
        }
    }

    /// A tensor's numbers in the type `dtype`, which is the one it is stored in: where they lie in a mapped file, or a copy,
    /// and then the pages that it was read from are given back. A model is in memory once, and not a second time as its file.
    pub(super) fn tensor(&self, name: &str, dtype: DType) -> CandleResult<Option<Tensor>> {
        match self {
            Source::Files { files, file_of, .. } => {
                let Some(file) = file_of.get(name).map(|file| &files[*file]) else {
                    return Ok(None);
                };
                file.metadata.info(name).map(|info| file.tensor(info, dtype)).transpose()
            }
            Source::Torch(file) => file.tensor(name, dtype),
            Source::Gguf(file) => file.tensor(name, dtype),
            Source::Tensors(tensors) => tensors.get(name).map(Weight::tensor).transpose(),
            Source::Recording(_) => Ok(None),
            Source::Renamed { source, names } => match names.get(name) {
                Some((own, part)) => {
                    source.tensor(own, dtype)?.map(|tensor| part.of(tensor)).transpose()
                }
                None => Ok(None),
            },
        }
    }

    /// A weight that is changed or copied each time it is used, or that has a place on a GPU, as it is.
    pub(super) fn as_it_is(&self, name: &str) -> Option<Weight> {
        match self {
            Source::Tensors(tensors) => {
                let stays = |weight: &&Weight| weight.is_made_late() || weight.has_place();
                tensors.get(name).filter(stays).cloned()
            }
            _ => None,
        }
    }

    /// A tensor that is kept in `format`, as it is.
    ///
    /// # Errors
    /// Its scale is damaged.
    pub(super) fn packed(&self, name: &str, format: Format) -> Result<Option<Weight>> {
        let of = |shape: &[usize], bytes: Vec<u8>, scale| {
            Weight::packed(Arc::new(Packed::new(format, shape.to_vec(), bytes, scale)))
        };
        match self {
            Source::Files { files, file_of, .. } => {
                let Some(file) = file_of.get(name).map(|file| &files[*file]) else {
                    return Ok(None);
                };
                let Some(info) = file.metadata.info(name) else { return Ok(None) };
                let scale = self.scale(name, &info.shape)?;
                Ok(Some(of(&info.shape, file.map.bytes(file.range(info)), scale)))
            }
            Source::Torch(file) => {
                let (Some(info), Some(bytes)) = (file.info(name), file.data(name)) else {
                    return Ok(None);
                };
                let weight = of(&info.shape, bytes.into_owned(), Scale::One);
                file.give_back(name);
                Ok(Some(weight))
            }
            Source::Gguf(file) => {
                let (Some(info), Some(bytes)) = (file.info(name), file.bytes(name)) else {
                    return Ok(None);
                };
                Ok(Some(of(&info.shape, bytes, Scale::One)))
            }
            Source::Tensors(tensors) => Ok(tensors.get(name).cloned()),
            Source::Recording(_) => Ok(None),
            Source::Renamed { source, names } => match names.get(name) {
                Some((own, part)) => {
                    let weight = source.packed(own, format)?;
                    Ok(weight.map(|weight| part.of_weight(weight)).transpose()?)
                }
                None => Ok(None),
            },
        }
    }

    /// What the numbers of the weight `name` are multiplied with.
    ///
    /// # Errors
    /// The factor is not one number, or one for each row; or it is not finite.
    pub(super) fn scale(&self, name: &str, shape: &[usize]) -> Result<Scale> {
        let (files, aside) = match self {
            Source::Files { files, aside, .. } => (files, aside),
            Source::Renamed { source, names } => {
                let Some((own, part)) = names.get(name) else { return Ok(Scale::One) };
                let stored = source.stored(own).map(|stored| stored.shape);
                let scale = source.scale(own, stored.as_deref().unwrap_or(shape))?;
                return Ok(part.of_scale(scale));
            }
            _ => return Ok(Scale::One),
        };
        let there = |names: [String; 2]| names.into_iter().find(|name| aside.contains_key(name));
        let Some(scale) = scales::names_of(name).and_then(there) else { return Ok(Scale::One) };
        let file = &files[aside[&scale]];
        let damaged = |what: String| Error::Scale {
            file: file.path.display().to_string(),
            name: scale.clone(),
            what,
        };
        let Some(info) = file.metadata.info(&scale) else { return Ok(Scale::One) };
        let dtype = match numbers_of(info.dtype) {
            Ok(Numbers::Plain(dtype)) if dtype.is_float() => dtype,
            _ => return Err(damaged(format!("holds {:?}, and floats are wanted", info.dtype))),
        };
        let count: usize = info.shape.iter().product();
        let rows = shape.first().copied().unwrap_or(1);
        if count != 1 && count != rows {
            let wanted = format!("one number or one for each of {rows} rows is wanted");
            return Err(damaged(format!("has the shape {:?}, and {wanted}", info.shape)));
        }
        let values = file.tensor(info, dtype)?.flatten_all()?.to_dtype(DType::F32)?;
        let values = values.to_vec1::<f32>()?;
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(damaged(format!("holds {value}")));
        }
        Ok(match &values[..] {
            [1.0] => Scale::One,
            [scale] => Scale::All(*scale),
            _ => Scale::Rows(values),
        })
    }

    pub(super) fn metadata(&self, key: &str) -> Option<&str> {
        match self {
            Source::Files { files, .. } => files.iter().find_map(|file| {
                let metadata = file.metadata.metadata().as_ref()?;
                metadata.get(key).map(String::as_str)
            }),
            Source::Gguf(file) => file.metadata(key),
            Source::Renamed { source, .. } => source.metadata(key),
            _ => None,
        }
    }
}

/// The first 16 bytes, or as many as there are.
fn first_bytes(path: &Path) -> Result<Vec<u8>> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(16).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

fn numbers_of(dtype: Dtype) -> Result<Numbers, String> {
    Ok(match dtype {
        Dtype::F16 => Numbers::Plain(DType::F16),
        Dtype::BF16 => Numbers::Plain(DType::BF16),
        Dtype::F32 => Numbers::Plain(DType::F32),
        Dtype::F64 => Numbers::Plain(DType::F64),
        Dtype::I64 => Numbers::Plain(DType::I64),
        Dtype::U8 | Dtype::BOOL => Numbers::Plain(DType::U8),
        Dtype::F8_E4M3 => Numbers::Packed(Format::F8E4M3),
        Dtype::F8_E5M2 => Numbers::Packed(Format::F8E5M2),
        other => return Err(format!("{other:?}")),
    })
}

impl MappedFile {
    fn open(path: &Path) -> Result<MappedFile> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let map = Mapped::open(path).map_err(io)?;
        let broken = |problem| Error::NotSafetensors { path: path.to_owned(), problem };
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|error| broken(explain(&error, map.len())))?;
        // The length field and the header come before the data.
        let data_start = 8 + header;
        if data_start + metadata.data_len() != map.len() {
            return Err(broken("the tensors do not fill it to its end".to_owned()));
        }
        let said = metadata.metadata().as_ref().and_then(|said| said.get(scales::METADATA));
        let unread = said.map(|said| scales::unread(said)).transpose();
        let unread = unread.map_err(|error| {
            broken(format!("its `{}` is not what is meant by it: {error}", scales::METADATA))
        })?;
        let unread = unread.unwrap_or_default();
        Ok(MappedFile { path: path.to_owned(), map, metadata, data_start, unread })
    }

    /// Where a tensor's bytes lie. `open` has checked the offsets against the file's length.
    fn range(&self, info: &TensorInfo) -> Range<usize> {
        let (start, end) = info.data_offsets;
        self.data_start + start..self.data_start + end
    }

    fn tensor(&self, info: &TensorInfo, dtype: DType) -> CandleResult<Tensor> {
        self.map.tensor(self.range(info), dtype, &info.shape)
    }
}

fn open_one(path: &Path) -> Result<(Vec<MappedFile>, HashMap<String, usize>)> {
    let file = MappedFile::open(path)?;
    let file_of = file.metadata.offset_keys().into_iter().map(|name| (name, 0)).collect();
    Ok((vec![file], file_of))
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn open_index(path: &Path) -> Result<(Vec<MappedFile>, HashMap<String, usize>)> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let broken = |problem| Error::Index { path: path.to_owned(), problem };
    let index: Index = serde_json::from_str(&text).map_err(|error| broken(error.to_string()))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut files: Vec<MappedFile> = Vec::new();
    let mut file_of = HashMap::new();
    for (name, shard) in index.weight_map {
        let is_plain = Path::new(&shard).file_name().is_some_and(|file| file == shard.as_str());
        if !is_plain {
            return Err(broken(format!(
                "`{name}` is said to be in `{shard}`, not a file beside it"
            )));
        }
        let shard = folder.join(shard);
        let position = match files.iter().position(|file| file.path == shard) {
            Some(position) => position,
            None => {
                files.push(MappedFile::open(&shard)?);
                files.len() - 1
            }
        };
        if files[position].metadata.info(&name).is_none() {
            return Err(broken(format!("`{name}` is not in {}", shard.display())));
        }
        file_of.insert(name, position);
    }
    Ok((files, file_of))
}

fn explain(error: &SafeTensorError, length: usize) -> String {
    use SafeTensorError as E;
    match error {
        E::HeaderTooSmall => format!("it has {length} bytes, fewer than a header's length field"),
        E::InvalidHeaderLength => {
            format!("its header says it is longer than the file's {length} bytes: truncated")
        }
        E::HeaderTooLarge => "its header says it is longer than 100 MB".to_owned(),
        E::InvalidHeader(_) => "its header is not text".to_owned(),
        E::InvalidHeaderDeserialization(error) => format!("its header is not valid JSON: {error}"),
        E::InvalidOffset(name) => {
            format!("tensor `{name}` overlaps another, or leaves a gap before it")
        }
        E::TensorInvalidInfo => "a tensor's offsets do not fit its shape and type".to_owned(),
        E::MetadataIncompleteBuffer => {
            format!("the tensors need another length than the file's {length} bytes: truncated")
        }
        E::ValidationOverflow => "a tensor's shape is impossibly large".to_owned(),
        other => other.to_string(),
    }
}
