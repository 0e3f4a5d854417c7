use crate::gemm::{self, Start, Transposed};
use crate::simd::Isa;
use crate::storage::WeightValues;

/// y [rows, out] = x [rows, in] · wᵀ + bias, w [out, in].
pub(super) fn linear(
    isa: Isa,
    x: &[f32],
    w: WeightValues,
    bias: Option<&[f32]>,
    (rows, input, output): (usize, usize, usize),
) -> Vec<f32> {
    assert!(w.len() == output * input);
    let start = bias.map_or(Start::Zero, Start::Columns);
    gemm::product(isa, (rows, input, output), x, &Transposed { values: w, k: input }, start)
}
