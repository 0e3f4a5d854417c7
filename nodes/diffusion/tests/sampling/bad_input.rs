//! What does not fit is an error that names the input.

use node::Value;

use crate::host::{run, tensor};
use crate::models::{believer, believer_of};
use crate::{empty, says};

fn refusal(changed: &[(&'static str, Value)]) -> String {
    let mut inputs = vec![
        ("model", believer()),
        ("positive", says(1.0)),
        ("negative", says(0.0)),
        ("latent_image", empty(2, 4, 4)),
        ("steps", Value::from(2i64)),
    ];
    for (name, value) in changed {
        inputs.retain(|(known, _)| known != name);
        inputs.push((name, value.clone()));
    }
    run("KSampler", &inputs).unwrap_err()
}

fn entry(key: &str, value: Value) -> Value {
    let entry = says(1.0).as_list().unwrap().remove(0);
    Value::list(vec![entry.with(key, value)])
}

fn integers(values: &[i64]) -> Value {
    Value::list(values.iter().map(|value| Value::from(*value)).collect())
}

#[test]
fn errors_name_the_input() {
    let channels = tensor(&[1, 16, 2, 2], vec![1.0; 64]);
    let wide = Value::list(vec![Value::map([("context", tensor(&[1, 3, 5], vec![0.0; 15]))])]);
    let four = empty(4, 2, 2);
    let outside = entry("area", integers(&[8, 8, 40, 0]));
    for (changed, input, says) in [
        (vec![("positive", Value::list(Vec::new()))], "positive", "a list of maps"),
        (vec![("negative", Value::list(vec![Value::from(1i64)]))], "negative", "a list of maps"),
        (vec![("negative", wide)], "negative", "5 numbers wide"),
        (
            vec![("latent_image", Value::map([("samples", channels)]))],
            "latent_image",
            "16 channels",
        ),
        (vec![("positive", outside)], "positive", "outside the latents"),
        (vec![("positive", entry("area", integers(&[8, 8, 0])))], "positive", "list of height"),
        (vec![("positive", entry("area", integers(&[8, 8, -1, 0])))], "positive", "none negative"),
        (vec![("positive", entry("mask", Value::from(1i64)))], "positive", "MASK"),
        (
            vec![("latent_image", four.with("noise_mask", tensor(&[2], vec![0.0; 2])))],
            "latent_image",
            "noise_mask",
        ),
        (
            vec![("latent_image", four.with("batch_index", integers(&[0, 1])))],
            "latent_image",
            "2 places for 4",
        ),
        (
            vec![("latent_image", empty(1, 2, 2).with("batch_index", integers(&[i64::MAX])))],
            "latent_image",
            "batch_index",
        ),
        (
            vec![("latent_image", empty(1, 2, 2).with("batch_index", integers(&[-1])))],
            "latent_image",
            "batch_index",
        ),
        (vec![("positive", entry("control", Value::from(1i64)))], "positive", "list of CONTROL"),
        (vec![("model", believer_of("epsilon", 7).0)], "model", "7 channels"),
        (vec![("model", believer_of("flow", 4).0)], "model", "flow"),
    ] {
        let error = refusal(&changed);
        assert!(error.starts_with(&format!("{input}: ")) && error.contains(says), "{error}");
    }
}

#[test]
fn masks_of_another_batch_are_refused() {
    let inputs = [
        ("pixels", tensor(&[3, 8, 8, 3], vec![0.0; 3 * 192])),
        ("vae", crate::models::reds()),
        ("mask", tensor(&[2, 8, 8], vec![0.0; 128])),
    ];
    let error = run("VAEEncodeForInpaint", &inputs).unwrap_err();
    assert!(error.starts_with("mask: 2 masks"), "{error}");
}
