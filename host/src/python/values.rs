//! Values on their way to Python and back: JSON, and for the numbers of a tensor a descriptor of memory that the reader maps.

use super::process::Alive;
use crate::value::Value;
use kosmograph_abi as abi;
use kosmograph_abi::table;
use kosmograph_abi::{DLDataType, DLDevice};
use kosmograph_values::conform::{self, Axes};
use kosmograph_values::place::on_cpu;
use kosmograph_values::{Tensor, TensorView};
use memmap2::Mmap;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use serde_json::{Value as Json, json};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// Most tensors in the inputs of one call.
const MOST_TENSORS: usize = 200;
/// How deep lists and maps may lie in each other.
const DEEPEST: usize = 16;

/// A value of a pack's own type: it stays in the process of the pack, and this stands for it.
struct Held {
    number: u64,
    process: Arc<Alive>,
    released: Arc<Mutex<Vec<u64>>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.released.lock().unwrap_or_else(PoisonError::into_inner).push(self.number);
    }
}

/// Whether a value stands for one that went with its process.
pub fn is_lost(value: &Value) -> bool {
    value.object_owner::<Held>().is_some_and(|held| !held.process.is_alive())
}

/// No interface is offered.
unsafe extern "C" fn no_interface(_: *mut abi::Object, _: abi::Str) -> *const abi::Interface {
    std::ptr::null()
}

/// The process that values go to, or come from.
pub(super) struct Side<'a> {
    pub process: &'a Arc<Alive>,
    /// Numbers of values that nobody needs any more.
    pub released: &'a Arc<Mutex<Vec<u64>>>,
}

impl Side<'_> {
    /// What Python is sent for `value`; `unsigned` as the input's range says. Descriptors are put into `memory`.
    ///
    /// # Errors
    /// The end of a sentence about the value.
    pub fn encode(
        &self,
        value: &Value,
        unsigned: bool,
        memory: &mut Vec<File>,
    ) -> Result<Json, String> {
        self.encode_at(value, unsigned, memory, 0)
    }

    fn encode_at(
        &self,
        value: &Value,
        unsigned: bool,
        memory: &mut Vec<File>,
        depth: usize,
    ) -> Result<Json, String> {
        if depth > DEEPEST {
            return Err("has lists and maps in each other that are too deep".into());
        }
        Ok(match value.kind() {
            abi::NONE => json!(["none"]),
            abi::BOOL => json!(["bool", value.as_bool()]),
            abi::INT if unsigned => json!(["int", value.as_u64()]),
            abi::INT => json!(["int", value.as_i64()]),
            // As text, which can be NaN; Python reads what Rust writes.
            abi::FLOAT => json!(["float", value.as_f64().unwrap_or(f64::NAN).to_string()]),
            abi::STRING => json!(["text", value.as_str()]),
            abi::LIST => {
                let items = value.items().iter();
                let items: Result<Vec<Json>, String> =
                    items.map(|item| self.encode_at(item, false, memory, depth + 1)).collect();
                json!(["list", items?])
            }
            abi::MAP => {
                let pairs: Result<Vec<Json>, String> = value
                    .pairs()
                    .map(|(key, value)| {
                        Ok(json!([key, self.encode_at(value, false, memory, depth + 1)?]))
                    })
                    .collect();
                json!(["map", pairs?])
            }
            abi::TENSOR => {
                if memory.len() >= MOST_TENSORS {
                    return Err(format!("has more than {MOST_TENSORS} tensors"));
                }
                let here = on_cpu(value).map_err(|why| format!("cannot be read: {why}"))?;
                let view = here.as_tensor().ok_or("is no tensor")?;
                let dtype = name_of(view.dtype())
                    .ok_or("is a tensor of numbers that Python is not given")?;
                memory.push(copied(&view).map_err(|why| format!("cannot be passed on: {why}"))?);
                json!(["tensor", memory.len() - 1, dtype, view.shape()])
            }
            _ => match value.object_owner::<Held>() {
                Some(held) if Arc::ptr_eq(&held.process, self.process) => {
                    json!(["kept", held.number])
                }
                Some(held) if held.process.is_alive() => {
                    return Err("is a value of another pack's own type, which stays in the process of that pack".into());
                }
                Some(_) => {
                    return Err(
                        "went with the process of its pack, which ended; run it again".into()
                    );
                }
                None => json!(["object", value.object_type().unwrap_or("value")]),
            },
        })
    }

    /// The value that Python sent for an output of type `type_name`.
    ///
    /// # Errors
    /// The end of a sentence about what was sent.
    pub fn decode(
        &self,
        sent: &Json,
        type_name: &str,
        memory: &mut [Option<OwnedFd>],
    ) -> Result<Value, String> {
        let value = self.decode_at(sent, type_name, memory, 0)?;
        // None is none of its type, and stays in the process: a node of Python may know what it means.
        let is_kept = sent[0] == "kept";
        if let Some(socket) = table::socket(type_name).filter(|_| !is_kept) {
            let fits = conform::value(&value, socket.of, &mut Axes::default(), type_name);
            fits.map_err(|misfit| format!("does not fit: {misfit}"))?;
        }
        Ok(value)
    }

    fn decode_at(
        &self,
        sent: &Json,
        type_name: &str,
        memory: &mut [Option<OwnedFd>],
        depth: usize,
    ) -> Result<Value, String> {
        let broken = || "is not what the bridge writes".to_owned();
        if depth > DEEPEST {
            return Err(broken());
        }
        let inside = &sent[1];
        Ok(match sent[0].as_str().ok_or_else(broken)? {
            "bool" => Value::boolean(inside.as_bool().ok_or_else(broken)?),
            "int" => match (inside.as_i64(), inside.as_u64()) {
                (Some(integer), _) => Value::integer(integer),
                (_, Some(natural)) => Value::natural(natural),
                _ => return Err(broken()),
            },
            "float" => {
                let text = inside.as_str().ok_or_else(broken)?;
                Value::number(text.parse().map_err(|_| broken())?)
            }
            "text" => Value::string(inside.as_str().ok_or_else(broken)?),
            "list" => {
                let items = inside.as_array().ok_or_else(broken)?.iter();
                let items: Result<Vec<Value>, String> =
                    items.map(|item| self.decode_at(item, "*", memory, depth + 1)).collect();
                Value::list(items?)
            }
            "map" => {
                let pairs = inside.as_array().ok_or_else(broken)?.iter();
                let pairs: Result<Vec<(String, Value)>, String> = pairs
                    .map(|pair| {
                        let key = pair[0].as_str().ok_or_else(broken)?.to_owned();
                        Ok((key, self.decode_at(&pair[1], "*", memory, depth + 1)?))
                    })
                    .collect();
                Value::map(pairs?)
            }
            "tensor" => {
                let at =
                    inside.as_u64().and_then(|at| usize::try_from(at).ok()).ok_or_else(broken)?;
                let shape = sent[3].as_array().ok_or_else(broken)?.iter();
                let shape: Option<Vec<i64>> = shape.map(Json::as_i64).collect();
                let fd = memory.get_mut(at).and_then(Option::take).ok_or_else(broken)?;
                mapped(fd, &shape.ok_or_else(broken)?)?
            }
            "kept" => {
                let number = inside.as_u64().ok_or_else(broken)?;
                let held =
                    Held { number, process: self.process.clone(), released: self.released.clone() };
                // SAFETY: the answer is always that there is no interface.
                unsafe { Value::object(type_name, no_interface, held) }
            }
            _ => return Err(broken()),
        })
    }
}

fn name_of(dtype: DLDataType) -> Option<&'static str> {
    Some(match (dtype.code, dtype.bits, dtype.lanes) {
        (2, 32, 1) => "float32",
        (2, 16, 1) => "float16",
        (2, 64, 1) => "float64",
        (4, 16, 1) => "bfloat16",
        (0, 64, 1) => "int64",
        (0, 32, 1) => "int32",
        (0, 16, 1) => "int16",
        (0, 8, 1) => "int8",
        (1, 8, 1) => "uint8",
        (6, 8, 1) => "bool",
        _ => return None,
    })
}

/// The numbers, compact, in memory that Python maps.
fn copied(view: &TensorView) -> Result<File, String> {
    let bytes = view.to_bytes().ok_or("there is no memory for a copy of it")?;
    super::memory(&bytes).map_err(|error| error.to_string())
}

/// A tensor of f32 over memory that Python filled.
fn mapped(fd: OwnedFd, shape: &[i64]) -> Result<Value, String> {
    let file = File::from(fd);
    let count = shape.iter().try_fold(1u64, |count, &n| count.checked_mul(u64::try_from(n).ok()?));
    let wanted = count.and_then(|count| count.checked_mul(4));
    let there = file.metadata().map_err(|error| format!("cannot be read: {error}"))?.len();
    if wanted != Some(there) {
        return Err(format!("says it has the shape {shape:?}, and brings {there} bytes"));
    }
    if there == 0 {
        return Value::tensor(DLDataType::F32, shape, &[]).ok_or_else(|| "cannot be".to_owned());
    }
    let seals =
        fcntl(&file, FcntlArg::F_GET_SEALS).map_err(|error| format!("cannot be read: {error}"))?;
    if !SealFlag::from_bits_truncate(seals)
        .contains(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_WRITE)
    {
        return Err("lies in memory that could still change".into());
    }
    // SAFETY: sealed: nobody can write to it or shorten it, for as long as it is there.
    let map = unsafe { Mmap::map(&file) }.map_err(|error| format!("cannot be mapped: {error}"))?;
    let data = map.as_ptr().cast_mut().cast();
    // SAFETY: as many bytes as the shape says, at the beginning of a page, unchanged for as long as the map is there.
    let tensor =
        unsafe { Tensor::over(data, DLDevice::CPU, DLDataType::F32, shape, None, Box::new(map)) };
    Ok(tensor.into_value())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_is_looked_at() {
        let (process, released) = (Arc::new(Alive::default()), Arc::default());
        let side = Side { process: &process, released: &released };
        let decode = |sent: Json, type_name: &str| side.decode(&sent, type_name, &mut []);
        assert_eq!(decode(json!(["int", u64::MAX]), "INT").unwrap().as_u64(), Some(u64::MAX));
        assert_eq!(decode(json!(["float", "0.1"]), "FLOAT").unwrap().as_f64(), Some(0.1));
        for wrong in [
            json!([]),
            json!(["int", 0.5]),
            json!(["tensor", 0, "float32", [1]]),
            json!({"a": 1}),
            json!(["text"]),
        ] {
            assert!(decode(wrong, "*").is_err());
        }
        assert!(decode(json!(["text", "x"]), "INT").is_err());
    }

    #[test]
    fn memory_is_as_long_as_the_shape_says_and_sealed() {
        let fd = |bytes: usize| OwnedFd::from(super::super::memory(&vec![0; bytes]).unwrap());
        assert!(mapped(fd(8), &[3]).unwrap_err().contains("brings 8 bytes"));
        assert!(mapped(fd(8), &[i64::MAX, i64::MAX]).is_err() && mapped(fd(8), &[-2]).is_err());
        assert!(mapped(fd(8), &[2]).unwrap_err().contains("could still change"));
        assert_eq!(mapped(fd(0), &[0, 4]).unwrap().tensor_shape(), Some(&[0, 4][..]));
    }

    #[test]
    fn what_is_held_is_given_back_once() {
        let (process, released) = (Arc::new(Alive::default()), Arc::default());
        let side = Side { process: &process, released: &released };
        let value = side.decode(&json!(["kept", 7]), "BBOX", &mut []).unwrap();
        assert_eq!(side.encode(&value, false, &mut Vec::new()), Ok(json!(["kept", 7])));
        let other = Arc::new(Alive::default());
        let elsewhere = Side { process: &other, released: &released };
        assert!(
            elsewhere.encode(&value, false, &mut Vec::new()).unwrap_err().contains("another pack")
        );
        assert!(!is_lost(&value));
        process.end();
        assert!(is_lost(&value));
        drop(value.clone());
        assert!(released.lock().unwrap().is_empty());
        drop(value);
        assert_eq!(*released.lock().unwrap(), [7]);
    }
}
