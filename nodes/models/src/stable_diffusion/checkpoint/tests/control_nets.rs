//! ControlNets by their names, and what stands beside them.

use super::*;

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
