use super::super::Layer;
use super::*;
use candle_core::Device;
use proptest::prelude::*;

fn tensor(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).expect("a tensor")
}

fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu).expect("a tensor")
}

fn layer(factors: &[(Factor, Tensor)], alpha: Option<f64>) -> Layer {
    Layer::new("a.layer", factors.iter().cloned().collect(), alpha).expect("a layer")
}

fn problem(factors: &[(Factor, Tensor)]) -> String {
    let problem = Layer::new("a.layer", factors.iter().cloned().collect(), None);
    let problem = problem.expect_err("no error").to_string();
    assert!(problem.contains("a.layer"), "{problem}");
    problem
}

fn apply(layer: &Layer, weight: &Tensor, strength: f64) -> Vec<f32> {
    let change = layer.weight().expect("a change of the weight");
    assert!(change.fits(weight.dims()), "{:?}, {}", weight.dims(), change.wanted());
    let changed = change.apply(weight, strength).expect("a changed weight");
    assert_eq!(changed.dims(), weight.dims());
    changed.flatten_all().expect("a row").to_vec1().expect("numbers")
}

#[test]
fn glora_has_two_writings() {
    // W (2 × 3); a1 (3 × 1), a2 (1 × 3), b1 (2 × 1), b2 (1 × 3).
    let weight = tensor(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let (a1, a2) = (tensor(&[3, 1], &[1.0, 0.0, 1.0]), tensor(&[1, 3], &[1.0, 2.0, 0.0]));
    let (b1, b2) = (tensor(&[2, 1], &[1.0, -1.0]), tensor(&[1, 3], &[0.0, 1.0, 1.0]));
    let new = [(Factor::A1, &a1), (Factor::A2, &a2), (Factor::B1, &b1), (Factor::B2, &b2)];
    // W a1 = (4, 10); times a2, and b1 b2 = (0, 1, 1; 0, −1, −1); times alpha / rank.
    let want = [3.0, 6.5, 3.5, 9.0, 14.5, 5.5];
    let new = layer(&new.map(|(factor, tensor)| (factor, tensor.clone())), Some(0.5));
    assert_eq!(apply(&new, &weight, 1.0), want);
    // The old one has each pair the other way round.
    let old = [(Factor::A1, a2), (Factor::A2, a1), (Factor::B1, b2), (Factor::B2, b1)];
    assert_eq!(apply(&layer(&old, Some(0.5)), &weight, 1.0), want);
    // At every place of a kernel the same.
    let kernel = weight.reshape((2, 3, 1)).and_then(|w| Tensor::cat(&[&w, &w], 2));
    let kernel = kernel.and_then(|w| w.reshape((2, 3, 1, 2))).expect("a kernel");
    let change = GLora::read(&Factors {
        module: "a",
        tensors: &BTreeMap::from([
            (Factor::A1, tensor(&[3, 1], &[1.0, 0.0, 1.0])),
            (Factor::A2, tensor(&[1, 3], &[1.0, 2.0, 0.0])),
            (Factor::B1, tensor(&[2, 1], &[0.0, 0.0])),
            (Factor::B2, tensor(&[1, 6], &[0.0; 6])),
        ]),
        alpha: None,
    });
    let change = change.expect("a layer").change(&kernel).expect("a change");
    let change = change.flatten_all().and_then(|c| c.to_vec1::<f32>()).expect("numbers");
    assert_eq!(change, [4.0, 4.0, 8.0, 8.0, 0.0, 0.0, 10.0, 10.0, 20.0, 20.0, 0.0, 0.0]);
}

#[test]
fn a_weight_may_be_set_or_multiplied() {
    let weight = tensor(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let set = layer(&[(Factor::SetWeight, tensor(&[2, 2, 1, 1], &[9.0, 8.0, 7.0, 6.0]))], None);
    assert_eq!(apply(&set, &weight, 0.25), [9.0, 8.0, 7.0, 6.0]);
    let on = |side| {
        let vector = tensor(&[2], &[1.0, -1.0]);
        layer(&[(Factor::Ia3, vector), (Factor::OnInput, tensor(&[], &[side]))], None)
    };
    assert_eq!(apply(&on(0.0), &weight, 0.5), [1.5, 3.0, 1.5, 2.0]);
    assert_eq!(apply(&on(1.0), &weight, 0.5), [1.5, 1.0, 4.5, 2.0]);
}

#[test]
fn rotations_turn_blocks_of_outputs() {
    let weight = tensor(&[4, 1], &[5.0, 0.0, 0.0, 5.0]);
    // Q = B − Bᵀ = ((0, 1/2), (−1/2, 0)): a turn with sine 4/5, (3/5, 4/5; −4/5, 3/5).
    let block = [0.0, 0.25, -0.25, 0.0];
    let still = [0.0; 4];
    let blocks = |blocks: &[[f32; 4]]| tensor(&[blocks.len(), 2, 2], &blocks.concat());
    let oft = layer(&[(Factor::OftBlocks, blocks(&[block, still]))], None);
    let near = |found: Vec<f32>, want: &[f32]| {
        assert!(found.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?}, {want:?}");
    };
    // Rᵀ of the first block.
    near(apply(&oft, &weight, 1.0), &[3.0, 4.0, 0.0, 5.0]);
    // The strength counts twice.
    near(apply(&oft, &weight, 0.5), &[4.5, 1.0, 0.0, 5.0]);
    // Two stages: the first mixes neighbours, the second pairs at a distance of two; R and not Rᵀ.
    let stages = blocks(&[block, still, still, still]).reshape((2, 2, 2, 2)).expect("stages");
    let boft = layer(&[(Factor::OftBlocks, stages)], None);
    near(apply(&boft, &weight, 1.0), &[3.0, -4.0, 0.0, 5.0]);
    let second = blocks(&[still, still, block, still]).reshape((2, 2, 2, 2)).expect("stages");
    let rescale = tensor(&[4, 1], &[2.0, 1.0, 1.0, 1.0]);
    let boft = layer(&[(Factor::OftBlocks, second), (Factor::Rescale, rescale)], None);
    near(apply(&boft, &weight, 1.0), &[6.0, 0.0, -4.0, 5.0]);
}

#[test]
fn dora_of_a_row_and_of_columns() {
    let weight = tensor(&[2, 2], &[3.0, 0.0, 4.0, 1.0]);
    let nothing =
        || [(Factor::Up, tensor(&[2, 1], &[0.0; 2])), (Factor::Down, tensor(&[1, 2], &[0.0; 2]))];
    let with =
        |factor, lengths: Tensor| layer(&[&nothing()[..], &[(factor, lengths)]].concat(), None);
    let near = |layer: &Layer, strength, want: [f32; 4]| {
        let found = apply(layer, &weight, strength);
        assert!(found.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?}, {want:?}");
    };
    near(&with(Factor::DoraScale, tensor(&[1, 2], &[10.0, 1.0])), 1.0, [6.0, 0.0, 8.0, 1.0]);
    near(&with(Factor::DoraScale, tensor(&[1, 2], &[10.0, 1.0])), 0.5, [4.5, 0.0, 6.0, 1.0]);
    near(&with(Factor::DoraScale, tensor(&[2, 1], &[6.0, 0.0])), 1.0, [6.0, 0.0, 0.0, 0.0]);
    near(&with(Factor::Magnitude, tensor(&[2], &[6.0, 0.0])), 1.0, [6.0, 0.0, 0.0, 0.0]);
    assert!(!with(Factor::DoraScale, tensor(&[1, 3], &[1.0; 3])).weight().unwrap().fits(&[2, 2]));
    assert!(!with(Factor::DoraScale, tensor(&[3, 1], &[1.0; 3])).weight().unwrap().fits(&[2, 2]));
}

#[test]
fn a_missing_or_misshapen_factor_is_named() {
    use Factor as F;
    let ones = |shape: &[usize]| tensor(shape, &vec![1.0; shape.iter().product()]);
    for (factors, part) in [
        (vec![(F::HadaW1A, ones(&[2, 2])), (F::HadaW1B, ones(&[2, 2]))], "hada_w2"),
        (vec![(F::HadaT1, ones(&[1, 1, 1, 1]))], "hada_w1"),
        (vec![(F::LokrW1, ones(&[2, 2]))], "lokr_w2"),
        (vec![(F::LokrW1, ones(&[2, 2])), (F::LokrW2A, ones(&[2, 1]))], "lokr_w2_b"),
        (vec![(F::LokrW1, ones(&[4])), (F::LokrW2, ones(&[2, 2]))], "two factors"),
        (vec![(F::A1, ones(&[2, 1])), (F::A2, ones(&[1, 2]))], "b1"),
        (vec![(F::OftBlocks, ones(&[2, 2, 3]))], "[2, 2, 3]"),
        (vec![(F::OftBlocks, ones(&[3, 1, 2, 2]))], "stages"),
        (vec![(F::OftBlocks, ones(&[70, 1, 2, 2]))], "stages"),
        (vec![(F::OnInput, ones(&[]))], "ia3"),
        (vec![(F::DoraScale, ones(&[2, 1]))], "down"),
        (vec![(F::Diff, ones(&[2, 0]))], "rank 0"),
    ] {
        let problem = problem(&factors);
        assert!(problem.contains(part), "{problem}, {part}");
    }
}

fn shapes() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(0usize..5, 0..5)
}

proptest! {
    /// Any factors of any shapes are a layer or an error, and a layer that says it fits a weight does.
    #[test]
    fn any_factors_are_read_or_refused(
        of in proptest::collection::vec((0usize..31, shapes()), 1..6),
        weight in proptest::collection::vec(1usize..5, 1..5),
        alpha in proptest::option::of(-2.0f64..2.0),
    ) {
        let factor = |(index, shape): &(usize, Vec<usize>)| {
            (super::super::factor::FACTORS[*index].0, random(shape))
        };
        let factors: BTreeMap<Factor, Tensor> = of.iter().map(factor).collect();
        if let Ok(layer) = Layer::new("a", factors, alpha) {
            let weight = random(&weight);
            for change in [layer.weight(), layer.bias()].into_iter().flatten() {
                let _ = change.wanted();
                if change.fits(weight.dims()) {
                    let changed = change.apply(&weight, 0.5);
                    let changed = changed.expect("a weight");
                    prop_assert_eq!(changed.dims(), weight.dims());
                }
            }
        }
    }

    /// Factors of one kind in shapes that nearly fit.
    #[test]
    fn factors_of_a_kind_fit_or_are_refused(
        kind in 0usize..6,
        (output, input, rank, other) in (1usize..5, 1usize..5, 1usize..3, 1usize..3),
        kernel in prop_oneof![Just(vec![]), Just(vec![1, 1]), Just(vec![3, 2])],
        lengths in 0usize..3,
    ) {
        use Factor as F;
        let with = |shape: &[usize]| random(&[shape, &kernel[..]].concat());
        let mut factors = match kind {
            0 => vec![(F::Up, random(&[output, rank])), (F::Down, with(&[rank, input]))],
            1 => vec![
                (F::HadaW1A, random(&[output, rank])), (F::HadaW1B, with(&[rank, input])),
                (F::HadaW2A, random(&[output, other])), (F::HadaW2B, with(&[other, input])),
            ],
            2 => vec![(F::LokrW1, random(&[rank, other])), (F::LokrW2, with(&[output, input]))],
            3 => vec![
                (F::A1, random(&[input, rank])), (F::A2, random(&[rank, input])),
                (F::B1, random(&[output, rank])),
                (F::B2, random(&[rank, input * kernel.iter().product::<usize>()])),
            ],
            4 => vec![(F::OftBlocks, random(&[output, rank, rank]))],
            _ => vec![(F::Diff, with(&[output, input]))],
        };
        match lengths {
            0 => factors.push((F::DoraScale, with(&[1, input]).ones_like().unwrap())),
            1 => factors.push((F::Magnitude, random(&[output]))),
            _ => {}
        }
        let layer = Layer::new("a", factors.into_iter().collect(), None).expect("a layer");
        let change = layer.weight().expect("a change");
        for (output, input) in [(output, input), (output * rank, input * other)] {
            let weight = with(&[output, input]);
            if change.fits(weight.dims()) {
                let changed = change.apply(&weight, 0.5);
                let changed = changed.expect("a weight");
                    prop_assert_eq!(changed.dims(), weight.dims());
            }
        }
    }
}
