//! With the feature `cuda`: compiles every src/*/kernel.cu to PTX for compute capability 8.0 and newer.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let nvcc = match std::env::var_os("CUDA_HOME") {
        Some(home) => Path::new(&home).join("bin/nvcc"),
        None => PathBuf::from("nvcc"),
    };
    for entry in std::fs::read_dir("src").expect("src is a folder") {
        let folder = entry.expect("an entry of src").path();
        let source = folder.join("kernel.cu");
        let Some(name) = folder.file_name().and_then(|name| name.to_str()) else { continue };
        if !source.exists() {
            continue;
        }
        let result = Command::new(&nvcc)
            .args(["-ptx", "-arch=compute_80", "-O3", "-std=c++17"])
            .arg(&source)
            .arg("-o")
            .arg(out.join(format!("{name}.ptx")))
            .status();
        match result {
            Ok(status) if status.success() => {}
            Ok(status) => panic!("nvcc could not compile {}: {status}", source.display()),
            Err(error) => panic!(
                "the feature `cuda` needs CUDA's compiler, and {} does not run: {error}. Set CUDA_HOME to a CUDA toolkit \
                 of 12.0 or newer; scripts/cuda-toolkit installs one",
                nvcc.display()
            ),
        }
    }
}
