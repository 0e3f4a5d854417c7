//! Every kind of file in its real names and shapes, written as a header over a hole: the sizes are real,
//! the numbers take no room on the disk.

mod control_nets;
mod marks;

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
