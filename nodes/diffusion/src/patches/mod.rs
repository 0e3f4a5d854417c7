//! Patches of a MODEL: what takes the place of parts of its U-Net, and what guidance makes of its answers.

mod apg;
mod downscale;
mod free_u;
mod guidance;
mod hyper_network;
mod hyper_tile;
mod perpendicular;
mod placed;
mod rescale;
mod sides;
mod token_merging;

pub use apg::APG;
pub use downscale::PatchModelAddDownscale;
pub use free_u::{FreeU, FreeU_V2};
pub use guidance::{Mahiro, PerturbedAttentionGuidance, SelfAttentionGuidance};
pub use hyper_network::HypernetworkLoader;
pub use hyper_tile::HyperTile;
pub use perpendicular::PerpNeg;
pub use placed::{Bridge, Placed};
pub use rescale::RescaleCFG;
pub use sides::{EpsilonScaling, FreSca, LatentApplyOperationCFG, TCFG};
pub use token_merging::TomePatchModel;

use node::interface::Patch;
use node::*;

/// The model with patches.
///
/// # Errors
/// It takes none, or not these.
fn patched(cx: &Context<'_>, model: &Model, patches: Vec<Patch>) -> Result<Model> {
    if !model.0.offers("patch/1") {
        return Err(Error::at(
            "model",
            "this model does not take patches: its library does not offer \"patch/1\"",
        ));
    }
    let patched = model.0.with_patches(cx, patches);
    patched.map(Model).map_err(|error| error.of_input("model"))
}
