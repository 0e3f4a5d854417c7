//! One layer of a LoRA.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::LoraError;
use super::dora::Dora;
use super::factor::Factor;
use super::kinds::{Change, Difference, Factors, Kind};

/// What a LoRA changes of one module.
#[derive(Clone, Debug)]
pub struct Layer {
    factors: BTreeMap<Factor, Tensor>,
    alpha: Option<f64>,
    /// Of the module's weight.
    weight: Option<Change>,
    /// Of its bias.
    bias: Option<Change>,
}

impl Layer {
    /// A layer of these factors, all f32, in the shapes that files have them in; which ones there are says
    /// its kind. `module` is what errors call it.
    ///
    /// # Errors
    /// The shapes do not fit each other, a factor is missing or empty, or the alpha is not finite.
    pub fn new(
        module: &str,
        factors: BTreeMap<Factor, Tensor>,
        alpha: Option<f64>,
    ) -> std::result::Result<Layer, LoraError> {
        if factors.values().any(|tensor| tensor.elem_count() == 0) {
            return Err(LoraError::RankZero { layer: module.to_owned() });
        }
        let parts = Factors { module, tensors: &factors, alpha };
        let kind = Kind::of(&parts)?;
        let dora = match (parts.get(Factor::DoraScale), parts.get(Factor::Magnitude)) {
            (Some(lengths), _) => Some(Dora::new(lengths)),
            (None, Some(lengths)) => Some(Dora::of_peft(lengths).map_err(|error| {
                LoraError::Damaged { layer: module.to_owned(), what: error.to_string() }
            })?),
            (None, None) => None,
        };
        let bias = parts.get(Factor::DiffB).or_else(|| parts.get(Factor::BNorm));
        let bias = bias.map(|bias| Change::new(Kind::Difference(Difference(bias)), None));
        if kind.is_none() && bias.is_none() {
            let layer = module.to_owned();
            return Err(LoraError::Incomplete { layer, missing: "down" });
        }
        let weight = kind.map(|kind| Change::new(kind, dora));
        Ok(Layer { factors, alpha, weight, bias })
    }

    /// A plain LoRA's: `up` [out, rank] and `down` [rank, in], or of a convolution [out, rank, 1, 1] and
    /// [rank, in, kH, kW], or [rank, in, 1, 1] with the core `mid` [rank, rank, kH, kW] between them.
    /// `scale` is alpha / rank, or 1.
    ///
    /// # Errors
    /// As [`Layer::new`].
    pub fn low_rank(
        module: &str,
        up: Tensor,
        down: Tensor,
        mid: Option<Tensor>,
        scale: f64,
    ) -> std::result::Result<Layer, LoraError> {
        let rank = down.dims().first().copied().unwrap_or(1).max(1);
        let factors = [(Factor::Up, up), (Factor::Down, down)].into_iter();
        let factors = factors.chain(mid.map(|mid| (Factor::Mid, mid))).collect();
        Layer::new(module, factors, Some(scale * rank as f64))
    }

    /// What it is made of.
    pub fn factors(&self) -> &BTreeMap<Factor, Tensor> {
        &self.factors
    }

    pub fn alpha(&self) -> Option<f64> {
        self.alpha
    }

    /// The up, the down and the middle weight and the scale, where it is a plain LoRA's layer and nothing
    /// else.
    pub fn as_low_rank(&self) -> Option<(&Tensor, &Tensor, Option<&Tensor>, f64)> {
        let plain = |factor: &Factor| matches!(factor, Factor::Up | Factor::Down | Factor::Mid);
        if !self.factors.keys().all(plain) {
            return None;
        }
        let (up, down) = (self.factors.get(&Factor::Up)?, self.factors.get(&Factor::Down)?);
        let scale = self.alpha.map_or(1.0, |alpha| alpha / down.dims()[0] as f64);
        Some((up, down, self.factors.get(&Factor::Mid), scale))
    }

    /// The change of the module's weight.
    pub(super) fn weight(&self) -> Option<&Change> {
        self.weight.as_ref()
    }

    /// The change of the module's bias.
    pub(super) fn bias(&self) -> Option<&Change> {
        self.bias.as_ref()
    }
}
