//! Checkpoints as people have them: a folder in diffusers' layout, or one file of any kind.
//!
//! A file is what its tensors' names and shapes say ([`family`]). Its weights are handed out under
//! diffusers' and transformers' names whatever it calls them ([`ldm`] translates the original code's),
//! with the configuration that a folder has in `config.json` and a file in its shapes ([`infer`]).

mod configs;
mod family;
mod gligen;
mod infer;
mod ldm;
mod open_clip;
pub mod original;
#[cfg(test)]
mod tests;
mod text;

use std::path::{Path, PathBuf};

use candle_core::Device;
use serde_json::{Value, json};

use crate::clip::vision::ClipVisionConfig;
use crate::error::{Error, Result};
use crate::files::weights::Weights;
use crate::samplers::{LatentSpace, Prediction, SchedulerConfig};
use crate::stable_diffusion::controlnet::ControlNetConfig;
use crate::stable_diffusion::controlnet_of_unet::Changes;
use crate::stable_diffusion::t2i_adapter::{self, T2iAdapterConfig};
use crate::stable_diffusion::taesd::{Half, TaesdConfig, TaesdWeights, diffusers_name};
use crate::stable_diffusion::unet::{SD1_SCALE, SDXL_SCALE, UNetConfig};
use crate::stable_diffusion::vae::VaeConfig;
use configs::{deserialized, json_of, part_of_class, stated};
use family::{Found, Naming};
pub use gligen::open_gligen;
pub(crate) use ldm::Rows;
pub use text::TextEncoder;

/// A checkpoint, or a part of one. Nothing but headers is read.
pub struct Checkpoint {
    path: PathBuf,
    device: Device,
    /// What a single file holds; None for a folder.
    file: Option<(Weights, Naming)>,
}

impl Checkpoint {
    /// Opens `path`: a folder in diffusers' layout (a pipeline, or one model of it), or a file, of
    /// safetensors or of torch. Tensors will be read onto `device`.
    ///
    /// # Errors
    /// The file cannot be read; or it is of another kind or family, which the error names.
    pub fn open(path: &Path, device: &Device) -> Result<Checkpoint> {
        let is_described = |folder: &Path| {
            ["config.json", "model_index.json", "unet"].iter().any(|f| folder.join(f).exists())
        };
        let mut file = None;
        if !path.is_dir() || !is_described(path) {
            let weights = without_wrapping(Weights::open(path, device)?);
            let naming = match family::of(&weights) {
                Found::Known(naming) => naming,
                Found::Other(what) => return Err(not_for_us(path, format!("it is {what}"))),
                Found::Nothing => {
                    let names: Vec<String> = weights.names().into_iter().take(3).collect();
                    let what = match &names[..] {
                        [] => "it holds no tensors".to_owned(),
                        _ => format!(
                            "its tensors ({} …) are of no kind that is known",
                            names.join(", ")
                        ),
                    };
                    return Err(not_for_us(path, what));
                }
            };
            file = Some((weights, naming));
        }
        Ok(Checkpoint { path: path.to_owned(), device: device.clone(), file })
    }

    /// What it is, in words: "a ControlNet".
    pub fn kind(&self) -> &'static str {
        match self.file.as_ref().map(|(_, naming)| naming) {
            None => "a folder in diffusers' layout",
            Some(Naming::Checkpoint) => "a checkpoint",
            Some(Naming::LdmUNet | Naming::UNet) => "a U-Net",
            Some(Naming::LdmVae | Naming::Vae) => "an autoencoder (VAE)",
            Some(Naming::LdmControlNet | Naming::ControlNet) => "a ControlNet",
            Some(Naming::ClipText) => "a CLIP text encoder",
            Some(Naming::ClipVision) => "a CLIP vision encoder",
            Some(Naming::TaesdEncoder) => "TAESD's encoder",
            Some(Naming::TaesdDecoder) => "TAESD's decoder",
            Some(Naming::Taesd | Naming::TaesdHalves) => "TAESD, a tiny autoencoder",
            Some(Naming::T2iAdapter) => "a T2I-Adapter",
        }
    }

    /// Is it a checkpoint of several models, of which a loader of one takes its own?
    pub fn is_whole(&self) -> bool {
        match &self.file {
            None => self.path.join("unet").is_dir(),
            Some((_, naming)) => *naming == Naming::Checkpoint,
        }
    }

    /// The U-Net: its configuration, the noise schedule it was trained on, and its weights.
    ///
    /// # Errors
    /// There is none in it, or its configuration is not supported.
    pub fn unet(&self) -> Result<(UNetConfig, SchedulerConfig, Weights)> {
        let Some((weights, naming)) = &self.file else {
            let folder = self.folder("unet", "a U-Net")?;
            let (config, file) = json_of(&folder.join("config.json"))?;
            let weights = Weights::open(&folder, &self.device)?;
            return Ok((
                UNetConfig::from_value(&config, &file)?,
                self.scheduler(&folder)?,
                weights,
            ));
        };
        let unet = match naming {
            Naming::Checkpoint => weights.sub("model.diffusion_model"),
            Naming::LdmUNet | Naming::UNet => weights.clone(),
            _ => return Err(self.has_no("a U-Net")),
        };
        // The marks of how the network was trained stand beside its tensors where it is alone in its file.
        let is_weight = |name: &String| !MARKS.contains(&name.as_str());
        let names: Vec<String> = unet.names().into_iter().filter(is_weight).collect();
        let rows = Rows::of(names.iter().map(String::as_str));
        let unet = match (naming, rows) {
            (Naming::UNet, _) => unet.renamed(names.into_iter().map(|name| (name.clone(), name))),
            (_, Some(rows)) => unet.renamed(
                names.into_iter().map(|old| (rows.unet(&old).unwrap_or_else(|| old.clone()), old)),
            ),
            (_, None) => return Err(self.has_no("a U-Net")),
        };
        let config = UNetConfig::from_value(&infer::unet(&unet)?, &self.shapes())?;
        let scheduler = self.prediction(weights)?;
        Ok((config, scheduler, unet))
    }

    /// The autoencoder: its configuration and weights.
    ///
    /// # Errors
    /// There is none in it, or its configuration is not supported.
    pub fn vae(&self) -> Result<(VaeConfig, Weights)> {
        let Some((weights, naming)) = &self.file else {
            let folder = self.folder("vae", "an autoencoder (VAE)")?;
            let (config, file) = json_of(&folder.join("config.json"))?;
            return Ok((
                VaeConfig::from_value(&config, &file)?,
                Weights::open(&folder, &self.device)?,
            ));
        };
        let vae = match naming {
            Naming::Checkpoint => weights.sub("first_stage_model"),
            Naming::LdmVae | Naming::Vae => weights.clone(),
            _ => return Err(self.has_no("an autoencoder (VAE)")),
        };
        // What the training of an autoencoder leaves in its file beside it.
        let belongs = |name: &String| !name.starts_with("loss.") && !name.starts_with("model_ema.");
        let names: Vec<String> = vae.names().into_iter().filter(belongs).collect();
        let vae = if *naming == Naming::Vae {
            vae.renamed(names.into_iter().map(|name| (name.clone(), name)))
        } else {
            let levels = ldm::vae_levels(names.iter().map(String::as_str));
            if levels == 0 {
                return Err(self.has_no("an autoencoder (VAE)"));
            }
            vae.renamed(
                names
                    .into_iter()
                    .map(|old| (ldm::vae(&old, levels).unwrap_or_else(|| old.clone()), old)),
            )
        };
        let is_xl = weights.has("conditioner") || weights.has("model.diffusion_model.label_emb");
        let scale = if is_xl { SDXL_SCALE } else { SD1_SCALE };
        Ok((VaeConfig::from_value(&infer::vae(&vae, scale)?, &self.shapes())?, vae))
    }

    /// What the latents of its U-Net are the autoencoder's times: as the autoencoder beside it has it, else as the
    /// family of `unet` does; None where neither says it.
    pub fn latent_scale(&self, unet: &UNetConfig) -> Option<f64> {
        let beside = match &self.file {
            None => {
                let path = self.folder("unet", "a U-Net").ok()?.with_file_name("vae");
                let read = json_of(&path.join("config.json")).ok();
                read.and_then(|(config, file)| VaeConfig::from_value(&config, &file).ok())
            }
            Some((_, Naming::Checkpoint)) => self.vae().ok().map(|(config, _)| config),
            Some(_) => None,
        };
        beside.map(|vae| vae.scaling_factor()).or_else(|| unet.scaling_factor())
    }

    /// What the latents of a TAESD are its family's autoencoder's times. The networks of both families are alike:
    /// it is the name that tells, as in ComfyUI.
    pub fn taesd_scale(&self) -> Option<f64> {
        let name = self.path.file_name()?.to_string_lossy().to_lowercase();
        match name {
            name if name.contains("taesdxl") => Some(SDXL_SCALE),
            name if name.contains("taesd") => Some(SD1_SCALE),
            _ => None,
        }
    }

    /// The CLIP vision encoder: its configuration and weights.
    ///
    /// # Errors
    /// There is none in it, or its configuration is not supported.
    pub fn clip_vision(&self) -> Result<(ClipVisionConfig, Weights)> {
        let Some((weights, _)) = &self.file else {
            let folder = self.folder("image_encoder", "a CLIP vision encoder")?;
            let (config, file) = json_of(&folder.join("config.json"))?;
            // The configuration of the whole of CLIP has its picture half's in it.
            let config = match config.get("vision_config") {
                Some(Value::Object(vision)) => {
                    let mut vision = vision.clone();
                    let width = config.get("projection_dim").cloned().unwrap_or(json!(768));
                    vision.entry("projection_dim").or_insert(width);
                    Value::Object(vision)
                }
                _ => config,
            };
            let weights = picture_half(&Weights::open(&folder, &self.device)?);
            return Ok((deserialized(config, &file)?, weights));
        };
        if !weights.has("vision_model") || !weights.has("visual_projection") {
            return Err(self.has_no("a CLIP vision encoder"));
        }
        let vision = picture_half(weights);
        Ok((ClipVisionConfig::from_weights(&vision)?, vision))
    }

    /// The ControlNet: its configuration and weights.
    ///
    /// # Errors
    /// It is none, or one of a kind that is not supported.
    pub fn control_net(&self) -> Result<(ControlNetConfig, Weights)> {
        let Some((weights, naming)) = &self.file else {
            let folder = self.folder("controlnet", "a ControlNet")?;
            let (config, file) = json_of(&folder.join("config.json"))?;
            let config = ControlNetConfig::from_value(&config, &file)?;
            return Ok((config, Weights::open(&folder, &self.device)?));
        };
        let control = match naming {
            Naming::ControlNet => weights.clone(),
            Naming::LdmControlNet if weights.shape("difference").is_some() => {
                let what = "it is a ControlNet saved as its difference to a U-Net, which DiffControlNetLoader takes";
                return Err(not_for_us(&self.path, what.to_owned()));
            }
            Naming::LdmControlNet => self.control_in_diffusers_names(weights)?,
            _ => return Err(self.has_no("a ControlNet")),
        };
        let config = infer::control_net(&control, self.control_net_pools()?)?;
        Ok((ControlNetConfig::from_value(&config, &self.shapes())?, control))
    }

    /// The original code's ControlNet, or what is said of one, in diffusers' names.
    fn control_in_diffusers_names(&self, weights: &Weights) -> Result<Weights> {
        let bare = if weights.has("control_model") { "control_model" } else { "" };
        let control = weights.sub(bare);
        let names = control.names();
        let hint = |name: &String| {
            name.strip_prefix("input_hint_block.")?.split_once('.')?.0.parse::<usize>().ok()
        };
        let hint_layers = names.iter().filter_map(hint).max().unwrap_or(0) / 2;
        let Some(rows) = Rows::of(names.iter().map(String::as_str)) else {
            return Err(self.has_no("a ControlNet"));
        };
        let new = |old: &str| match old.rsplit_once('.') {
            // The factors of a weight.
            Some((module, part @ ("up" | "down"))) => {
                let weight = rows.control_net(&format!("{module}.weight"), hint_layers)?;
                Some(format!("{}.{part}", weight.strip_suffix(".weight")?))
            }
            _ => rows.control_net(old, hint_layers),
        };
        let marks = ["lora_controlnet", "difference"];
        let names = names.into_iter().filter(|name| !marks.contains(&name.as_str()));
        Ok(control.renamed(names.map(|old| (new(&old).unwrap_or_else(|| old.clone()), old))))
    }

    /// [`Checkpoint::control_changes`] of a Control-LoRA.
    ///
    /// # Errors
    /// As there.
    pub fn control_lora(&self) -> Result<Option<Changes>> {
        match &self.file {
            Some((weights, _)) if weights.shape("lora_controlnet").is_some() => {
                self.control_changes()
            }
            _ => Ok(None),
        }
    }

    /// What makes a ControlNet of a model's own U-Net, where it is that: of low rank, or a difference. Nothing where it
    /// is a whole ControlNet, or something else.
    ///
    /// # Errors
    /// Its tensors cannot be read, or are of no such kind.
    pub fn control_changes(&self) -> Result<Option<Changes>> {
        let Some((weights, Naming::LdmControlNet)) = &self.file else { return Ok(None) };
        let is_low_rank = weights.shape("lora_controlnet").is_some();
        if !is_low_rank && weights.shape("difference").is_none() {
            return Ok(None);
        }
        let named = self.control_in_diffusers_names(weights)?;
        let mut changes = Changes::default();
        let read = |name: &str| named.get(name, named.shape(name).unwrap_or_default());
        for name in named.names() {
            if let Some(module) = name.strip_suffix(".up") {
                let pair = (read(&name)?, read(&format!("{module}.down"))?);
                changes.low_rank.insert(format!("{module}.weight"), pair);
            } else if !name.ends_with(".down") {
                let place = match is_low_rank {
                    true => &mut changes.own,
                    false => &mut changes.differences,
                };
                place.insert(name.clone(), read(&name)?);
            }
        }
        Ok(Some(changes))
    }

    /// Whether a single file is a ControlNet that pools ("shuffle"): the original code's configuration beside
    /// it (NAME.yaml) says so, or its name does, as with ComfyUI.
    fn control_net_pools(&self) -> Result<bool> {
        let stated = stated(&self.path.with_extension("yaml"), "global_average_pooling")?;
        if let Some(stated) = stated {
            return Ok(stated.eq_ignore_ascii_case("true"));
        }
        let name = self.path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
        Ok(name.split(|c: char| !c.is_alphanumeric()).any(|word| word == "shuffle"))
    }

    /// Whether it is a TAESD, or a half of one.
    pub fn is_taesd(&self) -> bool {
        match &self.file {
            None => self.is_folder_of("AutoencoderTiny"),
            Some((_, naming)) => matches!(
                naming,
                Naming::Taesd | Naming::TaesdHalves | Naming::TaesdEncoder | Naming::TaesdDecoder
            ),
        }
    }

    /// TAESD, or what there is of it: its sizes and its weights. A file of one half is completed by the other one, `NAME_decoder`
    /// beside `NAME_encoder`, where it is there.
    ///
    /// # Errors
    /// It is none, or the other half's file is something else.
    pub fn taesd(&self) -> Result<(TaesdConfig, TaesdWeights)> {
        let halves = match &self.file {
            None if self.is_taesd() => {
                TaesdWeights::of_one_file(&Weights::open(&self.path, &self.device)?)?
            }
            Some((weights, Naming::Taesd)) => TaesdWeights::of_one_file(weights)?,
            Some((weights, Naming::TaesdHalves)) => {
                let half = |name: &str, half| {
                    weights.has(name).then(|| in_diffusers_names(&weights.sub(name), half))
                };
                TaesdWeights {
                    encoder: half("taesd_encoder", Half::Encoder),
                    decoder: half("taesd_decoder", Half::Decoder),
                }
            }
            Some((weights, Naming::TaesdEncoder)) => TaesdWeights {
                encoder: Some(in_diffusers_names(weights, Half::Encoder)),
                decoder: self.other_half(("encoder", "decoder"), Half::Decoder)?,
            },
            Some((weights, Naming::TaesdDecoder)) => TaesdWeights {
                encoder: self.other_half(("decoder", "encoder"), Half::Encoder)?,
                decoder: Some(in_diffusers_names(weights, Half::Decoder)),
            },
            _ => return Err(self.has_no("a tiny autoencoder (TAESD)")),
        };
        Ok((TaesdConfig::from_weights(&halves)?, halves))
    }

    /// The half that lies beside the file under its name with `to` for `from`.
    fn other_half(&self, (from, to): (&str, &str), half: Half) -> Result<Option<Weights>> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let beside = self.path.with_file_name(name.replace(from, to));
        if beside == self.path || !beside.is_file() {
            return Ok(None);
        }
        let other = Checkpoint::open(&beside, &self.device)?;
        let wanted = match half {
            Half::Encoder => Naming::TaesdEncoder,
            Half::Decoder => Naming::TaesdDecoder,
        };
        match &other.file {
            Some((weights, naming)) if *naming == wanted => {
                Ok(Some(in_diffusers_names(weights, half)))
            }
            _ => {
                let what = format!("it is {}, where TAESD's {to} is wanted", other.kind());
                Err(not_for_us(&beside, what))
            }
        }
    }

    /// Whether it is a T2I-Adapter.
    pub fn is_t2i_adapter(&self) -> bool {
        match &self.file {
            None => self.is_folder_of("T2IAdapter"),
            Some((_, naming)) => *naming == Naming::T2iAdapter,
        }
    }

    /// The T2I-Adapter: its sizes and its weights.
    ///
    /// # Errors
    /// It is none, or its sizes are no adapter's.
    pub fn t2i_adapter(&self) -> Result<(T2iAdapterConfig, Weights)> {
        let weights = match &self.file {
            None if self.is_t2i_adapter() => Weights::open(&self.path, &self.device)?,
            Some((weights, Naming::T2iAdapter)) => weights.clone(),
            _ => return Err(self.has_no("a T2I-Adapter")),
        };
        let weights = weights.renamed(t2i_adapter::diffusers_names(&weights.names()));
        Ok((T2iAdapterConfig::from_weights(&weights)?, weights))
    }

    /// Whether the folder says itself that it is diffusers' model of this class.
    fn is_folder_of(&self, class: &str) -> bool {
        let config = json_of(&self.path.join("config.json"));
        self.file.is_none() && config.is_ok_and(|(config, _)| config["_class_name"] == class)
    }

    /// The folder of a part: in the pipeline's folder, or the folder itself where that is one model.
    ///
    /// # Errors
    /// The pipeline has none, or the folder says itself that it is another model.
    fn folder(&self, part: &str, what: &'static str) -> Result<PathBuf> {
        let inside = self.path.join(part);
        if inside.is_dir() {
            return Ok(inside);
        }
        let is_pipeline = ["model_index.json", "unet"].iter().any(|f| self.path.join(f).exists());
        let class = || {
            let (config, _) = json_of(&self.path.join("config.json")).ok()?;
            let first = || config.get("architectures")?.get(0);
            part_of_class(config.get("_class_name").or_else(first)?.as_str()?)
        };
        let is_other = class().is_some_and(|of| of != part);
        match is_pipeline || is_other {
            true => Err(self.has_no(what)),
            false => Ok(self.path.clone()),
        }
    }

    /// The scheduler's configuration beside a U-Net's folder. A U-Net that stands alone was trained on
    /// Stable Diffusion 1.5's schedule.
    fn scheduler(&self, unet: &Path) -> Result<SchedulerConfig> {
        let path = unet.with_file_name("scheduler").join("scheduler_config.json");
        if !path.is_file() {
            return Ok(SchedulerConfig::default());
        }
        let (config, file) = json_of(&path)?;
        SchedulerConfig::from_value(&config, &file)
    }

    /// The schedule of a single file: Stable Diffusion 1.5's; what the network predicts may stand in the
    /// file's header, in the mark of a tensor, or in the original code's configuration beside the file
    /// (NAME.yaml).
    fn prediction(&self, weights: &Weights) -> Result<SchedulerConfig> {
        // Playground 2.5, as ComfyUI tells it: the marks say no more than that it is one.
        if ["edm_mean", "edm_std"].iter().all(|mark| weights.shape(mark).is_some()) {
            return Ok(SchedulerConfig {
                prediction_type: Prediction::Edm,
                edm_sigmas: Some((0.002, 80.0)),
                latent_space: Some(LatentSpace::playground()),
                ..SchedulerConfig::default()
            });
        }
        let beside = self.path.with_extension("yaml");
        let parameterization = stated(&beside, "parameterization")?;
        if let Some(found) =
            parameterization.as_ref().filter(|it| !matches!(it.as_str(), "v" | "eps"))
        {
            return Err(Error::UnsupportedConfig {
                file: beside.display().to_string(),
                key: "parameterization".to_owned(),
                found: format!("`{found}`"),
                supported: "`eps` and `v`".to_owned(),
            });
        }
        let stated = weights.metadata("modelspec.prediction_type");
        let is_v = matches!(stated, Some("v" | "v_prediction"))
            || weights.shape("v_pred").is_some()
            || parameterization.as_deref() == Some("v")
            || weights.shape(EDM_SIGMA_MAX).is_some();
        let prediction = if is_v { "v_prediction" } else { "epsilon" };
        // As ComfyUI has it: alone the mark means nothing.
        let zero_snr = weights.shape("v_pred").is_some() && weights.shape("ztsnr").is_some();
        let config = json!({"prediction_type": prediction, "rescale_betas_zero_snr": zero_snr});
        let config = infer::with_header(config, weights, "scheduler")?;
        let mut config = SchedulerConfig::from_value(&config, &self.shapes())?;
        if weights.shape(EDM_SIGMA_MAX).is_some() {
            let smallest = match weights.shape(EDM_SIGMA_MIN) {
                Some(_) => weights.number(EDM_SIGMA_MIN)?,
                None => 0.002,
            };
            config.edm_sigmas = Some((smallest, weights.number(EDM_SIGMA_MAX)?));
        }
        Ok(config)
    }

    /// What errors call the configuration that was read off the weights.
    fn shapes(&self) -> String {
        format!("the shapes in {}", self.path.display())
    }

    fn has_no(&self, what: &'static str) -> Error {
        Error::HasNo { path: self.path.clone(), kind: self.kind(), what }
    }
}

/// The noise levels of a network that was trained over all of them (CosXL), a number each.
const EDM_SIGMA_MAX: &str = "edm_vpred.sigma_max";
const EDM_SIGMA_MIN: &str = "edm_vpred.sigma_min";

/// Tensors whose names say how a network was trained.
const MARKS: [&str; 6] = ["v_pred", "ztsnr", EDM_SIGMA_MAX, EDM_SIGMA_MIN, "edm_mean", "edm_std"];

/// The model within a training checkpoint of torch, which keeps it under `state_dict`.
fn without_wrapping(weights: Weights) -> Weights {
    if !weights.has("state_dict") {
        return weights;
    }
    let model = weights.sub("state_dict");
    model.renamed(model.names().into_iter().map(|name| (name.clone(), name)))
}

/// A published half of TAESD under diffusers' names.
fn in_diffusers_names(weights: &Weights, half: Half) -> Weights {
    let pair = |name: String| (diffusers_name(half, &name).unwrap_or_else(|| name.clone()), name);
    weights.renamed(weights.names().into_iter().map(pair).collect::<Vec<_>>())
}

/// The picture half of a file of the whole of CLIP.
fn picture_half(weights: &Weights) -> Weights {
    let belongs = |name: &String| {
        name.starts_with("visual_projection.")
            || name.starts_with("vision_model.") && !name.ends_with("position_ids")
    };
    let names = weights.names().into_iter().filter(belongs);
    weights.renamed(names.map(|name| (name.clone(), name)).collect::<Vec<_>>())
}

/// The numbers of CLIP's configurations that sizes and loops are made of.
const CLIP_SIZES: [&str; 9] = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "image_size",
    "patch_size",
    "projection_dim",
];

fn not_for_us(path: &Path, what: String) -> Error {
    Error::NotThisKind { path: path.to_owned(), what }
}
