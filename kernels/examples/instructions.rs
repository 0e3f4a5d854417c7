//! Calls one kernel at a small size as often as it is told, so that a processor that is emulated can be asked how many
//! instructions a call takes: the difference between two numbers of calls. scripts/aarch64 does that, with
//! scripts/qemu_instructions.c.
//!
//! ```sh
//! KOSMOGRAPH_ISA=neon RAYON_NUM_THREADS=1 qemu-aarch64 -plugin ./libinstructions.so instructions linear 3
//! ```
//!
//! Without arguments: the kernels' names, each with the multiplications of its definition in a call.

use candle_core::{Device, Result, Tensor, bail};
use kosmograph_kernels as kernels;

/// Name, what is computed, and the multiplications of a call by the definition.
const KERNELS: &[(&str, &str, usize)] = &[
    ("linear", "linear, 96 × 320 → 320", 96 * 320 * 320),
    ("linear-f16", "linear, 96 × 320 → 320, weight in f16", 96 * 320 * 320),
    ("linear-many", "linear, 256 × 320 → 320", 256 * 320 * 320),
    ("winograd", "conv2d 3 × 3 by Winograd, 64 → 64 at 32 × 32", 64 * 64 * 9 * 32 * 32),
    ("winograd-320", "conv2d 3 × 3 by Winograd, 320 → 320 at 16 × 16", 320 * 320 * 9 * 16 * 16),
    ("attention", "attention, 2 heads of 40, 256 × 256", 2 * 2 * 256 * 256 * 40),
    ("group_norm_silu", "group_norm with SiLU, 320 × 16²", 320 * 256),
    ("geglu", "geglu, 64 × 2560 → 1280", 64 * 1280),
];

fn values(shape: &[usize]) -> Result<Tensor> {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|i| ((i * 37 + 11) % 101) as f32 / 50.5 - 1.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (name, calls) = match &arguments[..] {
        [] => {
            for (name, work, multiplications) in KERNELS {
                println!("{name}\t{work}\t{multiplications}");
            }
            return Ok(());
        }
        [name, calls] => match calls.parse::<usize>() {
            Ok(calls) => (name.as_str(), calls),
            Err(_) => {
                bail!("{calls:?} is no number of calls; `instructions {name} 3` would be right")
            }
        },
        _ => bail!(
            "`instructions KERNEL CALLS` would be right, or no arguments for the kernels' names"
        ),
    };
    let tensors: Vec<Tensor> = match name {
        "linear" => vec![values(&[96, 320])?, values(&[320, 320])?, values(&[320])?],
        "linear-many" => {
            vec![values(&[256, 320])?, values(&[320, 320])?, values(&[320])?]
        }
        "linear-f16" => {
            let weight = values(&[320, 320])?.to_dtype(candle_core::DType::F16)?;
            vec![values(&[96, 320])?, weight, values(&[320])?]
        }
        "winograd" => vec![values(&[1, 64, 32, 32])?, values(&[64, 64, 3, 3])?, values(&[64])?],
        "winograd-320" => {
            vec![values(&[1, 320, 16, 16])?, values(&[320, 320, 3, 3])?, values(&[320])?]
        }
        "attention" => {
            (0..3).map(|_| values(&[1, 256, 2, 40])?.transpose(1, 2)).collect::<Result<_>>()?
        }
        "group_norm_silu" => vec![values(&[1, 320, 16, 16])?, values(&[320])?, values(&[320])?],
        "geglu" => vec![values(&[64, 2560])?],
        _ => bail!("there is no kernel {name:?} here; without arguments the names are printed"),
    };
    for _ in 0..calls {
        let result = match name {
            "winograd" | "winograd-320" => {
                kernels::conv2d(&tensors[0], &tensors[1], Some(&tensors[2]), 1, 1)?
            }
            "attention" => kernels::attention(&tensors[0], &tensors[1], &tensors[2], None, 0.1)?,
            "group_norm_silu" => {
                kernels::group_norm_silu(&tensors[0], &tensors[1], &tensors[2], 32, 1e-5)?
            }
            "geglu" => kernels::geglu(&tensors[0])?,
            _ => kernels::linear(&tensors[0], &tensors[1], Some(&tensors[2]))?,
        };
        std::hint::black_box(&result);
    }
    Ok(())
}
