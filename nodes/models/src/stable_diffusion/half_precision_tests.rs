//! The networks in the type of their weights, as on a GPU, but computed by the CPU twins: whether every type meets its
//! own, and whether the result is near that of the same weights in f32.

use candle_core::{DType, Device, Tensor};
use serde_json::json;

use crate::error::Result;
use crate::files::weights::Weights;
use crate::stable_diffusion::controlnet::{ControlNet, ControlNetConfig};
use crate::stable_diffusion::resnet::half_precision;
use crate::stable_diffusion::unet::{UNet, UNetConfig};
use crate::stable_diffusion::vae::{Vae, VaeConfig};

fn random(shape: &[usize], size: f64) -> Tensor {
    let random = Tensor::randn(0f32, 1., shape, &Device::Cpu).expect("random values");
    random.affine(size, 0.).expect("scaled")
}

/// Random weights of what `load` loads, in `dtype`, that keep the size of what goes through them.
fn weights<N>(load: impl Fn(&Weights) -> Result<N>, dtype: DType) -> Weights {
    let recording = Weights::recording();
    load(&recording).expect("the shapes");
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let fan_in: usize = shape.iter().skip(1).product();
        let tensor = random(&shape, (fan_in as f64).powf(-0.5)).to_dtype(dtype);
        (name, tensor.expect("another type"))
    };
    let tensors = recording.recorded().into_iter().map(tensor).collect();
    Weights::from_tensors("random weights", tensors, &Device::Cpu)
}

/// Runs `run` in f32 and in the weights' type, and compares.
fn compare(dtype: DType, run: impl Fn() -> Result<Tensor>) -> Result<()> {
    let wide = run()?;
    let half = half_precision::ask_for(&run)?;
    assert_eq!((half.dtype(), half.dims()), (DType::F32, wide.dims()));
    let largest =
        |tensor: Tensor| -> Result<f32> { Ok(tensor.abs()?.flatten_all()?.max(0)?.to_scalar()?) };
    let (error, size) = (largest((&half - &wide)?)?, largest(wide)?);
    let bound = if dtype == DType::F16 { 0.02 } else { 0.15 };
    assert!(error > 0.0, "{dtype:?}: the network did not compute in its weights' type");
    assert!(error < bound * size, "{dtype:?}: {error} of {size}");
    Ok(())
}

#[test]
fn u_net_and_control_net() -> Result<()> {
    let blocks = json!({
        "block_out_channels": [32, 64], "norm_num_groups": 8, "attention_head_dim": 4,
        "cross_attention_dim": 24, "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    });
    let mut unet = blocks.clone();
    unet["up_block_types"] = json!(["UpBlock2D", "CrossAttnUpBlock2D"]);
    let unet = UNetConfig::from_value(&unet, "the test's")?;
    let mut control = blocks;
    control["conditioning_embedding_out_channels"] = json!([8, 16]);
    let control = ControlNetConfig::from_value(&control, "the test's")?;
    let (x, context) = (random(&[2, 4, 9, 6], 1.0), random(&[2, 5, 24], 1.0));
    let (timestep, hint) = (Tensor::new(&[500f32], &Device::Cpu)?, random(&[1, 3, 18, 12], 1.0));
    for dtype in [DType::F16, DType::BF16] {
        let load = |weights: &_| UNet::load(weights, &unet);
        let unet = load(&weights(load, dtype))?;
        compare(dtype, || unet.forward(&x, &timestep, &context, None))?;
        let load = |weights: &_| ControlNet::load(weights, &control);
        let control = load(&weights(load, dtype))?;
        compare(dtype, || {
            let hint = control.embed_hint(&hint)?;
            let residuals = control.forward(&x, &timestep, &context, &hint)?.scaled(0.5)?;
            unet.forward(&x, &timestep, &context, Some(&residuals))
        })?;
    }
    Ok(())
}

#[test]
fn vae() -> Result<()> {
    let config = VaeConfig::from_value(
        &json!({
            "block_out_channels": [16, 32], "norm_num_groups": 4, "layers_per_block": 1,
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
        }),
        "the test's",
    )?;
    let (latents, image) = (random(&[1, 4, 7, 5], 1.0), random(&[1, 3, 18, 13], 0.5));
    for dtype in [DType::F16, DType::BF16] {
        let load = |weights: &_| Vae::load(weights, &config);
        let vae = load(&weights(load, dtype))?;
        compare(dtype, || vae.decode(&latents))?;
        compare(dtype, || Ok(vae.encode(&image)?.mode().clone()))?;
    }
    Ok(())
}
