//! Damaged inputs, by the million: what a stranger can hand to a parser is a value or a sentence, never a
//! panic, an abort, a hang, or memory without end.
//!
//! Each target runs in a child of its own with bounded memory, for KOSMOGRAPH_FUZZ_SECONDS (17: two minutes
//! for all of them). Inputs are files of this repository, those that failed once (`corpus/TARGET`), and
//! whatever mutations of them are answered in a way that no earlier one was. An input that fails is written
//! to a file, and KOSMOGRAPH_FUZZ_INPUT=FILE runs it alone. `scripts/fuzz` takes an hour.

mod mutate;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use candle_core::Device;
use kosmograph::catalogue::Catalogue;
use kosmograph::editor::convert;
use kosmograph::folders::Folders;
use kosmograph::graph::{Graph, is_editor_format, parse_object};
use kosmograph::plan::Plan;
use kosmograph_image::decode::decode;
use kosmograph_models::Weights;
use kosmograph_models::pickle::TorchFile;
use kosmograph_models::sentencepiece::Sentencepiece;
use kosmograph_tests::{kosmograph, plugins_dir, repository};
use mutate::Mutator;
use serde_json::json;

/// What comes of an input, in words: new words make it worth keeping.
type Target<'a> = &'a dyn Fn(&[u8], &Path) -> String;

const CHILD: &str = "KOSMOGRAPH_FUZZ_CHILD";

/// One input may not take longer than this, on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The address space of a child, in KiB: the libraries alone reserve a part of it.
const MEMORY: u64 = 6 << 20;

fn seconds() -> u64 {
    std::env::var("KOSMOGRAPH_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(17)
}

/// The first number of the campaign's chance: the same one makes the same inputs.
fn seed() -> u64 {
    std::env::var("KOSMOGRAPH_FUZZ_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Runs `target` on mutations of `seeds`, in a child, and fails with the input that it did not survive.
fn campaign(name: &str, seeds: &dyn Fn() -> Vec<Vec<u8>>, target: Target) {
    let folder = tempfile::tempdir().unwrap();
    if let Some(input) = std::env::var_os("KOSMOGRAPH_FUZZ_INPUT") {
        let input = fs::read(input).unwrap();
        println!("{}", target(&input, &folder.path().join("input")));
        return;
    }
    if let Some(kept) = std::env::var_os(CHILD) {
        hunt(name, seeds(), target, Path::new(&kept));
        return;
    }
    let kept = folder.path().join("last");
    let mut child = Command::new("sh")
        .args(["-c", &format!("ulimit -v {MEMORY}; exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, &kept)
        // The limit counts what threads reserve; two are as good as many here.
        .env("RAYON_NUM_THREADS", "2")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = child.stderr.take().unwrap();
    let said = std::thread::spawn(move || std::io::read_to_string(stderr).unwrap_or_default());
    let until = Instant::now() + Duration::from_secs(seconds()) + PATIENCE;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if Instant::now() > until => {
                child.kill().unwrap();
                break child.wait().ok().and(None);
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    if status.is_some_and(|status| status.success()) {
        return;
    }
    let failed = repository().join("target/fuzz");
    fs::create_dir_all(&failed).unwrap();
    let input = failed.join(format!("{name}-{}", std::process::id()));
    fs::copy(&kept, &input).unwrap();
    let how = status.map_or("it hangs".to_owned(), |status| status.to_string());
    panic!(
        "{how}\n{}\nrepeat it with KOSMOGRAPH_FUZZ_INPUT={} cargo test --release -p \
         kosmograph-tests --test fuzz {name}\nand keep it, made small, in tests/tests/fuzz/corpus/{name}",
        said.join().unwrap(),
        input.display()
    );
}

/// The child's part: until the time is up.
fn hunt(name: &str, mut pool: Vec<Vec<u8>>, target: Target, kept: &Path) {
    let corpus = repository().join("tests/tests/fuzz/corpus").join(name);
    let found = fs::read_dir(corpus).into_iter().flatten().flatten();
    pool.extend(found.map(|entry| fs::read(entry.path()).unwrap()));
    assert!(!pool.is_empty(), "{name} has no inputs to begin with");
    let input_file = kept.with_extension("input");
    let mut answers = HashSet::new();
    let mut try_one = |input: &[u8]| {
        fs::write(kept, input).unwrap();
        let begin = Instant::now();
        let answer = target(input, &input_file);
        assert!(begin.elapsed() < PATIENCE, "one input took {:?}", begin.elapsed());
        // Numbers and names differ from input to input; what is said of them does not.
        let words = answer.chars().filter(|c| c.is_alphabetic() || *c == ' ').take(120);
        answers.insert(words.collect::<String>())
    };
    for input in &pool {
        try_one(input);
    }
    let mut mutator = Mutator::new(seed());
    let until = Instant::now() + Duration::from_secs(seconds());
    let mut tried = 0u64;
    while Instant::now() < until {
        let input = mutator.mutated(&pool);
        tried += 1;
        // A pool of long inputs is slow; the shorter ones say as much.
        if try_one(&input) && pool.len() < 4096 && input.len() < 1 << 20 {
            pool.push(input);
        }
    }
    eprintln!("{name}: {tried} inputs, {} kept", pool.len());
}

/// The files with one of the extensions below `folder` that are no longer than `most`.
fn files(folder: &str, extensions: &[&str], most: u64) -> Vec<Vec<u8>> {
    fn below(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() { below(&path, found) } else { found.push(path) }
        }
    }
    let mut paths = Vec::new();
    below(&repository().join(folder), &mut paths);
    paths.sort();
    let wanted = |path: &PathBuf| {
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        extensions.contains(&&*extension) && fs::metadata(path).is_ok_and(|file| file.len() <= most)
    };
    paths.into_iter().filter(wanted).map(|path| fs::read(path).unwrap()).collect()
}

/// The classes of our own libraries, as they describe themselves.
fn catalogue() -> Catalogue {
    let mut catalogue = Catalogue::default();
    for entry in fs::read_dir(plugins_dir()).unwrap().flatten() {
        let path = entry.path();
        let asked = Command::new(kosmograph()).arg("describe").arg(&path).output().unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap_or_default();
        if answer["descriptor"].is_object() {
            catalogue.add(&path, &answer["descriptor"]).unwrap();
        }
    }
    assert!(catalogue.classes().len() > 50);
    catalogue
}

fn folders() -> Folders {
    let models = vec![repository().join("models")];
    let input = vec![repository().join("workflows/input")];
    Folders { models, input, output: "/o".into(), temp: "/t".into(), ..Folders::default() }
}

fn planned(graph: &Graph, catalogue: &Catalogue, folders: &Folders) -> String {
    match Plan::new(graph, catalogue, folders, "cpu") {
        Ok(plan) => format!("planned {:?}", plan.warnings().first().map(ToString::to_string)),
        Err(refusal) => {
            refusal.problems.first().map(ToString::to_string).unwrap_or("refused".into())
        }
    }
}

#[test]
fn graph() {
    let (catalogue, folders) = (catalogue(), folders());
    campaign("graph", &|| files("workflows", &["json"], 1 << 16), &|input, _| {
        let text = String::from_utf8_lossy(input);
        match Graph::parse(&text) {
            Ok(graph) => {
                let again = graph.to_json();
                assert!(Graph::parse(&again).is_ok(), "what was written cannot be read: {again}");
                planned(&graph, &catalogue, &folders)
            }
            Err(error) => error.to_string(),
        }
    });
}

#[test]
fn editor() {
    let (catalogue, folders) = (catalogue(), folders());
    let seeds = || {
        let node = |id: u32, class: &str| {
            json!({"id": id, "type": class, "mode": 0, "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
                "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}], "widgets_values": ["{a|b} %date:yyyy%", 5]})
        };
        let subgraph = json!({"id": "s", "name": "S", "inputs": [{"name": "text", "type": "STRING", "linkIds": [4]}],
            "outputs": [], "nodes": [node(3, "CLIPTextEncode")], "links": [
                {"id": 4, "origin_id": -10, "origin_slot": 0, "target_id": 3, "target_slot": 0, "type": "STRING"}]});
        let saved = json!({"version": 0.4, "last_node_id": 9, "nodes": [node(1, "LoadImage"), node(2, "SaveImage"),
                node(5, "Reroute"), node(6, "PrimitiveNode"), node(7, "s")],
            "links": [[1, 1, 0, 2, 0, "IMAGE"], [2, 5, 0, 2, 0, "*"]],
            "definitions": {"subgraphs": [subgraph]},
            "extra": {"groupNodes": {"G": {"nodes": [node(0, "LoadImage")], "links": [], "external": []}}}});
        vec![saved.to_string().into_bytes()]
    };
    campaign("editor", &seeds, &|input, _| {
        let text = String::from_utf8_lossy(input);
        match parse_object(&text) {
            Ok(object) if is_editor_format(&object) => {
                let converted = convert(&object, &catalogue);
                planned(&converted.graph, &catalogue, &folders)
            }
            Ok(_) => "not the editor's".to_owned(),
            Err(error) => error.to_string(),
        }
    });
}

#[test]
fn safetensors() {
    let seeds = || {
        let tensor = |name: &str, dtype: &str, shape: serde_json::Value, end: usize| {
            let header = json!({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, end]},
                "__metadata__": {"format": "pt"}});
            let header = header.to_string();
            let length = (header.len() as u64).to_le_bytes();
            [&length[..], header.as_bytes(), &vec![7; end]].concat()
        };
        vec![
            tensor("a.weight", "F32", json!([2, 3]), 24),
            tensor("b", "F16", json!([4]), 8),
            tensor("c", "BF16", json!([0, 4]), 0),
            tensor("d", "F8_E4M3", json!([]), 1),
        ]
    };
    campaign("safetensors", &seeds, &|input, file| {
        let file = file.with_extension("safetensors");
        fs::write(&file, input).unwrap();
        match Weights::open(&file, &Device::Cpu) {
            Ok(weights) => {
                let numbers = weights.sub("a").get("weight", &[2, 3]);
                format!("opened {:?}", numbers.err().map(|error| error.to_string()))
            }
            Err(error) => error.to_string(),
        }
    });
}

#[test]
fn pickle() {
    let seeds = || files("nodes/models/tests/fixtures/torch", &["pt"], 1 << 20);
    campaign("pickle", &seeds, &|input, file| {
        let file = file.with_extension("pt");
        fs::write(&file, input).unwrap();
        match TorchFile::open(&file) {
            Ok(opened) => {
                let bytes =
                    opened.names().filter_map(|name| opened.data(name)).map(|data| data.len());
                format!("opened {}", bytes.sum::<usize>())
            }
            Err(error) => error.to_string(),
        }
    });
}

#[test]
fn pictures() {
    let seeds = || {
        let picture =
            image::RgbImage::from_fn(9, 5, |x, y| image::Rgb([x as u8 * 20, y as u8 * 40, 7]));
        use image::ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
        let encoded = |format| {
            let mut bytes = std::io::Cursor::new(Vec::new());
            picture.write_to(&mut bytes, format).unwrap();
            bytes.into_inner()
        };
        [Bmp, Gif, Jpeg, Png, Tiff, WebP].map(encoded).into()
    };
    campaign("pictures", &seeds, &|input, file| {
        fs::write(file, input).unwrap();
        match decode(file) {
            Ok(_) => "decoded".to_owned(),
            Err(error) => error.to_string(),
        }
    });
}

#[test]
fn sentencepiece() {
    let seeds = || {
        let whole =
            fs::read(repository().join("models/tiny/kosmos/sentencepiece.bpe.model")).unwrap();
        // The first pieces are as good as all of them, and a hundred times faster.
        vec![whole[..2048.min(whole.len())].to_vec(), whole]
    };
    campaign("sentencepiece", &seeds, &|input, _| match Sentencepiece::from_bytes(input) {
        Ok(model) => {
            format!("cut into {}", model.encode("A picture of <i>, 2\u{fe0f} \u{130}ß").len())
        }
        Err(error) => error.to_string(),
    });
}
