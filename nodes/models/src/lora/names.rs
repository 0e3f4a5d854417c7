//! What a tensor's name in a LoRA file says: which module it changes, and as what.
//!
//! The trainers differ. kohya's scripts write the module's path with underscores for its dots
//! (`lora_unet_down_blocks_0_…_to_q.lora_down.weight`), PEFT and diffusers write the path itself, with
//! `lora_A`/`lora_B` or `lora.down`/`lora.up`, and diffusers' attention processors hang the pair beside
//! the module (`…attn1.processor.to_q_lora.down.weight`). All become one: the path as diffusers and
//! transformers name the module in a checkpoint.

use super::factor::{FACTORS, Factor};
use crate::stable_diffusion::checkpoint::Rows;

/// The network that a layer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    UNet,
    TextEncoder,
    /// SDXL's second one, OpenCLIP's.
    TextEncoder2,
}

/// What a tensor is to its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Factor(Factor),
    Alpha,
}

const UP: Role = Role::Factor(Factor::Up);
const DOWN: Role = Role::Factor(Factor::Down);

/// Where a tensor belongs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) part: Part,
    /// `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`.
    pub(super) module: String,
    pub(super) role: Role,
}

/// The ends of the names of a plain LoRA's tensors, longest first, and what they mean; further ones stand
/// in [`FACTORS`].
const ENDS: [(&str, Role); 16] = [
    (".lora_linear_layer.down.weight", DOWN),
    (".lora_linear_layer.up.weight", UP),
    (".lora_magnitude_vector.weight", Role::Factor(Factor::Magnitude)),
    (".lora_down.weight", DOWN),
    (".lora.down.weight", DOWN),
    ("_lora.down.weight", DOWN),
    (".lora_mid.weight", Role::Factor(Factor::Mid)),
    (".lora_up.weight", UP),
    (".lora.up.weight", UP),
    ("_lora.up.weight", UP),
    (".lora_A.weight", DOWN),
    (".lora_B.weight", UP),
    ("_lora.alpha", Role::Alpha),
    (".lora.alpha", Role::Alpha),
    (".lora_A", DOWN),
    (".lora_B", UP),
];

/// What every Stable Diffusion has.
const TWO_LAYERS: Rows = Rows { layers: 2 };

/// How the original code's names of a file (`input_blocks.4.1`) are divided into levels: as every Stable Diffusion's, unless the
/// blocks among them that halve the size cannot be such a model's. A file need not name all of these.
pub(super) fn rows(names: &[String]) -> Rows {
    let halving = |name: &String| {
        let (path, _) = role(name)?;
        let path = path.trim_start_matches("base_model.model.");
        let path = match UNET_FLAT.iter().find_map(|prefix| path.strip_prefix(prefix)) {
            Some(flat) => with_dots(flat)?,
            None => without_unet(path).to_owned(),
        };
        let is_one = TWO_LAYERS.unet(&format!("{path}.weight")).is_some();
        path.ends_with(".0.op").then(|| (format!("{path}.weight"), is_one))
    };
    let halving: Vec<(String, bool)> = names.iter().filter_map(halving).collect();
    if halving.iter().all(|(_, is_one)| *is_one) {
        return TWO_LAYERS;
    }
    Rows::of(halving.iter().map(|(name, _)| name.as_str())).unwrap_or(TWO_LAYERS)
}

/// Where the tensor `name` belongs, if it is one of a LoRA for a Stable Diffusion of the first family.
pub(super) fn place(name: &str, rows: Rows) -> Option<Place> {
    let (path, role) = role(name)?;
    let (part, module) = module(&path, rows)?;
    Some(Place { part, module, role })
}

/// The path before the name's end, and what the end says.
pub(super) fn role(name: &str) -> Option<(String, Role)> {
    // PEFT may put its adapter's name between: `lora_A.default.weight`.
    if let Some(path) = name.strip_suffix(".weight")
        && let Some((path, adapter)) = path.rsplit_once('.')
        && !["up", "down"].contains(&adapter)
    {
        let magnitude = (".lora_magnitude_vector", Role::Factor(Factor::Magnitude));
        for (end, role) in [(".lora_A", DOWN), (".lora_B", UP), magnitude] {
            if let Some(path) = path.strip_suffix(end) {
                return Some((path.to_owned(), role));
            }
        }
    }
    let known = ENDS.iter().find_map(|(end, role)| Some((name.strip_suffix(end)?, *role)));
    let known = known.or_else(|| Some((name.strip_suffix(".alpha")?, Role::Alpha)));
    let (path, role) = known.or_else(|| {
        // `….a1.weight` before `….weight`.
        let ends = FACTORS
            .iter()
            .filter_map(|(factor, _, end)| Some((name.strip_suffix(end)?, Role::Factor(*factor))));
        ends.min_by_key(|(path, _)| path.len())
    })?;
    Some((path.to_owned(), role))
}

/// The network and the path in it of a module that is called `path` in a LoRA file.
fn module(path: &str, rows: Rows) -> Option<(Part, String)> {
    let mut path = path;
    while let Some(rest) = path.strip_prefix("base_model.model.") {
        path = rest;
    }
    if let Some(flat) = UNET_FLAT.iter().find_map(|prefix| path.strip_prefix(prefix)) {
        return Some((Part::UNet, unet_path(&with_dots(flat)?, rows)?));
    }
    for (prefix, part) in FLAT_TEXT {
        if let Some(flat) = path.strip_prefix(prefix) {
            return Some((part, text_path(&with_dots(flat)?)?));
        }
    }
    // LyCORIS' own wrapper calls whatever it wraps so.
    let of_lycoris = path.strip_prefix("lycoris_").map(with_dots);
    let path = match &of_lycoris {
        Some(path) => path.as_deref()?,
        None => path,
    };
    for (prefix, part) in TEXT {
        if let Some(path) = path.strip_prefix(prefix) {
            return Some((part, text_path(path)?));
        }
    }
    if let Some(path) = text_path(path) {
        return Some((Part::TextEncoder, path));
    }
    Some((Part::UNet, unet_path(without_unet(path), rows)?))
}

/// What the flat names of a U-Net begin with.
const UNET_FLAT: [&str; 2] = ["lora_unet_", "lycoris_unet_"];

/// A module's path below the U-Net.
fn without_unet(path: &str) -> &str {
    let begins = ["unet.", "model.diffusion_model.", "diffusion_model."];
    begins.iter().find_map(|begin| path.strip_prefix(begin)).unwrap_or(path)
}

/// What the flat names of a text encoder begin with.
const FLAT_TEXT: [(&str, Part); 6] = [
    ("lora_te1_", Part::TextEncoder),
    ("lora_te2_", Part::TextEncoder2),
    ("lora_te_", Part::TextEncoder),
    ("lycoris_te1_", Part::TextEncoder),
    ("lycoris_te2_", Part::TextEncoder2),
    ("lycoris_te_", Part::TextEncoder),
];

/// What its paths begin with: diffusers', a checkpoint's, ComfyUI's.
const TEXT: [(&str, Part); 8] = [
    ("text_encoder.", Part::TextEncoder),
    ("text_encoder_2.", Part::TextEncoder2),
    ("text_encoders.clip_l.transformer.", Part::TextEncoder),
    ("text_encoders.clip_g.transformer.", Part::TextEncoder2),
    ("clip_l.transformer.", Part::TextEncoder),
    ("clip_g.transformer.", Part::TextEncoder2),
    ("cond_stage_model.transformer.", Part::TextEncoder),
    ("conditioner.embedders.0.transformer.", Part::TextEncoder),
];

/// A module of a U-Net, with the names that diffusers has for it today.
fn unet_path(path: &str, rows: Rows) -> Option<String> {
    // The original code's names are translated as those of a module's weight.
    let translated = rows.unet(&format!("{path}.weight"));
    let translated = translated.and_then(|name| Some(name.strip_suffix(".weight")?.to_owned()));
    let path = translated.unwrap_or_else(|| path.to_owned());
    let begins = [
        "down_blocks.",
        "mid_block.",
        "up_blocks.",
        "conv_in",
        "conv_out",
        "conv_norm_out",
        "time_embedding.",
        "add_embedding.",
    ];
    if !begins.iter().any(|begin| path.starts_with(begin)) {
        return None;
    }
    let path = path.replace(".processor.", ".");
    // A list of the projection and a dropout: the processors name the list.
    Some(if path.ends_with(".to_out") { path + ".0" } else { path })
}

/// A module of CLIP's text encoder; transformers 5 leaves the first word of its path out.
fn text_path(path: &str) -> Option<String> {
    let path = path.strip_prefix("text_model.").unwrap_or(path);
    if !["encoder.layers.", "embeddings.", "final_layer_norm"].iter().any(|p| path.starts_with(p)) {
        return None;
    }
    // The names of diffusers' attention processors, which it once wrote for the text encoder too.
    let old_names =
        [("to_q", "q_proj"), ("to_k", "k_proj"), ("to_v", "v_proj"), ("to_out", "out_proj")];
    let renamed = old_names.iter().find_map(|(old, new)| {
        Some(format!("{}.self_attn.{new}", path.strip_suffix(&format!(".self_attn.{old}"))?))
    });
    Some(format!("text_model.{}", renamed.as_deref().unwrap_or(path)))
}

/// The words of module paths that have underscores of their own, and those that another word begins
/// with: the longer ones first.
const WORDS: [&str; 64] = [
    "transformer_blocks",
    "position_embedding",
    "token_embedding",
    "skip_connection",
    "add_embedding",
    "embeddings",
    "label_emb",
    "norm",
    "time_embedding",
    "conv_shortcut",
    "time_emb_proj",
    "conv_norm_out",
    "output_blocks",
    "middle_block",
    "input_blocks",
    "downsamplers",
    "down_blocks",
    "time_embed",
    "emb_layers",
    "out_layers",
    "upsamplers",
    "attentions",
    "text_model",
    "in_layers",
    "group_norm",
    "self_attn",
    "up_blocks",
    "mid_block",
    "linear_1",
    "linear_2",
    "out_proj",
    "proj_out",
    "conv_out",
    "resnets",
    "proj_in",
    "conv_in",
    "encoder",
    "layers",
    "q_proj",
    "k_proj",
    "v_proj",
    "to_out",
    "conv1",
    "conv2",
    "attn1",
    "attn2",
    "norm1",
    "norm2",
    "norm3",
    "conv",
    "proj",
    "to_q",
    "to_k",
    "to_v",
    "mlp",
    "fc1",
    "fc2",
    "net",
    "out",
    "ff",
    "op",
    "final_layer_norm",
    "layer_norm1",
    "layer_norm2",
];

/// `down_blocks_0_attentions_1_proj_in` → `down_blocks.0.attentions.1.proj_in`. Nothing where a word
/// is not one of a Stable Diffusion's modules.
fn with_dots(flat: &str) -> Option<String> {
    let mut words: Vec<&str> = Vec::new();
    let mut rest = flat;
    loop {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let length = match digits {
            0 => {
                let fits = |word: &&&str| {
                    rest.strip_prefix(**word)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
                };
                // The longest one: `proj_in`, not `proj`.
                WORDS.iter().filter(fits).map(|word| word.len()).max()?
            }
            digits => digits,
        };
        let (word, after) = rest.split_at(length);
        words.push(word);
        if after.is_empty() {
            return Some(words.join("."));
        }
        rest = after.strip_prefix('_')?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn is(name: &str, part: Part, module: &str, role: Role) {
        assert_eq!(
            place(name, TWO_LAYERS),
            Some(Place { part, module: module.to_owned(), role }),
            "{name}"
        );
    }

    #[test]
    fn every_naming_gives_the_module_s_path() {
        let to_q = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q";
        let flat = "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q";
        let beside = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.processor.to_q_lora";
        for (name, role) in [
            (format!("{flat}.lora_up.weight"), UP),
            (format!("{flat}.lora_down.weight"), DOWN),
            (format!("{flat}.lora_mid.weight"), Role::Factor(Factor::Mid)),
            (format!("{flat}.alpha"), Role::Alpha),
            (format!("unet.{to_q}.lora_A.weight"), DOWN),
            (format!("unet.{to_q}.lora_B.weight"), UP),
            (format!("base_model.model.{to_q}.lora_A.weight"), DOWN),
            (format!("base_model.model.unet.{to_q}.lora_B.default.weight"), UP),
            (format!("unet.{to_q}.lora.down.weight"), DOWN),
            (format!("{to_q}.lora.up.weight"), UP),
            (format!("unet.{to_q}.alpha"), Role::Alpha),
            (format!("{beside}.down.weight"), DOWN),
            (format!("unet.{beside}.up.weight"), UP),
            (format!("unet.{beside}.alpha"), Role::Alpha),
            (
                "diffusion_model.input_blocks.2.1.transformer_blocks.0.attn1.to_q.lora_B.weight"
                    .into(),
                UP,
            ),
            (
                "lora_unet_input_blocks_2_1_transformer_blocks_0_attn1_to_q.alpha".into(),
                Role::Alpha,
            ),
        ] {
            is(&name, Part::UNet, to_q, role);
        }
    }

    #[test]
    fn paths_of_the_original_code() {
        for (original, diffusers) in [
            ("input_blocks.0.0", "conv_in"),
            ("input_blocks.1.0.in_layers.2", "down_blocks.0.resnets.0.conv1"),
            ("input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv"),
            ("input_blocks.4.0.skip_connection", "down_blocks.1.resnets.0.conv_shortcut"),
            ("input_blocks.8.1.proj_in", "down_blocks.2.attentions.1.proj_in"),
            ("input_blocks.11.0.out_layers.3", "down_blocks.3.resnets.1.conv2"),
            ("middle_block.1.proj_out", "mid_block.attentions.0.proj_out"),
            ("middle_block.2.emb_layers.1", "mid_block.resnets.1.time_emb_proj"),
            ("output_blocks.2.1.conv", "up_blocks.0.upsamplers.0.conv"),
            ("output_blocks.5.2.conv", "up_blocks.1.upsamplers.0.conv"),
            ("output_blocks.5.1.proj_in", "up_blocks.1.attentions.2.proj_in"),
            ("output_blocks.11.0.in_layers.2", "up_blocks.3.resnets.2.conv1"),
            ("time_embed.2", "time_embedding.linear_2"),
            ("input_blocks.1.0.in_layers.0", "down_blocks.0.resnets.0.norm1"),
            ("output_blocks.1.0.out_layers.0", "up_blocks.0.resnets.1.norm2"),
            ("input_blocks.2.1.norm", "down_blocks.0.attentions.1.norm"),
            ("label_emb.0.2", "add_embedding.linear_2"),
            ("out.0", "conv_norm_out"),
            ("out.2", "conv_out"),
        ] {
            assert_eq!(unet_path(original, TWO_LAYERS).as_deref(), Some(diffusers), "{original}");
        }
        for other in ["input_blocks.3.1.op", "input_blocks", "middle_block.3.x", ""] {
            assert_eq!(unet_path(other, TWO_LAYERS), None, "{other}");
        }
    }

    #[test]
    fn levels_are_read_off_the_blocks_that_halve() {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let of_one = names(&[
            "diffusion_model.input_blocks.1.0.in_layers.2.lora_up.weight",
            "diffusion_model.input_blocks.2.0.op.lora_up.weight",
            "diffusion_model.input_blocks.4.0.op.lora_up.weight",
        ]);
        assert_eq!(rows(&of_one), Rows { layers: 1 });
        let place = place("diffusion_model.input_blocks.3.1.proj_in.lora_up.weight", rows(&of_one));
        assert_eq!(
            place.map(|at| at.module).as_deref(),
            Some("down_blocks.1.attentions.0.proj_in")
        );
        let flat = names(&["lora_unet_input_blocks_4_0_op.lora_down.weight", "lora_te_x.alpha"]);
        assert_eq!(rows(&flat), Rows { layers: 3 });
        // Attentions alone say nothing, nor does what is no number of layers; and not each block need be there.
        for unsaid in [
            "lora_unet_input_blocks_8_1_proj_in.alpha",
            "input_blocks.0.0.op.alpha",
            "lora_unet_input_blocks_9_0_op.alpha",
        ] {
            assert_eq!(rows(&names(&[unsaid])), TWO_LAYERS, "{unsaid}");
        }
    }

    #[test]
    fn a_text_encoder_s_names() {
        let q_proj = "text_model.encoder.layers.3.self_attn.q_proj";
        for name in [
            "lora_te_text_model_encoder_layers_3_self_attn_q_proj.lora_up.weight",
            "lora_te1_text_model_encoder_layers_3_self_attn_q_proj.lora_up.weight",
            "text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora_B.weight",
            "text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora_linear_layer.up.weight",
            "text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora.up.weight",
            "text_encoder.text_model.encoder.layers.3.self_attn.to_q_lora.up.weight",
            "text_encoder.encoder.layers.3.self_attn.q_proj.lora_B.weight",
            "base_model.model.text_model.encoder.layers.3.self_attn.q_proj.lora_B.weight",
            "base_model.model.encoder.layers.3.self_attn.q_proj.lora_B.default.weight",
        ] {
            is(name, Part::TextEncoder, q_proj, UP);
        }
        let fc1 = "text_model.encoder.layers.11.mlp.fc1";
        let flat = "lora_te_text_model_encoder_layers_11_mlp_fc1.lora_down.weight";
        is(flat, Part::TextEncoder, fc1, DOWN);
        let old = "text_encoder.text_model.encoder.layers.3.self_attn.to_out_lora.down.weight";
        is(old, Part::TextEncoder, "text_model.encoder.layers.3.self_attn.out_proj", DOWN);
    }

    #[test]
    fn flat_names_are_cut_at_their_words() {
        for path in [
            "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
            "mid_block.attentions.0.transformer_blocks.0.ff.net.2",
            "mid_block.attentions.0.proj_in",
            "up_blocks.1.attentions.2.proj_out",
            "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0",
            "up_blocks.0.upsamplers.0.conv",
            "down_blocks.2.downsamplers.0.conv",
            "down_blocks.1.resnets.0.conv_shortcut",
            "down_blocks.1.resnets.0.time_emb_proj",
            "down_blocks.1.resnets.1.conv2",
            "time_embedding.linear_1",
            "conv_in",
            "conv_out",
        ] {
            let flat = format!("lora_unet_{}.lora_up.weight", path.replace('.', "_"));
            is(&flat, Part::UNet, path, UP);
        }
    }

    #[test]
    fn processors_that_name_a_list_mean_its_projection() {
        let to_out = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0";
        for name in [
            "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.down.weight",
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.lora.down.weight",
        ] {
            is(name, Part::UNet, to_out, DOWN);
        }
    }

    #[test]
    fn other_families_have_no_place() {
        for name in [
            "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight",
            "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
            "diffusion_model.blocks.0.self_attn.q.lora_A.weight",
            "lora_unet_.lora_up.weight",
            ".alpha",
            "",
        ] {
            assert_eq!(place(name, TWO_LAYERS), None, "{name}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_name_has_a_place_or_none(name in "[a-z_.0-9]{0,40}(\\.lora_up\\.weight|\\.alpha|_lora.down.weight|)") {
            let _ = place(&name, TWO_LAYERS);
            let _ = place(&format!("lora_unet_{name}"), TWO_LAYERS);
        }
    }
}
