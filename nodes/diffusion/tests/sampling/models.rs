//! Denoisers, ControlNets and autoencoders in closed form, behind the interfaces of node.h.

use std::sync::{Arc, Mutex};

use node::interface::{self, ControlCall, marker};
use node::*;

/// Stable Diffusion's noise schedule.
pub fn alphas_cumprod() -> Vec<f64> {
    let (first, last) = (0.00085f64.sqrt(), 0.012f64.sqrt());
    let mut product = 1.0;
    let next = |t: usize| {
        let root = first + (last - first) * t as f64 / 999.0;
        product *= 1.0 - root * root;
        product
    };
    (0..1000).map(next).collect()
}

/// What a denoiser was asked: rows, channels, height, width, and the residuals' sum.
pub type Calls = Arc<Mutex<Vec<([usize; 4], Vec<f32>)>>>;

/// Believes that x₀ is, everywhere, the context's first number (plus the first residual's, plus the mean of
/// the further channels): what weights, areas and ranges do to it can be read off the result.
pub struct Believer {
    pub prediction: &'static str,
    pub in_channels: usize,
    pub calls: Calls,
}

impl Export for Believer {
    const TYPE: &'static str = "MODEL";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![Believer: marker::Denoiser, marker::Describe];
}

impl interface::Denoise for Believer {
    fn denoise(
        &self,
        _cx: &Context,
        x: &Tensor,
        timestep: &Tensor,
        context: &Tensor,
        residuals: &[Tensor],
    ) -> Result<Tensor> {
        let shape = x.shape();
        let [rows, channels, height, width] = [shape[0], shape[1], shape[2], shape[3]];
        let residual: Vec<f32> = match residuals.first() {
            Some(first) => first.to_f32()?.into_owned(),
            None => vec![0.0; rows],
        };
        self.calls.lock().unwrap().push(([rows, channels, height, width], residual.clone()));
        let (x, context, timestep) = (x.to_f32()?, context.to_f32()?, timestep.to_f32()?);
        let item = channels * height * width;
        let (kept, each) = (4 * height * width, context.len() / rows);
        let mut output = Vec::new();
        for row in 0..rows {
            let further = &x[row * item + kept..(row + 1) * item];
            let mean = further.iter().sum::<f32>() / further.len().max(1) as f32;
            let x0 = f64::from(context[row * each] + residual[row] + mean);
            let alpha = alphas_cumprod()[timestep[row] as usize];
            let (a, s) = (alpha.sqrt(), (1.0 - alpha).sqrt());
            output.extend(x[row * item..][..kept].iter().map(|&x| {
                let eps = (f64::from(x) - a * x0) / s;
                let said = match self.prediction {
                    "epsilon" => eps,
                    "v_prediction" => a * eps - s * x0,
                    _ => x0,
                };
                said as f32
            }));
        }
        Tensor::from_f32(&[rows, 4, height, width], output)
    }
}

impl interface::Describe for Believer {
    fn describe(&self) -> serde_json::Value {
        json!({
            "prediction": self.prediction, "in_channels": self.in_channels, "out_channels": 4,
            "context_width": 2, "train_steps": 1000, "alphas_cumprod": alphas_cumprod(),
        })
    }
}

pub fn believer_of(prediction: &'static str, in_channels: usize) -> (Value, Calls) {
    let calls = Calls::default();
    let model = Believer { prediction, in_channels, calls: calls.clone() };
    (Object::new(model).into_value(), calls)
}

pub fn believer() -> Value {
    believer_of("epsilon", 4).0
}

/// The exact denoiser of data drawn from N(μ, s²), μ the context's first number: unlike [`Believer`] it
/// answers to x, so that the path of a sampling matters.
pub struct Gaussian;

impl Export for Gaussian {
    const TYPE: &'static str = "MODEL";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![Gaussian: marker::Denoiser, marker::Describe];
}

impl interface::Denoise for Gaussian {
    fn denoise(
        &self,
        _cx: &Context,
        x: &Tensor,
        timestep: &Tensor,
        context: &Tensor,
        _residuals: &[Tensor],
    ) -> Result<Tensor> {
        let (rows, t) = (x.shape()[0], timestep.to_f32()?[0]);
        let (values, context) = (x.to_f32()?, context.to_f32()?);
        let (item, each) = (values.len() / rows, context.len() / rows);
        let a = alphas_cumprod()[t as usize];
        let variance = 0.25 * a + 1.0 - a;
        let eps = |(i, &x): (usize, &f32)| {
            let mean = f64::from(context[i / item * each]);
            ((1.0 - a).sqrt() * (f64::from(x) - a.sqrt() * mean) / variance) as f32
        };
        Tensor::from_f32(&x.shape(), values.iter().enumerate().map(eps).collect())
    }
}

impl interface::Describe for Gaussian {
    fn describe(&self) -> serde_json::Value {
        json!({
            "prediction": "epsilon", "in_channels": 4, "out_channels": 4, "train_steps": 1000,
            "alphas_cumprod": alphas_cumprod(),
        })
    }
}

pub fn gaussian() -> Value {
    Object::new(Gaussian).into_value()
}

/// Its residual is, in every row, strength × the hint's first number (× 10 in guess mode).
pub struct Pusher;

/// Its residual is, in every row, strength × the first number of the context that it reads.
pub struct Reader;

impl Export for Reader {
    const TYPE: &'static str = "CONTROL_NET";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Reader: marker::ControlNet];
}

impl interface::Control for Reader {
    fn residuals(&self, _cx: &Context, call: &ControlCall) -> Result<Vec<Tensor>> {
        let (rows, read) = (call.x.shape()[0], call.context.to_f32()?);
        let each = read.len() / rows;
        let residual = |row: usize| call.strength as f32 * read[row * each];
        Ok(vec![Tensor::from_f32(&[rows], (0..rows).map(residual).collect())?])
    }
}

pub fn reader() -> Value {
    Object::new(Reader).into_value()
}

impl Export for Pusher {
    const TYPE: &'static str = "CONTROL_NET";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Pusher: marker::ControlNet];
}

impl interface::Control for Pusher {
    fn residuals(&self, _cx: &Context, call: &ControlCall) -> Result<Vec<Tensor>> {
        let (x, hint) = (call.x.shape(), call.hint.shape());
        assert_eq!(hint[2..], [8 * x[2], 8 * x[3]]);
        assert_eq!(x[1], 4);
        let factor = if call.guess { 10.0 } else { 1.0 };
        let pixels = call.hint.to_f32()?;
        let each = pixels.len() / hint[0];
        let residual = |row: usize| factor * call.strength as f32 * pixels[row % hint[0] * each];
        Ok(vec![Tensor::from_f32(&[x[0]], (0..x[0]).map(residual).collect())?])
    }
}

pub fn pusher() -> Value {
    Object::new(Pusher).into_value()
}

/// Latents are the pictures' red channel, every eighth pixel, times 0.5, four times over.
pub struct Reds;

impl Export for Reds {
    const TYPE: &'static str = "VAE";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![Reds: marker::VaeDecode, marker::VaeEncode, marker::Describe];
}

impl interface::Autoencode for Reds {
    fn decode(&self, _cx: &Context, latents: &Tensor) -> Result<Tensor> {
        Ok(latents.clone())
    }

    fn encode(&self, _cx: &Context, image: &Tensor) -> Result<Tensor> {
        let shape = image.shape();
        let (pixels, mut latents) = (image.to_f32()?, Vec::new());
        let (h, w) = (shape[1] / 8, shape[2] / 8);
        for (b, _) in (0..shape[0]).flat_map(|b| (0..4).map(move |c| (b, c))) {
            for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
                latents.push(0.5 * pixels[((b * shape[1] + 8 * y) * shape[2] + 8 * x) * 3]);
            }
        }
        Tensor::from_f32(&[shape[0], 4, h, w], latents)
    }
}

impl interface::Describe for Reds {
    fn describe(&self) -> serde_json::Value {
        json!({"scaling_factor": 0.5})
    }
}

pub fn reds() -> Value {
    Object::new(Reds).into_value()
}

/// Its context's first number is how many letters a text has.
pub struct Speller;

impl Export for Speller {
    const TYPE: &'static str = "CLIP";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Speller: marker::TextEncoder];
}

impl interface::EncodeText for Speller {
    fn encode_text(&self, _cx: &Context, text: &str) -> Result<(Tensor, Option<Tensor>)> {
        let count = text.chars().count() as f32;
        Ok((Tensor::from_f32(&[1, 2, 2], vec![count, 0.0, 0.0, 0.0])?, None))
    }
}

pub fn speller() -> Value {
    Object::new(Speller).into_value()
}
