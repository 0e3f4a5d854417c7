//! Pictures at another size: what the image nodes, the latents and the models' preprocessing share. Plain slices in and out, no tensor
//! library.
//!
//! - [`pillow`]: `PIL.Image.resize` in 8 bits, to the level.
//! - [`opencv`]: three of `cv::resize`'s ways in 8 bits, to the level.
//! - [`torch`]: `torch.nn.functional.interpolate` in f32, to the bit.
//! - [`crop`]: the middle that has wanted proportions.
//! - [`shape`] and [`work`]: how many values there are; rows made in parallel, memory asked for and interruption looked for.

pub mod crop;
pub mod opencv;
pub mod pillow;
mod reduce;
pub mod shape;
pub mod torch;
pub mod work;

pub use shape::Shape;
pub use work::Undone;
