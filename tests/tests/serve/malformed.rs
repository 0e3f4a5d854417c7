//! Requests that make no sense: each is answered, none with a mistake of the server's.

use super::plain;
use kosmograph_tests::server::Server;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

/// How many requests are tried.
const CASES: u32 = 2000;

/// An operation of docs/openapi.json.
#[derive(Clone, Debug)]
struct Operation {
    method: String,
    /// Parameters of it in braces.
    path: String,
    query: Vec<String>,
    /// The type of its body, where it takes one.
    kind: Option<String>,
}

fn operations() -> Vec<Operation> {
    let path = kosmograph_tests::repository().join("docs/openapi.json");
    let text = std::fs::read_to_string(path).expect("the description is there");
    let description: Value = serde_json::from_str(&text).expect("it is JSON");
    let mut operations = Vec::new();
    for (path, methods) in description["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let query = parameters.filter(|parameter| parameter["in"] == "query");
            let query = query.map(|parameter| parameter["name"].as_str().unwrap().to_owned());
            let kinds = operation["requestBody"]["content"].as_object();
            let kind = kinds.and_then(|kinds| kinds.keys().next().cloned());
            let (method, path) = (method.to_uppercase(), path.clone());
            operations.push(Operation { method, path, query: query.collect(), kind });
        }
    }
    operations
}

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
        "[a-zA-Z0-9._-]{1,12}",
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

/// The address of an operation with these parameters, of which some are left out.
fn address(operation: &Operation, parameters: &[String], left_out: u8) -> String {
    let mut next = parameters.iter().cycle();
    let mut path = String::new();
    for (number, part) in operation.path.split('{').enumerate() {
        match part.split_once('}').filter(|_| number > 0) {
            Some((_, rest)) => {
                path.push_str(next.next().expect("there is one"));
                path.push_str(rest);
            }
            None => path.push_str(part),
        }
    }
    let is_given = |number: &usize| left_out >> (number % 8) & 1 == 0;
    for number in (0..operation.query.len()).filter(is_given) {
        let (name, value) = (&operation.query[number], next.next().expect("there is one"));
        let sign = if path.contains('?') { '&' } else { '?' };
        path.push_str(&format!("{sign}{name}={value}"));
    }
    path
}

/// A form with the fields that uploads have, some of them twice, cut anywhere.
fn form() -> impl Strategy<Value = Vec<u8>> {
    let names = vec!["image", "file", "file_path", "type", "subfolder", "original_ref", "x"];
    let field = (prop::sample::select(names), "[ -~]{0,20}", any::<bool>()).prop_map(
        |(name, text, is_file)| {
            let file = if is_file { "; filename=\"a.png\"" } else { "" };
            let head = format!("Content-Disposition: form-data; name=\"{name}\"{file}");
            format!("--x\r\n{head}\r\n\r\n{text}\r\n")
        },
    );
    (prop::collection::vec(field, 0..5), 0usize..60).prop_map(|(fields, cut)| {
        let mut form = (fields.concat() + "--x--\r\n").into_bytes();
        form.truncate(form.len() - cut.min(form.len()));
        form
    })
}

#[test]
fn malformed_requests_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    server.finished(&server.submit(&plain(1, "s"), None));
    let operations = operations();
    assert!(operations.len() > 70, "{}", operations.len());
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let bodies = prop_oneof![3 => body(), 1 => form()];
    let parameters = prop::collection::vec(parameter(), 1..6);
    let request = (prop::sample::select(operations), parameters, any::<u8>(), bodies);
    let tried = runner.run(&request, |(operation, parameters, left_out, body)| {
        let path = address(&operation, &parameters, left_out);
        let kind = match operation.kind.as_deref() {
            Some("multipart/form-data") => "multipart/form-data; boundary=x",
            Some(kind) => kind,
            None => "text/plain",
        };
        let method = operation.method.as_str();
        let answer = server.request(method, &path, &[("Content-Type", kind)], &body);
        // What is not offered, and says so, is no mistake.
        let is_off = path.starts_with("/api/assets");
        let is_right = (200..500).contains(&answer.status) || is_off && answer.status == 503;
        prop_assert!(is_right, "{} {}: {:?}", method, path, answer);
        let is_json =
            answer.header("content-type").is_some_and(|kind| kind.starts_with("application/json"));
        let is_told =
            answer.status < 400 || is_json || method == "HEAD" || path.starts_with("/login");
        prop_assert!(is_told, "{} {}: {:?}", method, path, answer);
        Ok(())
    });
    if let Err(error) = tried {
        panic!("{error}\n{}", server.said());
    }
    assert_eq!(server.get("/healthz").status, 200);
    let good = server.submit(&plain(2, "good"), None);
    assert_eq!(server.finished(&good)["status"]["status_str"], "success");
}
