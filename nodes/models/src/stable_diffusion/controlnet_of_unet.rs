//! ControlNets that are said as changes of a U-Net's own contracting half: a product of low rank for each of its weights ("Control-LoRA",
//! Stability AI 2023), or a difference ("diff"). What a U-Net does not have, the hint's convolutions and those before the residuals, is
//! in their files as it is.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use kosmograph_kernels as kernels;

use crate::error::{Error, Result};
use crate::files::weights::{Weight, Weights};
use crate::stable_diffusion::controlnet::{ControlNet, ControlNetConfig};
use crate::stable_diffusion::unet::UNetConfig;

/// What makes a ControlNet of a U-Net, each by diffusers' name of a ControlNet's tensor.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// In the place of the U-Net's tensor.
    pub own: HashMap<String, Tensor>,
    /// Added to the U-Net's tensor, where it has one of that name, else as it is.
    pub differences: HashMap<String, Tensor>,
    /// [O, R] or [O, R, 1, 1], and [R, I] or [R, I, kH, kW], whose product is added to the U-Net's tensor.
    pub low_rank: HashMap<String, (Tensor, Tensor)>,
}

/// What errors call it.
const ORIGIN: &str = "the ControlNet made of the model";

impl Changes {
    /// The ControlNet's configuration: the U-Net's, and the hint's convolutions as they are here.
    ///
    /// # Errors
    /// They are missing.
    pub fn config(&self, unet: &UNetConfig) -> Result<ControlNetConfig> {
        let shape = |name: &str| {
            let name = format!("controlnet_cond_embedding.{name}.weight");
            let tensor = self.own.get(&name).or_else(|| self.differences.get(&name));
            tensor.map(|tensor| tensor.dims().to_vec()).filter(|shape| shape.len() == 4)
        };
        let missing = || Error::MissingTensor {
            file: ORIGIN.to_owned(),
            name: "controlnet_cond_embedding.conv_in.weight".to_owned(),
            nearest: None,
        };
        let first = shape("conv_in").ok_or_else(missing)?;
        let mut channels = vec![first[0]];
        while let Some(block) = shape(&format!("blocks.{}", 2 * channels.len() - 1)) {
            channels.push(block[0]);
        }
        Ok(ControlNetConfig::of_unet(unet, first[1], channels))
    }

    /// Whether all that the ControlNet needs is here or in a U-Net whose tensors have the shapes `unet`, in shapes that fit.
    ///
    /// # Errors
    /// What is missing, or does not fit.
    pub fn check(
        &self,
        config: &ControlNetConfig,
        unet: impl Fn(&str) -> Option<Vec<usize>>,
    ) -> Result<()> {
        let recording = Weights::recording();
        ControlNet::load(&recording, config)?;
        for (name, wanted) in recording.recorded() {
            let own = self.own.get(&name).map(|tensor| tensor.dims().to_vec());
            let difference = self.differences.get(&name).map(|tensor| tensor.dims().to_vec());
            let found = own.or(difference.clone()).or_else(|| unet(&name));
            let Some(found) = found else {
                let file = ORIGIN.to_owned();
                return Err(Error::MissingTensor { file, name, nearest: None });
            };
            let product = self.low_rank.get(&name).is_none_or(|(up, down)| fits(up, down, &wanted));
            let same = |shape: &[usize]| {
                // A linear layer may be written as a convolution of one pixel.
                let squeezed = |shape: &[usize]| {
                    let end = shape.iter().rposition(|&size| size != 1).map_or(0, |i| i + 1);
                    shape[..end].to_vec()
                };
                squeezed(shape) == squeezed(&wanted)
            };
            if !same(&found) || !product {
                let (file, expected) = (ORIGIN.to_owned(), wanted);
                return Err(Error::Shape { file, name, expected, found });
            }
        }
        Ok(())
    }

    /// Bytes of what is here, which the ControlNet has beside the U-Net's.
    pub fn bytes(&self) -> usize {
        let pairs = self.low_rank.values().flat_map(|(up, down)| [up, down]);
        let tensors = self.own.values().chain(self.differences.values()).chain(pairs);
        tensors.map(|tensor| tensor.elem_count() * size_of::<f32>()).sum()
    }

    /// The ControlNet of a U-Net with these tensors. Weights of low rank are changed each time that a layer computes where the U-Net's
    /// are kept in fewer bits than f32.
    ///
    /// # Errors
    /// As [`Changes::check`] says.
    pub fn load(
        &self,
        config: &ControlNetConfig,
        unet: &HashMap<String, Weight>,
        device: &Device,
    ) -> Result<ControlNet> {
        let mut tensors: HashMap<String, Weight> = HashMap::new();
        let recording = Weights::recording();
        ControlNet::load(&recording, config)?;
        for (name, shape) in recording.recorded() {
            let base = unet.get(&name);
            let weight = match (self.own.get(&name), self.differences.get(&name), base) {
                (Some(own), _, _) => own.reshape(shape.as_slice())?.into(),
                (None, Some(difference), Some(base)) => {
                    let wide = base.tensor()?.to_dtype(candle_core::DType::F32)?;
                    (wide + difference.reshape(shape.as_slice())?)?.into()
                }
                (None, Some(own), None) => own.reshape(shape.as_slice())?.into(),
                (None, None, Some(base)) => match self.low_rank.get(&name) {
                    None => base.clone(),
                    Some((up, down)) => changed(base, up, down)?,
                },
                (None, None, None) => continue,
            };
            tensors.insert(name, weight);
        }
        ControlNet::load(&Weights::from_kept(ORIGIN, tensors, device), config)
    }
}

/// Whether up times down has as many rows and columns as a weight.
fn fits(up: &Tensor, down: &Tensor, weight: &[usize]) -> bool {
    let (up, down) = (up.dims(), down.dims());
    up.len() >= 2
        && down.len() >= 2
        && up[1..].iter().product::<usize>() == down[0]
        && weight.first() == Some(&up[0])
        && weight[1..].iter().product::<usize>() == down[1..].iter().product::<usize>()
}

/// `base` + up · down.
fn changed(base: &Weight, up: &Tensor, down: &Tensor) -> Result<Weight> {
    let (up, down) = (up.flatten_from(1)?, down.flatten_from(1)?);
    let change = move |wide: Tensor| {
        let flat = wide.reshape((wide.dim(0)?, ()))?;
        kernels::low_rank_update(&flat, &up, &down)?.reshape(wide.shape())
    };
    match base.with_change(change.clone()) {
        Some(late) => Ok(late),
        None => Ok(change(base.tensor()?)?.into()),
    }
}
