//! What pictures are measured with in papers.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use kosmograph_models::measures::clip::Clip;
use kosmograph_models::measures::dino::Dino;
use kosmograph_models::measures::frechet::{Moments, distance};
use kosmograph_models::measures::inception::{self, Inception, mean_over_space};
use kosmograph_models::measures::pixels::{self, Preprocess};
use kosmograph_models::measures::{score, similarities};
use kosmograph_pixels::pillow::Picture;

use crate::case::{BOUND, Case, largest_magnitude};

/// The pixels of the case's pictures, [B, 3, S, S]; their squares are compared on the way.
fn pictures(case: &mut Case, preprocess: Preprocess) -> Result<Tensor> {
    let names: Vec<String> = serde_json::from_value(case.config["pictures"].clone())?;
    let mut all = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let image = image::open(case.file(name))?.into_rgb8();
        let (width, height) = (image.width() as usize, image.height() as usize);
        let picture = Picture { pixels: image.as_raw(), width, height, channels: 3 };
        let square = preprocess.square(picture)?;
        let expected = format!("picture{i}.crop_u8_HWC");
        if case.expects(&expected) {
            let expected = case.expected(&expected)?.flatten_all()?.to_vec1::<u8>()?;
            case.check_equal(&format!("the square of {name}"), &square, &expected);
        }
        all.push(preprocess.pixels(picture)?);
    }
    let all = Tensor::cat(&all, 0)?;
    let every: Vec<u32> = (0..preprocess.size as u32).step_by(9).collect();
    let every = Tensor::new(every, &Device::Cpu)?;
    let some = all.index_select(&every, 2)?.index_select(&every, 3)?;
    case.check("pixels_every9", &some)?;
    Ok(all)
}

fn check_number(case: &mut Case, name: &str, found: f64) -> Result<()> {
    case.check(name, &Tensor::new(&[found as f32], &Device::Cpu)?)
}

pub fn dino(case: &mut Case) -> Result<()> {
    let weights = case.weights()?;
    let model = Dino::load(&weights, Some(case.size("num_heads")?))?;
    weights.finish(&[])?;
    let pixels = pictures(case, pixels::DINO)?;
    // The case says "before the norm"; the tokens that lie there are behind it.
    let tokens = model.tokens(&pixels)?;
    case.check("block_outputs.last_before_norm_first8", &tokens.narrow(1, 0, 8)?)?;
    let features = model.features(&pixels)?;
    case.check("cls_feature", &features)?;
    let row = |t: &Tensor, i: usize| t.narrow(0, i, 1);
    let (first, second) = (row(&features, 0)?, row(&features, 1)?);
    check_number(case, "score", score(&similarities(&first, &second)?))?;
    check_number(case, "score_negated", score(&similarities(&first, &second.neg()?)?))?;
    let three = case.expected("three_features")?;
    for (name, pairs) in [
        ("mean_of_three_pairs", [(0, 0), (0, 2), (1, 2)]),
        ("mean_of_other_three_pairs", [(0, 0), (0, 1), (1, 2)]),
    ] {
        let mut all = Vec::new();
        for (a, b) in pairs {
            all.extend(similarities(&row(&three, a)?, &row(&three, b)?)?);
        }
        check_number(case, name, score(&all))?;
    }
    Ok(())
}

pub fn clip(case: &mut Case) -> Result<()> {
    let mut config = serde_json::json!({
        "vision_config": case.config["vision"], "text_config": case.config["text"],
    });
    config["text_config"]["eos_token_id"] = case.config["text"]["eos"].clone();
    let model = Clip::load(&case.weights()?, &config, None)?;
    let pictures = model.image_features(&pictures(case, pixels::CLIP)?)?;
    case.check("image_features", &pictures)?;
    // Padding stands behind the first end token and is never looked at.
    case.input("attention_mask")?;
    let texts = model.token_features(&case.input("input_ids")?)?;
    case.check("text_features", &texts)?;
    let (first, second) = (pictures.narrow(0, 0, 1)?, pictures.narrow(0, 1, 1)?);
    check_number(case, "clip_i", score(&similarities(&first, &second)?))?;
    check_number(case, "clip_i_self", score(&similarities(&first, &first)?))?;
    let each = similarities(&pictures, &texts)?;
    let unfloored: Vec<f32> = each.iter().map(|value| *value as f32).collect();
    case.check("clip_t_each_unfloored", &Tensor::new(unfloored, &Device::Cpu)?)?;
    check_number(case, "clip_t_mean", score(&each))?;
    let swapped = Tensor::cat(&[texts.narrow(0, 1, 1)?, texts.narrow(0, 0, 1)?], 0)?;
    check_number(case, "clip_t_swapped_mean", score(&similarities(&pictures, &swapped)?))
}

pub fn fid(case: &mut Case) -> Result<()> {
    let weights = case.weights()?;
    let model = Inception::load(&weights)?;
    weights.finish(&["*.num_batches_tracked"])?;
    for name in case.inputs() {
        if name.starts_with("image") {
            picture(case, &model, &name)?;
        }
    }
    let values = case.input("to_byte.in")?.to_vec1::<f32>()?;
    let expected = case.expected_names().into_iter().find(|name| name.starts_with("to_byte."));
    let expected = case.expected(&expected.context("no to_byte")?)?;
    let expected = expected.to_dtype(DType::U8)?.to_vec1::<u8>()?;
    case.check_equal("to_byte", &inception::to_bytes(&values), &expected);
    let sets = case.config["frechet"].as_object().context("no frechet")?.clone();
    for (set, exact) in &sets {
        let moments = |kind: &str| -> Result<Moments> {
            let rows = case.input(&format!("frechet.{set}.{kind}"))?.to_vec2::<f64>()?;
            let mut moments = Moments::new(rows.first().map_or(0, Vec::len));
            for row in rows {
                moments.add(&row)?;
            }
            Ok(moments)
        };
        let (real, fake) = (moments("real")?, moments("fake")?);
        let found = Tensor::new(&[distance(&real, &fake)?], &Device::Cpu)?;
        let exact = exact["mpmath_40_digits"].as_f64().context("no mpmath_40_digits")?;
        let wanted = Tensor::new(&[exact], &Device::Cpu)?;
        // Relative to the traces; where a covariance is singular, the root of rounding shows. The case's own bounds.
        let is_singular = ["fewer_samples_than_features", "near_singular"].contains(&&**set);
        let relative = if is_singular { 1e-5 } else { 1e-9 };
        let bound = relative * (real.trace() + fake.trace());
        case.compare(&format!("frechet.{set}, exactly"), &found, &wanted, bound)?;
        for library in ["frechet", "frechet_torchmetrics", "frechet_pytorch_fid"] {
            let name = format!("{library}.{set}");
            case.check_within(&name, &found, bound)?;
        }
    }
    Ok(())
}

fn picture(case: &mut Case, model: &Inception, name: &str) -> Result<()> {
    let bytes = case.input(name)?;
    let resized = inception::resize(&bytes)?;
    let every: Vec<u32> = (0..inception::SIZE as u32).step_by(7).collect();
    let every = Tensor::new(every, &Device::Cpu)?;
    let some = resized.index_select(&every, 2)?.index_select(&every, 3)?;
    let mut found = vec![
        ("resized_299_every7".to_owned(), some),
        ("resized_299_row1".to_owned(), resized.narrow(2, 1, 1)?.squeeze(2)?),
    ];
    for expected in case.expected_names() {
        let size = expected.strip_prefix(&format!("{name}.resized_"));
        let size = size.and_then(|size| size.strip_suffix("_first_channel")?.split_once('x'));
        if let Some((height, width)) = size {
            let found =
                inception::resize_to(&bytes, height.parse()?, width.parse()?)?.narrow(1, 0, 1)?;
            let shape = case.expected(&expected)?.dims().to_vec();
            case.check(&expected, &found.reshape(shape)?)?;
        }
    }
    let pixels = inception::pixels(&bytes)?;
    for (stage, tensor) in model.stages(&pixels)? {
        let mean = mean_over_space(&tensor)?;
        let known = [("MaxPool_1", "64"), ("MaxPool_2", "192"), ("Mixed_6e", "768")];
        if let Some((_, width)) = known.iter().find(|(name, _)| *name == stage) {
            found.push(((*width).to_owned(), mean.clone()));
        }
        found.push((format!("{stage}.mean_over_space"), mean));
        found.push((stage.to_owned(), tensor));
    }
    let features = model.features(&pixels)?;
    found.push(("logits".to_owned(), model.logits(&features, true)?));
    found.push(("logits_unbiased".to_owned(), model.logits(&features, false)?));
    found.push(("2048".to_owned(), features));
    for (tensor, found) in found {
        let expected = format!("{name}.{tensor}");
        if case.expects(&expected) {
            let largest = largest_magnitude(&case.expected(&expected)?)?;
            case.check_within(&expected, &found, BOUND * largest)?;
        }
    }
    Ok(())
}
