//! Requests that make no sense: each is answered, none with a mistake of the server's.

use super::plain;
use kosmograph_tests::server::Server;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

/// Every address, with a method that it takes.
const ADDRESSES: [(&str, &str); 37] = [
    ("POST", "/prompt"),
    ("POST", "/queue"),
    ("POST", "/interrupt"),
    ("POST", "/free"),
    ("POST", "/history"),
    ("POST", "/settings"),
    ("POST", "/settings/X"),
    ("POST", "/users"),
    ("POST", "/upload/image"),
    ("POST", "/upload/mask"),
    ("POST", "/userdata/X"),
    ("POST", "/userdata/X/move/X"),
    ("DELETE", "/userdata/X"),
    ("POST", "/api/jobs/cancel"),
    ("POST", "/api/jobs/X/cancel"),
    ("PATCH", "/internal/logs/subscribe"),
    ("POST", "/kosmograph/workflow"),
    ("POST", "/login"),
    ("GET", "/view?X"),
    ("GET", "/view?filename=X"),
    ("GET", "/view?filename=a.png&subfolder=X"),
    ("GET", "/view?filename=s_00001_.png&preview=X"),
    ("GET", "/view_metadata/X?filename=X"),
    ("GET", "/history?max_items=X"),
    ("GET", "/history?offset=X"),
    ("GET", "/history/X"),
    ("GET", "/api/jobs?X"),
    ("GET", "/api/jobs?status=X&limit=X"),
    ("GET", "/api/jobs/X"),
    ("GET", "/userdata?dir=X"),
    ("GET", "/v2/userdata?path=X"),
    ("GET", "/models/X"),
    ("GET", "/experiment/models/X"),
    ("GET", "/object_info/X"),
    ("GET", "/internal/files/X"),
    ("GET", "/kosmograph/workflows/X"),
    ("GET", "/X"),
];

fn json_of(depth: u32) -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~]{0,12}".prop_map(Value::from),
        Just(json!(["1", 0])),
    ];
    let keys = prop_oneof![
        Just("prompt".to_owned()),
        Just("class_type".to_owned()),
        Just("inputs".to_owned()),
        Just("delete".to_owned()),
        Just("clear".to_owned()),
        Just("client_id".to_owned()),
        Just("extra_data".to_owned()),
        Just("job_ids".to_owned()),
        Just("nodes".to_owned()),
        Just("seed".to_owned()),
        "[a-z0-9]{0,6}",
    ];
    leaf.prop_recursive(depth, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((keys.clone(), inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// A prompt that is nearly one.
fn damaged_prompt() -> impl Strategy<Value = Value> {
    (json_of(3), prop::sample::select(vec!["1", "2"]), prop::sample::select(vec![0, 1, 2, 3]))
        .prop_map(|(value, id, what)| {
            let mut prompt = plain(1, "s");
            match what {
                0 => prompt[id] = value,
                1 => prompt[id]["inputs"] = value,
                2 => prompt[id]["class_type"] = value,
                _ => prompt[id]["inputs"]["images"] = value,
            }
            json!({"prompt": prompt, "extra_data": {"x": 1}})
        })
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        json_of(4).prop_map(|json| json.to_string().into_bytes()),
        damaged_prompt().prop_map(|json| json.to_string().into_bytes()),
        prop::collection::vec(any::<u8>(), 0..200),
        (1usize..3000).prop_map(|depth| b"[".repeat(depth)),
    ]
}

fn parameter() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z0-9._-]{0,12}",
        Just("..%2F..%2Fetc%2Fpasswd".to_owned()),
        Just("%00".to_owned()),
        Just("%ff%fe".to_owned()),
        Just("%".to_owned()),
        Just("-1".to_owned()),
        Just("99999999999999999999".to_owned()),
        Just("a".repeat(5000)),
        prop::collection::vec(any::<u8>(), 1..12)
            .prop_map(|bytes| bytes.iter().map(|byte| format!("%{byte:02x}")).collect()),
    ]
}

#[test]
fn malformed_requests_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    server.finished(&server.submit(&plain(1, "s"), None));
    let mut runner =
        TestRunner::new(Config { cases: 2000, failure_persistence: None, ..Config::default() });
    let request = (prop::sample::select(ADDRESSES.to_vec()), parameter(), body());
    let tried = runner.run(&request, |((method, path), parameter, body)| {
        let path = path.replace('X', &parameter);
        let kind = if path.starts_with("/upload") {
            "multipart/form-data; boundary=x"
        } else {
            "text/plain"
        };
        let answer = server.request(method, &path, &[("Content-Type", kind)], &body);
        prop_assert!((200..500).contains(&answer.status), "{} {}: {:?}", method, path, answer);
        let is_json =
            answer.header("content-type").is_some_and(|kind| kind.starts_with("application/json"));
        prop_assert!(
            answer.status < 400 || is_json || path == "/login",
            "{} {}: {:?}",
            method,
            path,
            answer
        );
        Ok(())
    });
    if let Err(error) = tried {
        panic!("{error}\n{}", server.said());
    }
    assert_eq!(server.get("/healthz").status, 200);
    let good = server.submit(&plain(2, "good"), None);
    assert_eq!(server.finished(&good)["status"]["status_str"], "success");
}
