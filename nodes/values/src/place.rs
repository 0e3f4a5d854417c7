//! Where tensors lie: copies on other devices that are made at most once, and values whose tensors all lie in the CPU's
//! memory, for whoever knows no other.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use kosmograph_abi as abi;
use kosmograph_abi::{DLDevice, DLTensor};

use crate::{Tensor, TensorView, Unreadable, Value};

/// Makes the same tensor on another device; `None` where that cannot be.
pub type Copier = Box<dyn Fn(DLDevice) -> Option<Tensor> + Send + Sync>;

/// The copies of a tensor that were asked for, kept as long as the tensor is.
pub(crate) struct Kept {
    copier: Option<Copier>,
    copies: Mutex<Vec<Tensor>>,
}

impl Kept {
    pub(crate) fn new(copier: Option<Copier>) -> Self {
        Self { copier, copies: Mutex::default() }
    }

    /// The view of the copy on `device`; NULL where there is none. It lives as long as `self`.
    pub(crate) fn on(&self, device: DLDevice) -> *const DLTensor {
        // A copier that panicked left the copies as they were.
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        let found = copies.iter().find(|copy| copy.view().device().is_same(device));
        if let Some(copy) = found {
            return copy.view().dl();
        }
        // Asked from the other side of the boundary, over which no panic may go.
        let made =
            self.copier.as_ref().map(|copier| catch_unwind(AssertUnwindSafe(|| copier(device))));
        match made {
            Some(Ok(Some(copy))) => {
                let view: *const DLTensor = copy.view().dl();
                copies.push(copy);
                view
            }
            _ => std::ptr::null(),
        }
    }
}

/// `value` for somebody who takes every tensor to lie on the CPU: itself where they all do, else the same
/// with their views there.
///
/// # Errors
/// A tensor has no view on the CPU.
pub fn on_cpu(value: &Value) -> Result<Value, Unreadable> {
    moved(value, &mut HashMap::new())
}

/// `seen` are the counted things that were looked at, by their addresses: what is shared is one thing again.
fn moved(value: &Value, seen: &mut HashMap<usize, Value>) -> Result<Value, Unreadable> {
    let Some(address) = value.identity() else { return Ok(value.clone()) };
    if let Some(done) = seen.get(&address) {
        return Ok(done.clone());
    }
    let made = match value.kind() {
        abi::TENSOR => value.as_tensor().map_or(Ok(value.clone()), |view| tensor(value, view))?,
        abi::LIST => {
            let items = value.items().iter().map(|item| moved(item, seen));
            let items = items.collect::<Result<Vec<_>, _>>()?;
            match items.iter().zip(value.items()).all(|(new, old)| is_same(new, old)) {
                true => value.clone(),
                false => Value::list(items),
            }
        }
        abi::MAP => {
            let pairs = value.pairs().map(|(key, item)| Ok((key, moved(item, seen)?)));
            let pairs = pairs.collect::<Result<Vec<_>, Unreadable>>()?;
            let same =
                pairs.iter().zip(value.pairs()).all(|((_, new), (_, old))| is_same(new, old));
            if same { value.clone() } else { Value::map(pairs) }
        }
        _ => value.clone(),
    };
    seen.insert(address, made.clone());
    Ok(made)
}

/// What is not counted never changes here.
fn is_same(new: &Value, old: &Value) -> bool {
    new.identity() == old.identity()
}

fn tensor(value: &Value, view: TensorView<'_>) -> Result<Value, Unreadable> {
    if view.device().is_same(DLDevice::CPU) {
        return Ok(value.clone());
    }
    let here = view.on(DLDevice::CPU)?;
    let dl = here.dl();
    let first = dl.data.cast::<u8>().wrapping_add(dl.byte_offset as usize).cast();
    let strides = here.strides();
    // SAFETY: a checked view, which lives as long as the tensor that the new one keeps.
    let copy = unsafe {
        let owner = Box::new(value.clone());
        Tensor::over(first, DLDevice::CPU, dl.dtype, here.shape(), Some(&strides), owner)
    };
    Ok(copy.into_value())
}

/// An f32 tensor that says it lies on a device of nobody's, where its numbers read as NaN, and that gives
/// them in the CPU's memory when it is asked for its view there: what a GPU's tensor is to whoever knows no
/// GPU. `None` for what is no such tensor.
pub fn played_elsewhere(value: &Value) -> Option<Value> {
    let view = value.as_tensor()?;
    let device = DLDevice { device_type: abi::kDLExtDev, device_id: 0 };
    let count = view.to_f32()?.len();
    let nothing = vec![f32::NAN; count];
    let original: Tensor = value.clone().try_into().ok()?;
    let copier = move |wanted: DLDevice| wanted.is_same(DLDevice::CPU).then(|| original.clone());
    let data = nothing.as_ptr().cast_mut().cast();
    // SAFETY: as many elements as the shape says, whose buffer stays where it is in the box.
    let tensor = unsafe {
        let (shape, owner) = (view.shape(), Box::new(nothing));
        Tensor::over_with(
            data,
            device,
            abi::DLDataType::F32,
            shape,
            None,
            owner,
            Some(Box::new(copier)),
        )
    };
    Some(tensor.into_value())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elsewhere(numbers: &[f32]) -> Value {
        played_elsewhere(&Value::tensor_f32(&[numbers.len() as i64], numbers).unwrap()).unwrap()
    }

    #[test]
    fn numbers_are_read_wherever_they_lie() {
        let tensor = elsewhere(&[1.0, 2.0]);
        let view = tensor.as_tensor().unwrap();
        assert_eq!(view.device().device_type, abi::kDLExtDev);
        assert_eq!(view.to_f32().unwrap(), [1.0, 2.0]);
        // Once made, it is kept.
        let [one, two] = [(); 2].map(|()| view.on(DLDevice::CPU).unwrap().dl().data);
        assert_eq!(one, two);
    }

    #[test]
    fn a_value_for_the_cpu_is_itself_where_nothing_lies_elsewhere() {
        let here = Value::list(vec![Value::tensor_f32(&[1], &[1.0]).unwrap(), Value::string("a")]);
        assert!(on_cpu(&here).unwrap().is_same(&here));
        let there = Value::map([("a", elsewhere(&[3.0])), ("b", here.clone())]);
        let moved = on_cpu(&Value::list(vec![there.clone(), there])).unwrap();
        let [one, two] = moved.items() else { panic!("two items became others") };
        assert!(one.is_same(two), "what was one thing is one thing");
        let tensor = one.get("a").unwrap().as_tensor().unwrap();
        assert_eq!((tensor.device(), tensor.to_f32()), (DLDevice::CPU, Some(vec![3.0])));
        assert!(one.get("b").unwrap().is_same(&here));
    }

    #[test]
    fn a_tensor_without_a_view_says_where_it_lies() {
        let data = Box::leak(Box::new([0f32; 2])).as_mut_ptr();
        let device = DLDevice { device_type: abi::kDLCUDA, device_id: 1 };
        // SAFETY: nothing reads it.
        let tensor = unsafe {
            Tensor::over(data.cast(), device, abi::DLDataType::F32, &[2], None, Box::new(()))
        };
        let told = on_cpu(&tensor.into_value()).unwrap_err().to_string();
        assert!(told.contains("device type 2"), "{told}");
    }
}
