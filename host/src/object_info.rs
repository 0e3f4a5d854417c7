//! ComfyUI's `object_info`: the catalogue as its editor and its clients read it.

use crate::catalogue::{Catalogue, Class, InputDescriptor, InputKind};
use crate::folders::{Entry, Folders, are_pictures};
use serde_json::{Map, Value, json};

/// `{class: {"input": {"required": {name: [type, options]}, "optional": …}, "output": […], …}}` for
/// every class. Inputs that are files list the names there are, as a COMBO does.
pub fn object_info(catalogue: &Catalogue, folders: &Folders) -> Value {
    let classes = catalogue.classes().iter();
    let info =
        |class: &Class| (class.descriptor.class.clone(), class_info(catalogue, class, folders));
    Value::Object(classes.map(info).collect())
}

/// The entry of one class.
pub fn class_info(catalogue: &Catalogue, class: &Class, folders: &Folders) -> Value {
    let node = &class.descriptor;
    let (mut required, mut optional) = (Map::new(), Map::new());
    for input in &node.inputs {
        let group = if input.is_beside() { &mut optional } else { &mut required };
        group.insert(input.name.clone(), input_info(input, folders));
    }
    let names = |group: &Map<String, Value>| group.keys().cloned().collect::<Vec<_>>();
    let input_order = json!({"required": names(&required), "optional": names(&optional)});
    let types: Vec<&str> = node.outputs.iter().map(|output| output.kind.as_str()).collect();
    let output_names: Vec<&str> = node.outputs.iter().map(|output| output.name.as_str()).collect();
    let library = &catalogue.libraries()[class.library].name;
    json!({
        "input": {"required": required, "optional": optional},
        "input_order": input_order,
        "is_input_list": node.input_is_list,
        "output": types,
        "output_is_list": node.outputs.iter().map(|output| output.is_list).collect::<Vec<_>>(),
        "output_name": output_names,
        "name": node.class,
        "display_name": if node.display_name.is_empty() { &node.class } else { &node.display_name },
        "description": node.doc,
        "python_module": format!("custom_nodes.{library}"),
        "category": node.category,
        "output_node": node.output_node,
        "has_intermediate_output": false,
        "search_aliases": [],
    })
}

fn input_info(input: &InputDescriptor, folders: &Folders) -> Value {
    let mut options = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        value.map(|value| options.insert(key.to_owned(), value));
    };
    // The bounds fit 64 bits, signed or not: the catalogue checked it.
    let whole = |value: i128| match u64::try_from(value) {
        Ok(value) => json!(value),
        Err(_) => json!(value as i64),
    };
    let kind = match &input.kind {
        InputKind::Socket => json!(input.type_name),
        InputKind::Int { default, min, max, step, seed } => {
            put("default", default.map(whole));
            put("min", Some(whole(*min)));
            put("max", Some(whole(*max)));
            put("step", step.map(whole));
            put("control_after_generate", seed.then(|| json!(true)));
            json!("INT")
        }
        InputKind::Float { default, min, max, step } => {
            put("default", default.map(Value::from));
            put("min", min.map(Value::from));
            put("max", max.map(Value::from));
            put("step", step.map(Value::from));
            json!("FLOAT")
        }
        InputKind::Text { default, multiline, .. } => {
            put("default", default.clone().map(Value::from));
            put("multiline", Some(json!(multiline)));
            // The editor then chooses among {a|b}, as `run` does for what the editor saved.
            put("dynamicPrompts", multiline.then(|| json!(true)));
            json!("STRING")
        }
        InputKind::Boolean { default } => {
            put("default", default.map(Value::from));
            json!("BOOLEAN")
        }
        InputKind::Combo { default, choices, .. } => {
            put("default", default.clone().map(Value::from));
            json!(choices)
        }
        InputKind::Path { default, folder, entry, none } => {
            put("default", default.clone().map(Value::from));
            let extensions = &input.extensions;
            let is_picture =
                folder == "input" && *entry != Entry::Directory && are_pictures(extensions);
            put("image_upload", is_picture.then(|| json!(true)));
            let names = folders.names_of(folder, *entry, extensions);
            json!(none.iter().cloned().chain(names).collect::<Vec<_>>())
        }
    };
    put("tooltip", (!input.doc.is_empty()).then(|| json!(input.doc)));
    json!([kind, options])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_class_as_comfyui_describes_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cat.png"), "").unwrap();
        std::fs::write(folder.path().join("made.latent"), "").unwrap();
        let input = folder.path().to_owned();
        let folders = Folders {
            models: vec![],
            input: vec![input],
            output: "/output".into(),
            temp: "/temp".into(),
            ..Folders::default()
        };
        let mut catalogue = Catalogue::default();
        let library = json!({"name": "l", "version": "1", "nodes": [{
            "class": "A", "doc": "Does.", "category": "image", "output_node": true,
            "inputs": [
                {"name": "image", "type": "STRING", "role": "path", "folder": "input", "entry": "file"},
                {"name": "latent", "type": "STRING", "role": "path", "folder": "input", "entry": "file",
                    "extensions": ["latent"]},
                {"name": "seed", "type": "INT", "default": 0, "min": 0, "max": u64::MAX, "role": "seed"},
                {"name": "how", "type": "COMBO", "choices": ["a", "b"], "default": "b"},
                {"name": "lora", "type": "STRING", "role": "path", "folder": "loras", "entry": "file",
                    "none": "None", "default": "None", "optional": true},
                {"name": "text", "type": "STRING", "multiline": true},
                {"name": "mask", "type": "MASK", "optional": true, "doc": "Where."}],
            "outputs": [{"name": "image", "type": "IMAGE"}]}]});
        catalogue.add(Path::new("l.so"), &library).unwrap();
        let info = object_info(&catalogue, &folders);
        assert_eq!(
            info,
            json!({"A": {
                "input": {
                    "required": {
                        "image": [["cat.png"], {"image_upload": true}],
                        "latent": [["made.latent"], {}],
                        "seed": ["INT", {"default": 0, "min": 0, "max": u64::MAX,
                            "control_after_generate": true}],
                        "how": [["a", "b"], {"default": "b"}],
                        "lora": [["None"], {"default": "None"}],
                        "text": ["STRING", {"multiline": true, "dynamicPrompts": true}]},
                    "optional": {"mask": ["MASK", {"tooltip": "Where."}]}},
                "input_order": {"required": ["image", "latent", "seed", "how", "lora", "text"], "optional": ["mask"]},
                "is_input_list": false,
                "output": ["IMAGE"], "output_is_list": [false], "output_name": ["image"],
                "name": "A", "display_name": "A", "description": "Does.",
                "python_module": "custom_nodes.l", "category": "image", "output_node": true,
                "has_intermediate_output": false, "search_aliases": []}})
        );
    }
}
