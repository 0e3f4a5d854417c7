use super::*;

const LEAST: &str = r#""task": "lora", "model": "m", "pictures": "p", "output": "o.safetensors""#;

fn read(more: &str) -> Result<Config> {
    Config::read(&format!("{{{LEAST}{more}}}"), Path::new("/here"))
}

#[test]
fn paths_begin_at_the_file_and_the_rest_has_its_default() {
    let config = read(r#", "lora": {"rank": 4}, "samples": {"every": 5}"#).unwrap();
    assert_eq!(config.model, Path::new("/here/m"));
    assert_eq!((config.lora.rank, config.lora.alpha), (4, 16.0));
    assert_eq!(config.samples.unwrap().steps, 20);
}

#[test]
fn kosmos_gs_own_training_begins_with_the_authors_settings() {
    let text = r#"{"task": "align", "model": "m", "kosmos": "k", "output": "o", "pictures": "p",
        "optimiser": {"learning_rate": 0.5}}"#;
    let config = Config::read(text, Path::new("/here")).unwrap();
    assert_eq!((config.dropout, config.attention_dropout, config.rate.warmup), (0.1, 0.1, 375));
    assert_eq!((config.optimiser.eps, config.optimiser.learning_rate), (1e-6, 0.5));
    assert_eq!(config.kosmos.unwrap(), Path::new("/here/k"));
    let told = read(r#", "kosmos": "k""#).unwrap_err().to_string();
    assert!(told.contains("go together"), "{told}");
}

#[test]
fn a_state_of_before_a_key_was_there_is_of_the_same_configuration() {
    let config = read(r#", "optimiser": {"learning_rate": 0.5}, "vae": "v""#).unwrap();
    let mut before = serde_json::to_value(&config).unwrap();
    let keys = before.as_object_mut().unwrap();
    assert!(keys.shift_remove("clip").is_some() && keys.shift_remove("text_encoder").is_some());
    assert_eq!(Config::identity_of(before.clone()), config.identity());
    assert_eq!(config.identity()["optimiser"], json!({"learning_rate": 0.5}));
    before["text_encoder"] = json!("t");
    assert_ne!(Config::identity_of(before), config.identity());
}

#[test]
fn a_share_outside_of_what_it_can_be_is_refused_and_what_would_be_right_is_told() {
    for (more, want) in [
        (r#", "rate": {"hold": 1.0}"#, "rate.hold is 1; 0 to less than 1 would be right"),
        (r#", "rate": {"hold": -0.1}"#, "rate.hold is -0.1; 0 to less"),
        (
            r#", "optimiser": {"method": "muon", "momentum": 1.5}"#,
            "optimiser.momentum is 1.5; 0 to less than 1 would be right",
        ),
    ] {
        let told = read(more).unwrap_err().to_string();
        assert!(told.contains(want), "{told}");
    }
    let held = read(r#", "optimiser": {"method": "muon"}, "rate": {"hold": 0.7}"#).unwrap();
    assert_eq!((held.rate.hold, held.optimiser.momentum), (0.7, 0.95));
}

#[test]
fn what_only_some_tasks_have_is_refused_elsewhere() {
    let base = r#""model": "m", "pictures": "p", "output": "o""#;
    let told = |more: &str| {
        let text = format!("{{{base}, {more}}}");
        Config::read(&text, Path::new("")).unwrap_err().to_string()
    };
    for (more, want) in [
        (
            r#""task": "clip", "batch": 2"#,
            "\"kosmos\" and the tasks align, instruct, mllm and clip",
        ),
        (r#""task": "clip", "kosmos": "k""#, "a \"batch\" of 2 or more"),
        (
            r#""task": "clip", "kosmos": "k", "batch": 2, "samples": {"every": 5}"#,
            "\"samples\" are not drawn for the task clip",
        ),
        (r#""task": "vae", "clip": {"choices": 3}"#, "\"clip\" goes with the task clip"),
        (
            r#""task": "lora", "autoencoder": {"edges": 1}"#,
            "\"autoencoder\" goes with the task vae",
        ),
        (r#""task": "vae", "autoencoder": {"colour": -1}"#, "\"autoencoder.colour\" is -1"),
        (r#""task": "vae", "autoencoder": {"crop": 64}"#, "\"autoencoder.cropped\" is 0 with"),
        (
            r#""task": "vae", "autoencoder": {"crop": 1024, "cropped": 0.5}"#,
            "\"autoencoder.crop\" is 1024; the \"resolution\", 512, or less",
        ),
        (
            r#""task": "mllm", "kosmos": "k", "vision": "v""#,
            "\"vision\" goes with the task mllm and \"anew\"",
        ),
        (r#""task": "lora", "anchor": 1"#, "\"anchor\" goes with the task instruct"),
        (r#""task": "instruct", "kosmos": "k", "anchor": -1"#, "\"anchor\" is -1; 0 or more"),
        (
            r#""task": "instruct", "kosmos": "k", "anchor": 1, "shards": [{"kind": "laion", "files": ["a"]}]"#,
            "\"anchor\" goes with \"pictures\"",
        ),
        (r#""task": "vae", "min_snr": 5"#, "\"min_snr\" goes with tasks that learn from noise"),
        (r#""task": "dreambooth", "widths": [8]"#, "\"widths\" go with the tasks"),
        (r#""task": "vae", "anew": true, "widths": [8]"#, "\"widths\" go with the tasks"),
        (r#""task": "export""#, "\"export\" and the task export go together"),
        (r#""task": "data""#, "\"data\" and the task data go together"),
        (
            r#""task": "lora", "lora": {"kind": "loha", "naming": "peft"}"#,
            "\"lora.naming\" goes with",
        ),
        (r#""task": "vae", "prior": {"pictures": "c"}"#, "the tasks dreambooth and lora"),
    ] {
        let told = told(more);
        assert!(told.contains(want), "{told} does not say {want}");
    }
}

#[test]
fn what_is_wrong_is_told() {
    let told = |more| read(more).unwrap_err().to_string();
    let cases = [
        (r#", "stepz": 3"#, "no \"stepz\" in a configuration; the nearest is \"steps\""),
        (
            r#", "lora": {"rnak": 3}"#,
            "no \"lora.rnak\" in a configuration; the nearest is \"rank\"",
        ),
        (r#", "prior": {"picture": 3}"#, "the nearest is \"pictures\""),
        (r#", "steps": 0"#, "\"steps\" is 0"),
        (r#", "optimiser": {"learning_rate": -1}"#, "optimiser.learning_rate is -1"),
        (r#", "optimiser": 3"#, "an object would be right"),
        (r#", "caption_dropout": 3"#, "0 to 1 would be right"),
        (r#", "steps": "many""#, "\"steps\": invalid type: string"),
    ];
    for (more, want) in cases {
        let told = told(more);
        assert!(told.contains(want), "{told} does not say {want}");
    }
    let told = Config::read("[]", Path::new("")).unwrap_err().to_string();
    assert!(told.contains("no JSON object"), "{told}");
    let told = Config::read("{\"task\": \"lora\"}", Path::new("")).unwrap_err().to_string();
    assert!(told.contains("has no \"model\""), "{told}");
}
