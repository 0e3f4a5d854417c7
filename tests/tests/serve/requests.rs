//! What clients send as ComfyUI takes it, and the sentences that they are told.

use super::{drawn, node, plain};
use kosmograph_tests::server::Server;
use serde_json::json;
use std::io::Write;

#[test]
fn pythons_numbers_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    // json.dumps writes them, and a workflow's is_changed often has one.
    let mut prompt = plain(1, "nan");
    prompt["1"]["is_changed"] = json!(["NUMBER"]);
    let text = json!({"prompt": prompt}).to_string();
    let body = text.replace("\"NUMBER\"", "NaN");
    let answer = server.request("POST", "/prompt", &[], body.as_bytes());
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    let id = answer.json()["prompt_id"].as_str().unwrap().to_owned();
    assert_eq!(server.finished(&id)["status"]["status_str"], "success");
    // At an input it is told there, as of a picture that carries it.
    let body = text.replace("\"color\":1", "\"color\":Infinity").replace("\"NUMBER\"", "1");
    let refused = server.request("POST", "/prompt", &[], body.as_bytes());
    let message = refused.json()["node_errors"]["1"]["errors"][0]["message"].clone();
    assert!(message.as_str().unwrap().starts_with("Infinity is not"), "{message}");
}

#[test]
fn a_client_that_stands_in_extra_data_hears_its_job() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let mut socket = server.socket("inside");
    let body = json!({"prompt": plain(1, "x"), "extra_data": {"client_id": "inside"}});
    let id = server.post("/prompt", &body).json()["prompt_id"].as_str().unwrap().to_owned();
    let heard = socket.until_done(&id);
    assert!(heard.iter().any(|message| message["type"] == "executed"), "{heard:?}");
}

#[test]
fn targets_that_are_none_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    for (targets, said) in [
        (json!(["1"]), "\"1\" is no output node of the prompt"),
        (json!(["1", "99"]), "none of \"1\", \"99\" is an output node of the prompt"),
        (json!([]), "names no node"),
    ] {
        let body = json!({"prompt": plain(1, "x"), "partial_execution_targets": targets});
        let refused = server.post("/prompt", &body);
        let error = refused.json()["error"].clone();
        assert_eq!((refused.status, &error["type"]), (400, &json!("prompt_no_outputs")));
        assert!(error["message"].as_str().unwrap().contains(said), "{error}");
    }
}

#[test]
fn what_is_wrong_has_a_subject() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let mut prompt = drawn(1, 1);
    prompt["21"]["inputs"].as_object_mut().unwrap().remove("model");
    prompt["21"]["inputs"]["seed"] = json!("abc");
    prompt["23"]["inputs"]["filename_prefix"] = json!("../../x");
    let answer = server.post("/prompt", &json!({"prompt": prompt})).json();
    let mut seen = 0;
    for node in answer["node_errors"].as_object().unwrap().values() {
        for error in node["errors"].as_array().unwrap() {
            let message = error["message"].as_str().unwrap();
            assert!(!message.starts_with("is "), "has no subject: {message}");
            seen += 1;
        }
    }
    assert_eq!(seen, 3, "{answer}");
}

#[test]
fn clients_are_told_nothing_of_the_command_line_or_of_other_files() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let there = folder.path().join("there.png");
    std::fs::write(&there, "").unwrap();
    let said = |image: &str| {
        let prompt = json!({"1": node("LoadImage", json!({"image": image})),
            "2": node("SaveImage", json!({"images": ["1", 0], "filename_prefix": "x"}))});
        let answer = server.post("/prompt", &json!({"prompt": prompt}));
        assert_eq!(answer.status, 400);
        String::from_utf8(answer.body).unwrap()
    };
    let (there, missing) = (there.display().to_string(), folder.path().join("none.png"));
    let missing = missing.display().to_string();
    assert_eq!(said(&there).replace(&there, "F"), said(&missing).replace(&missing, "F"));
    assert!(!said(&there).contains("--set") && !said("{{image}}").contains("--set"));
    assert!(said("{{image}}").contains("is a placeholder"));
}

#[test]
fn bodies_may_be_packed() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--upload-limit", "64K"]);
    let packed = |body: &[u8]| {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        writer.write_all(body).unwrap();
        writer.finish().unwrap()
    };
    let post = |encoding: &str, body: &[u8]| {
        server.request("POST", "/prompt", &[("Content-Encoding", encoding)], body)
    };
    let body = json!({"prompt": plain(1, "packed")}).to_string();
    let answer = post("gzip", &packed(body.as_bytes()));
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    let other = post("br", body.as_bytes());
    assert_eq!(other.status, 415);
    assert!(other.json()["error"]["message"].as_str().unwrap().contains("gzip is"));
    // What counts is what comes out.
    let bomb = post("gzip", &packed(&vec![b' '; 10 << 20]));
    assert_eq!(bomb.status, 413);
    assert_eq!(post("gzip", b"no gzip at all").status, 400);
}

#[test]
fn a_body_that_is_too_large_is_told_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--upload-limit", "64K"]);
    let said = "the body is larger than 64 KiB, the most that this server takes; --upload-limit";
    let large = server.request("POST", "/prompt", &[], &vec![b'x'; 100_000]);
    assert_eq!(large.status, 413);
    assert!(large.json()["error"]["message"].as_str().unwrap().starts_with(said));
    let head = "--x\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a.png\"\r\n\r\n";
    let form = format!("{head}{}\r\n--x--\r\n", "y".repeat(100_000));
    let kind = [("Content-Type", "multipart/form-data; boundary=x")];
    let upload = server.request("POST", "/upload/image", &kind, form.as_bytes());
    assert_eq!(upload.status, 413);
    assert!(upload.json()["error"].as_str().unwrap().starts_with(said));
}

#[test]
fn two_hosts_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let hosts = [("Host", server.address.as_str()), ("Host", "evil.example")];
    let answer = server.request("GET", "/queue", &hosts, b"");
    assert_eq!(answer.status, 400);
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("one Host header"));
}
