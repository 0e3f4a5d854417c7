//! How a node's inputs are declared and read. `#[derive(Inputs)]` writes the calls; the checks are here.

use std::path::PathBuf;

use serde_json::{Map, Value as Json, json};

use crate::{Error, Result, Socket, Value};

/// What the inputs of one node are. Derived: `#[derive(Inputs)]`.
pub trait Inputs: Sized {
    /// The class name, doc and flags of the node.
    const CLASS: Class;

    /// In the order in which values arrive.
    fn specs() -> Vec<InputSpec>;

    fn read(reader: &mut Reader<'_>) -> Result<Self>;
}

/// What a node is, apart from its inputs and outputs.
#[derive(Clone, Copy, Debug)]
pub struct Class {
    pub name: &'static str,
    pub doc: &'static str,
    pub category: &'static str,
    /// Run for what it does outside the graph.
    pub output_node: bool,
    /// Equal inputs give equal outputs.
    pub pure: bool,
    /// It runs once for whole lists: each of its fields is a [`List`], or an option of one.
    pub input_is_list: bool,
    /// It reads no more than headers, so that `kosmograph check` runs it.
    pub checked: bool,
    /// The host's folder that the node writes files to, "output" or "temp".
    pub writes: Option<&'static str>,
    /// The product of these is how many bytes the outputs take at least; none where that is not known.
    pub memory: &'static [Factor],
}

/// A factor of [`Class::memory`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Factor {
    Number(f64),
    /// The name of an INT or FLOAT input.
    Input(&'static str),
}

impl Factor {
    /// As the descriptor has it.
    pub(crate) fn json(&self) -> Json {
        match self {
            Self::Number(number) => json!(number),
            Self::Input(name) => json!(name),
        }
    }
}

/// One input as the descriptor tells it.
#[derive(Clone, Debug)]
pub struct InputSpec {
    pub name: String,
    /// The socket or widget type.
    pub kind: &'static str,
    pub optional: bool,
    /// Everything else, as the descriptor's JSON has it: default, min, max, step, choices, role …
    pub rest: Map<String, Json>,
}

impl InputSpec {
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), kind: "*", optional: false, rest: Map::new() }
    }

    /// Adds a key of the descriptor.
    pub fn set(mut self, key: &str, value: impl Into<Json>) -> Self {
        self.rest.insert(key.to_owned(), value.into());
        self
    }

    pub fn json(&self) -> Json {
        let mut json = json!({"name": self.name, "type": self.kind});
        if self.optional {
            json["optional"] = true.into();
        }
        for (key, value) in &self.rest {
            json[key] = value.clone();
        }
        json
    }

    /// Whether `number` lies in the declared range.
    fn check_range(&self, number: f64) -> Result<()> {
        let bound = |key: &str| self.rest.get(key).and_then(Json::as_f64);
        let (min, max) = (bound("min"), bound("max"));
        let inside = min.is_none_or(|min| number >= min) && max.is_none_or(|max| number <= max);
        if inside && !number.is_nan() {
            return Ok(());
        }
        let show = |bound: Option<f64>| bound.map_or("any".to_owned(), |bound| bound.to_string());
        Err(Error::new(format!("{number} is outside its range, {} to {}", show(min), show(max))))
    }

    /// Whether `text` is one of the declared choices, where there are any.
    fn check_choice(&self, text: &str) -> Result<()> {
        let Some(choices) = self.rest.get("choices").and_then(Json::as_array) else {
            return Ok(());
        };
        if choices.iter().any(|choice| choice == text) {
            return Ok(());
        }
        let names: Vec<&str> = choices.iter().filter_map(Json::as_str).collect();
        Err(Error::new(format!("\"{text}\" is not one of: {}", names.join(", "))))
    }
}

/// The values of a call, taken one input after the other.
pub struct Reader<'a> {
    specs: &'a [InputSpec],
    values: &'a [Value],
    next: usize,
}

impl<'a> Reader<'a> {
    /// `specs` and `values` are equally many.
    pub fn new(specs: &'a [InputSpec], values: &'a [Value]) -> Self {
        Self { specs, values, next: 0 }
    }

    /// The next field of an [`Inputs`].
    pub fn read<T: Input>(&mut self) -> Result<T> {
        T::read(self)
    }

    fn next(&mut self) -> Result<(&'a InputSpec, &'a Value)> {
        let i = self.next;
        self.next += 1;
        match (self.specs.get(i), self.values.get(i)) {
            (Some(spec), Some(value)) => Ok((spec, value)),
            _ => Err(Error::new("more inputs are read than the node declares")),
        }
    }
}

/// The type of a field in an [`Inputs`]: one input, or several.
pub trait Input: Sized {
    /// Completes the declaration that the derive began; more than one for [`Numbered`].
    fn declare(spec: InputSpec) -> Vec<InputSpec>;

    fn read(reader: &mut Reader<'_>) -> Result<Self>;
}

/// A type that one input carries.
pub trait Single: Sized {
    /// The socket or widget type.
    const KIND: &'static str;

    fn complete(spec: InputSpec) -> InputSpec {
        spec
    }

    /// `value` is not NONE.
    fn from_value(value: &Value, spec: &InputSpec) -> Result<Self>;
}

impl<T: Single> Input for T {
    fn declare(mut spec: InputSpec) -> Vec<InputSpec> {
        // A choice among names has its own widget.
        spec.kind = if spec.rest.contains_key("choices") { "COMBO" } else { T::KIND };
        vec![T::complete(spec)]
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let (spec, value) = reader.next()?;
        if value.is_none() {
            return Err(Error::at(&spec.name, format!("{} is missing", spec.kind)));
        }
        T::from_value(value, spec).map_err(|error| error.of_input(&spec.name))
    }
}

impl<T: Single> Input for Option<T> {
    fn declare(spec: InputSpec) -> Vec<InputSpec> {
        let mut specs = T::declare(spec);
        specs.iter_mut().for_each(|spec| spec.optional = true);
        specs
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let (spec, value) = reader.next()?;
        if value.is_none() {
            return Ok(None);
        }
        T::from_value(value, spec).map(Some).map_err(|error| error.of_input(&spec.name))
    }
}

/// `N` optional inputs of one type, `image_1` … `image_10` for a field `image: Numbered<Image, 10>`.
#[derive(Clone, Debug)]
pub struct Numbered<T, const N: usize>(pub [Option<T>; N]);

impl<T: Single, const N: usize> Input for Numbered<T, N> {
    fn declare(spec: InputSpec) -> Vec<InputSpec> {
        let numbered = |i| {
            let mut spec = spec.clone();
            spec.name = format!("{}_{i}", spec.name);
            Option::<T>::declare(spec)
        };
        (1..=N).flat_map(numbered).collect()
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let mut items = [const { None }; N];
        for item in &mut items {
            *item = reader.read()?;
        }
        Ok(Self(items))
    }
}

/// All the values of one input, of a node that takes lists; or those of an output that is a list. As an input it
/// has at least one.
#[derive(Clone, Debug)]
pub struct List<T>(pub Vec<T>);

impl<T: Single> Single for List<T> {
    const KIND: &'static str = T::KIND;

    fn complete(spec: InputSpec) -> InputSpec {
        T::complete(spec)
    }

    fn from_value(value: &Value, spec: &InputSpec) -> Result<Self> {
        let items = value.as_list().ok_or_else(|| wanted("a list", value))?;
        if items.is_empty() {
            return Err(Error::new("the list is empty; at least one value is wanted"));
        }
        let count = items.len();
        let item = |(i, item): (usize, &Value)| {
            let read = match item.is_none() {
                true => Err(Error::new("it is nothing")),
                false => T::from_value(item, spec),
            };
            read.map_err(|error| error.within(format!("element {} of {count}", i + 1)))
        };
        Ok(Self(items.iter().enumerate().map(item).collect::<Result<_>>()?))
    }
}

impl<T: Socket> Single for T {
    const KIND: &'static str = T::TYPE;

    fn from_value(value: &Value, _spec: &InputSpec) -> Result<Self> {
        <T as Socket>::from_value(value.clone())
    }
}

fn wanted(what: &str, value: &Value) -> Error {
    Error::new(format!("{what} is wanted, but {} was given", value.kind_name()))
}

impl Single for f64 {
    const KIND: &'static str = "FLOAT";

    fn from_value(value: &Value, spec: &InputSpec) -> Result<Self> {
        let number = value.as_f64().ok_or_else(|| wanted("a number", value))?;
        spec.check_range(number).map(|()| number)
    }
}

impl Single for i64 {
    const KIND: &'static str = "INT";

    fn from_value(value: &Value, spec: &InputSpec) -> Result<Self> {
        let number = value.as_i64().ok_or_else(|| wanted("an integer", value))?;
        spec.check_range(number as f64).map(|()| number)
    }
}

/// An integer of an unsigned range, such as a seed.
impl Single for u64 {
    const KIND: &'static str = "INT";

    fn complete(mut spec: InputSpec) -> InputSpec {
        spec.rest.entry("min").or_insert_with(|| 0.into());
        spec.rest.entry("max").or_insert_with(|| u64::MAX.into());
        spec
    }

    fn from_value(value: &Value, spec: &InputSpec) -> Result<Self> {
        // A range that fits i64 is signed on the wire (node.h, "Descriptor").
        let unsigned = spec.rest.get("max").and_then(Json::as_i64).is_none();
        let number = match (unsigned, value.as_i64()) {
            (true, Some(bits)) => bits as u64,
            (false, Some(number)) => {
                u64::try_from(number).map_err(|_| Error::new(format!("{number} is negative")))?
            }
            (_, None) => return Err(wanted("an integer", value)),
        };
        spec.check_range(number as f64).map(|()| number)
    }
}

impl Single for bool {
    const KIND: &'static str = "BOOLEAN";

    fn from_value(value: &Value, _spec: &InputSpec) -> Result<Self> {
        value.as_bool().ok_or_else(|| wanted("a boolean", value))
    }
}

impl Single for String {
    const KIND: &'static str = "STRING";

    fn from_value(value: &Value, spec: &InputSpec) -> Result<Self> {
        let text = value.as_str().ok_or_else(|| wanted("text in UTF-8", value))?;
        spec.check_choice(text).map(|()| text.to_owned())
    }
}

/// A file or folder: `#[file(folder = "checkpoints", entry = "any")]`.
impl Single for PathBuf {
    const KIND: &'static str = "STRING";

    fn complete(spec: InputSpec) -> InputSpec {
        spec.set("role", "path")
    }

    fn from_value(value: &Value, _spec: &InputSpec) -> Result<Self> {
        let path = value.as_str().ok_or_else(|| wanted("a path in UTF-8", value))?;
        if path.is_empty() {
            return Err(Error::new("a path is wanted, but it is empty"));
        }
        Ok(path.into())
    }
}
