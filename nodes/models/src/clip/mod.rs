//! CLIP's encoders: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020.
//!
//! [`text`] is the text transformer, fed by [`prompt_encode`] with what `crate::text` made of a prompt; [`vision`] is the vision
//! transformer, fed by [`pixels`].

pub mod pixels;
pub mod prompt_encode;
pub mod text;
pub mod vision;
