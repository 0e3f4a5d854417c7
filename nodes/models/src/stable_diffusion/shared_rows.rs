//! Rows of a batch that are the same until they read their texts.
//!
//! Guidance asks for one noise under two texts: the same latents, twice. Up to the first cross-attention the network computes the
//! same for both, among it one of the costliest self-attentions, so it computes it once and repeats it there. Nothing is
//! approximated: the rows that are left out are equal, number by number.

use candle_core::{Result as CandleResult, Tensor};

/// How many rows, repeated, are all rows of each of `tensors` [B, …]: B itself where they differ.
///
/// Only where the numbers lie in the processor's memory, since a GPU would have to be waited for.
pub(crate) fn period(tensors: &[&Tensor]) -> CandleResult<usize> {
    let Some(rows) = tensors.first().map(|tensor| tensor.dim(0)).transpose()? else { return Ok(0) };
    if tensors.iter().any(|tensor| !tensor.device().is_cpu()) {
        return Ok(rows);
    }
    for period in (1..rows).filter(|period| rows.is_multiple_of(*period)) {
        let mut repeats = true;
        for tensor in tensors {
            repeats = repeats && is_shifted(tensor, rows, period)?;
        }
        if repeats {
            return Ok(period);
        }
    }
    Ok(rows)
}

/// Whether every row of `tensor` is the one `period` before it.
fn is_shifted(tensor: &Tensor, rows: usize, period: usize) -> CandleResult<bool> {
    let (later, earlier) =
        (tensor.narrow(0, period, rows - period)?, tensor.narrow(0, 0, rows - period)?);
    Ok(later.eq(&earlier)?.flatten_all()?.to_vec1::<u8>()?.iter().all(|same| *same == 1))
}

/// `tensor` [P, …] with its rows repeated to `rows`, a multiple of P.
pub(crate) fn repeated(tensor: &Tensor, rows: usize) -> CandleResult<Tensor> {
    match rows / tensor.dim(0)?.max(1) {
        0 | 1 => Ok(tensor.clone()),
        times => Tensor::cat(&vec![tensor; times], 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn rows_repeat_only_where_all_tensors_do() -> CandleResult<()> {
        let rows = |values: &[f32]| Tensor::new(values, &Device::Cpu)?.reshape(((), 1));
        let (twice, alike, not) =
            (rows(&[1., 2., 1., 2.])?, rows(&[3.; 4])?, rows(&[1., 2., 1., 4.])?);
        assert_eq!(period(&[&twice])?, 2);
        assert_eq!(period(&[&alike])?, 1);
        assert_eq!(period(&[&twice, &alike])?, 2);
        assert_eq!(period(&[&twice, &not])?, 4);
        assert_eq!(period(&[&rows(&[f32::NAN; 2])?])?, 2);
        assert_eq!(period(&[&rows(&[0.])?])?, 1);
        let again = repeated(&twice.narrow(0, 0, 2)?, 4)?;
        assert_eq!(again.to_vec2::<f32>()?, twice.to_vec2::<f32>()?);
        assert_eq!(repeated(&twice, 4)?.dims(), [4, 1]);
        Ok(())
    }
}
