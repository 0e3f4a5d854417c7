//! Every input of the corpora again: seeds, and what once was a crash.

use std::path::Path;

use kosmograph_fuzz::TARGETS;

#[test]
fn nothing_of_the_corpora_is_a_crash() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut folders = 0;
    for entry in std::fs::read_dir(&corpora).expect("the corpora") {
        let folder = entry.expect("an entry").path();
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        let target = kosmograph_fuzz::target(&name).unwrap_or_else(|| panic!("no target {name}"));
        let mut inputs = 0;
        for entry in std::fs::read_dir(&folder).expect("a corpus") {
            let path = entry.expect("an entry").path();
            let data = std::fs::read(&path).expect("an input");
            // Shown where it panics.
            println!("{}", path.display());
            target(&data);
            inputs += 1;
        }
        assert!(inputs > 0, "the corpus of {name} is empty");
        folders += 1;
    }
    assert_eq!(folders, TARGETS.len(), "each target has a corpus");
}

#[test]
fn the_corpora_are_small() {
    fn size(folder: &Path) -> u64 {
        let entries = std::fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry"));
        entries
            .map(|entry| match entry.path() {
                path if path.is_dir() => size(&path),
                path => path.metadata().expect("a file").len(),
            })
            .sum()
    }
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    assert!(size(&corpora) <= 1 << 20, "{} bytes of corpora; 1 MB is the most", size(&corpora));
}

#[test]
fn json_that_is_mutated_stays_json() {
    let mut text =
        br#"{"1": {"class_type": "Save", "inputs": {"images": ["2", 0], "x": 1.5}}}"#.to_vec();
    for seed in 0..2000 {
        let Some(changed) = kosmograph_fuzz::mutate::json(&text, seed, 4000) else { continue };
        let _: serde_json::Value = serde_json::from_slice(&changed).expect("JSON");
        text = changed;
    }
}
