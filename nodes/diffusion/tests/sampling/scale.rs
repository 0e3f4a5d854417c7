//! What latents are an autoencoder's times: whoever takes two at different scales brings one to the other's.

use node::interface::{self, DenoiseCall, marker};
use node::*;

use crate::host::{one, run, samples, tensor};
use crate::models::{Believer, believer_of, reds};
use crate::{close, empty, sample, says};

/// A [`Believer`] whose latents are the autoencoder's times a quarter.
struct Quarter(Believer);

impl Export for Quarter {
    const TYPE: &'static str = "MODEL";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![Quarter: marker::Denoiser, marker::Describe];
}

impl interface::Denoise for Quarter {
    fn denoise(
        &self,
        cx: &Context,
        x: &Tensor,
        timestep: &Tensor,
        context: &Tensor,
        residuals: &[Tensor],
    ) -> Result<Tensor> {
        self.0.denoise(cx, x, timestep, context, residuals)
    }

    fn denoise_call(&self, cx: &Context, call: &DenoiseCall) -> Result<Tensor> {
        self.0.denoise_call(cx, call)
    }
}

impl interface::Describe for Quarter {
    fn describe(&self) -> serde_json::Value {
        let mut described = self.0.describe();
        described["scaling_factor"] = json!(0.25);
        described
    }
}

fn quarter(in_channels: usize) -> Value {
    let calls = Default::default();
    Object::new(Quarter(Believer { prediction: "epsilon", in_channels, calls })).into_value()
}

/// [1, 4, 4, 4] of `value` everywhere, at `scale`.
fn at(scale: Option<f64>, value: f32) -> Value {
    let latent = Value::map([("samples", tensor(&[1, 4, 4, 4], vec![value; 64]))]);
    match scale {
        Some(scale) => latent.with("scale", scale.into()),
        None => latent,
    }
}

fn scale(latent: &Value) -> Option<f64> {
    latent.get("scale").and_then(|scale| scale.as_f64())
}

#[test]
fn a_sampler_brings_latents_to_its_models_scale() {
    // Nothing may change, so what comes out is what went in.
    let kept = |latent: Value| latent.with("noise_mask", tensor(&[1, 1, 1], vec![0.0]));
    let sampled = |model, latent| sample(model, says(2.0), says(0.0), latent, &[]);
    let out = sampled(quarter(4), kept(at(Some(0.5), 3.0)));
    close(&samples(&out), &[1.5; 64], 1e-6);
    assert_eq!(scale(&out), Some(0.25));
    // A latent that does not say it is at the model's, and one of a model that does not say it stays where it is.
    let out = sampled(quarter(4), kept(at(None, 3.0)));
    close(&samples(&out), &[3.0; 64], 1e-6);
    assert_eq!(scale(&out), Some(0.25));
    let out = sampled(believer_of("epsilon", 4).0, kept(at(Some(0.5), 3.0)));
    close(&samples(&out), &[3.0; 64], 1e-6);
    assert_eq!(scale(&out), Some(0.5));
    let out = sampled(believer_of("epsilon", 4).0, empty(1, 4, 4));
    assert_eq!(scale(&out), None);
}

#[test]
fn an_autoencoder_decodes_latents_of_another_scale() {
    // Its own is a half.
    let decoded = |latent| one("VAEDecode", &[("samples", latent), ("vae", reds())]);
    let latent = |scale: f64| {
        let samples = tensor(&[1, 1, 1, 3], vec![0.125, 0.25, 0.375]);
        Value::map([("samples", samples), ("scale", scale.into())])
    };
    let values = |image: &Value| crate::host::values(image);
    assert_eq!(values(&decoded(latent(0.5))), [0.125, 0.25, 0.375]);
    assert_eq!(values(&decoded(latent(0.25))), [0.25, 0.5, 0.75]);
    let picture = tensor(&[1, 8, 8, 3], vec![1.0; 192]);
    let encoded = one("VAEEncode", &[("pixels", picture.clone()), ("vae", reds())]);
    assert_eq!((samples(&encoded), scale(&encoded)), (vec![0.5; 4], Some(0.5)));
    let mask = tensor(&[1, 8, 8], vec![0.0; 64]);
    let inputs = [("pixels", picture), ("vae", reds()), ("mask", mask)];
    assert_eq!(scale(&one("VAEEncodeForInpaint", &inputs)), Some(0.5));
}

#[test]
fn of_two_latents_the_second_is_brought_to_the_firsts_scale() {
    let both = |class, names: [&'static str; 2], first, second| {
        one(class, &[(names[0], first), (names[1], second)])
    };
    let names = ["samples1", "samples2"];
    let sum = both("LatentAdd", names, at(Some(0.25), 1.0), at(Some(0.5), 4.0));
    assert_eq!((samples(&sum), scale(&sum)), (vec![3.0; 64], Some(0.25)));
    // A latent of zeros says none: the other's it is.
    let sum = both("LatentAdd", names, at(None, 0.0), at(Some(0.5), 4.0));
    assert_eq!((samples(&sum), scale(&sum)), (vec![4.0; 64], Some(0.5)));
    let sum = both("LatentAdd", names, at(Some(0.25), 1.0), at(None, 4.0));
    assert_eq!((samples(&sum), scale(&sum)), (vec![5.0; 64], Some(0.25)));
    for class in ["LatentBlend", "LatentInterpolate", "LatentBatch", "LatentConcat"] {
        let made = both(class, names, at(Some(0.25), 2.0), at(Some(0.5), 4.0));
        let values = samples(&made);
        assert!(values.iter().all(|value| (value - 2.0).abs() < 1e-5), "{class}: {values:?}");
        assert_eq!(scale(&made), Some(0.25), "{class}");
    }
    let names = ["samples_to", "samples_from"];
    let laid = both("LatentComposite", names, at(Some(0.25), 2.0), at(Some(0.5), 4.0));
    assert_eq!((samples(&laid), scale(&laid)), (vec![2.0; 64], Some(0.25)));
    let half = one("LatentUpscaleBy", &[("samples", at(Some(0.5), 4.0)), ("scale_by", 0.5.into())]);
    assert_eq!(scale(&half), Some(0.5));
    for wrong in [Value::from(0.0), Value::from(f64::NAN), Value::string("a")] {
        let inputs =
            [("samples1", at(None, 1.0).with("scale", wrong)), ("samples2", at(None, 1.0))];
        let error = run("LatentAdd", &inputs).unwrap_err();
        assert!(error.contains("samples2") && error.contains("\"scale\""), "{error}");
    }
}

#[test]
fn a_further_latent_comes_at_the_networks_scale() {
    let concat = |scale: Option<f64>| {
        let entry = says(2.0).as_list().unwrap().remove(0);
        let entry = entry.with("concat_latent", tensor(&[1, 4, 4, 4], vec![1.0; 64]));
        let entry = entry.with("concat_mask", tensor(&[1, 4, 4], vec![0.0; 16]));
        Value::list(vec![match scale {
            Some(scale) => entry.with("concat_scale", scale.into()),
            None => entry,
        }])
    };
    let first =
        |model, positive| samples(&sample(model, positive, says(0.0), empty(1, 4, 4), &[]))[0];
    // It adds the mean of its further channels, of which one is the mask, which is 0.
    for (scale, mean) in [(None, 0.8), (Some(0.25), 0.8), (Some(0.5), 0.4)] {
        close(&[first(quarter(9), concat(scale))], &[2.0 + mean], 1e-4);
    }
    // One that edits takes it as the autoencoder gives it.
    for (scale, mean) in [(None, 1.0), (Some(1.0), 1.0), (Some(0.5), 2.0)] {
        close(&[first(quarter(8), concat(scale))], &[2.0 + mean], 1e-4);
    }
    let picture = tensor(&[1, 8, 8, 3], vec![1.0; 192]);
    let inputs =
        [("positive", says(1.0)), ("negative", says(0.0)), ("vae", reds()), ("pixels", picture)];
    let told = |class: &str, more: &[(&str, Value)]| {
        let positive = run(class, &[&inputs[..], more].concat()).unwrap().remove(0);
        positive.as_list().unwrap()[0].get("concat_scale").and_then(|scale| scale.as_f64())
    };
    let mask = ("mask", tensor(&[1, 8, 8], vec![0.0; 64]));
    assert_eq!(told("InpaintModelConditioning", &[mask]), Some(0.5));
    assert_eq!(told("InstructPixToPixConditioning", &[]), Some(1.0));
}
