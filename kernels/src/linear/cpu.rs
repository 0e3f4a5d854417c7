use super::few_rows;
use crate::gemm::{self, Start, Transposed};
use crate::int8;
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
    if let Some(set) = isa.int8()
        && int8::pays((rows, input, output))
    {
        return int8::linear(set, x, w, bias, (rows, input, output));
    }
    if few_rows::pays(rows) && isa.precision() != "bf16" {
        return few_rows::linear(isa, x, w, bias, (rows, input, output));
    }
    let start = bias.map_or(Start::Zero, Start::Columns);
    gemm::product(isa, (rows, input, output), x, &Transposed { values: w, k: input }, start)
}
