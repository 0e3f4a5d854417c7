//! Which upscaler a file is.

use std::path::Path;

use candle_core::Device;

use super::UpscalerConfig;
use super::compact::CompactConfig;
use super::rrdb::RrdbConfig;
use super::rrdb_names::Naming;
use super::swinir::{Enlarging, SwinIrConfig};
use crate::error::{Error, Result};
use crate::files::weights::Weights;
use crate::stable_diffusion::checkpoint::Checkpoint;

/// What training keeps a network under; the averaged one first, which is the better.
const WRAPPINGS: [&str; 6] = ["params_ema", "params-ema", "params", "state_dict", "model", "net"];

/// Names that other upscalers have, and what those are called.
const OTHERS: [(&str, &str); 5] = [
    ("layers.0.residual_group.blocks.0.conv_block.", "a HAT upscaler"),
    ("layers.0.blocks.0.", "a DAT upscaler"),
    ("residual_layer.0.residual_layer.", "an OmniSR upscaler"),
    ("block_1.c1_r.", "a SPAN upscaler"),
    ("m_head.", "an SCUNet"),
];

/// Opens an upscaler's file, of safetensors or of torch: what its shapes say, and its weights under the names that
/// [`super::Upscaler::load`] asks for. Nothing but headers is read.
///
/// # Errors
/// The file cannot be read, or is of another kind, which the error names.
pub fn open(path: &Path, device: &Device) -> Result<(UpscalerConfig, Weights)> {
    let weights = unwrapped(&Weights::open(path, device)?);
    let names = weights.names();
    if let Some(naming) = Naming::of(&names) {
        let pairs = names
            .iter()
            .map(|name| (naming.translate(name).unwrap_or_else(|| name.clone()), name.clone()));
        let renamed = weights.renamed(pairs.collect::<Vec<_>>());
        let config = rrdb(path, &renamed, naming.doublings(&names))?;
        return Ok((UpscalerConfig::Rrdb(config), renamed));
    }
    let slope = weights.shape("body.1.weight").map(|shape| shape.len());
    if weights.shape("body.0.weight").is_some() && slope == Some(1) {
        let config = compact(path, &weights)?;
        return Ok((UpscalerConfig::Compact(config), weights));
    }
    if weights.shape(SWIN_TABLE).is_some() && weights.has("conv_after_body") {
        // What can be computed from the sizes is in the files as well.
        let buffers = ["attn_mask", "relative_position_index"];
        let names = weights.names().into_iter();
        let names = names.filter(|name| !buffers.iter().any(|end| name.ends_with(end)));
        let own = weights.renamed(names.map(|name| (name.clone(), name)).collect::<Vec<_>>());
        let config = swinir(path, &own)?;
        return Ok((UpscalerConfig::SwinIr(config), own));
    }
    Err(not_an_upscaler(path, &weights, device))
}

/// The tensor that tells SwinIR, and how large its windows are.
const SWIN_TABLE: &str = "layers.0.residual_group.blocks.0.attn.relative_position_bias_table";

/// The largest window that is read; published ones have 7, 8 and 16 pixels a side.
const MOST_WINDOW: usize = 64;

fn swinir(path: &Path, weights: &Weights) -> Result<SwinIrConfig> {
    let refused = |what: String| Error::NotThisKind { path: path.to_owned(), what };
    if weights.has("absolute_pos_embed")
        || weights.has("layers.0.residual_group.blocks.0.attn.logit_scale")
    {
        let what = "it is a SwinIR with places of its own or a Swin2SR, which are not read; a plain SwinIR would be right";
        return Err(refused(what.to_owned()));
    }
    let (channels, input) = sides(weights, "conv_first.weight")?;
    let table = weights.shape(SWIN_TABLE).unwrap_or_default();
    let hidden =
        weights.shape("layers.0.residual_group.blocks.0.mlp.fc1.weight").unwrap_or_default();
    let (&[rows, heads], &[hidden, _]) = (&table[..], &hidden[..]) else {
        return Err(refused("it is a damaged SwinIR: its tables are of no two axes".to_owned()));
    };
    let window = rows.isqrt().div_ceil(2);
    let is_block = |i: usize, j: usize| {
        weights.shape(&format!("layers.{i}.residual_group.blocks.{j}.norm1.weight")).is_some()
    };
    let depth = |i: usize| (0..).take_while(|&j| is_block(i, j)).count();
    let depths: Vec<usize> = (0..).map(depth).take_while(|&depth| depth > 0).collect();
    let enlarging = if weights.has("conv_before_upsample") {
        let (features, _) = sides(weights, "conv_before_upsample.0.weight")?;
        if weights.has("conv_up1") {
            let doublings = if weights.has("conv_up2") { 2 } else { 1 };
            Enlarging::Nearest { features, doublings }
        } else {
            let (first, _) = sides(weights, "upsample.0.weight")?;
            let steps = (0..8).take_while(|i| weights.has(&format!("upsample.{}", 2 * i))).count();
            let by_three = first == features.saturating_mul(9);
            Enlarging::Shuffle { features, scale: if by_three { 3 } else { 1 << steps } }
        }
    } else if weights.has("upsample") {
        let (output, _) = sides(weights, "upsample.0.weight")?;
        let scale = (1..=8).find(|scale| 3 * scale * scale == output);
        let scale = scale.ok_or_else(|| {
            refused(format!("it is a SwinIR whose last layer has {output} channels; 3 for each pixel of a square would be right"))
        })?;
        Enlarging::Direct { scale }
    } else {
        Enlarging::Nothing
    };
    if input != 3 || rows != (2 * window.max(1) - 1).pow(2) || !(2..=MOST_WINDOW).contains(&window)
    {
        return Err(refused(format!(
            "it is a SwinIR of {input} channels whose places are a table of {rows} rows; 3 channels, and (2 w - 1)² rows for windows of 2 \
             to {MOST_WINDOW} pixels a side, would be right"
        )));
    }
    let three_convolutions = weights.has("conv_after_body.0");
    Ok(SwinIrConfig { channels, window, heads, hidden, depths, three_convolutions, enlarging })
}

/// The network within what training saves, without the mark of a model that was trained on several GPUs.
fn unwrapped(weights: &Weights) -> Weights {
    let is_known = |weights: &Weights| {
        Naming::of(&weights.names()).is_some()
            || weights.shape("body.1.weight").is_some()
            || weights.shape(SWIN_TABLE).is_some()
    };
    if is_known(weights) {
        return weights.clone();
    }
    for wrapping in WRAPPINGS.iter().copied().chain(["module"]) {
        let inside = weights.sub(wrapping);
        let inside = if inside.has("module") { inside.sub("module") } else { inside };
        if is_known(&inside) {
            let names = inside.names().into_iter().map(|name| (name.clone(), name));
            return inside.renamed(names.collect::<Vec<_>>());
        }
    }
    weights.clone()
}

fn rrdb(path: &Path, weights: &Weights, doublings: usize) -> Result<RrdbConfig> {
    let (filters, input) = sides(weights, "conv_first.weight")?;
    let (growth, _) = sides(weights, "body.0.rdb1.conv1.weight")?;
    let (output, _) = sides(weights, "conv_last.weight")?;
    let is_block = |i: &usize| weights.shape(&format!("body.{i}.rdb1.conv1.weight")).is_some();
    let blocks = (0..).take_while(is_block).count();
    let unshuffle = match input {
        3 => 1,
        12 => 2,
        48 => 4,
        _ => 0,
    };
    // Ten doublings make a picture of one pixel one of a thousand; no network is trained for more than three.
    let fits = output == 3 && unshuffle > 0 && doublings <= 4 && (1 << doublings) >= unshuffle;
    if !fits {
        let what = format!(
            "it is an ESRGAN of {input} channels to {output} that doubles {doublings} times; 3 channels (or 12 or 48, \
             where pixels become channels) to 3 would be right"
        );
        return Err(Error::NotThisKind { path: path.to_owned(), what });
    }
    Ok(RrdbConfig { filters, growth, blocks, doublings, unshuffle })
}

fn compact(path: &Path, weights: &Weights) -> Result<CompactConfig> {
    let (features, input) = sides(weights, "body.0.weight")?;
    let is_layer = |i: &usize| weights.shape(&format!("body.{}.weight", 2 * i)).is_some();
    let last = (0..).take_while(is_layer).count() - 1;
    let (output, _) = sides(weights, &format!("body.{}.weight", 2 * last))?;
    let scale = (1..=8).find(|scale| 3 * scale * scale == output);
    match (input, scale, last) {
        (3, Some(scale), 1..) => Ok(CompactConfig { features, convolutions: last - 1, scale }),
        _ => {
            let what = format!(
                "it is a compact upscaler of {input} channels to {output}; 3 channels to 3 for each pixel of a square \
                 of at most 8 would be right"
            );
            Err(Error::NotThisKind { path: path.to_owned(), what })
        }
    }
}

/// The outputs and inputs of a convolution.
fn sides(weights: &Weights, name: &str) -> Result<(usize, usize)> {
    match weights.shape(name).as_deref() {
        Some([output, input, _, _]) => Ok((*output, *input)),
        Some(found) => Err(Error::Axes {
            file: weights.origin().to_owned(),
            name: name.to_owned(),
            axes: 4,
            found: found.to_vec(),
        }),
        None => Err(Error::MissingTensor {
            file: weights.origin().to_owned(),
            name: name.to_owned(),
            nearest: None,
        }),
    }
}

/// What a file is that is none of ours.
fn not_an_upscaler(path: &Path, weights: &Weights, device: &Device) -> Error {
    let names = weights.names();
    let shows = |mark: &str| names.iter().any(|name| name.starts_with(mark));
    let known = "ESRGAN's, Real-ESRGAN's, its compact networks and SwinIR's are";
    let what = match OTHERS.iter().find(|(mark, _)| shows(mark)) {
        Some((_, what)) => format!("it is {what}, which is not read; {known}"),
        None => match Checkpoint::open(path, device) {
            Ok(checkpoint) => format!("it is {}, no upscaler", checkpoint.kind()),
            Err(error @ Error::NotThisKind { .. }) if !names.is_empty() => {
                return match error {
                    Error::NotThisKind { path, what } if !what.starts_with("its tensors") => {
                        Error::NotThisKind { path, what: format!("{what}, no upscaler") }
                    }
                    _ => Error::NotThisKind {
                        path: path.to_owned(),
                        what: format!(
                            "its tensors ({} …) are of no upscaler that is read; {known}",
                            names.iter().take(3).cloned().collect::<Vec<_>>().join(", ")
                        ),
                    },
                };
            }
            Err(_) => "it holds no tensors".to_owned(),
        },
    };
    Error::NotThisKind { path: path.to_owned(), what }
}
