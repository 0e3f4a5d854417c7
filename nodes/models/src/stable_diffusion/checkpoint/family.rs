//! What a file is, from the names and shapes in it: never from its own name.

use crate::files::weights::Weights;

/// What was found in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A model of this family, in one of the namings.
    Known(Naming),
    /// Something else that people have, by the name they know it by.
    Other(&'static str),
    /// Nothing that is known.
    Nothing,
}

/// How a file names its tensors, and so what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// A whole checkpoint of the original code: `model.diffusion_model.`, `first_stage_model.`,
    /// `cond_stage_model.` or SDXL's `conditioner.`, or some of these.
    Checkpoint,
    /// A U-Net alone, by the original code's names or by diffusers'.
    LdmUNet,
    UNet,
    /// An autoencoder alone.
    LdmVae,
    Vae,
    /// A ControlNet, with `control_model.` or without.
    LdmControlNet,
    ControlNet,
    /// A CLIP text encoder, with `text_model.` or without.
    ClipText,
    /// A CLIP vision encoder.
    ClipVision,
    /// TAESD: both halves by diffusers' names, or with `taesd_encoder.` and `taesd_decoder.` before the published files' names, or one
    /// of these files.
    Taesd,
    TaesdHalves,
    TaesdEncoder,
    TaesdDecoder,
    /// A T2I-Adapter, by diffusers' names or by TencentARC's.
    T2iAdapter,
}

/// Names that one kind of file alone has, the surer ones first. A mark that ends in a dot or an
/// underscore is the beginning of a name, one that begins with a dot is within it.
const OTHERS: [(&str, &str); 22] = [
    ("position_net.", "GLIGEN, which GLIGENLoader takes"),
    ("lora_unet_", "a LoRA, which LoraLoader takes"),
    ("lora_te_", "a LoRA, which LoraLoader takes"),
    (".lora_A.", "a LoRA, which LoraLoader takes"),
    (".lora_down.", "a LoRA, which LoraLoader takes"),
    (".lora.down.", "a LoRA, which LoraLoader takes"),
    ("_lora.down.", "a LoRA, which LoraLoader takes"),
    ("string_to_param.", "a textual inversion, which a prompt names as embedding:NAME"),
    ("emb_params", "a textual inversion, which a prompt names as embedding:NAME"),
    ("model.diffusion_model.joint_blocks.", "a Stable Diffusion 3 checkpoint"),
    ("joint_blocks.", "a Stable Diffusion 3 model"),
    ("model.diffusion_model.double_blocks.", "a FLUX checkpoint"),
    ("double_blocks.", "a FLUX model"),
    ("single_transformer_blocks.", "a FLUX model"),
    (".attn.add_q_proj.", "a Stable Diffusion 3 model"),
    ("adaln_single.", "a PixArt model"),
    ("cond_stage_model.model.", "a Stable Diffusion 2 checkpoint"),
    ("clf.1.", "a Stable Cascade model"),
    ("down_blocks.0.motion_modules.", "an AnimateDiff motion module"),
    ("gpt_model.decoder.", "a Kosmos-G checkpoint, which `kosmograph convert` turns into a folder"),
    ("model.layers.0.self_attn.", "a language model"),
    ("encoder.block.0.layer.0.SelfAttention.", "a T5 text encoder"),
];

/// What `weights` are.
pub(super) fn of(weights: &Weights) -> Found {
    let names = weights.names();
    let has = |start: &str| names.iter().any(|name| name.starts_with(start));
    let shows = |mark: &str| match mark.starts_with(['.', '_']) {
        true => names.iter().any(|name| name.contains(mark)),
        false => has(mark),
    };
    if let Some((_, what)) = OTHERS.iter().find(|(mark, _)| shows(mark)) {
        return Found::Other(what);
    }
    let is_control = has("control_model.") || has("input_hint_block.");
    let known = if is_control {
        Naming::LdmControlNet
    } else if has("controlnet_cond_embedding.") {
        Naming::ControlNet
    } else if ["model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner."]
        .iter()
        .any(|p| has(p))
    {
        Naming::Checkpoint
    } else if has("input_blocks.") {
        Naming::LdmUNet
    } else if has("encoder.down.") {
        Naming::LdmVae
    } else if has("encoder.down_blocks.") {
        Naming::Vae
    } else if let Some(naming) = small(weights) {
        naming
    } else if has("down_blocks.") {
        Naming::UNet
    } else if has("vision_model.") {
        Naming::ClipVision
    } else if clip_text_prefix(weights).is_some() || clip_g_prefix(weights).is_some() {
        Naming::ClipText
    } else if has("model_ema.") {
        return Found::Other("the averaged (EMA) weights of a checkpoint without the others");
    } else {
        return Found::Nothing;
    };
    // The width of the text that a U-Net reads tells the generations apart.
    let width = names.iter().find_map(|name| {
        name.ends_with("attn2.to_k.weight").then(|| weights.shape(name)?.get(1).copied()).flatten()
    });
    match width {
        Some(1024) => Found::Other("a model of Stable Diffusion 2"),
        _ => Found::Known(known),
    }
}

/// What stands before the names of SDXL's larger text encoder, "G", in a file, and whether these are OpenCLIP's.
pub(super) fn clip_g_prefix(weights: &Weights) -> Option<(&'static str, bool)> {
    const OPEN_CLIP: [&str; 3] =
        ["conditioner.embedders.1.model", "conditioner.embedders.0.model", ""];
    const TRANSFORMERS: [&str; 5] = [
        "text_encoders.clip_g.transformer",
        "clip_g.transformer",
        "text_encoder_2",
        "conditioner.embedders.1.transformer",
        "",
    ];
    let open_clip = OPEN_CLIP.into_iter().find(|prefix| {
        let text = weights.sub(prefix);
        text.shape("token_embedding.weight").is_some()
            && text.has("transformer.resblocks.0")
            // The text half of CLIP in its first form, which has the same names, is as wide as L.
            && text.shape("text_projection").is_some()
    });
    if let Some(prefix) = open_clip {
        return Some((prefix, true));
    }
    let transformers = TRANSFORMERS.into_iter().find(|prefix| {
        let text = weights.sub(prefix);
        let embedded = text.shape("text_model.embeddings.token_embedding.weight").is_some();
        // Alone in its file it shows in its layers: L has 12.
        let is_deep = || text.has("text_model.encoder.layers.30");
        embedded && (!prefix.is_empty() || is_deep())
    });
    transformers.map(|prefix| (prefix, false))
}

/// The small networks whose names are mostly numbers: what is asked for is the shape of a few.
fn small(weights: &Weights) -> Option<Naming> {
    let convolution = |name: &str| weights.shape(name).is_some_and(|shape| shape.len() == 4);
    let all = |names: &[&str]| names.iter().all(|name| convolution(name));
    if all(&["encoder.layers.0.weight", "encoder.layers.1.conv.0.weight"])
        || all(&["decoder.layers.0.weight", "decoder.layers.2.conv.0.weight"])
    {
        return Some(Naming::Taesd);
    }
    if weights.has("taesd_decoder.3.conv") || weights.has("taesd_encoder.1.conv") {
        return Some(Naming::TaesdHalves);
    }
    if all(&["0.weight", "1.conv.0.weight", "14.weight"]) {
        return Some(Naming::TaesdEncoder);
    }
    if all(&["1.weight", "3.conv.0.weight", "19.weight"]) {
        return Some(Naming::TaesdDecoder);
    }
    let is_adapter = ["adapter.body.0", "body.0"].iter().any(|body| {
        convolution(&format!("{body}.in_conv.weight"))
            || convolution(&format!("{body}.block1.weight"))
            || convolution(&format!("{body}.resnets.0.block1.weight"))
    });
    is_adapter.then_some(Naming::T2iAdapter)
}

/// What stands before `embeddings.token_embedding.weight` in a CLIP text encoder's file.
pub(super) fn clip_text_prefix(weights: &Weights) -> Option<&'static str> {
    const PREFIXES: [&str; 9] = [
        "conditioner.embedders.0.transformer.text_model",
        "text_model",
        "",
        "cond_stage_model.transformer.text_model",
        "cond_stage_model.transformer",
        "text_encoder.text_model",
        "text_encoders.clip_l.transformer.text_model",
        "clip_l.transformer.text_model",
        "transformer.text_model",
    ];
    PREFIXES
        .into_iter()
        .find(|prefix| weights.sub(prefix).shape("embeddings.token_embedding.weight").is_some())
}
