//! What lies in files, before anybody knows which model it is.
//!
//! - [`weights`]: tensors by name, of safetensors or torch files, checked as they are handed out.
//! - [`gguf`]: llama.cpp's container.
//! - `mapped`: a file's bytes, and tensors where they lie.
//! - `packed`: numbers in fewer bits than are computed with, and what they stand for.
//! - [`pickle`]: torch's own files, read without executing anything.
//! - [`resident`]: a network whose weights are read when it is first used, and let go when memory is wanted.
//! - [`tensor_file`]: safetensors, written tensor by tensor.
//! - `diffusers_config`, [`python_json`]: configurations, of which no option is passed over in silence.

pub(crate) mod diffusers_config;
pub mod gguf;
mod mapped;
pub(crate) mod packed;
pub mod pickle;
pub mod python_json;
pub mod resident;
pub mod tensor_file;
pub mod weights;

pub use resident::Resident;
pub use weights::Weights;
