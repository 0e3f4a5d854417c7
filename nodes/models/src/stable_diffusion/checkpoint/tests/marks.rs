//! What a file says of the noise: by a mark, in its header, or beside it.

use super::*;

#[test]
fn what_the_network_predicts_is_found() -> Result<()> {
    use crate::samplers::Prediction;
    let shapes = shapes("sd15_ldm_single_file.json");
    let prediction = |file: &Sparse| -> Result<Prediction> {
        Ok(Checkpoint::open(&file.path, &Device::Cpu)?.unet()?.1.prediction_type)
    };
    let plain = sparse(&shapes, &[]);
    assert_eq!(prediction(&plain)?, Prediction::Epsilon);
    let beside = |value: &str| {
        let text =
            format!("model:\n  params:\n    parameterization: {value}\n    timesteps: 1000\n");
        fs::write(plain.folder.path().join("some name.yaml"), text).expect("written");
        prediction(&plain)
    };
    for v in ["v", "\"v\"", "'v'  # velocity"] {
        assert_eq!(beside(v)?, Prediction::VPrediction, "{v}");
    }
    assert_eq!(beside("\"eps\"")?, Prediction::Epsilon);
    assert!(beside("x0").is_err_and(|e| e.to_string().contains("`x0`")));
    assert!(beside("[").is_err_and(|e| e.to_string().contains("some name.yaml")));
    assert_eq!(
        prediction(&sparse(&shapes, &[("modelspec.prediction_type", "v")]))?,
        Prediction::VPrediction
    );
    let mut marked = shapes.clone();
    marked.insert("v_pred".to_owned(), vec![]);
    assert_eq!(prediction(&sparse(&marked, &[]))?, Prediction::VPrediction);
    let rescaled = |shapes: &Shapes| -> Result<bool> {
        let (_file, checkpoint) = open(shapes)?;
        Ok(checkpoint.unet()?.1.rescale_betas_zero_snr)
    };
    assert!(!rescaled(&marked)?);
    marked.insert("ztsnr".to_owned(), vec![]);
    assert!(rescaled(&marked)?);
    marked.remove("v_pred");
    assert!(!rescaled(&marked)?);
    // Playground 2.5 has both marks; one alone means nothing, as in ComfyUI.
    let mut marked = shapes.clone();
    marked.insert("edm_std".to_owned(), vec![4]);
    assert_eq!(prediction(&sparse(&marked, &[]))?, Prediction::Epsilon);
    marked.insert("edm_mean".to_owned(), vec![4]);
    assert_eq!(prediction(&sparse(&marked, &[]))?, Prediction::Edm);
    let config = open(&marked)?.1.unet()?.1;
    assert_eq!(config.edm_sigmas, Some((0.002, 80.0)));
    assert_eq!(config.latent_space.map(|space| space.mean.len()), Some(4));
    Ok(())
}

/// The marks of CosXL, whose numbers a hole in a file does not have: it is of zeros, which no noise level is.
#[test]
fn the_noise_levels_of_an_edm_network_are_in_its_marks() -> Result<()> {
    use crate::samplers::{Prediction, Schedule, Timesteps};
    let mut tensors = HashMap::new();
    let config = UNetConfig::from_value(
        &json!({
            "block_out_channels": [32], "attention_head_dim": 8, "norm_num_groups": 32,
            "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"],
            "layers_per_block": 1, "cross_attention_dim": 6,
        }),
        "a small one",
    )?;
    let recording = Weights::recording();
    UNet::load(&recording, &config)?;
    for (name, shape) in recording.recorded() {
        tensors.insert(name, Tensor::zeros(shape, DType::F32, &Device::Cpu)?);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("unet.safetensors");
    let mut mark = |name: &str, sigma: f32| -> Result<SchedulerConfig> {
        tensors.insert(name.to_owned(), Tensor::new(sigma, &Device::Cpu)?);
        candle_core::safetensors::save(&tensors, &path)?;
        Ok(Checkpoint::open(&path, &Device::Cpu)?.unet()?.1)
    };
    let config = mark(EDM_SIGMA_MAX, 80.0)?;
    assert_eq!(config.prediction_type, Prediction::VPrediction);
    assert_eq!(config.edm_sigmas, Some((0.002, 80.0)));
    let config = mark(EDM_SIGMA_MIN, 0.5)?;
    assert_eq!(config.edm_sigmas, Some((0.5, 80.0)));
    assert_eq!(Schedule::new(&config)?.timesteps, Timesteps::QuarterLogSigma);
    assert!(mark(EDM_SIGMA_MAX, f32::INFINITY).is_err());
    let config = mark(EDM_SIGMA_MAX, 0.25)?;
    let error = Schedule::new(&config).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("σ goes from 0.5 to 0.25"), "{error}");
    Ok(())
}

#[test]
fn the_factor_of_latents_is_the_autoencoders_beside_or_the_familys() -> Result<()> {
    let scale = |shapes: &Shapes, metadata: &[(&str, &str)]| -> Result<Option<f64>> {
        let file = sparse(shapes, metadata);
        let checkpoint = Checkpoint::open(&file.path, &Device::Cpu)?;
        Ok(checkpoint.latent_scale(&checkpoint.unet()?.0))
    };
    for (name, expected) in
        [("sd15_ldm_single_file.json", 0.18215), ("sd15_unet_diffusers.json", 0.18215)]
    {
        assert_eq!(scale(&shapes(name), &[])?, Some(expected), "{name}");
    }
    let said = ("kosmograph.config", r#"{"vae": {"scaling_factor": 0.5}}"#);
    assert_eq!(scale(&shapes("sd15_ldm_single_file.json"), &[said])?, Some(0.5));
    // A small model of somebody's own says nothing by its shapes, and its autoencoder may lie beside it.
    let tiny = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny");
    let folder = |name: &str| -> Result<Option<f64>> {
        let checkpoint = Checkpoint::open(&tiny.join(name), &Device::Cpu)?;
        Ok(checkpoint.latent_scale(&checkpoint.unet()?.0))
    };
    let vae = fs::read_to_string(tiny.join("sd/vae/config.json")).expect("a configuration");
    let vae: Value = serde_json::from_str(&vae).expect("JSON");
    let of_vae = vae["scaling_factor"].as_f64();
    assert!(of_vae.is_some_and(|scale| scale != 0.18215), "{of_vae:?}");
    assert_eq!(folder("sd")?, of_vae);
    assert_eq!(folder("sd/unet")?, of_vae);
    assert_eq!(folder("unet/dreambooth")?, None);
    Ok(())
}

#[test]
fn a_mark_beside_a_u_net_alone_is_none_of_its_tensors() -> Result<()> {
    use crate::samplers::Prediction;
    for prefix in ["", "model.diffusion_model."] {
        let mut unet: Shapes = match prefix {
            "" => shapes("sd15_unet_diffusers.json"),
            _ => shapes("sd15_ldm_single_file.json")
                .into_iter()
                .filter_map(|(name, shape)| Some((name.strip_prefix(prefix)?.to_owned(), shape)))
                .collect(),
        };
        unet.insert("v_pred".to_owned(), vec![]);
        let (_file, checkpoint) = open(&unet)?;
        check_unet(&checkpoint)?;
        assert_eq!(checkpoint.unet()?.1.prediction_type, Prediction::VPrediction);
    }
    Ok(())
}
