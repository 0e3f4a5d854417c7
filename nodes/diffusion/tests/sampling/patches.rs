//! Patches, on a model that is somebody else's: what they ask of it, and what they make of what it says.

use std::sync::{Arc, Mutex};

use node::interface::{self, AttentionCall, BlockCall, Patch, marker};
use node::*;

use super::host::{one, run, samples};
use super::models::alphas_cumprod;
use super::{close, empty, says};

/// Believes in the context's first number, and in one more for each patch inside it; has two kinds of patches.
#[derive(Clone, Default)]
struct Patchable {
    patches: Vec<Patch>,
    /// What the patches inside gave when they were tried, in the order of their coming.
    tried: Arc<Mutex<Vec<Vec<f32>>>>,
    /// Whether x₀ is no plane: that number times 0, 0.5, 1 and 1.5 in the columns of a picture of four; from 0.1 on less of
    /// it the more of the others there is.
    slanted: bool,
}

impl Export for Patchable {
    const TYPE: &'static str = "MODEL";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Patchable:
        marker::Denoiser, marker::Describe, marker::Patches, marker::Guidance];
}

impl interface::Denoise for Patchable {
    fn denoise(
        &self,
        _cx: &Context,
        x: &Tensor,
        timestep: &Tensor,
        context: &Tensor,
        _residuals: &[Tensor],
    ) -> node::Result<Tensor> {
        let (shape, t) = (x.shape(), timestep.to_f32()?[0]);
        let (x, context) = (x.to_f32()?, context.to_f32()?);
        let (item, each) = (x.len() / shape[0], context.len() / shape[0]);
        let alpha = alphas_cumprod()[t as usize];
        let (a, s) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let inside = self.patches.iter().filter(|patch| !is_guidance(patch)).count();
        let eps = |(i, &x): (usize, &f32)| {
            let number = f64::from(context[i / item * each]);
            let slant = (i % 4) as f64 / 2.0;
            let x0 = match (self.slanted, number == f64::from(0.1f32)) {
                (false, _) => number,
                (true, false) => number * slant,
                (true, true) => number * (2.0 - slant),
            };
            let x0 = x0 + inside as f64;
            ((f64::from(x) - a * x0) / s) as f32
        };
        Tensor::from_f32(&shape, x.iter().enumerate().map(eps).collect())
    }
}

impl interface::Describe for Patchable {
    fn describe(&self) -> serde_json::Value {
        json!({
            "prediction": "epsilon", "in_channels": 4, "out_channels": 4, "context_width": 2,
            "train_steps": 1000, "alphas_cumprod": alphas_cumprod(), "model_channels": 1,
        })
    }
}

fn is_guidance(patch: &Patch) -> bool {
    matches!(patch.kind.as_str(), "guide" | "guidance")
}

/// An attention in closed form: what is asked, and the mean of what it is asked of.
struct Mean;

impl Export for Mean {
    const TYPE: &'static str = "ATTENTION";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Mean: marker::Attention];
}

impl interface::Attend for Mean {
    fn attend(
        &self,
        _cx: &Context,
        x: &Tensor,
        (context, values_of): (Option<&Tensor>, Option<&Tensor>),
        _further: Option<(&Tensor, &Tensor)>,
    ) -> node::Result<Tensor> {
        // Only values are looked at.
        let context = values_of.or(context).unwrap_or(x);
        let (shape, asked) = (x.shape(), context.shape());
        let (x, context) = (x.to_vec()?, context.to_vec()?);
        let (row, each) = (shape[1] * shape[2], asked[1] * asked[2]);
        let value = |(i, x): (usize, &f32)| {
            let (at, channel) = (i / row, i % shape[2]);
            let of_row = &context[at * each..][..each];
            let sum: f32 = of_row.iter().skip(channel).step_by(shape[2]).sum();
            x + sum / asked[1] as f32
        };
        Tensor::from_f32(&shape, x.iter().enumerate().map(value).collect())
    }
}

impl Patchable {
    /// What a patch makes of a picture of 2 × 4 tokens, or of a block of four channels.
    fn tried(&self, cx: &Context, patch: &Patch) -> node::Result<Vec<f32>> {
        let numbers = |count: usize| (0..count).map(|i| (i * i) as f32).collect::<Vec<f32>>();
        match patch.kind.as_str() {
            "self_attention" => {
                let x = Tensor::from_f32(&[1, 8, 1], numbers(8))?;
                let call = AttentionCall {
                    x: x.clone(),
                    context: x,
                    value_context: None,
                    attention: Object::new(Mean),
                    block: "down_blocks.0".to_owned(),
                    height: 2,
                    width: 4,
                    sigma: 1.0,
                    rows: vec!["positive".to_owned()],
                    latent: Some((2, 4)),
                };
                patch.patch.patch_attention(cx, call)?.to_vec()
            }
            "skip" => {
                let call = BlockCall {
                    x: Tensor::from_f32(&[1, 4, 1, 2], numbers(8))?,
                    skip: Some(Tensor::from_f32(&[1, 1, 1, 2], vec![1.0, 3.0])?),
                    block: "up_blocks.0.resnets.0".to_owned(),
                    sigma: 1.0,
                    rows: Vec::new(),
                };
                let (x, skip) = patch.patch.patch_block(cx, call)?;
                Ok([x.to_vec()?, skip.unwrap().to_vec()?].concat())
            }
            _ => Ok(Vec::new()),
        }
    }
}

impl interface::TakePatches for Patchable {
    fn with_patches(&self, cx: &Context, patches: Vec<Patch>) -> node::Result<Object> {
        for patch in &patches {
            let made = self.tried(cx, patch)?;
            self.tried.lock().unwrap().push(made);
        }
        let patches = [self.patches.clone(), patches].concat();
        Ok(Object::new(Self { patches, ..self.clone() }))
    }
}

impl interface::Guidances for Patchable {
    fn guidances(&self, _cx: &Context) -> node::Result<Vec<Patch>> {
        Ok(self.patches.iter().filter(|patch| is_guidance(patch)).cloned().collect())
    }
}

/// The model with the patches of a node, and what those inside gave when they were tried.
fn patched(class: &str, inputs: &[(&str, Value)]) -> (Value, Arc<Mutex<Vec<Vec<f32>>>>) {
    let model = Patchable::default();
    let tried = model.tried.clone();
    let model = ("model", Object::new(model).into_value());
    (one(class, &[&[model], inputs].concat()), tried)
}

fn only(tried: &Mutex<Vec<Vec<f32>>>) -> Vec<f32> {
    let mut tried = tried.lock().unwrap();
    assert_eq!(tried.len(), 1);
    tried.remove(0)
}

fn sampled(model: Value, cfg: f64) -> Vec<f32> {
    let inputs = [
        ("model", model),
        ("positive", says(0.7)),
        ("negative", says(-0.2)),
        ("latent_image", empty(1, 4, 4)),
        ("steps", 4i64.into()),
        ("cfg", cfg.into()),
    ];
    samples(&one("KSampler", &inputs))
}

#[test]
fn free_u_raises_the_backbone_and_lowers_low_frequencies() {
    let scales = [("b1", 2.0.into()), ("s1", 0.5.into())];
    let (_, tried) = patched("FreeU", &scales);
    // Four times the outermost channels: the first two channels doubled; of the skip 1, 3 both frequencies are low.
    let expected = [0.0, 2.0, 8.0, 18.0, 16.0, 25.0, 36.0, 49.0, 0.5, 1.5];
    close(&only(&tried), &expected, 1e-5);
    let (_, tried) = patched("FreeU_V2", &scales);
    // The means over the channels are 14 and 21: one where it is lowest, two where it is highest.
    let expected = [0.0, 2.0, 4.0, 18.0, 16.0, 25.0, 36.0, 49.0, 0.5, 1.5];
    close(&only(&tried), &expected, 1e-5);
}

#[test]
fn tiles_attend_to_themselves() {
    // Tiles of at least 4 of 8 latent pixels: this picture of 2 × 4 is one.
    let (_, tried) = patched("HyperTile", &[("tile_size", 32i64.into())]);
    let x: Vec<f32> = (0..8).map(|i| (i * i) as f32).collect();
    close(&only(&tried), &x.iter().map(|x| x + 17.5).collect::<Vec<_>>(), 1e-5);
}

#[test]
fn merged_tokens_ask_as_one() {
    // Numbers of one sign are all alike: the first ones that may go, go, to the first that stays.
    let (_, tried) = patched("TomePatchModel", &[("ratio", 0.25.into())]);
    // Token 0 is 0 and has no direction; of those that stay the other, token 2, takes tokens 1 and 3: a mean of 14/3.
    let merged = 14.0 / 3.0 + 17.5;
    close(&only(&tried), &[17.5, merged, merged, merged, 33.5, 42.5, 53.5, 66.5], 1e-5);
    let (_, tried) = patched("TomePatchModel", &[("ratio", 0.0.into())]);
    let x: Vec<f32> = (0..8).map(|i| (i * i) as f32).collect();
    close(&only(&tried), &x.iter().map(|x| x + 17.5).collect::<Vec<_>>(), 1e-5);
}

#[test]
fn perturbed_guidance_leads_away_from_the_blind_model() {
    let (model, tried) = patched("PerturbedAttentionGuidance", &[("scale", 3.0.into())]);
    // The blind one believes in one more: x₀ - 3.
    close(&sampled(model.clone(), 1.0), &[0.7 - 3.0; 64], 1e-3);
    close(&sampled(model, 2.0), &[-0.2 + 2.0 * 0.9 - 3.0; 64], 1e-3);
    // Each token sees itself alone: twice what it is.
    let tried = tried.lock().unwrap();
    let doubled: Vec<f32> = (0..8).map(|i| (2 * i * i) as f32).collect();
    assert!(tried.iter().filter(|made| !made.is_empty()).all(|made| *made == doubled));
    let (model, _) = patched("PerturbedAttentionGuidance", &[("scale", 0.0.into())]);
    close(&sampled(model, 2.0), &[1.6; 64], 1e-3);
}

#[test]
fn patches_of_guidance_go_through_guiders_too() {
    let (model, _) = patched("PerturbedAttentionGuidance", &[("scale", 1.0.into())]);
    let (twice, _) = (one("PerturbedAttentionGuidance", &[("model", model.clone())]), ());
    // Of several each is given what the one before it made. The patched model's blind self has both patches inside, but no
    // more than one change within.
    let guider = one("BasicGuider", &[("model", twice), ("conditioning", says(0.7))]);
    let inputs = [
        ("noise", one("RandomNoise", &[])),
        ("guider", guider),
        ("sampler", one("KSamplerSelect", &[])),
        ("sigmas", one("BasicScheduler", &[("model", model), ("steps", 3i64.into())])),
        ("latent_image", empty(1, 4, 4)),
    ];
    close(&samples(&one("SamplerCustomAdvanced", &inputs)), &[0.7 - 1.0 - 3.0; 64], 1e-3);
}

#[test]
fn what_takes_no_patches_says_so() {
    let model = ("model", super::models::believer());
    for class in ["FreeU", "HyperTile", "TomePatchModel", "Mahiro"] {
        let error = run(class, std::slice::from_ref(&model)).err().unwrap();
        assert!(error.starts_with("model: "), "{class}: {error}");
    }
}

#[test]
fn a_perpendicular_negative_is_that_of_its_guider() {
    let patched = |scale: f64| {
        let model = Object::new(Patchable::default()).into_value();
        let empty = ("empty_conditioning", says(0.1));
        one("PerpNeg", &[("model", model), empty, ("neg_scale", scale.into())])
    };
    let drawn = |model: Value| {
        let more = [("cfg", Value::from(2.0))];
        samples(&super::sample(model, says(0.7), says(-0.2), empty(1, 4, 4), &more))
    };
    // The negative is the positive's opposite as seen from the empty prompt: nothing of it lies beside.
    close(&drawn(patched(5.0)), &[0.1 + 2.0 * 0.6; 64], 1e-3);
    // What an earlier patch made of guidance stays: without PerpNeg it is -0.2 + 2 · 0.9.
    close(&drawn(Object::new(Patchable::default()).into_value()), &[1.6; 64], 1e-3);
    let wide = super::says_in(0.1, 3).as_list().unwrap().remove(0);
    let wide = wide.with("context", super::host::tensor(&[1, 1, 3], vec![0.1; 3]));
    let model = ("model", Object::new(Patchable::default()).into_value());
    let odd = one("PerpNeg", &[model, ("empty_conditioning", Value::list(vec![wide]))]);
    let inputs = [
        ("model", odd),
        ("positive", says(0.7)),
        ("negative", says(-0.2)),
        ("latent_image", empty(1, 4, 4)),
        ("steps", 1i64.into()),
    ];
    let told = run("KSampler", &inputs).err().unwrap();
    assert!(told.contains("conditioning is 3 numbers wide"), "{told}");
}

/// A step of guidance of 4 from torch's noise of seed 0, to where there is none.
fn one_step(model: Value) -> Vec<f32> {
    let more = [("cfg", Value::from(4.0)), ("steps", Value::from(1i64)), ("seed", 0i64.into())];
    samples(&super::sample(model, says(0.7), says(-0.2), empty(1, 4, 4), &more))[..8].to_vec()
}

/// The numbers are torch's, of the formulas as ComfyUI has them, which keeps one function of guidance: the last.
#[test]
fn of_what_stands_in_the_place_of_guidance_the_last_acts() {
    let plain = Object::new(Patchable { slanted: true, ..Default::default() }).into_value();
    let rescaled = |model: Value, multiplier: f64| {
        one("RescaleCFG", &[("model", model), ("multiplier", multiplier.into())])
    };
    let perpendicular = |model: Value| {
        let empty = ("empty_conditioning", says(0.1));
        one("PerpNeg", &[("model", model), empty, ("neg_scale", 1.5.into())])
    };
    let by_rescaling =
        [-0.0609634, 0.289122, 0.689475, 1.03107, 0.045957, 0.388993, 0.685931, 0.940027];
    let by_half = [-0.0304817, 0.994561, 2.04474, 3.06554, 0.0229785, 1.0445, 2.04297, 3.02001];
    let by_perpendicular = [1.05, 2.0, 2.95, 3.9, 1.05, 2.0, 2.95, 3.9];
    close(&one_step(plain.clone()), &[0.0, 1.7, 3.4, 5.1, 0.0, 1.7, 3.4, 5.1], 1e-3);
    close(&one_step(rescaled(plain.clone(), 0.5)), &by_half, 1e-3);
    close(&one_step(rescaled(plain.clone(), 1.0)), &by_rescaling, 1e-3);
    close(&one_step(perpendicular(plain.clone())), &by_perpendicular, 1e-3);
    let both = perpendicular(rescaled(plain.clone(), 1.0));
    close(&one_step(both), &by_perpendicular, 1e-3);
    let both = rescaled(perpendicular(plain.clone()), 1.0);
    close(&one_step(both.clone()), &by_rescaling, 1e-3);
    // What comes behind guidance is given that, whenever it was put on.
    let behind = |model: Value| one("Epsilon Scaling", &[("model", model)]);
    let (before, after) = (behind(plain), behind(both));
    let before = rescaled(before, 1.0);
    assert_eq!(one_step(before), one_step(after));
}
