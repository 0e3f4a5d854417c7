//! Writing safetensors tensor by tensor: what is written need not be in memory at once.

use std::collections::HashMap;
use std::io::{self, Write};

use candle_core::{DType, Tensor};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::error::{Error, Result};

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// F32, F16 or BF16.
    pub dtype: DType,
    pub shape: Vec<usize>,
}

/// Writes a file with these tensors and `metadata` in its header. `numbers` is asked for each, in an order that is the file's.
///
/// # Errors
/// What `numbers` and the file report, a tensor of another shape than its entry's, and one that is twice there.
pub fn write(
    out: &mut dyn Write,
    entries: &[Entry],
    metadata: HashMap<String, String>,
    numbers: &mut dyn FnMut(&Entry) -> Result<Tensor>,
) -> Result<()> {
    let wide = |entry: &Entry| std::cmp::Reverse(entry.dtype.size_in_bytes());
    let mut order: Vec<&Entry> = entries.iter().collect();
    // As the safetensors library does: wide types first, so that every tensor is aligned.
    order.sort_by(|a, b| wide(a).cmp(&wide(b)).then(a.name.cmp(&b.name)));
    let mut end = 0;
    let infos = order.iter().map(|entry| {
        let dtype = match entry.dtype {
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            _ => Dtype::F32,
        };
        let (start, bytes) =
            (end, entry.shape.iter().product::<usize>() * entry.dtype.size_in_bytes());
        end += bytes;
        let info = TensorInfo { dtype, shape: entry.shape.clone(), data_offsets: (start, end) };
        (entry.name.clone(), info)
    });
    let mut metadata = metadata;
    metadata.insert("format".to_owned(), "pt".to_owned());
    let header = Metadata::new(Some(metadata), infos.collect()).map_err(io::Error::other);
    let header = header.and_then(|header| serde_json::to_vec(&header).map_err(io::Error::other));
    let written = |result: io::Result<()>| {
        result.map_err(|cause| Error::Input(format!("a file cannot be written: {cause}")))
    };
    let mut header =
        header.map_err(|cause| Error::Input(format!("a file's header cannot be made: {cause}")))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    written(out.write_all(&(header.len() as u64).to_le_bytes()))?;
    written(out.write_all(&header))?;
    for entry in order {
        let tensor = numbers(entry)?;
        if tensor.dims() != entry.shape {
            return Err(Error::Input(format!(
                "`{}` is {:?}, where {:?} was said",
                entry.name,
                tensor.dims(),
                entry.shape
            )));
        }
        written(out.write_all(&bytes(&tensor, entry.dtype)?))?;
    }
    Ok(())
}

/// The numbers in little endian.
fn bytes(tensor: &Tensor, dtype: DType) -> Result<Vec<u8>> {
    let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(match dtype {
        DType::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        DType::BF16 => {
            values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()
        }
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn what_is_written_is_read() -> Result<()> {
        let entry = |name: &str, dtype, shape: &[usize]| Entry {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
        };
        let entries = [
            entry("half", DType::F16, &[3]),
            entry("wide", DType::F32, &[1, 2]),
            entry("none", DType::F32, &[0]),
        ];
        let mut out = Vec::new();
        let metadata = HashMap::from([("prompt".to_owned(), "{\"1\": \"ü\"}".to_owned())]);
        write(&mut out, &entries, metadata, &mut |entry| {
            let values: Vec<f32> =
                (0..entry.shape.iter().product()).map(|i| i as f32 + 0.5).collect();
            Ok(Tensor::from_vec(values, entry.shape.as_slice(), &Device::Cpu)?)
        })?;
        let (_, read) =
            safetensors::SafeTensors::read_metadata(&out).map_err(candle_core::Error::wrap)?;
        let metadata = read.metadata().clone().unwrap_or_default();
        assert_eq!(metadata["prompt"], "{\"1\": \"ü\"}");
        let file = safetensors::SafeTensors::deserialize(&out).map_err(candle_core::Error::wrap)?;
        let data =
            |name: &str| file.tensor(name).map(|tensor| tensor.data().to_vec()).unwrap_or_default();
        // 0.5, 1.5, 2.5 in halves: 0x3800, 0x3e00, 0x4100.
        assert_eq!(data("half"), [0, 0x38, 0, 0x3e, 0, 0x41]);
        assert_eq!(data("wide"), [0.5f32.to_le_bytes(), 1.5f32.to_le_bytes()].concat());
        assert!(data("none").is_empty());
        Ok(())
    }
}
