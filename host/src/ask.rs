//! What packs in Python are asked about a plan before it runs: VALIDATE_INPUTS and IS_CHANGED of ComfyUI.
//!
//! Both run a stranger's code, so they are asked where the pack's nodes run, in the pack's process behind a worker
//! ([`crate::supervisor::Supervisor::ask`]), and never in the process that plans. The plan is made, the questions follow from
//! it, and with the answers it is made again: what is refused is a problem of its node, and what IS_CHANGED gave is part of
//! the key of the node's result.

use crate::catalogue::Catalogue;
use crate::plan::{Literal, Plan, Source};
use crate::problem::{Kind, Problem};
use crate::wire::Provider;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use std::collections::HashMap;

/// By node's id what its class says of its results besides its inputs; a node that is not here runs always.
pub type Changes = HashMap<String, String>;

/// Answers by question, for runs of a sweep, which are asked once.
pub type Memo = HashMap<String, Answer>;

/// Who asks; nothing where there is nothing to ask.
pub type Ask<'a> = dyn FnMut(&Plan, &Catalogue) -> Option<Answers> + 'a;

/// Nobody is asked.
pub fn nobody(_: &Plan, _: &Catalogue) -> Option<Answers> {
    None
}

/// What was answered about a plan.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// What VALIDATE_INPUTS refuses.
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
    pub changes: Changes,
}

/// One question to a pack, about one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Question {
    pub pack: Provider,
    /// What the bridge is told: "class", "node" (its id), "what" ("valid" or "changed"), "inputs" (pairs of a name and a
    /// value as it travels), "linked" (pairs of a name and a type).
    pub told: Json,
}

/// What came of a question.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// To "changed": what stands for the value; none, where that is equal to no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// To "valid": why the inputs are refused. To "changed": why nothing can be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentence: Option<String>,
}

/// A question, and the step of the plan that it is about.
pub(crate) struct OfStep {
    pub step: usize,
    is_changed: bool,
    pub question: Question,
}

/// The questions that `plan` raises; those after changes only where `changed` says so.
pub(crate) fn questions(plan: &Plan, catalogue: &Catalogue, changed: bool) -> Vec<OfStep> {
    let mut questions = Vec::new();
    for (at, step) in plan.steps().iter().enumerate() {
        let asks = step.descriptor.asks;
        let wanted = [("valid", asks.valid), ("changed", asks.changed && changed)];
        let entry = catalogue.libraries().get(step.library).filter(|entry| entry.python.is_some());
        let Some(entry) = entry else { continue };
        let (mut inputs, mut linked) = (Vec::new(), Vec::new());
        for (input, source) in step.descriptor.inputs.iter().zip(&step.inputs) {
            match source {
                Source::Absent => (),
                Source::Literal(literal) => inputs.push(json!([input.name, travelling(literal)])),
                Source::Link { step, slot } => {
                    let outputs = plan.steps().get(*step).map(|from| &from.descriptor.outputs);
                    let output = outputs.and_then(|outputs| outputs.get(*slot));
                    linked.push(json!([input.name, output.map(|output| &output.kind)]));
                }
            }
        }
        for (what, _) in wanted.into_iter().filter(|(_, wanted)| *wanted) {
            let told = json!({"class": step.descriptor.class, "node": step.name.id, "what": what, "inputs": inputs,
                "linked": linked});
            let question = Question { pack: entry.into(), told };
            questions.push(OfStep { step: at, is_changed: what == "changed", question });
        }
    }
    questions
}

/// As [`crate::python`] sends values.
fn travelling(literal: &Literal) -> Json {
    match literal {
        Literal::Boolean(value) => json!(["bool", value]),
        Literal::Integer(value) => json!(["int", value]),
        Literal::Natural(value) => json!(["int", value]),
        Literal::Number(value) => json!(["float", value.to_string()]),
        Literal::Text(text)
        | Literal::Path { path: text, .. }
        | Literal::TextWithFiles { text, .. } => json!(["text", text]),
    }
}

impl OfStep {
    /// What it is remembered by.
    pub fn memo(&self) -> String {
        format!("{} {}", self.question.pack.path.display(), self.question.told)
    }
}

impl Answers {
    /// Adds what came of a question.
    pub(crate) fn add(&mut self, plan: &Plan, asked: &OfStep, answer: Answer) {
        let Some(step) = plan.steps().get(asked.step) else { return };
        let name = || step.name.clone();
        match (asked.is_changed, answer) {
            (true, Answer { fingerprint: Some(fingerprint), .. }) => {
                self.changes.insert(step.name.id.clone(), fingerprint);
            }
            (true, Answer { sentence: Some(sentence), .. }) => {
                let message = format!("{sentence}; so it is run in every run");
                self.warnings.push(Problem::new(Kind::Unfit, message).at(name()));
            }
            (false, Answer { sentence: Some(sentence), .. }) => {
                self.problems.push(Problem::new(Kind::CustomValidationFailed, sentence).at(name()));
            }
            _ => (),
        }
    }
}
