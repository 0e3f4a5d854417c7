//! `kosmograph evaluate`: the first library that measures pictures does, in a worker; the table is printed here.

use super::work::{absolute, work};
use super::{Exit, list, refuse};
use crate::args;
use crate::events::Listener;
use crate::interrupt;
use crate::problem::Kind;
use crate::wire::WorkKind;
use indicatif::MultiProgress;
use serde_json::{Value as Json, json};
use std::path::Path;

pub fn evaluate(
    args: &args::Evaluate,
    listener: &'static dyn Listener,
    screen: &MultiProgress,
) -> Exit {
    let cancel = interrupt::gracefully(listener);
    let request = match request(args) {
        Ok(request) => request,
        Err(sentence) => return refuse(listener, Kind::Arguments, &sentence),
    };
    let print = |made: &Json| {
        if !args.json && !args.quiet && made["table"].is_object() {
            screen.suspend(|| list::print(&table(&made["table"])));
        }
    };
    let input = [("request", request.to_string())];
    work(WorkKind::Evaluate, input, &args.plugins, (listener, screen), cancel, print)
}

/// What "evaluate/1" takes.
fn request(args: &args::Evaluate) -> Result<Json, String> {
    let there = |path: &Path| match path.exists() {
        true => absolute(path),
        false => Err(format!("there is no {}", path.display())),
    };
    let mut request = json!({"drawn": there(&args.drawn)?, "real": there(&args.real)?});
    for (name, path) in &args.measure {
        if request["measures"].get(name).is_some() {
            return Err(format!("--measure {name} is given twice"));
        }
        request["measures"][name] = there(path)?.into();
    }
    if let Some(inputs) = &args.inputs {
        request["inputs"] = there(inputs)?.into();
    }
    if let Some(sheet) = &args.sheet {
        request["sheet"] = absolute(sheet)?.into();
    }
    Ok(request)
}

/// The rows of a table under their columns: texts to the left, numbers with two digits to the right.
fn table(table: &Json) -> String {
    let list = |json: &Json| json.as_array().cloned().unwrap_or_default();
    let shown = |cell: &Json| match cell {
        Json::String(text) => text.clone(),
        Json::Null => "–".to_owned(),
        Json::Number(number) => match number.as_u64() {
            Some(count) => count.to_string(),
            None => format!("{:.2}", number.as_f64().unwrap_or_default()),
        },
        other => other.to_string(),
    };
    let mut lines: Vec<Vec<String>> = vec![list(&table["columns"]).iter().map(shown).collect()];
    let rows = list(&table["rows"]);
    lines.extend(rows.iter().map(|row| list(row).iter().map(shown).collect()));
    let columns = lines.iter().map(Vec::len).max().unwrap_or_default();
    let is_text: Vec<bool> =
        (0..columns).map(|i| rows.iter().any(|row| row[i].is_string())).collect();
    let width = |i: usize| {
        lines
            .iter()
            .filter_map(|line| line.get(i))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().enumerate().map(|(i, cell)| match is_text[i] {
            true => format!("{cell:<0$}", widths[i]),
            false => format!("{cell:>0$}", widths[i]),
        });
        text.push_str(cells.collect::<Vec<String>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_its_numbers_below_each_other() {
        let made = json!({
            "columns": ["subject", "pictures", "DINO"],
            "rows": [["dog", 100, 69.4], ["a long name", 4, null], ["all", 104, 7.125]],
        });
        let expected = "\
subject      pictures   DINO
dog               100  69.40
a long name         4      –
all               104   7.12
";
        assert_eq!(table(&made), expected);
    }
}
