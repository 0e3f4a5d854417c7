//! `kosmograph convert`: the first library that knows the file converts it, in a worker.

use super::work::{absolute, work};
use super::{Exit, refuse};
use crate::args;
use crate::events::{Event, Level, Listener};
use crate::interrupt;
use crate::problem::Kind;
use crate::wire::WorkKind;
use indicatif::MultiProgress;
use serde_json::{Value as Json, json};

pub fn convert(
    args: &args::Convert,
    listener: &'static dyn Listener,
    screen: &MultiProgress,
) -> Exit {
    let cancel = interrupt::gracefully(listener);
    let refuse = |sentence: &dyn std::fmt::Display| refuse(listener, Kind::Arguments, sentence);
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
    let input = [("input", input), ("output", output), ("options", options.to_string())];
    let said = |made: &Json| {
        let tensors = made["tensors"].as_u64().unwrap_or_default();
        let kind = made["kind"].as_str().unwrap_or("converted");
        let say = |message: &str| listener.event(&Event::log(Level::Info, message));
        let notes = made["notes"].as_array().into_iter().flatten();
        notes.filter_map(Json::as_str).for_each(say);
        say(&format!("{kind}, {tensors} tensors"));
    };
    work(WorkKind::Convert, input, &args.plugins, (listener, screen), cancel, said)
}
