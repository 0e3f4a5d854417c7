//! GLIGEN: boxes with a text each say what is where. Every transformer block of the U-Net has, between its two attentions, one
//! more, in which the picture's tokens attend to themselves and to one token for each box; a gate that was trained from 0 says how
//! much it counts.
//!
//! Li et al., "GLIGEN: Open-Set Grounded Text-to-Image Generation", arXiv 2301.07093, sections 3.1 and 3.2. Names are those of the
//! published files and of diffusers (`fuser`, `position_net`).

use candle_core::{Device, Result as CandleResult, Tensor};
use kosmograph_kernels as kernels;

use crate::error::{Error, Result};
use crate::files::weights::Weights;
use crate::layers::{LayerNorm, Linear};
use crate::stable_diffusion::transformer2d::Attention;

/// Boxes that one picture may have; what is not taken up is filled with what the network learned for "none".
pub const MOST_BOXES: usize = 30;

/// Frequencies of the places' sines, and the ratio of the last one after them to the first.
const FREQUENCIES: usize = 8;
const TEMPERATURE: f64 = 100.0;
/// Sines and cosines of the four edges at each frequency.
const PLACE: usize = FREQUENCIES * 2 * 4;

/// The width of Stable Diffusion 1's text, whose attentions have a fixed number of heads; elsewhere heads have a fixed width.
const SD1_TEXT: usize = 768;
const SD1_HEADS: usize = 8;
const HEAD: usize = 64;

/// What a file's shapes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GligenConfig {
    /// Width of a box's text.
    pub text: usize,
    /// Width within the network that makes tokens of boxes.
    pub hidden: usize,
    /// Width of the tokens.
    pub token: usize,
    pub layers: Vec<LayerConfig>,
}

/// One attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerConfig {
    /// The transformer block it stands in, by diffusers' names: `down_blocks.0.attentions.0.transformer_blocks.0`.
    pub path: String,
    pub channels: usize,
    pub heads: usize,
}

impl GligenConfig {
    /// Of weights under diffusers' names.
    ///
    /// # Errors
    /// A tensor that says a size is missing or of another number of axes.
    pub fn from_weights(weights: &Weights) -> Result<Self> {
        let sides = |name: &str| match weights.shape(name).as_deref() {
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
        };
        let (hidden, input) = sides("position_net.linears.0.weight")?;
        let (token, _) = sides("position_net.linears.4.weight")?;
        let names = weights.names();
        let paths = names.iter().filter_map(|name| name.strip_suffix(".fuser.linear.weight"));
        let layer = |path: &str| {
            let (channels, width) = sides(&format!("{path}.fuser.linear.weight"))?;
            let heads = if width == SD1_TEXT { SD1_HEADS } else { (channels / HEAD).max(1) };
            if channels % heads != 0 {
                return Err(Error::Input(format!(
                    "{} has {channels} channels at {path}, which {heads} heads of an attention do not divide",
                    weights.origin()
                )));
            }
            Ok(LayerConfig { path: path.to_owned(), channels, heads })
        };
        let layers = paths.map(layer).collect::<Result<Vec<_>>>()?;
        if layers.is_empty() || input <= PLACE {
            return Err(Error::Input(format!(
                "{} has the network for GLIGEN's boxes, but no attention (`fuser`) that reads them",
                weights.origin()
            )));
        }
        Ok(Self { text: input - PLACE, hidden, token, layers })
    }
}

/// A box in the picture: its edges in 0..1, and what is in it.
#[derive(Clone, Debug)]
pub struct Grounded {
    /// Left, top, right, bottom, of the picture's width and height.
    pub edges: [f32; 4],
    /// [1, P], the pooled vector of its text.
    pub text: Tensor,
}

/// The network: what makes tokens of boxes, and the attentions that read them.
pub struct Gligen {
    position_net: PositionNet,
    layers: Vec<(String, GatedSelfAttention)>,
}

impl Gligen {
    /// # Errors
    /// The weights are of another model than `config` says.
    pub fn load(weights: &Weights, config: &GligenConfig) -> Result<Self> {
        let layer = |layer: &LayerConfig| {
            let weights = weights.sub(format!("{}.fuser", layer.path));
            Ok((layer.path.clone(), GatedSelfAttention::load(&weights, layer, config.token)?))
        };
        Ok(Self {
            position_net: PositionNet::load(&weights.sub("position_net"), config)?,
            layers: config.layers.iter().map(layer).collect::<Result<_>>()?,
        })
    }

    /// The tokens of boxes, [1, 30, D].
    ///
    /// # Errors
    /// There are more boxes than 30, or a text of another width than this network reads.
    pub fn tokens(&self, boxes: &[Grounded], device: &Device) -> Result<Tensor> {
        self.position_net.forward(boxes, device)
    }

    /// What the block at `path` makes of the picture's tokens x [B, N, C] and the boxes' [1, M, D]: [B, N, C]; x itself where it
    /// has no attention there.
    ///
    /// # Errors
    /// The attention is for tokens of another width.
    pub fn forward(&self, path: &str, x: &Tensor, tokens: &Tensor) -> Result<Tensor> {
        match self.layers.iter().find(|(known, _)| known == path) {
            Some((_, layer)) => layer.forward(path, x, tokens),
            None => Ok(x.clone()),
        }
    }
}

/// Three linear layers over a box's text and its place.
struct PositionNet {
    linears: [Linear; 3],
    /// What stands for a text, and for a place, where there is no box.
    null_text: Tensor,
    null_place: Tensor,
    text: usize,
}

impl PositionNet {
    fn load(weights: &Weights, config: &GligenConfig) -> Result<Self> {
        let GligenConfig { text, hidden, token, .. } = *config;
        let linear =
            |i, input, output| Linear::load(&weights.sub(format!("linears.{i}")), input, output);
        Ok(Self {
            linears: [
                linear(0, text + PLACE, hidden)?,
                linear(2, hidden, hidden)?,
                linear(4, hidden, token)?,
            ],
            null_text: weights.get("null_positive_feature", text)?,
            null_place: weights.get("null_position_feature", PLACE)?,
            text,
        })
    }

    fn forward(&self, boxes: &[Grounded], device: &Device) -> Result<Tensor> {
        if boxes.len() > MOST_BOXES {
            return Err(Error::Input(format!(
                "GLIGEN takes {MOST_BOXES} boxes in a picture, {} were given",
                boxes.len()
            )));
        }
        let mut rows = Vec::with_capacity(MOST_BOXES);
        for Grounded { edges, text } in boxes {
            if text.dims() != [1, self.text] {
                return Err(Error::Input(format!(
                    "a box's text is {:?}, but this GLIGEN reads [1, {}]: it was made by the text encoder of another \
                     family of models",
                    text.dims(),
                    self.text
                )));
            }
            let place = Tensor::new(sines(*edges), device)?.unsqueeze(0)?;
            rows.push(Tensor::cat(&[&text.to_device(device)?, &place], 1)?);
        }
        let none = Tensor::cat(&[&self.null_text, &self.null_place], 0)?.unsqueeze(0)?;
        rows.resize(MOST_BOXES, none);
        let mut x = Tensor::cat(&rows, 0)?.unsqueeze(0)?;
        for (i, linear) in self.linears.iter().enumerate() {
            x = if i == 0 { linear.forward(&x)? } else { linear.forward(&kernels::silu(&x)?)? };
        }
        Ok(x)
    }
}

/// sin and cos of the four edges, frequency by frequency, [`PLACE`] numbers.
fn sines(edges: [f32; 4]) -> Vec<f32> {
    let mut features = Vec::with_capacity(PLACE);
    for i in 0..FREQUENCIES {
        let frequency = TEMPERATURE.powf(i as f64 / FREQUENCIES as f64);
        let angle = |edge: &f32| f64::from(*edge) * frequency;
        features.extend(edges.iter().map(|edge| angle(edge).sin() as f32));
        features.extend(edges.iter().map(|edge| angle(edge).cos() as f32));
    }
    features
}

/// x + tanh(α) · attention(norm(x, tokens)), then x + tanh(β) · feed-forward(norm(x)).
struct GatedSelfAttention {
    /// From the boxes' tokens to the width of the picture's.
    linear: Linear,
    attn: Attention,
    ff_in: Linear,
    ff_out: Linear,
    norm1: LayerNorm,
    norm2: LayerNorm,
    attention_gate: f64,
    dense_gate: f64,
    channels: usize,
}

const LAYER_NORM_EPS: f64 = 1e-5;

impl GatedSelfAttention {
    fn load(weights: &Weights, config: &LayerConfig, token: usize) -> Result<Self> {
        let (channels, hidden) = (config.channels, 4 * config.channels);
        let norm = |name| LayerNorm::load(&weights.sub(name), channels, LAYER_NORM_EPS);
        // One number; some files have it in a row of one.
        let gate = |name: &str| -> Result<f64> {
            let shape = weights.shape(name).filter(|shape| shape.iter().all(|side| *side == 1));
            let gate = weights.get(name, shape.unwrap_or_default())?;
            Ok(f64::from(gate.flatten_all()?.get(0)?.to_scalar::<f32>()?).tanh())
        };
        Ok(Self {
            linear: Linear::load(&weights.sub("linear"), token, channels)?,
            attn: Attention::load(&weights.sub("attn"), channels, channels, config.heads)?,
            ff_in: Linear::load(&weights.sub("ff.net.0.proj"), channels, 2 * hidden)?,
            ff_out: Linear::load(&weights.sub("ff.net.2"), hidden, channels)?,
            norm1: norm("norm1")?,
            norm2: norm("norm2")?,
            attention_gate: gate("alpha_attn")?,
            dense_gate: gate("alpha_dense")?,
            channels,
        })
    }

    fn forward(&self, path: &str, x: &Tensor, tokens: &Tensor) -> Result<Tensor> {
        let (rows, count, channels) = x.dims3()?;
        if channels != self.channels {
            return Err(Error::Input(format!(
                "this GLIGEN has {} channels at {path}, the U-Net has {channels} there: it was made for another family \
                 of models",
                self.channels
            )));
        }
        Ok(self.grounded(x, tokens, (rows, count))?)
    }

    fn grounded(
        &self,
        x: &Tensor,
        tokens: &Tensor,
        (rows, count): (usize, usize),
    ) -> CandleResult<Tensor> {
        let tokens = self.linear.forward(&tokens.to_dtype(x.dtype())?)?;
        let tokens = tokens.repeat((rows, 1, 1))?;
        let all = self.norm1.forward(&Tensor::cat(&[x, &tokens], 1)?)?;
        // What the boxes' tokens would see is not asked for.
        let seen =
            self.attn.forward(&all.narrow(1, 0, count)?.contiguous()?, (&all, &all), None)?;
        let x = (x + (seen * self.attention_gate)?)?;
        let hidden = self.ff_in.forward_geglu(&self.norm2.forward(&x)?)?;
        &x + (self.ff_out.forward(&hidden)? * self.dense_gate)?
    }
}
