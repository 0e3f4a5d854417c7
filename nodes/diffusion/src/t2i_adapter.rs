//! A T2I-Adapter as a CONTROL_NET object: it gives features where a ControlNet gives residuals.

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Tensor as Candle};
use kosmograph_models::stable_diffusion::t2i_adapter::{T2iAdapter, T2iAdapterConfig};
use kosmograph_models::{Resident, Weights};
use node::interface::{self, ControlAnswer, ControlCall, marker};
use node::*;
use node_candle::{export, import};

/// A T2I-Adapter behind "control/1". Its numbers are read when it is first called.
pub struct AdapterModel {
    adapter: Resident<T2iAdapter>,
    config: T2iAdapterConfig,
    device: Device,
    /// The last hint and its features: they depend on nothing else, and a sampler asks at every step.
    computed: Mutex<Option<(Tensor, Vec<Candle>)>>,
}

impl Export for AdapterModel {
    const TYPE: &'static str = "CONTROL_NET";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![AdapterModel: marker::ControlNet, marker::Describe, marker::Memory];
}

impl interface::Control for AdapterModel {
    fn residuals(&self, _cx: &Context, _call: &ControlCall) -> Result<Vec<Tensor>> {
        Ok(Vec::new())
    }

    fn steer(&self, _cx: &Context, call: &ControlCall) -> Result<ControlAnswer> {
        let rows = call.x.shape().first().copied().unwrap_or(0);
        let features = self.features(&call.hint)?;
        let feature = |(place, feature): (String, &Candle)| {
            let feature = rows_of(feature, rows)?;
            Ok((place, export(&(feature * call.strength)?)?))
        };
        let places = self.config.places().into_iter().zip(&features);
        let features = places.map(feature).collect::<Result<_>>()?;
        Ok(ControlAnswer { residuals: Vec::new(), features })
    }
}

/// A feature of a hint for each picture, for `rows` rows: guidance asks for all pictures twice over.
fn rows_of(feature: &Candle, rows: usize) -> Result<Candle> {
    match feature.dim(0)? {
        1 => Ok(feature.clone()),
        given if rows.is_multiple_of(given) => Ok(feature.repeat((rows / given, 1, 1, 1))?),
        given => {
            Err(Error::at("hint", format!("{given} hints do not serve {rows} rows of latents")))
        }
    }
}

impl AdapterModel {
    /// A T2I-Adapter of `weights` as `Checkpoint::t2i_adapter` gives them, on their device. The file's header is checked against
    /// `config`.
    ///
    /// # Errors
    /// The weights are of another model than `config` says.
    pub fn new(config: T2iAdapterConfig, weights: Weights) -> kosmograph_models::Result<Self> {
        let device = weights.device().clone();
        let adapter = {
            let config = config.clone();
            Resident::open(weights, &[], move |weights| T2iAdapter::load(weights, &config))?
        };
        Ok(Self { adapter, config, device, computed: Mutex::default() })
    }

    fn computed(&self) -> MutexGuard<'_, Option<(Tensor, Vec<Candle>)>> {
        self.computed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The features of `hint`, kept while the same tensor is asked for.
    fn features(&self, hint: &Tensor) -> Result<Vec<Candle>> {
        let mut computed = self.computed();
        match &*computed {
            Some((known, features)) if known.is_same(hint) => Ok(features.clone()),
            _ => {
                let features = self.adapter.get()?.forward(&import(hint, &self.device)?)?;
                *computed = Some((hint.clone(), features.clone()));
                Ok(features)
            }
        }
    }
}

impl interface::Describe for AdapterModel {
    fn describe(&self) -> serde_json::Value {
        json!({
            "family": if self.config.is_xl() { "t2i-adapter-xl" } else { "t2i-adapter" },
            "hint_channels": 3,
            "hint_factor": 8,
            "bytes": self.adapter.bytes(),
        })
    }
}

impl interface::Memory for AdapterModel {
    fn bytes(&self, purge: bool) -> usize {
        let mut computed = self.computed();
        if purge {
            *computed = None;
            self.adapter.release();
        }
        let features = computed.iter().flat_map(|(_, features)| features);
        let numbers: usize = features.map(Candle::elem_count).sum();
        self.adapter.held() + numbers * size_of::<f32>()
    }
}
