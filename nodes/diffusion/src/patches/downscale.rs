//! PatchModelAddDownscale: a part of the U-Net works on a smaller picture while the noise is strong, so that one larger than
//! those it was trained on holds together ("Kohya's deep shrink").

use candle_core::Tensor as Candle;
use kosmograph_models::stable_diffusion::checkpoint::original::UNetNames;
use node::interface::{self, BlockCall, Patch, marker};
use node::*;
use node_candle::{device, export, import};

use super::patched;
use crate::latent_resize::{Method, resize};

/// [B, C, H, W] at another height and width.
fn scaled(x: &Candle, (height, width): (usize, usize), method: Method) -> Result<Candle> {
    let (batch, channels, rows, columns) = x.dims4()?;
    memory::ask(
        "a U-Net's features at another size",
        &[2, batch, channels, height, width],
        size_of::<f32>(),
    )?;
    let values = x.flatten_all()?.to_vec1::<f32>()?;
    let resized = resize(&values, [batch, channels, rows, columns], (height, width), method)?;
    Ok(Candle::from_vec(resized, (batch, channels, height, width), x.device())?)
}

/// Makes the picture smaller below a block.
struct Smaller {
    factor: f64,
    method: Method,
}

impl Export for Smaller {
    const TYPE: &'static str = "PATCH";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Smaller: marker::BlockPatch];
}

/// A side divided by the factor, as Python rounds.
fn divided(side: usize, factor: f64) -> usize {
    (side as f64 * (1.0 / factor)).round_ties_even() as usize
}

impl interface::PatchBlock for Smaller {
    fn patch_block(&self, cx: &Context<'_>, call: &BlockCall) -> Result<(Tensor, Option<Tensor>)> {
        let x = import(&call.x, &device(&cx.device())?)?;
        let (_, _, height, width) = x.dims4()?;
        let size = (divided(height, self.factor), divided(width, self.factor));
        if size.0 == 0 || size.1 == 0 {
            return Err(Error::new(format!(
                "dividing {height} × {width} by {} leaves nothing at {}; a smaller factor, or an earlier block, would be \
                 right",
                self.factor, call.block
            )));
        }
        Ok((export(&scaled(&x, size, self.method)?)?, call.skip.clone()))
    }
}

/// Makes the picture as large again as the skip connection that it meets.
struct Larger {
    method: Method,
}

impl Export for Larger {
    const TYPE: &'static str = "PATCH";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Larger: marker::BlockPatch];
}

impl interface::PatchBlock for Larger {
    fn patch_block(&self, cx: &Context<'_>, call: &BlockCall) -> Result<(Tensor, Option<Tensor>)> {
        let sides = |tensor: &Tensor| tensor.shape().get(2..4).map(<[usize]>::to_vec);
        let wanted = call.skip.as_ref().and_then(sides);
        let Some([height, width]) = wanted
            .filter(|wanted| sides(&call.x).as_ref() != Some(wanted))
            .as_deref()
            .map(|sides| [sides[0], sides[1]])
        else {
            return Ok((call.x.clone(), call.skip.clone()));
        };
        let x = import(&call.x, &device(&cx.device())?)?;
        Ok((export(&scaled(&x, (height, width), self.method)?)?, call.skip.clone()))
    }
}

const METHODS: [&str; 5] = ["bicubic", "nearest-exact", "bilinear", "area", "bislerp"];

/// Lets the inside of the U-Net see a smaller picture in the first part of a sampling: pictures larger than the model was
/// trained on hold together.
#[derive(Inputs)]
#[node(category = "model_patches/unet")]
pub struct PatchModelAddDownscale {
    /// The U-Net.
    model: Model,
    /// Below which block of the contracting half, as the original code counts them.
    #[widget(default = 3, min = 1, max = 32, step = 1)]
    block_number: i64,
    /// What the sides are divided by.
    #[widget(default = 2.0, min = 0.1, max = 9.0, step = 0.001)]
    downscale_factor: f64,
    /// Where in the schedule it begins, 0 the noisiest.
    #[widget(default = 0.0, min = 0.0, max = 1.0, step = 0.001)]
    start_percent: f64,
    /// Where it ends.
    #[widget(default = 0.35, min = 0.0, max = 1.0, step = 0.001)]
    end_percent: f64,
    /// Whether the skip connection of that block keeps the whole size.
    #[widget(default = true)]
    downscale_after_skip: bool,
    /// How the picture becomes smaller.
    #[widget(default = "bicubic", choices = METHODS)]
    downscale_method: String,
    /// And larger again.
    #[widget(default = "bicubic", choices = METHODS)]
    upscale_method: String,
}

impl Node for PatchModelAddDownscale {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let method = |name: &str, input: &str| {
            Method::named(name)
                .ok_or_else(|| Error::at(input, format!("there is no way \"{name}\"")))
        };
        let down = method(&self.downscale_method, "downscale_method")?;
        let up = method(&self.upscale_method, "upscale_method")?;
        // How many blocks a level has shows in the names of the tensors; all of the two families have two.
        let names = match self.model.0.offers("weights/1") {
            true => self.model.0.weights(cx).map_err(|error| error.of_input("model"))?,
            false => Vec::new(),
        };
        let names = UNetNames::of(names.iter().map(|(name, _)| name.as_str()));
        let number = usize::try_from(self.block_number).unwrap_or(0);
        let block = names.input_block(number).unwrap_or_default();
        let smaller = Object::new(Smaller { factor: self.downscale_factor, method: down });
        let kind = if self.downscale_after_skip { "below" } else { "block_output" };
        let smaller = Patch {
            start: self.start_percent,
            end: self.end_percent,
            ..Patch::new(kind, smaller).within(&[&block])
        };
        let larger = Patch::new("skip", Object::new(Larger { method: up }));
        let said = patched(cx, &self.model, vec![smaller, larger]);
        said.map_err(|error| match error.to_string().contains("has no block") {
            true => Error::at(
                "block_number",
                format!("this model's contracting half has no block {number}; a smaller number would be right"),
            ),
            false => error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_rounded_as_python_rounds() {
        assert_eq!([divided(64, 2.0), divided(5, 2.0), divided(7, 2.0)], [32, 2, 4]);
        assert_eq!([divided(3, 9.0), divided(8, 0.1)], [0, 80]);
    }
}
