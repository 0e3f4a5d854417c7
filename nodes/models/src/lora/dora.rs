//! DoRA: a weight's direction is changed by a LoRA of any kind, and its length is a factor of its own.
//! Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353.

use candle_core::{Result as CandleResult, Tensor};

/// The lengths that the weight's columns, or rows, are brought to.
#[derive(Clone, Debug)]
pub(super) struct Dora {
    lengths: Tensor,
    /// PEFT measures the changed weight's rows, where ComfyUI measures the original's.
    of_changed: bool,
}

impl Dora {
    /// `dora_scale` of LyCORIS and kohya: [out, 1, ...], a length of each row, or [1, in, ...], of each
    /// column.
    pub(super) fn new(lengths: Tensor) -> Dora {
        Dora { lengths, of_changed: false }
    }

    /// PEFT's magnitude vector [out].
    pub(super) fn of_peft(lengths: Tensor) -> CandleResult<Dora> {
        Ok(Dora { lengths: lengths.flatten_all()?.unsqueeze(1)?, of_changed: true })
    }

    /// Whether the lengths are those of rows, as ComfyUI tells it.
    fn of_rows(&self, weight: &[usize]) -> bool {
        self.lengths.dims().first() == weight.first()
    }

    pub(super) fn fits(&self, weight: &[usize]) -> bool {
        let shape = self.lengths.dims();
        let (length, others) = match (shape.split_first(), self.of_rows(weight)) {
            (Some((_, others)), true) => (weight.first(), others),
            (Some((1, [_, others @ ..])), false) => (weight.get(1), others),
            _ => return false,
        };
        // [1, in] of a weight with one row has a length of the row for each column, as ComfyUI has it.
        let spread = self.of_rows(weight) && weight.first() == Some(&1) && weight.len() >= 2;
        let columns = spread && others.first() == weight.get(1);
        let rest = if columns { &others[1..] } else { others };
        rest.iter().all(|one| *one == 1)
            && weight.len() >= 2
            && (columns || length == Some(&self.lengths.elem_count()))
    }

    pub(super) fn wanted(&self) -> String {
        format!("with lengths {:?}", self.lengths.dims())
    }

    /// `weight` and what is added to it at strength 1, both f32. At another strength the way from the weight
    /// to its decomposed change is gone in part.
    pub(super) fn apply(
        &self,
        weight: &Tensor,
        change: &Tensor,
        strength: f64,
    ) -> CandleResult<Tensor> {
        let (rows, shape) = (weight.dim(0)?, weight.shape());
        let changed = (weight + change)?.reshape((rows, weight.dim(1)?, ()))?;
        let (norm, lengths) = if self.of_rows(weight.dims()) {
            let of = if self.of_changed { &changed } else { &weight.reshape(changed.shape())? };
            let norm = of.sqr()?.sum_keepdim((1, 2))?.sqrt()?;
            (norm, self.lengths.reshape((rows, (), 1))?)
        } else {
            (changed.sqr()?.sum_keepdim((0, 2))?.sqrt()?, self.lengths.reshape((1, (), 1))?)
        };
        // A row of zeros has no direction.
        let factor = lengths.broadcast_div(&(norm + f64::from(f32::EPSILON))?)?;
        let changed = changed.broadcast_mul(&factor)?.reshape(shape)?;
        if strength == 1.0 {
            return Ok(changed);
        }
        weight + ((changed - weight)? * strength)?
    }
}
