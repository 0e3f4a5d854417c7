//! What ControlNets add within a U-Net.

use candle_core::{Result as CandleResult, Tensor};

use crate::error::{Error, Result};

/// What a ControlNet adds within the U-Net.
#[derive(Clone, Debug)]
pub struct Residuals {
    /// For every skip connection, [B, Cᵢ, Hᵢ, Wᵢ], in the order that the U-Net makes them.
    pub down: Vec<Tensor>,
    /// For the middle block's result, [B, C, H, W].
    pub mid: Tensor,
}

impl Residuals {
    /// All multiplied by `scale`: the conditioning scale (the strength) of a ControlNet.
    ///
    /// # Errors
    /// Only what the tensor library reports.
    pub fn scaled(&self, scale: f64) -> Result<Residuals> {
        let down = self.down.iter().map(|r| r * scale).collect::<CandleResult<_>>()?;
        Ok(Residuals { down, mid: (&self.mid * scale)? })
    }

    /// Guess mode: residuals weigh from 0.1 at the top to 1 in the middle, so that the picture's
    /// fine structure stays the U-Net's own. All are multiplied by `scale` besides.
    ///
    /// # Errors
    /// Only what the tensor library reports.
    pub fn scaled_for_guess_mode(&self, scale: f64) -> Result<Residuals> {
        let count = self.down.len() as f64;
        let down = self
            .down
            .iter()
            .enumerate()
            .map(|(i, r)| r * (10f64.powf(i as f64 / count - 1.0) * scale))
            .collect::<CandleResult<_>>()?;
        Ok(Residuals { down, mid: (&self.mid * scale)? })
    }

    /// The sum with another ControlNet's residuals.
    ///
    /// # Errors
    /// The other ones belong to a U-Net of another shape.
    pub fn plus(&self, other: &Residuals) -> Result<Residuals> {
        if self.down.len() != other.down.len() {
            return Err(Error::Input(format!(
                "two ControlNets differ: one gives {} residuals, the other {}",
                self.down.len(),
                other.down.len()
            )));
        }
        let down =
            self.down.iter().zip(&other.down).map(|(a, b)| a + b).collect::<CandleResult<_>>()?;
        Ok(Residuals { down, mid: (&self.mid + &other.mid)? })
    }

    /// Whether they are as many and as large as the U-Net's own.
    ///
    /// # Errors
    /// They are not.
    pub(crate) fn check(residuals: &Residuals, skips: &[Tensor], mid: &Tensor) -> Result<()> {
        let fits = residuals.down.len() == skips.len()
            && residuals.down.iter().zip(skips).all(|(r, s)| r.dims() == s.dims())
            && residuals.mid.dims() == mid.dims();
        if fits {
            return Ok(());
        }
        let shapes = |tensors: &[Tensor], mid: &Tensor| {
            let list: Vec<String> =
                tensors.iter().chain([mid]).map(|t| format!("{:?}", t.dims())).collect();
            list.join(" ")
        };
        Err(Error::Input(format!(
            "the ControlNet is of another shape than the U-Net: its residuals are {}, expected {}",
            shapes(&residuals.down, &residuals.mid),
            shapes(skips, mid)
        )))
    }
}
