//! What a node is lent while it runs.

use super::lists::Element;
use super::memory::Work;
use super::{Properties, Setting};
use crate::events::Event;
use crate::plan::{Literal, Source, Step};
use crate::plugin::{Call, LogLevel};
use crate::preview::Preview;
use crate::problem::NodeName;
use crate::promise::{Promise, files};
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// What one call is lent.
pub(super) struct Hooks<'a> {
    pub(super) step: &'a Step,
    pub(super) setting: Setting<'a>,
    /// What it may work in, where there is a budget.
    pub(super) work: Option<Work>,
    /// Which element of a list the call is for, where there is one.
    pub(super) element: Option<Element>,
}

impl Hooks<'_> {
    fn name(&self) -> &NodeName {
        &self.step.name
    }

    /// The names of the inputs that are `wanted`, as JSON.
    fn inputs(&self, wanted: impl Fn(&Source) -> bool) -> String {
        let inputs = self.step.inputs.iter().zip(&self.step.descriptor.inputs);
        let wanted = inputs.filter(|(source, _)| wanted(source));
        let names: Vec<&str> = wanted.map(|(_, input)| input.name.as_str()).collect();
        serde_json::json!(names).to_string()
    }

    /// The path of a file that one of the step's texts mentions.
    fn mentioned(&self, property: &str) -> Option<String> {
        let files = self.step.inputs.iter().filter_map(|source| match source {
            Source::Literal(Literal::TextWithFiles { files, .. }) => Some(files),
            _ => None,
        });
        let mut files = files.flatten();
        files.find(|file| file.property == property).map(|file| file.path.clone())
    }
}

impl Call for Hooks<'_> {
    fn log(&self, level: LogLevel, message: &str) {
        tracing::debug!(node = self.name().id, ?level, "{message}");
        let node = Some(Cow::Borrowed(self.name()));
        let event = Event::Log { level: level.into(), node, message: message.into() };
        self.setting.listener.event(&event);
    }

    fn progress(&self, step: u64, steps: u64) -> bool {
        // 0 of 0 only asks whether to stop.
        if steps > 0 {
            let node = self.name().id.as_str().into();
            let whole = |element: Element| element.progress(step, steps);
            let (step, steps) = self.element.map_or((step, steps), whole);
            self.setting.listener.event(&Event::Progress { node, step, steps });
        }
        self.setting.cancel.load(Ordering::Relaxed)
    }

    fn property(&self, name: &str) -> Option<String> {
        let properties = self.setting.properties;
        let path = |path: &PathBuf| path.to_str().map(str::to_owned);
        match name {
            "device" => Some(properties.device.clone()),
            "node" => Some(self.name().id.clone()),
            "inputs" => Some(self.inputs(|_| true)),
            // What is not there of these was not computed.
            "linked" => Some(self.inputs(|source| matches!(source, Source::Link { .. }))),
            "output_directory" => path(&properties.output_directory),
            "temp_directory" => path(&properties.temp_directory),
            "prompt" => Some(properties.prompt.clone()),
            "workflow" => properties.workflow.clone(),
            name if name.starts_with("file:") => self.mentioned(name),
            name if name.starts_with("room:") => {
                let wanted = name.strip_prefix("room:")?.parse().ok()?;
                Some(self.work.as_ref()?.room(wanted, self).to_string())
            }
            name if self.wants_previews() => {
                path(properties.preview_files.get(name.strip_prefix("preview_file:")?)?)
            }
            _ => None,
        }
    }

    fn wants_previews(&self) -> bool {
        self.setting.listener.wants_previews()
    }

    fn preview(&self, preview: Preview) {
        self.setting.listener.preview(&self.name().id, &preview);
    }

    fn output(&self, json: serde_json::Value) {
        let Properties { output_directory, temp_directory, .. } = self.setting.properties;
        if let Some(promise) = Promise::of(&json, output_directory, temp_directory) {
            return self.setting.listener.promise(&promise);
        }
        let mut files = files(&json, output_directory, temp_directory);
        files.retain(|file| Path::new(file).is_file());
        let node = self.name().id.as_str().into();
        self.setting.listener.event(&Event::Output { node, output: Cow::Owned(json), files });
    }
}
