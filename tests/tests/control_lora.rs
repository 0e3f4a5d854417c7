//! ControlNets that are said as changes of the model's own U-Net, on the bundled model, as a user runs them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use kosmograph_tests::{Run, repository};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Small numbers that differ from each other, times `scale`.
fn numbers(shape: &[usize], scale: f32) -> Vec<f32> {
    let count: usize = shape.iter().product();
    (0..count).map(|i| ((i * 7 + 3) % 23) as f32 / 23.0 * scale - scale / 2.0).collect()
}

/// What every such file holds of its own, under the original code's names: the hint's convolutions and those before the residuals.
fn own(zero_convs: f32) -> Tensors {
    let mut tensors = Tensors::new();
    let mut add = |name: &str, shape: &[usize], scale: f32| {
        tensors.insert(format!("{name}.weight"), (shape.to_vec(), numbers(shape, scale)));
        tensors.insert(format!("{name}.bias"), (vec![shape[0]], vec![0.0; shape[0]]));
    };
    add("input_hint_block.0", &[4, 3, 3, 3], 1.0);
    for layer in [2, 4, 6, 8, 10, 12] {
        add(&format!("input_hint_block.{layer}"), &[4, 4, 3, 3], 1.0);
    }
    add("input_hint_block.14", &[64, 4, 3, 3], 1.0);
    for (place, channels) in [64, 64, 64, 96].into_iter().enumerate() {
        add(&format!("zero_convs.{place}.0"), &[channels, channels, 1, 1], zero_convs);
    }
    add("middle_block_out.0", &[96, 96, 1, 1], zero_convs);
    tensors
}

/// A Control-LoRA of the bundled U-Net: two of its convolutions are changed.
fn control_lora(zero_convs: f32, change: f32) -> Tensors {
    let mut tensors = own(zero_convs);
    let mut add = |name: &str, shape: [usize; 4], scale: f32| {
        tensors.insert(name.to_owned(), (shape.to_vec(), numbers(&shape, scale)));
    };
    add("input_blocks.0.0.up", [64, 2, 1, 1], change);
    add("input_blocks.0.0.down", [2, 4, 3, 3], 1.0);
    add("input_blocks.2.0.op.up", [64, 2, 1, 1], change);
    add("input_blocks.2.0.op.down", [2, 64, 3, 3], 1.0);
    tensors.insert("lora_controlnet".to_owned(), (vec![], vec![1.0]));
    tensors
}

fn write(path: &Path, tensors: &Tensors) {
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, numbers))| {
            (name, shape, numbers.iter().flat_map(|number| number.to_le_bytes()).collect())
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("a view"))
    });
    fs::write(path, safetensors::serialize(views, None).expect("serializes")).expect("written");
}

/// Two steps steered by the control network that `loader` gives.
fn workflow(loader: Value) -> Value {
    json!({
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny/sd"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a ghost", "clip": ["1", 1]}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": loader,
        "5": {"class_type": "LoadImage", "inputs": {"image": "monster-1.png"}},
        "6": {"class_type": "ControlNetApplyAdvanced", "_meta": {"title": "Steered"}, "inputs": {
            "positive": ["2", 0], "negative": ["2", 0], "control_net": ["4", 0], "image": ["5", 0],
            "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}},
        "7": {"class_type": "KSampler", "_meta": {"title": "The sampler"}, "inputs": {
            "model": ["1", 0], "positive": ["6", 0], "negative": ["6", 1], "latent_image": ["3", 0],
            "seed": 1, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["1", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "a"}},
    })
}

struct Models(tempfile::TempDir);

impl Models {
    fn with(tensors: &Tensors) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("controlnet")).expect("a folder");
        write(&folder.path().join("controlnet/control.safetensors"), tensors);
        Self(folder)
    }

    fn run(&self, loader: Value, change: impl Fn(&mut Value)) -> Run {
        let mut workflow = workflow(loader);
        change(&mut workflow);
        let run = Run::new("run").with_plugins().args(["-", "--models"]).arg(self.0.path());
        let run = run.arg("--models").arg(repository().join("models"));
        let run = run.arg("--input").arg(repository().join("workflows/input"));
        run.arg("--out").arg(self.0.path().join("out")).stdin(workflow.to_string())
    }

    fn draw(&self, loader: Value, change: impl Fn(&mut Value)) -> Vec<u8> {
        let out = self.0.path().join("out");
        let _ = fs::remove_dir_all(&out);
        self.run(loader, change).expect_success();
        let path = fs::read_dir(&out).expect("the output folder").next();
        let path = path.expect("a picture").expect("an entry").path();
        image::open(path).expect("a picture").to_rgb8().into_raw()
    }
}

fn plain() -> Value {
    json!({"class_type": "ControlNetLoader", "_meta": {"title": "The control"},
        "inputs": {"control_net_name": "control.safetensors"}})
}

fn of_difference() -> Value {
    json!({"class_type": "DiffControlNetLoader", "_meta": {"title": "The control"},
        "inputs": {"model": ["1", 0], "control_net_name": "control.safetensors"}})
}

fn without_control(workflow: &mut Value) {
    workflow["7"]["inputs"]["positive"] = json!(["2", 0]);
    workflow["7"]["inputs"]["negative"] = json!(["2", 0]);
}

#[test]
fn a_control_lora_is_a_control_net_of_the_model_that_is_sampled() {
    let base = Models::with(&control_lora(0.0, 0.0)).draw(plain(), without_control);
    assert!(Models::with(&control_lora(0.0, 1.0)).draw(plain(), |_| ()) == base, "it adds nothing");
    let copied = Models::with(&control_lora(0.1, 0.0)).draw(plain(), |_| ());
    let changed = Models::with(&control_lora(0.1, 0.2)).draw(plain(), |_| ());
    assert!(copied != base && changed != base && changed != copied);
    // The loader of differences takes it as well.
    assert!(Models::with(&control_lora(0.1, 0.2)).draw(of_difference(), |_| ()) == changed);
}

#[test]
fn a_difference_is_added_to_the_model_it_is_loaded_with() {
    let difference = |of_conv: f32| {
        let mut tensors = own(0.1);
        let shape = vec![64, 64, 3, 3];
        let change = numbers(&shape, of_conv);
        tensors.insert("input_blocks.2.0.op.weight".to_owned(), (shape, change));
        let named = |(name, tensor)| (format!("control_model.{name}"), tensor);
        let mut tensors: Tensors = tensors.into_iter().map(named).collect();
        tensors.insert("difference".to_owned(), (vec![], vec![1.0]));
        tensors
    };
    let copied = Models::with(&control_lora(0.1, 0.0)).draw(plain(), |_| ());
    assert!(Models::with(&difference(0.0)).draw(of_difference(), |_| ()) == copied);
    assert!(Models::with(&difference(0.2)).draw(of_difference(), |_| ()) != copied);
    Models::with(&difference(0.0))
        .run(plain(), |_| ())
        .expect_code(3)
        .stderr_contains("DiffControlNetLoader");
}

#[test]
fn what_is_of_another_model_or_damaged_is_told() {
    let told = |change: &dyn Fn(&mut Tensors), words: &[&str]| {
        let mut tensors = control_lora(0.1, 0.1);
        change(&mut tensors);
        let run = Models::with(&tensors).run(plain(), |_| ()).run();
        assert!(run.code != Some(0), "it ran");
        for word in words {
            assert!(run.stderr().contains(word), "{word}: {}", run.stderr());
        }
    };
    let replace = |name: &'static str, shape: &'static [usize]| {
        move |tensors: &mut Tensors| {
            tensors.insert(name.to_owned(), (shape.to_vec(), numbers(shape, 1.0)));
        }
    };
    // SDXL's first convolution, in its own shape.
    told(&replace("input_blocks.0.0.up", &[320, 2, 1, 1]), &["conv_in.weight"]);
    told(&replace("input_blocks.0.0.down", &[3, 4, 3, 3]), &["conv_in.weight"]);
    told(
        &replace("zero_convs.0.0.weight", &[320, 320, 1, 1]),
        &["controlnet_down_blocks.0.weight"],
    );
    told(
        &|tensors| {
            tensors.remove("input_blocks.0.0.down");
        },
        &["no tensor `conv_in.down`", "input_blocks.0.0.up"],
    );
    told(
        &|tensors| {
            tensors.remove("middle_block_out.0.weight");
        },
        &["controlnet_mid_block.weight"],
    );
    // Cut off anywhere, and with a header that lies about its own length.
    let models = Models::with(&control_lora(0.1, 0.1));
    let path = models.0.path().join("controlnet/control.safetensors");
    let bytes = fs::read(&path).expect("the file");
    let lying = [&u64::MAX.to_le_bytes()[..], &bytes[8..]].concat();
    for damaged in [&bytes[..0], &bytes[..7], &bytes[..100], &bytes[..bytes.len() - 1], &lying] {
        fs::write(&path, damaged).expect("written");
        let run = models.run(plain(), |_| ()).run();
        assert!(run.code.is_some_and(|code| code > 0), "{:?}: {}", run.code, run.stderr());
        assert!(run.stderr().contains("control.safetensors"), "{}", run.stderr());
    }
    told(
        &|tensors| {
            let up = tensors.get_mut("input_blocks.0.0.up").expect("the factor");
            up.1[3] = f32::NAN;
        },
        &["input_blocks.0.0.up", "NaN"],
    );
}
