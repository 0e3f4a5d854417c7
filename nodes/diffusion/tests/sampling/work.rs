//! What a sampling asks of its networks, and no more: no negative that guidance leaves out, conditions of one length in one
//! call, and one hint for all steps.

use std::sync::{Arc, Mutex};

use node::interface::{self, ControlCall, marker};
use node::*;

use super::host::{one, tensor};
use super::models::believer_of;
use super::{empty, sample, says, says_in};

/// Rows of each call of the denoiser.
fn rows_of_calls(positive: Value, negative: Value, batch: usize, cfg: f64) -> Vec<usize> {
    let (model, calls) = believer_of("epsilon", 4);
    let more = [("cfg", Value::from(cfg))];
    sample(model, positive, negative, empty(batch, 2, 2), &more);
    calls.lock().unwrap().iter().map(|(shape, _)| shape[0]).collect()
}

#[test]
fn without_guidance_the_negative_is_not_asked_for() {
    assert_eq!(rows_of_calls(says(1.0), says(0.5), 1, 1.0), [1; 4]);
    assert_eq!(rows_of_calls(says(1.0), says(0.5), 3, 1.0), [3; 4]);
}

#[test]
fn conditions_of_one_length_are_one_call() {
    assert_eq!(rows_of_calls(says(1.0), says(0.5), 1, 3.0), [2; 4]);
    assert_eq!(rows_of_calls(says(1.0), says(0.5), 3, 3.0), [6; 4]);
    // And of two lengths two, each with the rows of its own.
    assert_eq!(rows_of_calls(says_in(1.0, 154), says_in(0.5, 77), 1, 3.0), [1; 8]);
}

/// A ControlNet that changes nothing and keeps the hints that it was asked with.
#[derive(Clone, Default)]
struct Watcher(Arc<Mutex<Vec<Tensor>>>);

impl Export for Watcher {
    const TYPE: &'static str = "CONTROL_NET";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Watcher: marker::ControlNet];
}

impl interface::Control for Watcher {
    fn residuals(&self, _cx: &Context, call: &ControlCall) -> Result<Vec<Tensor>> {
        self.0.lock().unwrap().push(call.hint.clone());
        let rows = call.x.shape()[0];
        Ok(vec![Tensor::from_f32(&[rows], vec![0.0; rows])?])
    }
}

/// A ControlNet keeps what it makes of a hint as long as it is asked with the same tensor, so that is what a sampling does.
#[test]
fn a_hint_is_one_tensor_at_every_step() {
    let watcher = Watcher::default();
    let net = Object::new(watcher.clone()).into_value();
    let apply = |conditioning: Value, level: f32| {
        let inputs = [
            ("conditioning", conditioning),
            ("control_net", net.clone()),
            ("image", tensor(&[1, 16, 16, 3], vec![level; 16 * 16 * 3])),
        ];
        one("ControlNetApply", &inputs)
    };
    let distinct = || {
        let mut distinct: Vec<Tensor> = Vec::new();
        let asked = watcher.0.lock().unwrap().split_off(0);
        for hint in &asked {
            if !distinct.iter().any(|known| known.is_same(hint)) {
                distinct.push(hint.clone());
            }
        }
        (asked.len(), distinct.len())
    };
    let more = [("cfg", Value::from(3.0))];
    let (model, _) = believer_of("epsilon", 4);
    sample(model.clone(), apply(says(1.0), 0.5), says(0.0), empty(1, 2, 2), &more);
    assert_eq!(distinct(), (4, 1));
    // The same network twice, by turns.
    let twice = apply(apply(says(1.0), 0.5), 0.25);
    sample(model, twice, says(0.0), empty(1, 2, 2), &more);
    assert_eq!(distinct(), (8, 2));
}
