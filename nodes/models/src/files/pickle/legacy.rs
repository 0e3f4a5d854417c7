//! The format of `torch.save` before 1.6: five pickles, then the storages one after the other.
//!
//! The pickles are a magic number, a protocol version, what the machine was like, the object, and
//! the keys of the storages in their order. A storage is its number of elements, 8 bytes, and the
//! elements.

use std::collections::HashMap;
use std::ops::Range;

use super::error::PickleError;
use super::layout::{Contents, element_size, lay_out};
use super::machine::{Budget, Node, Outcome, Value, run};

/// `0x1950a86a20f9469cfc6c` as LONG1, and STOP; a protocol of its own comes before.
const MAGIC: &[u8] = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// Does the file begin so?
pub(super) fn begins(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x80) && bytes.get(2..).is_some_and(|rest| rest.starts_with(MAGIC))
}

/// The tensors of the whole file.
pub(super) fn contents(bytes: &[u8], budget: &mut Budget) -> Result<Contents, PickleError> {
    let version = run(bytes, 2 + MAGIC.len(), 0, budget)?;
    if version.root != Value::Int(1001) {
        let problem = "its protocol is not torch's 1001".to_owned();
        return Err(PickleError::NotTorch(problem));
    }
    let system = run(bytes, version.end, 0, budget)?;
    if is_big_endian(&system) {
        return Err(PickleError::ByteOrder("big".to_owned()));
    }
    let object = run(bytes, system.end, 0, budget)?;
    let keys = run(bytes, object.end, 0, budget)?;
    let storages = storages(bytes, &object, &keys, budget)?;
    lay_out(&object, &storages, budget)
}

fn is_big_endian(system: &Outcome<'_>) -> bool {
    let node = |value: Value| match value {
        Value::Node(number) => system.nodes.get(number as usize),
        _ => None,
    };
    let Some(Node::Dict(pairs)) = node(system.root) else { return false };
    let is_order =
        |key: Value| matches!(node(key), Some(Node::Text(key)) if key == "little_endian");
    pairs.iter().any(|(key, value)| is_order(*key) && *value == Value::Bool(false))
}

/// Where each storage lies, from the keys in their order and the types that the object gives them.
fn storages(
    bytes: &[u8],
    object: &Outcome<'_>,
    keys: &Outcome<'_>,
    budget: &mut Budget,
) -> Result<HashMap<String, Range<usize>>, PickleError> {
    let mut sizes: HashMap<&str, usize> = HashMap::new();
    for node in &object.nodes {
        if let Node::Storage(storage) = node {
            sizes.insert(&storage.key, element_size(storage.dtype));
        }
    }
    let node = |value: Value| match value {
        Value::Node(number) => keys.nodes.get(number as usize),
        _ => None,
    };
    let Some(Node::List(list)) = node(keys.root) else {
        return Err(PickleError::NotTorch("it has no list of its storages".to_owned()));
    };
    let mut at = keys.end;
    let mut storages = HashMap::new();
    for key in list {
        let key = match (node(*key), key) {
            (Some(Node::Text(key)), _) => key.clone().into_owned(),
            (_, Value::Int(key)) => key.to_string(),
            _ => return Err(PickleError::NotTorch("a storage's key is no text".to_owned())),
        };
        let damaged = |problem: String| PickleError::Tensor { name: key.clone(), problem };
        // A storage that nothing refers to has a type nobody knows.
        let size = sizes.get(&*key).copied();
        let size = size.ok_or_else(|| damaged("is a storage that nothing uses".to_owned()))?;
        budget.charge(2 * (key.len() + size_of::<(String, Range<usize>)>()), at)?;
        let head = bytes.get(at..at.saturating_add(8)).and_then(|head| head.try_into().ok());
        let count = u64::from_le_bytes(head.ok_or(PickleError::Truncated { at: bytes.len() })?);
        let start = at + 8;
        let length = usize::try_from(count).ok().and_then(|count| count.checked_mul(size));
        let end = length.and_then(|length| start.checked_add(length));
        let end = end.filter(|end| *end <= bytes.len()).ok_or_else(|| {
            damaged(format!(
                "is a storage of {count} elements at byte {start}, more than the file's {} bytes: \
                 truncated",
                bytes.len()
            ))
        })?;
        if storages.insert(key.clone(), start..end).is_some() {
            return Err(damaged("is a storage that is listed twice".to_owned()));
        }
        at = end;
    }
    if at != bytes.len() {
        let rest = bytes.len() - at;
        let problem = format!("{rest} bytes follow its last storage");
        return Err(PickleError::NotTorch(problem));
    }
    Ok(storages)
}
