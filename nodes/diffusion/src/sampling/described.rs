//! What a model says of itself, as far as samplers ask.

use candle_core::{DType, Device, Tensor as Candle};
use kosmograph_models::samplers::{LatentSpace, Prediction, Schedule, Step, Timesteps};
use node::*;
use node_candle::export;

use super::reuse::Reuse;
use crate::tiny_vae::PreviewDecoder;

/// The noise schedule that a MODEL was trained on.
///
/// # Errors
/// It does not describe itself as node.h says.
pub fn schedule_of(cx: &Context<'_>, model: &Model) -> Result<Schedule> {
    Ok(Described::of(cx, &model.0, "model")?.schedule)
}

/// What a MODEL says of the timesteps that it is told.
fn timesteps(json: &serde_json::Value) -> Result<Timesteps> {
    let number = |key: &str| json[key].as_f64().filter(|number| number.is_finite());
    match (json.as_str(), number("factor"), number("offset")) {
        _ if json.is_null() => Ok(Timesteps::Places),
        (Some("quarter_log_sigma"), ..) => Ok(Timesteps::QuarterLogSigma),
        (None, Some(factor), Some(offset)) if factor > 0.0 => {
            Ok(Timesteps::Scaled { factor, offset })
        }
        _ => Err(Error::new(format!(
            "the model says that its timesteps are {json}, which is not known"
        ))),
    }
}

/// "latent_mean" and "latent_std", of a model that says them.
fn latent_space(json: &serde_json::Value) -> Result<Option<LatentSpace>> {
    let (mean, std) = (&json["latent_mean"], &json["latent_std"]);
    if mean.is_null() && std.is_null() {
        return Ok(None);
    }
    let numbers = |list: &serde_json::Value| -> Option<Vec<f64>> {
        list.as_array()?.iter().map(|n| n.as_f64().filter(|n| n.is_finite())).collect()
    };
    let space = numbers(mean).zip(numbers(std));
    let fits = |(mean, std): &(Vec<f64>, Vec<f64>)| {
        mean.len() == std.len() && std.iter().all(|&std| std > 0.0)
    };
    match space.filter(fits) {
        Some((mean, std)) => Ok(Some(LatentSpace { mean, std })),
        None => Err(Error::new(format!(
            "the model says that its latents have the mean {mean} and the spread {std}; as many numbers of both, and spreads above 0, \
             would be right"
        ))),
    }
}

/// What a MODEL says of itself, "describe/1", and a GUIDER of its model.
pub struct Described {
    pub schedule: Schedule,
    pub in_channels: Option<usize>,
    /// The latents'.
    pub out_channels: Option<usize>,
    pub context_width: Option<usize>,
    /// "pooled_width" and "sizes", of a model that says both.
    pub vector: Option<(usize, usize)>,
    /// What may be left out of a sampling.
    pub reuse: Option<Reuse>,
    /// How much of a noise mask follows the steps that are left.
    pub differential: f64,
    /// What its latents are the autoencoder's times.
    pub scaling_factor: Option<f64>,
    /// "latent_mean" and "latent_std": what x is of the autoencoder's latents.
    space: Option<LatentSpace>,
    /// "latent_rgb" and "latent_rgb_bias".
    latent_rgb: Vec<[f32; 3]>,
    latent_rgb_bias: [f32; 3],
    /// The name of a file that decodes its latents quickly, "preview_decoder".
    preview_decoder: Option<String>,
    /// The optional keys of "denoiser/1" that the model makes use of.
    pub understands: Vec<String>,
}

/// The noise levels that a MODEL describes.
///
/// # Errors
/// It does not describe them as node.h says.
pub fn described_schedule(json: &serde_json::Value) -> Result<Schedule> {
    let numbers = json["alphas_cumprod"].as_array().map(Vec::as_slice).unwrap_or_default();
    let alphas_cumprod = numbers.iter().filter_map(serde_json::Value::as_f64).collect();
    let prediction = match json["prediction"].as_str() {
        Some("epsilon") => Prediction::Epsilon,
        Some("v_prediction") => Prediction::VPrediction,
        Some("sample") => Prediction::Sample,
        Some("edm") => Prediction::Edm,
        other => {
            return Err(Error::new(format!(
                "the model predicts {other:?}; epsilon, v_prediction, sample or edm is known"
            )));
        }
    };
    let schedule = Schedule::from_alphas_cumprod(alphas_cumprod, prediction)
        .map_err(Error::from)?
        .with_timesteps(timesteps(&json["timesteps"])?)
        .with_consistency(json["consistency"] == true);
    Ok(schedule)
}

impl Described {
    /// `input` is what a node calls the object.
    ///
    /// # Errors
    /// It does not describe itself as node.h says.
    pub fn of(cx: &Context<'_>, model: &Object, input: &str) -> Result<Self> {
        let json = model.describe(cx).map_err(|error| error.of_input(input))?;
        let number = |key: &str| json[key].as_u64().and_then(|number| usize::try_from(number).ok());
        let schedule = described_schedule(&json).map_err(|error| error.of_input(input))?;
        Ok(Self {
            schedule,
            in_channels: number("in_channels"),
            out_channels: number("out_channels"),
            context_width: number("context_width"),
            vector: number("pooled_width").zip(number("sizes")),
            reuse: Reuse::read(&json["reuse"]),
            differential: json["differential"].as_f64().unwrap_or(0.0).clamp(0.0, 1.0),
            // A model need not say these, and what cannot be read is as good as nothing.
            scaling_factor: json["scaling_factor"]
                .as_f64()
                .filter(|scale| scale.is_finite() && *scale > 0.0),
            space: latent_space(&json).map_err(|error| error.of_input(input))?,
            latent_rgb: serde_json::from_value(json["latent_rgb"].clone()).unwrap_or_default(),
            latent_rgb_bias: serde_json::from_value(json["latent_rgb_bias"].clone())
                .unwrap_or_default(),
            preview_decoder: json["preview_decoder"].as_str().map(str::to_owned),
            understands: serde_json::from_value(json["understands"]["denoiser/1"].clone())
                .unwrap_or_default(),
        })
    }

    /// How x₀ is shown to whoever looks.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn shows(&self, cx: &Context<'_>, device: &Device) -> Result<Shows> {
        let (colours, eye) = (self.colours()?, self.preview_decoder(cx, device));
        let space = self.space.clone().map(|space| (space, self.scaling_factor.unwrap_or(1.0)));
        Ok(Shows { colours, eye, space })
    }

    /// What makes a picture of latents, [C, 3] and \[3\].
    fn colours(&self) -> Result<Option<[Tensor; 2]>> {
        if self.latent_rgb.is_empty() || self.out_channels != Some(self.latent_rgb.len()) {
            return Ok(None);
        }
        let rgb = Tensor::from_f32(&[self.latent_rgb.len(), 3], self.latent_rgb.concat())?;
        let bias = Tensor::from_f32(&[3], self.latent_rgb_bias.to_vec())?;
        Ok(Some([rgb, bias]))
    }

    /// The decoder that shows latents, where somebody looks and its file is there. One that cannot be used is told, and costs no more
    /// than the better picture.
    fn preview_decoder(&self, cx: &Context<'_>, device: &Device) -> Option<PreviewDecoder> {
        if !cx.wants_previews() {
            return None;
        }
        let path = cx.property(&format!("preview_file:{}", self.preview_decoder.as_ref()?))?;
        match PreviewDecoder::open(path.as_ref(), self.out_channels?, device) {
            Ok(decoder) => Some(decoder),
            Err(error) => {
                cx.warn(format!("{error}; previews are made of colours instead"));
                None
            }
        }
    }

    /// What the network's x is of latents as a LATENT has them. Empty ones stay empty, as in ComfyUI.
    ///
    /// # Errors
    /// The model says it for other channels, or there is no memory.
    pub fn enter(&self, latents: Candle) -> Result<Candle> {
        let Some(space) = &self.space else { return Ok(latents) };
        let [mean, std] = rows_of(space, self.scaling_factor.unwrap_or(1.0), &latents)?;
        if latents.abs()?.sum_all()?.to_scalar::<f32>()? == 0.0 {
            return Ok(latents);
        }
        Ok(latents.broadcast_sub(&mean)?.broadcast_div(&std)?)
    }

    /// [`Described::enter`] the other way.
    ///
    /// # Errors
    /// As there.
    pub fn leave(&self, x: Candle) -> Result<Candle> {
        match &self.space {
            Some(space) => space_left(space, self.scaling_factor.unwrap_or(1.0), x),
            None => Ok(x),
        }
    }

    /// The latents with the model's channels. Empty ones have no picture to lose and take as many as the
    /// model wants.
    pub fn fit(&self, latents: Candle) -> Result<Candle> {
        let (batch, channels, height, width) = latents.dims4()?;
        let Some(wanted) = self.out_channels.filter(|wanted| *wanted != channels) else {
            return Ok(latents);
        };
        let empty = latents.abs()?.sum_all()?.to_scalar::<f32>()? == 0.0;
        if empty && wanted <= 64 {
            let shape = (batch, wanted, height, width);
            return Ok(Candle::zeros(shape, DType::F32, &Device::Cpu)?.to_device(latents.device())?);
        }
        Err(Error::new(format!(
            "the latents have {channels} channels, but the model denoises {wanted}: they were made for \
             another family of models"
        )))
    }
}

/// The mean and the spread of the channels of a LATENT of this scale, [1, C, 1, 1].
fn rows_of(space: &LatentSpace, scale: f64, latents: &Candle) -> Result<[Candle; 2]> {
    let channels = latents.dim(1)?;
    if space.mean.len() != channels {
        return Err(Error::new(format!(
            "the model tells the mean of {} channels, but the latents have {channels}",
            space.mean.len()
        )));
    }
    let row = |numbers: &[f64]| {
        let numbers: Vec<f32> = numbers.iter().map(|number| (number * scale) as f32).collect();
        Candle::from_vec(numbers, (1, channels, 1, 1), latents.device())
    };
    Ok([row(&space.mean)?, row(&space.std)?])
}

/// A LATENT of what the network's x is.
fn space_left(space: &LatentSpace, scale: f64, x: Candle) -> Result<Candle> {
    let [mean, std] = rows_of(space, scale, &x)?;
    Ok(x.broadcast_mul(&std)?.broadcast_add(&mean)?)
}

/// How x₀ is shown while it is sampled.
pub struct Shows {
    /// The colour of each channel [C, 3], and what is added to their sum \[3\].
    colours: Option<[Tensor; 2]>,
    /// What shows x₀ better than colours do.
    eye: Option<PreviewDecoder>,
    /// What a LATENT is of x₀, and at what scale.
    space: Option<(LatentSpace, f64)>,
}

impl Shows {
    /// Shows x₀ of a step to whoever looks, where the model says what its latents look like.
    ///
    /// # Errors
    /// The work is to stop, or there is no memory.
    pub fn show(&self, cx: &Context<'_>, step: Step<'_>) -> Result<()> {
        let first = || -> Result<Candle> {
            let x0 = step.x0.narrow(0, 0, 1)?;
            match &self.space {
                Some((space, scale)) => space_left(space, *scale, x0),
                None => Ok(x0),
            }
        };
        if let Some(eye) = &self.eye {
            let picture = Preview::Image(eye.picture(&first()?)?);
            return cx.preview(step.done, step.steps, picture);
        }
        let Some([rgb, bias]) = self.colours.as_ref().filter(|_| cx.wants_previews()) else {
            return Ok(());
        };
        let picture =
            Preview::Latents { latents: export(&first()?)?, rgb: rgb.clone(), bias: bias.clone() };
        cx.preview(step.done, step.steps, picture)
    }
}
