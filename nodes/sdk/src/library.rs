//! [`Node`], its outputs, and the library made of nodes.

use std::sync::{Once, OnceLock};

use kosmograph_abi as abi;
use kosmograph_values::place::on_cpu;
use serde_json::{Map, Value as Json, json};

use crate::context::guard;
use crate::extension::{self, Entry as ExtensionEntry, ExtensionFn};
use crate::input::{Class, Factor, InputSpec, Inputs, List, Reader};
use crate::object::{borrow_values, write_values};
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
    /// An input of it and the text that must stand there for the node to be right; then the class may well be there: the
    /// texts are choices that the node brings to it.
    pub when: &'static [(&'static str, &'static str)],
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
        Self { class, when: &[], widgets: &[], inputs: &[], values: &[], outputs: &[] }
    }

    fn json(&self) -> Json {
        let map = |pairs: &[(&str, &str)]| -> Json {
            pairs
                .iter()
                .map(|&(new, old)| (new.to_owned(), old.into()))
                .collect::<Map<_, _>>()
                .into()
        };
        let mut json = json!({"class": self.class, "widgets": self.widgets, "inputs": map(self.inputs),
            "values": map(self.values), "outputs": self.outputs});
        if !self.when.is_empty() {
            json["when"] = map(self.when);
        }
        json
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

/// One output of a node: a socket, or a [`List`] of values of one, for each of which the nodes behind it run.
pub trait Output {
    const OUTPUT_TYPE: &'static str;
    const IS_LIST: bool;

    fn into_output(self) -> Value;
}

impl<T: Socket> Output for T {
    const OUTPUT_TYPE: &'static str = T::TYPE;
    const IS_LIST: bool = false;

    fn into_output(self) -> Value {
        self.into_value()
    }
}

impl<T: Socket> Output for List<T> {
    const OUTPUT_TYPE: &'static str = T::TYPE;
    const IS_LIST: bool = true;

    fn into_output(self) -> Value {
        Value::list(self.0.into_iter().map(T::into_value).collect())
    }
}

/// What a node gives: an output or a tuple of outputs.
pub trait Outputs {
    const TYPES: &'static [&'static str];
    const ARE_LISTS: &'static [bool];

    fn into_values(self) -> Vec<Value>;
}

impl<T: Output> Outputs for T {
    const TYPES: &'static [&'static str] = &[T::OUTPUT_TYPE];
    const ARE_LISTS: &'static [bool] = &[T::IS_LIST];

    fn into_values(self) -> Vec<Value> {
        vec![self.into_output()]
    }
}

macro_rules! tuple_outputs {
    ($($type:ident $field:tt),*) => {
        impl<$($type: Output),*> Outputs for ($($type,)*) {
            const TYPES: &'static [&'static str] = &[$($type::OUTPUT_TYPE),*];
            const ARE_LISTS: &'static [bool] = &[$($type::IS_LIST),*];

            fn into_values(self) -> Vec<Value> {
                vec![$(self.$field.into_output()),*]
            }
        }
    };
}
tuple_outputs!();
tuple_outputs!(A 0, B 1);
tuple_outputs!(A 0, B 1, C 2);
tuple_outputs!(A 0, B 1, C 2, D 3);
tuple_outputs!(A 0, B 1, C 2, D 3, E 4);
tuple_outputs!(A 0, B 1, C 2, D 3, E 4, F 5);
tuple_outputs!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);

/// A node with its type forgotten, as the library's table holds it.
pub struct Entry {
    class: Class,
    output_names: &'static [&'static str],
    output_types: &'static [&'static str],
    are_lists: &'static [bool],
    replaces: &'static [Replaces],
    specs: fn() -> Vec<InputSpec>,
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
            class: N::CLASS,
            output_names: N::OUTPUT_NAMES,
            output_types: <N::Output as Outputs>::TYPES,
            are_lists: <N::Output as Outputs>::ARE_LISTS,
            replaces: N::REPLACES,
            specs: N::specs,
            run: |cx, specs, values| {
                let inputs = N::read(&mut Reader::new(specs, values))?;
                Ok(inputs.run(cx)?.into_values())
            },
        }
    }

    /// What the descriptor says of the node. Of values and not of a type: a library of two hundred nodes would have it
    /// two hundred times.
    fn json(&self, specs: &[InputSpec]) -> Json {
        let Self { class, output_names, output_types, are_lists, replaces, .. } = self;
        let outputs = output_names.iter().zip(*output_types).zip(*are_lists);
        let outputs: Vec<Json> = outputs
            .map(|((name, kind), is_list)| match is_list {
                true => json!({"name": name, "type": kind, "is_list": true}),
                false => json!({"name": name, "type": kind}),
            })
            .collect();
        let mut json = json!({
            "class": class.name,
            "doc": class.doc,
            "category": class.category,
            "inputs": specs.iter().map(InputSpec::json).collect::<Vec<_>>(),
            "outputs": outputs,
            "pure": class.pure,
            "output_node": class.output_node,
        });
        if class.input_is_list {
            json["input_is_list"] = true.into();
        }
        if class.checked {
            json["checked"] = true.into();
        }
        if let Some(writes) = class.writes {
            json["writes"] = writes.into();
        }
        if !class.memory.is_empty() {
            json["memory"] = class.memory.iter().map(Factor::json).collect();
        }
        if !replaces.is_empty() {
            json["replaces"] = replaces.iter().map(Replaces::json).collect();
        }
        json
    }
}

/// What [`library!`](crate::library) makes: the nodes of this library and their descriptor.
pub struct Family {
    nodes: &'static [Entry],
    specs: Vec<Vec<InputSpec>>,
    _descriptor: &'static str,
    table: abi::Library,
    around: Around,
    prepared: Once,
}

/// What a library does once, before its first node runs; the line that comes back is told to the person.
pub type Prepare = fn() -> Option<String>;

/// What a library does after each of its nodes, however it ended: it must not panic.
pub type Finish = fn();

/// What a library does around its nodes.
pub struct Around {
    pub prepare: &'static [Prepare],
    pub finish: &'static [Finish],
}

impl Family {
    /// Describes the library once; the memory is kept for as long as the process lives.
    pub fn get(
        cell: &'static OnceLock<Family>,
        name: &str,
        version: &str,
        nodes: &'static [Entry],
        run: RunFn,
        (extension, extensions): (ExtensionFn, &[ExtensionEntry]),
        around: Around,
    ) -> *const abi::Library {
        let family = cell.get_or_init(|| {
            let specs: Vec<Vec<InputSpec>> = nodes.iter().map(|node| (node.specs)()).collect();
            let described: Vec<Json> =
                nodes.iter().zip(&specs).map(|(node, specs)| node.json(specs)).collect();
            let mut json = json!({"name": name, "version": version, "nodes": described});
            if extension::checks(extensions) {
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
            Family { nodes, specs, _descriptor: descriptor, table, around, prepared }
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
            if n_inputs != specs.len() || n_outputs != entry.output_names.len() {
                return Err(Error::new(format!(
                    "the node has {} inputs and {} outputs, but was called with {n_inputs} and \
                     {n_outputs}",
                    specs.len(),
                    entry.output_names.len()
                )));
            }
            family.prepared.call_once(|| {
                let told = family.around.prepare.iter().filter_map(|prepare| prepare());
                told.for_each(|told| cx.warn(told));
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
        let status = unsafe { guard(context, &body) };
        family.into_iter().flat_map(|family| family.around.finish).for_each(|finish| finish());
        status
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

/// Makes a node library of the crate: `node::library![ImageInvert, ImageScale];`, once, at its root.
/// One that has something to do before its first node runs says what, a [`Prepare`](crate::Prepare), and so does one that
/// has something to do after each, a [`Finish`](crate::Finish); one that offers more than nodes says with what, in this
/// order: files converted ([`Convert`](crate::Convert)), plans looked at before they run ([`Check`](crate::Check)), models
/// trained ([`Train`](crate::Train)), pictures measured ([`Evaluate`](crate::Evaluate)):
/// `node::library![Loader; prepare: threads::start; convert: Checkpoints; check: Widths];`.
#[macro_export]
macro_rules! library {
    (
        $($node:ty),+ $(,)?
        $(; prepare: $prepare:path)?
        $(; finish: $finish:path)?
        $(; convert: $convert:ty)?
        $(; check: $check:ty)?
        $(; train: $train:ty)?
        $(; evaluate: $evaluate:ty)?
    ) => {
        #[doc(hidden)]
        mod kosmograph_library {
            use super::*;
            use $crate::abi;

            static NODES: &[$crate::NodeEntry] = &[$($crate::NodeEntry::of::<$node>()),+];
            static EXTENSIONS: &[$crate::ExtensionEntry] = &[
                $($crate::ExtensionEntry::convert::<$convert>(),)?
                $($crate::ExtensionEntry::check::<$check>(),)?
                $($crate::ExtensionEntry::train::<$train>(),)?
                $($crate::ExtensionEntry::evaluate::<$evaluate>(),)?
            ];
            const AROUND: $crate::Around =
                $crate::Around { prepare: &[$($prepare)?], finish: &[$($finish)?] };
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

            unsafe extern "C" fn extension(id: abi::Str) -> *const ::std::ffi::c_void {
                // SAFETY: the host calls with what node.h promises.
                unsafe { $crate::find_extension(EXTENSIONS, id) }
            }

            /// The one symbol of a node library; see node.h.
            #[unsafe(no_mangle)]
            pub extern "C" fn kosmograph_library_v1() -> *const abi::Library {
                let (name, version) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
                let described = ::std::panic::catch_unwind(|| {
                    let extensions = (extension as $crate::ExtensionFn, EXTENSIONS);
                    $crate::Family::get(&FAMILY, name, version, NODES, run, extensions, AROUND)
                });
                described.unwrap_or(::std::ptr::null())
            }
        }
    };
}
