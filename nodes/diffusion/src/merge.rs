//! Models made of two others, tensor by tensor, and tensors of the attentions multiplied. Nothing is computed before the result
//! is used or saved.

use kosmograph_models::stable_diffusion::checkpoint::original::UNetNames;
use node::*;

use crate::weights::merged;

/// By what each tensor counts, of the first and of the second.
type Both = (f64, f64);

fn models(
    cx: &Context<'_>,
    (first, second): (&Model, &Model),
    factors: &dyn Fn(&str) -> Option<Both>,
) -> Result<Model> {
    merged(cx, (&first.0, "model1"), Some((&second.0, "model2")), factors).map(Model)
}

fn clips(cx: &Context<'_>, (first, second): (&Clip, &Clip), factors: Both) -> Result<Clip> {
    merged(cx, (&first.0, "clip1"), Some((&second.0, "clip2")), &|_| Some(factors)).map(Clip)
}

/// Mixes two U-Nets: ratio · first + (1 - ratio) · second.
#[derive(Inputs)]
#[node(category = "advanced/model_merging")]
pub struct ModelMergeSimple {
    /// The first, whose sampling it keeps.
    model1: Model,
    /// The second.
    model2: Model,
    /// How much of the first.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    ratio: f64,
}

impl Node for ModelMergeSimple {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let factors = (self.ratio, 1.0 - self.ratio);
        models(cx, (&self.model1, &self.model2), &|_| Some(factors))
    }
}

/// The sum of two U-Nets: what ModelMergeSubtract took out of one goes onto another.
#[derive(Inputs)]
#[node(category = "advanced/model_merging")]
pub struct ModelMergeAdd {
    /// The first, whose sampling it keeps.
    model1: Model,
    /// The second.
    model2: Model,
}

impl Node for ModelMergeAdd {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        models(cx, (&self.model1, &self.model2), &|_| Some((1.0, 1.0)))
    }
}

/// The difference of two U-Nets, times a factor.
#[derive(Inputs)]
#[node(category = "advanced/model_merging")]
pub struct ModelMergeSubtract {
    /// The first.
    model1: Model,
    /// What is taken from it.
    model2: Model,
    /// The factor.
    #[widget(default = 1.0, min = -10.0, max = 10.0, step = 0.01)]
    multiplier: f64,
}

impl Node for ModelMergeSubtract {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let factors = (self.multiplier, -self.multiplier);
        models(cx, (&self.model1, &self.model2), &|_| Some(factors))
    }
}

/// How much of the first U-Net a tensor has: the ratio of the longest beginning of its name in the original code; of a name
/// that none begins, the first.
fn by_blocks(cx: &Context<'_>, both: (&Model, &Model), ratios: &[(String, f64)]) -> Result<Model> {
    let tensors = match both.0.0.offers("weights/1") {
        true => both.0.0.weights(cx)?,
        // Said by whoever merges.
        false => Vec::new(),
    };
    let names = UNetNames::of(tensors.iter().map(|(name, _)| name.as_str()));
    models(cx, both, &|name| {
        let original = names.original(name).unwrap_or_else(|| name.to_owned());
        let begins = ratios.iter().filter(|(start, _)| original.starts_with(start.as_str()));
        let longest = begins.max_by_key(|(start, _)| start.len());
        let (_, ratio) = longest.or(ratios.first())?;
        Some((*ratio, 1.0 - ratio))
    })
}

/// Mixes two U-Nets, each half by a ratio of its own: ratio · first + (1 - ratio) · second.
#[derive(Inputs)]
#[node(category = "advanced/model_merging")]
pub struct ModelMergeBlocks {
    /// The first, whose sampling it keeps.
    model1: Model,
    /// The second.
    model2: Model,
    /// How much of the first, in the contracting half and in what reads the timestep.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    input: f64,
    /// In the middle.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    middle: f64,
    /// In the expanding half.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    out: f64,
}

impl Node for ModelMergeBlocks {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let ratios = [("input", self.input), ("middle", self.middle), ("out", self.out)];
        let ratios = ratios.map(|(start, ratio)| (start.to_owned(), ratio));
        by_blocks(cx, (&self.model1, &self.model2), &ratios)
    }
}

/// A ratio for each block of a U-Net that has `IN` and `OUT` of them, by the original code's names.
struct Ratios<const IN: usize, const OUT: usize>(Vec<(String, f64)>);

fn blocks(inputs: usize, outputs: usize) -> Vec<String> {
    let numbered = |start: &'static str, count| (0..count).map(move |i| format!("{start}.{i}."));
    let first = ["time_embed.", "label_emb."].map(str::to_owned).into_iter();
    let all = first.chain(numbered("input_blocks", inputs)).chain(numbered("middle_block", 3));
    all.chain(numbered("output_blocks", outputs)).chain(["out.".to_owned()]).collect()
}

impl<const IN: usize, const OUT: usize> Input for Ratios<IN, OUT> {
    fn declare(spec: InputSpec) -> Vec<InputSpec> {
        let ratio = |name: String| InputSpec { name, kind: "FLOAT", ..spec.clone() };
        blocks(IN, OUT).into_iter().map(ratio).collect()
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let ratio = |name| Ok((name, reader.read::<f64>()?));
        blocks(IN, OUT).into_iter().map(ratio).collect::<Result<_>>().map(Self)
    }
}

/// Mixes two U-Nets of Stable Diffusion 1, each block by a ratio of its own: ratio · first + (1 - ratio) · second.
#[derive(Inputs)]
#[node(category = "advanced/model_merging/model_specific")]
pub struct ModelMergeSD1 {
    /// The first, whose sampling it keeps.
    model1: Model,
    /// The second.
    model2: Model,
    /// How much of the first, in the tensors whose names in the original code begin so.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    ratios: Ratios<12, 12>,
}

impl Node for ModelMergeSD1 {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        by_blocks(cx, (&self.model1, &self.model2), &self.ratios.0)
    }
}

/// Mixes two U-Nets of SDXL, each block by a ratio of its own: ratio · first + (1 - ratio) · second.
#[derive(Inputs)]
#[node(category = "advanced/model_merging/model_specific")]
pub struct ModelMergeSDXL {
    /// The first, whose sampling it keeps.
    model1: Model,
    /// The second.
    model2: Model,
    /// How much of the first, in the tensors whose names in the original code begin so.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    ratios: Ratios<9, 9>,
}

impl Node for ModelMergeSDXL {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        by_blocks(cx, (&self.model1, &self.model2), &self.ratios.0)
    }
}

/// Mixes two text encoders: ratio · first + (1 - ratio) · second.
#[derive(Inputs)]
#[node(category = "advanced/model_merging")]
pub struct CLIPMergeSimple {
    /// The first, whose tokenizer it keeps.
    clip1: Clip,
    /// The second.
    clip2: Clip,
    /// How much of the first.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    ratio: f64,
}

impl Node for CLIPMergeSimple {
    outputs![CLIP: Clip];

    fn run(self, cx: &Context) -> Result<Clip> {
        clips(cx, (&self.clip1, &self.clip2), (self.ratio, 1.0 - self.ratio))
    }
}

/// The sum of two text encoders.
#[derive(Inputs)]
#[node(category = "advanced/model_merging")]
pub struct CLIPMergeAdd {
    /// The first, whose tokenizer it keeps.
    clip1: Clip,
    /// The second.
    clip2: Clip,
}

impl Node for CLIPMergeAdd {
    outputs![CLIP: Clip];

    fn run(self, cx: &Context) -> Result<Clip> {
        clips(cx, (&self.clip1, &self.clip2), (1.0, 1.0))
    }
}

/// The difference of two text encoders, times a factor.
#[derive(Inputs)]
#[node(category = "advanced/model_merging")]
pub struct CLIPMergeSubtract {
    /// The first, whose tokenizer it keeps.
    clip1: Clip,
    /// What is taken from it.
    clip2: Clip,
    /// The factor.
    #[widget(default = 1.0, min = -10.0, max = 10.0, step = 0.01)]
    multiplier: f64,
}

impl Node for CLIPMergeSubtract {
    outputs![CLIP: Clip];

    fn run(self, cx: &Context) -> Result<Clip> {
        clips(cx, (&self.clip1, &self.clip2), (self.multiplier, -self.multiplier))
    }
}

/// What a tensor is multiplied by whose name has one of the parts in it.
fn multiplied<'a>(parts: &'a [(String, f64)]) -> impl Fn(&str) -> Option<Both> + 'a {
    move |name| {
        let (_, factor) = parts.iter().find(|(part, _)| name.contains(part.as_str()))?;
        Some((*factor, 0.0))
    }
}

/// The factors of an attention's four projections, by their names in `layer`.
fn projections(layer: &str, names: [&str; 4], factors: [f64; 4]) -> Vec<(String, f64)> {
    names.iter().zip(factors).map(|(name, factor)| (format!("{layer}.{name}."), factor)).collect()
}

const UNET: [&str; 4] = ["to_q", "to_k", "to_v", "to_out.0"];

/// Multiplies the projections of a U-Net's self-attentions.
#[derive(Inputs)]
#[node(category = "_for_testing/attention_experiments")]
pub struct UNetSelfAttentionMultiply {
    /// The U-Net.
    model: Model,
    /// What the queries are multiplied by.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    q: f64,
    /// The keys.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    k: f64,
    /// The values.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    v: f64,
    /// What the attention gives.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    out: f64,
}

impl Node for UNetSelfAttentionMultiply {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let parts = projections("attn1", UNET, [self.q, self.k, self.v, self.out]);
        merged(cx, (&self.model.0, "model"), None, &multiplied(&parts)).map(Model)
    }
}

/// Multiplies the projections of a U-Net's cross-attentions, which read the text.
#[derive(Inputs)]
#[node(category = "_for_testing/attention_experiments")]
pub struct UNetCrossAttentionMultiply {
    /// The U-Net.
    model: Model,
    /// What the queries are multiplied by.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    q: f64,
    /// The keys.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    k: f64,
    /// The values.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    v: f64,
    /// What the attention gives.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    out: f64,
}

impl Node for UNetCrossAttentionMultiply {
    outputs![MODEL: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let parts = projections("attn2", UNET, [self.q, self.k, self.v, self.out]);
        merged(cx, (&self.model.0, "model"), None, &multiplied(&parts)).map(Model)
    }
}

/// Multiplies the projections of a text encoder's attentions, their biases too.
#[derive(Inputs)]
#[node(category = "_for_testing/attention_experiments")]
pub struct CLIPAttentionMultiply {
    /// The text encoder.
    clip: Clip,
    /// What the queries are multiplied by.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    q: f64,
    /// The keys.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    k: f64,
    /// The values.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    v: f64,
    /// What the attention gives.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    out: f64,
}

impl Node for CLIPAttentionMultiply {
    outputs![CLIP: Clip];

    fn run(self, cx: &Context) -> Result<Clip> {
        let names = ["q_proj", "k_proj", "v_proj", "out_proj"];
        let parts = projections("self_attn", names, [self.q, self.k, self.v, self.out]);
        merged(cx, (&self.clip.0, "clip"), None, &multiplied(&parts)).map(Clip)
    }
}
