//! Sampling through the library's nodes, with denoisers whose answers are known: what conditionings, masks,
//! controls and parts of the schedule do is compared with numbers worked out here.

mod bad_input;
mod conditioning;
mod controls;
mod custom;
mod edm;
mod host;
mod inpainting;
mod latents;
mod model_sampling;
mod models;
mod packs;
mod patches;
mod reuse;
mod samplers;
mod scale;
mod schedule;
mod sigmas;
mod style;
mod unclip;
mod work;

use host::{one, tensor};
use node::Value;

/// A conditioning that says `number`, as [`models::Believer`] reads it.
fn says(number: f32) -> Value {
    says_in(number, 3)
}

fn says_in(number: f32, tokens: usize) -> Value {
    let mut context = vec![0.5; tokens * 2];
    context[0] = number;
    let context = tensor(&[1, tokens, 2], context);
    Value::list(vec![Value::map([("context", context)])])
}

fn empty(batch: usize, height: usize, width: usize) -> Value {
    let samples = tensor(&[batch, 4, height, width], vec![0.0; batch * 4 * height * width]);
    Value::map([("samples", samples)])
}

/// KSampler by euler over few steps.
fn sample(
    model: Value,
    positive: Value,
    negative: Value,
    latent: Value,
    more: &[(&str, Value)],
) -> Value {
    let mut inputs = vec![
        ("model", model),
        ("positive", positive),
        ("negative", negative),
        ("latent_image", latent),
        ("steps", Value::from(4i64)),
        ("cfg", Value::from(1.0)),
        ("sampler_name", Value::string("euler")),
    ];
    for (name, value) in more {
        inputs.retain(|(known, _)| known != name);
        inputs.push((name, value.clone()));
    }
    one("KSampler", &inputs)
}

fn close(a: &[f32], b: &[f32], bound: f32) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= bound, "value {i}: {a} is not {b}");
    }
}
