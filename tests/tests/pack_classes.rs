//! Classes of packs that join what others do: each gives the bytes of the nodes it stands for.

use std::fs;
use std::path::Path;

use kosmograph_tests::{Run, repository};
use serde_json::{Value, json};

fn node(class: &str, inputs: Value) -> Value {
    json!({"class_type": class, "inputs": inputs})
}

/// The pictures that a workflow saves, by the beginning of their names.
fn draw(folder: &Path, workflow: &Value) -> impl Fn(&str) -> image::RgbImage + use<> {
    let out = folder.join("out");
    let _ = fs::remove_dir_all(&out);
    fs::create_dir_all(folder.join("models")).unwrap();
    Run::new("run")
        .with_plugins()
        .arg("-")
        .stdin(workflow.to_string())
        .folder(folder)
        .arg("--models")
        .arg(folder.join("models"))
        .arg("--models")
        .arg(repository().join("models"))
        .arg("--input")
        .arg(repository().join("workflows/input"))
        .arg("--out")
        .arg(&out)
        .expect_success();
    move |name| image::open(out.join(format!("{name}_00001_.png"))).unwrap().to_rgb8()
}

fn save(from: (&str, u64), name: &str) -> Value {
    node("SaveImage", json!({"images": [from.0, from.1], "filename_prefix": name}))
}

const LORA: &str = "tiny/loras/pencil.safetensors";

/// How KSampler and its like are set here.
fn sampling(more: Value) -> Value {
    let mut inputs = json!({"seed": 5, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal",
        "denoise": 1.0});
    let more = more.as_object().unwrap().clone();
    inputs.as_object_mut().unwrap().extend(more);
    inputs
}

#[test]
fn the_efficient_ones_are_what_they_join() {
    let folder = tempfile::tempdir().unwrap();
    let text = |text: &str| node("CLIPTextEncode", json!({"text": text, "clip": ["skip", 0]}));
    let efficient = |lora: &str| {
        node(
            "Efficient Loader",
            json!({"ckpt_name": "tiny/sd", "vae_name": "Baked VAE", "clip_skip": -2, "lora_name": lora,
                "lora_model_strength": 0.7, "lora_clip_strength": 0.4, "positive": "a green monster",
                "negative": "snow", "token_normalization": "none", "weight_interpretation": "comfy",
                "empty_latent_width": 64, "empty_latent_height": 128, "batch_size": 1}),
        )
    };
    let sampler = |loader: &str, decode: &str| {
        let more = json!({"model": [loader, 0], "positive": [loader, 1], "negative": [loader, 2],
            "latent_image": [loader, 3], "optional_vae": [loader, 4], "preview_method": "auto",
            "vae_decode": decode});
        node("KSampler (Efficient)", sampling(more))
    };
    let plain = |model: &str, slot: u64| {
        let more = json!({"model": [model, slot], "positive": ["positive", 0],
            "negative": ["negative", 0], "latent_image": ["size", 0]});
        node("KSampler", sampling(more))
    };
    let mut workflow = json!({
        "loader": efficient(LORA), "bare": efficient("None"),
        // The same LoRA out of a stack, behind one that is off and one that is none.
        "stack": node("CR LoRA Stack", json!({"switch_1": "Off", "lora_name_1": LORA, "model_weight_1": 1.0,
            "clip_weight_1": 1.0, "switch_2": "On", "lora_name_2": "None", "model_weight_2": 1.0,
            "clip_weight_2": 1.0, "switch_3": "On", "lora_name_3": LORA, "model_weight_3": 0.7,
            "clip_weight_3": 0.4})),
        "stacked": efficient("None"), "stack sampler": sampler("stacked", "true"),
        "f": save(("stack sampler", 5), "f"),
        "applied": node("CR Apply LoRA Stack", json!({"model": ["base", 0], "clip": ["base", 1],
            "lora_stack": ["stack", 0]})),
        "by stack": plain("applied", 0),
        "decoded stack": node("VAEDecode", json!({"samples": ["by stack", 0], "vae": ["base", 2]})),
        "g": save(("decoded stack", 0), "g"),
        "sampler": sampler("loader", "true"), "bare sampler": sampler("bare", "output only"),
        "none": sampler("bare", "false"),
        "a": save(("sampler", 5), "a"), "b": save(("bare sampler", 5), "b"), "c": save(("none", 5), "c"),
        // The same by hand.
        "base": node("CheckpointLoaderSimple", json!({"ckpt_name": "tiny/sd"})),
        "lora": node("LoraLoader", json!({"model": ["base", 0], "clip": ["base", 1], "lora_name": LORA,
            "strength_model": 0.7, "strength_clip": 0.4})),
        "skip": node("CLIPSetLastLayer", json!({"clip": ["lora", 1], "stop_at_clip_layer": -2})),
        "positive": text("a green monster"), "negative": text("snow"),
        "size": node("EmptyLatentImage", json!({"width": 64, "height": 128, "batch_size": 1})),
        "hand": plain("lora", 0),
        "decode": node("VAEDecode", json!({"samples": ["hand", 0], "vae": ["base", 2]})),
        "d": save(("decode", 0), "d"),
        // And along a pipe.
        "pipe": node("ToBasicPipe", json!({"model": ["base", 0], "clip": ["lora", 1], "vae": ["base", 2],
            "positive": ["negative", 0], "negative": ["negative", 0]})),
        "edited": node("EditBasicPipe", json!({"basic_pipe": ["pipe", 0], "model": ["lora", 0],
            "positive": ["positive", 0]})),
        "parts": node("FromBasicPipe_v2", json!({"basic_pipe": ["edited", 0]})),
        "piped": node("KSampler", sampling(json!({"model": ["parts", 1], "positive": ["parts", 4],
            "negative": ["parts", 5], "latent_image": ["size", 0]}))),
        "decoded": node("VAEDecode", json!({"samples": ["piped", 0], "vae": ["parts", 3]})),
        "e": save(("decoded", 0), "e")
    });
    workflow["stacked"]["inputs"]["lora_stack"] = json!(["stack", 0]);
    let drawn = draw(folder.path(), &workflow);
    assert_eq!(drawn("a").dimensions(), (64, 128));
    assert_eq!((drawn("f"), drawn("g")), (drawn("d"), drawn("d")));
    assert_eq!(drawn("a"), drawn("d"));
    assert_eq!(drawn("e"), drawn("d"));
    assert_ne!(drawn("b"), drawn("d"));
    assert_eq!(drawn("c"), image::RgbImage::from_pixel(1, 1, image::Rgb([0, 0, 0])));
}

#[test]
fn what_the_efficient_ones_cannot_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |inputs: Value, code: i32, sentence: &str| {
        let mut loader = json!({"ckpt_name": "tiny/sd", "positive": "a", "negative": "b",
            "empty_latent_width": 64, "empty_latent_height": 64});
        loader.as_object_mut().unwrap().extend(inputs.as_object().unwrap().clone());
        let more = json!({"model": ["1", 0], "positive": ["1", 1], "negative": ["1", 2],
            "latent_image": ["1", 3]});
        let workflow = json!({"1": node("Efficient Loader", loader),
            "2": node("KSampler (Efficient)", sampling(more)), "3": save(("2", 5), "a")});
        let run = Run::new("run").with_plugins().arg("-").stdin(workflow.to_string());
        let run = run.folder(folder.path()).arg("--models").arg(repository().join("models"));
        run.arg("--out").arg(folder.path()).expect_code(code).stderr_contains(sentence);
    };
    refused(json!({"weight_interpretation": "A1111"}), 3, "comfy would be right, not A1111");
    refused(json!({"lora_name": "Nonesuch"}), 2, "Nonesuch");
    refused(json!({"vae_name": "None"}), 2, "None");
    refused(json!({}), 3, "is wanted where vae_decode is \"true\"");
}

/// The workflow of one picture that is drawn anew, by a node with these inputs and by hand.
fn redrawn(class: &str, inputs: Value, by_hand: Value) -> Value {
    let text = |text: &str| node("CLIPTextEncode", json!({"text": text, "clip": ["base", 1]}));
    let mut all = sampling(json!({"model": ["base", 0], "positive": ["positive", 0],
        "negative": ["negative", 0], "vae": ["base", 2], "denoise": 0.5, "mode_type": "Linear",
        "tile_width": 128, "tile_height": 128, "mask_blur": 0, "tile_padding": 0,
        "seam_fix_mode": "None"}));
    all.as_object_mut().unwrap().extend(inputs.as_object().unwrap().clone());
    let mut workflow = json!({
        "base": node("CheckpointLoaderSimple", json!({"ckpt_name": "tiny/sd"})),
        "positive": text("a green monster"), "negative": text("snow"),
        "picture": node("LoadImage", json!({"image": "monster-1.png"})),
        "small": node("ImageScale", json!({"image": ["picture", 0], "upscale_method": "bilinear",
            "width": 128, "height": 128, "crop": "disabled"})),
        "redrawn": node(class, all), "a": save(("redrawn", 0), "a"), "b": save(("hand", 0), "b")
    });
    workflow.as_object_mut().unwrap().extend(by_hand.as_object().unwrap().clone());
    workflow
}

#[test]
fn one_tile_is_the_whole_picture() {
    let folder = tempfile::tempdir().unwrap();
    let more = json!({"model": ["base", 0], "positive": ["positive", 0], "negative": ["negative", 0],
        "latent_image": ["latent", 0], "denoise": 0.5});
    let mut workflow = redrawn(
        "UltimateSDUpscaleNoUpscale",
        json!({"upscaled_image": ["small", 0]}),
        json!({
            "latent": node("VAEEncode", json!({"pixels": ["small", 0], "vae": ["base", 2]})),
            "sampler": node("KSampler", sampling(more)),
            "hand": node("VAEDecode", json!({"samples": ["sampler", 0], "vae": ["base", 2]}))
        }),
    );
    // A picture that was loaded is in 8 bits, as the node takes it; one that is made smaller is not.
    workflow["small"] = node("LoadImage", json!({"image": "small.png"}));
    workflow.as_object_mut().unwrap().remove("picture");
    let picture =
        image::open(repository().join("workflows/input/monster-1.png")).unwrap().to_rgb8();
    let small = image::imageops::resize(&picture, 128, 128, image::imageops::FilterType::Triangle);
    let input = folder.path().join("input");
    fs::create_dir(&input).unwrap();
    small.save(input.join("small.png")).unwrap();
    let out = folder.path().join("out");
    Run::new("run")
        .with_plugins()
        .arg("-")
        .stdin(workflow.to_string())
        .folder(folder.path())
        .arg("--models")
        .arg(repository().join("models"))
        .arg("--input")
        .arg(&input)
        .arg("--out")
        .arg(&out)
        .expect_success();
    let drawn = |name: &str| image::open(out.join(format!("{name}_00001_.png"))).unwrap().to_rgb8();
    assert_eq!(drawn("a"), drawn("b"));
    assert_ne!(drawn("a"), small);
}

#[test]
fn a_larger_picture_is_the_upscalers_before_it_is_drawn_anew() {
    let folder = tempfile::tempdir().unwrap();
    let upscalers = folder.path().join("models/upscale_models");
    fs::create_dir_all(&upscalers).unwrap();
    let weights = repository().join("tests/golden/esrgan/weights.compact_x4.safetensors");
    fs::copy(weights, upscalers.join("x4.safetensors")).unwrap();
    // With nothing of it drawn anew each tile goes through the autoencoder alone; a tile of the whole picture as the picture.
    let workflow = redrawn(
        "UltimateSDUpscale",
        json!({"image": ["small", 0], "upscale_model": ["network", 0], "upscale_by": 1.5, "denoise": 0.0,
            "tile_width": 192, "tile_height": 192}),
        json!({
            "network": node("UpscaleModelLoader", json!({"model_name": "x4.safetensors"})),
            "x4": node("ImageUpscaleWithModel", json!({"upscale_model": ["network", 0], "image": ["small", 0]})),
            "x1.5": node("ImageScale", json!({"image": ["x4", 0], "upscale_method": "lanczos", "width": 192,
                "height": 192, "crop": "disabled"})),
            "latent": node("VAEEncode", json!({"pixels": ["x1.5", 0], "vae": ["base", 2]})),
            "hand": node("VAEDecode", json!({"samples": ["latent", 0], "vae": ["base", 2]}))
        }),
    );
    let drawn = draw(folder.path(), &workflow);
    assert_eq!(drawn("a").dimensions(), (192, 192));
    assert_eq!(drawn("a"), drawn("b"));
}

#[test]
fn tiles_and_seams_are_drawn_where_they_lie() {
    let folder = tempfile::tempdir().unwrap();
    // Four tiles, nothing of them drawn anew: what goes through the autoencoder changes, and nothing else.
    let modes = [
        ("None", "None"),
        ("Linear", "None"),
        ("Chess", "None"),
        ("None", "Band Pass"),
        ("None", "Half Tile"),
        ("None", "Half Tile + Intersections"),
    ];
    let mut seen = Vec::new();
    for (mode, seams) in modes {
        let workflow = redrawn(
            "UltimateSDUpscaleNoUpscale",
            json!({"upscaled_image": ["small", 0], "denoise": 0.0, "mode_type": mode, "tile_width": 64,
                "tile_height": 64, "seam_fix_mode": seams, "seam_fix_width": 16, "seam_fix_mask_blur": 0,
                "seam_fix_padding": 16, "tile_padding": 16, "mask_blur": 0}),
            json!({"hand": node("ImageScale", json!({"image": ["small", 0], "upscale_method": "bilinear",
                "width": 128, "height": 128, "crop": "disabled"}))}),
        );
        let drawn = draw(folder.path(), &workflow);
        let (new, old) = (drawn("a"), drawn("b"));
        let changed = |x: u32, y: u32| new.get_pixel(x, y) != old.get_pixel(x, y);
        let rows = |from: u32, to: u32| {
            (from..to)
                .flat_map(|y| (0..128).map(move |x| (x, y)))
                .filter(|(x, y)| changed(*x, *y))
                .count()
        };
        seen.push((rows(0, 128), rows(0, 20)));
        if seams == "Band Pass" {
            // Bands of 16 pixels along the middle, across and down.
            let outside = (0..128u32).flat_map(|y| (0..128u32).map(move |x| (x, y)));
            let is_outside = |at: u32| !(56..72).contains(&at);
            let mut outside = outside.filter(|(x, y)| is_outside(*x) && is_outside(*y));
            assert!(outside.all(|(x, y)| !changed(x, y)));
        }
    }
    let [none, linear, chess, bands, halves, crossings] = seen[..] else { panic!("{seen:?}") };
    assert_eq!(none, (0, 0));
    assert!(linear.0 > 128 * 128 / 2 && chess.0 > 128 * 128 / 2, "{seen:?}");
    assert!(bands.0 > 0 && bands.0 < linear.0 && halves.0 > bands.0, "{seen:?}");
    assert!(crossings.0 >= halves.0, "{seen:?}");
}

#[test]
fn a_configuration_says_the_layer_of_the_text() {
    let folder = tempfile::tempdir().unwrap();
    let texts = |loader: &str, clip: &str| {
        let text = |text: &str| {
            node("CLIPTextEncode", json!({"text": text, "clip": [clip, u64::from(clip == loader)]}))
        };
        (text("a green monster"), text("snow"))
    };
    let mut workflow = json!({
        "plain": node("CheckpointLoaderSimple", json!({"ckpt_name": "tiny/sd"})),
        "skip": node("CLIPSetLastLayer", json!({"clip": ["plain", 1], "stop_at_clip_layer": -2})),
        "config": node("CheckpointLoader", json!({"ckpt_name": "tiny/sd", "config_name": "v1-inference_clip_skip_2.yaml"})),
        "empty": node("EmptyLatentImage", json!({"width": 64, "height": 64, "batch_size": 1}))});
    for (name, loader, clip) in [
        ("skipped", "plain", "skip"),
        ("configured", "config", "config"),
        ("plainly", "plain", "plain"),
    ] {
        let (positive, negative) = texts(loader, clip);
        let id = |part: &str| format!("{name}-{part}");
        workflow[id("positive")] = positive;
        workflow[id("negative")] = negative;
        workflow[id("sample")] = node(
            "KSampler",
            sampling(json!({"model": [loader, 0], "positive": [id("positive"), 0],
                "negative": [id("negative"), 0], "latent_image": ["empty", 0]})),
        );
        workflow[id("decode")] =
            node("VAEDecode", json!({"samples": [id("sample"), 0], "vae": [loader, 2]}));
        workflow[id("save")] = save((&id("decode"), 0), name);
    }
    let picture = draw(folder.path(), &workflow);
    assert_eq!(picture("skipped"), picture("configured"));
    assert_ne!(picture("plainly"), picture("configured"));
    for (config, part) in [
        ("v2-inference.yaml", "Stable Diffusion 2"),
        ("v1-inpainting-inference.yaml", "not for inpainting"),
        ("mine.yaml", "v1-inference.yaml"),
    ] {
        let mut other = workflow.clone();
        other["config"]["inputs"]["config_name"] = config.into();
        let run = Run::new("run").with_plugins().arg("-").stdin(other.to_string());
        let run = run.folder(folder.path()).arg("--models").arg(repository().join("models"));
        let told = run.arg("--out").arg(folder.path().join("other")).run();
        assert!(told.stderr().contains(part), "{config}: {}", told.stderr());
    }
}

/// The workflows in docs/vision.md, in their order.
fn of_the_docs() -> Vec<Value> {
    let text = fs::read_to_string(repository().join("docs/vision.md")).unwrap();
    let parts = text.split("```json\n").skip(1);
    parts.map(|part| serde_json::from_str(part.split("```").next().unwrap()).unwrap()).collect()
}

fn check(folder: &Path, workflow: &Value) -> Run {
    Run::new("check")
        .with_plugins()
        .arg("-")
        .stdin(workflow.to_string())
        .folder(folder)
        .arg("--models")
        .arg(folder.join("models"))
        .arg("--models")
        .arg(repository().join("models"))
        .arg("--input")
        .arg(repository().join("workflows/input"))
}

/// `vision` is built by `cargo build --release --workspace`, and by the tests of the whole workspace.
#[test]
fn the_depth_of_a_picture_is_a_choice_that_vision_brings() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("models")).unwrap();
    let mut workflow = of_the_docs().remove(1);
    assert_eq!(workflow["3"]["class_type"], "AIO_Preprocessor");
    // The bundled models in the place of those that one brings; the depth's file alone is wanting.
    workflow["1"]["inputs"]["ckpt_name"] = json!("tiny/sd");
    workflow["2"]["inputs"]["image"] = json!("monster-1.png");
    workflow["4"]["inputs"]["control_net_name"] = json!("tiny/controlnet/tiny-canny");
    let wanting = check(folder.path(), &workflow).expect_code(2);
    let said = wanting.stderr();
    assert!(said.contains("depth_anything_v2_vitl.pth"), "{said}");
    assert!(!said.contains("does its work"), "{said}");
    let models = folder.path().join("models/depth_anything");
    fs::create_dir_all(&models).unwrap();
    fs::write(models.join("depth_anything_v2_vitl.pth"), "").unwrap();
    check(folder.path(), &workflow).expect_success();
    // What no library has is refused, with what there is.
    workflow["3"]["inputs"]["preprocessor"] = json!("DWPreprocessor");
    let refused = check(folder.path(), &workflow).expect_code(2);
    let said = refused.stderr();
    for known in ["DWPreprocessor", "CannyEdgePreprocessor", "DepthAnythingV2Preprocessor"] {
        assert!(said.contains(known), "{known}: {said}");
    }
}
