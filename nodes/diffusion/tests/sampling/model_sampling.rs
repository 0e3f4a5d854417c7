//! Models sampled in another way: what they predict, the timesteps that they are told.

use std::sync::{Arc, Mutex};

use node::interface::{self, marker};
use node::*;

use crate::host::{one, run, samples, values};
use crate::models::alphas_cumprod;
use crate::{close, empty, sample, says};

type Description = serde_json::Map<String, serde_json::Value>;

/// Believes that x₀ is the context's first number and, in the first channel, half of that; is told what it is by
/// "model_sampling/1", and writes down the timesteps that it is asked at.
#[derive(Clone)]
struct Teachable {
    described: Description,
    told: Arc<Mutex<Vec<f32>>>,
}

impl Export for Teachable {
    const TYPE: &'static str = "MODEL";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![Teachable: marker::Denoiser, marker::ModelSampling, marker::Describe];
}

impl interface::Denoise for Teachable {
    /// The velocity, or x₀ itself.
    fn denoise(
        &self,
        _cx: &Context,
        x: &Tensor,
        timestep: &Tensor,
        context: &Tensor,
        _residuals: &[Tensor],
    ) -> Result<Tensor> {
        let (shape, told) = (x.shape(), timestep.to_f32()?[0]);
        self.told.lock().unwrap().push(told);
        let (values, context) = (x.to_f32()?, context.to_f32()?);
        let (item, each) = (values.len() / shape[0], context.len() / shape[0]);
        let alpha = match self.described["timesteps"] == "quarter_log_sigma" {
            true => 1.0 / (1.0 + (8.0 * f64::from(told)).exp()),
            false => alphas_cumprod()[told as usize],
        };
        let (a, s) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let said = |(i, &x): (usize, &f32)| {
            let believed = f64::from(context[i / item * each]);
            let x0 = if i % item < item / 4 { believed / 2.0 } else { believed };
            match self.described["prediction"].as_str() {
                Some("v_prediction") => ((a * f64::from(x) - x0) / s) as f32,
                Some("epsilon") => ((f64::from(x) - a * x0) / s) as f32,
                _ => x0 as f32,
            }
        };
        Tensor::from_f32(&shape, values.iter().enumerate().map(said).collect())
    }
}

impl interface::ModelSampling for Teachable {
    fn sampled_as(&self, _cx: &Context, description: &Description) -> Result<Object> {
        let mut other = self.clone();
        other.described.extend(description.clone());
        Ok(Object::new(other))
    }
}

impl interface::Describe for Teachable {
    fn describe(&self) -> serde_json::Value {
        let mut described = self.described.clone();
        let steps = described["alphas_cumprod"].as_array().map_or(0, Vec::len);
        described.insert("train_steps".to_owned(), steps.into());
        described.into()
    }
}

fn teachable() -> (Value, Arc<Mutex<Vec<f32>>>) {
    let told = Arc::default();
    let described = json!({
        "prediction": "epsilon", "in_channels": 4, "out_channels": 4, "context_width": 2,
        "alphas_cumprod": alphas_cumprod(), "timesteps": null,
    });
    let described = described.as_object().unwrap().clone();
    let model = Teachable { described, told: Arc::clone(&told) };
    (Object::new(model).into_value(), told)
}

fn discrete(sampling: &str, zsnr: bool) -> (Value, Arc<Mutex<Vec<f32>>>) {
    let (model, told) = teachable();
    let inputs =
        [("model", model), ("sampling", Value::string(sampling)), ("zsnr", Value::from(zsnr))];
    (one("ModelSamplingDiscrete", &inputs), told)
}

/// The noise levels of a scheduler in few steps.
fn levels(model: &Value, scheduler: &str) -> Vec<f32> {
    let inputs = [
        ("model", model.clone()),
        ("scheduler", Value::string(scheduler)),
        ("steps", Value::from(4i64)),
    ];
    values(&one("BasicScheduler", &inputs))
}

fn near(found: &[f32], wanted: &[f32]) {
    assert_eq!(found.len(), wanted.len(), "{found:?}");
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((found - wanted).abs() <= 1e-5 * wanted.max(0.01), "{found} is not {wanted}");
    }
}

// The noise levels of four steps by ComfyUI's schedulers, worked out apart: the roots of ᾱ shifted and scaled, the last ᾱ
// ComfyUI's; every twentieth of the training's.
const ZERO_SNR: [f32; 5] = [4518.7637, 5.3987384, 1.7680802, 0.72705586, 0.0];
const PLAIN: [f32; 5] = [14.614641, 4.0817294, 1.6128862, 0.6932049, 0.0];
const LCM_SIMPLE: [f32; 5] = [14.614641, 4.2605569, 1.6128862, 0.7193796, 0.0];
const LCM_SGM_UNIFORM: [f32; 5] = [14.614641, 4.1707725, 1.6679018, 0.7325183, 0.0];
const LCM_HALF: f64 = 1.61559337;

#[test]
fn a_model_predicts_what_it_is_said_to() {
    for sampling in ["eps", "v_prediction", "x0"] {
        let (model, _) = discrete(sampling, false);
        let out = samples(&sample(model, says(2.0), says(0.0), empty(1, 4, 4), &[]));
        close(&out[..16], &[1.0; 16], 1e-4);
        close(&out[16..], &[2.0; 48], 1e-4);
    }
    let (model, _) = discrete("v_prediction", true);
    near(&levels(&model, "simple"), &ZERO_SNR);
    let inputs = [("model", model), ("sampling", Value::string("eps"))];
    near(&levels(&one("ModelSamplingDiscrete", &inputs), "simple"), &PLAIN);
    let error = run("ModelSamplingDiscrete", &[("model", crate::models::believer())]).unwrap_err();
    assert!(error.contains("model") && error.contains("model_sampling/1"), "{error}");
}

#[test]
fn lcm_is_told_the_trainings_timesteps() {
    let (model, told) = discrete("lcm", false);
    near(&levels(&model, "simple"), &LCM_SIMPLE);
    near(&levels(&model, "sgm_uniform"), &LCM_SGM_UNIFORM);
    let more = [("scheduler", Value::string("simple")), ("sampler_name", Value::string("lcm"))];
    let out = samples(&sample(model, says(2.0), says(0.0), empty(1, 4, 4), &more));
    assert_eq!(told.lock().unwrap()[..], [999.0, 759.0, 499.0, 259.0]);
    // x₀ is not quite what the network says: a little of x stays, (0.5 / 2590)² of it.
    close(&out[16..], &[2.0; 48], 1e-4);
    let half = [("model", discrete("lcm", false).0), ("sampling_percent", Value::from(0.5))];
    let sigma = one("SamplingPercentToSigma", &half).as_f64().unwrap();
    // 499.5 of the training's timesteps lie 0.025 beyond the place 24 of the fifty.
    assert!((sigma - LCM_HALF).abs() < 1e-5 * LCM_HALF, "{sigma}");
}

#[test]
fn an_edm_network_is_told_the_logarithm_of_the_noise() {
    let (model, told) = teachable();
    let inputs = |max: f64, min: f64| {
        [("model", model.clone()), ("sigma_max", Value::from(max)), ("sigma_min", Value::from(min))]
    };
    let edm = one("ModelSamplingContinuousEDM", &inputs(80.0, 0.002));
    let first = levels(&edm, "normal")[0];
    near(&[first], &[80.0]);
    let more = [("scheduler", Value::string("normal"))];
    let out = samples(&sample(edm, says(2.0), says(0.0), empty(1, 4, 4), &more));
    close(&out[16..], &[2.0; 48], 1e-3);
    near(&told.lock().unwrap()[..1], &[0.25 * 80f32.ln()]);
    for (max, min) in [(1.0, 2.0), (1.0, 0.0), (1.0, 1.0)] {
        let error = run("ModelSamplingContinuousEDM", &inputs(max, min)).unwrap_err();
        assert!(error.contains("sigma_min") && error.contains("noise levels"), "{error}");
    }
}
