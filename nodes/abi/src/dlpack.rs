//! DLPack 1's layout, as `dlpack.h` beside this crate declares it.
#![allow(non_upper_case_globals)] // DLPack's own names

use core::ffi::c_void;

pub const DLPACK_MAJOR_VERSION: u32 = 1;
pub const DLPACK_MINOR_VERSION: u32 = 0;

/// `DLDeviceType`.
pub const kDLCPU: i32 = 1;
pub const kDLCUDA: i32 = 2;
/// A device that DLPack knows nothing of: tests play one.
pub const kDLExtDev: i32 = 12;

/// `DLDataTypeCode`.
pub const kDLInt: u8 = 0;
pub const kDLUInt: u8 = 1;
pub const kDLFloat: u8 = 2;
pub const kDLBfloat: u8 = 4;
pub const kDLBool: u8 = 6;

/// The memory behind the tensor must not be written to.
pub const DLPACK_FLAG_BITMASK_READ_ONLY: u64 = 1;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DLPackVersion {
    pub major: u32,
    pub minor: u32,
}

impl DLPackVersion {
    /// The version whose layout this module declares.
    pub const CURRENT: Self = Self { major: DLPACK_MAJOR_VERSION, minor: DLPACK_MINOR_VERSION };
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DLDevice {
    pub device_type: i32,
    pub device_id: i32,
}

impl DLDevice {
    pub const CPU: Self = Self { device_type: kDLCPU, device_id: 0 };

    /// Whether both are one memory: of the CPU there is one, whatever the number.
    pub const fn is_same(self, other: Self) -> bool {
        self.device_type == other.device_type
            && (self.device_type == kDLCPU || self.device_id == other.device_id)
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DLDataType {
    pub code: u8,
    pub bits: u8,
    pub lanes: u16,
}

impl DLDataType {
    pub const F32: Self = Self { code: kDLFloat, bits: 32, lanes: 1 };
}

#[repr(C)]
#[derive(Debug)]
pub struct DLTensor {
    pub data: *mut c_void,
    pub device: DLDevice,
    pub ndim: i32,
    pub dtype: DLDataType,
    pub shape: *mut i64,
    pub strides: *mut i64,
    pub byte_offset: u64,
}

#[repr(C)]
#[derive(Debug)]
pub struct DLManagedTensorVersioned {
    pub version: DLPackVersion,
    pub manager_ctx: *mut c_void,
    pub deleter: Option<unsafe extern "C" fn(*mut DLManagedTensorVersioned)>,
    pub flags: u64,
    pub dl_tensor: DLTensor,
}

const _: () = assert!(core::mem::size_of::<DLTensor>() == 48);
const _: () = assert!(core::mem::offset_of!(DLTensor, byte_offset) == 40);
const _: () = assert!(core::mem::size_of::<DLManagedTensorVersioned>() == 80);
const _: () = assert!(core::mem::offset_of!(DLManagedTensorVersioned, dl_tensor) == 32);
