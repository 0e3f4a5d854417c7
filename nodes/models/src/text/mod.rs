//! Prompts to token ids. No tensors, no weights.
//!
//! CLIP's: [`clip_prompt`] reads ComfyUI's brackets and weights, [`clip_tokens`] cuts words by byte pairs, and
//! [`clip_prompt_tokens`] lays both out in chunks of 77. Kosmos-G's: [`sentencepiece`] cuts what [`charsmap`] has normalised, and
//! [`kosmos_tokens`] lays it out with the places of pictures.

pub mod charsmap;
pub mod clip_prompt;
pub mod clip_prompt_tokens;
pub mod clip_tokens;
pub mod kosmos_tokens;
pub mod sentencepiece;
