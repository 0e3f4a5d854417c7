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
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// Whether a value stands for one that went with its process, or has one among its own.
pub fn is_lost(value: &Value) -> bool {
    value.object_owner::<Held>().is_some_and(|held| !held.process.is_alive())
        || value.items().iter().any(is_lost)
        || value.pairs().any(|(_, value)| is_lost(value))
}

/// Values that Python cannot use and was lent: it can give them on, and that is all.
#[derive(Debug, Default)]
pub(super) struct Lent {
    last: u64,
    values: HashMap<u64, Value>,
}

impl Lent {
    fn lend(&mut self, value: &Value) -> Json {
        self.last += 1;
        self.values.insert(self.last, value.clone());
        json!(["lent", self.last, value.object_type().unwrap_or("value")])
    }

    /// Python has no use for these any more.
    pub fn back(&mut self, numbers: &Json) {
        for number in numbers.as_array().into_iter().flatten().filter_map(Json::as_u64) {
            self.values.remove(&number);
        }
    }
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
    pub lent: &'a Mutex<Lent>,
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
        // Of what is made of parts only latents and sounds mean something to Python.
        let is_lent = match value.kind() {
            abi::LIST => true,
            abi::MAP => value.get("samples").or(value.get("waveform")).is_none(),
            _ => false,
        };
        match is_lent {
            true => Ok(self.lent().lend(value)),
            false => self.encode_at(value, unsigned, memory, 0),
        }
    }

    /// As [`Self::encode`], of a list of such values.
    ///
    /// # Errors
    /// As there.
    pub fn encode_list(
        &self,
        values: &Value,
        unsigned: bool,
        memory: &mut Vec<File>,
    ) -> Result<Json, String> {
        let items = values.items().iter();
        let items: Result<Vec<Json>, String> =
            items.map(|item| self.encode(item, unsigned, memory)).collect();
        Ok(json!(["list", items?]))
    }

    fn lent(&self) -> MutexGuard<'_, Lent> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
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
                    items.map(|item| self.encode_at(item, unsigned, memory, depth + 1)).collect();
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
                // What came from Python lies in such memory already, and nobody can write to it.
                let passed = from_python(value).map_or_else(|| copied(&view), Ok);
                memory.push(passed.map_err(|why| format!("cannot be passed on: {why}"))?);
                json!(["tensor", memory.len() - 1, dtype, view.shape()])
            }
            _ => match value.object_owner::<Held>() {
                Some(held) if Arc::ptr_eq(&held.process, self.process) => {
                    json!(["kept", held.number])
                }
                Some(held) if held.process.is_alive() => self.lent().lend(value),
                Some(_) => {
                    return Err(
                        "went with the process of its pack, which ended; run it again".into()
                    );
                }
                None => self.lent().lend(value),
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

    /// The list of values of type `type_name` that Python sent.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn decode_list(
        &self,
        sent: &Json,
        type_name: &str,
        memory: &mut [Option<OwnedFd>],
    ) -> Result<Value, String> {
        let items = sent[1].as_array().filter(|_| sent[0] == "list");
        let items = items.ok_or("is not the list that is due")?.iter();
        let items: Result<Vec<Value>, String> =
            items.map(|item| self.decode(item, type_name, memory)).collect();
        Ok(Value::list(items?))
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
            "lent" => {
                let number = inside.as_u64().ok_or_else(broken)?;
                self.lent().values.get(&number).cloned().ok_or_else(broken)?
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

/// The memory that Python filled, of a tensor that came from there.
fn from_python(value: &Value) -> Option<File> {
    let tensor = Tensor::try_from(value.clone()).ok()?;
    tensor.owner::<Sealed>()?.file.try_clone().ok()
}

/// Memory that nobody can write to any more, and where it is mapped.
struct Sealed {
    file: File,
    _map: Mmap,
}

/// The numbers, compact, in memory that Python maps.
fn copied(view: &TensorView) -> Result<File, String> {
    if let Ok(Cow::Borrowed(numbers)) = view.as_f32() {
        let (first, length) = (numbers.as_ptr().cast::<u8>(), size_of_val(numbers));
        // SAFETY: the bytes of numbers that are lent, for as long as they are.
        let bytes = unsafe { std::slice::from_raw_parts(first, length) };
        return super::memory(bytes).map_err(|error| error.to_string());
    }
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
    let owner = Box::new(Sealed { file, _map: map });
    // SAFETY: as many bytes as the shape says, at the beginning of a page, unchanged for as long as the map is there.
    let tensor = unsafe { Tensor::over(data, DLDevice::CPU, DLDataType::F32, shape, None, owner) };
    Ok(tensor.into_value())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_is_looked_at() {
        let (process, released) = (Arc::new(Alive::default()), Arc::default());
        let lent = Mutex::default();
        let side = Side { process: &process, released: &released, lent: &lent };
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
    fn what_came_from_python_is_not_copied_to_it() {
        use nix::sys::memfd::{MFdFlags, memfd_create};
        use nix::sys::stat::fstat;
        use std::io::Write;
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let mut file = File::from(memfd_create("test", flags).unwrap());
        file.write_all(&[0, 0, 128, 63, 0, 0, 0, 64]).unwrap();
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_WRITE;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        let there = fstat(&file).unwrap().st_ino;
        let value = mapped(file.into(), &[2]).unwrap();
        assert_eq!(value.as_tensor().unwrap().to_f32(), Some(vec![1.0, 2.0]));
        let (process, released, lent) =
            (Arc::new(Alive::default()), Arc::default(), Mutex::default());
        let side = Side { process: &process, released: &released, lent: &lent };
        let mut memory = Vec::new();
        side.encode(&value, false, &mut memory).unwrap();
        assert_eq!(fstat(&memory[0]).unwrap().st_ino, there);
        let copy = copied(&value.as_tensor().unwrap()).unwrap();
        assert_ne!(fstat(&copy).unwrap().st_ino, there);
        assert_eq!(copy.metadata().unwrap().len(), 8);
    }

    #[test]
    fn what_is_held_is_given_back_once() {
        let (process, released) = (Arc::new(Alive::default()), Arc::default());
        let lent = Mutex::default();
        let side = Side { process: &process, released: &released, lent: &lent };
        let value = side.decode(&json!(["kept", 7]), "BBOX", &mut []).unwrap();
        assert_eq!(side.encode(&value, false, &mut Vec::new()), Ok(json!(["kept", 7])));
        let other = Arc::new(Alive::default());
        // Another pack can give it on, and no more.
        let elsewhere = Side { process: &other, released: &released, lent: &lent };
        let there = elsewhere.encode(&value, false, &mut Vec::new()).unwrap();
        assert_eq!(there, json!(["lent", 1, "BBOX"]));
        let back = elsewhere.decode(&there, "*", &mut []).unwrap();
        assert_eq!(side.encode(&back, false, &mut Vec::new()), Ok(json!(["kept", 7])));
        drop(back);
        lent.lock().unwrap().back(&json!([1, 5, "x"]));
        assert!(elsewhere.decode(&there, "*", &mut []).is_err());
        let among = |value: &Value| Value::list(vec![Value::map([("a", value.clone())])]);
        assert!(!is_lost(&value) && !is_lost(&among(&value)));
        process.end();
        assert!(is_lost(&value) && is_lost(&among(&value)));
        drop(value.clone());
        assert!(released.lock().unwrap().is_empty());
        drop(value);
        assert_eq!(*released.lock().unwrap(), [7]);
    }
}
