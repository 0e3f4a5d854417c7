//! A worker of the server reads its models, writes its results, and does nothing else.

use super::{copy_folder, drawn, node, pictures};
use kosmograph_tests::server::Server;
use kosmograph_tests::{build_c_text, repository};
use serde_json::{Value, json};
use std::os::unix::fs::symlink;

fn escapes() -> String {
    let source = include_str!("../../hostile/escapes.c");
    build_c_text("escapes", source, &[]).display().to_string()
}

/// What came of it, as the history says it.
fn attempt(server: &Server, how: &str, path: &str) -> String {
    let prompt = json!({"1": node("Escape", json!({"how": how, "path": path}))});
    let id = server.submit(&prompt, None);
    let entry = server.finished(&id);
    let messages = entry["status"]["messages"].as_array().unwrap();
    let error = &messages.last().unwrap()[1];
    assert_eq!(error["node_type"], "Escape", "{entry}");
    error["exception_message"].as_str().unwrap().trim().to_owned()
}

#[test]
fn a_library_that_leaves_its_sandbox_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret.txt");
    std::fs::write(&secret, "secret").unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let server = Server::start(folder.path(), &["--plugins", &escapes()]);
    if server.said().contains("no Landlock") {
        // Said, and not silently passed: what the server says loudly there is all that can be tested.
        eprintln!("this kernel has no Landlock; the server says so, and confines nothing");
        return;
    }
    let port = server.address.rsplit_once(':').unwrap().1;
    for (how, path) in [
        ("read", path("secret.txt")),
        ("read", path("state/kosmograph.db")),
        ("read", format!("/proc/{}/environ", server.id())),
        ("write", path("elsewhere")),
        ("write", path("in/a.png")),
        ("link", path("out/l.png")),
        ("connect", port.to_owned()),
        ("unix", String::new()),
        ("execute", "/bin/true".to_owned()),
        ("kill", server.id().to_string()),
    ] {
        let said = attempt(&server, how, &path);
        assert!(said.contains("refused: "), "{how} {path}: {said}");
    }
    assert!(attempt(&server, "write", &path("out/fine.txt")).contains("it worked"));
    assert!(!folder.path().join("elsewhere").exists());
    drop(server);
    let server = Server::start(folder.path(), &["--no-sandbox", "--plugins", &escapes()]);
    assert!(server.said().contains("--no-sandbox"));
    assert!(attempt(&server, "read", &path("secret.txt")).contains("it worked"));
}

#[test]
fn linked_models_are_read_and_links_may_change() {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().join("linked/checkpoints");
    std::fs::create_dir_all(&models).unwrap();
    // Elsewhere, as a hub's cache is.
    let copy = |name: &str| {
        let to = folder.path().join(name);
        copy_folder(&repository().join("models/tiny/sd"), &to);
        to
    };
    let (first, second) = (copy("cache/first"), copy("cache/second"));
    symlink(&first, models.join("mine")).unwrap();
    let linked = folder.path().join("linked").display().to_string();
    let server = Server::start(folder.path(), &["--models", &linked]);
    let run = |seed: u64| -> Value {
        let mut prompt = drawn(1, seed);
        prompt["1"]["inputs"]["ckpt_name"] = "mine".into();
        server.finished(&server.submit(&prompt, None))
    };
    let entry = run(1);
    assert_eq!(entry["status"]["status_str"], "success", "{entry}");
    std::fs::remove_file(models.join("mine")).unwrap();
    symlink(&second, models.join("mine")).unwrap();
    let entry = run(2);
    assert_eq!(entry["status"]["status_str"], "success", "{entry}");
    // A folder of results that was made anew is another one.
    std::fs::remove_dir_all(folder.path().join("out")).unwrap();
    let entry = run(3);
    assert_eq!(entry["status"]["status_str"], "success", "{entry}");
    assert_eq!(pictures(folder.path()).len(), 1);
}

#[test]
fn what_a_library_does_when_it_is_asked_is_confined_too() {
    let folder = tempfile::tempdir().unwrap();
    let made = folder.path().join("made");
    let target = format!("-DTARGET=\"{}\"", made.display());
    let source = include_str!("../../hostile/early.c");
    let library = build_c_text("early", source, &[std::ffi::OsStr::new(&target)]);
    // A file that no answer is kept of.
    let asked_first = |name: &str| {
        let copy = folder.path().join(name).join("libearly.so");
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::copy(&library, &copy).unwrap();
        copy.display().to_string()
    };
    let server = Server::start(folder.path(), &["--plugins", &asked_first("one")]);
    let classes = server.get("/object_info/Early").json();
    assert!(classes["Early"].is_object(), "it describes itself all the same: {}", server.said());
    if server.said().contains("no Landlock") {
        eprintln!("this kernel has no Landlock; the server says so, and confines nothing");
        return;
    }
    assert!(!made.exists());
    drop(server);
    drop(Server::start(folder.path(), &["--no-sandbox", "--plugins", &asked_first("two")]));
    assert!(made.exists(), "without a sandbox it does what it likes");
}

#[test]
fn nodes_in_python_run_in_the_sandbox_of_their_worker() {
    let folder = tempfile::tempdir().unwrap();
    let pack = folder.path().join("packs/tries.py");
    std::fs::create_dir_all(pack.parent().unwrap()).unwrap();
    std::fs::write(&pack, include_str!("../../hostile/tries.py")).unwrap();
    std::fs::write(folder.path().join("secret.txt"), "secret").unwrap();
    let packs = pack.parent().unwrap().display().to_string();
    let server = Server::start(folder.path(), &["--python-nodes", &packs]);
    if server.said().contains("no Landlock") {
        eprintln!("this kernel has no Landlock; the server says so, and confines nothing");
        return;
    }
    assert_eq!(
        server.get("/object_info/Tries").json()["Tries"]["python_module"],
        "custom_nodes.tries"
    );
    let run = |class: &str, how: &str, path: &str| {
        let prompt = json!({"1": node(class, json!({"how": how, "path": path}))});
        server.finished(&server.submit(&prompt, None))
    };
    let path = |name: &str| folder.path().join(name).display().to_string();
    for (how, path) in [
        ("read", path("secret.txt")),
        ("read", path("state/kosmograph.db")),
        ("write", path("elsewhere")),
        ("connect", server.address.rsplit_once(':').unwrap().1.to_owned()),
        ("start", "/bin/true".to_owned()),
        ("kill", server.id().to_string()),
    ] {
        let entry = run("Tries", how, &path);
        assert_eq!(entry["outputs"]["1"]["text"][0], "refused", "{how} {path}: {entry}");
    }
    for (how, path) in [
        ("read", path("packs/tries.py")),
        ("write", path("out/fine.txt")),
        ("temporary", String::new()),
    ] {
        let entry = run("Tries", how, &path);
        assert_eq!(entry["outputs"]["1"]["text"][0], "done", "{how} {path}: {entry}");
    }
    // A crash costs its job; the worker stays, and the next job has another process.
    let workers = server.workers();
    let entry = run("Tries", "crash", "");
    let said = entry["status"]["messages"].to_string();
    assert!(said.contains("the Python process of its pack tries ended with SIGSEGV"), "{said}");
    assert_eq!(run("Tries", "temporary", "")["outputs"]["1"]["text"][0], "done");
    assert_eq!(server.workers(), workers);
}
