use super::*;
use serde_json::json;

fn job(id: &str, number: f64) -> NewJob {
    NewJob {
        id: id.into(),
        number,
        client: Some("c".into()),
        prompt: r#"{"1":{}}"#.into(),
        extra: "{}".into(),
        targets: vec!["1".into()],
        workflow_id: None,
        created: 5,
        metadata: None,
        priority: None,
        webhook: None,
        needs: Needs::default(),
    }
}

fn finished(state: State) -> Finished {
    let (outputs, messages) = (json!({"1": {"images": []}}), json!([["execution_start", {}]]));
    Finished { state, ended: 9, outputs, messages, error: None }
}

#[test]
fn jobs_wait_in_the_order_of_their_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.last_number().unwrap(), -1.0);
    store.insert(&[job("b", 1.0), job("c", 1.0), job("a", -0.5)], None).unwrap();
    let waiting: Vec<String> = store.waiting().unwrap().into_iter().map(|job| job.id).collect();
    assert_eq!(waiting, ["a", "b", "c"]);
    assert_eq!(store.last_number().unwrap(), 1.0);
    assert!(matches!(
        store.insert(&[job("d", 0.0), job("b", 0.0)], None),
        Err(StoreError::Taken(_))
    ));
    assert_eq!(store.waiting().unwrap().len(), 3, "all or none");
    store.delete_waiting(&["b".into(), "nobody".into()]).unwrap();
    store.start("c", 7).unwrap();
    assert_eq!(
        store.queue().unwrap(),
        r#"{"queue_running":[[1,"c",{"1":{}},{},["1"]]],"queue_pending":[[-0.5,"a",{"1":{}},{},["1"]]]}"#
    );
}

#[test]
fn a_job_that_ran_when_the_server_ended_runs_again_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    store.insert(&[job("a", 0.0), job("b", 1.0)], None).unwrap();
    store.start("a", 7).unwrap();
    drop(store);
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.running_at_start().unwrap(), (1, vec![]));
    assert_eq!(store.waiting().unwrap()[0].id, "a");
    store.start("a", 8).unwrap();
    assert_eq!(store.running_at_start().unwrap(), (0, vec!["a".to_owned()]));
    // One that was put back on purpose has not been tried.
    store.start("b", 8).unwrap();
    store.put_back("b").unwrap();
    store.start("b", 9).unwrap();
    assert_eq!(store.running_at_start().unwrap().0, 1);
}

#[test]
fn the_history_is_bounded_and_read_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    for number in 0..6 {
        let id = number.to_string();
        store.insert(&[job(&id, f64::from(number))], None).unwrap();
        store.start(&id, 7).unwrap();
        store.finish(&id, &finished(State::Completed), 4).unwrap();
    }
    let history = |max_items, offset| {
        let found = store.history(HistoryRange { max_items, offset }).unwrap();
        found.into_iter().map(|entry| entry.id).collect::<Vec<_>>()
    };
    assert_eq!(history(None, None), ["2", "3", "4", "5"]);
    assert_eq!(history(Some(2), None), ["4", "5"]);
    assert_eq!(history(Some(2), Some(1)), ["3", "4"]);
    assert_eq!(history(None, Some(9)), Vec::<String>::new());
    // The same id again is one entry, the new one.
    store.insert(&[job("3", 0.0)], None).unwrap();
    assert_eq!(history(None, None), ["2", "4", "5"]);
    store.forget(Some(&["4".into(), "3".into()])).unwrap();
    assert_eq!(history(None, None), ["2", "5"]);
    store.forget(None).unwrap();
    assert_eq!((history(None, None).len(), store.waiting().unwrap().len()), (0, 1));
}

#[test]
fn lists_have_states_limits_and_totals() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    store
        .insert(&(0..5).map(|n| job(&n.to_string(), f64::from(n))).collect::<Vec<_>>(), None)
        .unwrap();
    store.start("0", 6).unwrap();
    store.finish("0", &finished(State::Failed), 10).unwrap();
    let query = JobQuery { states: vec![State::Pending], limit: Some(3), ..JobQuery::default() };
    let (jobs, total) = store.list(&query).unwrap();
    let found: Vec<_> = jobs.iter().map(|job| job.id.as_str()).collect();
    assert_eq!((found, total), (vec!["4", "3", "2"], 4));
    let (jobs, total) = store.list(&JobQuery { offset: 4, ..JobQuery::default() }).unwrap();
    assert_eq!((jobs.len(), total), (1, 5));
    assert_eq!(jobs[0].state, State::Failed);
    let other = JobQuery { workflow_id: Some("w".into()), ..JobQuery::default() };
    assert_eq!(store.list(&other).unwrap(), (vec![], 0));
}

#[test]
fn settings_are_merged() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let set = |json: Json| store.set(json.as_object().unwrap()).unwrap();
    set(json!({"a": 1, "b": {"c": null}}));
    set(json!({"a": [2]}));
    assert_eq!(Json::Object(store.settings().unwrap()), json!({"a": [2], "b": {"c": null}}));
    assert_eq!(store.setting("b").unwrap(), Some(json!({"c": null})));
    assert_eq!(store.setting("x").unwrap(), None);
}

#[test]
fn what_cannot_be_opened_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let first = Store::open(folder.path()).unwrap();
    let told = Store::open(folder.path()).err().unwrap().to_string();
    assert!(told.contains("another kosmograph serve"), "{told}");
    drop(first);
    let path = folder.path().join("kosmograph.db");
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let told = Store::open(folder.path()).err().unwrap().to_string();
    assert!(told.contains("newer") && told.contains("99"), "{told}");
    std::fs::write(&path, vec![b'x'; 8192]).unwrap();
    let told = Store::open(folder.path()).err().unwrap().to_string();
    assert!(told.contains("damaged"), "{told}");
    assert_eq!(std::fs::read(&path).unwrap(), vec![b'x'; 8192], "it is left as it is");
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(Store::open(&file), Err(OpenError::Folder(..))));
}

#[test]
fn a_key_is_used_once_and_only_with_its_job() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    store.insert(&[job("a", 0.0)], Some("k")).unwrap();
    let again = store.insert(&[job("b", 0.0)], Some("k"));
    assert!(matches!(again, Err(StoreError::KeyUsed(ref job)) if job == "a"), "{again:?}");
    // What was refused has used no key.
    assert!(matches!(store.insert(&[job("a", 0.0)], Some("l")), Err(StoreError::Taken(_))));
    store.insert(&[job("c", 0.0)], Some("l")).unwrap();
    drop(store);
    let store = Store::open(folder.path()).unwrap();
    assert!(matches!(store.insert(&[job("d", 0.0)], Some("k")), Err(StoreError::KeyUsed(_))));
    assert_eq!(store.waiting().unwrap().len(), 2);
}

#[test]
fn jobs_are_listed_by_their_labels_the_newest_first() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    for number in 0..5 {
        let mut one = job(&number.to_string(), 0.0);
        one.metadata = match number {
            0 => None,
            1 => Some("\"plain\"".into()),
            number => Some(json!({"run": "x", "parity": (number % 2).to_string()}).to_string()),
        };
        store.insert(&[one], None).unwrap();
    }
    let ids = |query: V2Query| {
        store.list_v2(&query).unwrap().into_iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(V2Query { limit: 2, ..V2Query::default() }), ["4", "3"]);
    let before = store.job_v2("3").unwrap().unwrap().seq;
    assert_eq!(
        ids(V2Query { limit: 9, before: Some(before), ..V2Query::default() }),
        ["2", "1", "0"]
    );
    let labels = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let labelled = |pairs| ids(V2Query { labels: labels(pairs), limit: 9, ..V2Query::default() });
    assert_eq!(labelled(&[("run", "x")]), ["4", "3", "2"]);
    assert_eq!(labelled(&[("run", "x"), ("parity", "1")]), ["3"]);
    assert_eq!(labelled(&[("run' OR 1 --", "x")]), Vec::<String>::new());
}

#[test]
fn a_database_of_an_older_version_is_brought_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    let old = Connection::open(folder.path().join("kosmograph.db")).unwrap();
    old.execute_batch(schema::STEPS[0]).unwrap();
    old.execute(
        "INSERT INTO jobs (id, state, number, prompt, extra, targets, created) \
         VALUES ('old', 0, 0.0, '{}', '{}', '[]', 5)",
        [],
    )
    .unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    drop(old);
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.waiting().unwrap()[0].id, "old");
    assert_eq!(store.job_v2("old").unwrap().unwrap().metadata, None);
}

#[test]
fn assets_are_found_by_id_and_by_what_is_in_them() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let asset = |id: &str, name: &str| Asset {
        id: id.into(),
        hash: "blake3:0".into(),
        size: 3,
        content_type: "image/png".into(),
        file_path: "a.png".into(),
        name: name.into(),
        owned: true,
        created: 5,
    };
    assert_eq!(store.add_asset(asset("a", "a.png")).unwrap(), asset("a", "a.png"));
    let moved = store.add_asset(asset("b", "b.png")).unwrap();
    assert_eq!((moved.id.as_str(), moved.name.as_str()), ("a", "b.png"));
    assert_eq!(store.asset_of_hash("blake3:0").unwrap().as_ref(), Some(&moved));
    assert_eq!(store.asset("a").unwrap(), Some(moved));
    store.remove_asset("a").unwrap();
    assert_eq!(store.asset("a").unwrap(), None);
}
