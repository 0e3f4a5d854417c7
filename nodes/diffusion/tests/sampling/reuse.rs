//! What is left out of a sampling, and latents that grow: against a script of torch's that goes ComfyUI's way.

use std::sync::{Arc, Mutex};

use node::interface::{self, GuideCall, marker};
use node::*;

use super::host::{one, run, run_told, samples, tensor};
use super::models::alphas_cumprod;
use super::{close, empty, says};

/// Says 0.8 x + 0.3 tanh(2 x + c) of noise, c the context's first number; counts its calls.
#[derive(Clone, Default)]
struct Curved {
    calls: Arc<Mutex<usize>>,
    description: serde_json::Map<String, serde_json::Value>,
}

impl Export for Curved {
    const TYPE: &'static str = "MODEL";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![Curved: marker::Denoiser, marker::Describe, marker::ModelSampling];
}

impl interface::Denoise for Curved {
    fn denoise(
        &self,
        _cx: &Context,
        x: &Tensor,
        _timestep: &Tensor,
        context: &Tensor,
        _residuals: &[Tensor],
    ) -> node::Result<Tensor> {
        *self.calls.lock().unwrap() += 1;
        let shape = x.shape();
        let (x, context) = (x.to_f32()?, context.to_f32()?);
        let (item, each) = (x.len() / shape[0], context.len() / shape[0]);
        let said =
            |(i, &x): (usize, &f32)| 0.8 * x + 0.3 * (2.0 * x + context[i / item * each]).tanh();
        Tensor::from_f32(&shape, x.iter().enumerate().map(said).collect())
    }
}

impl interface::Describe for Curved {
    fn describe(&self) -> serde_json::Value {
        let mut described = json!({
            "prediction": "epsilon", "in_channels": 4, "out_channels": 4, "context_width": 2,
            "train_steps": 1000, "alphas_cumprod": alphas_cumprod(),
        });
        for (key, value) in &self.description {
            described[key] = value.clone();
        }
        described
    }
}

impl interface::ModelSampling for Curved {
    fn sampled_as(
        &self,
        _cx: &Context,
        description: &serde_json::Map<String, serde_json::Value>,
    ) -> node::Result<Object> {
        let mut other = self.clone();
        other.description.extend(description.clone());
        Ok(Object::new(other))
    }
}

/// Noise levels at whole timesteps, and 0 where `ends`.
fn levels(timesteps: &[usize]) -> Value {
    let alphas = alphas_cumprod();
    let level = |&t: &usize| ((1.0 - alphas[t]) / alphas[t]).sqrt() as f32;
    let levels: Vec<f32> = timesteps.iter().map(level).chain([0.0]).collect();
    tensor(&[levels.len()], levels)
}

const TIMESTEPS: [usize; 16] =
    [950, 900, 850, 800, 740, 680, 620, 560, 500, 440, 380, 320, 260, 200, 140, 80];

/// The first three numbers of each channel, how many calls it took, and what was told; sampled by parts, or twice
/// by the same GUIDER.
fn sampled(class: Option<(&str, f64)>, times: usize) -> (Vec<f32>, usize, Vec<String>) {
    let model = Curved::default();
    let calls = model.calls.clone();
    let mut model = Object::new(model).into_value();
    if let Some((class, threshold)) = class {
        let inputs =
            [("model", model), ("reuse_threshold", threshold.into()), ("verbose", true.into())];
        model = one(class, &inputs);
    }
    let guider =
        [("model", model), ("cfg", 2.0.into()), ("positive", says(0.7)), ("negative", says(-0.2))];
    let inputs = [
        ("noise", one("RandomNoise", &[("noise_seed", 5i64.into())])),
        ("guider", one("CFGGuider", &guider)),
        ("sampler", one("KSamplerSelect", &[("sampler_name", Value::string("euler"))])),
        ("sigmas", levels(&TIMESTEPS)),
        ("latent_image", empty(1, 12, 16)),
    ];
    let (mut found, mut told) = (Vec::new(), Vec::new());
    for _ in 0..times {
        *calls.lock().unwrap() = 0;
        let (made, logs) = run_told("SamplerCustomAdvanced", &inputs);
        (found, told) = (samples(&made.unwrap()[0]), logs);
    }
    let channels = found.chunks(12 * 16);
    let first = channels.flat_map(|channel| channel[..3].to_vec()).collect();
    let calls = *calls.lock().unwrap();
    (first, calls, told)
}

/// With calls left out at these thresholds: what remains of 16 calls, and the first numbers, by the script.
#[test]
fn calls_are_left_out_while_little_changes() {
    let whole = [
        0.924342, -0.365028, -0.837041, -0.244844, -0.780395, -0.390708, -0.40453, -0.430368,
        0.128238, -0.408175, -0.425994, -0.403144,
    ];
    let little = [
        0.927833, -0.367841, -0.839471, -0.241347, -0.782471, -0.392767, -0.405684, -0.429894,
        0.135058, -0.409071, -0.425746, -0.404395,
    ];
    let more = [
        0.935686, -0.370976, -0.844262, -0.232015, -0.786337, -0.396498, -0.408392, -0.428462,
        0.15149, -0.411309, -0.42502, -0.407261,
    ];
    for (class, calls, expected) in [
        (None, 16, whole),
        (Some(("EasyCache", 0.0)), 16, whole),
        (Some(("EasyCache", 0.05)), 13, little),
        (Some(("EasyCache", 0.2)), 9, more),
    ] {
        // The second time by the same guider: nothing is remembered of the first.
        for times in [1, 2] {
            let (found, made, told) = sampled(class, times);
            assert_eq!(made, calls, "{class:?}");
            close(&found, &expected, 2e-4);
            let of_cache = told.iter().filter(|told| told.contains("is left out")).count();
            assert_eq!(of_cache, 16 - calls, "{told:?}");
        }
    }
}

#[test]
fn steps_are_left_out_while_little_changes() {
    let little = [
        0.631976, -0.348893, -0.577424, -0.310365, -0.537259, -0.353516, -0.355991, -0.360992,
        -0.0234933, -0.356659, -0.360094, -0.355739,
    ];
    let more = [
        -0.152227, -0.261796, 0.0688754, -0.425179, 0.0557361, -0.231429, -0.216372, -0.194883,
        -0.49253, -0.212682, -0.197923, -0.217815,
    ];
    for (threshold, calls, expected) in [(0.1, 13, little), (0.3, 8, more)] {
        for times in [1, 2] {
            let (found, made, _) = sampled(Some(("LazyCache", threshold)), times);
            assert_eq!(made, calls, "{threshold}");
            close(&found, &expected, 2e-4);
        }
    }
}

#[test]
fn a_model_that_is_sampled_in_one_way_alone_says_so() {
    let error = run("EasyCache", &[("model", super::models::believer())]).unwrap_err();
    assert!(error.starts_with("model: ") && error.contains("model_sampling/1"), "{error}");
}

/// Somebody's guider that halves x.
struct Halving;

impl Export for Halving {
    const TYPE: &'static str = "GUIDER";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![Halving: marker::Guider, marker::Describe];
}

impl interface::Guide for Halving {
    fn guide(&self, _cx: &Context, call: &GuideCall) -> node::Result<(Tensor, Option<Tensor>)> {
        // The latents that it makes its conditions ready for are of x's size.
        assert_eq!(call.latents.as_ref().unwrap().shape(), call.x.shape());
        let halves = call.x.to_f32()?.iter().map(|x| x / 2.0).collect();
        Ok((Tensor::from_f32(&call.x.shape(), halves)?, None))
    }
}

impl interface::Describe for Halving {
    fn describe(&self) -> serde_json::Value {
        interface::Describe::describe(&Curved::default())
    }
}

fn growing(
    ratio: f64,
    steps: i64,
    method: &str,
    sigmas: Vec<f32>,
    latent: Value,
) -> Result<Value, String> {
    let sampler = [
        ("scale_ratio", ratio.into()),
        ("scale_steps", steps.into()),
        ("upscale_method", Value::string(method)),
    ];
    let inputs = [
        ("noise", one("RandomNoise", &[("noise_seed", 9i64.into())])),
        ("guider", Object::new(Halving).into_value()),
        ("sampler", one("SamplerLCMUpscale", &sampler)),
        ("sigmas", tensor(&[sigmas.len()], sigmas)),
        ("latent_image", latent),
    ];
    run("SamplerCustomAdvanced", &inputs).map(|mut both| both.remove(0))
}

/// By torch.nn.functional.interpolate and torch.randn of one seed further on.
#[test]
fn latents_grow_while_they_are_sampled() {
    let grown =
        growing(2.0, -1, "nearest-exact", vec![4.0, 2.0, 1.0, 0.5], empty(1, 5, 6)).unwrap();
    assert_eq!(grown.get("samples").unwrap().as_tensor().unwrap().shape(), [1, 4, 10, 12]);
    let found = samples(&grown);
    let first: Vec<f32> = found.chunks(12 * 10).flat_map(|channel| channel[..4].to_vec()).collect();
    let expected = [
        -0.688503,
        -0.409849,
        -0.330858,
        -0.587651,
        0.531283,
        -1.23508,
        -2.54181,
        -0.919796,
        0.819008,
        -2.30353,
        0.19488,
        -0.285114,
        -1.59725,
        -1.35676,
        -0.00328439,
        1.29669,
    ];
    close(&first, &expected, 1e-4);
    close(&found[found.len() - 3..], &[0.0520325, -1.18627, -0.755225], 1e-4);
    let grown = growing(1.5, 1, "bicubic", vec![4.0, 2.0, 0.0], empty(1, 5, 6)).unwrap();
    assert_eq!(grown.get("samples").unwrap().as_tensor().unwrap().shape(), [1, 4, 8, 9]);
    let found = samples(&grown);
    let at: Vec<f32> = (0..4).flat_map(|c| found[(c * 8 + 3) * 9..][..3].to_vec()).collect();
    let expected = [
        1.44292, 1.32885, 0.494837, -1.1261, -1.37677, -1.91878, -0.449848, -0.223048, 0.869978,
        -1.02217, -0.367269, -0.591866,
    ];
    close(&at, &expected, 1e-4);
    let masked = empty(1, 5, 6).with("noise_mask", tensor(&[1, 5, 6], vec![1.0; 30]));
    let error = growing(1.5, 1, "bicubic", vec![4.0, 0.0], masked).unwrap_err();
    assert!(error.contains("noise mask"), "{error}");
}
