//! Pictures of AUTOMATIC1111's page and its kin: the text of their parameters becomes a graph.
//!
//! The text says what a picture was drawn with: prompt, negative prompt, and a line of settings that begins with "Steps:". Which nodes that are,
//! `data/a1111.json` says; no class is named here. The noise of that page is another one, so the picture becomes one of the same kind and not the same.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The graph and what of the text it does not have.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted {
    /// JSON in the API format.
    pub prompt: String,
    /// Sentences without their full stops.
    pub notes: Vec<String>,
}

/// The most LoRAs of one prompt.
const MOST_LORAS: usize = 64;

/// Settings that are taken over.
const TAKEN: [&str; 10] = [
    "Steps",
    "Sampler",
    "Schedule type",
    "CFG scale",
    "Seed",
    "Size",
    "Model",
    "Clip skip",
    "VAE",
    "TI hashes",
];

/// Settings that say nothing of the picture, or the same again.
const SILENT: [&str; 8] = [
    "Model hash",
    "VAE hash",
    "Lora hashes",
    "Hashes",
    "Version",
    "User",
    "Template",
    "Negative Template",
];

/// Makes a graph of the text.
///
/// # Errors
/// What is wrong with the text, as the end of a sentence.
pub fn convert(text: &str) -> Result<Converted, String> {
    let template: Value = serde_json::from_str(include_str!("../data/a1111.json"))
        .map_err(|error| format!("the template cannot be read: {error}"))?;
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().rposition(|line| line.trim_start().starts_with("Steps:"));
    let at = at.ok_or("has no line of settings that begins with \"Steps:\"")?;
    let negative_at = lines[..at].iter().position(|line| line.starts_with("Negative prompt:"));
    let prompt = lines[..negative_at.unwrap_or(at)].join("\n");
    let negative = negative_at.map_or(String::new(), |from| {
        lines[from..at].join("\n").trim_start_matches("Negative prompt:").trim().to_owned()
    });
    let settings = settings(lines[at]);
    let mut notes = Vec::new();

    let setting = |name: &str| settings.get(name).map(String::as_str);
    let wanted = |name: &str| setting(name).ok_or(format!("says no \"{name}\""));
    let whole = |name: &str, text: &str| {
        text.parse::<u64>()
            .map_err(|_| format!("has the {name} \"{text}\", which is no whole number"))
    };
    let steps = whole("Steps", wanted("Steps")?)?;
    let seed = whole("Seed", wanted("Seed")?)?;
    let cfg = wanted("CFG scale")?;
    let cfg: f64 = cfg
        .parse()
        .ok()
        .filter(|cfg: &f64| cfg.is_finite())
        .ok_or(format!("has the CFG scale \"{cfg}\", which is no number"))?;
    let size = wanted("Size")?;
    let (width, height) =
        size.split_once('x').ok_or(format!("has the Size \"{size}\"; 512x768 was expected"))?;
    let (width, height) = (whole("Size", width)?, whole("Size", height)?);
    let (sampler, scheduler) = sampler(&template, wanted("Sampler")?, setting("Schedule type"))?;
    // Without one its node names no file, which is told with those there are, unless --set names one.
    let model = setting("Model").filter(|model| !model.is_empty());
    let model = model.map_or(String::new(), with_ending);
    if model.is_empty() {
        notes.push(
            "its text names no Model; --set Checkpoint.ckpt_name=NAME says which it is".into(),
        );
    }

    let (prompt, mut loras) = loras(&prompt, &mut notes);
    let (negative, more) = self::loras(&negative, &mut notes);
    loras.extend(more);
    if loras.len() > MOST_LORAS {
        return Err(format!("names {} LoRAs; {MOST_LORAS} are the most", loras.len()));
    }
    let embeddings = setting("TI hashes").unwrap_or_default();
    let embeddings: Vec<&str> = embeddings
        .split(',')
        .filter_map(|pair| pair.split_once(':'))
        .map(|(name, _)| name.trim())
        .filter(|name| !name.is_empty())
        .collect();
    let text = |text: &str, notes: &mut Vec<String>| {
        let text = brackets(text, notes);
        embeddings.iter().fold(text, |text, name| embedding(&text, name))
    };
    let (prompt, negative) = (text(&prompt, &mut notes), text(&negative, &mut notes));

    let mut filled: BTreeMap<&str, Value> = BTreeMap::from([
        ("model", json!(model)),
        ("prompt", json!(prompt)),
        ("negative", json!(negative)),
        ("width", json!(width)),
        ("height", json!(height)),
        ("seed", json!(seed)),
        ("steps", json!(steps)),
        ("cfg", json!(cfg)),
        ("sampler", json!(sampler)),
        ("scheduler", json!(scheduler)),
        ("model_link", template["model_link"].clone()),
        ("clip_link", template["clip_link"].clone()),
        ("vae_link", template["vae_link"].clone()),
    ]);
    // Nodes that are put between: their ids go on behind the template's.
    let mut between = Map::new();
    let mut id = template["graph"].as_object().map_or(0, Map::len);
    let mut put = |node: Value| {
        id += 1;
        between.insert(id.to_string(), node);
        id.to_string()
    };
    for Lora { name, strength_model, strength_clip } in loras {
        filled.insert("name", json!(with_ending(&name)));
        filled.insert("strength_model", json!(strength_model));
        filled.insert("strength_clip", json!(strength_clip));
        let id = put(fill(&template["lora"], &filled));
        filled.insert("model_link", json!([id, 0]));
        filled.insert("clip_link", json!([id, 1]));
    }
    if let Some(skip) = setting("Clip skip") {
        let skip = whole("Clip skip", skip)?;
        if !(1..=12).contains(&skip) {
            return Err(format!("has the Clip skip {skip}; 1 to 12 were expected"));
        }
        if skip > 1 {
            filled.insert("layer", json!(-(skip as i64)));
            let id = put(fill(&template["clip_skip"], &filled));
            filled.insert("clip_link", json!([id, 0]));
        }
    }
    if let Some(vae) = setting("VAE").filter(|vae| !matches!(*vae, "None" | "Automatic" | "")) {
        filled.insert("name", json!(with_ending(vae)));
        let id = put(fill(&template["vae"], &filled));
        filled.insert("vae_link", json!([id, 0]));
    }
    let mut graph = fill(&template["graph"], &filled);
    if let Some(graph) = graph.as_object_mut() {
        graph.extend(between);
    }

    if settings.keys().any(|name| name.starts_with("Hires")) {
        notes.push("its second pass in a larger size (Hires) is left out".into());
    } else if settings.contains_key("Denoising strength") {
        notes.push(
            "it was made of another picture, which it does not carry: it is drawn from noise"
                .into(),
        );
    }
    let unknown: Vec<&str> = settings
        .keys()
        .map(String::as_str)
        .filter(|name| !TAKEN.contains(name) && !SILENT.contains(name))
        .filter(|name| !name.starts_with("Hires") && *name != "Denoising strength")
        .collect();
    if !unknown.is_empty() {
        notes.push(format!("these of its settings are not taken over: {}", unknown.join(", ")));
    }
    notes.push("its page draws other noise from a seed, so the picture is one of its kind and not the same".into());
    Ok(Converted { prompt: graph.to_string(), notes })
}

/// "Name: value, Name: "a, value"": the last of a name counts.
fn settings(line: &str) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let mut rest = line.trim();
    while let Some((name, after)) = rest.split_once(':') {
        let after = after.trim_start();
        let quoted = after.strip_prefix('"').and_then(|text| {
            let mut escaped = false;
            let end = text.find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            })?;
            Some((text[..end].replace("\\\"", "\""), &text[end + 1..]))
        });
        let (value, behind) = match quoted {
            Some(quoted) => quoted,
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        settings.insert(name.trim().to_owned(), value);
        rest = behind.trim_start().trim_start_matches(',').trim_start();
    }
    settings
}

/// ComfyUI's names of sampler and scheduler; earlier versions of the page have both in one.
fn sampler(
    template: &Value,
    sampler: &str,
    schedule: Option<&str>,
) -> Result<(String, String), String> {
    let look = |table: &str, name: &str| template[table][name].as_str().map(str::to_owned);
    let (alone, in_name) = ["Karras", "Exponential"]
        .iter()
        .find_map(|schedule| {
            let alone = sampler.strip_suffix(schedule)?.trim_end();
            Some((alone, Some(*schedule)))
        })
        .unwrap_or((sampler, None));
    let schedule = schedule.or(in_name).unwrap_or("Automatic");
    let found = look("samplers", alone);
    let found =
        found.ok_or(format!("has the Sampler \"{sampler}\", which has no counterpart here"))?;
    let scheduler = look("schedulers", schedule);
    let scheduler = scheduler
        .ok_or(format!("has the Schedule type \"{schedule}\", which has no counterpart here"))?;
    Ok((found, scheduler))
}

/// The name of a file, which the page gives without its ending.
fn with_ending(name: &str) -> String {
    let endings = ["safetensors", "ckpt", "pt", "pth", "bin"];
    let known = name.rsplit_once('.').is_some_and(|(_, ending)| endings.contains(&ending));
    if known { name.to_owned() } else { format!("{name}.safetensors") }
}

/// A `<lora:name:strength>` of a prompt.
struct Lora {
    name: String,
    strength_model: f64,
    strength_clip: f64,
}

/// The prompt without its `<…>`, and the LoRAs that they name.
fn loras(prompt: &str, notes: &mut Vec<String>) -> (String, Vec<Lora>) {
    let (mut text, mut found) = (String::new(), Vec::new());
    let mut rest = prompt;
    while let Some(start) = rest.find('<') {
        let tag = rest[start + 1..].find('>').map(|end| &rest[start + 1..start + 1 + end]);
        let parts: Vec<&str> = tag.map_or(Vec::new(), |tag| tag.split(':').collect());
        let number = |at: usize| parts.get(at).and_then(|text| text.trim().parse::<f64>().ok());
        let number = |at: usize| number(at).filter(|number| number.is_finite());
        let (Some(tag), true) = (tag, parts.len() > 1) else {
            // It is no tag but a sign.
            text.push_str(&rest[..=start]);
            rest = &rest[start + 1..];
            continue;
        };
        text.push_str(&rest[..start]);
        match (parts[0], parts.len(), number(2), number(3)) {
            ("lora", 2, ..) => {
                found.push(Lora { name: parts[1].into(), strength_model: 1.0, strength_clip: 1.0 });
            }
            // Of two numbers the first is the text encoder's.
            ("lora", 3, Some(strength), _) => found.push(Lora {
                name: parts[1].into(),
                strength_model: strength,
                strength_clip: strength,
            }),
            ("lora", 4, Some(strength_clip), Some(strength_model)) => {
                found.push(Lora { name: parts[1].into(), strength_model, strength_clip });
            }
            _ => notes.push(format!("<{tag}> of its prompt is left out")),
        }
        rest = &rest[start + tag.len() + 2..];
    }
    text.push_str(rest);
    (text.trim().to_owned(), found)
}

/// `[word]` as ComfyUI writes what counts less; what else brackets mean there is told.
fn brackets(text: &str, notes: &mut Vec<String>) -> String {
    let mut out = text.to_owned();
    let mut from = 0;
    while let Some(start) = out[from..].find('[').map(|at| from + at) {
        let escaped = out[..start].ends_with('\\');
        let inner = out[start + 1..].find(['[', ']']).map(|end| start + 1 + end);
        match inner {
            Some(end) if !escaped && out[end..].starts_with(']') => {
                let word = out[start + 1..end].to_owned();
                if word.contains([':', '|']) {
                    notes.push(format!(
                        "[{word}] of its prompt, which changes from step to step there, is taken as it stands"
                    ));
                    from = end;
                } else {
                    let less = format!("({word}:0.909)");
                    out.replace_range(start..=end, &less);
                    from = start + less.len();
                }
            }
            _ => from = start + 1,
        }
    }
    out
}

/// `name` where it stands alone, as ComfyUI names an embedding.
fn embedding(text: &str, name: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
    while let Some(at) = rest.find(name) {
        let (before, after) = (&rest[..at], &rest[at + name.len()..]);
        out.push_str(before);
        let alone =
            !out.ends_with(is_word) && !after.starts_with(is_word) && !out.ends_with("embedding:");
        out.push_str(if alone { "embedding:" } else { "" });
        out.push_str(name);
        rest = after;
    }
    out + rest
}

/// The template with its `$name`s filled in.
fn fill(template: &Value, filled: &BTreeMap<&str, Value>) -> Value {
    match template {
        Value::String(text) => {
            let value = text.strip_prefix('$').and_then(|name| filled.get(name));
            value.cloned().unwrap_or_else(|| template.clone())
        }
        Value::Array(items) => items.iter().map(|item| fill(item, filled)).collect(),
        Value::Object(pairs) => Value::Object(
            pairs.iter().map(|(key, value)| (key.clone(), fill(value, filled))).collect(),
        ),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "a cat, (black:1.2), [dull] <lora:fur:0.8>, easyneg\n<lora:ink:0.5:1.25>\nNegative prompt: easyneg, dog\n\
        Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 4294967297, Size: 512x768, Model hash: abc, Model: v1-5, \
        Clip skip: 2, VAE: vae-ft.pt, Lora hashes: \"fur: 1, ink: 2\", TI hashes: \"easyneg: c7\", ENSD: 31337, Version: v1.6.0";

    fn graph(text: &str) -> Value {
        serde_json::from_str(&convert(text).unwrap().prompt).unwrap()
    }

    #[test]
    fn a_text_becomes_a_graph() {
        let graph = graph(TEXT);
        let input = |id: &str, name: &str| graph[id]["inputs"][name].clone();
        assert_eq!(input("1", "ckpt_name"), "v1-5.safetensors");
        assert_eq!(input("2", "text"), "a cat, (black:1.2), (dull:0.909) , embedding:easyneg");
        assert_eq!(input("3", "text"), "embedding:easyneg, dog");
        assert_eq!((input("4", "width"), input("4", "height")), (json!(512), json!(768)));
        assert_eq!((input("5", "seed"), input("5", "steps")), (json!(4_294_967_297u64), json!(20)));
        assert_eq!(
            (input("5", "sampler_name"), input("5", "scheduler")),
            (json!("dpmpp_2m"), json!("karras"))
        );
        assert_eq!(input("5", "cfg"), 6.5);
        // The checkpoint, the first LoRA, the second, and there CLIP's last layer.
        assert_eq!(
            (input("8", "lora_name"), input("8", "model")),
            (json!("fur.safetensors"), json!(["1", 0]))
        );
        assert_eq!(
            (input("9", "strength_clip"), input("9", "strength_model")),
            (json!(0.5), json!(1.25))
        );
        assert_eq!(input("9", "clip"), json!(["8", 1]));
        assert_eq!(
            (input("10", "clip"), input("10", "stop_at_clip_layer")),
            (json!(["9", 1]), json!(-2))
        );
        assert_eq!((input("2", "clip"), input("5", "model")), (json!(["10", 0]), json!(["9", 0])));
        assert_eq!(
            (input("11", "vae_name"), input("6", "vae")),
            (json!("vae-ft.pt"), json!(["11", 0]))
        );
        let notes = convert(TEXT).unwrap().notes;
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes[0].ends_with("not taken over: ENSD"), "{notes:?}");
    }

    #[test]
    fn later_versions_say_the_schedule_by_itself() {
        let text = "x\nSteps: 4, Sampler: Euler a, Schedule type: SGM Uniform, CFG scale: 7, Seed: 1, Size: 64x64, Model: m.ckpt, \
            Denoising strength: 0.4, Hires upscale: 2";
        let graph = graph(text);
        assert_eq!(graph["5"]["inputs"]["sampler_name"], "euler_ancestral");
        assert_eq!(graph["5"]["inputs"]["scheduler"], "sgm_uniform");
        assert_eq!(
            (&graph["1"]["inputs"]["ckpt_name"], &graph["3"]["inputs"]["text"]),
            (&json!("m.ckpt"), &json!(""))
        );
        assert!(convert(text).unwrap().notes[0].contains("Hires"));
        let nameless = text.replace("Model: m.ckpt, ", "");
        let (graph, notes) = (self::graph(&nameless), convert(&nameless).unwrap().notes);
        assert_eq!(graph["1"]["inputs"]["ckpt_name"], "");
        assert!(notes[0].contains("names no Model; --set Checkpoint.ckpt_name=NAME"), "{notes:?}");
        let scheduled = text.replacen('x', "[a:b:10] <hypernet:h:1> a < b", 1);
        let notes = convert(&scheduled).unwrap().notes;
        assert!(notes.iter().any(|note| note.contains("<hypernet:h:1>")), "{notes:?}");
        assert!(notes.iter().any(|note| note.contains("[a:b:10]")), "{notes:?}");
    }

    #[test]
    fn nonsense_is_a_sentence() {
        let good = "x\nSteps: 4, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, Model: m";
        assert!(convert(good).is_ok());
        for (from, to, part) in [
            ("Steps: 4", "steps 4", "has no line of settings"),
            ("Steps: 4", "Steps: many", "has the Steps \"many\""),
            ("Seed: 1", "Seed: -1", "has the Seed \"-1\""),
            ("Seed: 1, ", "", "says no \"Seed\""),
            ("64x64", "64", "has the Size \"64\""),
            ("64x64", "axb", "has the Size \"a\""),
            ("Euler", "Eulerian", "has the Sampler \"Eulerian\", which has no counterpart"),
            ("CFG scale: 7", "CFG scale: nan", "has the CFG scale \"nan\""),
            ("Model: m", "Model: m, Clip skip: 40", "has the Clip skip 40"),
            ("x\n", &"<lora:a:1>".repeat(65), "names 65 LoRAs"),
        ] {
            let text = if from == "x\n" {
                format!("{to}\n{}", &good[2..])
            } else {
                good.replace(from, to)
            };
            let error = convert(&text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_graph_or_a_sentence(
            prompt in "[a-z<>:\\[\\]|, \\\\\u{e4}\u{1f9c0}]{0,40}", line in "[A-Za-z:, \"\\\\0-9.]{0,60}",
        ) {
            let text = format!("{prompt}\nSteps: 4, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, Model: m, {line}");
            if let Ok(converted) = convert(&text) {
                prop_assert!(serde_json::from_str::<Value>(&converted.prompt).is_ok());
            }
            let _ = convert(&line);
        }
    }
}
