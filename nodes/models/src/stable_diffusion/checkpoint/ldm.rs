//! The names that the original code (Latent Diffusion) gives to tensors, and diffusers' for the same:
//! the translation between a single file and the models of this crate.
//!
//! The U-Net's blocks are counted in one row there. Where a level begins follows from the number of
//! ResNet blocks of each, which is read off the names themselves, so that any size of the family works.

/// How the row of a U-Net's blocks is divided into levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    /// ResNet blocks of a level in the contracting half; the expanding half has one more.
    pub(crate) layers: usize,
}

impl Rows {
    /// Reads the division off the names (below `model.diffusion_model.` or `control_model.`): the first
    /// block that halves the size ends the first level. None where there are no such names.
    pub(crate) fn of<'a>(names: impl Iterator<Item = &'a str>) -> Option<Rows> {
        let (mut first_halving, mut last) = (None::<usize>, None::<usize>);
        for name in names {
            let Some(rest) = name.strip_prefix("input_blocks.") else { continue };
            let Some((block, rest)) = number(rest) else { continue };
            last = last.max(Some(block));
            if rest.starts_with("0.op.") {
                first_halving = Some(first_halving.map_or(block, |first| first.min(block)));
            }
        }
        // One level alone is never halved.
        let layers = match first_halving {
            Some(block) => block.checked_sub(1)?,
            None => last?,
        };
        // The names are a stranger's: the count of the expanding half, one more, must be a number too.
        (layers > 0 && layers < usize::MAX).then_some(Rows { layers })
    }

    /// diffusers' name for a tensor of the U-Net.
    pub(crate) fn unet(self, name: &str) -> Option<String> {
        let (first, rest) = name.split_once('.')?;
        match first {
            "input_blocks" => self.input_block(rest),
            "middle_block" => middle_block(rest),
            "output_blocks" => self.output_block(rest),
            "time_embed" => time_embed(rest),
            "label_emb" => label_emb(rest),
            "out" => {
                let (part, rest) = number(rest)?;
                match part {
                    0 => Some(format!("conv_norm_out.{rest}")),
                    2 => Some(format!("conv_out.{rest}")),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// diffusers' name for a tensor of a ControlNet whose hint goes through `hint_layers` convolutions
    /// after the first.
    pub(super) fn control_net(self, name: &str, hint_layers: usize) -> Option<String> {
        let (first, rest) = name.split_once('.')?;
        match first {
            "input_blocks" => self.input_block(rest),
            "middle_block" => middle_block(rest),
            "time_embed" => time_embed(rest),
            "label_emb" => label_emb(rest),
            // Convolutions, each but the last followed by a SiLU.
            "input_hint_block" => {
                let (part, rest) = number(rest)?;
                match part / 2 {
                    _ if !part.is_multiple_of(2) => None,
                    0 => Some(format!("controlnet_cond_embedding.conv_in.{rest}")),
                    i if i == hint_layers => {
                        Some(format!("controlnet_cond_embedding.conv_out.{rest}"))
                    }
                    i => Some(format!("controlnet_cond_embedding.blocks.{}.{rest}", i - 1)),
                }
            }
            "zero_convs" => {
                let (block, rest) = number(rest)?;
                Some(format!("controlnet_down_blocks.{block}.{}", rest.strip_prefix("0.")?))
            }
            "middle_block_out" => {
                Some(format!("controlnet_mid_block.{}", rest.strip_prefix("0.")?))
            }
            _ => None,
        }
    }

    fn input_block(self, name: &str) -> Option<String> {
        let (block, rest) = number(name)?;
        let (part, rest) = number(rest)?;
        let Some(block) = block.checked_sub(1) else {
            return (part == 0).then(|| format!("conv_in.{rest}"));
        };
        // After its layers, every level but the last has a block that halves the size.
        let (level, layer) = (block / (self.layers + 1), block % (self.layers + 1));
        match (layer == self.layers, part) {
            (true, 0) => {
                let rest = rest.strip_prefix("op.")?;
                Some(format!("down_blocks.{level}.downsamplers.0.conv.{rest}"))
            }
            (false, 0) => Some(format!("down_blocks.{level}.resnets.{layer}.{}", resnet(rest)?)),
            (false, 1) => Some(format!("down_blocks.{level}.attentions.{layer}.{rest}")),
            _ => None,
        }
    }

    fn output_block(self, name: &str) -> Option<String> {
        let (block, rest) = number(name)?;
        let (part, rest) = number(rest)?;
        let (level, layer) = (block / (self.layers + 1), block % (self.layers + 1));
        match (part, rest.strip_prefix("conv.")) {
            (0, _) => Some(format!("up_blocks.{level}.resnets.{layer}.{}", resnet(rest)?)),
            // The upsampling follows the attention where there is one.
            (1 | 2, Some(rest)) => Some(format!("up_blocks.{level}.upsamplers.0.conv.{rest}")),
            (1, None) => Some(format!("up_blocks.{level}.attentions.{layer}.{rest}")),
            _ => None,
        }
    }
}

fn middle_block(name: &str) -> Option<String> {
    let (part, rest) = number(name)?;
    match part {
        0 => Some(format!("mid_block.resnets.0.{}", resnet(rest)?)),
        1 => Some(format!("mid_block.attentions.0.{rest}")),
        2 => Some(format!("mid_block.resnets.1.{}", resnet(rest)?)),
        _ => None,
    }
}

fn time_embed(name: &str) -> Option<String> {
    let (part, rest) = number(name)?;
    match part {
        0 => Some(format!("time_embedding.linear_1.{rest}")),
        2 => Some(format!("time_embedding.linear_2.{rest}")),
        _ => None,
    }
}

/// What SDXL's vector goes through.
fn label_emb(name: &str) -> Option<String> {
    let (part, rest) = number(name.strip_prefix("0.")?)?;
    match part {
        0 => Some(format!("add_embedding.linear_1.{rest}")),
        2 => Some(format!("add_embedding.linear_2.{rest}")),
        _ => None,
    }
}

/// A tensor of a U-Net's ResNet block.
fn resnet(name: &str) -> Option<String> {
    const PARTS: [(&str, &str); 6] = [
        ("in_layers.0.", "norm1."),
        ("in_layers.2.", "conv1."),
        ("emb_layers.1.", "time_emb_proj."),
        ("out_layers.0.", "norm2."),
        ("out_layers.3.", "conv2."),
        ("skip_connection.", "conv_shortcut."),
    ];
    replaced(name, &PARTS)
}

/// diffusers' name for a tensor of the autoencoder, which has `levels` levels: the decoder counts them
/// from the other end.
pub(super) fn vae(name: &str, levels: usize) -> Option<String> {
    let (half, rest) = match name.split_once('.')? {
        (half @ ("encoder" | "decoder"), rest) => (half, rest),
        ("quant_conv" | "post_quant_conv", _) => return Some(name.to_owned()),
        _ => return None,
    };
    let (part, inner) = rest.split_once('.')?;
    let inner = match part {
        "conv_in" | "conv_out" => rest.to_owned(),
        "norm_out" => format!("conv_norm_out.{inner}"),
        "mid" => {
            const PARTS: [(&str, &str); 3] = [
                ("block_1.", "resnets.0."),
                ("block_2.", "resnets.1."),
                ("attn_1.", "attentions.0."),
            ];
            const ATTENTION: [(&str, &str); 5] = [
                ("norm.", "group_norm."),
                ("q.", "to_q."),
                ("k.", "to_k."),
                ("v.", "to_v."),
                ("proj_out.", "to_out.0."),
            ];
            let (from, to) = PARTS.iter().find(|(from, _)| inner.starts_with(from))?;
            let inner = &inner[from.len()..];
            let inner = match *from {
                "attn_1." => replaced(inner, &ATTENTION)?,
                _ => vae_resnet(inner),
            };
            format!("mid_block.{to}{inner}")
        }
        "down" | "up" => {
            let (level, inner) = number(inner)?;
            let level = if part == "down" { level } else { (levels - 1).checked_sub(level)? };
            let (kind, inner) = inner.split_once('.')?;
            let inner = match kind {
                "block" => {
                    let (layer, inner) = number(inner)?;
                    format!("resnets.{layer}.{}", vae_resnet(inner))
                }
                "downsample" => format!("downsamplers.0.{inner}"),
                "upsample" => format!("upsamplers.0.{inner}"),
                _ => return None,
            };
            format!("{part}_blocks.{level}.{inner}")
        }
        _ => return None,
    };
    Some(format!("{half}.{inner}"))
}

/// How many levels an autoencoder has, from its names: one more than the last that is counted.
pub(super) fn vae_levels<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    let level = |name: &str| Some(number(name.strip_prefix("encoder.down.")?)?.0);
    names.filter_map(level).max().map_or(0, |last| last.saturating_add(1))
}

/// A tensor of an autoencoder's ResNet block; but for one, the names are the same.
fn vae_resnet(name: &str) -> String {
    match name.strip_prefix("nin_shortcut.") {
        Some(rest) => format!("conv_shortcut.{rest}"),
        None => name.to_owned(),
    }
}

fn replaced(name: &str, parts: &[(&str, &str)]) -> Option<String> {
    let of = |(from, to): &(&str, &str)| Some(format!("{to}{}", name.strip_prefix(from)?));
    parts.iter().find_map(of)
}

/// The number that a name begins with, and what follows its dot.
fn number(name: &str) -> Option<(usize, &str)> {
    let (number, rest) = name.split_once('.')?;
    Some((number.parse().ok()?, rest))
}
