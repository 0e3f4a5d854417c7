//! SDXLPromptStyler with a file of the user's; the texts are those of the published node's own page.

use std::fs;

use kosmograph_image as _;
use node::Value;
use node::testing::{Host, this_library};

const STYLES: &str = r#"[
    {"name": "base", "prompt": "{prompt}", "negative_prompt": ""},
    {"name": "enhance",
     "prompt": "breathtaking {prompt} . award-winning, professional, highly detailed",
     "negative_prompt": "ugly, deformed, noisy, blurry, distorted, grainy"}]"#;

const TENT: &str = "a futuristic pop up tent in a forest";

fn styled(styles: &[u8], inputs: &[(&str, Value)]) -> Result<[String; 2], String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sdxl_styles.json");
    fs::write(&file, styles).unwrap();
    let mut all = vec![("style_file", Value::string(file.to_str().unwrap()))];
    all.extend(inputs.iter().cloned());
    let host = Host::new();
    let texts = host.run(&this_library!(), "SDXLPromptStyler", &all);
    let texts = texts.map_err(|error| error.to_string())?;
    Ok([0, 1].map(|i: usize| texts[i].as_str().unwrap().to_owned()))
}

fn texts(positive: &str, negative: &str, style: &str) -> Vec<(&'static str, Value)> {
    vec![
        ("text_positive", Value::string(positive)),
        ("text_negative", Value::string(negative)),
        ("style", Value::string(style)),
    ]
}

#[test]
fn texts_are_put_into_a_style() {
    let styled = |positive, negative, style| {
        styled(STYLES.as_bytes(), &texts(positive, negative, style)).unwrap()
    };
    assert_eq!(
        styled(TENT, "dark", "enhance"),
        [
            "breathtaking a futuristic pop up tent in a forest . award-winning, professional, highly detailed",
            "ugly, deformed, noisy, blurry, distorted, grainy, dark"
        ]
    );
    assert_eq!(styled(TENT, "", "enhance")[1], "ugly, deformed, noisy, blurry, distorted, grainy");
    assert_eq!(styled(TENT, "dark", "base"), [TENT, "dark"]);
}

#[test]
fn a_half_of_a_style_can_be_left_out() {
    let without = |name| {
        let mut inputs = texts(TENT, "dark", "enhance");
        inputs.push((name, Value::from(false)));
        inputs.push(("log_prompt", Value::string("Yes")));
        styled(STYLES.as_bytes(), &inputs).unwrap()
    };
    assert_eq!(without("style_positive")[0], TENT);
    assert_eq!(without("style_negative")[1], "dark");
}

#[test]
fn styles_that_are_none_are_told() {
    let refused = |styles: &[u8], style| styled(styles, &texts("", "", style)).unwrap_err();
    let error = refused(STYLES.as_bytes(), "enhanced");
    assert!(error.contains("style: \"enhanced\" is none of the 2 styles in"), "{error}");
    assert!(error.ends_with("sdxl_styles.json: base, enhance"), "{error}");
    for styles in [&b"{}"[..], b"[1]", b"[{\"prompt\": \"\"}]", b"", b"\xff"] {
        let error = refused(styles, "base");
        assert!(
            error.contains("style_file: ") && error.contains("is no list of styles"),
            "{error}"
        );
    }
}
