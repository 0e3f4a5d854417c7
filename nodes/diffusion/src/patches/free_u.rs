//! FreeU (Si et al., "FreeU: Free Lunch in Diffusion U-Net", arXiv 2309.11497): in the expanding half the backbone's
//! features count more and the lowest frequencies of the skip connections less.

use candle_core::{Device, Result as CandleResult, Tensor as Candle};
use node::interface::{self, BlockCall, Patch, marker};
use node::*;
use node_candle::{device, export, import};

use super::patched;

/// How much the features of a level count, by its channels.
struct Scaled {
    /// Channels, what half of the backbone's features is multiplied by, and what the skip's low frequencies are.
    levels: [(usize, f64, f64); 2],
    /// Whether the backbone's factor follows the features' own mean (the second version).
    by_mean: bool,
}

impl Export for Scaled {
    const TYPE: &'static str = "PATCH";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Scaled: marker::BlockPatch];
}

impl interface::PatchBlock for Scaled {
    fn patch_block(&self, cx: &Context<'_>, call: &BlockCall) -> Result<(Tensor, Option<Tensor>)> {
        let channels = call.x.shape().get(1).copied().unwrap_or(0);
        let level = self.levels.iter().find(|(of, ..)| *of == channels);
        let (Some((_, backbone, low)), Some(skip)) = (level, &call.skip) else {
            return Ok((call.x.clone(), call.skip.clone()));
        };
        let device = device(&cx.device())?;
        let (x, skip) = (import(&call.x, &device)?, import(skip, &device)?);
        let x = raised(&x, *backbone, self.by_mean)?;
        Ok((export(&x)?, Some(export(&with_low_frequencies(&skip, *low)?)?)))
    }
}

/// The first half of the channels multiplied: by `factor`, or, `by_mean`, by 1 where the mean over the channels is lowest and
/// by `factor` where it is highest.
fn raised(x: &Candle, factor: f64, by_mean: bool) -> CandleResult<Candle> {
    let (batch, channels, height, width) = x.dims4()?;
    let half = channels / 2;
    let (first, rest) = (x.narrow(1, 0, half)?, x.narrow(1, half, channels - half)?);
    let first = match by_mean {
        false => (first * factor)?,
        true => {
            let mean = x.mean_keepdim(1)?;
            let flat = mean.reshape((batch, height * width))?;
            let (low, high) = (flat.min_keepdim(1)?, flat.max_keepdim(1)?);
            // A picture that is even everywhere is low everywhere.
            let spread = (&high - &low)?;
            let spread = (&spread + spread.eq(0f32)?.to_dtype(x.dtype())?)?;
            let place = flat.broadcast_sub(&low)?.broadcast_div(&spread)?;
            let factors = place.affine(factor - 1.0, 1.0)?;
            first.broadcast_mul(&factors.reshape((batch, 1, height, width))?)?
        }
    };
    Candle::cat(&[first, rest], 1)
}

/// `x` [B, C, H, W] with its frequencies 0 and -1 along both axes multiplied by `factor`, of which the real part is taken:
/// those are what the authors' window of two by two coefficients holds.
fn with_low_frequencies(x: &Candle, factor: f64) -> CandleResult<Candle> {
    let (batch, channels, height, width) = x.dims4()?;
    let frequencies = |size: usize| if size > 1 { vec![0usize, size - 1] } else { vec![0] };
    // cos and sin of each of these waves, in rows.
    let mut waves = Vec::new();
    for u in frequencies(height) {
        for v in frequencies(width) {
            for shift in [0.0, std::f64::consts::FRAC_PI_2] {
                for y in 0..height {
                    for column in 0..width {
                        let turns = (u * y % height) as f64 / height as f64
                            + (v * column % width) as f64 / width as f64;
                        waves.push((2.0 * std::f64::consts::PI * turns - shift).cos() as f32);
                    }
                }
            }
        }
    }
    let count = waves.len() / (height * width);
    let waves =
        Candle::from_vec(waves, (count, height * width), &Device::Cpu)?.to_device(x.device())?;
    let rows = x.reshape((batch * channels, height * width))?;
    let low = rows.matmul(&waves.t()?.contiguous()?)?.matmul(&waves)?;
    let share = (factor - 1.0) / (height * width) as f64;
    (rows + (low * share)?)?.reshape((batch, channels, height, width))
}

fn free_u(cx: &Context<'_>, model: &Model, by_mean: bool, scales: [f64; 4]) -> Result<Model> {
    let described = model.0.describe(cx).map_err(|error| error.of_input("model"))?;
    let Some(channels) = described["model_channels"].as_u64().map(|channels| channels as usize)
    else {
        return Err(Error::at(
            "model",
            "this model does not say how many channels its outermost level has, by which FreeU finds its levels",
        ));
    };
    let [b1, b2, s1, s2] = scales;
    let levels = [(4 * channels, b1, s1), (2 * channels, b2, s2)];
    let patch = Object::new(Scaled { levels, by_mean });
    patched(cx, model, vec![Patch::new("skip", patch)])
}

/// Lets the backbone of a U-Net count more, and the low frequencies of its skip connections less.
#[derive(Inputs)]
#[node(category = "model_patches/unet")]
pub struct FreeU {
    /// The U-Net.
    model: Model,
    /// What half of the backbone's features are multiplied by, where there are four times the outermost channels.
    #[widget(default = 1.1, min = 0.0, max = 10.0, step = 0.01)]
    b1: f64,
    /// Where there are twice as many.
    #[widget(default = 1.2, min = 0.0, max = 10.0, step = 0.01)]
    b2: f64,
    /// What the skip's low frequencies are multiplied by, where there are four times the outermost channels.
    #[widget(default = 0.9, min = 0.0, max = 10.0, step = 0.01)]
    s1: f64,
    /// Where there are twice as many.
    #[widget(default = 0.2, min = 0.0, max = 10.0, step = 0.01)]
    s2: f64,
}

impl Node for FreeU {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        free_u(cx, &self.model, false, [self.b1, self.b2, self.s1, self.s2])
    }
}

/// As FreeU, the backbone's factor following the features' own mean.
#[derive(Inputs)]
#[node(category = "model_patches/unet")]
#[allow(non_camel_case_types, reason = "ComfyUI's name")]
pub struct FreeU_V2 {
    /// The U-Net.
    model: Model,
    /// What half of the backbone's features are multiplied by at most, where there are four times the outermost channels.
    #[widget(default = 1.3, min = 0.0, max = 10.0, step = 0.01)]
    b1: f64,
    /// Where there are twice as many.
    #[widget(default = 1.4, min = 0.0, max = 10.0, step = 0.01)]
    b2: f64,
    /// What the skip's low frequencies are multiplied by, where there are four times the outermost channels.
    #[widget(default = 0.9, min = 0.0, max = 10.0, step = 0.01)]
    s1: f64,
    /// Where there are twice as many.
    #[widget(default = 0.2, min = 0.0, max = 10.0, step = 0.01)]
    s2: f64,
}

impl Node for FreeU_V2 {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        free_u(cx, &self.model, true, [self.b1, self.b2, self.s1, self.s2])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &Candle, expected: &[f32]) {
        let found: Vec<f32> = found.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 2e-5, "{found} for {expected}");
        }
    }

    fn tensor(values: &[f32], shape: (usize, usize, usize, usize)) -> Candle {
        Candle::from_vec(values.to_vec(), shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn low_frequencies_are_numpys() -> CandleResult<()> {
        // numpy.fft, shifted, the window of two by two about the middle multiplied.
        let x = tensor(
            &[
                0.0, 2.027, 1.231, -1.076, -1.367, 0.93, 2.597, 1.338, -0.856, -0.624, 1.84, 3.074,
                1.416, -0.558, 0.19, 2.711,
            ],
            (1, 1, 4, 4),
        );
        close(
            &with_low_frequencies(&x, 0.2)?,
            &[
                -0.178, 1.579, 0.2469, -1.7901, -1.7449, 0.4432, 1.7137, 0.5636, -1.2988, -1.0361,
                0.8703, 2.0736, 1.1731, -0.9313, -0.8805, 1.7709,
            ],
        );
        let x = tensor(
            &[
                0.0, 2.027, 1.231, -1.076, -1.367, 0.93, 2.597, 1.338, -0.856, -0.624, 1.84, 3.074,
                1.416, -0.558, 0.19,
            ],
            (1, 1, 3, 5),
        );
        close(
            &with_low_frequencies(&x, 0.9)?,
            &[
                -0.05149, 1.90327, 1.14794, -1.06167, -1.33316, 0.83557, 2.42752, 1.23409,
                -0.84433, -0.60647, 1.71502, 2.89883, 1.30352, -0.58156, 0.15872,
            ],
        );
        let x = tensor(&[0.0, 2.027, 1.231, -1.076, -1.367, 0.93], (1, 1, 2, 3));
        close(
            &with_low_frequencies(&x, 1.7)?,
            &[0.3801, 3.11655, 2.04195, -1.62912, -2.02197, 1.07898],
        );
        Ok(())
    }

    #[test]
    fn half_of_the_channels_is_raised() -> CandleResult<()> {
        let x =
            tensor(&[1.0, 2.0, 3.0, 4.0, 5.0, 9.0, -1.0, 1.0, 0.5, 1.0, 2.0, 3.0], (1, 3, 2, 2));
        close(
            &raised(&x, 1.5, false)?,
            &[1.5, 3.0, 4.5, 6.0, 5.0, 9.0, -1.0, 1.0, 0.5, 1.0, 2.0, 3.0],
        );
        // The means are 6.5, 12, 4 and 8 thirds.
        let factors = [2.5 / 8.0, 1.0, 0.0, 4.0 / 8.0].map(|place: f32| 1.0 + 0.5 * place);
        let mut expected = x.flatten_all()?.to_vec1::<f32>()?;
        expected.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
        close(&raised(&x, 1.5, true)?, &expected);
        let even = tensor(&[2.0; 8], (1, 2, 2, 2));
        close(&raised(&even, 1.5, true)?, &[2.0; 8]);
        Ok(())
    }
}
