//! A U-Net's patches: where each acts, and how it is reached from within the network.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device, Result as CandleResult, Tensor as Candle};
use kosmograph_models::samplers::Schedule;
use kosmograph_models::stable_diffusion::steering::{Attends, Attention, Edge, Hooks};
use node::interface::{self, AttentionCall, BlockCall, Patch, TokensCall, marker};
use node::*;
use node_candle::{export, import};

use crate::sampling::Range;

/// What a U-Net has patches for.
const KINDS: [&str; 10] = [
    "self_attention",
    "cross_attention",
    "between_attentions",
    "block_input",
    "block_output",
    "below",
    "skip",
    "sides",
    "guide",
    "guidance",
];

/// A patch and where in the schedule it acts.
#[derive(Clone)]
pub struct Placed {
    pub patch: Patch,
    range: Range,
}

impl Placed {
    /// # Errors
    /// A kind or a block that a U-Net of these blocks does not have, or a PATCH that does not offer what the kind is done
    /// by.
    pub fn new(patch: Patch, blocks: &[String], schedule: &Schedule) -> Result<Self> {
        let at_patches = |sentence: String| Error::at("patches", sentence);
        if !KINDS.contains(&patch.kind.as_str()) {
            return Err(at_patches(format!(
                "this model has no patches of the kind \"{}\"; it has {}",
                patch.kind,
                KINDS.join(", ")
            )));
        }
        let interface = match patch.kind.as_str() {
            "self_attention" | "cross_attention" => "attention_patch/1",
            "between_attentions" => "tokens_patch/1",
            "sides" => "sides_patch/1",
            "guide" | "guidance" => "guidance_patch/1",
            _ => "block_patch/1",
        };
        if !patch.patch.offers(interface) {
            return Err(at_patches(format!(
                "the patch of the kind \"{}\" does not offer \"{interface}\"",
                patch.kind
            )));
        }
        let unknown = |wanted: &&String| !blocks.iter().any(|block| is_within(block, wanted));
        if let Some(unknown) = patch.blocks.iter().find(unknown) {
            return Err(at_patches(format!("this model has no block \"{unknown}\"")));
        }
        let range = Range::new(schedule, patch.start, patch.end);
        Ok(Self { patch, range })
    }

    /// Whether it acts on what the network says, and not within it.
    pub fn is_guidance(&self) -> bool {
        matches!(self.patch.kind.as_str(), "guidance" | "guide" | "sides")
    }

    /// Whether it acts within the network at σ.
    pub fn acts_inside(&self, sigma: f64) -> bool {
        !self.is_guidance() && self.range.holds(sigma)
    }

    fn is_at(&self, kind: &str, block: &str) -> bool {
        let blocks = &self.patch.blocks;
        self.patch.kind == kind
            && (blocks.is_empty() || blocks.iter().any(|place| is_within(block, place)))
    }
}

/// Whether a block is `place` or within it.
fn is_within(block: &str, place: &str) -> bool {
    block.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The patches that act in one call of the network.
pub struct Bridge<'a> {
    cx: &'a Context<'a>,
    patches: Vec<&'a Placed>,
    sigma: f64,
    rows: &'a [String],
    /// Height and width of the latents.
    latent: (usize, usize),
    device: &'a Device,
    failure: RefCell<Option<Error>>,
}

impl fmt::Debug for Bridge<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} patches", self.patches.len())
    }
}

impl<'a> Bridge<'a> {
    pub fn new(
        cx: &'a Context<'a>,
        patches: Vec<&'a Placed>,
        sigma: f64,
        rows: &'a [String],
        latent: (usize, usize),
        device: &'a Device,
    ) -> Self {
        Self { cx, patches, sigma, rows, latent, device, failure: RefCell::default() }
    }

    /// What a patch failed by, if one did.
    pub fn failure(self) -> Option<Error> {
        self.failure.into_inner()
    }

    /// A patch's error, kept as it is while the network ends by one of candle's.
    fn caught<T>(&self, result: Result<T>) -> CandleResult<T> {
        result.map_err(|error| {
            let sentence = error.to_string();
            *self.failure.borrow_mut() = Some(error);
            candle_core::Error::Msg(sentence)
        })
    }

    fn at(&self, kind: &str, block: &str) -> impl Iterator<Item = &&'a Placed> {
        self.patches.iter().filter(move |placed| placed.is_at(kind, block))
    }

    fn back(&self, tensor: &Tensor, dtype: DType) -> Result<Candle> {
        Ok(import(tensor, self.device)?.to_dtype(dtype)?)
    }

    fn patch_attention(
        &self,
        patches: &[&&Placed],
        path: &str,
        (height, width): (usize, usize),
        (x, context): (&Candle, &Candle),
        layer: &Arc<Attention>,
    ) -> Result<Candle> {
        let (dtype, device) = (x.dtype(), self.device.clone());
        let x = export(&x.to_dtype(DType::F32)?)?;
        let context = match context.dims() == x.shape() && patches[0].patch.kind == "self_attention"
        {
            true => x.clone(),
            false => export(&context.to_dtype(DType::F32)?)?,
        };
        let layer = Layer { attention: layer.clone(), dtype, device };
        let mut call = AttentionCall {
            x,
            context,
            value_context: None,
            attention: Object::new(layer),
            block: path.to_owned(),
            height,
            width,
            sigma: self.sigma,
            rows: self.rows.to_vec(),
            latent: Some(self.latent),
        };
        let (last, before) = match patches.split_last() {
            Some(both) => both,
            None => return Err(Error::new("there is no patch")),
        };
        // Each has for its attention the one before it.
        for placed in before {
            let chained = Chained { patch: placed.patch.patch.clone(), call: call.clone() };
            call.attention = Object::new(chained);
        }
        self.back(&last.patch.patch.patch_attention(self.cx, call)?, dtype)
    }

    fn patch_tokens(
        &self,
        placed: &Placed,
        path: &str,
        (height, width): (usize, usize),
        x: &Candle,
    ) -> Result<Candle> {
        let call = TokensCall {
            x: export(&x.to_dtype(DType::F32)?)?,
            block: path.to_owned(),
            height,
            width,
            sigma: self.sigma,
            rows: self.rows.to_vec(),
            latent: Some(self.latent),
        };
        self.back(&placed.patch.patch.patch_tokens(self.cx, call)?, x.dtype())
    }

    fn patch_block(
        &self,
        placed: &Placed,
        path: &str,
        x: &Candle,
        skip: Option<&Candle>,
    ) -> Result<(Candle, Option<Candle>)> {
        let dtype = x.dtype();
        let call = BlockCall {
            x: export(&x.to_dtype(DType::F32)?)?,
            skip: skip.map(|skip| export(&skip.to_dtype(DType::F32)?)).transpose()?,
            block: path.to_owned(),
            sigma: self.sigma,
            rows: self.rows.to_vec(),
        };
        let (x, skip) = placed.patch.patch.patch_block(self.cx, call)?;
        let skip = skip.map(|skip| self.back(&skip, dtype)).transpose()?;
        Ok((self.back(&x, dtype)?, skip))
    }
}

impl Hooks for Bridge<'_> {
    fn attention(
        &self,
        attends: Attends,
        path: &str,
        size: (usize, usize),
        tensors: (&Candle, &Candle),
        layer: &Arc<Attention>,
    ) -> CandleResult<Option<Candle>> {
        let kind = match attends {
            Attends::Itself => "self_attention",
            Attends::Context => "cross_attention",
        };
        let patches: Vec<_> = self.at(kind, path).collect();
        if patches.is_empty() {
            return Ok(None);
        }
        self.caught(self.patch_attention(&patches, path, size, tensors, layer)).map(Some)
    }

    fn between(&self, path: &str, size: (usize, usize), x: Candle) -> CandleResult<Candle> {
        let mut x = x;
        for placed in self.at("between_attentions", path) {
            x = self.caught(self.patch_tokens(placed, path, size, &x))?;
        }
        Ok(x)
    }

    fn block(&self, edge: Edge, path: &str, x: Candle) -> CandleResult<Candle> {
        let kind = match edge {
            Edge::Input => "block_input",
            Edge::Output => "block_output",
            Edge::Below => "below",
        };
        let mut x = x;
        for placed in self.at(kind, path) {
            (x, _) = self.caught(self.patch_block(placed, path, &x, None))?;
        }
        Ok(x)
    }

    fn skip(&self, path: &str, x: Candle, skip: Candle) -> CandleResult<(Candle, Candle)> {
        let (mut x, mut skip) = (x, skip);
        for placed in self.at("skip", path) {
            let (changed, other) = self.caught(self.patch_block(placed, path, &x, Some(&skip)))?;
            (x, skip) = (changed, other.unwrap_or(skip));
        }
        Ok((x, skip))
    }
}

/// A layer of the network as it is.
struct Layer {
    attention: Arc<Attention>,
    dtype: DType,
    device: Device,
}

impl Layer {
    fn import(&self, tensor: &Tensor) -> Result<Candle> {
        Ok(import(tensor, &self.device)?.to_dtype(self.dtype)?)
    }
}

impl Export for Layer {
    const TYPE: &'static str = "ATTENTION";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Layer: marker::Attention];
}

impl interface::Attend for Layer {
    fn attend(
        &self,
        _cx: &Context<'_>,
        x: &Tensor,
        (context, values_of): (Option<&Tensor>, Option<&Tensor>),
        further: Option<(&Tensor, &Tensor)>,
    ) -> Result<Tensor> {
        let x = self.import(x)?;
        let context = context.map(|context| self.import(context)).transpose()?;
        let values_of = values_of.map(|values_of| self.import(values_of)).transpose()?;
        let further = match further {
            Some((keys, values)) => Some((self.import(keys)?, self.import(values)?)),
            None => None,
        };
        let further = further.as_ref().map(|(keys, values)| (keys, values));
        let context = context.as_ref().unwrap_or(&x);
        let contexts = (context, values_of.as_ref().unwrap_or(context));
        let y = self.attention.forward(&x, contexts, further)?;
        export(&y.to_dtype(DType::F32)?)
    }

    fn weights(
        &self,
        _cx: &Context<'_>,
        x: &Tensor,
        context: Option<&Tensor>,
    ) -> Result<Option<Tensor>> {
        let x = self.import(x)?;
        let context = context.map(|context| self.import(context)).transpose()?;
        let weights = self.attention.weights(&x, context.as_ref().unwrap_or(&x))?;
        export(&weights.to_dtype(DType::F32)?).map(Some)
    }
}

/// An attention that a patch has taken the place of.
struct Chained {
    patch: Object,
    call: AttentionCall,
}

impl Export for Chained {
    const TYPE: &'static str = "ATTENTION";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Chained: marker::Attention];
}

impl interface::Attend for Chained {
    fn attend(
        &self,
        cx: &Context<'_>,
        x: &Tensor,
        (context, values_of): (Option<&Tensor>, Option<&Tensor>),
        further: Option<(&Tensor, &Tensor)>,
    ) -> Result<Tensor> {
        if further.is_some() {
            return Err(Error::at(
                "keys",
                "this attention is another patch's, which takes no further keys",
            ));
        }
        let call = AttentionCall {
            x: x.clone(),
            context: context.unwrap_or(x).clone(),
            value_context: values_of.cloned(),
            ..self.call.clone()
        };
        self.patch.patch_attention(cx, call)
    }

    fn weights(
        &self,
        cx: &Context<'_>,
        x: &Tensor,
        context: Option<&Tensor>,
    ) -> Result<Option<Tensor>> {
        // What the layer itself says: a patch has no weights of its own.
        let (x, context) = (x.clone(), context.cloned());
        self.call.attention.attend(cx, x, (context, None), None, true).map(|(_, weights)| weights)
    }
}
