//! Pictures in the place of a text's pooled vector.

use std::sync::{Arc, Mutex};

use node::interface::{self, DenoiseCall, marker};
use node::*;

use crate::host::{one, run, tensor};
use crate::models::alphas_cumprod;
use crate::{empty, says};

/// A model of SDXL's kind, of a pooled vector of 32 numbers; keeps those that it was told.
struct Listener(Arc<Mutex<Vec<Vec<f32>>>>);

impl Export for Listener {
    const TYPE: &'static str = "MODEL";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![Listener: marker::Denoiser, marker::Describe];
}

impl interface::Denoise for Listener {
    fn denoise(
        &self,
        _cx: &Context,
        x: &Tensor,
        _timestep: &Tensor,
        _context: &Tensor,
        _residuals: &[Tensor],
    ) -> Result<Tensor> {
        Ok(x.clone())
    }

    fn denoise_call(&self, _cx: &Context, call: &DenoiseCall) -> Result<Tensor> {
        let pooled = call.pooled.as_ref().ok_or_else(|| Error::new("there is no pooled vector"))?;
        self.0.lock().unwrap().push(pooled.to_f32()?.into_owned());
        Ok(call.x.clone())
    }
}

impl interface::Describe for Listener {
    fn describe(&self) -> serde_json::Value {
        json!({
            "prediction": "epsilon", "in_channels": 4, "out_channels": 4, "context_width": 2, "pooled_width": 32, "sizes": 6,
            "train_steps": 1000, "alphas_cumprod": alphas_cumprod(),
        })
    }
}

/// What the model is told of `positive`, sampled with `seed` without guidance.
fn told(positive: Value, seed: i64) -> std::result::Result<Vec<f32>, String> {
    let heard = Arc::default();
    let inputs = [
        ("model", Object::new(Listener(Arc::clone(&heard))).into_value()),
        ("positive", positive.clone()),
        ("negative", positive),
        ("latent_image", empty(1, 8, 8)),
        ("seed", seed.into()),
        ("steps", 1i64.into()),
        ("cfg", 1.0.into()),
        ("sampler_name", Value::string("euler")),
        ("scheduler", Value::string("normal")),
    ];
    run("KSampler", &inputs)?;
    let heard = heard.lock().unwrap();
    Ok(heard[0].clone())
}

/// The embedding of one picture that the reference numbers of the model's own tests are of.
fn embeds() -> Vec<f32> {
    (0..32).map(|i| (i as f32 * 0.37).sin() * 2.0).collect()
}

fn drawn_after(conditioning: Value, strength: f64, noise: f64) -> Value {
    let picture = Value::map([("image_embeds", tensor(&[1, 32], embeds()))]);
    let inputs = [
        ("conditioning", conditioning),
        ("clip_vision_output", picture),
        ("strength", strength.into()),
        ("noise_augmentation", noise.into()),
    ];
    one("unCLIPConditioning", &inputs)
}

#[test]
fn a_picture_takes_the_place_of_the_pooled_text() {
    // The text has no pooled vector at all, and needs none.
    let heard = told(drawn_after(says(1.0), 1.0, 0.0), 7).expect("a picture");
    // As torch draws it, of seed 7.
    for (place, wanted) in [(0, -0.002_006_645), (1, 0.720_024_5), (31, -1.802_785f32)] {
        assert!((heard[place] - wanted).abs() < 4e-5, "{place}: {}", heard[place]);
    }
    assert_ne!(told(drawn_after(says(1.0), 1.0, 0.0), 8).expect("a picture"), heard);
    // Two count both; a strength of 0 adds none.
    let twice = drawn_after(drawn_after(says(1.0), 1.0, 0.0), 1.0, 0.0);
    let both = told(twice, 7).expect("a picture");
    assert!((both[1] - 2.0 * heard[1]).abs() < 0.05, "{} {}", both[1], heard[1]);
    let error = told(drawn_after(says(1.0), 0.0, 0.0), 7).expect_err("no pooled vector");
    assert!(error.contains("no pooled vector"), "{error}");
}

#[test]
fn a_picture_of_another_clip_is_told() {
    let picture = Value::map([("image_embeds", tensor(&[1, 8], vec![0.0; 8]))]);
    let inputs = [("conditioning", says(1.0)), ("clip_vision_output", picture)];
    let error = told(one("unCLIPConditioning", &inputs), 1).expect_err("refused");
    assert!(error.starts_with("positive:") && error.contains("8 numbers wide"), "{error}");
    let inputs = [
        ("conditioning", says(1.0)),
        ("clip_vision_output", Value::map(Vec::<(&str, Value)>::new())),
    ];
    let error = run("unCLIPConditioning", &inputs).expect_err("refused");
    assert!(error.contains("image_embeds"), "{error}");
}
