//! What ComfyUI's clients count on: messages and their order, shapes of answers.

use super::{copy_folder, drawn, node, pictures, plain};
use kosmograph_tests::Run;
use kosmograph_tests::server::Server;
use serde_json::{Value, json};

fn kinds(messages: &[Value]) -> Vec<&str> {
    messages.iter().map(|message| message["type"].as_str().unwrap()).collect()
}

#[test]
fn a_job_from_its_submission_to_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let mut socket = server.socket("me");
    let mut other = server.socket("other");
    let first = socket.hear();
    assert_eq!(first["data"]["sid"], "me");
    assert_eq!(first["data"]["status"]["exec_info"]["queue_remaining"], 0);
    socket.send(&json!({"type": "feature_flags", "data": {"supports_preview_metadata": true}}));
    assert_eq!(socket.hear()["data"]["assets"], false);
    let prompt = drawn(2, 7);
    let id = server.submit(&prompt, Some("me"));
    let heard = socket.until_done(&id);
    // Everything but the steps, in the contract's order.
    let without_steps: Vec<&str> = kinds(&heard)
        .into_iter()
        .filter(|kind| !["progress", "progress_state"].contains(kind))
        .collect();
    let executing = ["executing"; 7];
    let expected: Vec<&str> = ["status", "status", "execution_start", "execution_cached"]
        .into_iter()
        .chain(executing)
        .chain(["executed", "execution_success", "status", "executing"])
        .collect();
    assert_eq!(without_steps, expected);
    // Before a node is told to begin its progress is, and behind each step.
    for (at, message) in heard.iter().enumerate() {
        let data = &message["data"];
        if message["type"] == "executing" && !data["node"].is_null() {
            let node = data["node"].as_str().unwrap();
            assert_eq!(heard[at - 1]["data"]["nodes"][node]["state"], "running");
        }
        if message["type"] == "progress" {
            assert_eq!(data["prompt_id"], id.as_str());
            let node = data["node"].as_str().unwrap();
            assert_eq!(heard[at - 1]["data"]["nodes"][node]["value"], data["value"]);
        }
    }
    assert_eq!(heard[heard.len() - 2]["data"]["status"]["exec_info"]["queue_remaining"], 0);
    // The other client hears how much there is to do, and nothing else.
    other.hear();
    assert_eq!(kinds(&[other.hear(), other.hear(), other.hear()]), ["status"; 3]);
    let entry = server.finished(&id);
    assert_eq!(entry["status"]["status_str"], "success");
    assert_eq!(entry["prompt"][2], prompt);
    assert_eq!(entry["prompt"].as_array().unwrap().len(), 5);
    assert_eq!(entry["prompt"][4], json!(["23"]));
    let image = &entry["outputs"]["23"]["images"][0];
    assert_eq!(image["type"], "output");
    let name = image["filename"].as_str().unwrap();
    let served = server.get(&format!("/api/view?filename={name}&subfolder=&type=output"));
    assert_eq!(served.header("content-type"), Some("image/png"));
    assert_eq!(served.header("content-disposition"), Some(format!("filename=\"{name}\"").as_str()));
    // The same bytes as without a server.
    let alone = tempfile::tempdir().unwrap();
    let workflow = alone.path().join("w.json");
    std::fs::write(&workflow, prompt.to_string()).unwrap();
    Run::new("run").with_plugins().arg(&workflow).arg("--out").arg(alone.path()).expect_success();
    assert!(
        std::fs::read(alone.path().join(name)).unwrap() == served.body,
        "other bytes than run's"
    );
    // Again: nothing runs, and the output is told as it was.
    let id = server.submit(&prompt, Some("me"));
    let heard = socket.until_done(&id);
    let cached = heard.iter().find(|message| message["type"] == "execution_cached").unwrap();
    assert_eq!(cached["data"]["nodes"].as_array().unwrap().len(), 7);
    let executed = heard.iter().find(|message| message["type"] == "executed").unwrap();
    assert_eq!(executed["data"]["output"]["images"][0]["filename"], name);
    assert_eq!(server.finished(&id)["outputs"], entry["outputs"]);
    assert_eq!(pictures(folder.path()).len(), 1);
    // A picture that somebody deleted is made again.
    std::fs::remove_file(folder.path().join("out").join(name)).unwrap();
    let id = server.submit(&prompt, Some("me"));
    assert_eq!(server.finished(&id)["status"]["status_str"], "success");
    assert_eq!(pictures(folder.path()).len(), 1);
}

#[test]
fn the_queue_is_listed_reordered_and_emptied() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let running = server.submit(&drawn(1000, 1), None);
    let mut ids = Vec::new();
    for number in 0..3 {
        ids.push(server.submit(&plain(number, "q"), None));
    }
    let front = server.post("/prompt", &json!({"prompt": plain(9, "front"), "front": true})).json();
    assert!(front["number"].as_i64().unwrap() < 0, "{front}");
    // The process that runs it starts with the server, and may take its time.
    let mut queue = server.get("/queue").json();
    while queue["queue_running"][0].is_null() {
        std::thread::sleep(std::time::Duration::from_millis(20));
        queue = server.get("/queue").json();
    }
    assert_eq!(queue["queue_running"][0][1], running.as_str());
    let pending = queue["queue_pending"].as_array().unwrap();
    let listed: Vec<&str> = pending.iter().map(|job| job[1].as_str().unwrap()).collect();
    assert_eq!(listed[0], front["prompt_id"].as_str().unwrap());
    assert_eq!(listed[1..], ids);
    assert!(pending.iter().all(|job| job.as_array().unwrap().len() == 5));
    assert_eq!(server.get("/prompt").json()["exec_info"]["queue_remaining"], 5);
    let jobs = server.get("/api/jobs?status=in_progress,pending&limit=200").json();
    assert_eq!(jobs["pagination"]["total"], 5);
    assert!(jobs["jobs"].as_array().unwrap().iter().all(|job| job["create_time"].is_number()));
    assert_eq!(server.post("/queue", &json!({"delete": [ids[1], running]})).body, b"");
    assert_eq!(server.get("/prompt").json()["exec_info"]["queue_remaining"], 4);
    let cancelled = server.post(&format!("/api/jobs/{}/cancel", ids[0]), &json!({})).json();
    assert_eq!(cancelled, json!({"cancelled": true}));
    assert_eq!(server.post("/queue", &json!({"clear": true})).status, 200);
    assert_eq!(server.post("/interrupt", &json!({"prompt_id": "another"})).status, 200);
    assert_eq!(server.get("/prompt").json()["exec_info"]["queue_remaining"], 1);
    assert_eq!(server.request("POST", "/interrupt", &[], b"{broken").status, 200);
    let entry = server.finished(&running);
    assert_eq!(
        (&entry["status"]["status_str"], &entry["status"]["completed"]),
        (&json!("error"), &json!(false))
    );
    let last = entry["status"]["messages"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last[0], "execution_interrupted");
    // Whichever was at work, or was to be next.
    assert!(!last[1]["node_type"].as_str().unwrap().is_empty(), "{last}");
    assert_eq!(server.get(&format!("/api/jobs/{running}")).json()["status"], "cancelled");
    assert_eq!(server.get("/api/jobs/nobody").status, 404);
}

#[test]
fn a_workflow_with_problems_is_told_in_comfyuis_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let refused = |body: Value| {
        let answer = server.post("/prompt", &body);
        assert_eq!(answer.status, 400, "{body}");
        answer.json()
    };
    assert_eq!(refused(json!({}))["error"]["type"], "no_prompt");
    assert_eq!(refused(json!({"prompt": {}}))["error"]["type"], "prompt_no_outputs");
    let mut prompt = drawn(2, 1);
    prompt["21"]["class_type"] = "KSamplr".into();
    let answer = refused(json!({"prompt": prompt}));
    assert_eq!(answer["error"]["type"], "missing_node_type");
    assert_eq!(answer["error"]["extra_info"]["node_title"], "Sampler");
    let mut prompt = drawn(2, 1);
    prompt["1"]["inputs"]["ckpt_name"] = "nothing".into();
    prompt["21"]["inputs"]["model"] = json!(["11", 0]);
    prompt["21"]["inputs"]["steps"] = json!(-5);
    prompt["22"]["inputs"].as_object_mut().unwrap().remove("samples");
    let answer = refused(json!({"prompt": prompt}));
    assert_eq!(answer["error"]["type"], "prompt_outputs_failed_validation");
    let of = |id: &str| {
        let errors = answer["node_errors"][id]["errors"].as_array().cloned().unwrap_or_default();
        errors
            .into_iter()
            .map(|error| error["type"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(of("22"), ["required_input_missing"]);
    // One output is wrong, the other is made.
    let mut two = plain(1, "good");
    two["3"] = json!({"class_type": "SaveImage", "inputs": {"images": ["1", 7], "filename_prefix": "bad"}});
    let answer = server.post("/prompt", &json!({"prompt": two})).json();
    assert_eq!(answer["node_errors"]["3"]["errors"][0]["type"], "bad_linked_input");
    assert_eq!(answer["node_errors"]["3"]["dependent_outputs"], json!(["3"]));
    let entry = server.finished(answer["prompt_id"].as_str().unwrap());
    assert_eq!(entry["status"]["status_str"], "success");
    assert_eq!(pictures(folder.path()), ["good_00001_.png"]);
    // Only what is asked for.
    let mut two = plain(1, "one");
    two["3"] = json!({"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "two"}});
    let answer =
        server.post("/prompt", &json!({"prompt": two, "partial_execution_targets": ["3"]}));
    server.finished(answer.json()["prompt_id"].as_str().unwrap());
    assert_eq!(pictures(folder.path()), ["good_00001_.png", "two_00001_.png"]);
}

#[test]
fn a_picture_a_range_of_seeds_and_the_editors_format_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let answer = server.post("/prompt", &json!({"prompt": drawn(1, 0), "seed": "3..6"})).json();
    let ids = answer["prompt_ids"].as_array().unwrap();
    let seeds: Vec<Value> = ids
        .iter()
        .map(|id| {
            server.finished(id.as_str().unwrap())["prompt"][2]["21"]["inputs"]["seed"].clone()
        })
        .collect();
    assert_eq!(seeds, [3, 4, 5].map(Value::from));
    let names = pictures(folder.path());
    assert_eq!(names.len(), 3);
    let picture = std::fs::read(folder.path().join("out").join(&names[1])).unwrap();
    let answer = server.request("POST", "/prompt?seed=9", &[], &picture).json();
    let entry = server.finished(answer["prompt_id"].as_str().unwrap());
    assert_eq!(entry["prompt"][2]["21"]["inputs"]["seed"], 9);
    // As the editor saves it: values without names, a node that is muted.
    let editor = json!({"id": "w1", "nodes": [
        {"id": 1, "type": "EmptyImage", "mode": 0, "inputs": [], "widgets_values": [16, 16, 1, 255],
            "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1, 2]}]},
        {"id": 2, "type": "SaveImage", "mode": 0, "widgets_values": ["edited"],
            "inputs": [{"name": "images", "type": "IMAGE", "link": 1}], "outputs": []},
        {"id": 3, "type": "SaveImage", "mode": 2, "widgets_values": ["muted"],
            "inputs": [{"name": "images", "type": "IMAGE", "link": 2}], "outputs": []}],
        "links": [[1, 1, 0, 2, 0, "IMAGE"], [2, 1, 0, 3, 0, "IMAGE"]], "version": 0.4});
    let answer = server.post("/prompt", &json!({"prompt": &editor})).json();
    let entry = server.finished(answer["prompt_id"].as_str().unwrap());
    assert_eq!(entry["prompt"][3]["extra_pnginfo"]["workflow"]["id"], "w1");
    assert!(pictures(folder.path()).contains(&"edited_00001_.png".to_owned()));
    let mut muted = editor.clone();
    muted["nodes"][1]["mode"] = json!(4);
    let refused = server.post("/prompt", &json!({"prompt": muted})).json();
    assert_eq!(refused["error"]["type"], "prompt_no_outputs");
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("muted or bypassed") && message.contains("node 3"), "{message}");
    let jobs = server.get("/api/jobs?workflow_id=w1").json();
    assert_eq!(jobs["pagination"]["total"], 1);
    assert_eq!(server.get("/api/jobs?limit=0").status, 400);
}

#[test]
fn a_class_that_is_gone_is_done_by_the_one_that_replaces_it() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let all = server.get("/api/node_replacements").json();
    let one = &all["ResizeImagesByLongerEdge"][0];
    assert_eq!(one["new_node_id"], "ImageScaleToMaxDimension");
    assert_eq!(one["old_widget_ids"], json!(["longer_edge"]));
    let image = json!({"new_id": "image", "old_id": "images"});
    assert!(one["input_mapping"].as_array().unwrap().contains(&image));
    let prompt = json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 32, "batch_size": 1, "color": 0}},
        "2": {"class_type": "ResizeImagesByLongerEdge", "inputs": {"images": ["1", 0], "longer_edge": 16}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}}});
    let entry = server.finished(&server.submit(&prompt, None));
    assert_eq!(entry["status"]["status_str"], "success");
    let image = &entry["outputs"]["3"]["images"][0];
    let name = image["filename"].as_str().unwrap();
    let picture = server.get(&format!("/view?filename={name}&type=output")).body;
    // Width and height of a PNG stand behind its signature and the head of its first chunk.
    assert_eq!((&picture[16..20], &picture[20..24]), (&[0, 0, 0, 16][..], &[0, 0, 0, 8][..]));
}

#[test]
fn every_address_answers_with_its_kind_of_json() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    for prefix in ["", "/api"] {
        let get = |path: &str| {
            let answer = server.get(&format!("{prefix}{path}"));
            assert_eq!(answer.status, 200, "{prefix}{path}");
            answer.json()
        };
        for path in [
            "/i18n",
            "/workflow_templates",
            "/global_subgraphs",
            "/node_replacements",
            "/settings",
            "/features",
            "/users",
            "/history",
            "/object_info/NoSuchClass",
        ] {
            assert!(get(path).is_object(), "{path}");
        }
        for path in [
            "/embeddings",
            "/extensions",
            "/models",
            "/models/checkpoints",
            "/experiment/models",
            "/experiment/models/loras",
        ] {
            assert!(get(path).is_array(), "{path}");
        }
        let classes = get("/object_info");
        assert!(classes["KSampler"]["input"]["required"]["sampler_name"][0].is_array());
        assert_eq!(get("/object_info/KSampler")["KSampler"], classes["KSampler"]);
        let stats = get("/system_stats");
        assert!(stats["devices"][0]["torch_vram_total"].is_number(), "{stats}");
        assert_eq!(get("/settings/None"), Value::Null);
        assert_eq!(server.get(&format!("{prefix}/models/unet")).status, 404);
    }
    assert_eq!(server.get("/api/assets").status, 503);
    assert_eq!(server.get("/jobs").status, 404, "only below /api");
    assert!(server.get("/internal/logs/raw").json()["entries"].is_array());
    assert_eq!(server.post("/settings", &json!({"a": 1, "b": {"c": 2}})).body, b"");
    assert_eq!(server.post("/settings/a", &json!([1])).status, 200);
    assert_eq!(server.get("/api/settings").json(), json!({"a": [1], "b": {"c": 2}}));
    let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
    assert!(metrics.contains("kosmograph_queue_waiting 0\n"), "{metrics}");
    assert_eq!(server.get("/healthz").body, b"ok");
    assert_eq!(server.get("/readyz").status, 200);
    let page = server.get("/");
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let listed = server.get("/kosmograph/workflows").json();
    assert!(
        listed.as_array().unwrap().iter().any(|entry| entry["name"] == "text.json"),
        "{listed}"
    );
    assert_eq!(server.get("/kosmograph/workflows/text.json").json()["prompt"], drawn(20, 1));
    assert_eq!(server.get("/kosmograph/page.js").status, 200);
}

#[test]
fn the_editors_files_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let put = |path: &str| server.request("POST", path, &[], b"{\"nodes\": []}");
    assert_eq!(server.get("/userdata").status, 400);
    assert_eq!(server.get("/userdata?dir=nothing").status, 404);
    assert_eq!(server.get("/userdata?dir=workflows").json(), json!([]));
    assert_eq!(
        server.get("/userdata/user.css").header("content-type"),
        Some("text/css; charset=utf-8")
    );
    assert_eq!(
        put("/userdata/workflows%2Fmine.json?overwrite=false").json(),
        "workflows/mine.json"
    );
    assert_eq!(put("/userdata/workflows%2Fmine.json?overwrite=false").status, 409);
    let info = put("/api/userdata/workflows%2Fsub%2Fa.json?full_info=true").json();
    assert_eq!((&info["path"], &info["size"]), (&json!("workflows/sub/a.json"), &json!(13)));
    assert_eq!(server.get("/userdata?dir=workflows").json(), json!(["mine.json"]));
    let all = server.get("/userdata?dir=workflows&recurse=true&split=true").json();
    assert_eq!(all, json!([["mine.json", "mine.json"], ["sub/a.json", "sub", "a.json"]]));
    let move_to = "/userdata/workflows%2Fmine.json/move/workflows%2Fyours.json";
    assert_eq!(server.post(move_to, &json!({})).json(), "workflows/yours.json");
    assert_eq!(server.get("/userdata/workflows%2Fyours.json").body, b"{\"nodes\": []}");
    assert_eq!(server.get("/userdata/workflows%2Fmine.json").status, 404);
    assert_eq!(server.request("DELETE", "/userdata/workflows%2Fyours.json", &[], b"").status, 204);
    for path in
        ["/userdata/..%2F..%2Fkosmograph.db", "/userdata/%2Fetc%2Fpasswd", "/userdata?dir=.."]
    {
        assert_eq!(server.get(path).status, 403, "{path}");
    }
    let listed = server.get("/v2/userdata?path=workflows").json();
    assert_eq!(listed[0]["type"], "directory");
}

#[test]
fn uploads_are_taken_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let upload = |path: &str, fields: &[(&str, &str)], name: &str, bytes: &[u8]| {
        let mut body = Vec::new();
        for (field, text) in fields {
            let part = format!(
                "--x\r\nContent-Disposition: form-data; name=\"{field}\"\r\n\r\n{text}\r\n"
            );
            body.extend(part.as_bytes());
        }
        body.extend(
            format!(
                "--x\r\nContent-Disposition: form-data; name=\"image\"; filename=\"{name}\"\r\n\r\n"
            )
            .as_bytes(),
        );
        body.extend(bytes);
        body.extend(b"\r\n--x--\r\n");
        server.request("POST", path, &[("Content-Type", "multipart/form-data; boundary=x")], &body)
    };
    let monster = kosmograph_tests::repository().join("workflows/input/monster-1.png");
    let picture = std::fs::read(monster).unwrap();
    let kept = upload("/upload/image", &[], "a.png", &picture).json();
    assert_eq!(kept, json!({"name": "a.png", "subfolder": "", "type": "input"}));
    assert_eq!(upload("/upload/image", &[], "a.png", &picture).json()["name"], "a.png");
    let other = upload("/upload/image", &[("subfolder", "")], "a.png", b"other").json();
    assert_eq!(other["name"], "a (1).png");
    let mask =
        [("original_ref", r#"{"filename":"a.png","type":"input"}"#), ("subfolder", "clipspace")];
    let masked = upload("/api/upload/mask", &mask, "m.png", &picture).json();
    assert_eq!(masked["subfolder"], "clipspace");
    for (name, fields) in [
        ("../a.png", [("type", "input")]),
        ("", [("type", "input")]),
        ("a.png", [("subfolder", "../x")]),
        ("a.png", [("type", "models")]),
    ] {
        assert_eq!(upload("/upload/image", &fields, name, b"x").status, 400, "{name} {fields:?}");
    }
    let view = |query: &str| server.get(&format!("/view?{query}"));
    assert!(view("filename=a.png&type=input").body == picture);
    assert!(view("filename=a.png%20%5Binput%5D").body == picture);
    assert_eq!(
        view("filename=a.png&type=input&preview=webp;80").header("content-type"),
        Some("image/webp")
    );
    let html = upload("/upload/image", &[], "x.html", b"<script>alert(1)</script>").json();
    assert_eq!(html["name"], "x.html");
    let shown = view("filename=x.html&type=input");
    assert_eq!(shown.header("content-type"), Some("application/octet-stream"));
    assert!(shown.header("content-disposition").unwrap().starts_with("attachment"));
    assert_eq!(shown.header("x-content-type-options"), Some("nosniff"));
    for (query, status) in [
        ("", 404),
        ("filename=nothing.png", 404),
        ("filename=", 400),
        ("filename=..%2Fstate%2Fkosmograph.db", 400),
        ("filename=%2Fetc%2Fpasswd", 400),
        ("filename=a.png&type=etc", 400),
        ("filename=kosmograph.db&subfolder=..%2Fstate", 403),
    ] {
        assert_eq!(view(query).status, status, "{query}");
    }
    // A link that something put among the results leads nowhere.
    std::fs::create_dir_all(folder.path().join("out")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.path().join("out/l.txt")).unwrap();
    assert_eq!(view("filename=l.txt").status, 404);
}

#[test]
fn a_job_that_asks_sees_what_is_made() {
    let folder = tempfile::tempdir().unwrap();
    // A model that says what its latents look like.
    let model = folder.path().join("shown/checkpoints/shown");
    copy_folder(&kosmograph_tests::repository().join("models/tiny/sd"), &model);
    let config = model.join("unet/config.json");
    let mut said: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    said["latent_rgb"] =
        json!([[0.3, 0.2, 0.3], [0.3, 0.5, 0.2], [-0.3, 0.2, 0.3], [-0.2, -0.3, -0.7]]);
    said["latent_rgb_bias"] = json!([0.0, 0.0, 0.0]);
    std::fs::write(&config, said.to_string()).unwrap();
    let models = folder.path().join("shown").display().to_string();
    let server = Server::start(folder.path(), &["--models", &models]);
    let (mut old, mut new) = (server.socket("old"), server.socket("new"));
    new.send(&json!({"type": "feature_flags", "data": {"supports_preview_metadata": true}}));
    new.until(|message| message["type"] == "feature_flags");
    let submit = |client: &str, method: &str| {
        let extra = json!({"preview_method": method});
        let mut prompt = drawn(3, 5 + (client.len() + 8 * method.len()) as u64);
        prompt["1"]["inputs"]["ckpt_name"] = "shown".into();
        let body = json!({"prompt": prompt, "client_id": client, "extra_data": extra});
        server.post("/prompt", &body).json()["prompt_id"].as_str().unwrap().to_owned()
    };
    let id = submit("old", "latent2rgb");
    old.until_done(&id);
    let frames = old.frames();
    assert!(!frames.is_empty());
    for frame in frames {
        assert_eq!(frame[..8], [0, 0, 0, 1, 0, 0, 0, 1]);
        let picture = image::load_from_memory(&frame[8..]).unwrap();
        assert_eq!(picture.width().max(picture.height()), 512);
    }
    let id = submit("new", "auto");
    new.until_done(&id);
    let frames = new.frames();
    let length = u32::from_be_bytes(frames[0][4..8].try_into().unwrap()) as usize;
    let metadata: Value = serde_json::from_slice(&frames[0][8..8 + length]).unwrap();
    assert_eq!((&metadata["node_id"], &metadata["prompt_id"]), (&json!("21"), &json!(id)));
    image::load_from_memory(&frames[0][8 + length..]).unwrap();
    for method in ["none", "default"] {
        new.until_done(&submit("new", method));
        assert_eq!(new.frames().len(), 0, "{method}");
    }
}

#[test]
fn a_client_is_sent_its_pictures_and_nobody_keeps_them() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let (mut old, mut new) = (server.socket("old"), server.socket("new"));
    new.send(&json!({"type": "feature_flags", "data": {"supports_preview_metadata": true}}));
    new.until(|message| message["type"] == "feature_flags");
    let prompt = |batch: u32| {
        let size = json!({"width": 600, "height": 40, "batch_size": batch, "color": 0x00ff80});
        json!({"1": node("EmptyImage", size),
            "4": node("RebatchImages", json!({"images": ["1", 0], "batch_size": 1})),
            "save": node("SaveImageWebsocket", json!({"images": ["4", 0]}))})
    };
    // The same once more: it is made, and sent, again.
    for _ in 0..2 {
        let id = server.submit(&prompt(2), Some("old"));
        let heard = old.until_done(&id);
        let at_work = |message: &Value| message["data"]["node"] == "save";
        assert!(heard.iter().any(|message| message["type"] == "executing" && at_work(message)));
        assert!(!heard.iter().any(|message| message["type"] == "executed"));
        let frames = old.frames();
        assert_eq!(frames.len(), 2);
        for frame in frames {
            assert_eq!(frame[..8], [0, 0, 0, 1, 0, 0, 0, 2]);
            let picture = image::load_from_memory_with_format(&frame[8..], image::ImageFormat::Png);
            let picture = picture.unwrap().to_rgb8();
            assert_eq!(picture.dimensions(), (600, 40), "as large as it is");
            assert!(picture.pixels().all(|pixel| pixel.0 == [0, 255, 128]));
        }
        let entry = server.finished(&id);
        assert_eq!(entry["status"]["status_str"], "success");
        assert_eq!(entry["outputs"], json!({}));
    }
    let id = server.submit(&prompt(1), Some("new"));
    new.until_done(&id);
    let frames = new.frames();
    assert_eq!((frames.len(), old.frames().len()), (1, 0), "it is nobody else's");
    assert_eq!(frames[0][..4], [0, 0, 0, 4]);
    let length = u32::from_be_bytes(frames[0][4..8].try_into().unwrap()) as usize;
    let metadata: Value = serde_json::from_slice(&frames[0][8..8 + length]).unwrap();
    assert_eq!(
        (&metadata["node_id"], &metadata["image_type"]),
        (&json!("save"), &json!("image/png"))
    );
    image::load_from_memory(&frames[0][8 + length..]).unwrap();
    let left = |name: &str| {
        let entries = std::fs::read_dir(folder.path().join(name)).into_iter().flatten().flatten();
        let files = entries.filter(|entry| entry.path().is_file());
        files.map(|entry| entry.file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(left("out"), [""; 0]);
    assert_eq!(left("state/temp"), [""; 0]);
}

#[test]
fn silent_clients_hear_the_queue_and_a_second_socket_takes_over() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let mut first = server.socket("me");
    first.hear();
    let id = server.submit(&drawn(200, 3), Some("me"));
    first.until(|message| message["type"] == "progress");
    let mut second = server.socket("me");
    assert_eq!(second.hear()["data"]["sid"], "me");
    assert_eq!(second.hear()["data"], json!({"node": "21"}), "the node at work is told");
    server.post("/interrupt", &json!({}));
    let heard = second.until_done(&id);
    assert!(kinds(&heard).contains(&"execution_interrupted"));
    // One without a client: its end is told to all, its nodes to nobody but by their progress.
    let id = server.submit(&drawn(1000, 4), None);
    second.until(|message| {
        message["type"] == "progress" && message["data"]["prompt_id"] == id.as_str()
    });
    server.post("/interrupt", &json!({}));
    let heard = second.until(|message| message["type"] == "execution_interrupted");
    assert!(!kinds(&heard).contains(&"executing"));
}
