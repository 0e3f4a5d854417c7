//! Arithmetic of latents. The numbers of LatentInterpolate are numpy's.

use node::Value;

use super::close;
use super::host::{one, run, samples, tensor};

fn latent(shape: &[usize], values: Vec<f32>) -> Value {
    Value::map([("samples", tensor(shape, values))])
}

/// [2, 4, 1, 2] and [1, 4, 1, 2].
fn two() -> [(&'static str, Value); 2] {
    let first = vec![
        -1.25, 0.5, -0.5, 1.25, 0.25, -0.75, 1.0, 0.0, -1.0, 0.75, -0.25, -1.25, 0.5, -0.5, 1.25,
        0.25,
    ];
    let second = vec![-1.5, -0.25, 1.0, -1.0, 0.25, 1.5, -0.5, 0.75];
    [("samples1", latent(&[2, 4, 1, 2], first)), ("samples2", latent(&[1, 4, 1, 2], second))]
}

#[test]
fn sums_and_means() {
    let sum = samples(&one("LatentAdd", &two()));
    assert_eq!((sum[0], sum[1], sum[8], sum[15]), (-2.75, 0.25, -2.5, 1.0));
    let difference = samples(&one("LatentSubtract", &two()));
    assert_eq!((difference[0], difference[9]), (0.25, 1.0));
    let [first, second] = two();
    let share = ("blend_factor", Value::from(0.25));
    let blended = samples(&one("LatentBlend", &[first.clone(), second.clone(), share]));
    assert_eq!((blended[0], blended[8]), (-1.4375, -1.375));
    let multiple = [("samples", first.1.clone()), ("multiplier", Value::from(-2.0))];
    assert_eq!(samples(&one("LatentMultiply", &multiple))[..2], [2.5, -1.0]);
    let between =
        samples(&one("LatentInterpolate", &[first, second, ("ratio", Value::from(0.25))]));
    let wanted = [
        -1.67449, -0.046828, 0.694477, -0.590258, 0.292264, 1.489806, -0.109948, 0.946376,
        -1.619791, 0.055997, 0.785404, -1.309794, 0.37704, 1.107578, -0.031323, 0.734234,
    ];
    close(&between, &wanted, 2e-6);
}

#[test]
fn the_second_comes_to_the_firsts_size() {
    let small = latent(&[1, 4, 1, 1], vec![1.0, 2.0, 3.0, 4.0]);
    let inputs = [("samples1", latent(&[1, 4, 2, 2], vec![0.0; 16])), ("samples2", small)];
    let grown = [[1.0; 4], [2.0; 4], [3.0; 4], [4.0; 4]].concat();
    assert_eq!(samples(&one("LatentAdd", &inputs)), grown);
    let sixteen = latent(&[1, 16, 1, 1], vec![0.0; 16]);
    let other = run("LatentAdd", &[inputs[0].clone(), ("samples2", sixteen)]).err().unwrap();
    assert!(other.contains("samples2") && other.contains("16 channels"), "{other}");
}

fn places(latent: &Value) -> Option<Vec<i64>> {
    let list = latent.get("batch_index").filter(|list| !list.is_none())?;
    list.as_list()?.iter().map(Value::as_i64).collect()
}

#[test]
fn batches_are_joined_and_keep_their_noise() {
    let joined = one("LatentBatch", &two());
    assert_eq!(samples(&joined).len(), 24);
    assert_eq!(places(&joined), Some(vec![0, 1, 0]));
    let fixed = one("LatentBatchSeedBehavior", &[("samples", joined.clone())]);
    assert_eq!(places(&fixed), Some(vec![0, 0, 0]));
    let random = ("seed_behavior", Value::string("random"));
    assert_eq!(places(&one("LatentBatchSeedBehavior", &[("samples", joined), random])), None);
}

#[test]
fn latents_stand_beside_each_other_and_are_cut() {
    let numbered = |shape: &[usize], first: usize| {
        let count: usize = shape.iter().product();
        latent(shape, (first..first + count).map(|i| i as f32).collect())
    };
    let (two, one_more) = (numbered(&[1, 2, 1, 2], 0), numbered(&[1, 2, 1, 1], 10));
    let dim = |name: &str| ("dim", Value::string(name));
    let pair = |name: &str| {
        let inputs = [("samples1", two.clone()), ("samples2", one_more.clone()), dim(name)];
        run("LatentConcat", &inputs)
    };
    assert_eq!(samples(&pair("x").unwrap()[0]), [0.0, 1.0, 10.0, 2.0, 3.0, 11.0]);
    assert_eq!(samples(&pair("-x").unwrap()[0]), [10.0, 0.0, 1.0, 11.0, 2.0, 3.0]);
    assert!(pair("y").err().unwrap().contains("other sides differ"));
    let all = numbered(&[1, 2, 2, 3], 0);
    let cut = |name: &str, index: i64, amount: i64| {
        let where_ = [("index", Value::from(index)), ("amount", Value::from(amount))];
        samples(&one(
            "LatentCut",
            &[("samples", all.clone()), dim(name), where_[0].clone(), where_[1].clone()],
        ))
    };
    assert_eq!(cut("x", 1, 1), [1.0, 4.0, 7.0, 10.0]);
    assert_eq!(cut("x", -2, 9), [1.0, 2.0, 4.0, 5.0, 7.0, 8.0, 10.0, 11.0]);
    assert_eq!(cut("y", 1, 5), [3.0, 4.0, 5.0, 9.0, 10.0, 11.0]);
    assert_eq!(cut("t", 7, 1), [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]);
}
