//! IP-Adapter: a picture, as CLIP sees it, becomes tokens that each cross-attention of the U-Net reads beside the text, by projections
//! of its own.
//!
//! Ye et al., "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models", arXiv 2308.06721; computed as
//! diffusers does for the published files ("base", "plus", "plus-face", "full"), whose names these are.

use std::collections::HashMap;

use candle_core::{D, Result as CandleResult, Tensor};
use kosmograph_kernels as kernels;

use crate::error::{Error, Result};
use crate::files::weights::Weights;
use crate::layers::{LayerNorm, Linear};
use crate::stable_diffusion::shared_rows::repeated;

const EPS: f64 = 1e-5;

/// The width of a resampler's heads, which leaves no trace in the shapes.
const HEAD_DIM: usize = 64;

/// What a file's shapes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpAdapterConfig {
    pub projection: Projection,
    /// The width of what the projection takes: of CLIP's picture embeddings, or of its hidden states.
    pub image_width: usize,
    /// The width of the tokens, which is that of the U-Net's context.
    pub context_width: usize,
    /// Channels of each cross-attention, in the order that
    /// [`cross_attentions`](crate::stable_diffusion::unet::UNetConfig::cross_attentions) has.
    pub layers: Vec<usize>,
}

/// How a picture becomes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projection {
    /// "base": one linear layer of the picture's embedding.
    Linear { tokens: usize },
    /// "plus": queries attend to the hidden states of the layer before the last, `depth` times.
    Resampler { queries: usize, width: usize, heads: usize, hidden: usize, depth: usize },
    /// "full": two linear layers for each of these hidden states.
    Mlp { hidden: usize },
}

impl Projection {
    /// Whether it takes hidden states [B, T, D], else embeddings [B, D].
    pub fn takes_hidden_states(self) -> bool {
        !matches!(self, Projection::Linear { .. })
    }
}

impl IpAdapterConfig {
    /// Of weights under the published files' names; nested in a torch file they are the same.
    ///
    /// # Errors
    /// A tensor that says a size is missing or of another number of axes; it is an adapter of another kind.
    pub fn from_weights(weights: &Weights) -> Result<Self> {
        let layers_named = weights.sub("ip_adapter").names();
        let unsupported = |found: &str| Error::UnsupportedConfig {
            file: format!("the tensors of {}", weights.origin()),
            key: "image_proj".to_owned(),
            found: found.to_owned(),
            supported: "base, plus, plus-face and full".to_owned(),
        };
        if layers_named.iter().any(|name| name.contains("lora")) {
            return Err(unsupported("a FaceID's, which needs a network that recognises faces"));
        }
        let layers = (0..).map(|i| format!("ip_adapter.{}.to_k_ip.weight", 2 * i + 1));
        let layers = layers.take_while(|name| weights.shape(name).is_some());
        let layers = layers.map(|name| Ok(sides(weights, &name)?.0)).collect::<Result<Vec<_>>>()?;
        let (_, context_width) = sides(weights, "ip_adapter.1.to_k_ip.weight")?;
        let proj = weights.sub("image_proj");
        let (projection, image_width) = if proj.shape("latents").is_some() {
            resampler(&proj)?
        } else if proj.shape("proj.3.weight").is_some() {
            let (hidden, input) = sides(&proj, "proj.0.weight")?;
            (Projection::Mlp { hidden }, input)
        } else if proj.shape("proj.weight").is_some() {
            let (output, input) = sides(&proj, "proj.weight")?;
            let tokens = output.checked_div(context_width).unwrap_or(0);
            if tokens == 0 || tokens * context_width != output {
                return Err(unsupported("a linear layer whose outputs are no whole tokens"));
            }
            (Projection::Linear { tokens }, input)
        } else {
            return Err(unsupported("of another kind"));
        };
        Ok(Self { projection, image_width, context_width, layers })
    }

    /// How many tokens a picture becomes, of `states` hidden states.
    pub fn tokens(&self, states: usize) -> usize {
        match self.projection {
            Projection::Linear { tokens } => tokens,
            Projection::Resampler { queries, .. } => queries,
            Projection::Mlp { .. } => states,
        }
    }
}

/// The outputs and inputs of a linear layer.
fn sides(weights: &Weights, name: &str) -> Result<(usize, usize)> {
    match weights.shape(name).as_deref() {
        Some([output, input]) => Ok((*output, *input)),
        Some(found) => Err(Error::Axes {
            file: weights.origin().to_owned(),
            name: name.to_owned(),
            axes: 2,
            found: found.to_vec(),
        }),
        None => Err(Error::MissingTensor {
            file: weights.origin().to_owned(),
            name: name.to_owned(),
            nearest: None,
        }),
    }
}

fn resampler(weights: &Weights) -> Result<(Projection, usize)> {
    let latents = weights.shape("latents").unwrap_or_default();
    let &[_, queries, width] = &latents[..] else {
        return Err(Error::Axes {
            file: weights.origin().to_owned(),
            name: "image_proj.latents".to_owned(),
            axes: 3,
            found: latents,
        });
    };
    let (_, input) = sides(weights, "proj_in.weight")?;
    let (inner, _) = sides(weights, "layers.0.0.to_q.weight")?;
    let (hidden, _) = sides(weights, "layers.0.1.1.weight")?;
    let is_layer = |i: &usize| weights.shape(&format!("layers.{i}.0.to_q.weight")).is_some();
    let depth = (0..).take_while(is_layer).count();
    if inner == 0 || inner % HEAD_DIM != 0 {
        return Err(Error::UnsupportedConfig {
            file: format!("the shapes in {}", weights.origin()),
            key: "image_proj.layers.0.0.to_q".to_owned(),
            found: format!("{inner} outputs"),
            supported: format!("a multiple of {HEAD_DIM}, the width of a head"),
        });
    }
    let heads = inner / HEAD_DIM;
    Ok((Projection::Resampler { queries, width, heads, hidden, depth }, input))
}

/// Queries attend to the picture and to themselves (Alayrac et al., "Flamingo", arXiv 2204.14198, the Perceiver resampler).
struct PerceiverAttention {
    norm1: LayerNorm,
    norm2: LayerNorm,
    to_q: Linear,
    to_kv: Linear,
    to_out: Linear,
    heads: usize,
}

impl PerceiverAttention {
    fn load(weights: &Weights, width: usize, heads: usize) -> Result<Self> {
        let inner = heads * HEAD_DIM;
        let linear = |name: &str, input: usize, output: usize| {
            Linear::load_without_bias(&weights.sub(name), input, output)
        };
        Ok(Self {
            norm1: LayerNorm::load(&weights.sub("norm1"), width, EPS)?,
            norm2: LayerNorm::load(&weights.sub("norm2"), width, EPS)?,
            to_q: linear("to_q", width, inner)?,
            to_kv: linear("to_kv", width, 2 * inner)?,
            to_out: linear("to_out", inner, width)?,
            heads,
        })
    }

    /// `x` [B, T, D] of the picture, `latents` [B, Q, D] → [B, Q, D].
    fn forward(&self, x: &Tensor, latents: &Tensor) -> CandleResult<Tensor> {
        let latents = self.norm2.forward(latents)?;
        let (batch, queries, _) = latents.dims3()?;
        let both = Tensor::cat(&[&self.norm1.forward(x)?, &latents], 1)?;
        let split = |x: &Tensor| {
            x.contiguous()?.reshape((batch, (), self.heads, HEAD_DIM))?.transpose(1, 2)
        };
        let key_values = self.to_kv.forward(&both)?;
        let inner = self.heads * HEAD_DIM;
        let k = split(&key_values.narrow(D::Minus1, 0, inner)?)?;
        let v = split(&key_values.narrow(D::Minus1, inner, inner)?)?;
        let q = split(&self.to_q.forward(&latents)?)?;
        let heads = kernels::attention(&q, &k, &v, None, (HEAD_DIM as f64).powf(-0.5))?;
        self.to_out.forward(&heads.transpose(1, 2)?.reshape((batch, queries, inner))?)
    }
}

struct FeedForward {
    norm: LayerNorm,
    inner: Linear,
    outer: Linear,
}

impl FeedForward {
    fn load(weights: &Weights, width: usize, hidden: usize) -> Result<Self> {
        Ok(Self {
            norm: LayerNorm::load(&weights.sub("0"), width, EPS)?,
            inner: Linear::load_without_bias(&weights.sub("1"), width, hidden)?,
            outer: Linear::load_without_bias(&weights.sub("3"), hidden, width)?,
        })
    }

    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        self.outer.forward(&kernels::gelu_erf(&self.inner.forward(&self.norm.forward(x)?)?)?)
    }
}

enum ImageProjection {
    Linear {
        proj: Linear,
        norm: LayerNorm,
        tokens: usize,
    },
    Resampler {
        /// [1, Q, D].
        latents: Tensor,
        proj_in: Linear,
        layers: Vec<(PerceiverAttention, FeedForward)>,
        proj_out: Linear,
        norm_out: LayerNorm,
    },
    Mlp {
        inner: Linear,
        outer: Linear,
        norm: LayerNorm,
    },
}

impl ImageProjection {
    fn load(weights: &Weights, config: &IpAdapterConfig) -> Result<Self> {
        let (input, output) = (config.image_width, config.context_width);
        Ok(match config.projection {
            Projection::Linear { tokens } => ImageProjection::Linear {
                proj: Linear::load(&weights.sub("proj"), input, tokens * output)?,
                norm: LayerNorm::load(&weights.sub("norm"), output, EPS)?,
                tokens,
            },
            Projection::Resampler { queries, width, heads, hidden, depth } => {
                let layer = |i: usize| {
                    let weights = weights.sub(format!("layers.{i}"));
                    let attention = PerceiverAttention::load(&weights.sub("0"), width, heads)?;
                    Ok((attention, FeedForward::load(&weights.sub("1"), width, hidden)?))
                };
                ImageProjection::Resampler {
                    latents: weights.get("latents", (1, queries, width))?,
                    proj_in: Linear::load(&weights.sub("proj_in"), input, width)?,
                    layers: (0..depth).map(layer).collect::<Result<_>>()?,
                    proj_out: Linear::load(&weights.sub("proj_out"), width, output)?,
                    norm_out: LayerNorm::load(&weights.sub("norm_out"), output, EPS)?,
                }
            }
            Projection::Mlp { hidden } => ImageProjection::Mlp {
                inner: Linear::load(&weights.sub("proj.0"), input, hidden)?,
                outer: Linear::load(&weights.sub("proj.2"), hidden, output)?,
                norm: LayerNorm::load(&weights.sub("proj.3"), output, EPS)?,
            },
        })
    }

    /// [B, D] or [B, T, D] → [B, S, context_width].
    fn forward(&self, image: &Tensor) -> CandleResult<Tensor> {
        match self {
            ImageProjection::Linear { proj, norm, tokens } => {
                let projected = proj.forward(image)?;
                let (batch, width) = projected.dims2()?;
                norm.forward(&projected.reshape((batch, *tokens, width / tokens))?)
            }
            ImageProjection::Resampler { latents, proj_in, layers, proj_out, norm_out } => {
                let x = proj_in.forward(image)?;
                let mut latents = repeated(latents, x.dim(0)?)?;
                for (attention, feed_forward) in layers {
                    latents = (attention.forward(&x, &latents)? + &latents)?;
                    latents = (feed_forward.forward(&latents)? + &latents)?;
                }
                norm_out.forward(&proj_out.forward(&latents)?)
            }
            ImageProjection::Mlp { inner, outer, norm } => {
                norm.forward(&outer.forward(&kernels::gelu_erf(&inner.forward(image)?)?)?)
            }
        }
    }
}

/// The adapter.
pub struct IpAdapter {
    image_proj: ImageProjection,
    /// `to_k_ip` and `to_v_ip` of each cross-attention.
    layers: Vec<(Linear, Linear)>,
    config: IpAdapterConfig,
}

impl IpAdapter {
    /// Reads the tensors that `config` asks for.
    ///
    /// # Errors
    /// A tensor is missing, of another shape, or damaged.
    pub fn load(weights: &Weights, config: &IpAdapterConfig) -> Result<Self> {
        let width = config.context_width;
        let layer = |(i, channels): (usize, &usize)| {
            let weights = weights.sub(format!("ip_adapter.{}", 2 * i + 1));
            let linear =
                |name: &str| Linear::load_without_bias(&weights.sub(name), width, *channels);
            Ok((linear("to_k_ip")?, linear("to_v_ip")?))
        };
        Ok(Self {
            image_proj: ImageProjection::load(&weights.sub("image_proj"), config)?,
            layers: config.layers.iter().enumerate().map(layer).collect::<Result<_>>()?,
            config: config.clone(),
        })
    }

    pub fn config(&self) -> &IpAdapterConfig {
        &self.config
    }

    /// The tokens [B, S, context_width] of pictures: their embeddings [B, D], or their hidden states [B, T, D] where the projection
    /// takes them.
    ///
    /// # Errors
    /// They are of another encoder than the adapter was trained with.
    pub fn tokens(&self, image: &Tensor) -> Result<Tensor> {
        let states = self.config.projection.takes_hidden_states();
        let wanted = self.config.image_width;
        match image.dims() {
            [_, width] if !states && *width == wanted => {}
            [_, states_given, width] if states && *width == wanted && *states_given > 0 => {}
            dims => {
                let what = if states { "hidden states" } else { "embeddings" };
                let width = dims.last().copied().unwrap_or(0);
                return Err(Error::Input(format!(
                    "the IP-Adapter takes {what} that are {wanted} numbers wide, but the CLIP vision encoder gives {width}: \
                     it was trained with another encoder ({})",
                    encoder_of(wanted)
                )));
            }
        }
        Ok(self.image_proj.forward(image)?)
    }

    /// Keys and values [B, S, C] of `tokens` [B, S, context_width] for each cross-attention.
    ///
    /// # Errors
    /// Only what the tensor library reports.
    pub fn keys_values(&self, tokens: &Tensor) -> Result<Vec<(Tensor, Tensor)>> {
        let project = |(keys, values): &(Linear, Linear)| {
            Ok((keys.forward(tokens)?, values.forward(tokens)?))
        };
        self.layers.iter().map(project).collect()
    }
}

/// Which encoder gives embeddings or hidden states of this width.
fn encoder_of(width: usize) -> &'static str {
    match width {
        1024 => "ViT-H's embeddings are so wide",
        1280 => "ViT-H's hidden states and ViT-bigG's embeddings are so wide",
        1664 => "ViT-bigG's hidden states are so wide",
        _ => "see where the adapter comes from",
    }
}

/// Keys and values by the paths of the layers, `paths` in the adapter's order; the values of layer i multiplied by `weight(i)`, which is
/// as good as multiplying what is attended. Layers of weight 0 are left out.
///
/// # Errors
/// The U-Net has another number of cross-attentions.
pub fn by_path(
    keys_values: Vec<(Tensor, Tensor)>,
    paths: &[String],
    weight: impl Fn(usize) -> f64,
) -> Result<HashMap<String, (Tensor, Tensor)>> {
    if keys_values.len() != paths.len() {
        return Err(Error::Input(format!(
            "the IP-Adapter is for a U-Net of {} cross-attentions, but this one has {}: it is for another family of models",
            keys_values.len(),
            paths.len()
        )));
    }
    let mut layers = HashMap::new();
    for (i, ((keys, values), path)) in keys_values.into_iter().zip(paths).enumerate() {
        match weight(i) {
            0.0 => {}
            1.0 => drop(layers.insert(path.clone(), (keys, values))),
            weight => drop(layers.insert(path.clone(), (keys, (values * weight)?))),
        }
    }
    Ok(layers)
}
