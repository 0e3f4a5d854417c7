//! The nodes against what numpy, Pillow and Python computed from the definitions: data/make_classes.py, which made data/classes.json.

use kosmograph_image as _;
use node::testing::{Host, Library, this_library};
use node::{Error, Result, Tensor, Value};
use serde_json::{Value as Json, json};

/// make_classes.py's picture without symmetry.
fn picture(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product();
    let level = |i: usize| ((i * i * 7 + i * (31 + 2 * seed) + seed) % 256) as f32 / 255.0;
    Tensor::from_f32(shape, (0..count).map(level).collect()).unwrap()
}

fn sizes(json: &Json) -> Vec<usize> {
    json.as_array().unwrap().iter().map(|side| side.as_u64().unwrap() as usize).collect()
}

fn input(json: &Json) -> Value {
    let seed = json["seed"].as_u64().unwrap_or(0) as usize;
    match json {
        Json::String(text) => Value::string(text.as_str()),
        Json::Bool(truth) => (*truth).into(),
        Json::Number(number) => match number.as_i64() {
            Some(number) => number.into(),
            None => number.as_f64().unwrap().into(),
        },
        Json::Object(kind) if kind.contains_key("latent") => {
            Value::map([("samples", picture(&sizes(&json["latent"]), seed).into_value())])
        }
        Json::Object(kind) if kind.contains_key("mask") => {
            picture(&sizes(&json["mask"]), seed).into_value()
        }
        _ => picture(&sizes(&json["image"]), seed).into_value(),
    }
}

fn run(class: &str, inputs: &Json) -> (Host, Result<Vec<Value>>) {
    let library: Library = this_library!();
    let inputs = inputs.as_object().unwrap();
    let inputs: Vec<(&str, Value)> =
        inputs.iter().map(|(name, json)| (name.as_str(), input(json))).collect();
    let folder = std::env::temp_dir();
    let host = Host::new().with("temp_directory", folder.to_str().unwrap());
    let made = host.run(&library, class, &inputs);
    (host, made)
}

/// Whether a value is what the file says of it, and how not.
fn differs(value: &Value, expected: &Json) -> Option<String> {
    let same = match expected {
        Json::String(text) => value.as_str() == Some(text),
        Json::Bool(truth) => value.as_bool() == Some(*truth),
        Json::Number(number) => {
            value.as_i64().map(|number| number as f64).or(value.as_f64()) == number.as_f64()
        }
        _ => {
            let tensor = value.get("samples").unwrap_or_else(|| value.clone());
            let tensor = tensor.as_tensor().unwrap();
            if tensor.shape() != sizes(&expected["shape"]) {
                return Some(format!("{:?} and not {}", tensor.shape(), expected["shape"]));
            }
            let expected: Vec<f64> = expected["values"]
                .as_array()
                .unwrap()
                .iter()
                .map(|number| number.as_f64().unwrap())
                .collect();
            let values = tensor.to_f32().unwrap();
            let largest = expected.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
            let off = values.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs());
            let off = off.fold(0.0, f64::max);
            return (off > 2e-5 * largest).then(|| format!("off by {off} of {largest}"));
        }
    };
    (!same).then(|| format!("{value:?} and not {expected}"))
}

#[test]
fn what_numpy_and_python_make() {
    let cases: Json = serde_json::from_str(include_str!("data/classes.json")).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() > 150, "{}", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let (class, inputs) = (case["class"].as_str().unwrap(), &case["inputs"]);
        let expected = case["outputs"].as_array().unwrap();
        match run(class, inputs).1 {
            Err(error) => wrong.push(format!("{class} {inputs}: {error}")),
            Ok(made) => {
                assert!(made.len() >= expected.len(), "{class}");
                for (value, expected) in made.iter().zip(expected) {
                    let told = differs(value, expected);
                    wrong.extend(told.map(|how| format!("{class} {inputs}: {how}")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.len(), wrong.join("\n"));
}

/// What goes wrong, and with which input.
fn failed(class: &str, inputs: Json) -> (String, String) {
    match run(class, &inputs).1 {
        Err(Error::Failed { input, sentence }) => (input.unwrap_or_default(), sentence),
        other => panic!("{class}: {other:?}"),
    }
}

#[test]
fn what_does_not_fit_is_told() {
    let image = |shape: [usize; 4]| json!({ "image": shape });
    let of = |class, inputs, input: &str, part: &str| {
        let (at, sentence) = failed(class, inputs);
        assert!(at == input && sentence.contains(part), "{class}: {at}: {sentence}");
    };
    let latents =
        json!({"destination": {"latent": [1, 4, 2, 2]}, "source": {"latent": [1, 16, 2, 2]}});
    of("LatentCompositeMasked", latents, "source", "16 channels");
    let pictures = json!({"image1": image([2, 2, 2, 3]), "image2": image([3, 2, 2, 3])});
    of("ImageBlend", pictures, "image2", "3 pictures cannot be blended with 2");
    let pictures = json!({"source": image([1, 2, 2, 4]), "source_alpha": {"mask": [1, 2, 2]},
        "destination": image([1, 2, 2, 3]), "destination_alpha": {"mask": [1, 2, 2]}});
    of("PorterDuffImageComposite", pictures, "source", "4 channels");
    let planes =
        json!({"Y": image([1, 2, 2, 3]), "U": image([1, 2, 3, 3]), "V": image([1, 2, 2, 3])});
    of("ImageYUVToRGB", planes, "U", "3 x 2 pixels");
    let small = json!({"image": image([1, 2, 2, 3]), "width": 2, "height": 2, "multiple_of": 64});
    of("ImageResize+", small, "multiple_of", "no side of 64 pixels");
    of(
        "ImageFlip",
        json!({"image": image([1, 2, 2, 3]), "flip_method": "z"}),
        "flip_method",
        "not one of",
    );
    let clear = json!({"image": image([1, 2, 2, 4])});
    of("ImageQuantize", clear, "image", "has 4; SplitImageWithAlpha");
    of("ImageQuantize", json!({"image": image([1, 2, 2, 3]), "colors": 257}), "colors", "outside");
    for (pattern, part) in [("(", "no pattern"), ("[", "no pattern"), ("a**", "no pattern")] {
        let inputs = json!({"string": "a", "regex_pattern": pattern});
        of("RegexMatch", inputs, "regex_pattern", part);
    }
    let runaway = json!({"string": "a".repeat(40) + "b", "regex_pattern": "(a|a)*\\1c"});
    of("RegexMatch", runaway, "", "was given up");
    let replaced = |to: &str| json!({"string": "a", "regex_pattern": "(a)", "replace": to});
    of("RegexReplace", replaced("\\2"), "", "names the group 2");
    of("RegexReplace", replaced("\\g<name>"), "", "names the group name");
    of("RegexReplace", replaced("\\q"), "", "means nothing");
    of("RegexReplace", replaced("a\\"), "", "at its end");
    of("LoadImageFromUrl", json!({"image": "https://example.org/a.png"}), "image", "LoadImage");
    // NaN is neither larger nor smaller.
    let library: Library = this_library!();
    let nan = Tensor::from_f32(&[1, 1, 1, 3], vec![f32::NAN; 3]).unwrap().into_value();
    let told = Host::new().run(&library, "Morphology", &[("image", nan)]).unwrap_err();
    assert!(told.to_string().contains("NaN"), "{told}");
}

#[test]
fn what_would_not_fit_into_memory_is_not_begun() {
    let long = "a".repeat(1 << 20);
    let inputs = json!({"string": long, "find": "", "replace": long});
    let (_, sentence) = failed("StringReplace", inputs);
    assert!(sentence.starts_with("the text would take 1.10 TB"), "{sentence}");
    let inputs = json!({"string": long, "regex_pattern": "", "replace": long});
    let (_, sentence) = failed("RegexReplace", inputs);
    assert!(sentence.starts_with("the text would take"), "{sentence}");
    let small = || json!({"image": [1, 2, 2, 3]});
    let inputs = json!({"image": small(), "mode": "resize", "supersample": "true", "resize_width": 48000, "resize_height": 48000});
    let (_, sentence) = failed("Image Resize", inputs);
    assert!(sentence.contains(" would take "), "{sentence}");
    let inputs = json!({"image": {"image": [32, 512, 512, 3]}, "amount": 4096});
    let (_, sentence) = failed("RepeatImageBatch", inputs);
    assert!(sentence.contains(" would take "), "{sentence}");
}

#[test]
fn texts_are_told_and_hints_are_those_of_their_own_nodes() {
    let (host, made) = run("PreviewAny", &json!({"source": {"image": [1, 2, 3, 3]}}));
    assert_eq!(made.unwrap()[0].as_str(), Some("Tensor[1, 2, 3, 3]"));
    assert_eq!(host.outputs(), [json!({"text": ["Tensor[1, 2, 3, 3]"]})]);
    let (host, _) = run("ShowText|pysssss", &json!({"text": "Käse"}));
    assert_eq!(host.outputs(), [json!({"text": ["Käse"]})]);

    let image = || json!({"image": [1, 40, 60, 3]});
    let values = |made: Result<Vec<Value>>| {
        made.unwrap()[0].as_tensor().unwrap().to_f32().unwrap().into_owned()
    };
    for class in [
        "CannyEdgePreprocessor",
        "BinaryPreprocessor",
        "ScribblePreprocessor",
        "Scribble_XDoG_Preprocessor",
        "TilePreprocessor",
    ] {
        let inputs = json!({"image": image(), "preprocessor": class, "resolution": 64});
        let own = json!({"image": image(), "resolution": 64});
        assert_eq!(
            values(run("AIO_Preprocessor", &inputs).1),
            values(run(class, &own).1),
            "{class}"
        );
    }
    let untouched = values(run("AIO_Preprocessor", &json!({"image": image()})).1);
    assert_eq!(untouched, picture(&[1, 40, 60, 3], 0).to_vec().unwrap());
    let (at, sentence) =
        failed("AIO_Preprocessor", json!({"image": image(), "preprocessor": "DWPreprocessor"}));
    assert!(at == "preprocessor" && sentence.contains("not one of"), "{sentence}");
}

#[test]
fn masks_are_shown_as_grey_pictures() {
    for class in ["MaskPreview", "MaskPreview+"] {
        let folder = tempfile::tempdir().unwrap();
        let library: Library = this_library!();
        let host = Host::new().with("temp_directory", folder.path().to_str().unwrap());
        let mask = picture(&[2, 3, 4], 0).into_value();
        host.run(&library, class, &[("mask", mask)]).unwrap();
        let told = host.outputs();
        let shown = told.iter().rfind(|told| told["making"].is_null()).unwrap();
        assert_eq!(shown["images"][0]["type"], "temp");
        let file = folder.path().join(shown["images"][0]["filename"].as_str().unwrap());
        let loaded = [("image", Value::string(file.to_str().unwrap()))];
        let loaded = host.run(&library, "LoadImageOutput", &loaded).unwrap();
        let expected: Vec<f32> =
            picture(&[2, 3, 4], 0).to_vec().unwrap()[12..].iter().flat_map(|v| [*v; 3]).collect();
        assert_eq!(loaded[0].as_tensor().unwrap().to_vec().unwrap(), expected, "{class}");
    }
}

#[test]
fn batches_of_another_size_are_a_list() {
    let library: Library = this_library!();
    let rebatch = |images: Vec<Value>, size: i64| {
        let size = Value::list(vec![size.into()]);
        let inputs = [("images", Value::list(images)), ("batch_size", size)];
        Host::new().run(&library, "RebatchImages", &inputs).map(|mut made| made.remove(0))
    };
    let batch = |count, seed| picture(&[count, 2, 2, 3], seed).into_value();
    let made = rebatch(vec![batch(3, 1), batch(2, 2)], 2).unwrap().as_list().unwrap();
    let shapes: Vec<usize> =
        made.iter().map(|batch| batch.as_tensor().unwrap().shape()[0]).collect();
    assert_eq!(shapes, [2, 2, 1]);
    let all: Vec<f32> =
        made.iter().flat_map(|batch| batch.as_tensor().unwrap().to_vec().unwrap()).collect();
    let given = [picture(&[3, 2, 2, 3], 1), picture(&[2, 2, 2, 3], 2)];
    assert_eq!(all, given.map(|batch| batch.to_vec().unwrap()).concat());
    let other = || picture(&[1, 2, 3, 3], 0).into_value();
    let told = rebatch(vec![batch(1, 0), other()], 2).unwrap_err().to_string();
    assert!(
        told.starts_with("images: pictures of 2 x 2 pixels") && told.contains("3 x 2"),
        "{told}"
    );
    assert_eq!(rebatch(vec![batch(1, 0), other()], 1).unwrap().as_list().unwrap().len(), 2);
    let two = picture(&[1, 2, 2, 2], 0).into_value();
    let told = rebatch(vec![batch(1, 0), two], 2).unwrap_err().to_string();
    assert!(told.starts_with("images: element 2 of 2: an IMAGE has 1, 3 or 4"), "{told}");
    for (images, part) in [(vec![], "empty"), (vec![Value::string("a")], "element 1 of 1: IMAGE")] {
        let told = rebatch(images, 1).unwrap_err().to_string();
        assert!(told.starts_with("images: ") && told.contains(part), "{told}");
    }
    let one = [("images", batch(1, 0))];
    let told = Host::new().run(&library, "RebatchImages", &one).unwrap_err().to_string();
    assert!(told.contains("images: a list is wanted, but a tensor"), "{told}");
}
