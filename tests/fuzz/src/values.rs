//! What a library hands out, in memory that is there: every field may be wrong, but no pointer leads nowhere.
//!
//! The tests of `nodes/values` and `nodes/sdk` include this file: the same values, by proptest.

use std::ffi::c_void;
use std::ptr::null_mut;

use kosmograph_abi as abi;
use kosmograph_values::Value;

/// Reads numbers off the input; past its end they are 0.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }

    /// A number that is small, or one that somebody chose badly.
    fn number(&mut self) -> i64 {
        match self.byte() {
            small @ 0..=199 => i64::from(small % 5),
            200..=219 => i64::from(self.byte()),
            220..=229 => -i64::from(self.byte()),
            230 => i64::MAX,
            231 => i64::MIN,
            232 => 1 << 40,
            233 => i64::MAX / 4,
            _ => i64::from_le_bytes(self.bytes(8).try_into().unwrap_or_default()),
        }
    }

    /// True once in `n` inputs or so, so that most of a value is sound.
    fn rarely(&mut self) -> bool {
        self.byte() >= 248
    }
}

unsafe extern "C" fn count(_: *mut abi::Counted) {}
unsafe extern "C" fn no_copy(_: *mut abi::Tensor) -> *mut abi::DLManagedTensorVersioned {
    null_mut()
}
unsafe extern "C" fn no_interface(_: *mut abi::Object, _: abi::Str) -> *const abi::Interface {
    std::ptr::null()
}

/// [`abi::Counted`] whose functions may be NULL; as large as anything that is counted.
#[repr(C, align(8))]
struct Counted {
    size: u32,
    reserved: u32,
    retain: Option<unsafe extern "C" fn(*mut abi::Counted)>,
    release: Option<unsafe extern "C" fn(*mut abi::Counted)>,
    rest: [usize; 4],
}

/// Owns what the values point to.
#[derive(Default)]
pub struct Memory {
    #[expect(clippy::vec_box, reason = "addresses stay when the list grows")]
    counted: Vec<Box<Counted>>,
    bytes: Vec<Box<[u8]>>,
    values: Vec<Box<[abi::Value]>>,
    texts: Vec<Box<[abi::Str]>>,
    numbers: Vec<Box<[i64]>>,
    #[expect(clippy::vec_box, reason = "addresses stay when the list grows")]
    tensors: Vec<Box<abi::DLManagedTensorVersioned>>,
    /// Whether every tensor's memory reaches as far as it says.
    honest: bool,
}

fn keep<T>(all: &mut Vec<Box<[T]>>, items: Vec<T>) -> *mut T {
    all.push(items.into());
    all.last_mut().map_or(null_mut(), |kept| kept.as_mut_ptr())
}

impl Memory {
    /// A value built off the input, which may share parts with those before it.
    pub fn any(&mut self, data: &[u8]) -> abi::Value {
        self.value(&mut Input(data), 0)
    }

    fn text(&mut self, input: &mut Input) -> abi::Str {
        let length = usize::from(input.byte() % 8);
        let bytes = if input.rarely() {
            input.bytes(length)
        } else {
            vec![b'a' + input.byte() % 26; length]
        };
        let ptr = keep(&mut self.bytes, bytes).cast();
        match input.byte() {
            255 => abi::Str { ptr: std::ptr::null(), len: length },
            254 => abi::Str { ptr, len: usize::MAX },
            253 => abi::Str { ptr, len: isize::MAX as usize + 1 },
            _ => abi::Str { ptr, len: length },
        }
    }

    fn value(&mut self, input: &mut Input, depth: usize) -> abi::Value {
        let kind = u32::from(input.byte() % 10);
        let kind = if kind == 9 && !input.rarely() { abi::TENSOR } else { kind };
        if !(abi::STRING..=abi::OBJECT).contains(&kind) {
            let payload = abi::Payload {
                integer: if kind == abi::BOOL {
                    i64::from(input.byte() % 3)
                } else {
                    input.number()
                },
            };
            return abi::Value { kind, reserved: 0, payload };
        }
        let counted = match input.byte() {
            255 => null_mut(),
            // One that is there already, of whatever kind, perhaps around this one.
            250..=254 if !self.counted.is_empty() => {
                let at = usize::from(input.byte()) % self.counted.len();
                &raw mut *self.counted[at]
            }
            _ => self.counted(input, kind, depth),
        };
        abi::Value { kind, reserved: 0, payload: abi::Payload { counted: counted.cast() } }
    }

    fn counted(&mut self, input: &mut Input, kind: abi::Kind, depth: usize) -> *mut Counted {
        let size =
            if input.rarely() { u32::from(input.byte()) } else { size_of::<Counted>() as u32 };
        let function = |is_missing: bool| {
            (!is_missing).then_some(count as unsafe extern "C" fn(*mut abi::Counted))
        };
        let (retain, release) = (function(input.rarely()), function(input.rarely()));
        // Whatever kind it is taken for later: as any other, its fields are NULL and 0.
        let new = Box::new(Counted {
            size: size.min(size_of::<Counted>() as u32),
            reserved: 0,
            retain,
            release,
            rest: [0; 4],
        });
        self.counted.push(new);
        let at = self.counted.len() - 1;
        let missing = input.rarely();
        let rest = match kind {
            abi::STRING => {
                let text = self.text(input);
                [text.ptr as usize, text.len, 0, 0]
            }
            abi::LIST => {
                let (items, count) = self.items(input, depth);
                [if missing { 0 } else { items as usize }, count, 0, 0]
            }
            abi::MAP => {
                let (values, count) = self.items(input, depth);
                let keys = (0..count.min(64)).map(|_| self.text(input)).collect();
                let keys = keep(&mut self.texts, keys);
                [if missing { 0 } else { keys as usize }, values as usize, count, 0]
            }
            abi::TENSOR => {
                let dl = self.tensor(input);
                let copy = no_copy
                    as unsafe extern "C" fn(*mut abi::Tensor) -> *mut abi::DLManagedTensorVersioned;
                [
                    if missing { 0 } else { dl as usize },
                    if input.rarely() { 0 } else { copy as usize },
                    0,
                    0,
                ]
            }
            _ => {
                let name = self.text(input);
                let query = no_interface
                    as unsafe extern "C" fn(*mut abi::Object, abi::Str) -> *const abi::Interface;
                [name.ptr as usize, name.len, if missing { 0 } else { query as usize }, 0]
            }
        };
        self.counted[at].rest = rest;
        &raw mut *self.counted[at]
    }

    fn items(&mut self, input: &mut Input, depth: usize) -> (*mut abi::Value, usize) {
        let count =
            if depth > 80 || self.counted.len() > 400 { 0 } else { usize::from(input.byte() % 4) };
        let items: Vec<abi::Value> = (0..count).map(|_| self.value(input, depth + 1)).collect();
        let items = keep(&mut self.values, items);
        // Counts that no memory could hold; others would be a pointer into nowhere.
        (items, if input.rarely() { usize::MAX / 2 } else { count })
    }

    fn tensor(&mut self, input: &mut Input) -> *mut abi::DLManagedTensorVersioned {
        let axes = usize::from(input.byte() % 6);
        let mut numbers = |_| input.number();
        let shape: Vec<i64> = (0..axes).map(&mut numbers).collect();
        let strides: Vec<i64> = (0..axes).map(&mut numbers).collect();
        let dtype = match input.rarely() {
            false => abi::DLDataType {
                code: [0, 1, 2, 4, 6][usize::from(input.byte() % 5)],
                bits: [8, 16, 32, 64][usize::from(input.byte() % 4)],
                lanes: 1,
            },
            true => abi::DLDataType {
                code: input.byte(),
                bits: input.byte(),
                lanes: u16::from(input.byte()),
            },
        };
        // As much memory on both sides as the strides reach, where that is little.
        let has_strides = input.byte().is_multiple_of(2);
        let steps = |i: usize| {
            if has_strides {
                strides[i]
            } else {
                shape[i + 1..].iter().fold(1, |a: i64, b| a.saturating_mul(*b))
            }
        };
        let reach = (0..axes).try_fold(0i64, |reach, i| {
            reach.checked_add(
                shape[i].saturating_sub(1).max(0).checked_mul(steps(i).checked_abs()?)?,
            )
        });
        let reach = reach.filter(|reach| *reach < 4096);
        self.honest &= reach.is_some();
        // One element more than that, for an offset.
        let side = (reach.unwrap_or(0) as usize + 2) * 32;
        let data = keep(&mut self.numbers, vec![0x3f80_0000_3f80_0000; side / 4]);
        // SAFETY: the middle of the allocation.
        let middle = unsafe { data.cast::<u8>().add(side) };
        let shape = keep(&mut self.numbers, shape);
        let strides = if has_strides { keep(&mut self.numbers, strides) } else { null_mut() };
        let offset = if input.rarely() { input.number() as u64 } else { 0 };
        self.honest &= offset <= 16;
        self.tensors.push(Box::new(abi::DLManagedTensorVersioned {
            version: match input.rarely() {
                true => abi::DLPackVersion { major: u32::from(input.byte()), minor: 0 },
                false => abi::DLPackVersion::CURRENT,
            },
            manager_ctx: null_mut(),
            deleter: None,
            flags: u64::from(input.byte()),
            dl_tensor: abi::DLTensor {
                data: if input.rarely() { null_mut() } else { middle.cast::<c_void>() },
                device: abi::DLDevice {
                    device_type: if input.rarely() { i32::from(input.byte()) } else { abi::kDLCPU },
                    device_id: 0,
                },
                ndim: if input.rarely() {
                    input.number().clamp(i32::MIN.into(), 0) as i32
                } else {
                    axes as i32
                },
                dtype,
                shape: if input.rarely() { null_mut() } else { shape },
                strides,
                byte_offset: offset,
            },
        }));
        self.tensors.last_mut().map_or(null_mut(), |kept| &raw mut **kept)
    }
}

/// A value built off the input passes the checks or does not; what passed can be read to its last number.
pub fn values(data: &[u8]) {
    let mut memory = Memory { honest: true, ..Memory::default() };
    let raw = memory.any(data);
    // SAFETY: every pointer in it is NULL or leads to `memory`, which lives longer than the values.
    match unsafe { Value::borrow(&raw) } {
        Err(malformed) => assert!(!malformed.to_string().is_empty()),
        Ok(value) => read(&value, memory.honest, &mut 0),
    }
    // SAFETY: as above; giving a reference back does nothing here.
    drop(unsafe { Value::adopt(raw) });
}

fn read(value: &Value, honest: bool, seen: &mut usize) {
    *seen += 1;
    if *seen > 10_000 {
        return;
    }
    let _ = (value.kind_name(), value.as_bool(), value.as_i64(), value.as_u64(), value.as_f64());
    let _ = (
        value.as_str().map(str::len),
        value.object_type().map(str::len),
        value.identity(),
        value.references(),
    );
    for item in value.items() {
        read(item, honest, seen);
    }
    for (key, item) in value.pairs() {
        assert!(value.get(key).is_some(), "{key} is there and cannot be had");
        read(item, honest, seen);
    }
    if let Some(tensor) = value.as_tensor() {
        let _ = (
            tensor.shape().len(),
            tensor.strides().len(),
            tensor.dtype(),
            tensor.device(),
            tensor.bytes(),
        );
        // Between these a copy may be had, and takes long: it is no other code.
        if honest && !(1 << 20..1 << 34).contains(&tensor.bytes()) {
            let bytes = tensor.to_bytes();
            assert!(bytes.is_none_or(|bytes| bytes.len() == tensor.bytes()));
            let _ = tensor.to_f32();
        }
    }
}
