//! `--precision bf16` and `int8`: other numbers and the same picture, where the processor can; a sentence where it cannot.

use std::path::Path;

use kosmograph_tests::{Run, repository};

fn run(precision: &str, out: &Path) -> Run {
    let path = repository().join("workflows/text.json");
    Run::new("run").with_plugins().arg(path).arg("--out").arg(out).args(["--precision", precision])
}

fn only_picture(out: &Path) -> image::RgbImage {
    let mut entries = std::fs::read_dir(out).expect("the output folder");
    let entry = entries.next().expect("a picture").expect("an entry");
    assert!(entries.next().is_none(), "one picture");
    image::open(entry.path()).expect("a picture").to_rgb8()
}

/// Whether the processor has what a precision needs.
fn has(precision: &str) -> bool {
    #[cfg(target_arch = "x86_64")]
    return match precision {
        "bf16" => is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512bf16"),
        _ => {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
        }
    };
    #[cfg(target_arch = "aarch64")]
    return match precision {
        "bf16" => std::arch::is_aarch64_feature_detected!("bf16"),
        _ => std::arch::is_aarch64_feature_detected!("dotprod"),
    };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    false
}

#[test]
fn rounded_factors_draw_the_same_picture_or_it_is_said_why_they_cannot() {
    for (precision, most) in [("bf16", 2.0), ("int8", 3.0)] {
        let folder = tempfile::tempdir().expect("a folder");
        let (plain, rounded) = (folder.path().join("f32"), folder.path().join("rounded"));
        if !has(precision) {
            let sentence = format!("this processor has no products of {precision}");
            run(precision, &rounded).expect_code(2).stderr_contains(&sentence);
            continue;
        }
        run("f32", &plain).expect_success();
        run(precision, &rounded).expect_success();
        let (plain, rounded) = (only_picture(&plain), only_picture(&rounded));
        assert_eq!(plain.dimensions(), rounded.dimensions());
        let pairs = plain.as_raw().iter().zip(rounded.as_raw());
        let sum: f64 = pairs.map(|(&a, &b)| f64::from(a.abs_diff(b))).sum();
        let apart = sum / plain.as_raw().len() as f64;
        println!("{precision}: {apart:.2} of 255 apart");
        assert!(apart > 0.0 && apart < most, "{precision}: {apart} of 255");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    run("int4", folder.path()).expect_code(2).stderr_contains("a precision is f32, bf16 or int8");
    run("f32", folder.path())
        .args(["--device", "cuda"])
        .expect_code(2)
        .stderr_contains("--precision is for the processor");
    run("f32", folder.path()).env("KOSMOGRAPH_PRECISION", "f8").expect_success();
    run("f32", folder.path())
        .args(["--gpu-weights", "2G"])
        .expect_code(2)
        .stderr_contains("--gpu-weights is for a GPU");
    run("f32", folder.path())
        .args(["--gpu-weights", "half"])
        .expect_code(2)
        .stderr_contains("3.5GB (of 1000), or 0");
    let path = repository().join("workflows/text.json");
    Run::new("run")
        .with_plugins()
        .arg(path)
        .arg("--out")
        .arg(folder.path())
        .env("KOSMOGRAPH_PRECISION", "f8")
        .expect_code(2)
        .stderr_contains("a precision is f32, bf16 or int8");
}

/// A lock knows how its picture was computed.
#[test]
fn a_lock_names_the_precision() {
    if !has("bf16") {
        println!("this processor has no products of bf16: no lock can name them");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let workflow = folder.path().join("text.json");
    std::fs::copy(repository().join("workflows/text.json"), &workflow).expect("a copy");
    let command = |name: &str| {
        let models = repository().join("models");
        let run = Run::new(name).with_plugins().arg(&workflow).arg("--models").arg(models);
        run.args(["--seed", "3"])
    };
    command("lock").expect_success();
    let out = folder.path().join("out");
    command("run")
        .args(["--locked", "--precision", "bf16"])
        .arg("--out")
        .arg(&out)
        .expect_code(2)
        .stderr_contains("the device is cpu with products in bf16; it was cpu");
    // The environment says it as well as the option.
    command("run")
        .arg("--locked")
        .env("KOSMOGRAPH_PRECISION", "bf16")
        .arg("--out")
        .arg(&out)
        .expect_code(2)
        .stderr_contains("the device is cpu with products in bf16; it was cpu");
}
