//! Globals, and what is made with them: containers, storages and tensors, nothing else.

use std::borrow::Cow;

use super::{Machine, Node, Result, StorageRef, TensorRef, Value, shortened};
use crate::files::pickle::error::PickleError;
use crate::files::pickle::globals::{Role, role};

enum Made<'a> {
    Value(Value),
    Node(Node<'a>),
}

impl<'a> Machine<'a, '_> {
    pub(super) fn global(&mut self, module: Cow<'a, str>, name: Cow<'a, str>) -> Result<()> {
        match role(&module, &name) {
            Some(role) => self.push_node(Node::Global { module, name, role }),
            None => Err(PickleError::Global {
                module: shortened(&module),
                name: shortened(&name),
                at: self.base + self.opcode_at,
            }),
        }
    }

    /// What REDUCE, NEWOBJ and NEWOBJ_EX make.
    pub(super) fn construct(
        &mut self,
        name: &'static str,
        function: Value,
        arguments: Value,
    ) -> Result<()> {
        let Some(Node::Global { role, .. }) = self.node(function) else {
            return Err(self.wrong(name, "calls something that is no global".to_owned()));
        };
        let role = *role;
        let Some(Node::Tuple(arguments)) = self.node(arguments) else {
            return Err(self.wrong(name, "has arguments that are no tuple".to_owned()));
        };
        // Only the first few are looked at, whatever the function.
        let arguments: Vec<Value> = arguments.iter().take(8).copied().collect();
        let made = self.make(name, role, &arguments, 0)?;
        match made {
            Made::Value(value) => self.push(value),
            Made::Node(node) => self.push_node(node),
        }
    }

    fn make(
        &mut self,
        name: &'static str,
        role: Role,
        arguments: &[Value],
        depth: usize,
    ) -> Result<Made<'a>> {
        let first = arguments.first().copied();
        Ok(match role {
            Role::Ignored => Made::Node(Node::Ignored),
            Role::ParameterDict => Made::Node(Node::ParameterDict),
            Role::Mapping => Made::Node(Node::Dict(self.mapping(name, first)?)),
            Role::Sequence => {
                let items = match first {
                    None => Vec::new(),
                    Some(first) => match self.items(first) {
                        Some(items) => items.to_vec(),
                        None => return Ok(Made::Node(Node::Ignored)),
                    },
                };
                self.charge_items(items.len())?;
                Made::Node(Node::List(items))
            }
            // A text of Latin-1 characters stands for bytes, which nobody asks for.
            Role::Encode => Made::Node(Node::Ignored),
            Role::Reconstructor => match first.and_then(|class| self.node(class)) {
                Some(Node::Global { role: Role::Ignored, .. }) => Made::Node(Node::Ignored),
                Some(Node::Global { role: Role::ParameterDict, .. }) => {
                    Made::Node(Node::ParameterDict)
                }
                _ => return Err(self.wrong(name, "reconstructs what is no class".to_owned())),
            },
            Role::RebuildParameter => match first {
                Some(tensor) if matches!(self.node(tensor), Some(Node::Tensor(_))) => {
                    Made::Value(tensor)
                }
                _ => return Err(self.wrong(name, "makes a parameter of no tensor".to_owned())),
            },
            Role::RebuildTensor | Role::RebuildTensorV3 => {
                Made::Node(Node::Tensor(Box::new(self.tensor(name, role, arguments)?)))
            }
            Role::RebuildFromType => {
                let function = first.and_then(|function| self.node(function));
                let Some(Node::Global { role, .. }) = function else {
                    return Err(self.wrong(name, "rebuilds with what is no global".to_owned()));
                };
                let role = *role;
                let inner = arguments.get(2).and_then(|inner| self.items(*inner));
                let inner: Option<Vec<Value>> =
                    inner.map(|inner| inner.iter().take(8).copied().collect());
                let rebuilds = matches!(
                    role,
                    Role::RebuildTensor | Role::RebuildTensorV3 | Role::RebuildParameter
                );
                match inner {
                    Some(inner) if rebuilds && depth == 0 => {
                        return self.make(name, role, &inner, depth + 1);
                    }
                    _ => {
                        let problem = "rebuilds something that is no tensor".to_owned();
                        return Err(self.wrong(name, problem));
                    }
                }
            }
            Role::Storage(_) | Role::Dtype(_) => {
                let problem = "makes a storage outside of the file's own".to_owned();
                return Err(self.wrong(name, problem));
            }
        })
    }

    /// The pairs of `OrderedDict([[key, value], …])`, as Python 2 writes it, or of nothing.
    fn mapping(&mut self, name: &'static str, first: Option<Value>) -> Result<Vec<(Value, Value)>> {
        let Some(items) = first.and_then(|first| self.items(first)) else {
            // `defaultdict(int)`: the class of what is missing.
            return Ok(Vec::new());
        };
        let mut pairs = Vec::new();
        for item in items {
            match self.items(*item) {
                Some([key, value]) => pairs.push((*key, *value)),
                _ => {
                    let problem = "makes a dictionary of what are no pairs".to_owned();
                    return Err(self.wrong(name, problem));
                }
            }
        }
        self.charge_items(2 * pairs.len())?;
        Ok(pairs)
    }

    fn tensor(&mut self, name: &'static str, role: Role, arguments: &[Value]) -> Result<TensorRef> {
        let [storage, offset, shape, strides, rest @ ..] = arguments else {
            return Err(self.wrong(name, "makes a tensor of too few arguments".to_owned()));
        };
        let Some(Node::Storage(storage)) = self.node(*storage) else {
            return Err(self.wrong(name, "makes a tensor of no storage".to_owned()));
        };
        let storage = (**storage).clone();
        let dtype = match (role, rest.get(2).and_then(|dtype| self.node(*dtype))) {
            (Role::RebuildTensorV3, Some(Node::Global { role: Role::Dtype(dtype), .. })) => *dtype,
            (Role::RebuildTensorV3, _) => {
                return Err(self.wrong(name, "makes a tensor of no known type".to_owned()));
            }
            _ => storage.dtype,
        };
        let Value::Int(offset) = *offset else {
            return Err(self.wrong(name, "makes a tensor at no offset".to_owned()));
        };
        let offset = u64::try_from(offset).map_err(|_| {
            self.wrong(name, format!("makes a tensor at the offset {offset}, before its storage"))
        })?;
        let shape = self.lengths(name, *shape, "shape")?;
        let strides = self.lengths(name, *strides, "strides")?;
        if shape.len() != strides.len() {
            let (shape, strides) = (shape.len(), strides.len());
            return Err(self.wrong(
                name,
                format!("makes a tensor of {shape} dimensions with {strides} strides"),
            ));
        }
        self.charge_items(shape.len())?;
        let at = self.base + self.opcode_at;
        self.budget.charge(size_of::<TensorRef>() + storage.key.len(), at)?;
        Ok(TensorRef { storage, dtype, offset, shape, strides })
    }

    fn lengths(&self, name: &'static str, value: Value, what: &str) -> Result<Vec<usize>> {
        let items = self.items(value);
        let items =
            items.ok_or_else(|| self.wrong(name, format!("has {what} that are no tuple")))?;
        if items.len() > 64 {
            return Err(self.wrong(name, format!("has {what} of {} dimensions", items.len())));
        }
        let length = |item: &Value| match item {
            Value::Int(length) => usize::try_from(*length).ok(),
            _ => None,
        };
        let lengths: Option<Vec<usize>> = items.iter().map(length).collect();
        lengths.ok_or_else(|| self.wrong(name, format!("has {what} that are no whole numbers ≥ 0")))
    }

    pub(super) fn build(&mut self, object: Value, state: Value) -> Result<()> {
        let Value::Node(number) = object else {
            return Err(self.wrong("BUILD", "sets the state of a plain value".to_owned()));
        };
        match self.nodes.get(number as usize) {
            // A state_dict has `_metadata`, a parameter attributes: neither is asked for.
            Some(Node::Ignored | Node::Dict(_) | Node::Tensor(_) | Node::List(_)) => Ok(()),
            Some(Node::ParameterDict) => {
                let parameters = self.attribute(state, "_parameters");
                let pairs = match parameters.and_then(|parameters| self.node(parameters)) {
                    Some(Node::Dict(pairs)) => pairs.clone(),
                    _ => Vec::new(),
                };
                self.charge_items(2 * pairs.len())?;
                if let Some(node) = self.nodes.get_mut(number as usize) {
                    *node = Node::Dict(pairs);
                }
                Ok(())
            }
            _ => Err(self.wrong("BUILD", "sets the state of what has none".to_owned())),
        }
    }

    /// The value of a text key, where `state` is a dictionary that has it.
    fn attribute(&self, state: Value, key: &str) -> Option<Value> {
        let Some(Node::Dict(pairs)) = self.node(state) else { return None };
        let mut found = pairs.iter().rev();
        let found = found.find(|(name, _)| self.text(*name).is_some_and(|name| name == key));
        found.map(|(_, value)| *value)
    }

    /// `("storage", class, key, location, elements)`, and in the old format a view behind it:
    /// nothing, or `(key, offset, elements)`. The old format also has `("module", class, file,
    /// source)`, which stands for the class.
    pub(super) fn persistent(&mut self, id: Value) -> Result<()> {
        let wrong =
            |machine: &Self, problem: &str| Err(machine.wrong("BINPERSID", problem.to_owned()));
        if let Some([kind, class, _file, _source]) = self.items(id)
            && self.text(*kind).is_some_and(|kind| kind == "module")
            && matches!(self.node(*class), Some(Node::Global { .. }))
        {
            let class = *class;
            return self.push(class);
        }
        let Some([kind, class, key, _location, elements, rest @ ..]) = self.items(id) else {
            return wrong(self, "names nothing that torch.save keeps beside the pickle");
        };
        if self.text(*kind).is_none_or(|kind| kind != "storage") {
            return wrong(self, "names something that is no storage");
        }
        let Some(Node::Global { role: Role::Storage(dtype), .. }) = self.node(*class) else {
            return wrong(self, "names a storage of no known type");
        };
        let key = match (self.text(*key), key) {
            (Some(key), _) => key.clone().into_owned(),
            (None, Value::Int(key)) => key.to_string(),
            _ => return wrong(self, "names a storage without a key"),
        };
        let length = |value: Option<&Value>| match value {
            Some(Value::Int(length)) => u64::try_from(*length).ok(),
            _ => None,
        };
        let Some(elements) = length(Some(elements)) else {
            return wrong(self, "names a storage of a length that is no whole number");
        };
        let view = match rest.first().and_then(|view| self.items(*view)) {
            None => 0,
            Some(view) => match length(view.get(1)) {
                Some(offset) => offset,
                None => return wrong(self, "names a view at no offset"),
            },
        };
        let storage = StorageRef { key, dtype: *dtype, elements, view };
        let bytes = size_of::<StorageRef>() + storage.key.len();
        self.budget.charge(bytes, self.base + self.opcode_at)?;
        self.push_node(Node::Storage(Box::new(storage)))
    }
}
