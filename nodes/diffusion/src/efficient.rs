//! Efficient Loader and KSampler (Efficient): a loader and a sampler with what usually stands beside them.

use std::path::PathBuf;

use kosmograph_models::samplers::{self, sigmas};
use node::*;

use crate::latent::{EmptyLatentImage, VAEDecode};
use crate::latent_tiled::VAEDecodeTiled;
use crate::loaders::{CheckpointLoaderSimple, VAELoader};
use crate::lora::LoraLoader;
use crate::lora_stack::LoraStack;
use crate::missing_part::MissingVae;
use crate::sample::KSampler;
use crate::text::{CLIPSetLastLayer, CLIPTextEncode};

/// What scripts ask of the loader: nothing here runs one.
pub struct Dependencies(Value);

impl Socket for Dependencies {
    const TYPE: &'static str = "DEPENDENCIES";

    fn from_value(value: Value) -> Result<Self> {
        Ok(Self(value))
    }

    fn into_value(self) -> Value {
        self.0
    }
}

/// Loads a checkpoint, with another VAE and a LoRA if one is named, encodes both texts and makes an empty latent.
#[derive(Inputs)]
#[node(
    class = "Efficient Loader",
    category = "loaders",
    memory = [0.25, empty_latent_width, empty_latent_height, batch_size]
)]
pub struct EfficientLoader {
    /// The checkpoint.
    #[file(folder = "checkpoints", entry = "any")]
    ckpt_name: PathBuf,
    /// Another VAE than the checkpoint's.
    #[file(folder = "vae", entry = "any", none = "Baked VAE", default = "Baked VAE")]
    vae_name: Option<PathBuf>,
    /// The layer of CLIP that texts are taken from, counted from the end.
    #[widget(default = -1, min = -24, max = -1, step = 1)]
    clip_skip: i64,
    /// A LoRA.
    #[file(folder = "loras", entry = "file", none = "None", default = "None")]
    lora_name: Option<PathBuf>,
    /// How strongly it changes the U-Net.
    #[widget(default = 1.0, min = -10.0, max = 10.0, step = 0.01)]
    lora_model_strength: f64,
    /// How strongly it changes CLIP.
    #[widget(default = 1.0, min = -10.0, max = 10.0, step = 0.01)]
    lora_clip_strength: f64,
    /// What the picture should show.
    #[widget(multiline, default = "CLIP_POSITIVE", mentions = "embeddings")]
    positive: String,
    /// What it should not.
    #[widget(multiline, default = "CLIP_NEGATIVE", mentions = "embeddings")]
    negative: String,
    /// How the weights of words are brought to a mean; none is ComfyUI's own, and the only one here.
    #[widget(choices = ["none", "mean", "length", "length+mean"], default = "none")]
    token_normalization: Option<String>,
    /// What the weight of a word means; comfy is ComfyUI's own, and the only one here.
    #[widget(choices = ["comfy", "A1111", "compel", "comfy++", "down_weight"], default = "comfy")]
    weight_interpretation: Option<String>,
    /// Width of the picture in pixels.
    #[widget(default = 512, min = 64, max = 16384, step = 64)]
    empty_latent_width: i64,
    /// Height of the picture in pixels.
    #[widget(default = 512, min = 64, max = 16384, step = 64)]
    empty_latent_height: i64,
    /// Pictures that are made at once.
    #[widget(default = 1, min = 1, max = 4096)]
    batch_size: i64,
    /// More LoRAs.
    lora_stack: Option<LoraStack>,
}

impl Node for EfficientLoader {
    outputs![
        MODEL: Model, positive: Conditioning, negative: Conditioning, LATENT: Latent, VAE: Vae, CLIP: Clip,
        DEPENDENCIES: Dependencies
    ];

    fn run(
        self,
        cx: &Context,
    ) -> Result<(Model, Conditioning, Conditioning, Latent, Vae, Clip, Dependencies)> {
        for (name, given, only) in [
            ("token_normalization", &self.token_normalization, "none"),
            ("weight_interpretation", &self.weight_interpretation, "comfy"),
        ] {
            if let Some(other) = given.as_deref().filter(|given| *given != only) {
                let sentence = format!(
                    "words are weighed as ComfyUI does; {only} would be right, not {other}"
                );
                return Err(Error::at(name, sentence));
            }
        }
        let (mut model, mut clip, mut vae) =
            CheckpointLoaderSimple { ckpt_name: self.ckpt_name }.run(cx)?;
        if let Some(vae_name) = self.vae_name {
            vae = VAELoader { vae_name }.run(cx)?;
        }
        if let Some(lora_name) = self.lora_name {
            let (strength_model, strength_clip) =
                (self.lora_model_strength, self.lora_clip_strength);
            let lora = LoraLoader { model, clip, lora_name, strength_model, strength_clip };
            (model, clip) = lora.run(cx)?;
        }
        if let Some(stack) = self.lora_stack {
            (model, clip) = stack.put_on(cx, model, clip)?;
        }
        let clip = CLIPSetLastLayer { clip, stop_at_clip_layer: self.clip_skip }.run(cx)?;
        let encoded = |text: String| CLIPTextEncode { text, clip: clip.clone() }.run(cx);
        let (positive, negative) = (encoded(self.positive)?, encoded(self.negative)?);
        let (width, height) = (self.empty_latent_width, self.empty_latent_height);
        let latent = EmptyLatentImage { width, height, batch_size: self.batch_size }.run(cx)?;
        let dependencies = Dependencies(Value::map([] as [(&str, Value); 0]));
        Ok((model, positive, negative, latent, vae, clip, dependencies))
    }
}

/// The ways to a picture at the end of a sampling.
const DECODES: [&str; 5] = ["true", "true (tiled)", "false", "output only", "output only (tiled)"];

/// As KSampler, and decodes what it made.
#[derive(Inputs)]
#[node(class = "KSampler (Efficient)", category = "sampling")]
pub struct KSamplerEfficient {
    /// What denoises.
    model: Model,
    /// What the noise is drawn from; the same seed gives the same noise as in ComfyUI on the CPU.
    #[widget(seed, default = 0)]
    seed: u64,
    /// Steps from noise to picture.
    #[widget(default = 20, min = 1, max = 10000)]
    steps: i64,
    /// Guidance: how much more the positive conditioning counts than the negative; 1 is none.
    #[widget(default = 7.0, min = 0.0, max = 100.0, step = 0.1)]
    cfg: f64,
    /// How each step is taken.
    #[widget(choices = samplers::NAMES, default = "euler")]
    sampler_name: String,
    /// How the noise falls over the steps.
    #[widget(choices = sigmas::NAMES, default = "normal")]
    scheduler: String,
    /// What the picture should show.
    positive: Conditioning,
    /// What it should not.
    negative: Conditioning,
    /// What is denoised: an empty latent, or a picture's.
    latent_image: Latent,
    /// How much of the schedule is run: below 1, the picture keeps some of `latent_image`.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    denoise: f64,
    /// Not used: previews are --previews' and the server's.
    #[widget(
        choices = ["auto", "latent2rgb", "taesd", "vae_decoded_only", "none"],
        default = "auto"
    )]
    preview_method: Option<String>,
    /// Whether the picture is decoded, in tiles or at once; false gives a single black pixel in its place.
    #[widget(choices = DECODES, default = "true")]
    vae_decode: Option<String>,
    /// The autoencoder that decodes.
    optional_vae: Option<Vae>,
}

impl Node for KSamplerEfficient {
    outputs![
        MODEL: Model, positive: Conditioning, negative: Conditioning, LATENT: Latent, VAE: Vae, IMAGE: Image
    ];

    fn run(self, cx: &Context) -> Result<(Model, Conditioning, Conditioning, Latent, Vae, Image)> {
        let _ = self.preview_method;
        let decode = self.vae_decode.as_deref().unwrap_or(DECODES[0]);
        if decode != "false" && self.optional_vae.is_none() {
            return Err(Error::at(
                "optional_vae",
                format!("is wanted where vae_decode is \"{decode}\"; \"false\" decodes nothing"),
            ));
        }
        let latent = KSampler {
            model: self.model.clone(),
            seed: self.seed,
            steps: self.steps,
            cfg: self.cfg,
            sampler_name: self.sampler_name,
            scheduler: self.scheduler,
            positive: self.positive.clone(),
            negative: self.negative.clone(),
            latent_image: self.latent_image,
            denoise: self.denoise,
        }
        .run(cx)?;
        let (samples, vae) = (latent.clone(), self.optional_vae);
        let (vae, image) = match (vae, decode) {
            (Some(vae), "true" | "output only") => {
                (vae.clone(), VAEDecode { samples, vae }.run(cx)?)
            }
            (Some(vae), "true (tiled)" | "output only (tiled)") => {
                (vae.clone(), VAEDecodeTiled::of(samples, vae).run(cx)?)
            }
            (vae, _) => {
                let sentence = "this sampler was given no VAE".to_owned();
                let vae = vae.unwrap_or_else(|| Vae(Object::new(MissingVae { sentence })));
                (vae, Image(Tensor::from_f32(&[1, 1, 1, 3], vec![0.0; 3])?))
            }
        };
        Ok((self.model, self.positive, self.negative, latent, vae, image))
    }
}
