//! The plugin boundary, from both sides: node.h and its mirror agree, the examples work, and a library
//! that is wrong, hostile or careless becomes a sentence and nothing worse.

use std::fmt::Write as _;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kosmograph::plugin::{
    Call, Library, LogLevel, NodeFailure, PluginError, call_interface, input, offers,
};
use kosmograph::value::Value;
use kosmograph::value::place::played_elsewhere;
use kosmograph_abi as abi;
use kosmograph_tests::{
    Run, build_c, build_c_text, c_compiler, node_library, repository, run_c_text, scratch,
};

/// A host that knows nothing and never stops.
struct Quiet;

impl Call for Quiet {
    fn log(&self, _: LogLevel, _: &str) {}
    fn progress(&self, _: u64, _: u64) -> bool {
        false
    }
    fn property(&self, _: &str) -> Option<String> {
        None
    }
    fn output(&self, _: serde_json::Value) {}
}

fn c_example() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| build_c(&repository().join("tests/examples/denoiser.c")))
}

fn c_library(name: &str) -> PathBuf {
    build_c(&repository().join("tests/tests/boundary").join(name))
}

/// wrong.c with mistake number `wrong`, or none at all.
fn wrong_object(wrong: Option<usize>) -> PathBuf {
    let (examples, here) = ("tests/examples", "tests/tests/boundary/wrong.c");
    let text = std::fs::read_to_string(repository().join(here)).unwrap();
    let (name, number) = match wrong {
        Some(number) => (format!("wrong_{number}"), number.to_string()),
        None => ("wrong_not".to_owned(), "-1".to_owned()),
    };
    let examples = repository().join(examples);
    let arguments = ["-I".as_ref(), examples.as_os_str()];
    build_c_text(&name, &format!("#define WRONG {number}\n{text}"), &arguments)
}

// ---- Both sides agree ------------------------------------------------------------------------

#[test]
fn the_header_is_c_and_cpp() {
    for (standard, language) in [("c11", "c"), ("c17", "c"), ("c++17", "c++"), ("c++20", "c++")] {
        let source = scratch().join(format!("header.{standard}"));
        std::fs::write(&source, "#include \"node.h\"\n#include \"node.h\"\n").unwrap();
        let mut compiler = c_compiler(standard);
        let output =
            compiler.args(["-fsyntax-only", "-x", language]).arg(&source).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{standard}:\n{said}");
    }
}

/// Pairs of a name in C and the number Rust has for it.
fn rust_layout() -> Vec<(String, usize)> {
    let mut layout = Vec::new();
    macro_rules! of {
        ($c:literal, $rust:ty $(, $c_field:literal $rust_field:ident)*) => {
            layout.push((format!("sizeof({})", $c), size_of::<$rust>()));
            $(layout.push((
                format!("offsetof({}, {})", $c, $c_field),
                offset_of!($rust, $rust_field),
            ));)*
        };
    }
    of!("kg_str", abi::Str, "ptr" ptr, "len" len);
    of!("kg_counted", abi::Counted, "size" size, "reserved" reserved, "retain" retain,
        "release" release);
    of!("kg_value", abi::Value, "kind" kind, "reserved" reserved, "as" payload);
    of!("kg_string", abi::KgString, "base" base, "text" text);
    of!("kg_list", abi::List, "base" base, "items" items, "count" count);
    of!("kg_map", abi::Map, "base" base, "keys" keys, "values" values, "count" count);
    of!("kg_tensor", abi::Tensor, "base" base, "dl" dl, "to_dlpack" to_dlpack, "view" view);
    of!("kg_object", abi::Object, "base" base, "type" type_name, "query" query);
    of!("kg_interface", abi::Interface, "size" size, "reserved" reserved, "call" call,
        "flags" flags);
    of!("kg_context", abi::Context, "size" size, "reserved" reserved, "log" log,
        "progress" progress, "fail" fail, "property" property, "output" output,
        "new_string" new_string, "new_list" new_list, "new_map" new_map, "new_tensor" new_tensor, "extension" extension);
    of!("kg_library", abi::Library, "size" size, "abi_major" abi_major, "abi_minor" abi_minor,
        "descriptor" descriptor, "run" run, "extension" extension);
    of!("DLDevice", abi::DLDevice, "device_type" device_type, "device_id" device_id);
    of!("DLDataType", abi::DLDataType, "code" code, "bits" bits, "lanes" lanes);
    of!("DLTensor", abi::DLTensor, "data" data, "device" device, "ndim" ndim, "dtype" dtype,
        "shape" shape, "strides" strides, "byte_offset" byte_offset);
    of!("DLManagedTensorVersioned", abi::DLManagedTensorVersioned, "version" version,
        "manager_ctx" manager_ctx, "deleter" deleter, "flags" flags, "dl_tensor" dl_tensor);
    let kinds = [
        ("KG_NONE", abi::NONE),
        ("KG_BOOL", abi::BOOL),
        ("KG_INT", abi::INT),
        ("KG_FLOAT", abi::FLOAT),
        ("KG_STRING", abi::STRING),
        ("KG_LIST", abi::LIST),
        ("KG_MAP", abi::MAP),
        ("KG_TENSOR", abi::TENSOR),
        ("KG_OBJECT", abi::OBJECT),
        ("KG_LOG_ERROR", abi::LOG_ERROR),
        ("KG_LOG_WARN", abi::LOG_WARN),
        ("KG_LOG_INFO", abi::LOG_INFO),
        ("KG_LOG_DEBUG", abi::LOG_DEBUG),
        ("KG_OK", abi::OK as u32),
        ("KG_ERROR", abi::ERROR as u32),
        ("KG_CANCELLED", abi::CANCELLED as u32),
        ("KG_ABI_MAJOR", abi::ABI_MAJOR.into()),
        ("KG_ABI_MINOR", abi::ABI_MINOR.into()),
        ("KG_ANYWHERE", abi::ANYWHERE as u32),
        ("kDLCPU", abi::kDLCPU as u32),
        ("kDLCUDA", abi::kDLCUDA as u32),
        ("kDLFloat", abi::kDLFloat.into()),
        ("kDLBfloat", abi::kDLBfloat.into()),
        ("kDLBool", abi::kDLBool.into()),
        ("DLPACK_FLAG_BITMASK_READ_ONLY", abi::DLPACK_FLAG_BITMASK_READ_ONLY as u32),
    ];
    layout.extend(kinds.map(|(name, value)| (name.to_owned(), value as usize)));
    layout
}

#[test]
fn the_mirror_has_the_layout_of_the_header() {
    let rust = rust_layout();
    let mut program = String::from("#include <stdio.h>\n#include \"node.h\"\nint main(void) {\n");
    for (name, _) in &rust {
        writeln!(program, "  printf(\"%zu\\n\", (size_t)({name}));").unwrap();
    }
    program.push_str("  puts(KG_LIBRARY_SYMBOL);\n  return 0;\n}\n");
    let printed = run_c_text("layout", &program);
    let mut lines = printed.lines();
    for (name, value) in &rust {
        assert_eq!(lines.next(), Some(value.to_string().as_str()), "{name}");
    }
    assert_eq!(lines.next(), Some(abi::LIBRARY_SYMBOL));
}

// ---- The examples ----------------------------------------------------------------------------

#[test]
fn the_example_in_c_keeps_every_rule() {
    let finished = Run::new("check-plugin").arg(c_example()).expect_success();
    let finished = finished.stdout_contains("passed   CImageInvert: it stops when it is asked to");
    finished.stdout_contains("passed   CAnalyticDenoiser: it does what its descriptor says");
}

#[test]
fn the_example_in_rust_keeps_every_rule() {
    let library = node_library("kosmograph-example-invert");
    let finished = Run::new("check-plugin").arg(library).expect_success();
    finished.stdout_contains("passed   library: a panic inside is contained");
}

#[test]
fn the_projects_own_libraries_keep_every_rule() {
    for package in ["kosmograph-image", "kosmograph-diffusion", "kosmograph-kosmos"] {
        Run::new("check-plugin").arg(node_library(package)).expect_success();
    }
}

/// alphas_cumprod of Stable Diffusion's schedule, computed apart from the example.
fn alphas_cumprod() -> Vec<f64> {
    let root = |t: f64| 0.00085f64.sqrt() + (0.012f64.sqrt() - 0.00085f64.sqrt()) * t / 999.0;
    let step = |product: &mut f64, t: i32| {
        *product *= 1.0 - root(t.into()).powi(2);
        Some(*product)
    };
    (0..1000).scan(1.0, step).collect()
}

#[test]
fn the_denoiser_in_c_is_the_closed_form() {
    let library = Library::load(c_example()).unwrap();
    let (mean, deviation) = (0.3, 0.7);
    let model = library.run(1, &Quiet, &[Value::number(mean), Value::number(deviation)]).unwrap();
    let model = &model[0];
    assert_eq!(model.object_type(), Some("MODEL"));
    assert!(offers(model, "denoiser/1") && !offers(model, "control/1"));

    let described = call_interface(model, "describe/1", &Quiet, &input([])).unwrap();
    let described = described.get("description").and_then(Value::as_str).unwrap();
    let json: serde_json::Value = serde_json::from_str(described).unwrap();
    let alphas = alphas_cumprod();
    for (described, alpha) in json["alphas_cumprod"].as_array().unwrap().iter().zip(&alphas) {
        assert!((described.as_f64().unwrap() - alpha).abs() < 1e-12);
    }

    // The second timestep lies between two of the table: the logarithm of sigma² is linear there.
    let log_variance = |alpha: f64| ((1.0 - alpha) / alpha).ln();
    let between = 0.75 * log_variance(alphas[500]) + 0.25 * log_variance(alphas[501]);
    let a = [alphas[999], 1.0 / (1.0 + between.exp())];
    let x: Vec<f32> = (0..16).map(|i| (i as f32 - 7.5) / 4.0).collect();
    let asked = input([
        ("x", Value::tensor_f32(&[2, 2, 2, 2], &x).unwrap()),
        ("timestep", Value::tensor_f32(&[2], &[999.0, 500.25]).unwrap()),
        ("context", Value::tensor_f32(&[2, 1, 1], &[0.0, 0.0]).unwrap()),
    ]);
    let answer = call_interface(model, "denoiser/1", &Quiet, &asked).unwrap();
    let prediction = answer.get("prediction").and_then(Value::as_tensor).unwrap();
    let prediction = prediction.to_f32().unwrap();
    for (i, (x, eps)) in x.iter().zip(prediction).enumerate() {
        let a = a[i / 8];
        let variance = a * deviation * deviation + 1.0 - a;
        let wanted = (1.0 - a).sqrt() * (f64::from(*x) - a.sqrt() * mean) / variance;
        assert!((f64::from(eps) - wanted).abs() < 1e-6, "{i}: {eps} is not {wanted}");
    }
}

/// The standard score's mean and deviation of what a sampler drew, to be compared with N(0, 1).
fn standardised(latents: &[f32], mean: f64, deviation: f64) -> (f64, f64) {
    let count = latents.len() as f64;
    let scores = || latents.iter().map(|&x| (f64::from(x) - mean) / deviation);
    let average = scores().sum::<f64>() / count;
    let variance = scores().map(|score| (score - average).powi(2)).sum::<f64>() / count;
    (average, variance.sqrt())
}

/// A sampler from one library calls the denoiser of another. The denoiser is exact, so what is drawn must
/// be distributed as the data: N(mean, deviation²). Of 16,384 draws the mean is known to 0.008 and the
/// deviation to 0.006 (one sigma); in two hundred steps a sampler of first order errs by 0.01 to 0.025 in
/// the deviation (five times that in forty), and dpms, of second order, by 0.003.
#[test]
fn a_sampler_of_another_library_draws_from_the_denoisers_distribution() {
    let denoisers = Library::load(c_example()).unwrap();
    let (mean, deviation) = (0.3, 0.7);
    let model = denoisers.run(1, &Quiet, &[Value::number(mean), Value::number(deviation)]).unwrap();
    let samplers = Library::load(&node_library("kosmograph-diffusion")).unwrap();
    let nodes = samplers.descriptor["nodes"].as_array().unwrap();

    let entry = |value: f32| {
        let context = Value::tensor_f32(&[1, 77, 768], &vec![value; 77 * 768]).unwrap();
        Value::list(vec![Value::map(vec![("context".to_owned(), context)])])
    };
    let samples = Value::tensor_f32(&[1, 4, 64, 64], &vec![0.0; 4 * 64 * 64]).unwrap();
    let latent = Value::map(vec![("samples".to_owned(), samples)]);
    let own = ["dpms", "ddim", "euler", "euler_ancestral"].map(|sampler| ("UNetSample", sampler));
    for (class, sampler) in own.into_iter().chain([("KSampler", "euler")]) {
        let number = nodes.iter().position(|node| node["class"] == class).unwrap();
        let node = &nodes[number];
        let value = |input: &serde_json::Value| match input["name"].as_str().unwrap() {
            "model" => model[0].clone(),
            "positive" => entry(0.5),
            "negative" => entry(0.0),
            "latent" | "latent_image" => latent.clone(),
            "seed" => Value::natural(7),
            "steps" => Value::integer(200),
            "cfg" => Value::number(3.0),
            "sampler" | "sampler_name" => Value::string(sampler),
            "noise" => Value::string("batch"),
            "scheduler" => Value::string("normal"),
            "denoise" => Value::number(1.0),
            _ => Value::NONE,
        };
        let inputs: Vec<Value> = node["inputs"].as_array().unwrap().iter().map(value).collect();
        let outputs = samplers.run(number, &Quiet, &inputs).unwrap();
        let drawn = outputs[0].get("samples").unwrap().as_tensor().unwrap().to_f32().unwrap();
        let (average, spread) = standardised(&drawn, mean, deviation);
        println!("{sampler}: mean off by {average:.4}, deviation {spread:.4} of the right one");
        let bound = if sampler == "dpms" { 0.015 } else { 0.04 };
        assert!(average.abs() < 0.04, "{sampler}: the mean is off by {average} deviations");
        assert!((spread - 1.0).abs() < bound, "{sampler}: {spread} of the right deviation");
    }
}

// ---- Libraries that are wrong ----------------------------------------------------------------

/// A library of one `kg_library`, whose fields are the C text `fields`.
fn library_of(name: &str, symbol: &str, fields: &str, descriptor: &str) -> PathBuf {
    let text = format!(
        "#include \"node.h\"\n\
         static const char descriptor[] = \"{descriptor}\";\n\
         static kg_status run(uint32_t node, const kg_context *context, const kg_value *inputs,\n\
                              size_t n_inputs, kg_value *outputs, size_t n_outputs) {{\n\
         \x20 (void)node, (void)context, (void)inputs, (void)n_inputs, (void)outputs;\n\
         \x20 return n_outputs == 0 ? KG_ERROR : KG_CANCELLED;\n\
         }}\n\
         const kg_library *{symbol}(void);\n\
         const kg_library *{symbol}(void) {{\n\
         \x20 static const kg_str d = {{descriptor, sizeof descriptor - 1}};\n\
         \x20 static kg_library library;\n\
         \x20 kg_library made = {fields};\n\
         \x20 library = made;\n\
         \x20 return d.len == 4711 ? NULL : &library;\n\
         }}\n"
    );
    build_c_text(name, &text, &[])
}

const SOUND: &str = "{sizeof(kg_library), 1, 1, d, run, NULL}";

/// Why the library cannot be loaded, with its path taken out of the sentence.
fn refusal(library: &Path) -> String {
    let error: PluginError = Library::load(library).expect_err("this library is wrong");
    let sentence = error.to_string();
    let (path, why) = sentence.split_once(": ").unwrap();
    assert_eq!(path, library.display().to_string(), "the sentence names the library");
    why.to_owned()
}

#[test]
fn another_version_of_the_boundary_is_named() {
    let wanted = "it speaks version 2 of the boundary, this kosmograph speaks 1";
    let symbol = library_of("symbol_v2", "kosmograph_library_v2", SOUND, "");
    assert_eq!(refusal(&symbol), wanted);
    let fields = "{sizeof(kg_library), 2, 0, d, run, NULL}";
    let field = library_of("major_2", "kosmograph_library_v1", fields, "");
    assert_eq!(refusal(&field), wanted);
}

#[test]
fn a_table_that_is_not_one_is_refused() {
    let of = |name, fields| refusal(&library_of(name, "kosmograph_library_v1", fields, "{}"));
    let wanted = "its kg_library has 24 bytes, but version 1 of the boundary has 40";
    assert_eq!(of("truncated", "{24, 1, 1, d, run, NULL}"), wanted);
    assert!(of("no_size", "{0, 1, 1, d, run, NULL}").contains("has 0 bytes"));
    let run = of("no_run", "{sizeof(kg_library), 1, 1, d, d.len == 4711 ? run : NULL, NULL}");
    assert_eq!(run, "its kg_library has no function run");
    let text =
        "#include \"node.h\"\nconst kg_library *kosmograph_library_v1(void) { return NULL; }\n";
    let none = build_c_text("returns_null", text, &[]);
    assert!(refusal(&none).contains("it could not describe itself"));
}

#[test]
fn a_refused_library_is_not_closed() {
    // What it does when it is closed would be a stranger's code in our process.
    let told = scratch().join("closed");
    let _ = std::fs::remove_file(&told);
    let text = format!(
        "#include \"node.h\"\n#include <stdio.h>\n\
         const kg_library *kosmograph_library_v1(void) {{\n\
         \x20 static const kg_library library = {{.size = 24, .abi_major = 1, .abi_minor = 1}};\n\
         \x20 return &library;\n\
         }}\n\
         __attribute__((destructor)) static void closed(void) {{\n\
         \x20 FILE *file = fopen(\"{}\", \"w\");\n\
         \x20 if (file) fclose(file);\n\
         }}\n",
        told.display()
    );
    let library = build_c_text("tells_of_its_end", &text, &[]);
    assert!(refusal(&library).contains("has 24 bytes"));
    assert!(!told.exists(), "it was closed");
}

#[test]
fn a_descriptor_that_is_not_one_is_refused() {
    let of =
        |name, descriptor| refusal(&library_of(name, "kosmograph_library_v1", SOUND, descriptor));
    assert!(of("not_utf8", "{\\xff}").contains("its descriptor is not UTF-8 (byte 1)"));
    assert!(of("not_json", "{\\\"name\\\": ").contains("its descriptor is not JSON"));
    assert!(of("no_name", "{\\\"nodes\\\": []}").contains("its descriptor has no \"name\""));
    assert!(of("an_array", "[]").contains("is not an object"));
    let outputs = "{\\\"name\\\": \\\"a\\\", \\\"version\\\": \\\"1\\\", \\\"nodes\\\": \
                   [{\\\"class\\\": \\\"B\\\", \\\"inputs\\\": []}]}";
    assert!(of("no_outputs", outputs).contains("a node 0, B, that has no \"outputs\""));
}

#[test]
fn what_is_no_node_library_says_so() {
    let text = "int an_ordinary_function(void);\nint an_ordinary_function(void) { return 1; }\n";
    let ordinary = build_c_text("ordinary", text, &[]);
    assert!(refusal(&ordinary).contains("not a node library"));
    let cut = scratch().join("cut.so");
    let whole = std::fs::read(c_example()).unwrap();
    std::fs::write(&cut, &whole[..40]).unwrap();
    assert!(refusal(&cut).contains("not a shared library"));
    std::fs::write(&cut, "").unwrap();
    assert!(refusal(&cut).contains("not a shared library"));
}

#[test]
fn a_missing_shared_library_is_named() {
    let needed = "int vanished(void);\nint vanished(void) { return 7; }\n";
    let soname = "-Wl,-soname,libkg_vanished.so.13";
    let needed = build_c_text("kg_vanished", needed, &[soname.as_ref()]);
    let text = "#include \"node.h\"\nint vanished(void);\n\
                const kg_library *kosmograph_library_v1(void) {\n\
                \x20 return vanished() == 7 ? NULL : NULL;\n}\n";
    let library = build_c_text("needs_vanished", text, &[needed.as_ref()]);
    std::fs::remove_file(&needed).unwrap();
    let why = refusal(&library);
    assert!(why.starts_with("it needs the shared library libkg_vanished.so.13"), "{why}");
    Run::new("check-plugin").arg(&library).expect_code(3).stdout_contains("libkg_vanished.so.13");
}

// ---- Where tensors lie -----------------------------------------------------------------------

/// The example as it was before tensors could lie anywhere: it reads them where they are.
fn an_older_example() -> PathBuf {
    let text = std::fs::read_to_string(repository().join("tests/examples/denoiser.c")).unwrap();
    let text = text
        .replace("KG_ABI_MINOR", "1")
        .replace("KG_ANYWHERE", "0")
        .replace("kg_tensor_cpu(value->as.tensor)", "&value->as.tensor->dl->dl_tensor");
    build_c_text("older_example", &text, &[])
}

/// A library that takes every tensor to lie on the CPU gets it there, from the host for its nodes and from
/// whoever calls for its interfaces.
#[test]
fn a_library_that_looks_at_no_place_is_given_tensors_on_the_cpu() {
    let there = |shape: &[i64], numbers: &[f32]| {
        played_elsewhere(&Value::tensor_f32(shape, numbers).unwrap()).unwrap()
    };
    let asked = input([
        ("x", there(&[1, 1, 1, 2], &[0.5, -1.0])),
        ("timestep", there(&[1], &[500.0])),
        ("context", there(&[1, 1, 1], &[0.0])),
    ]);
    let answers = [c_example().to_owned(), an_older_example()].map(|path| {
        let library = Library::load(&path).unwrap();
        let image = there(&[1, 1, 1, 3], &[0.0, 0.25, 1.0]);
        let inverted = library.run(0, &Quiet, &[image, Value::number(1.0)]).unwrap();
        assert_eq!(inverted[0].as_tensor().unwrap().to_f32().unwrap(), [1.0, 0.75, 0.0]);
        let model = library.run(1, &Quiet, &[Value::number(0.3), Value::number(0.7)]).unwrap();
        let answer = call_interface(&model[0], "denoiser/1", &Quiet, &asked).unwrap();
        answer.get("prediction").unwrap().as_tensor().unwrap().to_f32().unwrap()
    });
    assert!(answers[0].iter().all(|x| x.is_finite()));
    assert_eq!(answers[0], answers[1]);
}

// ---- Objects that break the rules of their interfaces -----------------------------------------

/// What `check-plugin` says of each wrong object of wrong.c, by the number of its mistake.
const WRONG: [&str; 17] = [
    "\"denoiser/1\" of a MODEL gives a wrong \"prediction\": its shape is [2, 4, 8, 9], so W of",
    "\"denoiser/1\" of a MODEL gives a wrong \"prediction\": a tensor [B,*,H,W] is missing",
    "gives a value that is a map whose \"prediction\" is a tensor at NULL",
    "\"denoiser/1\" of a MODEL gives a wrong \"prediction\": a tensor [B,*,H,W] is wanted, but a string",
    "\"denoiser/1\" of a MODEL says it is done, but gives no map",
    "\"denoiser/1\" without \"x\" is no error",
    "\"denoiser/1\" with a key that it does not know: ",
    "\"denoiser/1\" of a MODEL failed and gave no reason",
    "\"denoiser/1\" gives numbers that are not finite",
    "\"denoiser/1\" of a MODEL gives a wrong \"prediction\": f32 is wanted",
    "\"describe/1\" gives 3 alphas_cumprod for 1000 steps",
    "\"describe/1\" gives what is not JSON",
    "\"memory/1\" gives Some(-1), not a number of bytes",
    "offers \"control/1\", which is no interface of its type",
    "the MODEL does not offer \"denoiser/1\"",
    "\"denoiser/1\" with tensors that lie on a device it does not know gives something else",
    "has 16 bytes, not 24: its library was built with another node.h",
];

#[test]
fn the_conformance_checks_find_every_wrong_object() {
    for (number, wanted) in WRONG.iter().enumerate() {
        let report = Run::new("check-plugin").arg(wrong_object(Some(number))).expect_code(3);
        let rule =
            "FAILED   CAnalyticDenoiser: it does what its descriptor says: output \"model\": ";
        report.stdout_contains(rule).stdout_contains(wanted);
    }
    // The mistakes are all that is wrong with it.
    Run::new("check-plugin").arg(wrong_object(None)).expect_success();
}

/// A model of SDXL's family is asked with the pooled vector and the sizes that it says it wants.
#[test]
fn a_model_that_wants_a_vector_is_given_one() {
    let text = std::fs::read_to_string(repository().join("tests/examples/denoiser.c")).unwrap();
    let wants = r#"\"context_width\": 768, \"pooled_width\": 20, \"sizes\": 5, "#;
    let reads = r#"const DLTensor *pooled, *sizes;
        if (read_key(context, input, "pooled", 2, "[B, P]", &pooled) != KG_OK) return KG_ERROR;
        if (read_key(context, input, "sizes", 2, "[B, S]", &sizes) != KG_OK) return KG_ERROR;
        if (pooled->shape[0] != x->shape[0] || pooled->shape[1] != 20 || sizes->shape[1] != 5)
          return fail(context, "pooled", "20 numbers and 5 sizes are wanted for each row");
        int64_t batch = x->shape[0]"#;
    let text = text.replacen(r#"\"context_width\": 768, "#, wants, 1);
    let text = text.replacen("int64_t batch = x->shape[0]", reads, 1);
    assert!(text.contains(wants) && text.contains(reads));
    Run::new("check-plugin").arg(build_c_text("vector_example", &text, &[])).expect_success();
}

// ---- Libraries that misbehave ----------------------------------------------------------------

#[test]
fn garbage_from_a_node_is_an_error_of_that_node() {
    let library = Library::load(&c_library("garbage.c")).unwrap();
    let sentences = [
        "A failed and gave no reason",
        "B ended as cancelled, though nobody asked it to stop",
        "C returned the status 42",
        "D says it is done, but its output 0 \"out\" (IMAGE) is nothing",
        "is of kind 4711, but the kinds of the boundary end at 8",
        "is a tensor at NULL",
        "is a string whose text is not UTF-8",
        "is a list of 8 bytes, where there must be 40",
        "is a list of 5 values without them",
        "is a list that contains itself",
        "is a tensor without to_dlpack",
        "L says it is done, but its output 0 \"out\" (IMAGE) is an integer",
        "M gave an output that is not JSON",
        "(a text that is longer than memory)",
    ];
    for (node, wanted) in sentences.iter().enumerate() {
        match library.run(node, &Quiet, &[]) {
            Err(NodeFailure::Failed { sentence, .. }) => {
                assert!(sentence.contains(wanted), "node {node}: {sentence}");
            }
            other => panic!("node {node} gives {other:?}"),
        }
    }
    assert!(library.run(sentences.len(), &Quiet, &[]).is_err());
}

#[test]
fn a_panic_inside_is_an_error() {
    let library = Library::load(&node_library("kosmograph-example-invert")).unwrap();
    match library.panic_inside(&Quiet) {
        Some(Err(NodeFailure::Failed { sentence, .. })) => {
            assert!(sentence.contains("panicked"), "{sentence}");
        }
        other => panic!("{other:?}"),
    }
    // And the library goes on working.
    let image = Value::tensor_f32(&[1, 1, 1, 3], &[0.0, 0.25, 1.0]).unwrap();
    let inverted = library.run(0, &Quiet, &[image, Value::number(1.0)]).unwrap();
    assert_eq!(inverted[0].as_tensor().unwrap().to_f32().unwrap(), [1.0, 0.75, 0.0]);
}

#[test]
fn the_conformance_checks_find_what_is_careless() {
    let library = c_library("careless.c");
    let report = Run::new("check-plugin").arg(library).expect_code(3);
    let faults = [
        "NoRange: a value out of range is refused: called with strength = -1 is no error",
        "NoRange: the layout of a tensor does not matter: ",
        "Leaks: references are given back: called with inputs made up from its descriptor, input 0 \
         has 1 references more after every call",
        "GivesAwayWhatIsLent: references are given back: called with inputs made up from its \
         descriptor, input 0 was released 1 times more often than retained",
        "NeverStops: it stops when it is asked to: it reports progress, but does not stop",
        "Impure: equal inputs give equal outputs: the second call gave other outputs",
        "TooBright: it does what its descriptor says: output \"image\" has the value 7",
        "NoCounts: a wrong number of inputs or outputs is refused: called with 3 inputs",
        "NoReason: a missing input is refused: called with image = nothing breaks a rule",
        "Forgets: references are given back: called with inputs made up from its descriptor, 1 \
         things that the host allocated are never released",
        "NamesAnother: a missing input is refused: called with image = nothing is an error that \
         names \"picture\"",
        "Crashes: a missing input is refused: the process ended with SIGSEGV \
         (segmentation fault) while it was called with image = nothing",
    ];
    faults
        .into_iter()
        .fold(report, |report, fault| report.stdout_contains(&format!("FAILED   {fault}")));
}
