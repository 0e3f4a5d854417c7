//! Changes to JSON that leave it JSON.

use serde_json::{Map, Number, Value, json};

/// Numbers out of a seed, as SplitMix64 makes them.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `0..count`; `count` is not 0.
    fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }
}

/// The JSON with one to four changes, where it is JSON and they fit into `most` bytes.
pub fn json(data: &[u8], seed: u32, most: usize) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(data).ok()?;
    let random = &mut Random(u64::from(seed));
    for _ in 0..=random.below(4) {
        let count = count(&value);
        let donor = nth(&mut value, random.below(count)).cloned().unwrap_or_default();
        let at = random.below(count);
        if let Some(place) = nth(&mut value, at) {
            change(place, donor, random);
        }
    }
    let changed = serde_json::to_vec(&value).ok()?;
    (changed.len() <= most).then_some(changed)
}

/// How many values there are in `value`, itself included.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum::<usize>(),
        _ => 0,
    }
}

/// Value number `n` in `value`, itself being number 0.
fn nth(value: &mut Value, n: usize) -> Option<&mut Value> {
    fn walk<'a>(value: &'a mut Value, left: &mut usize) -> Option<&'a mut Value> {
        if *left == 0 {
            return Some(value);
        }
        *left -= 1;
        match value {
            Value::Array(items) => items.iter_mut().find_map(|item| walk(item, left)),
            Value::Object(map) => map.values_mut().find_map(|item| walk(item, left)),
            _ => None,
        }
    }
    walk(value, &mut { n })
}

fn change(value: &mut Value, donor: Value, random: &mut Random) {
    match (random.below(8), value) {
        (0, value) => *value = donor,
        (1, value) => *value = interesting(random),
        (2, Value::Array(items)) if !items.is_empty() => {
            items.remove(random.below(items.len()));
        }
        (3, Value::Array(items)) => items.insert(random.below(items.len() + 1), donor),
        (2, Value::Object(map)) if !map.is_empty() => {
            let key = map.keys().nth(random.below(map.len())).cloned().unwrap_or_default();
            map.remove(&key);
        }
        (3, Value::Object(map)) => rename(map, random),
        (4, Value::Object(map)) => {
            map.insert(word(random).to_owned(), donor);
        }
        (_, Value::Number(number)) => {
            let x = number.as_f64().unwrap_or_default();
            let changed = [x + 1.0, x - 1.0, -x, x * 2.0, x / 2.0, x * 1e6][random.below(6)];
            *number = match number.as_i64() {
                Some(whole) if random.below(2) == 0 => whole.wrapping_add(1).into(),
                _ => Number::from_f64(changed).unwrap_or_else(|| 0.into()),
            };
        }
        (_, Value::String(text)) => {
            let mut chars: Vec<char> = text.chars().take(2000).collect();
            let at = random.below(chars.len() + 1);
            match random.below(3) {
                0 if at < chars.len() => drop(chars.remove(at)),
                1 => chars.truncate(at),
                _ => drop(chars.splice(at..at, word(random).chars())),
            }
            *text = chars.into_iter().collect();
        }
        (_, value) => *value = interesting(random),
    }
}

fn rename(map: &mut Map<String, Value>, random: &mut Random) {
    let Some(key) = map.keys().nth(random.below(map.len().max(1))).cloned() else { return };
    if let Some(value) = map.remove(&key) {
        map.insert(word(random).to_owned(), value);
    }
}

fn interesting(random: &mut Random) -> Value {
    let values = [
        Value::Null,
        json!(true),
        json!(0),
        json!(-1),
        json!(1),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1e308),
        json!(1e-308),
        json!(0.5),
        json!(4),
        json!(2),
        json!([]),
        json!({}),
        json!(["1", 0]),
        json!([1, "1", 0, "2", 0, "*"]),
        json!({"__value__": ["1", 0]}),
        json!(word(random)),
    ];
    let at = random.below(values.len());
    values.into_iter().nth(at).unwrap_or_default()
}

/// Words that mean something to somebody on the way.
fn word(random: &mut Random) -> &'static str {
    const WORDS: &[&str] = &[
        "",
        "1",
        "2",
        "-1",
        "12:3",
        "{a|b}",
        "{{a|b}|{c}}",
        "%date:yyyy%",
        "%Sampler.seed%",
        "%1.text%",
        "//",
        "/* */",
        "embedding:a",
        "embedding:",
        "..",
        "/",
        "\\",
        "\0",
        "\n",
        "é",
        "🧑\u{200d}🚀",
        "Reroute",
        "PrimitiveNode",
        "Note",
        "SetNode",
        "GetNode",
        "KSampler",
        "Checkpoint",
        "Sampler",
        "Text",
        "Save",
        "inputs",
        "class_type",
        "_meta",
        "title",
        "nodes",
        "links",
        "id",
        "type",
        "mode",
        "widgets_values",
        "properties",
        "definitions",
        "subgraphs",
        "inputNode",
        "outputNode",
        "origin_id",
        "target_id",
        "link",
        "widget",
        "name",
        "INT",
        "FLOAT",
        "STRING",
        "BOOLEAN",
        "COMBO",
        "IMAGE",
        "*",
        "IMAGE,MASK",
        "default",
        "min",
        "max",
        "step",
        "choices",
        "seed",
        "randomize",
        "fixed",
        "role",
        "path",
        "folder",
        "entry",
        "event",
        "worker",
        "output",
        "workflow/",
        "Node name for S&R",
        "proxyWidgets",
    ];
    WORDS[random.below(WORDS.len())]
}
