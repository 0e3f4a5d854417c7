//! The U-Net's module paths as the original code (Latent Diffusion) names them, which some LoRA files
//! use, and diffusers' for the same. The blocks are counted in one row there; where a level of the U-Net
//! begins follows from the two layers that every level of a Stable Diffusion has.

/// ResNet blocks of a level in the contracting half.
const LAYERS: usize = 2;

/// diffusers' path for a module of the original code; nothing when `path` is none of its.
pub(super) fn diffusers_path(path: &str) -> Option<String> {
    let (first, rest) = path.split_once('.')?;
    match first {
        "input_blocks" => input_block(rest),
        "middle_block" => {
            let (block, rest) = number(rest)?;
            match block {
                0 => Some(format!("mid_block.resnets.0.{}", resnet(rest)?)),
                1 => Some(format!("mid_block.attentions.0.{rest}")),
                2 => Some(format!("mid_block.resnets.1.{}", resnet(rest)?)),
                _ => None,
            }
        }
        "output_blocks" => output_block(rest),
        "time_embed" => match rest {
            "0" => Some("time_embedding.linear_1".to_owned()),
            "2" => Some("time_embedding.linear_2".to_owned()),
            _ => None,
        },
        "label_emb" => match rest {
            "0.0" => Some("add_embedding.linear_1".to_owned()),
            "0.2" => Some("add_embedding.linear_2".to_owned()),
            _ => None,
        },
        "out" => match rest {
            "0" => Some("conv_norm_out".to_owned()),
            "2" => Some("conv_out".to_owned()),
            _ => None,
        },
        _ => None,
    }
}

fn input_block(path: &str) -> Option<String> {
    let (block, rest) = number(path)?;
    let (part, rest) = number(rest)?;
    let Some(block) = block.checked_sub(1) else {
        return (part == 0 && rest.is_empty()).then(|| "conv_in".to_owned());
    };
    // After its layers, every level has a block that halves the size.
    let (level, layer) = (block / (LAYERS + 1), block % (LAYERS + 1));
    match (layer, part) {
        (LAYERS, 0) => (rest == "op").then(|| format!("down_blocks.{level}.downsamplers.0.conv")),
        (LAYERS, _) => None,
        (_, 0) => Some(format!("down_blocks.{level}.resnets.{layer}.{}", resnet(rest)?)),
        (_, 1) => Some(format!("down_blocks.{level}.attentions.{layer}.{rest}")),
        _ => None,
    }
}

fn output_block(path: &str) -> Option<String> {
    let (block, rest) = number(path)?;
    let (part, rest) = number(rest)?;
    let (level, layer) = (block / (LAYERS + 1), block % (LAYERS + 1));
    match (part, rest) {
        (0, _) => Some(format!("up_blocks.{level}.resnets.{layer}.{}", resnet(rest)?)),
        // The upsampling follows the attention where there is one.
        (1 | 2, "conv") => Some(format!("up_blocks.{level}.upsamplers.0.conv")),
        (1, _) => Some(format!("up_blocks.{level}.attentions.{layer}.{rest}")),
        _ => None,
    }
}

fn resnet(path: &str) -> Option<&'static str> {
    Some(match path {
        "in_layers.0" => "norm1",
        "out_layers.0" => "norm2",
        "in_layers.2" => "conv1",
        "emb_layers.1" => "time_emb_proj",
        "out_layers.3" => "conv2",
        "skip_connection" => "conv_shortcut",
        _ => return None,
    })
}

/// The number that `path` begins with, and what follows.
fn number(path: &str) -> Option<(usize, &str)> {
    let (number, rest) = path.split_once('.').unwrap_or((path, ""));
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_original_code() {
        for (ldm, diffusers) in [
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
            assert_eq!(diffusers_path(ldm).as_deref(), Some(diffusers), "{ldm}");
        }
        for other in
            ["input_blocks.3.1.op", "input_blocks", "middle_block.3.x", "down_blocks.0.x", ""]
        {
            assert_eq!(diffusers_path(other), None, "{other}");
        }
    }
}
