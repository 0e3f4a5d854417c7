//! DINO's vision transformer (Caron et al., arXiv 2104.14294), whose class token tells how alike two subjects are. Names
//! are those of the published file `dino_deitsmall16_pretrain.pth`.

use candle_core::Tensor;

use crate::clip::vision::embed_patches;
use crate::error::{Error, Result};
use crate::files::weights::Weights;
use crate::layers::{LayerNorm, Linear};

const LAYER_NORM_EPS: f64 = 1e-6;

/// x + attention(norm1(x)), then + mlp(norm2(x)); one linear layer makes queries, keys and values.
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
}

impl Block {
    fn load(weights: &Weights, dim: usize, heads: usize) -> Result<Block> {
        let hidden = weights.shape("mlp.fc1.bias").map_or(4 * dim, |shape| shape.iter().product());
        Ok(Block {
            norm1: LayerNorm::load(&weights.sub("norm1"), dim, LAYER_NORM_EPS)?,
            qkv: Linear::load(&weights.sub("attn.qkv"), dim, 3 * dim)?,
            proj: Linear::load(&weights.sub("attn.proj"), dim, dim)?,
            norm2: LayerNorm::load(&weights.sub("norm2"), dim, LAYER_NORM_EPS)?,
            fc1: Linear::load(&weights.sub("mlp.fc1"), dim, hidden)?,
            fc2: Linear::load(&weights.sub("mlp.fc2"), hidden, dim)?,
            heads,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, length, dim) = x.dims3()?;
        let qkv = self.qkv.forward(&self.norm1.forward(x)?)?;
        let part = |i: usize| -> Result<Tensor> {
            let part = qkv.narrow(2, i * dim, dim)?.contiguous()?;
            Ok(part.reshape((batch, length, self.heads, dim / self.heads))?.transpose(1, 2)?)
        };
        let scale = ((dim / self.heads) as f64).powf(-0.5);
        let heads = kosmograph_kernels::attention(&part(0)?, &part(1)?, &part(2)?, None, scale)?;
        let heads = heads.transpose(1, 2)?.reshape((batch, length, dim))?;
        let x = (x + self.proj.forward(&heads)?)?;
        let hidden = kosmograph_kernels::gelu_erf(&self.fc1.forward(&self.norm2.forward(&x)?)?)?;
        Ok((&x + self.fc2.forward(&hidden)?)?)
    }
}

/// The transformer.
pub struct Dino {
    cls_token: Tensor,
    patch_embed: Tensor,
    patch_bias: Tensor,
    pos_embed: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl Dino {
    /// Every size but the number of `heads` stands in the shapes; each of the published ones is 64 wide (ViT-S has 6).
    ///
    /// # Errors
    /// A tensor is missing, of another shape, or damaged.
    pub fn load(weights: &Weights, heads: Option<usize>) -> Result<Dino> {
        let proj = weights.sub("patch_embed.proj");
        let shape = |weights: &Weights, name: &str| {
            weights.shape(name).ok_or_else(|| {
                Error::Input(format!(
                    "{} is no DINO transformer: it has no `{name}`",
                    weights.origin()
                ))
            })
        };
        let [dim, channels, patch, _] = shape(&proj, "weight")?[..] else {
            return Err(Error::Input(format!(
                "the patches of {} are no convolution",
                weights.origin()
            )));
        };
        if channels != 3 || patch == 0 {
            let sentence = format!("the patches of {} are none of RGB pictures", weights.origin());
            return Err(Error::Input(sentence));
        }
        let heads = heads.unwrap_or(dim / 64);
        if heads == 0 || !dim.is_multiple_of(heads) {
            let sentence = format!("attention of width {dim} cannot be split into {heads} heads");
            return Err(Error::Input(sentence));
        }
        let positions = shape(weights, "pos_embed")?.get(1).copied().unwrap_or_default();
        let depth = (0..).take_while(|i| weights.has(&format!("blocks.{i}.norm1.weight"))).count();
        let block = |i: usize| Block::load(&weights.sub(format!("blocks.{i}")), dim, heads);
        Ok(Dino {
            cls_token: weights.get("cls_token", (1, 1, dim))?.flatten_all()?,
            patch_embed: proj.get("weight", (dim, channels, patch, patch))?,
            patch_bias: proj.get("bias", dim)?,
            pos_embed: weights.get("pos_embed", (1, positions, dim))?.squeeze(0)?,
            blocks: (0..depth).map(block).collect::<Result<_>>()?,
            norm: LayerNorm::load(&weights.sub("norm"), dim, LAYER_NORM_EPS)?,
        })
    }

    /// Normalised pixels [B, 3, S, S] → the tokens behind the last norm, [B, T, C], the class token first.
    ///
    /// # Errors
    /// The pixels are of another size than the positions are for.
    pub fn tokens(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.norm.forward(&self.blocks(pixels)?)?)
    }

    /// Normalised pixels [B, 3, S, S] → the class token behind the last norm, [B, C].
    ///
    /// # Errors
    /// As [`Dino::tokens`].
    pub fn features(&self, pixels: &Tensor) -> Result<Tensor> {
        let first = self.blocks(pixels)?.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
        Ok(self.norm.forward(&first)?)
    }

    fn blocks(&self, pixels: &Tensor) -> Result<Tensor> {
        let (dim, count) = (self.cls_token.dim(0)?, self.pos_embed.dim(0)?);
        // The bias of the patches is added with their positions; the class token has none.
        let zero = self.patch_bias.zeros_like()?.reshape((1, dim))?;
        let bias = self.patch_bias.reshape((1, dim))?;
        let bias = bias.broadcast_as((count.saturating_sub(1), dim))?.contiguous()?;
        let positions = (&self.pos_embed + Tensor::cat(&[&zero, &bias], 0)?)?;
        let mut x = embed_patches(pixels, &self.patch_embed, &self.cls_token, &positions)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        Ok(x)
    }
}
