//! LoRA: a change of a model's weights in few numbers. A layer's W [out, in] becomes
//! W + strength · scale · U D with U [out, rank] ("up") and D [rank, in] ("down").
//!
//! Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685; the scale is
//! alpha / rank as there, 1 where a file has no alpha. Convolutions are changed alike ("LoCon"): D is
//! a convolution to `rank` channels and U a 1 × 1 one back, or with a core between the two, after
//! Tucker. Others make the change otherwise: LoHa, LoKr, DoRA, GLoRA, (IA)³, OFT, whole differences, a
//! file of [`kinds`] each.
//!
//! [`Lora::open`] reads the namings that trainers write ([`names`]); [`Adapted`] is a network with LoRAs
//! on it.

mod adapted;
mod dora;
mod error;
mod extract;
mod factor;
mod family;
mod kinds;
mod layer;
mod names;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::files::weights::Weights;
use names::{Part, Place, Role};

pub use adapted::{Adapted, Factors, Loaded, Other, Recipe};
pub use error::LoraError;
pub use extract::extract;
pub use factor::{FACTORS, Factor};
pub use family::{Family, text_width};
pub use layer::Layer;

/// Layers by their module's path, as diffusers and transformers name it.
pub type Layers = BTreeMap<String, Layer>;

/// A LoRA file.
#[derive(Debug, Default)]
pub struct Lora {
    /// Of the U-Net: `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`.
    pub unet: Layers,
    /// Of the text encoder: `text_model.encoder.layers.0.self_attn.q_proj`.
    pub text_encoder: Layers,
    /// Of SDXL's second text encoder, with the same paths.
    pub text_encoder_2: Layers,
    /// Layers that belong to neither, as the file names them.
    pub unknown: Vec<String>,
    /// The model that it seems to be for.
    pub family: Option<Family>,
}

/// Names that only other kinds of adapters have: see [`LoraError::Kind`].
const OTHER_KINDS: [(&str, &str); 3] =
    [(".vera_lambda", "VeRA"), (".oft_R.", "OFT of PEFT"), (".oft_r.", "OFT of PEFT")];

impl Lora {
    /// Reads a LoRA's file, in any of the namings of kohya, PEFT and diffusers.
    ///
    /// # Errors
    /// [`LoraError`]; the file is damaged, or a value in it is NaN or infinite.
    pub fn open(path: &Path) -> Result<Lora> {
        Lora::read(&Weights::open(path, &Device::Cpu)?)
    }

    /// [`Lora::open`], of a file that is open already.
    ///
    /// # Errors
    /// As [`Lora::open`].
    pub fn read(weights: &Weights) -> Result<Lora> {
        let in_file = |problem: LoraError| {
            let file = weights.origin().to_owned();
            Error::from(LoraError::InFile { file, problem: Box::new(problem) })
        };
        let names = weights.names();
        for (mark, kind) in OTHER_KINDS {
            if let Some(name) = names.iter().find(|name| name.contains(mark)) {
                return Err(in_file(LoraError::Kind { kind, name: name.clone() }));
            }
        }
        let rows = names::rows(&names);
        let mut places: BTreeMap<(Part, String), BTreeMap<Role, &str>> = BTreeMap::new();
        let mut unknown = Vec::new();
        for name in &names {
            match names::place(name, rows) {
                Some(Place { part, module, role }) => {
                    let layer = places.entry((part, module.clone())).or_default();
                    if layer.insert(role, name).is_some() {
                        let second = name.clone();
                        return Err(in_file(LoraError::Twice { layer: module, second }));
                    }
                }
                // A layer is told once, by the path that its two or three tensors have in common.
                None => {
                    unknown.push(names::role(name).map_or_else(|| name.clone(), |(path, _)| path))
                }
            }
        }
        // A weight alone is a checkpoint's. (IA)³ calls its factors so, and says beside them which side
        // they are for.
        places.retain(|_, layer| {
            let is_layer = layer.keys().any(|role| !matches!(role, Role::Factor(Factor::Ia3)));
            if !is_layer {
                unknown.extend(layer.values().map(|name| name.to_string()));
            }
            is_layer
        });
        let is_lora = names.iter().any(|name| match names::role(name) {
            Some((_, Role::Factor(Factor::Ia3 | Factor::Rescale | Factor::DoraScale))) => false,
            Some((_, Role::Factor(_))) => true,
            _ => false,
        });
        if !is_lora {
            let first = names.into_iter().next();
            return Err(in_file(LoraError::NotALora { first }));
        }
        unknown.dedup();
        let family = family::of(weights, &names);
        let mut lora = Lora { unknown, family, ..Lora::default() };
        for ((part, module), names) in places {
            let (mut factors, mut alpha) = (BTreeMap::new(), None);
            for (role, name) in names {
                match role {
                    Role::Alpha => alpha = Some(weights.number(name)?),
                    // A truth value or a whole number, as it comes.
                    Role::Factor(Factor::OnInput) => {
                        let number = weights.number(name)? as f32;
                        factors.insert(Factor::OnInput, Tensor::new(number, &Device::Cpu)?);
                    }
                    Role::Factor(factor) => {
                        let shape = weights.shape(name).unwrap_or_default();
                        factors.insert(factor, weights.get(name, shape)?);
                    }
                }
            }
            let layer = Layer::new(&module, factors, alpha).map_err(in_file)?;
            let layers = match part {
                Part::UNet => &mut lora.unet,
                Part::TextEncoder => &mut lora.text_encoder,
                Part::TextEncoder2 => &mut lora.text_encoder_2,
            };
            layers.insert(module, layer);
        }
        Ok(lora)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const FLAT: &str = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k";
    const PATH: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k";

    fn scale(layer: &Layer) -> f64 {
        layer.as_low_rank().expect("a plain LoRA's layer").3
    }

    fn filled(shape: &[usize], value: f64) -> Tensor {
        Tensor::full(value as f32, shape, &Device::Cpu).expect("a tensor")
    }

    /// A LoRA with one tensor for each pair of name and shape, all of it 0.5.
    fn read(tensors: &[(&str, &[usize])]) -> Result<Lora> {
        let tensors = tensors.iter().map(|(name, shape)| (name.to_string(), filled(shape, 0.5)));
        Lora::read(&Weights::from_tensors("a.safetensors", tensors.collect(), &Device::Cpu))
    }

    fn said(result: Result<Lora>) -> String {
        let error = result.expect_err("no error").to_string();
        assert!(error.contains("a.safetensors"), "{error}");
        error
    }

    #[test]
    fn layers_have_their_own_ranks_and_alphas() -> Result<()> {
        let text = "lora_te_text_model_encoder_layers_0_mlp_fc1";
        let lora = read(&[
            (&format!("{FLAT}.lora_up.weight"), &[8, 2]),
            (&format!("{FLAT}.lora_down.weight"), &[2, 768]),
            (&format!("{FLAT}.alpha"), &[]),
            (&format!("{text}.lora_up.weight"), &[8, 3]),
            (&format!("{text}.lora_down.weight"), &[3, 5]),
        ])?;
        assert_eq!(scale(&lora.unet[PATH]), 0.25);
        assert_eq!(scale(&lora.text_encoder["text_model.encoder.layers.0.mlp.fc1"]), 1.0);
        assert_eq!(lora.family, Some(Family::StableDiffusion1));
        assert!(lora.unknown.is_empty());
        Ok(())
    }

    #[test]
    fn a_whole_number_may_be_the_alpha() -> Result<()> {
        let up = (format!("{FLAT}.lora_up.weight"), filled(&[8, 2], 0.5));
        let down = (format!("{FLAT}.lora_down.weight"), filled(&[2, 4], 0.5));
        let alpha = (format!("{FLAT}.alpha"), Tensor::new(3i64, &Device::Cpu)?);
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.safetensors");
        candle_core::safetensors::save(&HashMap::from([up, down, alpha]), &path)?;
        assert_eq!(scale(&Lora::open(&path)?.unet[PATH]), 1.5);
        Ok(())
    }

    #[test]
    fn a_damaged_lora_is_named() {
        let (up, down) = (format!("{FLAT}.lora_up.weight"), format!("{FLAT}.lora_down.weight"));
        for (up_shape, down_shape, part) in [
            (&[8usize, 0][..], &[0usize, 4][..], "rank 0"),
            (&[8, 2], &[3, 4], "no pair"),
            (&[8], &[8, 4], "no pair"),
            (&[8, 2, 3, 3], &[2, 4], "no pair"),
            (&[8, 2], &[2, 4, 3], "no pair"),
            (&[], &[], "no pair"),
        ] {
            let error = said(read(&[(&up, up_shape), (&down, down_shape)]));
            assert!(error.contains(part) && error.contains(PATH), "{error}");
        }
        let error = said(read(&[(&up, &[8, 2])]));
        assert!(error.contains("no down weight") && error.contains(PATH), "{error}");
        let error = said(read(&[(&down, &[2, 8]), (&format!("{FLAT}.alpha"), &[])]));
        assert!(error.contains("no up weight"), "{error}");
        let pair: [(&str, &[usize]); 2] = [(&up, &[8, 2]), (&down, &[2, 4])];
        let mid = format!("{FLAT}.lora_mid.weight");
        let error = said(read(&[pair[0], pair[1], (&mid, &[2, 3, 3, 3])]));
        assert!(error.contains("middle") && error.contains("rank 2"), "{error}");
        let error = said(read(&[pair[0], pair[1], (&format!("{FLAT}.alpha"), &[2])]));
        assert!(error.contains(".alpha") && error.contains("[2]"), "{error}");
        let again = format!("unet.{PATH}.lora.up.weight");
        let error = said(read(&[pair[0], pair[1], (&again, &[8, 2])]));
        assert!(error.contains("once more") && error.contains(PATH), "{error}");
    }

    #[test]
    fn what_is_not_finite_is_named() {
        for bad in [f64::NAN, f64::INFINITY] {
            for damaged in ["lora_up.weight", "lora_down.weight", "alpha"] {
                let value = |end: &str| if end == damaged { bad } else { 0.5 };
                let tensor = |end: &str, shape: &[usize]| {
                    (format!("{FLAT}.{end}"), filled(shape, value(end)))
                };
                let tensors = [
                    tensor("lora_up.weight", &[8, 2]),
                    tensor("lora_down.weight", &[2, 4]),
                    tensor("alpha", &[]),
                ];
                let weights = Weights::from_tensors("a.safetensors", tensors.into(), &Device::Cpu);
                let error = said(Lora::read(&weights));
                assert!(
                    error.contains(damaged) && error.contains(&format!("{}", bad as f32)),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn other_kinds_are_refused_by_name() {
        let error = said(read(&[(&format!("{FLAT}.vera_lambda_b"), &[2])]));
        assert!(error.contains("VeRA") && error.contains("not supported"), "{error}");
        let error = said(read(&[("down_blocks.0.resnets.0.conv1.weight", &[2, 2, 3, 3])]));
        assert!(error.contains("no LoRA") && error.contains("down_blocks.0"), "{error}");
        let error = said(read(&[("emb_params", &[2, 768])]));
        assert!(error.contains("no LoRA"), "{error}");
        let error = said(read(&[]));
        assert!(error.contains("no LoRA"), "{error}");
    }

    #[test]
    fn the_family_is_known_by_names_and_widths() -> Result<()> {
        let to_k = |width: usize| {
            read(&[
                (&format!("{FLAT}.lora_up.weight"), &[8, 2]),
                (&format!("{FLAT}.lora_down.weight"), &[2, width]),
            ])
        };
        assert_eq!(to_k(1024)?.family, Some(Family::StableDiffusion2));
        assert_eq!(to_k(2048)?.family, Some(Family::Sdxl));
        assert_eq!(to_k(36)?.family, None);
        // Whatever the kind of its layers, and without reading them.
        for (name, shape, width) in [
            (format!("{FLAT}.lora_down.weight"), vec![2, 2048], Some(2048)),
            (format!("{FLAT}.hada_w1_b"), vec![2, 768], Some(768)),
            (
                "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v.lora_A.weight"
                    .to_owned(),
                vec![4, 36],
                Some(36),
            ),
            (
                "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight".to_owned(),
                vec![2, 1280],
                Some(2048),
            ),
            (
                "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight".to_owned(),
                vec![2, 3072],
                None,
            ),
        ] {
            let weights = HashMap::from([(name, filled(&shape, 0.5))]);
            let weights = Weights::from_tensors("a.safetensors", weights, &Device::Cpu);
            assert_eq!(text_width(&weights), width);
        }
        for (module, family) in [
            ("lora_te2_text_model_encoder_layers_0_mlp_fc1", Family::Sdxl),
            ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", Family::Sdxl),
            ("lora_unet_double_blocks_0_img_attn_qkv", Family::Flux),
            ("transformer.single_transformer_blocks.3.attn.to_q", Family::Flux),
            ("lora_unet_joint_blocks_0_x_block_attn_qkv", Family::StableDiffusion3),
            ("transformer.transformer_blocks.0.attn.add_q_proj", Family::StableDiffusion3),
            ("diffusion_model.blocks.0.self_attn.q", Family::Wan),
        ] {
            let ends = match module.contains('.') {
                true => ["lora_A", "lora_B"],
                false => ["lora_down", "lora_up"],
            };
            let lora = read(&[
                (&format!("{module}.{}.weight", ends[0]), &[2, 4]),
                (&format!("{module}.{}.weight", ends[1]), &[8, 2]),
            ])?;
            assert_eq!(lora.family, Some(family), "{module}");
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn any_shapes_are_read_or_refused(
            up in proptest::collection::vec(0usize..4, 0..6),
            down in proptest::collection::vec(0usize..4, 0..6),
            mid in proptest::collection::vec(0usize..4, 0..6),
        ) {
            let (up_name, down_name) = (format!("{FLAT}.lora_up.weight"), format!("{FLAT}.lora_down.weight"));
            let mid_name = format!("{FLAT}.lora_mid.weight");
            let pair: [(&str, &[usize]); 3] = [(&up_name, &up), (&down_name, &down), (&mid_name, &mid)];
            for tensors in [&pair[..2], &pair[..]] {
                if let Ok(lora) = read(tensors) {
                    let change = lora.unet[PATH].weight().expect("a change");
                    let (up, down) = change.matrices(1.0).expect("a product").expect("matrices");
                    prop_assert_eq!(up.dims()[1], down.dims()[0]);
                }
            }
        }
    }
}
