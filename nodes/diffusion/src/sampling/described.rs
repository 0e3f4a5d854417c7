//! What a model says of itself, as far as samplers ask.

use candle_core::{DType, Device, Tensor as Candle};
use kosmograph_models::samplers::{Prediction, Schedule, Step, Timesteps};
use node::*;
use node_candle::export;

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

/// What a MODEL says of itself, "describe/1", and a GUIDER of its model.
pub struct Described {
    pub schedule: Schedule,
    pub in_channels: Option<usize>,
    /// The latents'.
    pub out_channels: Option<usize>,
    pub context_width: Option<usize>,
    /// "pooled_width" and "sizes", of a model that says both.
    pub vector: Option<(usize, usize)>,
    /// How much of the guided output is brought back to the spread of the positive's, 0..1.
    pub rescale_cfg: f64,
    /// How much of a noise mask follows the steps that are left.
    pub differential: f64,
    /// What its latents are the autoencoder's times.
    pub scaling_factor: Option<f64>,
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
        other => {
            return Err(Error::new(format!(
                "the model predicts {other:?}; epsilon, v_prediction or sample is known"
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
            rescale_cfg: json["rescale_cfg"].as_f64().unwrap_or(0.0).clamp(0.0, 1.0),
            differential: json["differential"].as_f64().unwrap_or(0.0).clamp(0.0, 1.0),
            // A model need not say these, and what cannot be read is as good as nothing.
            scaling_factor: json["scaling_factor"]
                .as_f64()
                .filter(|scale| scale.is_finite() && *scale > 0.0),
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
        Ok(Shows { colours: self.colours()?, eye: self.preview_decoder(cx, device) })
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

/// How x₀ is shown while it is sampled.
pub struct Shows {
    /// The colour of each channel [C, 3], and what is added to their sum \[3\].
    colours: Option<[Tensor; 2]>,
    /// What shows x₀ better than colours do.
    eye: Option<PreviewDecoder>,
}

impl Shows {
    /// Shows x₀ of a step to whoever looks, where the model says what its latents look like.
    ///
    /// # Errors
    /// The work is to stop, or there is no memory.
    pub fn show(&self, cx: &Context<'_>, step: Step<'_>) -> Result<()> {
        if let Some(eye) = &self.eye {
            let picture = Preview::Image(eye.picture(&step.x0.narrow(0, 0, 1)?)?);
            return cx.preview(step.done, step.steps, picture);
        }
        let Some([rgb, bias]) = self.colours.as_ref().filter(|_| cx.wants_previews()) else {
            return Ok(());
        };
        let picture = Preview::Latents {
            latents: export(&step.x0.narrow(0, 0, 1)?)?,
            rgb: rgb.clone(),
            bias: bias.clone(),
        };
        cx.preview(step.done, step.steps, picture)
    }
}
