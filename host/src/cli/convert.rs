//! `kosmograph convert`: the first library that knows the file converts it.

use super::run::cancelled_by_ctrl_c;
use super::{Exit, refuse};
use crate::args;
use crate::events::{Event, Listener};
use crate::libraries::Libraries;
use crate::plugin::{Call, LogLevel, NodeFailure};
use crate::problem::NodeName;
use crate::value::Value;
use serde_json::{Value as Json, json};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

pub fn convert(args: &args::Convert, listener: &dyn Listener) -> Exit {
    let refuse = |sentence: &dyn std::fmt::Display| refuse(listener, "arguments", sentence);
    if !args.input.is_file() {
        return refuse(&format!("there is no file {}", args.input.display()));
    }
    if args.output.symlink_metadata().is_ok() {
        let output = args.output.display();
        return refuse(&format!("{output} is there already; nothing is written over"));
    }
    let mut options = json!({});
    if let Some(folder) = &args.tokenizer {
        if !folder.is_dir() {
            return refuse(&format!("--tokenizer {}: there is no such folder", folder.display()));
        }
        match absolute(folder) {
            Ok(folder) => options["tokenizer"] = folder.into(),
            Err(sentence) => return refuse(&sentence),
        }
    }
    let (input, output) = match (absolute(&args.input), absolute(&args.output)) {
        (Ok(input), Ok(output)) => (input, output),
        (Err(sentence), _) | (_, Err(sentence)) => return refuse(&sentence),
    };
    let libraries = match Libraries::find(&args.plugins) {
        Ok(libraries) => libraries,
        Err(error) => return refuse(&error),
    };

    let inputs =
        [Value::string(&input), Value::string(&output), Value::string(&options.to_string())];
    let class = "convert".to_owned();
    let name = NodeName { id: class.clone(), title: None, class };
    let cancel = cancelled_by_ctrl_c();
    let call = Conversion { listener, name: &name, cancel: &cancel };
    let start = Instant::now();
    listener.event(&Event::NodeStarted(&name));
    let mut asked = 0;
    for library in &libraries.loaded {
        match library.call_extension("convert/1", &call, &inputs, 1) {
            None => continue,
            Some(Err(NodeFailure::Cancelled)) => {
                let seconds = start.elapsed().as_secs_f64();
                listener.event(&Event::Interrupted { seconds });
                return Exit::Interrupted;
            }
            Some(Err(NodeFailure::Failed { sentence, .. })) => {
                listener.event(&Event::Refused { kind: "convert", message: &sentence });
                return Exit::Failed;
            }
            Some(Ok(values)) => {
                asked += 1;
                let Some(made) = values.first().and_then(Value::as_str) else { continue };
                let seconds = start.elapsed().as_secs_f64();
                listener.event(&Event::NodeDone { node: &name.id, seconds });
                tell(listener, &name, made, &output);
                return Exit::Done;
            }
        }
    }
    let failed: String =
        libraries.failed.iter().map(|failed| format!("\n{}", failed.reason)).collect();
    refuse(&match asked {
        0 => format!(
            "no node library that converts was found; say where they are with --plugins DIR{failed}"
        ),
        _ => format!(
            "{} is of no kind that is converted: a torch checkpoint is",
            args.input.display()
        ),
    })
}

/// Says what was made, by the library's own account.
fn tell(listener: &dyn Listener, name: &NodeName, made: &str, output: &str) {
    let made: Json = serde_json::from_str(made).unwrap_or_default();
    let tensors = made["tensors"].as_u64().unwrap_or_default();
    let kind = made["kind"].as_str().unwrap_or("converted");
    let say = |message: &str| {
        listener.event(&Event::Log { level: "info", node: None, message });
    };
    for note in made["notes"].as_array().into_iter().flatten().filter_map(Json::as_str) {
        say(note);
    }
    say(&format!("{kind}, {tensors} tensors"));
    let files = vec![made["output"].as_str().unwrap_or(output).to_owned()];
    listener.event(&Event::Output { node: &name.id, output: &made, files });
}

/// An absolute path as text, which is how it crosses the boundary.
fn absolute(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let absolute = std::path::absolute(path).map_err(|error| format!("{shown}: {error}"))?;
    let text = absolute.into_os_string().into_string();
    text.map_err(|_| format!("the path {shown} is not UTF-8"))
}

/// The host of the conversion.
struct Conversion<'a> {
    listener: &'a dyn Listener,
    name: &'a NodeName,
    cancel: &'a AtomicBool,
}

impl Call for Conversion<'_> {
    fn log(&self, level: LogLevel, message: &str) {
        let level = match level {
            LogLevel::Error => "error",
            LogLevel::Warn => "warning",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
        };
        self.listener.event(&Event::Log { level, node: None, message });
    }

    fn progress(&self, step: u64, steps: u64) -> bool {
        self.listener.event(&Event::Progress { node: &self.name.id, step, steps });
        self.cancel.load(Ordering::Relaxed)
    }

    fn property(&self, name: &str) -> Option<String> {
        (name == "device").then(|| "cpu".to_owned())
    }

    fn output(&self, _: Json) {}
}
