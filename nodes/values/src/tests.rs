//! Values go round, counts come back, and what a hostile library hands out is named, not believed.

use std::collections::HashSet;
use std::ptr::null;

use proptest::prelude::*;

use kosmograph_abi as abi;
use kosmograph_abi::{DLDataType, DLManagedTensorVersioned};

use super::*;

/// A value described by Rust's own types.
#[derive(Clone, Debug)]
enum Model {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Tensor(Vec<i64>, Vec<f32>),
    List(Vec<Model>),
    Map(Vec<(String, Model)>),
}

fn model() -> impl Strategy<Value = Model> {
    let tensor = prop::collection::vec(0i64..4, 0..4).prop_flat_map(|shape| {
        let count = shape.iter().product::<i64>() as usize;
        prop::collection::vec(-1e6f32..1e6, count)
            .prop_map(move |data| Model::Tensor(shape.clone(), data))
    });
    let leaf = prop_oneof![
        Just(Model::None),
        any::<bool>().prop_map(Model::Bool),
        any::<i64>().prop_map(Model::Int),
        any::<f64>().prop_map(Model::Float),
        ".*".prop_map(Model::Text),
        tensor,
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Model::List),
            prop::collection::vec((".{0,3}", inner), 0..6).prop_map(|pairs| {
                let mut unique = HashSet::new();
                let keep = |(key, _): &(String, Model)| unique.insert(key.clone());
                Model::Map(pairs.into_iter().filter(keep).collect())
            }),
        ]
    })
}

fn build(model: &Model) -> Value {
    match model {
        Model::None => Value::none(),
        Model::Bool(x) => Value::boolean(*x),
        Model::Int(x) => Value::integer(*x),
        Model::Float(x) => Value::number(*x),
        Model::Text(x) => Value::string(x.as_str()),
        Model::Tensor(shape, data) => Value::tensor_f32(shape, data).unwrap(),
        Model::List(items) => Value::list(items.iter().map(build).collect()),
        Model::Map(pairs) => {
            Value::map(pairs.iter().map(|(key, item)| (key.as_str(), build(item))))
        }
    }
}

fn assert_is(value: &Value, model: &Model) {
    match model {
        Model::None => assert!(value.is_none()),
        Model::Bool(x) => assert_eq!(value.as_bool(), Some(*x)),
        Model::Int(x) => {
            assert_eq!((value.as_i64(), value.as_u64()), (Some(*x), Some(*x as u64)));
        }
        Model::Float(x) => assert_eq!(value.as_f64().map(f64::to_bits), Some(x.to_bits())),
        Model::Text(x) => assert_eq!(value.as_str(), Some(x.as_str())),
        Model::Tensor(shape, data) => {
            assert_eq!(value.tensor_shape(), Some(&shape[..]));
            assert_eq!(value.as_tensor().unwrap().to_f32().as_ref(), Some(data));
        }
        Model::List(items) => {
            assert_eq!((value.kind(), value.items().len()), (abi::LIST, items.len()));
            value.items().iter().zip(items).for_each(|(value, item)| assert_is(value, item));
        }
        Model::Map(pairs) => {
            let names: Vec<&str> = value.pairs().map(|(name, _)| name).collect();
            assert_eq!(value.kind(), abi::MAP);
            assert_eq!(names, pairs.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>());
            for (key, item) in pairs {
                assert_is(value.get(key).unwrap(), item);
            }
        }
    }
}

proptest! {
    #[test]
    fn values_go_round(model in model()) {
        let value = build(&model);
        let raw = value.clone().into_raw();
        prop_assert!(value.references().is_none_or(|count| count == 2));
        // SAFETY: the reference that the clone gave away.
        let back = unsafe { Value::adopt(raw) }.unwrap();
        assert_is(&back, &model);
        // SAFETY: alive.
        let borrowed = unsafe { Value::borrow(back.as_raw()) }.unwrap();
        prop_assert!(value.references().is_none_or(|count| count == 3));
        drop((back, borrowed));
        prop_assert!(value.references().is_none_or(|count| count == 1));
        assert_is(&value, &model);
    }

    /// Every header a library could write, as long as its pointers are NULL or lead somewhere.
    #[test]
    fn no_header_is_believed(
        kind in prop_oneof![0u32..10, any::<u32>()],
        size in prop_oneof![Just(0u32), 0u32..64, any::<u32>()],
        functions in any::<(bool, bool, bool)>(),
        length in prop_oneof![Just(0usize), 0usize..8, any::<usize>()],
        ndim in prop_oneof![-2i32..6, any::<i32>()],
        dims in any::<[i64; 6]>(),
        strides in proptest::option::of(any::<[i64; 6]>()),
        dtype in any::<(u8, u8, u16)>(),
        has_data in any::<bool>(),
        major in 0u32..3,
    ) {
        let mut memory = Hostile::new(size, functions);
        memory.managed.version.major = major;
        let dl = &mut memory.managed.dl_tensor;
        dl.ndim = ndim.min(6);
        memory.dims = dims;
        dl.shape = memory.dims.as_mut_ptr();
        memory.strides = strides.unwrap_or_default();
        dl.strides = strides.map_or(std::ptr::null_mut(), |_| memory.strides.as_mut_ptr());
        dl.dtype = DLDataType { code: dtype.0, bits: dtype.1, lanes: dtype.2 };
        dl.data = if has_data { memory.pixels.as_mut_ptr().cast() } else { std::ptr::null_mut() };
        // What stands behind the base means something else for each kind. Lengths past the memory that
        // is there are only put where they are checked before they are believed.
        let far = if length > 1 << 60 { length } else { length.min(8) };
        memory.words = match kind {
            abi::STRING => [memory.text.as_ptr().addr(), far, 0],
            abi::LIST => [memory.items.as_ptr().addr(), far, 0],
            abi::MAP => [memory.keys.as_ptr().addr(), memory.items.as_ptr().addr(), far],
            abi::TENSOR => [(&raw const memory.managed).addr(), memory.function(), 0],
            _ => [memory.text.as_ptr().addr(), far, memory.function()],
        };
        let raw = memory.value(kind);
        // SAFETY: pointers are NULL or lead to this test's memory.
        let checked = unsafe { check::check(&raw) };
        if checked.is_ok() {
            prop_assert!(kind <= abi::OBJECT);
            if (abi::STRING..=abi::OBJECT).contains(&kind) {
                prop_assert!(size >= 40 && functions.0 && functions.1);
            }
            if kind == abi::TENSOR {
                prop_assert!(major == 1 && functions.2);
                prop_assert!(dims[..ndim.max(0) as usize].iter().all(|&n| n >= 0));
            }
        }
    }
}

/// Memory laid out as a library might, with every field free to be wrong.
#[repr(C)]
struct Hostile {
    size: u32,
    reserved: u32,
    retain: Option<unsafe extern "C" fn(*mut abi::Counted)>,
    release: Option<unsafe extern "C" fn(*mut abi::Counted)>,
    words: [usize; 3],
    third_function: bool,
    text: [u8; 8],
    items: [abi::Value; 8],
    keys: [abi::Str; 8],
    managed: DLManagedTensorVersioned,
    dims: [i64; 6],
    strides: [i64; 6],
    pixels: [f32; 8],
}

unsafe extern "C" fn ignore(_: *mut abi::Counted) {}

impl Hostile {
    fn new(size: u32, functions: (bool, bool, bool)) -> Box<Self> {
        let function: unsafe extern "C" fn(*mut abi::Counted) = ignore;
        Box::new(Self {
            size,
            reserved: 0,
            retain: functions.0.then_some(function),
            release: functions.1.then_some(function),
            words: [0; 3],
            third_function: functions.2,
            text: *b"textual\xff",
            items: [abi::Value::integer(1); 8],
            keys: [abi::Str { ptr: null(), len: 0 }; 8],
            managed: DLManagedTensorVersioned {
                version: abi::DLPackVersion::CURRENT,
                manager_ctx: std::ptr::null_mut(),
                deleter: None,
                flags: 0,
                dl_tensor: abi::DLTensor {
                    data: std::ptr::null_mut(),
                    device: abi::DLDevice::CPU,
                    ndim: 0,
                    dtype: DLDataType::F32,
                    shape: std::ptr::null_mut(),
                    strides: std::ptr::null_mut(),
                    byte_offset: 0,
                },
            },
            dims: [0; 6],
            strides: [0; 6],
            pixels: [0.0; 8],
        })
    }

    fn function(&self) -> usize {
        let function: unsafe extern "C" fn(*mut abi::Counted) = ignore;
        if self.third_function { function as usize } else { 0 }
    }

    fn value(&mut self, kind: abi::Kind) -> abi::Value {
        let counted = (&raw mut *self).cast();
        abi::Value { kind, reserved: 0, payload: abi::Payload { counted } }
    }
}

/// The sentence for `raw`.
fn fault(raw: &abi::Value) -> String {
    // SAFETY: the tests hand in pointers that are NULL or lead somewhere.
    unsafe { check::check(raw) }.unwrap_err().to_string()
}

#[test]
fn faults_are_named() {
    let sound = (true, true, true);
    let none = abi::Value::NONE;
    assert!(fault(&abi::Value { kind: 9, ..none }).contains("kind 9"));
    assert!(fault(&abi::Value { kind: abi::LIST, ..none }).contains("a list at NULL"));
    let two = abi::Value { kind: abi::BOOL, ..abi::Value::integer(2) };
    assert!(fault(&two).contains("boolean of 2"));
    assert!(fault(&Hostile::new(39, sound).value(abi::LIST)).contains("39 bytes"));
    let mut unreleasable = Hostile::new(40, (true, false, true));
    assert!(fault(&unreleasable.value(abi::LIST)).contains("without retain and release"));

    let mut memory = Hostile::new(48, sound);
    memory.words = [memory.text.as_ptr().addr(), 8, 0];
    assert!(fault(&memory.value(abi::STRING)).contains("not UTF-8 (byte 7 is wrong)"));
    memory.words = [0, 8, 0];
    assert!(fault(&memory.value(abi::STRING)).contains("NULL but has a length"));
    memory.words = [0, 3, 0];
    assert!(fault(&memory.value(abi::LIST)).contains("3 values without them"));
    memory.items[1] = abi::Value { kind: abi::MAP, ..none };
    memory.words = [memory.items.as_ptr().addr(), 3, 0];
    assert!(fault(&memory.value(abi::LIST)).contains("a list whose item 1 is a map at NULL"));
    memory.words = [memory.keys.as_ptr().addr(), memory.items.as_ptr().addr(), 1];
    // SAFETY: the test's own memory.
    assert!(unsafe { check::check(&memory.value(abi::MAP)) }.is_ok());
    memory.items[1] = none;
    memory.words[2] = 2;
    assert!(fault(&memory.value(abi::MAP)).contains("key \"\" twice"));
}

#[test]
fn a_list_that_contains_itself_is_found() {
    let mut memory = Hostile::new(40, (true, true, true));
    memory.words = [memory.items.as_ptr().addr(), 8, 0];
    let itself = memory.value(abi::LIST);
    memory.items = [itself; 8];
    assert!(fault(&itself).contains("contains itself"));
}

#[test]
fn nesting_has_an_end_and_sharing_costs_nothing() {
    let shared = (0..60).fold(Value::list(vec![]), |inner, _| {
        Value::list(vec![inner.clone(), inner]) // 2^60 leaves, 61 lists
    });
    // SAFETY: a value of the host.
    assert!(unsafe { Value::borrow(shared.as_raw()) }.is_ok());
    let deep = (0..500).fold(shared, |inner, _| Value::list(vec![inner]));
    assert!(fault(deep.as_raw()).contains("nested more than 512 levels"));
    // As deep, but with every level within reach of the first, shallowest ones first.
    let mut levels = vec![Value::list(vec![])];
    for i in 0..600 {
        levels.push(Value::list(vec![levels[i].clone()]));
    }
    assert!(fault(Value::list(levels).as_raw()).contains("nested more than 512 levels"));
}

#[test]
fn shapes_that_cannot_be_are_refused() {
    assert!(Value::tensor_f32(&[2, 3], &[0.0; 5]).is_none());
    assert!(Value::tensor_f32(&[-1], &[]).is_none());
    assert!(Value::tensor_f32(&[i64::MAX, 4], &[]).is_none());
    assert!(Value::tensor_f32(&[0, 4], &[]).is_some());
    assert!(Value::tensor_f32(&[], &[1.0]).is_some());
}

#[test]
fn strides_are_followed() {
    let data = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let transposed = Value::tensor_strided_f32(&[2, 3], &[1, 2], &data).unwrap();
    assert_eq!(transposed.as_tensor().unwrap().to_f32().unwrap(), data);
    let spaced = Value::tensor_strided_f32(&[2, 3], &[10, 3], &data).unwrap();
    assert_eq!(spaced.as_tensor().unwrap().to_f32().unwrap(), data);
}

#[test]
fn a_value_that_is_repeated_beyond_memory_is_not_copied() {
    let mut memory = Hostile::new(40, (true, true, true));
    memory.dims = [1 << 40, 1 << 16, 0, 0, 0, 0];
    let dl = &mut memory.managed.dl_tensor;
    (dl.ndim, dl.data) = (2, memory.pixels.as_mut_ptr().cast());
    (dl.shape, dl.strides) = (memory.dims.as_mut_ptr(), memory.strides.as_mut_ptr());
    memory.words = [(&raw const memory.managed).addr(), memory.function(), 0];
    // SAFETY: the test's own memory, and every stride is 0.
    let value = unsafe { Value::borrow(&memory.value(abi::TENSOR)) }.unwrap();
    let tensor = value.as_tensor().unwrap();
    assert_eq!(tensor.bytes(), 1 << 58);
    assert_eq!((tensor.to_bytes(), tensor.to_f32()), (None, None));
}

#[test]
fn dlpack_holds_a_reference_of_its_own() {
    let value = Value::tensor_f32(&[2], &[1.0, 2.0]).unwrap();
    let managed = value.to_dlpack().unwrap();
    assert_eq!(value.references(), Some(2));
    // SAFETY: alive until its deleter is called, which is done once.
    unsafe {
        let view = managed.as_ref();
        assert_eq!(view.flags & abi::DLPACK_FLAG_BITMASK_READ_ONLY, 1);
        assert_eq!(*view.dl_tensor.data.cast::<f32>().add(1), 2.0);
        (view.deleter.unwrap())(managed.as_ptr());
    }
    assert_eq!(value.references(), Some(1));
    assert!(Value::number(1.0).to_dlpack().is_none());
}
