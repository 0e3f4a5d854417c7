//! What every queue that machines share keeps to, tried on a real PostgreSQL and a real Redis where this machine
//! has their programs; where it has not, the test says so.

use super::*;
use crate::needs::Needs;
use serde_json::json;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;

/// An engine in a folder of its own, which ends with it.
struct Started {
    process: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    probe.local_addr().unwrap().port()
}

fn open_when_there(address: &str) -> Box<dyn Engine> {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        match open(address, None) {
            Ok(engine) => return engine,
            Err(error) if std::time::Instant::now() > end => panic!("{address}: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// As an engine that refuses to be root wants it.
fn unprivileged(command: &mut Command, folder: &Path) {
    if std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
        const NOBODY: u32 = 65534;
        std::os::unix::fs::chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
        command.uid(NOBODY).gid(NOBODY);
    }
    command.current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
}

fn redis() -> Option<Started> {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
    unprivileged(&mut command, folder.path());
    let process = command.spawn().ok()?;
    Some(Started { process, address: format!("redis://127.0.0.1:{port}/"), _folder: folder })
}

fn postgres() -> Option<Started> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let bin: PathBuf = versions
        .map(|version| version.path().join("bin"))
        .find(|bin| bin.join("initdb").exists())?;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut init = Command::new(bin.join("initdb"));
    init.arg("-D").arg(&data).args(["-U", "k", "-A", "trust", "-E", "UTF8", "--no-sync"]);
    unprivileged(&mut init, folder.path());
    assert!(init.status().unwrap().success());
    let port = free_port();
    let mut command = Command::new(bin.join("postgres"));
    command.arg("-D").arg(&data).arg("-k").arg(folder.path());
    command.args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
    unprivileged(&mut command, folder.path());
    let process = command.spawn().unwrap();
    let address = format!("postgres://k@127.0.0.1:{port}/postgres");
    Some(Started { process, address, _folder: folder })
}

fn job(id: &str, number: f64, kind: &str) -> NewJob {
    NewJob {
        id: id.into(),
        number,
        client: Some("c".into()),
        prompt: r#"{"1":{}}"#.into(),
        extra: "{}".into(),
        targets: vec!["1".into()],
        workflow_id: Some("w".into()),
        created: 5,
        metadata: Some(r#"{"label":"red"}"#.into()),
        priority: Some(-3),
        webhook: None,
        needs: Needs {
            kind: kind.into(),
            text: format!("{{\"{kind}\":[]}}"),
            models: vec!["vae/a".into()],
        },
    }
}

fn finished(state: State) -> Finished {
    let (outputs, messages) =
        (json!({"1": {"images": []}}), json!([["execution_success", {"x": 1}]]));
    Finished { state, ended: 9, outputs, messages, error: None }
}

fn worker(lease: u64) -> Worker {
    Worker { name: "here:1".into(), lease: Duration::from_millis(lease) }
}

fn ids(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

fn waiting(engine: &dyn Engine) -> Vec<String> {
    engine.waiting().unwrap().into_iter().map(|job| job.id).collect()
}

/// All of it, on an engine that has nothing yet.
fn keeps_its_promises(engine: &dyn Engine) {
    // In order, all or none, a key once.
    engine.insert(&[job("b", 1.0, "x"), job("c", 1.0, "y")], Some("key")).unwrap();
    engine.insert(&[job("a", -0.5, "x")], None).unwrap();
    assert_eq!(waiting(engine), ["a", "b", "c"]);
    let taken = engine.insert(&[job("d", 0.0, "x"), job("b", 0.0, "x")], None);
    assert!(matches!(taken, Err(StoreError::Taken(id)) if id == "b"));
    let used = engine.insert(&[job("e", 0.0, "x")], Some("key"));
    assert!(matches!(used, Err(StoreError::KeyUsed(id)) if id == "b"));
    assert_eq!(engine.counts().unwrap(), Counts { waiting: 3, running: 0 });
    assert_eq!((engine.position("b").unwrap(), engine.position("z").unwrap()), (Some(2), None));
    let first = engine.next_number(false).unwrap();
    assert_eq!(engine.next_number(true).unwrap(), -(first + 1.0));
    // What a worker is shown, and what it is not.
    let window = engine.window(&[]).unwrap();
    assert_eq!(window.candidates[1].models, ["vae/a"]);
    let fit = engine.window(&ids(&["x"])).unwrap().candidates;
    assert_eq!(fit.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), ["c"]);
    assert_eq!(engine.needs("y").unwrap().as_deref(), Some(r#"{"y":[]}"#));
    // The second of two is quicker than the first of one.
    let b = engine.claim(&ids(&["gone", "b"]), &worker(60_000)).unwrap().unwrap();
    assert_eq!((b.claim.id.as_str(), b.client.as_deref()), ("b", Some("c")));
    assert_eq!(b.entry.prompt, r#"{"1":{}}"#);
    assert!(engine.claim(&ids(&["b"]), &worker(60_000)).unwrap().is_none());
    assert_eq!(engine.window(&[]).unwrap().claims, window.claims + 1);
    let queue: Json = serde_json::from_str(&engine.queue().unwrap()).unwrap();
    assert_eq!(queue["queue_running"][0], json!([1, "b", {"1": {}}, {}, ["1"]]));
    assert_eq!(queue["queue_pending"].as_array().unwrap().len(), 2);
    // Held, asked to stop, and ended once: a second end by the same token is the first one's.
    let lease = Duration::from_secs(60);
    assert_eq!(engine.renew(std::slice::from_ref(&b.claim), lease).unwrap(), [Standing::Held]);
    engine.ask_to_stop(&ids(&["b"])).unwrap();
    assert_eq!(engine.renew(std::slice::from_ref(&b.claim), lease).unwrap(), [Standing::Stop]);
    assert!(engine.at_work().unwrap()[0].stop);
    let stranger = Claim { id: "b".into(), token: "other".into() };
    assert!(!engine.finish(&stranger, &finished(State::Completed), 10).unwrap());
    let last = engine.ended(None).unwrap().first().map_or(0, |ended| ended.finished);
    assert!(engine.finish(&b.claim, &finished(State::Completed), 10).unwrap());
    assert!(engine.finish(&b.claim, &finished(State::Failed), 10).unwrap());
    let ended = engine.ended(Some(last)).unwrap();
    assert_eq!((ended.len(), ended[0].state), (1, State::Completed));
    assert_eq!(ended[0].messages, r#"[["execution_success",{"x":1}]]"#);
    assert_eq!(engine.renew(std::slice::from_ref(&b.claim), lease).unwrap(), [Standing::Lost]);
    // A lease that is over: others have the job, and who had it is refused.
    let a = engine.claim(&ids(&["a"]), &worker(1)).unwrap().unwrap();
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(engine.reap(2).unwrap(), (1, vec![]));
    assert_eq!(waiting(engine), ["a", "c"], "at its old place");
    assert!(!engine.finish(&a.claim, &finished(State::Completed), 10).unwrap());
    // One that was put back has not been tried; one that was lost twice is left.
    let again = engine.claim(&ids(&["a"]), &worker(1)).unwrap().unwrap();
    engine.put_back(&again.claim).unwrap();
    let again = engine.claim(&ids(&["a"]), &worker(1)).unwrap().unwrap();
    std::thread::sleep(Duration::from_millis(30));
    let (count, abandoned) = engine.reap(2).unwrap();
    assert_eq!(
        (count, abandoned.len(), abandoned[0].attempts, abandoned[0].stop),
        (0, 1, 2, false)
    );
    assert!(!engine.finish(&again.claim, &finished(State::Completed), 10).unwrap(), "too late");
    assert!(engine.finish(&abandoned[0].claim, &finished(State::Failed), 10).unwrap());
    // Taken back while they wait.
    engine.insert(&[job("f", 7.0, "x"), job("g", 8.0, "x")], None).unwrap();
    assert_eq!(engine.delete_waiting(Some(&ids(&["f", "b", "nobody"]))).unwrap(), ["f"]);
    assert!(engine.end_waiting("c", &finished(State::Cancelled), 10).unwrap());
    assert!(!engine.end_waiting("c", &finished(State::Cancelled), 10).unwrap());
    assert_eq!(engine.delete_waiting(None).unwrap(), ["g"]);
    // The history, and the lists.
    let history = |max_items, offset| {
        let all = engine.history(HistoryRange { max_items, offset }).unwrap();
        all.into_iter().map(|job| job.id).collect::<Vec<_>>()
    };
    assert_eq!(history(None, None), ["b", "a", "c"]);
    assert_eq!((history(Some(1), None), history(Some(1), Some(1))), (ids(&["c"]), ids(&["a"])));
    assert_eq!(engine.finished("b").unwrap().unwrap().outputs, r#"{"1":{"images":[]}}"#);
    let failed = JobQuery { states: vec![State::Failed], ..JobQuery::default() };
    let (rows, total) = engine.list(&failed).unwrap();
    assert_eq!((rows[0].id.as_str(), total), ("a", 1));
    let (rows, total) = engine.list(&JobQuery { limit: Some(1), ..JobQuery::default() }).unwrap();
    assert_eq!((rows.len(), total), (1, 3));
    let label = |value: &str| V2Query {
        labels: vec![("label".into(), value.into())],
        limit: 2,
        ..V2Query::default()
    };
    assert_eq!(engine.list_v2(&label("red")).unwrap().len(), 2);
    assert!(engine.list_v2(&label("blue")).unwrap().is_empty());
    assert_eq!(engine.job_v2("a").unwrap().unwrap().priority, Some(-3));
    engine.forget(Some(&ids(&["b"]))).unwrap();
    assert_eq!(history(None, None), ["a", "c"]);
    // Settings, assets.
    let settings = json!({"one": 1, "two": {"x": []}});
    engine.set(settings.as_object().unwrap()).unwrap();
    engine.set(json!({"one": 2}).as_object().unwrap()).unwrap();
    assert_eq!(engine.setting("one").unwrap(), Some(json!(2)));
    assert_eq!(engine.settings().unwrap()["two"], settings["two"]);
    let asset = Asset {
        id: "i".into(),
        hash: "blake3:0".into(),
        size: 3,
        content_type: "image/png".into(),
        file_path: "p".into(),
        name: "n".into(),
        owned: true,
        created: 4,
    };
    assert_eq!(engine.add_asset(asset.clone()).unwrap(), asset);
    let moved = engine.add_asset(Asset { id: "j".into(), name: "m".into(), ..asset }).unwrap();
    assert_eq!((moved.id.as_str(), moved.name.as_str()), ("i", "m"));
    assert_eq!(engine.asset_of_hash("blake3:0").unwrap(), Some(moved));
    engine.remove_asset("i").unwrap();
    assert_eq!(engine.asset("i").unwrap(), None);
    // What is told is heard, in its order, however long it is.
    let (sender, heard) = channel();
    engine.listen(Box::new(move |bulletin| drop(sender.send(bulletin)))).unwrap();
    assert_eq!(heard.recv_timeout(Duration::from_secs(10)).unwrap(), None, "heard from here on");
    let text = |text: String| Bulletin::Text { to: None, job: None, text, fleeting: None };
    let told =
        [text("short".into()), text("long".repeat(50_000)), Bulletin::Stop { ids: ids(&["a"]) }];
    engine.publish(&told).unwrap();
    for bulletin in told {
        assert_eq!(heard.recv_timeout(Duration::from_secs(10)).unwrap(), Some(bulletin));
    }
}

#[test]
#[ignore = "needs redis-server: cargo test --release --workspace --lib -- --ignored keeps_its_promises"]
fn redis_keeps_its_promises() {
    let started = redis().expect("a redis-server on this machine");
    let engine = open_when_there(&started.address);
    keeps_its_promises(&*engine);
    tells_webhooks(&*engine);
    lists_workers(&*engine);
}

#[test]
#[ignore = "needs PostgreSQL: cargo test --release --workspace --lib -- --ignored keeps_its_promises"]
fn postgres_keeps_its_promises() {
    let started = postgres().expect("a PostgreSQL in /usr/lib/postgresql");
    let engine = open_when_there(&started.address);
    keeps_its_promises(&*engine);
    tells_webhooks(&*engine);
    lists_workers(&*engine);
}

/// That a job's end is to be told is written with its end, for jobs that ask for it.
fn tells_webhooks(engine: &dyn Engine) {
    let asks = |id: &str| NewJob { webhook: Some(format!("https://h/{id}")), ..job(id, 1.0, "x") };
    engine.insert(&[asks("w1"), job("w2", 2.0, "x"), asks("w3"), asks("w4")], None).unwrap();
    assert!(engine.take_deliveries(10, Duration::ZERO).unwrap().is_empty());
    for id in ["w1", "w2"] {
        let claimed = engine.claim(&ids(&[id]), &worker(60_000)).unwrap().unwrap();
        assert!(engine.finish(&claimed.claim, &finished(State::Completed), 1).unwrap());
        if engine.is_shared() {
            assert!(engine.finish(&claimed.claim, &finished(State::Completed), 1).unwrap());
        }
    }
    assert!(engine.end_waiting("w3", &finished(State::Cancelled), 1).unwrap());
    engine.delete_waiting(Some(&ids(&["w4"]))).unwrap();
    engine.forget(None).unwrap();
    // Those of jobs that nobody knows any more, too, and each once.
    assert_eq!(engine.deliveries().unwrap(), 2);
    let hold = Duration::from_secs(60);
    let first = engine.take_deliveries(1, hold).unwrap();
    let second = engine.take_deliveries(10, hold).unwrap();
    assert_eq!((first.len(), second.len()), (1, 1));
    assert!(engine.take_deliveries(10, hold).unwrap().is_empty(), "held");
    let of = |url: &str| first.iter().chain(&second).find(|one| one.url.ends_with(url)).unwrap();
    let (done, cancelled) = (of("/w1"), of("/w3"));
    assert_ne!(done.id, cancelled.id);
    assert_eq!((done.attempts, done.metadata.as_deref()), (1, Some(r#"{"label":"red"}"#)));
    let body: Json = serde_json::from_str(&done.body).unwrap();
    assert_eq!((&body["type"], &body["data"]["job_id"]), (&json!("job.completed"), &json!("w1")));
    assert!(cancelled.body.contains("job.cancelled"));
    // Again at once, and with one more try; never again.
    engine.settle_delivery(&done.id, Some(Duration::ZERO)).unwrap();
    engine.settle_delivery(&cancelled.id, None).unwrap();
    let again = engine.take_deliveries(10, hold).unwrap();
    assert_eq!((again.len(), &again[0].id, again[0].attempts), (1, &done.id, 2));
    engine.settle_delivery(&done.id, None).unwrap();
    engine.settle_delivery(&done.id, Some(Duration::ZERO)).unwrap();
    assert_eq!(engine.deliveries().unwrap(), 0);
}

fn lists_workers(engine: &dyn Engine) {
    let names = || -> Vec<String> {
        engine.workers().unwrap().into_iter().map(|worker| worker.name).collect()
    };
    assert!(names().is_empty());
    let minute = Duration::from_secs(60);
    engine.announce("b:2", r#"{"device":"cpu"}"#, minute).unwrap();
    engine.announce("a:1", "{}", minute).unwrap();
    engine.announce("c:3", "{}", Duration::from_millis(1)).unwrap();
    engine.announce("a:1", r#"{"device":"cuda:0"}"#, minute).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let there = engine.workers().unwrap();
    assert_eq!(names(), ["a:1", "b:2"]);
    assert_eq!(there[0].about, r#"{"device":"cuda:0"}"#);
    assert!((0..10_000).contains(&there[0].ago));
    engine.retire("a:1").unwrap();
    assert_eq!(names(), ["b:2"]);
}

#[test]
fn sqlite_tells_webhooks() {
    let folder = tempfile::tempdir().unwrap();
    tells_webhooks(&crate::store::Store::open(folder.path()).unwrap());
}

/// The certificate of tests/tests/serve, which is its own authority, in the engine's folder.
fn certificate(folder: &Path) -> (PathBuf, PathBuf) {
    let pem = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/tests/serve/localhost.pem");
    let own = folder.join("localhost.pem");
    std::fs::copy(&pem, &own).unwrap();
    // An engine takes no key that others may read.
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o600)).unwrap();
    if std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
        std::os::unix::fs::chown(&own, Some(65534), Some(65534)).unwrap();
    }
    (own, pem)
}

/// With the engine's own authority it answers; with the system's it is not believed; without TLS nobody is answered.
fn speaks_tls(secure: &str, plain: &str, authority: &Path) {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    let engine = loop {
        match open(secure, Some(authority)) {
            Ok(engine) => break engine,
            Err(error) if std::time::Instant::now() > end => panic!("{secure}: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    };
    keeps_its_promises(&*engine);
    let refused = open(secure, None).err().unwrap();
    assert!(refused.contains("certificate") || refused.contains("trusts no"), "{refused}");
    let stranger = secure.replace("localhost", "127.0.0.1");
    let refused = open(&stranger, Some(authority)).err().unwrap();
    assert!(refused.contains("certificate"), "the name is checked, too: {refused}");
    assert!(open(plain, None).is_err());
}

#[test]
#[ignore = "needs redis-server: cargo test --release --workspace --lib -- --ignored keeps_its_promises"]
fn redis_keeps_its_promises_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let (own, pem) = certificate(folder.path());
    let port = free_port();
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--tls-port", &port.to_string(), "--bind", "127.0.0.1"]);
    command.arg("--tls-cert-file").arg(&own).arg("--tls-key-file").arg(&own);
    command.args(["--tls-auth-clients", "no", "--save", ""]);
    unprivileged(&mut command, folder.path());
    let process = command.spawn().expect("a redis-server on this machine");
    let address = format!("rediss://localhost:{port}/");
    let plain = format!("redis://127.0.0.1:{port}/");
    let started = Started { process, address, _folder: folder };
    speaks_tls(&started.address, &plain, &pem);
}

#[test]
#[ignore = "needs PostgreSQL: cargo test --release --workspace --lib -- --ignored keeps_its_promises"]
fn postgres_keeps_its_promises_over_tls() {
    let mut started = postgres().expect("a PostgreSQL in /usr/lib/postgresql");
    let folder = started._folder.path();
    let (own, pem) = certificate(folder);
    drop(open_when_there(&started.address));
    // What is not encrypted is refused from now on.
    std::fs::write(folder.join("data/pg_hba.conf"), "hostssl all all 127.0.0.1/32 trust\n")
        .unwrap();
    let mut options = std::fs::read_to_string(folder.join("data/postgresql.conf")).unwrap();
    let shown = own.display();
    options.push_str(&format!("\nssl = on\nssl_cert_file = '{shown}'\nssl_key_file = '{shown}'\n"));
    std::fs::write(folder.join("data/postgresql.conf"), options).unwrap();
    let nobody = nix::sys::signal::Signal::SIGHUP;
    let id = i32::try_from(started.process.id()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nobody).unwrap();
    let secure = started.address.replace("127.0.0.1", "localhost") + "?sslmode=require";
    let plain = started.address.clone();
    started.address.clone_from(&secure);
    speaks_tls(&secure, &plain, &pem);
}

#[test]
fn addresses_that_are_none() {
    let refused = |address: &str| open(address, None).err().unwrap();
    assert!(refused("queue").contains("no address of a queue"));
    let file = Path::new("/nowhere/ca.pem");
    let refused = |address: &str| open(address, Some(file)).err().unwrap();
    for address in ["rediss://localhost:1/", "postgres://u@127.0.0.1/d?sslmode=require"] {
        assert!(refused(address).contains("/nowhere/ca.pem"), "{}", refused(address));
    }
    // An authority that nobody would ask is a mistake.
    assert!(refused("redis://localhost:1/").contains("rediss://"));
    assert!(refused("postgres://u@127.0.0.1/d").contains("sslmode=require"));
}
