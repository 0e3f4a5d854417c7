//! IP-Adapters and T2I-Adapters from end to end: tiny random files on the bundled model, and a U-Net in C that takes the tokens.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use kosmograph_models::Weights;
use kosmograph_models::stable_diffusion::checkpoint::Checkpoint;
use kosmograph_models::stable_diffusion::ip_adapter::{IpAdapter, IpAdapterConfig, Projection};
use kosmograph_models::stable_diffusion::t2i_adapter::{Kind, T2iAdapter, T2iAdapterConfig};
use kosmograph_tests::{Finished, Run, build_c_text, repository};
use serde_json::{Value, json};

type Tensors = BTreeMap<String, Tensor>;

fn random(weights: &Weights) -> Tensors {
    let random = |(name, shape): (String, Vec<usize>)| {
        (name, Tensor::randn(0f32, 0.3, shape, &Device::Cpu).expect("numbers"))
    };
    weights.recorded().into_iter().map(random).collect()
}

fn save(path: &Path, tensors: &Tensors) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    let tensors: Vec<(&String, &Tensor)> = tensors.iter().collect();
    safetensors::serialize_to_file(tensors, None, path).expect("a file");
}

/// An adapter of the bundled U-Net's layers, of small random numbers. The encoder's embeddings are 24 wide, its states 32.
fn adapter(projection: Projection) -> Tensors {
    let (unet, ..) = Checkpoint::open(&repository().join("models/tiny/sd"), &Device::Cpu)
        .and_then(|it| it.unet())
        .expect("the U-Net");
    adapter_to(projection, unet.encoder.cross_attention_dim)
}

/// The same for a U-Net that reads text of `context_width` numbers.
fn adapter_to(projection: Projection, context_width: usize) -> Tensors {
    let path = repository().join("models/tiny/sd");
    let (unet, _, weights) =
        Checkpoint::open(&path, &Device::Cpu).and_then(|it| it.unet()).expect("the U-Net");
    let channels = |path: &String| {
        weights.shape(&format!("{path}.to_k.weight")).expect("a layer of the U-Net")[0]
    };
    let layers: Vec<usize> = unet.cross_attentions().iter().map(channels).collect();
    assert_eq!(layers, [96; 4]);
    let image_width = if projection.takes_hidden_states() { 32 } else { 24 };
    let config = IpAdapterConfig { projection, image_width, context_width, layers };
    let weights = Weights::recording();
    IpAdapter::load(&weights, &config).expect("names");
    random(&weights)
}

const BASE: Projection = Projection::Linear { tokens: 4 };
const PLUS: Projection =
    Projection::Resampler { queries: 5, width: 16, heads: 1, hidden: 32, depth: 2 };
const FULL: Projection = Projection::Mlp { hidden: 16 };

/// A folder with models and a picture. The encoder is the golden one.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let models = folder.path().join("models");
    for (name, projection) in [("base", BASE), ("plus", PLUS), ("full", FULL)] {
        save(&models.join(format!("ipadapter/{name}.safetensors")), &adapter(projection));
    }
    let vision = models.join("clip_vision/golden");
    fs::create_dir_all(&vision).expect("a folder");
    let golden = repository().join("tests/golden/clip_vision_projection");
    fs::copy(golden.join("weights.safetensors"), vision.join("model.safetensors")).expect("a copy");
    let config = fs::read(golden.join("config.json")).expect("a file");
    let config: Value = serde_json::from_slice(&config).expect("JSON");
    fs::write(vision.join("config.json"), config["config"].to_string()).expect("a file");
    fs::create_dir_all(folder.path().join("input")).expect("a folder");
    let pixel = |x: u32, y: u32| image::Rgb([(x * 7) as u8, (y * 11) as u8, (x * y) as u8]);
    let picture = image::RgbImage::from_fn(40, 30, pixel);
    picture.save(folder.path().join("input/subject.png")).expect("a picture");
    folder
}

fn node(class: &str, inputs: Value) -> Value {
    json!({"class_type": class, "inputs": inputs})
}

/// From text to a picture, by the model that node `model` gives. Its nodes have letters.
fn workflow(model: &str, more: &[(&str, Value)]) -> Value {
    let mut graph = json!({
        "c": node("CheckpointLoaderSimple", json!({"ckpt_name": "tiny/sd"})),
        "p": node("CLIPTextEncode", json!({"clip": ["c", 1], "text": "a hat"})),
        "n": node("CLIPTextEncode", json!({"clip": ["c", 1], "text": ""})),
        "l": node("EmptyLatentImage", json!({"width": 64, "height": 64, "batch_size": 2})),
        "k": node("KSampler", json!({"model": [model, 0], "seed": 1, "steps": 2, "cfg": 3.0,
            "sampler_name": "euler", "scheduler": "normal", "positive": ["p", 0], "negative": ["n", 0],
            "latent_image": ["l", 0], "denoise": 1.0})),
        "d": node("VAEDecode", json!({"samples": ["k", 0], "vae": ["c", 2]})),
        "s": node("SaveImage", json!({"images": ["d", 0], "filename_prefix": "x"})),
        "image": node("LoadImage", json!({"image": "subject.png"})),
        "vision": node("CLIPVisionLoader", json!({"clip_name": "golden"})),
    });
    for (id, node) in more {
        graph[*id] = node.clone();
    }
    graph
}

fn loader(file: &str) -> Value {
    node("IPAdapterModelLoader", json!({"ipadapter_file": format!("{file}.safetensors")}))
}

fn advanced(inputs: &Value) -> Value {
    let mut all = json!({"model": ["c", 0], "ipadapter": ["adapter", 0], "image": ["image", 0],
        "clip_vision": ["vision", 0], "weight": 1.0, "weight_type": "linear", "combine_embeds": "concat",
        "start_at": 0.0, "end_at": 1.0, "embeds_scaling": "V only"});
    for (name, value) in inputs.as_object().expect("inputs") {
        all[name] = value.clone();
    }
    node("IPAdapterAdvanced", all)
}

fn run(folder: &Path, graph: &Value, code: i32) -> Finished {
    let run = Run::new("run").with_plugins().arg("-").stdin(graph.to_string());
    let run = run.arg("--models").arg(folder.join("models"));
    let run = run.arg("--models").arg(repository().join("models"));
    let run = run.arg("--input").arg(folder.join("input"));
    run.arg("--out").arg(folder.join("out")).expect_code(code).stderr_lacks("panicked")
}

/// The first picture that the graph makes.
fn made(folder: &Path, graph: &Value) -> image::RgbImage {
    run(folder, graph, 0);
    let out = folder.join("out");
    let picture = image::open(out.join("x_00001_.png")).expect("a picture").to_rgb8();
    fs::remove_dir_all(&out).expect("an empty folder again");
    picture
}

#[test]
fn a_picture_steers_the_model_where_and_when_it_is_said() {
    let folder = folder();
    let picture = |graph: &Value| made(folder.path(), graph);
    let plain = picture(&workflow("c", &[]));
    let with = |file: &str, inputs: Value| {
        workflow("a", &[("adapter", loader(file)), ("a", advanced(&inputs))])
    };
    for file in ["base", "plus", "full"] {
        assert_ne!(picture(&with(file, json!({}))), plain, "{file}");
    }
    // Without weight, or between the two steps, nothing is changed to the bit.
    assert_eq!(picture(&with("base", json!({"weight": 0.0}))), plain);
    assert_eq!(picture(&with("base", json!({"start_at": 0.4, "end_at": 0.6}))), plain);
    let half = picture(&with("base", json!({"end_at": 0.4})));
    let whole = picture(&with("base", json!({})));
    assert!(half != plain && half != whole);
    // Two at once, one on the other, and the same in one node by embeddings.
    let second = advanced(&json!({"model": ["a", 0], "ipadapter": ["other", 0], "weight": 0.5}));
    let both = workflow(
        "b",
        &[
            ("adapter", loader("base")),
            ("other", loader("plus")),
            ("a", advanced(&json!({}))),
            ("b", second),
        ],
    );
    let both = picture(&both);
    assert!(both != whole && both != plain);
    let encoder = node(
        "IPAdapterEncoder",
        json!({"ipadapter": ["adapter", 0], "image": ["image", 0], "weight": 1.0,
            "clip_vision": ["vision", 0]}),
    );
    let combined = node(
        "IPAdapterCombineEmbeds",
        json!({"embed1": ["e", 0], "method": "average", "embed2": ["e", 0]}),
    );
    let embeds = node(
        "IPAdapterEmbeds",
        json!({"model": ["c", 0], "ipadapter": ["adapter", 0], "pos_embed": ["f", 0],
            "neg_embed": ["e", 1], "weight": 1.0, "weight_type": "linear", "start_at": 0.0,
            "end_at": 1.0, "embeds_scaling": "V only"}),
    );
    let by_embeds = workflow(
        "a",
        &[("adapter", loader("base")), ("e", encoder), ("f", combined), ("a", embeds)],
    );
    assert_eq!(picture(&by_embeds), whole);
    // A picture that is not to be, and the half of the picture that counts.
    let negative = picture(&with("base", json!({"image_negative": ["image", 0]})));
    assert!(negative != whole && negative != plain);
    let masked = |value: f64| {
        let mask = node("SolidMask", json!({"value": value, "width": 64, "height": 64}));
        let apply = advanced(&json!({"attn_mask": ["m", 0]}));
        picture(&workflow("a", &[("adapter", loader("base")), ("m", mask), ("a", apply)]))
    };
    assert_eq!((masked(1.0), masked(0.0)), (whole.clone(), plain.clone()));
    let half = masked(0.5);
    assert!(half != whole && half != plain);
}

#[test]
fn the_unified_loader_finds_what_a_preset_needs() {
    let folder = folder();
    let models = folder.path().join("models");
    fs::copy(
        models.join("ipadapter/base.safetensors"),
        models.join("ipadapter/ip-adapter_sd15.safetensors"),
    )
    .expect("a copy");
    let unified =
        |preset: &str| node("IPAdapterUnifiedLoader", json!({"model": ["c", 0], "preset": preset}));
    let simple = node(
        "IPAdapter",
        json!({"model": ["u", 0], "ipadapter": ["u", 1], "image": ["image", 0], "weight": 1.0,
            "start_at": 0.0, "end_at": 1.0, "weight_type": "standard"}),
    );
    let graph = |preset: &str| workflow("a", &[("u", unified(preset)), ("a", simple.clone())]);
    // The adapter is there, the encoder not yet.
    let finished = run(folder.path(), &graph("STANDARD (medium strength)"), 3);
    let finished = finished.stderr_contains("CLIP-ViT-H-14-laion2B-s32B-b79K");
    finished.stderr_contains("in the folder clip_vision").stderr_contains("preset");
    let finished = run(folder.path(), &graph("PLUS (high strength)"), 3);
    finished.stderr_contains("ip-adapter-plus_sd15 in the folder ipadapter");
    // An encoder of a published width under the published name.
    let vision = kosmograph_models::clip::vision::ClipVisionConfig {
        hidden_size: 768,
        intermediate_size: 8,
        num_hidden_layers: 2,
        num_attention_heads: 12,
        image_size: 28,
        patch_size: 14,
        projection_dim: 24,
        hidden_act: kosmograph_models::clip::text::Activation::QuickGelu,
        layer_norm_eps: 1e-5,
    };
    let weights = Weights::recording();
    kosmograph_models::clip::vision::ClipVision::load(&vision, &weights).expect("names");
    let file = models.join("clip_vision/CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors");
    save(&file, &random(&weights));
    let steered = made(folder.path(), &graph("STANDARD (medium strength)"));
    assert_ne!(steered, made(folder.path(), &workflow("c", &[])));
}

#[test]
fn what_does_not_fit_is_told() {
    let folder = folder();
    let models = folder.path().join("models");
    let odd = models.join("ipadapter/odd.safetensors");
    let refused = |tensors: &Tensors, inputs: Value, told: &[&str]| {
        save(&odd, tensors);
        let graph = workflow("a", &[("adapter", loader("odd")), ("a", advanced(&inputs))]);
        let finished = run(folder.path(), &graph, 3);
        for told in told {
            assert!(finished.stderr().contains(told), "{told:?} is not told by\n{finished}");
        }
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("zeros");
    let changed = |name: &str, tensor: Option<Tensor>| {
        let mut tensors = adapter(BASE);
        match tensor {
            Some(tensor) => drop(tensors.insert(name.to_owned(), tensor)),
            None => drop(tensors.remove(name)),
        }
        tensors
    };
    let file = ["odd.safetensors", "ipadapter_file"];
    let none = json!({});
    let refused_file = |tensors: &Tensors, told: &str| {
        refused(tensors, none.clone(), &[file[0], file[1], told]);
    };
    refused_file(&[("x".to_owned(), zeros(&[1]))].into(), "is no IP-Adapter");
    refused_file(&changed("image_proj.norm.bias", None), "image_proj.norm.bias");
    refused_file(&changed("surprise", Some(zeros(&[1]))), "surprise");
    let flat = changed("ip_adapter.1.to_k_ip.weight", Some(zeros(&[96])));
    refused_file(&flat, "ip_adapter.1.to_k_ip.weight");
    let lora = changed("ip_adapter.0.to_q_lora.down.weight", Some(zeros(&[4, 4])));
    refused_file(&lora, "FaceID");
    // Another encoder, another family, another number of layers.
    let wide = {
        let mut tensors = adapter(BASE);
        tensors.insert("image_proj.proj.weight".to_owned(), zeros(&[512, 1024]));
        tensors
    };
    refused(&wide, json!({}), &["1024 numbers wide, but the CLIP vision encoder gives 24"]);
    let fewer = {
        let mut tensors = adapter(BASE);
        tensors.retain(|name, _| !name.starts_with("ip_adapter.7."));
        tensors
    };
    refused(&fewer, json!({}), &["for a U-Net of 3 cross-attentions, but this one has 4"]);
    let whole = adapter(BASE);
    refused(&whole, json!({"weight_type": "composition"}), &["weight_type", "this model has 4"]);
    refused(&whole, json!({"start_at": 0.5, "end_at": 0.25}), &["start_at", "ends at 0.25"]);
    // Half a file.
    save(&odd, &whole);
    let bytes = fs::read(&odd).expect("a file");
    fs::write(&odd, &bytes[..bytes.len() / 2]).expect("half of it");
    let graph = workflow("a", &[("adapter", loader("odd")), ("a", advanced(&json!({})))]);
    run(folder.path(), &graph, 3).stderr_contains("odd.safetensors");
}

/// An IP-Adapter for a U-Net that reads other text: told before any weight is read, whatever lies between loader and node.
#[test]
fn check_tells_an_adapter_of_another_family() {
    let folder = folder();
    save(&folder.path().join("models/ipadapter/wide.safetensors"), &adapter_to(BASE, 160));
    let check = |file: &str| {
        let graph = workflow("a", &[("adapter", loader(file)), ("a", advanced(&json!({})))]);
        let run = Run::new("check").with_plugins().arg("-").stdin(graph.to_string());
        let run = run.arg("--models").arg(folder.path().join("models"));
        run.arg("--models")
            .arg(repository().join("models"))
            .arg("--input")
            .arg(folder.path().join("input"))
    };
    check("base").expect_success();
    let told = check("wide").expect_code(2).stderr().to_owned();
    for part in [
        "node a",
        "ipadapter",
        "wide.safetensors",
        "160 numbers",
        "takes 128",
        "different families",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    // The node says it as well, to whoever runs without asking first.
    let graph = workflow("a", &[("adapter", loader("wide")), ("a", advanced(&json!({})))]);
    run(folder.path(), &graph, 3).stderr_contains("another family of models");
}

/// The denoiser of the examples, whose data's mean is moved by the tokens that it is given.
fn denoiser_with_tokens() -> std::path::PathBuf {
    let source = repository().join("tests/examples/denoiser.c");
    let source = fs::read_to_string(source).expect("the example");
    let helper = r#"
/* The mean, moved by the first number of each row's tokens. */
static double mean_of(const kg_map *input, int64_t row, double mean) {
  const kg_value *extra = kg_map_get(input, "extra_tokens");
  for (size_t i = 0; extra != NULL && i < extra->as.list->count; i++) {
    const kg_map *item = extra->as.list->items[i].as.map;
    const DLTensor *tokens = &kg_map_get(item, "tokens")->as.tensor->dl->dl_tensor;
    int64_t each = tokens->shape[1] * tokens->shape[2];
    mean += kg_map_get(item, "weight")->as.number * element(tokens, row * each);
  }
  return mean;
}

/* "denoiser/1": x, timestep"#;
    let replace = |text: String, from: &str, to: &str| {
        assert!(text.contains(from), "the example has no {from:?}");
        text.replacen(from, to, 1)
    };
    let source = replace(source, "\n/* \"denoiser/1\": x, timestep", helper);
    let source =
        replace(source, "sqrt(a) * self->mean)", "sqrt(a) * mean_of(input, b, self->mean))");
    let source = replace(
        source,
        "\\\"context_width\\\": 768,",
        "\\\"context_width\\\": 128, \\\"understands\\\": {\\\"denoiser/1\\\": [\\\"extra_tokens\\\"]},",
    );
    build_c_text("tokens_denoiser", &source, &[])
}

#[test]
fn a_u_net_in_c_takes_the_tokens() {
    let folder = folder();
    let library = denoiser_with_tokens();
    let model = node("CAnalyticDenoiser", json!({"mean": 0.5, "deviation": 0.5}));
    let picture = |graph: &Value| {
        let run = Run::new("run").with_plugins().arg("--plugins").arg(&library).arg("-");
        let run = run.stdin(graph.to_string()).arg("--models").arg(folder.path().join("models"));
        let run = run.arg("--models").arg(repository().join("models"));
        let run = run.arg("--input").arg(folder.path().join("input"));
        run.arg("--out").arg(folder.path().join("out")).expect_success();
        let out = folder.path().join("out");
        let picture = image::open(out.join("x_00001_.png")).expect("a picture").to_rgb8();
        fs::remove_dir_all(&out).expect("an empty folder again");
        picture
    };
    let plain = picture(&workflow("m", &[("m", model.clone())]));
    let steered = |inputs: Value| {
        let mut inputs = inputs;
        inputs["model"] = json!(["m", 0]);
        picture(&workflow(
            "a",
            &[("m", model.clone()), ("adapter", loader("base")), ("a", advanced(&inputs))],
        ))
    };
    let whole = steered(json!({}));
    assert_ne!(whole, plain);
    assert_eq!(steered(json!({"weight": 0.0})), plain);
    assert_ne!(steered(json!({"weight": 0.5})), whole);
}

#[test]
fn a_t2i_adapter_steers_as_a_controlnet_does() {
    let folder = folder();
    let models = folder.path().join("models");
    // The bundled U-Net has two levels, the outer one without attention, as SDXL's.
    let adapter = |downscale: usize, channels: &[usize]| {
        let config = T2iAdapterConfig {
            in_channels: 3,
            downscale,
            channels: channels.to_vec(),
            resnets: 2,
            kind: Kind::Full { kernel: 1 },
        };
        let weights = Weights::recording();
        T2iAdapter::load(&weights, &config).expect("names");
        random(&weights)
    };
    let file = models.join("controlnet/adapter.safetensors");
    let load = node("ControlNetLoader", json!({"control_net_name": "adapter.safetensors"}));
    let apply = |strength: f64| {
        node(
            "ControlNetApplyAdvanced",
            json!({"positive": ["p", 0], "negative": ["n", 0], "control_net": ["t", 0],
                "image": ["image", 0], "strength": strength, "start_percent": 0.0, "end_percent": 1.0}),
        )
    };
    let graph = |strength: f64| {
        let mut graph = workflow("c", &[("t", load.clone()), ("a", apply(strength))]);
        graph["k"]["inputs"]["positive"] = json!(["a", 0]);
        graph["k"]["inputs"]["negative"] = json!(["a", 1]);
        graph
    };
    let plain = made(folder.path(), &workflow("c", &[]));
    save(&file, &adapter(16, &[64, 96]));
    let (weak, strong) = (made(folder.path(), &graph(0.3)), made(folder.path(), &graph(1.0)));
    assert!(weak != plain && strong != plain && weak != strong);
    assert_eq!(made(folder.path(), &graph(0.0)), plain);
    // One for Stable Diffusion 1.5, whose first feature is as large as the latents; and one with a level too many.
    save(&file, &adapter(8, &[64, 96]));
    let misfit = run(folder.path(), &graph(1.0), 3);
    misfit.stderr_contains("feature for down_blocks.0").stderr_contains("another family");
    save(&file, &adapter(16, &[64, 96, 96]));
    run(folder.path(), &graph(1.0), 3).stderr_contains("down_blocks.2");
    let mut damaged = adapter(16, &[64, 96]);
    damaged.remove("body.0.resnets.1.block2.bias");
    save(&file, &damaged);
    let told = run(folder.path(), &graph(1.0), 3);
    told.stderr_contains("adapter.safetensors").stderr_contains("block2.bias");
}
