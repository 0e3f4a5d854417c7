//! Where, when and how much a conditioning counts: keys of its entries, which samplers read (node.h).

use node::*;

/// Lets a conditioning count in a rectangle alone.
#[derive(Inputs)]
#[node(category = "conditioning")]
pub struct ConditioningSetArea {
    /// What counts there.
    conditioning: Conditioning,
    /// Width of the rectangle in pixels of the picture.
    #[widget(default = 64, min = 64, max = 16384, step = 8)]
    width: i64,
    /// Its height.
    #[widget(default = 64, min = 64, max = 16384, step = 8)]
    height: i64,
    /// Its left edge.
    #[widget(default = 0, min = 0, max = 16384, step = 8)]
    x: i64,
    /// Its upper edge.
    #[widget(default = 0, min = 0, max = 16384, step = 8)]
    y: i64,
    /// How much it counts where others count too.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    strength: f64,
}

impl Node for ConditioningSetArea {
    outputs![CONDITIONING: Conditioning];

    fn run(self, _cx: &Context) -> Result<Conditioning> {
        let area = [self.height / 8, self.width / 8, self.y / 8, self.x / 8];
        Ok(with_area(&self.conditioning, area.map(Value::from), self.strength))
    }
}

/// Lets a conditioning count in a rectangle alone, given in fractions of the picture.
#[derive(Inputs)]
#[node(category = "conditioning")]
pub struct ConditioningSetAreaPercentage {
    /// What counts there.
    conditioning: Conditioning,
    /// Width of the rectangle; 1 is the picture's.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    width: f64,
    /// Its height.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    height: f64,
    /// Its left edge.
    #[widget(default = 0.0, min = 0.0, max = 1.0, step = 0.01)]
    x: f64,
    /// Its upper edge.
    #[widget(default = 0.0, min = 0.0, max = 1.0, step = 0.01)]
    y: f64,
    /// How much it counts where others count too.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    strength: f64,
}

impl Node for ConditioningSetAreaPercentage {
    outputs![CONDITIONING: Conditioning];

    fn run(self, _cx: &Context) -> Result<Conditioning> {
        let area = [self.height, self.width, self.y, self.x];
        Ok(with_area(&self.conditioning, area.map(Value::from), self.strength))
    }
}

/// `area` is height, width, y, x.
fn with_area(conditioning: &Conditioning, area: [Value; 4], strength: f64) -> Conditioning {
    let area = Value::list(area.into());
    conditioning.map_entries(|entry| {
        let entry = entry.with("area", area.clone()).with("strength", strength.into());
        entry.with("area_from_mask", false.into())
    })
}

/// How much a conditioning counts where others count too.
#[derive(Inputs)]
#[node(category = "conditioning")]
pub struct ConditioningSetAreaStrength {
    /// What counts.
    conditioning: Conditioning,
    /// How much.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    strength: f64,
}

impl Node for ConditioningSetAreaStrength {
    outputs![CONDITIONING: Conditioning];

    fn run(self, _cx: &Context) -> Result<Conditioning> {
        let strength = self.strength;
        Ok(self.conditioning.map_entries(|entry| entry.with("strength", strength.into())))
    }
}

/// Lets a conditioning count where a mask is, as much as the mask says.
#[derive(Inputs)]
#[node(category = "conditioning")]
pub struct ConditioningSetMask {
    /// What counts there.
    conditioning: Conditioning,
    /// Where; any size, it is scaled to the latents.
    mask: Mask,
    /// How much it counts where others count too.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    strength: f64,
    /// Whether the denoiser sees the whole picture, or the rectangle around the mask alone.
    #[widget(choices = ["default", "mask bounds"], default = "default")]
    set_cond_area: String,
}

impl Node for ConditioningSetMask {
    outputs![CONDITIONING: Conditioning];

    fn run(self, _cx: &Context) -> Result<Conditioning> {
        let bounds = self.set_cond_area == "mask bounds";
        Ok(self.conditioning.map_entries(|entry| {
            let entry = entry.with("mask", self.mask.0.clone().into_value());
            let entry = entry.with("area_from_mask", bounds.into());
            entry.with("mask_strength", self.strength.into())
        }))
    }
}

/// Lets a conditioning count in a part of the schedule alone.
#[derive(Inputs)]
#[node(category = "advanced/conditioning")]
pub struct ConditioningSetTimestepRange {
    /// What counts then.
    conditioning: Conditioning,
    /// Where it begins: 0 the noisiest step, 1 the end.
    #[widget(default = 0.0, min = 0.0, max = 1.0, step = 0.001)]
    start: f64,
    /// Where it ends.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.001)]
    end: f64,
}

impl Node for ConditioningSetTimestepRange {
    outputs![CONDITIONING: Conditioning];

    fn run(self, _cx: &Context) -> Result<Conditioning> {
        let (start, end) = (self.start, self.end);
        Ok(self
            .conditioning
            .map_entries(|entry| entry.with("start", start.into()).with("end", end.into())))
    }
}
