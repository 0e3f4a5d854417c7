//! LoRA: a change of a model's weights in few numbers. A layer's W [out, in] becomes
//! W + strength · scale · U D with U [out, rank] ("up") and D [rank, in] ("down").
//!
//! Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685; the scale is
//! alpha / rank as there, 1 where a file has no alpha. Convolutions are changed alike ("LoCon"): D is
//! a convolution to `rank` channels and U a 1 × 1 one back, or with a core between the two, after
//! Tucker.
//!
//! [`Lora::open`] reads the namings that trainers write ([`names`]); [`Adapted`] is a network with LoRAs
//! on it.

mod adapted;
mod family;
mod ldm;
mod names;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Result as CandleResult, Tensor};

use crate::error::{Error, Result};
use crate::weights::Weights;
use names::{Place, Role};

pub use adapted::Adapted;
pub use family::Family;
pub use names::Part;

/// What is wrong with a LoRA.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// Which file it is about.
    #[error("{file}: {problem}")]
    InFile { file: String, problem: Box<LoraError> },

    /// Another kind of adapter than a product of two small matrices.
    #[error(
        "this is a {kind}, as its tensor `{name}` shows, and {kind} is not supported; a LoRA or a LoCon \
         would be right"
    )]
    Kind { kind: &'static str, name: String },

    /// No name in the file is one of a LoRA's.
    #[error(
        "this is no LoRA{}: it has no tensors such as `….lora_down.weight` and `….lora_up.weight`",
        first_name(first)
    )]
    NotALora { first: Option<String> },

    /// A layer has one matrix and not the other.
    #[error("layer `{layer}` has no {missing} weight: the file is not whole")]
    Incomplete { layer: String, missing: &'static str },

    /// Two names of the file mean the same tensor of a layer.
    #[error("`{second}` says once more what layer `{layer}` has already")]
    Twice { layer: String, second: String },

    /// A product over nothing.
    #[error("layer `{layer}` has rank 0: it is damaged")]
    RankZero { layer: String },

    /// The matrices do not fit each other.
    #[error(
        "layer `{layer}` is damaged: its down weight {down:?} and its up weight {up:?} are no pair of \
         [rank, in] and [out, rank]"
    )]
    Pair { layer: String, up: Vec<usize>, down: Vec<usize> },

    /// The core of a decomposed convolution does not fit.
    #[error("layer `{layer}` is damaged: its middle weight {mid:?} does not fit rank {rank}")]
    Mid { layer: String, mid: Vec<usize>, rank: usize },

    /// The scale or the strength is no number to multiply with.
    #[error("layer `{layer}` is multiplied by {factor}: a finite number is wanted")]
    Factor { layer: String, factor: f64 },

    /// A layer changes a weight of another shape.
    #[error(
        "layer `{layer}` of the LoRA changes a weight of {lora:?}, but this model's is {model:?}: the \
         LoRA was made for another model"
    )]
    Misfit { layer: String, lora: Vec<usize>, model: Vec<usize> },
}

fn first_name(name: &Option<String>) -> String {
    name.as_ref().map_or_else(String::new, |name| format!(" (its first tensor is `{name}`)"))
}

/// One layer's change.
#[derive(Clone, Debug)]
pub struct Layer {
    up: Tensor,
    down: Tensor,
    mid: Option<Tensor>,
    scale: f64,
}

impl Layer {
    /// `up` [out, rank] and `down` [rank, in], or of a convolution [out, rank, 1, 1] and
    /// [rank, in, kH, kW], or [rank, in, 1, 1] with the core `mid` [rank, rank, kH, kW] between them;
    /// all f32. `scale` is alpha / rank, or 1. `module` is what errors call the layer.
    ///
    /// # Errors
    /// The shapes do not fit each other, the rank is 0, or the scale is not finite.
    pub fn new(
        module: &str,
        up: Tensor,
        down: Tensor,
        mid: Option<Tensor>,
        scale: f64,
    ) -> std::result::Result<Layer, LoraError> {
        let layer = || module.to_owned();
        let (up_shape, down_shape) = (up.dims(), down.dims());
        let has_axes = matches!(up_shape, [_, _] | [_, _, 1, 1])
            && matches!(down_shape, [_, _] | [_, _, _, _]);
        if !has_axes || up_shape[1] != down_shape[0] {
            let (up, down) = (up_shape.to_vec(), down_shape.to_vec());
            return Err(LoraError::Pair { layer: layer(), up, down });
        }
        let rank = down_shape[0];
        if up.elem_count() == 0 || down.elem_count() == 0 {
            return Err(LoraError::RankZero { layer: layer() });
        }
        if let Some(mid) = &mid {
            let fits = matches!(mid.dims(), [a, b, height, width]
                if (*a, *b) == (rank, rank) && *height > 0 && *width > 0);
            if !fits || down_shape[2..].iter().any(|length| *length != 1) {
                return Err(LoraError::Mid { layer: layer(), mid: mid.dims().to_vec(), rank });
            }
        }
        if !scale.is_finite() {
            return Err(LoraError::Factor { layer: layer(), factor: scale });
        }
        Ok(Layer { up, down, mid, scale })
    }

    pub fn up(&self) -> &Tensor {
        &self.up
    }

    pub fn down(&self) -> &Tensor {
        &self.down
    }

    pub fn mid(&self) -> Option<&Tensor> {
        self.mid.as_ref()
    }

    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The shape of the weight that it changes, as far as it tells: a linear layer's may be stored as
    /// a 1 × 1 convolution's, or the other way round.
    pub fn shape(&self) -> Vec<usize> {
        let down = self.down.dims();
        let kernel = self.mid.as_ref().map_or(&down[2..], |mid| &mid.dims()[2..]);
        [&[self.up.dims()[0], down[1]], kernel].concat()
    }

    /// Does it change a weight of this shape?
    fn fits(&self, weight: &[usize]) -> bool {
        let without_ones = |shape: &[usize]| {
            let kernel: usize = shape.iter().skip(2).product();
            (shape.first().copied(), shape.get(1).copied(), kernel)
        };
        without_ones(&self.shape()) == without_ones(weight)
    }

    /// Up [out, rank] times the scale, and down [rank, in · kH · kW].
    fn matrices(&self, strength: f64) -> CandleResult<(Tensor, Tensor)> {
        let rank = self.down.dim(0)?;
        let up = (self.up.reshape(((), rank))? * (strength * self.scale))?;
        let down = match &self.mid {
            None => self.down.reshape((rank, ()))?,
            Some(mid) => {
                // Σ_b mid[a, b, y, x] down[b, i] for all (a, i, y, x).
                let (_, _, height, width) = mid.dims4()?;
                let core = mid.permute((0, 2, 3, 1))?.reshape((rank * height * width, rank))?;
                let product = core.matmul(&self.down.reshape((rank, ()))?)?;
                let product = product.reshape((rank, height, width, ()))?;
                product.permute((0, 3, 1, 2))?.reshape((rank, ()))?
            }
        };
        Ok((up, down))
    }
}

/// Layers by their module's path, as diffusers and transformers name it.
pub type Layers = BTreeMap<String, Layer>;

/// A LoRA file.
#[derive(Debug, Default)]
pub struct Lora {
    /// Of the U-Net: `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`.
    pub unet: Layers,
    /// Of the text encoder: `text_model.encoder.layers.0.self_attn.q_proj`.
    pub text_encoder: Layers,
    /// Layers that belong to neither, as the file names them.
    pub unknown: Vec<String>,
    /// The model that it seems to be for.
    pub family: Option<Family>,
}

/// Names that only other kinds of adapters have: see [`LoraError::Kind`].
const OTHER_KINDS: [(&str, &str); 13] = [
    (".dora_scale", "DoRA"),
    (".lora_magnitude_vector", "DoRA"),
    (".hada_", "LoHa"),
    (".lokr_", "LoKr"),
    (".oft_", "OFT"),
    (".boft_", "BOFT"),
    (".glora_", "GLoRA"),
    (".a1.weight", "GLoRA"),
    (".ia3_", "(IA)³"),
    (".on_input", "(IA)³"),
    (".diff_b", "difference of whole weights"),
    (".diff", "difference of whole weights"),
    (".w_norm", "LoRA that changes norms"),
];

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
        let mut places: BTreeMap<(Part, String), BTreeMap<Role, &str>> = BTreeMap::new();
        let (mut unknown, mut is_lora) = (Vec::new(), false);
        for name in &names {
            let role = names::role(name);
            is_lora |= matches!(role, Some((_, Role::Up | Role::Down)));
            match names::place(name) {
                Some(Place { part, module, role }) => {
                    let layer = places.entry((part, module.clone())).or_default();
                    if layer.insert(role, name).is_some() {
                        let second = name.clone();
                        return Err(in_file(LoraError::Twice { layer: module, second }));
                    }
                }
                // A layer is told once, by the path that its two or three tensors have in common.
                None => unknown.push(role.map_or_else(|| name.clone(), |(path, _)| path)),
            }
        }
        if !is_lora {
            let first = names.into_iter().next();
            return Err(in_file(LoraError::NotALora { first }));
        }
        unknown.dedup();
        let family = family::of(weights, &names);
        let mut lora = Lora { unknown, family, ..Lora::default() };
        for ((part, module), names) in places {
            let incomplete =
                |missing| in_file(LoraError::Incomplete { layer: module.clone(), missing });
            let tensor = |role: Role| {
                let name = names.get(&role)?;
                Some(weights.get(name, weights.shape(name)?))
            };
            let down = tensor(Role::Down).ok_or_else(|| incomplete("down"))??;
            let up = tensor(Role::Up).ok_or_else(|| incomplete("up"))??;
            let mid = tensor(Role::Mid).transpose()?;
            let scale = match names.get(&Role::Alpha) {
                None => 1.0,
                // Rank 0 is found by the layer.
                Some(name) => {
                    weights.number(name)? / down.dims().first().map_or(1, |r| *r.max(&1)) as f64
                }
            };
            let layer = Layer::new(&module, up, down, mid, scale).map_err(in_file)?;
            let layers = match part {
                Part::UNet => &mut lora.unet,
                Part::TextEncoder => &mut lora.text_encoder,
            };
            layers.insert(module, layer);
        }
        Ok(lora)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const FLAT: &str = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k";
    const PATH: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k";

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
        assert_eq!(lora.unet[PATH].scale(), 0.25);
        assert_eq!(lora.text_encoder["text_model.encoder.layers.0.mlp.fc1"].scale(), 1.0);
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
        assert_eq!(Lora::open(&path)?.unet[PATH].scale(), 1.5);
        Ok(())
    }

    #[test]
    fn a_decomposed_convolution_is_its_product() -> Result<()> {
        let random = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu);
        let (up, down, mid) =
            (random(&[5, 2, 1, 1])?, random(&[2, 3, 1, 1])?, random(&[2, 2, 3, 3])?);
        let layer = Layer::new("conv", up.clone(), down.clone(), Some(mid.clone()), 0.5)?;
        assert!(
            layer.shape() == [5, 3, 3, 3] && layer.fits(&[5, 3, 3, 3]) && !layer.fits(&[5, 27])
        );
        let (left, right) = layer.matrices(2.0)?;
        let found = left.matmul(&right)?.reshape((5, 3, 3, 3))?;
        // Position by position: up · mid[.., .., y, x] · down.
        for (y, x) in (0..3).flat_map(|y| (0..3).map(move |x| (y, x))) {
            let core = mid.narrow(2, y, 1)?.narrow(3, x, 1)?.reshape((2, 2))?;
            let want = up.reshape((5, 2))?.matmul(&core)?.matmul(&down.reshape((2, 3))?)?;
            let got = found.narrow(2, y, 1)?.narrow(3, x, 1)?.reshape((5, 3))?;
            let error = (got - want)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(error < 1e-5, "{error}");
        }
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
        for (end, kind) in [
            ("hada_w1_a", "LoHa"),
            ("lokr_w1", "LoKr"),
            ("dora_scale", "DoRA"),
            ("lora_magnitude_vector", "DoRA"),
            ("oft_blocks", "OFT"),
            ("diff", "difference"),
        ] {
            let error = said(read(&[
                (&format!("{FLAT}.lora_up.weight"), &[8, 2]),
                (&format!("{FLAT}.lora_down.weight"), &[2, 4]),
                (&format!("{FLAT}.{end}"), &[2, 2]),
            ]));
            assert!(error.contains(kind) && error.contains("not supported"), "{error}");
        }
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

    /// Two linear layers.
    fn pair(weights: &Weights) -> Result<[Tensor; 2]> {
        Ok([weights.get_kept("a.weight", (3, 4))?, weights.get_kept("b.weight", (5, 2, 1, 1))?])
    }

    fn adapted(dtype: DType) -> Result<Adapted<[Tensor; 2]>> {
        let tensor = |shape: &[usize]| filled(shape, 0.125).to_dtype(dtype);
        let tensors =
            [("a.weight".into(), tensor(&[3, 4])?), ("b.weight".into(), tensor(&[5, 2, 1, 1])?)];
        Adapted::open(Weights::from_tensors("w", tensors.into(), &Device::Cpu), &[], pair)
    }

    fn layers(module: &str, output: usize, input: usize, scale: f64) -> Result<Layers> {
        let (up, down) = (filled(&[output, 2], 0.5), filled(&[2, input], 0.25));
        Ok(Layers::from([(module.to_owned(), Layer::new(module, up, down, None, scale)?)]))
    }

    fn value(tensor: &Tensor) -> Result<f32> {
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        assert!(values.iter().all(|value| *value == values[0]));
        Ok(values[0])
    }

    #[test]
    fn a_lora_is_added_and_shares_the_rest() -> Result<()> {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let base = adapted(dtype)?;
            let (once, none) = base.with(&layers("a", 3, 4, 0.5)?, -2.0)?;
            let (twice, some) = once.with(&layers("b", 5, 2, 1.0)?, 1.0)?;
            let (both, _) = twice.with(&layers("a", 3, 4, 1.0)?, 1.0)?;
            let (_, elsewhere) = base.with(&layers("c", 3, 4, 1.0)?, 1.0)?;
            assert!(none.is_empty() && some.is_empty() && elsewhere == ["c"]);
            // 0.125 and the product's 2 · 0.5 · 0.25.
            let of = |adapted: &Adapted<[Tensor; 2]>| -> Result<(f32, f32)> {
                let network = adapted.get()?;
                Ok((value(&network[0])?, value(&network[1])?))
            };
            assert_eq!(of(&twice)?, (-0.125, 0.375));
            assert_eq!(of(&both)?, (0.125, 0.375));
            assert_eq!(of(&once)?, (-0.125, 0.125));
            assert_eq!(of(&base)?, (0.125, 0.125));
            assert_eq!(once.get()?[1].id(), base.get()?[1].id());
            assert_eq!(base.get()?[0].dtype(), dtype);
            assert_eq!(once.get()?[0].dtype(), DType::F32);
        }
        Ok(())
    }

    #[test]
    fn memory_is_shared_among_those_that_share_it() -> Result<()> {
        let base = adapted(DType::F32)?;
        let (whole, change) = ((12 + 10) * 4, 12 * 4);
        let (changed, _) = base.with(&layers("a", 3, 4, 1.0)?, 1.0)?;
        assert_eq!((base.held(), changed.held(), changed.bytes()), (0, 0, whole + change));
        changed.get()?;
        assert_eq!((base.held(), changed.held()), (whole / 2, change + whole / 2));
        // Let go while the other shares it: it is there still.
        base.release();
        assert_eq!(base.held(), whole / 2);
        drop(base);
        assert_eq!(changed.held(), change + whole);
        let before = value(&changed.get()?[0])?;
        changed.release();
        assert_eq!(changed.held(), 0);
        assert_eq!(value(&changed.get()?[0])?, before);
        Ok(())
    }

    #[test]
    fn a_lora_of_another_model_is_named() -> Result<()> {
        let base = adapted(DType::F32)?;
        for (layers, parts) in [
            (layers("a", 3, 5, 1.0)?, ["[3, 5]", "[3, 4]"]),
            (layers("b", 4, 2, 1.0)?, ["[4, 2]", "[5, 2, 1, 1]"]),
        ] {
            let error = base.with(&layers, 1.0).err().expect("no error").to_string();
            assert!(
                error.contains("another model") && parts.iter().all(|p| error.contains(p)),
                "{error}"
            );
        }
        let error = base.with(&layers("a", 3, 4, 1.0)?, f64::NAN).err().expect("no error");
        assert!(error.to_string().contains("NaN"), "{error}");
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
                    let (up, down) = lora.unet[PATH].matrices(1.0).expect("matrices");
                    prop_assert_eq!(up.dims()[1], down.dims()[0]);
                    prop_assert!(lora.unet[PATH].fits(&lora.unet[PATH].shape()));
                }
            }
        }
    }
}
