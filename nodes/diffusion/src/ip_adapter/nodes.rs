//! The nodes, by the names that workflows use.

use std::path::PathBuf;

use node::*;
use node_candle::device;

use super::adapter::{Embeds, IpAdapterModel, IpAdapterSocket};
use super::prompted::{Manner, Prompted};
use super::weights::{SCALINGS, WEIGHT_TYPES};
use crate::clip_vision::open_clip_vision;

/// Loads an IP-Adapter: base, plus, plus-face or full, for Stable Diffusion 1.5 or SDXL.
#[derive(Inputs)]
#[node(category = "ipadapter/loaders", checked)]
pub struct IPAdapterModelLoader {
    /// The file, of safetensors or of torch.
    #[file(folder = "ipadapter", entry = "file")]
    ipadapter_file: PathBuf,
}

impl Node for IPAdapterModelLoader {
    outputs![IPADAPTER: IpAdapterSocket];

    fn run(self, cx: &Context) -> Result<IpAdapterSocket> {
        let load = || IpAdapterModel::open(&self.ipadapter_file, &device(&cx.device())?);
        let adapter = load().map_err(|error: Error| error.of_input("ipadapter_file"))?;
        Ok(IpAdapterSocket { adapter: Object::new(adapter), clip_vision: None })
    }
}

/// What a preset needs: the encoder, and the adapter for Stable Diffusion 1.5 and for SDXL, where there is one. Each by the names that
/// people give the published file, without the folder and the extension.
struct Preset {
    name: &'static str,
    encoder: &'static [&'static str],
    sd15: &'static [&'static str],
    sdxl: &'static [&'static str],
}

const VIT_H: &[&str] = &[
    "CLIP-ViT-H-14-laion2B-s32B-b79K",
    "CLIP-ViT-H-14-laion2B-s32B-b79K/model",
    "SD1.5/model",
    "sd15/model",
    "ipadapter_sd15",
];
const VIT_G: &[&str] = &[
    "CLIP-ViT-bigG-14-laion2B-39B-b160k",
    "CLIP-ViT-bigG-14-laion2B-39B-b160k/model",
    "SDXL/model",
    "sdxl/model",
    "ipadapter_sdxl",
];

const PRESETS: [Preset; 6] = [
    Preset {
        name: "LIGHT - SD1.5 only (low strength)",
        encoder: VIT_H,
        sd15: &["ip-adapter_sd15_light_v11", "ip-adapter_sd15_light"],
        sdxl: &[],
    },
    Preset {
        name: "STANDARD (medium strength)",
        encoder: VIT_H,
        sd15: &["ip-adapter_sd15"],
        sdxl: &["ip-adapter_sdxl_vit-h"],
    },
    Preset {
        name: "VIT-G (medium strength)",
        encoder: VIT_G,
        sd15: &["ip-adapter_sd15_vit-G", "ip-adapter_sd15_vit-g"],
        sdxl: &["ip-adapter_sdxl"],
    },
    Preset {
        name: "PLUS (high strength)",
        encoder: VIT_H,
        sd15: &["ip-adapter-plus_sd15"],
        sdxl: &["ip-adapter-plus_sdxl_vit-h"],
    },
    Preset {
        name: "PLUS FACE (portraits)",
        encoder: VIT_H,
        sd15: &["ip-adapter-plus-face_sd15"],
        sdxl: &["ip-adapter-plus-face_sdxl_vit-h"],
    },
    Preset {
        name: "FULL FACE - SD1.5 only (portraits stronger)",
        encoder: VIT_H,
        sd15: &["ip-adapter-full-face_sd15"],
        sdxl: &[],
    },
];

/// The names of the presets.
const PRESET_NAMES: &[&str] = &[
    PRESETS[0].name,
    PRESETS[1].name,
    PRESETS[2].name,
    PRESETS[3].name,
    PRESETS[4].name,
    PRESETS[5].name,
];

/// The files of each preset, for the host to look for.
fn preset_files() -> serde_json::Value {
    let files = |preset: &Preset| {
        let encoders = preset.encoder.iter().map(|name| format!("clip_vision/{name}"));
        let adapters = preset.sd15.iter().chain(preset.sdxl);
        let adapters = adapters.map(|name| format!("ipadapter/{name}"));
        json!(encoders.chain(adapters).collect::<Vec<_>>())
    };
    PRESETS.iter().map(|preset| (preset.name.to_owned(), files(preset))).collect()
}

/// Loads the IP-Adapter of a preset that fits the model, and the CLIP vision encoder that it was trained with, by the names
/// of the published files in ipadapter and clip_vision.
#[derive(Inputs)]
#[node(category = "ipadapter")]
pub struct IPAdapterUnifiedLoader {
    /// The U-Net, which says which family the adapter must be for.
    model: Model,
    /// Which adapter.
    #[widget(choices = PRESET_NAMES, default = "LIGHT - SD1.5 only (low strength)", files = preset_files())]
    preset: String,
    /// One that is there already; the preset's takes its place.
    ipadapter: Option<IpAdapterSocket>,
}

impl Node for IPAdapterUnifiedLoader {
    outputs![model: Model, ipadapter: IpAdapterSocket];

    fn run(self, cx: &Context) -> Result<(Model, IpAdapterSocket)> {
        let _ = self.ipadapter;
        let described = self.model.0.describe(cx).map_err(|error| error.of_input("model"))?;
        let preset = PRESETS.iter().find(|preset| preset.name == self.preset);
        let preset = preset
            .ok_or_else(|| Error::at("preset", format!("there is no \"{}\"", self.preset)))?;
        // SDXL's context is 2048 numbers wide.
        let is_xl = described["context_width"].as_u64().is_some_and(|width| width >= 1280);
        let (family, adapters) = match is_xl {
            true => ("SDXL", preset.sdxl),
            false => ("Stable Diffusion 1.5", preset.sd15),
        };
        let find = |folder: &str, names: &[&str], what: &str| {
            let found = names.iter().find_map(|name| cx.file(folder, name));
            found.ok_or_else(|| {
                let wanted = match names {
                    [] => format!("there is no {what} of this preset for {family}"),
                    names => format!(
                        "the {what} of this preset for {family} is not there: {} in the folder {folder} would be right",
                        names.join(" or ")
                    ),
                };
                Error::at("preset", wanted)
            })
        };
        let device = device(&cx.device())?;
        let adapter = find("ipadapter", adapters, "IP-Adapter")?;
        let encoder = find("clip_vision", preset.encoder, "CLIP vision encoder")?;
        let at_preset = |error: Error| error.of_input("preset");
        let adapter = IpAdapterModel::open(&adapter, &device).map_err(at_preset)?;
        let clip_vision = open_clip_vision(&encoder, &device).map_err(at_preset)?;
        let adapter = Object::new(adapter);
        Ok((self.model, IpAdapterSocket { adapter, clip_vision: Some(clip_vision) }))
    }
}

/// How the pictures of one node steer, from the inputs that these nodes share.
fn manner(
    weight: f64,
    weight_type: &str,
    scaling: &str,
    (start, end): (f64, f64),
    mask: Option<Mask>,
) -> Result<Manner> {
    if start > end {
        return Err(Error::at(
            "start_at",
            format!(
                "it starts at {start} but ends at {end}; the start before the end would be right"
            ),
        ));
    }
    if let Some(mask) = &mask
        && mask.dims().0 != 1
    {
        return Err(Error::at(
            "attn_mask",
            format!("one mask for all pictures is wanted, but {} were given", mask.dims().0),
        ));
    }
    Ok(Manner {
        weight,
        weight_type: weight_type.to_owned(),
        scaling: scaling.to_owned(),
        start,
        end,
        mask: mask.map(|mask| mask.0),
    })
}

/// The model that reads these pictures, or the model itself where they have no weight.
fn apply(
    cx: &Context,
    model: Model,
    ipadapter: &IpAdapterSocket,
    sides: (&Embeds, &Embeds),
    manner: &Manner,
) -> Result<Model> {
    if manner.weight == 0.0 {
        return Ok(model);
    }
    Ok(Model(Object::new(Prompted::new(cx, &model, ipadapter.model()?, sides, manner)?)))
}

/// Lets a picture steer the model beside the text.
#[derive(Inputs)]
#[node(category = "ipadapter")]
pub struct IPAdapter {
    /// The U-Net.
    model: Model,
    /// The adapter with its CLIP vision encoder, from IPAdapterUnifiedLoader.
    ipadapter: IpAdapterSocket,
    /// The picture; of several, all.
    image: Image,
    /// How strongly it steers.
    #[widget(default = 1.0, min = -1.0, max = 3.0, step = 0.05)]
    weight: f64,
    /// Where in the schedule it begins: 0 the first step, 1 the last.
    #[widget(default = 0.0, min = 0.0, max = 1.0, step = 0.001)]
    start_at: f64,
    /// Where in the schedule it ends.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.001)]
    end_at: f64,
    /// Which layers listen.
    #[widget(choices = ["standard", "prompt is more important", "style transfer"], default = "standard")]
    weight_type: String,
    /// Where in the picture it counts.
    attn_mask: Option<Mask>,
}

impl Node for IPAdapter {
    outputs![model: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let weight_type = match self.weight_type.as_str() {
            "prompt is more important" => "ease out",
            "style transfer" => "style transfer",
            _ => "linear",
        };
        let range = (self.start_at, self.end_at);
        let manner = manner(self.weight, weight_type, "V only", range, self.attn_mask)?;
        let (vision, adapter) = (self.ipadapter.vision(None)?, self.ipadapter.model()?);
        let positive = Embeds::of(cx, &vision, self.image.0, adapter)?;
        let negative = Embeds::of_nothing(cx, &vision, &positive, adapter)?;
        apply(cx, self.model, &self.ipadapter, (&positive, &negative), &manner)
    }
}

/// Lets a picture steer the model beside the text, with everything that can be set.
#[derive(Inputs)]
#[node(category = "ipadapter")]
pub struct IPAdapterAdvanced {
    /// The U-Net.
    model: Model,
    /// The adapter.
    ipadapter: IpAdapterSocket,
    /// The picture, or several.
    image: Image,
    /// How strongly it steers.
    #[widget(default = 1.0, min = -1.0, max = 5.0, step = 0.05)]
    weight: f64,
    /// Which layers listen, and how much.
    #[widget(choices = WEIGHT_TYPES, default = "linear")]
    weight_type: String,
    /// What becomes of several pictures: concat reads the tokens of all, the others make one of them.
    #[widget(choices = ["concat", "add", "subtract", "average", "norm average"], default = "concat")]
    combine_embeds: String,
    /// Where in the schedule it begins: 0 the first step, 1 the last.
    #[widget(default = 0.0, min = 0.0, max = 1.0, step = 0.001)]
    start_at: f64,
    /// Where in the schedule it ends.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.001)]
    end_at: f64,
    /// What the weight multiplies: values alone, keys too, and less so in narrow layers.
    #[widget(choices = SCALINGS, default = "V only")]
    embeds_scaling: String,
    /// What the picture is not to be like.
    image_negative: Option<Image>,
    /// Where in the picture it counts.
    attn_mask: Option<Mask>,
    /// The encoder that the adapter was trained with; the adapter's own where it came with one.
    clip_vision: Option<ClipVision>,
}

impl Node for IPAdapterAdvanced {
    outputs![model: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let range = (self.start_at, self.end_at);
        let manner =
            manner(self.weight, &self.weight_type, &self.embeds_scaling, range, self.attn_mask)?;
        let vision = self.ipadapter.vision(self.clip_vision)?;
        let adapter = self.ipadapter.model()?;
        let positive = Embeds::of(cx, &vision, self.image.0, adapter)?;
        let negative = match self.image_negative {
            Some(image) => {
                Embeds::of(cx, &vision, image.0, adapter)?.combined(&self.combine_embeds)?
            }
            None => Embeds::of_nothing(cx, &vision, &positive, adapter)?,
        };
        let positive = positive.combined(&self.combine_embeds)?;
        apply(cx, self.model, &self.ipadapter, (&positive, &negative), &manner)
    }
}

/// What CLIP's picture half says of a picture, for IPAdapterEmbeds: of the picture, and of none.
#[derive(Inputs)]
#[node(category = "ipadapter/embeds")]
pub struct IPAdapterEncoder {
    /// The adapter, which says what it takes.
    ipadapter: IpAdapterSocket,
    /// The picture, or several.
    image: Image,
    /// What the embeddings are multiplied by.
    #[widget(default = 1.0, min = -1.0, max = 3.0, step = 0.01)]
    weight: f64,
    /// The encoder that the adapter was trained with; the adapter's own where it came with one.
    clip_vision: Option<ClipVision>,
}

impl Node for IPAdapterEncoder {
    outputs![pos_embed: Embeds, neg_embed: Embeds];

    fn run(self, cx: &Context) -> Result<(Embeds, Embeds)> {
        let vision = self.ipadapter.vision(self.clip_vision)?;
        let adapter = self.ipadapter.model()?;
        let positive = Embeds::of(cx, &vision, self.image.0, adapter)?;
        let negative = Embeds::of_nothing(cx, &vision, &positive, adapter)?;
        Ok((positive.times(self.weight)?, negative))
    }
}

/// Makes one of several embeddings of pictures.
#[derive(Inputs)]
#[node(category = "ipadapter/embeds")]
pub struct IPAdapterCombineEmbeds {
    /// The first.
    embed1: Embeds,
    /// concat keeps all, the others make one.
    #[widget(choices = ["concat", "add", "subtract", "average", "norm average", "max", "min"], default = "concat")]
    method: String,
    /// Another one.
    embed2: Option<Embeds>,
    /// Another one.
    embed3: Option<Embeds>,
    /// Another one.
    embed4: Option<Embeds>,
    /// Another one.
    embed5: Option<Embeds>,
}

impl Node for IPAdapterCombineEmbeds {
    outputs![EMBEDS: Embeds];

    fn run(self, _cx: &Context) -> Result<Embeds> {
        let others = [self.embed2, self.embed3, self.embed4, self.embed5];
        let all: Vec<Embeds> = [Some(self.embed1)].into_iter().chain(others).flatten().collect();
        Embeds::joined(&all)?.combined(&self.method)
    }
}

/// Lets embeddings of pictures steer the model beside the text.
#[derive(Inputs)]
#[node(category = "ipadapter/embeds")]
pub struct IPAdapterEmbeds {
    /// The U-Net.
    model: Model,
    /// The adapter.
    ipadapter: IpAdapterSocket,
    /// What the picture is to be like.
    pos_embed: Embeds,
    /// How strongly it steers.
    #[widget(default = 1.0, min = -1.0, max = 3.0, step = 0.05)]
    weight: f64,
    /// Which layers listen, and how much.
    #[widget(choices = WEIGHT_TYPES, default = "linear")]
    weight_type: String,
    /// Where in the schedule it begins: 0 the first step, 1 the last.
    #[widget(default = 0.0, min = 0.0, max = 1.0, step = 0.001)]
    start_at: f64,
    /// Where in the schedule it ends.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.001)]
    end_at: f64,
    /// What the weight multiplies: values alone, keys too, and less so in narrow layers.
    #[widget(choices = SCALINGS, default = "V only")]
    embeds_scaling: String,
    /// What it is not to be like.
    neg_embed: Option<Embeds>,
    /// Where in the picture it counts.
    attn_mask: Option<Mask>,
    /// The encoder that the adapter was trained with; the adapter's own where it came with one.
    clip_vision: Option<ClipVision>,
}

impl Node for IPAdapterEmbeds {
    outputs![model: Model];

    fn run(self, cx: &Context) -> Result<Model> {
        let range = (self.start_at, self.end_at);
        let manner =
            manner(self.weight, &self.weight_type, &self.embeds_scaling, range, self.attn_mask)?;
        let adapter = self.ipadapter.model()?;
        let negative = match self.neg_embed {
            Some(negative) => negative,
            // Zeros need no encoder.
            None if !adapter.config.projection.takes_hidden_states() => {
                self.pos_embed.of_zeros()?
            }
            None => {
                let vision = self.ipadapter.vision(self.clip_vision)?;
                Embeds::of_nothing(cx, &vision, &self.pos_embed, adapter)?
            }
        };
        apply(cx, self.model, &self.ipadapter, (&self.pos_embed, &negative), &manner)
    }
}
