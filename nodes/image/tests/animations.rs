//! Animations, read back by decoders that know nothing of this library, and a sheet of pictures.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, Frame, ImageDecoder};
use kosmograph_image as _;
use node::testing::{Host, this_library};
use node::{Tensor, Value};

fn level(i: usize) -> u8 {
    ((i * i * 7 + i * 31) % 256) as u8
}

fn pictures(shape: [usize; 4]) -> Value {
    let count: usize = shape.iter().product();
    let values = (0..count).map(|i| f32::from(level(i)) / 255.0).collect();
    Tensor::from_f32(&shape, values).unwrap().into_value()
}

fn save(class: &str, folder: &Path, inputs: &[(&str, Value)]) -> (Host, PathBuf) {
    let host = Host::new()
        .with("output_directory", folder.to_str().unwrap())
        .with("prompt", r#"{"1": {"text": "Käse"}}"#)
        .with("workflow", "{}");
    host.run(&this_library!(), class, inputs).unwrap();
    let told = host.outputs();
    let told = told.iter().find(|told| told["making"].is_null()).unwrap();
    assert_eq!(told["animated"], serde_json::json!([true]));
    let name = told["images"][0]["filename"].as_str().unwrap();
    let file = folder.join(name);
    (host, file)
}

/// The frames as RGBA, and how long each is seen, in milliseconds.
fn told(frames: Vec<Frame>) -> Vec<(Vec<u8>, u32)> {
    let one = |frame: Frame| {
        let (numerator, denominator) = frame.delay().numer_denom_ms();
        (frame.into_buffer().into_raw(), numerator / denominator)
    };
    frames.into_iter().map(one).collect()
}

/// The frames that a batch of this shape has as RGBA.
fn expected([batch, height, width, channels]: [usize; 4]) -> Vec<Vec<u8>> {
    let size = height * width * channels;
    let rgba = |pixel: &[u8]| match *pixel {
        [r, g, b, a] => [r, g, b, a],
        [r, g, b] => [r, g, b, 255],
        _ => [pixel[0], pixel[0], pixel[0], 255],
    };
    let frame = |i: usize| {
        let levels: Vec<u8> = (i * size..(i + 1) * size).map(level).collect();
        levels.chunks(channels).flat_map(rgba).collect()
    };
    (0..batch).map(frame).collect()
}

#[test]
fn an_animated_png_has_its_frames_its_times_and_its_workflow() {
    let folder = tempfile::tempdir().unwrap();
    for (channels, compression, fps, time) in
        [(3usize, 4i64, 8.0, 125), (1, 0, 3.0, 333), (4, 9, 0.01, 100_000)]
    {
        let shape = [3, 5, 7, channels];
        let inputs = [
            ("images", pictures(shape)),
            ("fps", fps.into()),
            ("compress_level", compression.into()),
            ("filename_prefix", Value::string("sub/a")),
        ];
        let (_, file) = save("SaveAnimatedPNG", &folder.path().join("sub"), &inputs);
        let file = file.parent().unwrap().join("sub").join(file.file_name().unwrap());
        assert_eq!(file.extension().unwrap(), "png");
        let decoder = PngDecoder::new(BufReader::new(File::open(&file).unwrap())).unwrap();
        let frames = told(decoder.apng().unwrap().into_frames().collect_frames().unwrap());
        let both: Vec<_> = expected(shape).into_iter().map(|frame| (frame, time)).collect();
        assert_eq!(frames, both);
        let reader = png::Decoder::new(BufReader::new(File::open(&file).unwrap()));
        let reader = reader.read_info().unwrap();
        let texts = &reader.info().uncompressed_latin1_text;
        assert_eq!(texts[0].keyword, "prompt");
        assert_eq!(texts[0].text, r#"{"1": {"text": "K\u00e4se"}}"#);
        assert_eq!(reader.info().animation_control.unwrap().num_plays, 0, "for ever");
    }
}

#[test]
fn an_animated_webp_has_them_too() {
    let folder = tempfile::tempdir().unwrap();
    for channels in [1usize, 3, 4] {
        let shape = [3, 5, 7, channels];
        let inputs = [("images", pictures(shape)), ("fps", 8.0.into())];
        let (host, file) = save("SaveAnimatedWEBP", folder.path(), &inputs);
        assert!(host.logs().is_empty());
        assert_eq!(file.extension().unwrap(), "webp");
        let open = || WebPDecoder::new(BufReader::new(File::open(&file).unwrap())).unwrap();
        let frames: Vec<Frame> = open().into_frames().collect_frames().unwrap();
        let rgba: Vec<(Vec<u8>, u32)> = frames
            .into_iter()
            .map(|frame| {
                let (numerator, denominator) = frame.delay().numer_denom_ms();
                (frame.into_buffer().into_raw(), numerator / denominator)
            })
            .collect();
        let mut both: Vec<_> = expected(shape).into_iter().map(|frame| (frame, 125)).collect();
        if channels == 4 {
            // Where nothing is seen a colour means nothing.
            let clear = |frames: &mut Vec<(Vec<u8>, u32)>| {
                for (frame, _) in frames {
                    frame.chunks_mut(4).filter(|p| p[3] == 0).for_each(|p| p.fill(0));
                }
            };
            let mut rgba = rgba;
            clear(&mut rgba);
            clear(&mut both);
            assert_eq!(rgba, both);
        } else {
            assert_eq!(rgba, both);
        }
        let exif = open().exif_metadata().unwrap().unwrap();
        // A directory of two texts: the maker's comes first.
        assert_eq!(&exif[..10], b"II*\0\x08\0\0\0\x02\0");
        assert_eq!((&exif[10..14], &exif[22..26]), (&[0x0f, 1, 2, 0][..], &[0x10, 1, 2, 0][..]));
        let at =
            |place: usize| u32::from_le_bytes(exif[place..place + 4].try_into().unwrap()) as usize;
        let text = |entry: usize| {
            let (length, from) = (at(10 + entry * 12 + 4), at(10 + entry * 12 + 8));
            std::str::from_utf8(&exif[from..from + length - 1]).unwrap().to_owned()
        };
        assert_eq!(
            (text(0), text(1)),
            ("workflow:{}".into(), r#"prompt:{"1": {"text": "K\u00e4se"}}"#.into())
        );
    }
    let inputs = [("images", pictures([1, 2, 2, 3])), ("lossless", false.into())];
    let (host, _) = save("SaveAnimatedWEBP", folder.path(), &inputs);
    assert!(host.logs()[0].contains("without loss"), "{:?}", host.logs());
    let wide = [("images", pictures([1, 1, 16_385, 1]))];
    let told = Host::new().run(&this_library!(), "SaveAnimatedWEBP", &wide).unwrap_err();
    assert!(told.to_string().contains("at most 16384 to a side"), "{told}");
}

#[test]
fn a_grid_shows_every_picture_with_its_text() {
    let run = |inputs: &[(&str, Value)]| {
        let made = Host::new().run(&this_library!(), "ImageGrid", inputs).unwrap();
        let tensor = made[0].as_tensor().unwrap();
        (tensor.shape(), tensor.to_vec().unwrap())
    };
    let images = || ("images", pictures([3, 70, 80, 3]));
    let (shape, values) = run(&[images(), ("labels", Value::string("a\nb"))]);
    // Two columns of 80 pixels and a gap of 12 beside and behind; two rows of 70, a line of 20 and its gap, and a gap.
    assert_eq!(shape, [1, 12 + 2 * (70 + 32 + 12), 12 + 2 * 92, 3]);
    let at = |x: usize, y: usize| (values[(y * shape[2] + x) * 3] * 255.0).round() as u8;
    assert_eq!((at(0, 0), at(12, 12), at(13, 12)), (24, level(0), level(3)));
    assert_eq!((at(12 + 92, 12), at(12, 12 + 114)), (level(70 * 80 * 3), level(2 * 70 * 80 * 3)));
    let inked =
        (12..22).flat_map(|x| (88..108).map(move |y| (x, y))).filter(|(x, y)| at(*x, *y) == 235);
    assert!(inked.count() > 10, "a");
    let (shape, _) = run(&[images(), ("columns", 3i64.into()), ("largest_size", 40i64.into())]);
    assert_eq!(shape, [1, 12 + 35 + 12, 12 + 3 * (64 + 12), 3], "narrow ones have room for a word");
    let (shape, _) = run(&[("images", pictures([1, 70, 80, 4])), ("title", Value::string("T"))]);
    assert_eq!(shape, [1, 12 + 32 + 82, 12 + 92, 3]);
}
