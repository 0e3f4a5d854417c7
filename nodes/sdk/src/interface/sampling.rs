//! What a sampling is made of: "sampler/1", "guider/1" and "noise/1", from both sides.

use super::{marker, optional, tensor};
use crate::object::{Arguments, Interface};
use crate::{Context, Error, Object, Result, Tensor, Value};

/// "sampler/1", offered by a SAMPLER.
pub trait SampleLatents {
    /// The latents [B, C, H, W], and the model's last x₀.
    fn sample(&self, cx: &Context<'_>, call: &SampleCall) -> Result<(Tensor, Tensor)>;
}

/// What "sampler/1" takes.
#[derive(Clone)]
pub struct SampleCall {
    /// A GUIDER.
    pub guider: Object,
    /// \[N\], falling; the last may be 0.
    pub sigmas: Tensor,
    /// [B, C, H, W], what the noise is added to.
    pub latents: Tensor,
    /// A NOISE.
    pub noise: Object,
    /// [b, h, w], 1 where the latents may change.
    pub noise_mask: Option<Tensor>,
    /// Which pictures of a larger batch the latents are.
    pub batch_index: Option<Vec<i64>>,
}

/// "guider/1", offered by a GUIDER.
pub trait Guide {
    /// x₀ at x, and without guidance where that is asked for.
    fn guide(&self, cx: &Context<'_>, call: &GuideCall) -> Result<(Tensor, Option<Tensor>)>;
}

/// What "guider/1" takes.
#[derive(Clone, Debug)]
pub struct GuideCall {
    /// [B, C, H, W].
    pub x: Tensor,
    pub sigma: f64,
    /// [B, C, H, W], what the sampling began with.
    pub latents: Option<Tensor>,
    /// [b, h, w].
    pub noise_mask: Option<Tensor>,
    pub wants_unconditional: bool,
}

/// "noise/1", offered by a NOISE.
pub trait MakeNoise {
    /// Noise for latents of the shape [B, C, H, W], which may be some of a larger batch.
    fn noise(
        &self,
        cx: &Context<'_>,
        latents: &Tensor,
        batch_index: Option<&[i64]>,
    ) -> Result<Tensor>;

    /// What the noise of a sampler's steps is drawn from.
    fn seed(&self) -> u64;
}

impl<T: SampleLatents> Interface<T> for marker::Sampler {
    const ID: &'static str = "sampler/1";

    fn call(object: &T, cx: &Context<'_>, input: &Arguments<'_>) -> Result<Value> {
        let call = SampleCall {
            guider: object_of(input, "guider")?,
            sigmas: input.tensor("sigmas")?,
            latents: input.tensor("latents")?,
            noise: object_of(input, "noise")?,
            noise_mask: input.optional_tensor("noise_mask"),
            batch_index: integers(&input.get("batch_index")),
        };
        let (latents, denoised) = object.sample(cx, &call)?;
        let pairs = [("latents", latents), ("denoised", denoised)];
        Ok(Value::map(pairs.map(|(name, tensor)| (name, tensor.into_value()))))
    }
}

impl<T: Guide> Interface<T> for marker::Guider {
    const ID: &'static str = "guider/1";

    fn call(object: &T, cx: &Context<'_>, input: &Arguments<'_>) -> Result<Value> {
        let call = GuideCall {
            x: input.tensor("x")?,
            sigma: input.number("sigma")?,
            latents: input.optional_tensor("latents"),
            noise_mask: input.optional_tensor("noise_mask"),
            wants_unconditional: input.boolean("wants_unconditional")?,
        };
        let (denoised, unconditional) = object.guide(cx, &call)?;
        let unconditional = unconditional.map(|tensor| ("unconditional", tensor.into_value()));
        let denoised = [("denoised", denoised.into_value())];
        Ok(Value::map(denoised.into_iter().chain(unconditional)))
    }
}

impl<T: MakeNoise> Interface<T> for marker::Noise {
    const ID: &'static str = "noise/1";

    fn call(object: &T, cx: &Context<'_>, input: &Arguments<'_>) -> Result<Value> {
        let batch_index = integers(&input.get("batch_index"));
        let noise = object.noise(cx, &input.tensor("latents")?, batch_index.as_deref())?;
        Ok(Value::map([("noise", noise.into_value()), ("seed", Value::from(object.seed()))]))
    }
}

fn object_of(input: &Arguments<'_>, name: &str) -> Result<Object> {
    let value = input.get(name);
    let wrong =
        || Error::at(name, format!("an object is wanted, but {} was given", value.kind_name()));
    value.as_object().ok_or_else(wrong)
}

/// `None` where there is no list.
fn integers(value: &Value) -> Option<Vec<i64>> {
    let items = value.as_list()?;
    items.iter().map(Value::as_i64).collect()
}

fn list_of(integers: Option<&[i64]>) -> Value {
    let list = |integers: &[i64]| Value::list(integers.iter().map(|&n| n.into()).collect());
    integers.map_or(Value::NONE, list)
}

/// The calling side.
impl Object {
    /// "sampler/1": the latents, and the model's last x₀.
    pub fn sample(&self, cx: &Context<'_>, call: SampleCall) -> Result<(Tensor, Tensor)> {
        let input = [
            ("guider", call.guider.into_value()),
            ("sigmas", call.sigmas.into_value()),
            ("latents", call.latents.into_value()),
            ("noise", call.noise.into_value()),
            ("noise_mask", optional(call.noise_mask)),
            ("batch_index", list_of(call.batch_index.as_deref())),
        ];
        let answer = self.call(cx, "sampler/1", input)?;
        Ok((tensor(&answer, "latents")?, tensor(&answer, "denoised")?))
    }

    /// "guider/1": x₀, and x₀ without guidance where that is asked for.
    pub fn guide(&self, cx: &Context<'_>, call: GuideCall) -> Result<(Tensor, Option<Tensor>)> {
        let wants = call.wants_unconditional;
        let input = [
            ("x", call.x.into_value()),
            ("sigma", call.sigma.into()),
            ("latents", optional(call.latents)),
            ("noise_mask", optional(call.noise_mask)),
            ("wants_unconditional", if wants { true.into() } else { Value::NONE }),
        ];
        let answer = self.call(cx, "guider/1", input)?;
        let unconditional = match wants {
            true => Some(tensor(&answer, "unconditional")?),
            false => None,
        };
        Ok((tensor(&answer, "denoised")?, unconditional))
    }

    /// "noise/1": the noise, and what that of a sampler's steps is drawn from.
    pub fn make_noise(
        &self,
        cx: &Context<'_>,
        latents: Tensor,
        batch_index: Option<&[i64]>,
    ) -> Result<(Tensor, u64)> {
        let input = [("latents", latents.into_value()), ("batch_index", list_of(batch_index))];
        let answer = self.call(cx, "noise/1", input)?;
        let seed = answer.get("seed").and_then(|seed| seed.as_u64()).unwrap_or(0);
        Ok((tensor(&answer, "noise")?, seed))
    }
}
