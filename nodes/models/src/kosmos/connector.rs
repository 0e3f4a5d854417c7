//! Kosmos-G's connector: the tokens of a picture → a fixed number of image tokens for the language
//! model.
//!
//! A resampler after Flamingo's (arXiv 2204.14198): learned queries attend once to the projected
//! tokens and to themselves. Follows `XConnector` of the authors' `unilm/models/connector.py`.

use candle_core::Tensor;
use serde::Deserialize;

use crate::error::Result;
use crate::files::weights::Weights;
use crate::layers::{Linear, MultiheadAttention};

/// `connector` of a Kosmos folder's `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct ConnectorConfig {
    /// Image tokens of one picture, Q.
    pub latent_query_num: usize,
    pub heads: usize,
}

/// The connector.
#[derive(Clone, Debug)]
pub struct Connector {
    dense: Linear,
    latent_query: Tensor,
    x_attn: MultiheadAttention,
}

impl Connector {
    /// `input` is the vision transformer's width, `output` the language model's.
    pub fn load(
        config: &ConnectorConfig,
        input: usize,
        output: usize,
        weights: &Weights,
    ) -> Result<Connector> {
        Ok(Connector {
            dense: Linear::load(&weights.sub("dense"), input, output)?,
            latent_query: weights.get("latent_query", (config.latent_query_num, output))?,
            x_attn: MultiheadAttention::load(&weights.sub("x_attn"), output, config.heads)?,
        })
    }

    /// The tokens of B pictures [B, T, input] → their image tokens [B, Q, output].
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        let x = self.dense.forward(features)?;
        let (queries, dim) = self.latent_query.dims2()?;
        let latent_query = self.latent_query.broadcast_as((x.dim(0)?, queries, dim))?;
        let context = Tensor::cat(&[&x, &latent_query], 1)?;
        Ok(self.x_attn.forward(&latent_query, &context, None)?)
    }
}
