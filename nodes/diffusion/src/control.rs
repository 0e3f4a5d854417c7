//! `ControlNet`: a control network and its hint, ready for the sampler.

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
}

impl Node for ControlNet {
    outputs![CONTROL: Control];

    fn run(self, _cx: &Context) -> Result<Control> {
        if self.start > self.end {
            return Err(Error::at(
                "start",
                format!("the control starts at {} but ends at {}", self.start, self.end),
            ));
        }
        let (_, _, _, channels) = self.image.dims();
        if channels != 3 {
            return Err(Error::at("image", format!("a hint has 3 channels, this has {channels}")));
        }
        let Self { control_net, image, strength, start, end, previous } = self;
        Ok(Control::new(control_net, image, strength, start, end, previous))
    }
}
