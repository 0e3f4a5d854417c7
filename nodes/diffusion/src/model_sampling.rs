//! A model sampled in another way than its file says: what it predicts, its noise levels, its guidance.

use kosmograph_models::samplers::{LatentSpace, Prediction, Schedule, SchedulerConfig};
use node::*;

use crate::model::schedule_description;

/// Says what a model predicts and over which noise levels, where its file does not: for v-prediction models that lost
/// their marks, and for those that were distilled for few steps.
#[derive(Inputs)]
#[node(category = "advanced/model")]
pub struct ModelSamplingDiscrete {
    /// The model.
    model: Model,
    /// What it predicts: the noise, the velocity, or the picture. "lcm" is the noise, over 50 of the training's steps, of a
    /// consistency model.
    #[widget(choices = ["eps", "v_prediction", "lcm", "x0"], default = "eps")]
    sampling: String,
    /// Whether the noisiest level is noise alone.
    #[widget(default = false)]
    zsnr: bool,
}

/// Of how many of the training's steps "lcm" takes one.
const DISTILLED: usize = 20;

impl Node for ModelSamplingDiscrete {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let prediction = match self.sampling.as_str() {
            "v_prediction" => Prediction::VPrediction,
            "x0" => Prediction::Sample,
            _ => Prediction::Epsilon,
        };
        // The family's own schedule, whatever the file's is, as in ComfyUI.
        let schedule = Schedule::new(&SchedulerConfig {
            prediction_type: prediction,
            rescale_betas_zero_snr: self.zsnr,
            ..SchedulerConfig::default()
        })?;
        let is_lcm = self.sampling == "lcm";
        let schedule = if is_lcm { schedule.every(DISTILLED)? } else { schedule };
        sampled_as(cx, &self.model, &schedule, is_lcm)
    }
}

/// Says that a model was trained over all noise levels, evenly in their logarithms, and what it predicts (CosXL).
#[derive(Inputs)]
#[node(category = "advanced/model")]
pub struct ModelSamplingContinuousEDM {
    /// The model.
    model: Model,
    /// What it predicts: the velocity (CosXL), as EDM has it, as Playground 2.5 in latents of its own, or the noise.
    #[widget(choices = ["v_prediction", "edm", "edm_playground_v2.5", "eps"], default = "v_prediction")]
    sampling: String,
    /// The highest noise level.
    #[widget(default = 120.0, min = 0.0, max = 1000.0, step = 0.001)]
    sigma_max: f64,
    /// The lowest.
    #[widget(default = 0.002, min = 0.0, max = 1000.0, step = 0.001)]
    sigma_min: f64,
}

impl Node for ModelSamplingContinuousEDM {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        if self.sigma_min < LEAST_SIGMA || self.sigma_max <= self.sigma_min {
            return Err(Error::at(
                "sigma_min",
                format!(
                    "noise levels from {} to {} are none to sample over; from {LEAST_SIGMA} on, and less than \
                     sigma_max would be right",
                    self.sigma_min, self.sigma_max
                ),
            ));
        }
        let prediction = match self.sampling.as_str() {
            "eps" => Prediction::Epsilon,
            "edm" | "edm_playground_v2.5" => Prediction::Edm,
            _ => Prediction::VPrediction,
        };
        let schedule = Schedule::over_sigmas(self.sigma_min, self.sigma_max, prediction)?;
        let model = sampled_as(cx, &self.model, &schedule, false)?;
        if self.sampling != "edm_playground_v2.5" {
            return Ok(model);
        }
        let LatentSpace { mean, std } = LatentSpace::playground();
        let space = [("latent_mean", json!(mean)), ("latent_std", json!(std))];
        changed(
            cx,
            &model,
            &space.map(|(key, value)| (key.to_owned(), value)).into_iter().collect(),
        )
    }
}

/// The lowest noise level whose square a double tells well beside 1.
const LEAST_SIGMA: f64 = 1e-4;

/// `model` over another schedule.
fn sampled_as(cx: &Context, model: &Model, schedule: &Schedule, is_lcm: bool) -> Result<Model> {
    let mut description = schedule_description(schedule);
    description.insert("consistency".to_owned(), is_lcm.into());
    changed(cx, model, &description)
}

/// Lets a noise mask's greys say when each part of the picture is taken up: what is white is drawn from the first step on, what is
/// grey from later ones (Levin & Fried, "Differential Diffusion", arXiv 2306.00950).
#[derive(Inputs)]
#[node(category = "_for_testing")]
pub struct DifferentialDiffusion {
    /// The model.
    model: Model,
    /// How much of that; the rest is the mask as it is.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    strength: Option<f64>,
}

impl Node for DifferentialDiffusion {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let description = [("differential".to_owned(), self.strength.unwrap_or(1.0).into())];
        changed(cx, &self.model, &description.into_iter().collect())
    }
}

/// When calls are left out, in a schedule of which 0 is the noisiest.
fn reusing(
    cx: &Context,
    (model, of): (&Model, &str),
    (threshold, start, end): (f64, f64, f64),
    told: bool,
) -> Result<Model> {
    let reuse = json!({"of": of, "threshold": threshold, "start": start, "end": end, "told": told});
    changed(cx, model, &[("reuse".to_owned(), reuse)].into_iter().collect())
}

/// Leaves out calls of the network while what they add to their input changes little, and adds the last again: faster, and a
/// little otherwise (Zhou et al., arXiv 2507.02860). What is remembered is of one sampling; entries with an area are always asked.
#[derive(Inputs)]
#[node(category = "advanced/debug")]
pub struct EasyCache {
    /// The model.
    model: Model,
    /// How far off, as a share of the output, what is reused may come to be.
    #[widget(default = 0.2, min = 0.0, max = 3.0, step = 0.01)]
    reuse_threshold: f64,
    /// Where in the schedule it begins, 0 the noisiest.
    #[widget(default = 0.15, min = 0.0, max = 1.0, step = 0.01)]
    start_percent: f64,
    /// Where it ends.
    #[widget(default = 0.95, min = 0.0, max = 1.0, step = 0.01)]
    end_percent: f64,
    /// Whether it is told which calls are left out.
    #[widget(default = false)]
    verbose: bool,
}

impl Node for EasyCache {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let when = (self.reuse_threshold, self.start_percent, self.end_percent);
        reusing(cx, (&self.model, "calls"), when, self.verbose)
    }
}

/// As EasyCache, of all that guidance makes of a step and not of each call: cruder, for every kind of model.
#[derive(Inputs)]
#[node(category = "advanced/debug")]
pub struct LazyCache {
    /// The model.
    model: Model,
    /// How far off, as a share of the output, what is reused may come to be.
    #[widget(default = 0.2, min = 0.0, max = 3.0, step = 0.01)]
    reuse_threshold: f64,
    /// Where in the schedule it begins, 0 the noisiest.
    #[widget(default = 0.15, min = 0.0, max = 1.0, step = 0.01)]
    start_percent: f64,
    /// Where it ends.
    #[widget(default = 0.95, min = 0.0, max = 1.0, step = 0.01)]
    end_percent: f64,
    /// Whether it is told which steps are left out.
    #[widget(default = false)]
    verbose: bool,
}

impl Node for LazyCache {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let when = (self.reuse_threshold, self.start_percent, self.end_percent);
        reusing(cx, (&self.model, "guidance"), when, self.verbose)
    }
}

/// `model` that says `description` of itself.
fn changed(
    cx: &Context,
    model: &Model,
    description: &serde_json::Map<String, serde_json::Value>,
) -> Result<Model> {
    if !model.0.offers("model_sampling/1") {
        return Err(Error::at(
            "model",
            "this model cannot be sampled in another way: the library it comes from does not offer \
             \"model_sampling/1\"",
        ));
    }
    let model = model.0.sampled_as(cx, description);
    model.map(Model).map_err(|error| error.of_input("model"))
}
