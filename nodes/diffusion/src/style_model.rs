//! STYLE_MODEL: a picture's style as tokens behind those of a text.

use std::path::PathBuf;

use candle_core::Device;
use kosmograph_models::Resident;
use kosmograph_models::stable_diffusion::style_model::{StyleModel as Network, open_style_model};
use node::interface::{self, marker};
use node::*;
use node_candle::{device, export, import};

/// A style adapter behind "style_model/1". Its numbers are read when it is first called.
pub struct StyleAdapter {
    network: Resident<Network>,
    device: Device,
}

impl Export for StyleAdapter {
    const TYPE: &'static str = "STYLE_MODEL";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![StyleAdapter: marker::StyleModel, marker::Describe, marker::Memory];
}

impl interface::StyleTokens for StyleAdapter {
    fn tokens(&self, _cx: &Context<'_>, last_hidden_state: &Tensor) -> Result<Tensor> {
        let state = import(last_hidden_state, &self.device)?;
        export(&self.network.get()?.forward(&state)?)
    }
}

impl interface::Describe for StyleAdapter {
    fn describe(&self) -> serde_json::Value {
        json!({"family": "t2i-adapter-style", "bytes": self.network.bytes()})
    }
}

impl interface::Memory for StyleAdapter {
    fn bytes(&self, purge: bool) -> usize {
        if purge {
            self.network.release();
        }
        self.network.held()
    }
}

/// Loads a style model, T2I-Adapter's for Stable Diffusion 1.
#[derive(Inputs)]
#[node(category = "loaders", checked)]
pub struct StyleModelLoader {
    /// The file.
    #[file(folder = "style_models", entry = "any")]
    style_model_name: PathBuf,
}

impl Node for StyleModelLoader {
    outputs![STYLE_MODEL: StyleModel];

    fn run(self, cx: &Context) -> Result<StyleModel> {
        let load = || {
            let device = device(&cx.device())?;
            let (config, weights) = open_style_model(&self.style_model_name, &device)?;
            let network =
                Resident::open(weights, &[], move |weights| Network::load(weights, &config))?;
            Ok(StyleModel(Object::new(StyleAdapter { network, device })))
        };
        load().map_err(|error: Error| error.of_input("style_model_name"))
    }
}

/// Has a text drawn in the style of a picture: the tokens of its style come behind the text's.
#[derive(Inputs)]
#[node(category = "conditioning/style_model")]
pub struct StyleModelApply {
    /// The text.
    conditioning: Conditioning,
    /// The style model.
    style_model: StyleModel,
    /// What CLIP's picture half says of the picture (CLIPVisionEncode; of OpenAI's ViT-L/14).
    clip_vision_output: ClipVisionOutput,
    /// How much the style counts.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.001)]
    strength: Option<f64>,
    /// multiply makes the tokens longer or shorter; attn_bias is for Flux, and refused here unless strength is 1.
    #[widget(default = "multiply", choices = ["multiply", "attn_bias"])]
    strength_type: Option<String>,
}

impl Node for StyleModelApply {
    outputs![CONDITIONING: Conditioning];

    fn run(self, cx: &Context) -> Result<Conditioning> {
        let strength = self.strength.unwrap_or(1.0);
        if self.strength_type.as_deref() == Some("attn_bias") && strength != 1.0 {
            return Err(Error::at(
                "strength_type",
                "attn_bias acts on attentions of Flux, which U-Nets do not have; multiply would be right",
            ));
        }
        let state = self.clip_vision_output.0.get("last_hidden_state");
        let state = state.and_then(|state| state.as_tensor()).ok_or_else(|| {
            Error::at(
                "clip_vision_output",
                "it has no \"last_hidden_state\", which CLIPVisionEncode gives",
            )
        })?;
        let device = device(&cx.device())?;
        let tokens = self.style_model.0.style_tokens(cx, state);
        let tokens = import(&tokens.map_err(|error| error.of_input("style_model"))?, &device)?;
        // Those of several pictures one after the other.
        let tokens = (tokens.flatten(0, 1)?.unsqueeze(0)? * strength)?;
        let width = tokens.dim(2)?;
        let mut all = Vec::new();
        for (entry, context) in
            self.conditioning.entries().into_iter().zip(self.conditioning.contexts()?)
        {
            let context = import(&context, &device)?;
            if context.dim(2)? != width {
                return Err(Error::at(
                    "style_model",
                    format!(
                        "its tokens are {width} numbers wide, those of the text {}: it is made for another family of models",
                        context.dim(2)?
                    ),
                ));
            }
            let rows = tokens.repeat((context.dim(0)?, 1, 1))?;
            let both = candle_core::Tensor::cat(&[&context, &rows], 1)?;
            all.push(entry.with("context", export(&both)?.into_value()));
        }
        Ok(Conditioning(Value::list(all)))
    }
}
