//! Tensors: those made here, and the view of everybody's.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::borrow::Cow;
use std::ffi::c_void;

use kosmograph_abi as abi;
use kosmograph_abi::{DLDataType, DLDevice, DLManagedTensorVersioned, DLPackVersion, DLTensor};
use kosmograph_memory::{Shortage, room};

use crate::Value;
use crate::check::checked_view;
use crate::counted::{self, Header, allocate};
use crate::place::{Copier, Kept};

/// DLPack asks for it, and wide vector loads like it.
const ALIGNMENT: usize = 256;

/// How many bytes a compact tensor of `shape` has, if that is a number that can be.
pub(crate) fn bytes_of(shape: &[i64], dtype: DLDataType) -> Option<usize> {
    let count =
        shape.iter().try_fold(1usize, |count, &n| count.checked_mul(usize::try_from(n).ok()?))?;
    let bytes_each = usize::from(dtype.bits).div_ceil(8) * usize::from(dtype.lanes);
    count.checked_mul(bytes_each).filter(|&bytes| bytes <= isize::MAX as usize - ALIGNMENT)
}

/// In elements, row-major. An empty tensor has some too; nobody walks along them.
pub(crate) fn compact_strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1i64; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis].max(1));
    }
    strides
}

/// Where each element lies, in row-major order, in elements from the first. `shape` and `strides` are
/// equally long.
pub(crate) fn offsets(shape: &[i64], strides: &[i64]) -> impl Iterator<Item = i64> {
    let is_empty = shape.iter().any(|&n| n <= 0);
    // A number that can be, of a shape that was looked at.
    let mut rest: i64 = if is_empty { 0 } else { shape.iter().product() };
    let mut index = vec![0i64; shape.len()];
    let mut offset = 0i64;
    std::iter::from_fn(move || {
        if rest <= 0 {
            return None;
        }
        rest -= 1;
        let here = offset;
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            // wrapping: behind the last element of an axis there may be no number for the place, and it
            // is taken back at once.
            offset = offset.wrapping_add(strides[axis]);
            if index[axis] < shape[axis] {
                break;
            }
            offset = offset.wrapping_sub(index[axis].wrapping_mul(strides[axis]));
            index[axis] = 0;
        }
        Some(here)
    })
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
pub(crate) struct TensorOwner {
    managed: DLManagedTensorVersioned,
    shape: Box<[i64]>,
    strides: Box<[i64]>,
    memory: Box<dyn Any + Send + Sync>,
    /// The same on other devices.
    elsewhere: Kept,
}

// SAFETY: the raw pointers lead into `shape`, `strides` and `memory`, all Send + Sync and immutable.
unsafe impl Send for TensorOwner {}
// SAFETY: as for Send.
unsafe impl Sync for TensorOwner {}

// SAFETY: repr(C), begins with `base: Counted`, and only tensors have this kind.
unsafe impl Header for abi::Tensor {
    const KIND: abi::Kind = abi::TENSOR;
    type Owner = Box<TensorOwner>;
}

/// A value of kind TENSOR, whoever made it.
#[derive(Clone)]
pub struct Tensor(Value);

impl TryFrom<Value> for Tensor {
    type Error = Value;

    /// A value of any other kind comes back.
    fn try_from(value: Value) -> Result<Self, Value> {
        if value.kind() == abi::TENSOR { Ok(Self(value)) } else { Err(value) }
    }
}

/// Making tensors.
impl Tensor {
    /// A tensor over memory that `owner` keeps alive, to be had where it lies alone: [`Self::over_with`]
    /// without copies.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn over(
        data: *mut c_void,
        device: DLDevice,
        dtype: DLDataType,
        shape: &[i64],
        strides: Option<&[i64]>,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::over_with(data, device, dtype, shape, strides, owner, None) }
    }

    /// A tensor over memory that `owner` keeps alive. `strides`, in elements, are the compact, row-major
    /// ones where not given. `copier` makes the same tensor on another device; it is asked once for each.
    ///
    /// # Safety
    /// Every index inside of `shape` addresses, from `data` along the strides, an element of `dtype` on
    /// `device`, which stays valid and unchanged until `owner` is dropped. `shape` and `strides` are
    /// equally long.
    pub unsafe fn over_with(
        data: *mut c_void,
        device: DLDevice,
        dtype: DLDataType,
        shape: &[i64],
        strides: Option<&[i64]>,
        owner: Box<dyn Any + Send + Sync>,
        copier: Option<Copier>,
    ) -> Self {
        let strides = strides.map_or_else(|| compact_strides(shape), <[i64]>::to_vec);
        let mut owner = Box::new(TensorOwner {
            managed: DLManagedTensorVersioned {
                version: DLPackVersion::CURRENT,
                manager_ctx: std::ptr::null_mut(),
                deleter: None,
                // Everything reachable through a value is immutable once handed over.
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
            shape: shape.into(),
            strides: strides.into(),
            memory: owner,
            elsewhere: Kept::new(copier),
        });
        owner.managed.dl_tensor.shape = owner.shape.as_mut_ptr();
        owner.managed.dl_tensor.strides = owner.strides.as_mut_ptr();
        let base = counted::base::<abi::Tensor>();
        let header =
            abi::Tensor { base, dl: &raw const owner.managed, to_dlpack, view: Some(view) };
        let tensor = allocate(header, owner);
        Self(Value::new(abi::TENSOR, abi::Payload { tensor }))
    }

    /// A zeroed tensor on the CPU; `None` where there is no memory or the shape cannot be. `strides` (in
    /// elements, not negative) are the compact ones where not given. The memory may be written to until
    /// the tensor is shared.
    pub(crate) fn zeroed(
        dtype: DLDataType,
        shape: &[i64],
        strides: Option<&[i64]>,
    ) -> Option<(Self, *mut u8)> {
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
        let data = memory.data;
        // SAFETY: as many bytes as the last element is far, which the memory keeps where they are.
        let tensor = unsafe {
            Self::over(data.cast(), DLDevice::CPU, dtype, shape, strides, Box::new(memory))
        };
        Some((tensor, data))
    }
}

/// Reading tensors.
impl Tensor {
    pub fn value(&self) -> &Value {
        &self.0
    }

    pub fn into_value(self) -> Value {
        self.0
    }

    pub fn view(&self) -> TensorView<'_> {
        // SAFETY: by kind; checked or made here, and alive with `self`.
        unsafe { TensorView::of(self.0.as_raw().payload.tensor) }
    }

    /// What keeps its memory, where this copy of the crate made the tensor and that is a `T`.
    pub fn owner<T: Any>(&self) -> Option<&T> {
        // SAFETY: by kind; alive with `self`.
        let owner = unsafe { counted::owner(self.0.as_raw().payload.tensor.cast_const()) }?;
        owner.memory.downcast_ref()
    }
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

/// `kg_tensor.view` of the tensors made here.
unsafe extern "C" fn view(
    tensor: *mut abi::Tensor,
    device_type: i32,
    device_id: i32,
) -> *const DLTensor {
    let device = DLDevice { device_type, device_id };
    // SAFETY: called with a live tensor (node.h), which was made here.
    let (own, owner) = unsafe {
        let Some(tensor) = tensor.as_ref() else { return std::ptr::null() };
        (&(*tensor.dl).dl_tensor, counted::owner(tensor))
    };
    match own.device.is_same(device) {
        true => own,
        false => owner.map_or(std::ptr::null(), |owner| owner.elsewhere.on(device)),
    }
}

/// Why the numbers of a tensor cannot be had, as a sentence.
#[derive(Debug)]
pub enum Unreadable {
    /// They are of another type than f32.
    Type(DLDataType),
    /// They lie on this device, and are not to be had in the CPU's memory.
    Device(DLDevice),
    /// What the tensor's library gives as its view on the CPU breaks node.h: the end of a sentence.
    View(String),
    /// They lie at an address where none can.
    Address,
    /// There is no memory for a copy.
    Memory(Shortage),
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Type(dtype) => write!(
                f,
                "the tensor's element type is DLPack code {} with {} bits, but f32 is wanted",
                dtype.code, dtype.bits
            ),
            Self::Device(device) => write!(
                f,
                "the tensor lies on DLPack's device type {}, and its library gives no view of it in the CPU's memory",
                device.device_type
            ),
            Self::View(what) => write!(
                f,
                "the tensor's view in the CPU's memory {what}; its library breaks the boundary's rules"
            ),
            Self::Address => f.write_str("the tensor's data is NULL or not aligned to four bytes"),
            Self::Memory(shortage) => shortage.fmt(f),
        }
    }
}

impl std::error::Error for Unreadable {}

impl From<Shortage> for Unreadable {
    fn from(shortage: Shortage) -> Self {
        Self::Memory(shortage)
    }
}

/// The view of a tensor that was [checked](crate::check), whoever made it.
#[derive(Clone, Copy)]
pub struct TensorView<'a>(&'a DLTensor, *mut abi::Tensor);

impl<'a> TensorView<'a> {
    /// # Safety
    /// `tensor` was checked, and is alive for `'a`.
    pub(crate) unsafe fn of(tensor: *mut abi::Tensor) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { &(*(*tensor).dl).dl_tensor }, tensor)
    }

    /// The same tensor on `device`: itself where it lies there, else its library's copy.
    ///
    /// # Errors
    /// Its library gives none, or one that breaks node.h.
    pub fn on(&self, device: DLDevice) -> Result<Self, Unreadable> {
        if self.0.device.is_same(device) {
            return Ok(*self);
        }
        // SAFETY: checked, alive with `'a`; the field is read where the size covers it.
        let view = unsafe {
            let has_view = (*self.1).base.size as usize >= size_of::<abi::Tensor>();
            has_view.then(|| (*self.1).view).flatten()
        };
        let missing = Unreadable::Device(self.0.device);
        let Some(view) = view else { return Err(missing) };
        // SAFETY: as above; node.h: NULL, or a view that lives as long as the tensor.
        let found = unsafe { view(self.1, device.device_type, device.device_id) };
        if found.is_null() {
            return Err(missing);
        }
        // SAFETY: node.h, and looked at before it is believed.
        let found = unsafe { checked_view(found) }.map_err(Unreadable::View)?;
        let found = Self(found, self.1);
        match found.0.device.is_same(device)
            && found.shape() == self.shape()
            && found.0.dtype == self.0.dtype
        {
            true => Ok(found),
            false => Err(Unreadable::View(format!(
                "has the shape {:?} on device type {}, where {:?} on type {} was asked for",
                found.shape(),
                found.0.device.device_type,
                self.shape(),
                device.device_type
            ))),
        }
    }

    /// DLPack's own.
    pub fn dl(&self) -> &'a DLTensor {
        self.0
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
        if self.0.strides.is_null() || self.0.ndim <= 0 {
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

    /// How long the axes are, for sums of memory.
    fn lengths(&self) -> Vec<usize> {
        self.shape().iter().map(|&n| usize::try_from(n).unwrap_or(0)).collect()
    }

    fn on_cpu(&self) -> Result<Self, Unreadable> {
        self.on(DLDevice::CPU)
    }

    /// Where the first element lies.
    fn first(&self) -> *const u8 {
        // wrapping: an offset that lies outside is the allocator's lie and not computed into a panic.
        self.0.data.cast::<u8>().wrapping_add(self.0.byte_offset as usize)
    }

    /// The values in row-major order, without a copy where they follow each other. A tensor that lies on
    /// another device is asked for its view in the CPU's memory.
    ///
    /// # Errors
    /// They are not f32, or not to be had on the CPU, or there is no memory for a compact copy: with strides of 0 a
    /// few bytes are a tensor of any size.
    pub fn as_f32(&self) -> Result<Cow<'a, [f32]>, Unreadable> {
        if self.0.dtype != DLDataType::F32 {
            return Err(Unreadable::Type(self.0.dtype));
        }
        let here = self.on_cpu()?;
        let shape = here.shape();
        // Checked: the number of bytes is one that can be.
        let count = here.bytes() / size_of::<f32>();
        if count == 0 {
            return Ok(Cow::Borrowed(&[]));
        }
        let first = here.first().cast::<f32>();
        if first.is_null() || !first.is_aligned() {
            return Err(Unreadable::Address);
        }
        let (strides, compact) = (here.strides(), compact_strides(shape));
        let is_compact =
            shape.iter().zip(&strides).zip(&compact).all(|((&n, s), c)| n == 1 || s == c);
        if is_compact {
            // SAFETY: compact, so `count` values follow each other; immutable and alive with the tensor.
            return Ok(Cow::Borrowed(unsafe { std::slice::from_raw_parts(first, count) }));
        }
        let mut values = room("a compact copy of the tensor", &self.lengths())?;
        for offset in offsets(shape, &strides) {
            // SAFETY: DLPack: every index inside of `shape` addresses an element.
            values.push(unsafe { *first.wrapping_offset(offset as isize) });
        }
        Ok(Cow::Owned(values))
    }

    /// As [`Self::as_f32`], always a copy.
    ///
    /// # Errors
    /// As there, and when there is not the memory for it.
    pub fn copy_f32(&self) -> Result<Vec<f32>, Unreadable> {
        match self.as_f32()? {
            Cow::Owned(values) => Ok(values),
            Cow::Borrowed(values) => {
                let mut copy = room("a copy of the tensor", &[values.len()])?;
                copy.extend_from_slice(values);
                Ok(copy)
            }
        }
    }

    /// The values in row-major order; `None` where [`Self::copy_f32`] says why not.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        self.copy_f32().ok()
    }

    /// The bytes of each element in row-major order; `None` when they are not to be had in the memory of the
    /// CPU, or there is none for a copy.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        let here = self.on_cpu().ok()?;
        let bytes_each = usize::from(self.0.dtype.bits).div_ceil(8);
        let mut bytes: Vec<u8> = room("a copy of the tensor", &[self.bytes()]).ok()?;
        if self.bytes() == 0 {
            return Some(bytes);
        }
        let first = here.first();
        for offset in offsets(here.shape(), &here.strides()) {
            let element = first.wrapping_offset(offset as isize * bytes_each as isize);
            // SAFETY: DLPack: every index inside of `shape` addresses an element.
            bytes.extend(unsafe { std::slice::from_raw_parts(element, bytes_each) });
        }
        Some(bytes)
    }
}
