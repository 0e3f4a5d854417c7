//! Stable Diffusion 1.5 and its relatives: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv
//! 2112.10752.
//!
//! - [`unet`]: noisy latents to predicted noise. Its contracting half stands in `unet_blocks` (its configuration in `unet_config`, what it is told
//!   beside the text in `unet_embeddings`), since [`controlnet`] copies it; blocks
//!   are made of `resnet` and `transformer2d`.
//!   [`recompute`] gives its gradients in less memory.
//! - [`vae`]: latents to pictures and back; large ones in `tiles`, or in [`vae_feathered`]'s as ComfyUI has them.
//! - [`taesd`]: a tiny autoencoder for previews; [`t2i_adapter`]: a small network that steers the U-Net with a hint.
//! - [`unclip`]: pictures in the place of a text's pooled vector.
//! - [`style_model`]: a picture's style as tokens behind the text's; [`hypernetwork`]: networks beside the attentions' keys and values.
//! - [`photo_maker`]: pictures of a person in the place of a word of SDXL's texts.
//! - [`ip_adapter`]: pictures to tokens that the U-Net's cross-attention reads beside the text; how all of these enter the U-Net,
//!   [`steering`] says.
//! - [`checkpoint`]: the files and folders that these come in, and which model a file is.

pub mod checkpoint;
pub mod controlnet;
pub mod controlnet_of_unet;
pub mod controlnet_union;
pub mod gligen;
#[cfg(test)]
mod half_precision_tests;
pub mod hypernetwork;
pub mod ip_adapter;
pub mod photo_maker;
pub mod recompute;
mod residuals;
pub(crate) mod resnet;
mod shared_rows;
pub mod steering;
pub mod style_model;
pub mod t2i_adapter;
pub mod taesd;
mod text_keys;
mod tiles;
mod transformer2d;
pub mod unclip;
pub mod unet;
mod unet_blocks;
mod unet_config;
mod unet_embeddings;
pub mod vae;
pub mod vae_feathered;
