//! README's "Write a node", followed from an empty folder: what stands there is what is typed.

use std::path::Path;
use std::process::Command;

use kosmograph_tests::{Run, repository};

/// The fenced blocks of README's section, each with its language, and the line before it.
fn blocks(section: &str) -> Vec<(String, String, String)> {
    let mut blocks = Vec::new();
    let (mut before, mut open): (String, Option<(String, String)>) = (String::new(), None);
    for line in section.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (Some((language, text)), Some(_)) => {
                blocks.push((std::mem::take(language), std::mem::take(&mut before), text.clone()));
                open = None;
            }
            (Some((_, text)), None) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, Some(language)) => open = Some((language.to_owned(), String::new())),
            (None, None) if !line.trim().is_empty() => before = line.to_owned(),
            (None, None) => (),
        }
    }
    blocks
}

/// Runs a line of the README in `folder`, offline: the gate's machine has what the workspace depends on.
fn type_in(folder: &Path, line: &str) {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a line has a program");
    let mut command = Command::new(program);
    // The README names the folder where cargo puts what it builds if nobody says otherwise.
    command.env("CARGO_NET_OFFLINE", "true").env_remove("CARGO_TARGET_DIR");
    let output = command.args(words).current_dir(folder).output();
    let output = output.unwrap_or_else(|error| panic!("{line}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}\n{said}");
}

#[test]
fn a_node_is_written_as_the_readme_says() {
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let section = readme.split("## Write a node").nth(1).unwrap().split("\n## ").next().unwrap();
    let rust = section.split("In C:").next().unwrap();
    // Outside of this repository, whose workspace a crate below it would belong to.
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // The folder of this repository, as the README calls it.
    #[cfg(unix)]
    std::os::unix::fs::symlink(repository(), folder.join("kosmograph")).unwrap();

    let (mut files, mut checked) = (0, false);
    for (language, before, text) in blocks(rust) {
        match language.as_str() {
            // A file, whose name stands in the line before it.
            "toml" | "rust" => {
                let name = before.split('`').nth(1).unwrap_or_else(|| panic!("no name: {before}"));
                std::fs::write(folder.join(name), text).unwrap();
                files += 1;
            }
            "sh" => {
                for line in text.lines() {
                    match line.strip_prefix("kosmograph/target/release/kosmograph ") {
                        Some(rest) => {
                            let arguments: Vec<&str> = rest.split_whitespace().collect();
                            let library = folder.join(arguments[1]);
                            Run::new(arguments[0]).arg(library).expect_success();
                            checked = true;
                        }
                        None => {
                            // The versions that this repository is locked to, which are there.
                            let lock = folder.join("invert/Cargo.lock");
                            if folder.join("invert").is_dir() && !lock.exists() {
                                std::fs::copy(repository().join("Cargo.lock"), lock).unwrap();
                            }
                            type_in(folder, line);
                        }
                    }
                }
            }
            other => panic!("a block of {other} is none that this test follows"),
        }
    }
    assert!(files == 2 && checked, "the README has a crate of two files, and checks it");
}
