//! Checkpoints without a CLIP or a VAE: they serve who takes their other parts, and the node that takes a
//! missing one tells it.

use std::fs;
use std::path::Path;

use kosmograph_tests::single_file::{self, Part};
use kosmograph_tests::{Run, repository};
use serde_json::{Value, json};

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).expect("a copy")),
        }
    }
}

/// A models folder with the bundled pipeline as checkpoints/NAME and diffusers/NAME, `left_out` of its
/// folders left out.
fn pipeline(name: &str, left_out: &[&str]) -> tempfile::TempDir {
    let models = tempfile::tempdir().expect("a folder");
    for kind in ["checkpoints", "diffusers"] {
        let folder = models.path().join(kind).join(name);
        copy(&repository().join("models/tiny/sd"), &folder);
        for part in left_out {
            fs::remove_dir_all(folder.join(part)).expect("the part");
        }
    }
    models
}

/// The U-Net and what is changed of: CLIP from output `clip` of the node `clip.0`, VAE likewise.
fn workflow(class: &str, name: &str, clip: Value, vae: Value) -> Value {
    let input = if class == "DiffusersLoader" { "model_path" } else { "ckpt_name" };
    json!({
        "1": {"class_type": class, "_meta": {"title": "The checkpoint"}, "inputs": {input: name}},
        "2": {"class_type": "CLIPLoader", "inputs": {"clip_name": "tiny/sd/text_encoder", "type": "stable_diffusion"}},
        "3": {"class_type": "VAELoader", "inputs": {"vae_name": "tiny/sd/vae"}},
        "4": {"class_type": "CLIPTextEncode", "_meta": {"title": "The words"}, "inputs": {"text": "a cat", "clip": clip}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64}},
        "6": {"class_type": "KSampler", "inputs": {
            "model": ["1", 0], "positive": ["4", 0], "negative": ["4", 0], "latent_image": ["5", 0],
            "steps": 1, "cfg": 1.0,
        }},
        "7": {"class_type": "VAEDecode", "_meta": {"title": "The decoding"}, "inputs": {"samples": ["6", 0], "vae": vae}},
        "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "a"}},
    })
}

/// Runs it; what was told on stderr, and whether the picture was made.
fn run(workflow: &Value, models: &Path, code: i32) -> (String, bool) {
    let out = models.join("out");
    let run = Run::new("run").with_plugins().args(["-", "--models"]).arg(models);
    let run = run.arg("--models").arg(repository().join("models"));
    let run = run.arg("--out").arg(&out).stdin(workflow.to_string());
    let told = run.expect_code(code).stderr().to_owned();
    let made = out.join("a_00001_.png").exists();
    fs::remove_dir_all(&out).ok();
    (told, made)
}

#[test]
fn a_pipelines_missing_part_is_told_by_the_node_that_uses_it() {
    for class in ["CheckpointLoaderSimple", "DiffusersLoader"] {
        let bare = pipeline("bare", &["vae", "text_encoder", "tokenizer"]);
        let elsewhere = workflow(class, "bare", json!(["2", 0]), json!(["3", 0]));
        let (told, made) = run(&elsewhere, bare.path(), 0);
        assert!(made && told.contains("loaded without its VAE"), "{told}");

        let no_vae = pipeline("no-vae", &["vae"]);
        let (told, made) =
            run(&workflow(class, "no-vae", json!(["1", 1]), json!(["3", 0])), no_vae.path(), 0);
        assert!(made, "{told}");
        let own = workflow(class, "no-vae", json!(["1", 1]), json!(["1", 2]));
        let (told, made) = run(&own, no_vae.path(), 3);
        let says = ["The decoding", "autoencoder (VAE)", "no-vae", "VAELoader"];
        assert!(!made && says.iter().all(|word| told.contains(word)), "{told}");

        let no_clip = pipeline("no-clip", &["text_encoder"]);
        let own = workflow(class, "no-clip", json!(["1", 1]), json!(["1", 2]));
        let (told, _) = run(&own, no_clip.path(), 3);
        let says = ["The words", "CLIP text encoder", "no-clip", "CLIPLoader"];
        assert!(says.iter().all(|word| told.contains(word)), "{told}");
        let (told, made) =
            run(&workflow(class, "no-clip", json!(["2", 0]), json!(["1", 2])), no_clip.path(), 0);
        assert!(made, "{told}");
    }
}

/// A models folder with files of these names and parts, and a VAE alone.
fn files(files: &[(&str, &[Part])]) -> tempfile::TempDir {
    let models = tempfile::tempdir().expect("a folder");
    let folder = models.path().join("checkpoints");
    fs::create_dir_all(&folder).expect("a folder");
    fs::create_dir_all(models.path().join("vae")).expect("a folder");
    for (name, parts) in files {
        single_file::write(&folder.join(name), parts);
    }
    single_file::write_vae(&models.path().join("vae/alone.safetensors"));
    models
}

/// What `check` says; it reads headers, so a part that is missing is the run's to tell.
fn check(workflow: &Value, models: &Path) {
    let run = Run::new("check").with_plugins().args(["-", "--models"]).arg(models);
    let run = run.arg("--models").arg(repository().join("models")).stdin(workflow.to_string());
    run.expect_code(0).stdout_contains("nothing is wrong");
}

#[test]
fn a_whole_file_draws() {
    let models = files(&[("whole.safetensors", &[Part::UNet, Part::Clip, Part::Vae])]);
    let class = "CheckpointLoaderSimple";
    let own = workflow(class, "whole.safetensors", json!(["1", 1]), json!(["1", 2]));
    let (told, made) = run(&own, models.path(), 0);
    assert!(made && !told.contains("without its"), "{told}");
}

#[test]
fn a_file_without_a_vae_serves_until_it_is_used() {
    let models = files(&[("novae.safetensors", &[Part::UNet, Part::Clip])]);
    let class = "CheckpointLoaderSimple";
    let mut elsewhere = workflow(class, "novae.safetensors", json!(["1", 1]), json!(["3", 0]));
    elsewhere["3"]["inputs"]["vae_name"] = json!("alone.safetensors");
    check(&elsewhere, models.path());
    let (told, made) = run(&elsewhere, models.path(), 0);
    assert!(made && told.contains("loaded without its VAE"), "{told}");

    let mut own = elsewhere.clone();
    own["7"]["inputs"]["vae"] = json!(["1", 2]);
    check(&own, models.path());
    let (told, made) = run(&own, models.path(), 3);
    let says = ["node 7 \"The decoding\"", "autoencoder (VAE)", "novae.safetensors", "VAELoader"];
    assert!(!made && says.iter().all(|word| told.contains(word)), "{told}");

    // Who encodes tells it as well; what does not take it is drawn beside.
    let mut beside = elsewhere;
    beside["10"] = json!({"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}});
    beside["11"] = json!({"class_type": "VAEEncode", "_meta": {"title": "The encoding"}, "inputs": {"pixels": ["10", 0], "vae": ["1", 2]}});
    beside["12"] =
        json!({"class_type": "VAEDecode", "inputs": {"samples": ["11", 0], "vae": ["3", 0]}});
    beside["13"] =
        json!({"class_type": "SaveImage", "inputs": {"images": ["12", 0], "filename_prefix": "b"}});
    let (told, made) = run(&beside, models.path(), 3);
    let says = ["node 11 \"The encoding\"", "autoencoder (VAE)", "novae.safetensors", "VAELoader"];
    assert!(made && says.iter().all(|word| told.contains(word)), "{told}");
}

#[test]
fn a_file_without_a_clip_serves_until_it_is_used() {
    let models = files(&[("noclip.safetensors", &[Part::UNet, Part::Vae])]);
    let class = "CheckpointLoaderSimple";
    let elsewhere = workflow(class, "noclip.safetensors", json!(["2", 0]), json!(["1", 2]));
    check(&elsewhere, models.path());
    let (told, made) = run(&elsewhere, models.path(), 0);
    assert!(made && told.contains("loaded without its CLIP"), "{told}");

    let mut own = elsewhere;
    own["4"]["inputs"]["clip"] = json!(["1", 1]);
    check(&own, models.path());
    let (told, made) = run(&own, models.path(), 3);
    let says = ["node 4 \"The words\"", "CLIP text encoder", "noclip.safetensors", "CLIPLoader"];
    assert!(!made && says.iter().all(|word| told.contains(word)), "{told}");
}

#[test]
fn a_file_of_neither_serves_and_one_without_a_unet_is_named() {
    let models = files(&[
        ("bare.safetensors", &[Part::UNet]),
        ("rest.safetensors", &[Part::Clip, Part::Vae]),
    ]);
    let class = "CheckpointLoaderSimple";
    let bare = workflow(class, "bare.safetensors", json!(["2", 0]), json!(["3", 0]));
    let (told, made) = run(&bare, models.path(), 0);
    assert!(
        made && told.contains("without its VAE") && told.contains("without its CLIP"),
        "{told}"
    );
    let rest = workflow(class, "rest.safetensors", json!(["1", 1]), json!(["1", 2]));
    let (told, made) = run(&rest, models.path(), 3);
    let says = ["node 1 \"The checkpoint\"", "U-Net", "rest.safetensors"];
    assert!(!made && says.iter().all(|word| told.contains(word)), "{told}");
}

#[test]
fn a_lora_and_a_file_of_the_unet_alone() {
    let models = tempfile::tempdir().expect("a folder");
    let folder = models.path().join("checkpoints");
    copy(&repository().join("models/tiny/sd/unet"), &folder.join("alone"));
    // A model's own folder is no pipeline: it says that it is a U-Net.
    let mut elsewhere =
        workflow("CheckpointLoaderSimple", "alone", json!(["2", 0]), json!(["3", 0]));
    let (told, made) = run(&elsewhere, models.path(), 0);
    assert!(made, "{told}");
    // A LoRA on the U-Net links the CLIP that is not there, and nobody takes what comes of it.
    elsewhere["9"] = json!({"class_type": "LoraLoader", "inputs": {
        "model": ["1", 0], "clip": ["1", 1], "lora_name": "tiny/loras/pixel.safetensors",
    }});
    elsewhere["6"]["inputs"]["model"] = json!(["9", 0]);
    let (told, made) = run(&elsewhere, models.path(), 0);
    assert!(made, "{told}");
    elsewhere["4"]["inputs"]["clip"] = json!(["9", 1]);
    let (told, made) = run(&elsewhere, models.path(), 3);
    assert!(!made && told.contains("The words") && told.contains("CLIP text encoder"), "{told}");
    // Encoding and layers tell it, too.
    elsewhere["4"]["inputs"]["clip"] = json!(["10", 0]);
    elsewhere["10"] = json!({"class_type": "CLIPSetLastLayer", "inputs": {"clip": ["1", 1]}});
    let (told, _) = run(&elsewhere, models.path(), 3);
    assert!(told.contains("CLIPSetLastLayer") && told.contains("CLIP text encoder"), "{told}");
    // What is no U-Net at all is the loader's own error.
    copy(&repository().join("models/tiny/sd/vae"), &folder.join("vae"));
    let other = workflow("CheckpointLoaderSimple", "vae", json!(["2", 0]), json!(["3", 0]));
    let (told, _) = run(&other, models.path(), 3);
    assert!(told.contains("The checkpoint") && told.contains("U-Net"), "{told}");
}

/// What no file of an autoencoder alone says: which factor its family's latents have. The U-Net's checkpoint does.
#[test]
fn a_vae_alone_decodes_the_latents_of_another_factor() {
    let models = files(&[]);
    let silent = models.path().join("vae/silent.safetensors");
    single_file::write_vae_saying(&silent, &json!({"norm_num_groups": 4}));
    let picture = |vae: &str| {
        let drawn = workflow("CheckpointLoaderSimple", "tiny/sd", json!(["2", 0]), json!(["3", 0]));
        let mut again = drawn;
        again["3"]["inputs"]["vae_name"] = json!(vae);
        // Encoded and sampled from once more, so that the way in is tried as well.
        again["9"] =
            json!({"class_type": "VAEEncode", "inputs": {"pixels": ["7", 0], "vae": ["3", 0]}});
        again["10"] = again["6"].clone();
        again["10"]["inputs"]["latent_image"] = json!(["9", 0]);
        again["10"]["inputs"]["denoise"] = json!(0.5);
        again["11"] = again["7"].clone();
        again["11"]["inputs"]["samples"] = json!(["10", 0]);
        again["8"]["inputs"]["images"] = json!(["11", 0]);
        let out = models.path().join("out");
        let run = Run::new("run").with_plugins().args(["-", "--models"]).arg(models.path());
        let run = run.arg("--models").arg(repository().join("models"));
        run.arg("--out").arg(&out).stdin(again.to_string()).expect_success();
        let made = image::open(out.join("a_00001_.png")).expect("a picture").to_rgb8().into_raw();
        fs::remove_dir_all(&out).expect("the folder goes");
        made
    };
    let (expected, found) = (picture("alone.safetensors"), picture("silent.safetensors"));
    let differences = expected.iter().zip(&found).map(|(a, b)| a.abs_diff(*b));
    assert!(expected.len() == found.len() && differences.max() <= Some(1));
}

/// Kosmos-G's conditioning, a text's, and a ControlNet's copy, with a U-Net that reads other text: told before any weight is read.
#[test]
fn parts_of_different_families_are_refused_by_check() {
    let models = tempfile::tempdir().expect("a folder");
    let folder = models.path().join("diffusion_models/xl");
    fs::create_dir_all(&folder).expect("a folder");
    // A small U-Net of SDXL's kind, which reads 40 numbers a token where the bundled ones read 128.
    let golden = repository().join("tests/golden/sdxl_unet");
    let config = fs::read_to_string(golden.join("config.json")).expect("a golden case");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    fs::write(folder.join("config.json"), config["config"].to_string()).expect("a file");
    let weights = "diffusion_pytorch_model.safetensors";
    fs::copy(golden.join("weights.safetensors"), folder.join(weights)).expect("a copy");
    let checked = |workflow: &Value, code: i32| {
        let run = Run::new("check").with_plugins().args(["-", "--models"]).arg(models.path());
        let run = run.arg("--models").arg(repository().join("models"));
        run.stdin(workflow.to_string()).expect_code(code).stderr().to_owned()
    };
    let loader = "CheckpointLoaderSimple";
    let mut mixed = workflow(loader, "tiny/sd", json!(["1", 1]), json!(["1", 2]));
    assert!(!checked(&mixed, 0).contains("families"));
    mixed["9"] = json!({"class_type": "UNETLoader", "inputs": {"unet_name": "xl"}});
    mixed["6"]["inputs"]["model"] = json!(["9", 0]);
    let told = checked(&mixed, 2);
    for word in ["node 6", "positive", "128 numbers wide", "takes 40", "(xl)", "families"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    // Kosmos-G's, through what combines two of them a hundred times over: every conditioning is looked at once.
    mixed["10"] = json!({"class_type": "KosmosLoader", "inputs": {"kosmos_name": "tiny/kosmos"}});
    mixed["11"] =
        json!({"class_type": "TextInterleave", "inputs": {"kosmos": ["10", 0], "text": "a cat"}});
    mixed["12"] = json!({"class_type": "Aligner", "inputs": {"kosmos": ["10", 0], "hidden_states": ["11", 0]}});
    let mut last = 12;
    for _ in 0..100 {
        mixed[(last + 1).to_string()] = json!({"class_type": "ConditioningCombine", "inputs": {
            "conditioning_1": [last.to_string(), 0], "conditioning_2": [last.to_string(), 0],
        }});
        last += 1;
    }
    mixed["6"]["inputs"]["positive"] = json!([last.to_string(), 0]);
    let told = checked(&mixed, 2);
    assert!(told.contains("what Kosmos-G gives (kosmos) is 128 numbers wide"), "{told}");
    // The bundled ControlNet reads what the bundled U-Net does, and not what the other one does.
    mixed["200"] = json!({"class_type": "ControlNetLoader", "inputs": {"control_net_name": "tiny/controlnet/tiny-canny"}});
    mixed["201"] = json!({"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}});
    mixed["202"] = json!({"class_type": "ControlNetApply", "inputs": {
        "conditioning": ["4", 0], "control_net": ["200", 0], "image": ["201", 0], "strength": 1.0,
    }});
    mixed["6"]["inputs"]["positive"] = json!(["202", 0]);
    let told = checked(&mixed, 2);
    assert!(told.contains("node 202") && told.contains("the ControlNet (tiny-canny)"), "{told}");
    mixed["6"]["inputs"]["model"] = json!(["1", 0]);
    assert!(!checked(&mixed, 0).contains("families"));
    // A guider has a model and a conditioning as a sampler has.
    mixed["300"] = json!({"class_type": "BasicGuider", "_meta": {"title": "Guide"},
        "inputs": {"model": ["9", 0], "conditioning": ["4", 0]}});
    mixed["301"] = json!({"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}});
    mixed["302"] = json!({"class_type": "RandomNoise", "inputs": {"noise_seed": 1}});
    mixed["303"] = json!({"class_type": "BasicScheduler", "inputs": {
        "model": ["1", 0], "scheduler": "normal", "steps": 2, "denoise": 1.0}});
    mixed["304"] = json!({"class_type": "SamplerCustomAdvanced", "inputs": {"noise": ["302", 0], "guider": ["300", 0],
        "sampler": ["301", 0], "sigmas": ["303", 0], "latent_image": mixed["6"]["inputs"]["latent_image"]}});
    mixed["7"]["inputs"]["samples"] = json!(["304", 0]);
    let told = checked(&mixed, 2);
    assert!(
        told.contains("node 300") && told.contains("Guide") && told.contains("conditioning"),
        "{told}"
    );
    mixed["300"]["inputs"]["model"] = json!(["1", 0]);
    assert!(!checked(&mixed, 0).contains("families"));
}

/// A LoRA of Stable Diffusion 1 or of SDXL on a U-Net that reads other text: told before any weight is read.
#[test]
fn a_lora_of_another_family_is_refused_by_check() {
    let models = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(models.path().join("loras")).expect("a folder");
    let module = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k";
    let write = |name: &str, width: usize| {
        let (up, down) = (vec![0u8; 96 * 2 * 4], vec![0u8; 2 * width * 4]);
        let view = |shape: [usize; 2], bytes| {
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes)
                .expect("a view")
        };
        let tensors = [
            (format!("{module}.lora_up.weight"), view([96, 2], &up)),
            (format!("{module}.lora_down.weight"), view([2, width], &down)),
        ];
        let file = safetensors::serialize(tensors, None).expect("serializes");
        fs::write(models.path().join("loras").join(name), file).expect("written");
    };
    write("own.safetensors", 128);
    write("of_sdxl.safetensors", 2048);
    write("of_sd15.safetensors", 768);
    let checked = |lora: &str, loader: &str, strength: f64, code: i32| {
        let mut graph =
            workflow("CheckpointLoaderSimple", "tiny/sd", json!(["1", 1]), json!(["1", 2]));
        graph["9"] = json!({"class_type": loader, "_meta": {"title": "Style"}, "inputs": {
            "model": ["1", 0], "lora_name": lora, "strength_model": strength}});
        if loader == "LoraLoader" {
            graph["9"]["inputs"]["clip"] = json!(["1", 1]);
            graph["9"]["inputs"]["strength_clip"] = json!(1.0);
        }
        graph["6"]["inputs"]["model"] = json!(["9", 0]);
        let run = Run::new("check").with_plugins().args(["-", "--models"]).arg(models.path());
        let run = run.arg("--models").arg(repository().join("models"));
        run.stdin(graph.to_string()).expect_code(code).stderr().to_owned()
    };
    for loader in ["LoraLoader", "LoraLoaderModelOnly"] {
        assert!(!checked("own.safetensors", loader, 1.0, 0).contains("families"));
        for (file, width) in [("of_sdxl.safetensors", "2048"), ("of_sd15.safetensors", "768")] {
            let told = checked(file, loader, 1.0, 2);
            for word in ["node 9", "Style", "lora_name", file, width, "takes 128", "families"] {
                assert!(told.contains(word), "{word}: {told}");
            }
            assert!(!checked(file, loader, 0.0, 0).contains("families"), "it is not put on at all");
        }
    }
}
