//! Objects of another library that break node.h: what they give is looked at before it is believed.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::Mutex;

use node::testing::Host;
use node::*;
use proptest::prelude::*;

#[path = "../../../tests/fuzz/src/values.rs"]
#[expect(dead_code, reason = "what reads the values is for those who see them")]
mod hostile;

/// A foreign object, all of whose interfaces write the next of its answers: a map, or something else.
#[repr(C)]
struct Foreign {
    object: abi::Object,
    table: Table,
    answers: Mutex<VecDeque<abi::Value>>,
}

unsafe extern "C" fn count(_: *mut abi::Counted) {}

/// [`abi::Interface`] without its function.
#[repr(C)]
struct Empty {
    size: u32,
    reserved: u32,
    call: usize,
    flags: u64,
}

static EMPTY: Empty = Empty { size: size_of::<Empty>() as u32, reserved: 0, call: 0, flags: 0 };
/// As a library has it that was built with the draft of node.h, whose interfaces took arrays.
static DRAFT: Empty = Empty { size: 16, reserved: 0, call: 8, flags: 0 };
static ANSWER: abi::Interface = abi::Interface {
    size: size_of::<abi::Interface>() as u32,
    reserved: 0,
    call: answer,
    flags: 0,
};

/// The table of the interface that an object offers.
#[derive(Clone, Copy)]
enum Table {
    Whole,
    Empty,
    Draft,
}

unsafe extern "C" fn query(object: *mut abi::Object, _: abi::Str) -> *const abi::Interface {
    // SAFETY: only foreign objects have this function.
    match unsafe { (*object.cast::<Foreign>()).table } {
        Table::Whole => &raw const ANSWER,
        Table::Empty => (&raw const EMPTY).cast(),
        Table::Draft => (&raw const DRAFT).cast(),
    }
}

unsafe extern "C" fn answer(
    object: *mut abi::Object,
    _: *const abi::Context,
    _: *const abi::Map,
    output: *mut *mut abi::Map,
) -> abi::Status {
    // SAFETY: only foreign objects have this interface.
    let answers = unsafe { &(*object.cast::<Foreign>()).answers };
    let Some(answer) = answers.lock().ok().and_then(|mut answers| answers.pop_front()) else {
        return abi::ERROR;
    };
    // SAFETY: sixty-four bits, which may be a pointer; node.h: where a map is written.
    unsafe { output.write(answer.payload.map) };
    abi::OK
}

fn base<T>() -> abi::Counted {
    abi::Counted { size: size_of::<T>() as u32, reserved: 0, retain: count, release: count }
}

/// What is there for ever, as a library may hand it out.
fn keep<T>(thing: T) -> *mut T {
    Box::into_raw(Box::new(thing))
}

fn of_kind<T>(kind: abi::Kind, counted: *mut T) -> abi::Value {
    abi::Value { kind, reserved: 0, payload: abi::Payload { counted: counted.cast() } }
}

fn text(text: abi::Str) -> abi::Value {
    of_kind(abi::STRING, keep(abi::KgString { base: base::<abi::KgString>(), text }))
}

fn map(keys: &[&'static str], values: &[abi::Value]) -> abi::Value {
    let keys: Vec<abi::Str> = keys.iter().map(|key| abi::Str::new(key)).collect();
    let (keys, values) = (keys.leak(), values.to_vec().leak());
    let base = base::<abi::Map>();
    let (count, keys, values) = (keys.len(), keys.as_ptr(), values.as_ptr());
    of_kind(abi::MAP, keep(abi::Map { base, keys, values, count }))
}

unsafe extern "C" fn no_dlpack(_: *mut abi::Tensor) -> *mut abi::DLManagedTensorVersioned {
    null_mut()
}

/// An f32 tensor on the CPU with whatever `change` makes of its view.
fn tensor(shape: &[i64], change: impl FnOnce(&mut abi::DLTensor)) -> abi::Value {
    let mut dl_tensor = abi::DLTensor {
        data: [0.5f32; 16].to_vec().leak().as_mut_ptr().cast(),
        device: abi::DLDevice::CPU,
        ndim: shape.len() as i32,
        dtype: abi::DLDataType::F32,
        shape: shape.to_vec().leak().as_mut_ptr(),
        strides: null_mut(),
        byte_offset: 0,
    };
    change(&mut dl_tensor);
    let dl = keep(abi::DLManagedTensorVersioned {
        version: abi::DLPackVersion::CURRENT,
        manager_ctx: null_mut(),
        deleter: None,
        flags: abi::DLPACK_FLAG_BITMASK_READ_ONLY,
        dl_tensor,
    });
    let base = base::<abi::Tensor>();
    of_kind(abi::TENSOR, keep(abi::Tensor { base, dl, to_dlpack: no_dlpack, view: None }))
}

/// A foreign object of `type_name` that gives these answers.
fn object(type_name: &'static str, answers: impl IntoIterator<Item = abi::Value>) -> Object {
    with_table(type_name, answers, Table::Whole)
}

fn with_table(
    type_name: &'static str,
    answers: impl IntoIterator<Item = abi::Value>,
    table: Table,
) -> Object {
    let object =
        abi::Object { base: base::<abi::Object>(), type_name: abi::Str::new(type_name), query };
    let answers = Mutex::new(answers.into_iter().collect());
    let raw = of_kind(abi::OBJECT, keep(Foreign { object, table, answers }));
    // SAFETY: an object as node.h wants it, alive for ever.
    unsafe { Value::adopt(raw) }.unwrap().as_object().unwrap()
}

/// Calls "denoiser/1".
fn denoise(model: &Object) -> Result<Tensor> {
    let tensor = |shape: &[usize]| Tensor::from_f32(shape, vec![1.0; 4]).unwrap();
    let (x, context) = (tensor(&[1, 1, 2, 2]), tensor(&[1, 2, 2]));
    let timestep = Tensor::from_f32(&[1], vec![1.0]).unwrap();
    model.denoise(&Host::new().context(), x, timestep, context, vec![])
}

/// A map with this "prediction".
fn predicts(value: abi::Value) -> abi::Value {
    map(&["prediction"], &[value])
}

/// How the sentence ends that says whose mistake it is: the file that holds these objects.
fn blame() -> String {
    let file = std::env::current_exe().unwrap();
    let name = file.file_name().unwrap().to_str().unwrap().to_owned();
    format!("; its library {name} breaks the boundary's rules")
}

#[track_caller]
fn assert_told(error: Error, told: &str) {
    let error = error.to_string();
    assert!(error.contains(told) && error.ends_with(&blame()), "{error}");
}

#[test]
fn what_another_library_gives_is_that_librarys_error() {
    const NULL_BYTES: abi::Str = abi::Str { ptr: null(), len: 5 };
    static BYTE: [u8; 1] = [0xff];
    let not_utf8 = abi::Str { ptr: BYTE.as_ptr().cast(), len: 1 };
    let endless = abi::Str { ptr: BYTE.as_ptr().cast(), len: usize::MAX };
    let null_text = text(NULL_BYTES);
    let unknown = abi::Value { kind: 77, ..abi::Value::integer(5) };
    let number = abi::Value::integer(1);
    let extreme = [i64::MAX / 2, 1].to_vec().leak().as_mut_ptr();
    for (value, told) in [
        (of_kind::<c_void>(abi::STRING, null_mut()), "is a string at NULL"),
        (of_kind::<c_void>(abi::TENSOR, null_mut()), "is a tensor at NULL"),
        (of_kind(abi::TENSOR, 9 as *mut c_void), "is a tensor at an address not aligned to 8"),
        (unknown, "is of kind 77"),
        (abi::Value { kind: abi::BOOL, ..abi::Value::integer(2) }, "is a boolean of 2"),
        (null_text, "is a string whose text is NULL but has a length"),
        (text(not_utf8), "is a string whose text is not UTF-8"),
        (text(endless), "is a string whose text is longer than memory"),
        (map(&["b", "a", "b"], &[number; 3]), "is a map with the key \"b\" twice"),
        (map(&["a", "b"], &[number, null_text]), "is a map whose \"b\" is a string whose text"),
        (tensor(&[2, -3], |_| ()), "is a tensor whose shape [2, -3] cannot be"),
        (tensor(&[i64::MAX, 4], |_| ()), "cannot be"),
        (tensor(&[2, 2], |dl| dl.strides = extreme), "reach further than memory"),
        (tensor(&[2, 2], |dl| dl.shape = null_mut()), "is a tensor of 2 axes without a shape"),
        (tensor(&[2, 2], |dl| dl.data = null_mut()), "of shape [2, 2] without data"),
        (tensor(&[2, 2], |dl| dl.ndim = -1), "is a tensor of -1 axes"),
        (tensor(&[2, 2], |dl| dl.byte_offset = u64::MAX), "behind its data"),
        (tensor(&[2, 2], |dl| dl.dtype.bits = 4), "with 4 bits"),
    ] {
        let error = denoise(&object("MODEL", [predicts(value)])).unwrap_err();
        let begin = "\"denoiser/1\" of this MODEL gave a value that is a map whose \"prediction\" ";
        assert!(error.to_string().starts_with(begin), "{error}");
        assert_told(error, told);
    }
    let twice = map(&["prediction", "b", "prediction"], &[number; 3]);
    for (answer, told) in [
        (of_kind::<c_void>(abi::MAP, null_mut()), "says it is done, but gives no map"),
        (of_kind(abi::MAP, 9 as *mut c_void), "is a map at an address not aligned to 8"),
        (null_text, "is a map of 40 bytes, where there must be 48"),
        (twice, "is a map with the key \"prediction\" twice"),
        (map(&[], &[]), "gave a wrong \"prediction\": a tensor [B,*,H,W] is missing"),
        (predicts(text(abi::Str::new("a"))), "is wanted, but a string was given"),
        (predicts(tensor(&[1, 1, 2, 3], |_| ())), "so W of [B,*,H,W] is 3, but it is 2"),
    ] {
        assert_told(denoise(&object("MODEL", [answer])).unwrap_err(), told);
    }
    let no_function = with_table("MODEL", [], Table::Empty);
    assert_told(denoise(&no_function).unwrap_err(), "\"denoiser/1\" of this MODEL has no function");
    let draft = with_table("MODEL", [], Table::Draft);
    assert_told(
        denoise(&draft).unwrap_err(),
        "has 16 bytes, not 24: its library was built with another",
    );
}

#[test]
fn a_map_is_read_in_whatever_order_its_keys_are() {
    let number = abi::Value::integer;
    let raw = map(&["z", "a", "m"], &[number(1), number(2), number(3)]);
    // SAFETY: a map as node.h wants it, alive for ever.
    let map = unsafe { Value::adopt(raw) }.unwrap();
    let found = ["a", "m", "z", "b"].map(|key| map.get(key).and_then(|value| value.as_i64()));
    assert_eq!(found, [Some(2), Some(3), Some(1), None]);
    assert_eq!(map.pairs().map(|(key, _)| key).collect::<Vec<_>>(), ["z", "a", "m"]);
    let changed = map.with("a", 9i64.into());
    assert_eq!(
        changed.pairs().filter_map(|(_, value)| value.as_i64()).collect::<Vec<_>>(),
        [1, 9, 3]
    );
}

/// One pointer as a STRING and as a TENSOR: in one answer, and in a later one.
#[test]
fn one_address_is_one_thing() {
    let cx = Host::new();
    let cx = cx.context();
    let sound = tensor(&[1, 2, 2], |_| ());
    let alias = abi::Value { kind: abi::STRING, ..sound };
    let answer = |values: [abi::Value; 2]| map(&["context", "note"], &values);
    let clip = object("CLIP", [answer([sound, alias]), answer([sound, sound])]);
    let told = "whose \"note\" is a string at the address of a tensor";
    assert_told(clip.encode_text(&cx, "a").unwrap_err(), told);
    assert!(clip.encode_text(&cx, "a").is_ok(), "one tensor may be two things");
    let clip = object("CLIP", [answer([alias, sound])]);
    let told = "whose \"context\" is a string whose text is longer than memory";
    assert_told(clip.encode_text(&cx, "a").unwrap_err(), told);

    // Its first bytes are those of a DLPack version.
    for length in [8, 100, 1 << 13] {
        let bytes = [vec![1u8], vec![0; length - 1]].concat().leak();
        let string = text(abi::Str { ptr: bytes.as_ptr().cast(), len: length });
        let alias = abi::Value { kind: abi::TENSOR, ..string };
        let model = object("MODEL", [predicts(string), predicts(alias)]);
        assert_told(denoise(&model).unwrap_err(), "is wanted, but a string was given");
        assert_told(denoise(&model).unwrap_err(), "whose \"prediction\" is a tensor ");
    }
}

#[test]
fn what_this_library_made_comes_back_as_what_it_is() {
    let made = Value::string("made here");
    let alias = abi::Value { kind: abi::TENSOR, ..*made.as_raw() };
    let error = denoise(&object("MODEL", [predicts(alias)])).unwrap_err();
    assert_told(error, "is a tensor at the address of a string");
    assert_eq!(made.as_str(), Some("made here"));
}

proptest! {
    /// Whatever an interface writes: values or a sentence.
    #[test]
    fn an_answer_of_any_shape_is_values_or_a_sentence(
        data in prop::collection::vec(any::<u8>(), 0..400),
        more in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut memory = hostile::Memory::default();
        let values = [memory.any(&data), memory.any(&more)];
        // Only what is counted is a pointer that leads somewhere.
        let whole = Some(memory.any(&data)).filter(abi::Value::is_counted);
        let whole = whole.unwrap_or(of_kind::<c_void>(abi::MAP, null_mut()));
        let answers = [map(&["context", "pooled"], &values), map(&["description"], &values[..1]), whole];
        let clip = object("CLIP", answers);
        match clip.encode_text(&Host::new().context(), "a") {
            Ok((context, _)) => prop_assert_eq!(context.shape().len(), context.dl().ndim as usize),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
        // A text of a few letters may be JSON, as a digit is, but says nothing by name.
        for _ in 0..2 {
            let said = clip.describe(&Host::new().context());
            prop_assert!(said.is_err() || said.is_ok_and(|said| !said.is_object()));
        }
    }
}
