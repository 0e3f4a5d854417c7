//! An operator of the tensor library's kind, applied: on its graph, or on the tape where one is recorded.

use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail,
};

use super::{Entered, Entry, TAPES, Tape};

/// Which inputs' values, and whether the result's, the operator's gradients are computed from.
#[derive(Clone, Copy)]
pub(crate) struct Reads<const N: usize> {
    pub(crate) inputs: [bool; N],
    pub(crate) result: bool,
}

impl<const N: usize> Reads<N> {
    pub(crate) const INPUTS: Reads<N> = Reads { inputs: [true; N], result: false };
    pub(crate) const NOTHING: Reads<N> = Reads { inputs: [false; N], result: false };
}

pub(super) enum Operator {
    One(Box<dyn CustomOp1>),
    Two(Box<dyn CustomOp2>),
    Three(Box<dyn CustomOp3>),
}

impl Operator {
    /// The gradient of each input, where it has one.
    pub(super) fn backward(
        &self,
        inputs: &[Entered],
        result: &Tensor,
        upstream: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        Ok(match (self, inputs) {
            (Operator::One(op), [x]) => vec![op.bwd(&x.tensor, result, upstream)?],
            (Operator::Two(op), [x, y]) => {
                let (dx, dy) = op.bwd(&x.tensor, &y.tensor, result, upstream)?;
                vec![dx, dy]
            }
            (Operator::Three(op), [x, y, z]) => {
                let (dx, dy, dz) = op.bwd(&x.tensor, &y.tensor, &z.tensor, result, upstream)?;
                vec![dx, dy, dz]
            }
            _ => bail!("an operator was recorded with {} inputs", inputs.len()),
        })
    }
}

/// `op` of `x`.
pub(crate) fn apply1(
    x: &Tensor,
    op: impl CustomOp1 + Send + Sync + 'static,
    reads: Reads<1>,
) -> Result<Tensor> {
    if !is_recorded(&[x]) {
        return x.apply_op1(op);
    }
    let result = on_cpu([x], |[(x, of_x)]| op.cpu_fwd(x, of_x))?;
    enter([x], Operator::One(Box::new(op)), result, reads)
}

/// `op` of `x` and `y`.
pub(crate) fn apply2(
    [x, y]: [&Tensor; 2],
    op: impl CustomOp2 + Send + Sync + 'static,
    reads: Reads<2>,
) -> Result<Tensor> {
    if !is_recorded(&[x, y]) {
        return x.apply_op2(y, op);
    }
    let result = on_cpu([x, y], |[(x, of_x), (y, of_y)]| op.cpu_fwd(x, of_x, y, of_y))?;
    enter([x, y], Operator::Two(Box::new(op)), result, reads)
}

/// `op` of `x`, `y` and `z`.
pub(crate) fn apply3(
    [x, y, z]: [&Tensor; 3],
    op: impl CustomOp3 + Send + Sync + 'static,
    reads: Reads<3>,
) -> Result<Tensor> {
    if !is_recorded(&[x, y, z]) {
        return x.apply_op3(y, z, op);
    }
    let result = on_cpu([x, y, z], |[(x, of_x), (y, of_y), (z, of_z)]| {
        op.cpu_fwd(x, of_x, y, of_y, z, of_z)
    })?;
    enter([x, y, z], Operator::Three(Box::new(op)), result, reads)
}

/// Whether an operator of `inputs` belongs on a tape.
fn is_recorded(inputs: &[&Tensor]) -> bool {
    inputs.iter().any(|input| input.track_op())
        && inputs.iter().all(|input| input.device().is_cpu())
        && TAPES.with_borrow(|tapes| !tapes.is_empty())
}

/// What `run` makes of the inputs, as a variable.
fn on_cpu<const N: usize>(
    inputs: [&Tensor; N],
    run: impl FnOnce([(&CpuStorage, &Layout); N]) -> Result<(CpuStorage, Shape)>,
) -> Result<Tensor> {
    let guards = inputs.map(Tensor::storage_and_layout);
    let mut storages = Vec::with_capacity(N);
    for (storage, layout) in &guards {
        match &**storage {
            Storage::Cpu(storage) => storages.push((storage, *layout)),
            _ => bail!("an operator that is recorded on the CPU has an input elsewhere"),
        }
    }
    let Ok(storages) = storages.try_into() else { bail!("an operator has {N} inputs") };
    let (storage, shape) = run(storages)?;
    Ok(Tensor::from_storage(Storage::Cpu(storage), shape, BackpropOp::none(), true))
}

fn enter<const N: usize>(
    inputs: [&Tensor; N],
    operator: Operator,
    result: Tensor,
    reads: Reads<N>,
) -> Result<Tensor> {
    let entered = inputs.iter().zip(reads.inputs).map(|(input, reads)| Entered::of(input, reads));
    let entered: Vec<Entered> = entered.collect();
    TAPES.with_borrow_mut(|tapes| {
        let Some(tape) = tapes.last_mut() else {
            bail!("an operator was recorded after its tape was taken away")
        };
        inputs.iter().for_each(|input| tape.know(input));
        let of_result = Entered::of(&result, reads.result);
        tape.entries.push(Entry::Operator { operator, inputs: entered, result: of_result });
        Ok(result)
    })
}

impl Tape {
    /// Enters what the tensor library computed, where `input` is such and the first time that it is taken: it was computed
    /// before all that takes it.
    fn know(&mut self, input: &Tensor) {
        if input.track_op() && !input.is_variable() && self.known.insert(input.id()) {
            self.entries.push(Entry::Algebra { result: input.clone(), id: input.id() });
        }
    }
}

impl Entered {
    fn of(tensor: &Tensor, is_read: bool) -> Entered {
        let id = tensor.id();
        if is_read {
            return Entered { id, tensor: tensor.clone() };
        }
        // No values: an operator that reads them all the same meets the end of an empty slice.
        let storage = Storage::Cpu(CpuStorage::F32(Vec::new()));
        let learns = tensor.track_op();
        let none = BackpropOp::none();
        Entered { id, tensor: Tensor::from_storage(storage, tensor.shape(), none, learns) }
    }
}
