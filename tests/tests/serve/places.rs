//! Files: links in the output folder, what the folders of models and of inputs offer, what is gone.

use super::{node, plain};
use kosmograph_tests::server::{Answer, Server};
use serde_json::{Value, json};
use std::os::unix::fs::symlink;
use std::path::Path;

fn upload(server: &Server, subfolder: &str, kind: &str) -> Answer {
    let field = |name: &str, value: &str| {
        format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let form = [
        field("subfolder", subfolder),
        field("type", kind),
        "--x\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a.png\"\r\n\r\n".into(),
        "bytes\r\n--x--\r\n".into(),
    ];
    let kind = [("Content-Type", "multipart/form-data; boundary=x")];
    server.request("POST", "/upload/image", &kind, form.concat().as_bytes())
}

fn entries(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn nothing_is_written_through_a_link_in_the_output_folder() {
    let folder = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("out/own")).unwrap();
    std::fs::create_dir_all(folder.path().join("in")).unwrap();
    symlink(other.path(), folder.path().join("out/archive")).unwrap();
    symlink(other.path(), folder.path().join("in/archive")).unwrap();
    let server = Server::start(folder.path(), &[]);
    for subfolder in ["archive", "archive/new", "own/../archive"] {
        let answer = upload(&server, subfolder, "output");
        assert!([400, 403].contains(&answer.status), "{subfolder}: {}", answer.status);
    }
    assert_eq!(entries(other.path()), 0);
    assert_eq!(upload(&server, "own", "output").status, 200);
    // The inputs are the owner's, and so are the links there.
    assert_eq!(upload(&server, "archive", "input").status, 200);
    assert_eq!(entries(other.path()), 1);
    // What a node would write there is refused before it is computed.
    let refused = server.post("/prompt", &json!({"prompt": plain(1, "archive/x")}));
    assert_eq!(refused.status, 400);
    let text = String::from_utf8(refused.body).unwrap();
    let said = format!("is a link to {}; name that folder with --out", other.path().display());
    assert!(text.contains(&said), "{text}");
    let done = server.finished(&server.submit(&plain(1, "own/x"), None));
    assert_eq!(done["status"]["status_str"], "success");
}

#[test]
fn lists_of_inputs_have_what_their_nodes_take() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    std::fs::create_dir_all(&input).unwrap();
    std::fs::write(input.join("cat.png"), "").unwrap();
    std::fs::write(input.join("made.latent"), "").unwrap();
    let server = Server::start(folder.path(), &[]);
    let classes = server.get("/object_info").json();
    let of = |class: &str, name: &str| classes[class]["input"]["required"][name].clone();
    let latent = of("LoadLatent", "latent");
    assert_eq!((&latent[0], &latent[1]["image_upload"]), (&json!(["made.latent"]), &Value::Null));
    let image = of("LoadImage", "image");
    assert_eq!((&image[0], &image[1]["image_upload"]), (&json!(["cat.png"]), &json!(true)));
}

#[test]
fn folders_of_models_list_what_their_loaders_offer() {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().join("mine");
    for (name, file) in [("checkpoints/whole", "model_index.json"), ("vae/own", "config.json")] {
        std::fs::create_dir_all(models.join(name)).unwrap();
        std::fs::write(models.join(name).join(file), "{}").unwrap();
    }
    std::fs::write(models.join("vae/short.safetensors"), "").unwrap();
    let server = Server::start(folder.path(), &["--models", &models.display().to_string()]);
    let classes = server.get("/object_info").json();
    for (kind, class, input, own) in [
        ("checkpoints", "CheckpointLoaderSimple", "ckpt_name", "whole"),
        ("vae", "VAELoader", "vae_name", "own"),
    ] {
        let listed = server.get(&format!("/models/{kind}")).json();
        let listed = listed.as_array().unwrap();
        assert!(listed.contains(&json!(own)), "{listed:?}");
        for name in classes[class]["input"]["required"][input][0].as_array().unwrap() {
            assert!(listed.contains(name), "{kind}: {name}");
        }
    }
    let short = server.get("/view_metadata/vae?filename=short.safetensors");
    assert_eq!(short.status, 404);
    assert!(short.json()["error"].as_str().unwrap().contains("too short"));
}

#[test]
fn the_history_promises_no_temporary_file_that_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let mut prompt = plain(1, "kept");
    prompt["3"] = node("PreviewImage", json!({"images": ["1", 0]}));
    let server = Server::start(folder.path(), &[]);
    let id = server.submit(&prompt, None);
    let before = server.finished(&id);
    assert_eq!(before["outputs"]["3"]["images"][0]["type"], "temp");
    server.kill();
    let server = Server::start(folder.path(), &[]);
    let after = server.get(&format!("/history/{id}")).json()[&id].clone();
    assert_eq!(after["outputs"]["2"], before["outputs"]["2"]);
    assert!(after["outputs"]["3"].is_null() && after["meta"]["3"].is_null(), "{after}");
    assert_eq!(after["status"], before["status"]);
    assert_eq!(server.get("/history").json()[&id], after);
    let job = server.get(&format!("/api/jobs/{id}")).json();
    assert_eq!((&job["outputs_count"], &job["outputs"]), (&json!(1), &after["outputs"]));
    assert_eq!(server.get("/api/jobs").json()["jobs"][0]["outputs_count"], 1);
    let outputs = server.get(&format!("/api/v2/jobs/{id}")).json()["outputs"].clone();
    assert_eq!(outputs.as_array().map(Vec::len), Some(1), "{outputs}");
}

#[test]
fn a_text_is_shown_and_counts_as_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let prompt = json!({"0": node("PrimitiveString", json!({"value": "words"})),
        "1": node("PreviewAny", json!({"source": ["0", 0]}))});
    let id = server.submit(&prompt, None);
    server.finished(&id);
    let job = server.get(&format!("/api/jobs/{id}")).json();
    let shown = json!({"content": "words", "nodeId": "1", "mediaType": "text"});
    assert_eq!((&job["outputs_count"], &job["preview_output"]), (&json!(0), &shown), "{job}");
}
