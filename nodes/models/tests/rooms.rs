//! The rooms of this crate stand one on another: each file knows only rooms before its own.

use std::path::{Path, PathBuf};

/// From the ground up, as `src/lib.rs` lists them.
const ROOMS: [&str; 13] = [
    "error",
    "files",
    "text",
    "layers",
    "feathered",
    "clip",
    "kosmos",
    "samplers",
    "stable_diffusion",
    "upscalers",
    "lora",
    "measures",
    "convert",
];

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, into),
            false => into.push(path),
        }
    }
}

#[test]
fn each_room_knows_only_those_below() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&folder, &mut files);
    let place = |room: &str| ROOMS.iter().position(|known| *known == room);
    let (mut uses, mut wrong) = (0, Vec::new());
    for file in files {
        let inside = file.strip_prefix(&folder).unwrap();
        let room = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if room == "lib" {
            continue;
        }
        let own = place(room).unwrap_or_else(|| panic!("{room} is no room of the list"));
        for line in std::fs::read_to_string(&file).unwrap().lines() {
            // What a comment points to is no use of it.
            let code = line.split("//").next().unwrap();
            for used in code.split("crate::").skip(1) {
                let name: String =
                    used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if let Some(used) = place(&name) {
                    uses += 1;
                    if used > own {
                        wrong.push(format!("{}: {}", inside.display(), line.trim()));
                    }
                }
            }
        }
    }
    assert!(uses > 100, "{uses} uses of rooms: something else is read than the sources");
    assert!(wrong.is_empty(), "rooms above their own are known to {wrong:#?}");
}
