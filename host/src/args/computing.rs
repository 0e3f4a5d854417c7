//! What nodes compute on, and how.

use clap::Args;
use std::process::Command;
use std::str::FromStr;

use crate::execute::Budget;

/// How nodes compute. Node libraries are told by the environment, since it is the processes that compute which have it.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Computing {
    /// What the processor's products of matrices take: f32; bf16 for factors rounded to 8 bits, where it has AMX,
    /// AVX512_BF16 or, of 64-bit ARM, FEAT_BF16; or int8 for those of linear layers as whole numbers, where it has AVX2 or
    /// ARM's dot product: other pictures, and faster (docs/precision.md) [default: f32]
    #[arg(long, value_name = "f32|bf16|int8", env = Precision::variable(), hide_env_values = true)]
    pub precision: Option<Precision>,
    /// How much of the layers' weights each library keeps on the GPU, 3G or 0; the rest stays in main memory, and a layer's
    /// is copied when it computes: for a card that does not hold the model (docs/cuda.md) [default: all]
    #[arg(long, value_name = "SIZE")]
    pub gpu_weights: Option<OnGpu>,
}

impl Computing {
    /// The variable that says how many bytes of weights stay on a GPU.
    pub const GPU_WEIGHTS: &str = "KOSMOGRAPH_GPU_WEIGHTS";

    /// Tells the process of `command`; what was not said is what the environment of this one says.
    pub fn tell(self, command: &mut Command) {
        if let Some(precision) = self.precision {
            command.env(Precision::VARIABLE, precision.name());
        }
        if let Some(OnGpu(bytes)) = self.gpu_weights {
            command.env(Self::GPU_WEIGHTS, bytes.to_string());
        }
    }

    /// # Errors
    /// What was said is not for `device`.
    pub fn check(self, device: &Device) -> Result<(), &'static str> {
        let on_cpu = device.0 == "cpu";
        if !on_cpu && self.precision.is_some() {
            return Err(
                "--precision is for the processor; a card computes in the models' own type",
            );
        }
        if on_cpu && self.gpu_weights.is_some() {
            return Err("--gpu-weights is for a GPU, and nodes compute on the processor here; \
                        --device cuda names one");
        }
        Ok(())
    }
}

/// Bytes of weights on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnGpu(pub u64);

impl FromStr for OnGpu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "0" => Ok(Self(0)),
            text => match text.parse() {
                Ok(Budget::Bytes(bytes)) => Ok(Self(bytes)),
                Ok(Budget::Percent(_)) | Err(_) => {
                    Err("it is a number and a unit, 3G, 3GiB, 3.5GB (of 1000), or 0".to_owned())
                }
            },
        }
    }
}

/// A device by the name that nodes are told: "cpu", "cuda:0".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device(pub String);

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = match text {
            "cpu" => return Ok(Self("cpu".into())),
            "cuda" => Some("0"),
            text => text.strip_prefix("cuda:"),
        };
        match number.and_then(|number| number.parse::<u16>().ok()) {
            Some(number) => Ok(Self(format!("cuda:{number}"))),
            None => Err("a device is cpu, cuda or cuda:N".into()),
        }
    }
}

/// What the factors of matrix products are rounded to on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    Bf16,
    /// Of linear layers alone.
    Int8,
}

impl Precision {
    pub const VARIABLE: &str = "KOSMOGRAPH_PRECISION";

    /// The variable, unless it is there and empty, which says as little as none.
    fn variable() -> Option<&'static str> {
        let is_empty = std::env::var_os(Self::VARIABLE).is_some_and(|value| value.is_empty());
        (!is_empty).then_some(Self::VARIABLE)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" if has_bf16() => Ok(Self::Bf16),
            "bf16" => Err("this processor has no products of bf16 (AMX, AVX512_BF16 or, of \
                           64-bit ARM, FEAT_BF16); without --precision all is computed in f32"
                .into()),
            "int8" if has_int8() => Ok(Self::Int8),
            "int8" => Err("this processor has no products of int8 (AVX2 or ARM's dot product); \
                           without --precision all is computed in f32"
                .into()),
            _ => Err("a precision is f32, bf16 or int8".into()),
        }
    }
}

/// AMX comes with AVX512_BF16.
fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512bf16");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("bf16");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    false
}

fn has_int8() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("dotprod");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precisions() {
        assert_eq!("f32".parse(), Ok(Precision::F32));
        assert_eq!("bf16".parse::<Precision>().is_ok(), has_bf16());
        assert_eq!("int8".parse::<Precision>().is_ok(), has_int8());
        assert!("int4".parse::<Precision>().is_err_and(|error| error.contains("bf16 or int8")));
    }

    #[test]
    fn devices() {
        assert_eq!("cuda".parse(), Ok(Device("cuda:0".into())));
        assert_eq!("cuda:3".parse(), Ok(Device("cuda:3".into())));
        assert!("cuda:x".parse::<Device>().is_err() && "gpu".parse::<Device>().is_err());
    }

    #[test]
    fn bytes_on_a_gpu() {
        assert_eq!("3G".parse(), Ok(OnGpu(3 << 30)));
        assert_eq!(" 0 ".parse(), Ok(OnGpu(0)));
        for text in ["50%", "", "-1", "3"] {
            assert_eq!(text.parse::<OnGpu>().is_ok(), text == "3", "{text:?}");
        }
    }

    #[test]
    fn what_is_said_is_for_the_device() {
        let cpu = Device("cpu".into());
        let card = Device("cuda:0".into());
        let precision = Computing { precision: Some(Precision::F32), gpu_weights: None };
        let weights = Computing { precision: None, gpu_weights: Some(OnGpu(0)) };
        assert!(precision.check(&cpu).is_ok() && precision.check(&card).is_err());
        assert!(weights.check(&cpu).is_err() && weights.check(&card).is_ok());
    }
}
