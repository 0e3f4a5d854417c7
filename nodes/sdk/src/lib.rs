//! What an author of node libraries uses. A library is a crate of type `cdylib`:
//!
//! ```
//! use node::*;
//!
//! /// Inverts an image.
//! #[derive(Inputs)]
//! struct ImageInvert {
//!     /// The picture.
//!     image: Image,
//!     /// How much of it: 0 leaves the picture as it is.
//!     #[widget(default = 1.0, min = 0.0, max = 1.0)]
//!     strength: f64,
//! }
//!
//! impl Node for ImageInvert {
//!     outputs![image: Image];
//!
//!     fn run(self, _cx: &Context) -> Result<Image> {
//!         let pixels = self.image.0.to_f32()?;
//!         let mix = |&x: &f32| x + self.strength as f32 * (1.0 - 2.0 * x);
//!         Ok(Image(Tensor::from_f32(&self.image.0.shape(), pixels.iter().map(mix).collect())?))
//!     }
//! }
//!
//! node::library![ImageInvert];
//! # fn main() {}
//! ```
//!
//! The struct's fields are the node's inputs, its docs the node's documentation. Values are checked
//! against the declaration before [`Node::run`] sees them; a panic inside is an error of that node. What
//! crosses the boundary, and who owns it, stands in `node.h` (crate `kosmograph-abi`), whose words the
//! types here keep: a [`Value`] is what travels along a link, a [`Tensor`] is DLPack's, an [`Object`] has
//! interfaces. No type of this crate knows of a tensor library; `kosmograph-sdk-candle` adds candle. A
//! library's tests run its nodes with the small host of [`testing`].

// So that the macros' `node::…` paths and the example above mean this crate here too.
extern crate self as node;

pub use kosmograph_abi as abi;
/// Whether to stop, asked where no [`Context`] reaches: every call of a node or an interface says whom to ask.
pub use kosmograph_interrupt as interrupt;
/// What memory there is, asked for before it is taken.
pub use kosmograph_memory as memory;
pub use kosmograph_sdk_derive::Inputs;
pub use serde_json::json;

mod context;
mod error;
mod extension;
mod input;
pub mod interface;
mod library;
mod object;
mod own_context;
mod sockets;
mod tensor;
pub mod testing;
mod value;

pub use context::{Context, Preview};
pub use error::{Error, Result};
pub use extension::{
    Check, Convert, Entry as ExtensionEntry, Evaluate, ExtensionFn, Remark, Train, Trained,
    find as find_extension,
};
pub use input::{Class, Factor, Input, InputSpec, Inputs, List, Numbered, Reader, Single};
pub use library::{
    Around, Entry as NodeEntry, Family, Finish, Node, Output, Outputs, Prepare, Replaces, RunFn,
};
pub use object::{Arguments, Entry as InterfaceEntry, Export, Interface, Object};
pub use own_context::OwnContext;
#[doc(hidden)]
pub use sockets::object_of_type;
pub use sockets::{
    Clip, ClipVision, ClipVisionOutput, Conditioning, Control, ControlNet, Features, Gligen,
    Guider, HiddenStates, Image, ImageEncoder, ImageTokens, Kosmos, Latent, LatentOperation,
    LoraModel, LossMap, Mask, Model, Noise, PhotoMaker, Sampler, Socket, StyleModel, UpscaleModel,
    Vae, plain,
};
pub use tensor::Tensor;
pub use value::Value;
