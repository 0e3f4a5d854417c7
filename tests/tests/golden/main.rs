//! Parity with the official code: every case under `KOSMOGRAPH_GOLDEN` (default `tests/golden`) is
//! run, and a line says how far off it was and how far it may be.
//!
//! A case is a folder; its name says what it tests, `config.json` gives every size. The folders that are there
//! and the list below must be the same: a folder that no test knows is a failure, as is a test whose folder is
//! missing, a file of a case that nothing read, and an expected tensor that nothing compared. What is known and
//! not covered stands in `NOT_COVERED` with its reason and is shown as ignored. The bound of
//! `tests/golden/README.md` is never loosened; with `KOSMOGRAPH_PRECISION=bf16` or `int8` what is computed is something else, and has a
//! bound of its own.
//!
//! The arguments are those of any test: a part of a case's name, `--list`, `--exact`.

mod adapters;
mod case;
mod diffusers;
mod diffusion;
mod documents;
mod kosmos;
mod lora;
mod measures;
mod names;
mod sampling;
mod sdxl;
mod text;
mod training;
mod training_kosmos;
mod upscalers;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use case::{Case, Ending, bound_of_rounded, read_tensors};

/// A part of a case: each compares some of its tensors.
type Part = fn(&mut Case) -> Result<()>;

/// What each case runs.
const CASES: &[(&str, &[Part])] = &[
    ("aligner", &[kosmos::aligner, training::aligner]),
    ("clip_text", &[text::clip_text]),
    ("clip_text_gelu", &[text::clip_text]),
    ("clip_tokens", &[text::clip_tokens]),
    ("clip_vision_projection", &[text::clip_vision_projection]),
    ("connector", &[kosmos::connector]),
    ("controlnet", &[diffusion::controlnet]),
    ("controlnet_shuffle", &[diffusion::controlnet]),
    ("dataset_tsv", &[documents::shards]),
    ("e2e", &[sampling::e2e]),
    ("e2e_official_0.21.4", &[sampling::e2e_official]),
    ("eps_probe", &[text::eps_probe, kosmos::eps_probe, diffusion::eps_probe]),
    ("esrgan", &[upscalers::esrgan]),
    ("gligen", &[adapters::gligen]),
    ("gpt_decoder", &[kosmos::gpt_decoder]),
    ("image_preprocess", &[kosmos::image_preprocess]),
    (
        "key_lists",
        &[
            text::key_lists,
            kosmos::key_lists,
            diffusion::key_lists,
            names::key_lists,
            sdxl::key_lists,
        ],
    ),
    ("ip_adapter", &[adapters::ip_adapter]),
    ("kosmosg_encode_condition", &[kosmos::encode_condition]),
    ("lora", &[lora::lora]),
    ("metric_clip", &[measures::clip]),
    ("metric_dino", &[measures::dino]),
    ("metric_fid", &[measures::fid]),
    ("schedulers", &[sampling::schedulers]),
    ("schedulers_diffusers_0.21.4", &[sampling::schedulers]),
    ("sdxl_controlnet", &[diffusion::controlnet, sdxl::control_of_unet]),
    ("sdxl_e2e", &[sdxl::e2e]),
    ("sdxl_lora", &[lora::kinds, sdxl::lora]),
    ("sdxl_text", &[sdxl::text]),
    ("sdxl_unet", &[sdxl::unet]),
    ("t2i_adapter", &[adapters::t2i_adapter]),
    ("taesd", &[adapters::taesd]),
    ("tokens", &[kosmos::tokens]),
    ("torch_randn", &[sampling::torch_randn]),
    ("train_align", &[training_kosmos::train_align]),
    ("train_controlnet", &[training::train_controlnet]),
    ("train_dreambooth", &[training::train_dreambooth]),
    ("train_instruct", &[training_kosmos::train_instruct]),
    ("train_lora", &[training::train_lora]),
    ("train_ops", &[training::operators]),
    ("unet", &[diffusion::unet]),
    ("vae", &[diffusion::vae]),
    ("vit", &[kosmos::vit]),
];

/// What is known and not covered, and why: a case, or of a case the files or the tensors whose names begin so.
/// Those of parts that are not built yet may lie in a set, and need not.
const NOT_COVERED: &[(&str, &str)] = &[
    ("torchscale_decoder_xpos_NOT_USED_BY_KOSMOSG", "Kosmos-G does not use xPos"),
    (
        "dataset_tsv/instructpix2pix.batch.",
        "what the language model's own loss takes, which these stages do not have",
    ),
    ("dataset_tsv/openimage.batch.", "the same"),
    ("dataset_tsv/laion.batch.", "the same"),
    ("dataset_tsv/laion_align.batch.", "the same"),
];

/// Cases of updates: `--precision` is about what is drawn, and a first update of Adam is the sign of a gradient, however small.
/// Shown as ignored where whoever runs this asks for bf16 or int8.
const UPDATES: &[&str] = &["train_align", "train_dreambooth", "train_instruct", "train_lora"];

/// Cases of this repository's own, which another set need not have.
const OWN: &[&str] = &["gligen"];

/// The lines of the cases that passed.
type Lines = Arc<Mutex<Vec<String>>>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One after the other: each computes on all cores.
    arguments.test_threads = arguments.test_threads.or(Some(1));
    let lines = Lines::default();
    let trials = match trials(&lines) {
        Ok(trials) => trials,
        Err(error) => {
            eprintln!("golden: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let conclusion = libtest_mimic::run(&arguments, trials);
    for line in lines.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("{line}");
    }
    conclusion.exit_code()
}

/// The root of the repository.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A test for every folder of the set, for every case that ought to have one, and for what is not covered.
fn trials(lines: &Lines) -> Result<Vec<Trial>> {
    let given = std::env::var_os("KOSMOGRAPH_GOLDEN").map(PathBuf::from);
    let is_another = given.is_some();
    let root = given.unwrap_or_else(|| repository().join("tests/golden"));
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(&root).with_context(|| format!("reading {}", root.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            let name = path.file_name().unwrap_or_default();
            found.insert(name.to_string_lossy().into_owned());
        }
    }
    ensure!(!found.is_empty(), "{} holds no cases", root.display());
    let mut trials = Vec::new();
    for name in &found {
        if bound_of_rounded().is_some() && UPDATES.contains(&name.as_str()) {
            let why = "`kosmograph train` computes in f32, whatever is asked for";
            trials.push(Trial::ignorable_test(name, move || Ok(Completion::ignored_with(why))));
        } else if let Some((_, parts)) = CASES.iter().find(|(case, _)| case == name) {
            let (folder, lines, name) = (root.join(name), lines.clone(), name.clone());
            let run = move || run(&folder, parts, &lines);
            trials.push(Trial::ignorable_test(name, run));
        } else if !NOT_COVERED.iter().any(|(known, _)| known == name) {
            let sentence = format!("no test knows {}", root.join(name).display());
            trials.push(Trial::test(name, || Err(Failed::from(sentence))));
        }
    }
    let is_missing = |name: &str| !(found.contains(name) || is_another && OWN.contains(&name));
    for (name, _) in CASES.iter().filter(|(name, _)| is_missing(name)) {
        let sentence =
            format!("{} is missing: its test has nothing to run", root.join(name).display());
        trials.push(Trial::test(*name, || Err(Failed::from(sentence))));
    }
    for (name, reason) in NOT_COVERED {
        if is_there(&root, name)? {
            trials.push(Trial::ignorable_test(*name, move || Ok(Completion::ignored_with(reason))));
        }
    }
    trials.sort_by(|a, b| a.name().cmp(b.name()));
    Ok(trials)
}

/// Whether a set has what an entry of [`NOT_COVERED`] names.
fn is_there(root: &Path, name: &str) -> Result<bool> {
    let Some((case, beginning)) = name.split_once('/') else {
        return Ok(root.join(name).is_dir());
    };
    let folder = root.join(case);
    if !folder.is_dir() {
        return Ok(false);
    }
    for entry in std::fs::read_dir(&folder)? {
        if entry?.file_name().to_string_lossy().starts_with(beginning) {
            return Ok(true);
        }
    }
    let expected = folder.join("expected.safetensors");
    let tensors = expected.is_file().then(|| read_tensors(&expected)).transpose()?;
    Ok(tensors.is_some_and(|tensors| tensors.keys().any(|name| name.starts_with(beginning))))
}

fn run(folder: &Path, parts: &[Part], lines: &Lines) -> Result<Completion, Failed> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let prefix = format!("{name}/");
    let not_covered = NOT_COVERED.iter().filter_map(|(known, _)| known.strip_prefix(&prefix));
    let ending = compare(folder, parts, not_covered.collect());
    match ending.map_err(|error| Failed::from(format!("{error:#}")))? {
        Ending::Compared(line) => {
            let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
            lines.push(format!("{name}: {line}"));
            Ok(Completion::Completed)
        }
        Ending::Skipped(why) => Ok(Completion::ignored_with(why)),
    }
}

fn compare(folder: &Path, parts: &[Part], not_covered: Vec<&str>) -> Result<Ending> {
    let mut case = Case::open(folder)?;
    for part in parts {
        let outcome = catch_unwind(AssertUnwindSafe(|| part(&mut case)));
        outcome.map_err(|_| anyhow!("a panic, see above"))??;
    }
    case.finish(&not_covered)
}
