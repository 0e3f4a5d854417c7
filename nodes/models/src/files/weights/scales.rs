//! The factors of scaled fp8: tensors beside a weight that say what its numbers are multiplied with.
//!
//! ComfyUI has written them in two ways. First as `X.scale_weight` beside `X.weight`, with a tensor
//! `scaled_fp8` as a mark; then as `X.weight_scale`, with a word in the header's metadata. Both have the factor
//! for a product of two fp8 as well, which is not used where nothing is multiplied in fp8.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

/// What such tensors end in, behind the name of their module.
const ENDS: [&str; 5] =
    [".scale_weight", ".weight_scale", ".scale_input", ".input_scale", ".comfy_quant"];
const MARK: &str = "scaled_fp8";

/// The key of a header's metadata, and the types in it that need no more than a factor.
pub(super) const METADATA: &str = "_quantization_metadata";
const KNOWN: [&str; 2] = ["float8_e4m3fn", "float8_e5m2"];

/// Is the tensor `name` one of them, among tensors of which `has` tells?
pub(super) fn is_aside(name: &str, has: impl Fn(&str) -> bool) -> bool {
    let of_weight =
        |end: &&str| name.strip_suffix(*end).is_some_and(|module| has(&format!("{module}.weight")));
    name == MARK || name.ends_with(".scaled_fp8") || ENDS.iter().any(of_weight)
}

/// What the factor of the weight `name` may be called.
pub(super) fn names_of(name: &str) -> Option<[String; 2]> {
    let module = name.strip_suffix(".weight")?;
    Some([".scale_weight", ".weight_scale"].map(|end| format!("{module}{end}")))
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    layers: BTreeMap<String, Layer>,
}

#[derive(Deserialize)]
struct Layer {
    format: String,
}

/// The weights that a header says to be of a type which is not read, and the type.
pub(super) fn unread(metadata: &str) -> Result<HashMap<String, String>, serde_json::Error> {
    let metadata: Metadata = serde_json::from_str(metadata)?;
    let unread = metadata.layers.into_iter().filter(|(_, l)| !KNOWN.contains(&l.format.as_str()));
    Ok(unread.map(|(name, layer)| (format!("{name}.weight"), layer.format)).collect())
}
