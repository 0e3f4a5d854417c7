//! [`Node`], its outputs, and the library made of nodes.

use std::ffi::c_void;
use std::path::Path;
use std::sync::{Once, OnceLock};

use kosmograph_abi as abi;
use kosmograph_abi::table;
use kosmograph_values::place::on_cpu;
use serde_json::{Map, Value as Json, json};

use crate::context::guard;
use crate::input::{Factor, InputSpec, Inputs, Reader};
use crate::object::{Arguments, answer, borrow_values, write_values};
use crate::{Context, Error, Result, Socket, Value};

/// A node: a function from its inputs, which are `self`, to its outputs.
pub trait Node: Inputs {
    /// A socket, or a tuple of sockets. Given by [`outputs!`](crate::outputs).
    type Output: Outputs;

    /// The outputs' names. Given by [`outputs!`](crate::outputs).
    const OUTPUT_NAMES: &'static [&'static str];

    /// Classes that are gone and whose work it does.
    const REPLACES: &'static [Replaces] = &[];

    /// # Errors
    /// One sentence for the person who runs the workflow; see [`Error`].
    fn run(self, cx: &Context<'_>) -> Result<Self::Output>;
}

/// A class that is gone, for [`Node::REPLACES`]: workflows that name it get the node instead. Inputs and outputs
/// that are not named are called the same in both.
#[derive(Clone, Copy, Debug, Default)]
pub struct Replaces {
    pub class: &'static str,
    /// The names of its widgets in their order: the editor saves their values without names.
    pub widgets: &'static [&'static str],
    /// An input of the node and the one of the old class that it takes.
    pub inputs: &'static [(&'static str, &'static str)],
    /// An input of the node and the text that it is set to, since the old class had none like it.
    pub values: &'static [(&'static str, &'static str)],
    /// For each output of the node the old one's number; none: the same.
    pub outputs: &'static [u64],
}

impl Replaces {
    /// A class of another name and nothing else.
    pub const fn named(class: &'static str) -> Self {
        Self { class, widgets: &[], inputs: &[], values: &[], outputs: &[] }
    }

    fn json(&self) -> Json {
        let map = |pairs: &[(&str, &str)]| -> Json {
            pairs
                .iter()
                .map(|&(new, old)| (new.to_owned(), old.into()))
                .collect::<Map<_, _>>()
                .into()
        };
        json!({"class": self.class, "widgets": self.widgets, "inputs": map(self.inputs),
            "values": map(self.values), "outputs": self.outputs})
    }
}

/// Names and types a node's outputs: `outputs![image: Image, mask: Mask];` inside `impl Node`.
///
/// A macro rather than two items, so that a name cannot be given without its type.
#[macro_export]
macro_rules! outputs {
    ($name:ident: $type:ty $(,)?) => {
        type Output = $type;
        const OUTPUT_NAMES: &'static [&'static str] = &[stringify!($name)];
    };
    ($($name:ident: $type:ty),+ $(,)?) => {
        type Output = ($($type,)+);
        const OUTPUT_NAMES: &'static [&'static str] = &[$(stringify!($name)),+];
    };
    () => {
        type Output = ();
        const OUTPUT_NAMES: &'static [&'static str] = &[];
    };
}

/// What a node gives: a socket or a tuple of sockets.
pub trait Outputs {
    const TYPES: &'static [&'static str];

    fn into_values(self) -> Vec<Value>;
}

impl<T: Socket> Outputs for T {
    const TYPES: &'static [&'static str] = &[T::TYPE];

    fn into_values(self) -> Vec<Value> {
        vec![self.into_value()]
    }
}

macro_rules! tuple_outputs {
    ($($type:ident $field:tt),*) => {
        impl<$($type: Socket),*> Outputs for ($($type,)*) {
            const TYPES: &'static [&'static str] = &[$($type::TYPE),*];

            fn into_values(self) -> Vec<Value> {
                vec![$(self.$field.into_value()),*]
            }
        }
    };
}
tuple_outputs!();
tuple_outputs!(A 0, B 1);
tuple_outputs!(A 0, B 1, C 2);
tuple_outputs!(A 0, B 1, C 2, D 3);

/// A node with its type forgotten, as the library's table holds it.
pub struct Entry {
    json: fn(&[InputSpec]) -> Json,
    specs: fn() -> Vec<InputSpec>,
    n_outputs: usize,
    run: RunNode,
}

/// Reads the inputs and runs the node.
type RunNode = fn(&Context<'_>, &[InputSpec], &[Value]) -> Result<Vec<Value>>;

impl Entry {
    pub const fn of<N: Node>() -> Self {
        const {
            let (names, types) = (N::OUTPUT_NAMES.len(), <N::Output as Outputs>::TYPES.len());
            assert!(names == types, "a node's outputs are declared by outputs![]");
        }
        Self {
            json: node_json::<N>,
            specs: N::specs,
            n_outputs: N::OUTPUT_NAMES.len(),
            run: |cx, specs, values| {
                let inputs = N::read(&mut Reader::new(specs, values))?;
                Ok(inputs.run(cx)?.into_values())
            },
        }
    }
}

fn node_json<N: Node>(specs: &[InputSpec]) -> Json {
    let outputs = N::OUTPUT_NAMES.iter().zip(<N::Output as Outputs>::TYPES);
    let outputs: Vec<Json> =
        outputs.map(|(name, kind)| json!({"name": name, "type": kind})).collect();
    let class = N::CLASS;
    let mut json = json!({
        "class": class.name,
        "doc": class.doc,
        "category": class.category,
        "inputs": specs.iter().map(InputSpec::json).collect::<Vec<_>>(),
        "outputs": outputs,
        "pure": class.pure,
        "output_node": class.output_node,
    });
    if let Some(writes) = class.writes {
        json["writes"] = writes.into();
    }
    if !class.memory.is_empty() {
        json["memory"] = class.memory.iter().map(Factor::json).collect();
    }
    if !N::REPLACES.is_empty() {
        json["replaces"] = N::REPLACES.iter().map(Replaces::json).collect();
    }
    json
}

/// What [`library!`](crate::library) makes: the nodes of this library and their descriptor.
pub struct Family {
    nodes: &'static [Entry],
    specs: Vec<Vec<InputSpec>>,
    _descriptor: &'static str,
    table: abi::Library,
    prepare: Prepare,
    prepared: Once,
}

/// What a library does once, before its first node runs; the line that comes back is told to the person.
pub type Prepare = fn() -> Option<String>;

impl Family {
    /// Describes the library once; the memory is kept for as long as the process lives. The last
    /// argument is its extensions, and whether "check/1" is among them.
    pub fn get(
        cell: &'static OnceLock<Family>,
        name: &str,
        version: &str,
        nodes: &'static [Entry],
        run: RunFn,
        (extension, checks): (ExtensionFn, bool),
        prepare: Prepare,
    ) -> *const abi::Library {
        let family = cell.get_or_init(|| {
            let specs: Vec<Vec<InputSpec>> = nodes.iter().map(|node| (node.specs)()).collect();
            let described: Vec<Json> =
                nodes.iter().zip(&specs).map(|(node, specs)| (node.json)(specs)).collect();
            let mut json = json!({"name": name, "version": version, "nodes": described});
            if checks {
                json["checks"] = true.into();
            }
            let descriptor: &'static str = json.to_string().leak();
            let table = abi::Library {
                size: size_of::<abi::Library>() as u32,
                abi_major: abi::ABI_MAJOR,
                abi_minor: abi::ABI_MINOR,
                descriptor: abi::Str::new(descriptor),
                run,
                extension: Some(extension),
            };
            let prepared = Once::new();
            Family { nodes, specs, _descriptor: descriptor, table, prepare, prepared }
        });
        &raw const family.table
    }

    /// `kg_library.run` of this family.
    ///
    /// # Safety
    /// The arguments obey node.h.
    pub unsafe fn run(
        family: Option<&Family>,
        node: u32,
        context: *const abi::Context,
        inputs: *const abi::Value,
        n_inputs: usize,
        outputs: *mut abi::Value,
        n_outputs: usize,
    ) -> abi::Status {
        let body = |cx: &Context<'_>| {
            let family = family.ok_or_else(|| Error::new("the library was not described first"))?;
            let i = node as usize;
            let (Some(entry), Some(specs)) = (family.nodes.get(i), family.specs.get(i)) else {
                let count = family.nodes.len();
                return Err(Error::new(format!(
                    "there is no node {node}: the library has {count}"
                )));
            };
            if n_inputs != specs.len() || n_outputs != entry.n_outputs {
                return Err(Error::new(format!(
                    "the node has {} inputs and {} outputs, but was called with {n_inputs} and \
                     {n_outputs}",
                    specs.len(),
                    entry.n_outputs
                )));
            }
            family.prepared.call_once(|| {
                if let Some(told) = (family.prepare)() {
                    cx.warn(told);
                }
            });
            // SAFETY: node.h: `inputs` are `n_inputs` values, `outputs` has room for `n_outputs`.
            unsafe {
                let values = borrow_values(inputs, n_inputs)?;
                let mut results = (entry.run)(cx, specs, &values)?;
                // A host of an earlier header takes every tensor to lie on the CPU.
                if !cx.takes_tensors_anywhere() {
                    for result in &mut results {
                        *result = on_cpu(result.counted())?.into();
                    }
                }
                write_values(results, outputs, n_outputs)
            }
        };
        // SAFETY: node.h: the context is valid for the call.
        unsafe { guard(context, body) }
    }
}

/// The type of `kg_library.run`.
pub type RunFn = unsafe extern "C" fn(
    u32,
    *const abi::Context,
    *const abi::Value,
    usize,
    *mut abi::Value,
    usize,
) -> abi::Status;

/// The type of `kg_library.extension`.
pub type ExtensionFn = unsafe extern "C" fn(abi::Str) -> *const c_void;

/// "convert/1": what a library makes of a file that its nodes cannot read as it is.
pub trait Convert {
    /// Makes `output`, where nothing is yet, of the file `input`; both paths are absolute. `options`
    /// is an object, "tokenizer" a folder in it. Returns what node.h says of "convert/1", or `None`
    /// when the file is of no kind that the library converts.
    ///
    /// # Errors
    /// One sentence; nothing is left at `output` then.
    fn convert(
        cx: &Context<'_>,
        input: &Path,
        output: &Path,
        options: &Json,
    ) -> Result<Option<Json>>;
}

/// "train/1": trains what the library's nodes compute with.
pub trait Train {
    /// Trains as the JSON text `config` says, whose relative paths begin at `folder`. Reports progress, and what each
    /// update came to, as node.h says. Returns what node.h says of "train/1".
    ///
    /// # Errors
    /// One sentence; or [`crate::Error::Cancelled`], with the state written down to go on from.
    fn train(cx: &Context<'_>, config: &str, folder: &Path) -> Result<Json>;
}

/// "check/1": what a library has to say of a plan before anything runs.
pub trait Check {
    /// Looks at `plan`, which node.h describes. Reads no more than the headers of files.
    ///
    /// # Errors
    /// One sentence: that nothing could be looked at.
    fn check(cx: &Context<'_>, plan: &Json) -> Result<Vec<Remark>>;
}

/// Something odd about one step of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Remark {
    /// Its number in the plan.
    pub step: usize,
    pub input: String,
    /// A sentence without its full stop.
    pub message: String,
}

/// The extensions of a library that checks.
///
/// # Safety
/// `id` is borrowed text, as node.h says.
pub unsafe extern "C" fn checking_extension<C: Check>(id: abi::Str) -> *const c_void {
    // SAFETY: node.h: borrowed text.
    match unsafe { id.as_bytes() } {
        b"check/1" => (&raw const *Checking::<C>::TABLE).cast(),
        // SAFETY: as above.
        _ => unsafe { extension(id) },
    }
}

/// The extensions of a library that checks and trains.
///
/// # Safety
/// `id` is borrowed text, as node.h says.
pub unsafe extern "C" fn checking_and_training_extension<C: Check, T: Train>(
    id: abi::Str,
) -> *const c_void {
    // SAFETY: node.h: borrowed text.
    match unsafe { id.as_bytes() } {
        b"train/1" => (&raw const *Training::<T>::TABLE).cast(),
        // SAFETY: as above.
        _ => unsafe { checking_extension::<C>(id) },
    }
}

struct Training<T>(std::marker::PhantomData<T>);

impl<T: Train> Training<T> {
    const TABLE: &'static abi::Interface = &abi::Interface {
        size: size_of::<abi::Interface>() as u32,
        reserved: 0,
        call: train::<T>,
        flags: 0,
    };
}

unsafe extern "C" fn train<T: Train>(
    _object: *mut abi::Object,
    context: *const abi::Context,
    input: *const abi::Map,
    output: *mut *mut abi::Map,
) -> abi::Status {
    let body = |cx: &Context<'_>, input: &Arguments| {
        let (config, folder) = (input.text("config")?, input.text("folder")?);
        let made = T::train(cx, &config, Path::new(&folder))?;
        Ok(Value::map([("made", Value::string(made.to_string()))]))
    };
    // SAFETY: node.h: context, input and output are valid for the call.
    unsafe { answer(row("train/1"), context, input, output, body) }
}

struct Checking<C>(std::marker::PhantomData<C>);

impl<C: Check> Checking<C> {
    const TABLE: &'static abi::Interface = &abi::Interface {
        size: size_of::<abi::Interface>() as u32,
        reserved: 0,
        call: check::<C>,
        flags: 0,
    };
}

unsafe extern "C" fn check<C: Check>(
    _object: *mut abi::Object,
    context: *const abi::Context,
    input: *const abi::Map,
    output: *mut *mut abi::Map,
) -> abi::Status {
    let body = |cx: &Context<'_>, input: &Arguments| {
        let remarks = C::check(cx, &serde_json::from_str(&input.text("plan")?)?)?;
        let remarks = remarks.into_iter().map(|Remark { step, input, message }| {
            json!({"step": step, "input": input, "message": message})
        });
        let problems = Value::string(Json::from_iter(remarks).to_string());
        Ok(Value::map([("problems", problems)]))
    };
    // SAFETY: node.h: context, input and output are valid for the call.
    unsafe { answer(row("check/1"), context, input, output, body) }
}

/// The row of an extension.
fn row(id: &str) -> Option<&'static table::Interface> {
    table::EXTENSIONS.iter().find(|row| row.id == id)
}

/// The extensions of a library that converts.
///
/// # Safety
/// `id` is borrowed text, as node.h says.
pub unsafe extern "C" fn converting_extension<C: Convert>(id: abi::Str) -> *const c_void {
    // SAFETY: node.h: borrowed text.
    match unsafe { id.as_bytes() } {
        b"convert/1" => (&raw const *Conversion::<C>::TABLE).cast(),
        // SAFETY: as above.
        _ => unsafe { extension(id) },
    }
}

struct Conversion<C>(std::marker::PhantomData<C>);

impl<C: Convert> Conversion<C> {
    const TABLE: &'static abi::Interface = &abi::Interface {
        size: size_of::<abi::Interface>() as u32,
        reserved: 0,
        call: convert::<C>,
        flags: 0,
    };
}

unsafe extern "C" fn convert<C: Convert>(
    _object: *mut abi::Object,
    context: *const abi::Context,
    input: *const abi::Map,
    output: *mut *mut abi::Map,
) -> abi::Status {
    let body = |cx: &Context<'_>, input: &Arguments| {
        let options = serde_json::from_str(&input.text("options")?)?;
        let (from, to) = (input.text("input")?, input.text("output")?);
        let made = C::convert(cx, Path::new(&from), Path::new(&to), &options)?;
        Ok(Value::map(made.map(|json| ("made", Value::string(json.to_string())))))
    };
    // SAFETY: node.h: context, input and output are valid for the call.
    unsafe { answer(row("convert/1"), context, input, output, body) }
}

/// The extensions of every library.
///
/// # Safety
/// `id` is borrowed text, as node.h says.
pub unsafe extern "C" fn extension(id: abi::Str) -> *const c_void {
    static PANIC: abi::Interface = abi::Interface {
        size: size_of::<abi::Interface>() as u32,
        reserved: 0,
        call: panic_inside,
        flags: 0,
    };
    // SAFETY: node.h: borrowed text.
    match unsafe { id.as_bytes() } {
        b"panic/1" => (&raw const PANIC).cast(),
        _ => std::ptr::null(),
    }
}

/// "panic/1": panics where a node would, so that the conformance test sees it contained.
unsafe extern "C" fn panic_inside(
    _object: *mut abi::Object,
    context: *const abi::Context,
    _input: *const abi::Map,
    _output: *mut *mut abi::Map,
) -> abi::Status {
    // SAFETY: node.h: the context is valid for the call.
    unsafe { guard(context, |_| panic!("as the conformance test asked")) }
}

/// Makes a node library of the crate: `node::library![ImageInvert, ImageScale];`, once, at its root.
/// One that has something to do before its first node runs says what, a [`Prepare`](crate::Prepare), and
/// one that also converts files ([`Convert`](crate::Convert)) says with what:
/// `node::library![Loader; prepare: threads::start; convert: Checkpoints];`. So does one that looks at
/// plans before they run ([`Check`](crate::Check)): `node::library![Encode; check: Widths];`.
#[macro_export]
macro_rules! library {
    ($($node:ty),+ $(,)?) => {
        $crate::library!(@with ($crate::extension, false), || None; $($node),+);
    };
    ($($node:ty),+ $(,)?; prepare: $prepare:path) => {
        $crate::library!(@with ($crate::extension, false), $prepare; $($node),+);
    };
    ($($node:ty),+ $(,)?; convert: $convert:ty) => {
        $crate::library!(@with ($crate::converting_extension::<$convert>, false), || None; $($node),+);
    };
    ($($node:ty),+ $(,)?; prepare: $prepare:path; convert: $convert:ty) => {
        $crate::library!(@with ($crate::converting_extension::<$convert>, false), $prepare; $($node),+);
    };
    ($($node:ty),+ $(,)?; check: $check:ty) => {
        $crate::library!(@with ($crate::checking_extension::<$check>, true), || None; $($node),+);
    };
    ($($node:ty),+ $(,)?; prepare: $prepare:path; check: $check:ty) => {
        $crate::library!(@with ($crate::checking_extension::<$check>, true), $prepare; $($node),+);
    };
    ($($node:ty),+ $(,)?; prepare: $prepare:path; check: $check:ty; train: $train:ty) => {
        $crate::library!(
            @with ($crate::checking_and_training_extension::<$check, $train>, true),
            $prepare; $($node),+
        );
    };
    (@with $extensions:expr, $prepare:expr; $($node:ty),+) => {
        #[doc(hidden)]
        mod kosmograph_library {
            use super::*;
            use $crate::abi;

            static NODES: &[$crate::NodeEntry] = &[$($crate::NodeEntry::of::<$node>()),+];
            static FAMILY: ::std::sync::OnceLock<$crate::Family> = ::std::sync::OnceLock::new();

            unsafe extern "C" fn run(
                node: u32,
                context: *const abi::Context,
                inputs: *const abi::Value,
                n_inputs: usize,
                outputs: *mut abi::Value,
                n_outputs: usize,
            ) -> abi::Status {
                // SAFETY: the host calls with what node.h promises.
                unsafe {
                    $crate::Family::run(
                        FAMILY.get(), node, context, inputs, n_inputs, outputs, n_outputs,
                    )
                }
            }

            /// The one symbol of a node library; see node.h.
            #[unsafe(no_mangle)]
            pub extern "C" fn kosmograph_library_v1() -> *const abi::Library {
                let (name, version) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
                let described = ::std::panic::catch_unwind(|| {
                    let extensions: ($crate::ExtensionFn, bool) = $extensions;
                    $crate::Family::get(&FAMILY, name, version, NODES, run, extensions, $prepare)
                });
                described.unwrap_or(::std::ptr::null())
            }
        }
    };
}
