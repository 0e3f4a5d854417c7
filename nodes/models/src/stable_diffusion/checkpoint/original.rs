//! diffusers' and transformers' names of tensors, and those that the original code has for the same: the way back from what
//! [`super::ldm`] and [`super::open_clip`] translate, for files that are saved.

use candle_core::Tensor;

use crate::error::Result;

/// A tensor of a file that is saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub name: String,
    pub shape: Vec<usize>,
    pub made: Made,
}

/// What a piece is made of, by our names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    Whole(String),
    /// Queries, keys and values below each other.
    Stacked([String; 3]),
    /// A matrix with rows and columns exchanged.
    Transposed(String),
}

impl Piece {
    /// The name of a tensor that it is made of, whose type it has.
    pub fn first(&self) -> &str {
        match &self.made {
            Made::Whole(name) | Made::Transposed(name) | Made::Stacked([name, ..]) => name,
        }
    }

    /// The numbers, of what `tensor` gives by our names.
    ///
    /// # Errors
    /// What `tensor` reports.
    pub fn numbers(&self, tensor: &mut dyn FnMut(&str) -> Result<Tensor>) -> Result<Tensor> {
        let whole = match &self.made {
            Made::Whole(name) => tensor(name)?,
            Made::Transposed(name) => tensor(name)?.t()?.contiguous()?,
            Made::Stacked([q, k, v]) => Tensor::cat(&[tensor(q)?, tensor(k)?, tensor(v)?], 0)?,
        };
        Ok(whole.reshape(self.shape.as_slice())?)
    }
}

/// A tensor by our name, and its shape.
pub type Named = (String, Vec<usize>);

/// A U-Net's names in the original code, without `model.diffusion_model.`, of all its tensors.
#[derive(Clone, Copy, Debug)]
pub struct UNetNames {
    /// ResNet blocks of a level in the contracting half.
    layers: usize,
    /// Of the levels of the expanding half, those with attentions, as bits.
    attentive: u64,
}

impl UNetNames {
    pub fn of<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let (mut layers, mut attentive) = (0, 0);
        for name in names {
            if let Some(rest) = name.strip_prefix("down_blocks.0.resnets.") {
                layers = layers.max(number(rest).map_or(0, |(j, _)| j.saturating_add(1)));
            }
            if let Some((level, rest)) = name.strip_prefix("up_blocks.").and_then(number)
                && level < 64
                && rest.starts_with("attentions.")
            {
                attentive |= 1 << level;
            }
        }
        Self { layers, attentive }
    }

    /// diffusers' path of block number `block` of the contracting half, without its attention; two ResNet blocks are a
    /// level where the names do not say it. `None` of the first, which is a convolution alone.
    pub fn input_block(self, block: usize) -> Option<String> {
        let layers = if self.layers == 0 { 2 } else { self.layers };
        let place = block.checked_sub(1)?;
        let (level, j) = (place / (layers + 1), place % (layers + 1));
        Some(match j == layers {
            true => format!("down_blocks.{level}.downsamplers.0"),
            false => format!("down_blocks.{level}.resnets.{j}"),
        })
    }

    /// `None` where it is no tensor of a U-Net's.
    pub fn original(self, name: &str) -> Option<String> {
        const OUTER: [(&str, &str); 7] = [
            ("conv_in.", "input_blocks.0.0."),
            ("time_embedding.linear_1.", "time_embed.0."),
            ("time_embedding.linear_2.", "time_embed.2."),
            ("add_embedding.linear_1.", "label_emb.0.0."),
            ("add_embedding.linear_2.", "label_emb.0.2."),
            ("conv_norm_out.", "out.0."),
            ("conv_out.", "out.2."),
        ];
        if let Some(outer) = replaced(name, &OUTER) {
            return Some(outer);
        }
        let row = self.layers + 1;
        if let Some(rest) = name.strip_prefix("mid_block.") {
            let (kind, rest) = rest.split_once('.')?;
            let (i, rest) = number(rest)?;
            return match (kind, i) {
                ("resnets", 0) => Some(format!("middle_block.0.{}", resnet(rest)?)),
                ("attentions", 0) => Some(format!("middle_block.1.{rest}")),
                ("resnets", 1) => Some(format!("middle_block.2.{}", resnet(rest)?)),
                _ => None,
            };
        }
        let (half, rest) = name.split_once('.')?;
        let (level, rest) = number(rest)?;
        let (kind, rest) = rest.split_once('.')?;
        let (j, rest) = number(rest)?;
        let place = level.checked_mul(row)?.checked_add(j)?;
        match (half, kind) {
            ("down_blocks", "resnets") => {
                Some(format!("input_blocks.{}.0.{}", place + 1, resnet(rest)?))
            }
            ("down_blocks", "attentions") => Some(format!("input_blocks.{}.1.{rest}", place + 1)),
            ("down_blocks", "downsamplers") => {
                let block = level * row + self.layers + 1;
                Some(format!("input_blocks.{block}.0.op.{}", rest.strip_prefix("conv.")?))
            }
            ("up_blocks", "resnets") => Some(format!("output_blocks.{place}.0.{}", resnet(rest)?)),
            ("up_blocks", "attentions") => Some(format!("output_blocks.{place}.1.{rest}")),
            ("up_blocks", "upsamplers") => {
                let block = level * row + self.layers;
                let has_attention = level < 64 && self.attentive >> level & 1 == 1;
                let part = 1 + usize::from(has_attention);
                Some(format!("output_blocks.{block}.{part}.{rest}"))
            }
            _ => None,
        }
    }
}

/// A U-Net's tensors, with `prefix` before the names. What the original code has no name for keeps its own.
pub fn unet(tensors: &[Named], prefix: &str) -> Vec<Piece> {
    let names = UNetNames::of(tensors.iter().map(|(name, _)| name.as_str()));
    let piece = |(name, shape): &Named| {
        let original = names.original(name).unwrap_or_else(|| name.clone());
        Piece {
            name: format!("{prefix}{original}"),
            shape: shape.clone(),
            made: Made::Whole(name.clone()),
        }
    };
    tensors.iter().map(piece).collect()
}

/// An autoencoder's tensors.
pub fn vae(tensors: &[Named], prefix: &str) -> Vec<Piece> {
    let level = |(name, _): &Named| Some(number(name.strip_prefix("decoder.up_blocks.")?)?.0);
    let levels = tensors.iter().filter_map(level).max().map_or(0, |last| last.saturating_add(1));
    let piece = |(name, shape): &Named| {
        let original = vae_name(name, levels).unwrap_or_else(|| name.clone());
        // Its attention's projections are convolutions there.
        let is_projection = original.contains(".attn_1.") && shape.len() == 2;
        let shape = if is_projection { vec![shape[0], shape[1], 1, 1] } else { shape.clone() };
        Piece { name: format!("{prefix}{original}"), shape, made: Made::Whole(name.clone()) }
    };
    tensors.iter().map(piece).collect()
}

fn vae_name(name: &str, levels: usize) -> Option<String> {
    let (half, rest) = name.split_once('.')?;
    if !matches!(half, "encoder" | "decoder") {
        return None;
    }
    if let Some(rest) = rest.strip_prefix("conv_norm_out.") {
        return Some(format!("{half}.norm_out.{rest}"));
    }
    if let Some(rest) = rest.strip_prefix("mid_block.") {
        const PARTS: [(&str, &str); 8] = [
            ("resnets.0.", "block_1."),
            ("resnets.1.", "block_2."),
            ("attentions.0.group_norm.", "attn_1.norm."),
            ("attentions.0.to_q.", "attn_1.q."),
            ("attentions.0.to_k.", "attn_1.k."),
            ("attentions.0.to_v.", "attn_1.v."),
            ("attentions.0.to_out.0.", "attn_1.proj_out."),
            ("attentions.0.", "attn_1."),
        ];
        return Some(format!("{half}.mid.{}", vae_resnet(&replaced(rest, &PARTS)?)));
    }
    let (part, rest) = rest.split_once('.')?;
    let part = part.strip_suffix("_blocks")?;
    let (level, rest) = number(rest)?;
    let level = if part == "up" { levels.checked_sub(1)?.checked_sub(level)? } else { level };
    const KINDS: [(&str, &str); 3] = [
        ("resnets.", "block."),
        ("downsamplers.0.", "downsample."),
        ("upsamplers.0.", "upsample."),
    ];
    Some(format!("{half}.{part}.{level}.{}", vae_resnet(&replaced(rest, &KINDS)?)))
}

fn vae_resnet(name: &str) -> String {
    name.replace("conv_shortcut.", "nin_shortcut.")
}

/// A text encoder's tensors under transformers' names.
pub fn clip(tensors: &[Named], prefix: &str) -> Vec<Piece> {
    let piece = |(name, shape): &Named| Piece {
        name: format!("{prefix}{name}"),
        shape: shape.clone(),
        made: Made::Whole(name.clone()),
    };
    tensors.iter().map(piece).collect()
}

/// A text encoder's tensors under OpenCLIP's names, as SDXL's files have the larger of their two.
pub fn open_clip(tensors: &[Named], prefix: &str) -> Vec<Piece> {
    const LAYER: [(&str, &str); 5] = [
        ("layer_norm1.", "ln_1."),
        ("layer_norm2.", "ln_2."),
        ("self_attn.out_proj.", "attn.out_proj."),
        ("mlp.fc1.", "mlp.c_fc."),
        ("mlp.fc2.", "mlp.c_proj."),
    ];
    let piece = |(name, shape): &Named| {
        let whole = |new: String| {
            let made = Made::Whole(name.clone());
            Some(Piece { name: format!("{prefix}{new}"), shape: shape.clone(), made })
        };
        match name.as_str() {
            "text_model.embeddings.token_embedding.weight" => {
                return whole("token_embedding.weight".to_owned());
            }
            "text_model.embeddings.position_embedding.weight" => {
                return whole("positional_embedding".to_owned());
            }
            "text_projection.weight" => {
                let shape = shape.iter().rev().copied().collect();
                let made = Made::Transposed(name.clone());
                return Some(Piece { name: format!("{prefix}text_projection"), shape, made });
            }
            _ => {}
        }
        if let Some(rest) = name.strip_prefix("text_model.final_layer_norm.") {
            return whole(format!("ln_final.{rest}"));
        }
        let layer = name.strip_prefix("text_model.encoder.layers.").and_then(number);
        let Some((i, part)) = layer else { return whole(name.clone()) };
        let block = format!("transformer.resblocks.{i}");
        // The three go together, at the place of the first.
        if let Some(kind) = part.strip_prefix("self_attn.q_proj.") {
            let of = |which| format!("text_model.encoder.layers.{i}.self_attn.{which}_proj.{kind}");
            let mut shape = shape.clone();
            if let Some(rows) = shape.first_mut() {
                *rows *= 3;
            }
            let made = Made::Stacked(["q", "k", "v"].map(of));
            return Some(Piece {
                name: format!("{prefix}{block}.attn.in_proj_{kind}"),
                shape,
                made,
            });
        }
        if part.starts_with("self_attn.k_proj.") || part.starts_with("self_attn.v_proj.") {
            return None;
        }
        whole(format!("{block}.{}", replaced(part, &LAYER).unwrap_or_else(|| part.to_owned())))
    };
    tensors.iter().filter_map(piece).collect()
}

/// A tensor of a U-Net's ResNet block.
fn resnet(name: &str) -> Option<String> {
    const PARTS: [(&str, &str); 6] = [
        ("norm1.", "in_layers.0."),
        ("conv1.", "in_layers.2."),
        ("time_emb_proj.", "emb_layers.1."),
        ("norm2.", "out_layers.0."),
        ("conv2.", "out_layers.3."),
        ("conv_shortcut.", "skip_connection."),
    ];
    replaced(name, &PARTS)
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

#[cfg(test)]
mod tests {
    use super::super::{ldm, open_clip as translated};
    use super::*;

    #[test]
    fn a_unets_names_are_the_original_codes() {
        let diffusers = [
            "conv_in.weight",
            "time_embedding.linear_2.bias",
            "add_embedding.linear_1.weight",
            "down_blocks.0.resnets.0.norm1.weight",
            "down_blocks.0.resnets.1.conv_shortcut.bias",
            "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k.weight",
            "down_blocks.2.downsamplers.0.conv.weight",
            "mid_block.resnets.1.time_emb_proj.weight",
            "mid_block.attentions.0.proj_in.weight",
            "up_blocks.0.resnets.2.conv2.weight",
            "up_blocks.0.upsamplers.0.conv.weight",
            "up_blocks.1.attentions.0.norm.bias",
            "up_blocks.1.upsamplers.0.conv.weight",
            "conv_norm_out.weight",
            "conv_out.bias",
        ];
        let names = UNetNames::of(diffusers.into_iter());
        let rows = ldm::Rows { layers: 2 };
        for name in diffusers {
            let original = names.original(name).unwrap_or_default();
            assert_eq!(rows.unet(&original).as_deref(), Some(name), "{original}");
        }
        // SD 1.5's, as its file has them.
        let original = |name: &str| names.original(name).unwrap_or_default();
        assert_eq!(
            original("down_blocks.2.downsamplers.0.conv.weight"),
            "input_blocks.9.0.op.weight"
        );
        assert_eq!(
            original("up_blocks.0.upsamplers.0.conv.weight"),
            "output_blocks.2.1.conv.weight"
        );
        assert_eq!(
            original("up_blocks.1.upsamplers.0.conv.weight"),
            "output_blocks.5.2.conv.weight"
        );
        assert_eq!(names.input_block(3).as_deref(), Some("down_blocks.0.downsamplers.0"));
        assert_eq!(names.input_block(5).as_deref(), Some("down_blocks.1.resnets.1"));
        assert_eq!(names.input_block(0), None);
        assert_eq!(names.original("elsewhere.weight"), None);
        assert_eq!(names.original("down_blocks.99999999999999999999.resnets.0.a"), None);
    }

    #[test]
    fn an_autoencoders_names_are_the_original_codes() {
        let diffusers = [
            "encoder.conv_in.weight",
            "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
            "encoder.down_blocks.2.downsamplers.0.conv.bias",
            "encoder.mid_block.resnets.1.norm1.weight",
            "encoder.mid_block.attentions.0.to_q.weight",
            "decoder.mid_block.attentions.0.group_norm.weight",
            "decoder.mid_block.attentions.0.to_out.0.bias",
            "decoder.up_blocks.0.resnets.2.conv1.weight",
            "decoder.up_blocks.3.resnets.0.conv_shortcut.bias",
            "decoder.up_blocks.1.upsamplers.0.conv.weight",
            "decoder.conv_norm_out.weight",
            "quant_conv.weight",
        ];
        let tensors: Vec<Named> =
            diffusers.iter().map(|name| ((*name).to_owned(), vec![4, 4])).collect();
        for (piece, name) in vae(&tensors, "").iter().zip(diffusers) {
            assert_eq!(ldm::vae(&piece.name, 4).as_deref(), Some(name), "{piece:?}");
        }
        let pieces = vae(&tensors, "first_stage_model.");
        assert_eq!(pieces[4].name, "first_stage_model.encoder.mid.attn_1.q.weight");
        assert_eq!(pieces[4].shape, [4, 4, 1, 1]);
        assert_eq!(pieces[8].name, "first_stage_model.decoder.up.0.block.0.nin_shortcut.bias");
    }

    #[test]
    fn a_text_encoders_names_are_open_clips() {
        let names = [
            ("text_model.embeddings.token_embedding.weight", vec![9, 4]),
            ("text_model.embeddings.position_embedding.weight", vec![7, 4]),
            ("text_model.encoder.layers.3.self_attn.q_proj.weight", vec![4, 4]),
            ("text_model.encoder.layers.3.self_attn.k_proj.weight", vec![4, 4]),
            ("text_model.encoder.layers.3.self_attn.v_proj.weight", vec![4, 4]),
            ("text_model.encoder.layers.3.self_attn.out_proj.bias", vec![4]),
            ("text_model.encoder.layers.3.mlp.fc2.bias", vec![4]),
            ("text_model.final_layer_norm.weight", vec![4]),
            ("text_projection.weight", vec![5, 4]),
        ];
        let tensors: Vec<Named> =
            names.iter().map(|(name, shape)| ((*name).to_owned(), shape.clone())).collect();
        let pieces = open_clip(&tensors, "");
        assert_eq!(pieces.len(), 7);
        let back: Vec<String> = pieces
            .iter()
            .flat_map(|piece| translated::text(&piece.name))
            .map(|(name, _)| name)
            .collect();
        let ours: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        assert_eq!(back, ours);
        assert_eq!(
            (pieces[2].name.as_str(), &pieces[2].shape[..]),
            ("transformer.resblocks.3.attn.in_proj_weight", &[12, 4][..])
        );
        assert_eq!(pieces[6].shape, [4, 5]);
    }
}
