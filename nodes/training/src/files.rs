//! Files of a training: written whole, synced, and only then under their name. The bytes are the same for the same
//! tensors.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use half::f16;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Writes `tensors`, all as f32, as the safetensors file `path`, replacing one that is there.
///
/// # Errors
/// The file cannot be written; what was under its name stays.
pub fn write(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    write_as(DType::F32, path, tensors, metadata)
}

/// [`write`] with the numbers as f16 or f32.
///
/// # Errors
/// As there; another kind of number is asked for, or one does not fit into f16.
pub fn write_as(
    kind: DType,
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let label = match kind {
        DType::F32 => "F32",
        DType::F16 => "F16",
        other => {
            let sentence = format!("numbers are written as f32 or f16, and not as {other:?}");
            return Err(Error::Data(sentence));
        }
    };
    let failed = |source| Error::Write { path: path.to_owned(), source };
    let mut header = Map::new();
    let mut metadata: Map<String, Value> =
        metadata.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    metadata.insert("format".to_owned(), json!("pt"));
    header.insert("__metadata__".to_owned(), Value::Object(metadata));
    let mut end = 0;
    for (name, tensor) in tensors {
        let start = end;
        end += tensor.elem_count() * kind.size_in_bytes();
        let entry = json!({"dtype": label, "shape": tensor.dims(), "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let folder = folder_of(path);
    std::fs::create_dir_all(&folder).map_err(failed)?;
    let unfinished =
        tempfile::Builder::new().prefix(".unfinished-").tempfile_in(&folder).map_err(failed)?;
    let mut out = BufWriter::new(unfinished);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    out.write_all(&header).map_err(failed)?;
    for (name, tensor) in tensors {
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let too_large = |value: &&f32| kind == DType::F16 && !f16::from_f32(**value).is_finite();
        if let Some(value) = values.iter().find(too_large) {
            let sentence = format!("{}: {value} of {name} does not fit into f16", path.display());
            return Err(Error::Data(sentence));
        }
        for values in values.chunks(1 << 16) {
            let bytes: Vec<u8> = match kind {
                DType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
                _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            };
            out.write_all(&bytes).map_err(failed)?;
        }
    }
    let unfinished = out.into_inner().map_err(|error| failed(error.into_error()))?;
    unfinished.as_file().sync_all().map_err(failed)?;
    unfinished.persist(path).map_err(|error| failed(error.error))?;
    // The name itself, too, is to be there after the power fails. A folder that cannot be synced changes nothing else.
    if let Ok(folder) = File::open(&folder) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Writes the folder `output`, which is not there yet, with `tensors` as its file `name` and the files `beside` by name; it
/// appears when it is whole.
///
/// # Errors
/// It cannot be written; nothing is left then.
pub fn write_folder(
    output: &Path,
    name: &str,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
    beside: &[(&str, Vec<u8>)],
) -> Result<()> {
    whole_folder(output, |unfinished| {
        write(&unfinished.join(name), tensors, metadata)?;
        for (name, bytes) in beside {
            let to = unfinished.join(name);
            std::fs::write(&to, bytes)
                .map_err(|source| Error::Write { path: to.clone(), source })?;
        }
        Ok(())
    })
}

/// Makes the folder `output`, which is not there yet, by `fill`, which is given a folder that gets that name when it is whole.
///
/// # Errors
/// What `fill` reports, or the folder cannot be made; nothing is left then.
pub(crate) fn whole_folder(output: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let failed = |path: &Path, source| Error::Write { path: path.to_owned(), source };
    let folder = folder_of(output);
    std::fs::create_dir_all(&folder).map_err(|source| failed(&folder, source))?;
    let unfinished = tempfile::Builder::new()
        .prefix(".unfinished-")
        .tempdir_in(&folder)
        .map_err(|source| failed(&folder, source))?;
    fill(unfinished.path())?;
    let path = unfinished.keep();
    std::fs::rename(&path, output).map_err(|source| failed(output, source))
}

/// The folder for samples of what is made at `output`, which is there then.
pub(crate) fn samples_folder(output: &Path) -> Result<PathBuf> {
    let name = output.file_stem().unwrap_or_default().to_string_lossy();
    let folder = output.with_file_name(format!("{name}.samples"));
    match std::fs::create_dir_all(&folder) {
        Ok(()) => Ok(folder),
        Err(source) => Err(Error::Write { path: folder, source }),
    }
}

pub(crate) fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use kosmograph_models::Weights;

    #[test]
    fn is_read_again_and_has_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b.safetensors");
        let tensors = BTreeMap::from([
            ("w".to_owned(), Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu).unwrap()),
            ("alpha".to_owned(), Tensor::new(8f32, &Device::Cpu).unwrap()),
        ]);
        let metadata = BTreeMap::from([("step".to_owned(), "3".to_owned())]);
        write(&path, &tensors, &metadata).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        write(&path, &tensors, &metadata).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        let weights = Weights::open(&path, &Device::Cpu).unwrap();
        assert_eq!(weights.metadata("step"), Some("3"));
        assert_eq!(weights.number("alpha").unwrap(), 8.0);
        let read = weights.get("w", (2, 2)).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(read, [[1., 2.], [3., 4.]]);
        assert_eq!(folder.path().join("a").read_dir().unwrap().count(), 1);
    }
}
