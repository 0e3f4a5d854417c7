//! GLIGEN: the GLIGEN object, its loader, and boxes with texts on a conditioning.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device, Tensor as Candle};
use kosmograph_models::stable_diffusion::checkpoint::open_gligen;
use kosmograph_models::stable_diffusion::gligen::{
    Gligen as Network, GligenConfig, Grounded, MOST_BOXES,
};
use kosmograph_models::{Resident, Weights};
use node::interface::{self, GroundedBox, Patch, TokensCall, marker};
use node::*;
use node_candle::{device, export, import};

/// GLIGEN behind "grounding/1". Its numbers are read when it is first called.
pub struct GligenModel {
    network: Arc<Resident<Network>>,
    config: GligenConfig,
    device: Device,
}

impl GligenModel {
    /// GLIGEN of `weights` under diffusers' names, on their device. The file's header is checked against `config`.
    ///
    /// # Errors
    /// The weights are of another model than `config` says.
    pub fn new(config: GligenConfig, weights: Weights) -> kosmograph_models::Result<Self> {
        let device = weights.device().clone();
        let network = {
            let config = config.clone();
            Resident::open(weights, &[], move |weights| Network::load(weights, &config))?
        };
        Ok(Self { network: Arc::new(network), config, device })
    }
}

impl Export for GligenModel {
    const TYPE: &'static str = "GLIGEN";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![GligenModel: marker::Grounding, marker::Describe, marker::Memory];
}

impl interface::Ground for GligenModel {
    fn ground(&self, _cx: &Context, boxes: Vec<GroundedBox>) -> Result<Vec<Patch>> {
        if boxes.len() > MOST_BOXES {
            return Err(Error::at(
                "boxes",
                format!("GLIGEN takes {MOST_BOXES} boxes in a picture, {} were given", boxes.len()),
            ));
        }
        let patch = Boxes {
            network: self.network.clone(),
            device: self.device.clone(),
            boxes,
            tokens: Mutex::default(),
        };
        let patch = Patch::new("between_attentions", Object::new(patch));
        let paths: Vec<&str> = self.config.layers.iter().map(|layer| layer.path.as_str()).collect();
        Ok(vec![patch.within(&paths)])
    }
}

impl interface::Describe for GligenModel {
    fn describe(&self) -> serde_json::Value {
        json!({
            "family": "gligen",
            "text_width": self.config.text,
            "boxes": MOST_BOXES,
            "bytes": self.network.bytes(),
        })
    }
}

impl interface::Memory for GligenModel {
    fn bytes(&self, purge: bool) -> usize {
        if purge {
            self.network.release();
        }
        self.network.held()
    }
}

/// The boxes of an entry, as a patch of the U-Net.
struct Boxes {
    network: Arc<Resident<Network>>,
    device: Device,
    boxes: Vec<GroundedBox>,
    /// Their tokens, and the height and width of the latents that they are of: every block of every step asks for them.
    tokens: Mutex<Option<((usize, usize), Candle)>>,
}

impl Export for Boxes {
    const TYPE: &'static str = "PATCH";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Boxes: marker::TokensPatch];
}

impl Boxes {
    fn tokens(&self, network: &Network, (height, width): (usize, usize)) -> Result<Candle> {
        let mut known = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((size, tokens)) = &*known
            && *size == (height, width)
        {
            return Ok(tokens.clone());
        }
        let share = |pixels: i64, whole: usize| pixels as f32 / whole.max(1) as f32;
        let grounded = |one: &GroundedBox| {
            let (x, y) = (one.x, one.y);
            let (right, bottom) = (x.saturating_add(one.width), y.saturating_add(one.height));
            let edges =
                [share(x, width), share(y, height), share(right, width), share(bottom, height)];
            Ok(Grounded { edges, text: import(&one.text, &self.device)? })
        };
        let boxes = self.boxes.iter().map(grounded).collect::<Result<Vec<_>>>()?;
        let tokens = network.tokens(&boxes, &self.device)?;
        *known = Some(((height, width), tokens.clone()));
        Ok(tokens)
    }
}

impl interface::PatchTokens for Boxes {
    fn patch_tokens(&self, _cx: &Context<'_>, call: &TokensCall) -> Result<Tensor> {
        let network = self.network.get()?;
        let size = call.latent.unwrap_or((call.height, call.width));
        let tokens = self.tokens(&network, size)?;
        let x = import(&call.x, &self.device)?;
        export(&network.forward(&call.block, &x, &tokens)?)
    }
}

/// Loads GLIGEN, which lets boxes in the picture have texts of their own.
#[derive(Inputs)]
#[node(category = "loaders", checked)]
pub struct GLIGENLoader {
    /// The file or folder, of GLIGEN for text boxes and Stable Diffusion 1.
    #[file(folder = "gligen", entry = "any")]
    gligen_name: PathBuf,
}

impl Node for GLIGENLoader {
    outputs![GLIGEN: Gligen];

    fn run(self, cx: &Context) -> Result<Gligen> {
        let load = || {
            let (config, weights) = open_gligen(&self.gligen_name, &device(&cx.device())?)?;
            Ok(Gligen(Object::new(GligenModel::new(config, weights)?)))
        };
        load().map_err(|error: Error| error.of_input("gligen_name"))
    }
}

/// Says what is in a box of the picture. Several in a row add their boxes, up to thirty.
#[derive(Inputs)]
#[node(category = "conditioning/gligen")]
pub struct GLIGENTextBoxApply {
    /// What the whole picture shows; its boxes stay.
    conditioning_to: Conditioning,
    /// The text encoder.
    clip: Clip,
    /// GLIGEN.
    gligen_textbox_model: Gligen,
    /// What is in the box.
    #[widget(multiline, default = "", mentions = "embeddings")]
    text: String,
    /// Width of the box in pixels of the picture.
    #[widget(default = 64, min = 8, max = 16384, step = 8)]
    width: i64,
    /// Its height.
    #[widget(default = 64, min = 8, max = 16384, step = 8)]
    height: i64,
    /// Its left edge.
    #[widget(default = 0, min = 0, max = 16384, step = 8)]
    x: i64,
    /// Its upper edge.
    #[widget(default = 0, min = 0, max = 16384, step = 8)]
    y: i64,
}

impl Node for GLIGENTextBoxApply {
    outputs![CONDITIONING: Conditioning];

    fn run(self, cx: &Context) -> Result<Conditioning> {
        let (_, pooled) = self.clip.0.encode_text(cx, &self.text)?;
        let text = pooled.ok_or_else(|| {
            Error::at(
                "clip",
                "this text encoder gives no pooled vector, which GLIGEN reads of a box's text",
            )
        })?;
        let (height, width, y, x) = (self.height / 8, self.width / 8, self.y / 8, self.x / 8);
        let added = GroundedBox { text, height, width, y, x }.into_value();
        Ok(self.conditioning_to.map_entries(|entry| {
            let before = entry.get("grounding").and_then(|before| before.get("boxes"));
            let mut boxes = before.and_then(|boxes| boxes.as_list()).unwrap_or_default();
            boxes.push(added.clone());
            let gligen = self.gligen_textbox_model.clone().into_value();
            let grounding = Value::map([("gligen", gligen), ("boxes", Value::list(boxes))]);
            entry.with("grounding", grounding)
        }))
    }
}
