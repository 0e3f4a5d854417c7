//! Rows that are the same until they read their texts are computed once: what comes of it is what each row gives by itself.

use std::path::{Path, PathBuf};

use anyhow::Result;
use candle_core::{Device, Tensor};
use kosmograph_models::Weights;
use kosmograph_models::stable_diffusion::controlnet::{ControlNet, ControlNetConfig};
use kosmograph_models::stable_diffusion::unet::{UNet, UNetConfig};

fn bundled(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny").join(part)
}

fn unet() -> Result<UNet> {
    let folder = bundled("sd/unet");
    let config = UNetConfig::from_json(&std::fs::read_to_string(folder.join("config.json"))?, "")?;
    Ok(UNet::load(&Weights::open(&folder, &Device::Cpu)?, &config)?)
}

fn controlnet() -> Result<ControlNet> {
    let folder = bundled("controlnet/tiny-canny");
    let text = std::fs::read_to_string(folder.join("config.json"))?;
    let config = ControlNetConfig::from_json(&text, "")?;
    Ok(ControlNet::load(&Weights::open(&folder, &Device::Cpu)?, &config)?)
}

/// Numbers that look random, from −1 to 1.
fn waves(shape: &[usize], salt: f32) -> Result<Tensor> {
    let values = (0..shape.iter().product()).map(|i: usize| (i as f32 * salt + salt).sin());
    Ok(Tensor::from_iter(values, &Device::Cpu)?.reshape(shape)?)
}

fn row(tensor: &Tensor, i: usize) -> Result<Tensor> {
    Ok(tensor.narrow(0, i, 1)?)
}

/// The largest difference of two tensors, as a share of the largest number.
fn difference(a: &Tensor, b: &Tensor) -> Result<f32> {
    let most = |x: Tensor| x.abs()?.max_all()?.to_scalar::<f32>();
    Ok(most((a - b)?)? / most(b.clone())?)
}

#[test]
fn each_row_is_what_it_is_by_itself() -> Result<()> {
    let (unet, controlnet) = (unet()?, controlnet()?);
    let (x, context) = (waves(&[2, 4, 16, 16], 0.7)?, waves(&[4, 9, 128], 0.37)?);
    let twice = Tensor::cat(&[&x, &x], 0)?;
    let embedding = controlnet.embed_hint(&waves(&[1, 3, 128, 128], 0.011)?)?;
    let other = controlnet.embed_hint(&waves(&[1, 3, 128, 128], 0.017)?)?;
    let times = Tensor::new(&[321i64], &Device::Cpu)?;
    let apart = Tensor::new(&[321i64, 321, 500, 500], &Device::Cpu)?;
    let hints = [embedding.clone(), Tensor::cat(&[&embedding, &embedding, &embedding, &other], 0)?];
    for times in [times, apart] {
        for hint in &hints {
            let residuals = controlnet.forward(&twice, &times, &context, hint)?;
            let mut computed = 0;
            let mut probe = |name: &str, tensor: &Tensor| {
                if name == "conv_in" {
                    computed = tensor.dims()[0];
                }
            };
            let whole =
                unet.forward_with(&twice, &times, &context, Some(&residuals), &mut probe)?;
            assert_eq!(computed, if times.elem_count() == 1 { 2 } else { 4 });
            for i in 0..4 {
                let of = |tensor: &Tensor| row(tensor, if tensor.dim(0)? == 1 { 0 } else { i });
                let (x, time, context, hint) =
                    (row(&twice, i)?, of(&times)?, row(&context, i)?, of(hint)?);
                let residuals = controlnet.forward(&x, &time, &context, &hint)?;
                let alone = unet.forward(&x, &time, &context, Some(&residuals))?;
                let found = difference(&row(&whole, i)?, &alone)?;
                assert!(found < 1e-5, "row {i}: {found}");
            }
        }
    }
    Ok(())
}
