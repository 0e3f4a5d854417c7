//! What a cross-attention makes of a text, kept for the next call: through a sampling the text is the same, and keys and values of
//! it are 2 % of a U-Net's call at 256 × 256.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, DType, Result, Storage, Tensor};

/// Texts whose keys and values are kept: the wanted one and the unwanted one, where they are not one batch.
const TEXTS: usize = 2;
/// Tokens of a batch of texts that are kept at most; more are large pictures' or large batches', of which it is a small part.
const TOKENS: usize = 320;

/// Keys and values of the texts that were asked for last.
#[derive(Default)]
pub(crate) struct TextKeys(Mutex<Vec<Kept>>);

struct Kept {
    text: Tensor,
    keys_values: (Tensor, Tensor),
}

impl TextKeys {
    /// Keys and values of `text` [B, T, D], those of the last call where that had the same numbers, bit for bit; else what `project`
    /// makes of it. What learns is never kept, nor what lies on a GPU, where numbers cannot be compared for nothing.
    ///
    /// # Errors
    /// What `project` reports.
    pub(crate) fn of(
        &self,
        text: &Tensor,
        project: impl FnOnce() -> Result<(Tensor, Tensor)>,
    ) -> Result<(Tensor, Tensor)> {
        let (rows, tokens, _) = text.dims3()?;
        let may_be_kept = text.device().is_cpu() && text.dtype() == DType::F32 && !text.track_op();
        if !may_be_kept || rows * tokens > TOKENS {
            return project();
        }
        {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = kept.iter().position(|kept| are_the_same(&kept.text, text)) {
                kept[..=at].rotate_right(1);
                return Ok(kept[0].keys_values.clone());
            }
        }
        let (keys, values) = project()?;
        if !keys.track_op() && !values.track_op() {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let text = text.clone();
            kept.insert(0, Kept { text, keys_values: (keys.clone(), values.clone()) });
            kept.truncate(TEXTS);
        }
        Ok((keys, values))
    }
}

/// Whether two tensors on the CPU have one shape and, bit for bit, the same numbers.
fn are_the_same(a: &Tensor, b: &Tensor) -> bool {
    if a.id() == b.id() {
        return true;
    }
    if a.shape() != b.shape() {
        return false;
    }
    let (of_a, of_b) = (a.storage_and_layout(), b.storage_and_layout());
    let places = (of_a.1.contiguous_offsets(), of_b.1.contiguous_offsets());
    match (&*of_a.0, &*of_b.0, places) {
        (
            Storage::Cpu(CpuStorage::F32(a)),
            Storage::Cpu(CpuStorage::F32(b)),
            (Some((a_start, a_end)), Some((b_start, b_end))),
        ) => {
            let pairs = a[a_start..a_end].iter().zip(&b[b_start..b_end]);
            pairs.fold(0, |apart, (a, b)| apart | (a.to_bits() ^ b.to_bits())) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn the_same_numbers_are_projected_once_and_others_anew() -> Result<()> {
        let (keys, asked) = (TextKeys::default(), Cell::new(0));
        let text = |first: f32| {
            let values: Vec<f32> = (0..24).map(|i| first + i as f32).collect();
            Tensor::from_vec(values, (2, 3, 4), &Device::Cpu)
        };
        let of = |text: &Tensor| -> Result<Vec<f32>> {
            let project = || {
                asked.set(asked.get() + 1);
                Ok(((text * 2.0)?, (text * 3.0)?))
            };
            let (k, v) = keys.of(text, project)?;
            let sum = (k + v)?.flatten_all()?.to_vec1::<f32>()?;
            assert_eq!(sum, (text * 5.0)?.flatten_all()?.to_vec1::<f32>()?);
            Ok(sum)
        };
        let first = of(&text(0.0)?)?;
        // Another tensor of the same numbers, and a part of one.
        assert_eq!(of(&text(0.0)?)?, first);
        let twice = Tensor::cat(&[text(9.0)?, text(0.0)?], 0)?;
        of(&twice.narrow(0, 2, 2)?)?;
        assert_eq!(asked.get(), 1);
        // Two are kept, the last ones.
        of(&text(1.0)?)?;
        of(&text(0.0)?)?;
        assert_eq!(asked.get(), 2);
        of(&text(2.0)?)?;
        of(&text(1.0)?)?;
        assert_eq!(asked.get(), 4);
        // As many numbers in another shape.
        of(&text(1.0)?.reshape((1, 6, 4))?)?;
        assert_eq!(asked.get(), 5);
        // −0 is another number than 0.
        let mut negative: Vec<f32> = (0..24).map(|i| i as f32).collect();
        negative[0] = -0.0;
        of(&Tensor::from_vec(negative, (2, 3, 4), &Device::Cpu)?)?;
        assert_eq!(asked.get(), 6);
        Ok(())
    }

    #[test]
    fn what_learns_or_is_large_is_not_kept() -> Result<()> {
        let keys = TextKeys::default();
        let learns = Var::zeros((1, 2, 3), DType::F32, &Device::Cpu)?;
        let frozen = learns.as_detached_tensor();
        // The text learns; a weight does.
        keys.of(&learns, || Ok((frozen.clone(), frozen.clone())))?;
        keys.of(&frozen, || Ok((learns.as_tensor().clone(), frozen.clone())))?;
        let large = Tensor::zeros((1, TOKENS + 1, 3), DType::F32, &Device::Cpu)?;
        keys.of(&large, || Ok((large.clone(), large.clone())))?;
        assert!(keys.0.lock().unwrap().is_empty());
        keys.of(&frozen, || Ok((frozen.clone(), frozen.clone())))?;
        assert_eq!(keys.0.lock().unwrap().len(), 1);
        Ok(())
    }
}
