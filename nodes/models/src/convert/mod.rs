//! Torch files to safetensors: what `kosmograph convert` does.
//!
//! A released checkpoint of Kosmos-G becomes the folder that KosmosLoader reads ([`kosmos`]), with the
//! Stable Diffusion that lies in it beside it ([`stable_diffusion`]); of any other torch file the
//! tensors become one .safetensors file. Tensors go from file to file one at a time, and the result
//! gets its name when it is whole: there is never half of one, and nothing is written over.

mod kosmos;
mod stable_diffusion;
mod write;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::Device;

use crate::error::Error;
use crate::files::pickle::TorchFile;
use crate::files::weights::Weights;
pub use kosmos::KosmosCheckpoint;
use write::{Unfinished, write_safetensors};

type Result<T, E = ConvertError> = std::result::Result<T, E>;

/// Why a file was not converted. Nothing is left of it then.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    #[error("{} is there already; nothing is written over", .0.display())]
    Exists(PathBuf),

    #[error("the folder {} does not exist, in which the result is to be", .0.display())]
    NoFolder(PathBuf),

    /// A single file becomes a single file.
    #[error("{} becomes one file, whose name must end in .safetensors, unlike {}", input.display(), output.display())]
    NotSafetensorsName { input: PathBuf, output: PathBuf },

    #[error("{} is a safetensors file already", .0.display())]
    AlreadySafetensors(PathBuf),

    #[error("{} holds no tensors", .0.display())]
    NoTensors(PathBuf),

    /// Kosmos-G's tokenizer is not in its checkpoint.
    #[error(
        "{} is Kosmos-G, whose tokenizer is not in the checkpoint, and {missing} is not in {}: give the folder that has sentencepiece.bpe.model and dict.txt with --tokenizer (the authors publish them as kosmos-g/data)",
        input.display(), searched.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
    )]
    NoTokenizer { input: PathBuf, missing: &'static str, searched: Vec<PathBuf> },

    /// The sizes of the model follow from its shapes.
    #[error("tensor `{name}` of {} has the shape {shape:?}, which no Kosmos-G has", input.display())]
    OddShape { input: PathBuf, name: String, shape: Vec<usize> },

    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },

    #[error("cannot copy {}: {source}", path.display())]
    Copy { path: PathBuf, source: std::io::Error },

    #[error(transparent)]
    Model(#[from] Error),
}

/// What a conversion made.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Converted {
    /// What the result is, as a sentence calls it.
    pub kind: &'static str,
    /// The result: a file or a folder.
    pub output: PathBuf,
    pub tensors: usize,
    /// What a person should know: what was left out, what lies where.
    pub notes: Vec<String>,
}

/// Told how many of how many bytes are written; an error ends the conversion.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> crate::Result<()>;

/// Converts the torch file `input` to `output`, which does not exist yet. `tokenizer` is a folder with
/// Kosmos-G's tokenizer files; without one they are looked for beside `input`.
///
/// `None` when `input` is no torch file.
///
/// # Errors
/// See [`ConvertError`]; [`Error::Cancelled`] when `progress` says so.
pub fn convert(
    input: &Path,
    output: &Path,
    tokenizer: Option<&Path>,
    progress: Progress<'_>,
) -> Result<Option<Converted>> {
    if !is_torch(input)? {
        return match input.extension().is_some_and(|extension| extension == "safetensors") {
            true => Err(ConvertError::AlreadySafetensors(input.to_owned())),
            false => Ok(None),
        };
    }
    if output.symlink_metadata().is_ok() {
        return Err(ConvertError::Exists(output.to_owned()));
    }
    let folder = match output.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(ConvertError::NoFolder(folder.to_owned()));
    }
    let file = TorchFile::open(input)?;
    if file.tensors().is_empty() {
        return Err(ConvertError::NoTensors(input.to_owned()));
    }
    match kosmos::prefix(&file) {
        Some(prefix) => kosmos::convert(&file, prefix, output, tokenizer, progress).map(Some),
        None => one_file(&file, output, progress).map(Some),
    }
}

/// Whether the file begins as one of torch.
fn is_torch(path: &Path) -> Result<bool> {
    use std::io::Read;
    let io = |source| Error::Io { path: path.to_owned(), source };
    let mut head = Vec::with_capacity(16);
    let file = std::fs::File::open(path).map_err(io)?;
    file.take(16).read_to_end(&mut head).map_err(io)?;
    Ok(TorchFile::begins(&head))
}

/// A tensor to write: its name there, its name in the torch file.
type Renamed = (String, String);

/// All tensors of a torch file as one safetensors file. Of a training checkpoint, which keeps the
/// model as `state_dict` beside the optimizer's state and the like, the model alone.
fn one_file(file: &TorchFile, output: &Path, progress: Progress<'_>) -> Result<Converted> {
    if output.extension().is_none_or(|extension| extension != "safetensors") {
        let (input, output) = (file.path().to_owned(), output.to_owned());
        return Err(ConvertError::NotSafetensorsName { input, output });
    }
    const MODEL: &str = "state_dict.";
    let mut notes = Vec::new();
    let all = file.tensors().len();
    let model: Vec<Renamed> = file
        .names()
        .filter_map(|name| Some((name.strip_prefix(MODEL)?.to_owned(), name.to_owned())))
        .collect();
    let chosen = match model.is_empty() {
        true => file.names().map(|name| (name.to_owned(), name.to_owned())).collect(),
        false => model,
    };
    if chosen.len() < all {
        let left = all - chosen.len();
        notes.push(format!("{left} tensors beside the state_dict were left out"));
    }
    let (kept, same) = without_doubles(file, chosen);
    for (double, name) in &same {
        notes.push(format!("`{double}` is the same tensor as `{name}` and is written once"));
    }
    let target = Unfinished::file(output)?;
    let total = kept.iter().map(|(_, name)| file.info(name).map_or(0, |i| i.byte_length() as u64));
    let total = total.sum();
    let mut done = 0;
    write_safetensors(file, &kept, same, target.path(), &mut |bytes| {
        done += bytes;
        progress(done, total)
    })?;
    // What reads it will say of it, before it has its name.
    Weights::open(target.path(), &Device::Cpu)?;
    target.finish()?;
    let tensors = kept.len();
    Ok(Converted { kind: "a safetensors file", output: output.to_owned(), tensors, notes })
}

/// Tensors that are one and the same, byte for byte in the same place, once: safetensors has no way to
/// share them. Also the other names, each with the one that is kept.
fn without_doubles(
    file: &TorchFile,
    chosen: Vec<Renamed>,
) -> (Vec<Renamed>, HashMap<String, String>) {
    let mut first: HashMap<(usize, usize, Vec<usize>, Vec<usize>), String> = HashMap::new();
    let mut same = HashMap::new();
    let mut kept = Vec::with_capacity(chosen.len());
    for (name, source) in chosen {
        let Some(info) = file.info(&source) else { continue };
        if !info.bytes.is_empty() {
            let (range, shape) = (info.bytes.clone(), info.shape.clone());
            let place = (range.start, range.end, shape, info.strides.clone());
            if let Some(kept) = first.get(&place) {
                same.insert(name, kept.clone());
                continue;
            }
            first.insert(place, name.clone());
        }
        kept.push((name, source));
    }
    (kept, same)
}
