//! The IPADAPTER object, and EMBEDS: what CLIP's picture half says of pictures, as an adapter takes it.

use std::path::Path;

use candle_core::{Device, Tensor as Candle};
use kosmograph_models::bounds::at_least;
use kosmograph_models::stable_diffusion::ip_adapter::{IpAdapter, IpAdapterConfig};
use kosmograph_models::{Resident, Weights};
use node::interface::{self, marker};
use node::*;
use node_candle::{export, import};

/// An IP-Adapter's file. Its numbers are read when it is first applied.
pub struct IpAdapterModel {
    pub adapter: Resident<IpAdapter>,
    pub config: IpAdapterConfig,
    pub device: Device,
}

impl IpAdapterModel {
    /// Opens the file at `path`, of safetensors or of torch. Its header is checked.
    ///
    /// # Errors
    /// It is no IP-Adapter, or one of a kind that is not supported.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let weights = Weights::open(path, device)?;
        if !weights.has("image_proj") || !weights.has("ip_adapter") {
            return Err(Error::new(format!(
                "{} is no IP-Adapter: it has no tensors image_proj.… and ip_adapter.…",
                path.display()
            )));
        }
        let config = IpAdapterConfig::from_weights(&weights)?;
        let adapter = {
            let config = config.clone();
            Resident::open(weights, &[], move |weights| IpAdapter::load(weights, &config))?
        };
        Ok(Self { adapter, config, device: device.clone() })
    }
}

impl Export for IpAdapterModel {
    const TYPE: &'static str = "IPADAPTER_MODEL";
    const INTERFACES: &'static [InterfaceEntry] =
        interfaces![IpAdapterModel: marker::Describe, marker::Memory];
}

impl interface::Describe for IpAdapterModel {
    fn describe(&self) -> serde_json::Value {
        json!({
            "family": "ip-adapter",
            "context_width": self.config.context_width,
            "image_width": self.config.image_width,
            "layers": self.config.layers.len(),
            "bytes": self.adapter.bytes(),
        })
    }
}

impl interface::Memory for IpAdapterModel {
    fn bytes(&self, purge: bool) -> usize {
        if purge {
            self.adapter.release();
        }
        self.adapter.held()
    }
}

/// What travels as IPADAPTER: the adapter, and the encoder that was loaded with it, where one was.
#[derive(Clone)]
pub struct IpAdapterSocket {
    pub adapter: Object,
    pub clip_vision: Option<ClipVision>,
}

impl Socket for IpAdapterSocket {
    const TYPE: &'static str = "IPADAPTER";

    fn from_value(value: Value) -> Result<Self> {
        let adapter = value.get("ip_adapter").and_then(|adapter| adapter.as_object());
        let adapter = adapter.filter(|adapter| adapter.local::<IpAdapterModel>().is_some());
        let Some(adapter) = adapter else {
            return Err(Error::new(format!(
                "IPADAPTER (what an IP-Adapter's loader gives) is wanted, but {} was given",
                value.kind_name()
            )));
        };
        let clip_vision =
            value.get("clip_vision").map(<ClipVision as Socket>::from_value).transpose()?;
        Ok(Self { adapter, clip_vision })
    }

    fn into_value(self) -> Value {
        let adapter = [("ip_adapter", self.adapter.into_value())];
        let vision = self.clip_vision.map(|vision| ("clip_vision", vision.into_value()));
        Value::map(adapter.into_iter().chain(vision))
    }
}

impl IpAdapterSocket {
    /// # Errors
    /// It is another library's.
    pub fn model(&self) -> Result<&IpAdapterModel> {
        self.adapter
            .local::<IpAdapterModel>()
            .ok_or_else(|| Error::at("ipadapter", "this IP-Adapter is another library's"))
    }

    /// The encoder: the one that is given, else the adapter's own.
    ///
    /// # Errors
    /// There is none.
    pub fn vision(&self, given: Option<ClipVision>) -> Result<ClipVision> {
        given.or(self.clip_vision.clone()).ok_or_else(|| {
            Error::at(
                "clip_vision",
                "is missing: CLIPVisionLoader gives one, or IPAdapterUnifiedLoader an adapter with its own",
            )
        })
    }
}

/// Pictures as an adapter takes them: f32 [N, D] or [N, T, D].
#[derive(Clone, Debug)]
pub struct Embeds(pub Tensor);

impl Socket for Embeds {
    const TYPE: &'static str = "EMBEDS";

    fn from_value(value: Value) -> Result<Self> {
        let tensor = value.as_tensor();
        let is_fit = |tensor: &Tensor| {
            let shape = tensor.shape();
            matches!(shape.len(), 2 | 3) && !shape.contains(&0) && tensor.to_f32().is_ok()
        };
        match tensor.filter(is_fit) {
            Some(tensor) => Ok(Self(tensor)),
            None => Err(Error::new(format!(
                "EMBEDS (an f32 tensor [N, D] or [N, T, D]) is wanted, but {} was given",
                value.kind_name()
            ))),
        }
    }

    fn into_value(self) -> Value {
        self.0.into_value()
    }
}

impl Embeds {
    /// What `vision` says of `image`, as `adapter` takes it.
    pub fn of(
        cx: &Context,
        vision: &ClipVision,
        image: Tensor,
        adapter: &IpAdapterModel,
    ) -> Result<Self> {
        let seen = vision.0.encode_clip_vision(cx, image, true);
        let seen = seen.map_err(|error| error.of_input("clip_vision"))?;
        Ok(Self(match adapter.config.projection.takes_hidden_states() {
            true => seen.penultimate_hidden_states,
            false => seen.image_embeds,
        }))
    }

    /// What stands for no picture: a black one's hidden states, or embeddings of zeros.
    pub fn of_nothing(
        cx: &Context,
        vision: &ClipVision,
        like: &Embeds,
        adapter: &IpAdapterModel,
    ) -> Result<Self> {
        if adapter.config.projection.takes_hidden_states() {
            let black = Tensor::from_f32(&[1, 224, 224, 3], vec![0.0; 224 * 224 * 3])?;
            return Self::of(cx, vision, black, adapter);
        }
        like.of_zeros()
    }

    /// One picture of zeros.
    pub fn of_zeros(&self) -> Result<Self> {
        let mut shape = self.0.shape().to_vec();
        shape[0] = 1;
        let zeros = vec![0.0; shape.iter().product()];
        Ok(Self(Tensor::from_f32(&shape, zeros)?))
    }

    /// Several pictures as one, element by element; "concat" leaves them as they are.
    ///
    /// # Errors
    /// There is no such way.
    pub fn combined(&self, method: &str) -> Result<Self> {
        let all = import(&self.0, &Device::Cpu)?;
        let count = all.dim(0)?;
        if method == "concat" || count == 1 && !matches!(method, "norm average") {
            return Ok(self.clone());
        }
        let one = match method {
            "add" => all.sum_keepdim(0)?,
            "subtract" => {
                let others = all.narrow(0, 1, count - 1)?.mean_keepdim(0)?;
                (all.narrow(0, 0, 1)? - others)?
            }
            "average" => all.mean_keepdim(0)?,
            "norm average" => {
                let norm = at_least(&all.sqr()?.sum_keepdim(0)?.sqrt()?, 1e-12)?;
                all.broadcast_div(&norm)?.mean_keepdim(0)?
            }
            "max" => all.max_keepdim(0)?,
            "min" => all.min_keepdim(0)?,
            other => return Err(Error::new(format!("embeds are not combined by \"{other}\""))),
        };
        Ok(Self(export(&one)?))
    }

    /// The same multiplied by `weight`.
    pub fn times(&self, weight: f64) -> Result<Self> {
        if weight == 1.0 {
            return Ok(self.clone());
        }
        Ok(Self(export(&(import(&self.0, &Device::Cpu)? * weight)?)?))
    }

    /// All of them, one after the other.
    ///
    /// # Errors
    /// They are of different encoders.
    pub fn joined(all: &[Embeds]) -> Result<Self> {
        let tensors = all.iter().map(|embeds| import(&embeds.0, &Device::Cpu));
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        if let [first, rest @ ..] = &tensors[..]
            && let Some(other) = rest.iter().find(|other| other.dims()[1..] != first.dims()[1..])
        {
            return Err(Error::new(format!(
                "embeds of different encoders cannot be combined: {:?} and {:?}",
                first.dims(),
                other.dims()
            )));
        }
        Ok(Self(export(&Candle::cat(&tensors, 0)?)?))
    }
}
