//! (IA)³: every output, or every input, is multiplied by a number.
//! Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper", arXiv 2205.05638.

use candle_core::{Result as CandleResult, Tensor};

use super::{Factors, Read};
use crate::lora::factor::Factor;

/// W ∘ m, with m along the outputs or the inputs.
#[derive(Clone, Debug)]
pub(in crate::lora) struct Ia3 {
    factors: Tensor,
    axis: usize,
}

impl Ia3 {
    pub(super) fn read(factors: &Factors) -> Read<Self> {
        let (vector, on_input) = (factors.need(Factor::Ia3)?, factors.need(Factor::OnInput)?);
        let is_vector = vector.dims().iter().filter(|length| **length > 1).count() <= 1;
        if !is_vector {
            return Err(factors.damaged(format!(
                "{} is no row of factors",
                Factors::called(Factor::Ia3, &vector)
            )));
        }
        if on_input.elem_count() != 1 {
            let on_input = Factors::called(Factor::OnInput, &on_input);
            return Err(factors.damaged(format!("{on_input} is no single number")));
        }
        let read = |error: candle_core::Error| factors.damaged(error.to_string());
        let on_input = on_input.flatten_all().and_then(|number| number.to_vec1::<f32>());
        let axis = usize::from(on_input.map_err(read)? != [0.0]);
        Ok(Self { factors: vector.flatten_all().map_err(read)?, axis })
    }

    pub(super) fn fits(&self, weight: &[usize]) -> bool {
        weight.len() >= 2 && weight[self.axis] == self.factors.elem_count()
    }

    pub(super) fn wanted(&self) -> String {
        let side = ["outputs", "inputs"][self.axis];
        format!("one with {} {side}", self.factors.elem_count())
    }

    pub(super) fn change(&self, weight: &Tensor) -> CandleResult<Tensor> {
        let mut shape = vec![1; weight.rank()];
        shape[self.axis] = self.factors.elem_count();
        weight.broadcast_mul(&self.factors.reshape(shape)?)
    }
}
