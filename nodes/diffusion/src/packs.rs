//! Nodes of packs that saved workflows know, which do what others here do.

use std::path::PathBuf;

use node::plain::{Number, Text, Whole};
use node::*;

use crate::control::{check_hint, with_control};
use crate::inpaint::InpaintModelConditioning;
use crate::latent::{EmptyLatentImage, VAEEncode, encoded};
use crate::upscale::UpscaleModelLoader;

/// What the last output of Comfyroll's nodes says.
fn help() -> Text {
    Text("kosmograph nodes says what this node does".to_owned())
}

/// A name and the width and the height that it stands for.
type Size = (&'static str, i64, i64);

/// What stands for the numbers that are given.
const CUSTOM: &str = "custom";

const SD15: [Size; 11] = [
    (CUSTOM, 0, 0),
    ("1:1 square 512x512", 512, 512),
    ("1:1 square 1024x1024", 1024, 1024),
    ("2:3 portrait 512x768", 512, 768),
    ("3:4 portrait 512x682", 512, 682),
    ("3:2 landscape 768x512", 768, 512),
    ("4:3 landscape 682x512", 682, 512),
    ("16:9 cinema 910x512", 910, 512),
    ("1.85:1 cinema 952x512", 952, 512),
    ("2:1 cinema 1024x512", 1024, 512),
    ("2.39:1 anamorphic 1224x512", 1224, 512),
];

const SDXL: [Size; 10] = [
    (CUSTOM, 0, 0),
    ("1:1 square 1024x1024", 1024, 1024),
    ("3:4 portrait 896x1152", 896, 1152),
    ("5:8 portrait 832x1216", 832, 1216),
    ("9:16 portrait 768x1344", 768, 1344),
    ("9:21 portrait 640x1536", 640, 1536),
    ("4:3 landscape 1152x896", 1152, 896),
    ("3:2 landscape 1216x832", 1216, 832),
    ("16:9 landscape 1344x768", 1344, 768),
    ("21:9 landscape 1536x640", 1536, 640),
];

const fn names<const N: usize>(sizes: &[Size; N]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut i = 0;
    while i < N {
        names[i] = sizes[i].0;
        i += 1;
    }
    names
}

const SD15_NAMES: [&str; 11] = names(&SD15);
const SDXL_NAMES: [&str; 10] = names(&SDXL);

/// A width, a height, and an empty latent for them.
fn sized(
    cx: &Context<'_>,
    sizes: &[Size],
    ((width, height), ratio, swap): ((i64, i64), &str, &str),
    batch_size: i64,
) -> Result<(Whole, Whole, Latent)> {
    let named = sizes.iter().find(|(name, ..)| *name == ratio && ratio != CUSTOM);
    let (width, height) = named.map_or((width, height), |&(_, width, height)| (width, height));
    let (width, height) = if swap == "On" { (height, width) } else { (width, height) };
    let latent = EmptyLatentImage { width, height, batch_size }.run(cx)?;
    Ok((Whole(width), Whole(height), latent))
}

/// A size by its proportions, for Stable Diffusion 1.5, and an empty latent of it.
#[derive(Inputs)]
#[node(class = "CR SD1.5 Aspect Ratio", category = "latent")]
pub struct CrSd15AspectRatio {
    /// In pixels, for custom.
    #[widget(default = 512, min = 64, max = 8192)]
    width: i64,
    /// In pixels, for custom.
    #[widget(default = 512, min = 64, max = 8192)]
    height: i64,
    /// custom takes width and height.
    #[widget(choices = SD15_NAMES, default = "custom")]
    aspect_ratio: String,
    /// Whether width and height change places.
    #[widget(choices = ["Off", "On"], default = "Off")]
    swap_dimensions: String,
    /// Passed on.
    #[widget(default = 1.0, min = 0.1, max = 100.0, step = 0.1)]
    upscale_factor: f64,
    /// Pictures that are made at once.
    #[widget(default = 1, min = 1, max = 64)]
    batch_size: i64,
}

impl Node for CrSd15AspectRatio {
    outputs![width: Whole, height: Whole, upscale_factor: Number, batch_size: Whole, empty_latent: Latent, show_help: Text];

    fn run(self, cx: &Context) -> Result<(Whole, Whole, Number, Whole, Latent, Text)> {
        let wanted =
            ((self.width, self.height), self.aspect_ratio.as_str(), self.swap_dimensions.as_str());
        let (width, height, latent) = sized(cx, &SD15, wanted, self.batch_size)?;
        let batch = Whole(self.batch_size);
        Ok((width, height, Number(self.upscale_factor), batch, latent, help()))
    }
}

/// A size by its proportions, for SDXL, and an empty latent of it.
#[derive(Inputs)]
#[node(class = "CR SDXL Aspect Ratio", category = "latent")]
pub struct CrSdxlAspectRatio {
    /// In pixels, for custom.
    #[widget(default = 1024, min = 64, max = 8192)]
    width: i64,
    /// In pixels, for custom.
    #[widget(default = 1024, min = 64, max = 8192)]
    height: i64,
    /// custom takes width and height.
    #[widget(choices = SDXL_NAMES, default = "custom")]
    aspect_ratio: String,
    /// Whether width and height change places.
    #[widget(choices = ["Off", "On"], default = "Off")]
    swap_dimensions: String,
    /// Passed on.
    #[widget(default = 1.0, min = 0.1, max = 100.0, step = 0.1)]
    upscale_factor: f64,
    /// Pictures that are made at once.
    #[widget(default = 1, min = 1, max = 64)]
    batch_size: i64,
}

impl Node for CrSdxlAspectRatio {
    outputs![width: Whole, height: Whole, upscale_factor: Number, batch_size: Whole, empty_latent: Latent, show_help: Text];

    fn run(self, cx: &Context) -> Result<(Whole, Whole, Number, Whole, Latent, Text)> {
        let wanted =
            ((self.width, self.height), self.aspect_ratio.as_str(), self.swap_dimensions.as_str());
        let (width, height, latent) = sized(cx, &SDXL, wanted, self.batch_size)?;
        let batch = Whole(self.batch_size);
        Ok((width, height, Number(self.upscale_factor), batch, latent, help()))
    }
}

/// Steers this conditioning by a hint picture, where it is switched on.
#[derive(Inputs)]
#[node(class = "CR Apply ControlNet", category = "conditioning/controlnet")]
pub struct CrApplyControlNet {
    /// What is steered.
    conditioning: Conditioning,
    /// The control network.
    control_net: node::ControlNet,
    /// The hint it was trained on: outlines, depth, a pose …
    image: Image,
    /// Off passes the conditioning on.
    #[widget(choices = ["On", "Off"], default = "On")]
    switch: String,
    /// How strongly it steers.
    #[widget(default = 1.0, min = 0.0, max = 10.0, step = 0.01)]
    strength: f64,
}

impl Node for CrApplyControlNet {
    outputs![CONDITIONING: Conditioning, show_help: Text];

    fn run(self, _cx: &Context) -> Result<(Conditioning, Text)> {
        if self.strength == 0.0 || self.switch == "Off" {
            return Ok((self.conditioning, help()));
        }
        check_hint(&self.image)?;
        let control = Control::new(self.control_net, self.image, self.strength, 0.0, 1.0, None);
        Ok((self.conditioning.map_entries(|entry| with_control(&entry, &control)), help()))
    }
}

/// Loads a network that makes pictures larger, as UpscaleModelLoader, and tells the file's name.
#[derive(Inputs)]
#[node(class = "Upscale Model Loader", category = "loaders", checked)]
pub struct WasUpscaleModelLoader {
    /// The file, of safetensors or of torch.
    #[file(folder = "upscale_models", entry = "file")]
    model_name: PathBuf,
}

impl Node for WasUpscaleModelLoader {
    outputs![UPSCALE_MODEL: UpscaleModel, MODEL_NAME_TEXT: Text];

    fn run(self, cx: &Context) -> Result<(UpscaleModel, Text)> {
        let name = self.model_name.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let model = UpscaleModelLoader { model_name: self.model_name }.run(cx)?;
        Ok((model, Text(name)))
    }
}

/// Encodes pictures to the likeliest latents, as VAEEncode does here, too.
#[derive(Inputs)]
#[node(category = "latent")]
pub struct VAEEncodeArgMax {
    /// What is encoded.
    pixels: Image,
    /// The autoencoder that encodes.
    vae: Vae,
}

impl Node for VAEEncodeArgMax {
    outputs![LATENT: Latent];

    fn run(self, cx: &Context) -> Result<Latent> {
        VAEEncode { pixels: self.pixels, vae: self.vae }.run(cx)
    }
}

/// As InpaintModelConditioning, with a latent of the picture that is grey where it is made anew, for Fooocus' inpainting, besides.
#[derive(Inputs)]
#[node(class = "INPAINT_VAEEncodeInpaintConditioning", category = "inpaint")]
pub struct VaeEncodeInpaintConditioning {
    /// What the picture should show.
    positive: Conditioning,
    /// What it should not.
    negative: Conditioning,
    /// The autoencoder that encodes.
    vae: Vae,
    /// The picture.
    pixels: Image,
    /// 1 where it is made anew.
    mask: Mask,
}

impl Node for VaeEncodeInpaintConditioning {
    outputs![positive: Conditioning, negative: Conditioning, latent_inpaint: Latent, latent_samples: Latent];

    fn run(self, cx: &Context) -> Result<(Conditioning, Conditioning, Latent, Latent)> {
        let (vae, noise_mask) = (self.vae.clone(), true);
        let inner = InpaintModelConditioning {
            positive: self.positive,
            negative: self.negative,
            vae: self.vae,
            pixels: self.pixels,
            mask: self.mask,
            noise_mask,
        };
        let (positive, negative, latent) = inner.run(cx)?;
        let entries = positive.entries();
        let grey = entries.first().and_then(|entry| entry.get("concat_latent")?.as_tensor());
        let grey =
            grey.ok_or_else(|| Error::new("the conditioning has no grey picture's latent"))?;
        let inpaint = encoded(cx, &vae, grey)?;
        let inpaint = match latent.noise_mask()? {
            Some(mask) => {
                let values = mask.0.to_f32()?.iter().map(|value| value.round_ties_even()).collect();
                inpaint.with_noise_mask(Mask(Tensor::from_f32(&mask.0.shape(), values)?))
            }
            None => inpaint,
        };
        Ok((positive, negative, inpaint, latent))
    }
}
