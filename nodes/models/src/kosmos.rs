//! Kosmos-G: pictures and text → the condition of Stable Diffusion.
//!
//! Pan et al., "Kosmos-G: Generating Images in Context with Multimodal Large Language Models", ICLR 2024 (arXiv 2310.02992):
//! vision transformer → connector → language model → aligner. Names are those of the released checkpoint.
//!
//! A folder holds `config.json`, `model.safetensors`, `sentencepiece.bpe.model` and `dict.txt`.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use crate::aligner::{Aligner, AlignerConfig, Reconstruction};
use crate::connector::{Connector, ConnectorConfig};
use crate::error::{Error, Result};
use crate::kosmos_tokens::{KosmosTokenizer, PAD};
use crate::mllm::{ImageTokens, Mllm, MllmConfig};
use crate::preprocess::PictureTransform;
use crate::vit::{Vit, VitConfig};
use crate::weights::Weights;

/// `config.json` of a Kosmos folder.
#[derive(Clone, Debug, Deserialize)]
pub struct KosmosConfig {
    pub model_type: ModelType,
    pub vision: VisionConfig,
    pub connector: ConnectorConfig,
    pub mllm: MllmConfig,
    pub aligner: AlignerConfig,
}

/// The one `model_type` that is read here.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub enum ModelType {
    #[serde(rename = "kosmos-g")]
    KosmosG,
}

/// `vision`: the transformer, and the pixels it takes.
#[derive(Clone, Debug, Deserialize)]
pub struct VisionConfig {
    #[serde(flatten)]
    pub vit: VitConfig,
    pub image_mean: [f64; 3],
    pub image_std: [f64; 3],
}

/// Tensors that checkpoints carry and the condition does not need: buffers, the second copy of the embedding, the fused attention
/// that `ts_attn` replaces, the decoder that this project reads from files of its own.
const TOLERATED: [&str; 8] = [
    "*.version",
    "gpt_model.decoder.embed_positions._float_tensor",
    "gpt_model.decoder.output_projection.weight",
    "gpt_model.decoder.self_attn_sope.scale",
    "img_model.visual.transformer.resblocks.*.attn.*",
    "aligner.clip_encoder.*",
    "diffusion_unet.*",
    "vae.*",
];

/// The model.
#[derive(Clone, Debug)]
pub struct KosmosG {
    img_model: Vit,
    img_connector: Connector,
    gpt_model: Mllm,
    aligner: Aligner,
    reconstruction: Option<Reconstruction>,
    image_tokens: usize,
}

impl KosmosG {
    /// Loads the tensors of a checkpoint. Its unused buffers are left alone; the reconstruction half is loaded where it is there.
    pub fn load(config: &KosmosConfig, weights: &Weights) -> Result<KosmosG> {
        let (vision, dim) = (&config.vision.vit, config.mllm.embed_dim);
        let aligner = weights.sub("aligner");
        let connector = weights.sub("img_connector");
        let reconstruction = if Reconstruction::is_in(&aligner) {
            Some(Reconstruction::load(&config.aligner, dim, &aligner)?)
        } else {
            None
        };
        let model = KosmosG {
            img_model: Vit::load(vision, &weights.sub("img_model.visual"))?,
            img_connector: Connector::load(&config.connector, vision.width, dim, &connector)?,
            gpt_model: Mllm::load(&config.mllm, &weights.sub("gpt_model.decoder"))?,
            aligner: Aligner::load(&config.aligner, dim, &aligner)?,
            reconstruction,
            image_tokens: config.connector.latent_query_num,
        };
        weights.finish(&TOLERATED)?;
        Ok(model)
    }

    /// How many tokens a picture becomes, Q.
    pub fn image_tokens(&self) -> usize {
        self.image_tokens
    }

    /// The aligner's reconstruction half, where the checkpoint has it.
    pub fn reconstruction(&self) -> Option<&Reconstruction> {
        self.reconstruction.as_ref()
    }

    /// N pictures as normalised pixels [N, 3, S, S] → their image tokens [N, Q, C].
    pub fn encode_images(&self, pixels: &Tensor) -> Result<Tensor> {
        self.img_connector.forward(&self.img_model.features(pixels)?)
    }

    /// Prompts [B, T] with their image tokens → hidden states [B, T, C].
    pub fn encode_tokens(&self, tokens: &Tensor, images: Option<&ImageTokens>) -> Result<Tensor> {
        self.gpt_model.forward(tokens, images)
    }

    /// Hidden states [B, T, C] of the prompts `tokens` [B, T] → the condition [B, 77, D].
    pub fn align(&self, hidden: &Tensor, tokens: &Tensor) -> Result<Tensor> {
        let padding = tokens.to_dtype(DType::U32)?.eq(PAD)?;
        let any = padding.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()? > 0;
        self.aligner.forward(hidden, any.then_some(&padding))
    }

    /// Everything at once, as the authors' `encode_condition`: prompts [B, T], image tokens, the negative prompt [1, Tn] and the number
    /// of pictures to draw for each prompt, n → [2·B·n, 77, D]: first B·n rows of the negative condition, then n times the B conditions.
    ///
    /// The empty negative prompt is `<s>` alone.
    pub fn encode_condition(
        &self,
        tokens: &Tensor,
        images: Option<&ImageTokens>,
        negative_tokens: &Tensor,
        num_images_per_prompt: usize,
    ) -> Result<Tensor> {
        let condition = self.align(&self.encode_tokens(tokens, images)?, tokens)?;
        let uncond = self.align(&self.encode_tokens(negative_tokens, None)?, negative_tokens)?;
        let batch = condition.dim(0)?;
        let uncond = uncond.repeat((batch * num_images_per_prompt, 1, 1))?;
        let condition = condition.repeat((num_images_per_prompt, 1, 1))?;
        Ok(Tensor::cat(&[&uncond, &condition], 0)?)
    }
}

/// A Kosmos folder: the model, and what turns text and pictures into its inputs.
#[derive(Debug)]
pub struct Kosmos {
    pub model: KosmosG,
    pub tokenizer: KosmosTokenizer,
    pub transform: PictureTransform,
    device: Device,
}

impl Kosmos {
    /// Reads a folder with `config.json`, `model.safetensors`, `sentencepiece.bpe.model` and `dict.txt`; the weights go to `device`.
    ///
    /// # Errors
    /// A file is missing or damaged, the weights do not fit the configuration, or the dictionary has more symbols than the model has
    /// embeddings.
    pub fn read(folder: &Path, device: &Device) -> Result<Kosmos> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|source| Error::Io { path: path.clone(), source })?;
        let malformed =
            |problem: String| Error::Config { file: path.display().to_string(), problem };
        let config: KosmosConfig =
            serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        let tokenizer = KosmosTokenizer::read(folder)?;
        let (symbols, rows) = (tokenizer.vocab_size(), config.mllm.vocab_size);
        if symbols > rows {
            return Err(malformed(format!(
                "mllm.vocab_size is {rows}, but dict.txt and the special symbols are {symbols} together"
            )));
        }
        let weights = Weights::open(&folder.join("model.safetensors"), device)?;
        let model = KosmosG::load(&config, &weights)?;
        let transform = PictureTransform {
            size: config.vision.vit.image_size,
            mean: config.vision.image_mean,
            std: config.vision.image_std,
        };
        Ok(Kosmos { model, tokenizer, transform, device: device.clone() })
    }

    /// Pictures [N, H, W, 3] in 0..1 → their image tokens [N, Q, C].
    ///
    /// # Errors
    /// The tensor has another shape, or no pixels.
    pub fn encode_images(&self, images: &Tensor) -> Result<Tensor> {
        self.model.encode_images(&self.transform.batch(images)?.to_device(&self.device)?)
    }

    /// A prompt and the image tokens [N, Q, C] of its N pictures, in the order of its marks → tokens [1, T] and hidden states [1, T, C].
    ///
    /// # Errors
    /// The prompt has more or fewer marks than there are pictures, or the tokens come from another model.
    pub fn interleave(
        &self,
        prompt: &str,
        image_tokens: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let pictures = image_tokens.map_or(Ok(0), |tokens| tokens.dim(0))?;
        let prompt = self.tokenizer.prompt(prompt, pictures, self.model.image_tokens())?;
        let images = match image_tokens {
            Some(features) => Some(ImageTokens {
                features: features.flatten_to(1)?,
                mask: row(prompt.image_mask.iter().map(|image| u8::from(*image)), &self.device)?,
            }),
            None => None,
        };
        let tokens = row(prompt.ids.iter().copied(), &self.device)?;
        let hidden = self.model.encode_tokens(&tokens, images.as_ref())?;
        Ok((tokens, hidden))
    }

    /// What a negative prompt is to the model: tokens [1, T] and hidden states [1, T, C]. Marks in it are plain text.
    pub fn negative(&self, prompt: &str) -> Result<(Tensor, Tensor)> {
        let tokens = row(self.tokenizer.negative(prompt), &self.device)?;
        let hidden = self.model.encode_tokens(&tokens, None)?;
        Ok((tokens, hidden))
    }
}

/// A batch of one row, [1, T].
fn row<D: candle_core::WithDType>(
    values: impl IntoIterator<Item = D>,
    device: &Device,
) -> Result<Tensor> {
    let values: Vec<D> = values.into_iter().collect();
    let length = values.len();
    Ok(Tensor::from_vec(values, (1, length), device)?)
}
