use super::*;
use crate::folders::Folders;
use crate::plan::{Plan, Source};
use serde_json::json;

fn catalogue() -> Catalogue {
    let output = |kind: &str| json!({"name": kind, "type": kind});
    let input = |kind: &str| json!({"name": kind.to_lowercase(), "type": kind});
    let file = json!({"name": "file", "type": "STRING", "role": "path", "folder": "input", "entry": "file"});
    let library = json!({"name": "a", "version": "1", "nodes": [
        {"class": "Load", "inputs": [file], "outputs": [output("IMAGE"), output("MASK")]},
        {"class": "Model", "outputs": [output("MODEL"), output("IMAGE")]},
        {"class": "Save", "inputs": [input("IMAGE")], "output_node": true},
        {"class": "Cut", "inputs": [input("MASK"), input("MODEL")], "output_node": true}]});
    let mut catalogue = Catalogue::default();
    catalogue.add(Path::new("a"), &library).unwrap();
    add_to(&mut catalogue).unwrap();
    catalogue
}

fn graph() -> Graph {
    let graph = json!({
        "1": {"class_type": "Load", "inputs": {"file": "nowhere.png"}, "_meta": {"title": "Subject"}},
        "2": {"class_type": "Save", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "Model", "inputs": {}},
        "4": {"class_type": "Cut", "inputs": {"mask": ["1", 1], "model": ["3", 0]}}});
    Graph::parse(&graph.to_string()).unwrap()
}

/// Numbers in a file, as a job says them.
fn file(folder: &Path, dtype: &str, shape: &[u64], bytes: &[u8]) -> Json {
    let path = folder.join(format!("{dtype}{shape:?}"));
    let before = [7; 3];
    std::fs::write(&path, [&before, bytes].concat()).unwrap();
    json!({"path": path, "offset": 3, "dtype": dtype, "shape": shape})
}

fn floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_ne_bytes()).collect()
}

fn given(place: &str, picture: &Json) -> Result<(Graph, Vec<Given>), Problem> {
    let mut graph = graph();
    let pictures = Map::from_iter([(place.to_owned(), picture.clone())]);
    let given = give(&mut graph, &catalogue(), &pictures)?;
    Ok((graph, given))
}

#[test]
fn a_picture_stands_for_what_a_node_loads() {
    let folder = tempfile::tempdir().unwrap();
    let picture = file(folder.path(), "uint8", &[1, 2, 4], &[255, 0, 51, 255, 0, 102, 0, 51]);
    let (graph, given) = given("Subject", &picture).unwrap();
    let plan = Plan::new(&graph, &catalogue(), &Folders::default(), "cpu").unwrap();
    assert!(plan.problems().is_empty(), "the file that was not there is not asked for");
    let memory = Memory { given: given.clone(), out: None };
    let values = memory.run(0, &[Value::string(&given[0].name)]).unwrap();
    let numbers = |value: &Value| value.as_tensor().unwrap().to_f32().unwrap();
    assert_eq!(values[0].tensor_shape(), Some(&[1, 1, 2, 3][..]));
    assert_eq!(numbers(&values[0]), [1.0, 0.0, 0.2, 0.0, 0.4, 0.0]);
    assert_eq!(values[1].tensor_shape(), Some(&[1, 1, 2][..]));
    assert_eq!(numbers(&values[1]), [0.0, 0.8]);
    // Without transparency as LoadImage: 64 x 64 zeros.
    let picture = file(folder.path(), "float32", &[1, 1], &floats(&[0.25]));
    let (_, given) = super::tests::given("1", &picture).unwrap();
    let memory = Memory { given: given.clone(), out: None };
    let values = memory.run(0, &[Value::string(&given[0].name)]).unwrap();
    assert_eq!(numbers(&values[0]), [0.25; 3]);
    assert_eq!(values[1].tensor_shape(), Some(&[1, 64, 64][..]));
    assert!(memory.run(0, &[Value::string("another")]).is_err());
}

#[test]
fn a_picture_or_a_mask_is_given_to_an_input() {
    let folder = tempfile::tempdir().unwrap();
    let mask = file(folder.path(), "float32", &[2, 1, 1], &floats(&[0.5, 1.0]));
    let (graph, given) = given("Cut.mask", &mask).unwrap();
    assert_eq!(given[0].picture.shape, [1, 2, 1]);
    let plan = Plan::new(&graph, &catalogue(), &Folders::default(), "cpu").unwrap();
    let cut = plan.steps().iter().find(|step| step.name.id == "4").unwrap();
    let Source::Link { step, .. } = cut.inputs[0] else { panic!("it is not linked") };
    assert!(is_library(&catalogue().libraries()[plan.steps()[step].library].path));
}

#[test]
fn equal_pictures_have_one_name() {
    let folder = tempfile::tempdir().unwrap();
    let name = |dtype: &str, shape: &[u64], bytes: &[u8]| {
        given("1", &file(folder.path(), dtype, shape, bytes)).unwrap().1[0].name.clone()
    };
    let one = name("uint8", &[1, 1, 3], &[0, 255, 0]);
    assert_eq!(one, name("float32", &[1, 1, 1, 3], &floats(&[0.0, 1.0, 0.0])));
    assert_ne!(one, name("uint8", &[1, 1, 3], &[0, 254, 0]));
    assert_ne!(name("uint8", &[3, 1], &[0, 255, 0]), name("uint8", &[1, 3], &[0, 255, 0]));
}

#[test]
fn what_is_no_picture_or_no_place_is_refused_with_its_node() {
    let folder = tempfile::tempdir().unwrap();
    let good = file(folder.path(), "uint8", &[1, 1, 3], &[0, 0, 0]);
    let with = |dtype: &str, shape: &[u64], bytes: &[u8]| file(folder.path(), dtype, shape, bytes);
    for (place, picture, said, node, input) in [
        (
            "Subjec",
            &good,
            "no node has the id, title or class \"Subjec\"; did you mean \"Subject\"?",
            None,
            None,
        ),
        ("Subject.fil", &good, "no input \"fil\"; did you mean \"file\"", None, None),
        ("Subject.file", &good, "it takes a file; give the picture", Some("1"), Some("file")),
        ("4.model", &good, "it takes MODEL, and no picture", Some("4"), Some("model")),
        ("Model", &good, "this one gives MODEL, IMAGE; ", Some("3"), None),
        ("Save", &good, "this one gives nothing; ", Some("2"), None),
        ("1", &with("uint8", &[3, 8, 8], &[0; 192]), "with 1, 3 or 4 channels", Some("1"), None),
        ("1", &with("uint8", &[0, 8, 3], &[]), "there is nothing in it", Some("1"), None),
        ("1", &with("uint8", &[2, 8, 3], &[0; 47]), "brings 47 bytes", Some("1"), None),
        ("1", &with("uint8", &[1 << 40, 1 << 40, 3], &[]), "brings 0 bytes", Some("1"), None),
        (
            "1",
            &with("float32", &[1, 2], &floats(&[0.0, f32::NAN])),
            "1 of the 2 numbers",
            Some("1"),
            None,
        ),
        (
            "2.image",
            &with("float32", &[1, 1], &floats(&[255.0])),
            "is 255; bytes",
            Some("2"),
            Some("image"),
        ),
        (
            "1",
            &json!({"path": "/nowhere", "dtype": "uint8", "shape": [1, 1]}),
            "/nowhere: ",
            Some("1"),
            None,
        ),
        (
            "1",
            &json!({"path": "/x", "dtype": "int64", "shape": [1, 1]}),
            "unknown variant `int64`",
            None,
            None,
        ),
    ] {
        let problem = given(place, picture).unwrap_err();
        assert!(problem.message.contains(said), "{place}: {problem}");
        assert_eq!(problem.node.map(|node| node.id), node.map(str::to_owned), "{place}");
        assert_eq!(problem.input.as_deref(), input, "{place}");
    }
}

#[test]
fn what_is_handed_over_lies_at_the_beginning_of_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    std::fs::write(&out, "x").unwrap();
    let memory = Memory { given: Vec::new(), out: Some(out.clone()) };
    let value = Value::tensor_f32(&[1, 1, 1, 3], &[0.1, 0.2, 0.3]).unwrap();
    let handed = memory.hand_over("images", &value).unwrap().unwrap();
    assert_eq!((handed.offset, &*handed.shape), (PAGE, &[1, 1, 1, 3][..]));
    assert_eq!(memory.hand_over("images", &value).unwrap().unwrap().offset, 2 * PAGE);
    assert_eq!(std::fs::read(&out).unwrap()[PAGE as usize..][..12], floats(&[0.1, 0.2, 0.3]));
    assert_eq!(memory.hand_over("images", &Value::string("x")), Ok(None));
    std::fs::remove_file(&out).unwrap();
    assert!(memory.hand_over("images", &value).is_err(), "it is not made anew");
    assert_eq!(Memory::default().hand_over("images", &value), Ok(None));
}
