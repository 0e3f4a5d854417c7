//! Parity with the official code: every case under `KOSMOGRAPH_GOLDEN` (default `tests/golden`) is
//! run, and a line says how far off it was and how far it may be.
//!
//! A case is a folder; its name says what it tests, `config.json` gives every size. A name that no
//! test knows is listed as not covered; a case whose files are missing, or a tensor of a covered
//! case that nothing compared, is a failure. The bound of `tests/golden/README.md` is never
//! loosened.
//!
//! Arguments are parts of case names; with none, all cases run.

mod case;
mod diffusion;
mod kosmos;
mod lora;
mod sampling;
mod text;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, ensure};

use case::Case;

/// A part of a case: each compares some of its tensors.
type Part = fn(&mut Case) -> Result<()>;

/// What each case runs.
const CASES: &[(&str, &[Part])] = &[
    ("aligner", &[kosmos::aligner]),
    ("clip_text", &[text::clip_text]),
    ("clip_text_gelu", &[text::clip_text]),
    ("clip_tokens", &[text::clip_tokens]),
    ("clip_vision_projection", &[text::clip_vision_projection]),
    ("connector", &[kosmos::connector]),
    ("controlnet", &[diffusion::controlnet]),
    ("e2e", &[sampling::e2e]),
    ("e2e_official_0.21.4", &[sampling::e2e_official]),
    ("eps_probe", &[text::eps_probe, kosmos::eps_probe, diffusion::eps_probe]),
    ("gpt_decoder", &[kosmos::gpt_decoder]),
    ("image_preprocess", &[kosmos::image_preprocess]),
    ("key_lists", &[text::key_lists, kosmos::key_lists, diffusion::key_lists]),
    ("kosmosg_encode_condition", &[kosmos::encode_condition]),
    ("lora", &[lora::lora]),
    ("schedulers", &[sampling::schedulers]),
    ("schedulers_diffusers_0.21.4", &[sampling::schedulers]),
    ("tokens", &[kosmos::tokens]),
    ("torch_randn", &[sampling::torch_randn]),
    ("unet", &[diffusion::unet]),
    ("vae", &[diffusion::vae]),
    ("vit", &[kosmos::vit]),
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    match run_all(&wanted) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failures) => {
            eprintln!("{failures} golden cases failed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("golden: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the repository.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn run_all(wanted: &[String]) -> Result<usize> {
    let root = std::env::var_os("KOSMOGRAPH_GOLDEN")
        .map_or_else(|| repository().join("tests/golden"), PathBuf::from);
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(&root).with_context(|| format!("reading {}", root.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    ensure!(!folders.is_empty(), "{} holds no cases", root.display());

    let (mut passed, mut failures, mut skipped, mut unknown) = (0, 0, 0, 0);
    for folder in folders {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part)) {
            continue;
        }
        let Some((_, parts)) = CASES.iter().find(|(case, _)| *case == name) else {
            unknown += 1;
            println!("{name}: not covered");
            continue;
        };
        match run(&folder, parts) {
            Ok((line, was_skipped)) => {
                *(if was_skipped { &mut skipped } else { &mut passed }) += 1;
                println!("{name}: {line}");
            }
            Err(error) => {
                failures += 1;
                println!("{name}: FAILED: {error:#}");
            }
        }
    }
    println!(
        "golden: {passed} cases passed, {failures} failed, {skipped} skipped, {unknown} not covered"
    );
    Ok(failures)
}

/// The line of a case, and whether it was skipped as a whole.
fn run(folder: &Path, parts: &[Part]) -> Result<(String, bool)> {
    let mut case = Case::open(folder)?;
    for part in parts {
        let outcome = catch_unwind(AssertUnwindSafe(|| part(&mut case)));
        outcome.map_err(|_| anyhow!("a panic, see above"))??;
    }
    let was_skipped = case.is_skipped();
    Ok((case.finish()?, was_skipped))
}
