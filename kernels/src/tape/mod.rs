//! Gradients of what the operators computed, without what the tensor library's own pass costs.
//!
//! That pass begins the gradient of every result with zeros and adds to it on one thread, and keeps every input and result
//! until the loss is gone. While something is recorded here ([`record`]), an operator on the CPU whose inputs learn is
//! written on a tape instead, and its result stands as a variable of the tensor library's, before which it sees nothing. Going
//! back ([`Tape::backward`]) takes the first gradient of a result as it is, adds further ones on all threads, and lets go of
//! what it has been through; of inputs and results that a gradient is not computed from, nothing is kept at all.
//!
//! What the tensor library computes in between (a scale, a part of a tensor) is right too: such a result is differentiated by
//! its own pass down to what is on the tape. That goes over the same ground again for each of these results an operator
//! takes, so what a network adds up layer by layer ought to be added by [`crate::add`].
//!
//! [`block`] records a part of a network that is forgotten and computed again when it is differentiated (Chen et al.,
//! "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174): the numbers, and the order in which they are summed,
//! are the same.

mod operator;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use candle_core::{Error, Result, Tensor, TensorId, Var, bail};
use kosmograph_interrupt as interrupt;

use operator::Operator;
pub(crate) use operator::{Reads, apply1, apply2, apply3};

thread_local! {
    /// What is recorded on this thread, the innermost last.
    static TAPES: RefCell<Vec<Tape>> = const { RefCell::new(Vec::new()) };
}

/// What was computed, in its order.
#[derive(Default)]
pub struct Tape {
    entries: Vec<Entry>,
    /// Results of the tensor library's that have an entry, by their ids, and the variables that stand for some.
    known: HashSet<TensorId>,
    leaves: HashMap<TensorId, Tensor>,
}

impl std::fmt::Debug for Tape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tape").field("entries", &self.entries.len()).finish()
    }
}

/// A tensor of an entry: as it is where its values are read, else a tensor of its shape and no values.
struct Entered {
    id: TensorId,
    tensor: Tensor,
}

enum Entry {
    Operator {
        operator: Operator,
        inputs: Vec<Entered>,
        result: Entered,
    },
    /// What the tensor library computed, and by which id its gradient is found.
    Algebra {
        result: Tensor,
        id: TensorId,
    },
    /// `result` is what the block of this number makes of `inputs`, which are variables or do not learn.
    Block {
        number: usize,
        inputs: Vec<Tensor>,
        result: TensorId,
    },
}

/// Gradients by what they are of.
#[derive(Debug, Default)]
pub struct Gradients(HashMap<TensorId, Tensor>);

impl Gradients {
    /// That of a variable, where it has one.
    pub fn get(&self, variable: &Tensor) -> Option<&Tensor> {
        self.0.get(&variable.id())
    }

    fn take(&mut self, id: TensorId) -> Option<Tensor> {
        self.0.remove(&id).map(|gradient| gradient.detach())
    }

    fn add(&mut self, id: TensorId, gradient: Tensor) -> Result<()> {
        let sum = match self.0.remove(&id) {
            Some(before) => crate::add(&before.detach(), &gradient.detach())?,
            None => gradient,
        };
        self.0.insert(id, sum);
        Ok(())
    }

    /// Adds those of the variables that the scalar `loss` was computed from by the tensor library.
    fn add_of(&mut self, loss: &Tensor) -> Result<()> {
        let store = loss.backward()?;
        // The store has gradients of constants as well.
        for variable in loss.sorted_nodes().into_iter().filter(|node| node.is_variable()) {
            if let Some(gradient) = store.get(variable) {
                self.add(variable.id(), gradient.clone())?;
            }
        }
        Ok(())
    }
}

/// Runs `run`, and has what the operators compute in it on this thread.
pub fn record<T>(run: impl FnOnce() -> T) -> (T, Tape) {
    /// Takes the tape away, also where `run` does not return.
    struct Recording;
    impl Drop for Recording {
        fn drop(&mut self) {
            TAPES.with_borrow_mut(Vec::pop);
        }
    }
    TAPES.with_borrow_mut(|tapes| tapes.push(Tape::default()));
    let recording = Recording;
    let result = run();
    let tape = TAPES.with_borrow_mut(|tapes| tapes.last_mut().map(std::mem::take));
    drop(recording);
    (result, tape.unwrap_or_default())
}

/// What `run`, the block `number`, makes of `inputs`, of which nothing is kept between them and the result: for within
/// [`record`]. Where no gradient is asked of it, it is computed as if nothing were recorded.
///
/// # Errors
/// Nothing is recorded; else what `run` reports.
pub fn block(
    number: usize,
    inputs: &[&Tensor],
    run: impl FnOnce(&[Tensor]) -> Result<Tensor>,
) -> Result<Tensor> {
    let leaves = inputs.iter().map(|input| leaf(input)).collect::<Result<Vec<_>>>()?;
    let (result, forgotten) = record(|| run(&leaves));
    drop(forgotten);
    let result = result?;
    if !result.track_op() {
        return Ok(result);
    }
    let is_input = leaves.iter().any(|leaf| leaf.id() == result.id());
    let result = match result.is_variable() && !is_input {
        true => result,
        false => variable_of(&result)?,
    };
    on_tape(|tape| {
        tape.entries.push(Entry::Block { number, inputs: leaves, result: result.id() });
        Ok(result)
    })
}

/// The variable that stands for `result`: itself, where it is one or does not learn.
fn leaf(result: &Tensor) -> Result<Tensor> {
    if !result.track_op() || result.is_variable() {
        return Ok(result.clone());
    }
    on_tape(|tape| {
        if let Some(leaf) = tape.leaves.get(&result.id()) {
            return Ok(leaf.clone());
        }
        let leaf = variable_of(result)?;
        tape.leaves.insert(result.id(), leaf.clone());
        tape.entries.push(Entry::Algebra { result: result.clone(), id: leaf.id() });
        Ok(leaf)
    })
}

/// A variable with the values of `result` in memory of its own.
fn variable_of(result: &Tensor) -> Result<Tensor> {
    Ok(Var::from_tensor(&result.detach())?.as_tensor().clone())
}

fn on_tape<T>(run: impl FnOnce(&mut Tape) -> Result<T>) -> Result<T> {
    TAPES.with_borrow_mut(|tapes| match tapes.last_mut() {
        Some(tape) => run(tape),
        None => bail!("a block is computed again only where gradients are recorded"),
    })
}

impl Tape {
    /// The gradients of the scalar `loss`, which what is recorded led to, no [`block`] among it.
    ///
    /// # Errors
    /// The work is to stop, or a block is to be computed again; else what the operators report.
    pub fn backward(self, loss: &Tensor) -> Result<Gradients> {
        self.backward_with(loss, &|number, _| {
            bail!("block {number} is to be computed again, and nothing says which it is")
        })
    }

    /// [`Self::backward`] where there are blocks: `again` runs one by its number.
    ///
    /// # Errors
    /// The work is to stop; else what the operators and `again` report.
    pub fn backward_with(
        self,
        loss: &Tensor,
        again: &dyn Fn(usize, &[Tensor]) -> Result<Tensor>,
    ) -> Result<Gradients> {
        let mut found = Gradients::default();
        found.add_of(loss)?;
        self.back(&mut found, again)?;
        Ok(found)
    }

    /// From gradients of results to those of what is before them.
    fn back(
        mut self,
        found: &mut Gradients,
        again: &dyn Fn(usize, &[Tensor]) -> Result<Tensor>,
    ) -> Result<()> {
        self.leaves.clear();
        while let Some(entry) = self.entries.pop() {
            interrupt::check().map_err(Error::wrap)?;
            match entry {
                Entry::Operator { operator, inputs, result } => {
                    // What has no gradient did not lead to the loss.
                    let Some(upstream) = found.take(result.id) else { continue };
                    let gradients = operator.backward(&inputs, &result.tensor, &upstream)?;
                    drop((upstream, result));
                    for (input, gradient) in inputs.into_iter().zip(gradients) {
                        if let Some(gradient) = gradient.filter(|_| input.tensor.track_op()) {
                            found.add(input.id, gradient)?;
                        }
                    }
                }
                Entry::Algebra { result, id } => {
                    let Some(upstream) = found.take(id) else { continue };
                    found.add_of(&(result * upstream)?.sum_all()?)?;
                }
                Entry::Block { number, inputs, result } => {
                    let Some(upstream) = found.take(result) else { continue };
                    let (result, inner) = record(|| again(number, &inputs));
                    let result = result?;
                    if result.is_variable() {
                        found.add(result.id(), upstream)?;
                    } else {
                        found.add_of(&(result * upstream)?.sum_all()?)?;
                    }
                    // What an input is owed already comes first in its sum, as it would had nothing been forgotten.
                    inner.back(found, again)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
