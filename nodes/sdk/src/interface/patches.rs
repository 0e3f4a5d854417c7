//! Changes inside a model's call and behind it: "patch/1" and what its patches offer, from both sides.

use super::{marker, optional, tensor};
use crate::object::{Arguments, Interface};
use crate::{Conditioning, Context, Error, Object, Result, Socket, Tensor, Value};

/// A patch of "patch/1": its kind, the PATCH, and where and when it acts.
#[derive(Clone)]
pub struct Patch {
    /// "self_attention", "cross_attention", "between_attentions", "block_input", "block_output", "below", "skip", "sides",
    /// "guide" or "guidance".
    pub kind: String,
    /// The PATCH.
    pub patch: Object,
    /// By diffusers' names; everywhere where there are none.
    pub blocks: Vec<String>,
    /// Where in the schedule it begins and ends, 0 the noisiest.
    pub start: f64,
    pub end: f64,
    /// Whether a patch of guidance wants x₀ of the negative side, whatever the guidance.
    pub wants_unconditional: bool,
}

impl Patch {
    /// One that acts everywhere and always.
    pub fn new(kind: &str, patch: Object) -> Self {
        let (kind, blocks, wants_unconditional) = (kind.to_owned(), Vec::new(), false);
        Self { kind, patch, blocks, start: 0.0, end: 1.0, wants_unconditional }
    }

    /// The same within some blocks alone.
    pub fn within(self, blocks: &[&str]) -> Self {
        Self { blocks: blocks.iter().map(|&block| block.to_owned()).collect(), ..self }
    }

    /// # Errors
    /// The map is not what node.h says.
    pub fn read(value: &Value) -> Result<Self> {
        let wrong =
            || Error::at("patches", "a patch has a \"kind\" and a \"patch\", which is an object");
        let part = |key: &str| value.get(key).unwrap_or(Value::NONE);
        let kind = part("kind").as_str().map(str::to_owned).ok_or_else(wrong)?;
        let patch = part("patch").as_object().ok_or_else(wrong)?;
        Ok(Self {
            kind,
            patch,
            blocks: texts(&part("blocks")),
            start: part("start").as_f64().unwrap_or(0.0),
            end: part("end").as_f64().unwrap_or(1.0),
            wants_unconditional: part("wants_unconditional").as_bool().unwrap_or(false),
        })
    }

    /// As a map of node.h's.
    pub fn into_value(self) -> Value {
        let mut pairs = vec![
            ("kind", Value::string(self.kind)),
            ("patch", self.patch.into_value()),
            ("start", self.start.into()),
            ("end", self.end.into()),
        ];
        if !self.blocks.is_empty() {
            pairs.push(("blocks", of_texts(&self.blocks)));
        }
        if self.wants_unconditional {
            pairs.push(("wants_unconditional", true.into()));
        }
        Value::map(pairs)
    }
}

/// "patch/1", offered by a MODEL that can be changed inside.
pub trait TakePatches {
    /// The same MODEL with the patches behind those that it has.
    fn with_patches(&self, cx: &Context<'_>, patches: Vec<Patch>) -> Result<Object>;
}

/// "guidance/1", offered by a MODEL.
pub trait Guidances {
    /// Its patches of the kinds "sides", "guide" and "guidance".
    fn guidances(&self, cx: &Context<'_>) -> Result<Vec<Patch>>;
}

/// "attention_patch/1", offered by a PATCH.
pub trait PatchAttention {
    /// [B, N, D].
    fn patch_attention(&self, cx: &Context<'_>, call: &AttentionCall) -> Result<Tensor>;
}

/// What "attention_patch/1" takes.
#[derive(Clone)]
pub struct AttentionCall {
    /// [B, N, D].
    pub x: Tensor,
    /// [B, T, E]; x itself in self-attention.
    pub context: Tensor,
    /// What the values are made of, where that is not `context`.
    pub value_context: Option<Tensor>,
    /// The ATTENTION as it is.
    pub attention: Object,
    pub block: String,
    /// Of the tokens of x as a picture.
    pub height: usize,
    pub width: usize,
    pub sigma: f64,
    /// "positive" or "negative", of each row; none where nobody said it.
    pub rows: Vec<String>,
    /// Height and width of the latents.
    pub latent: Option<(usize, usize)>,
}

impl AttentionCall {
    /// What it attends to, for [`Object::attend`].
    pub fn contexts(&self) -> (Option<Tensor>, Option<Tensor>) {
        (Some(self.context.clone()), self.value_context.clone())
    }
}

/// "attention/1", offered by an ATTENTION.
pub trait Attend {
    /// [B, N, D], from `x` to `context` or to itself, of whose keys the values are those of the second where it is there;
    /// and to further keys and values.
    fn attend(
        &self,
        cx: &Context<'_>,
        x: &Tensor,
        context: (Option<&Tensor>, Option<&Tensor>),
        further: Option<(&Tensor, &Tensor)>,
    ) -> Result<Tensor>;

    /// [B, A, N, T], where it can say them.
    fn weights(
        &self,
        _cx: &Context<'_>,
        _x: &Tensor,
        _context: Option<&Tensor>,
    ) -> Result<Option<Tensor>> {
        Ok(None)
    }
}

/// "block_patch/1", offered by a PATCH.
pub trait PatchBlock {
    /// x, and the skip connection where one was given.
    fn patch_block(&self, cx: &Context<'_>, call: &BlockCall) -> Result<(Tensor, Option<Tensor>)>;
}

/// What "block_patch/1" takes.
#[derive(Clone)]
pub struct BlockCall {
    /// [B, C, H, W].
    pub x: Tensor,
    /// [B, S, H, W].
    pub skip: Option<Tensor>,
    pub block: String,
    pub sigma: f64,
    pub rows: Vec<String>,
}

/// "tokens_patch/1", offered by a PATCH.
pub trait PatchTokens {
    /// [B, N, D].
    fn patch_tokens(&self, cx: &Context<'_>, call: &TokensCall) -> Result<Tensor>;
}

/// What "tokens_patch/1" takes.
#[derive(Clone)]
pub struct TokensCall {
    /// [B, N, D].
    pub x: Tensor,
    pub block: String,
    /// Of the tokens of x as a picture.
    pub height: usize,
    pub width: usize,
    pub sigma: f64,
    /// "positive" or "negative", of each row; none where nobody said it.
    pub rows: Vec<String>,
    /// Height and width of the latents.
    pub latent: Option<(usize, usize)>,
}

/// "sides_patch/1", offered by a PATCH.
pub trait PatchSides {
    /// x₀ of the positive side, and of the negative where it is there.
    fn patch_sides(&self, cx: &Context<'_>, call: &SidesCall) -> Result<(Tensor, Option<Tensor>)>;
}

/// What "sides_patch/1" takes, [B, C, H, W] each.
#[derive(Clone)]
pub struct SidesCall {
    pub x: Tensor,
    pub sigma: f64,
    /// x₀ of the positive side.
    pub conditional: Tensor,
    /// Of the negative.
    pub unconditional: Option<Tensor>,
}

/// "guidance_patch/1", offered by a PATCH.
pub trait PatchGuidance {
    /// x₀.
    fn patch_guidance(&self, cx: &Context<'_>, call: &GuidanceCall) -> Result<Tensor>;
}

/// What "guidance_patch/1" takes, [B, C, H, W] each.
#[derive(Clone)]
pub struct GuidanceCall {
    pub x: Tensor,
    pub sigma: f64,
    /// x₀ of the positive side.
    pub conditional: Tensor,
    /// Of the negative.
    pub unconditional: Option<Tensor>,
    /// What was made of them so far.
    pub denoised: Tensor,
    pub cfg: f64,
    /// SIDES.
    pub sides: Object,
}

/// "sides/1", offered by SIDES.
pub trait AskSides {
    /// x₀ of a side at x, of the model with `patches` put on; of `conditioning` in the place of the side's own, where
    /// there is one.
    fn ask(
        &self,
        cx: &Context<'_>,
        x: &Tensor,
        sigma: f64,
        side: (&str, Option<Conditioning>),
        patches: Vec<Patch>,
    ) -> Result<Tensor>;
}

impl<T: TakePatches> Interface<T> for marker::Patches {
    const ID: &'static str = "patch/1";

    fn call(object: &T, cx: &Context<'_>, input: &Arguments<'_>) -> Result<Value> {
        let patches = input.get("patches");
        if patches.as_list().is_none() {
            return Err(Error::at("patches", "a list of patches is wanted"));
        }
        let model = object.with_patches(cx, patches_of(&patches)?)?;
        Ok(Value::map([("model", model.into_value())]))
    }
}

impl<T: Guidances> Interface<T> for marker::Guidance {
    const ID: &'static str = "guidance/1";

    fn call(object: &T, cx: &Context<'_>, _input: &Arguments<'_>) -> Result<Value> {
        Ok(Value::map([("patches", of_patches(object.guidances(cx)?))]))
    }
}

impl<T: PatchAttention> Interface<T> for marker::AttentionPatch {
    const ID: &'static str = "attention_patch/1";

    fn call(object: &T, cx: &Context<'_>, input: &Arguments<'_>) -> Result<Value> {
        let attention = input.get("attention").as_object();
        let call = AttentionCall {
            x: input.tensor("x")?,
            context: input.tensor("context")?,
            value_context: input.optional_tensor("value_context"),
            attention: attention.ok_or_else(|| Error::at("attention", "an ATTENTION is wanted"))?,
            block: input.text("block")?,
            height: input.size("height")?,
            width: input.size("width")?,
            sigma: input.number("sigma")?,
            rows: texts(&input.get("rows")),
            latent: latent(input)?,
        };
        Ok(Value::map([("x", object.patch_attention(cx, &call)?.into_value())]))
    }
}

/// Height and width of the latents, where they are said.
fn latent(input: &Arguments<'_>) -> Result<Option<(usize, usize)>> {
    match input.get("latent_height").is_none() {
        true => Ok(None),
        false => Ok(Some((input.size("latent_height")?, input.size("latent_width")?))),
    }
}

impl<T: PatchTokens> Interface<T> for marker::TokensPatch {
    const ID: &'static str = "tokens_patch/1";

    fn call(object: &T, cx: &Context<'_>, input: &Arguments<'_>) -> Result<Value> {
        let call = TokensCall {
            x: input.tensor("x")?,
            block: input.text("block")?,
            height: input.size("height")?,
            width: input.size("width")?,
            sigma: input.number("sigma")?,
            rows: texts(&input.get("rows")),
            latent: latent(input)?,
        };
        Ok(Value::map([("x", object.patch_tokens(cx, &call)?.into_value())]))
    }
}

impl<T: PatchSides> Interface<T> for marker::SidesPatch {
    const ID: &'static str = "sides_patch/1";

    fn call(object: &T, cx: &Context<'_>, input: &Arguments<'_>) -> Result<Value> {
        let call = SidesCall {
            x: input.tensor("x")?,
            sigma: input.number("sigma")?,
            conditional: input.tensor("conditional")?,
            unconditional: input.optional_tensor("unconditional"),
        };
        let (conditional, unconditional) = object.patch_sides(cx, &call)?;
        let unconditional = unconditional.map(|side| ("unconditional", side.into_value()));
        let conditional = [("conditional", conditional.into_value())];
        Ok(Value::map(conditional.into_iter().chain(unconditional)))
    }
}

impl<T: Attend> Interface<T> for marker::Attention {
    const ID: &'static str = "attention/1";

    fn call(object: &T, cx: &Context<'_>, input: &Arguments<'_>) -> Result<Value> {
        let (x, context) = (input.tensor("x")?, input.optional_tensor("context"));
        let further = input.optional_tensor("keys").zip(input.optional_tensor("values"));
        let further = further.as_ref().map(|(keys, values)| (keys, values));
        let (context, values_of) = (context.as_ref(), input.optional_tensor("value_context"));
        let contexts = (context, values_of.as_ref());
        let mut pairs = vec![("x", object.attend(cx, &x, contexts, further)?.into_value())];
        if input.boolean("wants_weights")? {
            let weights = object.weights(cx, &x, context)?;
            pairs.extend(weights.map(|weights| ("weights", weights.into_value())));
        }
        Ok(Value::map(pairs))
    }
}

impl<T: PatchBlock> Interface<T> for marker::BlockPatch {
    const ID: &'static str = "block_patch/1";

    fn call(object: &T, cx: &Context<'_>, input: &Arguments<'_>) -> Result<Value> {
        let call = BlockCall {
            x: input.tensor("x")?,
            skip: input.optional_tensor("skip"),
            block: input.text("block")?,
            sigma: input.number("sigma")?,
            rows: texts(&input.get("rows")),
        };
        let (x, skip) = object.patch_block(cx, &call)?;
        let skip = skip.map(|skip| ("skip", skip.into_value()));
        Ok(Value::map([("x", x.into_value())].into_iter().chain(skip)))
    }
}

impl<T: PatchGuidance> Interface<T> for marker::GuidancePatch {
    const ID: &'static str = "guidance_patch/1";

    fn call(object: &T, cx: &Context<'_>, input: &Arguments<'_>) -> Result<Value> {
        let sides = input.get("sides").as_object();
        let call = GuidanceCall {
            x: input.tensor("x")?,
            sigma: input.number("sigma")?,
            conditional: input.tensor("conditional")?,
            unconditional: input.optional_tensor("unconditional"),
            denoised: input.tensor("denoised")?,
            cfg: input.number("cfg")?,
            sides: sides.ok_or_else(|| Error::at("sides", "SIDES are wanted"))?,
        };
        Ok(Value::map([("denoised", object.patch_guidance(cx, &call)?.into_value())]))
    }
}

impl<T: AskSides> Interface<T> for marker::Sides {
    const ID: &'static str = "sides/1";

    fn call(object: &T, cx: &Context<'_>, input: &Arguments<'_>) -> Result<Value> {
        let (x, side) = (input.tensor("x")?, input.text("side")?);
        let patches = patches_of(&input.get("patches"))?;
        let conditioning = input.get("conditioning");
        let conditioning =
            (!conditioning.is_none()).then(|| Conditioning::from_value(conditioning));
        let side = (side.as_str(), conditioning.transpose()?);
        let denoised = object.ask(cx, &x, input.number("sigma")?, side, patches)?;
        Ok(Value::map([("denoised", denoised.into_value())]))
    }
}

fn texts(value: &Value) -> Vec<String> {
    value.items().iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

fn of_texts(texts: &[String]) -> Value {
    Value::list(texts.iter().map(|text| Value::string(text.as_str())).collect())
}

pub(super) fn patches_of(value: &Value) -> Result<Vec<Patch>> {
    value.as_list().unwrap_or_default().iter().map(Patch::read).collect()
}

pub(super) fn of_patches(patches: Vec<Patch>) -> Value {
    Value::list(patches.into_iter().map(Patch::into_value).collect())
}

/// A side of a picture that may be unknown.
fn side(side: Option<usize>) -> Value {
    side.map_or(Value::NONE, |side| (side as i64).into())
}

/// The calling side.
impl Object {
    /// "patch/1".
    pub fn with_patches(&self, cx: &Context<'_>, patches: Vec<Patch>) -> Result<Object> {
        let answer = self.call(cx, "patch/1", [("patches", of_patches(patches))])?;
        let model = answer.get("model").and_then(|model| model.as_object());
        model.ok_or_else(|| Error::new("\"patch/1\" answered without a MODEL"))
    }

    /// "guidance/1"; none where it is not offered.
    pub fn guidances(&self, cx: &Context<'_>) -> Result<Vec<Patch>> {
        match self.offers("guidance/1") {
            true => {
                let answer = self.call(cx, "guidance/1", [])?;
                patches_of(&answer.get("patches").unwrap_or(Value::NONE))
            }
            false => Ok(Vec::new()),
        }
    }

    /// "attention_patch/1".
    pub fn patch_attention(&self, cx: &Context<'_>, call: AttentionCall) -> Result<Tensor> {
        let input = [
            ("x", call.x.into_value()),
            ("context", call.context.into_value()),
            ("value_context", optional(call.value_context)),
            ("attention", call.attention.into_value()),
            ("block", Value::string(call.block)),
            ("height", (call.height as i64).into()),
            ("width", (call.width as i64).into()),
            ("sigma", call.sigma.into()),
            ("rows", of_texts(&call.rows)),
            ("latent_height", side(call.latent.map(|latent| latent.0))),
            ("latent_width", side(call.latent.map(|latent| latent.1))),
        ];
        tensor(&self.call(cx, "attention_patch/1", input)?, "x")
    }

    /// "tokens_patch/1".
    pub fn patch_tokens(&self, cx: &Context<'_>, call: TokensCall) -> Result<Tensor> {
        let input = [
            ("x", call.x.into_value()),
            ("block", Value::string(call.block)),
            ("height", (call.height as i64).into()),
            ("width", (call.width as i64).into()),
            ("sigma", call.sigma.into()),
            ("rows", of_texts(&call.rows)),
            ("latent_height", side(call.latent.map(|latent| latent.0))),
            ("latent_width", side(call.latent.map(|latent| latent.1))),
        ];
        tensor(&self.call(cx, "tokens_patch/1", input)?, "x")
    }

    /// "sides_patch/1": x₀ of the positive side, and of the negative where the patch gives it.
    pub fn patch_sides(
        &self,
        cx: &Context<'_>,
        call: SidesCall,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let input = [
            ("x", call.x.into_value()),
            ("sigma", call.sigma.into()),
            ("conditional", call.conditional.into_value()),
            ("unconditional", optional(call.unconditional)),
        ];
        let answer = self.call(cx, "sides_patch/1", input)?;
        let unconditional = answer.get("unconditional").and_then(|side| side.as_tensor());
        Ok((tensor(&answer, "conditional")?, unconditional))
    }

    /// "attention/1": x, and the weights where `wants_weights` and it can say them.
    pub fn attend(
        &self,
        cx: &Context<'_>,
        x: Tensor,
        (context, values_of): (Option<Tensor>, Option<Tensor>),
        further: Option<(Tensor, Tensor)>,
        wants_weights: bool,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (keys, values) = further.unzip();
        let input = [
            ("x", x.into_value()),
            ("context", optional(context)),
            ("value_context", optional(values_of)),
            ("keys", optional(keys)),
            ("values", optional(values)),
            ("wants_weights", if wants_weights { true.into() } else { Value::NONE }),
        ];
        let answer = self.call(cx, "attention/1", input)?;
        let weights = answer.get("weights").and_then(|weights| weights.as_tensor());
        Ok((tensor(&answer, "x")?, weights))
    }

    /// "block_patch/1".
    pub fn patch_block(
        &self,
        cx: &Context<'_>,
        call: BlockCall,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let input = [
            ("x", call.x.into_value()),
            ("skip", optional(call.skip)),
            ("block", Value::string(call.block)),
            ("sigma", call.sigma.into()),
            ("rows", of_texts(&call.rows)),
        ];
        let answer = self.call(cx, "block_patch/1", input)?;
        let skip = answer.get("skip").and_then(|skip| skip.as_tensor());
        Ok((tensor(&answer, "x")?, skip))
    }

    /// "guidance_patch/1".
    pub fn patch_guidance(&self, cx: &Context<'_>, call: GuidanceCall) -> Result<Tensor> {
        let input = [
            ("x", call.x.into_value()),
            ("sigma", call.sigma.into()),
            ("conditional", call.conditional.into_value()),
            ("unconditional", optional(call.unconditional)),
            ("denoised", call.denoised.into_value()),
            ("cfg", call.cfg.into()),
            ("sides", call.sides.into_value()),
        ];
        tensor(&self.call(cx, "guidance_patch/1", input)?, "denoised")
    }

    /// "sides/1".
    pub fn ask_side(
        &self,
        cx: &Context<'_>,
        x: Tensor,
        sigma: f64,
        side: &str,
        patches: Vec<Patch>,
    ) -> Result<Tensor> {
        let input = [
            ("x", x.into_value()),
            ("sigma", sigma.into()),
            ("side", Value::string(side)),
            ("patches", if patches.is_empty() { Value::NONE } else { of_patches(patches) }),
        ];
        tensor(&self.call(cx, "sides/1", input)?, "denoised")
    }

    /// As [`Object::ask_side`], of `conditioning` in the place of the negative's.
    pub fn ask_instead(
        &self,
        cx: &Context<'_>,
        x: Tensor,
        sigma: f64,
        conditioning: &Conditioning,
    ) -> Result<Tensor> {
        let input = [
            ("x", x.into_value()),
            ("sigma", sigma.into()),
            ("side", Value::string("negative")),
            ("conditioning", conditioning.0.clone()),
        ];
        tensor(&self.call(cx, "sides/1", input)?, "denoised")
    }
}
