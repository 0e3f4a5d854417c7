//! From the values of a pickle to named tensors, each a range of the file.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use safetensors::tensor::Dtype;

use super::error::PickleError;
use super::machine::{Budget, Node, Outcome, TensorRef, Value, shortened};

/// How deep containers may lie in each other; checkpoints have four or five levels.
const MAX_DEPTH: usize = 64;

/// A tensor in a torch file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Elements from one index to the next, for each dimension.
    pub strides: Vec<usize>,
    /// The bytes of the file from its first element to its last.
    pub bytes: Range<usize>,
}

impl TensorInfo {
    /// Are its bytes its elements in order, without gaps?
    pub fn is_contiguous(&self) -> bool {
        contiguous_strides(&self.shape)
            .zip(self.strides.iter().rev())
            .zip(self.shape.iter().rev())
            .all(|((wanted, stride), length)| *length == 1 || wanted == *stride)
            || self.shape.contains(&0)
    }

    /// Bytes of all its elements.
    pub fn byte_length(&self) -> usize {
        self.shape.iter().product::<usize>() * element_size(self.dtype)
    }
}

/// The strides of a contiguous tensor, from the last dimension to the first.
fn contiguous_strides(shape: &[usize]) -> impl Iterator<Item = usize> {
    shape.iter().rev().scan(1usize, |stride, length| {
        let this = *stride;
        *stride = stride.saturating_mul(*length);
        Some(this)
    })
}

/// Bytes of one element; every type that `globals` knows has whole ones.
pub(super) fn element_size(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}

/// A value beside the tensors.
#[derive(Clone, Debug, PartialEq)]
pub enum Plain {
    Text(String),
    Bool(bool),
    Int(i64),
    Float(f64),
}

/// What a file holds.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Contents {
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    /// The plain values that stand in the outermost dictionary, by their keys.
    pub(super) plain: BTreeMap<String, Plain>,
}

/// Names the tensors below the root by their path, and finds each in the storages of the file.
pub(super) fn lay_out(
    outcome: &Outcome<'_>,
    storages: &HashMap<String, Range<usize>>,
    budget: &mut Budget,
) -> Result<Contents, PickleError> {
    let mut walk = Walk { nodes: &outcome.nodes, storages, budget, found: BTreeMap::new() };
    walk.visit(outcome.root, &mut String::new(), 0)?;
    let plain = walk.plain(outcome.root)?;
    Ok(Contents { tensors: walk.found, plain })
}

struct Walk<'n, 'a, 'b> {
    nodes: &'n [Node<'a>],
    storages: &'n HashMap<String, Range<usize>>,
    budget: &'b mut Budget,
    found: BTreeMap<String, TensorInfo>,
}

impl Walk<'_, '_, '_> {
    fn visit(&mut self, value: Value, path: &mut String, depth: usize) -> Result<(), PickleError> {
        let Value::Node(number) = value else { return Ok(()) };
        let nodes = self.nodes;
        let Some(node) = nodes.get(number as usize) else { return Ok(()) };
        if depth > MAX_DEPTH {
            return Err(PickleError::TooDeep { limit: MAX_DEPTH });
        }
        // A container that is reached on many ways is walked on each of them: the visits are what a
        // bomb of a few bytes multiplies.
        let items = match node {
            Node::Dict(pairs) => pairs.len(),
            Node::List(items) | Node::Tuple(items) => items.len(),
            _ => 0,
        };
        self.budget.charge(16 * (1 + items), 0)?;
        match node {
            Node::Tensor(tensor) => {
                self.budget.charge(path.len() + size_of::<TensorInfo>(), 0)?;
                let info = locate(tensor, self.storages)
                    .map_err(|problem| PickleError::Tensor { name: shortened(path), problem })?;
                if self.found.insert(path.clone(), info).is_some() {
                    let problem = "is in it twice under the same name".to_owned();
                    return Err(PickleError::Tensor { name: shortened(path), problem });
                }
            }
            Node::Dict(pairs) => {
                for (position, (key, value)) in self.last_of_each(pairs).into_iter().enumerate() {
                    let name = self.key_name(key, position);
                    self.below(&name, value, path, depth)?;
                }
            }
            Node::List(items) | Node::Tuple(items) => {
                for (position, item) in items.iter().enumerate() {
                    if let Value::Node(_) = item {
                        self.below(&position.to_string(), *item, path, depth)?;
                    }
                }
            }
            Node::Text(_)
            | Node::Global { .. }
            | Node::Storage(_)
            | Node::ParameterDict
            | Node::Ignored => (),
        }
        Ok(())
    }

    /// The plain values of the dictionary `root`; none where it is another thing.
    fn plain(&mut self, root: Value) -> Result<BTreeMap<String, Plain>, PickleError> {
        let node = |value: Value| match value {
            Value::Node(number) => self.nodes.get(number as usize),
            _ => None,
        };
        let Some(Node::Dict(pairs)) = node(root) else { return Ok(BTreeMap::new()) };
        let mut all = BTreeMap::new();
        for (key, value) in pairs {
            let Some(Node::Text(key)) = node(*key) else { continue };
            let value = match (value, node(*value)) {
                (_, Some(Node::Text(text))) => Plain::Text(text.clone().into_owned()),
                (Value::Bool(value), _) => Plain::Bool(*value),
                (Value::Int(value), _) => Plain::Int(*value),
                (Value::Float(value), _) => Plain::Float(*value),
                _ => continue,
            };
            let length = if let Plain::Text(text) = &value { text.len() } else { 0 };
            self.budget.charge(key.len() + length + size_of::<(String, Plain)>(), 0)?;
            all.insert(key.clone().into_owned(), value);
        }
        Ok(all)
    }

    fn below(
        &mut self,
        name: &str,
        value: Value,
        path: &mut String,
        depth: usize,
    ) -> Result<(), PickleError> {
        self.budget.charge(name.len(), 0)?;
        let length = path.len();
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(name);
        self.visit(value, path, depth + 1)?;
        path.truncate(length);
        Ok(())
    }

    /// The pairs whose values may lead to a tensor; of those with one text for their key, the last.
    fn last_of_each(&self, pairs: &[(Value, Value)]) -> Vec<(Value, Value)> {
        let mut place: HashMap<&str, usize> = HashMap::new();
        let mut kept: Vec<(Value, Value)> = Vec::new();
        for (key, value) in pairs {
            let text = match key {
                Value::Node(number) => match self.nodes.get(*number as usize) {
                    Some(Node::Text(text)) => Some(&**text),
                    _ => None,
                },
                _ => None,
            };
            match text.map(|text| (text, place.get(text))) {
                Some((_, Some(at))) => kept[*at] = (*key, *value),
                Some((text, None)) => {
                    place.insert(text, kept.len());
                    kept.push((*key, *value));
                }
                None => kept.push((*key, *value)),
            }
        }
        kept
    }

    fn key_name(&self, key: Value, position: usize) -> String {
        match key {
            Value::Int(key) => key.to_string(),
            Value::Float(key) => key.to_string(),
            Value::Bool(key) => key.to_string(),
            Value::None => "None".to_owned(),
            Value::Node(number) => match self.nodes.get(number as usize) {
                Some(Node::Text(text)) => text.clone().into_owned(),
                Some(Node::Global { module, name, .. }) => format!("{module}.{name}"),
                _ => format!("#{position}"),
            },
        }
    }
}

/// Where the tensor's bytes are; the end of a sentence where they cannot be.
fn locate(
    tensor: &TensorRef,
    storages: &HashMap<String, Range<usize>>,
) -> Result<TensorInfo, String> {
    let storage = &tensor.storage;
    let key = shortened(&storage.key);
    let range = storages.get(&storage.key);
    let range =
        range.ok_or_else(|| format!("is in the storage `{key}`, which is not in the file"))?;
    let said = storage.elements.checked_mul(element_size(storage.dtype) as u64);
    if said != Some(range.len() as u64) {
        return Err(format!(
            "is in the storage `{key}`, which is said to have {} elements of {:?} but has {} bytes",
            storage.elements,
            storage.dtype,
            range.len()
        ));
    }
    let size = element_size(tensor.dtype);
    let (shape, strides) = (tensor.shape.clone(), tensor.strides.clone());
    let too_large = || format!("has the impossibly large shape {shape:?}");
    let count = shape.iter().try_fold(1usize, |n, length| n.checked_mul(*length));
    let count = count.ok_or_else(too_large)?;
    let total = count.checked_mul(size).ok_or_else(too_large)?;
    if total > range.len() {
        return Err(format!(
            "has the shape {shape:?}, {total} bytes, but its storage `{key}` has {}",
            range.len()
        ));
    }
    let outside = || {
        format!(
            "has the shape {shape:?} with the strides {strides:?} from element {} on, which leaves \
             its storage `{key}` of {} bytes",
            tensor.offset,
            range.len()
        )
    };
    let view = storage.view.checked_mul(element_size(storage.dtype) as u64);
    let begin = tensor.offset.checked_mul(size as u64);
    let begin = view.zip(begin).and_then(|(view, begin)| view.checked_add(begin));
    let begin = begin.and_then(|begin| usize::try_from(begin).ok()).ok_or_else(outside)?;
    let length = if count == 0 {
        0
    } else {
        let mut last = 0usize;
        for (length, stride) in shape.iter().zip(&strides) {
            let reach = (length - 1).checked_mul(*stride).ok_or_else(outside)?;
            last = last.checked_add(reach).ok_or_else(outside)?;
        }
        last.checked_add(1).and_then(|elements| elements.checked_mul(size)).ok_or_else(outside)?
    };
    let end = begin.checked_add(length).filter(|end| *end <= range.len()).ok_or_else(outside)?;
    let bytes = range.start + begin..range.start + end;
    Ok(TensorInfo { dtype: tensor.dtype, shape, strides, bytes })
}
