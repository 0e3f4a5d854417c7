//! Depth Anything V2 (Yang et al., arXiv 2406.09414): DINOv2's tokens of four depths, made one picture by the head of a dense
//! prediction transformer (Ranftl et al., arXiv 2103.13413). Names are those of transformers' files; those of the authors'
//! (`depth_anything_v2_vits.pth`) lead to them.

use candle_core::{Device, Tensor};
use kosmograph_kernels::conv2d;
use kosmograph_models::files::weights::Part;
use kosmograph_models::{Error, Result, Weights};

use crate::dinov2::{self, DinoV2};
use crate::weights::{not_this, sizes};

/// A convolution with or without bias, that keeps the size where its kernel is 3 and its stride 1.
struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: usize,
}

impl Conv {
    fn load(weights: &Weights) -> Result<Conv> {
        let [outputs, inputs, high, wide] = sizes(weights, "weight")?;
        let weight = weights.get("weight", (outputs, inputs, high, wide))?;
        let bias = weights.has("bias").then(|| weights.get("bias", outputs)).transpose()?;
        Ok(Conv { weight, bias, stride: 1 })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let padding = self.weight.dims()[3] / 2;
        Ok(conv2d(x, &self.weight, self.bias.as_ref(), self.stride, padding)?)
    }
}

/// How a feature map comes to its size.
enum Resize {
    /// By a transposed convolution whose stride is its kernel.
    Enlarge {
        weight: Tensor,
        bias: Tensor,
    },
    Same,
    Halve(Conv),
}

impl Resize {
    fn load(weights: &Weights, of_four: usize) -> Result<Resize> {
        Ok(match of_four {
            0 | 1 => {
                let [inputs, outputs, high, wide] = sizes(weights, "weight")?;
                Resize::Enlarge {
                    weight: weights.get("weight", (inputs, outputs, high, wide))?,
                    bias: weights.get("bias", outputs)?,
                }
            }
            2 => Resize::Same,
            _ => Resize::Halve(Conv { stride: 2, ..Conv::load(weights)? }),
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Resize::Enlarge { weight, bias } => {
                let larger = x.conv_transpose2d(weight, 0, 0, weight.dims()[3], 1)?;
                larger.broadcast_add(&bias.reshape((1, bias.dim(0)?, 1, 1))?)?
            }
            Resize::Same => x.clone(),
            Resize::Halve(conv) => conv.forward(x)?,
        })
    }
}

/// x + conv₂(relu(conv₁(relu(x)))).
struct Residual {
    first: Conv,
    second: Conv,
}

impl Residual {
    fn load(weights: &Weights) -> Result<Residual> {
        Ok(Residual {
            first: Conv::load(&weights.sub("convolution1"))?,
            second: Conv::load(&weights.sub("convolution2"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = self.first.forward(&x.relu()?)?;
        Ok((x + self.second.forward(&inner.relu()?)?)?)
    }
}

/// Adds a map of finer features to what came so far, and enlarges it.
struct Fusion {
    /// None in the first, to which nothing is added.
    added: Option<Residual>,
    residual: Residual,
    projection: Conv,
}

impl Fusion {
    fn load(weights: &Weights, is_first: bool) -> Result<Fusion> {
        let added = (!is_first).then(|| Residual::load(&weights.sub("residual_layer1")));
        Ok(Fusion {
            added: added.transpose()?,
            residual: Residual::load(&weights.sub("residual_layer2"))?,
            projection: Conv::load(&weights.sub("projection"))?,
        })
    }

    fn forward(
        &self,
        so_far: Option<&Tensor>,
        finer: &Tensor,
        size: (usize, usize),
    ) -> Result<Tensor> {
        let x = match (&self.added, so_far) {
            (Some(added), Some(so_far)) => (so_far + added.forward(finer)?)?,
            _ => finer.clone(),
        };
        self.projection.forward(&enlarged(&self.residual.forward(&x)?, size)?)
    }
}

/// The network.
pub struct DepthAnything {
    backbone: DinoV2,
    /// Of each depth: tokens to channels, and those to a size.
    reassemble: Vec<(Conv, Resize)>,
    /// Each to the head's own channels.
    convs: Vec<Conv>,
    /// From the coarsest on.
    fusion: Vec<Fusion>,
    head: [Conv; 3],
}

impl DepthAnything {
    /// Weights that [`by_transformers_names`] gave.
    ///
    /// # Errors
    /// A tensor is missing, of another shape, or damaged.
    pub fn load(weights: &Weights) -> Result<DepthAnything> {
        let neck = weights.sub("neck");
        let reassemble = |i: usize| -> Result<(Conv, Resize)> {
            let layer = neck.sub(format!("reassemble_stage.layers.{i}"));
            Ok((Conv::load(&layer.sub("projection"))?, Resize::load(&layer.sub("resize"), i)?))
        };
        let fusion = |i: usize| Fusion::load(&neck.sub(format!("fusion_stage.layers.{i}")), i == 0);
        let head = |name: &str| Conv::load(&weights.sub("head").sub(name));
        Ok(DepthAnything {
            backbone: DinoV2::load(&weights.sub("backbone"))?,
            reassemble: (0..4).map(reassemble).collect::<Result<_>>()?,
            convs: (0..4)
                .map(|i| Conv::load(&neck.sub(format!("convs.{i}"))))
                .collect::<Result<_>>()?,
            fusion: (0..4).map(fusion).collect::<Result<_>>()?,
            head: [head("conv1")?, head("conv2")?, head("conv3")?],
        })
    }

    /// The side of a patch in pixels.
    pub fn patch(&self) -> usize {
        self.backbone.patch()
    }

    /// What a picture of this size takes in bytes while it is computed, at the least: tokens in the widest layer, and the head's maps at full
    /// size, with the windows of the convolution there.
    pub fn working_bytes(&self, height: usize, width: usize) -> u128 {
        let tokens = (height / self.patch().max(1)) as u128 * (width / self.patch().max(1)) as u128;
        let pixels = height as u128 * width as u128;
        let channels = self.head[0].weight.dims()[0] as u128;
        4 * (tokens * self.backbone.dim() as u128 * 16 + pixels * channels * 4)
    }

    /// Which blocks' tokens are taken: the published ones', else the last of each quarter.
    fn taken(&self) -> [usize; 4] {
        match self.backbone.depth() {
            24 => [4, 11, 17, 23],
            depth => [1, 2, 3, 4].map(|quarter| (depth * quarter / 4).saturating_sub(1)),
        }
    }

    /// Normalised pixels [B, 3, H, W], sides multiples of a patch, to how near each is, [B, H, W], from 0, without a unit. `done` hears how
    /// many blocks of the backbone are done.
    ///
    /// # Errors
    /// As [`DinoV2::tokens`].
    pub fn forward(
        &self,
        pixels: &Tensor,
        done: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<Tensor> {
        let (batch, _, height, width) = pixels.dims4()?;
        let (rows, columns) = (height / self.patch(), width / self.patch());
        let tokens = self.backbone.tokens(pixels, &self.taken(), done)?;
        let mut maps = Vec::with_capacity(tokens.len());
        for ((tokens, (projection, resize)), conv) in
            tokens.iter().zip(&self.reassemble).zip(&self.convs)
        {
            let patches = tokens.narrow(1, 1, rows * columns)?.transpose(1, 2)?;
            let map = patches.reshape((batch, self.backbone.dim(), rows, columns))?;
            maps.push(conv.forward(&resize.forward(&projection.forward(&map)?)?)?);
        }
        maps.reverse();
        let mut fused: Option<Tensor> = None;
        for (i, (fusion, map)) in self.fusion.iter().zip(&maps).enumerate() {
            let (_, _, high, wide) = map.dims4()?;
            let size = match maps.get(i + 1) {
                Some(finer) => (finer.dim(2)?, finer.dim(3)?),
                None => (2 * high, 2 * wide),
            };
            fused = Some(fusion.forward(fused.as_ref(), map, size)?);
        }
        let fused =
            fused.ok_or_else(|| Error::Input("a head without layers draws nothing".into()))?;
        let [first, second, third] = &self.head;
        let depth = enlarged(&first.forward(&fused)?, (height, width))?;
        let depth = third.forward(&second.forward(&depth)?.relu()?)?.relu()?;
        Ok(depth.squeeze(1)?)
    }
}

/// A map [B, C, H, W] at another size, bilinear between the centres of its corner pixels (torch's `align_corners`).
///
/// Each axis is one product of matrices, which every device has.
pub fn enlarged(x: &Tensor, (to_height, to_width): (usize, usize)) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    if (height, width) == (to_height, to_width) {
        return Ok(x.clone());
    }
    let (rows, columns) =
        (between(height, to_height, x.device())?, between(width, to_width, x.device())?);
    let wide = x.reshape((batch * channels * height, width))?.matmul(&columns.t()?)?;
    let wide = wide.reshape((batch * channels, height, to_width))?;
    let rows = rows.unsqueeze(0)?.broadcast_as((batch * channels, to_height, height))?;
    Ok(rows.contiguous()?.matmul(&wide)?.reshape((batch, channels, to_height, to_width))?)
}

/// [to, from]: what each old pixel has in each new one.
fn between(from: usize, to: usize, device: &Device) -> Result<Tensor> {
    let mut shares = vec![0f32; to * from];
    let step = if to > 1 { (from - 1) as f32 / (to - 1) as f32 } else { 0.0 };
    for (i, row) in shares.chunks_mut(from).enumerate() {
        let at = step * i as f32;
        let first = (at as usize).min(from - 1);
        let share = at - first as f32;
        row[first] += 1.0 - share;
        row[(first + 1).min(from - 1)] += share;
    }
    Ok(Tensor::from_vec(shares, (to, from), device)?)
}

/// What files carry and nothing here computes with.
pub const TOLERATED: [&str; 2] =
    ["backbone.embeddings.mask_token", "neck.fusion_stage.layers.0.residual_layer1.*"];

/// The weights of a file under transformers' names, whichever of the two it has.
///
/// # Errors
/// It is no Depth Anything V2.
pub fn by_transformers_names(weights: &Weights) -> Result<Weights> {
    if weights.has("neck.reassemble_stage") && weights.has("backbone.embeddings") {
        return Ok(weights.clone());
    }
    if !weights.has("pretrained.patch_embed") || !weights.has("depth_head.projects") {
        return Err(not_this(
            weights,
            "Depth Anything V2 (depth_anything_v2_vits.pth, model.safetensors of \
             depth-anything/Depth-Anything-V2-Small-hf)",
        ));
    }
    Ok(weights.renamed_parts(weights.names().into_iter().flat_map(|name| parts(&name))))
}

fn parts(name: &str) -> Vec<(String, (String, Part))> {
    if let Some(own) = name.strip_prefix("pretrained.") {
        let below = |(new, (_, part))| (format!("backbone.{new}"), (name.to_owned(), part));
        return dinov2::parts(own).into_iter().map(below).collect();
    }
    vec![(head_name(name).unwrap_or_else(|| name.to_owned()), (name.to_owned(), Part::Whole))]
}

/// What transformers calls a tensor of the authors' head.
fn head_name(name: &str) -> Option<String> {
    let head = name.strip_prefix("depth_head.")?;
    if let Some(rest) = head.strip_prefix("projects.") {
        let (number, end) = rest.split_once('.')?;
        return Some(format!("neck.reassemble_stage.layers.{number}.projection.{end}"));
    }
    if let Some(rest) = head.strip_prefix("resize_layers.") {
        let (number, end) = rest.split_once('.')?;
        return Some(format!("neck.reassemble_stage.layers.{number}.resize.{end}"));
    }
    let scratch = head.strip_prefix("scratch.")?;
    let (part, rest) = scratch.split_once('.')?;
    let number = |text: &str| text.parse::<usize>().ok().filter(|number| (1..=4).contains(number));
    if let Some(layer) = part.strip_prefix("layer").and_then(|part| part.strip_suffix("_rn")) {
        return Some(format!("neck.convs.{}.{rest}", number(layer)? - 1));
    }
    if let Some(layer) = part.strip_prefix("refinenet") {
        // The authors count from the finest, transformers from the coarsest.
        let layer = format!("neck.fusion_stage.layers.{}", 4 - number(layer)?);
        let (unit, end) = rest.split_once('.')?;
        let end = end.replacen("conv", "convolution", 1);
        return Some(match unit {
            "out_conv" => format!("{layer}.projection.{end}"),
            "resConfUnit1" => format!("{layer}.residual_layer1.{end}"),
            "resConfUnit2" => format!("{layer}.residual_layer2.{end}"),
            _ => return None,
        });
    }
    Some(match (part, rest.split_once('.')) {
        ("output_conv1", _) => format!("head.conv1.{rest}"),
        ("output_conv2", Some(("0", end))) => format!("head.conv2.{end}"),
        ("output_conv2", Some(("2", end))) => format!("head.conv3.{end}"),
        _ => return None,
    })
}
