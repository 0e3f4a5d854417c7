//! [`Tensor`]: a DLPack tensor that crossed, or is about to cross, the boundary.

use std::any::Any;
use std::borrow::Cow;
use std::ffi::c_void;

use kosmograph_abi::{DLDataType, DLDevice, DLTensor};
use kosmograph_values as counted;

use crate::{Error, Result, Value};

/// A reference to an immutable tensor, whoever allocated it.
#[derive(Clone)]
pub struct Tensor(counted::Tensor);

impl Tensor {
    /// `None` for a value of any other kind.
    pub(crate) fn from_value(value: Value) -> Option<Self> {
        counted::Value::from(value).try_into().ok().map(Self)
    }

    pub fn into_value(self) -> Value {
        self.0.into_value().into()
    }

    /// An f32 tensor on the CPU over `data`, without a copy.
    ///
    /// # Errors
    /// When `data` does not hold as many values as `shape` says.
    pub fn from_f32(shape: &[usize], data: Vec<f32>) -> Result<Self> {
        let wanted = shape.iter().try_fold(1usize, |count, side| count.checked_mul(*side));
        if wanted != Some(data.len()) {
            return Err(Error::new(format!(
                "a tensor of shape {shape:?} cannot be made of {} values",
                data.len()
            )));
        }
        let pointer = data.as_ptr().cast_mut().cast();
        // SAFETY: `data` moves into the owner and its buffer stays where it is.
        Ok(unsafe {
            Self::from_owner(pointer, DLDevice::CPU, DLDataType::F32, shape, Box::new(data))
        })
    }

    /// A compact, row-major tensor over memory that `owner` keeps alive.
    ///
    /// # Safety
    /// `data` points at the product of `shape` elements of `dtype` on `device`, which stay valid and
    /// unchanged until `owner` is dropped.
    pub unsafe fn from_owner(
        data: *mut c_void,
        device: DLDevice,
        dtype: DLDataType,
        shape: &[usize],
        owner: Box<dyn Any + Send + Sync>,
    ) -> Self {
        let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        // SAFETY: the caller's promise.
        Self(unsafe { counted::Tensor::over(data, device, dtype, &shape, None, owner) })
    }

    /// As [`Self::from_owner`], for memory that may lie elsewhere: `copier` makes the same tensor on another
    /// device, and is asked at most once for each.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn from_owner_with(
        data: *mut c_void,
        device: DLDevice,
        dtype: DLDataType,
        shape: &[usize],
        owner: Box<dyn Any + Send + Sync>,
        copier: impl Fn(DLDevice) -> Option<Tensor> + Send + Sync + 'static,
    ) -> Self {
        let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let copier = Box::new(move |device| Some(copier(device)?.0));
        // SAFETY: the caller's promise.
        Self(unsafe {
            counted::Tensor::over_with(data, device, dtype, &shape, None, owner, Some(copier))
        })
    }

    /// Where it lies.
    pub fn device(&self) -> DLDevice {
        self.0.view().device()
    }

    /// The memory's owner, when this library made the tensor and its owner is a `T`.
    pub fn owner<T: Any>(&self) -> Option<&T> {
        self.0.owner()
    }

    /// Whether both are references to one tensor.
    pub fn is_same(&self, other: &Tensor) -> bool {
        self.0.value().is_same(other.0.value())
    }

    /// DLPack's view of the tensor.
    pub fn dl(&self) -> &DLTensor {
        self.0.view().dl()
    }

    pub fn shape(&self) -> Vec<usize> {
        self.0.view().shape().iter().map(|&n| usize::try_from(n).unwrap_or(0)).collect()
    }

    /// The values of an f32 tensor in row-major order, without a copy where it is compact and on the CPU. One
    /// that lies elsewhere is copied once, by its own library.
    ///
    /// # Errors
    /// Another element type, no view on the CPU, or no memory for a compact copy.
    pub fn to_f32(&self) -> Result<Cow<'_, [f32]>> {
        Ok(self.0.view().as_f32()?)
    }

    /// As [`Tensor::to_f32`], always a copy.
    ///
    /// # Errors
    /// As there, and when there is not the memory for it.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        Ok(self.0.view().copy_f32()?)
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor{:?}", self.shape())
    }
}
