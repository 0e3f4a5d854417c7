//! What survives: the server, its workers, its state.

use super::{drawn, node, pictures, plain};
use kosmograph_tests::build_c_text;
use kosmograph_tests::server::{Server, send_signal};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::time::Duration;

/// A library with a fault of tests/hostile/faulty.c.
fn faulty(fault: &str) -> String {
    let define = format!("-DFAULT={fault}");
    let source = include_str!("../../hostile/faulty.c");
    let arguments = [OsStr::new(&define), OsStr::new("-pthread")];
    build_c_text(&format!("served_{fault}"), source, &arguments).display().to_string()
}

/// A picture that is saved, and one that needs the faulty node.
fn around_a_fault() -> Value {
    let mut graph = plain(1, "before");
    graph["bad"] = node("Faulty", json!({"image": ["1", 0]}));
    graph["after"] = node("SaveImage", json!({"images": ["bad", 0], "filename_prefix": "after"}));
    graph
}

fn last_message(entry: &Value) -> Value {
    entry["status"]["messages"].as_array().unwrap().last().unwrap().clone()
}

#[test]
fn a_library_that_crashes_costs_its_job_and_no_other() {
    for (fault, said) in [("segv", "SIGSEGV"), ("abort", "SIGABRT"), ("exit7", "exit code 7")] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(folder.path(), &["--plugins", &faulty(fault)]);
        let mut socket = server.socket("me");
        let id = server.submit(&around_a_fault(), Some("me"));
        let heard = socket.until_done(&id);
        let error = heard.iter().find(|message| message["type"] == "execution_error").unwrap();
        let data = &error["data"];
        assert_eq!((&data["node_id"], &data["node_type"]), (&json!("bad"), &json!("Faulty")));
        let message = data["exception_message"].as_str().unwrap();
        assert!(message.contains(said) && message.contains("libserved_"), "{message}");
        assert!(message.ends_with('\n'));
        let entry = server.finished(&id);
        let last = last_message(&entry);
        assert_eq!((&last[0], &last[1]), (&json!("execution_error"), data));
        assert_eq!(entry["status"]["completed"], false);
        assert_eq!(entry["outputs"]["2"]["images"][0]["filename"], "before_00001_.png");
        let next = server.submit(&plain(2, "next"), None);
        assert_eq!(server.finished(&next)["status"]["status_str"], "success");
        let jobs = server.get("/api/jobs?status=failed").json();
        assert!(jobs["jobs"][0]["execution_error"]["traceback"].is_array());
    }
}

#[test]
fn a_node_that_does_not_listen_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--plugins", &faulty("deaf")]);
    let mut socket = server.socket("me");
    let id = server.submit(&around_a_fault(), Some("me"));
    socket.until(|message| message["data"]["node"] == "bad");
    server.post("/interrupt", &json!({}));
    let heard = socket.until_done(&id);
    assert!(heard.iter().any(|message| message["type"] == "execution_interrupted"));
    let next = server.submit(&plain(2, "next"), None);
    assert_eq!(server.finished(&next)["status"]["status_str"], "success");
}

#[test]
fn a_job_that_takes_too_long_fails() {
    let folder = tempfile::tempdir().unwrap();
    let server =
        Server::start(folder.path(), &["--job-timeout", "1", "--plugins", &faulty("sleep")]);
    let id = server.submit(&around_a_fault(), None);
    let last = last_message(&server.finished(&id));
    assert_eq!(last[0], "execution_error");
    assert!(last[1]["exception_message"].as_str().unwrap().contains("longer than 1 s"), "{last}");
    assert_eq!(last[1]["node_id"], "bad");
}

#[test]
fn a_worker_that_is_killed_costs_its_job() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let mut socket = server.socket("me");
    let id = server.submit(&drawn(1000, 1), Some("me"));
    socket.until(|message| message["type"] == "progress");
    server.workers().into_iter().for_each(|worker| send_signal(worker, "KILL"));
    let last = last_message(&server.finished(&id));
    let said = last[1]["exception_message"].as_str().unwrap();
    assert!(said.contains("SIGKILL: something outside ended it"), "{last}");
    let next = server.submit(&drawn(1, 2), None);
    assert_eq!(server.finished(&next)["status"]["status_str"], "success");
    let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
    assert!(metrics.contains("kosmograph_worker_restarts_total 1\n"), "{metrics}");
}

/// Kills under load: no accepted job is lost, none is twice in the history, no picture is half there.
#[test]
fn nothing_accepted_is_lost_when_the_server_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mut accepted = BTreeSet::new();
    // Moments that differ from run to run would be no test that can be run again.
    let mut moment = 1u64;
    for round in 0..20 {
        let server = Server::start(folder.path(), &[]);
        for job in 0..4 {
            let prompt =
                if job == 1 { drawn(5, round) } else { plain(job + 10 * round as u32, "k") };
            let answer = server.post("/prompt", &json!({"prompt": prompt}));
            assert_eq!(answer.status, 200);
            accepted.insert(answer.json()["prompt_id"].as_str().unwrap().to_owned());
        }
        moment =
            moment.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis((moment >> 33) % 120));
        server.kill();
    }
    let server = Server::start(folder.path(), &[]);
    let mut made = BTreeSet::new();
    for id in &accepted {
        let entry = server.finished(id);
        let last = last_message(&entry);
        let gave_up = last[0] == "execution_error"
            && last[1]["exception_message"].as_str().unwrap().contains("ended twice");
        assert!(last[0] == "execution_success" || gave_up, "{last}");
        for output in entry["outputs"].as_object().unwrap().values() {
            made.insert(output["images"][0]["filename"].as_str().unwrap().to_owned());
        }
    }
    let history = server.get("/history").json();
    let ids: BTreeSet<String> = history.as_object().unwrap().keys().cloned().collect();
    assert_eq!(ids, accepted);
    for name in pictures(folder.path()) {
        image::open(folder.path().join("out").join(&name))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        made.remove(&name);
    }
    assert!(made.is_empty(), "these are told of and not there: {made:?}");
}

#[test]
fn a_server_that_is_told_to_end_puts_back_what_runs() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--stop-grace", "0"]);
    let mut socket = server.socket("me");
    let long = server.submit(&drawn(400, 1), Some("me"));
    let waits = server.submit(&plain(3, "waits"), None);
    socket.until(|message| message["type"] == "progress");
    let status = server.end("TERM");
    assert!(status.success(), "{status}");
    let server = Server::start(folder.path(), &[]);
    assert_eq!(server.get("/api/jobs?status=pending,in_progress").json()["pagination"]["total"], 2);
    assert_eq!(server.finished(&long)["status"]["status_str"], "success");
    assert_eq!(server.finished(&waits)["status"]["status_str"], "success");
    // With time to end it does.
    let last = server.submit(&drawn(20, 2), None);
    while server.get("/queue").json()["queue_running"].as_array().unwrap().is_empty() {
        assert!(server.get("/history").json()[&last].is_null());
    }
    assert!(server.end("TERM").success());
    let server = Server::start(folder.path(), &[]);
    assert_eq!(server.get("/history").json()[&last]["status"]["status_str"], "success");
}
