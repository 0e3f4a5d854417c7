//! What can go wrong in a model: sentences for the person who sees them, the numbers in them.

use std::path::PathBuf;

/// The error of a part of this crate, or of another, which knows more of it than is said here.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },

    /// A folder holds none of the weight files a model is saved as.
    #[error("{} holds no weights: none of {tried} is in it", folder.display())]
    NoWeights { folder: PathBuf, tried: String },

    /// The safetensors header, its offsets or the file's length contradict each other.
    #[error("{} is not a whole safetensors file: {problem}", path.display())]
    NotSafetensors { path: PathBuf, problem: String },

    /// A torch file is damaged, or holds what is not read from it.
    #[error("{} is not read as a torch checkpoint: {source}", path.display())]
    NotTorch { path: PathBuf, source: Source },

    /// A file that is something else than a model which this program runs.
    #[error("{} cannot be used here: {what}", path.display())]
    NotThisKind { path: PathBuf, what: String },

    /// A file that is a model, but not the one that is wanted.
    #[error("{} is {kind}: there is no part in it that is {what}", path.display())]
    HasNo { path: PathBuf, kind: &'static str, what: &'static str },

    /// A tensor whose shape says nothing about the model.
    #[error(
        "tensor `{name}` of {file} has the shape {found:?}, where one of {axes} axes is wanted"
    )]
    Axes { file: String, name: String, axes: usize, found: Vec<usize> },

    /// An index file names shards wrongly.
    #[error("{} is not a valid index of weight shards: {problem}", path.display())]
    Index { path: PathBuf, problem: String },

    /// A tensor that the configuration asks for is not in the file.
    #[error("{file} has no tensor `{name}`{}", did_you_mean(nearest))]
    MissingTensor { file: String, name: String, nearest: Option<String> },

    /// A tensor has another shape than the configuration says.
    #[error(
        "tensor `{name}` of {file} has the shape {found:?}, its configuration asks for {expected:?}"
    )]
    Shape { file: String, name: String, expected: Vec<usize>, found: Vec<usize> },

    /// A tensor's numbers are not floating point.
    #[error("tensor `{name}` of {file} holds {found}, expected F16, BF16, F32, F64 or fp8")]
    DType { file: String, name: String, found: String },

    /// A factor of scaled fp8 is none.
    #[error("tensor `{name}` of {file} is damaged: it {what}")]
    Scale { file: String, name: String, what: String },

    /// A GGUF file is damaged, or holds what is not read from it.
    #[error("{} is not a whole GGUF file: {problem}", path.display())]
    NotGguf { path: PathBuf, problem: String },

    /// A weight is NaN or infinite (in f32).
    #[error("tensor `{name}` of {file} is damaged: its value number {index} is {value}")]
    NotFinite { file: String, name: String, index: usize, value: f32 },

    /// The file holds tensors that the model has no place for.
    #[error(
        "{file} holds {count} tensors that this model does not have, among them {sample}: it is the weights of another model, or its configuration is"
    )]
    UnusedTensors { file: String, count: usize, sample: String },

    /// A configuration file is not valid JSON or lacks a key.
    #[error("{file} is not a valid configuration: {problem}")]
    Config { file: String, problem: String },

    /// A configuration asks for something that this implementation does not have.
    #[error("`{key}` is {found} in {file}; supported: {supported}")]
    UnsupportedConfig { file: String, key: String, found: String, supported: String },

    /// An input of a model call does not fit the model.
    #[error("{0}")]
    Input(String),

    /// A tokenizer could not be read, or a prompt not be laid out.
    #[error(transparent)]
    Text(Source),

    /// A LoRA could not be read or does not fit.
    #[error(transparent)]
    Lora(Source),

    /// A picture could not be resized.
    #[error(transparent)]
    Resize(kosmograph_pixels::Undone),

    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,

    /// More memory is needed than there is.
    #[error(transparent)]
    Memory(#[from] kosmograph_memory::Shortage),

    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl From<kosmograph_interrupt::Interrupted> for Error {
    fn from(_: kosmograph_interrupt::Interrupted) -> Self {
        Error::Cancelled
    }
}

impl From<kosmograph_pixels::Undone> for Error {
    fn from(undone: kosmograph_pixels::Undone) -> Self {
        match undone {
            kosmograph_pixels::Undone::Interrupted(interrupted) => interrupted.into(),
            kosmograph_pixels::Undone::Memory(shortage) => shortage.into(),
            undone => Error::Resize(undone),
        }
    }
}

fn did_you_mean(nearest: &Option<String>) -> String {
    match nearest {
        Some(name) => format!("; the nearest name in it is `{name}`"),
        None => String::new(),
    }
}
