//! Raw values of any shape that memory can have: adopted or refused, never believed, and each reference given
//! back once.

use std::sync::atomic::{AtomicI64, Ordering};

use kosmograph_abi as abi;
use kosmograph_values::{Checker, Value};
use proptest::prelude::*;

#[path = "../../../tests/fuzz/src/values.rs"]
mod hostile;

/// One value of each counted kind, made here.
fn made() -> [Value; 5] {
    [
        Value::string("a text"),
        Value::list(vec![Value::integer(1), Value::string("an item")]),
        Value::map([("key", Value::number(0.5))]),
        Value::tensor_f32(&[1, 2], &[1.0, 2.0]).unwrap(),
        Value::object_without_interfaces("MODEL"),
    ]
}

proptest! {
    #[test]
    fn whatever_is_handed_out_is_adopted_or_refused(
        data in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        hostile::values(&data);
    }

    /// The values of one call may share parts.
    #[test]
    fn all_values_of_a_call_are_looked_at_by_one(
        calls in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..6),
    ) {
        let mut memory = hostile::Memory::default();
        let raw: Vec<abi::Value> = calls.iter().map(|data| memory.any(data)).collect();
        let mut checker = Checker::default();
        // SAFETY: every pointer is NULL or leads to `memory`, which lives longer than the values.
        let adopted: Vec<_> = raw.iter().map(|raw| unsafe { checker.adopt(*raw) }).collect();
        let sound: Vec<&Value> = adopted.iter().filter_map(|value| value.as_ref().ok()).collect();
        for (a, b) in sound.iter().flat_map(|a| sound.iter().map(move |b| (a, b))) {
            prop_assert!(a.identity().is_none() || a.identity() != b.identity() || a.kind() == b.kind());
        }
    }
}

#[test]
fn what_is_ours_is_what_it_was_made_as() {
    for value in made() {
        for kind in abi::STRING..=abi::OBJECT {
            let raw = abi::Value { kind, ..*value.as_raw() };
            // SAFETY: alive; of another kind it is refused before that is believed.
            match unsafe { Value::borrow(&raw) } {
                Ok(same) => {
                    assert_eq!((kind, value.references()), (value.kind(), Some(2)));
                    assert!(same.is_same(&value));
                }
                Err(malformed) => {
                    let (taken, found) = (abi::kind_name(kind), value.kind_name());
                    // An object and a map are longer than the others.
                    let told = malformed.to_string();
                    let alias = told == format!("is {taken} at the address of {found}");
                    assert!(alias || told.contains(" bytes, where there must be 48"), "{told}");
                    assert_ne!(kind, value.kind());
                }
            }
            assert_eq!(value.references(), Some(1));
        }
    }
}

/// A thing of a library that counts, and could be any kind.
#[repr(C)]
struct Foreign {
    base: abi::Counted,
    words: [usize; 3],
    references: AtomicI64,
}

unsafe extern "C" fn retain(counted: *mut abi::Counted) {
    // SAFETY: only foreign things have this function.
    unsafe { &*counted.cast::<Foreign>() }.references.fetch_add(1, Ordering::Relaxed);
}

unsafe extern "C" fn release(counted: *mut abi::Counted) {
    // SAFETY: as above.
    unsafe { &*counted.cast::<Foreign>() }.references.fetch_sub(1, Ordering::Relaxed);
}

impl Foreign {
    fn new(words: [usize; 3]) -> Self {
        let base = abi::Counted { size: 48, reserved: 0, retain, release };
        Self { base, words, references: AtomicI64::new(1) }
    }

    fn value(&mut self, kind: abi::Kind) -> abi::Value {
        let counted = (&raw mut *self).cast();
        abi::Value { kind, reserved: 0, payload: abi::Payload { counted } }
    }

    fn references(&self) -> i64 {
        self.references.load(Ordering::Relaxed)
    }
}

#[test]
fn each_reference_is_given_back_once() {
    let text = "a text";
    let sound = || Foreign::new([text.as_ptr().addr(), text.len(), 0]);
    let mut string = sound();
    let raw = string.value(abi::STRING);
    // SAFETY: the test's own memory, here and below.
    let adopted = unsafe { Value::adopt(raw) }.unwrap();
    let clone = adopted.clone();
    assert_eq!((adopted.as_str(), string.references()), (Some(text), 2));
    drop((adopted, clone));
    assert_eq!(string.references(), 0);

    let mut string = sound();
    let raw = string.value(abi::STRING);
    let borrowed = unsafe { Value::borrow(&raw) }.unwrap();
    assert_eq!(string.references(), 2);
    drop(borrowed);
    assert_eq!(string.references(), 1);

    // Malformed inside of a sound header: given back. What it holds is its own to give back.
    let mut string = sound();
    let mut items = [string.value(abi::STRING), abi::Value { kind: 9, ..abi::Value::NONE }];
    let mut list = Foreign::new([items.as_mut_ptr().addr(), 2, 0]);
    let raw = list.value(abi::LIST);
    assert!(unsafe { Value::borrow(&raw) }.is_err());
    assert_eq!((list.references(), string.references()), (1, 1));
    assert!(unsafe { Value::adopt(raw) }.is_err());
    assert_eq!((list.references(), string.references()), (0, 1));

    // Something else than it was: nobody knows whose reference that is.
    let mut string = sound();
    let mut checker = Checker::default();
    let values = [abi::STRING, abi::TENSOR].map(|kind| string.value(kind));
    let adopted = values.map(|raw| unsafe { checker.adopt(raw) });
    let told = adopted[1].as_ref().unwrap_err().to_string();
    assert_eq!(told, "is a tensor at the address of a string");
    assert_eq!(string.references(), 1);
}

#[test]
fn a_length_is_no_function_and_a_function_no_length() {
    let text = [7u64; 64];
    let address = text.as_ptr().addr();
    let mut string = Foreign::new([address, size_of_val(&text), 0]);
    let raw = string.value(abi::TENSOR);
    // SAFETY: the test's own memory, here and below.
    let told = unsafe { Value::borrow(&raw) }.unwrap_err();
    assert_eq!(told.to_string(), "is a tensor without to_dlpack");
    let function = release as unsafe extern "C" fn(*mut abi::Counted) as usize;
    for (kind, told) in [
        (abi::STRING, "is a string whose text is longer than memory"),
        (abi::LIST, "values, more than memory holds"),
        (abi::MAP, "keys, more than memory holds"),
    ] {
        // A tensor, or an object whose third word is the function.
        let words = if kind == abi::MAP { [address, 7, function] } else { [address, function, 0] };
        let mut other = Foreign::new(words);
        let raw = other.value(kind);
        let fault = unsafe { Value::borrow(&raw) }.unwrap_err();
        assert!(fault.to_string().contains(told), "{fault}");
    }
}

#[test]
fn a_map_needs_no_order_but_each_key_once() {
    let text = |text: &'static str| abi::Str::new(text);
    let values: Vec<abi::Value> = (0..3).map(abi::Value::integer).collect();
    let of = |keys: &[abi::Str; 3]| -> Result<Option<i64>, String> {
        let mut map = Foreign::new([keys.as_ptr().addr(), values.as_ptr().addr(), 3]);
        let raw = map.value(abi::MAP);
        // SAFETY: the test's own memory; read before it ends.
        let value = unsafe { Value::borrow(&raw) }.map_err(|fault| fault.to_string())?;
        Ok(value.get("a").and_then(Value::as_i64))
    };
    assert_eq!(of(&[text("z"), text("a"), text("m")]), Ok(Some(1)));
    assert_eq!(
        of(&[text("z"), text("a"), text("z")]),
        Err("is a map with the key \"z\" twice".into())
    );
}

#[test]
fn of_two_pairs_with_one_key_the_first_is_made() {
    let map = Value::map(["a", "b", "a", "c", "b"].into_iter().zip((0..).map(Value::integer)));
    let pairs: Vec<_> = map.pairs().map(|(key, value)| (key, value.as_i64())).collect();
    assert_eq!(pairs, [("a", Some(0)), ("b", Some(1)), ("c", Some(3))]);
    // SAFETY: alive.
    assert!(unsafe { Value::borrow(map.as_raw()) }.is_ok());
}
