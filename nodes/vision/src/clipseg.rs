//! CLIPSeg (Lüddecke and Ecker, arXiv 2112.10003), which finds in a picture what words say: CLIP's two halves, and a decoder that
//! is told the words. Names are those of transformers' files (CIDAS/clipseg-rd64-refined).

use candle_core::Tensor;
use kosmograph_kernels::{conv2d, quick_gelu};
use kosmograph_models::clip::text::{Activation, ClipText, ClipTextConfig};
use kosmograph_models::layers::{LayerNorm, Linear, MultiheadAttention};
use kosmograph_models::{Error, Result, Weights};

use crate::positions::resized;
use crate::weights::{count, heads, not_this, sizes};

const LAYER_NORM_EPS: f64 = 1e-5;
/// Of both halves of every published size.
const HEAD: usize = 64;
/// Of the decoder, whose width is 64 or 16.
const DECODER_HEADS: usize = 4;
/// Behind which layers of CLIP the decoder looks; it begins with the last.
const TAKEN: [usize; 3] = [3, 6, 9];
/// Patches on each side of the picture that the published preprocessor makes: 352 pixels of patches of 16.
const PATCHES: usize = 22;

/// What is between the two linear layers.
type Between = fn(&Tensor) -> candle_core::Result<Tensor>;

/// Attention of tokens among each other and two linear layers, each with its norm: before it in CLIP, behind the sum in the decoder.
struct Layer {
    self_attn: MultiheadAttention,
    layer_norm1: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    layer_norm2: LayerNorm,
}

impl Layer {
    fn load(weights: &Weights, dim: usize, heads: usize) -> Result<Layer> {
        let [hidden, _] = sizes(weights, "mlp.fc1.weight")?;
        Ok(Layer {
            self_attn: MultiheadAttention::load(&weights.sub("self_attn"), dim, heads)?,
            layer_norm1: LayerNorm::load(&weights.sub("layer_norm1"), dim, LAYER_NORM_EPS)?,
            fc1: Linear::load(&weights.sub("mlp.fc1"), dim, hidden)?,
            fc2: Linear::load(&weights.sub("mlp.fc2"), hidden, dim)?,
            layer_norm2: LayerNorm::load(&weights.sub("layer_norm2"), dim, LAYER_NORM_EPS)?,
        })
    }

    fn mlp(&self, x: &Tensor, between: Between) -> Result<Tensor> {
        Ok(self.fc2.forward(&between(&self.fc1.forward(x)?)?)?)
    }

    /// As CLIP has it, [B, T, C] → [B, T, C].
    fn pre_norm(&self, x: &Tensor) -> Result<Tensor> {
        let normed = self.layer_norm1.forward(x)?;
        let x = (x + self.self_attn.forward(&normed, &normed, None)?)?;
        Ok((&x + self.mlp(&self.layer_norm2.forward(&x)?, quick_gelu)?)?)
    }

    /// As the decoder has it.
    fn post_norm(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.layer_norm1.forward(&(x + self.self_attn.forward(x, x, None)?)?)?;
        Ok(self.layer_norm2.forward(&(&x + self.mlp(&x, Tensor::relu)?)?)?)
    }
}

/// CLIP's picture half as far as the decoder looks.
struct Vision {
    class_embedding: Tensor,
    patch_embedding: Tensor,
    /// [1 + S², C].
    positions: Tensor,
    pre_layernorm: LayerNorm,
    layers: Vec<Layer>,
}

impl Vision {
    fn load(weights: &Weights) -> Result<Vision> {
        let embeddings = weights.sub("embeddings");
        let [dim, colours, patch, wide] = sizes(&embeddings, "patch_embedding.weight")?;
        let [positions, _] = sizes(&embeddings, "position_embedding.weight")?;
        let side = positions.saturating_sub(1).isqrt();
        if colours != 3 || patch != wide || side == 0 || side * side + 1 != positions {
            return Err(Error::Input(format!(
                "{} is no CLIPSeg: it has {positions} positions, and patches of {patch} × {wide} pixels with {colours} colours; \
                 squares of three, and one position more than a square number, would be right",
                weights.origin()
            )));
        }
        let heads = heads(weights, dim, HEAD)?;
        let layer = |i| Layer::load(&weights.sub(format!("encoder.layers.{i}")), dim, heads);
        Ok(Vision {
            class_embedding: embeddings.get("class_embedding", dim)?,
            patch_embedding: embeddings.get("patch_embedding.weight", (dim, 3, patch, patch))?,
            positions: embeddings.get("position_embedding.weight", (positions, dim))?,
            // The name is misspelled in every file.
            pre_layernorm: LayerNorm::load(&weights.sub("pre_layrnorm"), dim, LAYER_NORM_EPS)?,
            layers: (0..=TAKEN[2]).map(layer).collect::<Result<_>>()?,
        })
    }

    /// Normalised pixels [B, 3, H, W] to the tokens [B, 1 + H/P · W/P, C] behind the layers [`TAKEN`].
    fn tokens(&self, pixels: &Tensor) -> Result<Vec<Tensor>> {
        let (batch, _, height, width) = pixels.dims4()?;
        let (dim, _, patch, _) = self.patch_embedding.dims4()?;
        let patches = conv2d(pixels, &self.patch_embedding, None, patch, 0)?;
        let patches = patches.flatten_from(2)?.transpose(1, 2)?;
        let class = self.class_embedding.broadcast_as((batch, 1, dim))?;
        let x = Tensor::cat(&[&class, &patches], 1)?;
        let x = x.broadcast_add(&resized(&self.positions, (height / patch, width / patch))?)?;
        let mut x = self.pre_layernorm.forward(&x)?;
        let mut taken = Vec::with_capacity(TAKEN.len());
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.pre_norm(&x)?;
            if TAKEN.contains(&i) {
                taken.push(x.clone());
            }
        }
        Ok(taken)
    }
}

/// From tokens to one number a pixel: each patch becomes a square.
enum Enlarge {
    /// By a transposed convolution as large as a patch.
    Once { weight: Tensor, bias: Tensor },
    /// "refined": a convolution, and two transposed ones.
    Refined { weights: [Tensor; 3], biases: [Tensor; 3] },
}

impl Enlarge {
    fn load(weights: &Weights, dim: usize, patch: usize) -> Result<Enlarge> {
        if weights.has("weight") {
            let weight = weights.get("weight", (dim, 1, patch, patch))?;
            return Ok(Enlarge::Once { weight, bias: weights.get("bias", 1)? });
        }
        let (half, quarter) = (dim / 2, patch / 4);
        if !patch.is_multiple_of(4) || quarter * quarter != patch {
            return Err(Error::Input(format!(
                "{} is no CLIPSeg of this kind: two enlargements by a quarter of {patch} pixels make no patch; 16 would be right",
                weights.origin()
            )));
        }
        Ok(Enlarge::Refined {
            weights: [
                weights.get("0.weight", (dim, dim, 3, 3))?,
                weights.get("2.weight", (dim, half, quarter, quarter))?,
                weights.get("4.weight", (half, 1, quarter, quarter))?,
            ],
            biases: [
                weights.get("0.bias", dim)?,
                weights.get("2.bias", half)?,
                weights.get("4.bias", 1)?,
            ],
        })
    }

    /// [B, C, h, w] → [B, 1, H, W].
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let larger = |x: &Tensor, weight: &Tensor, bias: &Tensor| -> Result<Tensor> {
            let x = x.conv_transpose2d(weight, 0, 0, weight.dims()[3], 1)?;
            Ok(x.broadcast_add(&bias.reshape((1, (), 1, 1))?)?)
        };
        match self {
            Enlarge::Once { weight, bias } => larger(x, weight, bias),
            Enlarge::Refined { weights: [w0, w2, w4], biases: [b0, b2, b4] } => {
                let x = conv2d(x, w0, Some(b0), 1, 1)?.relu()?;
                larger(&larger(&x, w2, b2)?.relu()?, w4, b4)
            }
        }
    }
}

/// The decoder: the deepest tokens first, changed by what the words say, and to them the earlier ones.
struct Decoder {
    film_mul: Linear,
    film_add: Linear,
    reduces: Vec<Linear>,
    layers: Vec<Layer>,
    enlarge: Enlarge,
}

impl Decoder {
    fn load(weights: &Weights, vision: usize, words: usize, patch: usize) -> Result<Decoder> {
        let [dim, _] = sizes(weights, "film_mul.weight")?;
        let each = 0..TAKEN.len();
        let reduce = |i| Linear::load(&weights.sub(format!("reduces.{i}")), vision, dim);
        let layer = |i| Layer::load(&weights.sub(format!("layers.{i}")), dim, DECODER_HEADS);
        Ok(Decoder {
            film_mul: Linear::load(&weights.sub("film_mul"), words, dim)?,
            film_add: Linear::load(&weights.sub("film_add"), words, dim)?,
            reduces: each.clone().map(reduce).collect::<Result<_>>()?,
            layers: each.map(layer).collect::<Result<_>>()?,
            enlarge: Enlarge::load(&weights.sub("transposed_convolution"), dim, patch)?,
        })
    }

    /// `taken`, [1, 1 + h · w, C] each, and words [B, P] → [B, H, W].
    fn forward(
        &self,
        taken: &[Tensor],
        words: &Tensor,
        (rows, columns): (usize, usize),
    ) -> Result<Tensor> {
        let batch = words.dim(0)?;
        let (times, plus) = (self.film_mul.forward(words)?, self.film_add.forward(words)?);
        let mut x: Option<Tensor> = None;
        for ((tokens, reduce), layer) in taken.iter().rev().zip(&self.reduces).zip(&self.layers) {
            let tokens = reduce.forward(tokens)?;
            let met = match x {
                None => {
                    let tokens = tokens.broadcast_mul(&times.unsqueeze(1)?)?;
                    tokens.broadcast_add(&plus.unsqueeze(1)?)?
                }
                Some(x) => x.broadcast_add(&tokens)?,
            };
            x = Some(layer.post_norm(&met)?);
        }
        let Some(x) = x else { return Err(Error::Input("nothing was looked at".to_owned())) };
        let dim = x.dim(2)?;
        let squares = x.narrow(1, 1, rows * columns)?.transpose(1, 2)?.contiguous()?;
        let squares = squares.reshape((batch, dim, rows, columns))?;
        Ok(self.enlarge.forward(&squares)?.squeeze(1)?)
    }
}

/// The network.
pub struct ClipSeg {
    text: ClipText,
    vision: Vision,
    decoder: Decoder,
}

impl ClipSeg {
    /// Every size is in the shapes.
    ///
    /// # Errors
    /// The file is of another network; a tensor is missing, of another shape, or damaged.
    pub fn load(weights: &Weights) -> Result<ClipSeg> {
        let clip = weights.sub("clip");
        if !weights.has("decoder.film_mul") || !clip.has("vision_model") {
            return Err(not_this(weights, "CLIPSeg (the folder of CIDAS/clipseg-rd64-refined)"));
        }
        let text = text_config(&clip)?;
        let vision = Vision::load(&clip.sub("vision_model"))?;
        let (dim, _, patch, _) = vision.patch_embedding.dims4()?;
        let words = text.text_projection.unwrap_or_default();
        Ok(ClipSeg {
            decoder: Decoder::load(&weights.sub("decoder"), dim, words, patch)?,
            text: ClipText::load(&text, &clip)?,
            vision,
        })
    }

    /// The side of the picture that it takes, in pixels.
    pub fn size(&self) -> usize {
        PATCHES * self.vision.patch_embedding.dims()[3]
    }

    /// The most tokens of a text, with its begin and its end.
    ///
    /// # Errors
    /// Only what the tensor library reports.
    pub fn longest(&self) -> Result<usize> {
        self.text.max_length()
    }

    /// CLIP's tokens of what is looked for, between its begin and its end, to the words [1, P] that the decoder is told.
    ///
    /// # Errors
    /// There are more tokens than positions.
    pub fn words(&self, tokens: &[u32]) -> Result<Tensor> {
        let ids = Tensor::new(tokens, self.text.device())?.unsqueeze(0)?;
        let states = self.text.forward(&ids)?;
        self.text.project(&self.text.pool(&ids, &states)?)
    }

    /// Normalised pixels [1, 3, H, W], whose sides are multiples of a patch, to what the decoder looks at.
    ///
    /// # Errors
    /// The sides are no multiples.
    pub fn look(&self, pixels: &Tensor) -> Result<Looked> {
        let (_, _, height, width) = pixels.dims4()?;
        let patch = self.vision.patch_embedding.dims()[3];
        if height % patch != 0 || width % patch != 0 || height == 0 || width == 0 {
            return Err(Error::Input(format!(
                "a picture of {width} × {height} pixels cannot be cut into patches of {patch}"
            )));
        }
        Ok(Looked { tokens: self.vision.tokens(pixels)?, patches: (height / patch, width / patch) })
    }

    /// How likely each pixel belongs to each of `words` [B, P], before a sigmoid: [B, H, W].
    ///
    /// # Errors
    /// Only what the tensor library reports.
    pub fn scores(&self, seen: &Looked, words: &Tensor) -> Result<Tensor> {
        self.decoder.forward(&seen.tokens, words, seen.patches)
    }
}

/// A picture that CLIP's picture half has seen.
#[derive(Clone)]
pub struct Looked {
    tokens: Vec<Tensor>,
    patches: (usize, usize),
}

fn text_config(clip: &Weights) -> Result<ClipTextConfig> {
    let text = clip.sub("text_model");
    let [vocab_size, hidden_size] = sizes(&text, "embeddings.token_embedding.weight")?;
    let [max_position_embeddings, _] = sizes(&text, "embeddings.position_embedding.weight")?;
    let layers = text.sub("encoder.layers");
    let [intermediate_size, _] = sizes(&layers, "0.mlp.fc1.weight")?;
    let [words, _] = sizes(clip, "text_projection.weight")?;
    Ok(ClipTextConfig {
        vocab_size,
        hidden_size,
        intermediate_size,
        num_hidden_layers: count(&layers, |i| format!("{i}.layer_norm1.weight")),
        num_attention_heads: heads(clip, hidden_size, HEAD)?,
        max_position_embeddings,
        hidden_act: Activation::QuickGelu,
        layer_norm_eps: LAYER_NORM_EPS,
        // The highest token is the last of a text.
        eos_token_id: 2,
        text_projection: Some(words),
    })
}

/// What files carry and nothing here computes with: CLIP behind the last layer that the decoder looks at.
pub const TOLERATED: [&str; 7] = [
    "clip.*.position_ids",
    "clip.logit_scale",
    "clip.visual_projection.weight",
    "clip.vision_model.post_layernorm.*",
    "clip.vision_model.encoder.layers.10.*",
    "clip.vision_model.encoder.layers.11.*",
    "decoder.*.position_ids",
];
