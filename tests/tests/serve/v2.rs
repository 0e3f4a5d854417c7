//! Comfy API v2: jobs, their events, keys that may be used once, assets.

use super::{drawn, node, pictures, plain};
use kosmograph_tests::server::{Answer, Server};
use serde_json::{Value, json};

fn submit(server: &Server, workflow: &Value, headers: &[(&str, &str)]) -> Answer {
    let body = json!({"workflow": workflow}).to_string();
    server.request("POST", "/api/v2/jobs", headers, body.as_bytes())
}

fn accepted(server: &Server, workflow: &Value) -> String {
    let answer = submit(server, workflow, &[]);
    assert_eq!(answer.status, 201, "{}", answer.json());
    answer.json()["id"].as_str().unwrap().to_owned()
}

/// The events of a job, to their end.
fn events(server: &Server, id: &str) -> Vec<(String, Value)> {
    let answer = server.get(&format!("/api/v2/jobs/{id}/events"));
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let text = String::from_utf8(answer.body).unwrap();
    let event = |block: &str| {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
        let data = serde_json::from_str(field("data: ")?).unwrap();
        Some((field("event: ").unwrap_or("message").to_owned(), data))
    };
    text.split("\n\n").filter_map(event).collect()
}

fn upload(server: &Server, fields: &[(&str, &str)], bytes: &[u8]) -> Answer {
    let mut body = Vec::new();
    for (field, text) in fields {
        let head = format!("--x\r\nContent-Disposition: form-data; name=\"{field}\"\r\n\r\n");
        body.extend(format!("{head}{text}\r\n").as_bytes());
    }
    body.extend(b"--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n");
    body.extend(b"Content-Type: image/png\r\n\r\n");
    body.extend(bytes);
    body.extend(b"\r\n--x--\r\n");
    let kind = ("Content-Type", "multipart/form-data; boundary=x");
    server.request("POST", "/api/v2/assets", &[kind], &body)
}

#[test]
fn a_job_its_events_and_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let before = server.submit(&drawn(1000, 1), None);
    while server.get("/queue").json()["queue_running"].as_array().unwrap().is_empty() {}
    let id = accepted(&server, &drawn(60, 7));
    let path = format!("/api/v2/jobs/{id}");
    let job = server.get(&path).json();
    assert_eq!((&job["status"], &job["queue_position"]), (&json!("queued"), &json!(1)));
    assert_eq!((&job["started_at"], &job["outputs"]), (&Value::Null, &json!([])));
    assert!(job["urls"]["events"].as_str().unwrap().starts_with("http://127.0.0.1:"), "{job}");
    server.post("/interrupt", &json!({"prompt_id": before}));
    let heard = events(&server, &id);
    let of = |kind: &str| heard.iter().filter(|(name, _)| name == kind).collect::<Vec<_>>();
    let statuses: Vec<&str> =
        of("status").iter().map(|(_, data)| data["status"].as_str().unwrap()).collect();
    assert!(statuses.starts_with(&["queued"]) || statuses.starts_with(&["running"]), "{heard:?}");
    assert_eq!(heard.last().unwrap(), &("status".into(), json!({"status": "succeeded"})));
    let values: Vec<f64> =
        of("progress").iter().map(|(_, data)| data["value"].as_f64().unwrap()).collect();
    assert!(values.is_sorted() && values.last().is_some_and(|value| *value <= 1.0), "{values:?}");
    assert!(of("progress").iter().all(|(_, data)| data["nodes_total"] == 7), "{heard:?}");
    let [(_, output)] = of("output")[..] else { panic!("{heard:?}") };
    assert_eq!((&output["node_id"], &output["type"]), (&json!("23"), &json!("image")));
    let job = server.get(&path).json();
    assert_eq!((&job["status"], &job["error"]), (&json!("succeeded"), &Value::Null));
    assert_eq!(job["outputs"], json!([output]));
    assert!(job["metrics"]["execution_ms"].is_number() && job["completed_at"].is_string());
    let name = output["name"].as_str().unwrap();
    let picture = std::fs::read(folder.path().join("out").join(name)).unwrap();
    assert_eq!(output["size_bytes"], picture.len());
    let asset = output["id"].as_str().unwrap();
    let content = format!("/api/v2/assets/{asset}/content");
    assert!(output["url"].as_str().unwrap().ends_with(&content));
    assert!(server.get(&content).body == picture);
    let part = server.request("GET", &content, &[("Range", "bytes=1-3")], b"");
    assert_eq!((part.status, part.body.as_slice()), (206, b"PNG".as_slice()));
    let told = server.get(&format!("/api/v2/assets/{asset}")).json();
    assert_eq!(told["job_id"], id.as_str());
    let workflow = server.get(&format!("{path}/workflow")).json();
    assert_eq!(workflow, json!({"workflow": drawn(60, 7), "format": "api"}));
    // Whoever comes late hears the end, with what was made.
    let kinds: Vec<String> = events(&server, &id).into_iter().map(|(name, _)| name).collect();
    assert_eq!(kinds, ["output", "status"]);
    // Again: nothing runs, the same is told.
    let again = accepted(&server, &drawn(60, 7));
    let heard = events(&server, &again);
    assert_eq!(heard.last().unwrap().1["status"], "succeeded");
    let job = server.get(&format!("/api/v2/jobs/{again}")).json();
    assert_eq!((&job["outputs_reused"], &job["outputs"][0]["name"]), (&json!(true), &json!(name)));
    std::fs::remove_file(folder.path().join("out").join(name)).unwrap();
    let gone = server.get(&content);
    assert_eq!((gone.status, &gone.json()["error"]["code"]), (404, &json!("output_unavailable")));
}

#[test]
fn a_key_makes_one_job() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let with = |key: &str, workflow: &Value| submit(&server, workflow, &[("Idempotency-Key", key)]);
    let mut wrong = plain(1, "k");
    wrong["2"]["inputs"]["images"] = json!(["9", 0]);
    let refused = with("one", &wrong);
    assert_eq!(
        (refused.status, &refused.json()["error"]["code"]),
        (422, &json!("invalid_workflow"))
    );
    assert!(refused.json()["error"]["details"]["node_errors"]["2"].is_object());
    // What was refused has not used it.
    let first = with("one", &plain(1, "k"));
    assert_eq!(first.status, 201);
    let again = with("one", &plain(1, "k"));
    let error = &again.json()["error"];
    assert_eq!((again.status, &error["code"]), (422, &json!("idempotency_key_reuse")));
    assert!(error["message"].as_str().unwrap().contains(first.json()["id"].as_str().unwrap()));
    assert_eq!(with("", &plain(1, "k")).status, 400);
    assert_eq!(with(&"k".repeat(256), &plain(1, "k")).status, 400);
    // Many at once: one is taken.
    let statuses = std::thread::scope(|scope| {
        let work = || scope.spawn(|| with("many", &plain(2, "k")).status);
        let threads: Vec<_> = (0..8).map(|_| work()).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
    // A server that was killed knows them still.
    server.kill();
    let server = Server::start(folder.path(), &[]);
    let again = submit(&server, &plain(1, "k"), &[("Idempotency-Key", "one")]);
    assert_eq!(again.status, 422);
    assert_eq!(server.get("/api/v2/jobs").json()["jobs"].as_array().unwrap().len(), 2);
}

#[test]
fn jobs_are_stopped_and_listed() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let runs = accepted(&server, &drawn(1000, 1));
    let body = json!({"workflow": plain(1, "w"), "metadata": {"run": "x"}, "priority": 3});
    let waits = server.post("/api/v2/jobs", &body).json();
    assert_eq!((&waits["metadata"], &waits["priority"]), (&json!({"run": "x"}), &json!(3)));
    let waits = waits["id"].as_str().unwrap().to_owned();
    let cancel = |id: &str| server.post(&format!("/api/v2/jobs/{id}/cancel"), &json!({})).json();
    assert_eq!(cancel(&waits)["status"], "canceled");
    assert_eq!(cancel(&waits)["status"], "canceled", "again");
    assert_eq!(server.get(&format!("/api/v2/jobs/{waits}")).json()["status"], "canceled");
    let job = |id: &str| server.get(&format!("/api/v2/jobs/{id}")).json();
    while job(&runs)["progress"]["step"].is_null() {}
    assert_eq!(job(&runs)["progress"]["current_node_class"], "UNetSample");
    let status = cancel(&runs)["status"].as_str().unwrap().to_owned();
    assert!(["canceling", "canceled"].contains(&status.as_str()), "{status}");
    assert_eq!(events(&server, &runs).last().unwrap().1["status"], "canceled");
    let failed = server.post("/prompt", &json!({"prompt": plain(1, "f")})).json();
    server.finished(failed["prompt_id"].as_str().unwrap());
    let ids = |query: &str| {
        let list = server.get(&format!("/api/v2/jobs?{query}")).json();
        let jobs = list["jobs"].as_array().unwrap().clone();
        let ids = jobs.iter().map(|job| job["id"].as_str().unwrap().to_owned());
        (ids.collect::<Vec<_>>(), list["next_cursor"].clone())
    };
    assert_eq!(ids("status=canceled").0, [waits.clone(), runs.clone()]);
    assert_eq!(ids("metadata%5Brun%5D=x").0, std::slice::from_ref(&waits));
    let (first, cursor) = ids("limit=2");
    assert_eq!(first[1], waits);
    let (rest, _) = ids(&format!("limit=2&cursor={}", cursor.as_str().unwrap()));
    assert_eq!(rest, [runs]);
    assert_eq!(ids("status=expired,queued").0, Vec::<String>::new());
    for query in ["status=x", "limit=0", "limit=1000", "cursor=x"] {
        assert_eq!(server.get(&format!("/api/v2/jobs?{query}")).status, 400, "{query}");
    }
}

#[test]
fn files_are_brought_once_and_used_by_their_ids() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let monster = kosmograph_tests::repository().join("workflows/input/monster-1.png");
    let picture = std::fs::read(monster).unwrap();
    let hash = format!("blake3:{}", blake3::hash(&picture).to_hex());
    let by_hash = format!("/api/v2/assets/by-hash/{hash}");
    assert_eq!(server.request("HEAD", &by_hash, &[], b"").status, 404);
    let missing = server.post("/api/v2/assets/from-hash", &json!({"hash": hash}));
    assert_eq!((missing.status, &missing.json()["error"]["code"]), (404, &json!("blob_not_found")));
    let wrong = upload(&server, &[("file_path", "m.png"), ("expected_hash", "blake3:0")], &picture);
    assert_eq!((wrong.status, &wrong.json()["error"]["code"]), (409, &json!("hash_mismatch")));
    let fields = [("file_path", "sub/m.png"), ("expected_hash", hash.as_str())];
    let asset = upload(&server, &fields, &picture);
    assert_eq!(asset.status, 201);
    let asset = asset.json();
    assert_eq!((&asset["created_new"], &asset["hash"]), (&json!(true), &json!(hash)));
    let again = upload(&server, &[("file_path", "other.png")], &picture);
    assert_eq!((again.status, &again.json()["id"]), (200, &asset["id"]));
    assert_eq!(server.request("HEAD", &by_hash, &[], b"").status, 200);
    assert_eq!(server.post("/api/v2/assets/from-hash", &json!({"hash": hash})).status, 200);
    for path in ["../m.png", "/etc/m.png", "", "input/../../m.png", "checkpoints/m.safetensors"] {
        let refused = upload(&server, &[("file_path", path)], b"other");
        let code = refused.json()["error"]["code"].clone();
        assert_eq!((refused.status, code), (422, json!("invalid_request")), "{path}");
    }
    let id = asset["id"].as_str().unwrap();
    let own = format!("/api/v2/assets/{id}");
    assert!(server.get(&format!("{own}/content")).body == picture);
    let reference = |id: &str| json!({"__type": "core/ASSET", "info": {"id": id}});
    let loading = |reference: Value| {
        json!({"1": node("LoadImage", json!({"image": reference})),
            "2": node("SaveImage", json!({"images": ["1", 0], "filename_prefix": "a"}))})
    };
    let job = accepted(&server, &loading(reference(id)));
    assert_eq!(events(&server, &job).last().unwrap().1["status"], "succeeded");
    let workflow = server.get(&format!("/api/v2/jobs/{job}/workflow")).json();
    assert_eq!(workflow["workflow"]["1"]["inputs"]["image"], "sub/m.png");
    // What a job made goes into the next.
    let made = server.get(&format!("/api/v2/jobs/{job}")).json()["outputs"][0]["id"].clone();
    let next = accepted(&server, &loading(reference(made.as_str().unwrap())));
    assert_eq!(events(&server, &next).last().unwrap().1["status"], "succeeded");
    assert_eq!(pictures(folder.path()).len(), 2);
    let delete = |path: &str| server.request("DELETE", path, &[], b"");
    assert_eq!(delete(&format!("/api/v2/assets/{}", made.as_str().unwrap())).status, 403);
    assert_eq!(delete(&own).status, 204);
    assert_eq!(delete(&own).status, 404);
    assert!(!folder.path().join("in/sub/m.png").exists());
    let gone = submit(&server, &loading(reference(id)), &[]);
    let error = &gone.json()["error"];
    assert_eq!((gone.status, &error["code"]), (422, &json!("missing_asset")));
    assert_eq!(error["details"]["missing_ids"], json!([id]));
    let malformed = submit(&server, &loading(json!({"__type": "core/ASSET"})), &[]);
    assert_eq!(malformed.json()["error"]["code"], "missing_asset");
}

#[test]
fn refusals_have_v2s_shape() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, "a-token-nobody-guesses").unwrap();
    let server = Server::start(folder.path(), &["--token-file", &tokens.display().to_string()]);
    assert_eq!(server.get("/api/v2/health").json(), json!({"status": "healthy"}));
    let refused = server.get("/api/v2/jobs");
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (401, &json!("unauthorized")));
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    let bearer = [("Authorization", "Bearer a-token-nobody-guesses")];
    let code = |method: &str, path: &str, body: &str| {
        let answer = server.request(method, path, &bearer, body.as_bytes());
        (answer.status, answer.json()["error"]["code"].as_str().unwrap().to_owned())
    };
    let workflow = plain(1, "x").to_string();
    let with = |more: &str| format!("{{\"workflow\": {workflow}, {more}}}");
    for (method, path, body, status, expected) in [
        ("GET", "/api/v2/jobs/nobody", String::new(), 404, "not_found"),
        ("GET", "/api/v2/jobs/nobody/events", String::new(), 404, "not_found"),
        ("GET", "/api/v2/assets/nobody", String::new(), 404, "not_found"),
        ("GET", "/api/v2/assets/a.b/content", String::new(), 404, "not_found"),
        ("GET", "/api/v2/nothing", String::new(), 404, "not_found"),
        ("PUT", "/api/v2/jobs", String::new(), 405, "method_not_allowed"),
        ("POST", "/api/v2/assets", "x".into(), 422, "invalid_request"),
        ("POST", "/api/v2/jobs", "x".into(), 400, "invalid_request"),
        ("POST", "/api/v2/jobs", "{}".into(), 422, "invalid_workflow"),
        ("POST", "/api/v2/jobs", "{\"workflow\": {}}".into(), 422, "invalid_workflow"),
        (
            "POST",
            "/api/v2/jobs",
            "{\"workflow\": {\"nodes\": [], \"links\": []}}".into(),
            422,
            "workflow_format_ui",
        ),
        ("POST", "/api/v2/jobs", with("\"metadata\": 1"), 422, "invalid_request"),
        ("POST", "/api/v2/jobs", with("\"priority\": 0.5"), 422, "invalid_request"),
        ("POST", "/api/v2/jobs", with("\"extra_data\": {\"x\": 1}"), 400, "invalid_request"),
        ("POST", "/api/v2/jobs", with("\"webhook_url\": \"http://x\""), 422, "invalid_workflow"),
    ] {
        assert_eq!(code(method, path, &body), (status, expected.into()), "{method} {path} {body}");
    }
}
