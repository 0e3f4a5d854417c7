//! LoRAs put on the bundled model, as a user runs them, and on a model that cannot take one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::Device;
use kosmograph::plugin::{Call, Library, LogLevel, NodeFailure};
use kosmograph::value::Value;
use kosmograph_models::Weights;
use kosmograph_tests::{Finished, Run, build_c, node_library, repository};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

/// Shapes by name.
type Shapes = BTreeMap<String, Vec<usize>>;

/// Names and shapes of a kohya LoRA of rank 2 for every matrix of a part of the bundled model.
fn shapes(part: &str, prefix: &str) -> Shapes {
    let folder = repository().join("models/tiny/sd").join(part);
    let weights = Weights::open(&folder, &Device::Cpu).expect("the bundled model");
    let mut shapes = Shapes::new();
    for name in weights.names() {
        let shape = weights.shape(&name).expect("a shape");
        let Some(module) = name.strip_suffix(".weight") else { continue };
        if shape.len() < 2 || module.contains("embeddings") {
            continue;
        }
        let module = format!("{prefix}{}", module.replace('.', "_"));
        let mut down = shape.clone();
        down[0] = 2;
        let up = [&[shape[0], 2], &vec![1; shape.len() - 2][..]].concat();
        shapes.insert(format!("{module}.lora_down.weight"), down);
        shapes.insert(format!("{module}.lora_up.weight"), up);
        shapes.insert(format!("{module}.alpha"), vec![]);
    }
    shapes
}

/// Both parts.
fn both() -> Shapes {
    let mut both = shapes("unet", "lora_unet_");
    both.extend(shapes("text_encoder", "lora_te_"));
    both
}

/// A folder of models: the bundled one, and `loras/a.safetensors` of these shapes, with small values;
/// `damage` may change those of one tensor.
fn models(shapes: &Shapes, damage: impl Fn(&str, &mut Vec<f32>)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("loras")).expect("a folder");
    let mut seed = 7u32;
    let tensors: Vec<(&String, &Vec<usize>, Vec<u8>)> = shapes
        .iter()
        .map(|(name, shape)| {
            let mut values: Vec<f32> = (0..shape.iter().product())
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (seed >> 8) as f32 / (1 << 24) as f32 * 0.2 - 0.1
                })
                .collect();
            if name.ends_with(".alpha") {
                values[0] = 1.0;
            }
            damage(name, &mut values);
            (name, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("a view"))
    });
    let file = safetensors::serialize(views, None).expect("serializes");
    fs::write(folder.path().join("loras/a.safetensors"), file).expect("written");
    folder
}

/// A picture of two steps, with the LoRA at the given strengths, one loader after the other.
fn run(models: &Path, strengths: &[(f64, f64)]) -> Run {
    let mut workflow = json!({
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny/sd"}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "a"}},
    });
    let mut last = "1".to_owned();
    for (i, (model, clip)) in strengths.iter().enumerate() {
        let id = format!("lora{i}");
        workflow[&id] = json!({"class_type": "LoraLoader", "_meta": {"title": "The LoRA"}, "inputs": {
            "model": [last, 0], "clip": [last, 1], "lora_name": "a.safetensors",
            "strength_model": model, "strength_clip": clip}});
        last = id;
    }
    workflow["2"] =
        json!({"class_type": "CLIPTextEncode", "inputs": {"text": "a ghost", "clip": [last, 1]}});
    workflow["4"] = json!({"class_type": "UNetSample", "inputs": {
        "model": [last, 0], "positive": ["2", 0], "negative": ["2", 0], "latent": ["3", 0],
        "seed": 1, "steps": 2, "cfg": 2.0, "sampler": "dpms", "scheduler": "normal", "denoise": 1.0}});
    let run = Run::new("run").with_plugins().args(["-", "--models"]).arg(models);
    let run = run.arg("--models").arg(repository().join("models"));
    run.arg("--out").arg(models.join("out")).stdin(workflow.to_string())
}

/// The picture's pixels.
fn draw(models: &Path, strengths: &[(f64, f64)]) -> Vec<u8> {
    let out = models.join("out");
    let _ = fs::remove_dir_all(&out);
    run(models, strengths).expect_success();
    let entries: Vec<_> = fs::read_dir(&out).expect("the output folder").collect();
    assert_eq!(entries.len(), 1);
    let path = entries[0].as_ref().expect("an entry").path();
    image::open(path).expect("a picture").to_rgb8().into_raw()
}

#[test]
fn strengths_add_up_and_nothing_is_the_base_itself() {
    let models = models(&both(), |_, _| {});
    let draw = |strengths: &[(f64, f64)]| draw(models.path(), strengths);
    let base = draw(&[]);
    assert_eq!(draw(&[(0.0, 0.0)]), base);
    let once = draw(&[(1.0, 1.0)]);
    let (model_alone, clip_alone) = (draw(&[(1.0, 0.0)]), draw(&[(0.0, 1.0)]));
    for (a, b) in
        [(&once, &base), (&model_alone, &base), (&clip_alone, &base), (&once, &model_alone)]
    {
        assert_ne!(a, b);
    }
    assert_ne!(draw(&[(-1.0, -1.0)]), once);
    // Rounded to 8 bits after two steps: a value may fall to the other side.
    let twice = draw(&[(2.0, 2.0), (-1.0, -1.0)]);
    let differing = twice.iter().zip(&once).filter(|(a, b)| a.abs_diff(**b) > 1).count();
    assert_eq!(differing, 0);
}

/// Fails in the loader, with these words.
#[track_caller]
fn fails(models: &tempfile::TempDir, words: &[&str]) -> Finished {
    let finished = run(models.path(), &[(1.0, 1.0)]).expect_code(3).stderr_contains("The LoRA");
    words.iter().fold(finished, |finished, word| finished.stderr_contains(word))
}

#[test]
fn a_damaged_lora_is_named() {
    let all = both();
    let up = all.keys().find(|name| name.contains("attn2_to_v.lora_up")).expect("one").clone();
    let path = "attn2.to_v";

    let nan = models(&all, |name, values| {
        if name == up {
            values[3] = f32::NAN;
        }
    });
    fails(&nan, &["lora_name", &up, "NaN", "number 3"]);

    let mut without = all.clone();
    without.remove(&up);
    fails(&models(&without, |_, _| {}), &["lora_name", path, "no up weight"]);

    let mut empty = all.clone();
    empty.get_mut(&up).expect("it")[1] = 0;
    empty.get_mut(&up.replace("lora_up", "lora_down")).expect("it")[0] = 0;
    fails(&models(&empty, |_, _| {}), &["lora_name", path, "rank 0"]);

    let folder = models(&all, |_, _| {});
    let file = folder.path().join("loras/a.safetensors");
    let bytes = fs::read(&file).expect("the file");
    fs::write(&file, &bytes[..bytes.len() / 2]).expect("half of it");
    fails(&folder, &["a.safetensors", "lora_name"]);
}

#[test]
fn a_lora_for_another_family_is_named() {
    // SDXL's names and the width of its text.
    let mut sdxl = Shapes::new();
    for block in [0, 1] {
        let module = format!("lora_unet_input_blocks_4_1_transformer_blocks_{block}_attn2_to_k");
        sdxl.insert(format!("{module}.lora_up.weight"), vec![640, 2]);
        sdxl.insert(format!("{module}.lora_down.weight"), vec![2, 2048]);
    }
    fails(&models(&sdxl, |_, _| {}), &["lora_name", "SDXL", "2048"]);

    let flux = "transformer.single_transformer_blocks.0.attn.to_q";
    let flux = Shapes::from([
        (format!("{flux}.lora_A.weight"), vec![2, 3072]),
        (format!("{flux}.lora_B.weight"), vec![3072, 2]),
    ]);
    fails(&models(&flux, |_, _| {}), &["lora_name", "FLUX", "none of its 1 layers"]);

    let loha = Shapes::from([("lora_unet_conv_in.hada_w1_a".to_owned(), vec![2, 2])]);
    fails(&models(&loha, |_, _| {}), &["lora_name", "conv_in", "hada_w1_b", "not whole"]);

    let vae = Shapes::from([("decoder.conv_in.weight".to_owned(), vec![2, 2, 3, 3])]);
    fails(&models(&vae, |_, _| {}), &["lora_name", "no LoRA", "decoder.conv_in.weight"]);
}

/// A LoHa for every matrix, whose norms are changed too.
#[test]
fn other_kinds_of_layers_are_put_on_as_well() {
    let mut kinds = Shapes::new();
    for (name, down) in both() {
        let Some(module) = name.strip_suffix(".lora_down.weight") else { continue };
        let up = both()[&format!("{module}.lora_up.weight")][0];
        for side in ["w1", "w2"] {
            kinds.insert(format!("{module}.hada_{side}_a"), vec![up, 2]);
            kinds.insert(format!("{module}.hada_{side}_b"), vec![2, down[1..].iter().product()]);
        }
    }
    kinds.insert("lora_te_text_model_final_layer_norm.w_norm".to_owned(), vec![32]);
    kinds.insert("lora_te_text_model_final_layer_norm.b_norm".to_owned(), vec![32]);
    let width = {
        let folder = repository().join("models/tiny/sd/text_encoder");
        let weights = Weights::open(&folder, &Device::Cpu).expect("the bundled model");
        let name = weights.names().into_iter().find(|name| name.ends_with("final_layer_norm.bias"));
        weights.shape(&name.expect("a norm")).expect("a shape")
    };
    for (_, shape) in kinds.iter_mut().filter(|(name, _)| name.ends_with("_norm")) {
        *shape = width.clone();
    }
    let models = models(&kinds, |_, values| values.iter_mut().for_each(|value| *value *= 3.0));
    let base = draw(models.path(), &[]);
    let whole = draw(models.path(), &[(1.0, 1.0)]);
    assert_ne!(draw(models.path(), &[(1.0, 0.0)]), base);
    assert_ne!(draw(models.path(), &[(0.0, 1.0)]), base);
    // Changes of this kind are sums too, and go one over the other.
    let parts = draw(models.path(), &[(2.0, 2.0), (-1.0, -1.0)]);
    let far = whole.iter().zip(&parts).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(far <= Some(1), "{far:?}");
}

#[test]
fn layers_without_a_place_are_told() {
    let mut more = both();
    let module = "lora_unet_down_blocks_3_attentions_0_proj_in";
    more.insert(format!("{module}.lora_up.weight"), vec![8, 2, 1, 1]);
    more.insert(format!("{module}.lora_down.weight"), vec![2, 8, 1, 1]);
    let models = models(&more, |_, _| {});
    let finished = run(models.path(), &[(1.0, 1.0)]).expect_success();
    finished.stderr_contains("1 of its").stderr_contains("down_blocks.3.attentions.0.proj_in");
}

/// A host that knows nothing and never stops.
struct Quiet;

impl Call for Quiet {
    fn log(&self, _: LogLevel, _: &str) {}
    fn progress(&self, _: u64, _: u64) -> bool {
        false
    }
    fn property(&self, _: &str) -> Option<String> {
        None
    }
    fn output(&self, _: serde_json::Value) {}
}

#[test]
fn a_model_that_cannot_take_a_lora_says_so() {
    let denoisers =
        Library::load(&build_c(&repository().join("tests/examples/denoiser.c"))).unwrap();
    let model = denoisers.run(1, &Quiet, &[Value::number(0.3), Value::number(0.7)]).unwrap();
    let loaders = Library::load(&node_library("kosmograph-diffusion")).unwrap();
    let nodes = loaders.descriptor["nodes"].as_array().unwrap();
    let number = nodes.iter().position(|node| node["class"] == "LoraLoaderModelOnly").unwrap();
    let folder = models(&shapes("unet", "lora_unet_"), |_, _| {});
    let file = folder.path().join("loras/a.safetensors");
    let inputs = |strength: f64| {
        [model[0].clone(), Value::string(file.display().to_string()), Value::number(strength)]
    };
    match loaders.run(number, &Quiet, &inputs(1.0)) {
        Err(NodeFailure::Failed { input, sentence }) => {
            assert_eq!(input.as_deref(), Some("model"));
            assert!(sentence.contains("MODEL cannot take a LoRA"), "{sentence}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(loaders.run(number, &Quiet, &inputs(0.0)).map(|outputs| outputs.len()), Ok(1));
}
