//! Sampling by parts from end to end: a picture of KSampler's is that of its parts, byte for byte.

use std::fs;

use kosmograph_tests::Run;
use serde_json::{Value, json};

/// One graph that draws a picture by KSampler, by SamplerCustom and by SamplerCustomAdvanced, and saves each.
fn three_ways(sampler: &str, scheduler: &str, denoise: f64) -> Value {
    let text = |text: &str| json!({"text": text, "clip": ["1", 1]});
    let save = |way: &str| json!({"images": [way, 0], "filename_prefix": way});
    let decode = |samples: &str| json!({"samples": [samples, 0], "vae": ["1", 2]});
    let node = |class: &str, inputs: Value| json!({"class_type": class, "inputs": inputs});
    json!({
        "1": node("CheckpointLoaderSimple", json!({"ckpt_name": "tiny/sd"})),
        "2": node("CLIPTextEncode", text("a red fox in the snow")),
        "3": node("CLIPTextEncode", text("")),
        "4": node("EmptyLatentImage", json!({"width": 64, "height": 64, "batch_size": 2})),
        "5": node("KSampler", json!({
            "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 11,
            "steps": 4, "cfg": 4.0, "sampler_name": sampler, "scheduler": scheduler, "denoise": denoise})),
        "6": node("KSamplerSelect", json!({"sampler_name": sampler})),
        "7": node("BasicScheduler", json!({
            "model": ["1", 0], "scheduler": scheduler, "steps": 4, "denoise": denoise})),
        "8": node("RandomNoise", json!({"noise_seed": 11})),
        "9": node("CFGGuider", json!({
            "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "cfg": 4.0})),
        "10": node("SamplerCustomAdvanced", json!({
            "noise": ["8", 0], "guider": ["9", 0], "sampler": ["6", 0], "sigmas": ["7", 0], "latent_image": ["4", 0]})),
        "11": node("SamplerCustom", json!({
            "model": ["1", 0], "add_noise": true, "noise_seed": 11, "cfg": 4.0, "positive": ["2", 0],
            "negative": ["3", 0], "sampler": ["6", 0], "sigmas": ["7", 0], "latent_image": ["4", 0]})),
        "20": node("VAEDecode", decode("5")),
        "21": node("VAEDecode", decode("10")),
        "22": node("VAEDecode", decode("11")),
        "30": node("SaveImage", save("20")),
        "31": node("SaveImage", save("21")),
        "32": node("SaveImage", save("22")),
    })
}

#[test]
fn ksampler_and_its_parts_draw_the_same_picture_byte_for_byte() {
    for (sampler, scheduler, denoise) in
        [("euler", "normal", 1.0), ("dpmpp_2m_sde", "karras", 1.0), ("dpmpp_2m", "beta", 0.6)]
    {
        let folder = tempfile::tempdir().expect("a folder");
        let workflow = folder.path().join("w.json");
        fs::write(&workflow, three_ways(sampler, scheduler, denoise).to_string()).expect("a file");
        Run::new("run")
            .with_plugins()
            .arg(&workflow)
            .arg("--out")
            .arg(folder.path().join("out"))
            .expect_success();
        let picture = |way: &str, number: usize| {
            fs::read(folder.path().join(format!("out/{way}_0000{number}_.png"))).expect("a picture")
        };
        for number in [1, 2] {
            let whole = picture("20", number);
            assert!(whole == picture("21", number), "{sampler} {scheduler}: the parts' differs");
            assert!(
                whole == picture("22", number),
                "{sampler} {scheduler}: SamplerCustom's differs"
            );
        }
        assert!(picture("20", 1) != picture("20", 2), "one picture twice");
    }
}
