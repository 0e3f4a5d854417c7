//! Files of models and pictures.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::Device;
use kosmograph::workflow_file::WorkflowFile;
use kosmograph_image::decode::{MAX_PIXELS, decode};
use kosmograph_models::Weights;
use kosmograph_models::clip::text::ClipText;
use kosmograph_models::lora::Lora;
use kosmograph_models::stable_diffusion::checkpoint::Checkpoint;
use kosmograph_models::stable_diffusion::controlnet::ControlNet;
use kosmograph_models::stable_diffusion::ip_adapter::{IpAdapter, IpAdapterConfig};
use kosmograph_models::stable_diffusion::t2i_adapter::T2iAdapter;
use kosmograph_models::stable_diffusion::unet::UNet;
use kosmograph_models::stable_diffusion::vae::Vae;
use kosmograph_models::text::sentencepiece::Sentencepiece;
use kosmograph_models::upscalers::{self, Upscaler};

/// The bytes as a file, in memory where the system has such a place. The next input takes its place.
fn file(name: &str, data: &[u8]) -> PathBuf {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let shared = Path::new("/dev/shm");
        let made = if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() };
        made.expect("a folder")
    });
    let path = folder.path().join(name);
    std::fs::write(&path, data).expect("a file");
    path
}

/// An error is a sentence that names the file.
fn say(path: &Path, error: &dyn std::fmt::Display) {
    let (sentence, name) = (error.to_string(), path.file_name().unwrap_or_default());
    assert!(sentence.contains(&*name.to_string_lossy()), "{sentence:?} does not name {name:?}");
}

pub fn safetensors(data: &[u8]) {
    model(&file("fuzzed.safetensors", data));
}

pub fn gguf(data: &[u8]) {
    model(&file("fuzzed.gguf", data));
}

/// A torch file, or, where it begins with an `A`, the archive's pickle, with two storages beside it.
pub fn pickle(data: &[u8]) {
    match data.split_first() {
        Some((b'A', pickle)) => model(&file("fuzzed.ckpt", &archive(pickle))),
        _ => model(&file("fuzzed.ckpt", data)),
    }
}

/// Everything that is asked of a file before a network is made of it, and the numbers of small tensors.
fn model(path: &Path) {
    let device = Device::Cpu;
    match Weights::open(path, &device) {
        Err(error) => say(path, &error),
        Ok(weights) => {
            for name in weights.names().iter().take(32) {
                let Some(shape) = weights.shape(name) else { panic!("{name} has no shape") };
                let elements = shape.iter().try_fold(1usize, |product, n| product.checked_mul(*n));
                if elements.is_some_and(|elements| elements < 1 << 16)
                    && let Err(error) = weights.get(name, shape)
                {
                    say(path, &error);
                }
            }
        }
    }
    match Lora::open(path) {
        Err(error) => say(path, &error),
        Ok(lora) => drop(lora),
    }
    if let Err(error) = upscalers::open(path, &device).and_then(|(config, weights)| {
        weights.check(|weights| Upscaler::load(weights, &config), &[])
    }) {
        say(path, &error);
    }
    if let Ok(weights) = Weights::open(path, &device)
        && let Err(error) = IpAdapterConfig::from_weights(&weights)
            .and_then(|config| weights.check(|weights| IpAdapter::load(weights, &config), &[]))
    {
        say(path, &error);
    }
    let checkpoint = match Checkpoint::open(path, &device) {
        Err(error) => return say(path, &error),
        Ok(checkpoint) => checkpoint,
    };
    let say = |error: kosmograph_models::Error| say(path, &error);
    if let Err(error) = checkpoint
        .unet()
        .and_then(|(config, _, weights)| weights.check(|weights| UNet::load(weights, &config), &[]))
    {
        say(error);
    }
    if let Err(error) = checkpoint
        .vae()
        .and_then(|(config, weights)| weights.check(|weights| Vae::load(weights, &config), &[]))
    {
        say(error);
    }
    if let Err(error) = checkpoint.taesd().and_then(|(config, halves)| halves.check(&config)) {
        say(error);
    }
    if let Err(error) = checkpoint.t2i_adapter().and_then(|(config, weights)| {
        weights.check(|weights| T2iAdapter::load(weights, &config), &[])
    }) {
        say(error);
    }
    if let Err(error) = checkpoint.clip_text().and_then(|(config, weights)| {
        weights.check(|weights| ClipText::load(&config, weights), &[])
    }) {
        say(error);
    }
    if let Err(error) = checkpoint.control_net().and_then(|(config, weights)| {
        weights.check(|weights| ControlNet::load(weights, &config), &[])
    }) {
        say(error);
    }
}

/// A zip archive with stored members, as torch writes it, without its check sums, which nobody reads.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let storages = [7u8; 256];
    let members: [(&str, &[u8]); 4] = [
        ("archive/data.pkl", pickle),
        ("archive/data/0", &storages),
        ("archive/data/1", &storages[..16]),
        ("archive/version", b"3\n"),
    ];
    let (mut zip, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in members {
        let (at, length) = (zip.len() as u32, (data.len() as u32).to_le_bytes());
        zip.extend(b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0\0\0");
        zip.extend([length, length].concat());
        zip.extend((name.len() as u16).to_le_bytes());
        zip.extend(b"\0\0");
        zip.extend([name.as_bytes(), data].concat());
        directory.extend(b"PK\x01\x02\x14\0\x14\0\0\0\0\0\0\0\0\0\0\0\0\0");
        directory.extend([length, length].concat());
        directory.extend((name.len() as u16).to_le_bytes());
        directory.extend([0; 12]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, length) = (zip.len() as u32, directory.len() as u32);
    zip.extend(directory);
    zip.extend(b"PK\x05\x06\0\0\0\0");
    zip.extend([4u16.to_le_bytes(); 2].concat());
    zip.extend(length.to_le_bytes());
    zip.extend(start.to_le_bytes());
    zip.extend(b"\0\0");
    zip
}

pub fn sentencepiece(data: &[u8]) {
    let Ok(model) = Sentencepiece::from_bytes(data) else { return };
    for text in ["", "a monster", "A1111  é\u{301}ﬁ½", "\u{202e}\0🧑\u{200d}🚀", "▁▁", "ⅷ㌀ｱﾞ"]
    {
        let normal = model.normalize(text);
        let pieces = model.encode(text);
        // What is cut is the normal text, but for the mark at its beginning.
        let joined: String = pieces.concat();
        assert!(joined.chars().count() <= normal.chars().count() + 1, "{joined:?} of {normal:?}");
    }
}

/// A picture that is shown must have the pixels that it says; most are refused.
pub fn picture(data: &[u8]) {
    // Large pictures are slow and no other code.
    if large(data) {
        return;
    }
    let path = file("fuzzed.png", data);
    match decode(&path) {
        Err(error) => say(&path, &error),
        Ok(decoded) => {
            let shape = decoded.shape;
            let pixels = shape.batch * shape.height * shape.width;
            assert!(pixels as u64 <= MAX_PIXELS && shape.channels == 3);
            assert_eq!(decoded.pixels.len(), pixels * 3);
            assert!(decoded.mask.is_none_or(|mask| mask.len() == pixels));
        }
    }
    if let Err(error) = WorkflowFile::read(&path) {
        say(&path, &error);
    }
}

/// Whether a PNG's header tells of more than a million pixels.
fn large(data: &[u8]) -> bool {
    let number = |at: usize| {
        data.get(at..at + 4).map_or(0, |b| u32::from_be_bytes(b.try_into().unwrap_or_default()))
    };
    data.starts_with(b"\x89PNG") && u64::from(number(16)) * u64::from(number(20)) > 1 << 20
}
