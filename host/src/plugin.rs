//! Loading node libraries and calling into them.
//!
//! node.h is the specification; this is the host's half of it. A library is opened once and never
//! closed. Everything it says about itself is looked at before it is believed ([`load`]), and every
//! call ([`call`]) goes through a frame that lends it a `kg_context`, collects why it failed, and
//! lets no panic of the host out.

mod call;
mod load;

use std::ffi::c_void;
use std::path::{Path, PathBuf};

use kosmograph_abi as abi;
use kosmograph_abi::table::EXTENSIONS;
use kosmograph_values::place::on_cpu;
use serde_json::Value as Json;

pub use call::{Call, LogLevel, NodeFailure, call_interface, input, offers};
pub use load::PluginError;

use crate::value::Value;
use call::{Expected, invoke};
pub(crate) use call::{kind_of_type, used_late};

/// The minor version from which a library looks where a tensor lies. Before it every tensor lay on the CPU.
const LOOKS_WHERE_TENSORS_LIE: u16 = 2;

/// The type of `kg_library.run`.
type RunFn = unsafe extern "C" fn(
    u32,
    *const abi::Context,
    *const abi::Value,
    usize,
    *mut abi::Value,
    usize,
) -> abi::Status;

/// The type of `kg_library.extension`.
type ExtensionFn = unsafe extern "C" fn(abi::Str) -> *const c_void;

/// A node library that was opened and understood.
pub struct Library {
    pub path: PathBuf,
    pub name: String,
    pub version: String,
    /// The minor version of the boundary that it was built with.
    pub abi_minor: u16,
    /// As the library gave it: an object with "name", "version" and "nodes", a list. What stands in a
    /// node is looked at by whoever makes a catalogue of it.
    pub descriptor: Json,
    nodes: Vec<NodeOutline>,
    run: RunFn,
    extension: Option<ExtensionFn>,
}

/// What a call must know about a node.
struct NodeOutline {
    class: String,
    outputs: Vec<Expected>,
}

impl Library {
    /// Opens the library and reads what it says about itself.
    ///
    /// # Errors
    /// A sentence for each thing that can be wrong, which names the library; see [`PluginError`].
    pub fn load(path: &Path) -> Result<Self, PluginError> {
        load::load(path)
    }

    /// Runs node number `node` of the descriptor. `inputs` are in the descriptor's order, NONE for an
    /// optional one that is absent; one value per output comes back, of the kind its type asks for.
    ///
    /// # Errors
    /// The node's own sentence, or how it broke the rules of the boundary; [`NodeFailure::Cancelled`]
    /// after [`Call::progress`] said so.
    pub fn run(
        &self,
        node: usize,
        call: &dyn Call,
        inputs: &[Value],
    ) -> Result<Vec<Value>, NodeFailure> {
        let Some(outline) = self.nodes.get(node) else {
            return Err(NodeFailure::failed(format!(
                "there is no node {node}: the library {} has {}",
                self.name,
                self.nodes.len()
            )));
        };
        let index = node as u32;
        self.call(index, &outline.class, call, inputs, outline.outputs.len(), &outline.outputs)
    }

    /// Runs what may not be a node at all, with any number of inputs and outputs: what the library
    /// must refuse. For the conformance test.
    pub(crate) fn run_unchecked(
        &self,
        node: u32,
        call: &dyn Call,
        inputs: &[Value],
        n_outputs: usize,
    ) -> Result<Vec<Value>, NodeFailure> {
        let class = self.nodes.get(node as usize).map_or("a node", |outline| &outline.class);
        self.call(node, class, call, inputs, n_outputs, &[])
    }

    fn call(
        &self,
        node: u32,
        class: &str,
        call: &dyn Call,
        inputs: &[Value],
        n_outputs: usize,
        expected: &[Expected],
    ) -> Result<Vec<Value>, NodeFailure> {
        let looks = self.looks_where_tensors_lie();
        let here: Vec<Value>;
        let inputs = match looks {
            true => inputs,
            false => {
                let moved = inputs.iter().map(on_cpu).collect::<Result<_, _>>();
                here = moved.map_err(|why| NodeFailure::failed(format!("{class}: {why}")))?;
                &here
            }
        };
        // SAFETY: the pointer came from a library that `load` accepted; context, inputs and outputs are
        // what node.h says for the duration of the call.
        invoke((class, looks), call, n_outputs, expected, |context, outputs| unsafe {
            (self.run)(node, context, inputs.as_ptr().cast(), inputs.len(), outputs, n_outputs)
        })
    }

    /// Whether it was built with a header that lets tensors lie anywhere.
    pub(crate) fn looks_where_tensors_lie(&self) -> bool {
        self.abi_minor >= LOOKS_WHERE_TENSORS_LIE
    }

    /// Calls the extension "panic/1", which panics inside; `None` when the library does not offer it.
    pub fn panic_inside(&self, call: &dyn Call) -> Option<Result<Value, NodeFailure>> {
        self.call_extension("panic/1", call, &call::input([]))
    }

    /// Calls an extension that is a kg_interface, by its name in node.h, with a map; `None` when the library
    /// does not offer it.
    pub fn call_extension(
        &self,
        id: &str,
        call: &dyn Call,
        input: &Value,
    ) -> Option<Result<Value, NodeFailure>> {
        // SAFETY: node.h: `extension` takes borrowed text.
        let interface = unsafe { (self.extension?)(abi::Str::new(id)) };
        // SAFETY: node.h: the extensions that are called are each a kg_interface that lives as long as
        // the process.
        let interface = unsafe { kosmograph_values::check::interface(interface.cast()) }?;
        let who = format!("\"{id}\"");
        let row = EXTENSIONS.iter().find(|row| row.id == id);
        Some(match interface {
            // SAFETY: as above; its self is NULL.
            Ok(function) => unsafe {
                call::call_function(&who, call, (function, std::ptr::null_mut()), input, row)
            },
            Err(why) => Err(NodeFailure::failed(format!("its extension {who} {why}"))),
        })
    }
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Library({} {}, {})", self.name, self.version, self.path.display())
    }
}
