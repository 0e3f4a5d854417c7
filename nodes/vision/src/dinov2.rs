//! DINOv2 (Oquab et al., arXiv 2304.07193): a vision transformer whose tokens tell what a picture shows, and Depth Anything's
//! backbone. (The authors' code adds a tenth of a patch to the new size of positions, to be safe from rounding; transformers does
//! not, nor does this.) Names are those of transformers' files; those of the authors' (`dinov2_vits14_pretrain.pth`) lead to them.

use candle_core::{D, Tensor};
use kosmograph_kernels::{attention, conv2d, gelu_erf, silu};
use kosmograph_models::files::weights::Part;
use kosmograph_models::layers::{LayerNorm, Linear};
use kosmograph_models::{Error, Result, Weights};

use crate::positions::resized;
use crate::weights::{count, heads, not_this, sizes};

const LAYER_NORM_EPS: f64 = 1e-6;
/// Of each published size; what is wider has more heads.
const HEAD: usize = 64;

/// What is between the two linear layers: GELU, or in the giant SwiGLU.
enum Mlp {
    Gelu { fc1: Linear, fc2: Linear },
    SwiGlu { weights_in: Linear, weights_out: Linear },
}

impl Mlp {
    fn load(weights: &Weights, dim: usize) -> Result<Mlp> {
        if weights.has("weights_in") {
            let [both, _] = sizes(weights, "weights_in.weight")?;
            return Ok(Mlp::SwiGlu {
                weights_in: Linear::load(&weights.sub("weights_in"), dim, both)?,
                weights_out: Linear::load(&weights.sub("weights_out"), both / 2, dim)?,
            });
        }
        let [hidden, _] = sizes(weights, "fc1.weight")?;
        Ok(Mlp::Gelu {
            fc1: Linear::load(&weights.sub("fc1"), dim, hidden)?,
            fc2: Linear::load(&weights.sub("fc2"), hidden, dim)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Mlp::Gelu { fc1, fc2 } => fc2.forward(&gelu_erf(&fc1.forward(x)?)?)?,
            Mlp::SwiGlu { weights_in, weights_out } => {
                let both = weights_in.forward(x)?;
                let half = both.dim(D::Minus1)? / 2;
                let gate = silu(&both.narrow(D::Minus1, 0, half)?.contiguous()?)?;
                weights_out.forward(&(gate * both.narrow(D::Minus1, half, half)?)?)?
            }
        })
    }
}

/// x + scale₁ · attention(norm₁(x)), then + scale₂ · mlp(norm₂(x)).
struct Block {
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    dense: Linear,
    scale1: Tensor,
    norm2: LayerNorm,
    mlp: Mlp,
    scale2: Tensor,
    heads: usize,
}

impl Block {
    fn load(weights: &Weights, dim: usize, heads: usize) -> Result<Block> {
        let square = |name: &str| Linear::load(&weights.sub(name), dim, dim);
        let norm = |name: &str| LayerNorm::load(&weights.sub(name), dim, LAYER_NORM_EPS);
        Ok(Block {
            norm1: norm("norm1")?,
            query: square("attention.attention.query")?,
            key: square("attention.attention.key")?,
            value: square("attention.attention.value")?,
            dense: square("attention.output.dense")?,
            scale1: weights.get("layer_scale1.lambda1", dim)?,
            norm2: norm("norm2")?,
            mlp: Mlp::load(&weights.sub("mlp"), dim)?,
            scale2: weights.get("layer_scale2.lambda1", dim)?,
            heads,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, length, dim) = x.dims3()?;
        let normed = self.norm1.forward(x)?;
        let split = |linear: &Linear| -> Result<Tensor> {
            let part = linear.forward(&normed)?;
            Ok(part.reshape((batch, length, self.heads, dim / self.heads))?.transpose(1, 2)?)
        };
        let scale = ((dim / self.heads) as f64).powf(-0.5);
        let (query, key, value) = (split(&self.query)?, split(&self.key)?, split(&self.value)?);
        let seen = attention(&query, &key, &value, None, scale)?;
        let seen = seen.transpose(1, 2)?.reshape((batch, length, dim))?;
        let x = (x + self.dense.forward(&seen)?.broadcast_mul(&self.scale1)?)?;
        let thought = self.mlp.forward(&self.norm2.forward(&x)?)?;
        Ok((&x + thought.broadcast_mul(&self.scale2)?)?)
    }
}

/// The transformer.
pub struct DinoV2 {
    class_token: Tensor,
    patch_weight: Tensor,
    patch_bias: Tensor,
    /// [1 + S², dim]: of the class token, then of S × S patches.
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl DinoV2 {
    /// Weights of transformers' names, or of the authors'; every size is in the shapes.
    ///
    /// # Errors
    /// A tensor is missing, of another shape, or damaged.
    pub fn load(weights: &Weights) -> Result<DinoV2> {
        let embeddings = weights.sub("embeddings");
        let projection = embeddings.sub("patch_embeddings.projection");
        let [dim, channels, patch, wide] = sizes(&projection, "weight")?;
        let [_, positions, _] = sizes(&embeddings, "position_embeddings")?;
        let side = positions.saturating_sub(1).isqrt();
        if channels != 3 || patch != wide || side == 0 || side * side + 1 != positions {
            return Err(Error::Input(format!(
                "{} is no DINOv2: it has {positions} positions, and patches of {patch} × {wide} pixels with {channels} \
                 channels; squares of three, and one position more than a square number, would be right",
                weights.origin()
            )));
        }
        let heads = heads(weights, dim, HEAD)?;
        let depth = count(weights, |i| format!("encoder.layer.{i}.norm1.weight"));
        let block = |i| Block::load(&weights.sub(format!("encoder.layer.{i}")), dim, heads);
        Ok(DinoV2 {
            class_token: embeddings.get("cls_token", (1, 1, dim))?,
            patch_weight: projection.get("weight", (dim, 3, patch, patch))?,
            patch_bias: projection.get("bias", dim)?,
            positions: embeddings.get("position_embeddings", (1, positions, dim))?.squeeze(0)?,
            blocks: (0..depth).map(block).collect::<Result<_>>()?,
            norm: LayerNorm::load(&weights.sub("layernorm"), dim, LAYER_NORM_EPS)?,
        })
    }

    pub fn depth(&self) -> usize {
        self.blocks.len()
    }

    pub fn dim(&self) -> usize {
        self.positions.dims()[1]
    }

    /// The side of a patch in pixels.
    pub fn patch(&self) -> usize {
        self.patch_weight.dims()[3]
    }

    /// Normalised pixels [B, 3, H, W], whose sides are multiples of a patch, to the tokens [B, 1 + H/P · W/P, C] behind the blocks `taken`,
    /// normed, the class token first. `done` hears how many blocks are done.
    ///
    /// # Errors
    /// The sides are no multiples, or what `done` reports.
    pub fn tokens(
        &self,
        pixels: &Tensor,
        taken: &[usize],
        mut done: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<Vec<Tensor>> {
        let (batch, _, height, width) = pixels.dims4()?;
        let patch = self.patch();
        if height % patch != 0 || width % patch != 0 || height == 0 || width == 0 {
            return Err(Error::Input(format!(
                "a picture of {width} × {height} pixels cannot be cut into patches of {patch}"
            )));
        }
        let bias = Some(&self.patch_bias);
        let patches = conv2d(pixels, &self.patch_weight, bias, patch, 0)?;
        let patches = patches.flatten_from(2)?.transpose(1, 2)?;
        let class = self.class_token.broadcast_as((batch, 1, self.dim()))?;
        let x = Tensor::cat(&[&class, &patches], 1)?;
        let mut x = x.broadcast_add(&resized(&self.positions, (height / patch, width / patch))?)?;
        let mut tokens = Vec::with_capacity(taken.len());
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x)?;
            if taken.contains(&i) {
                tokens.push(self.norm.forward(&x)?);
            }
            done(i + 1, self.blocks.len())?;
        }
        Ok(tokens)
    }

    /// Normalised pixels to the class token behind the last norm, [B, C].
    ///
    /// # Errors
    /// As [`DinoV2::tokens`].
    pub fn features(&self, pixels: &Tensor) -> Result<Tensor> {
        let last = self.depth().saturating_sub(1);
        let tokens = self.tokens(pixels, &[last], |_, _| Ok(()))?;
        match tokens.first() {
            Some(tokens) => Ok(tokens.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?),
            None => Err(Error::Input("a DINOv2 without blocks tells nothing".to_owned())),
        }
    }
}

/// What files carry and nothing here computes with: the token of masked patches.
pub const TOLERATED: &str = "embeddings.mask_token";

/// The weights under transformers' names, whichever of the two they have.
///
/// # Errors
/// They are of neither kind.
pub fn by_transformers_names(weights: &Weights) -> Result<Weights> {
    if weights.has("embeddings.patch_embeddings.projection") {
        return Ok(weights.clone());
    }
    if !weights.has("patch_embed.proj") {
        return Err(not_this(
            weights,
            "DINOv2 (model.safetensors of facebook/dinov2-small, dinov2_vits14_pretrain.pth)",
        ));
    }
    Ok(weights.renamed_parts(weights.names().into_iter().flat_map(|name| parts(&name))))
}

/// The names of transformers that a tensor of the authors' files is, the whole of it or a third.
pub fn parts(name: &str) -> Vec<(String, (String, Part))> {
    let whole = |new: String| vec![(new, (name.to_owned(), Part::Whole))];
    let Some((number, rest)) = name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'))
    else {
        return whole(match name.split_once('.') {
            Some(("patch_embed", _)) => {
                name.replacen("patch_embed.proj", "embeddings.patch_embeddings.projection", 1)
            }
            Some(("norm", end)) => format!("layernorm.{end}"),
            _ => match name {
                "cls_token" | "mask_token" => format!("embeddings.{name}"),
                "pos_embed" => "embeddings.position_embeddings".to_owned(),
                _ => name.to_owned(),
            },
        });
    };
    let layer = format!("encoder.layer.{number}");
    if let Some(end) = rest.strip_prefix("attn.qkv.") {
        let third = |(i, part): (usize, &str)| {
            let new = format!("{layer}.attention.attention.{part}.{end}");
            (new, (name.to_owned(), Part::Third(i)))
        };
        return ["query", "key", "value"].into_iter().enumerate().map(third).collect();
    }
    const OWN: [(&str, &str); 5] = [
        ("attn.proj.", "attention.output.dense."),
        ("ls1.gamma", "layer_scale1.lambda1"),
        ("ls2.gamma", "layer_scale2.lambda1"),
        ("mlp.w12.", "mlp.weights_in."),
        ("mlp.w3.", "mlp.weights_out."),
    ];
    let own = OWN.iter().find(|(old, _)| rest.starts_with(old));
    let rest = own.map_or(rest.to_owned(), |(old, new)| rest.replacen(old, new, 1));
    whole(format!("{layer}.{rest}"))
}
