//! Training of the models of `nodes/models`, which know nothing of it: a network is loaded with variables in the
//! places of what is trained ([`Parameters::load`]), the kernels have their gradients, and the rest is here.

pub mod adapter;
mod anew;
mod autoencoder;
mod clip;
pub mod config;
pub mod contrast;
mod control;
mod curated;
pub mod data;
mod diffusion;
pub mod documents;
pub mod draws;
pub mod error;
mod export;
pub mod files;
mod keys;
pub mod kosmos;
mod kosmos_g;
pub mod latent_rgb;
pub mod lora;
mod muon;
pub mod noise;
pub mod optimiser;
pub mod packed;
pub mod parameters;
pub mod rate;
pub mod run;
mod samples;
pub mod stages;
pub mod state;
mod texts;

use candle_core::{Device, Tensor};

pub use config::Config;
pub use curated::{Eyes, curate};
pub use error::{Error, Result};
pub use optimiser::{Method, Optimiser, OptimiserConfig};
pub use parameters::{Gradients, Parameters};
pub use rate::{Course, RateConfig};
pub use run::{Report, Watch, train};

/// Timesteps as a U-Net takes them, [B].
///
/// # Errors
/// Only what the tensor library reports.
pub fn timesteps(timesteps: &[usize]) -> candle_core::Result<Tensor> {
    let values: Vec<i64> = timesteps.iter().map(|t| *t as i64).collect();
    Tensor::new(values, &Device::Cpu)
}

/// Whether there is memory for every number of a network, its gradient and two moments.
fn ask_for_all(what: &str, shapes: impl Iterator<Item = Vec<usize>>) -> Result<()> {
    let count: u128 =
        shapes.map(|shape| shape.iter().map(|side| *side as u128).product::<u128>()).sum();
    let bytes = count * 4 * size_of::<f32>() as u128;
    let sum = format!("{count} numbers, their gradients and two moments of each");
    Ok(kosmograph_memory::ask_bytes(format_args!("a training of {what}"), bytes, &sum)?)
}
