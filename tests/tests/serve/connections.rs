//! Below HTTP: TLS, compression, clients that are slow or gone, very many of them.

use super::{drawn, pictures, plain};
use kosmograph_tests::server::Server;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[test]
fn tls_with_the_operators_keys() {
    let folder = tempfile::tempdir().unwrap();
    let pem = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/serve/localhost.pem");
    let shown = pem.display().to_string();
    let server = Server::start(folder.path(), &["--tls-certfile", &shown, "--tls-keyfile", &shown]);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let ask = |path: &str| {
        let client = rustls::ClientConnection::new(Arc::new(config.clone()), name.clone()).unwrap();
        let stream = TcpStream::connect(&server.address).unwrap();
        let mut stream = rustls::StreamOwned::new(client, stream);
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // Whether the end is told in TLS is the server's affair.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert!(ask("/queue").ends_with("{\"queue_running\":[],\"queue_pending\":[]}"));
    let body = json!({"workflow": plain(1, "t")}).to_string();
    // Nobody is answered who speaks without.
    let plain = server.try_request("POST", "/api/v2/jobs", &[], body.as_bytes());
    assert!(plain.is_err(), "{plain:?}");
    assert!(ask("/api/v2/jobs").contains("\"jobs\":[]"));
    let refused = |certificate: &str, key: &str, said: &str| {
        kosmograph_tests::Run::new("serve")
            .with_plugins()
            .folder(folder.path())
            .args(["--listen", "127.0.0.1:0", "--state", "other", "--tls-certfile", certificate])
            .args(["--tls-keyfile", key])
            .expect_code(2)
            .stderr_contains(said);
    };
    refused("nothing.pem", &shown, "--tls-certfile nothing.pem: ");
    std::fs::write(folder.path().join("empty.pem"), "nothing").unwrap();
    refused("empty.pem", &shown, "--tls-certfile empty.pem: ");
    refused(&shown, "empty.pem", "--tls-keyfile empty.pem: ");
}

#[test]
fn texts_are_compressed_for_those_who_ask() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let plain = server.get("/object_info");
    assert_eq!(plain.header("content-encoding"), None);
    let asked = [("Accept-Encoding", "gzip")];
    let packed = server.request("GET", "/object_info", &asked, b"");
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    assert!(packed.body.len() * 3 < plain.body.len(), "{}", packed.body.len());
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(packed.body.as_slice()).read_to_end(&mut unpacked).unwrap();
    assert!(unpacked == plain.body);
    // Pictures are small already, and parts of them are asked for by their place.
    server.finished(&server.submit(&super::plain(1, "g"), None));
    let name = &pictures(folder.path())[0];
    let picture = server.request("GET", &format!("/view?filename={name}"), &asked, b"");
    assert_eq!((picture.status, picture.header("content-encoding")), (200, None));
}

#[test]
fn clients_that_are_slow_or_gone_hold_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let connect = || {
        let stream = TcpStream::connect(&server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(100))).unwrap();
        stream
    };
    // Half a head, half a body, nothing, and then silence: each is let go.
    let begin = Instant::now();
    let mut silent: Vec<TcpStream> = (0..30).map(|_| connect()).collect();
    for (number, stream) in silent.iter_mut().enumerate() {
        let said: &[u8] = match number % 3 {
            0 => b"POST /prompt HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A",
            1 => b"POST /prompt HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{",
            _ => b"",
        };
        stream.write_all(said).unwrap();
    }
    // Some ask and do not stay for the answer.
    for _ in 0..30 {
        connect().write_all(b"GET /object_info HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
    }
    let mut never_reads: Vec<_> = (0..20).map(|n| server.socket(&format!("deaf{n}"))).collect();
    let id = server.submit(&drawn(50, 1), Some("deaf0"));
    assert_eq!(server.finished(&id)["status"]["status_str"], "success");
    assert_eq!(server.get("/healthz").status, 200);
    for stream in &mut silent {
        let mut answer = Vec::new();
        // Closed, or reset; not left open.
        if let Err(error) = stream.read_to_end(&mut answer) {
            let kind = error.kind();
            assert!(kind == std::io::ErrorKind::ConnectionReset, "{error}");
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(90), "{:?}", begin.elapsed());
    // Who did not read finds all of it.
    assert_eq!(never_reads[0].until_done(&id).last().unwrap()["data"]["prompt_id"], id.as_str());
}

#[test]
fn five_hundred_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let mut sockets: Vec<_> = (0..500).map(|n| server.socket(&format!("c{n}"))).collect();
    let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
    assert!(metrics.contains("kosmograph_websockets 500\n"), "{metrics}");
    let id = server.submit(&plain(1, "many"), Some("c7"));
    // Half of them vanish without a word while it runs.
    sockets.truncate(250);
    assert_eq!(server.finished(&id)["status"]["status_str"], "success");
    for (number, socket) in sockets.iter_mut().enumerate() {
        if number == 7 {
            socket.until_done(&id);
        } else {
            let is_idle = |message: &serde_json::Value| {
                message["data"]["status"]["exec_info"]["queue_remaining"] == 1
            };
            socket.until(is_idle);
        }
    }
    drop(sockets);
    let begin = Instant::now();
    while !String::from_utf8(server.get("/metrics").body)
        .unwrap()
        .contains("kosmograph_websockets 0\n")
    {
        assert!(begin.elapsed() < Duration::from_secs(60), "sockets of the gone stay open");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_output_folder_is_bounded_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    std::fs::create_dir_all(&out).unwrap();
    let hour = std::time::SystemTime::now() - Duration::from_secs(3600);
    for name in ["old1.png", "old2.png"] {
        std::fs::write(out.join(name), vec![0; 5000]).unwrap();
        std::fs::File::options()
            .write(true)
            .open(out.join(name))
            .unwrap()
            .set_modified(hour)
            .unwrap();
    }
    let server = Server::start(folder.path(), &["--keep-outputs", "6K"]);
    server.finished(&server.submit(&plain(1, "new"), None));
    let begin = Instant::now();
    while pictures(folder.path()).len() > 2 {
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", pictures(folder.path()));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(pictures(folder.path()), ["new_00001_.png", "old2.png"]);
    assert!(server.said().contains("--keep-outputs: 1 old files were deleted"));
}
