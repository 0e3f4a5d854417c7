//! Workflows, and the JSON of libraries and workers.

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use kosmograph::catalogue::Catalogue;
use kosmograph::changes::{set, set_seed};
use kosmograph::editor::{Converted, Now, convert};
use kosmograph::folders::{Folders, Given};
use kosmograph::graph::{Graph, is_editor_format, parse_object};
use kosmograph::object_info::object_info;
use kosmograph::plan::{Plan, Refusal};
use kosmograph::wire::Report;
use serde_json::Value;

/// A library that has an input of every kind there is.
const LIBRARY: &str = include_str!("library.json");

struct Setting {
    catalogue: Catalogue,
    folders: Folders,
    _root: tempfile::TempDir,
}

/// A catalogue, and folders with a file for each of its paths.
fn setting() -> &'static Setting {
    static SETTING: OnceLock<Setting> = OnceLock::new();
    SETTING.get_or_init(|| {
        let root = tempfile::tempdir().expect("a folder");
        for file in
            ["checkpoints/a.safetensors", "loras/a.safetensors", "embeddings/a.pt", "input/a.png"]
        {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, "").expect("a file");
        }
        let (models, input) = ([root.path().to_owned()], root.path().join("input"));
        let given = Given { models: &models, input: Some(&input), ..Given::default() };
        let folders = Folders::find(given).expect("the folders are there");
        let mut catalogue = Catalogue::default();
        let library: Value = serde_json::from_str(LIBRARY).expect("JSON");
        catalogue.add(Path::new("liball.so"), &library).expect("a library");
        Setting { catalogue, folders, _root: root }
    })
}

/// A workflow of either format, as `check` and `run` take it.
pub fn workflow(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let object = match parse_object(text) {
        Ok(object) => object,
        Err(error) => return say(&error),
    };
    let Setting { catalogue, folders, .. } = setting();
    let converted = match is_editor_format(&object) {
        true => convert(&object, catalogue),
        false => match Graph::from_object(object) {
            Ok(graph) => graph.into(),
            Err(error) => return say(&error),
        },
    };
    let Converted { mut graph, texts, problems, warnings } = converted;
    problems.iter().chain(&warnings).for_each(|problem| say(problem));
    let now = Now::from(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000));
    for seed in [None, Some(0), Some(u64::MAX)] {
        let mut graph = graph.clone();
        texts.apply(&mut graph, catalogue, seed, &now).iter().for_each(|problem| say(problem));
        plan(&graph, catalogue, folders);
    }
    for change in ["Sampler.steps=3", "1.text=a=b", "Text.text=[1,2]", ".=", "1=2"] {
        if let Err(error) = set(&mut graph, catalogue, change) {
            say(&error);
        }
    }
    if let Err(error) = set_seed(&mut graph, catalogue, 7) {
        say(&error);
    }
    plan(&graph, catalogue, folders);
}

/// Plans, and again from the JSON that a picture would carry: that is the same plan.
fn plan(graph: &Graph, catalogue: &Catalogue, folders: &Folders) {
    let said = graph.to_json();
    let planned = match Plan::new(graph, catalogue, folders, "cpu") {
        Ok(planned) => planned,
        Err(Refusal { problems, warnings }) => {
            assert!(!problems.is_empty(), "a refusal without a problem");
            return problems.iter().chain(&warnings).for_each(|problem| say(problem));
        }
    };
    let again = Graph::parse(&said).expect("what was planned can be read again");
    let again = match Plan::new(&again, catalogue, folders, "cpu") {
        Ok(again) => again,
        Err(refusal) => panic!("what was planned is refused when it is read again: {refusal:?}"),
    };
    assert_eq!(planned.steps().len(), again.steps().len());
    for (step, again) in planned.steps().iter().zip(again.steps()) {
        assert_eq!(step.name, again.name);
        // What hangs on a node that is not pure is another thing each time.
        if planned.steps().iter().all(|step| step.descriptor.pure) {
            assert_eq!(step.key, again.key, "another key when it is read again: {}", step.name.id);
        }
    }
}

/// Sentences are made when they are shown.
fn say(what: &dyn std::fmt::Display) {
    assert!(!what.to_string().is_empty(), "a problem without a word");
}

/// What a library says of itself.
pub fn descriptor(data: &[u8]) {
    let Ok(descriptor) = serde_json::from_slice::<Value>(data) else { return };
    let mut catalogue = Catalogue::default();
    match catalogue.add(Path::new("libstrange.so"), &descriptor) {
        Err(error) => say(&error),
        Ok(_) => {
            let _ = object_info(&catalogue, &setting().folders).to_string();
            // A node of each class, alone.
            for name in catalogue.class_names() {
                let graph = serde_json::json!({"1": {"class_type": name, "inputs": {}}});
                if let Ok(graph) = Graph::parse(&graph.to_string()) {
                    plan(&graph, &catalogue, &setting().folders);
                }
            }
        }
    }
}

/// What a worker reports: a line, which may be half a line or a lie.
pub fn report(data: &[u8]) {
    for line in data.split(|byte| *byte == b'\n') {
        let _ = Report::read(line);
    }
}
