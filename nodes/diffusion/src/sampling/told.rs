//! What a model is told beside its latents, for each entry of a conditioning by itself: for training.

use candle_core::Device;
use node::*;

use super::control::Controls;
use super::described::Described;
use super::entry::{Entry, Frame, Given, all_sides};
use super::extra::Extra;
use super::grounding::Groundings;

/// The entries of the positive side for latents of these sizes [1, C, H, W], one after the other, whatever ControlNet, area or mask
/// they carry.
///
/// # Errors
/// One that the model does not take.
pub fn told(
    described: &Described,
    conditioning: &Conditioning,
    dims: (usize, usize, usize, usize),
    device: &Device,
) -> Result<Vec<Entry>> {
    let frame = Frame {
        device: device.clone(),
        schedule: described.schedule.clone(),
        dims,
        context_width: described.context_width,
        vector: described.vector,
        concat_scale: None,
        extra: Extra::None,
        // Nothing is drawn: a picture in the place of a text is told as a guider tells it.
        seed: 0,
    };
    let given = [Given { input: "positive", conditioning }];
    let sides = all_sides(&frame, &given, &mut Controls::new(1), &mut Groundings::default())?;
    Ok(sides.into_iter().next().unwrap_or_default())
}
