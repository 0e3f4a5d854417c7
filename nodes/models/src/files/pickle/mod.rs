//! Files of `torch.save` (.ckpt, .pt, .pth, .bin), read without executing anything.
//!
//! Such a file is a pickle, a program for a stack machine of Python's that may call any function
//! there is: opening one from a stranger with `torch.load` of old is running his program. Here the
//! machine can only build containers and descriptions of tensors ([`machine`]); the globals that it
//! may name are a strict list ([`globals`]), and everything else is refused by its name and place.
//! The tensors' bytes stay where they are, in the mapped file: in the members of a zip archive
//! ([`archive`], torch since 1.6), or behind the pickles ([`legacy`]).
//!
//! Tensors are named by their path through the containers, joined with dots:
//! `{"state_dict": {"model.weight": …}}` holds `state_dict.model.weight`.

mod archive;
mod error;
mod globals;
mod layout;
mod legacy;
mod machine;
mod opcode;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Result as CandleResult, Tensor};

use super::mapped::Mapped;
use crate::error::{Error, Result};
use archive::Archive;
pub use error::PickleError;
use layout::{Contents, element_size, lay_out};
pub use layout::{Plain, TensorInfo};
use machine::Budget;

/// A mapped torch file and the tensors in it.
#[derive(Debug)]
pub struct TorchFile {
    path: PathBuf,
    map: Mapped,
    tensors: BTreeMap<String, TensorInfo>,
    plain: BTreeMap<String, Plain>,
}

impl TorchFile {
    /// Opens the file and finds its tensors; no number is read. The file must not change while it
    /// is in use.
    ///
    /// # Errors
    /// The file cannot be read, or is not what `torch.save` writes of containers and tensors: see
    /// [`PickleError`].
    pub fn open(path: &Path) -> Result<TorchFile> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let map = Mapped::open(path).map_err(io)?;
        let Contents { tensors, plain } = contents_of(&map)
            .map_err(|source| Error::NotTorch { path: path.to_owned(), source: source.into() })?;
        Ok(TorchFile { path: path.to_owned(), map, tensors, plain })
    }

    /// Does the file begin as a file of `torch.save` does? `bytes` are its first 16 or more.
    pub fn begins(bytes: &[u8]) -> bool {
        Archive::begins(bytes) || legacy::begins(bytes)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The texts and numbers of the outermost dictionary that are no tensors, by their keys.
    pub fn plain(&self) -> &BTreeMap<String, Plain> {
        &self.plain
    }

    /// What the tensor `name` is, if there is one.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The elements of the tensor `name` in order, little-endian: a part of the map where they lie
    /// so, a copy where the tensor is a transposed view.
    pub fn data(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let info = self.tensors.get(name)?;
        let bytes = self.map.get(info.bytes.clone())?;
        match info.is_contiguous() {
            true => Some(Cow::Borrowed(bytes)),
            false => Some(Cow::Owned(gather(bytes, info))),
        }
    }

    /// The tensor `name`, of the type that it has there.
    pub(crate) fn tensor(&self, name: &str, dtype: DType) -> CandleResult<Option<Tensor>> {
        let Some(info) = self.tensors.get(name) else { return Ok(None) };
        if info.is_contiguous() {
            return self.map.tensor(info.bytes.clone(), dtype, &info.shape).map(Some);
        }
        let Some(bytes) = self.data(name) else { return Ok(None) };
        let tensor = Tensor::from_raw_buffer(&bytes, dtype, &info.shape, &Device::Cpu)?;
        self.give_back(name);
        Ok(Some(tensor))
    }

    /// Gives back the pages of memory that the tensor `name` was read from, so that who copied it has
    /// it once; they come again when they are looked at.
    pub fn give_back(&self, name: &str) {
        if let Some(info) = self.tensors.get(name) {
            self.map.give_back(info.bytes.clone());
        }
    }
}

/// The tensors of the file's bytes.
#[cfg(test)]
fn tensors_of(bytes: &[u8]) -> Result<BTreeMap<String, TensorInfo>, PickleError> {
    contents_of(bytes).map(|contents| contents.tensors)
}

/// What the file's bytes hold.
fn contents_of(bytes: &[u8]) -> Result<Contents, PickleError> {
    let mut budget = Budget::for_file(bytes.len());
    if legacy::begins(bytes) {
        return legacy::contents(bytes, &mut budget);
    }
    if !Archive::begins(bytes) {
        return Err(PickleError::NotTorch(what_it_is(bytes).to_owned()));
    }
    let archive = Archive::open(bytes)?;
    let mut pickles = archive.names().filter(|name| {
        name.strip_suffix("data.pkl")
            .is_some_and(|folder| folder.is_empty() || folder.ends_with('/'))
    });
    let pickle = pickles.next().ok_or_else(|| {
        PickleError::NotTorch("it is a zip archive without a member data.pkl".to_owned())
    })?;
    if pickles.next().is_some() {
        return Err(PickleError::Archive("it has two members data.pkl".to_owned()));
    }
    let folder = pickle.strip_suffix("data.pkl").unwrap_or_default();
    if archive.member(&format!("{folder}constants.pkl")).is_some() {
        return Err(PickleError::TorchScript);
    }
    if let Some(order) = archive.member(&format!("{folder}byteorder")) {
        let order = bytes.get(order).unwrap_or_default();
        if order != b"little" {
            let order = String::from_utf8_lossy(&order[..order.len().min(16)]).into_owned();
            return Err(PickleError::ByteOrder(order));
        }
    }
    let program = archive.member(pickle).unwrap_or_default();
    let base = program.start;
    let outcome = machine::run(bytes.get(program).unwrap_or_default(), 0, base, &mut budget)?;
    let prefix = format!("{folder}data/");
    let storages: HashMap<String, Range<usize>> = archive
        .names()
        .filter_map(|name| Some((name.strip_prefix(&prefix)?.to_owned(), archive.member(name)?)))
        .collect();
    lay_out(&outcome, &storages, &mut budget)
}

/// What a file looks like that is no torch file, for the sentence that says so.
fn what_it_is(bytes: &[u8]) -> &'static str {
    let is_safetensors = bytes.get(8) == Some(&b'{') && bytes.get(6..8) == Some(&[0, 0]);
    match bytes {
        [] => "it is empty",
        _ if is_safetensors => "it looks like a safetensors file",
        [b'<', ..] => "it looks like a web page, as a failed download leaves one",
        _ if bytes.starts_with(b"version https://git-lfs") => {
            "it is a pointer of Git LFS, and the file itself was not fetched"
        }
        [0x80, ..] => "it is a pickle, but not one of torch.save",
        _ => "it begins otherwise",
    }
}

/// The elements of a strided tensor in order. `bytes` begin at its first element and end with its
/// last; there are no more elements than the storage has.
fn gather(bytes: &[u8], info: &TensorInfo) -> Vec<u8> {
    let size = element_size(info.dtype);
    let mut out = Vec::with_capacity(info.byte_length());
    let mut index = vec![0usize; info.shape.len()];
    let count: usize = info.shape.iter().product();
    for _ in 0..count {
        let at: usize = index.iter().zip(&info.strides).map(|(i, stride)| i * stride).sum();
        out.extend_from_slice(&bytes[at * size..(at + 1) * size]);
        // The next index: the last dimension runs fastest.
        for (i, length) in index.iter_mut().zip(&info.shape).rev() {
            *i += 1;
            if *i < *length {
                break;
            }
            *i = 0;
        }
    }
    out
}
