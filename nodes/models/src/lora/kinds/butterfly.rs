//! BOFT: rotations of blocks of outputs, several of them one after the other on outputs that are mixed
//! between as in a fast Fourier transform. Liu et al., arXiv 2311.06243.

use candle_core::{Result as CandleResult, Tensor};

use super::orthogonal::{constraint, identity, rotations};
use super::{Factors, Read, flat};
use crate::lora::factor::Factor;

/// The strength counts in each rotation and once more at the end, as ComfyUI has it.
#[derive(Clone, Debug)]
pub(in crate::lora) struct Butterfly {
    /// [stages, blocks, size, size].
    blocks: Tensor,
    rescale: Option<Tensor>,
    constraint: f64,
}

impl Butterfly {
    pub(super) fn read(factors: &Factors) -> Read<Self> {
        let blocks = factors.need(Factor::OftBlocks)?;
        // In stage i, pairs of runs of 2^i · size/2 outputs are mixed.
        let fits = match blocks.dims() {
            [stages, count, rows, columns] => {
                let last = stages.checked_sub(1).and_then(|last| u32::try_from(last).ok());
                let pair = last.and_then(|last| 1usize.checked_shl(last)?.checked_mul(*rows));
                let outputs = count.checked_mul(*rows);
                rows == columns
                    && rows % 2 == 0
                    && pair.zip(outputs).is_some_and(|(pair, outputs)| outputs % pair == 0)
            }
            _ => false,
        };
        if !fits {
            let blocks = Factors::called(Factor::OftBlocks, &blocks);
            return Err(factors.damaged(format!(
                "{blocks} is not [stages, blocks, size, size] of an even size whose runs fill the outputs"
            )));
        }
        let rescale = factors.get(Factor::Rescale);
        let outputs = blocks.dims()[1] * blocks.dims()[2];
        if let Some(rescale) = &rescale
            && ![1, outputs].contains(&rescale.elem_count())
        {
            let rescale = Factors::called(Factor::Rescale, rescale);
            return Err(
                factors.damaged(format!("{rescale} is no factor for each of {outputs} outputs"))
            );
        }
        Ok(Self { blocks, rescale, constraint: constraint(factors)? })
    }

    pub(super) fn fits(&self, weight: &[usize]) -> bool {
        weight.first().copied() == Some(self.blocks.dims()[1] * self.blocks.dims()[2])
    }

    pub(super) fn wanted(&self) -> String {
        format!("one with {} outputs", self.blocks.dims()[1] * self.blocks.dims()[2])
    }

    pub(super) fn change(&self, weight: &Tensor, strength: f64) -> CandleResult<Tensor> {
        let (stages, _, size, _) = self.blocks.dims4()?;
        let turns = rotations(&self.blocks, self.constraint)?.to_device(weight.device())?;
        let still = (identity(size, weight.device())? * (1.0 - strength))?;
        let original = flat(weight)?;
        let columns = original.dim(1)?;
        let mut rows = original.clone();
        for stage in 0..stages {
            let turn = (turns.get(stage)? * strength)?.broadcast_add(&still)?;
            let run = (size / 2) << stage;
            // Of two runs that follow each other, the rows of equal place come together.
            let mixed = rows.reshape(((), 2, run, columns))?.transpose(1, 2)?.contiguous()?;
            let turned = turn.matmul(&mixed.reshape(((), size, columns))?)?;
            let back = turned.reshape(((), run, 2, columns))?.transpose(1, 2)?.contiguous()?;
            rows = back.reshape(((), columns))?;
        }
        if let Some(rescale) = &self.rescale {
            rows = rows.broadcast_mul(&rescale.reshape(((), 1))?)?;
        }
        rows - original
    }
}
