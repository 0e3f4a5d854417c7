//! Which model a LoRA seems to be for, so that an error can say more than that it does not fit.

use std::fmt;

use crate::files::weights::Weights;

/// A family of models whose LoRAs are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    StableDiffusion1,
    StableDiffusion2,
    StableDiffusion3,
    Sdxl,
    StableCascade,
    Flux,
    HunyuanVideo,
    QwenImage,
    Wan,
    PixArt,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::StableDiffusion1 => "Stable Diffusion 1",
            Family::StableDiffusion2 => "Stable Diffusion 2",
            Family::StableDiffusion3 => "Stable Diffusion 3",
            Family::Sdxl => "SDXL",
            Family::StableCascade => "Stable Cascade",
            Family::Flux => "FLUX",
            Family::HunyuanVideo => "HunyuanVideo",
            Family::QwenImage => "Qwen-Image",
            Family::Wan => "Wan",
            Family::PixArt => "PixArt",
        })
    }
}

/// Parts of names that one family alone has, dots and underscores as one; the surer ones first.
const MARKS: [(&str, Family); 17] = [
    ("lora_prior_unet_", Family::StableCascade),
    ("lora_te2_", Family::Sdxl),
    ("text_encoder_2_text_model", Family::Sdxl),
    ("img_mod_1", Family::QwenImage),
    ("joint_blocks_", Family::StableDiffusion3),
    ("attn_add_q_proj", Family::StableDiffusion3),
    ("txt_in_individual_token_refiner", Family::HunyuanVideo),
    ("single_transformer_blocks_", Family::Flux),
    ("double_blocks_", Family::Flux),
    ("single_blocks_", Family::Flux),
    ("cross_attn_k_img", Family::Wan),
    ("blocks_0_cross_attn_", Family::Wan),
    ("blocks_0_self_attn_", Family::Wan),
    ("adaln_single", Family::PixArt),
    ("transformer_blocks_1_attn1", Family::Sdxl),
    ("transformer_blocks_1_attn2", Family::Sdxl),
    ("add_embedding", Family::Sdxl),
];

/// The family that the names, or the width of the text that the layers read, show.
pub(super) fn of(weights: &Weights, names: &[String]) -> Option<Family> {
    let flat: Vec<String> = names.iter().map(|name| name.replace('.', "_")).collect();
    let marked = MARKS.iter().find(|(mark, _)| {
        let shows = |name: &String| {
            // A text encoder's layers have `self_attn` too.
            name.contains(mark) && (!mark.starts_with("blocks_0") || !name.contains("text"))
        };
        flat.iter().any(shows)
    });
    // FLUX has both kinds of blocks and so does SD 3 in diffusers' naming: the first mark decides, and
    // single blocks are FLUX's alone.
    let single = flat.iter().any(|name| name.contains("single_transformer_blocks_"));
    if let Some((_, family)) = marked {
        return Some(if single && *family == Family::StableDiffusion3 {
            Family::Flux
        } else {
            *family
        });
    }
    match width_of_text(weights, names)? {
        768 => Some(Family::StableDiffusion1),
        1024 => Some(Family::StableDiffusion2),
        2048 => Some(Family::Sdxl),
        _ => None,
    }
}

/// The width of the text that a LoRA's cross-attentions read, which is that of the U-Net it was trained on, where a factor shows it.
pub fn text_width(weights: &Weights) -> Option<usize> {
    let names = weights.names();
    let told = width_of_text(weights, &names);
    told.or_else(|| match of(weights, &names)? {
        Family::StableDiffusion1 => Some(768),
        Family::StableDiffusion2 => Some(1024),
        // The refiner's text is narrower; nobody trains for it, and it has all of the base's names.
        Family::Sdxl => Some(2048),
        _ => None,
    })
}

/// See [`text_width`]: the inputs of a factor that stands on the input's side of a layer.
fn width_of_text(weights: &Weights, names: &[String]) -> Option<usize> {
    names.iter().find_map(|name| {
        let flat = name.replace('.', "_");
        let reads_text = ["attn2_to_k", "attn2_to_v", "attn2_processor_to_k"];
        let of_input = ["down_weight", "lora_A", "hada_w1_b", "hada_w2_b"];
        let is_wanted = reads_text.iter().any(|part| flat.contains(part))
            && of_input.iter().any(|part| flat.contains(part));
        is_wanted.then(|| weights.shape(name)?.get(1).copied()).flatten()
    })
}
