//! Parts of the schedule, noise, and the kinds of prediction.

use node::Value;

use crate::host::{one, samples, tensor};
use crate::models::{believer_of, gaussian};
use crate::{close, empty, sample, says};

fn advanced(latent: Value, add: &str, (start, end): (i64, i64), leftover: &str) -> Value {
    let inputs = [
        ("model", gaussian()),
        ("positive", says(0.7)),
        ("negative", says(-0.2)),
        ("latent_image", latent),
        ("noise_seed", Value::from(7i64)),
        ("steps", Value::from(12i64)),
        ("cfg", Value::from(2.0)),
        ("sampler_name", Value::string("euler")),
        ("add_noise", Value::string(add)),
        ("start_at_step", start.into()),
        ("end_at_step", end.into()),
        ("return_with_leftover_noise", Value::string(leftover)),
    ];
    one("KSamplerAdvanced", &inputs)
}

#[test]
fn a_sampling_that_is_taken_up_again_is_the_whole_one() {
    let whole = advanced(empty(2, 4, 4), "enable", (0, 10000), "disable");
    for k in [1, 5, 11] {
        let left = advanced(empty(2, 4, 4), "enable", (0, k), "enable");
        let resumed = advanced(left, "disable", (k, 10000), "disable");
        close(&samples(&resumed), &samples(&whole), 1e-5);
    }
    let inputs =
        [("seed", Value::from(7i64)), ("steps", Value::from(12i64)), ("cfg", Value::from(2.0))];
    let plain = sample(gaussian(), says(0.7), says(-0.2), empty(2, 4, 4), &inputs);
    assert_eq!(samples(&plain), samples(&whole));
}

#[test]
fn without_leftover_noise_the_last_step_ends_at_zero() {
    // Cut after the first step and sent to σ = 0, euler gives x₀ itself: of a Gaussian
    // μ + s² / (s² + σ²) · (x - μ) at x = √(1 + σ²) · noise.
    let inputs = [("steps", Value::from(1i64)), ("seed", Value::from(7i64)), ("cfg", 2.0.into())];
    let one_step = sample(gaussian(), says(0.7), says(-0.2), empty(1, 4, 4), &inputs);
    let cut = advanced(empty(1, 4, 4), "enable", (0, 1), "disable");
    close(&samples(&cut), &samples(&one_step), 1e-5);
}

#[test]
fn nothing_to_do_gives_the_latents_back() {
    let latent = Value::map([("samples", tensor(&[1, 4, 1, 1], vec![1.0, 2.0, 3.0, 4.0]))]);
    for range in [(12, 10000), (5, 5), (9, 3), (0, 0)] {
        assert_eq!(
            samples(&advanced(latent.clone(), "enable", range, "enable")),
            [1.0, 2.0, 3.0, 4.0]
        );
    }
    let inputs = [("denoise", Value::from(0.0))];
    assert_eq!(
        samples(&sample(gaussian(), says(0.0), says(0.0), latent, &inputs)),
        [1.0, 2.0, 3.0, 4.0]
    );
}

#[test]
fn less_denoising_stays_nearer() {
    let picture = Value::map([("samples", tensor(&[1, 4, 8, 8], vec![3.0; 256]))]);
    let distance = |denoise: f64| {
        let inputs = [("denoise", Value::from(denoise)), ("steps", Value::from(10i64))];
        let latent = sample(gaussian(), says(0.0), says(0.0), picture.clone(), &inputs);
        samples(&latent).iter().map(|x| (x - 3.0).abs()).sum::<f32>() / 256.0
    };
    let distances = [0.2, 0.5, 0.8, 1.0].map(distance);
    assert!(distances.is_sorted_by(|a, b| a < b), "{distances:?}");
}

#[test]
fn one_of_a_batch_is_as_it_was_in_it() {
    // 4 × 4 × 4 values are a multiple of 16, so that torch draws them alike alone and in a batch.
    let inputs = [("seed", Value::from(3i64)), ("cfg", Value::from(2.0))];
    let batch = sample(gaussian(), says(0.7), says(-0.2), empty(3, 4, 4), &inputs);
    let third = Value::list(vec![Value::from(2i64)]);
    let alone = empty(1, 4, 4).with("batch_index", third);
    let alone = sample(gaussian(), says(0.7), says(-0.2), alone, &inputs);
    close(&samples(&alone), &samples(&batch)[128..], 1e-6);
}

#[test]
fn noise_per_item_counts_the_seed_on() {
    let sampled = |latent: Value, seed: i64, noise: &str, sampler: &str| {
        let inputs = [
            ("model", gaussian()),
            ("positive", says(0.7)),
            ("negative", says(-0.2)),
            ("latent", latent),
            ("seed", seed.into()),
            ("steps", Value::from(4i64)),
            ("sampler", Value::string(sampler)),
            ("noise", Value::string(noise)),
        ];
        samples(&one("UNetSample", &inputs))
    };
    for sampler in ["dpms", "euler_ancestral"] {
        let batch = sampled(empty(3, 4, 4), 40, "per item", sampler);
        close(&sampled(empty(1, 4, 4), 42, "batch", sampler), &batch[128..], 1e-6);
        close(&sampled(empty(1, 4, 4), 40, "batch", sampler), &batch[..64], 1e-6);
    }
}

#[test]
fn all_predictions_say_the_same() {
    for prediction in ["epsilon", "v_prediction", "sample"] {
        let model = believer_of(prediction, 4).0;
        let latent = sample(model, says(2.5), says(0.0), empty(1, 4, 4), &[]);
        close(&samples(&latent), &[2.5; 64], 1e-4);
    }
}
