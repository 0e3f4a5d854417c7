//! GUIDER: what says x₀ to a sampler, here a model with its conditions.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Tensor as Candle};
use node::interface::{self, GuideCall, marker};
use node::*;
use node_candle::{device, export, import};

use crate::sampling::{Described, Given, Guide, Guided, NoiseMask, Rule};

/// A model, its conditions, and how they are put together.
pub struct ModelGuider {
    model: Model,
    /// By the input's name; the positive first.
    sides: Vec<(&'static str, Conditioning)>,
    rule: Rule,
    /// The model's own.
    description: serde_json::Value,
    /// What the last call was asked with, made ready.
    prepared: Mutex<Option<Prepared>>,
}

/// The conditions made ready for the latents of one sampling.
struct Prepared {
    latents: Option<Value>,
    mask: Option<Value>,
    dims: Vec<usize>,
    guided: Arc<Guided>,
}

impl ModelGuider {
    /// # Errors
    /// The model does not describe itself as node.h says.
    pub fn new(
        cx: &Context<'_>,
        model: Model,
        sides: Vec<(&'static str, Conditioning)>,
        rule: Rule,
    ) -> Result<Self> {
        // What is no denoiser is refused here, where the input is known by its name.
        Described::of(cx, &model.0, "model")?;
        let description = model.0.describe(cx).map_err(|error| error.of_input("model"))?;
        Ok(Self { model, sides, rule, description, prepared: Mutex::default() })
    }

    fn kept(&self) -> MutexGuard<'_, Option<Prepared>> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What [`Guided`] is for this call: the same as for the last, where its latents are the same values.
    fn guided(&self, cx: &Context<'_>, x: &Candle, call: &GuideCall) -> Result<Arc<Guided>> {
        let value = |tensor: &Option<Tensor>| tensor.clone().map(Tensor::into_value);
        let (latents, mask) = (value(&call.latents), value(&call.noise_mask));
        let same = |a: &Option<Value>, b: &Option<Value>| match (a, b) {
            (None, None) => true,
            (Some(a), Some(b)) => a.is_same(b),
            _ => false,
        };
        let mut kept = self.kept();
        let fits = |known: &&Prepared| {
            known.dims == x.dims() && same(&known.latents, &latents) && same(&known.mask, &mask)
        };
        if let Some(known) = kept.as_ref().filter(fits) {
            return Ok(known.guided.clone());
        }
        let begun = match &call.latents {
            Some(latents) => import(latents, x.device())?,
            None => x.zeros_like()?,
        };
        let noise_mask = match &call.noise_mask {
            Some(mask) => Some(NoiseMask::for_shape(mask, x.dims(), x.device())?.mask),
            None => None,
        };
        let described = Described::of(cx, &self.model.0, "model")?;
        let sides = self.sides.iter().map(|(input, conditioning)| Given { input, conditioning });
        let sides: Vec<_> = sides.collect();
        let guided = Guided::new(
            cx,
            &self.model.0,
            &described,
            &sides,
            self.rule,
            None,
            // A guider does not hear of the noise's seed: pictures ("unclip") get the noise of 0.
            (&begun, noise_mask.as_ref(), 0),
        )?;
        let guided = Arc::new(guided);
        let dims = x.dims().to_vec();
        *kept = Some(Prepared { latents, mask, dims, guided: guided.clone() });
        Ok(guided)
    }
}

impl Export for ModelGuider {
    const TYPE: &'static str = "GUIDER";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![ModelGuider: marker::Guider, marker::Describe, marker::Memory];
}

impl interface::Guide for ModelGuider {
    fn guide(&self, cx: &Context<'_>, call: &GuideCall) -> Result<(Tensor, Option<Tensor>)> {
        let x = import(&call.x, &device(&cx.device())?)?;
        x.dims4()?;
        let guided = self.guided(cx, &x, call)?;
        let (x0, uncond) = guided.x0(cx, &x, call.sigma, call.wants_unconditional)?;
        Ok((export(&x0)?, uncond.as_ref().map(export).transpose()?))
    }
}

impl interface::Describe for ModelGuider {
    fn describe(&self) -> serde_json::Value {
        self.description.clone()
    }
}

impl interface::Memory for ModelGuider {
    fn bytes(&self, purge: bool) -> usize {
        if purge {
            *self.kept() = None;
        }
        let numbers = |tensor: Tensor| tensor.shape().iter().product::<usize>();
        let contexts = self.sides.iter().filter_map(|(_, side)| side.contexts().ok()).flatten();
        contexts.map(numbers).sum::<usize>() * DType::F32.size_in_bytes()
    }

    /// With the model, which nobody else may hold any more.
    fn bytes_in(&self, cx: &Context<'_>, purge: bool) -> Result<usize> {
        let own = self.bytes(purge);
        match self.model.0.offers("memory/1") {
            true => Ok(own + self.model.0.memory(cx, purge)?),
            false => Ok(own),
        }
    }
}

/// Guides by one condition: for models that were distilled to need no other.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/guiders")]
pub struct BasicGuider {
    /// What denoises.
    model: Model,
    /// What the picture should show.
    conditioning: Conditioning,
}

impl Node for BasicGuider {
    outputs![GUIDER: Guider];

    fn run(self, cx: &Context) -> Result<Guider> {
        let sides = vec![("conditioning", self.conditioning)];
        let guider = ModelGuider::new(cx, self.model, sides, Rule::Positive)?;
        Ok(Guider(Object::new(guider)))
    }
}

/// Guides away from one condition towards another, as KSampler does.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/guiders")]
pub struct CFGGuider {
    /// What denoises.
    model: Model,
    /// What the picture should show.
    positive: Conditioning,
    /// What it should not.
    negative: Conditioning,
    /// How much more the positive counts than the negative; 1 is none.
    #[widget(default = 8.0, min = 0.0, max = 100.0, step = 0.1)]
    cfg: f64,
}

impl Node for CFGGuider {
    outputs![GUIDER: Guider];

    fn run(self, cx: &Context) -> Result<Guider> {
        let sides = vec![("positive", self.positive), ("negative", self.negative)];
        let guider = ModelGuider::new(cx, self.model, sides, Rule::Cfg(self.cfg))?;
        Ok(Guider(Object::new(guider)))
    }
}

/// Guides by two conditions of different strength, as InstructPix2Pix does by a picture and a text.
#[derive(Inputs)]
#[node(category = "sampling/custom_sampling/guiders")]
pub struct DualCFGGuider {
    /// What denoises.
    model: Model,
    /// What the picture should show.
    cond1: Conditioning,
    /// What it should show of that: the picture alone, without the text.
    cond2: Conditioning,
    /// What it should not.
    negative: Conditioning,
    /// How much more cond1 counts than cond2.
    #[widget(default = 8.0, min = 0.0, max = 100.0, step = 0.1)]
    cfg_conds: f64,
    /// How much more cond2 counts than the negative.
    #[widget(default = 8.0, min = 0.0, max = 100.0, step = 0.1)]
    cfg_cond2_negative: f64,
    /// nested guides from the negative to where cond1 and cond2 lead together.
    #[widget(choices = ["regular", "nested"], default = "regular")]
    style: String,
}

impl Node for DualCFGGuider {
    outputs![GUIDER: Guider];

    fn run(self, cx: &Context) -> Result<Guider> {
        let sides = vec![("cond1", self.cond1), ("negative", self.negative), ("cond2", self.cond2)];
        let rule = Rule::Dual {
            first: self.cfg_conds,
            second: self.cfg_cond2_negative,
            nested: self.style == "nested",
        };
        Ok(Guider(Object::new(ModelGuider::new(cx, self.model, sides, rule)?)))
    }
}

/// Guides away from what in the negative is not in the positive (Armandpour et al., arXiv 2304.04968).
#[derive(Inputs)]
#[node(category = "_for_testing")]
pub struct PerpNegGuider {
    /// What denoises.
    model: Model,
    /// What the picture should show.
    positive: Conditioning,
    /// What it should not.
    negative: Conditioning,
    /// An empty prompt.
    empty_conditioning: Conditioning,
    /// How much more the positive counts than the empty prompt.
    #[widget(default = 8.0, min = 0.0, max = 100.0, step = 0.1)]
    cfg: f64,
    /// How much the negative counts.
    #[widget(default = 1.0, min = 0.0, max = 100.0, step = 0.01)]
    neg_scale: f64,
}

impl Node for PerpNegGuider {
    outputs![GUIDER: Guider];

    fn run(self, cx: &Context) -> Result<Guider> {
        let sides = vec![
            ("positive", self.positive),
            ("negative", self.negative),
            ("empty_conditioning", self.empty_conditioning),
        ];
        let rule = Rule::Perpendicular { cfg: self.cfg, negative: self.neg_scale };
        Ok(Guider(Object::new(ModelGuider::new(cx, self.model, sides, rule)?)))
    }
}
