//! The glue between the boundary's DLPack tensors and candle's.
//!
//! candle has no DLPack of its own. What crosses the boundary is f32 and lies where the library made it: export costs
//! no copy, the candle tensor becomes the owner of the memory that the DLPack view points at. Whoever wants it on
//! another device asks for its view there, and it is copied once. Import recognises what was exported here and gives
//! the same candle tensor back, also on a GPU; a tensor from another library is copied, through the CPU's memory.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, DType, Device, DeviceLocation, Storage, Tensor};
use node::abi::{self, DLDataType, DLDevice};
use node::{Error, Result};

/// What owns the memory of an exported tensor.
struct Exported {
    /// Contiguous: where the boundary sees it.
    own: Tensor,
    /// The same on other devices, as they were asked for.
    copies: Mutex<Vec<Tensor>>,
}

impl Exported {
    /// The tensor on `device`, copied at most once.
    fn on(&self, device: &Device) -> Result<Tensor> {
        if self.own.device().same_device(device) {
            return Ok(self.own.clone());
        }
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = copies.iter().find(|copy| copy.device().same_device(device)) {
            return Ok(found.clone());
        }
        let copy = self.own.to_device(device)?;
        copies.push(copy.clone());
        Ok(copy)
    }
}

/// A candle tensor as one that may cross the boundary, without a copy where it is contiguous. On a GPU this waits
/// until the GPU has computed it.
///
/// # Errors
/// When the element type is not f32, or the GPU reports an error.
pub fn export(tensor: &Tensor) -> Result<node::Tensor> {
    if tensor.dtype() != DType::F32 {
        return Err(Error::new(format!(
            "tensors cross the boundary as f32, but this one is {:?}",
            tensor.dtype()
        )));
    }
    let mut own = tensor.contiguous()?;
    if !matches!(own.device().location(), DeviceLocation::Cpu | DeviceLocation::Cuda { .. }) {
        own = own.to_device(&Device::Cpu)?;
    }
    let (data, device) = address(&own)?;
    let shape = own.dims().to_vec();
    let owner = Arc::new(Exported { own, copies: Mutex::default() });
    let original = Arc::clone(&owner);
    let copier = move |wanted: DLDevice| export(&original.on(&device_of(wanted)?).ok()?).ok();
    // SAFETY: the tensor is contiguous, so its elements follow each other from `data` on. It moves into the
    // exported tensor and shares its storage by reference count, so the buffer stays where it is; nothing
    // here writes to a tensor in place once it was made (candle does so for variables only, and none is
    // exported).
    Ok(unsafe {
        let owner = Box::new(owner);
        node::Tensor::from_owner_with(data, device, DLDataType::F32, &shape, owner, copier)
    })
}

/// Where the elements of a contiguous f32 tensor begin, on which device.
fn address(tensor: &Tensor) -> Result<(*mut c_void, DLDevice)> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => {
            let data = values[layout.start_offset()..].as_ptr().cast_mut().cast();
            Ok((data, DLDevice::CPU))
        }
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => cuda_address(storage, tensor, layout.start_offset()),
        _ => Err(Error::new("a tensor lies where the boundary cannot show it")),
    }
}

#[cfg(feature = "cuda")]
fn cuda_address(
    storage: &candle_core::CudaStorage,
    tensor: &Tensor,
    start: usize,
) -> Result<(*mut c_void, DLDevice)> {
    use candle_core::cuda_backend::CudaStorageSlice;
    use candle_core::cuda_backend::cudarc::driver::DevicePtr;

    let DeviceLocation::Cuda { gpu_id } = tensor.device().location() else {
        return Err(Error::new("a tensor of CUDA's memory is on no GPU"));
    };
    let CudaStorageSlice::F32(slice) = &storage.slice else {
        return Err(Error::new("a tensor of f32 has no memory of f32"));
    };
    let stream = storage.device.cuda_stream();
    let address = slice.device_ptr(&stream).0 as usize + start * size_of::<f32>();
    // Whoever reads it has a stream of its own, and knows nothing of what is still under way on this one.
    stream.synchronize().map_err(|error| Error::new(format!("CUDA: {error}")))?;
    let device = DLDevice { device_type: abi::kDLCUDA, device_id: gpu_id as i32 };
    Ok((address as *mut c_void, device))
}

/// The device of DLPack's words; `None` where this library cannot reach it.
fn device_of(wanted: DLDevice) -> Option<Device> {
    match wanted.device_type {
        abi::kDLCPU => Some(Device::Cpu),
        abi::kDLCUDA => device(&format!("cuda:{}", wanted.device_id)).ok(),
        _ => None,
    }
}

/// A tensor from the boundary as a candle tensor on `device`: the very same where it was exported by this
/// library, a copy otherwise.
///
/// # Errors
/// When the element type is not f32, or its library gives no view of it on the CPU.
pub fn import(tensor: &node::Tensor, device: &Device) -> Result<Tensor> {
    if let Some(exported) = tensor.owner::<Arc<Exported>>() {
        return exported.on(device);
    }
    Ok(Tensor::from_vec(tensor.to_vec()?, tensor.shape(), device)?)
}

/// The device that the host asked for: "cpu", or "cuda:N". A GPU is opened once.
///
/// # Errors
/// A sentence when this library was not built for it, or there is no such device.
pub fn device(name: &str) -> Result<Device> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    match name.strip_prefix("cuda:").map(str::parse) {
        Some(Ok(number)) => cuda(name, number),
        _ => Err(Error::new(format!("the device \"{name}\" is unknown: cpu or cuda:N is wanted"))),
    }
}

#[cfg(feature = "cuda")]
fn cuda(name: &str, number: usize) -> Result<Device> {
    use std::collections::HashMap;
    use std::sync::{Mutex, PoisonError};

    // Tensors of two devices that were opened apart do not meet, even where both are the same GPU.
    static OPEN: Mutex<Option<HashMap<usize, Device>>> = Mutex::new(None);
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let open = open.get_or_insert_default();
    if let Some(device) = open.get(&number) {
        return Ok(device.clone());
    }
    // A stream of its own, so that what one thread asks for is in order with what another does.
    let device = Device::new_cuda_with_stream(number).map_err(|error| {
        Error::new(format!(
            "the device \"{name}\" was asked for, but CUDA cannot open it: {error}. nvidia-smi lists the GPUs \
             that there are; --device cpu runs without one"
        ))
    })?;
    open.insert(number, device.clone());
    Ok(device)
}

#[cfg(not(feature = "cuda"))]
fn cuda(name: &str, _: usize) -> Result<Device> {
    Err(Error::new(format!(
        "the device \"{name}\" was asked for, but this node library was built for the CPU alone. Run with --device \
         cpu, or build the node libraries for CUDA (docs/cuda.md): scripts/build-cuda"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exported_tensor_comes_back_as_itself() {
        let tensor = Tensor::arange(0f32, 24., &Device::Cpu).unwrap().reshape((2, 3, 4)).unwrap();
        let exported = export(&tensor).unwrap();
        assert_eq!(exported.shape(), [2, 3, 4]);
        let back = import(&exported, &Device::Cpu).unwrap();
        assert_eq!(back.id(), exported.owner::<Arc<Exported>>().unwrap().own.id());
    }

    #[test]
    fn a_view_is_exported_by_its_values() {
        let tensor = Tensor::arange(0f32, 24., &Device::Cpu).unwrap().reshape((2, 3, 4)).unwrap();
        let view = tensor.narrow(1, 1, 2).unwrap().transpose(0, 2).unwrap();
        let exported = export(&view).unwrap();
        let values: Vec<f32> = view.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(exported.to_f32().unwrap(), values);
        let offset = tensor.narrow(0, 1, 1).unwrap();
        assert_eq!(export(&offset).unwrap().to_f32().unwrap()[0], 12.0);
    }

    #[test]
    fn a_foreign_tensor_is_copied() {
        let foreign = node::Tensor::from_f32(&[2, 2], vec![1., 2., 3., 4.]).unwrap();
        let copied = import(&foreign, &Device::Cpu).unwrap();
        assert_eq!(copied.to_vec2::<f32>().unwrap(), [[1., 2.], [3., 4.]]);
    }

    #[test]
    fn where_it_lies_is_said_and_a_device_of_nobodys_is_refused() {
        let exported = export(&Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap()).unwrap();
        assert_eq!(exported.device(), DLDevice::CPU);
        let nobodys = DLDevice { device_type: abi::kDLExtDev, device_id: 0 };
        assert!(device_of(nobodys).is_none());
    }

    #[test]
    fn devices_by_name() {
        assert!(device("cpu").unwrap().is_cpu());
        assert!(device("gpu").unwrap_err().to_string().contains("cuda:N"));
        // No GPU, or no support for one: a sentence that says what to do.
        if let Err(error) = device("cuda:77") {
            assert!(error.to_string().contains("--device"), "{error}");
        }
    }

    #[test]
    fn other_element_types_are_refused() {
        let tensor = Tensor::zeros(3, DType::F64, &Device::Cpu).unwrap();
        assert!(export(&tensor).unwrap_err().to_string().contains("F64"));
    }
}
