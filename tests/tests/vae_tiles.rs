//! The VAE in tiles against the VAE whole: seams must not show.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use kosmograph_models::Weights;
use kosmograph_models::files::python_json;
use kosmograph_models::stable_diffusion::vae::{Vae, VaeConfig};

/// The autoencoder of the golden case `vae`, its weights random. With `damped` its global attention is
/// off and its residual branches are weak: like a trained one, it then looks at neighbours first.
fn vae(damped: bool) -> Result<Vae> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/vae");
    let file = folder.join("config.json");
    let text = std::fs::read_to_string(&file).context("the golden case `vae`")?;
    let json = python_json::parse(&text, "config.json")?;
    let config = VaeConfig::from_value(&json["config"], "config.json")?;
    let weights = Weights::open(&folder.join("weights.safetensors"), &Device::Cpu)?;
    if !damped {
        return Ok(Vae::load(&weights, &config)?);
    }
    let mut tensors = HashMap::new();
    for name in weights.names() {
        let shape = weights.shape(&name).context("a listed tensor has a shape")?;
        let tensor = weights.get(&name, shape)?;
        let factor = match name.as_str() {
            name if name.contains("to_out") => 0.0,
            name if name.contains("conv2") => 0.1,
            _ => 1.0,
        };
        tensors.insert(name, (tensor * factor)?);
    }
    let weights = Weights::from_tensors("the damped weights", tensors, &Device::Cpu);
    Ok(Vae::load(&weights, &config)?)
}

/// Slow waves over [1, channels, height, width], within −1..1.
fn smooth(channels: usize, height: usize, width: usize, wave: f32) -> Result<Tensor> {
    let value = |i: usize| {
        let (c, y, x) = (i / (height * width), i / width % height, i % width);
        let phase = c as f32 + y as f32 / wave + 0.7 * x as f32 / wave;
        0.9 * phase.sin()
    };
    let values: Vec<f32> = (0..channels * height * width).map(value).collect();
    Ok(Tensor::from_vec(values, (1, channels, height, width), &Device::Cpu)?)
}

fn max_difference(a: &Tensor, b: &Tensor) -> Result<f32> {
    assert_eq!(a.dims(), b.dims());
    Ok((a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar()?)
}

fn max_magnitude(a: &Tensor) -> Result<f32> {
    Ok(a.abs()?.flatten_all()?.max(0)?.to_scalar()?)
}

/// The largest step between neighbouring columns.
fn max_step(a: &Tensor) -> Result<f32> {
    let width = a.dim(3)?;
    max_difference(&a.narrow(3, 1, width - 1)?, &a.narrow(3, 0, width - 1)?)
}

#[test]
fn what_fits_into_a_tile_is_the_same() -> Result<()> {
    let vae = vae(false)?;
    let latents = smooth(4, 8, 11, 4.0)?;
    let tiled = vae.decode_tiled(&latents, 11, 4)?;
    assert_eq!(max_difference(&tiled, &vae.decode(&latents)?)?, 0.0);
    let image = smooth(3, 64, 88, 32.0)?;
    let tiled = vae.encode_tiled(&image, 11, 4)?;
    assert_eq!(max_difference(tiled.mean(), vae.encode(&image)?.mean())?, 0.0);
    Ok(())
}

/// Each tile has normalisation statistics of its own, so tiles and whole differ by more than
/// rounding; by how much on a smooth picture is bounded here, and that the tiles' edges add no step
/// that the whole does not have.
#[test]
fn tiles_of_a_smooth_picture_are_nearly_the_whole() -> Result<()> {
    let vae = vae(true)?;
    let latents = smooth(4, 24, 40, 1.5)?;
    let (whole, tiled) = (vae.decode(&latents)?, vae.decode_tiled(&latents, 20, 8)?);
    let error = max_difference(&whole, &tiled)? / max_magnitude(&whole)?;
    println!("decoded in tiles: {error} of the largest value");
    assert!(error < 0.12, "decoded in tiles: off by {error} of the largest value");
    let (step, tiled_step) = (max_step(&whole)?, max_step(&tiled)?);
    assert!(tiled_step < 1.25 * step, "a seam: a step of {tiled_step}, the whole has {step}");

    let image = smooth(3, 192, 320, 12.0)?;
    let (whole, tiled) = (vae.encode(&image)?, vae.encode_tiled(&image, 20, 8)?);
    let error = max_difference(whole.mean(), tiled.mean())? / max_magnitude(whole.mean())?;
    println!("encoded in tiles: {error} of the largest value");
    assert!(error < 0.08, "encoded in tiles: off by {error} of the largest value");
    Ok(())
}

#[test]
fn a_tile_not_larger_than_its_overlap_is_refused() -> Result<()> {
    let error = vae(false)?.decode_tiled(&smooth(4, 8, 8, 4.0)?, 4, 4).err().context("no error")?;
    assert!(error.to_string().contains("cannot overlap by 4"), "{error}");
    Ok(())
}
