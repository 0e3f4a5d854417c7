//! The glue between the boundary's DLPack tensors and candle's.
//!
//! candle has no DLPack of its own. What crosses the boundary lies on the CPU in f32, so that every library can read
//! it. Export of such a tensor costs no copy: the candle tensor becomes the owner of the memory that the DLPack view
//! points at. A tensor on a GPU is copied to the CPU, and the one on the GPU stays with the copy. Import recognises
//! what was exported here and gives the same candle tensor back; a tensor from another library is copied, once.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use node::abi::{DLDataType, DLDevice};
use node::{Error, Result};

/// What owns the memory of an exported tensor.
struct Exported {
    /// The tensor where the library has it.
    own: Tensor,
    /// The same on the CPU, contiguous: where the boundary sees it.
    host: Tensor,
}

/// A candle tensor as one that may cross the boundary, without a copy where it is contiguous and on the CPU.
///
/// # Errors
/// When the element type is not f32, or the copy from a GPU fails.
pub fn export(tensor: &Tensor) -> Result<node::Tensor> {
    if tensor.dtype() != DType::F32 {
        return Err(Error::new(format!(
            "tensors cross the boundary as f32, but this one is {:?}",
            tensor.dtype()
        )));
    }
    let own = tensor.contiguous()?;
    let host = own.to_device(&Device::Cpu)?;
    let data = {
        let (storage, layout) = host.storage_and_layout();
        let Storage::Cpu(CpuStorage::F32(values)) = &*storage else {
            return Err(Error::new("a tensor that was copied to the CPU is not there"));
        };
        values[layout.start_offset()..].as_ptr().cast_mut().cast()
    };
    let shape = host.dims().to_vec();
    let owner = Box::new(Exported { own, host });
    // SAFETY: `host` is contiguous, so its elements follow each other from `data` on. It moves into the
    // exported tensor and shares its storage by reference count, so the buffer stays where it is; nothing
    // here writes to a tensor in place once it was made (candle does so for variables only, and none is
    // exported).
    Ok(unsafe { node::Tensor::from_owner(data, DLDevice::CPU, DLDataType::F32, &shape, owner) })
}

/// A tensor from the boundary as a candle tensor on `device`: the very same where it was exported by this
/// library, a copy otherwise.
///
/// # Errors
/// When the element type is not f32, or the data is not on the CPU.
pub fn import(tensor: &node::Tensor, device: &Device) -> Result<Tensor> {
    if let Some(Exported { own, host }) = tensor.owner::<Exported>() {
        return match [own, host].into_iter().find(|found| found.device().same_device(device)) {
            Some(found) => Ok(found.clone()),
            None => Ok(host.to_device(device)?),
        };
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
        assert_eq!(back.id(), exported.owner::<Exported>().unwrap().own.id());
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
