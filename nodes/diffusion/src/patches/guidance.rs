//! Patches of guidance: what x₀ becomes beyond uncond + cfg · (cond - uncond).

use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Result as CandleResult, Tensor as Candle};
use kosmograph_models::bounds::at_least;
use node::interface::{self, AttentionCall, GuidanceCall, Patch, marker};
use node::*;
use node_candle::{device, export, import};

use super::patched;
use crate::latent_operation::blurred;

/// Where PAG and SAG change the U-Net.
const MIDDLE: &[&str] = &["mid_block"];

fn guidance(patch: Object, wants_unconditional: bool) -> Patch {
    Patch { wants_unconditional, ..Patch::new("guidance", patch) }
}

/// x₀ of the negative side.
fn unconditional(call: &GuidanceCall) -> Result<&Tensor> {
    let missing = || Error::at("unconditional", "x0 of the negative side is wanted");
    call.unconditional.as_ref().ok_or_else(missing)
}

/// Each token attends to itself alone.
struct Identity;

impl Export for Identity {
    const TYPE: &'static str = "PATCH";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Identity: marker::AttentionPatch];
}

impl interface::PatchAttention for Identity {
    fn patch_attention(&self, cx: &Context<'_>, call: &AttentionCall) -> Result<Tensor> {
        // Rows of one token each: the softmax of one number is 1.
        let device = device(&cx.device())?;
        let (rows, tokens, channels) = import(&call.x, &device)?.dims3()?;
        let apart = |x: &Tensor| {
            export(&import(x, &device)?.contiguous()?.reshape((rows * tokens, 1, channels))?)
        };
        let values_of = call.value_context.as_ref().map(apart).transpose()?;
        let contexts = (None, values_of);
        let (y, _) = call.attention.attend(cx, apart(&call.x)?, contexts, None, false)?;
        export(&import(&y, &device)?.reshape((rows, tokens, channels))?)
    }
}

/// Away from what the model says where its middle cannot see (Ahn et al., arXiv 2403.17377).
struct Perturbed {
    scale: f64,
}

impl Export for Perturbed {
    const TYPE: &'static str = "PATCH";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Perturbed: marker::GuidancePatch];
}

impl interface::PatchGuidance for Perturbed {
    fn patch_guidance(&self, cx: &Context<'_>, call: &GuidanceCall) -> Result<Tensor> {
        if self.scale == 0.0 {
            return Ok(call.denoised.clone());
        }
        let blind = Patch::new("self_attention", Object::new(Identity)).within(MIDDLE);
        let (x, sigma) = (call.x.clone(), call.sigma);
        let blind = call.sides.ask_side(cx, x, sigma, "positive", vec![blind])?;
        let device = device(&cx.device())?;
        let (denoised, cond) =
            (import(&call.denoised, &device)?, import(&call.conditional, &device)?);
        export(&(denoised + ((cond - import(&blind, &device)?)? * self.scale)?)?)
    }
}

/// Guides away from what the model says when its middle block attends to nothing else: sharper structure, at the cost of half
/// as much time again.
#[derive(Inputs)]
#[node(category = "model_patches/unet")]
pub struct PerturbedAttentionGuidance {
    /// The U-Net.
    model: Model,
    /// How far away.
    #[widget(default = 3.0, min = 0.0, max = 100.0, step = 0.01)]
    scale: f64,
}

impl Node for PerturbedAttentionGuidance {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let patch = Object::new(Perturbed { scale: self.scale });
        patched(cx, &self.model, vec![guidance(patch, false)])
    }
}

/// Away from what the model says of a picture that is blurred where it looks most (Hong et al., arXiv 2210.00939).
struct Blurred {
    scale: f64,
    sigma: f64,
    /// The attention weights of the negative's rows in the last call: the sum that each token gets, mean of the heads,
    /// [B, N].
    looked_at: Mutex<Option<Vec<Vec<f32>>>>,
}

impl Export for Blurred {
    const TYPE: &'static str = "PATCH";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![Blurred: marker::AttentionPatch, marker::GuidancePatch];
}

impl interface::PatchAttention for Blurred {
    fn patch_attention(&self, cx: &Context<'_>, call: &AttentionCall) -> Result<Tensor> {
        let negative: Vec<usize> =
            (0..call.rows.len()).filter(|&row| call.rows[row] == "negative").collect();
        let (x, wants) = (call.x.clone(), !negative.is_empty());
        let (y, weights) = call.attention.attend(cx, x, call.contexts(), None, wants)?;
        if let Some(weights) = weights {
            let weights = import(&weights, &Device::Cpu)?;
            // Of all that ask to each that is asked.
            let sums = weights.mean(1)?.sum(1)?.to_vec2::<f32>()?;
            let rows = negative.into_iter().filter_map(|row| sums.get(row).cloned());
            *self.looked_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(rows.collect());
        }
        Ok(y)
    }
}

impl interface::PatchGuidance for Blurred {
    fn patch_guidance(&self, cx: &Context<'_>, call: &GuidanceCall) -> Result<Tensor> {
        let device = device(&cx.device())?;
        let uncond = import(unconditional(call)?, &device)?;
        let (batch, _, height, width) = uncond.dims4()?;
        let looked_at = self.looked_at.lock().unwrap_or_else(PoisonError::into_inner).take();
        let looked_at = looked_at.filter(|rows| rows.len() == batch);
        // Nothing is blurred over less than the kernel's half, nor where nobody looked.
        let Some(looked_at) = looked_at.filter(|_| height.min(width) > 4) else {
            return Ok(call.denoised.clone());
        };
        let blurred = blur_where(&uncond, &looked_at, self.sigma)?;
        let x = import(&call.x, &device)?;
        let noisy = export(&((&blurred + x)? - &uncond)?)?;
        let said = call.sides.ask_side(cx, noisy, call.sigma, "negative", Vec::new())?;
        let away = (blurred - import(&said, &device)?)?;
        export(&(import(&call.denoised, &device)? + (away * self.scale)?)?)
    }
}

/// Rows and columns of `tokens` tokens of a picture of the proportions height : width: the nearest that divide them.
fn grid(tokens: usize, height: usize, width: usize) -> (usize, usize) {
    let about = (height as f64 / width as f64 * tokens as f64).sqrt().round_ties_even() as usize;
    let reach = ((tokens as f64).sqrt() / 2.0).floor() as usize;
    let near = (0..reach).flat_map(|i| [about + i, about.saturating_sub(i).max(1)]);
    let rows = near.into_iter().find(|rows| *rows > 0 && tokens.is_multiple_of(*rows));
    let rows = rows.unwrap_or(1);
    (rows, tokens / rows.max(1))
}

/// `x` [B, C, H, W], blurred where a token's sum of attention is above 1.
fn blur_where(x: &Candle, looked_at: &[Vec<f32>], sigma: f64) -> CandleResult<Candle> {
    let (batch, _, height, width) = x.dims4()?;
    let mut mask = Vec::with_capacity(batch * height * width);
    for sums in looked_at {
        let (rows, columns) = grid(sums.len(), height, width);
        for y in 0..height {
            for column in 0..width {
                // torch's nearest.
                let token = y * rows / height * columns + column * columns / width;
                mask.push(f32::from(u8::from(sums[token] > 1.0)));
            }
        }
    }
    let mask = Candle::from_vec(mask, (batch, 1, height, width), x.device())?;
    let blurred = gaussian(x, sigma)?;
    x + (blurred - x)?.broadcast_mul(&mask)?
}

/// The picture through a Gaussian of nine by nine, its edges mirrored; sides of more than 4.
fn gaussian(x: &Candle, sigma: f64) -> CandleResult<Candle> {
    const HALF: usize = 4;
    let weight = |i: usize| (-0.5 * ((i as f64 - HALF as f64) / sigma).powi(2)).exp();
    let weights: Vec<f64> = (0..=2 * HALF).map(weight).collect();
    blurred(x, &weights)
}

/// Guides away from what the model says of a picture that is blurred where its middle block looks most.
#[derive(Inputs)]
#[node(category = "_for_testing")]
pub struct SelfAttentionGuidance {
    /// The U-Net.
    model: Model,
    /// How far away.
    #[widget(default = 0.5, min = -2.0, max = 5.0, step = 0.01)]
    scale: f64,
    /// How wide the blur is.
    #[widget(default = 2.0, min = 0.0, max = 10.0, step = 0.1)]
    blur_sigma: f64,
}

impl Node for SelfAttentionGuidance {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        if self.blur_sigma <= 0.0 {
            return Err(Error::at("blur_sigma", "a blur of 0 is none; more than 0 would be right"));
        }
        let looked_at = Mutex::default();
        let patch = Object::new(Blurred { scale: self.scale, sigma: self.blur_sigma, looked_at });
        let looks = Patch::new("self_attention", patch.clone())
            .within(&["mid_block.attentions.0.transformer_blocks.0"]);
        patched(cx, &self.model, vec![looks, guidance(patch, true)])
    }
}

/// Towards the positive, the more the less guidance and the negative point the same way.
struct Directed;

impl Export for Directed {
    const TYPE: &'static str = "PATCH";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Directed: marker::GuidancePatch];
}

impl interface::PatchGuidance for Directed {
    fn patch_guidance(&self, cx: &Context<'_>, call: &GuidanceCall) -> Result<Tensor> {
        let device = device(&cx.device())?;
        let uncond = import(unconditional(call)?, &device)?;
        let (denoised, cond) =
            (import(&call.denoised, &device)?, import(&call.conditional, &device)?);
        export(&directed(&denoised, &cond, &uncond, call.cfg)?)
    }
}

fn directed(denoised: &Candle, cond: &Candle, uncond: &Candle, cfg: f64) -> CandleResult<Candle> {
    let leap = (cond * cfg)?;
    let root = |x: &Candle| x.abs()?.sqrt()? * x.sign()?;
    let away = root(&(uncond * cfg)?)?;
    let merged = root(&((&leap + denoised)? * 0.5)?)?;
    let product = (&away * &merged)?.sum_keepdim(1)?;
    let length = |x: &Candle| x.sqr()?.sum_keepdim(1)?.sqrt();
    let lengths = at_least(&(length(&away)? * length(&merged)?)?, 1e-8)?;
    let likeness = f64::from((product / lengths)?.mean_all()?.to_scalar::<f32>()?);
    let share = 2.0 * (likeness + 1.0);
    ((denoised * share)? + (leap * (4.0 - share))?)? * 0.25
}

/// Leans on the positive alone where guidance would only follow the negative.
#[derive(Inputs)]
#[node(category = "_for_testing")]
pub struct Mahiro {
    /// The U-Net.
    model: Model,
}

impl Node for Mahiro {
    outputs![patched_model: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        patched(cx, &self.model, vec![guidance(Object::new(Directed), true)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32], shape: (usize, usize, usize, usize)) -> Candle {
        Candle::from_vec(values.to_vec(), shape, &Device::Cpu).unwrap()
    }

    fn close(found: &Candle, expected: &[f32]) {
        let found: Vec<f32> = found.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 2e-5, "{found} for {expected}");
        }
    }

    // The numbers are numpy's, of the formulas as their authors and ComfyUI have them.

    #[test]
    fn directed_guidance() -> CandleResult<()> {
        let shape = (1, 3, 2, 1);
        let cond = tensor(&[-0.183, 0.541, 1.935, -0.27, -0.244, 1.002], shape);
        let uncond = tensor(&[-0.886, -0.292, 0.883, 0.58, 0.092, 0.67], shape);
        let denoised = tensor(&[1.926, 3.04, 5.091, -2.82, -1.252, 1.998], shape);
        close(
            &directed(&denoised, &cond, &uncond, 4.0)?,
            &[0.72413, 2.6439, 6.2888, -2.03322, -1.1272, 2.90687],
        );
        Ok(())
    }

    #[test]
    fn a_picture_is_blurred_where_it_is_looked_at() -> CandleResult<()> {
        let x = tensor(
            &[
                -2.828, 1.021, -0.96, -1.669, 0.276, 0.701, -0.445, -1.076, 0.026, -0.053, 1.406,
                0.747, 0.194, 1.112, -0.206, -0.926, 0.584, 0.583, -0.215, -0.783, 0.229, -2.494,
                0.69, 0.491, -1.639, 0.061, -0.964, 0.757, -2.034, -0.914,
            ],
            (1, 1, 5, 6),
        );
        close(
            &gaussian(&x, 2.0)?,
            &[
                -0.30964, -0.28303, -0.17792, -0.06473, 0.04968, 0.11186, -0.31369, -0.29003,
                -0.19276, -0.0904, 0.01747, 0.07586, -0.31055, -0.29485, -0.22427, -0.15387,
                -0.07197, -0.02516, -0.32734, -0.31752, -0.26747, -0.22256, -0.16044, -0.12397,
                -0.3328, -0.3268, -0.28941, -0.25996, -0.21027, -0.17826,
            ],
        );
        let sums = vec![0.4, 1.7, 0.9, 1.2, 2.0, 0.1];
        close(
            &blur_where(&x, &[sums], 2.0)?,
            &[
                -2.828, 1.021, -0.17792, -0.06473, 0.276, 0.701, -0.445, -1.076, -0.19276, -0.0904,
                1.406, 0.747, 0.194, 1.112, -0.22427, -0.15387, 0.584, 0.583, -0.32734, -0.31752,
                -0.26747, -0.22256, 0.69, 0.491, -0.3328, -0.3268, -0.28941, -0.25996, -2.034,
                -0.914,
            ],
        );
        assert_eq!((grid(64, 8, 8), grid(96, 8, 12), grid(7, 5, 5)), ((8, 8), (8, 12), (1, 7)));
        Ok(())
    }
}
