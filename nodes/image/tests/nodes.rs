//! The nodes as a host calls them: through the library's one symbol, with a small host made here.

use std::fs;
use std::path::Path;

use kosmograph_image as _;
use node::abi;
use node::testing::{Host, Library, this_library};
use node::{Error, Result, Tensor, Value};
use serde_json::Value as Json;

/// A host that writes to `folder`.
fn host(folder: &Path) -> Host {
    let folder = folder.to_str().unwrap();
    Host::new()
        .with("output_directory", folder)
        .with("temp_directory", folder)
        .with("prompt", r#"{"1": {"text": "Käse 🧀"}}"#)
}

/// Runs a node with its inputs in order; those that are left out have their defaults.
fn run(host: &Host, class: &str, inputs: Vec<Value>) -> Result<Vec<Value>> {
    let library: Library = this_library!();
    let specs = library.node(class)["inputs"].as_array().unwrap();
    assert!(inputs.len() <= specs.len());
    let names = specs.iter().map(|spec| spec["name"].as_str().unwrap());
    let inputs: Vec<(&str, Value)> = names.zip(inputs).collect();
    host.run(&library, class, &inputs)
}

/// Which files were told.
fn saved(host: &Host) -> Vec<Json> {
    let (making, saved): (Vec<_>, Vec<_>) =
        host.outputs().into_iter().partition(|told| told.get("making").is_some());
    for told in making {
        // The file has no name yet.
        assert!(told["making"]["filename"].as_str().unwrap().starts_with('.'));
    }
    saved
}

/// What went wrong, and with which input.
fn failed(result: Result<Vec<Value>>) -> (String, String) {
    match result {
        Err(Error::Failed { input, sentence }) => (input.unwrap_or_default(), sentence),
        other => panic!("{other:?} is no failure"),
    }
}

fn picture(shape: [usize; 4]) -> Value {
    let count: usize = shape.iter().product();
    let level = |i: usize| ((i * i * 7 + i * 31) % 256) as f32 / 255.0;
    Tensor::from_f32(&shape, (0..count).map(level).collect()).unwrap().into_value()
}

fn values(value: &Value) -> (Vec<usize>, Vec<f32>) {
    let tensor = value.as_tensor().unwrap();
    (tensor.shape(), tensor.to_f32().unwrap().into_owned())
}

fn string(text: &str) -> Value {
    Value::string(text)
}

#[test]
fn inputs_are_comfyuis() {
    let library = this_library!();
    let scale = library.node("ImageScale");
    let names: Vec<&str> = scale["inputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|input| input["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["image", "upscale_method", "width", "height", "crop"]);
    assert_eq!(scale["inputs"][1]["type"], "COMBO");
    assert_eq!(scale["inputs"][2]["max"], 16384);
}

#[test]
fn a_saved_picture_is_loaded_again() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path());
    let image = picture([2, 5, 7, 3]);
    let passed = run(&host, "SaveImage", vec![image.clone(), string("a/b%width%")]).unwrap();
    assert_eq!(values(&passed[0]), values(&image), "the pictures are passed on");
    let outputs = saved(&host);
    assert_eq!(outputs.len(), 2, "each picture is told by itself");
    let saved = &outputs[1]["images"][0];
    assert_eq!(saved["filename"], "b7_00002_.png");
    assert_eq!((&saved["subfolder"], &saved["type"]), (&"a".into(), &"output".into()));

    let file = folder.path().join("a/b7_00002_.png");
    let loaded = run(&host, "LoadImage", vec![string(file.to_str().unwrap())]).unwrap();
    let (shape, pixels) = values(&loaded[0]);
    assert_eq!((shape, &pixels[..]), (vec![1, 5, 7, 3], &values(&image).1[105..]));
    assert_eq!(values(&loaded[1]), (vec![1, 64, 64], vec![0.0; 64 * 64]));

    let reader = png::Decoder::new(std::io::BufReader::new(fs::File::open(&file).unwrap()));
    let reader = reader.read_info().unwrap();
    let texts = &reader.info().uncompressed_latin1_text;
    assert_eq!(texts.len(), 1, "there is no workflow");
    assert_eq!(texts[0].keyword, "prompt");
    assert_eq!(texts[0].text, r#"{"1": {"text": "K\u00e4se \ud83e\uddc0"}}"#);
}

#[test]
fn a_preview_goes_to_the_temporary_folder() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path());
    run(&host, "PreviewImage", vec![picture([1, 4, 4, 4])]).unwrap();
    let shown = saved(&host)[0]["images"][0].clone();
    assert_eq!(shown["type"], "temp");
    let name = shown["filename"].as_str().unwrap();
    assert!(name.starts_with("ComfyUI_temp_") && name.ends_with("_00001_.png"), "{name}");
    assert!(folder.path().join(name).is_file());
}

#[test]
fn nothing_is_saved_outside_or_after_a_stop() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path());
    let inputs = vec![picture([1, 4, 4, 3]), string("../a")];
    assert!(failed(run(&host, "SaveImage", inputs)).1.contains("leads out of"));
    let host = host.stop_at(0);
    let stopped = run(&host, "SaveImage", vec![picture([1, 4, 4, 3]), string("a")]);
    assert!(matches!(stopped, Err(Error::Cancelled)));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_was_saved_before_a_stop_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path()).stop_at(2);
    let stopped = run(&host, "SaveImage", vec![picture([4, 4, 4, 3]), string("a")]);
    assert!(matches!(stopped, Err(Error::Cancelled)));
    let outputs = saved(&host);
    let names: Vec<&str> =
        outputs.iter().map(|output| output["images"][0]["filename"].as_str().unwrap()).collect();
    assert_eq!(names, ["a_00001_.png", "a_00002_.png"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

unsafe extern "C" fn keep(_: *mut abi::Counted) {}

unsafe extern "C" fn no_dlpack(_: *mut abi::Tensor) -> *mut abi::DLManagedTensorVersioned {
    std::ptr::null_mut()
}

/// Pictures of that shape that are one number seen everywhere: they take no memory, and a copy of them any.
fn giant(shape: [i64; 4]) -> Value {
    let dl = Box::leak(Box::new(abi::DLManagedTensorVersioned {
        version: abi::DLPackVersion::CURRENT,
        manager_ctx: std::ptr::null_mut(),
        deleter: None,
        flags: abi::DLPACK_FLAG_BITMASK_READ_ONLY,
        dl_tensor: abi::DLTensor {
            data: std::ptr::from_mut(Box::leak(Box::new(0.5f32))).cast(),
            device: abi::DLDevice::CPU,
            ndim: 4,
            dtype: abi::DLDataType::F32,
            shape: Box::leak(Box::new(shape)).as_mut_ptr(),
            strides: Box::leak(Box::new([0i64; 4])).as_mut_ptr(),
            byte_offset: 0,
        },
    }));
    let size = size_of::<abi::Tensor>() as u32;
    let base = abi::Counted { size, reserved: 0, retain: keep, release: keep };
    let tensor = Box::into_raw(Box::new(abi::Tensor {
        base,
        dl: &raw const *dl,
        to_dlpack: no_dlpack,
        view: None,
    }));
    let payload = abi::Payload { tensor };
    // SAFETY: a tensor as node.h wants it, alive for ever.
    unsafe { Value::adopt(abi::Value { kind: abi::TENSOR, reserved: 0, payload }) }.unwrap()
}

#[test]
fn what_memory_does_not_hold_is_refused_with_the_sum() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path());
    let told = |class: &str, inputs: Vec<Value>| failed(run(&host, class, inputs)).1;
    let numbers = |numbers: &[i64]| numbers.iter().map(|n| Value::from(*n)).collect::<Vec<_>>();
    let sentence = told("EmptyImage", numbers(&[16384, 16384, 4096, 0]));
    assert!(
        sentence.starts_with("the pictures would take 13.2 TB (4096 x 16384 x 16384 x 3 numbers"),
        "{sentence}"
    );
    // A chain of ImageBatch that doubles ends here, and all that copy what is seen and is not there.
    let giant = || giant([1 << 20, 16384, 16384, 3]);
    let method = || string("bilinear");
    for (class, inputs) in [
        ("ImageBatch", vec![giant(), giant()]),
        ("ImageInvert", vec![giant()]),
        ("ImageScaleBy", vec![giant(), method(), 1.0.into()]),
        ("ImageScale", vec![giant(), method(), 64i64.into(), 64i64.into(), string("center")]),
        ("SaveImage", vec![giant(), string("a")]),
    ] {
        let sentence = told(class, inputs);
        assert!(sentence.contains(" would take 3.38 PB ("), "{class}: {sentence}");
    }
}

#[test]
fn sizes_are_those_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path());
    for method in ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"] {
        for crop in ["disabled", "center"] {
            let inputs =
                vec![picture([2, 6, 9, 3]), string(method), 4i64.into(), 0i64.into(), string(crop)];
            let scaled = run(&host, "ImageScale", inputs).unwrap();
            assert_eq!(values(&scaled[0]).0, [2, 3, 4, 3], "{method}, {crop}");
        }
        let inputs = vec![picture([1, 6, 9, 4]), string(method), 1.5.into()];
        let scaled = run(&host, "ImageScaleBy", inputs).unwrap();
        assert_eq!(values(&scaled[0]).0, [1, 9, 14, 4], "13.5 rounds to even");
    }
    let batch = vec![picture([2, 6, 9, 3]), picture([1, 3, 3, 1])];
    assert_eq!(values(&run(&host, "ImageBatch", batch).unwrap()[0]).0, [3, 6, 9, 3]);
    let numbers = [8i64, 0, 0, 16, 2].map(Value::from);
    let inputs = [picture([1, 6, 9, 3])].into_iter().chain(numbers).collect();
    let padded = run(&host, "ImagePadForOutpaint", inputs).unwrap();
    assert_eq!(values(&padded[0]).0, [1, 22, 17, 3]);
    assert_eq!(values(&padded[1]).0, [1, 22, 17]);
    let (_, inverted) = values(&run(&host, "ImageInvert", vec![picture([1, 1, 2, 3])]).unwrap()[0]);
    assert_eq!(inverted[..2], [1.0, 1.0 - 38.0 / 255.0]);
}

#[test]
fn edges_are_white_on_black_and_thresholds_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path());
    let step = (0..8 * 8).map(|i| if i % 8 < 4 { 0.0 } else { 1.0 }).collect();
    let step = Tensor::from_f32(&[1, 8, 8, 1], step).unwrap().into_value();
    let found = run(&host, "Canny", vec![step.clone(), 0.4.into(), 0.8.into()]).unwrap();
    let (shape, edges) = values(&found[0]);
    assert_eq!(shape, [1, 8, 8, 3]);
    for (i, pixel) in edges.chunks(3).enumerate() {
        assert_eq!(pixel, if i % 8 == 3 { [1.0; 3] } else { [0.0; 3] });
    }
    assert_eq!(failed(run(&host, "Canny", vec![step, 0.8.into(), 0.4.into()])).0, "low_threshold");
}

#[test]
fn masks_and_hints_have_their_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path());
    let run = |class: &str, inputs: Vec<Value>| {
        let made = run(&host, class, inputs);
        values(&made.unwrap_or_else(|failure| panic!("{class}: {failure:?}"))[0])
    };
    let mask = || {
        let values = (0..2 * 6 * 9).map(|i| i as f32 / 108.0).collect();
        Tensor::from_f32(&[2, 6, 9], values).unwrap().into_value()
    };
    assert_eq!(run("MaskToImage", vec![mask()]).0, [2, 6, 9, 3]);
    let (shape, red) = run("ImageToMask", vec![picture([1, 2, 3, 4]), string("red")]);
    assert_eq!((shape, red[1]), (vec![1, 2, 3], values(&picture([1, 2, 3, 4])).1[4]));
    let alpha = vec![picture([1, 2, 3, 3]), string("alpha")];
    assert_eq!(failed(self::run(&host, "ImageToMask", alpha)).0, "channel");
    assert_eq!(run("InvertMask", vec![mask()]).1[0], 1.0);
    let (_, hard) = run("ThresholdMask", vec![mask(), 0.5.into()]);
    assert_eq!((hard[54], hard[55]), (0.0, 1.0), "a half is not above a half");
    assert_eq!(
        run("SolidMask", vec![0.25.into(), 3i64.into(), 2i64.into()]),
        (vec![1, 2, 3], vec![0.25; 6])
    );
    assert_eq!(run("GrowMask", vec![mask(), (-2i64).into(), true.into()]).0, [2, 6, 9]);
    let edges = [1i64, 2, 3, 4].map(Value::from);
    assert_eq!(run("FeatherMask", [mask()].into_iter().chain(edges).collect()).0, [2, 6, 9]);
    let rectangle = [7i64, 1, 512, 3].map(Value::from);
    assert_eq!(run("CropMask", [mask()].into_iter().chain(rectangle).collect()).0, [2, 3, 2]);
    let joined = vec![mask(), mask(), 4i64.into(), 5i64.into(), string("add")];
    assert_eq!(run("MaskComposite", joined).0, [2, 6, 9]);

    let rectangle = [4i64, 512, 7, 2].map(Value::from);
    let cut = [picture([2, 6, 9, 3])].into_iter().chain(rectangle).collect();
    assert_eq!(run("ImageCrop", cut).0, [2, 4, 2, 3]);
    let (shape, colour) =
        run("EmptyImage", vec![3i64.into(), 2i64.into(), 2i64.into(), 0xff_80_00i64.into()]);
    assert_eq!((shape, &colour[3..6]), (vec![2, 2, 3, 3], &[1.0, 128.0 / 255.0, 0.0][..]));
    let total = vec![picture([1, 30, 60, 3]), string("bilinear"), 0.01.into(), 16i64.into()];
    assert_eq!(run("ImageScaleToTotalPixels", total).0, [1, 80, 144, 3]);
    assert_eq!(
        run("ImageBlur", vec![picture([2, 6, 9, 4]), 31i64.into(), 1.0.into()]).0,
        [2, 6, 9, 4]
    );
    let sharpened = vec![picture([1, 6, 9, 1]), 1i64.into(), 1.0.into(), 1.0.into()];
    assert_eq!(run("ImageSharpen", sharpened).0, [1, 6, 9, 1]);

    for channels in [1, 3, 4] {
        let source = || picture([2, 40, 60, channels]);
        let wide = vec![2, 64, 96, 3];
        let shorter = || string("shorter side");
        assert_eq!(
            run("BinaryPreprocessor", vec![source(), 100i64.into(), 64i64.into(), shorter()]).0,
            wide
        );
        assert_eq!(run("ScribblePreprocessor", vec![source(), 64i64.into(), shorter()]).0, wide);
        assert_eq!(
            run(
                "Scribble_XDoG_Preprocessor",
                vec![source(), 32i64.into(), 64i64.into(), shorter()]
            )
            .0,
            wide
        );
        let edges = vec![source(), 100i64.into(), 200i64.into(), 64i64.into(), shorter()];
        assert_eq!(run("CannyEdgePreprocessor", edges).0, wide);
        let tile = vec![source(), 3i64.into(), 512i64.into()];
        assert_eq!(run("TilePreprocessor", tile).0, [2, 64, 64, 3]);
    }

    let grey_alpha = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pictures/rgba.png");
    let file = || string(grey_alpha.to_str().unwrap());
    let loaded = self::run(&host, "LoadImage", vec![file()]).unwrap();
    assert_eq!(run("LoadImageMask", vec![file(), string("alpha")]), values(&loaded[1]));
    let green = values(&loaded[0]).1[1];
    assert_eq!(run("LoadImageMask", vec![file(), string("green")]).1[0], green);
}
