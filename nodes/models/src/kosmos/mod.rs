//! Kosmos-G: pictures and text → the condition of Stable Diffusion.
//!
//! Pan et al., "Kosmos-G: Generating Images in Context with Multimodal Large Language Models", ICLR 2024 (arXiv 2310.02992). The path of
//! a prompt: pictures through [`preprocess`] and [`vit`], a [`connector`] that makes them tokens, the language model [`mllm`] (layers of
//! [`magneto`]) over text and pictures, and the [`aligner`] into CLIP's language. [`kosmos_g`] is the whole, and the folder it is
//! read from.

pub mod aligner;
pub mod connector;
pub mod kosmos_g;
pub mod magneto;
pub mod mllm;
pub mod preprocess;
pub mod vit;

pub use kosmos_g::{Kosmos, KosmosConfig, KosmosG, ModelType, VisionConfig};
