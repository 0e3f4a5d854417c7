//! The vision node library: what a picture shows, told by networks.
//!
//! - [`depth`]: Depth Anything V2 draws how far away everything is, as a hint for a ControlNet.
//! - [`masks`]: Segment Anything cuts out what a point or a box shows.
//! - [`masks_by_words`]: CLIPSeg finds what words say.
//! - [`features`]: DINOv2, for the nodes that compare pictures.
//! - [`captions`]: BLIP says what is to be seen, as a text for a prompt.
//! - [`curate`]: the two of them look at pictures for `kosmograph data`.
//!
//! Segment Anything and BLIP are candle-transformers', but for a mask decoder's end ([`mask_decoder`]). DINOv2 and the head of Depth
//! Anything are written here ([`dinov2`], [`depth_anything`]): candle-transformers enlarges both positions and feature maps by
//! repeating pixels, where the published networks interpolate, takes square pictures alone, and asks for a classifier that the
//! published files do not have.

pub mod blip;
pub mod captions;
pub mod clipseg;
mod curate;
pub mod depth;
pub mod depth_anything;
pub mod dinov2;
mod features;
mod mask_decoder;
pub mod masks;
pub mod masks_by_words;
pub mod pictures;
mod positions;
pub mod sam;
mod weights;

use captions::{BlipCaption, BlipLoader};
use curate::Curating;
use depth::DepthAnythingV2Preprocessor;
use features::DinoV2Loader;
use masks::{SamLoader, SamMaskByBox, SamMaskByPoints};
use masks_by_words::{ClipSegLoader, ClipSegMask};

node::library![
    DepthAnythingV2Preprocessor,
    SamLoader,
    SamMaskByPoints,
    SamMaskByBox,
    ClipSegLoader,
    ClipSegMask,
    DinoV2Loader,
    BlipLoader,
    BlipCaption;
    prepare: kosmograph_threads::start;
    train: Curating
];
