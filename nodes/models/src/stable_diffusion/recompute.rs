//! Gradients of a U-Net in less memory: what lies within a block is forgotten, and computed again when the block is
//! differentiated (Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174).
//!
//! The tensor library keeps every result between a loss and the variables. A [`Tape`] cuts that graph at the blocks: each
//! block is given leaves and gives a leaf, and of what it computed nothing else is kept. Going back, a block is run once
//! more from its leaves, and differentiated alone. The numbers are the same, and so are the sums that they are added up in.

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{Result as CandleResult, Tensor, TensorId, Var};

/// Which part of a U-Net: a ResNet block with the transformer behind it, the middle block, or what changes the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Down {
        level: usize,
        block: usize,
    },
    Downsampler {
        level: usize,
    },
    Middle,
    Up {
        level: usize,
        block: usize,
    },
    /// To this height and width.
    Upsampler {
        level: usize,
        size: (usize, usize),
    },
}

/// What one call of a network left to go back by. For one call only.
#[derive(Debug, Default)]
pub struct Tape {
    entries: RefCell<Vec<Entry>>,
    /// The leaf that stands for a result, by that result.
    leaves: RefCell<HashMap<TensorId, Tensor>>,
}

#[derive(Debug)]
enum Entry {
    /// `output` is what the block makes of `inputs`.
    Block { place: Place, inputs: Vec<Tensor>, output: Tensor },
    /// `leaf` has the values of `result`, which was computed outside of the blocks.
    Result { result: Tensor, leaf: Tensor },
}

/// Gradients by what they are of.
#[derive(Debug, Default)]
pub struct TapeGradients(HashMap<TensorId, Tensor>);

impl TapeGradients {
    /// That of a variable, where it has one.
    pub fn get(&self, variable: &Tensor) -> Option<&Tensor> {
        self.0.get(&variable.id())
    }

    fn take(&mut self, leaf: &Tensor) -> Option<Tensor> {
        self.0.remove(&leaf.id())
    }

    /// Adds those that `store` has for variables and leaves.
    fn add(&mut self, store: &GradStore) -> CandleResult<()> {
        for id in store.get_ids() {
            let Some(gradient) = store.get_id(*id) else { continue };
            let sum = match self.0.remove(id) {
                Some(before) => (before + gradient)?,
                None => gradient.clone(),
            };
            self.0.insert(*id, sum);
        }
        Ok(())
    }
}

impl Tape {
    /// What `run` makes of `inputs`, of which nothing is kept between them and the result. Where no gradient is asked of
    /// it, it is computed as if there were no tape.
    pub(crate) fn block(
        &self,
        place: Place,
        inputs: &[&Tensor],
        run: impl FnOnce(&[Tensor]) -> CandleResult<Tensor>,
    ) -> CandleResult<Tensor> {
        let leaves =
            inputs.iter().map(|input| self.leaf(input)).collect::<CandleResult<Vec<_>>>()?;
        let result = run(&leaves)?;
        if !result.track_op() {
            return Ok(result);
        }
        let output = leaf_of(&result)?;
        self.leaves.borrow_mut().insert(output.id(), output.clone());
        let entry = Entry::Block { place, inputs: leaves, output: output.clone() };
        self.entries.borrow_mut().push(entry);
        Ok(output)
    }

    /// The leaf that stands for `result`: itself, where no gradient is asked of it.
    fn leaf(&self, result: &Tensor) -> CandleResult<Tensor> {
        if !result.track_op() {
            return Ok(result.clone());
        }
        if let Some(leaf) = self.leaves.borrow().get(&result.id()) {
            return Ok(leaf.clone());
        }
        let leaf = leaf_of(result)?;
        self.leaves.borrow_mut().insert(result.id(), leaf.clone());
        let entry = Entry::Result { result: result.clone(), leaf: leaf.clone() };
        self.entries.borrow_mut().push(entry);
        Ok(leaf)
    }

    /// The gradients of the scalar `loss`, which what was called with this tape led to; `again` runs a block.
    pub(crate) fn backward(
        &self,
        loss: &Tensor,
        again: impl Fn(Place, &[Tensor]) -> CandleResult<Tensor>,
    ) -> CandleResult<TapeGradients> {
        let mut gradients = TapeGradients::default();
        gradients.add(&loss.backward()?)?;
        let entries = self.entries.take();
        self.leaves.borrow_mut().clear();
        for entry in entries.into_iter().rev() {
            kosmograph_interrupt::check().map_err(candle_core::Error::wrap)?;
            let leaf = match &entry {
                Entry::Result { leaf, .. } => leaf,
                Entry::Block { output, .. } => output,
            };
            // What has no gradient did not lead to the loss.
            let Some(gradient) = gradients.take(leaf) else { continue };
            let (result, inputs) = match entry {
                Entry::Result { result, .. } => (result, Vec::new()),
                Entry::Block { place, inputs, .. } => (again(place, &inputs)?, inputs),
            };
            let mut onward = (result * gradient.detach())?.sum_all()?;
            // What an input is owed already comes first in its sum, as it would without a tape: a skip connection's part before
            // the block's own, and not behind the sum of these.
            for input in inputs.iter().filter(|input| input.is_variable()) {
                if let Some(owed) = gradients.take(input) {
                    onward = (onward + (input * owed.detach())?.sum_all()?)?;
                }
            }
            gradients.add(&onward.backward()?)?;
        }
        Ok(gradients)
    }
}

/// A variable with the values of `result` in memory of its own, and nothing before it.
fn leaf_of(result: &Tensor) -> CandleResult<Tensor> {
    Ok(Var::from_tensor(&result.detach())?.as_tensor().clone())
}
