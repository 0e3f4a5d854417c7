//! Lists, what classes are asked before they run, lazy inputs, values that only pass through, and schemas.

use super::*;

/// The texts that were shown, by the id of the node that shows them.
fn all_told(finished: &Finished) -> std::collections::BTreeMap<String, String> {
    let events = finished.json_lines();
    let outputs = events.iter().filter(|event| event["event"] == "output");
    outputs
        .map(|event| {
            let shown = event["output"]["shown"][0].as_str().unwrap_or_default();
            (event["node"].as_str().unwrap_or_default().to_owned(), shown.to_owned())
        })
        .collect()
}

/// How often a node began.
fn begun(finished: &Finished, node: &str) -> usize {
    let events = finished.json_lines();
    let of_node = |event: &&Value| event["event"] == "node_started" && event["node"] == node;
    events.iter().filter(of_node).count()
}

pub fn lists() -> Result<(), Failed> {
    let list = |text: &str| json!({"class_type": "PyList", "inputs": {"text": text}});
    let all = |value: Value, other: Value| json!({"class_type": "PyAllOf", "inputs": {"value": value, "other": other, "choice": "2"}});
    let show = |id: &str| json!({"class_type": "PyShow", "inputs": {"value": [id, 0]}});
    // Three and two: the last of the shorter again, as ComfyUI's map has it. A literal is the same for all.
    let graph = json!({"1": list("a,b,c"), "2": list("1,2"),
        "3": {"class_type": "PyPair", "inputs": {"one": ["1", 0], "other": ["2", 0], "end": "."}}, "4": all(json!(["3", 0]), json!(["1", 0])),
        "5": show("4"), "6": list(""), "7": all(json!(["6", 0]), json!(["2", 0])), "8": show("7"),
        "9": {"class_type": "PyOwnList", "inputs": {"text": "x,y"}}, "10": {"class_type": "PyTake", "inputs": {"own": ["9", 0]}},
        "11": all(json!(["10", 0]), json!(["1", 0])), "12": show("11")});
    let finished = run("lists", &graph).arg("--json").expect_success();
    let by_node = all_told(&finished);
    let rest = |id: &str| format!("('choice', [2]), ('id', ['{id}'])");
    let end = "('seed', [18446744073709551615]), ('value', ";
    assert_eq!(
        by_node["5"],
        format!("[{}, ('other', ['a', 'b', 'c']), {end}['a1.', 'b2.', 'c2.'])]", rest("4"))
    );
    assert_eq!(by_node["8"], format!("[{}, ('other', ['1', '2']), {end}[])]", rest("7")));
    assert_eq!(
        by_node["12"],
        format!("[{}, ('other', ['a', 'b', 'c']), {end}['x of {{}}', 'y of {{}}'])]", rest("11"))
    );
    // Inputs that a page added, which INPUT_TYPES does not have; their names count.
    let any = |name: &str| json!({"class_type": "PyAnyOf", "inputs": {"text": "t", "stale": "literal", name: ["1", 0]}});
    let graph = json!({"1": {"class_type": "PyPass", "inputs": {"value": "v"}}, "2": any("more_1"), "3": show("2"), "4": any("more_2"), "5": show("4")});
    let by_node = all_told(&run("any_inputs", &graph).arg("--json").expect_success());
    assert_eq!(
        (by_node["3"].as_str(), by_node["5"].as_str()),
        ("('t', [('more_1', 'v')])", "('t', [('more_2', 'v')])")
    );
    // What runs for each value of a list cannot run for none.
    let graph = json!({"1": list(""), "2": {"class_type": "PyPair", "inputs": {"one": ["1", 0], "other": ["1", 0]}}, "3": show("2")});
    run("empty_list", &graph).expect_code(3).stderr_contains("the list it is linked to is empty");
    for (class, sentence) in [
        ("PyNoList", "is a text, where OUTPUT_IS_LIST says that a list is due"),
        (
            "PyWrongList",
            "its output count (INT) has at 1 what is -9223372036854775809, which has more than 64 bits",
        ),
    ] {
        run(class, &shown(class)).expect_code(3).stderr_contains(sentence);
    }
    // A list that is missing is one of None, for whoever takes it.
    let graph = json!({"1": {"class_type": "PyTwoLists", "inputs": {"text": "a"}},
        "2": {"class_type": "PyPass", "inputs": {"value": ["1", 1]}}, "3": show("2")});
    assert_eq!(told(&run("few_lists", &graph).arg("--json").expect_success()), "None");
    let info = Run::new("nodes").arg("--json").arg("--python-nodes").arg(pack());
    let info = info.expect_success().json();
    assert_eq!(info["PyTwoLists"]["output_is_list"], json!([true, true]));
    Ok(())
}

pub fn changes() -> Result<(), Failed> {
    let file = scratch().join("python_nodes_changes.txt");
    std::fs::write(&file, "one")?;
    let graph = |text: &str| {
        json!({"1": {"class_type": "PyChanged", "inputs": {"text": text}},
            "2": {"class_type": "PyPlain", "inputs": {"text": ["1", 0], "seed": 1, "choice": "1"}},
            "3": {"class_type": "PyShow", "inputs": {"value": ["2", 5]}}})
    };
    let of_file = format!("file:{}", file.display());
    // The seed changes another node: this one runs again only where it says so.
    for (text, times) in
        [("same", 1), (&of_file[..], 1), ("nan", 3), ("object", 3), ("raise", 3), ("crash", 3)]
    {
        let name = format!("changed_{}", text.split(':').next().unwrap_or_default());
        let finished = run(&name, &graph(text)).arg("--seed").arg("1..4").arg("--json");
        let finished = finished.expect_success();
        assert_eq!(begun(&finished, "1"), times, "{text}: {finished}");
        let warning = match text {
            "raise" => {
                "its IS_CHANGED failed: ValueError: no idea (python_nodes/__init__.py, line "
            }
            "crash" => "the Python process of its pack python_nodes ended with SIGSEGV",
            _ => continue,
        };
        assert!(finished.stdout().contains(warning), "{warning:?} is not in\n{finished}");
    }
    // Of a sweep all runs are asked about before the first.
    let sweep =
        run("changed_sweep", &graph("same")).arg("--sweep").arg("2.seed=1:3:1").arg("--json");
    assert_eq!(begun(&sweep.expect_success(), "1"), 1);
    // One that hangs has ten seconds, and then runs as if it had said nothing.
    let hanging: Vec<_> = ["hang", "busy"]
        .map(|text| {
            let text = text.to_owned();
            let graph = graph(&text);
            std::thread::spawn(move || run(&text, &graph).arg("--json").expect_success())
        })
        .into_iter()
        .collect();
    for finished in hanging {
        let finished = finished.join().map_err(|_| "it failed")?;
        assert!(finished.stdout().contains("had not answered after 10 s"), "{finished}");
        assert_eq!(begun(&finished, "3"), 1);
    }
    // Between two jobs of one process the file is another one, and then it is not.
    let job = |id: &str| json!({"id": id, "workflow": graph(&of_file)}).to_string();
    let mut child = Run::new("jobs").arg("--python-nodes").arg(pack()).with_plugins().command();
    let mut child =
        child.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn()?;
    let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(output));
    for (id, contents, times) in
        [("a", "one", 1), ("b", "one", 0), ("c", "two", 1), ("d", "two", 0)]
    {
        std::fs::write(&file, contents)?;
        std::io::Write::write_all(&mut input, format!("{}\n", job(id)).as_bytes())?;
        let mut count = 0;
        for line in lines.by_ref() {
            let event: Value = serde_json::from_str(&line?)?;
            count += usize::from(event["event"] == "node_started" && event["node"] == "1");
            if event["event"] == "job_done" {
                assert_eq!(event["code"], 0, "{event}");
                break;
            }
        }
        assert_eq!(count, times, "job {id}");
    }
    drop(input);
    child.wait()?;
    Ok(())
}

pub fn refused_inputs() -> Result<(), Failed> {
    let graph = |text: &str, choice: &str, number: i64| {
        json!({"1": {"class_type": "PyPlain", "inputs": {"text": "t", "seed": 1, "choice": "1"}},
            "2": {"class_type": "PyValid", "inputs": {"text": text, "choice": choice, "number": number, "link": ["1", 0]}},
            "3": {"class_type": "PyShow", "inputs": {"value": ["2", 0]}}})
    };
    // What VALIDATE_INPUTS names it looks at itself: a choice that is not listed, a number beyond its range, a text where
    // the class says IMAGE.
    let finished = run("valid", &graph("fine", "z", 99)).arg("--json").expect_success();
    assert_eq!(told(&finished), "'finez'");
    for (text, sentence) in [
        ("told", "it refuses its inputs: ('a', 3, None, [('link', 'STRING')])"),
        ("no", "its VALIDATE_INPUTS refuses it, and does not say why"),
        ("nothing", "its VALIDATE_INPUTS gave None, where True or the reason as a text is due"),
        ("five", "its VALIDATE_INPUTS gave the int 5, where True"),
        ("list", "its VALIDATE_INPUTS gave a list, where True"),
        (
            "raise",
            "its VALIDATE_INPUTS failed: ValueError: no idea (python_nodes/__init__.py, line ",
        ),
        ("crash", "the Python process of its pack python_nodes ended with exit code 9"),
    ] {
        let finished = run(&format!("valid_{text}"), &graph(text, "a", 3)).arg("--json");
        let finished = finished.expect_code(2);
        assert!(finished.stdout().contains(sentence), "{sentence:?} is not in\n{finished}");
        assert_eq!(begun(&finished, "1"), 0, "nothing is run for what is refused");
    }
    // Before anything runs, and only what hangs on it is left out.
    let file = workflow("valid_check", &graph("told", "a", 3));
    let check = Run::new("check").arg(file).arg("--python-nodes").arg(pack()).with_plugins();
    let check = check.expect_code(2);
    check.stderr_contains("node 2 (PyValid): it refuses its inputs").stderr_contains("STRING");
    let mut both = graph("no", "a", 3);
    both["4"] = json!({"class_type": "PyShow", "inputs": {"value": "there"}});
    let finished = run("valid_part", &both).arg("--json").expect_code(3);
    assert_eq!(told(&finished), "'there'");
    assert_eq!(finished.stdout().matches("does not say why").count(), 1, "{finished}");
    Ok(())
}

pub fn lazy() -> Result<(), Failed> {
    let pass = |value: &str| json!({"class_type": "PyPass", "inputs": {"value": value}});
    let graph = |class: &str, switch: bool, no: &str| {
        json!({"1": pass(no), "2": {"class_type": "PyPass", "inputs": {"value": ["1", 0]}}, "3": pass("yes"), "4": pass("extra"),
            "5": {"class_type": class, "inputs": {"switch": switch, "no": ["2", 0], "yes": ["3", 0], "extra": ["4", 0]}},
            "6": {"class_type": "PyShow", "inputs": {"value": ["5", 0]}}})
    };
    for (class, switch, no, shown, run_of) in [
        ("PyLazy", true, "no", "(None, 'yes', None)", [0, 0, 1, 0]),
        ("PyLazy", false, "no", "('no', None, None)", [1, 1, 0, 0]),
        // Asked again with what it wanted first, it wants more.
        ("PyLazy", false, "more", "('more', None, 'extra')", [1, 1, 0, 1]),
        ("PyLazyNever", true, "no", "(None, None, None)", [0, 0, 0, 0]),
    ] {
        let finished = run("lazy", &graph(class, switch, no)).arg("--json").expect_success();
        assert_eq!(told(&finished), shown, "{finished}");
        let began = ["1", "2", "3", "4"].map(|node| begun(&finished, node));
        assert_eq!(began, run_of, "{shown}: {finished}");
    }
    let finished = run("lazy_raises", &graph("PyLazy", false, "raise")).expect_code(3);
    finished.stderr_contains("node 5 (PyLazy): ValueError: no idea");
    // What another node needs is there for this one, too; and a branch that fails costs the node only where it is wanted.
    let mut shared = graph("PyLazy", true, "no");
    shared["7"] = json!({"class_type": "PyShow", "inputs": {"value": ["1", 0]}});
    shared["2"] = json!({"class_type": "PyRaise", "inputs": {"text": ["1", 0]}});
    let finished = run("lazy_shared", &shared).arg("--json").expect_success();
    assert_eq!(all_told(&finished)["6"], "(None, 'yes', None)");
    // It may fail for another that wants it, too.
    shared["8"] = json!({"class_type": "PyShow", "inputs": {"value": ["2", 0]}});
    let finished = run("lazy_fails_elsewhere", &shared).arg("--json").expect_code(3);
    assert_eq!(all_told(&finished)["6"], "(None, 'yes', None)");
    shared["5"]["inputs"]["switch"] = json!(false);
    let finished = run("lazy_fails", &shared).arg("--json").expect_code(3);
    assert_eq!(all_told(&finished).keys().collect::<Vec<_>>(), ["7"]);
    // A list in the place of the switch: what any of its values wants is computed, and each has it.
    let mut listed = graph("PyLazy", true, "no");
    listed["8"] = json!({"class_type": "PyList", "inputs": {"text": "a,b"}});
    listed["4"] = json!({"class_type": "PyPass", "inputs": {"value": ["8", 0]}});
    listed["5"]["inputs"]["switch"] = json!(false);
    listed["1"] = pass("more");
    listed["9"] = json!({"class_type": "PyAllOf", "inputs": {"value": ["5", 0], "choice": "1"}});
    listed["6"]["inputs"]["value"] = json!(["9", 0]);
    let finished = run("lazy_list", &listed).arg("--json").expect_success();
    let wanted = r#"["('more', None, 'a')", "('more', None, 'b')"]"#;
    assert!(told(&finished).as_str().unwrap().contains(wanted), "{finished}");
    Ok(())
}

pub fn lent() -> Result<(), Failed> {
    // A model, a text encoder and its conditioning go through Python as they are: the same picture.
    let text = std::fs::read_to_string(repository().join("workflows/text.json"))?;
    let plain: Value = serde_json::from_str(&text)?;
    let mut through = plain.clone();
    let mut added = Vec::new();
    for (id, node) in through.as_object_mut().unwrap() {
        let inputs = node["inputs"].as_object_mut().unwrap();
        for (name, value) in inputs.iter_mut().filter(|(_, value)| value.is_array()) {
            let pass = format!("{id} {name}");
            added.push((pass.clone(), json!({"class_type": "PyPass", "inputs": {"value": value}})));
            *value = json!([pass, 0]);
        }
    }
    through.as_object_mut().unwrap().extend(added);
    let drawn = |name: &str, graph: &Value| -> Result<Vec<u8>, Failed> {
        let out = scratch().join(format!("python_nodes_{name}"));
        let _ = std::fs::remove_dir_all(&out);
        let run = Run::new("run").arg(workflow(name, graph)).arg("--out").arg(&out);
        let run = run.arg("--models").arg(repository().join("models"));
        run.arg("--python-nodes")
            .arg(pack())
            .arg("--python")
            .arg(python_with("numpy").ok_or("no numpy")?)
            .with_plugins()
            .expect_success();
        let files: Vec<_> = std::fs::read_dir(&out)?.flatten().map(|entry| entry.path()).collect();
        let decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&files[0])?));
        let mut reader = decoder.read_info()?;
        let mut pixels = vec![0; reader.output_buffer_size().ok_or("no size")?];
        reader.next_frame(&mut pixels)?;
        Ok(pixels)
    };
    if python_with("numpy").is_some() {
        assert!(drawn("lent", &through)? == drawn("not_lent", &plain)?, "another picture");
    }
    // Looked at, they are nothing that Python has.
    let graph = json!({"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny/sd"}},
        "2": {"class_type": "PyUses", "inputs": {"value": ["1", 0]}}, "3": {"class_type": "PyShow", "inputs": {"value": ["2", 0]}}});
    let finished = run("lent_used", &graph).arg("--models").arg(repository().join("models"));
    finished.expect_code(3).stderr_contains("it uses a MODEL of Kosmograph's own or of another pack, which Python can give on and no more");
    Ok(())
}

pub fn schemas() -> Result<(), Failed> {
    let schema = repository().join("tests/examples/python_schema_nodes.py");
    let with = |name: &str, graph: &Value| run(name, graph).arg("--python-nodes").arg(&schema);
    let graph = |text: &str| {
        json!({"0": {"class_type": "PyPass", "inputs": {"value": "first"}},
            "1": {"class_type": "SchemaCount", "inputs": {"text": text, "choice": "b", "size": "own", "size.width": 8, "words.word0": ["0", 0]}},
            "2": {"class_type": "SchemaShow", "inputs": {"value": ["1", 0]}}, "3": {"class_type": "SchemaShow", "inputs": {"value": ["1", 1]}}})
    };
    let finished = with("schema", &graph("t")).arg("--json").expect_success();
    let told = all_told(&finished);
    let own = r#"["('t', 'b', [('size', 'own'), ('width', 8)], [('word0', 'first')], '1')"]"#;
    assert_eq!((told["2"].as_str(), told["3"].as_str()), (own, "[1, 2]"), "{finished}");
    let refused = with("schema_refuses", &graph("bad")).expect_code(2);
    refused.stderr_contains("it refuses its inputs: no text is bad");
    let info =
        Run::new("nodes").arg("SchemaCount").arg("--json").arg("--python-nodes").arg(&schema);
    let info = info.expect_success().json();
    let info = &info["SchemaCount"];
    assert_eq!(
        (&info["display_name"], &info["output_is_list"]),
        (&json!("Counts"), &json!([false, true]))
    );
    assert_eq!(info["output_name"], json!(["told", "count"]));
    assert_eq!(info["input"]["required"]["text"][1]["tooltip"], "a text");
    assert_eq!(info["input"]["optional"]["size.width"][1]["max"], 9);
    Ok(())
}

/// A prompt that is posted is asked about before it is taken.
pub fn refused_by_server() -> Result<(), Failed> {
    let folder = scratch().join("python_nodes_server");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(folder.join("in"))?;
    let path = pack().display().to_string();
    let server = kosmograph_tests::server::Server::start(&folder, &["--python-nodes", &path]);
    let graph = |text: &str| {
        json!({"1": {"class_type": "PyPlain", "inputs": {"text": "t", "seed": 1, "choice": "1"}},
            "2": {"class_type": "PyValid", "inputs": {"text": text, "choice": "z", "number": 3, "link": ["1", 0]}},
            "3": {"class_type": "PyShow", "inputs": {"value": ["2", 0]}}})
    };
    let answer = server.post("/prompt", &json!({"prompt": graph("no")}));
    assert_eq!(answer.status, 400);
    let answer = answer.json();
    assert_eq!(answer["error"]["type"], "prompt_outputs_failed_validation", "{answer}");
    let error = &answer["node_errors"]["2"]["errors"][0];
    assert_eq!(error["type"], "custom_validation_failed", "{answer}");
    assert!(error["details"].as_str().unwrap_or_default().contains("does not say why"), "{answer}");
    assert_eq!(answer["node_errors"]["2"]["dependent_outputs"], json!(["3"]));
    // A pack that ends its process over a question, and then one that is asked in a new one.
    let crashed = server.post("/prompt", &json!({"prompt": graph("crash")})).json();
    assert!(crashed.to_string().contains("ended with exit code 9"), "{crashed}");
    let id = server.submit(&graph("fine"), None);
    let entry = server.finished(&id);
    assert_eq!(entry["status"]["status_str"], "success", "{entry}");
    assert_eq!(entry["outputs"]["3"]["shown"][0], "'finez'", "{entry}");
    Ok(())
}
