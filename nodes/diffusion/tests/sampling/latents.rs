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

/// What RebatchLatents makes of these, by its samples' shapes.
fn rebatched(latents: &[Value], size: i64) -> Vec<Value> {
    let list = Value::list(latents.to_vec());
    let size = Value::list(vec![size.into()]);
    one("RebatchLatents", &[("latents", list), ("batch_size", size)]).as_list().unwrap()
}

fn shapes(latents: &[Value]) -> Vec<Vec<usize>> {
    let shape = |latent: &Value| latent.get("samples").unwrap().as_tensor().unwrap().shape();
    latents.iter().map(shape).collect()
}

#[test]
fn batches_are_cut_anew() {
    let numbered = |count: usize, width: usize, first: usize| {
        let values = (first..first + count * width).map(|i| i as f32).collect();
        latent(&[count, 1, 1, width], values)
    };
    let made = rebatched(&[numbered(3, 2, 0), numbered(2, 2, 6), numbered(1, 1, 50)], 2);
    assert_eq!(shapes(&made), [[2, 1, 1, 2], [2, 1, 1, 2], [1, 1, 1, 2], [1, 1, 1, 1]]);
    assert_eq!(samples(&made[1]), [4.0, 5.0, 6.0, 7.0]);
    assert_eq!(samples(&made[3]), [50.0]);
    // Counted through all of them, so that each keeps the noise that it would have in one batch.
    let all: Vec<_> = made.iter().map(|latent| places(latent).unwrap()).collect();
    assert_eq!(all, [vec![0, 1], vec![2, 3], vec![4], vec![5]]);
    assert!(made.iter().all(|latent| latent.get("noise_mask").is_none()));
    let own = numbered(2, 2, 0)
        .with("batch_index", Value::list(vec![Value::from(7i64), Value::from(3i64)]));
    assert_eq!(places(&rebatched(&[own], 1)[1]), Some(vec![3]));
}

#[test]
fn masks_go_with_their_latents() {
    let two = || latent(&[2, 1, 1, 1], vec![1.0, 2.0]);
    // Of one mask for two latents both have it; a whole one is none; one of two by two pixels grows as torch
    // scales it, in 16ths of a pixel: 0, 0, 1/8, 3/8 ... between 0 and 1.
    let none = two().with("noise_mask", tensor(&[1, 8, 8], vec![1.0; 64]));
    let half = two().with("noise_mask", tensor(&[1, 1, 2], vec![0.0, 1.0]));
    let made = rebatched(&[none, half], 3);
    assert_eq!(shapes(&made), [[3, 1, 1, 1], [1, 1, 1, 1]]);
    let mask = |latent: &Value| latent.get("noise_mask").unwrap();
    let masks = super::host::values(&mask(&made[0]));
    assert_eq!(mask(&made[0]).as_tensor().unwrap().shape(), [3, 8, 8]);
    assert!(masks[..128].iter().all(|share| *share == 1.0));
    let row = [0.0, 0.0, 0.125, 0.375, 0.625, 0.875, 1.0, 1.0];
    close(&masks[128..136], &row, 1e-6);
    close(&super::host::values(&mask(&made[1]))[56..], &row, 1e-6);
    let whole = two().with("noise_mask", tensor(&[2, 8, 8], vec![1.0; 128]));
    assert!(rebatched(&[whole], 1).iter().all(|latent| latent.get("noise_mask").is_none()));
}

#[test]
fn what_is_no_list_of_latents_is_refused() {
    let refused = |latents: Value, part: &str| {
        let told = run("RebatchLatents", &[("latents", latents)]).err().unwrap();
        assert!(told.starts_with("latents: ") && told.contains(part), "{told}");
    };
    let good = latent(&[1, 1, 1, 1], vec![0.0]);
    refused(good.clone(), "a list is wanted");
    refused(Value::list(vec![]), "the list is empty");
    refused(Value::list(vec![good.clone(), Value::from(3i64)]), "element 2 of 2: LATENT");
    refused(Value::list(vec![good.clone(), Value::NONE]), "element 2 of 2: it is nothing");
    let few = latent(&[2, 1, 1, 1], vec![0.0; 2])
        .with("batch_index", Value::list(vec![Value::from(1i64)]));
    refused(Value::list(vec![good, few]), "element 2 of 2: its batch_index names 1");
}
