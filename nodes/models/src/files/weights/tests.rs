use super::*;
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};

fn file_of(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> Vec<u8> {
    let views: Vec<(&str, TensorView)> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            (*name, TensorView::new(*dtype, shape.to_vec(), bytes).expect("a valid view"))
        })
        .collect();
    safetensors::serialize(views, None).expect("serializes")
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn example() -> Vec<u8> {
    let half: Vec<u8> = [0x3c00u16, 0xc000].iter().flat_map(|v| v.to_le_bytes()).collect();
    file_of(&[
        ("block.weight", Dtype::F32, &[2, 2], f32s(&[1., 2., 3., 4.])),
        ("block.bias", Dtype::F16, &[2], half),
        ("position_ids", Dtype::I64, &[1], 7i64.to_le_bytes().to_vec()),
    ])
}

fn open(bytes: &[u8]) -> Result<Weights> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("w.safetensors");
    std::fs::write(&path, bytes).expect("written");
    Weights::open(&path, &Device::Cpu)
}

fn message<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("no error"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn reads_f32_and_f16_under_a_prefix() -> Result<()> {
    let weights = open(&example())?;
    let block = weights.sub("block");
    assert_eq!(block.get("weight", (2, 2))?.to_vec2::<f32>()?, [[1., 2.], [3., 4.]]);
    assert_eq!(block.get("bias", 2)?.to_vec1::<f32>()?, [1., -2.]);
    assert_eq!(block.get_kept("bias", 2)?.dtype(), DType::F16);
    assert_eq!(block.get_kept("weight", (2, 2))?.dtype(), DType::F32);
    assert!(block.has("bias") && weights.has("block") && !weights.has("bias"));
    assert_eq!(block.names(), ["bias", "weight"]);
    weights.finish(&["position_ids"])?;
    Ok(())
}

#[test]
fn names_what_is_wrong_with_a_tensor() -> Result<()> {
    let weights = open(&example())?;
    let text = message(weights.get("block.wieght", (2, 2)));
    assert!(text.contains("`block.wieght`") && text.contains("is `block.weight`"), "{text}");
    let text = message(weights.get("block.weight", (2, 3)));
    assert!(text.contains("[2, 2]") && text.contains("[2, 3]"), "{text}");
    let text = message(weights.get("position_ids", 1));
    assert!(text.contains("position_ids") && text.contains("I64"), "{text}");
    weights.get("block.weight", (2, 2))?;
    let text = message(weights.finish(&["position_*"]));
    assert!(text.contains("`block.bias`") && !text.contains("position_ids"), "{text}");
    Ok(())
}

#[test]
fn names_the_tensor_that_is_not_finite() -> Result<()> {
    for bad in [f32::NAN, f32::INFINITY] {
        let weights = open(&file_of(&[("w", Dtype::F32, &[3], f32s(&[0., bad, 0.]))]))?;
        let text = message(weights.get("w", 3));
        assert!(text.contains("`w`") && text.contains("number 1"), "{text}");
    }
    for (dtype, bits) in [(Dtype::F16, 0x7c00u16), (Dtype::BF16, 0xff80)] {
        let halves = [0, 0, bits].iter().flat_map(|half| half.to_le_bytes()).collect();
        let weights = open(&file_of(&[("w", dtype, &[3], halves)]))?;
        let text = message(weights.get_kept("w", 3));
        assert!(
            text.contains("`w`") && text.contains("number 2 is") && text.contains("inf"),
            "{text}"
        );
    }
    Ok(())
}

#[test]
fn truncated_and_contradictory_files_are_refused() {
    let bytes = example();
    for length in 0..bytes.len() {
        assert!(open(&bytes[..length]).is_err(), "{length} bytes of {}", bytes.len());
    }
    let with_header = |header: &str, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0; data]);
        bytes
    };
    let overlapping = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    assert!(message(open(&with_header(overlapping, 12))).contains("overlaps"));
    let outside = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    assert!(message(open(&with_header(outside, 4))).contains("truncated"));
    let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#;
    assert!(open(&with_header(huge, 8)).is_err());
    assert!(message(open(&u64::MAX.to_le_bytes())).contains("100 MB"));
    // A header of 100 MB is announced where there is none: nothing of that size is made.
    assert!(open(&[&100_000_000u64.to_le_bytes()[..], &[b'{'; 64]].concat()).is_err());
    for offsets in ["[-8,0]", "[0,-8]", "[8,0]", "[9223372036854775808,9223372036854775816]"] {
        let header = format!(r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}}}"#);
        assert!(open(&with_header(&header, 8)).is_err(), "{offsets}");
    }
    let twice = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#;
    assert!(open(&with_header(twice, 16)).is_err());
}

#[test]
fn shards_are_one_set_of_weights() -> Result<()> {
    let dir = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(dir.path().join(name), bytes).expect("written");
    };
    write("a.safetensors", &file_of(&[("a", Dtype::F32, &[1], f32s(&[1.]))]));
    write("b.safetensors", &file_of(&[("b", Dtype::F32, &[1], f32s(&[2.]))]));
    let index = "model.safetensors.index.json";
    write(index, br#"{"weight_map":{"a":"a.safetensors","b":"b.safetensors"}}"#);
    let weights = Weights::open(dir.path(), &Device::Cpu)?;
    assert_eq!(weights.get("b", 1)?.to_vec1::<f32>()?, [2.]);
    assert_eq!(weights.names(), ["a", "b"]);
    assert!(message(weights.get("b", 2)).contains("b.safetensors"));
    assert!(message(weights.get("c", 2)).contains("has no tensor `c`"));
    write(index, br#"{"weight_map":{"a":"b.safetensors"}}"#);
    assert!(message(Weights::open(dir.path(), &Device::Cpu)).contains("`a` is not in"));
    write(index, br#"{"weight_map":{"a":"../a.safetensors"}}"#);
    assert!(message(Weights::open(dir.path(), &Device::Cpu)).contains("not a file beside it"));
    Ok(())
}

#[test]
fn a_check_looks_at_the_header_alone() -> Result<()> {
    let nan = file_of(&[("a.w", Dtype::F16, &[2], vec![0xff; 4]), ("b", Dtype::I64, &[0], vec![])]);
    let weights = open(&nan)?;
    let load = |name: &'static str, length: usize| {
        move |weights: &Weights| {
            let tensor = weights.sub("a").get(name, length)?;
            assert_eq!(tensor.to_vec1::<f32>()?, [0.0; 2]);
            Ok(())
        }
    };
    assert_eq!(weights.check(load("w", 2), &["b"])?, 8);
    assert!(message(weights.check(load("w", 3), &["b"])).contains("[3]"));
    assert!(message(weights.check(load("v", 2), &["b"])).contains("`a.v`"));
    assert!(message(weights.check(load("w", 2), &[])).contains("`b`"));
    assert!(message(weights.check(|weights| weights.get("b", 0), &["*"])).contains("I64"));
    assert!(weights.loaded_bytes() == 0 && weights.get("a.w", 2).is_err());
    Ok(())
}

#[test]
fn kept_tensors_are_those_that_were_loaded() -> Result<()> {
    let weights = open(&example())?.sub("block");
    let load = |weights: &Weights| weights.get_kept("weight", (2, 2));
    let (tensor, kept) = weights.load_kept(load)?;
    assert!(kept.len() == 1 && kept["weight"].tensor()?.id() == tensor.id());
    let nan = Tensor::new(&[[f32::NAN, 0.0], [0.0, 0.0]], &Device::Cpu)?;
    let again = Weights::from_kept("kept", kept.clone(), &Device::Cpu);
    assert_eq!(load(&again)?.id(), tensor.id());
    let replaced = HashMap::from([("weight".to_owned(), nan.clone().into())]);
    assert_eq!(load(&Weights::from_kept("kept", replaced, &Device::Cpu))?.id(), nan.id());
    Ok(())
}

#[test]
fn a_recording_notes_names_and_shapes() -> Result<()> {
    let weights = Weights::recording();
    assert_eq!(weights.sub("a.b").get("c", (4, 5))?.dims(), [4, 5]);
    assert_eq!(weights.recorded(), BTreeMap::from([("a.b.c".to_owned(), vec![4, 5])]));
    Ok(())
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = open(&bytes);
    }

    #[test]
    fn a_damaged_byte_is_an_error_or_other_values(at in 0usize..400, with in any::<u8>()) {
        let mut bytes = example();
        let at = at % bytes.len();
        bytes[at] = with;
        if let Ok(weights) = open(&bytes) {
            for name in weights.names() {
                if let Some(shape) = weights.shape(&name) {
                    let _ = weights.get(&name, shape);
                }
            }
        }
    }
}

#[test]
fn patterns() {
    assert!(matches("a.*.scale", "a.3.b.scale") && matches("*", ""));
    assert!(!matches("a.*.scale", "a.3.scales") && !matches("a", "ab"));
}
