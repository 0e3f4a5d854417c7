//! Pictures that a model draws after in the place of a pooled text, as unCLIP has them: SDXL's "Revision".

use kosmograph_models::stable_diffusion::unclip::{self, Picture};
use node::*;
use node_candle::import;

/// Has the model draw after a picture, as CLIP's picture half sees it. SDXL takes it in the place of the text's pooled
/// vector; the noise is that of the sampler's seed.
#[derive(Inputs)]
#[node(class = "unCLIPConditioning", category = "conditioning")]
pub struct UnclipConditioning {
    /// What the picture is added to; one that has some already has one more.
    conditioning: Conditioning,
    /// What CLIP's picture half says of it (CLIPVisionEncode; for SDXL, of ViT-bigG).
    clip_vision_output: ClipVisionOutput,
    /// How much it counts; 0 leaves the conditioning as it is.
    #[widget(default = 1.0, min = -10.0, max = 10.0, step = 0.01)]
    strength: f64,
    /// How much noise hides what it shows in detail.
    #[widget(default = 0.0, min = 0.0, max = 1.0, step = 0.01)]
    noise_augmentation: f64,
}

impl Node for UnclipConditioning {
    outputs![CONDITIONING: Conditioning];

    fn run(self, _cx: &Context) -> Result<Conditioning> {
        if self.strength == 0.0 {
            return Ok(self.conditioning);
        }
        let embeds = self.clip_vision_output.0.get("image_embeds");
        let embeds = embeds.filter(|embeds| embeds.as_tensor().is_some()).ok_or_else(|| {
            Error::at(
                "clip_vision_output",
                "it has no \"image_embeds\", which CLIPVisionEncode gives",
            )
        })?;
        let picture = Value::map([
            ("image_embeds", embeds),
            ("strength", self.strength.into()),
            ("noise_augmentation", self.noise_augmentation.into()),
        ]);
        Ok(self.conditioning.map_entries(|entry| {
            let mut pictures =
                entry.get("unclip").and_then(|list| list.as_list()).unwrap_or_default();
            pictures.push(picture.clone());
            entry.with("unclip", Value::list(pictures))
        }))
    }
}

/// The pooled vector that an entry's pictures stand for, [1, `width`]; `None` where it has none.
///
/// # Errors
/// A picture is no map of the kind above, or of another width.
pub fn pooled(
    entry: &Value,
    width: usize,
    seed: u64,
    device: &candle_core::Device,
) -> Result<Option<candle_core::Tensor>> {
    let Some(list) = entry.get("unclip") else { return Ok(None) };
    let wrong = || {
        Error::new(
            "\"unclip\" is a list of maps of \"image_embeds\", \"strength\" and \"noise_augmentation\"",
        )
    };
    let picture = |value: &Value| {
        let number = |key: &str, default: f64| {
            value
                .get(key)
                .and_then(|value| value.as_f64())
                .filter(|n| n.is_finite())
                .unwrap_or(default)
        };
        let embeds =
            value.get("image_embeds").and_then(|embeds| embeds.as_tensor()).ok_or_else(wrong)?;
        let noise_augmentation = number("noise_augmentation", 0.0).clamp(0.0, 1.0);
        Ok(Picture {
            embeds: import(&embeds, device)?,
            strength: number("strength", 1.0),
            noise_augmentation,
        })
    };
    let pictures = list.as_list().ok_or_else(wrong)?;
    let pictures = pictures.iter().map(picture).collect::<Result<Vec<_>>>()?;
    Ok(Some(unclip::pooled(&pictures, width, seed, device)?))
}
