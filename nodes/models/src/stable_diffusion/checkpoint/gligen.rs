//! GLIGEN's files: the attentions and the network for boxes alone, or within the whole U-Net they were trained in.

use std::path::Path;

use candle_core::Device;

use super::ldm::Rows;
use super::{not_for_us, without_wrapping};
use crate::error::Result;
use crate::files::weights::Weights;
use crate::stable_diffusion::gligen::GligenConfig;

/// What the parts of a U-Net begin with, the original code's names first.
const PARTS: [&str; 7] = [
    "input_blocks.",
    "middle_block.",
    "output_blocks.",
    "down_blocks.",
    "mid_block.",
    "up_blocks.",
    "position_net.",
];

/// GLIGEN in the file or folder at `path`: its sizes, and its weights under diffusers' names.
///
/// # Errors
/// The file cannot be read, or it is none.
pub fn open_gligen(path: &Path, device: &Device) -> Result<(GligenConfig, Weights)> {
    // A pipeline's folder has it in its U-Net.
    let inside = path.join("unet");
    let folder = if inside.is_dir() { &inside } else { path };
    let weights = without_wrapping(Weights::open(folder, device)?);
    let names: Vec<(String, String)> = weights
        .names()
        .into_iter()
        .filter(|name| name.contains(".fuser.") || name.contains("position_net."))
        .filter_map(|name| Some((bare(&name)?.to_owned(), name)))
        .collect();
    if !names.iter().any(|(bare, _)| bare.starts_with("position_net.")) {
        let what = "it has no `position_net`, which makes GLIGEN's tokens of boxes; a file of GLIGEN (text boxes) would \
                    be right";
        return Err(not_for_us(path, what.to_owned()));
    }
    let rows = Rows { layers: layers(names.iter().map(|(bare, _)| bare.as_str())) };
    let diffusers = names.into_iter().map(|(bare, name)| {
        let new = rows.unet(&bare).unwrap_or(bare);
        (new, name)
    });
    let weights = weights.renamed(diffusers.collect::<Vec<_>>());
    Ok((GligenConfig::from_weights(&weights)?, weights))
}

/// A name from where the U-Net's part begins.
fn bare(name: &str) -> Option<&str> {
    let places = PARTS.iter().filter_map(|part| name.find(part));
    places
        .min()
        .filter(|&place| place == 0 || name[..place].ends_with('.'))
        .map(|place| &name[place..])
}

/// How many blocks a level has, of the original code's names: those with an attention stand in a row as long as the level, and
/// behind it is the block that halves the size.
fn layers<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    let block = |name: &str| name.strip_prefix("input_blocks.")?.split('.').next()?.parse().ok();
    let mut blocks: Vec<usize> = names.filter_map(block).collect();
    blocks.sort_unstable();
    blocks.dedup();
    let in_a_row = blocks.windows(2).take_while(|pair| pair[0] + 1 == pair[1]).count();
    // A file of no such names is not translated.
    in_a_row + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_the_blocks() {
        let sd1 = [1, 2, 4, 5, 7, 8]
            .map(|i| format!("input_blocks.{i}.1.transformer_blocks.0.fuser.norm1.bias"));
        assert_eq!(layers(sd1.iter().map(String::as_str)), 2);
        let one = ["input_blocks.1.1.a", "input_blocks.3.1.a", "output_blocks.5.1.a"];
        assert_eq!(layers(one.into_iter()), 1);
        assert_eq!(layers(["down_blocks.0.a"].into_iter()), 1);
        assert_eq!(bare("model.diffusion_model.middle_block.1.a"), Some("middle_block.1.a"));
        assert_eq!(bare("down_blocks.0.a.fuser.b"), Some("down_blocks.0.a.fuser.b"));
        assert_eq!(bare("elsewhere.b"), None);
        let rows = Rows { layers: 2 };
        assert_eq!(
            rows.unet("input_blocks.4.1.transformer_blocks.0.fuser.alpha_attn").as_deref(),
            Some("down_blocks.1.attentions.0.transformer_blocks.0.fuser.alpha_attn")
        );
    }
}
