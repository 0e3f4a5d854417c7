//! Stable Diffusion 1.5 and its relatives: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv
//! 2112.10752.
//!
//! - [`unet`]: noisy latents to predicted noise. Its contracting half stands in `unet_blocks`, since [`controlnet`] copies it; blocks
//!   are made of `resnet` and `transformer2d`.
//! - [`vae`]: latents to pictures and back; large ones in `tiles`, or in [`vae_feathered`]'s as ComfyUI has them.
//! - [`checkpoint`]: the files and folders that these come in, and which model a file is.

pub mod checkpoint;
pub mod controlnet;
#[cfg(test)]
mod half_precision_tests;
mod resnet;
mod tiles;
mod transformer2d;
pub mod unet;
mod unet_blocks;
pub mod vae;
pub mod vae_feathered;
