//! Tensors: the host's own, and its view of everybody's.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::c_void;

use kosmograph_abi as abi;
use kosmograph_abi::{DLDataType, DLDevice, DLManagedTensorVersioned, DLPackVersion, DLTensor};

use super::allocated::{self, Header, allocate};

/// DLPack asks for it, and wide vector loads like it.
const ALIGNMENT: usize = 256;

/// How many bytes a compact tensor of `shape` has, if that is a number that can be.
pub(super) fn bytes_of(shape: &[i64], dtype: DLDataType) -> Option<usize> {
    let count =
        shape.iter().try_fold(1usize, |count, &n| count.checked_mul(usize::try_from(n).ok()?))?;
    let bytes_each = usize::from(dtype.bits).div_ceil(8) * usize::from(dtype.lanes);
    count.checked_mul(bytes_each).filter(|&bytes| bytes <= isize::MAX as usize - ALIGNMENT)
}

/// In elements, row-major. An empty tensor has some too; nobody walks along them.
pub(super) fn compact_strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1i64; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis].max(1));
    }
    strides
}

/// Zeroed memory that outlives the vectors it was filled from.
struct Memory {
    data: *mut u8,
    layout: Layout,
}

// SAFETY: plain memory; whoever writes does so before it is shared (node.h).
unsafe impl Send for Memory {}
// SAFETY: as for Send.
unsafe impl Sync for Memory {}

impl Memory {
    fn zeroed(bytes: usize) -> Option<Self> {
        // An allocation of no bytes would be undefined behaviour.
        let layout = Layout::from_size_align(bytes.max(1), ALIGNMENT).ok()?;
        // SAFETY: the layout has a size.
        let data = unsafe { alloc_zeroed(layout) };
        (!data.is_null()).then_some(Self { data, layout })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `zeroed`.
        unsafe { dealloc(self.data, self.layout) }
    }
}

/// What the header points at, boxed so that the pointers stay true.
pub(super) struct TensorOwner {
    managed: DLManagedTensorVersioned,
    shape: Box<[i64]>,
    strides: Box<[i64]>,
    _memory: Memory,
}

// SAFETY: the raw pointers lead into `shape`, `strides` and `_memory`, all Send + Sync.
unsafe impl Send for TensorOwner {}
// SAFETY: as for Send.
unsafe impl Sync for TensorOwner {}

// SAFETY: repr(C), and begins with `base: Counted`.
unsafe impl Header for abi::Tensor {
    type Owner = Box<TensorOwner>;
}

/// A zeroed tensor on the CPU with one reference; `None` where there is no memory or the shape
/// cannot be. `strides` (in elements, not negative) are the compact ones where not given.
pub(super) fn new_tensor(
    dtype: DLDataType,
    shape: &[i64],
    strides: Option<&[i64]>,
) -> Option<*mut abi::Tensor> {
    let compact = bytes_of(shape, dtype)?;
    let bytes = match strides {
        None => compact,
        Some(strides) => {
            let mut last = 0i64;
            for (&n, &stride) in shape.iter().zip(strides) {
                last = last.checked_add((n - 1).max(0).checked_mul(stride)?)?;
            }
            bytes_of(&[last.checked_add(1)?], dtype)?
        }
    };
    let memory = Memory::zeroed(bytes)?;
    let strides = strides.map_or_else(|| compact_strides(shape), <[i64]>::to_vec);
    let mut owner = Box::new(TensorOwner {
        managed: DLManagedTensorVersioned {
            version: DLPackVersion::CURRENT,
            manager_ctx: std::ptr::null_mut(),
            deleter: None,
            // Everything reachable through a value is immutable once handed over.
            flags: abi::DLPACK_FLAG_BITMASK_READ_ONLY,
            dl_tensor: DLTensor {
                data: memory.data.cast(),
                device: DLDevice::CPU,
                ndim: shape.len() as i32,
                dtype,
                shape: std::ptr::null_mut(),
                strides: std::ptr::null_mut(),
                byte_offset: 0,
            },
        },
        shape: shape.into(),
        strides: strides.into(),
        _memory: memory,
    });
    owner.managed.dl_tensor.shape = owner.shape.as_mut_ptr();
    owner.managed.dl_tensor.strides = owner.strides.as_mut_ptr();
    let base = allocated::base::<abi::Tensor>();
    Some(allocate(abi::Tensor { base, dl: &raw const owner.managed, to_dlpack }, owner))
}

/// `kg_tensor.to_dlpack` of the tensors made here.
unsafe extern "C" fn to_dlpack(tensor: *mut abi::Tensor) -> *mut DLManagedTensorVersioned {
    if tensor.is_null() {
        return std::ptr::null_mut();
    }
    // SAFETY: called with a live tensor (node.h). The copy of the view holds a reference to it, which
    // its deleter gives back.
    unsafe {
        ((*tensor).base.retain)(tensor.cast());
        let view = &*(*tensor).dl;
        Box::into_raw(Box::new(DLManagedTensorVersioned {
            version: view.version,
            manager_ctx: tensor.cast::<c_void>(),
            deleter: Some(delete_dlpack),
            flags: view.flags,
            dl_tensor: DLTensor { ..view.dl_tensor },
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

/// The view of a tensor that [`check`](super::check) has looked at, whoever made it.
#[derive(Clone, Copy)]
pub struct TensorView<'a>(&'a DLTensor);

impl<'a> TensorView<'a> {
    /// `dl` was checked.
    pub(super) fn new(dl: &'a DLTensor) -> Self {
        Self(dl)
    }

    /// Lengths of the axes.
    pub fn shape(&self) -> &'a [i64] {
        match self.0.ndim {
            ..=0 => &[],
            // SAFETY: checked: `ndim` numbers, alive with the tensor.
            ndim => unsafe { std::slice::from_raw_parts(self.0.shape, ndim as usize) },
        }
    }

    /// Steps from one element to the next along each axis, in elements.
    pub fn strides(&self) -> Vec<i64> {
        if self.0.strides.is_null() {
            return compact_strides(self.shape());
        }
        // SAFETY: DLPack: as many as axes.
        unsafe { std::slice::from_raw_parts(self.0.strides, self.shape().len()) }.to_vec()
    }

    pub fn dtype(&self) -> DLDataType {
        self.0.dtype
    }

    pub fn device(&self) -> DLDevice {
        self.0.device
    }

    /// Bytes of the elements, without what may lie between them.
    pub fn bytes(&self) -> usize {
        bytes_of(self.shape(), self.0.dtype).unwrap_or(0)
    }

    /// The bytes of each element in row-major order; `None` when they are not in the host's memory, or there is none
    /// for a copy: with strides of 0 a few bytes are a tensor of any size.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        if self.0.device.device_type != abi::kDLCPU {
            return None;
        }
        let (shape, strides) = (self.shape(), self.strides());
        let bytes_each = usize::from(self.0.dtype.bits).div_ceil(8);
        let count = self.bytes() / bytes_each.max(1);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(self.bytes()).ok()?;
        let mut index = vec![0i64; shape.len()];
        // wrapping: an offset that lies outside is the allocator's lie and not computed into a panic.
        let base = self.0.data.cast::<u8>().wrapping_add(self.0.byte_offset as usize);
        for _ in 0..count {
            let offset: i64 = index.iter().zip(&strides).map(|(i, stride)| i * stride).sum();
            let element = base.wrapping_offset(offset as isize * bytes_each as isize);
            // SAFETY: DLPack: every index inside of `shape` addresses an element.
            bytes.extend(unsafe { std::slice::from_raw_parts(element, bytes_each) });
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Some(bytes)
    }

    /// The values in row-major order; `None` when they are not f32, and as for [`Self::to_bytes`].
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        if self.0.dtype != DLDataType::F32 {
            return None;
        }
        let bytes = self.to_bytes()?;
        let mut values = Vec::new();
        values.try_reserve_exact(bytes.len() / 4).ok()?;
        values.extend(bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])));
        Some(values)
    }
}
