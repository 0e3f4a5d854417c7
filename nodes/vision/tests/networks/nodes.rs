//! The nodes from a picture on, held against the published ways to the pixels and back.

use std::path::Path;

use kosmograph_vision as _;
use kosmograph_vision::pictures::Levels;
use kosmograph_vision::{captions, depth, masks, masks_by_words};
use node::testing::{Host, this_library};
use node::{Context, Tensor, Value};

use crate::formula::{assert_close, expected, picture, shapes, write};

pub fn run(class: &str, inputs: &[(&str, Value)]) -> Result<Vec<Value>, String> {
    let host = Host::new();
    host.run(&this_library!(), class, inputs).map_err(|error| error.to_string())
}

/// The formula's picture as the boundary has it.
pub fn image(height: usize, width: usize) -> Value {
    let values = picture(height, width).into_iter().map(|level| f32::from(level) / 255.0);
    Tensor::from_f32(&[1, height, width, 3], values.collect()).unwrap().into_value()
}

pub fn path(path: &Path) -> Value {
    Value::string(path.to_str().unwrap())
}

fn values(value: &Value) -> Vec<f32> {
    value.as_tensor().unwrap().to_f32().unwrap().into_owned()
}

/// A file of a case, in a folder that is kept as long as the second is.
pub fn file(case: &str) -> (std::path::PathBuf, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    write(&file, &shapes(case));
    (file, folder)
}

/// Every `down`th row and `across`th column of planes [1, 3, H, W].
fn sampled(planes: &candle_core::Tensor, down: usize, across: usize) -> Vec<f32> {
    let planes = planes.squeeze(0).unwrap().to_vec3::<f32>().unwrap();
    let rows = planes.iter().flat_map(|plane| plane.iter().step_by(down));
    rows.flat_map(|row| row.iter().step_by(across).copied()).collect()
}

#[test]
fn pixels_are_those_of_the_published_processors() {
    let levels = |height, width| Levels { pixels: picture(height, width), width, height };
    for (height, width, name) in [(72, 100, "64"), (40, 61, "128")] {
        let pixels = depth::pixels(14, &levels(height, width)).unwrap();
        assert_close(&format!("depth.pixels_{name}"), &sampled(&pixels, 37, 41));
    }
    assert_close("sam.pixels", &sampled(&masks::pixels(128, &levels(90, 120)).unwrap(), 9, 7));
    let square = masks_by_words::pixels(352, &levels(90, 120)).unwrap();
    assert_close("clipseg_refined.pixels", &sampled(&square, 29, 31));
    assert_close("blip.pixels", &sampled(&captions::pixels(32, &levels(90, 120)).unwrap(), 1, 1));
}

#[test]
fn a_hint_of_depth_is_the_preprocessors() {
    let (file, _folder) = file("depth");
    for (height, width, resolution) in [(72, 100, 64i64), (40, 61, 128)] {
        let inputs: [(&str, Value); 3] = [
            ("image", image(height, width)),
            ("ckpt_name", path(&file)),
            ("resolution", resolution.into()),
        ];
        let hint = run("DepthAnythingV2Preprocessor", &inputs).unwrap().remove(0);
        let shape = hint.as_tensor().unwrap().shape();
        let expected = expected(&format!("depth.hint_{resolution}"));
        assert_eq!(shape[1] * shape[2], expected.len());
        assert_eq!(shape[1].min(shape[2]), resolution as usize);
        // Where a depth is cut off to a level, the last bit decides between two.
        let levels: Vec<f32> = values(&hint).chunks(3).map(|pixel| pixel[0] * 255.0).collect();
        let apart = levels.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        let odd = apart.clone().filter(|apart| *apart > 0.01).count();
        assert!(
            apart.clone().all(|apart| apart < 1.01) && odd * 500 < levels.len(),
            "{odd} odd ones"
        );
        assert!(values(&hint).chunks(3).all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2]));
    }
}

#[test]
fn a_mask_by_a_point_is_the_predictors() {
    let (file, _folder) = file("sam");
    let host = Host::new();
    let model = host.run(&this_library!(), "SAMLoader", &[("model_name", path(&file))]).unwrap();
    let mask = |class: &str, more: &[(&str, Value)]| {
        let mut inputs = vec![("sam_model", model[0].clone()), ("image", image(90, 120))];
        inputs.extend(more.iter().map(|(name, value)| (*name, value.clone())));
        host.run(&this_library!(), class, &inputs).map_err(|error| error.to_string())
    };
    let point = [("coordinates_positive", Value::string("60,45"))];
    let found = mask("SAMMaskByPoints", &point).unwrap().remove(0);
    assert_eq!(found.as_tensor().unwrap().shape(), [1, 90, 120]);
    let expected = expected("sam.mask");
    // A pixel on the very edge may fall to either side.
    let odd = values(&found).iter().zip(&expected).filter(|(a, b)| a != b).count();
    assert!(odd <= 2, "{odd} of {} pixels are others", expected.len());
    // The same picture again, and the same point in the other form.
    let again = [("coordinates_positive", Value::string(r#"[{"x": 60, "y": 45}]"#))];
    assert_eq!(values(&mask("SAMMaskByPoints", &again).unwrap()[0]), values(&found));
    let corner = [("x", 10i64), ("y", 5), ("width", 60), ("height", 500)];
    let corner: Vec<(&str, Value)> = corner.map(|(name, value)| (name, value.into())).into();
    let boxed = values(&mask("SAMMaskByBox", &corner).unwrap()[0]);
    assert!(boxed.contains(&1.0) && boxed.contains(&0.0));
    for (class, more, sentence) in [
        (
            "SAMMaskByPoints",
            vec![("coordinates_positive", Value::string("600,4"))],
            "outside of the picture of 120 × 90",
        ),
        (
            "SAMMaskByPoints",
            vec![("coordinates_positive", Value::string(" "))],
            "there is no point",
        ),
        (
            "SAMMaskByPoints",
            vec![("coordinates_positive", Value::string("a cat"))],
            "\"a cat\" is no point",
        ),
        ("SAMMaskByBox", vec![("x", 120i64.into())], "x: is 120, and the picture ends at 120"),
    ] {
        let error = mask(class, &more).unwrap_err();
        assert!(error.contains(sentence), "{error}");
    }
}

#[test]
fn features_are_dinov2s() {
    let (file, _folder) = file("dinov2");
    let host = Host::new();
    let features =
        host.run(&this_library!(), "DINOv2Loader", &[("model_name", path(&file))]).unwrap();
    let object = features[0].as_object().unwrap();
    let answer = object.call(&host.context(), "features/1", [("image", image(90, 120))]).unwrap();
    assert_close("dinov2.features", &values(&answer.get("features").unwrap()));
    let purge = |cx: &Context, purge| object.memory(cx, purge).unwrap();
    assert!(purge(&host.context(), false) > 0);
    assert_eq!(purge(&host.context(), true), 0);
}

/// As many words as the case has, of which some are no words.
pub fn vocabulary() -> String {
    let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "##s", "cat"];
    let more = (words.len()..38).map(|number| format!("w{number}"));
    words.into_iter().map(str::to_owned).chain(more).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_caption_begins_as_it_is_told_to() {
    let (file, folder) = file("blip");
    std::fs::write(folder.path().join("vocab.txt"), vocabulary()).unwrap();
    let host = Host::new();
    let model =
        host.run(&this_library!(), "BLIPLoader", &[("blip_name", path(folder.path()))]).unwrap();
    let caption = |prefix: &str, longest: i64| {
        let inputs = [
            ("blip_model", model[0].clone()),
            ("image", image(90, 120)),
            ("prefix", Value::string(prefix)),
            ("max_length", longest.into()),
        ];
        let texts = host.run(&this_library!(), "BLIPCaption", &inputs);
        texts.map(|texts| texts[0].as_str().unwrap().to_owned()).map_err(|error| error.to_string())
    };
    // [DEC] a photo [UNK] [ENC] [UNK] [UNK] [UNK] [MASK], as transformers says it, without what is no word.
    assert_eq!(expected("blip.caption"), [38.0, 5.0, 6.0, 1.0, 39.0, 1.0, 1.0, 1.0, 4.0]);
    assert_eq!(caption("A photo", 9).unwrap(), "a photo");
    let error = caption("a photo of cats", 4).unwrap_err();
    assert!(error.contains("begins with 6 tokens and may have 4"), "{error}");
    // The same of the file alone, which lies beside its words.
    run("BLIPLoader", &[("blip_name", path(&file))]).unwrap();
}

#[test]
fn a_mask_by_words_is_the_probabilities_cut_off() {
    let (_file, folder) = file("clipseg_refined");
    let host = Host::new();
    let model = [("model_name", path(folder.path()))];
    let model = host.run(&this_library!(), "CLIPSegLoader", &model).unwrap();
    let mask = |text: &str, threshold: f64| {
        let inputs = [
            ("clipseg_model", model[0].clone()),
            ("image", image(90, 120)),
            ("text", Value::string(text)),
            ("threshold", threshold.into()),
        ];
        let found = host.run(&this_library!(), "CLIPSegMask", &inputs);
        found.map(|found| values(&found[0])).map_err(|error| error.to_string())
    };
    let soft = mask(" a dog ", 0.0).unwrap();
    assert_close("clipseg_refined.probabilities", &soft);
    let hard: Vec<f32> = soft.iter().map(|p| f32::from(u8::from(*p >= 0.5))).collect();
    assert_eq!(mask("a dog", 0.5).unwrap(), hard);
    assert!(hard.contains(&0.0) && hard.contains(&1.0));
    assert_ne!(mask("the red hat on the left", 0.0).unwrap(), soft);
    let error = mask(" ", 0.5).unwrap_err();
    assert!(error.contains("text: it says nothing"), "{error}");
    let error = mask(&"dog ".repeat(100), 0.5).unwrap_err();
    assert!(error.contains("the text has 102 tokens, and CLIP takes 77"), "{error}");
}
