//! The text of node.h and the table say the same.

use kosmograph_abi::table::{EXTENSIONS, HOST_FUNCTIONS, INTERFACES, Interface, Of, Part, SOCKETS};

const HEADER: &str = include_str!("../node.h");

/// As node.h writes it.
fn written(of: Of) -> String {
    match of {
        Of::Any => "ANY".to_owned(),
        Of::Bool => "BOOL".to_owned(),
        Of::Int => "INT".to_owned(),
        Of::Float => "FLOAT".to_owned(),
        Of::Text => "TEXT".to_owned(),
        Of::Tensor([]) => "TENSOR".to_owned(),
        Of::Tensor(shapes) => {
            let shapes: Vec<String> = shapes.iter().map(|shape| format!("[{shape}]")).collect();
            format!("TENSOR {}", shapes.join(" or "))
        }
        Of::List(item) => format!("LIST of {}", written(*item)),
        Of::Named(item) => format!("NAMED {}", written(*item)),
        Of::Object(types) => format!("OBJECT {}", types.join(" or ")),
        Of::Map(parts) => {
            let parts: Vec<String> = parts.iter().map(key).collect();
            format!("MAP {{{}}}", parts.join(", "))
        }
    }
}

fn key(part: &Part) -> String {
    let mark = if part.optional { "?" } else { "" };
    format!("{}{mark} {}", part.name, written(part.of))
}

/// The lines of a part of node.h without the stars of its comment.
fn lines(from: &str, to: &str) -> Vec<&'static str> {
    let start = HEADER.find(from).unwrap_or_else(|| panic!("node.h has no {from:?}"));
    let end = start + HEADER[start..].find(to).unwrap_or_else(|| panic!("node.h has no {to:?}"));
    HEADER[start..end].lines().map(|line| line.trim_start().trim_start_matches('*')).collect()
}

/// What is said of one interface.
#[derive(Default)]
struct Said {
    id: String,
    /// "(MODEL): …"
    head: String,
    input: String,
    output: String,
    /// How many keys there are, each on a line of its own.
    keys: usize,
}

/// Keys stand in a column after "in" and "out"; what goes on about one is indented further.
fn said(lines: &[&str]) -> Vec<Said> {
    const COLUMN: usize = 10;
    let mut found: Vec<Said> = Vec::new();
    let mut is_output = false;
    for line in lines {
        let indent = line.len() - line.trim_start().len();
        let body = line.trim_start();
        let id = body.strip_prefix('"').and_then(|rest| rest.split_once('"'));
        if let Some((id, rest)) = id.filter(|(id, _)| indent < 5 && id.contains('/')) {
            found.push(Said { id: id.to_owned(), head: rest.to_owned(), ..Said::default() });
            is_output = false;
            continue;
        }
        let Some(last) = found.last_mut() else { continue };
        let (body, is_key) = match body.split_once(char::is_whitespace) {
            Some(("in", rest)) if indent == 5 => (rest.trim_start(), true),
            Some(("out", rest)) if indent == 5 => {
                is_output = true;
                (rest.trim_start(), true)
            }
            _ => (body, indent == COLUMN && !(last.input.is_empty() && last.output.is_empty())),
        };
        last.keys += usize::from(is_key);
        let half = if is_output { &mut last.output } else { &mut last.input };
        half.push_str(body);
        half.push(' ');
    }
    found
}

fn hold(rows: &[Interface], lines: &[&str]) {
    let said = said(lines);
    let of_text: Vec<&str> = said.iter().map(|said| &*said.id).collect();
    let of_table: Vec<&str> = rows.iter().map(|row| row.id).collect();
    assert_eq!(of_text, of_table, "node.h and the table name them in the same order");
    for (row, said) in rows.iter().zip(&said) {
        if !row.types.is_empty() {
            let types = format!(" ({})", row.types.join(", "));
            assert!(said.head.starts_with(&types), "{}: {:?} is not {types:?}", row.id, said.head);
        }
        assert_eq!(said.keys, row.input.len() + row.output.len(), "{}: the keys", row.id);
        for (parts, text) in [(row.input, &said.input), (row.output, &said.output)] {
            let mut from = 0;
            for part in parts {
                let wanted = key(part);
                let at = text[from..].find(&wanted);
                let at = at.unwrap_or_else(|| panic!("{}: no {wanted:?} in {text:?}", row.id));
                from += at + wanted.len();
                let next = text[from..].chars().next();
                assert!(matches!(next, Some(' ' | ',' | '.')), "{}: {wanted} {next:?}", row.id);
            }
        }
    }
}

#[test]
fn the_interfaces_of_node_h_are_those_of_the_table() {
    hold(INTERFACES, &lines("---- Interfaces of objects", "---- Socket types"));
}

#[test]
fn the_extensions_of_node_h_are_those_of_the_table() {
    hold(EXTENSIONS, &lines("/* Optional features by name", "} kg_library;"));
}

#[test]
fn the_hosts_functions_of_node_h_are_those_of_the_table() {
    hold(HOST_FUNCTIONS, &lines("/* What this host can do beyond that", "(*extension)"));
}

#[test]
fn the_socket_types_of_node_h_are_those_of_the_table() {
    let text = lines("---- Socket types", "---- The call").join("\n");
    let widgets = ["INT", "FLOAT", "STRING", "COMBO", "BOOLEAN"];
    for socket in SOCKETS.iter().filter(|socket| !widgets.contains(&socket.name)) {
        let line = text.lines().find(|line| {
            let names = line.trim_start().split("  ").next().unwrap_or_default();
            names.split(", ").any(|name| name.trim_end_matches(',') == socket.name)
        });
        let line = line.unwrap_or_else(|| panic!("node.h has no {}", socket.name));
        let kind = match socket.of {
            Of::Tensor(_) => "TENSOR",
            Of::Map(_) => "MAP",
            Of::List(_) => "LIST of MAP",
            _ => "OBJECT",
        };
        assert!(line.contains(kind), "{}: {line:?} is no {kind}", socket.name);
        let parts = match socket.of {
            Of::Map(parts) => parts,
            Of::List(Of::Map(parts)) => *parts,
            _ => continue,
        };
        for part in parts {
            assert!(text.contains(&format!("\"{}\"", part.name)), "{}: {}", socket.name, part.name);
        }
    }
}

/// What has an interface goes through sockets, but for what lies in a MODEL.
#[test]
fn a_type_with_an_interface_has_a_socket() {
    let inner = ["PATCH", "SIDES", "ATTENTION"];
    let types = INTERFACES.iter().flat_map(|interface| interface.types);
    for name in types.filter(|name| !inner.contains(name)) {
        assert!(SOCKETS.iter().any(|socket| socket.name == *name), "{name}");
    }
}
