//! scripts/corpus counts what is right, refused and no workflow in a folder, and why.
//!
//! Whether there is a Python is known when the test runs. So this has a harness that can ignore a test then, and
//! says why.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Output};

use kosmograph_tests::{kosmograph, plugins_dir, repository};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::{Value, json};

fn main() -> ExitCode {
    let trials = vec![
        Trial::ignorable_test("a_folder_of_every_kind_is_counted", || python_or_ignored(counted)),
        Trial::ignorable_test("what_is_wrong_with_the_call_is_said", || python_or_ignored(calls)),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn python_or_ignored(test: fn()) -> Result<Completion, Failed> {
    match Command::new("python3").arg("--version").output() {
        Ok(output) if output.status.success() => {
            test();
            Ok(Completion::Completed)
        }
        Ok(output) => Err(format!("python3 --version: {output:?}").into()),
        Err(error) => Ok(Completion::ignored_with(format!("it needs python3: {error}"))),
    }
}

fn good() -> Value {
    json!({"1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}})
}

/// `good` with a change.
fn changed(change: impl FnOnce(&mut Value)) -> Value {
    let mut workflow = good();
    change(&mut workflow);
    workflow
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let unknown = json!({"class_type": "Nobodys", "inputs": {"images": ["1", 0]}});
    let load = json!({"class_type": "LoadImage", "inputs": {"image": "no such.png"}});
    let files = [
        ("right.json", good()),
        ("request.json", json!({"prompt": good(), "client_id": "me"})),
        ("partly.json", changed(|workflow| workflow["3"] = unknown.clone())),
        ("unknown.json", changed(|workflow| workflow["2"] = unknown.clone())),
        ("no file.json", changed(|workflow| workflow["1"] = load)),
        ("placeholder.json", changed(|workflow| workflow["1"]["inputs"]["width"] = json!("%w%"))),
        ("null.json", changed(|workflow| workflow["1"]["inputs"]["width"] = json!(null))),
        ("malformed.json", changed(|workflow| workflow["3"] = json!({}))),
        (
            "two.json",
            json!([
                good(),
                changed(|workflow| workflow["2"]["inputs"]["filename_prefix"] = json!("b"))
            ]),
        ),
        ("package.json", json!({"name": "x", "version": "1"})),
        ("list.json", json!([1, 2])),
    ];
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, bytes).expect("a file");
    };
    for (name, value) in files {
        write(name, value.to_string().as_bytes());
    }
    write("empty.json", b"");
    // A name with what separates a file's name from a sentence.
    write("below/a: b.json", &good().to_string().as_bytes()[..40]);
    write("not one.txt", b"");
    let picture = repository().join("workflows/input/monster-1.png");
    write("plain.png", &fs::read(picture).expect("a picture"));
    folder
}

fn corpus(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("python3");
    command.arg(repository().join("scripts/corpus")).arg(folder);
    command.arg("--program").arg(kosmograph()).arg("--plugins").arg(plugins_dir());
    let input = repository().join("workflows/input");
    command.arg("--input").arg(input).args(arguments).output().expect("python3")
}

/// The lines of the counts, without the spaces before them.
fn lines(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| line.trim().to_owned()).collect()
}

fn counted() {
    let folder = folder();
    let elsewhere = tempfile::tempdir().expect("a folder");
    fs::write(elsewhere.path().join("linked.json"), good().to_string()).expect("a file");
    // Linked folders are looked through, and one that holds itself once.
    #[cfg(unix)]
    for (to, name) in [(elsewhere.path(), "link"), (Path::new("."), "itself")] {
        std::os::unix::fs::symlink(to, folder.path().join(name)).expect("a link");
    }
    let linked = usize::from(cfg!(unix));
    let found = lines(&corpus(folder.path(), &[]));
    let right = format!("{}  right", 2 + linked);
    let wanted = [
        &format!("{} files in {}", 14 + linked, folder.path().display()),
        &right,
        "1  partly right: some outputs would be left out",
        "7  refused",
        "4  no workflow",
        "2  a class that no library has: Nobodys",
        "1  a file that is not there: LoadImage.image",
        "1  a placeholder that nothing has filled in: EmptyImage.width",
        "1  a value of another type: EmptyImage.width",
        "1  a node that is malformed",
        "1  the file holds N workflows",
        "1  the workflow ends in the middle",
    ];
    for line in wanted {
        assert!(found.iter().any(|found| found == line), "{line:?} is not in {found:#?}");
    }
    let without_files = lines(&corpus(folder.path(), &["--without-files"]));
    let right = format!("{}  right", 3 + linked);
    assert!(without_files.contains(&right), "{without_files:#?}");
    let listed = lines(&corpus(folder.path(), &["--list"])).join("\n");
    for part in ["malformed.json\nnode 3: has no class_type", "a: b.json\nthe workflow ends"] {
        assert!(listed.contains(part), "{part:?} is not in {listed}");
    }
}

fn calls() {
    let folder = folder();
    for (arguments, said) in [
        (&["--models", "/there/is/none"][..], "there is no such folder"),
        (&["--no-such-option"], "--no-such-option"),
    ] {
        let output = corpus(folder.path(), arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.contains(said), "{output:?}");
        assert!(output.stdout.is_empty(), "nothing is counted: {output:?}");
    }
    let empty = tempfile::tempdir().expect("a folder");
    let output = corpus(empty.path(), &[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("holds no .json and no .png"), "{output:?}");
}
