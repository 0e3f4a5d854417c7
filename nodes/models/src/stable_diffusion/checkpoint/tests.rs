//! Every kind of file in its real names and shapes, written as a header over a hole: the sizes are real,
//! the numbers take no room on the disk.

use super::*;
use crate::clip::text::ClipText;
use crate::stable_diffusion::controlnet::ControlNet;
use crate::stable_diffusion::unet::UNet;
use crate::stable_diffusion::vae::Vae;
use candle_core::{DType, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write;

type Shapes = BTreeMap<String, Vec<usize>>;

/// One of the lists of tests/golden/key_lists.
fn json(name: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/key_lists");
    let text = fs::read_to_string(folder.join(name)).expect("a key list");
    serde_json::from_str(&text).expect("JSON")
}

fn shapes(name: &str) -> Shapes {
    let list = json(name);
    let list = list.as_object().expect("an object");
    let shape = |entry: &Value| serde_json::from_value(entry["shape"].clone()).expect("a shape");
    list.iter().map(|(name, entry)| (name.clone(), shape(entry))).collect()
}

fn renamed(shapes: Shapes, rename: impl Fn(&str) -> String) -> Shapes {
    shapes.into_iter().map(|(name, shape)| (rename(&name), shape)).collect()
}

/// A file of these shapes in f16, and a folder that holds it.
struct Sparse {
    folder: tempfile::TempDir,
    path: PathBuf,
}

fn sparse(shapes: &Shapes, metadata: &[(&str, &str)]) -> Sparse {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        let metadata: HashMap<&str, &str> = metadata.iter().copied().collect();
        header.insert("__metadata__".to_owned(), json!(metadata));
    }
    let mut at = 0;
    for (name, shape) in shapes {
        let end = at + 2 * shape.iter().product::<usize>();
        header.insert(
            name.clone(),
            json!({"dtype": "F16", "shape": shape, "data_offsets": [at, end]}),
        );
        at = end;
    }
    let header = Value::Object(header).to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("some name.safetensors");
    let mut file = File::create(&path).expect("a file");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("written");
    file.write_all(header.as_bytes()).expect("written");
    file.set_len(8 + header.len() as u64 + at as u64).expect("a hole");
    Sparse { folder, path }
}

fn open(shapes: &Shapes) -> Result<(Sparse, Checkpoint)> {
    let file = sparse(shapes, &[]);
    let checkpoint = Checkpoint::open(&file.path, &Device::Cpu)?;
    Ok((file, checkpoint))
}

fn refusal(shapes: &Shapes) -> String {
    match open(shapes) {
        Ok((_, checkpoint)) => panic!("it was taken for {}", checkpoint.kind()),
        Err(error) => error.to_string(),
    }
}

fn list(names: &[(&str, &[usize])]) -> Shapes {
    names.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect()
}

fn check_unet(checkpoint: &Checkpoint) -> Result<UNetConfig> {
    let (config, _, weights) = checkpoint.unet()?;
    weights.check(|weights| UNet::load(weights, &config), &[])?;
    Ok(config)
}

fn check_vae(checkpoint: &Checkpoint) -> Result<()> {
    let (config, weights) = checkpoint.vae()?;
    assert_eq!((config.factor(), config.scaling_factor()), (8, 0.18215));
    weights.check(|weights| Vae::load(weights, &config), &[])?;
    Ok(())
}

fn check_clip(checkpoint: &Checkpoint) -> Result<()> {
    let (config, weights) = checkpoint.clip_text()?;
    assert_eq!((config.num_hidden_layers, config.num_attention_heads), (12, 12));
    weights.check(|weights| ClipText::load(&config, weights), &[])?;
    Ok(())
}

fn check_control_net(checkpoint: &Checkpoint) -> Result<()> {
    let (config, weights) = checkpoint.control_net()?;
    assert_eq!((config.hint_factor(), config.conditioning_channels()), (8, 3));
    weights.check(|weights| ControlNet::load(weights, &config), &[])?;
    Ok(())
}

#[test]
fn a_single_file_holds_all_three() -> Result<()> {
    let mut shapes = shapes("sd15_ldm_single_file.json");
    // What real files have besides.
    for (name, shape) in [
        ("cond_stage_model.transformer.text_model.embeddings.position_ids", vec![1, 77]),
        ("model_ema.diffusion_modelout2bias", vec![4]),
        ("model_ema.decay", vec![]),
        ("alphas_cumprod", vec![1000]),
    ] {
        shapes.insert(name.to_owned(), shape);
    }
    let (_file, checkpoint) = open(&shapes)?;
    let config = check_unet(&checkpoint)?;
    assert_eq!((config.encoder.in_channels, config.encoder.cross_attention_dim), (4, 768));
    check_vae(&checkpoint)?;
    check_clip(&checkpoint)?;
    assert!(checkpoint.control_net().is_err_and(|e| e.to_string().contains("is a checkpoint")));
    // As torch saves a training checkpoint's model.
    let wrapped = renamed(shapes, |name| format!("state_dict.{name}"));
    check_unet(&open(&wrapped)?.1)?;
    Ok(())
}

#[test]
fn a_single_file_may_lack_a_clip_or_a_vae() -> Result<()> {
    let whole = shapes("sd15_ldm_single_file.json");
    let without = |prefix: &str| -> Shapes {
        whole.clone().into_iter().filter(|(name, _)| !name.starts_with(prefix)).collect()
    };
    let (_file, checkpoint) = open(&without("first_stage_model."))?;
    check_unet(&checkpoint)?;
    check_clip(&checkpoint)?;
    assert!(matches!(checkpoint.vae(), Err(Error::HasNo { .. })));
    let (_file, checkpoint) = open(&without("cond_stage_model."))?;
    check_unet(&checkpoint)?;
    check_vae(&checkpoint)?;
    assert!(matches!(checkpoint.clip_text(), Err(Error::HasNo { .. })));
    Ok(())
}

#[test]
fn parts_stand_alone_in_every_naming() -> Result<()> {
    let whole = shapes("sd15_ldm_single_file.json");
    let part = |prefix: &str| -> Shapes {
        let own = |(name, shape): (&String, &Vec<usize>)| {
            Some((name.strip_prefix(prefix)?.to_owned(), shape.clone()))
        };
        whole.iter().filter_map(own).collect()
    };
    for unet in [
        shapes("sd15_unet_diffusers.json"),
        part("model.diffusion_model."),
        renamed(part("model.diffusion_model."), |name| format!("model.diffusion_model.{name}")),
    ] {
        let (_file, checkpoint) = open(&unet)?;
        check_unet(&checkpoint)?;
        let error = checkpoint.vae().err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("an autoencoder"), "{error}");
    }
    let old: HashMap<String, String> =
        serde_json::from_value(json("sd15_vae_old_diffusers_attention_names.json")).expect("names");
    let mut ldm = part("first_stage_model.");
    ldm.insert("loss.logvar".to_owned(), vec![]);
    for vae in [
        shapes("sd15_vae_diffusers.json"),
        renamed(shapes("sd15_vae_diffusers.json"), |name| {
            old.get(name).map_or(name, String::as_str).to_owned()
        }),
        ldm,
    ] {
        check_vae(&open(&vae)?.1)?;
    }
    for clip in [
        shapes("sd15_clip_text_diffusers.json"),
        renamed(shapes("sd15_clip_text_diffusers.json"), |name| name.replace("text_model.", "")),
        renamed(shapes("sd15_clip_text_diffusers.json"), |name| {
            format!("cond_stage_model.transformer.{name}")
        }),
    ] {
        check_clip(&open(&clip)?.1)?;
    }
    let bare = renamed(shapes("controlnet_ldm.json"), |name| name.replace("control_model.", ""));
    for control_net in
        [shapes("sd15_controlnet_diffusers.json"), shapes("controlnet_ldm.json"), bare]
    {
        check_control_net(&open(&control_net)?.1)?;
    }
    Ok(())
}

#[test]
fn other_numbers_of_input_channels_are_read_off() -> Result<()> {
    for channels in [8, 9] {
        let mut shapes = shapes("sd15_ldm_single_file.json");
        shapes.insert(
            "model.diffusion_model.input_blocks.0.0.weight".to_owned(),
            vec![320, channels, 3, 3],
        );
        assert_eq!(check_unet(&open(&shapes)?.1)?.encoder.in_channels, channels);
    }
    Ok(())
}

#[test]
fn names_are_those_that_diffusers_translates_to() {
    let mapping = json("mapping_diffusers_to_ldm.json");
    let pairs = |part: &str| {
        let part = mapping[part].as_object().expect("an object").clone();
        part.into_iter().map(|(new, old)| (new, old.as_str().expect("a name").to_owned()))
    };
    let rows = Rows { layers: 2 };
    let mut seen = 0;
    for (new, old) in pairs("unet") {
        assert_eq!(rows.unet(old.trim_start_matches("model.diffusion_model.")), Some(new));
        seen += 1;
    }
    for (new, old) in pairs("controlnet") {
        let old = old.trim_start_matches("control_model.");
        assert_eq!(rows.control_net(old, 7), Some(new));
        seen += 1;
    }
    for (new, old) in pairs("vae") {
        assert_eq!(ldm::vae(old.trim_start_matches("first_stage_model."), 4), Some(new));
        seen += 1;
    }
    assert!(seen > 1000, "only {seen} names were compared");
}

#[test]
fn the_numbers_go_to_their_places() -> Result<()> {
    // Each tensor holds a number of its own; read under the new name it is the old one's.
    let mapping = json("mapping_diffusers_to_ldm.json");
    let pairs = mapping["unet"].as_object().expect("an object");
    let old = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let number = |i: usize| Tensor::full(i as f32, (1, 1, 1, 1), &Device::Cpu);
    let tensors: candle_core::Result<HashMap<String, Tensor>> =
        pairs.values().enumerate().map(|(i, name)| Ok((old(name), number(i)?))).collect();
    let weights = Weights::from_tensors("a file", tensors?, &Device::Cpu);
    let checkpoint = Checkpoint {
        path: "a file".into(),
        device: Device::Cpu,
        file: Some((weights.clone(), Naming::Checkpoint)),
    };
    let unet = weights.sub("model.diffusion_model");
    let names = unet.names();
    let rows = Rows::of(names.iter().map(String::as_str)).expect("rows");
    let unet =
        unet.renamed(names.into_iter().map(|old| (rows.unet(&old).unwrap_or_default(), old)));
    for (i, name) in pairs.keys().enumerate() {
        let found = unet.get(name, (1, 1, 1, 1))?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(found, [i as f32], "{name}");
    }
    assert_eq!(checkpoint.kind(), "a checkpoint");
    Ok(())
}

#[test]
fn errors_call_tensors_what_the_file_calls_them() -> Result<()> {
    let mut shapes = shapes("sd15_ldm_single_file.json");
    let name = "model.diffusion_model.middle_block.0.in_layers.2.weight";
    shapes.insert(name.to_owned(), vec![1280, 7, 3, 3]);
    let error = check_unet(&open(&shapes)?.1).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains(name) && error.contains("[1280, 7, 3, 3]"), "{error}");
    shapes.remove(name);
    assert!(check_unet(&open(&shapes)?.1).is_err());
    shapes.insert(name.to_owned(), vec![1280, 1280, 3, 3]);
    shapes.insert("model.diffusion_model.something.else".to_owned(), vec![1]);
    let error = check_unet(&open(&shapes)?.1).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(
        error.contains("model.diffusion_model.something.else") || error.contains("something.else"),
        "{error}"
    );
    Ok(())
}

#[test]
fn what_the_network_predicts_is_found() -> Result<()> {
    use crate::samplers::Prediction;
    let shapes = shapes("sd15_ldm_single_file.json");
    let prediction = |file: &Sparse| -> Result<Prediction> {
        Ok(Checkpoint::open(&file.path, &Device::Cpu)?.unet()?.1.prediction_type)
    };
    let plain = sparse(&shapes, &[]);
    assert_eq!(prediction(&plain)?, Prediction::Epsilon);
    let beside = |value: &str| {
        let text =
            format!("model:\n  params:\n    parameterization: {value}\n    timesteps: 1000\n");
        fs::write(plain.folder.path().join("some name.yaml"), text).expect("written");
        prediction(&plain)
    };
    for v in ["v", "\"v\"", "'v'  # velocity"] {
        assert_eq!(beside(v)?, Prediction::VPrediction, "{v}");
    }
    assert_eq!(beside("\"eps\"")?, Prediction::Epsilon);
    assert!(beside("x0").is_err_and(|e| e.to_string().contains("`x0`")));
    assert!(beside("[").is_err_and(|e| e.to_string().contains("some name.yaml")));
    assert_eq!(
        prediction(&sparse(&shapes, &[("modelspec.prediction_type", "v")]))?,
        Prediction::VPrediction
    );
    let mut marked = shapes.clone();
    marked.insert("v_pred".to_owned(), vec![]);
    assert_eq!(prediction(&sparse(&marked, &[]))?, Prediction::VPrediction);
    let rescaled = |shapes: &Shapes| -> Result<bool> {
        let (_file, checkpoint) = open(shapes)?;
        Ok(checkpoint.unet()?.1.rescale_betas_zero_snr)
    };
    assert!(!rescaled(&marked)?);
    marked.insert("ztsnr".to_owned(), vec![]);
    assert!(rescaled(&marked)?);
    marked.remove("v_pred");
    assert!(!rescaled(&marked)?);
    // Playground 2.5 has both marks; one alone means nothing, as in ComfyUI.
    let mut marked = shapes.clone();
    marked.insert("edm_std".to_owned(), vec![4]);
    assert_eq!(prediction(&sparse(&marked, &[]))?, Prediction::Epsilon);
    marked.insert("edm_mean".to_owned(), vec![4]);
    assert_eq!(prediction(&sparse(&marked, &[]))?, Prediction::Edm);
    let config = open(&marked)?.1.unet()?.1;
    assert_eq!(config.edm_sigmas, Some((0.002, 80.0)));
    assert_eq!(config.latent_space.map(|space| space.mean.len()), Some(4));
    Ok(())
}

/// The marks of CosXL, whose numbers a hole in a file does not have: it is of zeros, which no noise level is.
#[test]
fn the_noise_levels_of_an_edm_network_are_in_its_marks() -> Result<()> {
    use crate::samplers::{Prediction, Schedule, Timesteps};
    let mut tensors = HashMap::new();
    let config = UNetConfig::from_value(
        &json!({
            "block_out_channels": [32], "attention_head_dim": 8, "norm_num_groups": 32,
            "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"],
            "layers_per_block": 1, "cross_attention_dim": 6,
        }),
        "a small one",
    )?;
    let recording = Weights::recording();
    UNet::load(&recording, &config)?;
    for (name, shape) in recording.recorded() {
        tensors.insert(name, Tensor::zeros(shape, DType::F32, &Device::Cpu)?);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("unet.safetensors");
    let mut mark = |name: &str, sigma: f32| -> Result<SchedulerConfig> {
        tensors.insert(name.to_owned(), Tensor::new(sigma, &Device::Cpu)?);
        candle_core::safetensors::save(&tensors, &path)?;
        Ok(Checkpoint::open(&path, &Device::Cpu)?.unet()?.1)
    };
    let config = mark(EDM_SIGMA_MAX, 80.0)?;
    assert_eq!(config.prediction_type, Prediction::VPrediction);
    assert_eq!(config.edm_sigmas, Some((0.002, 80.0)));
    let config = mark(EDM_SIGMA_MIN, 0.5)?;
    assert_eq!(config.edm_sigmas, Some((0.5, 80.0)));
    assert_eq!(Schedule::new(&config)?.timesteps, Timesteps::QuarterLogSigma);
    assert!(mark(EDM_SIGMA_MAX, f32::INFINITY).is_err());
    let config = mark(EDM_SIGMA_MAX, 0.25)?;
    let error = Schedule::new(&config).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("σ goes from 0.5 to 0.25"), "{error}");
    Ok(())
}

#[test]
fn the_factor_of_latents_is_the_autoencoders_beside_or_the_familys() -> Result<()> {
    let scale = |shapes: &Shapes, metadata: &[(&str, &str)]| -> Result<Option<f64>> {
        let file = sparse(shapes, metadata);
        let checkpoint = Checkpoint::open(&file.path, &Device::Cpu)?;
        Ok(checkpoint.latent_scale(&checkpoint.unet()?.0))
    };
    for (name, expected) in
        [("sd15_ldm_single_file.json", 0.18215), ("sd15_unet_diffusers.json", 0.18215)]
    {
        assert_eq!(scale(&shapes(name), &[])?, Some(expected), "{name}");
    }
    let said = ("kosmograph.config", r#"{"vae": {"scaling_factor": 0.5}}"#);
    assert_eq!(scale(&shapes("sd15_ldm_single_file.json"), &[said])?, Some(0.5));
    // A small model of somebody's own says nothing by its shapes, and its autoencoder may lie beside it.
    let tiny = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny");
    let folder = |name: &str| -> Result<Option<f64>> {
        let checkpoint = Checkpoint::open(&tiny.join(name), &Device::Cpu)?;
        Ok(checkpoint.latent_scale(&checkpoint.unet()?.0))
    };
    let vae = fs::read_to_string(tiny.join("sd/vae/config.json")).expect("a configuration");
    let vae: Value = serde_json::from_str(&vae).expect("JSON");
    let of_vae = vae["scaling_factor"].as_f64();
    assert!(of_vae.is_some_and(|scale| scale != 0.18215), "{of_vae:?}");
    assert_eq!(folder("sd")?, of_vae);
    assert_eq!(folder("sd/unet")?, of_vae);
    assert_eq!(folder("unet/dreambooth")?, None);
    Ok(())
}

#[test]
fn a_mark_beside_a_u_net_alone_is_none_of_its_tensors() -> Result<()> {
    use crate::samplers::Prediction;
    for prefix in ["", "model.diffusion_model."] {
        let mut unet: Shapes = match prefix {
            "" => shapes("sd15_unet_diffusers.json"),
            _ => shapes("sd15_ldm_single_file.json")
                .into_iter()
                .filter_map(|(name, shape)| Some((name.strip_prefix(prefix)?.to_owned(), shape)))
                .collect(),
        };
        unet.insert("v_pred".to_owned(), vec![]);
        let (_file, checkpoint) = open(&unet)?;
        check_unet(&checkpoint)?;
        assert_eq!(checkpoint.unet()?.1.prediction_type, Prediction::VPrediction);
    }
    Ok(())
}

#[test]
fn hostile_names_and_shapes_are_errors() {
    let refused = |names: &[(&str, &[usize])]| {
        let (_file, checkpoint) = open(&list(names)).expect("a file of a known kind");
        let parts = [
            checkpoint.unet().err().map(|error| error.to_string()),
            checkpoint.vae().err().map(|error| error.to_string()),
            checkpoint.control_net().err().map(|error| error.to_string()),
        ];
        assert!(parts.iter().all(Option::is_some), "{parts:?}");
        parts.into_iter().flatten().collect::<String>()
    };
    // Numbers of blocks at the end of what can be counted.
    for last in [usize::MAX, usize::MAX - 1] {
        refused(&[(&format!("input_blocks.{last}.0.weight"), &[1]), ("input_blocks.5.0.x", &[1])]);
        refused(&[(&format!("encoder.down.{last}.block.0.conv1.weight"), &[1])]);
    }
    // A scalar has no channels.
    let scalar: &[usize] = &[];
    for name in
        ["down_blocks.0.resnets.0.conv1.weight", "encoder.down_blocks.0.resnets.0.conv1.weight"]
    {
        let said = refused(&[(name, scalar)]);
        assert!(said.contains(name), "{said}");
    }
}

#[test]
fn a_control_net_pools_by_its_name_or_what_stands_beside_it() -> Result<()> {
    for list in ["sd15_controlnet_diffusers.json", "controlnet_ldm.json"] {
        let file = sparse(&shapes(list), &[]);
        let pools = |name: &str| -> Result<bool> {
            let path = file.folder.path().join(name);
            fs::hard_link(&file.path, &path).expect("a link");
            Ok(Checkpoint::open(&path, &Device::Cpu)?.control_net()?.0.pools())
        };
        for name in [
            "control_v11e_sd15_shuffle.safetensors",
            "control_v11e_sd15_shuffle_fp16.safetensors",
            "Control-Shuffle-fp16.safetensors",
        ] {
            assert!(pools(name)?, "{name}");
        }
        for name in ["control_v11p_sd15_canny.safetensors", "shuffled.safetensors"] {
            assert!(!pools(name)?, "{name}");
        }
        for (name, stated) in [("a shuffle.safetensors", false), ("b.safetensors", true)] {
            let text = format!("model:\n  params:\n    global_average_pooling: {stated}\n");
            let beside = file.folder.path().join(name).with_extension("yaml");
            fs::write(beside, text).expect("written");
            assert_eq!(pools(name)?, stated, "{name}");
        }
        let config = r#"{"controlnet": {"global_pool_conditions": true}}"#;
        let said = sparse(&shapes(list), &[("kosmograph.config", config)]);
        assert!(Checkpoint::open(&said.path, &Device::Cpu)?.control_net()?.0.pools());
    }
    Ok(())
}

/// SDXL's smaller relatives have their own depths, which their names say: of diffusers, and of a single file.
#[test]
fn a_control_net_of_a_models_own_u_net_is_known() -> Result<()> {
    let names: [(&str, &[usize]); 9] = [
        ("input_blocks.1.0.in_layers.2.up", &[8, 2, 1, 1]),
        ("input_blocks.1.0.in_layers.2.down", &[2, 8, 3, 3]),
        ("input_blocks.3.0.op.up", &[8, 2, 1, 1]),
        ("input_blocks.3.0.op.down", &[2, 8, 3, 3]),
        ("input_blocks.1.0.in_layers.0.weight", &[8]),
        ("input_hint_block.0.weight", &[16, 3, 3, 3]),
        ("input_hint_block.2.weight", &[8, 16, 3, 3]),
        ("zero_convs.0.0.weight", &[8, 8, 1, 1]),
        ("middle_block_out.0.bias", &[8]),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("control.safetensors");
    let opened = |mark: &str, left_out: &str| -> Result<Checkpoint> {
        let tensor = |shape: &[usize]| Tensor::ones(shape, DType::F16, &Device::Cpu);
        let mut tensors = HashMap::from([(mark.to_owned(), tensor(&[])?)]);
        for (name, shape) in names.iter().filter(|(name, _)| *name != left_out) {
            let prefix = if mark == "difference" { "control_model." } else { "" };
            tensors.insert(format!("{prefix}{name}"), tensor(shape)?);
        }
        candle_core::safetensors::save(&tensors, &path)?;
        Checkpoint::open(&path, &Device::Cpu)
    };
    let sorted = |names: Vec<&String>| {
        let mut names: Vec<String> = names.into_iter().cloned().collect();
        names.sort();
        names
    };
    let own = [
        "controlnet_cond_embedding.conv_in.weight",
        "controlnet_cond_embedding.conv_out.weight",
        "controlnet_down_blocks.0.weight",
        "controlnet_mid_block.bias",
        "down_blocks.0.resnets.0.norm1.weight",
    ];
    let lora = opened("lora_controlnet", "")?;
    let changes = lora.control_lora()?.expect("a Control-LoRA");
    assert_eq!(sorted(changes.own.keys().collect()), own);
    assert_eq!(
        sorted(changes.low_rank.keys().collect()),
        ["down_blocks.0.downsamplers.0.conv.weight", "down_blocks.0.resnets.0.conv1.weight"]
    );
    assert!(changes.differences.is_empty());
    let halves = opened("lora_controlnet", "input_blocks.3.0.op.down")?.control_lora();
    let told = halves.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(told.contains("input_blocks.3.0.op.down") || told.contains("conv.down"), "{told}");
    let difference = opened("difference", "")?;
    assert!(difference.control_lora()?.is_none());
    assert!(difference.control_changes()?.is_some_and(|changes| changes.own.is_empty()));
    let told = difference.control_net().err().map(|error| error.to_string()).unwrap_or_default();
    assert!(told.contains("DiffControlNetLoader"), "{told}");
    Ok(())
}

#[test]
fn a_control_net_for_several_kinds_of_hint_is_known() -> Result<()> {
    let config = ControlNetConfig::from_value(
        &json!({
            "block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "use_linear_projection": true, "cross_attention_dim": 2048,
            "transformer_layers_per_block": [1, 2, 10], "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
            "num_control_type": 8, "num_trans_channel": 320, "num_trans_head": 8, "num_trans_layer": 1,
        }),
        "a union",
    )?;
    assert_eq!((config.types(), config.family()), (Some(8), "sdxl"));
    let recording = Weights::recording();
    ControlNet::load(&recording, &config)?;
    let shapes = recording.recorded();
    assert_eq!(shapes["transformer_layes.0.attn.in_proj_weight"], [960, 320]);
    assert_eq!(shapes["control_add_embedding.linear_1.weight"], [1280, 2048]);
    let (_file, checkpoint) = open(&shapes)?;
    check_control_net(&checkpoint)?;
    assert_eq!(checkpoint.control_net()?.0.types(), Some(8));
    // Without the kinds it is a file of something else, and not read as another ControlNet.
    let mut torn = shapes;
    torn.remove("task_embedding");
    let error = open(&torn)?.1.control_net().err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("task_embedding"), "{error}");
    Ok(())
}

#[test]
fn smaller_relatives_of_sdxl_are_known_by_their_depths() -> Result<()> {
    use crate::stable_diffusion::unet::MiddleConfig::{self, Nothing, ResNet, Transformer};
    let known: [(&str, usize, Value, Value, MiddleConfig); 5] = [
        ("SDXL", 2, json!([0, 2, 10]), json!([10, 2, 0]), Transformer { layers: 10 }),
        ("SSD-1B", 2, json!([0, 2, 4]), json!([[4, 4, 10], [2, 1, 1], 0]), ResNet),
        ("Vega", 2, json!([0, 1, 2]), json!([2, 1, 0]), ResNet),
        ("KOALA 700M", 1, json!([0, 2, 5]), json!([5, 2, 0]), Nothing),
        ("KOALA 1B", 1, json!([0, 2, 6]), json!([6, 2, 0]), Transformer { layers: 6 }),
    ];
    for (name, layers, down, up, middle) in known {
        let config = UNetConfig::from_value(
            &json!({
                "block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20],
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                "mid_block_type": match middle {
                    Nothing => Value::Null,
                    ResNet => "UNetMidBlock2D".into(),
                    Transformer { .. } => "UNetMidBlock2DCrossAttn".into(),
                },
                "layers_per_block": layers, "use_linear_projection": true, "cross_attention_dim": 2048,
                "transformer_layers_per_block": down, "reverse_transformer_layers_per_block": up,
                "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            }),
            name,
        )?;
        assert_eq!(config.encoder.middle, middle, "{name}");
        let recording = Weights::recording();
        UNet::load(&recording, &config)?;
        let (_file, checkpoint) = open(&recording.recorded())?;
        let read = check_unet(&checkpoint)?;
        assert_eq!(read.encoder.middle, middle, "{name}");
        assert_eq!(checkpoint.latent_scale(&read), Some(0.13025), "{name}");
        // The names of a single file: levels of another length begin elsewhere.
        if layers == 1 {
            let single = [
                ("down_blocks.1.resnets.0.norm1.weight", "input_blocks.3.0.in_layers.0.weight"),
                ("down_blocks.1.attentions.0.norm.weight", "input_blocks.3.1.norm.weight"),
                ("down_blocks.0.downsamplers.0.conv.bias", "input_blocks.2.0.op.bias"),
                ("up_blocks.0.upsamplers.0.conv.bias", "output_blocks.1.2.conv.bias"),
                ("up_blocks.1.attentions.1.norm.weight", "output_blocks.3.1.norm.weight"),
                ("add_embedding.linear_2.weight", "label_emb.0.2.weight"),
            ];
            for (diffusers, original) in single {
                let found = Rows { layers }.unet(original);
                assert_eq!(found.as_deref(), Some(diffusers), "{name}");
            }
        }
    }
    Ok(())
}

#[test]
fn the_header_says_what_shapes_do_not() -> Result<()> {
    let shapes = shapes("sd15_unet_diffusers.json");
    let config = r#"{"unet": {"norm_num_groups": 7}}"#;
    let file = sparse(&shapes, &[("kosmograph.config", config)]);
    let error = Checkpoint::open(&file.path, &Device::Cpu)?.unet().err().map(|e| e.to_string());
    assert!(error.as_ref().is_some_and(|error| error.contains("norm_num_groups (7)")), "{error:?}");
    for broken in ["[", r#"{"unet": 3}"#] {
        let file = sparse(&shapes, &[("kosmograph.config", broken)]);
        let error = Checkpoint::open(&file.path, &Device::Cpu)?.unet().err().map(|e| e.to_string());
        assert!(error.as_ref().is_some_and(|e| e.contains("kosmograph.config")), "{error:?}");
    }
    Ok(())
}

#[test]
fn other_families_and_kinds_are_named() {
    for (names, said) in [
        (vec![("cond_stage_model.model.ln_final.weight", vec![1024])], "Stable Diffusion 2"),
        (
            vec![(
                "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
                vec![320, 1024],
            )],
            "Stable Diffusion 2",
        ),
        (
            vec![("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", vec![1, 1])],
            "Stable Diffusion 3",
        ),
        (vec![("double_blocks.0.img_attn.qkv.weight", vec![1, 1])], "FLUX"),
        (vec![("adaln_single.linear.weight", vec![1, 1])], "PixArt"),
        (vec![("model.layers.0.self_attn.q_proj.weight", vec![1, 1])], "a language model"),
        (vec![("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", vec![1, 1])], "a LoRA"),
        (vec![("string_to_param.*", vec![1, 768])], "embedding:NAME"),
        (vec![("gpt_model.decoder.embed_tokens.weight", vec![1, 1])], "kosmograph convert"),
        (vec![("weight", vec![1, 1])], "of no kind that is known"),
        (vec![], "no tensors"),
    ] {
        let names: Vec<(&str, &[usize])> = names.iter().map(|(n, s)| (*n, s.as_slice())).collect();
        let error = refusal(&list(&names));
        assert!(error.contains(said), "{error}");
    }
}
