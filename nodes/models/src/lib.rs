//! Stable Diffusion 1.5 and Kosmos-G, one readable file per model.
//!
//! The rooms, each of which knows only those above it. Doors are `mod.rs` files that say what is inside.
//!
//! 1. [`error`]: what can go wrong, in sentences.
//! 2. [`files`]: weights by name, torch's pickles, configurations; networks that come into memory when they are needed.
//! 3. [`text`]: prompts to token ids, as CLIP and as Kosmos-G cut them.
//! 4. [`layers`]: what the transformers share.
//! 5. [`feathered`]: large pictures in tiles.
//! 6. [`clip`]: CLIP's two encoders, of text and of pictures.
//! 7. [`kosmos`]: Kosmos-G, pictures and text to a condition.
//! 8. [`samplers`]: from noise to a latent, by asking a denoiser.
//! 9. [`stable_diffusion`]: U-Net, ControlNet, autoencoder, and the checkpoints they come in.
//! 10. [`upscalers`]: small pictures to large ones, ESRGAN and its relatives.
//! 11. [`lora`]: changes of a model's weights in few numbers.
//! 12. [`measures`]: what pictures are measured with in papers.
//! 13. [`convert`]: torch files to safetensors.
//!
//! A model is read from the constructor down: `load(weights, config)` asks for tensors by the names of the released checkpoints, and
//! `forward` computes. Operators are `kosmograph_kernels`'; no model file names a device.

pub mod clip;
pub mod convert;
pub mod error;
pub mod feathered;
pub mod files;
pub mod kosmos;
pub mod layers;
pub mod lora;
pub mod measures;
pub mod samplers;
pub mod stable_diffusion;
pub mod text;
pub mod upscalers;

pub use error::{Error, Result};
// For node libraries, which call no operator of a model themselves.
pub use files::weights::{Fp8, Weight};
pub use files::{Resident, Weights};
pub use kosmograph_kernels::bounds;
