//! A colour profile that inflates a thousandfold costs no memory. By itself, so that its memory is the process'.
#![cfg(target_os = "linux")]

use std::io::Write;

use kosmograph_image::decode::decode;

/// The most memory that this process had, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn a_colour_profile_is_not_inflated() {
    let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(6));
    let zeros = vec![0; 1 << 20];
    (0..512).for_each(|_| packed.write_all(&zeros).unwrap());
    let profile = [&b"name\0\0"[..], &packed.finish().unwrap()].concat();
    assert!(profile.len() < 1 << 20);
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 2, 2);
    encoder.set_color(png::ColorType::Grayscale);
    let mut writer = encoder.write_header().unwrap();
    writer.write_chunk(png::chunk::iCCP, &profile).unwrap();
    writer.write_image_data(&[0, 80, 160, 240]).unwrap();
    writer.finish().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("profile.png");
    std::fs::write(&path, bytes).unwrap();
    let before = peak();
    match decode(&path) {
        Ok(decoded) => assert_eq!(decoded.pixels.len(), 12),
        Err(error) => assert!(error.to_string().contains("profile.png"), "{error}"),
    }
    assert!(peak() - before < 256 << 20, "{} bytes more", peak() - before);
}
