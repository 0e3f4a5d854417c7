//! The difference of whole weights, or a whole weight.

use candle_core::Tensor;

/// A tensor of the weight's own shape.
#[derive(Clone, Debug)]
pub(in crate::lora) struct Difference(pub(in crate::lora) Tensor);

impl Difference {
    /// A linear layer's weight may be stored as a 1 × 1 convolution's, or the other way round.
    pub(super) fn fits(&self, weight: &[usize]) -> bool {
        let without_ones = |shape: &[usize]| {
            let end = shape.iter().rposition(|length| *length != 1).map_or(0, |last| last + 1);
            shape[..end].to_vec()
        };
        without_ones(self.0.dims()) == without_ones(weight)
    }
}
