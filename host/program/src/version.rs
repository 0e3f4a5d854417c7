//! What `kosmograph --version` says: what the program is, and what it would compute on here.

use std::fs;
use std::path::Path;

/// Where NVIDIA's driver describes the cards that it has.
const CARDS: &str = "/proc/driver/nvidia/gpus";

/// The version and the commit; a line for the processor's instruction sets; one for the devices.
pub fn long() -> String {
    let (version, commit) = (env!("CARGO_PKG_VERSION"), env!("KOSMOGRAPH_COMMIT"));
    let devices: Vec<String> =
        std::iter::once("cpu".to_owned()).chain(cards(Path::new(CARDS))).collect();
    format!(
        "{version} (commit {commit})\ninstruction set: {}\ndevices: {}",
        kosmograph::lock::isa(),
        devices.join(", ")
    )
}

/// "cuda:0 (NVIDIA H200)" for each card that the driver lists, in its order. Whether the node libraries were built
/// for them is theirs to say.
fn cards(folder: &Path) -> Vec<String> {
    let mut folders: Vec<_> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    folders.sort();
    let model = |folder: &Path| {
        let text = fs::read_to_string(folder.join("information")).unwrap_or_default();
        let model = text.lines().find_map(|line| line.strip_prefix("Model:")).map(str::trim);
        model.unwrap_or("a card of NVIDIA's").to_owned()
    };
    let name = |(number, folder): (usize, &std::path::PathBuf)| {
        format!("cuda:{number} ({})", model(folder))
    };
    folders.iter().enumerate().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_a_report_needs() {
        let said = long();
        let commit =
            said.lines().next().unwrap().split("(commit ").nth(1).unwrap().trim_end_matches(')');
        // Of a clone the whole name; an archive says what it was told.
        assert!(commit == "unknown" || commit.len() >= 7, "{said}");
        assert!(said.contains(std::env::consts::ARCH) && said.contains("devices: cpu"), "{said}");
    }

    #[test]
    fn cards_are_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(cards(&folder.path().join("none")).is_empty());
        let card = folder.path().join("0000:01:00.0");
        fs::create_dir(&card).unwrap();
        fs::write(card.join("information"), "Model: \t\t NVIDIA H200\nIRQ: 5\n").unwrap();
        assert_eq!(cards(folder.path()), ["cuda:0 (NVIDIA H200)"]);
    }
}
