//! A number, a file or a library costs a node and a sentence: sums that memory does not hold, schedules without end,
//! values that another library made up, threads that cannot be had.
#![cfg(target_os = "linux")]

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kosmograph_tests::{Finished, Run, build_c_text};
use serde_json::{Map, Value, json};

fn node(class: &str, inputs: Value) -> Value {
    json!({"class_type": class, "inputs": inputs})
}

/// From text to a picture of 64 × 64 pixels by the bundled model.
fn picture() -> Value {
    json!({
        "c": node("CheckpointLoaderSimple", json!({"ckpt_name": "tiny/sd"})),
        "p": node("CLIPTextEncode", json!({"clip": ["c", 1], "text": "a hat"})),
        "l": node("EmptyLatentImage", json!({"width": 64, "height": 64, "batch_size": 1})),
        "k": node("KSampler", json!({"model": ["c", 0], "seed": 1, "steps": 2, "cfg": 2.0, "sampler_name": "euler",
            "scheduler": "normal", "positive": ["p", 0], "negative": ["p", 0], "latent_image": ["l", 0],
            "denoise": 1.0})),
        "d": node("VAEDecode", json!({"samples": ["k", 0], "vae": ["c", 2]})),
        "s": node("SaveImage", json!({"images": ["d", 0], "filename_prefix": "x"})),
    })
}

struct Job {
    folder: tempfile::TempDir,
    plugins: Option<PathBuf>,
}

impl Job {
    fn new(graph: &Value) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("graph.json"), graph.to_string()).expect("a file");
        Self { folder, plugins: None }
    }

    fn run(&self, subcommand: &str) -> Run {
        let mut run = Run::new(subcommand).with_plugins().args(["--models", "models"]);
        if let Some(library) = &self.plugins {
            run = run.arg("--plugins").arg(library);
        }
        if subcommand == "run" {
            run = run.arg("--out").arg(self.folder.path().join("out"));
        }
        // A backtrace in a message would be seen here.
        run.arg(self.folder.path().join("graph.json")).env("RUST_BACKTRACE", "1")
    }

    /// Fails with this sentence.
    #[track_caller]
    fn refused(&self, code: i32, told: &[&str]) -> Finished {
        let finished = self.run("run").expect_code(code);
        let stderr = String::from_utf8_lossy(&finished.stderr).into_owned();
        for told in told {
            assert!(stderr.contains(told), "{told} is not told by\n{finished}");
        }
        for odd in ["panicked", "   0: ", "memory allocation", "RUST_BACKTRACE"] {
            assert!(!stderr.contains(odd), "{odd} is told by\n{finished}");
        }
        finished
    }
}

#[test]
fn a_sum_that_memory_does_not_hold_is_told_by_check_and_by_run() {
    let mut graph = picture();
    graph["l"] =
        node("EmptyLatentImage", json!({"width": 16384, "height": 16384, "batch_size": 4096}));
    let job = Job::new(&graph);
    let sum =
        "its results would take 275 GB (0.25 x width 16384 x height 16384 x batch_size 4096 bytes)";
    job.run("check").expect_code(2).stderr_contains(sum);
    job.refused(2, &["node l (EmptyLatentImage)", sum]);
}

#[test]
fn doubled_batches_end_in_a_sentence() {
    // 2^40 times 8 KiB.
    let mut graph = Map::new();
    graph.insert(
        "0".into(),
        node("EmptyImage", json!({"width": 64, "height": 64, "batch_size": 1, "color": 0})),
    );
    graph.insert(
        "l0".into(),
        node("EmptyLatentImage", json!({"width": 512, "height": 512, "batch_size": 1})),
    );
    for i in 1..=40 {
        let before = (i - 1).to_string();
        graph.insert(
            i.to_string(),
            node("ImageBatch", json!({"image1": [before, 0], "image2": [before, 0]})),
        );
    }
    graph.insert(
        "s".into(),
        node("SaveImage", json!({"images": ["40", 0], "filename_prefix": "x"})),
    );
    for i in 1..=10 {
        graph.insert(
            format!("l{i}"),
            node("RepeatLatentBatch", json!({"samples": [format!("l{}", i - 1), 0], "amount": 64})),
        );
    }
    graph.insert("c".into(), node("CheckpointLoaderSimple", json!({"ckpt_name": "tiny/sd"})));
    graph.insert("d".into(), node("VAEDecode", json!({"samples": ["l10", 0], "vae": ["c", 2]})));
    graph
        .insert("t".into(), node("SaveImage", json!({"images": ["d", 0], "filename_prefix": "y"})));
    let job = Job::new(&Value::Object(graph));
    // In little memory, so that it is soon at its end.
    let command = job.run("run").command();
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "ulimit -v 4000000; exec \"$0\" \"$@\""]).arg(command.get_program());
    limited.args(command.get_args()).current_dir(kosmograph_tests::repository());
    let output = limited.output().expect("a shell");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    for told in ["the pictures would take", "the latents would take", "(ulimit -v)"] {
        assert!(stderr.contains(told), "{told} is not told by\n{stderr}");
    }
    assert!(!stderr.contains("allocation"), "{stderr}");
}

#[test]
fn a_schedule_without_end_names_denoise() {
    for denoise in [1e-9, 1e-18, 1e-300] {
        let mut graph = picture();
        graph["k"]["inputs"]["denoise"] = denoise.into();
        Job::new(&graph).refused(3, &["node k (KSampler), input \"denoise\"", "more than 1000000"]);
    }
}

#[test]
fn a_chain_of_seventy_control_nets_is_run() {
    let mut graph = picture();
    graph["e"] =
        node("EmptyImage", json!({"width": 64, "height": 64, "batch_size": 1, "color": 0}));
    graph["n"] = node("ControlNetLoader", json!({"control_net_name": "tiny-canny"}));
    let link = |i: usize| {
        let mut inputs = json!({"control_net": ["n", 0], "image": ["e", 0], "strength": 0.01});
        if i > 0 {
            inputs["previous"] = json!([format!("c{}", i - 1), 0]);
        }
        node("ControlNet", inputs)
    };
    for i in 0..300 {
        graph[format!("c{i}")] = link(i);
    }
    graph["k"] = node(
        "UNetSample",
        json!({"model": ["c", 0], "positive": ["p", 0], "negative": ["p", 0],
        "latent": ["l", 0], "steps": 1, "control": ["c69", 0]}),
    );
    Job::new(&graph).run("run").arg("--models").arg("models/tiny").expect_success();
    graph["k"]["inputs"]["control"] = json!(["c299", 0]);
    let finished = Job::new(&graph).run("run").arg("--models").arg("models/tiny").expect_code(3);
    finished.stderr_contains("257 ControlNets are chained; at most 256 act together");
}

/// A library whose MODEL, or CONDITIONING, breaks node.h in the way that `FAULT` names.
const FOREIGN: &str = r#"
#include <string.h>
#include "node.h"
enum { ALIAS, NULL_TENSOR, NULL_STRING, UNKNOWN_KIND, WRONG_SHAPE, OTHER_KEY, NO_MAP };
static kg_str text(const char *s) { kg_str t = {s, strlen(s)}; return t; }
static void keep(kg_counted *self) { (void)self; }
#define BASE(type) {sizeof(type), 0, keep, keep}
static kg_map *map_of(const char *key, kg_value value) {
  static kg_map maps[8];
  static kg_str keys[8];
  static kg_value values[8];
  static int next;
  int at = next++ % 8;
  kg_map map = {BASE(kg_map), &keys[at], &values[at], 1};
  keys[at] = text(key);
  values[at] = value;
  maps[at] = map;
  return &maps[at];
}
static kg_status describe(kg_object *self, const kg_context *c, const kg_map *in, kg_map **out) {
  kg_value value = {KG_STRING, 0, {0}};
  (void)self; (void)in;
  value.as.string = FAULT == NULL_STRING ? NULL : c->new_string(c, text(
    "{\"prediction\":\"epsilon\",\"in_channels\":4,\"out_channels\":4,\"alphas_cumprod\":[0.9,0.5,0.1]}"));
  *out = map_of("description", value);
  return KG_OK;
}
static kg_status denoise(kg_object *self, const kg_context *c, const kg_map *in, kg_map **out) {
  kg_value value = {FAULT == UNKNOWN_KIND ? 77 : KG_TENSOR, 0, {0}};
  (void)self; (void)c; (void)in;
  if (FAULT == WRONG_SHAPE || FAULT == OTHER_KEY) {
    int64_t shape[4] = {1, 4, 2, 2};
    DLDataType f32 = {kDLFloat, 32, 1};
    value.as.tensor = c->new_tensor(c, f32, 4, shape);
  }
  *out = FAULT == NO_MAP ? NULL : map_of(FAULT == OTHER_KEY ? "predicted" : "prediction", value);
  return KG_OK;
}
static const kg_interface *query(kg_object *self, kg_str id) {
  static const kg_interface d = {sizeof d, 0, denoise, 0}, e = {sizeof e, 0, describe, 0};
  (void)self;
  if (id.len == 10 && !memcmp(id.ptr, "denoiser/1", 10)) return &d;
  if (id.len == 10 && !memcmp(id.ptr, "describe/1", 10)) return &e;
  return NULL;
}
static kg_status run(uint32_t node, const kg_context *c, const kg_value *in, size_t ni, kg_value *out, size_t no) {
  static kg_object object = {BASE(kg_object), {"MODEL", 5}, query};
  static kg_map map = {BASE(kg_map), NULL, NULL, 2};
  static kg_list list = {BASE(kg_list), NULL, 1};
  static kg_str keys[2];
  static kg_value values[2], item;
  (void)in; (void)ni; (void)no;
  if (node == 0) {
    out[0].kind = KG_OBJECT;
    out[0].as.object = &object;
    return KG_OK;
  }
  keys[0] = text("note"); keys[1] = text("context");
  values[0].kind = KG_STRING; values[0].as.string = c->new_string(c, text("a text of some length, which is no tensor"));
  values[1].kind = KG_TENSOR; values[1].as.counted = values[0].as.counted;
  map.keys = keys; map.values = values;
  item.kind = KG_MAP; item.as.map = &map;
  list.items = &item;
  out[0].kind = KG_LIST;
  out[0].as.list = &list;
  return KG_OK;
}
KG_EXPORT const kg_library *kosmograph_library_v1(void) {
  static kg_library library = {sizeof library, KG_ABI_MAJOR, KG_ABI_MINOR, {NULL, 0}, run, NULL};
  library.descriptor = text("{\"name\":\"foreign\",\"version\":\"1\",\"nodes\":["
    "{\"class\":\"ForeignModel\",\"inputs\":[],\"outputs\":[{\"name\":\"m\",\"type\":\"MODEL\"}]},"
    "{\"class\":\"ForeignConditioning\",\"inputs\":[],\"outputs\":[{\"name\":\"c\",\"type\":\"CONDITIONING\"}]}]}");
  return &library;
}
"#;

#[test]
fn what_another_library_made_up_is_that_librarys_error() {
    for (fault, told) in [
        ("ALIAS", "is a tensor at the address of a string"),
        (
            "NULL_TENSOR",
            "\"denoiser/1\" of this MODEL gave a value that is a map whose \"prediction\" is a tensor at NULL; its \
             library libforeign_NULL_TENSOR.so breaks the boundary's rules",
        ),
        (
            "NULL_STRING",
            "\"describe/1\" of this MODEL gave a value that is a map whose \"description\" is a string at NULL; its \
             library libforeign_NULL_STRING.so breaks the boundary's rules",
        ),
        ("UNKNOWN_KIND", "gave a value that is a map whose \"prediction\" is of kind 77"),
        ("WRONG_SHAPE", "\"denoiser/1\" of this MODEL gave a wrong \"prediction\": its shape is"),
        ("OTHER_KEY", "\"denoiser/1\" of this MODEL gave a wrong \"prediction\""),
        ("NO_MAP", "\"denoiser/1\" of this MODEL says it is done, but gives no map"),
    ] {
        let define = format!("-DFAULT={fault}");
        let library = build_c_text(&format!("foreign_{fault}"), FOREIGN, &[OsStr::new(&define)]);
        let mut graph = picture();
        match fault {
            "ALIAS" => {
                graph["f"] = node("ForeignConditioning", json!({}));
                graph["k"]["inputs"]["positive"] = json!(["f", 0]);
            }
            _ => {
                graph["f"] = node("ForeignModel", json!({}));
                graph["k"]["inputs"]["model"] = json!(["f", 0]);
            }
        }
        let mut job = Job::new(&graph);
        job.plugins = Some(library);
        job.refused(3, &[told]);
    }
}

#[test]
fn a_schedule_of_a_file_is_bounded() {
    let folder = tempfile::tempdir().expect("a folder");
    copy(
        &kosmograph_tests::repository().join("models/tiny/sd"),
        &folder.path().join("checkpoints/sd"),
    );
    let scheduler = folder.path().join("checkpoints/sd/scheduler/scheduler_config.json");
    fs::write(&scheduler, r#"{"num_train_timesteps": 1000000000000}"#).expect("a file");
    let mut graph = picture();
    graph["c"]["inputs"]["ckpt_name"] = "sd".into();
    let job = Job::new(&graph);
    let finished = job.run("run").arg("--models").arg(folder.path()).expect_code(3);
    finished.stderr_contains("`num_train_timesteps` is 1000000000000 in ");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).expect("a copy")),
        }
    }
}

#[test]
fn ten_thousand_threads_are_cut_and_told() {
    let finished =
        Job::new(&picture()).run("run").env("RAYON_NUM_THREADS", "10000").expect_success();
    finished.stderr_contains("RAYON_NUM_THREADS asks for 10000 threads");
}

#[test]
fn a_limit_that_leaves_no_room_to_begin_is_a_sentence() {
    let job = Job::new(&picture());
    for limit in ["1M", "2M", "3M"] {
        let run = job.run("run").args(["--memory-limit", limit]).limit(Duration::from_secs(60));
        let finished = run.run();
        let stderr = finished.stderr();
        assert!(matches!(finished.code, Some(2 | 3)), "{finished}");
        assert!(stderr.contains("error: "), "{finished}");
        assert!(!stderr.contains("panicked"), "{finished}");
    }
}
