//! Kosmos-G: its parts, the whole chain, its tokens and its picture transform.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::Tensor;
use kosmograph_models::Weights;
use kosmograph_models::kosmos::aligner::{
    Aligner, AlignerConfig, Reconstruction, alignment_loss, reconstruction_loss,
};
use kosmograph_models::kosmos::connector::{Connector, ConnectorConfig};
use kosmograph_models::kosmos::mllm::{ImageTokens, Mllm, MllmConfig};
use kosmograph_models::kosmos::preprocess::{PictureTransform, resize_and_crop};
use kosmograph_models::kosmos::vit::{Vit, VitConfig};
use kosmograph_models::kosmos::{KosmosConfig, KosmosG};
use kosmograph_models::text::kosmos_tokens::KosmosTokenizer;
use kosmograph_models::text::sentencepiece::Sentencepiece;
use kosmograph_pixels::pillow::{Filter, Picture};
use serde_json::{Value, json};

use crate::case::{Case, read_json, read_tensors, scaled_weights};

/// Reads a configuration that is put together from a case's own keys.
fn config<T: serde::de::DeserializeOwned>(value: Value) -> Result<T> {
    Ok(serde_json::from_value(value)?)
}

fn load_vit(config: &Value, weights: &Weights) -> Result<Vit> {
    let config: VitConfig = self::config(config.clone())?;
    Ok(Vit::load(&config, &weights.sub("visual"))?)
}

pub fn load_gpt(config: &Value, weights: &Weights) -> Result<Mllm> {
    let config: MllmConfig = self::config(json!({
        "vocab_size": config["vocab"], "embed_dim": config["dim"], "layers": config["layers"],
        "heads": config["heads"], "ffn_dim": config["ffn"], "layer_norm_eps": 1e-5,
    }))?;
    Ok(Mllm::load(&config, &weights.sub("decoder"))?)
}

/// The aligner's configuration and the width of the hidden states it takes.
pub fn aligner_config(config: &Value) -> Result<(AlignerConfig, usize)> {
    let width = config["gpt_dim"].as_u64().context("config.json has no gpt_dim")?;
    let config = self::config(json!({
        "dim": config["dim"], "encoder_layers": config["encoder_layers"],
        "decoder_layers": config["decoder_layers"], "heads": config["heads"],
        "ffn_dim": config["ffn"], "max_positions": config["max_positions"],
        "queries": config["queries"], "layer_norm_eps": config["ln_eps"],
    }))?;
    Ok((config, width as usize))
}

/// [B, T, C] ⇄ [T, B, C].
fn swap(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.transpose(0, 1)?.contiguous()?)
}

pub fn vit(case: &mut Case) -> Result<()> {
    let weights = case.weights()?;
    let model = load_vit(&case.config, &weights)?;
    weights.finish(&["visual.transformer.resblocks.*.attn.*"])?;
    let pixels = case.input("pixels")?;
    for (index, state) in model.hidden_states(&pixels)?.iter().enumerate() {
        match index {
            0 => case.check("ln_pre_BTC", state)?,
            block => case.check(&format!("resblock{}_TBC", block - 1), &swap(state)?)?,
        }
    }
    case.check("visual_TBC", &swap(&model.forward(&pixels)?)?)?;
    case.check("features_l2norm_TBC", &swap(&model.features(&pixels)?)?)
}

pub fn connector(case: &mut Case) -> Result<()> {
    let (input, output) = (case.size("in_dim")?, case.size("out_dim")?);
    let (batch, tokens) = (case.size("batch")?, case.size("src_len")?);
    let config: ConnectorConfig = config(case.config.clone())?;
    let weights = case.weights()?;
    let model = Connector::load(&config, input, output, &weights)?;
    weights.finish(&[])?;
    let features = case.input("features")?.reshape((batch, tokens, input))?;
    case.check("out", &model.forward(&features)?.flatten_to(1)?)
}

pub fn gpt_decoder(case: &mut Case) -> Result<()> {
    let weights = case.weights()?;
    let model = load_gpt(&case.config, &weights)?;
    weights.finish(&["*._float_tensor", "*.scale", "decoder.output_projection.weight"])?;
    for name in case.inputs() {
        let Some(prompt) = name.strip_suffix(".tokens") else {
            continue;
        };
        let tokens = case.input(&name)?;
        let images = if case.has_input(&format!("{prompt}.img_mask")) {
            let features = case.input(&format!("{prompt}.img_features"))?;
            Some(ImageTokens { features, mask: case.input(&format!("{prompt}.img_mask"))? })
        } else {
            None
        };
        let images = images.as_ref();
        case.check(&format!("{prompt}.embed_BTC"), &model.embed(&tokens, images)?)?;
        let hidden = model.forward(&tokens, images)?;
        case.check(&format!("{prompt}.hidden_TBC"), &swap(&hidden)?)?;
        for (index, state) in model.hidden_states(&tokens, images)?.iter().enumerate() {
            let key = format!("{prompt}.layer{index}_TBC");
            if case.expects(&key) {
                case.check(&key, &swap(state)?)?;
            }
        }
        let key = format!("{prompt}.logits_BTV");
        if case.expects(&key) {
            case.check(&key, &model.logits(&hidden)?)?;
        }
    }
    Ok(())
}

pub fn aligner(case: &mut Case) -> Result<()> {
    let (config, width) = aligner_config(&case.config)?;
    let weights = case.weights()?;
    let model = Aligner::load(&config, width, &weights)?;
    let back = Reconstruction::load(&config, width, &weights)?;
    weights.finish(&[])?;
    let condition = case.input("condition")?;
    let target = case.input("clip_target")?;
    let length = condition.dim(1)?;
    for (name, padding) in [("nopad", None), ("pad", Some(case.input("padding_mask")?))] {
        let padding = padding.as_ref();
        let projected = model.project(&condition, padding)?;
        case.check(&format!("{name}.encoder_proj_TBC"), &swap(&projected)?)?;
        let embedding = model.forward(&condition, padding)?;
        case.check(&format!("{name}.aligner_encoder_BQC"), &embedding)?;
        let loss = alignment_loss(&embedding, &target)?.reshape(1)?;
        case.check(&format!("{name}.mse_loss"), &loss)?;
        let decoded = back.decode(&embedding, length)?;
        case.check(&format!("{name}.decoder_BTC"), &decoded)?;
        let reconstructed = back.project(&decoded)?;
        case.check(&format!("{name}.reconstruction_BTC"), &reconstructed)?;
        let loss = reconstruction_loss(&reconstructed, &condition, config.queries)?.reshape(1)?;
        case.check(&format!("{name}.rec_loss"), &loss)?;
    }
    let null = model.forward(&case.input("null_condition")?, None)?;
    case.check("null_single_token.aligner_encoder_BQC", &null)
}

pub fn eps_probe(case: &mut Case) -> Result<()> {
    for name in ["vit", "gpt_decoder", "aligner"] {
        let folder = case.folder.join("..").join(name);
        let probe = &case.config["cases"][name];
        let file = probe["weights_from"].as_str().context("weights_from is missing")?;
        let weights = scaled_weights(&case.file(file), &probe["scaled_keys"])?;
        let config = read_json(&folder.join("config.json"))?;
        let inputs = read_tensors(&folder.join("inputs.safetensors"))?;
        let input = |name: &str| inputs.get(name).context("an input of the named case is missing");
        match name {
            "vit" => {
                let tokens = load_vit(&config, &weights)?.forward(input("pixels")?)?;
                case.check("vit.visual_TBC", &swap(&tokens)?)?;
            }
            "gpt_decoder" => {
                let tokens = case.input("gpt_decoder.tokens")?;
                let hidden = load_gpt(&config, &weights)?.forward(&tokens, None)?;
                case.check("gpt_decoder.hidden_TBC", &swap(&hidden)?)?;
            }
            _ => {
                let (config, width) = aligner_config(&config)?;
                let model = Aligner::load(&config, width, &weights)?;
                let back = Reconstruction::load(&config, width, &weights)?;
                let condition = input("condition")?;
                let projected = model.project(condition, None)?;
                case.check("aligner.encoder_proj_TBC", &swap(&projected)?)?;
                let embedding = model.forward(condition, None)?;
                case.check("aligner.aligner_encoder_BQC", &embedding)?;
                let decoded = back.decode(&embedding, condition.dim(1)?)?;
                case.check("aligner.reconstruction_BTC", &back.project(&decoded)?)?;
            }
        }
    }
    Ok(())
}

/// The chain from pixels and tokens to the condition.
/// The configuration of the whole model, of a case's own keys.
pub fn kosmos_config(options: &Value, queries: usize) -> Result<KosmosConfig> {
    let (vit, gpt, aligner) = (&options["vit"], &options["gpt"], &options["aligner"]);
    let size = |value: &Value| value.as_u64().context("a size of `vit` is missing");
    let width = size(&vit["width"])?;
    self::config(json!({
        "model_type": "kosmos-g",
        "vision": {
            "image_size": vit["image"], "patch_size": vit["patch"], "width": width,
            "layers": vit["layers"], "heads": width / size(&vit["head_width"])?,
            "mlp_ratio": vit["mlp_ratio"], "image_mean": [0, 0, 0], "image_std": [1, 1, 1],
        },
        "connector": {
            "latent_query_num": options["latent_query_num"],
            // The authors give the connector as many heads as the language model has.
            "heads": gpt["decoder_attention_heads"],
        },
        "mllm": {
            "vocab_size": options["vocab"], "embed_dim": gpt["decoder_embed_dim"],
            "layers": gpt["decoder_layers"], "heads": gpt["decoder_attention_heads"],
            "ffn_dim": gpt["decoder_ffn_embed_dim"], "layer_norm_eps": 1e-5,
        },
        "aligner": {
            "dim": aligner["dim"], "encoder_layers": aligner["enc"],
            "decoder_layers": aligner["dec"], "heads": aligner["heads"],
            "ffn_dim": aligner["ffn"], "max_positions": aligner["npos"], "queries": queries,
            "layer_norm_eps": 1e-5,
        },
    }))
}

pub fn encode_condition(case: &mut Case) -> Result<()> {
    let queries = case.expected("condition_neg_n2")?.dim(1)?;
    let config = kosmos_config(&case.config, queries)?;
    let model = KosmosG::load(&config, &case.weights()?)?;

    let image_tokens = model.encode_images(&case.input("pixels")?)?.flatten_to(1)?;
    case.check("img_features", &image_tokens)?;
    let images = ImageTokens { features: image_tokens, mask: case.input("img_mask")? };
    let tokens = case.input("tokens")?;
    let hidden = model.encode_tokens(&tokens, Some(&images))?;
    case.check("gpt_hidden_TBC", &swap(&hidden)?)?;

    let negative = case.input("negative_tokens")?;
    let condition = model.encode_condition(&tokens, Some(&images), &negative, 2)?;
    case.check("condition_neg_n2", &condition)?;
    let empty = case.input("empty_negative_tokens")?;
    let condition = model.encode_condition(&tokens, Some(&images), &empty, 1)?;
    case.check("condition_emptyneg_n1", &condition)?;
    let text = case.input("text_tokens")?;
    let condition = model.encode_condition(&text, None, &empty, 1)?;
    case.check("condition_textonly_n1", &condition)
}

/// Where the authors' tokenizer files are: in the folder that `KOSMOGRAPH_KOSMOS_DATA` names, or
/// beside the repository.
pub fn tokenizer_folder() -> (PathBuf, bool) {
    let folder = std::env::var_os("KOSMOGRAPH_KOSMOS_DATA")
        .map_or_else(|| crate::repository().join("../shared/kosmos-g-data"), PathBuf::from);
    let there = folder.join("dict.txt").is_file();
    (folder, there)
}

pub fn tokens(case: &mut Case) -> Result<()> {
    let (folder, there) = tokenizer_folder();
    if !there {
        case.skip(format!(
            "Kosmos-G's tokenizer files are not in {} (set KOSMOGRAPH_KOSMOS_DATA to their folder)",
            folder.display()
        ));
        return Ok(());
    }
    let tokenizer = KosmosTokenizer::read(&folder)?;
    let sentencepiece = Sentencepiece::read(&folder.join("sentencepiece.bpe.model"))?;
    let image_tokens = case.size("image_token_length")?;

    let info = case.config["info"].clone();
    case.check_equal("len_dictionary", &json!(tokenizer.vocab_size()), &info["len_dictionary"]);
    for list in ["special", "first_dict_entries", "last_entries"] {
        for (symbol, id) in info[list].as_object().into_iter().flatten() {
            case.check_equal(&format!("{symbol:?}"), &json!(tokenizer.id(symbol)), id);
        }
    }
    let cases = case.json("tokens.json")?;
    for expected in cases.as_array().context("tokens.json is not a list")? {
        let text = |key: &str| expected[key].as_str().with_context(|| format!("no {key}"));
        let (prompt, negative) = (text("prompt")?, text("negative_prompt")?);
        let pieces: Vec<Vec<String>> =
            prompt.split("<i>").map(|snippet| sentencepiece.encode(snippet)).collect();
        case.check_equal(&format!("pieces of {prompt:?}"), &json!(pieces), &expected["pieces"]);
        let ids: Vec<Vec<u32>> =
            prompt.split("<i>").map(|snippet| tokenizer.snippet(snippet)).collect();
        case.check_equal(&format!("snippets of {prompt:?}"), &json!(ids), &expected["snippet_ids"]);
        let pieces = sentencepiece.encode(negative);
        let key = "negative_pieces";
        case.check_equal(&format!("pieces of {negative:?}"), &json!(pieces), &expected[key]);
        let ids = tokenizer.negative(negative);
        case.check_equal(&format!("ids of {negative:?}"), &json!(ids), &expected["negative_ids"]);

        let pictures = expected["n_images"].as_u64().context("no n_images")? as usize;
        let laid_out = tokenizer.prompt(prompt, pictures, image_tokens)?;
        case.check_equal(&format!("ids of {prompt:?}"), &json!(laid_out.ids), &expected["ids"]);
        let mask: Vec<u8> = laid_out.image_mask.iter().map(|image| u8::from(*image)).collect();
        case.check_equal(&format!("mask of {prompt:?}"), &json!(mask), &expected["mask"]);
    }
    Ok(())
}

fn read_picture(path: &Path) -> Result<image::RgbImage> {
    let picture = image::open(path).with_context(|| path.display().to_string())?;
    Ok(picture.to_rgb8())
}

fn view(picture: &image::RgbImage) -> Picture<'_> {
    Picture {
        pixels: picture.as_raw(),
        width: picture.width() as usize,
        height: picture.height() as usize,
        channels: 3,
    }
}

pub fn image_preprocess(case: &mut Case) -> Result<()> {
    let pictures: Vec<String> =
        case.config["meta"].as_object().context("no meta")?.keys().cloned().collect();
    for name in pictures {
        let picture = read_picture(&case.file(format!("{name}.png")))?;
        let key = format!("{name}.resized_crop_u8_HWC");
        let expected = case.expected(&key)?;
        let size = expected.dim(0)?;
        let cut = resize_and_crop(view(&picture), size, Filter::Bicubic)?;
        case.check_equal(&key, &cut, &expected.flatten_all()?.to_vec1::<u8>()?);
        let transform = PictureTransform {
            size,
            mean: config(case.config["mean"].clone())?,
            std: config(case.config["std"].clone())?,
        };
        case.check(&format!("{name}.gpt_f32"), &transform.pixels(view(&picture))?)?;

        // The decoder's own transform is bilinear; its result is kept as a tensor or as a picture.
        let key = format!("{name}.diff_u8_HWC");
        if case.expects(&key) {
            let expected = case.expected(&key)?;
            let cut = resize_and_crop(view(&picture), expected.dim(0)?, Filter::Bilinear)?;
            case.check_equal(&key, &cut, &expected.flatten_all()?.to_vec1::<u8>()?);
        }
        let stored = case.file(format!("expected_{name}.diff_u8_HWC.png"));
        if stored.is_file() {
            let stored = read_picture(&stored)?;
            let size = stored.width() as usize;
            let cut = resize_and_crop(view(&picture), size, Filter::Bilinear)?;
            case.check_equal(&key, &cut, stored.as_raw());
        }
    }
    Ok(())
}

/// Compares the names and shapes that a model asked for with a list `{name: {"shape": […]}}`, but
/// for the listed names that `unused` is true of.
pub fn check_names(
    case: &mut Case,
    list_name: &str,
    asked: &BTreeMap<String, Vec<usize>>,
    list: &Value,
    unused: impl Fn(&str) -> bool,
) -> Result<()> {
    let list = list.as_object().context("a key list is not an object")?;
    let listed = list.iter().filter(|(name, _)| !unused(name)).map(|(name, entry)| {
        let shape: Vec<usize> = config(entry["shape"].clone())?;
        Ok((name.clone(), shape))
    });
    let listed: BTreeMap<String, Vec<usize>> = listed.collect::<Result<_>>()?;
    for (name, shape) in asked {
        let found = Some(shape);
        case.check_equal(&format!("{list_name}: `{name}`"), &found, &listed.get(name));
    }
    for name in listed.keys().filter(|name| !asked.contains_key(*name)) {
        case.check_equal(&format!("{list_name}: `{name}` asked for"), &false, &true);
    }
    Ok(())
}

/// The names and shapes of the released checkpoints are those that the paper's sizes ask for.
pub fn key_lists(case: &mut Case) -> Result<()> {
    let config: KosmosConfig = config(json!({
        "model_type": "kosmos-g",
        "vision": {
            "image_size": 224, "patch_size": 14, "width": 1024, "layers": 24, "heads": 16,
            "mlp_ratio": 4.0, "image_mean": [0, 0, 0], "image_std": [1, 1, 1],
        },
        "connector": {"latent_query_num": 64, "heads": 32},
        "mllm": {
            "vocab_size": 64007, "embed_dim": 2048, "layers": 24, "heads": 32, "ffn_dim": 8192,
            "layer_norm_eps": 1e-5,
        },
        "aligner": {
            "dim": 768, "encoder_layers": 12, "decoder_layers": 12, "heads": 12, "ffn_dim": 3072,
            "max_positions": 32768, "queries": 77, "layer_norm_eps": 1e-5,
        },
    }))?;
    let weights = Weights::recording();
    KosmosG::load(&config, &weights)?;
    let asked = weights.recorded();
    let unused = |name: &str| {
        name.ends_with("._float_tensor")
            || name.ends_with("self_attn_sope.scale")
            || name.ends_with(".version")
            || name == "gpt_model.decoder.output_projection.weight"
            || name.contains(".attn.")
            || ["diffusion_unet.", "vae.", "aligner.clip_encoder."]
                .iter()
                .any(|p| name.starts_with(p))
    };
    let stage_1 = case.json("kosmosg_stage1_align_checkpoint.json")?;
    check_names(case, "kosmosg_stage1_align_checkpoint", &asked, &stage_1["keys"], unused)?;
    // The final checkpoint has no reconstruction half.
    let condition_only = asked.into_iter().filter(|(name, _)| !name.starts_with("aligner.decoder"));
    let released = case.json("kosmosg_final_checkpoint.json")?;
    let name = "kosmosg_final_checkpoint";
    check_names(case, name, &condition_only.collect(), &released["keys"], unused)
}
