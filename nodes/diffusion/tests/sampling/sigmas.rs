//! Noise levels as values. The numbers are numpy's, of the formulas as their papers have them.

use node::{Object, Value};

use super::close;
use super::host::{one, run, tensor, values};
use super::models::{Believer, alphas_cumprod};

fn model() -> Value {
    let believer = Believer { prediction: "epsilon", in_channels: 4, calls: Default::default() };
    Object::new(believer).into_value()
}

fn levels(class: &str, inputs: &[(&str, Value)]) -> Vec<f32> {
    values(&one(class, inputs))
}

fn near(found: &[f32], wanted: &[f32]) {
    assert_eq!(found.len(), wanted.len(), "{found:?}");
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((found - wanted).abs() <= 2e-6 * wanted.max(0.1), "{found} is not {wanted}");
    }
}

fn steps(count: i64) -> (&'static str, Value) {
    ("steps", Value::from(count))
}

#[test]
fn formulas() {
    let five = [steps(5)];
    let karras = levels("KarrasScheduler", &five);
    near(&karras, &[14.61464, 4.796542, 1.274105, 0.2479515, 0.0291675, 0.0]);
    let flatter = levels("KarrasScheduler", &[steps(5), ("rho", Value::from(3.0))]);
    near(&flatter, &[14.61464, 6.974849, 2.607363, 0.5971473, 0.0291675, 0.0]);
    let exponential = levels("ExponentialScheduler", &five);
    near(&exponential, &[14.61464, 3.088986, 0.6528955, 0.1379976, 0.0291675, 0.0]);
    let squared = levels("PolyexponentialScheduler", &[steps(5), ("rho", Value::from(2.0))]);
    near(&squared, &[14.61464, 0.9629123, 0.1379976, 0.04301721, 0.0291675, 0.0]);
    let laplace = levels("LaplaceScheduler", &[steps(5), ("mu", Value::from(0.2))]);
    near(&laplace, &[14.61464, 1.727307, 1.221403, 0.8636708, 0.0291675]);
    let vp = levels("VPScheduler", &five);
    near(&vp, &[152.167, 17.04912, 3.422245, 0.9575265, 0.01048599, 0.0]);
}

#[test]
fn levels_of_a_family() {
    let ten = levels("AlignYourStepsScheduler", &[]);
    assert_eq!((ten.len(), ten[1], ten[10]), (11, 6.474_576, 0.0));
    near(
        &levels("AlignYourStepsScheduler", &[steps(4)]),
        &[14.61464, 3.226626, 1.394381, 0.5093886, 0.0],
    );
    let half = levels("AlignYourStepsScheduler", &[steps(12), ("denoise", Value::from(0.5))]);
    near(&half, &[1.394381, 1.025395, 0.7431215, 0.5093886, 0.2883346, 0.1151371, 0.0]);
}

#[test]
fn levels_of_a_model() {
    let turbo = levels("SDTurboScheduler", &[("model", model()), steps(3)]);
    near(&turbo, &[14.61464, 8.302803, 5.087763, 0.0]);
    let half = [("model", model()), steps(2), ("denoise", Value::from(0.5))];
    near(&levels("SDTurboScheduler", &half), &[1.612886, 1.160578, 0.0]);
    let normal = levels("BasicScheduler", &[("model", model()), steps(4)]);
    near(&normal, &[14.61464, 2.918307, 0.932358, 0.02916716, 0.0]);
    // The last two of four, and the end.
    let half = [("model", model()), steps(2), ("denoise", Value::from(0.5))];
    near(&levels("BasicScheduler", &half), &[0.932358, 0.02916716, 0.0]);
    let none = [("model", model()), ("denoise", Value::from(0.0))];
    assert!(levels("BasicScheduler", &none).is_empty());

    let at = |percent: f64, actual: bool| {
        let percent = ("sampling_percent", Value::from(percent));
        let actual = ("return_actual_sigma", Value::from(actual));
        one("SamplingPercentToSigma", &[("model", model()), percent, actual]).as_f64().unwrap()
    };
    let sigma = |t: usize| ((1.0 - alphas_cumprod()[t]) / alphas_cumprod()[t]).sqrt();
    assert!((at(0.3, false) - 3.325_069_149).abs() < 1e-5);
    assert!((at(0.0, true) - sigma(999)).abs() < 1e-4 && at(0.0, false) > 1e8);
    assert!((at(1.0, true) - sigma(0)).abs() < 1e-7 && at(1.0, false) == 0.0);
}

#[test]
fn levels_are_cut_turned_and_filled_in() {
    let given = || ("sigmas", tensor(&[5], vec![16.0, 8.0, 4.0, 2.0, 0.0]));
    let both = |class: &str, input: (&str, Value)| -> [Vec<f32>; 2] {
        let parts = run(class, &[given(), input]).unwrap();
        [values(&parts[0]), values(&parts[1])]
    };
    let [high, low] = both("SplitSigmas", ("step", Value::from(2i64)));
    assert_eq!((high, low), (vec![16.0, 8.0, 4.0], vec![4.0, 2.0, 0.0]));
    let [high, low] = both("SplitSigmas", ("step", Value::from(100i64)));
    assert_eq!((high.len(), low.len()), (5, 0));
    let [high, low] = both("SplitSigmasDenoise", ("denoise", Value::from(0.75)));
    assert_eq!((high, low), (vec![16.0, 8.0], vec![8.0, 4.0, 2.0, 0.0]));
    let [high, low] = both("SplitSigmasDenoise", ("denoise", Value::from(0.0)));
    assert_eq!((high, low), (vec![], vec![0.0]));
    assert_eq!(levels("FlipSigmas", &[given()]), [0.0001, 2.0, 4.0, 8.0, 16.0]);
    let first = levels("SetFirstSigma", &[given(), ("sigma", Value::from(20.0))]);
    assert_eq!(first, [20.0, 8.0, 4.0, 2.0, 0.0]);
    let more = [given(), ("end_at_sigma", Value::from(8.0)), ("spacing", Value::string("sine"))];
    let middle =
        |from: f32, to: f32| from + (to - from) * (1.0 - std::f32::consts::FRAC_PI_4.cos());
    close(
        &levels("ExtendIntermediateSigmas", &more),
        &[16.0, middle(16.0, 8.0), 8.0, middle(8.0, 4.0), 4.0, 2.0, 0.0],
        1e-6,
    );
}

#[test]
fn what_is_no_noise_level_is_a_sentence() {
    let refused = |class: &str, inputs: &[(&str, Value)]| run(class, inputs).err().unwrap();
    let nan = [("sigmas", tensor(&[2], vec![1.0, f32::NAN]))];
    assert!(refused("FlipSigmas", &nan).contains("NaN"));
    let planes = [("sigmas", tensor(&[1, 2], vec![1.0, 0.0]))];
    assert!(refused("FlipSigmas", &planes).contains("one axis"));
    let none = [("sigmas", tensor(&[0], vec![]))];
    assert!(refused("SetFirstSigma", &none).contains("no noise levels"));
    let turned = [("sigma_max", Value::from(0.01)), ("sigma_min", Value::from(1.0))];
    assert!(refused("ExponentialScheduler", &turned).contains("below sigma_min"));
    assert!(
        refused("KarrasScheduler", &[("sigma_min", Value::from(0.0))]).contains("no logarithm")
    );
    assert!(
        refused("VPScheduler", &[("beta_d", Value::from(5000.0))]).contains("past all numbers")
    );
}
