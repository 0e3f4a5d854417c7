//! What a U-Net is told beside the latents and the text, as one vector for all its ResNet blocks: the timestep, and of
//! SDXL's family the pooled text and the picture's sizes.

use candle_core::{DType, Result as CandleResult, Tensor};
use kosmograph_kernels as kernels;

use crate::error::{Error, Result};
use crate::files::weights::Weights;
use crate::layers::Linear;

/// The vector that SDXL's U-Nets take beside the context: the text's pooled vector, and features of the
/// picture's sizes. Podell et al., "SDXL", arXiv 2307.01952, §2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorConfig {
    /// Its numbers: 2816 for SDXL, 2560 for the refiner.
    pub width: usize,
    /// Features of each size; even.
    pub size_features: usize,
    /// How many sizes there are: 6, or the refiner's 5.
    pub sizes: usize,
}

impl VectorConfig {
    /// The width of the text's pooled vector.
    pub fn pooled(&self) -> usize {
        self.width - self.sizes * self.size_features
    }
}

impl VectorConfig {
    /// The features of `sizes` [B, S], in rows: [B · S, size_features].
    pub(crate) fn features(
        &self,
        sizes: &Tensor,
        flip: bool,
        freq_shift: f64,
    ) -> CandleResult<Tensor> {
        time_proj(&sizes.flatten_all()?, self.size_features, flip, freq_shift)
    }

    /// The vector [B, width] of `pooled` [B or 1, P] and `sizes` [B or 1, S]; the features are [cos ‖ sin] or, without
    /// `flip`, [sin ‖ cos].
    ///
    /// # Errors
    /// The rows do not fit each other.
    pub fn vector(
        &self,
        pooled: &Tensor,
        sizes: &Tensor,
        flip: bool,
        freq_shift: f64,
    ) -> CandleResult<Tensor> {
        let features = self.features(sizes, flip, freq_shift)?.reshape((sizes.dim(0)?, ()))?;
        let rows = pooled.dim(0)?.max(sizes.dim(0)?);
        let spread = |tensor: &Tensor| tensor.broadcast_as((rows, tensor.dim(1)?));
        Tensor::cat(&[spread(&pooled.to_dtype(DType::F32)?)?, spread(&features)?], 1)
    }

    /// Does `condition` have what the vector is made of, for `batch` rows?
    pub(crate) fn check(&self, condition: &Condition<'_>, batch: usize) -> Result<()> {
        let part = |tensor: Option<&Tensor>, width: usize, what: &str| {
            let found = match tensor.map(Tensor::dims) {
                Some([rows, found]) if *found == width && (*rows == batch || *rows == 1) => {
                    return Ok(());
                }
                Some(found) => format!("is {found:?}"),
                None => "is missing".to_owned(),
            };
            Err(Error::Input(format!(
                "the conditioning's {what} {found}, the network takes [{batch}, {width}]: it was encoded \
                 for another model"
            )))
        };
        part(condition.pooled, self.pooled(), "pooled vector")?;
        part(condition.sizes, self.sizes, "list of sizes")
    }
}

/// What a U-Net draws after.
#[derive(Clone, Copy, Debug)]
pub struct Condition<'a> {
    /// [B, T, D].
    pub context: &'a Tensor,
    /// The text's pooled vector [B, P] or [1, P], where the network takes one (SDXL).
    pub pooled: Option<&'a Tensor>,
    /// As they are in pixels, [B, S] or [1, S]: height and width of the original, top and left of the crop, height
    /// and width of the target; of SDXL's refiner the aesthetic score instead of the target.
    pub sizes: Option<&'a Tensor>,
}

impl<'a> From<&'a Tensor> for Condition<'a> {
    /// A context alone, as Stable Diffusion 1 and 2 take it.
    fn from(context: &'a Tensor) -> Self {
        Condition { context, pooled: None, sizes: None }
    }
}

/// Two linear layers with a SiLU between them: of the sinusoidal features of the timestep, or of the vector.
pub(crate) struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    pub(crate) fn load(weights: &Weights, input: usize, output: usize) -> Result<Self> {
        Ok(TimestepEmbedding {
            linear_1: Linear::load(&weights.sub("linear_1"), input, output)?,
            linear_2: Linear::load(&weights.sub("linear_2"), output, output)?,
        })
    }

    /// [B, input] → [B, output].
    pub(crate) fn forward(&self, features: &Tensor) -> CandleResult<Tensor> {
        self.linear_2.forward(&kernels::silu(&self.linear_1.forward(features)?)?)
    }
}

/// [B] → [B, dim]: cos and sin of t · 10000^(−i / (dim/2 − freq_shift)).
pub(crate) fn time_proj(
    timesteps: &Tensor,
    dim: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
) -> CandleResult<Tensor> {
    let half = dim / 2;
    // Rounded to f32 after every operation, as torch does: at t = 999 a frequency that is off in
    // its last bit already moves the angle by 6e-5.
    let frequencies: Vec<f32> = (0..half)
        .map(|i| {
            let exponent = -(10000f64.ln() as f32) * i as f32 / (half as f64 - freq_shift) as f32;
            f64::from(exponent).exp() as f32
        })
        .collect();
    let frequencies = Tensor::from_vec(frequencies, (1, half), timesteps.device())?;
    let angles = timesteps.to_dtype(DType::F32)?.unsqueeze(1)?.broadcast_mul(&frequencies)?;
    let (first, second) = if flip_sin_to_cos {
        (angles.cos()?, angles.sin()?)
    } else {
        (angles.sin()?, angles.cos()?)
    };
    Tensor::cat(&[first, second], 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn time_features_are_cosines_and_sines() -> CandleResult<()> {
        let t = Tensor::new(&[0i64, 1], &Device::Cpu)?;
        let features = time_proj(&t, 4, true, 0.0)?.to_vec2::<f32>()?;
        let slow = 0.01f32;
        assert_eq!(features[0], [1., 1., 0., 0.]);
        for (got, want) in features[1].iter().zip([1f32.cos(), slow.cos(), 1f32.sin(), slow.sin()])
        {
            assert!((got - want).abs() < 1e-6);
        }
        let flipped = time_proj(&t, 4, false, 0.0)?.to_vec2::<f32>()?;
        assert_eq!(flipped[0], [0., 0., 1., 1.]);
        Ok(())
    }
}
