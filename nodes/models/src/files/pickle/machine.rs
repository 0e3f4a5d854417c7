//! A pickle virtual machine that can only build containers and descriptions of tensors.
//!
//! A pickle is a program for a stack machine. This one has the stack, the marks and the memo of
//! Python's, and no way to call anything: `REDUCE` and its like look at the [`Role`] of a global on
//! the list, and everything else is refused. Values live in one arena and refer to each other by
//! number, so that nothing is recursive here and a container may contain itself. What all of them
//! take together is bounded.

mod objects;

use std::borrow::Cow;
use std::collections::HashMap;

use safetensors::tensor::Dtype;

use super::error::PickleError;
use super::globals::Role;
use super::opcode as op;

/// The most values on the stack at once; pickle itself works in batches of 1000.
const MAX_STACK: usize = 1 << 20;

/// What all values may take in memory.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    left: usize,
}

impl Budget {
    /// As much as the file has, and for small files a little more than any of them needs.
    pub fn for_file(length: usize) -> Self {
        let limit = length.max(16 << 20);
        Self { limit, left: limit }
    }

    pub fn charge(&mut self, bytes: usize, at: usize) -> Result<(), PickleError> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(PickleError::TooLarge { limit: self.limit, at }),
        }
    }
}

/// A value of the program: small ones themselves, others by their place in the arena.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Node(u32),
}

/// Something in the arena. The lifetime is the file's: texts are not copied.
#[derive(Debug)]
pub(super) enum Node<'a> {
    Text(Cow<'a, str>),
    List(Vec<Value>),
    Tuple(Vec<Value>),
    /// Pairs in the order they were set; a later one of the same key counts.
    Dict(Vec<(Value, Value)>),
    Global {
        module: Cow<'a, str>,
        name: Cow<'a, str>,
        role: Role,
    },
    Storage(Box<StorageRef>),
    Tensor(Box<TensorRef>),
    /// A `torch.nn.ParameterDict` before its state is set.
    ParameterDict,
    /// Data that nobody asks for.
    Ignored,
}

/// A storage by its key, as a persistent id names it.
#[derive(Clone, Debug)]
pub(super) struct StorageRef {
    pub key: String,
    pub dtype: Dtype,
    /// Elements of the whole storage.
    pub elements: u64,
    /// Where a view of the old format begins, in elements.
    pub view: u64,
}

/// A tensor as `_rebuild_tensor_v2` describes it: lengths in elements.
#[derive(Clone, Debug)]
pub(super) struct TensorRef {
    pub storage: StorageRef,
    pub dtype: Dtype,
    pub offset: u64,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// What a program left.
#[derive(Debug)]
pub(super) struct Outcome<'a> {
    pub nodes: Vec<Node<'a>>,
    pub root: Value,
    /// The byte behind its STOP.
    pub end: usize,
}

/// Runs the pickle that begins at byte `start` of `bytes`, to its STOP. `base` is added to every
/// offset in an error.
pub(super) fn run<'a>(
    bytes: &'a [u8],
    start: usize,
    base: usize,
    budget: &mut Budget,
) -> Result<Outcome<'a>, PickleError> {
    let mut machine = Machine {
        bytes,
        at: start,
        base,
        opcode_at: start,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        budget,
    };
    while !machine.step()? {}
    let root = machine.pop("STOP")?;
    Ok(Outcome { nodes: machine.nodes, root, end: machine.at })
}

struct Machine<'a, 'b> {
    bytes: &'a [u8],
    at: usize,
    base: usize,
    /// Where the opcode that is at work stands.
    opcode_at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Value>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    budget: &'b mut Budget,
}

type Result<T, E = PickleError> = std::result::Result<T, E>;

impl<'a> Machine<'a, '_> {
    /// One opcode; true after STOP.
    fn step(&mut self) -> Result<bool> {
        self.opcode_at = self.at;
        let opcode = self.take(1)?[0];
        match opcode {
            op::STOP => return Ok(true),
            op::PROTO => {
                let version = self.take(1)?[0];
                if version > 5 {
                    let problem = format!("asks for protocol {version}; the newest one is 5");
                    return Err(self.wrong("PROTO", problem));
                }
            }
            // The bytes of a frame follow in the same buffer; its length is no concern of ours.
            op::FRAME => drop(self.take(8)?),
            op::MARK => {
                self.budget.charge(size_of::<usize>(), self.base + self.opcode_at)?;
                self.marks.push(self.stack.len());
            }
            op::POP => match self.marks.last() {
                Some(height) if *height == self.stack.len() => drop(self.marks.pop()),
                _ => drop(self.pop("POP")?),
            },
            op::POP_MARK => drop(self.pop_mark("POP_MARK")?),
            op::DUP => {
                let top = self.top("DUP")?;
                self.push(top)?;
            }
            op::NONE => self.push(Value::None)?,
            op::NEWTRUE => self.push(Value::Bool(true))?,
            op::NEWFALSE => self.push(Value::Bool(false))?,
            op::BININT => {
                let bits = self.number(4)? as u32;
                self.push(Value::Int(i64::from(bits as i32)))?;
            }
            op::BININT1 => {
                let value = self.number(1)?;
                self.push(Value::Int(value as i64))?;
            }
            op::BININT2 => {
                let value = self.number(2)?;
                self.push(Value::Int(value as i64))?;
            }
            op::INT => self.text_int("INT")?,
            op::LONG => self.text_int("LONG")?,
            op::LONG1 => {
                let length = self.number(1)?;
                self.long(length)?;
            }
            op::LONG4 => {
                let length = self.number(4)?;
                self.long(length)?;
            }
            op::FLOAT => {
                let line = self.line("FLOAT")?;
                let value = line.trim().parse();
                let value = value.map_err(|_| self.wrong("FLOAT", "is no number".to_owned()))?;
                self.push(Value::Float(value))?;
            }
            op::BINFLOAT => {
                let bytes = self.take(8)?;
                let bits = bytes.iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte));
                self.push(Value::Float(f64::from_bits(bits)))?;
            }
            // Bytes, and the strings of Python 2, are text where they are UTF-8.
            op::SHORT_BINUNICODE | op::SHORT_BINSTRING | op::SHORT_BINBYTES => self.text_of(1)?,
            op::BINUNICODE | op::BINSTRING | op::BINBYTES => self.text_of(4)?,
            op::BINUNICODE8 | op::BINBYTES8 | op::BYTEARRAY8 => self.text_of(8)?,
            op::STRING => {
                let line = self.line("STRING")?.trim();
                let inner = ['\'', '"'].into_iter().find_map(|quote| {
                    line.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote))
                });
                // With an escape in it, it is no name of a tensor.
                match inner {
                    Some(text) if !text.contains('\\') => {
                        self.push_node(Node::Text(Cow::Borrowed(text)))?
                    }
                    _ => self.push_node(Node::Ignored)?,
                }
            }
            op::UNICODE => {
                let line = self.line("UNICODE")?;
                match line.contains('\\') {
                    false => self.push_node(Node::Text(Cow::Borrowed(line)))?,
                    true => self.push_node(Node::Ignored)?,
                }
            }
            op::EMPTY_LIST | op::EMPTY_SET => self.push_node(Node::List(Vec::new()))?,
            op::EMPTY_TUPLE => self.push_node(Node::Tuple(Vec::new()))?,
            op::EMPTY_DICT => self.push_node(Node::Dict(Vec::new()))?,
            op::LIST => {
                let items = self.pop_mark("LIST")?;
                self.push_list(items, false)?;
            }
            op::FROZENSET => {
                let items = self.pop_mark("FROZENSET")?;
                self.push_list(items, false)?;
            }
            op::TUPLE => {
                let items = self.pop_mark("TUPLE")?;
                self.push_list(items, true)?;
            }
            op::TUPLE1 | op::TUPLE2 | op::TUPLE3 => {
                let count = usize::from(opcode - op::TUPLE1) + 1;
                let items = self.pop_many("TUPLE", count)?;
                self.push_list(items, true)?;
            }
            op::DICT => {
                let items = self.pop_mark("DICT")?;
                let pairs = self.pairs("DICT", items)?;
                self.push_node(Node::Dict(pairs))?;
            }
            op::APPEND => {
                let items = self.pop_many("APPEND", 1)?;
                self.append("APPEND", items)?;
            }
            op::APPENDS => {
                let items = self.pop_mark("APPENDS")?;
                self.append("APPENDS", items)?;
            }
            op::ADDITEMS => {
                let items = self.pop_mark("ADDITEMS")?;
                self.append("ADDITEMS", items)?;
            }
            op::SETITEM => {
                let items = self.pop_many("SETITEM", 2)?;
                self.set_items("SETITEM", items)?;
            }
            op::SETITEMS => {
                let items = self.pop_mark("SETITEMS")?;
                self.set_items("SETITEMS", items)?;
            }
            op::GET => {
                let index = self.text_index("GET")?;
                self.get("GET", index)?;
            }
            op::BINGET => {
                let index = self.number(1)? as u32;
                self.get("BINGET", index)?;
            }
            op::LONG_BINGET => {
                let index = self.number(4)? as u32;
                self.get("LONG_BINGET", index)?;
            }
            op::PUT => {
                let index = self.text_index("PUT")?;
                self.put("PUT", index)?;
            }
            op::BINPUT => {
                let index = self.number(1)? as u32;
                self.put("BINPUT", index)?;
            }
            op::LONG_BINPUT => {
                let index = self.number(4)? as u32;
                self.put("LONG_BINPUT", index)?;
            }
            op::MEMOIZE => {
                let index = self.memo.len() as u32;
                self.put("MEMOIZE", index)?;
            }
            op::GLOBAL => {
                let (module, name) = (self.line("GLOBAL")?, self.line("GLOBAL")?);
                self.global(Cow::Borrowed(module), Cow::Borrowed(name))?;
            }
            op::STACK_GLOBAL => {
                let (name, module) = (self.pop("STACK_GLOBAL")?, self.pop("STACK_GLOBAL")?);
                let (Some(module), Some(name)) = (self.text(module), self.text(name)) else {
                    return Err(self.wrong("STACK_GLOBAL", "is not given two texts".to_owned()));
                };
                let (module, name) = (module.clone(), name.clone());
                self.global(module, name)?;
            }
            op::REDUCE => {
                let (arguments, function) = (self.pop("REDUCE")?, self.pop("REDUCE")?);
                self.construct("REDUCE", function, arguments)?;
            }
            op::NEWOBJ => {
                let (arguments, class) = (self.pop("NEWOBJ")?, self.pop("NEWOBJ")?);
                self.construct("NEWOBJ", class, arguments)?;
            }
            op::NEWOBJ_EX => {
                self.pop("NEWOBJ_EX")?;
                let (arguments, class) = (self.pop("NEWOBJ_EX")?, self.pop("NEWOBJ_EX")?);
                self.construct("NEWOBJ_EX", class, arguments)?;
            }
            op::BUILD => {
                let state = self.pop("BUILD")?;
                let object = self.top("BUILD")?;
                self.build(object, state)?;
            }
            op::BINPERSID => {
                let id = self.pop("BINPERSID")?;
                self.persistent(id)?;
            }
            refused => {
                let name = op::refused_name(refused);
                return Err(PickleError::Opcode { name, at: self.base + self.opcode_at });
            }
        }
        Ok(false)
    }

    fn wrong(&self, name: &'static str, problem: String) -> PickleError {
        PickleError::Operand { name, at: self.base + self.opcode_at, problem }
    }

    // ---- Reading -------------------------------------------------------------------------------

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let truncated = PickleError::Truncated { at: self.base + self.bytes.len() };
        let end = end.ok_or(truncated)?;
        let bytes = &self.bytes[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    /// A little-endian number of up to eight bytes.
    fn number(&mut self, length: usize) -> Result<u64> {
        Ok(self.take(length)?.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    fn line(&mut self, name: &'static str) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|byte| *byte == b'\n');
        let truncated = PickleError::Truncated { at: self.base + self.bytes.len() };
        let length = length.ok_or(truncated)?;
        let line = &self.take(length + 1)?[..length];
        std::str::from_utf8(line).map_err(|_| self.wrong(name, "is not UTF-8".to_owned()))
    }

    fn text_index(&mut self, name: &'static str) -> Result<u32> {
        let line = self.line(name)?;
        line.parse().map_err(|_| self.wrong(name, "has no number".to_owned()))
    }

    fn text_int(&mut self, name: &'static str) -> Result<()> {
        let line = self.line(name)?.trim();
        let digits = line.strip_suffix(['L', 'l']).unwrap_or(line);
        match (digits, digits.parse()) {
            ("00", _) => self.push(Value::Bool(false)),
            ("01", _) => self.push(Value::Bool(true)),
            (_, Ok(value)) => self.push(Value::Int(value)),
            (digits, _) if is_integer(digits) => self.push_node(Node::Ignored),
            _ => Err(self.wrong(name, "is no number".to_owned())),
        }
    }

    /// A little-endian two's complement number; one of more than 64 bits is none that anybody asks
    /// for.
    fn long(&mut self, length: u64) -> Result<()> {
        let bytes = self.take(usize::try_from(length).unwrap_or(usize::MAX))?;
        if bytes.len() > 8 {
            return self.push_node(Node::Ignored);
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let start = if negative { -1 } else { 0i64 };
        let value = bytes.iter().rev().fold(start, |n, byte| n << 8 | i64::from(*byte));
        self.push(Value::Int(value))
    }

    /// A length of `width` bytes and as many bytes after it. What is not UTF-8 names no tensor.
    fn text_of(&mut self, width: usize) -> Result<()> {
        let length = self.number(width)?;
        // What does not fit the address space does not fit the file.
        let bytes = self.take(usize::try_from(length).unwrap_or(usize::MAX))?;
        match std::str::from_utf8(bytes) {
            Ok(text) => self.push_node(Node::Text(Cow::Borrowed(text))),
            Err(_) => self.push_node(Node::Ignored),
        }
    }

    // ---- The stack -----------------------------------------------------------------------------

    fn push(&mut self, value: Value) -> Result<()> {
        if self.stack.len() >= MAX_STACK {
            let at = self.base + self.opcode_at;
            return Err(PickleError::TooLarge { limit: MAX_STACK * size_of::<Value>(), at });
        }
        self.stack.push(value);
        Ok(())
    }

    fn push_node(&mut self, node: Node<'a>) -> Result<()> {
        let at = self.base + self.opcode_at;
        self.budget.charge(size_of::<Node>(), at)?;
        let number = u32::try_from(self.nodes.len());
        let number = number.map_err(|_| PickleError::TooLarge { limit: usize::MAX, at })?;
        self.nodes.push(node);
        self.push(Value::Node(number))
    }

    fn push_list(&mut self, items: Vec<Value>, tuple: bool) -> Result<()> {
        self.charge_items(items.len())?;
        self.push_node(if tuple { Node::Tuple(items) } else { Node::List(items) })
    }

    fn charge_items(&mut self, count: usize) -> Result<()> {
        // A vector grows by doubling.
        self.budget.charge(2 * count * size_of::<Value>(), self.base + self.opcode_at)
    }

    /// What lies below the last mark is out of reach, as in Python.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self, name: &'static str) -> Result<Value> {
        match self.stack.len() > self.floor() {
            true => self.stack.pop().ok_or_else(|| self.empty(name)),
            false => Err(self.empty(name)),
        }
    }

    fn top(&self, name: &'static str) -> Result<Value> {
        match self.stack.len() > self.floor() {
            true => self.stack.last().copied().ok_or_else(|| self.empty(name)),
            false => Err(self.empty(name)),
        }
    }

    fn empty(&self, name: &'static str) -> PickleError {
        self.wrong(name, "finds the stack empty".to_owned())
    }

    fn pop_many(&mut self, name: &'static str, count: usize) -> Result<Vec<Value>> {
        if self.stack.len() - self.floor() < count {
            return Err(self.empty(name));
        }
        Ok(self.stack.split_off(self.stack.len() - count))
    }

    fn pop_mark(&mut self, name: &'static str) -> Result<Vec<Value>> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height.min(self.stack.len()))),
            None => Err(self.wrong(name, "finds no mark on the stack".to_owned())),
        }
    }

    fn node(&self, value: Value) -> Option<&Node<'a>> {
        match value {
            Value::Node(number) => self.nodes.get(number as usize),
            _ => None,
        }
    }

    fn text(&self, value: Value) -> Option<&Cow<'a, str>> {
        match self.node(value) {
            Some(Node::Text(text)) => Some(text),
            _ => None,
        }
    }

    fn items(&self, value: Value) -> Option<&[Value]> {
        match self.node(value) {
            Some(Node::List(items) | Node::Tuple(items)) => Some(items),
            _ => None,
        }
    }

    // ---- The memo ------------------------------------------------------------------------------

    fn get(&mut self, name: &'static str, index: u32) -> Result<()> {
        match self.memo.get(&index) {
            Some(value) => self.push(*value),
            None => Err(self.wrong(name, format!("asks for number {index}, which was never kept"))),
        }
    }

    fn put(&mut self, name: &'static str, index: u32) -> Result<()> {
        let value = self.top(name)?;
        if self.memo.insert(index, value).is_none() {
            // With what a hash table takes beside the entry.
            let entry = 2 * size_of::<(u32, Value)>();
            self.budget.charge(entry, self.base + self.opcode_at)?;
        }
        Ok(())
    }

    // ---- Containers ----------------------------------------------------------------------------

    fn pairs(&mut self, name: &'static str, items: Vec<Value>) -> Result<Vec<(Value, Value)>> {
        if !items.len().is_multiple_of(2) {
            return Err(self.wrong(name, "has a key without a value".to_owned()));
        }
        self.charge_items(items.len())?;
        Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    fn append(&mut self, name: &'static str, items: Vec<Value>) -> Result<()> {
        let Value::Node(target) = self.top(name)? else {
            return Err(self.wrong(name, "appends to what is no list".to_owned()));
        };
        self.charge_items(items.len())?;
        match self.nodes.get_mut(target as usize) {
            Some(Node::List(list)) => list.extend(items),
            Some(Node::Ignored) => (),
            _ => return Err(self.wrong(name, "appends to what is no list".to_owned())),
        }
        Ok(())
    }

    fn set_items(&mut self, name: &'static str, items: Vec<Value>) -> Result<()> {
        let pairs = self.pairs(name, items)?;
        let Value::Node(target) = self.top(name)? else {
            return Err(self.wrong(name, "sets items of what is no dictionary".to_owned()));
        };
        match self.nodes.get_mut(target as usize) {
            Some(Node::Dict(dict)) => dict.extend(pairs),
            Some(Node::Ignored | Node::ParameterDict) => (),
            _ => return Err(self.wrong(name, "sets items of what is no dictionary".to_owned())),
        }
        Ok(())
    }
}

fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// A name from a file as an error shows it: a hostile one may be any length and hold anything.
pub(super) fn shortened(name: &str) -> String {
    let mut shown: String = name.chars().take(80).flat_map(char::escape_debug).collect();
    if name.chars().nth(80).is_some() {
        shown.push('…');
    }
    shown
}
