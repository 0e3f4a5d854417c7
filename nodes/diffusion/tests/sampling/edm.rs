//! Networks of EDM's kind, in latents of a mean and a spread of their own (Playground 2.5).

use node::interface::{self, marker};
use node::*;

use crate::host::{one, run, samples};
use crate::{empty, says};

/// Believes that x₀ is the context's first number everywhere, and says it as Karras et al. have it (arXiv 2206.00364, table 1) with a
/// spread of the data of 0.5.
struct EdmBeliever;

impl Export for EdmBeliever {
    const TYPE: &'static str = "MODEL";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![EdmBeliever: marker::Denoiser, marker::Describe];
}

impl interface::Denoise for EdmBeliever {
    fn denoise(
        &self,
        _cx: &Context,
        x: &Tensor,
        timestep: &Tensor,
        context: &Tensor,
        _residuals: &[Tensor],
    ) -> Result<Tensor> {
        const DATA: f64 = 0.5;
        let (seen, context, told) = (x.to_f32()?, context.to_f32()?, timestep.to_f32()?);
        let rows = x.shape()[0];
        let (item, each) = (seen.len() / rows, context.len() / rows);
        let said = |(i, &seen): (usize, &f32)| {
            let sigma = (4.0 * f64::from(told[i / item])).exp();
            let root = (sigma * sigma + DATA * DATA).sqrt();
            // x = c_in · x, D = c_skip x + c_out F.
            let x = f64::from(seen) * root;
            let (skip, out) = (DATA * DATA / (root * root), sigma * DATA / root);
            ((f64::from(context[i / item * each]) - skip * x) / out) as f32
        };
        Tensor::from_f32(&x.shape(), seen.iter().enumerate().map(said).collect())
    }
}

impl interface::Describe for EdmBeliever {
    fn describe(&self) -> serde_json::Value {
        let step = (80.0f64 / 0.002).ln() / 999.0;
        let sigma = |i: u32| (0.002f64.ln() + step * f64::from(i)).exp();
        let alphas: Vec<f64> = (0..1000).map(|i| 1.0 / (1.0 + sigma(i).powi(2))).collect();
        json!({
            "prediction": "edm", "timesteps": "quarter_log_sigma", "in_channels": 4, "out_channels": 4, "context_width": 2,
            "train_steps": 1000, "alphas_cumprod": alphas,
            "latent_mean": [1.0, -2.0, 3.0, 0.0], "latent_std": [2.0, 4.0, 0.5, 1.0],
        })
    }
}

fn sampled(sampler: &str, latent: Value, denoise: f64) -> Vec<f32> {
    let inputs = [
        ("model", Object::new(EdmBeliever).into_value()),
        ("positive", says(0.75)),
        ("negative", says(0.25)),
        ("latent_image", latent),
        ("seed", 3i64.into()),
        ("steps", 6i64.into()),
        ("cfg", 2.0.into()),
        ("denoise", denoise.into()),
        ("sampler_name", Value::string(sampler)),
        ("scheduler", Value::string("karras")),
    ];
    samples(&one("KSampler", &inputs))
}

#[test]
fn x0_comes_back_in_the_autoencoders_own_latents() {
    // Guidance goes to 1.25; each channel times its spread, and its mean.
    let wanted = [3.5, 3.0, 3.625, 1.25f32];
    for sampler in ["euler", "dpmpp_2m", "heun"] {
        for (latent, denoise) in [(empty(1, 8, 8), 1.0), (empty(1, 8, 8), 0.5)] {
            let found = sampled(sampler, latent, denoise);
            for (i, value) in found.iter().enumerate() {
                let wanted = wanted[i / 64];
                assert!(
                    (value - wanted).abs() < 1e-3 * wanted.abs(),
                    "{sampler}, {i}: {value}, {wanted}"
                );
            }
        }
    }
}

#[test]
fn a_sampling_of_no_length_changes_nothing() {
    let numbers: Vec<f32> = (0..256).map(|i| (i as f32).sin()).collect();
    let latent = Value::map([("samples", crate::host::tensor(&[1, 4, 8, 8], numbers.clone()))]);
    assert_eq!(sampled("euler", latent, 0.0), numbers);
}

#[test]
fn the_published_samplers_refuse_it() {
    let inputs = [
        ("model", Object::new(EdmBeliever).into_value()),
        ("positive", says(0.75)),
        ("negative", says(0.25)),
        ("latent", empty(1, 8, 8)),
        ("sampler", Value::string("dpms")),
        ("steps", 3i64.into()),
    ];
    let error = run("UNetSample", &inputs).expect_err("refused");
    assert!(error.starts_with("sampler:") && error.contains("EDM"), "{error}");
}
