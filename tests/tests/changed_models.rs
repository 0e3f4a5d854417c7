//! A model file that somebody writes to while a run has it mapped: the file is named, whatever comes of it.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use kosmograph_tests::{Run, build_c_text, repository};
use serde_json::{Value, json};

/// A node that passes a latent on, and does to the file SPOILT what SPOIL says.
const SPOIL: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "node.h"

static kg_str text(const char *s) { kg_str t = {s, strlen(s)}; return t; }

static kg_status run(uint32_t node, const kg_context *c, const kg_value *in, size_t n_in, kg_value *out, size_t n_out) {
    (void)node;
    if (n_in != 1 || n_out != 1 || in[0].kind != KG_MAP) { c->fail(c, text("samples"), text("a latent is wanted")); return KG_ERROR; }
#if SPOIL == 0
    if (truncate(SPOILT, 4096)) return KG_ERROR;
#elif SPOIL == 1
    int file = open(SPOILT, O_WRONLY);
    if (file < 0 || pwrite(file, "\1\2\3\4", 4, 65536) != 4 || close(file)) return KG_ERROR;
#else
    /* Another file under its name: what is mapped stays as it was. */
    if (link(SPOILT, SPOILT ".old")) return KG_ERROR;
    FILE *new = fopen(SPOILT ".new", "w");
    if (!new || fputs("no model", new) < 0 || fclose(new) || rename(SPOILT ".new", SPOILT)) return KG_ERROR;
#endif
    in[0].as.counted->retain(in[0].as.counted);
    out[0] = in[0];
    return KG_OK;
}

static const char descriptor[] =
    "{\"name\": \"spoil\", \"version\": \"1\", \"nodes\": [{\"class\": \"Spoil\", \"pure\": false,"
    "\"inputs\": [{\"name\": \"samples\", \"type\": \"LATENT\"}], \"outputs\": [{\"name\": \"LATENT\", \"type\": \"LATENT\"}]}]}";
static kg_library library;

KG_EXPORT const kg_library *kosmograph_library_v1(void) {
    library.size = sizeof library; library.abi_major = 1;
    library.descriptor = text(descriptor); library.run = run;
    return &library;
}
"#;

/// Draws with a copy of the bundled model whose U-Net is spoilt, as `how` says, before the sampler reads it.
fn draw(how: u32) -> Run {
    let folder = Box::leak(Box::new(tempfile::tempdir().expect("a folder")));
    let model = folder.path().join("checkpoints/sd");
    copy(&repository().join("models/tiny/sd"), &model);
    let unet = model.join("unet/diffusion_pytorch_model.safetensors");
    let defines = [format!("-DSPOIL={how}"), format!("-DSPOILT=\"{}\"", unet.display())];
    let defines: Vec<&OsStr> = defines.iter().map(OsStr::new).collect();
    let library = build_c_text(&format!("spoil_{how}"), SPOIL, &defines);
    let node = |class: &str, inputs: Value| json!({"class_type": class, "inputs": inputs});
    let graph = json!({
        "c": node("CheckpointLoaderSimple", json!({"ckpt_name": "sd"})),
        "p": node("CLIPTextEncode", json!({"clip": ["c", 1], "text": "a hat"})),
        "l": node("EmptyLatentImage", json!({"width": 64, "height": 64, "batch_size": 1})),
        "x": node("Spoil", json!({"samples": ["l", 0]})),
        "k": node("KSampler", json!({"model": ["c", 0], "seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler",
            "scheduler": "normal", "positive": ["p", 0], "negative": ["p", 0], "latent_image": ["x", 0], "denoise": 1.0})),
        "d": node("VAEDecode", json!({"samples": ["k", 0], "vae": ["c", 2]})),
        "s": node("SaveImage", json!({"images": ["d", 0], "filename_prefix": "x"}))});
    let run = Run::new("run").with_plugins().arg("--plugins").arg(library).arg("--models");
    let run = run.arg(folder.path()).arg("--out").arg(folder.path().join("out")).arg("-");
    run.stdin(graph.to_string())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("the model").map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).expect("a copy")),
        }
    }
}

#[test]
fn one_that_shrinks_is_named() {
    let told = draw(0).expect_code(3);
    told.stderr_contains("unet/diffusion_pytorch_model.safetensors").stderr_lacks("panicked");
}

#[test]
fn one_that_is_written_to_is_named() {
    let told = draw(1).expect_code(3).stderr_contains("unet/diffusion_pytorch_model.safetensors");
    told.stderr_contains("was written to while it was in use");
}

#[test]
fn one_that_is_replaced_is_no_matter() {
    draw(2).expect_success();
}
