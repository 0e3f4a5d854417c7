//! Values of the boundary, counted and checked, for the host and for libraries alike.
//!
//! A [`Value`] is what travels along a link, whoever allocated it. What comes from somebody else passes a
//! [`Checker`] (or [`Value::adopt`] and [`Value::borrow`], which ask a new one), which looks at everything
//! that can be reached through it; after that the accessors are safe to call. What is made here is counted
//! in [one place](counted), and whoever links this crate recognises what it made itself.
//!
//! ```
//! use kosmograph_values::{Checker, Value};
//!
//! let latent = Value::map([("samples", Value::tensor_f32(&[1, 4, 2, 2], &[0.5; 16]).unwrap())]);
//! let raw = latent.clone().into_raw(); // over the boundary …
//! // SAFETY: a sound value, and the reference that the line above gave away.
//! let back = unsafe { Value::adopt(raw) }?; // … and looked at on the other side
//! assert_eq!(back.get("samples").unwrap().tensor_shape(), Some(&[1, 4, 2, 2][..]));
//! # Ok::<(), kosmograph_values::Malformed>(())
//! ```
//!
//! The host shows this crate as its module `value`; the SDK's `Value`, `Tensor` and `Object` are thin hands
//! on it. It knows the boundary and what memory there is, and no tensor library.

pub mod check;
pub mod conform;
mod counted;
pub mod parts;
pub mod place;
mod tensor;
mod value;

pub use check::{Checker, Malformed};
pub use counted::alive;
pub use tensor::{Tensor, TensorView, Unreadable};
pub use value::{QueryFn, Value};

#[cfg(test)]
mod tests;
