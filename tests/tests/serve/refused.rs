//! What the server does not do: listen to the world unasked, serve strangers' pages, share its state.

use super::plain;
use kosmograph_tests::Run;
use kosmograph_tests::server::Server;
use serde_json::json;

const TOKEN: &str = "a-token-nobody-guesses";

#[test]
fn without_the_token_nobody_gets_in() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, TOKEN).unwrap();
    let server = Server::start(folder.path(), &["--token-file", &tokens.display().to_string()]);
    let bearer = format!("Bearer {TOKEN}");
    for path in [
        "/queue",
        "/api/history",
        "/object_info",
        "/metrics",
        "/ws",
        "/view?filename=a",
        "/nothing",
    ] {
        let answer = server.get(path);
        assert_eq!(answer.status, 401, "{path}");
        assert_eq!(answer.json()["error"]["type"], "unauthorized");
    }
    assert_eq!(server.get("/healthz").status, 200);
    assert_eq!(server.request("GET", "/queue", &[("Authorization", &bearer)], b"").status, 200);
    let page = server.request("GET", "/", &[("Accept", "text/html")], b"");
    assert_eq!((page.status, page.header("location")), (303, Some("/login")));
    assert_eq!(server.get("/login").status, 200);
    assert_eq!(server.request("POST", "/login", &[], b"token=wrong").status, 401);
    let entered = server.request("POST", "/login", &[], format!("token={TOKEN}").as_bytes());
    assert_eq!(entered.status, 303);
    let cookie = entered.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    assert_eq!(server.request("GET", "/queue", &[("Cookie", &cookie)], b"").status, 200);
    assert!(!server.said().contains(TOKEN), "a token in the log");
}

#[test]
fn pages_of_strangers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let with =
        |headers: &[(&str, &str)]| server.request("POST", "/interrupt", headers, b"{}").status;
    assert_eq!(with(&[]), 200);
    assert_eq!(with(&[("Origin", "https://evil.example")]), 403);
    assert_eq!(with(&[("Sec-Fetch-Site", "cross-site")]), 403);
    assert_eq!(with(&[("Host", "evil.example")]), 403);
    assert_eq!(with(&[("Origin", &format!("http://{}", server.address))]), 200);
    let options = server.request("OPTIONS", "/prompt", &[], b"");
    assert_eq!((options.status, options.body.len()), (200, 0));
    assert_eq!(options.header("access-control-allow-origin"), None);
    let open = Server::start(&folder.path().join("other"), &["--cors"]);
    let answer = open.request("GET", "/queue", &[("Origin", "https://evil.example")], b"");
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some("*")));
}

#[test]
fn a_named_origin_may_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let named = "https://studio.example";
    let server = Server::start(folder.path(), &["--cors", named]);
    let own = format!("http://{}", server.address);
    for (origin, status, allowed) in [
        (named, 200, Some(named)),
        (own.as_str(), 200, None),
        ("https://evil.example", 403, None),
        ("null", 403, None),
    ] {
        let headers = [("Origin", origin), ("Sec-Fetch-Site", "cross-site")];
        let headers = if origin == own { &headers[..1] } else { &headers[..] };
        let answer = server.request("POST", "/interrupt", headers, b"{}");
        let said = answer.header("access-control-allow-origin");
        assert_eq!((answer.status, said), (status, allowed), "{origin}");
        let preflight = server.request("OPTIONS", "/prompt", headers, b"");
        assert_eq!(preflight.header("access-control-allow-origin"), allowed, "{origin}");
        let upgrade = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let upgrade: Vec<_> = upgrade.into_iter().chain(headers.iter().copied()).collect();
        if status == 403 {
            assert_eq!(server.request("GET", "/ws", &upgrade, b"").status, 403, "{origin}");
        }
    }
    assert_eq!(server.get("/queue").status, 200, "a program names no origin");
}

#[test]
fn limits_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--upload-limit", "64K", "--queue-limit", "2"]);
    let large = server.request("POST", "/prompt", &[], &vec![b'x'; 100_000]);
    assert_eq!(large.status, 413);
    assert!(large.json()["error"].is_object());
    server.submit(&super::drawn(1000, 1), None);
    while server.get("/queue").json()["queue_running"].as_array().unwrap().is_empty() {}
    server.submit(&plain(1, "a"), None);
    let two = json!({"prompt": super::drawn(1, 1), "seed": "1..3"});
    assert_eq!(server.post("/prompt", &two).status, 429, "both or none");
    server.submit(&plain(2, "a"), None);
    let full = server.post("/prompt", &json!({"prompt": plain(3, "a")}));
    assert_eq!((full.status, full.header("retry-after")), (429, Some("5")));
    assert_eq!(full.json()["error"]["type"], "queue_full");
    assert_eq!(server.get("/readyz").status, 503);
}

#[test]
fn what_cannot_be_started_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let state = folder.path().join("state");
    let serve = |listen: &str, state: &std::path::Path| {
        Run::new("serve")
            .with_plugins()
            .folder(folder.path())
            .args(["--listen", listen])
            .arg("--state")
            .arg(state)
    };
    let other = folder.path().join("other");
    serve("127.0.0.1:0", &state)
        .expect_code(2)
        .stderr_contains("another kosmograph serve uses this folder");
    serve(&server.address, &other).expect_code(2).stderr_contains("is taken");
    serve("0.0.0.0:0", &other).expect_code(2).stderr_contains("--token-file FILE, or --no-auth");
    drop(server);
    std::fs::write(state.join("kosmograph.db"), "no database at all, but quite long".repeat(100))
        .unwrap();
    let _ = std::fs::remove_file(state.join("kosmograph.db-wal"));
    serve("127.0.0.1:0", &state).expect_code(2).stderr_contains("damaged");
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    serve("127.0.0.1:0", &file).expect_code(2).stderr_contains("the folder cannot be made");
}

#[test]
fn secrets_of_clients_are_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let secret = "comfyui-0123456789abcdef";
    let extra = json!({"api_key_comfy_org": secret, "auth_token_comfy_org": secret});
    let body = json!({"prompt": plain(1, "s"), "extra_data": extra});
    let id = server.post("/prompt", &body).json()["prompt_id"].as_str().unwrap().to_owned();
    let entry = server.finished(&id);
    assert!(!entry.to_string().contains(secret));
    assert!(!server.said().contains(secret));
    let has_secret = |path: std::path::PathBuf| {
        let bytes = std::fs::read(path).unwrap_or_default();
        bytes.windows(secret.len()).any(|part| part == secret.as_bytes())
    };
    for name in ["state/kosmograph.db", "state/kosmograph.db-wal", "out/s_00001_.png"] {
        assert!(!has_secret(folder.path().join(name)), "{name}");
    }
}
