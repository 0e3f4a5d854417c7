use super::Sizes;
use crate::gemm::{self, Plain, Rows, Start, Transposed};
use crate::simd::Isa;
use crate::storage::WeightValues;

/// y [rows, out], and t = scale · x Dᵀ [rows, rank].
pub(super) fn forward(
    isa: Isa,
    x: &[f32],
    w: WeightValues,
    bias: Option<&[f32]>,
    [down, up]: [&[f32]; 2],
    scale: f32,
    s: Sizes,
) -> (Vec<f32>, Vec<f32>) {
    let Sizes { rows, input, output, rank } = s;
    assert!(w.len() == output * input && down.len() == rank * input && up.len() == output * rank);
    let start = bias.map_or(Start::Zero, Start::Columns);
    let mut y =
        gemm::product(isa, (rows, input, output), x, &Transposed { values: w, k: input }, start);
    let columns = Transposed { values: WeightValues::F32(down), k: input };
    let mut middle = gemm::product(isa, (rows, input, rank), x, &columns, Start::Zero);
    middle.iter_mut().for_each(|value| *value *= scale);
    let columns = Transposed { values: WeightValues::F32(up), k: rank };
    gemm::add_product(isa, (rows, rank, output), &middle, &columns, &mut y);
    (y, middle)
}

/// dt = scale · dy U [rows, rank].
pub(super) fn of_middle(isa: Isa, dy: &[f32], up: &[f32], scale: f32, s: Sizes) -> Vec<f32> {
    let up = Plain { values: up, stride: s.rank };
    let mut of_middle = gemm::product(isa, (s.rows, s.output, s.rank), dy, &up, Start::Zero);
    of_middle.iter_mut().for_each(|value| *value *= scale);
    of_middle
}

/// dx = dy W + dt D [rows, in].
pub(super) fn of_input(
    isa: Isa,
    dy: &[f32],
    w: WeightValues,
    of_middle: &[f32],
    down: &[f32],
    s: Sizes,
) -> Vec<f32> {
    let w = Rows { values: w, stride: s.input };
    let mut dx = gemm::product(isa, (s.rows, s.output, s.input), dy, &w, Start::Zero);
    let down = Plain { values: down, stride: s.input };
    gemm::add_product(isa, (s.rows, s.rank, s.input), of_middle, &down, &mut dx);
    dx
}

/// dD = dtᵀ x [rank, in].
pub(super) fn of_down(isa: Isa, of_middle: &[f32], x: &[f32], s: Sizes) -> Vec<f32> {
    let of_middle = turned(of_middle, s.rank);
    let x = Plain { values: x, stride: s.input };
    gemm::product(isa, (s.rank, s.rows, s.input), &of_middle, &x, Start::Zero)
}

/// dU = dyᵀ t [out, rank], as the transpose of tᵀ dy, so that dy stays as it lies.
pub(super) fn of_up(isa: Isa, dy: &[f32], middle: &[f32], s: Sizes) -> Vec<f32> {
    let middle = turned(middle, s.rank);
    let dy = Plain { values: dy, stride: s.output };
    let of_up = gemm::product(isa, (s.rank, s.rows, s.output), &middle, &dy, Start::Zero);
    turned(&of_up, s.output)
}

/// The transpose of rows of `width` values; of few numbers.
fn turned(from: &[f32], width: usize) -> Vec<f32> {
    let rows = from.len() / width.max(1);
    (0..from.len()).map(|i| from[i % rows * width + i / rows]).collect()
}
