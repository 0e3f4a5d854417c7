//! What a file is refused for: a tensor that is missing, of another shape or type, or not finite.

use candle_core::{CpuStorage, Device, Shape, Storage, Tensor};
use rayon::prelude::*;

use super::Weights;
use crate::error::{Error, Result};

impl Weights {
    /// The file that holds a tensor: one of several, where these weights are a folder or shards.
    pub(super) fn file(&self, full: &str) -> String {
        match self.store.source.file(full) {
            Some(path) => path.display().to_string(),
            None => self.store.origin.clone(),
        }
    }

    pub(super) fn missing(&self, full: &str) -> Error {
        let source = &self.store.source;
        let nearest = source
            .names()
            .into_iter()
            .map(|name| (strsim::jaro_winkler(full, name), name))
            .max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(a.1)))
            .map(|(_, name)| source.own_name(name).to_owned());
        let name = source.own_name(full).to_owned();
        Error::MissingTensor { file: self.store.origin.clone(), name, nearest }
    }

    pub(super) fn check_shape(&self, full: &str, expected: &Shape, found: &[usize]) -> Result<()> {
        if expected.dims() == found || self.store.source.same_shape(expected.dims(), found) {
            return Ok(());
        }
        Err(Error::Shape {
            file: self.file(full),
            name: self.store.source.own_name(full).to_owned(),
            expected: expected.dims().to_vec(),
            found: found.to_vec(),
        })
    }

    pub(super) fn wrong_type(&self, full: &str, found: String) -> Error {
        let name = self.store.source.own_name(full).to_owned();
        Error::DType { file: self.file(full), name, found }
    }

    pub(super) fn check_finite(&self, full: &str, tensor: &Tensor) -> Result<()> {
        let values = tensor.to_device(&Device::Cpu)?.flatten_all()?.contiguous()?;
        let (storage, layout) = values.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            return Err(self.wrong_type(full, format!("{layout:?}")));
        };
        let damaged = match &*storage {
            Storage::Cpu(CpuStorage::F32(values)) => {
                not_finite(&values[start..end], |value| value.is_finite(), |value| *value)
            }
            Storage::Cpu(CpuStorage::F16(values)) => {
                not_finite(&values[start..end], |value| value.is_finite(), |value| value.to_f32())
            }
            Storage::Cpu(CpuStorage::BF16(values)) => {
                not_finite(&values[start..end], |value| value.is_finite(), |value| value.to_f32())
            }
            _ => return Err(self.wrong_type(full, format!("{:?}", tensor.dtype()))),
        };
        match damaged {
            None => Ok(()),
            Some((index, value)) => Err(self.not_finite(full, index, value)),
        }
    }

    pub(super) fn not_finite(&self, full: &str, index: usize, value: f32) -> Error {
        let name = self.store.source.own_name(full).to_owned();
        Error::NotFinite { file: self.file(full), name, index, value }
    }
}

/// The first value that is NaN or infinite, and its place. Whole blocks are looked at without a branch, in
/// vector code, and a value is widened only to be told: a model has a thousand million of them.
fn not_finite<T: Sync>(
    values: &[T],
    is_finite: impl Fn(&T) -> bool + Sync,
    to_f32: fn(&T) -> f32,
) -> Option<(usize, f32)> {
    const BLOCK: usize = 4096;
    let is_damaged = |block: &[T]| !block.iter().fold(true, |all, value| all & is_finite(value));
    let block = values.par_chunks(BLOCK).position_first(is_damaged)?;
    let mut values = values.iter().enumerate().skip(block * BLOCK);
    values.find(|(_, value)| !is_finite(value)).map(|(index, value)| (index, to_f32(value)))
}
