//! Where tensors come from: mapped files, memory, or another source under other names.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use safetensors::tensor::{Dtype, Metadata, SafeTensorError, SafeTensors, TensorInfo};

use crate::error::{Error, Result};
use crate::files::pickle::TorchFile;

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
    },
    Torch(TorchFile),
    Tensors(HashMap<String, Tensor>),
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
    map: memmap2::Mmap,
    metadata: Metadata,
    /// Where the tensors' bytes begin.
    data_start: usize,
}

/// What a tensor is, before its numbers are read.
pub(super) struct Stored {
    pub(super) shape: Vec<usize>,
    /// The name of a type that candle does not have, where it is one.
    pub(super) dtype: Result<DType, String>,
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
            return Ok(Source::Files { files, file_of });
        }
        if TorchFile::begins(&first_bytes(path)?) {
            return Ok(Source::Torch(TorchFile::open(path)?));
        }
        let (files, file_of) = open_one(path)?;
        Ok(Source::Files { files, file_of })
    }

    pub(super) fn names(&self) -> Vec<&str> {
        match self {
            Source::Files { file_of, .. } => file_of.keys().map(String::as_str).collect(),
            Source::Torch(file) => file.names().collect(),
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

    /// The mapped file that a tensor lies in.
    pub(super) fn file(&self, name: &str) -> Option<&Path> {
        match self {
            Source::Files { files, file_of } => Some(&files[*file_of.get(name)?].path),
            Source::Renamed { source, names } => source.file(&names.get(name)?.0),
            Source::Torch(file) => Some(file.path()),
            Source::Tensors(_) | Source::Recording(_) => None,
        }
    }

    pub(super) fn stored(&self, name: &str) -> Option<Stored> {
        match self {
            Source::Files { files, file_of } => {
                let info = files[*file_of.get(name)?].metadata.info(name)?;
                Some(Stored { shape: info.shape.clone(), dtype: dtype_of(info.dtype) })
            }
            Source::Torch(file) => {
                let info = file.info(name)?;
                Some(Stored { shape: info.shape.clone(), dtype: dtype_of(info.dtype) })
            }
            Source::Tensors(tensors) => {
                let tensor = tensors.get(name)?;
                Some(Stored { shape: tensor.dims().to_vec(), dtype: Ok(tensor.dtype()) })
            }
            Source::Recording(_) => None,
            Source::Renamed { source, names } => {
                let (own, part) = names.get(name)?;
                let Stored { shape, dtype } = source.stored(own)?;
                Some(Stored { shape: part.shape(shape), dtype })
            }
        }
    }

    /// A copy of a tensor's numbers in the type `dtype`, which is the one it is stored in. The pages
    /// of a mapped file that it was read from are given back, so that a model in memory is there once
    /// and not a second time as its file.
    pub(super) fn tensor(&self, name: &str, dtype: DType) -> CandleResult<Option<Tensor>> {
        match self {
            Source::Files { files, file_of } => {
                let Some(file) = file_of.get(name).map(|file| &files[*file]) else {
                    return Ok(None);
                };
                file.metadata.info(name).map(|info| file.tensor(info, dtype)).transpose()
            }
            Source::Torch(file) => {
                let (Some(info), Some(bytes)) = (file.info(name), file.data(name)) else {
                    return Ok(None);
                };
                let tensor = Tensor::from_raw_buffer(&bytes, dtype, &info.shape, &Device::Cpu)?;
                file.give_back(name);
                Ok(Some(tensor))
            }
            Source::Tensors(tensors) => Ok(tensors.get(name).cloned()),
            Source::Recording(_) => Ok(None),
            Source::Renamed { source, names } => match names.get(name) {
                Some((own, part)) => {
                    source.tensor(own, dtype)?.map(|tensor| part.of(tensor)).transpose()
                }
                None => Ok(None),
            },
        }
    }

    pub(super) fn metadata(&self, key: &str) -> Option<&str> {
        match self {
            Source::Files { files, .. } => files.iter().find_map(|file| {
                let metadata = file.metadata.metadata().as_ref()?;
                metadata.get(key).map(String::as_str)
            }),
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

fn dtype_of(dtype: Dtype) -> Result<DType, String> {
    Ok(match dtype {
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::I64 => DType::I64,
        Dtype::U8 | Dtype::BOOL => DType::U8,
        other => return Err(format!("{other:?}")),
    })
}

impl MappedFile {
    fn open(path: &Path) -> Result<MappedFile> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read only, and `Weights::open` says that the file must not change
        // while it is in use. Bytes are only ever read as numbers, for which any bits are valid.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        let broken = |problem| Error::NotSafetensors { path: path.to_owned(), problem };
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|error| broken(explain(&error, map.len())))?;
        // The length field and the header come before the data.
        let data_start = 8 + header;
        if data_start + metadata.data_len() != map.len() {
            return Err(broken("the tensors do not fill it to its end".to_owned()));
        }
        Ok(MappedFile { path: path.to_owned(), map, metadata, data_start })
    }

    /// A copy of a tensor. The pages it was read from are given back, so that a model in memory is
    /// there once and not a second time as its file.
    fn tensor(&self, info: &TensorInfo, dtype: DType) -> CandleResult<Tensor> {
        // `open` has checked the offsets against the file's length.
        let (start, end) = info.data_offsets;
        let (start, length) = (self.data_start + start, end - start);
        let bytes = &self.map[start..start + length];
        let tensor = Tensor::from_raw_buffer(bytes, dtype, &info.shape, &Device::Cpu)?;
        #[cfg(unix)]
        {
            // SAFETY: the map is shared and read only, so pages that are given back come again with the
            // same bytes when they are looked at. Who cannot give them back has them still.
            let _ = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, length)
            };
        }
        Ok(tensor)
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
