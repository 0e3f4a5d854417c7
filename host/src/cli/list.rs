//! `kosmograph nodes`, `plugins` and `check-plugin`.

use super::{Exit, refuse};
use crate::args;
use crate::catalogue::{Catalogue, InputDescriptor, InputKind, LeftOut, NodeDescriptor};
use crate::conformance;
use crate::events::Listener;
use crate::folders::{Folders, Given};
use crate::libraries::{Asked, Libraries};
use crate::object_info::{class_info, object_info};
use crate::problem::{Kind, nearest};
use crate::python::Packs;
use serde_json::json;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

pub fn nodes(args: &args::Nodes, listener: &dyn Listener) -> Exit {
    let given = Given {
        models: &args.models,
        extra_model_paths: &args.extra_model_paths,
        input: args.input.as_deref(),
        ..Given::default()
    };
    let folders = match Folders::find(given) {
        Ok(folders) => folders,
        Err(error) => return refuse(listener, Kind::Arguments, &error),
    };
    let libraries = match found(&args.plugins, &args.python, &folders) {
        Ok(libraries) => libraries,
        Err(sentence) => return refuse(listener, Kind::Arguments, &sentence),
    };
    let catalogue = &libraries.catalogue;
    let text = match &args.class {
        None if args.json => format!("{:#}\n", object_info(catalogue, &folders)),
        None => all_classes(catalogue),
        Some(name) => {
            let Some(class) = catalogue.get(name) else {
                let nearest = nearest(name, catalogue.class_names());
                let meant = nearest.map(|name| format!("; did you mean \"{name}\"?"));
                let meant = meant.unwrap_or_default();
                let sentence = format!("no library has the class \"{name}\"{meant}");
                return refuse(listener, Kind::Arguments, &sentence);
            };
            if args.json {
                format!("{:#}\n", json!({name: class_info(catalogue, class, &folders)}))
            } else {
                let library = &catalogue.libraries()[class.library];
                let path = library.path.display();
                let from = format!("{} {} ({path})", library.name, library.version);
                one_class(&class.descriptor, &from, &folders)
            }
        }
    };
    print(&text)
}

/// The libraries, and the packs of nodes in Python.
fn found(
    plugins: &[PathBuf],
    python: &args::PythonNodes,
    folders: &Folders,
) -> Result<Libraries, String> {
    let mut libraries = Libraries::find(plugins).map_err(|error| error.to_string())?;
    let packs = Packs::find(&python.python_nodes, &python.python, folders)
        .map_err(|error| error.to_string())?;
    libraries.add_packs(&packs, Asked::Freely);
    Ok(libraries)
}

fn all_classes(catalogue: &Catalogue) -> String {
    let mut text = String::new();
    let width = catalogue.class_names().map(|name| name.chars().count()).max().unwrap_or_default();
    for (number, library) in catalogue.libraries().iter().enumerate() {
        let _ = writeln!(text, "{} {}", library.name, library.version);
        let classes = catalogue.classes().iter().filter(|class| class.library == number);
        for node in classes.map(|class| &class.descriptor) {
            let sentence = node.doc.lines().next().unwrap_or_default();
            let _ = writeln!(text, "  {:width$}  {sentence}", node.class);
        }
    }
    text
}

fn one_class(node: &NodeDescriptor, from: &str, folders: &Folders) -> String {
    let mut text = format!("{}, from {from}\n", node.class);
    if !node.doc.is_empty() {
        let _ = writeln!(text, "{}", node.doc);
    }
    text.push_str("\nInputs");
    text.push_str(if node.input_is_list {
        ", of lists all of their values at once\n"
    } else {
        "\n"
    });
    for input in &node.inputs {
        let optional = if input.optional { ", optional" } else { "" };
        let _ = writeln!(text, "  {}: {}{optional}", input.name, what_it_takes(input, folders));
        if !input.doc.is_empty() {
            let _ = writeln!(text, "      {}", input.doc.replace('\n', "\n      "));
        }
    }
    text.push_str("\nOutputs\n");
    for (slot, output) in node.outputs.iter().enumerate() {
        let list = match output.is_list {
            true => ", a list: what comes behind it runs once for each",
            false => "",
        };
        let _ = writeln!(text, "  {slot} {}: {}{list}", output.name, output.kind);
    }
    if node.output_node {
        text.push_str("  what it does outside the graph\n");
    }
    text
}

fn what_it_takes(input: &InputDescriptor, folders: &Folders) -> String {
    let mut text = input.type_name.clone();
    let mut add = |what: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = write!(text, ", {what}{value}");
        }
    };
    match &input.kind {
        InputKind::Socket => (),
        InputKind::Int { default, min, max, step, seed } => {
            add("", Some(format!("{min} to {max}")));
            add("in steps of ", step.map(|step| step.to_string()));
            add("default ", default.map(|default| default.to_string()));
            add("", seed.then(|| "set by --seed".to_owned()));
        }
        InputKind::Float { default, min, max, .. } => {
            add("from ", min.map(|min| min.to_string()));
            add("to ", max.map(|max| max.to_string()));
            add("default ", default.map(|default| default.to_string()));
        }
        InputKind::Text { default, .. } => {
            add("default ", default.as_ref().map(|default| format!("{default:?}")));
        }
        InputKind::Boolean { default } => {
            add("default ", default.map(|default| default.to_string()))
        }
        InputKind::Combo { default, choices, .. } => {
            add("", Some(choices.join(" | ")));
            add("default ", default.clone());
        }
        InputKind::Path { default, folder, entry, none } => {
            let names = folders.names(folder, *entry);
            add("a file of ", Some(folder.clone()));
            add("none of them: ", none.clone());
            add("there are: ", (!names.is_empty()).then(|| names.join(" | ")));
            add("none of them: ", none.clone());
            add("default ", default.clone());
        }
    }
    text
}

pub fn plugins(args: &args::Plugins, listener: &dyn Listener) -> Exit {
    let folders = match Folders::find(Given::default()) {
        Ok(folders) => folders,
        Err(error) => return refuse(listener, Kind::Arguments, &error),
    };
    let libraries = match found(&args.plugins, &args.python, &folders) {
        Ok(libraries) => libraries,
        Err(sentence) => return refuse(listener, Kind::Arguments, &sentence),
    };
    let loaded = libraries.catalogue.libraries();
    if args.json {
        let loaded: Vec<_> = loaded
            .iter()
            .map(|library| {
                let mut told = json!({"name": library.name, "version": library.version,
                    "path": library.path, "classes": library.classes});
                if let Some(pack) = &library.python {
                    told["python"] = json!(pack.program);
                    told["left_out"] = json!(library.left_out);
                }
                told
            })
            .collect();
        let json = json!({"libraries": loaded, "failed": libraries.failed,
            "warnings": libraries.catalogue.warnings(), "searched": libraries.searched});
        return print(&format!("{json:#}\n"));
    }
    let mut text = String::new();
    for library in loaded {
        let (name, version, path) = (&library.name, &library.version, library.path.display());
        let _ = writeln!(text, "{name} {version}: {} classes, {path}", library.classes);
        for LeftOut { class, reason } in &library.left_out {
            let _ = writeln!(text, "  without {class}: {reason}");
        }
    }
    for failed in &libraries.failed {
        let _ = writeln!(text, "not loaded: {}", failed.reason);
    }
    for warning in libraries.catalogue.warnings() {
        let _ = writeln!(text, "warning: {warning}");
    }
    if text.is_empty() {
        text.push_str("no node library was found; looked in\n");
        for path in &libraries.searched {
            let _ = writeln!(text, "  {}", path.display());
        }
    }
    print(&text)
}

pub fn check_plugin(args: &args::CheckPlugin, listener: &dyn Listener) -> Exit {
    // dlopen looks for a bare name in the system's folders, not in this one.
    let path = match std::path::absolute(&args.library) {
        Ok(path) if path.is_file() => path,
        _ => {
            let sentence = format!("{}: there is no such file", args.library.display());
            return refuse(listener, Kind::Arguments, &sentence);
        }
    };
    if args.here {
        conformance::report_here(&path);
        return Exit::Done;
    }
    match conformance::check_in_child(&path) {
        Ok(report) => {
            let printed = print(&report.to_string());
            if report.passed() { printed } else { Exit::Failed }
        }
        Err(error) => {
            let sentence = format!("the process that checks cannot be started: {error}");
            refuse(listener, Kind::Arguments, &sentence)
        }
    }
}

/// Writes the answer of a command. A reader that has seen enough, as in `kosmograph nodes | head`, is no
/// error; a standard output that takes nothing is.
pub(super) fn print(text: &str) -> Exit {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            let _ =
                writeln!(std::io::stderr(), "error: standard output cannot be written: {error}");
            Exit::Failed
        }
        _ => Exit::Done,
    }
}
