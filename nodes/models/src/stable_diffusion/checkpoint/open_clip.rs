//! The names that OpenCLIP gives to a text encoder's tensors, and transformers' for the same: SDXL's single files
//! have the larger of their two encoders so.

use crate::files::weights::Part;

/// The parts of a layer, but for the stacked queries, keys and values.
const LAYER: [(&str, &str); 5] = [
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("attn.out_proj.", "self_attn.out_proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
];

/// transformers' names for a tensor, and what of it each means; none where no model of ours reads it (the logit
/// scale, the picture half). A name that is not known stays, so that it is told.
pub(super) fn text(name: &str) -> Vec<(String, Part)> {
    let whole = |name: &str| vec![(name.to_owned(), Part::Whole)];
    match name {
        "logit_scale" | "attn_mask" => return Vec::new(),
        _ if name.starts_with("visual.") => return Vec::new(),
        "token_embedding.weight" => return whole("text_model.embeddings.token_embedding.weight"),
        "positional_embedding" => return whole("text_model.embeddings.position_embedding.weight"),
        "text_projection" => {
            return vec![("text_projection.weight".to_owned(), Part::Transposed)];
        }
        _ => {}
    }
    if let Some(rest) = name.strip_prefix("ln_final.") {
        return whole(&format!("text_model.final_layer_norm.{rest}"));
    }
    let layer = name.strip_prefix("transformer.resblocks.").and_then(|name| name.split_once('.'));
    let Some((number, part)) = layer else { return whole(name) };
    let layer = format!("text_model.encoder.layers.{number}");
    if let Some(kind) = part.strip_prefix("attn.in_proj_") {
        let third =
            |(third, name)| (format!("{layer}.self_attn.{name}_proj.{kind}"), Part::Third(third));
        return ["q", "k", "v"].into_iter().enumerate().map(third).collect();
    }
    let known = LAYER.iter().find_map(|(from, to)| Some((to, part.strip_prefix(from)?)));
    match known {
        Some((to, rest)) => whole(&format!("{layer}.{to}{rest}")),
        None => whole(name),
    }
}
