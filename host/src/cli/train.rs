//! `kosmograph train` and `kosmograph data`: the first library that trains does, in a worker.

use super::work::{absolute, work};
use super::{Exit, refuse};
use crate::args;
use crate::events::Listener;
use crate::interrupt;
use crate::problem::Kind;
use crate::wire::WorkKind;
use indicatif::MultiProgress;
use std::path::Path;

/// The largest configuration that is read.
const LARGEST: u64 = 1 << 20;

/// With `task` the configuration is of that task, and need not say so.
pub fn train(
    args: &args::Train,
    task: Option<&str>,
    listener: &'static dyn Listener,
    screen: &MultiProgress,
) -> Exit {
    let cancel = interrupt::gracefully(listener);
    let refuse = |sentence: &dyn std::fmt::Display| refuse(listener, Kind::Arguments, sentence);
    let shown = args.config.display();
    let config = match std::fs::metadata(&args.config) {
        Ok(file) if file.len() > LARGEST => {
            return refuse(&format!("{shown} is larger than a configuration can be"));
        }
        Ok(_) => std::fs::read_to_string(&args.config),
        Err(error) => Err(error),
    };
    let config = match config {
        Ok(config) => config,
        Err(error) => return refuse(&format!("{shown}: {error}")),
    };
    let config = match &args.budget {
        None => config,
        // The library that trains says what is wrong with either.
        Some(budget) => match serde_json::from_str::<serde_json::Value>(&config) {
            Ok(mut json) if json.get("stages").is_some() => {
                json["budget"] = budget.as_str().into();
                json.to_string()
            }
            Ok(_) => return refuse(&format!("{shown} has no \"stages\", and so no budgets")),
            Err(_) => config,
        },
    };
    let config = match (task, serde_json::from_str::<serde_json::Value>(&config)) {
        (Some(task), Ok(mut json)) if json.is_object() => {
            let said = json["task"].as_str().unwrap_or(task).to_owned();
            if json.get("stages").is_some() {
                return refuse(&format!(
                    "{shown} has \"stages\", which `kosmograph train` does one after the other; one configuration of the task \
                     {task} would be right"
                ));
            }
            if said != task {
                return refuse(&format!(
                    "{shown} is no configuration of the task {task}; `kosmograph train` does others"
                ));
            }
            json["task"] = task.into();
            json.to_string()
        }
        _ => config,
    };
    let folder = match args.config.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let folder = match absolute(folder) {
        Ok(folder) => folder,
        Err(sentence) => return refuse(&sentence),
    };
    let input = [("config", config), ("folder", folder)];
    work(WorkKind::Train, input, &args.plugins, (listener, screen), cancel, |_| ())
}
