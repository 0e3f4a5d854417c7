//! Which upscaler a file is.

use std::path::Path;

use candle_core::Device;

use super::UpscalerConfig;
use super::compact::CompactConfig;
use super::rrdb::RrdbConfig;
use super::rrdb_names::Naming;
use crate::error::{Error, Result};
use crate::files::weights::Weights;
use crate::stable_diffusion::checkpoint::Checkpoint;

/// What training keeps a network under; the averaged one first, which is the better.
const WRAPPINGS: [&str; 6] = ["params_ema", "params-ema", "params", "state_dict", "model", "net"];

/// Names that other upscalers have, and what those are called.
const OTHERS: [(&str, &str); 6] = [
    ("layers.0.residual_group.blocks.0.conv_block.", "a HAT upscaler"),
    ("layers.0.residual_group.", "a SwinIR upscaler"),
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
    Err(not_an_upscaler(path, &weights, device))
}

/// The network within what training saves, without the mark of a model that was trained on several GPUs.
fn unwrapped(weights: &Weights) -> Weights {
    let is_known = |weights: &Weights| {
        Naming::of(&weights.names()).is_some() || weights.shape("body.1.weight").is_some()
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
    let known = "ESRGAN's, Real-ESRGAN's and its compact networks are";
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
