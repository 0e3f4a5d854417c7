//! Kosmos-G's own training: some updates of `align` and of `instruct` by the authors' optimiser.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use kosmograph_models::clip::text::{ClipText, ClipTextConfig};
use kosmograph_models::kosmos::aligner::{Aligner, Reconstruction};
use kosmograph_models::kosmos::{KosmosG, mllm::ImageTokens};
use kosmograph_models::samplers::Schedule;
use kosmograph_models::stable_diffusion::unet::UNet;
use kosmograph_models::{Weight, Weights};
use kosmograph_training::{Course, Gradients, Method, Optimiser, Parameters, RateConfig, kosmos};
use serde_json::Value;

use crate::case::{BOUND, Case, largest_magnitude, read_tensors};
use crate::kosmos::{aligner_config, kosmos_config, load_gpt};
use crate::training::{
    UNET_GRADIENT, check_change, check_gradients, draw, optimiser, schedule, unet_of,
};

/// The gradients of a training's first step, in the file `grads.safetensors`.
fn check_file(case: &mut Case, gradients: &Gradients, relative: f64) -> Result<()> {
    let expected = read_tensors(&case.file("grads.safetensors"))?;
    let largest = expected.values().map(largest_magnitude).collect::<Result<Vec<f64>>>()?;
    ensure!(largest.iter().all(|largest| largest.is_finite()), "grads.safetensors is damaged");
    check_gradients(case, &expected, relative, |name| {
        Tensor::new(gradients.get(name)?, &Device::Cpu).ok()
    })
}

/// The course of the learning rate that the authors' trainer has.
fn authors_rate(case: &Case) -> Result<(RateConfig, usize)> {
    let options = &case.config["optimiser"];
    let number = |name: &str| options[name].as_u64().with_context(|| format!("no {name}"));
    let warmup = number("warmup_updates")? as usize;
    Ok((
        RateConfig { course: Course::Linear, warmup, ..RateConfig::default() },
        number("total_num_update")? as usize,
    ))
}

/// What some updates of the authors' optimiser are compared with.
#[derive(Default)]
struct Steps {
    losses: Vec<f32>,
    norms: Vec<f32>,
    rates: Vec<f32>,
}

impl Steps {
    fn check(self, case: &mut Case) -> Result<()> {
        let of = |values: Vec<f32>| Tensor::new(values, &Device::Cpu);
        case.check("steps.loss", &of(self.losses)?)?;
        case.check("steps.grad_norm", &of(self.norms)?)?;
        case.check("steps.lr", &of(self.rates)?)
    }
}

/// `afterN.NAME` for the N updates that are done.
fn check_after(
    case: &mut Case,
    updates: usize,
    parameters: &Parameters,
    start: &HashMap<String, Weight>,
) -> Result<()> {
    let prefix = format!("after{updates}.");
    for expected in case.expected_names() {
        let Some(name) = expected.strip_prefix(&prefix) else { continue };
        let var = parameters.get(name).with_context(|| name.to_owned())?;
        check_change(case, &expected, var, &start[name].tensor()?, 5e-3)?;
    }
    Ok(())
}

pub fn train_align(case: &mut Case) -> Result<()> {
    let weights = case.weights()?;
    let options = case.config.clone();
    let gpt = load_gpt(&gpt_config(&options), &weights.sub("gpt_model"))?;
    let mut clip = options["clip_text"].clone();
    clip["max_position_embeddings"] = case.input("batch0.clip_tokens")?.dim(1)?.into();
    let clip: ClipTextConfig = serde_json::from_value(clip)?;
    let clip = ClipText::load(&clip, &weights.sub("aligner.clip_encoder"))?;
    let (config, width) = aligner_config(&aligner_options(&options))?;
    let (_, start) = weights.load_kept(|weights| {
        Aligner::load(&config, width, &weights.sub("aligner"))?;
        Reconstruction::load(&config, width, &weights.sub("aligner"))
    })?;
    let parameters = Parameters::of(&start, |_| true)?;
    let trained = Weights::from_kept("variables", parameters.replace_in(&start), &Device::Cpu);
    let aligner = Aligner::load(&config, width, &trained.sub("aligner"))?;
    let back = Reconstruction::load(&config, width, &trained.sub("aligner"))?;
    let settings = optimiser(case, Method::FairseqAdam)?;
    let mut optimiser = Optimiser::new(&settings);
    let (rate, total) = authors_rate(case)?;
    let mut steps = Steps::default();
    for step in 0..5 {
        let batch = format!("batch{}", step % 2);
        let tokens = case.input(&format!("{batch}.src_tokens"))?;
        let target = clip.forward(&case.input(&format!("{batch}.clip_tokens"))?)?;
        let hidden = gpt.forward(&tokens, None)?;
        let padding = kosmos::padding(&tokens)?;
        let mut parts = Vec::new();
        let (loss, mut gradients) = Gradients::of_loss(&parameters, || {
            let [mse, rec] = kosmos::align_losses(&aligner, &back, &hidden, &padding, &target)?;
            parts = vec![("mse_loss", mse.reshape(1)?), ("rec_loss", rec.reshape(1)?)];
            Ok((mse + rec)?)
        })?;
        for (name, part) in parts.iter().filter(|_| step < 2) {
            case.check(&format!("{batch}.{name}"), part)?;
        }
        steps.losses.push(loss as f32);
        if step == 0 {
            check_file(case, &gradients, BOUND)?;
        }
        let rate = settings.learning_rate * rate.factor(step, total);
        steps.rates.push(rate as f32);
        steps.norms.push(optimiser.update(&parameters, &mut gradients, rate)? as f32);
        check_after(case, step + 1, &parameters, &start)?;
    }
    steps.check(case)
}

fn gpt_config(options: &Value) -> Value {
    let mut gpt = options["gpt"].clone();
    gpt["vocab"] = options["vocab"].clone();
    gpt
}

fn aligner_options(options: &Value) -> Value {
    let aligner = &options["aligner"];
    serde_json::json!({
        "gpt_dim": options["gpt"]["dim"], "dim": aligner["dim"], "encoder_layers": aligner["enc"],
        "decoder_layers": aligner["dec"], "heads": aligner["heads"], "ffn": aligner["ffn"],
        "max_positions": aligner["npos"], "queries": options["queries"], "ln_eps": 1e-5,
    })
}

pub fn train_instruct(case: &mut Case) -> Result<()> {
    let weights = case.weights()?;
    let options = case.config.clone();
    let (unet_config, unet_weights) = unet_of(case)?;
    let unet = UNet::load(&unet_weights, &unet_config)?;
    let schedule = schedule(case)?;
    let gpt = &options["gpt"];
    let names = serde_json::json!({
        "vit": options["vit"], "aligner": options["aligner"], "vocab": options["vocab"],
        "latent_query_num": options["latent_query_num"],
        "gpt": {
            "decoder_attention_heads": gpt["heads"], "decoder_embed_dim": gpt["dim"],
            "decoder_layers": gpt["layers"], "decoder_ffn_embed_dim": gpt["ffn"],
        },
    });
    let config = kosmos_config(&names, case.size("queries")?)?;
    let trainable: Vec<String> = serde_json::from_value(options["trainable"].clone())?;
    let mut start = HashMap::new();
    for name in weights.names() {
        let shape = weights.shape(&name).with_context(|| name.clone())?;
        start.insert(name.clone(), weights.get(&name, shape)?.into());
    }
    let parameters = Parameters::of(&start, |name| trainable.iter().any(|other| other == name))?;
    ensure!(parameters.iter().count() == trainable.len(), "a trainable tensor is missing");
    let trained = Weights::from_kept("variables", parameters.replace_in(&start), &Device::Cpu);
    let model = KosmosG::load(&config, &trained)?;
    let (tokens, latents) = (case.input("src_tokens")?, case.input("latents")?);
    let mask = case.input("img_gpt_input_mask")?;
    let table = "gpt_model.decoder.embed_tokens.weight";
    let (dim, pad) = (case.size("gpt.dim")?, case.size("pad_id")?);
    let null_tokens = Tensor::new(&[[case.size("bos_id")? as i64]], &Device::Cpu)?;
    let settings = optimiser(case, Method::FairseqAdam)?;
    let mut optimiser = Optimiser::new(&settings);
    let (rate, total) = authors_rate(case)?;
    let rows = case.size("optimiser.sample_size")?;
    let mut steps = Steps::default();
    for step in 0..3 {
        let (noise, t) = draw(case, step)?;
        let draws = case.input("random_p")?.get(step)?.to_vec1::<f32>()?;
        let pixels = case.input("pixels")?;
        let mut told = None;
        let (loss, mut gradients) = Gradients::of_loss(&parameters, || {
            let features = model.encode_images(&pixels)?.flatten_to(1)?;
            let images = ImageTokens { features, mask: mask.clone() };
            let hidden = model.encode_tokens(&tokens, Some(&images))?;
            let condition = model.align_masked(&hidden, &kosmos::padding(&tokens)?)?;
            let null = model.align(&model.encode_tokens(&null_tokens, None)?, &null_tokens)?;
            let condition = kosmos::drop_conditions(&condition, &null, &draws)?;
            told = Some(condition.detach());
            kosmos::instruct_loss(&unet, &schedule, &latents, &noise, &t, &condition, None)
        })?;
        steps.losses.push(loss as f32);
        gradients.freeze_row(table, pad, dim);
        if step == 0 {
            let condition = told.context("the loss has a condition")?;
            case.check("loss", &Tensor::new(&[loss as f32], &Device::Cpu)?)?;
            case.check("condition_BQC", &condition)?;
            check_condition(case, &unet, &schedule, &condition)?;
            check_file(case, &gradients, UNET_GRADIENT)?;
        }
        gradients.scale(1.0 / rows as f64);
        let rate = settings.learning_rate * rate.factor(step, total);
        steps.rates.push(rate as f32);
        steps.norms.push(optimiser.update(&parameters, &mut gradients, rate)? as f32);
        check_after(case, step + 1, &parameters, &start)?;
    }
    steps.check(case)
}

/// The gradient of the condition itself: of the first step, through the frozen U-Net.
fn check_condition(
    case: &mut Case,
    unet: &UNet,
    schedule: &Schedule,
    condition: &Tensor,
) -> Result<()> {
    let condition = Var::from_tensor(&condition.detach())?;
    let (noise, t) = draw(case, 0)?;
    let latents = case.input("latents")?;
    let loss = kosmos::instruct_loss(unet, schedule, &latents, &noise, &t, &condition, None)?;
    let store = loss.backward()?;
    check_through_unet(case, "grad_condition_BQC", &store, &condition)
}

/// A gradient that came through the U-Net.
pub fn check_through_unet(
    case: &mut Case,
    name: &str,
    store: &GradStore,
    of: &Tensor,
) -> Result<()> {
    let found = store.get(of).with_context(|| format!("`{name}` has no gradient"))?.clone();
    let largest = largest_magnitude(&case.expected(name)?)?;
    case.check_within(name, &found, UNET_GRADIENT * largest)
}
