//! The glue between the boundary's DLPack tensors and candle's.
//!
//! candle has no DLPack of its own. Export costs no copy: the candle tensor becomes the owner of the memory
//! that the DLPack view points at. Import recognises what was exported here and gives the same candle
//! tensor back; a tensor from another library is copied, once.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use node::abi::{DLDataType, DLDevice};
use node::{Error, Result};

/// A candle tensor on the CPU as one that may cross the boundary, without a copy where it is contiguous.
///
/// # Errors
/// When the element type is not f32, or the tensor is not on the CPU.
pub fn export(tensor: &Tensor) -> Result<node::Tensor> {
    if tensor.dtype() != DType::F32 {
        return Err(Error::new(format!(
            "tensors cross the boundary as f32, but this one is {:?}",
            tensor.dtype()
        )));
    }
    let owner = tensor.contiguous()?;
    let data = {
        let (storage, layout) = owner.storage_and_layout();
        let Storage::Cpu(CpuStorage::F32(values)) = &*storage else {
            return Err(Error::new("only tensors on the CPU cross the boundary in this build"));
        };
        values[layout.start_offset()..].as_ptr().cast_mut().cast()
    };
    let shape = owner.dims().to_vec();
    // SAFETY: `owner` is contiguous, so its elements follow each other from `data` on. It moves into the
    // exported tensor and shares its storage by reference count, so the buffer stays where it is; nothing
    // here writes to a tensor in place once it was made (candle does so for variables only, and none is
    // exported).
    Ok(unsafe {
        node::Tensor::from_owner(data, DLDevice::CPU, DLDataType::F32, &shape, Box::new(owner))
    })
}

/// A tensor from the boundary as a candle tensor on `device`: the very same where it was exported by this
/// library, a copy otherwise.
///
/// # Errors
/// When the element type is not f32, or the data is not on the CPU.
pub fn import(tensor: &node::Tensor, device: &Device) -> Result<Tensor> {
    if let Some(own) = tensor.owner::<Tensor>()
        && own.device().same_device(device)
    {
        return Ok(own.clone());
    }
    let values = tensor.to_f32()?;
    Ok(Tensor::from_slice(&values, tensor.shape(), device)?)
}

/// The device that the host asked for.
///
/// # Errors
/// A sentence when this library was not built for it.
pub fn device(name: &str) -> Result<Device> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    Err(Error::new(format!(
        "the device \"{name}\" was asked for, but this node library was built for the CPU alone: run \
         with --device cpu"
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
        assert_eq!(back.id(), exported.owner::<Tensor>().unwrap().id());
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
    fn other_element_types_are_refused() {
        let tensor = Tensor::zeros(3, DType::F64, &Device::Cpu).unwrap();
        assert!(export(&tensor).unwrap_err().to_string().contains("F64"));
    }
}
