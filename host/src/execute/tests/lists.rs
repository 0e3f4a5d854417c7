//! Outputs that are lists: what runs for each of their values, and what for all.

use super::*;

#[test]
fn what_comes_behind_a_list_runs_for_each_of_its_values() {
    let sums = Sums::default();
    let plan = plan(&json!({
        "r": node("Range", 3, &[]), "p": node("Range", 2, &[]), "o": node("Odd", 2, &[]),
        // 0, 1, 2 with 0, 1, 1 and 2: the shorter list's last value comes again, the single one each time.
        "a": node("Odd", 4, &["r", "p", "o"]), "s": node("Show", 0, &["a"])}));
    let mut executor = Executor::new(&sums);
    let (outcome, heard) = run(&mut executor, &plan, Keep::Everything);
    assert_eq!((outcome.executed, outcome.failures.len()), (5, 0));
    let shown =
        |heard: &Heard| -> Vec<String> { heard.shown().into_iter().map(|(_, sum)| sum).collect() };
    assert_eq!(shown(&heard), ["6", "8", "9"]);
    assert_eq!(*sums.calls.lock().unwrap(), ["r", "p", "o", "a", "a", "a", "s", "s", "s"]);
    assert_eq!(heard.nodes("node_started"), ["r", "p", "o", "a", "s"], "told once each");
    assert_eq!(heard.nodes("node_done"), ["r", "p", "o", "a", "s"]);
    // Kept, a list is a list.
    let (outcome, heard) = run(&mut executor, &plan, Keep::Everything);
    assert_eq!((outcome.executed, outcome.cached), (0, 5));
    assert!(heard.shown().is_empty());
    assert_eq!(sums.calls.lock().unwrap().len(), 9);
}

#[test]
fn a_node_that_takes_lists_gets_all_of_them_and_lists_in_lists_are_one() {
    let sums = Sums::default();
    let plan = plan(&json!({
        "r": node("Range", 3, &[]), "t": node("Twice", 10, &["r"]),
        // 10, 11, 11, 12, 12, 13: six hundred and their sum and 5; alone: a hundred and 7 and 5.
        "g": node("Gather", 5, &["t"]), "s": node("Show", 0, &["g"]),
        "o": node("Odd", 7, &[]), "h": node("Gather", 5, &["o"]), "u": node("Show", 1, &["h"]),
        // What it gives is one value, so what follows runs once.
        "n": node("Odd", 1, &["g"]), "v": node("Show", 2, &["n"])}));
    let (outcome, heard) = run(&mut Executor::new(&sums), &plan, Keep::Nothing);
    assert_eq!(outcome.failures.len(), 0);
    let shown = |node: &str, sum: &str| (node.to_owned(), sum.to_owned());
    assert_eq!(heard.shown(), [shown("s", "674"), shown("u", "113"), shown("v", "677")]);
}

#[test]
fn an_element_that_fails_is_named_and_an_empty_list_is_refused() {
    let sums = Sums::default();
    let plan = plan(&json!({
        "r": node("Range", 4, &[]), "a": node("Odd", 0, &["r"]), "s": node("Show", 0, &["a"]),
        "e": node("Range", 0, &[]), "b": node("Add", 0, &["e"]), "t": node("Show", 1, &["b"]),
        "u": node("Show", 2, &["r"])}));
    let (outcome, heard) = run(&mut Executor::new(&sums), &plan, Keep::Nothing);
    let said: Vec<String> = outcome.failures.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("input \"i0\": element 2 of 4: it is odd"), "{}", said[0]);
    assert!(said[1].contains("input \"i0\": the list it is linked to is empty"), "{}", said[1]);
    assert_eq!(heard.nodes("skipped"), ["s", "t"]);
    assert_eq!(heard.shown().len(), 4, "the other output is made");
}

#[test]
fn progress_is_that_of_the_whole_list() {
    let sums = Sums::default();
    let plan = plan(&json!({
        "r": node("Range", 3, &[]), "a": node("Steps", 0, &["r"]), "s": node("Show", 0, &["a"])}));
    let heard = Deaf(Heard::default());
    let properties = Properties::default();
    let setting = Setting {
        properties: &properties,
        listener: &heard,
        cancel: &heard.0.cancel,
        keep: Keep::Nothing,
        earlier: &Earlier::NONE,
    };
    let outcome = Executor::new(&sums).run(&plan, setting);
    assert_eq!(outcome.executed, 3);
    let steps = |event: &Json| (event["step"].as_u64(), event["steps"].as_u64());
    let told: Vec<_> = heard.0.of("progress").iter().map(steps).collect();
    assert_eq!(told, (1..=6).map(|step| (Some(step), Some(6))).collect::<Vec<_>>());
}

/// Does not cancel at progress, as [`Heard`] does.
struct Deaf(Heard);

impl Listener for Deaf {
    fn event(&self, event: &Event) {
        self.0.events.lock().unwrap().push(serde_json::to_value(event).unwrap());
    }
}

#[test]
fn a_list_of_thousands_is_cancelled_between_its_elements() {
    let sums = Sums::default();
    let plan = plan(&json!({
        "r": node("Range", 5000, &[]), "a": node("Steps", 0, &["r"]), "s": node("Show", 0, &["a"])}));
    let (outcome, heard) = run(&mut Executor::new(&sums), &plan, Keep::Everything);
    assert!(outcome.interrupted && heard.shown().is_empty());
    assert_eq!(*sums.calls.lock().unwrap(), ["r", "a"]);
}
