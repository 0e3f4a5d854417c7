//! How much each cross-attention of a U-Net listens to a picture: the weight types of ComfyUI's IP-Adapter nodes.

use node::{Error, Result};

/// The types that are offered, as workflows name them.
pub const WEIGHT_TYPES: &[&str] = &[
    "linear",
    "ease in",
    "ease out",
    "ease in-out",
    "reverse in-out",
    "weak input",
    "weak output",
    "weak middle",
    "strong middle",
    "style transfer",
    "composition",
    "strong style transfer",
    "style and composition",
];

/// What keys and values are multiplied by besides.
pub const SCALINGS: &[&str] = &["V only", "K+V", "K+V w/ C penalty", "K+mean(V) w/ C penalty"];

/// Which part of the U-Net a layer is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Input,
    Middle,
    Output,
}

/// The weight of each layer of `paths` (in an IP-Adapter's order) relative to the whole, by the weight type `kind`.
///
/// # Errors
/// The type is unknown, or made for the U-Nets of Stable Diffusion 1.5 and SDXL alone and this is another.
pub fn of_layers(kind: &str, paths: &[String]) -> Result<Vec<f64>> {
    let half = |path: &str| match path {
        _ if path.starts_with("down") => Half::Input,
        _ if path.starts_with("mid") => Half::Middle,
        _ => Half::Output,
    };
    // Transformers in the order in which they compute; each may have several layers.
    let mut transformers: Vec<&str> = Vec::new();
    for wanted in [Half::Input, Half::Middle, Half::Output] {
        for path in paths.iter().filter(|path| half(path) == wanted) {
            let transformer = transformer_of(path);
            if !transformers.contains(&transformer) {
                transformers.push(transformer);
            }
        }
    }
    let count = transformers.len().max(1) as f64;
    let chosen = match kind {
        "style transfer" | "composition" | "strong style transfer" | "style and composition" => {
            Some(chosen(kind, transformers.len())?)
        }
        _ => None,
    };
    let weight = |path: &String| {
        let transformer = transformer_of(path);
        let index = transformers.iter().position(|known| *known == transformer).unwrap_or(0);
        if let Some(chosen) = &chosen {
            let of_index = chosen.iter().find(|(known, _)| *known == index);
            return Ok(of_index.map_or(0.0, |(_, weight)| *weight));
        }
        let t = index as f64;
        let from_middle = (t - count / 2.0).abs() / (count / 2.0);
        let eased = |share: f64| 0.05 + 0.95 * share;
        Ok(match (kind, half(path)) {
            ("linear", _) => 1.0,
            ("ease in", _) => eased(1.0 - t / count),
            ("ease out", _) => eased(t / count),
            ("ease in-out", _) => eased(1.0 - from_middle),
            ("reverse in-out", _) => eased(from_middle),
            ("weak input", Half::Input)
            | ("weak middle", Half::Middle)
            | ("weak output", Half::Output)
            | ("strong middle", Half::Input | Half::Output) => 0.2,
            ("weak input" | "weak middle" | "weak output" | "strong middle", _) => 1.0,
            _ => {
                return Err(Error::at(
                    "weight_type",
                    format!("there is no \"{kind}\"; there are {}", WEIGHT_TYPES.join(", ")),
                ));
            }
        })
    };
    paths.iter().map(weight).collect()
}

/// The path of the transformer that a layer is in.
fn transformer_of(path: &str) -> &str {
    path.split_once(".transformer_blocks").map_or(path, |(transformer, _)| transformer)
}

/// The transformers that a type chooses, by their place, with their weights.
fn chosen(kind: &str, transformers: usize) -> Result<Vec<(usize, f64)>> {
    let all = |ranges: &[std::ops::RangeInclusive<usize>]| {
        ranges.iter().flat_map(|range| range.clone()).map(|index| (index, 1.0)).collect::<Vec<_>>()
    };
    let composition = [(4, 0.25), (5, 1.0)];
    Ok(match (kind, transformers) {
        ("style transfer", 11) => vec![(6, 1.0)],
        ("composition", 11) => vec![(3, 1.0)],
        ("strong style transfer", 11) => all(&[0..=2, 4..=10]),
        ("style and composition", 11) => vec![(3, 1.0), (6, 1.0)],
        ("style transfer", 16) => all(&[0..=3, 9..=15]),
        ("composition", 16) => composition.to_vec(),
        ("strong style transfer", 16) => all(&[0..=3, 6..=15]),
        ("style and composition", 16) => [&all(&[0..=3, 9..=15])[..], &composition].concat(),
        _ => {
            return Err(Error::at(
                "weight_type",
                format!(
                    "\"{kind}\" chooses among the 16 transformers of Stable Diffusion 1.5 or the 11 of SDXL, but this \
                     model has {transformers}; \"linear\" would be right"
                ),
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sd15() -> Vec<String> {
        let path = |block: &str, i: usize, j: usize| {
            format!("{block}_blocks.{i}.attentions.{j}.transformer_blocks.0.attn2")
        };
        let down = (0..6).map(|n| path("down", n / 2, n % 2));
        let up = (0..9).map(|n| path("up", 1 + n / 3, n % 3));
        let mid = ["mid_block.attentions.0.transformer_blocks.0.attn2".to_owned()];
        down.chain(up).chain(mid).collect()
    }

    #[test]
    fn layers_are_weighted_in_the_order_in_which_they_compute() {
        let paths = sd15();
        assert_eq!(of_layers("linear", &paths).unwrap(), [1.0; 16]);
        // The middle is the last of the paths and the seventh to compute.
        let ease_in = of_layers("ease in", &paths).unwrap();
        assert!((ease_in[0] - 1.0).abs() < 1e-9);
        assert!((ease_in[15] - (0.05 + 0.95 * (1.0 - 6.0 / 16.0))).abs() < 1e-9);
        assert!((ease_in[6] - (0.05 + 0.95 * (1.0 - 7.0 / 16.0))).abs() < 1e-9);
        let weak = of_layers("weak output", &paths).unwrap();
        assert_eq!((weak[5], weak[6], weak[15]), (1.0, 0.2, 1.0));
        let strong = of_layers("strong middle", &paths).unwrap();
        assert_eq!((strong[0], strong[14], strong[15]), (0.2, 0.2, 1.0));
        let composition = of_layers("composition", &paths).unwrap();
        assert_eq!(composition.iter().filter(|weight| **weight > 0.0).count(), 2);
        assert_eq!((composition[4], composition[5]), (0.25, 1.0));
        let style = of_layers("style transfer", &paths).unwrap();
        assert_eq!((style[3], style[4], style[15], style[6], style[8]), (1.0, 0.0, 0.0, 0.0, 1.0));
        for kind in WEIGHT_TYPES {
            assert_eq!(of_layers(kind, &paths).unwrap().len(), 16, "{kind}");
        }
        let unknown = of_layers("eased", &paths).unwrap_err().to_string();
        assert!(unknown.contains("there is no \"eased\""), "{unknown}");
        let tiny = of_layers("composition", &paths[..3]).unwrap_err().to_string();
        assert!(tiny.contains("this model has 3"), "{tiny}");
        assert!(of_layers("linear", &[]).unwrap().is_empty());
    }
}
