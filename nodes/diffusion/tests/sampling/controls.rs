//! ControlNets: several at once, strength, range, guess mode, and whom they cover.

use node::Value;

use crate::host::{one, run, samples, tensor};
use crate::models::{believer, believer_of, pusher, reader, speller};
use crate::{close, empty, sample, says};

/// A hint whose every number is `level`.
fn hint(level: f32) -> Value {
    tensor(&[1, 16, 16, 3], vec![level; 16 * 16 * 3])
}

fn apply(conditioning: Value, level: f32, strength: f64) -> Value {
    let inputs = [
        ("conditioning", conditioning),
        ("control_net", pusher()),
        ("image", hint(level)),
        ("strength", strength.into()),
    ];
    one("ControlNetApply", &inputs)
}

fn advanced(positive: Value, negative: Value, level: f32, range: (f64, f64)) -> (Value, Value) {
    let inputs = [
        ("positive", positive),
        ("negative", negative),
        ("control_net", pusher()),
        ("image", hint(level)),
        ("start_percent", range.0.into()),
        ("end_percent", range.1.into()),
    ];
    let mut both = run("ControlNetApplyAdvanced", &inputs).unwrap();
    let negative = both.remove(1);
    (both.remove(0), negative)
}

fn ends_at(positive: Value, negative: Value, cfg: f64) -> f32 {
    let more = [("cfg", Value::from(cfg))];
    samples(&sample(believer(), positive, negative, empty(1, 2, 2), &more))[0]
}

#[test]
fn several_act_together() {
    let positive = apply(apply(says(1.0), 0.5, 1.0), 0.25, 2.0);
    close(&[ends_at(positive, says(0.0), 1.0)], &[2.0], 1e-4);
}

#[test]
fn strength_nothing_is_none() {
    let (model, calls) = believer_of("epsilon", 4);
    sample(model, apply(says(1.0), 0.5, 0.0), says(0.0), empty(1, 2, 2), &[]);
    assert!(calls.lock().unwrap().iter().all(|(_, residual)| residual == &[0.0]));
}

#[test]
fn the_negative_is_covered_unless_it_has_its_own() {
    // Both halves are pushed by 0.5: 0.5 + 3 · (1.5 - 0.5).
    close(&[ends_at(apply(says(1.0), 0.5, 1.0), says(0.0), 3.0)], &[3.5], 1e-4);
    // The negative by 0.25 of its own: 0.25 + 3 · (1.5 - 0.25).
    let own = apply(says(0.0), 0.25, 1.0);
    close(&[ends_at(apply(says(1.0), 0.5, 1.0), own, 3.0)], &[4.0], 1e-4);
    // Applied to both by name, and the positive alone taken: 0 + 3 · (1.5 - 0).
    let (positive, _) = advanced(says(1.0), says(0.0), 0.5, (0.0, 1.0));
    close(&[ends_at(positive, says(0.0), 3.0)], &[4.5], 1e-4);
}

#[test]
fn a_range_begins_and_ends() {
    let (positive, negative) = advanced(says(1.0), says(0.0), 0.5, (0.0, 0.5));
    let (model, calls) = believer_of("epsilon", 4);
    sample(model, positive, negative, empty(1, 2, 2), &[("steps", Value::from(10i64))]);
    let acted: Vec<bool> =
        calls.lock().unwrap().iter().map(|(_, residual)| residual[0] != 0.0).collect();
    // The timesteps are 999 · (1 - i/9): the first five are at least 499.5.
    assert_eq!(acted, [true, true, true, true, true, false, false, false, false, false]);
}

/// A start or an end that lies on the noise level of a step, all but to the bit: the range, the number of
/// steps, and how many of them it holds for as ComfyUI decides it in f32: the first ones, or the last
/// where it starts late.
const ON_THE_LEVEL: [((f64, f64), usize, usize); 4] =
    [((0.0, 0.6), 16, 9), ((0.0, 0.6), 26, 15), ((0.55, 1.0), 21, 9), ((0.16, 1.0), 26, 21)];

#[test]
fn a_boundary_on_a_steps_own_level_decides_as_comfyui_does() {
    for (range, steps, acting) in ON_THE_LEVEL {
        let (positive, negative) = advanced(says(1.0), says(0.0), 0.5, range);
        let (model, calls) = believer_of("epsilon", 4);
        let more = [("steps", Value::from(steps as i64))];
        sample(model, positive, negative, empty(1, 2, 2), &more);
        let acted: Vec<bool> =
            calls.lock().unwrap().iter().map(|(_, residual)| residual[0] != 0.0).collect();
        let first = if range.0 == 0.0 { 0 } else { steps - acting };
        let expected: Vec<bool> =
            (0..steps).map(|step| (first..first + acting).contains(&step)).collect();
        assert_eq!(acted, expected, "{range:?} of {steps} steps");
    }
    // A conditioning's own range, by its number of calls: where it does not count there is none.
    for ((start, end), steps, acting) in ON_THE_LEVEL {
        let inputs = [("conditioning", says(1.0)), ("start", start.into()), ("end", end.into())];
        let positive = one("ConditioningSetTimestepRange", &inputs);
        let (model, calls) = believer_of("epsilon", 4);
        let more = [("steps", Value::from(steps as i64))];
        sample(model, positive, says(0.0), empty(1, 2, 2), &more);
        assert_eq!(calls.lock().unwrap().len(), acting, "{start} to {end} of {steps} steps");
    }
}

#[test]
fn two_hints_serve_three_pictures() {
    let pixels = [0.0f32, 1.0].iter().flat_map(|level| [*level; 16 * 16 * 3]).collect();
    let inputs = [
        ("conditioning", says(1.0)),
        ("control_net", pusher()),
        ("image", tensor(&[2, 16, 16, 3], pixels)),
    ];
    let positive = one("ControlNetApply", &inputs);
    let latent = sample(believer(), positive, says(1.0), empty(3, 2, 2), &[]);
    let firsts: Vec<f32> = samples(&latent).chunks(16).map(|item| item[0]).collect();
    close(&firsts, &[1.0, 2.0, 1.0], 1e-4);
}

#[test]
fn guess_mode_sees_the_conditional_half() {
    let control = |guess: bool, previous: Value| {
        let inputs = [
            ("control_net", pusher()),
            ("image", hint(0.1)),
            ("guess", guess.into()),
            ("previous", previous),
        ];
        one("ControlNet", &inputs)
    };
    let steered = |control: Value| {
        let inputs = [
            ("model", believer()),
            ("positive", says(1.0)),
            ("negative", says(0.0)),
            ("latent", empty(1, 2, 2)),
            ("steps", Value::from(3i64)),
            ("cfg", Value::from(2.0)),
            ("sampler", Value::string("euler")),
            ("control", control),
        ];
        samples(&one("UNetSample", &inputs))[0]
    };
    // 0.1 + 2 · (1.1 - 0.1), and 0 + 2 · (1 + 10 · 0.1 - 0).
    close(&[steered(control(false, Value::NONE))], &[2.1], 1e-4);
    close(&[steered(control(true, Value::NONE))], &[4.0], 1e-4);
    // One of each: 0.1 + 2 · (1 + 1 + 0.1 - 0.1).
    close(&[steered(control(true, control(false, Value::NONE)))], &[4.1], 1e-4);
}

#[test]
fn a_hint_for_each_picture() {
    let levels = [0.0f32, 0.5, 1.0];
    let pixels = levels.iter().flat_map(|level| [*level; 16 * 16 * 3]).collect();
    let inputs = [
        ("conditioning", says(1.0)),
        ("control_net", pusher()),
        ("image", tensor(&[3, 16, 16, 3], pixels)),
    ];
    let positive = one("ControlNetApply", &inputs);
    let more = [("cfg", Value::from(2.0))];
    let latent = sample(believer(), positive, says(1.0), empty(3, 2, 2), &more);
    let firsts: Vec<f32> = samples(&latent).chunks(16).map(|item| item[0]).collect();
    close(&firsts, &[1.0, 1.5, 2.0], 1e-4);
}

#[test]
fn a_control_may_read_a_text_of_its_own() {
    let with_reader = |conditioning: Value| {
        let inputs = [
            ("conditioning", conditioning),
            ("control_net", reader()),
            ("image", hint(0.0)),
            ("strength", 0.5.into()),
        ];
        one("ControlNetApply", &inputs)
    };
    // It reads the picture's text: 1 and half of it.
    close(&[ends_at(with_reader(says(1.0)), says(0.0), 1.0)], &[1.5], 1e-4);
    let own = |conditioning: Value, text: &str| {
        let text = ("text", Value::string(text));
        let inputs = [("clip", speller()), ("conditioning", conditioning), text];
        one("CLIPTextEncodeControlnet", &inputs)
    };
    // A text of four letters: 1 and two; the order of the two nodes is all one.
    close(&[ends_at(with_reader(own(says(1.0), "four")), says(0.0), 1.0)], &[3.0], 1e-4);
    close(&[ends_at(own(with_reader(says(1.0)), "four"), says(0.0), 1.0)], &[3.0], 1e-4);
    // The negative is covered by the control, and reads its own: 0 + 0 + 3 · (3 - 0).
    close(&[ends_at(with_reader(own(says(1.0), "four")), says(0.0), 3.0)], &[9.0], 1e-4);
}
