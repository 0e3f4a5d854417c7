//! IP-Adapters: a picture steers the U-Net beside the text, through "denoiser/1"'s extra tokens, whichever library the U-Net is of.
//!
//! - [`adapter`]: the file as an object, and pictures as it takes them.
//! - [`weights`]: how much each layer of the U-Net listens.
//! - [`prompted`]: a MODEL with pictures beside its text.
//! - [`nodes`]: the names that workflows use; [`prepare`] cuts pictures as CLIP wants them.

mod adapter;
pub mod nodes;
pub mod prepare;
mod prompted;
mod weights;
