//! The ends of jobs, told to somebody who listens, and refused where nobody allowed it.

use super::{drawn, node, plain};
use kosmograph_tests::server::Server;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// What was sent: headers with their names in lower case, and the body.
struct Told {
    path: String,
    headers: Vec<(String, String)>,
    body: Value,
}

impl Told {
    fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known == name);
        &found.unwrap_or_else(|| panic!("{name} is missing")).1
    }
}

fn read(stream: &TcpStream) -> Option<Told> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split_whitespace().nth(1)?.to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length")?.1.parse().ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Told { path, headers, body: serde_json::from_slice(&body).ok()? })
}

/// Listens, and answers with these statuses in turn, and then with the last one. Its port, and what it was told.
fn listen(statuses: &[u16]) -> (u16, Receiver<Told>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut statuses: VecDeque<u16> = statuses.iter().copied().collect();
    let (sender, told) = channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let Some(message) = read(&stream) else { continue };
            let status =
                if statuses.len() > 1 { statuses.pop_front() } else { statuses.front().copied() };
            let status = status.unwrap_or(204);
            let head = format!(
                "HTTP/1.1 {status} X\r\nLocation: /elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            let _ = stream.write_all(head.as_bytes());
            if sender.send(message).is_err() {
                return;
            }
        }
    });
    (port, told)
}

/// A server that may tell the listener of this port.
fn start(folder: &Path, port: u16, more: &[&str]) -> Server {
    let secret = folder.join("secret");
    std::fs::write(&secret, "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n").unwrap();
    let (host, secret) = (format!("http://127.0.0.1:{port}"), secret.display().to_string());
    let arguments = ["--webhook-host", &host, "--webhook-secret-file", &secret];
    Server::start(folder, &[&arguments, more].concat())
}

fn submit(server: &Server, graph: &Value, url: &str) -> String {
    let answer = server.post("/prompt", &json!({"prompt": graph, "webhook_url": url}));
    assert_eq!(answer.status, 200, "{:?}", answer.json());
    answer.json()["prompt_id"].as_str().unwrap().to_owned()
}

#[test]
fn an_end_is_told_once_signed_and_as_the_history_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let (port, told) = listen(&[204]);
    let server = start(folder.path(), port, &["--public-url", "https://pictures.example.com/"]);
    let url = format!("http://127.0.0.1:{port}/hook?token=t");
    let id = submit(&server, &plain(1, "a"), &url);
    let message = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!(message.path, "/hook?token=t");
    assert_eq!(message.header("content-type"), "application/json");
    assert!(message.header("webhook-id").starts_with("msg_"));
    assert!(message.header("webhook-signature").starts_with("v1,"));
    let seconds: i64 = message.header("webhook-timestamp").parse().unwrap();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
    assert!((now - seconds).abs() < 120, "{seconds}");
    let data = &message.body["data"];
    assert_eq!((&message.body["type"], &data["job_id"]), (&json!("job.completed"), &json!(id)));
    let entry = server.finished(&id);
    let mut output = data["outputs"]["2"]["images"][0].clone();
    let address = output.as_object_mut().unwrap().shift_remove("url").unwrap();
    assert_eq!(output, entry["outputs"]["2"]["images"][0]);
    let shown = address.as_str().unwrap().strip_prefix("https://pictures.example.com").unwrap();
    assert!(server.get(shown).body.starts_with(b"\x89PNG"), "{shown}");
    // Nobody who reads the history reads the address, which has a secret in it.
    assert!(!entry.to_string().contains("token=t") && !server.said().contains("token=t"));
    // Of a job that asks for nothing nothing is told, and nothing twice.
    server.finished(&server.submit(&plain(2, "b"), None));
    assert!(told.recv_timeout(Duration::from_secs(3)).is_err());
    let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
    assert!(metrics.contains("kosmograph_webhooks_total{outcome=\"delivered\"} 1"), "{metrics}");
    assert!(metrics.contains("kosmograph_webhooks_waiting 0"), "{metrics}");
}

#[test]
fn who_does_not_take_it_is_told_again_by_the_same_id_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    // A redirection is none of the operator's hosts, and is not followed.
    let (port, told) = listen(&[307, 500, 204]);
    let server = start(folder.path(), port, &[]);
    submit(&server, &plain(1, "a"), &format!("http://127.0.0.1:{port}/"));
    let first = told.recv_timeout(PATIENCE).unwrap();
    server.kill();
    let server = start(folder.path(), port, &[]);
    let second = told.recv_timeout(Duration::from_secs(90)).unwrap();
    assert_eq!(
        (&second.path, first.header("webhook-id")),
        (&"/".into(), second.header("webhook-id"))
    );
    assert_eq!(first.body, second.body);
    drop(server);
}

#[test]
fn failures_cancellations_and_metadata_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let (port, told) = listen(&[204]);
    let server = start(folder.path(), port, &[]);
    let url = format!("http://127.0.0.1:{port}/");
    // A picture that is gone when its job begins.
    let picture = folder.path().join("in/gone.png");
    std::fs::copy(kosmograph_tests::repository().join("workflows/input/monster-1.png"), &picture)
        .unwrap();
    let long = submit(&server, &drawn(400, 1), &url);
    let graph = json!({"1": node("LoadImage", json!({"image": "gone.png"})),
        "2": node("SaveImage", json!({"images": ["1", 0], "filename_prefix": "x"}))});
    let failing = submit(&server, &graph, &url);
    std::fs::remove_file(&picture).unwrap();
    let body = json!({"workflow": plain(3, "c"), "metadata": {"label": "red"}, "webhook_url": url});
    let waiting = server.post("/api/v2/jobs", &body);
    assert_eq!(waiting.status, 201, "{:?}", waiting.json());
    let waiting = waiting.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(server.post(&format!("/api/v2/jobs/{waiting}/cancel"), &json!({})).status, 200);
    let message = told.recv_timeout(PATIENCE).unwrap().body;
    assert_eq!(
        (&message["type"], &message["data"]["job_id"]),
        (&json!("job.cancelled"), &json!(waiting))
    );
    assert_eq!(message["data"]["metadata"], json!({"label": "red"}));
    server.post("/interrupt", &json!({"prompt_id": long}));
    // Two that end at once are told in either order.
    let two = [(); 2].map(|()| told.recv_timeout(PATIENCE).unwrap().body);
    let of = |id: &str| two.iter().find(|message| message["data"]["job_id"] == id).unwrap();
    assert_eq!(of(&long)["type"], "job.cancelled");
    let message = of(&failing);
    assert_eq!(message["type"], "job.failed");
    let said = message["data"]["error"]["message"].as_str().unwrap();
    assert!(said.contains("gone.png"), "{said}");
}

#[test]
fn addresses_that_nobody_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path(), 9, &["--webhook-host", "hooks.example.com"]);
    let refused = |url: Value| {
        let answer = server.post("/prompt", &json!({"prompt": plain(1, "a"), "webhook_url": url}));
        assert_eq!(answer.status, 400, "{url}");
        let answer = answer.json();
        assert_eq!(answer["error"]["type"], "webhook_refused", "{answer}");
        answer["error"]["message"].as_str().unwrap().to_owned()
    };
    for url in [
        "http://hooks.example.com/",
        "https://evil.example.com/",
        "http://127.0.0.1:22/",
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost:9/",
        "file:///etc/passwd",
    ] {
        assert!(refused(json!(url)).contains("--webhook-host"), "{url}");
    }
    assert!(refused(json!("no address")).contains("no address"));
    assert!(refused(json!(7)).contains("no text"));
    assert!(
        refused(json!(format!("https://hooks.example.com/{}", "x".repeat(3000)))).contains("2048")
    );
    drop(server);
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let url = "https://hooks.example.com/";
    let answer = server.post("/prompt", &json!({"prompt": plain(1, "a"), "webhook_url": url}));
    assert_eq!((answer.status, &answer.json()["error"]["type"]), (400, &json!("webhook_refused")));
    // As the contract of v2 has it.
    let body = json!({"workflow": plain(1, "a"), "webhook_url": url});
    let answer = server.post("/api/v2/jobs", &body);
    assert!(answer.status == 422 && answer.json().to_string().contains("reserved"));
}

#[test]
fn arguments_that_do_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("short"), "short").unwrap();
    std::fs::write(folder.path().join("long"), "x".repeat(40)).unwrap();
    let refused = |arguments: &[&str], said: &str| {
        kosmograph_tests::Run::new("serve")
            .with_plugins()
            .folder(folder.path())
            .args(["--listen", "127.0.0.1:0", "--state", "state"])
            .args(arguments.iter().copied())
            .expect_code(2)
            .stderr_contains(said);
    };
    refused(&["--webhook-host", "a.example"], "--webhook-secret-file");
    refused(&["--webhook-host", "a.example", "--webhook-secret-file", "short"], "24 bytes");
    refused(&["--webhook-host", "*", "--webhook-secret-file", "long"], "\"*\" is no host");
    let with = ["--webhook-host", "a.example", "--webhook-secret-file", "long"];
    refused(&[&with[..], &["--public-url", "pictures"]].concat(), "--public-url");
    refused(&[&with[..], &["--webhook-network", "10.0.0.0/99"]].concat(), "no network");
    refused(&["--store", "gs://bucket"], "s3://BUCKET");
    refused(&["--store", "s3://bucket", "--keep-outputs", "1G"], "lifecycle");
}
