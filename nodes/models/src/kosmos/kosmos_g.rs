//! The whole model: vision transformer → connector → language model → aligner. Names are those of the
//! released checkpoint. A folder holds `config.json`, `model.safetensors`, `sentencepiece.bpe.model` and `dict.txt`.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::files::diffusers_config::check_sizes;
use crate::files::resident::Resident;
use crate::files::weights::{Weights, matches};
use crate::kosmos::aligner::{Aligner, AlignerConfig, Reconstruction};
use crate::kosmos::connector::{Connector, ConnectorConfig};
use crate::kosmos::mllm::{ImageTokens, Mllm, MllmConfig};
use crate::kosmos::preprocess::PictureTransform;
use crate::kosmos::vit::{Vit, VitConfig};
use crate::text::kosmos_tokens::{KosmosTokenizer, PAD};

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

/// The numbers of `config.json` that sizes and loops are made of.
const SIZES: [&str; 14] = [
    "image_size",
    "patch_size",
    "width",
    "layers",
    "heads",
    "latent_query_num",
    "vocab_size",
    "embed_dim",
    "ffn_dim",
    "dim",
    "encoder_layers",
    "decoder_layers",
    "max_positions",
    "queries",
];

/// The parts that make a condition.
const PARTS: [&str; 4] = ["gpt_model.*", "img_model.*", "img_connector.*", "aligner.*"];

/// Tensors that checkpoints carry among the parts and the condition does not need: buffers, the second copy of the
/// embedding, the fused attention that `ts_attn` replaces, the text encoder that the aligner was trained against.
const UNUSED: [&str; 6] = [
    "*.version",
    "gpt_model.decoder.embed_positions._float_tensor",
    "gpt_model.decoder.output_projection.weight",
    "gpt_model.decoder.self_attn_sope.scale",
    "img_model.visual.transformer.resblocks.*.attn.*",
    "aligner.clip_encoder.*",
];

/// The decoder that this project reads from files of its own.
const DECODER: [&str; 2] = ["diffusion_unet.*", "vae.*"];

/// Whether the condition needs the tensor of that name.
pub(crate) fn is_needed(name: &str) -> bool {
    let is_one = |patterns: &[&str]| patterns.iter().any(|pattern| matches(pattern, name));
    is_one(&PARTS) && !is_one(&UNUSED)
}

/// Pictures to image tokens: the vision transformer and the connector.
struct Vision {
    img_model: Vit,
    img_connector: Connector,
}

impl Vision {
    fn load(config: &KosmosConfig, weights: &Weights) -> Result<Vision> {
        let (vision, dim) = (&config.vision.vit, config.mllm.embed_dim);
        let connector = weights.sub("img_connector");
        Ok(Vision {
            img_model: Vit::load(vision, &weights.sub("img_model.visual"))?,
            img_connector: Connector::load(&config.connector, vision.width, dim, &connector)?,
        })
    }
}

/// The model, in parts that come into memory when they are first used: whoever reads text alone
/// never has the vision transformer.
pub struct KosmosG {
    vision: Resident<Vision>,
    gpt_model: Resident<Mllm>,
    aligner: Resident<Aligner>,
    reconstruction: Option<Resident<Reconstruction>>,
    image_tokens: usize,
}

impl KosmosG {
    /// The model of a checkpoint's tensors, whose names and shapes are checked now and whose numbers
    /// are read when they are first needed. Its unused buffers are left alone; the reconstruction half
    /// is there where the checkpoint has it.
    ///
    /// # Errors
    /// A tensor is missing, has another shape, or is none of this model's.
    pub fn load(config: &KosmosConfig, weights: &Weights) -> Result<KosmosG> {
        let vision = |config: &KosmosConfig, weights: &Weights| Vision::load(config, weights);
        let gpt_model = |config: &KosmosConfig, weights: &Weights| {
            Mllm::load(&config.mllm, &weights.sub("gpt_model.decoder"))
        };
        let aligner = |config: &KosmosConfig, weights: &Weights| {
            Aligner::load(&config.aligner, config.mllm.embed_dim, &weights.sub("aligner"))
        };
        let reconstruction = |config: &KosmosConfig, weights: &Weights| {
            Reconstruction::load(&config.aligner, config.mllm.embed_dim, &weights.sub("aligner"))
        };
        let both_halves = Reconstruction::is_in(&weights.sub("aligner"));
        let whole = |weights: &Weights| {
            vision(config, weights)?;
            gpt_model(config, weights)?;
            aligner(config, weights)?;
            if both_halves {
                reconstruction(config, weights)?;
            }
            Ok(())
        };
        weights.check(whole, &[&UNUSED[..], &DECODER].concat())?;
        Ok(KosmosG {
            vision: part(config, weights, vision)?,
            gpt_model: part(config, weights, gpt_model)?,
            aligner: part(config, weights, aligner)?,
            reconstruction: match both_halves {
                true => Some(part(config, weights, reconstruction)?),
                false => None,
            },
            image_tokens: config.connector.latent_query_num,
        })
    }

    /// How many tokens a picture becomes, Q.
    pub fn image_tokens(&self) -> usize {
        self.image_tokens
    }

    /// The aligner's reconstruction half, where the checkpoint has it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn reconstruction(&self) -> Result<Option<Arc<Reconstruction>>> {
        self.reconstruction.as_ref().map(Resident::get).transpose()
    }

    /// Bytes in memory now.
    pub fn held(&self) -> usize {
        let back = self.reconstruction.as_ref().map_or(0, Resident::held);
        self.vision.held() + self.gpt_model.held() + self.aligner.held() + back
    }

    /// Bytes in memory when all that makes a condition is there.
    pub fn bytes(&self) -> usize {
        self.vision.bytes() + self.gpt_model.bytes() + self.aligner.bytes()
    }

    /// Lets every part go, to be read again when it is needed.
    pub fn release(&self) {
        self.vision.release();
        self.gpt_model.release();
        self.aligner.release();
        if let Some(reconstruction) = &self.reconstruction {
            reconstruction.release();
        }
    }

    /// N pictures as normalised pixels [N, 3, S, S] → their image tokens [N, Q, C].
    pub fn encode_images(&self, pixels: &Tensor) -> Result<Tensor> {
        let vision = self.vision.get()?;
        vision.img_connector.forward(&vision.img_model.features(pixels)?)
    }

    /// Prompts [B, T] with their image tokens → hidden states [B, T, C].
    pub fn encode_tokens(&self, tokens: &Tensor, images: Option<&ImageTokens>) -> Result<Tensor> {
        self.gpt_model.get()?.forward(tokens, images)
    }

    /// Hidden states [B, T, C] of the prompts `tokens` [B, T] → the condition [B, 77, D].
    pub fn align(&self, hidden: &Tensor, tokens: &Tensor) -> Result<Tensor> {
        let padding = tokens.to_dtype(DType::U32)?.eq(PAD)?;
        self.align_masked(hidden, &padding)
    }

    /// [`Self::align`] with `padding` [B, T], nonzero where the aligner is not to look.
    pub fn align_masked(&self, hidden: &Tensor, padding: &Tensor) -> Result<Tensor> {
        let any = padding.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()? > 0;
        self.aligner.get()?.forward(hidden, any.then_some(padding))
    }

    /// Everything at once, as the authors' `encode_condition`: prompts [B, T], image tokens, the
    /// negative prompt [1, Tn] and the number of pictures to draw for each prompt, n → [2·B·n, 77,
    /// D]: first B·n rows of the negative condition, then n times the B conditions.
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

/// A part of the model, read with `load` when it is first needed. The whole file was checked before.
fn part<N>(
    config: &KosmosConfig,
    weights: &Weights,
    load: impl Fn(&KosmosConfig, &Weights) -> Result<N> + Send + Sync + 'static,
) -> Result<Resident<N>> {
    let config = config.clone();
    Resident::open(weights.clone(), &["*"], move |weights| load(&config, weights))
}

impl std::fmt::Debug for KosmosG {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KosmosG({} of {} bytes in memory)", self.held(), self.bytes())
    }
}

/// A Kosmos folder: the model, and what turns text and pictures into its inputs.
#[derive(Debug)]
pub struct Kosmos {
    pub model: KosmosG,
    pub tokenizer: KosmosTokenizer,
    pub transform: PictureTransform,
    pub config: KosmosConfig,
    device: Device,
}

impl Kosmos {
    /// Opens a folder with `config.json`, `model.safetensors` (or its shards and their index),
    /// `sentencepiece.bpe.model` and `dict.txt`; the weights go to `device` when they are needed.
    ///
    /// # Errors
    /// A file is missing or damaged, the weights do not fit the configuration, or the dictionary
    /// has more symbols than the model has embeddings.
    pub fn read(folder: &Path, device: &Device) -> Result<Kosmos> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|source| Error::Io { path: path.clone(), source })?;
        let malformed =
            |problem: String| Error::Config { file: path.display().to_string(), problem };
        let config: Value =
            serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        check_sizes(&config, &SIZES, &path.display().to_string())?;
        let config: KosmosConfig =
            serde_json::from_value(config).map_err(|error| malformed(error.to_string()))?;
        let tokenizer = KosmosTokenizer::read(folder)?;
        let (symbols, rows) = (tokenizer.vocab_size(), config.mllm.vocab_size);
        if symbols > rows {
            return Err(malformed(format!(
                "mllm.vocab_size is {rows}, but dict.txt and the special symbols are {symbols} together"
            )));
        }
        let weights = Weights::open(folder, device)?;
        let model = KosmosG::load(&config, &weights)?;
        let transform = PictureTransform {
            size: config.vision.vit.image_size,
            mean: config.vision.image_mean,
            std: config.vision.image_std,
        };
        Ok(Kosmos { model, tokenizer, transform, config, device: device.clone() })
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Pictures [N, H, W, 3] in 0..1 → their image tokens [N, Q, C].
    ///
    /// # Errors
    /// The tensor has another shape, or no pixels.
    pub fn encode_images(&self, images: &Tensor) -> Result<Tensor> {
        self.model.encode_images(&self.transform.batch(images)?.to_device(&self.device)?)
    }

    /// A prompt and the image tokens [N, Q, C] of its N pictures, in the order of its marks →
    /// tokens [1, T] and hidden states [1, T, C].
    ///
    /// # Errors
    /// The prompt has more or fewer marks than there are pictures, or the tokens come from another
    /// model.
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

    /// What a negative prompt is to the model: tokens [1, T] and hidden states [1, T, C]. Marks in
    /// it are plain text.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::sentencepiece::test_model;
    use std::collections::HashMap;

    const CONFIG: &str = r#"{
        "model_type": "kosmos-g",
        "vision": {"image_size": 4, "patch_size": 2, "width": 6, "layers": 1, "heads": 2,
            "mlp_ratio": 2.0, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
        "connector": {"latent_query_num": 3, "heads": 4},
        "mllm": {"vocab_size": 20, "embed_dim": 8, "layers": 1, "heads": 4, "ffn_dim": 8,
            "layer_norm_eps": 1e-5},
        "aligner": {"dim": 4, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "ffn_dim": 8,
            "max_positions": 64, "queries": 5, "layer_norm_eps": 1e-5}
    }"#;

    /// The tensors of [`CONFIG`], all of small numbers that differ, without the reconstruction
    /// half.
    fn tensors() -> Result<HashMap<String, Tensor>> {
        let config: KosmosConfig = serde_json::from_str(CONFIG).expect("a valid configuration");
        let recording = Weights::recording();
        KosmosG::load(&config, &recording)?;
        let wanted = recording.recorded().into_iter();
        wanted
            .filter(|(name, _)| !name.starts_with("aligner.decoder"))
            .map(|(name, shape)| {
                let values =
                    (0..shape.iter().product::<usize>()).map(|i| (i % 7) as f32 / 7.0 - 0.4);
                let tensor = Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu)?;
                Ok((name, tensor))
            })
            .collect()
    }

    fn folder(tensors: &HashMap<String, Tensor>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(folder.path().join(name), bytes).expect("written");
        };
        write("config.json", CONFIG.as_bytes());
        write("sentencepiece.bpe.model", &test_model(&[("▁", -3.0), ("▁a", -1.0), ("▁dog", -1.0)]));
        write("dict.txt", "▁a 1\n▁dog 1\n".as_bytes());
        let path = folder.path().join("model.safetensors");
        candle_core::safetensors::save(tensors, path).expect("saved");
        folder
    }

    fn read(folder: &tempfile::TempDir) -> Result<Kosmos> {
        Kosmos::read(folder.path(), &Device::Cpu)
    }

    #[test]
    fn a_folder_turns_pictures_and_text_into_a_condition() -> Result<()> {
        let mut tensors = tensors()?;
        // A buffer that checkpoints carry.
        let buffer = Tensor::zeros(4, DType::F32, &Device::Cpu)?;
        tensors.insert("gpt_model.decoder.self_attn_sope.scale".to_owned(), buffer);
        let kosmos = read(&folder(&tensors))?;
        assert!(kosmos.model.reconstruction()?.is_none());
        assert_eq!(kosmos.model.held(), 0);

        let pictures = Tensor::rand(0f32, 1.0, (2, 5, 6, 3), &Device::Cpu)?;
        let image_tokens = kosmos.encode_images(&pictures)?;
        assert_eq!(image_tokens.dims(), [2, 3, 8]);
        let (tokens, hidden) = kosmos.interleave("a <i> dog <i>", Some(&image_tokens))?;
        assert_eq!(tokens.dims(), [1, 3 + 2 * 5]);
        assert_eq!(hidden.dims(), [1, 3 + 2 * 5, 8]);
        assert_eq!(kosmos.model.align(&hidden, &tokens)?.dims(), [1, 5, 4]);
        let (tokens, hidden) = kosmos.negative("")?;
        assert_eq!((tokens.dims(), hidden.dims()), (&[1, 1][..], &[1, 1, 8][..]));
        Ok(())
    }

    #[test]
    fn parts_come_into_memory_when_they_are_used_and_go_when_told() -> Result<()> {
        let kosmos = read(&folder(&tensors()?))?;
        let model = &kosmos.model;
        let (tokens, hidden) = kosmos.interleave("a dog", None)?;
        let language = model.held();
        assert!(language > 0 && language < model.bytes());
        let condition = model.align(&hidden, &tokens)?.flatten_all()?.to_vec1::<f32>()?;
        kosmos.encode_images(&Tensor::rand(0f32, 1.0, (1, 4, 4, 3), &Device::Cpu)?)?;
        let numbers: usize = tensors()?.values().map(Tensor::elem_count).sum();
        assert_eq!((model.held(), model.bytes()), (4 * numbers, 4 * numbers));
        model.release();
        assert_eq!(model.held(), 0);
        let (tokens, hidden) = kosmos.interleave("a dog", None)?;
        let again = model.align(&hidden, &tokens)?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(again, condition);
        Ok(())
    }

    #[test]
    fn marks_without_pictures_are_an_error() -> Result<()> {
        let kosmos = read(&folder(&tensors()?))?;
        let error = kosmos.interleave("a <i>", None).unwrap_err().to_string();
        assert!(error.contains("1 <i> mark, but 0 pictures are connected"), "{error}");
        let other = Tensor::zeros((1, 4, 8), DType::F32, &Device::Cpu)?;
        let error = kosmos.interleave("<i>", Some(&other)).unwrap_err().to_string();
        assert!(error.contains("places for 3 image tokens, but the pictures give 4"), "{error}");
        Ok(())
    }

    #[test]
    fn a_prompt_longer_than_the_positions_is_an_error() -> Result<()> {
        let kosmos = read(&folder(&tensors()?))?;
        let (tokens, hidden) = kosmos.interleave(&"a ".repeat(100), None)?;
        let error = kosmos.model.align(&hidden, &tokens).unwrap_err().to_string();
        assert!(error.contains("101 tokens") && error.contains("positions for 62"), "{error}");
        Ok(())
    }

    #[test]
    fn a_folder_that_is_wrong_is_named() -> Result<()> {
        let said = |folder: &tempfile::TempDir| read(folder).unwrap_err().to_string();
        let mut extra = tensors()?;
        extra.insert("aligner.other".to_owned(), Tensor::zeros(1, DType::F32, &Device::Cpu)?);
        let error = said(&folder(&extra));
        assert!(error.contains("`aligner.other`"), "{error}");

        let mut missing = tensors()?;
        missing.remove("img_connector.latent_query");
        let error = said(&folder(&missing));
        assert!(error.contains("`img_connector.latent_query`"), "{error}");

        let right = folder(&tensors()?);
        let small = CONFIG.replace("\"vocab_size\": 20", "\"vocab_size\": 11");
        std::fs::write(right.path().join("config.json"), small).expect("written");
        let error = said(&right);
        assert!(error.contains("vocab_size is 11") && error.contains("are 12"), "{error}");

        let other = CONFIG.replace("kosmos-g", "kosmos-2");
        std::fs::write(right.path().join("config.json"), other).expect("written");
        let error = said(&right);
        assert!(error.contains("config.json") && error.contains("`kosmos-g`"), "{error}");

        std::fs::remove_file(right.path().join("config.json")).expect("removed");
        let error = said(&right);
        assert!(error.contains("cannot read") && error.contains("config.json"), "{error}");
        Ok(())
    }
}
