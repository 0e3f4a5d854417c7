//! The weight of a layer, as a model holds it.

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device, Result as CandleResult, Shape, Tensor};

use crate::files::packed::Packed;

/// The weight of a linear layer or a convolution: a tensor, or numbers in fewer bits that are widened each
/// time the layer computes, so that a model is in memory as its file has it and one layer of it wide.
/// Cloning is cheap.
#[derive(Clone)]
pub struct Weight(Kept);

#[derive(Clone)]
enum Kept {
    Tensor(Tensor),
    Packed {
        packed: Arc<Packed>,
        /// What is done to the wide numbers, which have the shape of the file.
        change: Option<Arc<Change>>,
        shape: Shape,
    },
    /// f16 or bf16 that are changed each time they are used.
    Changed {
        tensor: Tensor,
        change: Arc<Change>,
        shape: Shape,
    },
}

type Change = dyn Fn(Tensor) -> CandleResult<Tensor> + Send + Sync;

impl Weight {
    pub(super) fn packed(packed: Arc<Packed>) -> Weight {
        let shape = Shape::from(packed.shape());
        Weight(Kept::Packed { packed, change: None, shape })
    }

    /// The numbers as a kernel takes them: the tensor itself, or f32 that are made now.
    ///
    /// # Errors
    /// There is not the memory for them.
    pub fn tensor(&self) -> CandleResult<Tensor> {
        match &self.0 {
            Kept::Tensor(tensor) => Ok(tensor.clone()),
            Kept::Packed { packed, change, shape } => {
                let wide = packed.widen()?;
                let changed = match change {
                    Some(change) => change(wide)?,
                    None => wide,
                };
                changed.reshape(shape)
            }
            Kept::Changed { tensor, change, shape } => change(tensor.clone())?.reshape(shape),
        }
    }

    /// The same numbers in another shape.
    ///
    /// # Errors
    /// It is one of more or fewer numbers.
    pub fn reshape(self, shape: impl Into<Shape>) -> CandleResult<Weight> {
        let shape = shape.into();
        if self.dims() == shape.dims() {
            return Ok(self);
        }
        Ok(Weight(match self.0 {
            Kept::Tensor(tensor) => Kept::Tensor(tensor.reshape(shape)?),
            Kept::Packed { packed, change, .. } => {
                let numbers: usize = packed.shape().iter().product();
                if shape.elem_count() != numbers {
                    candle_core::bail!("{numbers} numbers do not fill the shape {shape:?}");
                }
                Kept::Packed { packed, change, shape }
            }
            Kept::Changed { tensor, change, .. } => {
                if shape.elem_count() != tensor.elem_count() {
                    let numbers = tensor.elem_count();
                    candle_core::bail!("{numbers} numbers do not fill the shape {shape:?}");
                }
                Kept::Changed { tensor, change, shape }
            }
        }))
    }

    /// The same with `change`, which gives f32, made each time the numbers are asked for: of the wide ones, or of a tensor
    /// in f16 or bf16. Nothing where they are f32 or lie on a GPU: of those a changed copy can be kept.
    pub fn with_change(
        &self,
        change: impl Fn(Tensor) -> CandleResult<Tensor> + Send + Sync + 'static,
    ) -> Option<Weight> {
        match &self.0 {
            Kept::Tensor(tensor)
                if tensor.device().is_cpu()
                    && matches!(tensor.dtype(), DType::F16 | DType::BF16) =>
            {
                Some(Weight(Kept::Changed {
                    tensor: tensor.clone(),
                    change: Arc::new(change),
                    shape: tensor.shape().clone(),
                }))
            }
            Kept::Packed { packed, change: first, shape } => Some(Weight(Kept::Packed {
                packed: packed.clone(),
                change: Some(after(first.clone(), change)),
                shape: shape.clone(),
            })),
            Kept::Changed { tensor, change: first, shape } => Some(Weight(Kept::Changed {
                tensor: tensor.clone(),
                change: after(Some(first.clone()), change),
                shape: shape.clone(),
            })),
            Kept::Tensor(_) => None,
        }
    }

    /// Whether it is kept in fewer bits than its numbers have once they are changed.
    pub(super) fn is_changed_late(&self) -> bool {
        matches!(self.0, Kept::Changed { .. } | Kept::Packed { change: Some(_), .. })
    }

    /// What it is kept as, where that are fewer bits than a kernel takes.
    pub(super) fn as_packed(&self) -> Option<&Arc<Packed>> {
        match &self.0 {
            Kept::Packed { packed, .. } => Some(packed),
            Kept::Tensor(_) | Kept::Changed { .. } => None,
        }
    }

    pub fn dims(&self) -> &[usize] {
        match &self.0 {
            Kept::Tensor(tensor) => tensor.dims(),
            Kept::Packed { shape, .. } | Kept::Changed { shape, .. } => shape.dims(),
        }
    }

    /// The type of [`Weight::tensor`].
    pub fn dtype(&self) -> DType {
        match &self.0 {
            Kept::Tensor(tensor) => tensor.dtype(),
            Kept::Packed { .. } | Kept::Changed { .. } => DType::F32,
        }
    }

    /// Where [`Weight::tensor`] is.
    pub fn device(&self) -> &Device {
        match &self.0 {
            Kept::Tensor(tensor) | Kept::Changed { tensor, .. } => tensor.device(),
            Kept::Packed { .. } => &Device::Cpu,
        }
    }
}

/// `change` of what `first` makes.
fn after(
    first: Option<Arc<Change>>,
    change: impl Fn(Tensor) -> CandleResult<Tensor> + Send + Sync + 'static,
) -> Arc<Change> {
    match first {
        None => Arc::new(change),
        Some(first) => Arc::new(move |wide| change(first(wide)?)),
    }
}

impl From<Tensor> for Weight {
    fn from(tensor: Tensor) -> Weight {
        Weight(Kept::Tensor(tensor))
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kept::Tensor(tensor) | Kept::Changed { tensor, .. } => {
                write!(f, "Weight({:?}, {:?})", tensor.dims(), tensor.dtype())
            }
            Kept::Packed { packed, shape, .. } => {
                write!(f, "Weight({:?}, {:?})", shape, packed.format())
            }
        }
    }
}
