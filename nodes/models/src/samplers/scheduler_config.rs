//! How a model was trained, from diffusers' `scheduler_config.json`.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::files::diffusers_config::Options;
use crate::files::python_json;

/// What the network's output means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// ε, the noise (Ho et al., arXiv 2006.11239).
    #[default]
    Epsilon,
    /// v = √ᾱ ε - √(1-ᾱ) x₀ (Salimans & Ho, arXiv 2202.00512).
    VPrediction,
    /// x₀ itself.
    Sample,
    /// F of Karras et al., arXiv 2206.00364, table 1, of latents that spread by 0.5: the other sign of the velocity of the latents at
    /// spread 1, which is what the network sees.
    Edm,
}

impl Prediction {
    /// How far the latents spread that the network was trained on, as its conversions take them (σ_data).
    pub fn sigma_data(self) -> f64 {
        match self {
            Prediction::Edm => 0.5,
            _ => 1.0,
        }
    }
}

/// The part of `scheduler_config.json` that says how the model was trained. What it says of sampling
/// (spacing, solver order, karras) is the sampler's business here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SchedulerConfig {
    #[serde(default = "train_steps")]
    pub num_train_timesteps: usize,
    #[serde(default = "beta_start")]
    pub beta_start: f64,
    #[serde(default = "beta_end")]
    pub beta_end: f64,
    #[serde(default = "beta_schedule")]
    pub beta_schedule: String,
    #[serde(default)]
    pub prediction_type: Prediction,
    /// The last step of training is pure noise (Lin et al., arXiv 2305.08891).
    #[serde(default)]
    pub rescale_betas_zero_snr: bool,
    /// σ of the first and the last step, of a model that was trained over all σ between them and is told ln σ / 4
    /// (Karras et al., arXiv 2206.00364, with the v of a VP model: CosXL). Nothing of the betas counts then.
    #[serde(default)]
    pub edm_sigmas: Option<(f64, f64)>,
    /// What x is of the autoencoder's latents, where that is more than a factor.
    #[serde(default)]
    pub latent_space: Option<LatentSpace>,
}

/// x = (z - mean) / std for each channel of the autoencoder's own latents z.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatentSpace {
    pub mean: Vec<f64>,
    pub std: Vec<f64>,
}

impl LatentSpace {
    /// Playground 2.5's, whose x spreads by 0.5.
    pub fn playground() -> Self {
        let std = [8.4927, 5.9022, 6.5498, 5.2299];
        Self {
            mean: vec![-1.6574, 1.886, -1.383, 2.5155],
            std: std.iter().map(|std| std / 0.5).collect(),
        }
    }
}

fn train_steps() -> usize {
    1000
}
fn beta_start() -> f64 {
    0.00085
}
fn beta_end() -> f64 {
    0.012
}
fn beta_schedule() -> String {
    "scaled_linear".to_owned()
}

/// The most timesteps of training: a hundred times those of every model that there is.
const MOST_STEPS: usize = 100_000;

impl SchedulerConfig {
    /// Reads the text of a `scheduler_config.json`; `file` is what errors call it.
    ///
    /// # Errors
    /// The text is not JSON as Python writes it, or describes a schedule that is not supported; the
    /// error names the option.
    pub fn from_json(text: &str, file: &str) -> crate::Result<Self> {
        SchedulerConfig::from_value(&python_json::parse(text, file)?, file)
    }

    /// As [`SchedulerConfig::from_json`], from JSON that is parsed already.
    ///
    /// # Errors
    /// As [`SchedulerConfig::from_json`].
    pub fn from_value(json: &Value, file: &str) -> crate::Result<Self> {
        let mut options = Options::new(json, file)?;
        options.only(&[("trained_betas", json!(null))])?;
        let known = SchedulerConfig {
            num_train_timesteps: options.get_or("num_train_timesteps", train_steps())?,
            beta_start: options.get_or("beta_start", beta_start())?,
            beta_end: options.get_or("beta_end", beta_end())?,
            beta_schedule: options.get_or("beta_schedule", beta_schedule())?,
            prediction_type: options.get_or("prediction_type", Prediction::Epsilon)?,
            rescale_betas_zero_snr: options.get_or("rescale_betas_zero_snr", false)?,
            edm_sigmas: None,
            latent_space: None,
        };
        if known.num_train_timesteps > MOST_STEPS {
            let supported = format!("at most {MOST_STEPS}");
            return Err(options.unsupported("num_train_timesteps", &supported));
        }
        if !matches!(known.beta_schedule.as_str(), "linear" | "scaled_linear") {
            return Err(options.unsupported("beta_schedule", "\"linear\" and \"scaled_linear\""));
        }
        Ok(known)
    }
}

impl Default for SchedulerConfig {
    /// Stable Diffusion 1.5's.
    fn default() -> Self {
        Self {
            num_train_timesteps: train_steps(),
            beta_start: beta_start(),
            beta_end: beta_end(),
            beta_schedule: beta_schedule(),
            prediction_type: Prediction::Epsilon,
            rescale_betas_zero_snr: false,
            edm_sigmas: None,
            latent_space: None,
        }
    }
}
