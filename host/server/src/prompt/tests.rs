//! Bodies of `POST /prompt`, as they are read.

use super::*;
use proptest::prelude::*;

fn read(body: &str) -> Result<Submission, Fault> {
    Submission::read(body.as_bytes(), &HashMap::new())
}

fn kind(body: &str) -> String {
    let fault = read(body).unwrap_err();
    assert_eq!(fault.status, StatusCode::BAD_REQUEST);
    fault.body["error"]["type"].as_str().unwrap().to_owned()
}

#[test]
fn bodies_that_are_none() {
    assert_eq!(kind(""), "invalid_json");
    assert_eq!(kind("[]"), "no_prompt");
    assert_eq!(kind("{}"), "no_prompt");
    assert_eq!(kind(r#"{"prompt": null}"#), "invalid_prompt");
    assert_eq!(kind(r#"{"prompt": {}, "prompt_id": "7"}"#), "invalid_prompt_id");
    let upper = r#"{"prompt": {}, "prompt_id": "7F9619FF-8B86-D011-B42D-00CF4FC964FF"}"#;
    assert_eq!(kind(upper), "invalid_prompt_id");
    assert_eq!(kind(r#"{"prompt": {}, "number": "x"}"#), "invalid_number");
    assert_eq!(kind(r#"{"prompt": {}, "extra_data": 3}"#), "invalid_extra_data");
    assert_eq!(kind(r#"{"prompt": {}, "seed": "5..2"}"#), "invalid_seed");
    assert_eq!(kind(&format!("{}{}", r#"{"prompt":"#, "[".repeat(500))), "invalid_json");
}

#[test]
fn what_is_asked_for_is_read() {
    let body = r#"{"prompt": {"1": {"class_type": "A", "inputs": {}}}, "client_id": "c",
        "number": -2, "front": 1, "partial_execution_targets": ["1", 2], "seed": "1..=3"}"#;
    let read = read(body).unwrap();
    assert_eq!((read.client.as_deref(), read.number, read.front), (Some("c"), Some(-2.0), true));
    assert_eq!(read.targets, Some(vec!["1".to_owned(), "2".to_owned()]));
    assert_eq!(read.seeds, Some("1..4".parse().unwrap()));
    // A workflow alone, with the rest in the address.
    let alone = br#"{"1": {"class_type": "A", "inputs": {}}}"#;
    let parameters = HashMap::from([("client_id".to_owned(), "d".to_owned())]);
    let read = Submission::read(alone, &parameters).unwrap();
    assert_eq!(read.client.as_deref(), Some("d"));
}

#[test]
fn a_client_may_stand_beside_the_workflow() {
    let client = |body: &str| read(body).unwrap().client;
    let inside = r#"{"prompt": {}, "extra_data": {"client_id": "in"}}"#;
    assert_eq!(client(inside).as_deref(), Some("in"));
    let both = r#"{"prompt": {}, "client_id": "top", "extra_data": {"client_id": "in"}}"#;
    assert_eq!(client(both).as_deref(), Some("top"));
    assert_eq!(client(r#"{"prompt": {}, "extra_data": {"client_id": null}}"#), None);
    assert_eq!(kind(r#"{"prompt": {}, "extra_data": {"client_id": 5}}"#), "invalid_client_id");
}

#[test]
fn what_python_writes_is_read() {
    let body = r#"{"prompt": {"1": {"class_type": "A", "inputs": {"cfg": NaN, "t": "NaN"},
        "is_changed": [Infinity]}}, "extra_data": {"x": -Infinity}}"#;
    let object = read(body).unwrap().object.unwrap();
    assert_eq!(object["1"]["inputs"]["t"], "NaN");
    assert_eq!(graph::not_finite(&object["1"]["inputs"]["cfg"]), Some("NaN"));
    assert_eq!(kind(r#"{"prompt": NaN"#), "invalid_json");
}

#[test]
fn secrets_are_dropped() {
    let mut extra = json!({"api_key_comfy_org": "k", "auth_token_comfy_org": "t", "x": 1});
    let extra = extra.as_object_mut().unwrap();
    dress(extra, Some("c"), Some(r#"{"id": "w"}"#));
    let text = Json::Object(extra.clone()).to_string();
    assert!(!text.contains("comfy_org"), "{text}");
    assert_eq!(extra["extra_pnginfo"]["workflow"]["id"], "w");
    assert_eq!((&extra["client_id"], &extra["x"]), (&json!("c"), &json!(1)));
}

proptest! {
    #[test]
    fn any_body_is_read_or_refused(body: Vec<u8>) {
        let _ = Submission::read(&body, &HashMap::new());
    }
}
