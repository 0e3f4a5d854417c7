//! The weight of a layer, as a model holds it.

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device, Result as CandleResult, Shape, Tensor};

use super::on_gpu::Place;
use crate::files::packed::Packed;

/// The weight of a linear layer or a convolution: a tensor; numbers in fewer bits that are widened each
/// time the layer computes, so that a model is in memory as its file has it and one layer of it wide; or one in main
/// memory that goes to a GPU each time the layer computes. Cloning is cheap.
#[derive(Clone)]
pub struct Weight(Kept);

#[derive(Clone)]
enum Kept {
    Tensor(Tensor, Option<Arc<Place>>),
    Packed {
        packed: Arc<Packed>,
        /// What is done to the wide numbers, which have the shape of the file.
        change: Option<Arc<Change>>,
        shape: Shape,
    },
    /// Boxed: few layers have such a weight, and each would be as large.
    Made(Box<Made>),
}

/// f16 or bf16 that are changed each time they are used, what goes to a GPU each time, and what is changed there where there is
/// no room for a changed copy.
#[derive(Clone)]
struct Made {
    tensor: Tensor,
    /// Given back when the weight is dropped.
    _place: Option<Arc<Place>>,
    /// Where it is changed and used.
    device: Device,
    change: Option<Arc<Change>>,
    shape: Shape,
}

type Change = dyn Fn(Tensor) -> CandleResult<Tensor> + Send + Sync;

impl Weight {
    pub(super) fn packed(packed: Arc<Packed>) -> Weight {
        let shape = Shape::from(packed.shape());
        Weight(Kept::Packed { packed, change: None, shape })
    }

    /// One that stays on the GPU where it is, in a place that others do not have as long.
    pub(super) fn placed(tensor: Tensor, place: Place) -> Weight {
        Weight(Kept::Tensor(tensor, Some(Arc::new(place))))
    }

    /// One that stays in main memory, where it is, and is copied to `device` each time it is used.
    pub(super) fn copied(tensor: Tensor, device: &Device) -> Weight {
        let shape = tensor.shape().clone();
        let device = device.clone();
        Weight(Kept::Made(Box::new(Made { tensor, _place: None, device, change: None, shape })))
    }

    /// The numbers as a kernel takes them: the tensor itself, f32 that are made now, or a copy on the GPU.
    ///
    /// # Errors
    /// There is not the memory for them.
    pub fn tensor(&self) -> CandleResult<Tensor> {
        match &self.0 {
            Kept::Tensor(tensor, _) => Ok(tensor.clone()),
            Kept::Packed { packed, change, shape } => {
                let wide = packed.widen()?;
                let changed = match change {
                    Some(change) => change(wide)?,
                    None => wide,
                };
                changed.reshape(shape)
            }
            Kept::Made(made) => {
                let there = made.tensor.to_device(&made.device)?;
                let changed = match &made.change {
                    Some(change) => change(there)?,
                    None => there,
                };
                changed.reshape(&made.shape)
            }
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
            Kept::Tensor(tensor, place) => Kept::Tensor(tensor.reshape(shape)?, place),
            Kept::Packed { packed, change, .. } => {
                let numbers: usize = packed.shape().iter().product();
                if shape.elem_count() != numbers {
                    candle_core::bail!("{numbers} numbers do not fill the shape {shape:?}");
                }
                Kept::Packed { packed, change, shape }
            }
            Kept::Made(made) => {
                let numbers = made.tensor.elem_count();
                if shape.elem_count() != numbers {
                    candle_core::bail!("{numbers} numbers do not fill the shape {shape:?}");
                }
                Kept::Made(Box::new(Made { shape, ..*made }))
            }
        }))
    }

    /// The same with `change`, which gives f32, made each time the numbers are asked for: of the wide ones, of a tensor
    /// in f16 or bf16, and on a GPU where the room for weights is bounded. Nothing where they are f32 or lie on a GPU: of those a
    /// changed copy can be kept.
    pub fn with_change(
        &self,
        change: impl Fn(Tensor) -> CandleResult<Tensor> + Send + Sync + 'static,
    ) -> Option<Weight> {
        match &self.0 {
            Kept::Tensor(tensor, place)
                if place.is_some()
                    || tensor.device().is_cpu()
                        && matches!(tensor.dtype(), DType::F16 | DType::BF16) =>
            {
                Some(Weight(Kept::Made(Box::new(Made {
                    tensor: tensor.clone(),
                    _place: place.clone(),
                    device: tensor.device().clone(),
                    change: Some(Arc::new(change)),
                    shape: tensor.shape().clone(),
                }))))
            }
            Kept::Packed { packed, change: first, shape } => Some(Weight(Kept::Packed {
                packed: packed.clone(),
                change: Some(after(first.clone(), change)),
                shape: shape.clone(),
            })),
            Kept::Made(made) => Some(Weight(Kept::Made(Box::new(Made {
                change: Some(after(made.change.clone(), change)),
                ..Made::clone(made)
            })))),
            Kept::Tensor(..) => None,
        }
    }

    /// Whether what is kept is not yet what a kernel takes, for another reason than its few bits: it is changed first, or copied
    /// to a GPU.
    pub(crate) fn is_made_late(&self) -> bool {
        matches!(self.0, Kept::Made(_) | Kept::Packed { change: Some(_), .. })
    }

    /// Whether it has a place on a GPU.
    pub(crate) fn has_place(&self) -> bool {
        matches!(self.0, Kept::Tensor(_, Some(_)))
    }

    /// What it is kept as, where that are fewer bits than a kernel takes.
    pub(super) fn as_packed(&self) -> Option<&Arc<Packed>> {
        match &self.0 {
            Kept::Packed { packed, .. } => Some(packed),
            Kept::Tensor(..) | Kept::Made(_) => None,
        }
    }

    pub fn dims(&self) -> &[usize] {
        match &self.0 {
            Kept::Tensor(tensor, _) => tensor.dims(),
            Kept::Packed { shape, .. } => shape.dims(),
            Kept::Made(made) => made.shape.dims(),
        }
    }

    /// The type of [`Weight::tensor`].
    pub fn dtype(&self) -> DType {
        match &self.0 {
            Kept::Tensor(tensor, _) => tensor.dtype(),
            Kept::Made(made) if made.change.is_none() => made.tensor.dtype(),
            Kept::Packed { .. } | Kept::Made(_) => DType::F32,
        }
    }

    /// Where [`Weight::tensor`] is.
    pub fn device(&self) -> &Device {
        match &self.0 {
            Kept::Tensor(tensor, _) => tensor.device(),
            Kept::Made(made) => &made.device,
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
        Weight(Kept::Tensor(tensor, None))
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kept::Tensor(tensor, _) => {
                write!(f, "Weight({:?}, {:?})", tensor.dims(), tensor.dtype())
            }
            Kept::Made(made) => {
                write!(f, "Weight({:?}, {:?})", made.tensor.dims(), made.tensor.dtype())
            }
            Kept::Packed { packed, shape, .. } => {
                write!(f, "Weight({:?}, {:?})", shape, packed.format())
            }
        }
    }
}
