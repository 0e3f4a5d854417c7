//! The Kosmos-G node library: pictures and text to what steers Stable Diffusion.
//!
//! `KosmosLoader` reads the model; [`encode`] turns pictures to tokens, [`interleave`] text and tokens to
//! hidden states, [`align`] hidden states to the conditioning that CLIP's would be. Each node calls the
//! interface of the object it is given, so that another library's encoder or aligner takes its place.
//! [`convert`] is what `kosmograph convert` calls.

mod align;
mod convert;
mod encode;
mod interleave;
mod model;

use align::Aligner;
use convert::Checkpoints;
use encode::ImageEncode;
use interleave::TextInterleave;
use model::KosmosLoader;

node::library![KosmosLoader, ImageEncode, TextInterleave, Aligner; prepare: kosmograph_threads::start; finish: kosmograph_caching_allocator::release; convert: Checkpoints];
