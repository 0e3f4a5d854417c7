//! Values made up from a descriptor: ones a node must take, and ones it must refuse.

use kosmograph_abi as abi;
use kosmograph_abi::DLDataType;
use kosmograph_values::place::played_elsewhere;

use crate::catalogue::{InputDescriptor, InputKind};
use crate::plugin::kind_of_type;
use crate::value::Value;

/// A value that fits an input, or that at least has its kind.
pub(super) struct Synthetic {
    pub value: Value,
    /// Whether a node can work with it; an object without behaviour it can only refuse.
    pub complete: bool,
}

/// Height and width of made-up pictures: enough for a few kernels and a downscale by eight.
const SIDE: i64 = 32;

/// A tensor of numbers in 0..1 that differ from their neighbours. The numbers are those of Weyl's
/// sequence: even, and the same each time.
fn numbers(count: i64) -> Vec<f32> {
    (1..=count).map(|i| (i as f64 * 0.618_033_988_749_895).fract() as f32).collect()
}

pub(super) fn tensor(shape: &[i64]) -> Value {
    let values = numbers(shape.iter().product());
    // As many numbers as the shape says, and small.
    Value::tensor_f32(shape, &values).unwrap_or(Value::NONE)
}

/// What a socket of this type takes; `None` where it takes an object or something unknown.
fn socket(type_name: &str) -> Option<Value> {
    let map = |pairs: &[(&str, Value)]| {
        Value::map(pairs.iter().map(|(key, value)| (*key, value.clone())))
    };
    Some(match type_name {
        "IMAGE" => tensor(&[1, SIDE, SIDE, 3]),
        "MASK" => tensor(&[1, SIDE, SIDE]),
        "IMAGE_TOKENS" => tensor(&[1, 4, 16]),
        "LATENT" => map(&[("samples", tensor(&[1, 4, 8, 8]))]),
        "HIDDEN_STATES" => {
            map(&[("hidden_states", tensor(&[1, 8, 16])), ("mask", tensor(&[1, 8]))])
        }
        "CONDITIONING" => Value::list(vec![map(&[("context", tensor(&[1, 77, 16]))])]),
        "*" => Value::string("anything"),
        _ => return None,
    })
}

/// A value for `input`; `picture` is the path of a small PNG.
pub(super) fn synthesise(input: &InputDescriptor, picture: &str) -> Synthetic {
    let complete = |value| Synthetic { value, complete: true };
    let incomplete = |value| Synthetic { value, complete: false };
    match &input.kind {
        InputKind::Int { default, min, max, .. } => {
            complete(integer(default.unwrap_or_else(|| 0.clamp(*min, *max)), *max))
        }
        InputKind::Float { default, min, max, .. } => {
            let (min, max) = (min.unwrap_or(f64::MIN), max.unwrap_or(f64::MAX));
            complete(Value::number(default.unwrap_or_else(|| 0f64.clamp(min, max))))
        }
        InputKind::Text { default, .. } => {
            complete(Value::string(default.as_deref().unwrap_or("a photograph")))
        }
        InputKind::Boolean { default } => complete(Value::boolean(default.unwrap_or_default())),
        InputKind::Combo { default, choices, .. } => {
            let choice = default.as_deref().or(choices.first().map(String::as_str));
            complete(Value::string(choice.unwrap_or_default()))
        }
        // Of files only pictures can be made up.
        InputKind::Path { none: Some(_), .. } => complete(Value::NONE),
        InputKind::Path { folder, .. } if folder == "input" => complete(Value::string(picture)),
        InputKind::Path { .. } => incomplete(Value::string("/there/is/no/such/file")),
        InputKind::Socket if input.optional => complete(Value::NONE),
        InputKind::Socket => {
            let mut types = input.type_name.split(',').map(str::trim);
            let first = types.clone().next().unwrap_or_default();
            match types.find_map(socket) {
                Some(value) => complete(value),
                None => incomplete(Value::object_without_interfaces(first)),
            }
        }
    }
}

fn integer(value: i128, max: i128) -> Value {
    match InputKind::is_unsigned(max) {
        true => Value::natural(value as u64),
        false => Value::integer(value as i64),
    }
}

/// A value that must be refused, and what it is: "called with image = an integer".
pub(super) struct Wrong {
    pub what: String,
    pub value: Value,
}

/// Values of kinds that `input` does not take.
pub(super) fn wrong_kinds(input: &InputDescriptor) -> Vec<Wrong> {
    let types: Vec<&str> = input.type_name.split(',').map(str::trim).collect();
    // A socket for everything takes everything; a type of the library's own is an object by its name,
    // but may as well be a tensor.
    let own = matches!(input.kind, InputKind::Socket)
        && types.iter().any(|name| *name == "*" || kind_of_type(name).is_none());
    let kinds: Vec<abi::Kind> = types.iter().filter_map(|name| kind_of_type(name)).collect();
    let mut candidates = vec![
        Value::string("text where none belongs"),
        Value::list(vec![]),
        tensor(&[2, 2]),
        Value::object_without_interfaces("KOSMOGRAPH_TEST"),
    ];
    let number = kinds.iter().any(|kind| matches!(*kind, abi::INT | abi::FLOAT | abi::BOOL));
    // Among numbers a library may convert; elsewhere they are wrong.
    if !number {
        candidates.push(Value::integer(3));
    }
    let takes = |value: &Value| match value.kind() {
        // Of an object the type counts too, and this one has none that anybody takes.
        abi::OBJECT => types.contains(&"*"),
        // This shape fits no socket, so it is wrong where tensors are taken as well.
        abi::TENSOR => own,
        kind => own || kinds.contains(&kind),
    };
    candidates
        .into_iter()
        .filter(|value| !takes(value))
        .map(|value| Wrong { what: described(&value), value })
        .collect()
}

fn described(value: &Value) -> String {
    match value.tensor_shape() {
        Some(shape) => format!("a tensor of shape {shape:?}"),
        None => value.kind_name().to_owned(),
    }
}

/// Values of the right kind that lie outside of what `input` declares.
pub(super) fn out_of_range(input: &InputDescriptor) -> Vec<Wrong> {
    match &input.kind {
        InputKind::Int { min, max, .. } => {
            let representable = match InputKind::is_unsigned(*max) {
                true => 0..=i128::from(u64::MAX),
                false => i128::from(i64::MIN)..=i128::from(i64::MAX),
            };
            [min - 1, max + 1]
                .into_iter()
                .filter(|value| representable.contains(value))
                .map(|value| Wrong { what: value.to_string(), value: integer(value, *max) })
                .collect()
        }
        InputKind::Float { min, max, .. } => {
            let below = min.map(|min| min - 1.0).filter(|below| Some(*below) != *min);
            let above = max.map(|max| max + 1.0).filter(|above| Some(*above) != *max);
            [below, above, Some(f64::NAN)]
                .into_iter()
                .flatten()
                .map(|value| Wrong { what: value.to_string(), value: Value::number(value) })
                .collect()
        }
        InputKind::Combo { .. } => {
            let value = Value::string("no such choice");
            vec![Wrong { what: "a choice that does not exist".to_owned(), value }]
        }
        InputKind::Path { .. } => {
            let value = Value::string("/there/is/no/such/file");
            vec![Wrong { what: "a file that does not exist".to_owned(), value }]
        }
        InputKind::Text { .. } | InputKind::Boolean { .. } | InputKind::Socket => Vec::new(),
    }
}

/// Tensors that have the right kind and are not what the socket's type promises.
pub(super) fn wrong_shapes(input: &InputDescriptor) -> Vec<Wrong> {
    let shape: &[i64] = match input.type_name.as_str() {
        "IMAGE" => &[1, SIDE, SIDE, 3],
        "MASK" => &[1, SIDE, SIDE],
        "IMAGE_TOKENS" => &[1, 4, 16],
        _ => return Vec::new(),
    };
    let mut empty = shape.to_vec();
    empty[1] = 0;
    let mut deeper = shape.to_vec();
    deeper.push(1);
    let count: i64 = shape.iter().product();
    let f64s: Vec<u8> = numbers(count).iter().flat_map(|&x| f64::from(x).to_ne_bytes()).collect();
    let dtype = DLDataType { bits: 64, ..DLDataType::F32 };
    let tensors = [
        (format!("of shape {empty:?}"), Some(tensor(&empty))),
        (format!("of shape {deeper:?}"), Some(tensor(&deeper))),
        ("of no axes".to_owned(), Some(tensor(&[]))),
        ("of f64".to_owned(), Value::tensor(dtype, shape, &f64s)),
    ];
    let wrong = |(what, value): (String, Option<Value>)| {
        Some(Wrong { what: format!("a tensor {what}"), value: value? })
    };
    tensors.into_iter().filter_map(wrong).collect()
}

/// The same with its tensors on a device of nobody's, from which only a tensor's own view leads to the numbers;
/// `None` for what holds no tensor of f32.
pub(super) fn elsewhere(value: &Value) -> Option<Value> {
    if value.kind() == abi::TENSOR {
        return played_elsewhere(value);
    }
    let parts: Vec<&Value> = match value.kind() {
        abi::LIST => value.items().iter().collect(),
        _ => value.pairs().map(|(_, part)| part).collect(),
    };
    let moved: Vec<Option<Value>> = parts.iter().map(|part| elsewhere(part)).collect();
    if moved.iter().all(Option::is_none) {
        return None;
    }
    let whole = parts.into_iter().zip(moved);
    let whole = whole.map(|(part, moved)| moved.unwrap_or_else(|| part.clone()));
    Some(match value.kind() {
        abi::LIST => Value::list(whole.collect()),
        _ => Value::map(value.pairs().map(|(key, _)| key).zip(whole)),
    })
}

/// The same numbers, laid out so that they do not follow each other; `None` for what is no tensor.
pub(super) fn strided(value: &Value) -> Option<Value> {
    let tensor = value.as_tensor()?;
    let shape = tensor.shape();
    // The first axis becomes the innermost, with a gap after each element.
    let mut strides = vec![0; shape.len()];
    let mut step = 2;
    for (axis, &n) in shape.iter().enumerate() {
        strides[axis] = step;
        step *= n + 1;
    }
    Value::tensor_strided_f32(shape, &strides, &tensor.to_f32()?)
}
