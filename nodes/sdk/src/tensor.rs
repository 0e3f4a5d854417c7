//! [`Tensor`]: a DLPack tensor that crossed, or is about to cross, the boundary.

use std::any::Any;
use std::ffi::c_void;

use kosmograph_abi as abi;
use kosmograph_abi::{DLDataType, DLDevice, DLManagedTensorVersioned, DLPackVersion, DLTensor};

use crate::counted::Allocated;
use crate::{Error, Result, Value};

/// A reference to an immutable tensor, whoever allocated it.
#[derive(Clone)]
pub struct Tensor(Value);

impl Tensor {
    /// `value` is of kind TENSOR.
    pub(crate) fn from_value(value: Value) -> Self {
        debug_assert_eq!(value.kind(), abi::TENSOR);
        Self(value)
    }

    pub fn into_value(self) -> Value {
        self.0
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
        let shape: Box<[i64]> = shape.iter().map(|&n| n as i64).collect();
        let strides = compact_strides(&shape);
        let mut owner = Box::new(TensorOwner {
            managed: DLManagedTensorVersioned {
                version: DLPackVersion::CURRENT,
                manager_ctx: std::ptr::null_mut(),
                deleter: None,
                flags: abi::DLPACK_FLAG_BITMASK_READ_ONLY,
                dl_tensor: DLTensor {
                    data,
                    device,
                    ndim: shape.len() as i32,
                    dtype,
                    shape: std::ptr::null_mut(),
                    strides: std::ptr::null_mut(),
                    byte_offset: 0,
                },
            },
            shape,
            strides,
            memory: owner,
        });
        owner.managed.dl_tensor.shape = owner.shape.as_mut_ptr();
        owner.managed.dl_tensor.strides = owner.strides.as_mut_ptr();
        let header = abi::Tensor {
            base: Allocated::<abi::Tensor>::base(),
            dl: &raw const owner.managed,
            to_dlpack,
        };
        let tensor = Allocated::allocate(header, owner);
        let raw = abi::Value { kind: abi::TENSOR, reserved: 0, payload: abi::Payload { tensor } };
        // SAFETY: a fresh value that obeys node.h, with its one reference.
        Self(unsafe { Value::from_raw(raw) })
    }

    /// The memory's owner, when this library made the tensor and its owner is a `T`.
    pub fn owner<T: Any>(&self) -> Option<&T> {
        // SAFETY: `self` keeps the tensor alive.
        let allocated = unsafe { Allocated::recognise(self.raw()) }?;
        allocated.owner.downcast_ref::<TensorOwner>()?.memory.downcast_ref()
    }

    /// Whether both are references to one tensor.
    pub fn is_same(&self, other: &Tensor) -> bool {
        std::ptr::eq(self.raw(), other.raw())
    }

    fn raw(&self) -> *const abi::Tensor {
        // SAFETY: the kind is TENSOR since `from_value`.
        unsafe { self.0.as_raw().payload.tensor }
    }

    /// DLPack's view of the tensor.
    pub fn dl(&self) -> &DLTensor {
        // SAFETY: `self` keeps the tensor and so its view alive.
        unsafe { &(*(*self.raw()).dl).dl_tensor }
    }

    pub fn shape(&self) -> Vec<usize> {
        self.dims().iter().map(|&n| usize::try_from(n).unwrap_or(0)).collect()
    }

    fn dims(&self) -> &[i64] {
        let dl = self.dl();
        if dl.ndim <= 0 || dl.shape.is_null() {
            return &[];
        }
        // SAFETY: DLPack: `shape` points at `ndim` numbers, alive with the tensor.
        unsafe { std::slice::from_raw_parts(dl.shape, dl.ndim as usize) }
    }

    /// The values of an f32 tensor on the CPU, in row-major order, without a copy where it is compact.
    ///
    /// # Errors
    /// Another element type, another device, or a shape that cannot be.
    pub fn to_f32(&self) -> Result<std::borrow::Cow<'_, [f32]>> {
        let dl = self.dl();
        if dl.dtype != DLDataType::F32 {
            fail_dtype(dl.dtype)?;
        }
        if dl.device.device_type != abi::kDLCPU {
            return Err(Error::new(format!(
                "the tensor is on DLPack device type {}, but this node works on the CPU",
                dl.device.device_type
            )));
        }
        let shape = self.dims();
        let count = checked_count(shape)?;
        if count == 0 {
            return Ok(Vec::new().into());
        }
        // SAFETY: DLPack: the data begins `byte_offset` behind `data`.
        let base = unsafe { dl.data.cast::<u8>().add(dl.byte_offset as usize) }.cast::<f32>();
        if base.is_null() || !base.is_aligned() {
            return Err(Error::new("the tensor's data is NULL or not aligned to four bytes"));
        }
        let compact = compact_strides(shape);
        let strides = if dl.strides.is_null() {
            &compact[..]
        } else {
            // SAFETY: DLPack: `strides` points at `ndim` numbers.
            unsafe { std::slice::from_raw_parts(dl.strides, shape.len()) }
        };
        let is_compact =
            shape.iter().zip(strides).zip(&compact).all(|((&n, s), c)| n == 1 || s == c);
        if is_compact {
            // SAFETY: compact, so `count` values follow each other; immutable and alive with `self`.
            return Ok(unsafe { std::slice::from_raw_parts(base, count) }.into());
        }
        // A stride of 0 shows one number any number of times: the copy may be larger than what is there.
        let mut values = kosmograph_memory::room("a compact copy of the tensor", &self.shape())?;
        let mut index = vec![0i64; shape.len()];
        for _ in 0..count {
            let offset: i64 = index.iter().zip(strides).map(|(i, s)| i * s).sum();
            // SAFETY: DLPack: every index inside `shape` addresses an element.
            values.push(unsafe { *base.offset(offset as isize) });
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Ok(values.into())
    }
}

impl Tensor {
    /// As [`Tensor::to_f32`], always a copy.
    ///
    /// # Errors
    /// As there, and when there is not the memory for it.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        match self.to_f32()? {
            std::borrow::Cow::Owned(values) => Ok(values),
            std::borrow::Cow::Borrowed(values) => {
                let mut copy = kosmograph_memory::room("a copy of the tensor", &[values.len()])?;
                copy.extend_from_slice(values);
                Ok(copy)
            }
        }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor{:?}", self.shape())
    }
}

fn fail_dtype(dtype: DLDataType) -> Result<()> {
    Err(Error::new(format!(
        "the tensor's element type is DLPack code {} with {} bits, but f32 is wanted",
        dtype.code, dtype.bits
    )))
}

/// How many elements `shape` has, if that is a number that can be.
fn checked_count(shape: &[i64]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1usize, |count, &n| count.checked_mul(usize::try_from(n).ok()?))
        .filter(|count| count.checked_mul(4).is_some_and(|bytes| bytes <= isize::MAX as usize))
        .ok_or_else(|| Error::new(format!("the tensor's shape {shape:?} cannot be")))
}

fn compact_strides(shape: &[i64]) -> Box<[i64]> {
    let mut strides = vec![1i64; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis].max(1));
    }
    strides.into()
}

/// What a tensor's header points at; boxed, so that the pointers stay true.
struct TensorOwner {
    managed: DLManagedTensorVersioned,
    shape: Box<[i64]>,
    strides: Box<[i64]>,
    memory: Box<dyn Any + Send + Sync>,
}

// SAFETY: the raw pointers lead into `shape`, `strides` and `memory`, all Send + Sync and immutable.
unsafe impl Send for TensorOwner {}
// SAFETY: as above.
unsafe impl Sync for TensorOwner {}

/// `kg_tensor.to_dlpack` of the tensors made here.
unsafe extern "C" fn to_dlpack(tensor: *mut abi::Tensor) -> *mut DLManagedTensorVersioned {
    // SAFETY: called with a live tensor (node.h); the copy of the view below holds a reference to it,
    // which its deleter gives back.
    unsafe {
        ((*tensor).base.retain)(tensor.cast());
        let view = &*(*tensor).dl;
        let dl = &view.dl_tensor;
        Box::into_raw(Box::new(DLManagedTensorVersioned {
            version: view.version,
            manager_ctx: tensor.cast(),
            deleter: Some(delete_dlpack),
            flags: view.flags,
            dl_tensor: DLTensor { ..*dl },
        }))
    }
}

unsafe extern "C" fn delete_dlpack(managed: *mut DLManagedTensorVersioned) {
    if managed.is_null() {
        return;
    }
    // SAFETY: made by `to_dlpack`, deleted once (DLPack).
    unsafe {
        let managed = Box::from_raw(managed);
        let tensor = managed.manager_ctx.cast::<abi::Tensor>();
        ((*tensor).base.release)(tensor.cast());
    }
}
