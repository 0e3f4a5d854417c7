//! The commit that the program is built from, for `kosmograph --version`.
//!
//! Read from the files of git, so that neither git nor a clone is needed: in the tree of an archive there is none, and
//! whoever packs it may say it, in KOSMOGRAPH_COMMIT.

use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=KOSMOGRAPH_COMMIT");
    println!("cargo::rerun-if-changed=build.rs");
    let given = std::env::var("KOSMOGRAPH_COMMIT").ok().filter(|given| !given.is_empty());
    let commit = given.or_else(of_clone).unwrap_or_else(|| "unknown".to_owned());
    // What is no name of a commit is nobody's to print.
    let commit: String = commit.chars().filter(char::is_ascii_alphanumeric).take(40).collect();
    println!("cargo::rustc-env=KOSMOGRAPH_COMMIT={commit}");
}

/// What HEAD of the clone leads to that this package lies in.
fn of_clone() -> Option<String> {
    let package = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR")?);
    let git = package.ancestors().map(|folder| folder.join(".git")).find(|git| git.exists())?;
    // In a work tree it is a file that names the folder, and what is shared lies where "commondir" says.
    let folder = match git.is_dir() {
        true => git,
        false => {
            let named = fs::read_to_string(&git).ok()?;
            git.parent()?.join(named.strip_prefix("gitdir:")?.trim())
        }
    };
    let common = match fs::read_to_string(folder.join("commondir")) {
        Ok(common) => folder.join(common.trim()),
        Err(_) => folder.clone(),
    };
    let head = watched(&folder.join("HEAD"))?;
    let Some(name) = head.strip_prefix("ref:").map(str::trim) else {
        return Some(head.trim().to_owned());
    };
    let loose = watched(&common.join(name)).map(|commit| commit.trim().to_owned());
    loose.or_else(|| {
        let packed = watched(&common.join("packed-refs"))?;
        let line = packed.lines().find(|line| line.ends_with(&format!(" {name}")))?;
        Some(line.split(' ').next()?.to_owned())
    })
}

/// A file's text; the program is built anew when it changes.
fn watched(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    println!("cargo::rerun-if-changed={}", path.display());
    Some(text)
}
