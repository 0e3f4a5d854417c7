//! `kosmograph convert`, and the released checkpoints of Kosmos-G.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use kosmograph_models::Weights;
use kosmograph_models::convert::KosmosCheckpoint;
use kosmograph_models::files::pickle::TorchFile;
use kosmograph_models::kosmos::mllm::ImageTokens;
use kosmograph_models::kosmos::{Kosmos, KosmosConfig, KosmosG};
use kosmograph_tests::torch::{Saved, save, save_fairseq, save_state_dict, text};
use kosmograph_tests::{Run, repository};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

fn golden(name: &str) -> PathBuf {
    repository().join("tests/golden").join(name)
}

/// The tensors of a golden file; booleans as bytes.
fn tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bytes = std::fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let tensor = |name: &str| -> Result<Tensor> {
        let view = file.tensor(name)?;
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::I64 => DType::I64,
            Dtype::BOOL => DType::U8,
            other => anyhow::bail!("{name} is {other:?}"),
        };
        Ok(Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?)
    };
    file.names().into_iter().map(|name| Ok((name.to_owned(), tensor(name)?))).collect()
}

/// A tokenizer folder: the bundled model's, its dictionary cut to `symbols` lines.
fn tokenizer(folder: &Path, symbols: usize) -> Result<()> {
    let tiny = repository().join("models/tiny/kosmos");
    std::fs::create_dir_all(folder)?;
    let name = "sentencepiece.bpe.model";
    std::fs::copy(tiny.join(name), folder.join(name))?;
    let dictionary = std::fs::read_to_string(tiny.join("dict.txt"))?;
    let lines: String = dictionary.lines().take(symbols).map(|line| format!("{line}\n")).collect();
    std::fs::write(folder.join("dict.txt"), lines)?;
    Ok(())
}

/// The small golden model under its released names, as fairseq saves it, and its configuration.
fn small_checkpoint(path: &Path) -> Result<Value> {
    let folder = golden("kosmosg_encode_condition");
    let mut saved = Vec::new();
    for (name, tensor) in tensors(&folder.join("weights.safetensors"))? {
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        saved.push(Saved::f32(&name, tensor.dims(), &values));
    }
    // What training leaves in the file and nothing reads.
    saved.push(Saved::f32("gpt_model.decoder.embed_positions._float_tensor", &[1], &[0.0]));
    saved.push(Saved::f32("gpt_model.decoder.version", &[1], &[3.0]));
    save_fairseq(path, &saved);
    let config: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("config.json"))?)?;
    let (vit, gpt, aligner) = (&config["vit"], &config["gpt"], &config["aligner"]);
    let width = vit["width"].as_u64().context("no width")?;
    let head = vit["head_width"].as_u64().context("no head width")?;
    Ok(json!({
        "model_type": "kosmos-g",
        "vision": {
            "image_size": vit["image"], "patch_size": vit["patch"], "width": width,
            "layers": vit["layers"], "heads": width / head, "mlp_ratio": vit["mlp_ratio"],
            "image_mean": [0, 0, 0], "image_std": [1, 1, 1],
        },
        "connector": {
            "latent_query_num": config["latent_query_num"],
            "heads": gpt["decoder_attention_heads"],
        },
        "mllm": {
            "vocab_size": config["vocab"], "embed_dim": gpt["decoder_embed_dim"],
            "layers": gpt["decoder_layers"], "heads": gpt["decoder_attention_heads"],
            "ffn_dim": gpt["decoder_ffn_embed_dim"], "layer_norm_eps": 1e-5,
        },
        "aligner": {
            "dim": aligner["dim"], "encoder_layers": aligner["enc"],
            "decoder_layers": aligner["dec"], "heads": aligner["heads"],
            "ffn_dim": aligner["ffn"], "max_positions": aligner["npos"], "queries": 77,
            "layer_norm_eps": 1e-5,
        },
    }))
}

/// The number of queries of the small model is its own.
fn with_queries(mut config: Value, queries: usize) -> Value {
    config["aligner"]["queries"] = json!(queries);
    config
}

/// From a fairseq checkpoint through the program to the condition that the authors' code computes.
#[test]
fn a_converted_checkpoint_gives_the_golden_condition() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let checkpoint = folder.path().join("checkpoint_final.pt");
    let config = small_checkpoint(&checkpoint)?;
    let expected = tensors(&golden("kosmosg_encode_condition/expected.safetensors"))?;
    let condition = &expected["condition_neg_n2"];
    let data = folder.path().join("tokenizer");
    tokenizer(&data, 90)?;
    let config = with_queries(config, condition.dim(1)?);
    std::fs::write(data.join("config.json"), config.to_string())?;

    let out = folder.path().join("kosmos-g");
    Run::new("convert")
        .with_plugins()
        .args([&checkpoint, &out])
        .arg("--tokenizer")
        .arg(&data)
        .expect_success()
        .stdout_contains("kosmos-g")
        .stderr_contains("a folder for KosmosLoader");

    let kosmos = Kosmos::read(&out, &Device::Cpu)?;
    let inputs = tensors(&golden("kosmosg_encode_condition/inputs.safetensors"))?;
    let features = kosmos.model.encode_images(&inputs["pixels"])?.flatten_to(1)?;
    let images = ImageTokens { features, mask: inputs["img_mask"].clone() };
    let found = kosmos.model.encode_condition(
        &inputs["tokens"],
        Some(&images),
        &inputs["negative_tokens"],
        2,
    )?;
    let largest = |x: &Tensor| -> Result<f32> { Ok(x.abs()?.max_all()?.to_scalar::<f32>()?) };
    let off = largest(&(&found - condition)?)?;
    assert!(off <= 2e-5 * largest(condition)?, "{off}");

    // A second time it would write over what is there.
    Run::new("convert")
        .with_plugins()
        .args([&checkpoint, &out])
        .expect_code(2)
        .stderr_contains("is there already");
    Ok(())
}

#[test]
fn a_tokenizer_is_asked_for_and_must_fit() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let checkpoint = folder.path().join("checkpoint.pt");
    let config = small_checkpoint(&checkpoint)?;
    let out = folder.path().join("out");
    let convert = || Run::new("convert").with_plugins().args([&checkpoint, &out]);
    convert().expect_code(3).stderr_contains("--tokenizer").stderr_contains("kosmos-g/data");
    // A dictionary of more symbols than the model has embeddings.
    let data = folder.path().join("data");
    tokenizer(&data, 168)?;
    std::fs::write(data.join("config.json"), config.to_string())?;
    convert().arg("--tokenizer").arg(&data).expect_code(3).stderr_contains("vocab_size");
    let mut left: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(folder.path())? {
        left.push(entry?.file_name().to_string_lossy().into_owned());
    }
    left.sort();
    assert_eq!(left, ["checkpoint.pt", "data"]);
    Ok(())
}

#[test]
fn any_torch_file_becomes_safetensors() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let fixtures = repository().join("nodes/models/tests/fixtures/torch");
    for name in ["zip.pt", "legacy.pt"] {
        let out = folder.path().join(format!("{name}.safetensors"));
        Run::new("convert")
            .with_plugins()
            .args([&fixtures.join(name), &out])
            .expect_success()
            .stdout_contains(".safetensors");
        let (found, expected) =
            (std::fs::read(&out)?, std::fs::read(fixtures.join("expected.safetensors"))?);
        let found = SafeTensors::deserialize(&found)?;
        let expected = SafeTensors::deserialize(&expected)?;
        assert_eq!(found.len(), expected.len());
        for (name, tensor) in expected.iter() {
            let found = found.tensor(name)?;
            assert_eq!(
                (found.dtype(), found.shape(), found.data()),
                (tensor.dtype(), tensor.shape(), tensor.data()),
                "{name}"
            );
        }
    }
    // A training checkpoint's model, without what else training keeps.
    let checkpoint = folder.path().join("model.ckpt");
    let tensors = [Saved::f32("state_dict.w", &[2], &[1.0, 2.0]), Saved::f32("loss", &[1], &[0.5])];
    save_state_dict(&checkpoint, &tensors);
    let out = folder.path().join("model.safetensors");
    let convert = |out: &Path| Run::new("convert").with_plugins().args([checkpoint.as_path(), out]);
    convert(&out).expect_success().stderr_contains("1 tensors beside the state_dict");
    assert_eq!(SafeTensors::deserialize(&std::fs::read(&out)?)?.names(), ["w"]);
    let elsewhere = folder.path().join("model.bin");
    convert(&elsewhere).expect_code(3).stderr_contains("must end in .safetensors");
    convert(&folder.path().join("none/x.safetensors")).expect_code(3).stderr_contains("not exist");
    Run::new("convert")
        .with_plugins()
        .args([&out, &elsewhere])
        .expect_code(3)
        .stderr_contains("a safetensors file already");
    let readme = repository().join("README.md");
    Run::new("convert")
        .with_plugins()
        .args([&readme, &elsewhere])
        .expect_code(2)
        .stderr_contains("of no kind that is converted");
    Ok(())
}

/// A file that would run a program when Python opened it is refused by what it asks for, and leaves
/// nothing behind.
#[test]
fn hostile_checkpoints_are_refused_by_the_program() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let witness = folder.path().join("owned");
    let command = format!("touch {}", witness.display());
    for (module, name) in [("os", "system"), ("posix", "system"), ("builtins", "eval")] {
        let mut pickle = b"\x80\x02}".to_vec();
        pickle.extend(text("model"));
        pickle.extend(format!("c{module}\n{name}\n").as_bytes());
        pickle.extend(text(&command));
        pickle.extend(b"\x85Rs.");
        let file = folder.path().join("evil.ckpt");
        save(&file, &pickle, &[]);
        let out = folder.path().join("out.safetensors");
        Run::new("convert")
            .with_plugins()
            .args([&file, &out])
            .expect_code(3)
            .stderr_contains(&format!("`{module}.{name}`"))
            .stderr_contains("evil.ckpt");
        assert!(!out.exists() && !witness.exists());

        // As somebody's VAE in a workflow.
        let models = folder.path().join("models");
        std::fs::create_dir_all(models.join("vae"))?;
        std::fs::copy(&file, models.join("vae/evil.ckpt"))?;
        let workflow = json!({
            "1": {"class_type": "VAELoader", "inputs": {"vae_name": "evil.ckpt"}},
            "2": {"class_type": "EmptyLatentImage",
                "inputs": {"width": 64, "height": 64, "batch_size": 1}},
            "3": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["1", 0]}},
            "4": {"class_type": "SaveImage",
                "inputs": {"images": ["3", 0], "filename_prefix": "x"}},
        });
        Run::new("run")
            .with_plugins()
            .arg("-")
            .arg("--models")
            .arg(&models)
            .arg("--out")
            .arg(folder.path().join("pictures"))
            .stdin(workflow.to_string())
            .expect_code(3)
            .stderr_contains(&format!("`{module}.{name}`"))
            .stderr_contains("vae_name");
        assert!(!witness.exists());
    }
    let whole = std::fs::read(repository().join("nodes/models/tests/fixtures/torch/zip.pt"))?;
    let file = folder.path().join("short.ckpt");
    std::fs::write(&file, &whole[..whole.len() / 2])?;
    let out = folder.path().join("out.safetensors");
    Run::new("convert")
        .with_plugins()
        .args([&file, &out])
        .expect_code(3)
        .stderr_contains("truncated");
    Ok(())
}

/// The released checkpoints in their real sizes, without their numbers: every name and shape is what
/// the model asks for, in the file of the authors' layout, larger than 32 bits can count.
#[test]
fn the_released_checkpoints_are_read_in_their_real_size() -> Result<()> {
    let folder = tempfile::tempdir_in(kosmograph_tests::scratch())?;
    for (list, storage) in [
        ("kosmosg_final_checkpoint", "Float"),
        ("kosmosg_final_checkpoint", "Half"),
        ("kosmosg_stage1_align_checkpoint", "Half"),
    ] {
        let json = std::fs::read_to_string(golden(&format!("key_lists/{list}.json")))?;
        let json: Value = serde_json::from_str(&json)?;
        let keys = json["keys"].as_object().context("no keys")?;
        let shape = |entry: &Value| -> Result<Vec<usize>> {
            Ok(serde_json::from_value(entry["shape"].clone())?)
        };
        let mut saved = Vec::new();
        for (name, entry) in keys {
            saved.push(Saved::zeros(name, storage, &shape(entry)?));
        }
        let path = folder.path().join("checkpoint.pt");
        save_fairseq(&path, &saved);
        let file = TorchFile::open(&path)?;
        assert_eq!(file.tensors().len(), keys.len(), "{list}");
        for (name, entry) in keys {
            let info = file.info(&format!("model.{name}")).context("it was saved")?;
            assert_eq!(info.shape, shape(entry)?, "{name}");
        }

        let checkpoint = KosmosCheckpoint::of(&file)?.context("it is Kosmos-G")?;
        let config: KosmosConfig = serde_json::from_value(checkpoint.config)?;
        let (mllm, vit) = (&config.mllm, &config.vision.vit);
        assert_eq!((mllm.vocab_size, mllm.layers, mllm.heads, mllm.ffn_dim), (64007, 24, 32, 8192));
        assert_eq!((vit.image_size, vit.patch_size, vit.layers, vit.heads), (224, 14, 24, 16));
        assert_eq!((config.aligner.heads, config.aligner.max_positions), (12, 32768));
        assert_eq!((config.connector.heads, config.connector.latent_query_num), (32, 64));

        // As it is, the file is this model and nothing else, and none of its numbers is read.
        let weights = Weights::open(&path, &Device::Cpu)?.sub("model");
        assert_eq!(KosmosG::load(&config, &weights)?.held(), 0);

        // What is kept is what the model asks for, name by name.
        let asked = Weights::recording();
        KosmosG::load(&config, &asked)?;
        let final_one = list.contains("final");
        let asked = asked.recorded().into_iter();
        let asked: BTreeMap<String, Vec<usize>> =
            asked.filter(|(name, _)| !final_one || !name.starts_with("aligner.decoder")).collect();
        let kept = checkpoint.tensors.iter().map(|(name, source)| {
            let info = file.info(source).context("it is in the file")?;
            Ok((name.clone(), info.shape.clone()))
        });
        assert_eq!(kept.collect::<Result<BTreeMap<_, _>>>()?, asked, "{list}");
    }
    Ok(())
}
