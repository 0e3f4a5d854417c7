//! The sampler of consistency models whose latents grow from step to step.

use candle_core::Tensor as Candle;
use kosmograph_models::samplers::Step;
use kosmograph_models::samplers::randn::Generator;
use node::interface::{self, GuideCall, SampleCall, marker};
use node::*;
use node_candle::{device, export, import};

use crate::latent_resize::{Method, resize};
use crate::sampling::{Described, whole_scale};
use crate::sigmas::Sigmas;

/// lcm, with x₀ scaled after some of the steps.
struct Growing {
    ratio: f64,
    /// After how many steps it has grown; half of them where that is not said.
    steps: Option<usize>,
    method: Method,
}

impl Export for Growing {
    const TYPE: &'static str = "SAMPLER";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Growing: marker::Sampler];
}

impl Growing {
    /// The factors of the first size after each of the first steps, of `levels` noise levels.
    fn factors(&self, levels: usize) -> Vec<f64> {
        let places = match self.steps {
            None => (levels / 2 + 1).max(2),
            Some(steps) => (steps + 1).min(levels + 1),
        };
        let last = places.saturating_sub(1);
        let factor = |i: usize| 1.0 + (self.ratio - 1.0) * i as f64 / last as f64;
        (1..=last).map(factor).collect()
    }
}

/// Latents [B, C, H, W] at another size.
fn scaled(latents: &Candle, (height, width): (usize, usize), method: Method) -> Result<Candle> {
    let (batch, channels, old_height, old_width) = latents.dims4()?;
    if (old_height, old_width) == (height, width) {
        return Ok(latents.clone());
    }
    let values = latents.flatten_all()?.to_vec1::<f32>()?;
    let dims = [batch, channels, old_height, old_width];
    let values = resize(&values, dims, (height, width), method)?;
    Ok(Candle::from_vec(values, (batch, channels, height, width), latents.device())?)
}

impl interface::SampleLatents for Growing {
    fn sample(&self, cx: &Context<'_>, call: &SampleCall) -> Result<(Tensor, Tensor)> {
        if call.noise_mask.is_some() {
            return Err(Error::new(
                "these latents have a noise mask, and what it keeps cannot grow with the rest; latents without one would be right",
            ));
        }
        let device = device(&cx.device())?;
        let described = Described::of(cx, &call.guider, "guider")?;
        let levels = <Sigmas as Socket>::from_value(call.sigmas.clone().into_value());
        let levels = levels.map_err(|error| error.of_input("sigmas"))?;
        let levels: Vec<f64> = levels.0.iter().map(|&level| f64::from(level)).collect();
        let Some(&highest) = levels.first() else {
            return Ok((call.latents.clone(), call.latents.clone()));
        };
        let begun = import(&call.latents, &device)?;
        let (batch, channels, height, width) = begun.dims4()?;
        let factors = self.factors(levels.len());
        let side =
            |side: usize, factor: f64| ((side as f64 * factor).round_ties_even() as usize).max(1);
        let largest = self.ratio.max(1.0);
        let shape = [6, batch, channels, side(height, largest), side(width, largest)];
        memory::ask("sampling the latents", &shape, size_of::<f32>())?;
        let (first, seed) =
            call.noise.make_noise(cx, call.latents.clone(), call.batch_index.as_deref())?;
        let scale = whole_scale(&described.schedule, highest);
        let mut x = (&begun + (import(&first, &device)? * scale)?)?;
        // One seed further on, as the noise of every sampler's steps is.
        let mut noise = Generator::new(seed.wrapping_add(1));
        let shows = described.shows(cx, &device)?;
        // The guider makes its conditions ready once for each size.
        let mut latents = call.latents.clone();
        let mut last = begun.clone();
        let steps = levels.len() - 1;
        cx.progress(0, steps)?;
        for (i, pair) in levels.windows(2).enumerate() {
            let asked = GuideCall {
                x: export(&x)?,
                sigma: pair[0],
                latents: Some(latents.clone()),
                noise_mask: None,
                wants_unconditional: false,
            };
            last = import(&call.guider.guide(cx, asked)?.0, &device)?;
            x = last.clone();
            if let Some(&factor) = factors.get(i) {
                let size = (side(height, factor), side(width, factor));
                x = scaled(&x, size, self.method)?;
                if last.dims() != x.dims() {
                    latents = export(&scaled(&begun, size, self.method)?)?;
                }
            }
            if pair[1] > 0.0 {
                let values = noise.randn(x.elem_count());
                let drawn = Candle::from_vec(values, x.shape(), &device)?;
                x = (x + (drawn * pair[1])?)?;
            }
            cx.progress(i + 1, steps)?;
            shows.show(cx, Step { done: i + 1, steps, x: &x, x0: &last })?;
        }
        Ok((export(&x)?, export(&last)?))
    }
}

/// lcm whose latents grow while it samples: what is drawn begins small. The noise of its steps is that of the sampling's seed;
/// conditions are made ready for each size, so that areas and hints are right at each.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/samplers")]
pub struct SamplerLCMUpscale {
    /// How much larger the sides become.
    #[widget(default = 1.0, min = 0.1, max = 20.0, step = 0.01)]
    scale_ratio: f64,
    /// After how many steps they are; -1 is half of the steps.
    #[widget(default = -1, min = -1, max = 1000)]
    scale_steps: i64,
    /// How x₀ is scaled.
    #[widget(choices = ["bislerp", "nearest-exact", "bilinear", "area", "bicubic"], default = "bislerp")]
    upscale_method: String,
}

impl Node for SamplerLCMUpscale {
    outputs![SAMPLER: Sampler];

    fn run(self, _cx: &Context) -> Result<Sampler> {
        let method = Method::named(&self.upscale_method).ok_or_else(|| {
            let names = Method::NAMES.join(", ");
            Error::at("upscale_method", format!("one of {names} would be right"))
        })?;
        let steps = usize::try_from(self.scale_steps).ok();
        Ok(Sampler(Object::new(Growing { ratio: self.scale_ratio, steps, method })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By numpy.linspace, as ComfyUI has it.
    #[test]
    fn latents_grow_over_the_first_steps() {
        let factors = |ratio, steps, levels| {
            let method = Method::Bislerp;
            Growing { ratio, steps, method }.factors(levels)
        };
        assert_eq!(factors(2.0, None, 5), [1.5, 2.0]);
        assert_eq!(factors(2.0, None, 2), [2.0]);
        assert_eq!(factors(3.0, Some(4), 5), [1.5, 2.0, 2.5, 3.0]);
        assert_eq!(factors(3.0, Some(100), 4), [1.5, 2.0, 2.5, 3.0]);
        assert!(factors(3.0, Some(0), 5).is_empty());
    }
}
