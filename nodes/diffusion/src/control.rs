//! A control network and its hint, ready for the sampler: as a CONTROL of its own, `ControlNet`, or
//! written into conditionings, as ComfyUI's nodes do.

use kosmograph_models::stable_diffusion::controlnet_union::TYPES;
use node::*;

/// Steers the sampler by a hint picture; several are chained by `previous` and act together.
#[derive(Inputs)]
#[node(category = "kosmograph")]
pub struct ControlNet {
    /// The control network.
    control_net: node::ControlNet,
    /// The hint it was trained on: outlines, depth, a pose …
    image: Image,
    /// How strongly it steers.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    strength: f64,
    /// Where in the schedule it begins: 0 the first step, 1 the last.
    #[widget(default = 0.0, min = 0.0, max = 1.0, step = 0.001)]
    start: f64,
    /// Where in the schedule it ends.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.001)]
    end: f64,
    /// Another one that acts too.
    previous: Option<Control>,
    /// Guess mode: the control is seen by the conditional half alone, weakly at first and fully in the
    /// deepest layers, so that a picture follows the hint with little text, or none.
    #[widget(default = false)]
    guess: bool,
}

/// The most that are chained: each lies within the next one, and values nest no deeper than the boundary allows.
const MOST_CHAINED: usize = 256;

impl Node for ControlNet {
    outputs![CONTROL: Control];

    fn run(self, _cx: &Context) -> Result<Control> {
        if self.start > self.end {
            return Err(Error::at(
                "start",
                format!("the control starts at {} but ends at {}", self.start, self.end),
            ));
        }
        check_hint(&self.image)?;
        let mut chained = 1;
        let mut before = self.previous.clone();
        while let Some(control) = before {
            chained += 1;
            before = control.previous()?;
        }
        if chained > MOST_CHAINED {
            return Err(Error::at(
                "previous",
                format!("{chained} ControlNets are chained; at most {MOST_CHAINED} act together"),
            ));
        }
        let Self { control_net, image, strength, start, end, previous, guess } = self;
        let control = Control::new(control_net, image, strength, start, end, previous);
        Ok(if guess { control.with_guess(true) } else { control })
    }
}

/// Steers a conditioning by a hint picture. The negative that it is sampled with is steered too, unless it
/// has controls of its own.
#[derive(Inputs)]
#[node(category = "conditioning/controlnet")]
pub struct ControlNetApply {
    /// What is steered.
    conditioning: Conditioning,
    /// The control network.
    control_net: node::ControlNet,
    /// The hint it was trained on: outlines, depth, a pose …
    image: Image,
    /// How strongly it steers.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    strength: f64,
}

impl Node for ControlNetApply {
    outputs![CONDITIONING: Conditioning];

    fn run(self, _cx: &Context) -> Result<Conditioning> {
        if self.strength == 0.0 {
            return Ok(self.conditioning);
        }
        check_hint(&self.image)?;
        let control = Control::new(self.control_net, self.image, self.strength, 0.0, 1.0, None);
        let covering = |entry: Value| {
            with_control(&entry, &control).with("control_covers_negative", true.into())
        };
        Ok(self.conditioning.map_entries(covering))
    }
}

/// Steers both conditionings by a hint picture, within a part of the schedule.
#[derive(Inputs)]
#[node(category = "conditioning/controlnet")]
pub struct ControlNetApplyAdvanced {
    /// What is steered.
    positive: Conditioning,
    /// What is steered with it.
    negative: Conditioning,
    /// The control network.
    control_net: node::ControlNet,
    /// The hint it was trained on: outlines, depth, a pose …
    image: Image,
    /// How strongly it steers.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    strength: f64,
    /// Where in the schedule it begins: 0 the noisiest step, 1 the end.
    #[widget(default = 0.0, min = 0.0, max = 1.0, step = 0.001)]
    start_percent: f64,
    /// Where in the schedule it ends.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.001)]
    end_percent: f64,
    /// Only networks that read latents need it; those of Stable Diffusion 1.5 read the picture.
    #[expect(dead_code, reason = "saved workflows may link it")]
    vae: Option<Vae>,
}

impl Node for ControlNetApplyAdvanced {
    outputs![positive: Conditioning, negative: Conditioning];

    fn run(self, _cx: &Context) -> Result<(Conditioning, Conditioning)> {
        if self.strength == 0.0 {
            return Ok((self.positive, self.negative));
        }
        check_hint(&self.image)?;
        let (start, end) = (self.start_percent, self.end_percent);
        let control = Control::new(self.control_net, self.image, self.strength, start, end, None);
        let both = |entry: Value| {
            with_control(&entry, &control).with("control_covers_negative", false.into())
        };
        Ok((self.positive.map_entries(both), self.negative.map_entries(both)))
    }
}

/// Tells a ControlNet Union what kind of hint it is given.
#[derive(Inputs)]
#[node(category = "conditioning/controlnet")]
pub struct SetUnionControlNetType {
    /// The control network, a union.
    control_net: node::ControlNet,
    /// The kind; "auto" tells none.
    #[widget(choices = KINDS, default = "auto")]
    r#type: String,
}

/// What a union may be told: nothing, or one of the kinds it knows.
const KINDS: &[&str] = &{
    let mut kinds = ["auto"; TYPES.len() + 1];
    let mut i = 0;
    while i < TYPES.len() {
        kinds[i + 1] = TYPES[i];
        i += 1;
    }
    kinds
};

impl Node for SetUnionControlNetType {
    outputs![CONTROL_NET: node::ControlNet];

    fn run(self, cx: &Context) -> Result<node::ControlNet> {
        let kind = TYPES.iter().position(|kind| *kind == self.r#type);
        if !self.control_net.0.offers("control_type/1") {
            return Err(Error::at(
                "control_net",
                "this control network is for one kind of hint; a ControlNet Union is told which it is",
            ));
        }
        let told = self.control_net.0.of_type(cx, kind);
        told.map(node::ControlNet).map_err(|error| error.of_input("control_net"))
    }
}

/// As ControlNetApplyAdvanced, by the name of the Advanced-ControlNet pack, whose keyframes and weights are not here.
#[derive(Inputs)]
#[node(category = "Adv-ControlNet")]
#[allow(non_camel_case_types, reason = "the pack's name")]
pub struct ACN_AdvancedControlNetApply {
    /// What is steered.
    positive: Conditioning,
    /// What is steered with it.
    negative: Conditioning,
    /// The control network.
    control_net: node::ControlNet,
    /// The hint it was trained on: outlines, depth, a pose …
    image: Image,
    /// How strongly it steers.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    strength: f64,
    /// Where in the schedule it begins: 0 the noisiest step, 1 the end.
    #[widget(default = 0.0, min = 0.0, max = 1.0, step = 0.001)]
    start_percent: f64,
    /// Where in the schedule it ends.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.001)]
    end_percent: f64,
    /// Where in the picture it steers: not to be had here.
    mask_optional: Option<Mask>,
    /// Only networks that read latents need it.
    vae_optional: Option<Vae>,
}

impl Node for ACN_AdvancedControlNetApply {
    outputs![positive: Conditioning, negative: Conditioning];

    fn run(self, cx: &Context) -> Result<(Conditioning, Conditioning)> {
        if self.mask_optional.is_some() {
            return Err(Error::at(
                "mask_optional",
                "a ControlNet that steers a part of the picture is not to be had here; \
                 ConditioningSetMask on what it steers may be what is wanted",
            ));
        }
        ControlNetApplyAdvanced {
            positive: self.positive,
            negative: self.negative,
            control_net: self.control_net,
            image: self.image,
            strength: self.strength,
            start_percent: self.start_percent,
            end_percent: self.end_percent,
            vae: self.vae_optional,
        }
        .run(cx)
    }
}

/// An entry with one more control.
pub fn with_control(entry: &Value, control: &Control) -> Value {
    let mut controls = entry.get("control").and_then(|list| list.as_list()).unwrap_or_default();
    controls.push(control.0.clone());
    entry.with("control", Value::list(controls))
}

/// # Errors
/// The hint has other than three channels, or four.
pub fn check_hint(image: &Image) -> Result<()> {
    let (_, _, _, channels) = image.dims();
    match channels {
        3 | 4 => Ok(()),
        _ => Err(Error::at("image", format!("a hint has 3 channels, this has {channels}"))),
    }
}
