//! The operators of the models, one folder for each: the formula and the public function in
//! `mod.rs`, the CPU twin in `cpu.rs`, the CUDA twin in `kernel.cu`, its launches in `cuda.rs`.
//!
//! Models call only these functions and plain tensor algebra (add, reshape, concatenate), so an
//! operator can get a faster twin without a model noticing. Activations are f32, f16 or bf16 on the
//! CPU and on a GPU (feature `cuda`), and the result has their type; all is computed in f32. (The CPU
//! widens and rounds around the kernel: that is for comparisons, not for speed.) An input of another
//! type is an error; nothing moves silently to another device or precision.

pub mod activation;
pub mod add;
pub mod attention;
mod begin;
mod bf16;
pub mod bounds;
mod cache;
mod channel_sums;
pub mod conv2d;
#[cfg(any(feature = "cuda", test))]
mod cuda;
mod exponential;
pub mod geglu;
mod gemm;
pub mod group_norm;
mod int8;
pub mod join_channels;
pub mod layer_norm;
pub mod linear;
pub mod linear_combination;
pub mod low_rank_linear;
pub mod low_rank_update;
mod memory;
mod moments;
pub mod profile;
mod simd;
mod storage;
pub mod tape;
pub mod transpose;
pub mod upsample_nearest2d;

pub use activation::{gelu_erf, quick_gelu, silu};
pub use add::{add, add_to_channels};
pub use attention::{attention, attention_of_projections};
pub use conv2d::{conv2d, conv2d_add_to_channels, conv2d_of_doubled};
pub use geglu::{geglu, linear_geglu};
pub use group_norm::{group_norm, group_norm_silu};
pub use join_channels::join_channels;
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use linear_combination::{linear_combination, linear_combination_from};
pub use low_rank_linear::low_rank_linear;
pub use low_rank_update::low_rank_update;
pub use simd::Isa;
pub use transpose::{pixels_to_tokens, tokens_to_pixels, transpose};
pub use upsample_nearest2d::upsample_nearest2d;
