//! Where, when and how much entries count.

use node::Value;

use crate::host::{one, run, samples, tensor, values};
use crate::models::{believer, believer_of};
use crate::{close, empty, sample, says, says_in};

const SIZE: usize = 16;

/// The first plane of what a sampling ends at.
fn plane(positive: Value, negative: Value, cfg: f64) -> Vec<f32> {
    let more = [("cfg", Value::from(cfg))];
    let latent = sample(believer(), positive, negative, empty(1, SIZE, SIZE), &more);
    samples(&latent)[..SIZE * SIZE].to_vec()
}

fn grid(f: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    (0..SIZE * SIZE).map(|i| f(i / SIZE, i % SIZE)).collect()
}

fn area(conditioning: Value, [x, y, width, height]: [i64; 4], strength: f64) -> Value {
    let inputs = [
        ("conditioning", conditioning),
        ("x", x.into()),
        ("y", y.into()),
        ("width", width.into()),
        ("height", height.into()),
        ("strength", strength.into()),
    ];
    one("ConditioningSetArea", &inputs)
}

fn combine(a: Value, b: Value) -> Value {
    one("ConditioningCombine", &[("conditioning_1", a), ("conditioning_2", b)])
}

#[test]
fn guidance_goes_past_the_positive() {
    close(&plane(says(2.0), says(1.0), 3.0), &grid(|_, _| 4.0), 1e-4);
    close(&plane(says(2.0), says(1.0), 1.0), &grid(|_, _| 2.0), 1e-4);
}

#[test]
fn contexts_of_different_lengths_go_together() {
    close(&plane(says_in(2.0, 154), says_in(1.0, 77), 3.0), &grid(|_, _| 4.0), 1e-4);
}

#[test]
fn several_entries_are_averaged_by_their_strength() {
    let strong = one(
        "ConditioningSetAreaStrength",
        &[("conditioning", says(5.0)), ("strength", 3.0.into())],
    );
    close(&plane(combine(says(1.0), strong), says(0.0), 1.0), &grid(|_, _| 4.0), 1e-4);
}

#[test]
fn an_area_rises_over_its_inner_edges() {
    // 8 latent pixels from (4, 0): x rises and falls over 8 / 4 = 2 of them; the upper edge is the picture's.
    let part = area(says(9.0), [32, 0, 64, 64], 2.0);
    let edge = |i: usize, last: usize| {
        if i < 2 {
            (i + 1) as f32 / 2.0
        } else if last < 2 {
            (last + 1) as f32 / 2.0
        } else {
            1.0
        }
    };
    let weight = |y: usize, x: usize| match (4..12).contains(&x) && y < 8 {
        true => 2.0 * edge(x - 4, 11 - x) * if y >= 6 { (8 - y) as f32 / 2.0 } else { 1.0 },
        false => 0.0,
    };
    let expected = grid(|y, x| (1.0 + 9.0 * weight(y, x)) / (1.0 + weight(y, x)));
    close(&plane(combine(says(1.0), part), says(0.0), 1.0), &expected, 1e-4);
}

#[test]
fn where_nothing_counts_the_picture_is_zero() {
    let part = area(says(9.0), [64, 64, 64, 64], 1.0);
    let expected = grid(|y, x| if x >= 8 && y >= 8 { 9.0 } else { 0.0 });
    close(&plane(part.clone(), says(0.0), 1.0), &expected, 1e-4);
    for prediction in ["v_prediction", "sample"] {
        let model = believer_of(prediction, 4).0;
        let latent = sample(model, part.clone(), says(0.0), empty(1, SIZE, SIZE), &[]);
        close(&samples(&latent)[..SIZE * SIZE], &expected, 1e-4);
    }
}

#[test]
fn an_area_is_guided_away_from_the_negative_within_it() {
    // The negative is asked for the area too: there its two entries say the same.
    let part = area(says(9.0), [0, 0, 64, 128], 1.0);
    let (model, calls) = believer_of("epsilon", 4);
    let positive = combine(says(1.0), part);
    let more = [("cfg", Value::from(2.0)), ("steps", Value::from(1i64))];
    sample(model, positive, says(0.5), empty(1, SIZE, SIZE), &more);
    let mut shapes: Vec<_> = calls.lock().unwrap().iter().map(|call| call.0).collect();
    shapes.sort();
    assert_eq!(shapes, [[2, 4, SIZE, 8], [2, 4, SIZE, SIZE]]);
}

#[test]
fn an_area_in_fractions() {
    let part = one(
        "ConditioningSetAreaPercentage",
        &[("conditioning", says(9.0)), ("width", 0.5.into()), ("x", 0.5.into())],
    );
    let expected = grid(|_, x| if x >= 8 { 9.0 } else { 0.0 });
    close(&plane(part, says(0.0), 1.0), &expected, 1e-4);
}

#[test]
fn a_mask_weighs_each_pixel() {
    // Twice the latents' size: bilinear takes the mean of four.
    let mask: Vec<f32> = (0..32 * 32).map(|i| if i % 32 < 15 { 1.0 } else { 0.0 }).collect();
    for bounds in ["default", "mask bounds"] {
        let masked = one(
            "ConditioningSetMask",
            &[
                ("conditioning", says(9.0)),
                ("mask", tensor(&[1, 32, 32], mask.clone())),
                ("strength", 2.0.into()),
                ("set_cond_area", Value::string(bounds)),
            ],
        );
        let weight = |x: usize| {
            2.0 * match x {
                0..7 => 1.0,
                7 => 0.5,
                _ => 0.0,
            }
        };
        let expected = grid(|_, x| (1.0 + 9.0 * weight(x)) / (1.0 + weight(x)));
        close(&plane(combine(says(1.0), masked), says(0.0), 1.0), &expected, 1e-4);
    }
}

#[test]
fn a_range_counts_in_its_part_of_the_schedule() {
    let range = |start: f64, end: f64, number: f32| {
        let inputs = [("conditioning", says(number)), ("start", start.into()), ("end", end.into())];
        one("ConditioningSetTimestepRange", &inputs)
    };
    // The last step decides what a believer ends at.
    let early = combine(range(0.0, 0.5, 3.0), range(0.5001, 1.0, 7.0));
    close(&plane(early, says(0.0), 1.0), &grid(|_, _| 7.0), 1e-4);
    let late = combine(range(0.5001, 1.0, 3.0), range(0.0, 0.5, 7.0));
    close(&plane(late, says(0.0), 1.0), &grid(|_, _| 3.0), 1e-4);
}

#[test]
fn an_average_of_two_encoders_conditions() {
    let to = tensor(&[1, 3, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let from = tensor(&[1, 2, 2], vec![10.0, 20.0, 30.0, 40.0]);
    let entry = |context: Value, pooled: Option<Value>| {
        let mut pairs = vec![("context", context)];
        pairs.extend(pooled.map(|pooled| ("pooled", pooled)));
        Value::list(vec![Value::map(pairs)])
    };
    let pooled = tensor(&[1, 2], vec![4.0, 8.0]);
    let average = |to: Value, from: Value| {
        let inputs = [
            ("conditioning_to", to),
            ("conditioning_from", from),
            ("conditioning_to_strength", 0.75.into()),
        ];
        one("ConditioningAverage", &inputs).as_list().unwrap().remove(0)
    };
    // The shorter is filled up with zeros.
    let mixed = average(entry(to.clone(), None), entry(from.clone(), Some(pooled.clone())));
    close(&values(&mixed.get("context").unwrap()), &[3.25, 6.5, 9.75, 13.0, 3.75, 4.5], 1e-6);
    close(&values(&mixed.get("pooled").unwrap()), &[4.0, 8.0], 1e-6);
    // The longer is cut.
    let mixed = average(entry(from.clone(), Some(pooled)), entry(to.clone(), None));
    close(&values(&mixed.get("context").unwrap()), &[7.75, 15.5, 23.25, 31.0], 1e-6);
    close(&values(&mixed.get("pooled").unwrap()), &[4.0, 8.0], 1e-6);
    let joined = one(
        "ConditioningConcat",
        &[("conditioning_to", entry(to.clone(), None)), ("conditioning_from", entry(from, None))],
    );
    let joined = joined.as_list().unwrap()[0].get("context").unwrap();
    assert_eq!(joined.as_tensor().unwrap().shape(), [1, 5, 2]);
    assert_eq!(values(&joined)[6..], [10.0, 20.0, 30.0, 40.0]);
    let zero = one("ConditioningZeroOut", &[("conditioning", entry(to, None))]);
    assert_eq!(values(&zero.as_list().unwrap()[0].get("context").unwrap()), [0.0; 6]);
}

#[test]
fn conditions_of_different_families_are_not_mixed() {
    let wide = Value::list(vec![Value::map([("context", tensor(&[1, 3, 5], vec![0.0; 15]))])]);
    let inputs = [("conditioning_to", says(1.0)), ("conditioning_from", wide)];
    let error = run("ConditioningAverage", &inputs).unwrap_err();
    assert!(
        error.starts_with("conditioning_from: ") && error.contains("5 numbers wide"),
        "{error}"
    );
}
