//! Files from strangers: whatever they hold, a sentence that names the file, soon, and never a panic.

use std::fs;
use std::path::Path;

use kosmograph_image::decode::{DecodeError, decode};
use proptest::prelude::*;

/// Decodes `bytes` as a file of that name.
fn decode_bytes(name: &str, bytes: &[u8]) -> Result<(), DecodeError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    let result = decode(&path);
    if let Err(error) = &result {
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error} does not name it");
    }
    result.map(drop)
}

fn pictures() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pictures");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let read = |entry: fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
    };
    files.map(read).collect()
}

#[test]
fn what_is_no_picture() {
    for bytes in [&b""[..], b"{\"1\": {}}", &[0; 1000]] {
        let error = decode_bytes("a.png", bytes).unwrap_err();
        assert!(matches!(error, DecodeError::NotAPicture { .. }), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let error = decode(folder.path()).unwrap_err();
    assert!(matches!(error, DecodeError::NotAFile { .. }), "{error}");
    let error = decode(&folder.path().join("missing.png")).unwrap_err();
    assert!(error.to_string().contains("missing.png cannot be read"), "{error}");
}

#[test]
fn a_picture_of_another_kind_is_named() {
    let sentence = decode_bytes("a.ppm", b"P6 1 1 255 abc").unwrap_err().to_string();
    assert!(sentence.contains("Pnm") && sentence.contains("save it as PNG"), "{sentence}");
}

#[test]
fn the_extension_does_not_matter() {
    for (name, bytes) in pictures() {
        decode_bytes("picture.txt", &bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// A PNG whose header tells of that size and which holds next to nothing.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Grayscale);
    let mut writer = encoder.write_header().unwrap();
    writer.write_chunk(png::chunk::IDAT, &[0x78, 0x9c, 3, 0, 0, 0, 0, 1]).unwrap();
    drop(writer);
    bytes
}

#[test]
fn thirty_thousand_squared_is_refused_by_its_header() {
    let bmp = |width: i32, height: i32| {
        let mut bytes = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
        bytes.extend(width.to_le_bytes());
        bytes.extend(height.to_le_bytes());
        bytes.extend([1, 0, 24, 0]);
        bytes.extend([0; 24]);
        bytes
    };
    let gif = b"GIF89a\x30\x75\x30\x75\0\0\0\x2c\0\0\0\0\x30\x75\x30\x75\0\x02\0\x3b".to_vec();
    for (name, bytes) in
        [("a.png", png_header(30_000, 30_000)), ("a.bmp", bmp(30_000, 30_000)), ("a.gif", gif)]
    {
        let start = std::time::Instant::now();
        let sentence = decode_bytes(name, &bytes).unwrap_err().to_string();
        assert!(
            sentence.contains("30000 x 30000") && sentence.contains("16384"),
            "{name}: {sentence}"
        );
        assert!(start.elapsed().as_secs() < 2, "{name}: pixels were allocated");
    }
    // Within the side's bound, but too many pixels.
    let error = decode_bytes("b.png", &png_header(16_384, 16_384)).unwrap_err();
    assert!(matches!(error, DecodeError::TooLarge { .. }), "{error}");
}

#[test]
fn a_truncated_file_is_damaged() {
    for (name, bytes) in pictures() {
        for length in [bytes.len() / 2, bytes.len() * 3 / 4] {
            let result = decode_bytes(&name, &bytes[..length]);
            assert!(result.is_err(), "{name}: {length} of {} bytes were enough", bytes.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_bytes_never_panic(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        length in any::<prop::sample::Index>(),
    ) {
        let pictures = pictures();
        let (name, mut bytes) = pictures[which.index(pictures.len())].clone();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        // Half of the time whole, half of the time cut.
        let cut = length.index(bytes.len() * 2).min(bytes.len());
        drop(decode_bytes(&name, &bytes[..cut]));
    }
}
