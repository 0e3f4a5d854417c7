/// y [rows, out] = x [rows, in] · wᵀ + bias, w [out, in].
pub(super) fn linear(
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    (rows, input, output): (usize, usize, usize),
) -> Vec<f32> {
    assert!(x.len() == rows * input && w.len() == output * input);
    let mut y = match bias {
        Some(bias) => bias.repeat(rows),
        None => vec![0f32; rows * output],
    };
    assert!(y.len() == rows * output);
    if y.is_empty() || input == 0 {
        return y;
    }
    // A small product is done before the threads are woken.
    let parallelism = match rows * input * output {
        0..100_000 => gemm::Parallelism::None,
        _ => gemm::Parallelism::Rayon(0),
    };
    // SAFETY: all three matrices are whole and row by row, of the sizes asserted above; w is read
    // as its transpose, by strides; y is borrowed alone.
    unsafe {
        gemm::gemm(
            rows,
            output,
            input,
            y.as_mut_ptr(),
            1,
            output as isize,
            true,
            x.as_ptr(),
            1,
            input as isize,
            w.as_ptr(),
            input as isize,
            1,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
    y
}
